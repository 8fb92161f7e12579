// Four channels as f32. ELEM4, ELEM8 and elem_ are replaced by X4, X8, x_; W4, W8, w_; Y4, Y8, y_.
// ELEM8 is two quads that lie side by side, at an even index.
alias ELEM4 = vec4<f32>;
struct ELEM8 { lo: vec4<f32>, hi: vec4<f32> }
fn elem_get(v: ELEM4) -> vec4<f32> { return v; }
fn elem_put(v: vec4<f32>) -> ELEM4 { return v; }
fn elem_lo(v: ELEM8) -> vec4<f32> { return v.lo; }
fn elem_hi(v: ELEM8) -> vec4<f32> { return v.hi; }
