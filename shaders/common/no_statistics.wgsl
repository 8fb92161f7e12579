// Behind a convolution whose result nobody normalises: see block_statistics.
fn stored(lane: u32, lanes: u32, block: vec2<u32>, first: u32, quads: u32) {}
