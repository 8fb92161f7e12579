// F(2, 3)
const PRODUCTS: u32 = 4u;

// The two of x0 .. x3 that a row of F(2, 3)'s B^T takes, and the sign of the second.
fn first(row: u32) -> u32 { return select(select(1u, 2u, row == 2u), 0u, row == 0u); }
fn second(row: u32) -> u32 { return select(select(2u, 1u, row == 2u), 3u, row == 3u); }
fn sign(row: u32) -> f32 { return select(-1.0, 1.0, row == 1u); }

// What A^T multiplies a product with for y0 and y1.
fn shares(row: u32) -> vec2<f32> { return vec2(select(0.0, 1.0, row < 3u), select(sign(row), 0.0, row == 0u)); }
