// conv2d_winograd: conv2d_3x3_broadcast by Winograd's F(2x2, 3x3): 16 products for four pixels instead of 36
// Source   Lavin and Gray 2016 (arXiv:1509.09308): y = A^T ((G w G^T) * (B^T x B)) A for each square of 2 x 2 pixels;
//          B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1], A^T = [1 1 1 0; 0 1 -1 -1]
// Layout   x [h, w, cin4], y [oh, ow, cout4], residual [.., rw, cout4], bias [cout4];
//          weights G w G^T [cout4 / 8][4 r][4 q][cin4][4 c][8] along the output channels
// Window   as conv2d_3x3_pairs, and y(0, 0) sits at a row and column of the plane that are odd where odd_row and odd_column are 1. Squares are
//          the plane's, whatever the window, and what lies outside of a pixel's own 3x3 enters none of its sums but times 0:
//          y0 is the sum of the products of x0 - x2, x1 + x2, x2 - x1, and y1 of x1 + x2, x2 - x1, x1 - x3
// Grid     x: runs of 16 pixels, y: runs of 4 rows, z: runs of 8 pairs of output quads. A subgroup of 8 lanes takes 2 x 8 squares by 8 pairs; a
//          lane sums for its pair, and transforms the squares of its two columns for all
// Memory   no workgroup storage, see conv2d_3x3_broadcast. One product of r and q after the other, so that only its 32 sums are in use in the
//          loop over the channels; x is read again for each
// Numerics f32 sums over the channels in order, then over r and q; x is transformed in f32
const PRODUCTS: u32 = 4u;
const ENLARGED: u32 = 0u;

// The two of x0 .. x3 that a row of B^T takes, and the sign of the second.
fn first(row: u32) -> u32 { return select(select(1u, 2u, row == 2u), 0u, row == 0u); }
fn second(row: u32) -> u32 { return select(select(2u, 1u, row == 2u), 3u, row == 3u); }
fn sign(row: u32) -> f32 { return select(-1.0, 1.0, row == 1u); }

// What A^T multiplies a product with for y0 and y1.
fn shares(row: u32) -> vec2<f32> { return vec2(select(0.0, 1.0, row < 3u), select(sign(row), 0.0, row == 0u)); }
