// attention_biased: before attention.wgsl, adds to each score what a table has for where the query lies from the key, on a plane of ROWS x COLUMNS tokens
// Source   Bao et al. 2021 (arXiv:2106.08254), as sail-sg/MDT has it
// Layout   table [heads] of (2 ROWS - 1)(2 COLUMNS - 1) values, in whole quads: rows slow, columns fast, beginning where the query is furthest up and left
// Before the other, as naga 30 panics on overrides behind an array whose length is made of one.
override ROWS: u32 = 16u;
override COLUMNS: u32 = 16u;
@group(0) @binding(5) var<storage, read> table: array<vec4<f32>>;

fn finished(at: u32, peak: f32, total: f32) {}

fn biased(score: f32, query: u32, key: u32, head: u32) -> f32 {
    let q = min(query, p.n - 1u);
    let k = min(key, p.m - 1u);
    let down = q / COLUMNS + ROWS - 1u - k / COLUMNS;
    let across = q % COLUMNS + COLUMNS - 1u - k % COLUMNS;
    let i = down * (2u * COLUMNS - 1u) + across;
    return score + table[head * (((2u * ROWS - 1u) * (2u * COLUMNS - 1u) + 3u) / 4u) + i / 4u - p.b1.x][i % 4u];
}
