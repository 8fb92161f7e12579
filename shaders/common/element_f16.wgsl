// Four channels as native f16. f32 -> f16 past 65504 is indeterminate in WGSL, so stores saturate;
// the statistics kernels take +-65504 for an overflow.
alias ELEM4 = vec4<f16>;
struct ELEM8 { lo: vec4<f16>, hi: vec4<f16> }
fn elem_get(v: ELEM4) -> vec4<f32> { return vec4<f32>(v); }
fn elem_put(v: vec4<f32>) -> ELEM4 { return vec4<f16>(clamp(v, vec4(-65504.0), vec4(65504.0))); }
fn elem_lo(v: ELEM8) -> vec4<f32> { return vec4<f32>(v.lo); }
fn elem_hi(v: ELEM8) -> vec4<f32> { return vec4<f32>(v.hi); }
