// Upsampling: see conv2d_phase_winograd
const PRODUCTS: u32 = 3u;

// Of x[-1], x, x[+1] the two that a product takes, and the sign of the second.
fn first(row: u32) -> u32 { return select(select(1u, 0u, row == 1u), 2u, row == 2u); }
fn second(row: u32) -> u32 { return 1u; }
fn sign(row: u32) -> f32 { return select(-1.0, 0.0, row == 0u); }

// What a product is multiplied with for y0 and y1.
fn shares(row: u32) -> vec2<f32> { return vec2(select(1.0, 0.0, row == 2u), select(1.0, 0.0, row == 1u)); }
