// conv2d_winograd_tile: conv2d_3x3_tile by Winograd's F(2x2, 3x3): 16 products for a square of 2 x 2 results, where the 9 taps take 36
// Source   Lavin & Gray 2016 (arXiv:1509.09308), section 4.1; here in one kernel: neither transforms nor products are stored
// Layout   as conv2d_3x3_tile, but weights G w G^T: [cout4 / 8][4 r][4 q][cin4][4 c][8] along the output channels
// Window   as conv2d_winograd: squares start at even rows and columns of the plane, `odd_row` and `odd_column` say where y starts
// Grid     x: 8 output quads, y: 8 rows, z: 16 columns, anchored at y(0, 0) or, where that is odd, a pixel before; 256 invocations: 16 for each
//          product, of 8 squares (t % 4, t % 4 + 4 ...) by 2 quads (t / 4, t / 4 + 4)
// Memory   19 KiB: a patch of 10 x 18 pixels by one quad, even and odd columns apart, so that squares side by side lie side by side; 8 KiB of
//          transformed squares and 8 KiB of weights, later the products of 16 squares by 4 quads. The next patch and weights are under way
//          during the products
// Registers 64 for sums, 32 for squares, 16 for weights, 8 for weights under way, 12 for where squares lie. Four channels take 16 quads from workgroup memory for 256 multiply-adds: 16 a quad
// Numerics f32 sums of each product in the order of the channels, then over the products, whatever the grid
const STEP: u32 = 2u;
