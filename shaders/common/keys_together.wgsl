// attention_lanes: each of 8 lanes reads half a key and half a value of a block of four for all, in octets, see conv2d_3x3_broadcast: lane l
// the first or second two octets of key l % 4. A workgroup is one subgroup, D4 even.
@group(0) @binding(2) var<storage, read> k: array<X8>;
@group(0) @binding(3) var<storage, read> v: array<X8>;

fn octet(first: u32, lane: u32, head: u32) -> u32 { return (min(first + lane % 4u, p.m - 1u) * p.heads * D4 + head) / 2u; }

// Octet i of a head is in use where this says so: the others are read within the head too.
fn inside(i: u32) -> u32 { return min(i, D4 / 2u - 1u); }

fn keys(first: u32, lane: u32, head: u32) -> Block {
    let at = octet(first, lane, head) - u32(i32(p.b0.y) / 2);
    let a = k[at + inside(lane / 4u * 2u)];
    let b = k[at + inside(lane / 4u * 2u + 1u)];
    return handed_round(x_lo(a), x_hi(a), x_lo(b), x_hi(b));
}

fn values(first: u32, lane: u32, head: u32) -> Block {
    let at = octet(first, lane, head) - u32(i32(p.b0.z) / 2);
    let a = v[at + inside(lane / 4u * 2u)];
    let b = v[at + inside(lane / 4u * 2u + 1u)];
    return handed_round(x_lo(a), x_hi(a), x_lo(b), x_hi(b));
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
