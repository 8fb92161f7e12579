// attention_lanes: every lane reads every key and value.
@group(0) @binding(2) var<storage, read> k: array<X4>;
@group(0) @binding(3) var<storage, read> v: array<X4>;

fn key(i: u32, at: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(k[at + i - p.b0.y]);
}

fn value(i: u32, at: u32) -> vec4<f32> {
    if i >= D4 { return vec4<f32>(); }
    return x_get(v[at + i - p.b0.z]);
}

fn key_head(j: u32, head: u32) -> Head {
    let at = min(j, p.m - 1u) * p.heads * D4 + head;
    return Head(key(0u, at), key(1u, at), key(2u, at), key(3u, at), key(4u, at), key(5u, at), key(6u, at), key(7u, at));
}

fn value_head(j: u32, head: u32) -> Head {
    let at = min(j, p.m - 1u) * p.heads * D4 + head;
    return Head(value(0u, at), value(1u, at), value(2u, at), value(3u, at), value(4u, at), value(5u, at), value(6u, at), value(7u, at));
}

fn keys(first: u32, lane: u32, head: u32) -> Block {
    return Block(key_head(first, head), key_head(first + 1u, head), key_head(first + 2u, head), key_head(first + 3u, head));
}

fn values(first: u32, lane: u32, head: u32) -> Block {
    return Block(value_head(first, head), value_head(first + 1u, head), value_head(first + 2u, head), value_head(first + 3u, head));
}
