// attention_range: behind attention.wgsl, attention_tile.wgsl or attention_matrix.wgsl, it keeps what a range of keys needs to be merged with others by attention_merge
// Layout   state [ranges * n, heads] quads: peak, total, 0, 0
@group(0) @binding(5) var<storage, read_write> state: array<vec4<f32>>;

fn finished(at: u32, peak: f32, total: f32) { state[at - p.b1.x] = vec4(peak, total, 0.0, 0.0); }
