// count_nonfinite: health[watch] += number of quads of x that hold a NaN, an infinity, or a value at or past `limit` in size
// Layout   x [units]; health counters
// Grid     one invocation a quad, 256 a workgroup along y
// Numerics tested on bits: WGSL lets compilers assume that comparisons never see a NaN
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, limit: f32, watch: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> health: array<atomic<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 256u + lane;
    if i >= p.units { return; }
    let size = bitcast<vec4<u32>>(x_get(x[i - p.b0.x])) & vec4(0x7fffffffu);
    if any(size >= vec4(bitcast<u32>(p.limit))) { atomicAdd(&health[p.watch - p.b0.y], 1u); }
}
