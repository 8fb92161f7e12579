// attention_lanes: each of 8 lanes reads a part of a key and of a value of a block of four for all, in octets, see conv2d_3x3_broadcast: lane l
// reads from key l % 4, lanes below 4 the first two octets of every four. A workgroup is one subgroup, D4 even.
@group(0) @binding(2) var<storage, read> k: array<X8>;
@group(0) @binding(3) var<storage, read> v: array<X8>;

// Octet i of a head is in use where this says so: the others are read within the head too.
fn inside(i: u32) -> u32 { return min(i, D4 / 2u - 1u); }

fn keys(at: u32, i: u32) -> Block {
    let a = k[at + inside(i)];
    let b = k[at + inside(i + 1u)];
    return handed_round(x_lo(a), x_hi(a), x_lo(b), x_hi(b));
}

fn values(at: u32, i: u32) -> Block {
    let a = v[at + inside(i)];
    let b = v[at + inside(i + 1u)];
    return handed_round(x_lo(a), x_hi(a), x_lo(b), x_hi(b));
}

fn four(first: u32, lane: u32, head: u32) -> Keys {
    let at = (min(first + lane % 4u, p.m - 1u) * p.heads * D4 + head) / 2u;
    let k0 = at - u32(i32(p.b0.y) / 2);
    let v0 = at - u32(i32(p.b0.z) / 2);
    let i = lane / 4u * 2u;
    if D4 <= 8u { return Keys(keys(k0, i), Block(), values(v0, i), Block()); }
    return Keys(keys(k0, i), keys(k0, 4u + i), values(v0, i), values(v0, 4u + i));
}

fn handed_round(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> Block {
    return Block(
        Head(subgroupBroadcast(a, 0u), subgroupBroadcast(b, 0u), subgroupBroadcast(c, 0u), subgroupBroadcast(d, 0u),
             subgroupBroadcast(a, 4u), subgroupBroadcast(b, 4u), subgroupBroadcast(c, 4u), subgroupBroadcast(d, 4u)),
        Head(subgroupBroadcast(a, 1u), subgroupBroadcast(b, 1u), subgroupBroadcast(c, 1u), subgroupBroadcast(d, 1u),
             subgroupBroadcast(a, 5u), subgroupBroadcast(b, 5u), subgroupBroadcast(c, 5u), subgroupBroadcast(d, 5u)),
        Head(subgroupBroadcast(a, 2u), subgroupBroadcast(b, 2u), subgroupBroadcast(c, 2u), subgroupBroadcast(d, 2u),
             subgroupBroadcast(a, 6u), subgroupBroadcast(b, 6u), subgroupBroadcast(c, 6u), subgroupBroadcast(d, 6u)),
        Head(subgroupBroadcast(a, 3u), subgroupBroadcast(b, 3u), subgroupBroadcast(c, 3u), subgroupBroadcast(d, 3u),
             subgroupBroadcast(a, 7u), subgroupBroadcast(b, 7u), subgroupBroadcast(c, 7u), subgroupBroadcast(d, 7u)));
}
