// A row or column of x, and the nearest one inside for one outside of it: what is read there is multiplied with 0. -1 is 2^32 - 1.
fn inside(at: u32, count: u32) -> u32 { return select(min(at, count - 1u), 0u, at > 0x7fffffffu); }

// Of eight the one that c says: results leave in a loop, since a store written out for each would take most of the time to compile.
fn pick(c: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>, v4: vec4<f32>, v5: vec4<f32>, v6: vec4<f32>, v7: vec4<f32>) -> vec4<f32> {
    let low = (c & 1u) == 1u;
    let mid = (c & 2u) == 2u;
    return select(
        select(select(v0, v1, low), select(v2, v3, low), mid), select(select(v4, v5, low), select(v6, v7, low), mid), (c & 4u) == 4u,
    );
}
