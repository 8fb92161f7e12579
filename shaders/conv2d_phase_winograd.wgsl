// conv2d_phase_winograd: conv2d_phase_broadcast by 9 products for the four pixels of an enlarged one instead of 16
// Source   With a, b, c the taps of a row of the 3x3 kernel, the two results at a small pixel x are, along each axis,
//          y0 = (a + b + c) x + a (x[-1] - x),  y1 = (a + b + c) x + c (x[+1] - x)
//          so that three products do where the phases' kernels (a, b + c) and (a + b, c) take four; cf. Lavin and Gray 2016 (arXiv:1509.09308)
// Layout   x [h, w, cin4], y [2 sh, 2 sw, cout4], bias [cout4]; weights [cout4 / 8][3 r][3 q][cin4][4 c][8] along the output channels, of the sums
//          a + b + c, then a, then c, along both axes
// Window   as conv2d_phase_pairs: y(0, 0) belongs to the small pixel x(top, left). What lies outside of a pixel's own 2x2 enters none of its sums but
//          times 0
// Grid     x: runs of 8 small pixels, y: runs of 2 small rows, z: runs of 8 pairs of output quads. A subgroup of 8 lanes takes 2 x 8 small pixels
//          by 8 pairs; a lane sums for its pair, and transforms its column for all
// Memory   no workgroup storage, see conv2d_winograd
// Numerics f32 sums over the channels in order, then over r and q; x is transformed in f32
const ENLARGED: u32 = 1u;
