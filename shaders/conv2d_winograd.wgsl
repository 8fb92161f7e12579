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
const ENLARGED: u32 = 0u;
