// norm_apply: y = act(x * scale[c] + shift[c])
// Layout   x, y [pixels, c4]; affine [scale c4][shift c4]
// Grid     an invocation takes one quad of RUN pixels, WG of them a workgroup along y: quads of the first RUN pixels, then of the next
// Memory   reads x once, writes y once; scale and shift once for RUN pixels, which is what counts on software rasterisers
override SILU: u32 = 1u;
override RUN: u32 = 1u;
override WG: u32 = 256u;
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, c4: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n = (wid.y + p.wg.y) * WG + lane;
    let c = n % p.c4;
    let scale = affine[c - p.b0.y];
    let shift = affine[p.c4 + c - p.b0.y];
    let first = n / p.c4 * RUN * p.c4 + c;
    for (var r = 0u; r < RUN; r += 1u) {
        let i = first + r * p.c4;
        if i < p.units {
            var v = x_get(x[i - p.b0.x]) * scale + shift;
            if SILU == 1u { v = silu(v); }
            y[i - p.b0.z] = y_put(v);
        }
    }
}
