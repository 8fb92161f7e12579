// Four channels as f16 packed in two u32, for devices without shader-f16 and for software, where one load of four words
// is cheaper than eight of a half. Saturates like the native form.
alias ELEM4 = vec2<u32>;
alias ELEM8 = vec4<u32>;
fn elem_get(v: ELEM4) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn elem_put(v: vec4<f32>) -> ELEM4 {
    let s = clamp(v, vec4(-65504.0), vec4(65504.0));
    return vec2(pack2x16float(s.xy), pack2x16float(s.zw));
}
fn elem_lo(v: ELEM8) -> vec4<f32> { return vec4(unpack2x16float(v.x), unpack2x16float(v.y)); }
fn elem_hi(v: ELEM8) -> vec4<f32> { return vec4(unpack2x16float(v.z), unpack2x16float(v.w)); }
