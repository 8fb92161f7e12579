// inpe_features: gamma = [cos(B p), sin(B p)] of the points of a grid on the unit sphere
// Source   InfGen (arXiv:2509.10441), implicit neural positional embedding; specs: centres of cells,
//          lon = lon_span (x - 1/2), lat = lat_span (y - 1/2), p = (cos lat sin lon, sin lat, cos lat cos lon)
// Layout   b [m][3] f32; y [rows * grid_w][2 m rounded up to quads], row 0 being grid row `row0`
// Grid     one invocation a quad, 64 a workgroup along y
// Numerics f32. sin and cos are polynomials here (Cephes' sinf and cosf): hardware promises 2^-11 on [-pi, pi] at best, which
//          B, whose rows reach 150, would multiply. Arguments are reduced by multiples of pi/2 in three parts, by fma, so that
//          compilers with fast maths keep the order (error of sin and cos <= 1e-7 for |B p| <= 400)
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    units: u32, quads: u32, features: u32, grid_h: u32, grid_w: u32, row0: u32, lon_span: f32, lat_span: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

// cos and sin of v
fn turn(v: f32) -> vec2<f32> {
    let n = round(v * 0.63661977);
    let r = fma(-n, 7.5497894e-8, fma(-n, 4.8375129e-4, fma(-n, 1.5703125, v)));
    let z = r * r;
    let s = fma(r * z, fma(z, fma(z, -1.9515296e-4, 8.3321609e-3), -1.6666655e-1), r);
    let c = fma(z * z, fma(z, fma(z, 2.4433157e-5, -1.3887316e-3), 4.1666646e-2), fma(z, -0.5, 1.0));
    let quarter = i32(n) & 3;
    let swapped = select(vec2(c, s), vec2(s, c), (quarter & 1) == 1);
    return select(swapped, -swapped, vec2(quarter == 1 || quarter == 2, quarter >= 2));
}

fn feature(f: u32, point: vec3<f32>) -> f32 {
    if f >= 2u * p.features { return 0.0; }
    let at = (f % p.features) * 3u - p.b0.x * 4u;             // b is bound in quads, read in scalars
    let angle = b[at] * point.x + b[at + 1u] * point.y + b[at + 2u] * point.z;
    let t = turn(angle);
    return select(t.y, t.x, f < p.features);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y + p.wg.y) * 64u + lane;
    if i >= p.units { return; }
    let token = i / p.quads;
    let row = p.row0 + token / p.grid_w;
    let column = token % p.grid_w;
    let lon = p.lon_span * ((f32(column) + 0.5) / f32(p.grid_w) - 0.5);
    let lat = p.lat_span * ((f32(row) + 0.5) / f32(p.grid_h) - 0.5);
    let east = turn(lon);
    let north = turn(lat);
    let point = vec3(north.x * east.y, north.y, north.x * east.x);
    let f = (i % p.quads) * 4u;
    y[i - p.b0.y] = vec4(feature(f, point), feature(f + 1u, point), feature(f + 2u, point), feature(f + 3u, point));
}
