// rotary: the heads of tokens on a plane, each normalised first if asked, then their pairs of channels turned by the token's row and column
// Source   Su et al. 2021 (arXiv:2104.09864), in two dimensions as whlzy/FiT has it (adjacent channels are a pair); layer norm without weights before it
// Layout   x, y [tokens, heads, d4], tokens row by row of planes h x w below each other; table [h + w, d4 / 2] quads (cos, sin, cos, sin):
//          the first half of a head's channels turns by its row, the second by its column
// Grid     one invocation a head of a token, 64 a workgroup along y
// Memory   reads x once, three times with the norm, then mostly from cache
// Numerics f32, two passes of the norm
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, count: u32, heads: u32, d4: u32, h: u32, w: u32, norm: u32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Y4>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.count { return; }
    let at = i * p.d4;
    var mean = 0.0;
    var rstd = 1.0;
    if p.norm != 0u {
        let channels = f32(4u * p.d4);
        var sum = vec4<f32>();
        for (var q = 0u; q < p.d4; q += 1u) { sum += x_get(x[at + q - p.b0.x]); }
        mean = ((sum.x + sum.y) + (sum.z + sum.w)) / channels;
        var m2 = vec4<f32>();
        for (var q = 0u; q < p.d4; q += 1u) {
            let d = x_get(x[at + q - p.b0.x]) - mean;
            m2 += d * d;
        }
        rstd = inverseSqrt(((m2.x + m2.y) + (m2.z + m2.w)) / channels + p.eps);
    }
    let token = i / p.heads;
    let half = p.d4 / 2u;
    let row = (token / p.w) % p.h * half;
    let column = (p.h + token % p.w) * half;
    for (var q = 0u; q < p.d4; q += 1u) {
        let v = (x_get(x[at + q - p.b0.x]) - mean) * rstd;
        let t = table[select(row + q, column + q - half, q >= half) - p.b0.y];
        y[at + q - p.b0.z] = y_put(v * t.xxzz + vec4(-v.y, v.x, -v.w, v.z) * t.yyww);
    }
}
