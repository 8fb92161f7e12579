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

fn key_half(i: u32, at: u32) -> Head {
    return Head(key(i, at), key(i + 1u, at), key(i + 2u, at), key(i + 3u, at), key(i + 4u, at), key(i + 5u, at), key(i + 6u, at), key(i + 7u, at));
}

fn value_half(i: u32, at: u32) -> Head {
    return Head(value(i, at), value(i + 1u, at), value(i + 2u, at), value(i + 3u, at),
                value(i + 4u, at), value(i + 5u, at), value(i + 6u, at), value(i + 7u, at));
}

fn at(j: u32, head: u32) -> u32 { return min(j, p.m - 1u) * p.heads * D4 + head; }

fn four(first: u32, lane: u32, head: u32) -> Keys {
    let r = at(first, head); let s = at(first + 1u, head); let t = at(first + 2u, head); let u = at(first + 3u, head);
    return Keys(
        Block(key_half(0u, r), key_half(0u, s), key_half(0u, t), key_half(0u, u)),
        Block(key_half(8u, r), key_half(8u, s), key_half(8u, t), key_half(8u, u)),
        Block(value_half(0u, r), value_half(0u, s), value_half(0u, t), value_half(0u, u)),
        Block(value_half(8u, r), value_half(8u, s), value_half(8u, t), value_half(8u, u)));
}
