// attention_lanes: each of 8 lanes reads one key and value of a block for all, see conv2d_3x3_broadcast. A workgroup is one subgroup.
fn own_key(at: u32, i: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(k[at + i - p.b0.y]);
}

fn own_value(at: u32, i: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(v[at + i - p.b0.z]);
}

// Quad i of key j of a block.
fn key(own: vec4<f32>, j: u32, at: u32, i: u32) -> vec4<f32> { return subgroupShuffle(own, j); }
fn value(own: vec4<f32>, j: u32, at: u32, i: u32) -> vec4<f32> { return subgroupShuffle(own, j); }
