// peak_fma: what the device can multiply-add, for comparison: 8 independent f32 chains an invocation, in registers
// Grid     64 invocations a workgroup along x; 2 * 64 * rounds operations each
// Memory   two quads of sums: what a CPU's vector registers hold, and enough to hide latency where many workgroups run
// Numerics values stay bounded: v = v * 0.999 + 0.001 tends to 1
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, rounds: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.x + p.wg.x) * 64u + lane;
    let start = vec4(f32(i) * 1e-6);
    let a = vec4(0.999); let b = vec4(0.001);
    var v0 = start; var v1 = start + 0.1;
    for (var r = 0u; r < p.rounds; r += 1u) {
        v0 = v0 * a + b; v1 = v1 * a + b; v0 = v0 * a + b; v1 = v1 * a + b;
        v0 = v0 * a + b; v1 = v1 * a + b; v0 = v0 * a + b; v1 = v1 * a + b;
        v0 = v0 * a + b; v1 = v1 * a + b; v0 = v0 * a + b; v1 = v1 * a + b;
        v0 = v0 * a + b; v1 = v1 * a + b; v0 = v0 * a + b; v1 = v1 * a + b;
    }
    y[i - p.b0.x] = v0 + v1;
}
