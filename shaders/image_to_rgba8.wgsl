// image_to_rgba8: 8-bit sRGB of width x height pixels of x from (top, left) on: round(255 * clamp(x / 2 + 1/2, 0, 1)), half to even, alpha 255
// Source   diffusers image_processor.py, denormalize and numpy_to_pil
// Layout   x [h, w, 1 quad], rows of stride quads; y one word a pixel, red in the low byte, rows of pitch words
// Grid     x: runs of 64 pixels, y: rows
struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, stride: u32, width: u32, pitch: u32, top: u32, left: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let j = g.x * 64u + lane;
    if j >= p.width { return; }
    let v = x_get(x[(g.y + p.top) * p.stride + j + p.left - p.b0.x]).xyz;
    let c = vec3<u32>(round(255.0 * clamp(v * 0.5 + 0.5, vec3(0.0), vec3(1.0))));
    y[g.y * p.pitch + j - p.b0.y] = c.x | (c.y << 8u) | (c.z << 16u) | 0xff000000u;
}
