// inpe_features: gamma = [cos(B p), sin(B p)] of the points of a grid on the unit sphere
// Source   InfGen (arXiv:2509.10441), implicit neural positional embedding; specs: centres of cells,
//          lon = lon_span (x - 1/2), lat = lat_span (y - 1/2), p = (cos lat sin lon, sin lat, cos lat cos lon)
// Layout   b [m][3] f32; y [rows * grid_w][2 m rounded up to quads], row 0 being grid row `row0`
// Grid     one invocation a quad, 64 a workgroup along y
// Numerics f32; WGSL promises sin and cos on [-pi, pi] only, so the argument is reduced with 2 pi in two parts
//          (error of sin and cos <= 1.5e-7 for |B p| <= 400)
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    units: u32, quads: u32, features: u32, grid_h: u32, grid_w: u32, row0: u32, lon_span: f32, lat_span: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

fn reduce(v: f32) -> f32 {
    let k = round(v * 0.15915494);
    return (v - k * 6.28125) - k * 0.0019353072;
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
    let point = vec3(cos(lat) * sin(lon), sin(lat), cos(lat) * cos(lon));
    var v = vec4<f32>();
    for (var c = 0u; c < 4u; c += 1u) {
        let f = (i % p.quads) * 4u + c;
        if f < 2u * p.features {
            let at = (f % p.features) * 3u - p.b0.x * 4u;         // b is bound in quads, read in scalars
            let angle = reduce(b[at] * point.x + b[at + 1u] * point.y + b[at + 2u] * point.z);
            v[c] = select(sin(angle), cos(angle), f < p.features);
        }
    }
    y[i - p.b0.y] = v;
}
