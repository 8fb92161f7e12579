// Four channels as f32. ELEM4 and elem_ are replaced by X4/x_, W4/w_, Y4/y_.
alias ELEM4 = vec4<f32>;
fn elem_get(v: ELEM4) -> vec4<f32> { return v; }
fn elem_put(v: vec4<f32>) -> ELEM4 { return v; }
