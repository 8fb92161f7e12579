// What of `v` is staged in f16 for matrix units: all of it, or where two f16 take it (SPLIT) the leading 11 bits, so that `v - staged(v)` is exact. By bits,
// not by a conversion to f16 and back: compilers take that for `v` itself (Mesa 26 does) and the second part would be 0.
fn staged(v: vec4<f32>) -> vec4<f32> {
    if SPLIT == 0u { return v; }
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) & vec4(0xffffe000u));
}

// What is split is a sixteenth of an activation, so that up to 1e6 fits f16, and sums of its products are made sixteen times larger. Both are exact.
fn shrunk(v: vec4<f32>) -> vec4<f32> { return v / f32(1u + 15u * SPLIT); }
fn restored(sum: vec4<f32>) -> vec4<f32> { return sum * f32(1u + 15u * SPLIT); }
