// resample_bicubic: some pixels of x at another size: Keys' cubic (a = -1/2), stretched where it reduces, weights of what lies inside made 1
// Source   Pillow Resample.c, BICUBIC; torch.nn.functional.interpolate(mode="bicubic", antialias=True)
// Layout   x [.., stride, 1 quad], its first pixel being (x_top, x_left) of h x w; y [rows, width, 1 quad], its first being (top, left) of grid_h x grid_w
// Grid     x: runs of 64 pixels, y: rows
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, grid_h: u32, grid_w: u32, x_top: u32, x_left: u32, stride: u32, top: u32, left: u32, width: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

fn cubic(distance: f32) -> f32 {
    let d = abs(distance);
    let near = (1.5 * d - 2.5) * d * d + 1.0;
    let far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0;
    return select(select(0.0, far, d < 2.0), near, d < 1.0);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let column = g.x * 64u + lane;
    if column >= p.width { return; }
    let scale = vec2(f32(p.h) / f32(p.grid_h), f32(p.w) / f32(p.grid_w));
    let stretch = max(scale, vec2(1.0));
    let centre = (vec2(f32(g.y + p.top), f32(column + p.left)) + 0.5) * scale;
    let first = vec2<u32>(max(centre - 2.0 * stretch + 0.5, vec2(0.0)));
    let last = min(vec2<u32>(centre + 2.0 * stretch + 0.5), vec2(p.h, p.w));
    var sum = vec4<f32>();
    var total = 0.0;
    for (var i = first.x; i < last.x; i += 1u) {
        let down = cubic((f32(i) + 0.5 - centre.x) / stretch.x);
        let row = (i - p.x_top) * p.stride - p.x_left - p.b0.x;
        for (var j = first.y; j < last.y; j += 1u) {
            let weight = down * cubic((f32(j) + 0.5 - centre.y) / stretch.y);
            sum += weight * x_get(x[row + j]);
            total += weight;
        }
    }
    y[g.y * p.width + column - p.b0.y] = y_put(sum / total);
}
