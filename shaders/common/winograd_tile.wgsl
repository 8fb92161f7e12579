// The body of conv2d_winograd_tile and conv2d_phase_winograd_tile, which say how many PRODUCTS a row of the transforms has, which of x they are of (first,
// second, sign), which results they go to (shares), and how many pixels of x one square of 2 x 2 results is from the next (STEP)
override NORM: u32 = 0u;
override RESIDUAL: u32 = 0u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, act: u32,
    oh: u32, ow: u32, top: u32, left: u32, rw: u32, rtop: u32, rleft: u32, limit: f32, odd_row: u32, odd_column: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> residual: array<Y4>;
@group(0) @binding(6) var<storage, read_write> y: array<Y4>;

const PITCH: u32 = 8u * STEP + 2u;                        // columns of the patch
const SLOTS: u32 = (4u * STEP + 2u) * PITCH;
const ALL: u32 = PRODUCTS * PRODUCTS;
const WG: u32 = 16u * ALL;
const W0: u32 = 32u * ALL;                               // where weights begin in `stage`
var<workgroup> pixels: array<vec4<f32>, SLOTS>;          // [rows][columns]; of two columns a square, the even ones, then the odd ones
var<workgroup> stage: array<vec4<f32>, 64u * ALL>;       // [ALL][32 squares], [ALL][4 c][8 quads]; behind the sums [ALL][16 squares][4 quads]

fn mac(a: vec4<f32>, v: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>) -> vec4<f32> {
    return a + v.x * w0 + v.y * w1 + v.z * w2 + v.w * w3;
}

// Input quad k of a pixel of the patch that begins at `at`; where that lies outside, `at` is some pixel inside.
fn pixel(at: u32, k: u32, inside: bool) -> vec4<f32> {
    var v = x_get(x[at + k]);
    if NORM > 0u { v = v * affine[k - p.b0.w] + affine[p.cin4 + k - p.b0.w]; }
    if NORM == 2u { v = silu(v); }
    return select(vec4<f32>(), v, inside);
}

// Where quad i of the weights of a step begins.
fn weight(i: u32, tile: u32) -> u32 { return (tile * ALL + i / 32u) * p.cin4 * 32u + i % 32u - p.b0.y; }

// Where column c of a row of the patch lies in it; those of the squares beside it lie beside it.
fn place(c: u32) -> u32 { return select(c, c % 2u * (PITCH / 2u) + c / 2u, STEP == 2u); }

// Where a row and column of square i % 32 lie in the patch.
fn corner(i: u32, row: u32, c: u32) -> u32 { return i % 32u / 8u * STEP * PITCH + i % 8u + row * PITCH + place(c); }

// What a product takes of a square: two columns of two rows, `column` and `row` are the signs of the second ones.
fn transformed(a: u32, b: u32, c: u32, d: u32, column: f32, row: f32) -> vec4<f32> {
    return (pixels[a] + column * pixels[b]) + row * (pixels[c] + column * pixels[d]);
}

fn put(i: u32, j: u32, quad: u32, v: vec4<f32>) {
    if i >= p.oh || j >= p.ow || quad >= p.cout4 { return; }
    var r = v + bias[quad - p.b0.z];
    if RESIDUAL == 1u { r += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + quad - p.b1.x]); }
    y[(i * p.ow + j) * p.cout4 + quad - p.b1.y] = y_put(activate(r, p.act));
}

// Stores the results of the 16 squares from `square` on by 4 quads from `quad` on whose products lie in `stage`.
fn finish(lane: u32, g: vec3<u32>, square: u32, quad: u32) {
    workgroupBarrier();
    for (var part = 0u; part < 2u; part += 1u) {
        let o = part * WG + lane;
        if o >= 256u { continue; }
        let r = o / 128u;
        let c = o / 64u % 2u;
        var v = vec4<f32>();
        for (var n = 0u; n < ALL; n += 1u) { v += shares(n / PRODUCTS)[r] * shares(n % PRODUCTS)[c] * stage[n * 64u + o % 64u]; }
        let s = square + o % 64u / 4u;
        put(g.y * 8u - p.odd_row + s / 8u * 2u + r, g.z * 16u - p.odd_column + s % 8u * 2u + c, quad + o % 4u, v);
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = wid + p.wg.xyz;
    let top = g.y * 4u * STEP - p.odd_row + p.top - 1u;
    let left = g.z * 8u * STEP - p.odd_column + p.left - 1u;
    let slot = lane / PITCH * PITCH + place(lane % PITCH);
    let iy = top + lane / PITCH;                         // row and column -1 are 2^32 - 1
    let ix = left + lane % PITCH;
    let inside = (iy < p.h) & (ix < p.w);
    let home = vec2(max(g.y * 4u * STEP, p.odd_row) - p.odd_row + p.top, max(g.z * 8u * STEP, p.odd_column) - p.odd_column + p.left);
    let at = select(home.x * p.w + home.y, iy * p.w + ix, inside) * p.cin4 - p.b0.x;
    let w0 = weight(lane, g.x);
    let w1 = weight(lane + WG, g.x);
    // The corners of this invocation's two squares are the same in every step.
    let r = lane / 32u / PRODUCTS;
    let q = lane / 32u % PRODUCTS;
    let sa = corner(lane, first(r), first(q)); let sb = corner(lane, first(r), second(q));
    let sc = corner(lane, second(r), first(q)); let sd = corner(lane, second(r), second(q));
    let next = lane + WG;
    let u = next / 32u / PRODUCTS;
    let v = next / 32u % PRODUCTS;
    let ta = corner(next, first(u), first(v)); let tb = corner(next, first(u), second(v));
    let tc = corner(next, second(u), first(v)); let td = corner(next, second(u), second(v));
    let signs = vec4(sign(q), sign(r), sign(v), sign(u));
    let t = lane % 16u;
    let xi = lane / 16u * 32u + t % 4u;
    let wi = W0 + lane / 16u * 32u + t / 4u;
    var a0 = vec4<f32>(); var a1 = vec4<f32>(); var a2 = vec4<f32>(); var a3 = vec4<f32>();
    var a4 = vec4<f32>(); var a5 = vec4<f32>(); var a6 = vec4<f32>(); var a7 = vec4<f32>();
    var b0 = vec4<f32>(); var b1 = vec4<f32>(); var b2 = vec4<f32>(); var b3 = vec4<f32>();
    var b4 = vec4<f32>(); var b5 = vec4<f32>(); var b6 = vec4<f32>(); var b7 = vec4<f32>();
    if lane < SLOTS { pixels[slot] = pixel(at, 0u, inside); }
    var n0 = w_get(wt[w0]);
    var n1 = w_get(wt[w1]);
    for (var k = 0u; k < p.cin4; k += 1u) {
        stage[W0 + lane] = n0;
        stage[W0 + WG + lane] = n1;
        workgroupBarrier();
        stage[lane] = transformed(sa, sb, sc, sd, signs.x, signs.y);
        stage[lane + WG] = transformed(ta, tb, tc, td, signs.z, signs.w);
        workgroupBarrier();
        if k + 1u < p.cin4 {
            if lane < SLOTS { pixels[slot] = pixel(at, k + 1u, inside); }
            n0 = w_get(wt[w0 + (k + 1u) * 32u]);
            n1 = w_get(wt[w1 + (k + 1u) * 32u]);
        }
        let x0 = stage[xi]; let x1 = stage[xi + 4u]; let x2 = stage[xi + 8u]; let x3 = stage[xi + 12u];
        let x4 = stage[xi + 16u]; let x5 = stage[xi + 20u]; let x6 = stage[xi + 24u]; let x7 = stage[xi + 28u];
        {
            let w0 = stage[wi]; let w1 = stage[wi + 8u]; let w2 = stage[wi + 16u]; let w3 = stage[wi + 24u];
            a0 = mac(a0, x0, w0, w1, w2, w3); a1 = mac(a1, x1, w0, w1, w2, w3);
            a2 = mac(a2, x2, w0, w1, w2, w3); a3 = mac(a3, x3, w0, w1, w2, w3);
            a4 = mac(a4, x4, w0, w1, w2, w3); a5 = mac(a5, x5, w0, w1, w2, w3);
            a6 = mac(a6, x6, w0, w1, w2, w3); a7 = mac(a7, x7, w0, w1, w2, w3);
        }
        {
            let w0 = stage[wi + 4u]; let w1 = stage[wi + 12u]; let w2 = stage[wi + 20u]; let w3 = stage[wi + 28u];
            b0 = mac(b0, x0, w0, w1, w2, w3); b1 = mac(b1, x1, w0, w1, w2, w3);
            b2 = mac(b2, x2, w0, w1, w2, w3); b3 = mac(b3, x3, w0, w1, w2, w3);
            b4 = mac(b4, x4, w0, w1, w2, w3); b5 = mac(b5, x5, w0, w1, w2, w3);
            b6 = mac(b6, x6, w0, w1, w2, w3); b7 = mac(b7, x7, w0, w1, w2, w3);
        }
        workgroupBarrier();
    }
    let to = lane / 16u * 64u + t % 4u * 4u + t / 4u;
    let quad = g.x * 8u;
    stage[to] = a0; stage[to + 16u] = a1; stage[to + 32u] = a2; stage[to + 48u] = a3;
    finish(lane, g, 0u, quad);
    stage[to] = a4; stage[to + 16u] = a5; stage[to + 32u] = a6; stage[to + 48u] = a7;
    finish(lane, g, 16u, quad);
    stage[to] = b0; stage[to + 16u] = b1; stage[to + 32u] = b2; stage[to + 48u] = b3;
    finish(lane, g, 0u, quad + 4u);
    stage[to] = b4; stage[to + 16u] = b5; stage[to + 32u] = b6; stage[to + 48u] = b7;
    finish(lane, g, 16u, quad + 4u);
    stored(lane, WG, g.yz, quad, 8u);
}
