// conv2d_phase_winograd_tile: conv2d_phase_tile by the 9 products of conv2d_phase_winograd for the four pixels of an enlarged one
// Source   see conv2d_phase_winograd
// Layout   x [h, w, cin4], y [2 sh, 2 sw, cout4], bias [cout4]; weights [cout4 / 8][3 r][3 q][cin4][4 c][8] along the output channels
// Window   as conv2d_phase_pairs
// Grid     x: 8 output quads, y: 4 small rows, z: 8 small columns; 144 invocations: 16 for each product, as in conv2d_winograd_tile
// Memory   10 KiB: a patch of 6 x 10 small pixels by one quad, the rest as in conv2d_winograd_tile
// Numerics f32 sums of each product in the order of the channels, then over the products, whatever the grid
const STEP: u32 = 1u;
