// The body of conv2d_winograd and conv2d_phase_winograd, which say how many PRODUCTS a row of the transforms has, which of x they are of (first, second,
// sign), which results they go to (shares), and whether the squares of the result are single pixels of x (ENLARGED).
override RESIDUAL: u32 = 0u;
struct Params {
    wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>,
    h: u32, w: u32, cin4: u32, cout4: u32, act: u32,
    oh: u32, ow: u32, top: u32, left: u32, rw: u32, rtop: u32, rleft: u32, odd_row: u32, odd_column: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<X4>;
@group(0) @binding(2) var<storage, read> wt: array<W8>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<Y4>;
@group(0) @binding(5) var<storage, read_write> y: array<Y4>;

fn put(i: u32, j: u32, quad: u32, v: vec4<f32>) {
    if i >= p.oh || j >= p.ow || quad >= p.cout4 { return; }     // row or column -1 is 2^32 - 1
    var r = v;
    if RESIDUAL == 1u { r += y_get(residual[((i + p.rtop) * p.rw + j + p.rleft) * p.cout4 + quad - p.b0.w]); }
    y[(i * p.ow + j) * p.cout4 + quad - p.b1.x] = y_put(activate(r, p.act));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let g = wid + p.wg.xyz;
    let quad = (g.z * 8u + lane) * 2u;
    let j0 = g.x * 16u - p.odd_column;
    let i0 = g.y * 4u - p.odd_row;
    // A lane beyond the last pair reads that pair again.
    let source = min(quad, (p.cout4 - 1u) / 2u * 2u);
    var wi = (source / 8u * p.cin4 * PRODUCTS * PRODUCTS * 32u + source % 8u - p.b0.y) / 2u;
    // x0 of this lane's squares.
    let column = (j0 >> ENLARGED) + (2u >> ENLARGED) * lane + p.left - 1u;
    let row = (i0 >> ENLARGED) + p.top - 1u;
    var a0s0 = vec4<f32>(); var a0s1 = vec4<f32>(); var a0s2 = vec4<f32>(); var a0s3 = vec4<f32>();
    var a0s4 = vec4<f32>(); var a0s5 = vec4<f32>(); var a0s6 = vec4<f32>(); var a0s7 = vec4<f32>();
    var a0s8 = vec4<f32>(); var a0s9 = vec4<f32>(); var a0sa = vec4<f32>(); var a0sb = vec4<f32>();
    var a0sc = vec4<f32>(); var a0sd = vec4<f32>(); var a0se = vec4<f32>(); var a0sf = vec4<f32>();
    var a0t0 = vec4<f32>(); var a0t1 = vec4<f32>(); var a0t2 = vec4<f32>(); var a0t3 = vec4<f32>();
    var a0t4 = vec4<f32>(); var a0t5 = vec4<f32>(); var a0t6 = vec4<f32>(); var a0t7 = vec4<f32>();
    var a0t8 = vec4<f32>(); var a0t9 = vec4<f32>(); var a0ta = vec4<f32>(); var a0tb = vec4<f32>();
    var a0tc = vec4<f32>(); var a0td = vec4<f32>(); var a0te = vec4<f32>(); var a0tf = vec4<f32>();
    var a1s0 = vec4<f32>(); var a1s1 = vec4<f32>(); var a1s2 = vec4<f32>(); var a1s3 = vec4<f32>();
    var a1s4 = vec4<f32>(); var a1s5 = vec4<f32>(); var a1s6 = vec4<f32>(); var a1s7 = vec4<f32>();
    var a1s8 = vec4<f32>(); var a1s9 = vec4<f32>(); var a1sa = vec4<f32>(); var a1sb = vec4<f32>();
    var a1sc = vec4<f32>(); var a1sd = vec4<f32>(); var a1se = vec4<f32>(); var a1sf = vec4<f32>();
    var a1t0 = vec4<f32>(); var a1t1 = vec4<f32>(); var a1t2 = vec4<f32>(); var a1t3 = vec4<f32>();
    var a1t4 = vec4<f32>(); var a1t5 = vec4<f32>(); var a1t6 = vec4<f32>(); var a1t7 = vec4<f32>();
    var a1t8 = vec4<f32>(); var a1t9 = vec4<f32>(); var a1ta = vec4<f32>(); var a1tb = vec4<f32>();
    var a1tc = vec4<f32>(); var a1td = vec4<f32>(); var a1te = vec4<f32>(); var a1tf = vec4<f32>();
    var b0s0 = vec4<f32>(); var b0s1 = vec4<f32>(); var b0s2 = vec4<f32>(); var b0s3 = vec4<f32>();
    var b0s4 = vec4<f32>(); var b0s5 = vec4<f32>(); var b0s6 = vec4<f32>(); var b0s7 = vec4<f32>();
    var b0s8 = vec4<f32>(); var b0s9 = vec4<f32>(); var b0sa = vec4<f32>(); var b0sb = vec4<f32>();
    var b0sc = vec4<f32>(); var b0sd = vec4<f32>(); var b0se = vec4<f32>(); var b0sf = vec4<f32>();
    var b0t0 = vec4<f32>(); var b0t1 = vec4<f32>(); var b0t2 = vec4<f32>(); var b0t3 = vec4<f32>();
    var b0t4 = vec4<f32>(); var b0t5 = vec4<f32>(); var b0t6 = vec4<f32>(); var b0t7 = vec4<f32>();
    var b0t8 = vec4<f32>(); var b0t9 = vec4<f32>(); var b0ta = vec4<f32>(); var b0tb = vec4<f32>();
    var b0tc = vec4<f32>(); var b0td = vec4<f32>(); var b0te = vec4<f32>(); var b0tf = vec4<f32>();
    var b1s0 = vec4<f32>(); var b1s1 = vec4<f32>(); var b1s2 = vec4<f32>(); var b1s3 = vec4<f32>();
    var b1s4 = vec4<f32>(); var b1s5 = vec4<f32>(); var b1s6 = vec4<f32>(); var b1s7 = vec4<f32>();
    var b1s8 = vec4<f32>(); var b1s9 = vec4<f32>(); var b1sa = vec4<f32>(); var b1sb = vec4<f32>();
    var b1sc = vec4<f32>(); var b1sd = vec4<f32>(); var b1se = vec4<f32>(); var b1sf = vec4<f32>();
    var b1t0 = vec4<f32>(); var b1t1 = vec4<f32>(); var b1t2 = vec4<f32>(); var b1t3 = vec4<f32>();
    var b1t4 = vec4<f32>(); var b1t5 = vec4<f32>(); var b1t6 = vec4<f32>(); var b1t7 = vec4<f32>();
    var b1t8 = vec4<f32>(); var b1t9 = vec4<f32>(); var b1ta = vec4<f32>(); var b1tb = vec4<f32>();
    var b1tc = vec4<f32>(); var b1td = vec4<f32>(); var b1te = vec4<f32>(); var b1tf = vec4<f32>();
    for (var n = 0u; n < PRODUCTS * PRODUCTS; n += 1u) {
        let r = n / PRODUCTS;
        let q = n % PRODUCTS;
        // What lies outside of x is multiplied with 0.
        let c0 = column + first(q);
        let c1 = column + second(q);
        let m0 = select(0.0, 1.0, c0 < p.w);
        let m1 = select(0.0, sign(q), c1 < p.w);
        let k0 = inside(c0, p.w) * p.cin4 - p.b0.x;
        let k1 = inside(c1, p.w) * p.cin4 - p.b0.x;
        let r0 = row + 0u + first(r); let n0 = select(0.0, 1.0, r0 < p.h); let x0 = inside(r0, p.h) * p.w * p.cin4;
        let r1 = row + 0u + second(r); let n1 = select(0.0, sign(r), r1 < p.h); let x1 = inside(r1, p.h) * p.w * p.cin4;
        let r2 = row + (2u >> ENLARGED) + first(r); let n2 = select(0.0, 1.0, r2 < p.h); let x2 = inside(r2, p.h) * p.w * p.cin4;
        let r3 = row + (2u >> ENLARGED) + second(r); let n3 = select(0.0, sign(r), r3 < p.h); let x3 = inside(r3, p.h) * p.w * p.cin4;
        var a00 = vec4<f32>(); var a01 = vec4<f32>(); var a02 = vec4<f32>(); var a03 = vec4<f32>();
        var a04 = vec4<f32>(); var a05 = vec4<f32>(); var a06 = vec4<f32>(); var a07 = vec4<f32>();
        var a10 = vec4<f32>(); var a11 = vec4<f32>(); var a12 = vec4<f32>(); var a13 = vec4<f32>();
        var a14 = vec4<f32>(); var a15 = vec4<f32>(); var a16 = vec4<f32>(); var a17 = vec4<f32>();
        var b00 = vec4<f32>(); var b01 = vec4<f32>(); var b02 = vec4<f32>(); var b03 = vec4<f32>();
        var b04 = vec4<f32>(); var b05 = vec4<f32>(); var b06 = vec4<f32>(); var b07 = vec4<f32>();
        var b10 = vec4<f32>(); var b11 = vec4<f32>(); var b12 = vec4<f32>(); var b13 = vec4<f32>();
        var b14 = vec4<f32>(); var b15 = vec4<f32>(); var b16 = vec4<f32>(); var b17 = vec4<f32>();
        for (var k = 0u; k < p.cin4; k += 1u) {
            let w0 = wt[wi]; let w1 = wt[wi + 4u]; let w2 = wt[wi + 8u]; let w3 = wt[wi + 12u];
            let u0 = w_lo(w0); let u1 = w_lo(w1); let u2 = w_lo(w2); let u3 = w_lo(w3);
            let t0 = w_hi(w0); let t1 = w_hi(w1); let t2 = w_hi(w2); let t3 = w_hi(w3);
            {
                let above = x_get(x[x0 + k0 + k]) * m0 + x_get(x[x0 + k1 + k]) * m1;
                let below = x_get(x[x1 + k0 + k]) * m0 + x_get(x[x1 + k1 + k]) * m1;
                let v = above * n0 + below * n1;
                { let s = subgroupBroadcast(v, 0u); a00 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b00 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 1u); a01 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b01 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 2u); a02 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b02 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 3u); a03 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b03 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 4u); a04 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b04 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 5u); a05 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b05 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 6u); a06 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b06 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 7u); a07 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b07 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            }
            {
                let above = x_get(x[x2 + k0 + k]) * m0 + x_get(x[x2 + k1 + k]) * m1;
                let below = x_get(x[x3 + k0 + k]) * m0 + x_get(x[x3 + k1 + k]) * m1;
                let v = above * n2 + below * n3;
                { let s = subgroupBroadcast(v, 0u); a10 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b10 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 1u); a11 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b11 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 2u); a12 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b12 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 3u); a13 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b13 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 4u); a14 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b14 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 5u); a15 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b15 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 6u); a16 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b16 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
                { let s = subgroupBroadcast(v, 7u); a17 += s.x * u0 + s.y * u1 + s.z * u2 + s.w * u3; b17 += s.x * t0 + s.y * t1 + s.z * t2 + s.w * t3; }
            }
            wi += 16u;
        }
        let e = shares(r);
        let f = shares(q);
        let s00 = e.x * f.x; let s01 = e.x * f.y; let s10 = e.y * f.x; let s11 = e.y * f.y;
        a0s0 += s00 * a00; a0s1 += s01 * a00; a0t0 += s10 * a00; a0t1 += s11 * a00;
        a0s2 += s00 * a01; a0s3 += s01 * a01; a0t2 += s10 * a01; a0t3 += s11 * a01;
        a0s4 += s00 * a02; a0s5 += s01 * a02; a0t4 += s10 * a02; a0t5 += s11 * a02;
        a0s6 += s00 * a03; a0s7 += s01 * a03; a0t6 += s10 * a03; a0t7 += s11 * a03;
        a0s8 += s00 * a04; a0s9 += s01 * a04; a0t8 += s10 * a04; a0t9 += s11 * a04;
        a0sa += s00 * a05; a0sb += s01 * a05; a0ta += s10 * a05; a0tb += s11 * a05;
        a0sc += s00 * a06; a0sd += s01 * a06; a0tc += s10 * a06; a0td += s11 * a06;
        a0se += s00 * a07; a0sf += s01 * a07; a0te += s10 * a07; a0tf += s11 * a07;
        a1s0 += s00 * a10; a1s1 += s01 * a10; a1t0 += s10 * a10; a1t1 += s11 * a10;
        a1s2 += s00 * a11; a1s3 += s01 * a11; a1t2 += s10 * a11; a1t3 += s11 * a11;
        a1s4 += s00 * a12; a1s5 += s01 * a12; a1t4 += s10 * a12; a1t5 += s11 * a12;
        a1s6 += s00 * a13; a1s7 += s01 * a13; a1t6 += s10 * a13; a1t7 += s11 * a13;
        a1s8 += s00 * a14; a1s9 += s01 * a14; a1t8 += s10 * a14; a1t9 += s11 * a14;
        a1sa += s00 * a15; a1sb += s01 * a15; a1ta += s10 * a15; a1tb += s11 * a15;
        a1sc += s00 * a16; a1sd += s01 * a16; a1tc += s10 * a16; a1td += s11 * a16;
        a1se += s00 * a17; a1sf += s01 * a17; a1te += s10 * a17; a1tf += s11 * a17;
        b0s0 += s00 * b00; b0s1 += s01 * b00; b0t0 += s10 * b00; b0t1 += s11 * b00;
        b0s2 += s00 * b01; b0s3 += s01 * b01; b0t2 += s10 * b01; b0t3 += s11 * b01;
        b0s4 += s00 * b02; b0s5 += s01 * b02; b0t4 += s10 * b02; b0t5 += s11 * b02;
        b0s6 += s00 * b03; b0s7 += s01 * b03; b0t6 += s10 * b03; b0t7 += s11 * b03;
        b0s8 += s00 * b04; b0s9 += s01 * b04; b0t8 += s10 * b04; b0t9 += s11 * b04;
        b0sa += s00 * b05; b0sb += s01 * b05; b0ta += s10 * b05; b0tb += s11 * b05;
        b0sc += s00 * b06; b0sd += s01 * b06; b0tc += s10 * b06; b0td += s11 * b06;
        b0se += s00 * b07; b0sf += s01 * b07; b0te += s10 * b07; b0tf += s11 * b07;
        b1s0 += s00 * b10; b1s1 += s01 * b10; b1t0 += s10 * b10; b1t1 += s11 * b10;
        b1s2 += s00 * b11; b1s3 += s01 * b11; b1t2 += s10 * b11; b1t3 += s11 * b11;
        b1s4 += s00 * b12; b1s5 += s01 * b12; b1t4 += s10 * b12; b1t5 += s11 * b12;
        b1s6 += s00 * b13; b1s7 += s01 * b13; b1t6 += s10 * b13; b1t7 += s11 * b13;
        b1s8 += s00 * b14; b1s9 += s01 * b14; b1t8 += s10 * b14; b1t9 += s11 * b14;
        b1sa += s00 * b15; b1sb += s01 * b15; b1ta += s10 * b15; b1tb += s11 * b15;
        b1sc += s00 * b16; b1sd += s01 * b16; b1tc += s10 * b16; b1td += s11 * b16;
        b1se += s00 * b17; b1sf += s01 * b17; b1te += s10 * b17; b1tf += s11 * b17;
    }
    let bias_a = bias[min(quad, p.cout4 - 1u) - p.b0.z];
    let bias_b = bias[min(quad + 1u, p.cout4 - 1u) - p.b0.z];
    for (var c = 0u; c < 16u; c += 1u) {
        let a0 = select(pick(c / 2u, a0s0, a0s2, a0s4, a0s6, a0s8, a0sa, a0sc, a0se), pick(c / 2u, a0s1, a0s3, a0s5, a0s7, a0s9, a0sb, a0sd, a0sf), c % 2u == 1u);
        let b0 = select(pick(c / 2u, b0s0, b0s2, b0s4, b0s6, b0s8, b0sa, b0sc, b0se), pick(c / 2u, b0s1, b0s3, b0s5, b0s7, b0s9, b0sb, b0sd, b0sf), c % 2u == 1u);
        let a1 = select(pick(c / 2u, a0t0, a0t2, a0t4, a0t6, a0t8, a0ta, a0tc, a0te), pick(c / 2u, a0t1, a0t3, a0t5, a0t7, a0t9, a0tb, a0td, a0tf), c % 2u == 1u);
        let b1 = select(pick(c / 2u, b0t0, b0t2, b0t4, b0t6, b0t8, b0ta, b0tc, b0te), pick(c / 2u, b0t1, b0t3, b0t5, b0t7, b0t9, b0tb, b0td, b0tf), c % 2u == 1u);
        let a2 = select(pick(c / 2u, a1s0, a1s2, a1s4, a1s6, a1s8, a1sa, a1sc, a1se), pick(c / 2u, a1s1, a1s3, a1s5, a1s7, a1s9, a1sb, a1sd, a1sf), c % 2u == 1u);
        let b2 = select(pick(c / 2u, b1s0, b1s2, b1s4, b1s6, b1s8, b1sa, b1sc, b1se), pick(c / 2u, b1s1, b1s3, b1s5, b1s7, b1s9, b1sb, b1sd, b1sf), c % 2u == 1u);
        let a3 = select(pick(c / 2u, a1t0, a1t2, a1t4, a1t6, a1t8, a1ta, a1tc, a1te), pick(c / 2u, a1t1, a1t3, a1t5, a1t7, a1t9, a1tb, a1td, a1tf), c % 2u == 1u);
        let b3 = select(pick(c / 2u, b1t0, b1t2, b1t4, b1t6, b1t8, b1ta, b1tc, b1te), pick(c / 2u, b1t1, b1t3, b1t5, b1t7, b1t9, b1tb, b1td, b1tf), c % 2u == 1u);
        for (var n = 0u; n < 8u; n += 1u) {
            put(i0 + n / 2u, j0 + c, quad + n % 2u, pick(n, a0, b0, a1, b1, a2, b2, a3, b3) + select(bias_a, bias_b, n % 2u == 1u));
        }
    }
}
