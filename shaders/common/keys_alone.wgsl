// attention_lanes: every lane reads every key and value.
fn own_key(at: u32, i: u32) -> vec4<f32> { return vec4<f32>(); }
fn own_value(at: u32, i: u32) -> vec4<f32> { return vec4<f32>(); }

// Quad i of key j of a block, which begins at `at`.
fn key(own: vec4<f32>, j: u32, at: u32, i: u32) -> vec4<f32> { return x_get(k[at + i - p.b0.y]); }
fn value(own: vec4<f32>, j: u32, at: u32, i: u32) -> vec4<f32> { return x_get(v[at + i - p.b0.z]); }
