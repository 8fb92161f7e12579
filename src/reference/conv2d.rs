//! torch.nn.Conv2d (cross-correlation) and nearest-2x upsampling.

use super::{Bounded, TINY, gamma};

/// Kernel, stride and zero padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Step down and right.
    pub stride: (usize, usize),
    /// Zero rows above and below.
    pub pad_rows: (usize, usize),
    /// Zero columns left and right.
    pub pad_columns: (usize, usize),
}

impl Geometry {
    /// A square kernel of side `kernel` (odd), stride 1, output as large as the input.
    pub fn same(kernel: usize) -> Geometry {
        let pad = (kernel / 2, kernel / 2);
        Geometry { kernel: (kernel, kernel), stride: (1, 1), pad_rows: pad, pad_columns: pad }
    }

    /// Height and width of the output for an input of height `h` and width `w`.
    pub fn output(&self, h: usize, w: usize) -> (usize, usize) {
        (
            (h + self.pad_rows.0 + self.pad_rows.1 - self.kernel.0) / self.stride.0 + 1,
            (w + self.pad_columns.0 + self.pad_columns.1 - self.kernel.1) / self.stride.1 + 1,
        )
    }
}

/// `y[i, j, o] = bias[o] + sum_{a, b, c} weight[o, c, a, b] x[i s + a - top, j t + b - left, c]`, x zero outside.
///
/// `x` is `[h, w, cin]`, `weight` `[cout, cin, kh, kw]`, `bias` `[cout]` or empty; the result `[oh, ow, cout]`.
pub fn conv2d(
    x: &[f64],
    (h, w, cin): (usize, usize, usize),
    weight: &[f64],
    bias: &[f64],
    cout: usize,
    geometry: Geometry,
) -> Vec<Bounded> {
    let (kh, kw) = geometry.kernel;
    let (oh, ow) = geometry.output(h, w);
    assert_eq!((x.len(), weight.len()), (h * w * cin, cout * cin * kh * kw));
    assert!(bias.is_empty() || bias.len() == cout);
    let roundings = gamma(kh * kw * cin + 2);
    let mut y = Vec::with_capacity(oh * ow * cout);
    for i in 0..oh {
        for j in 0..ow {
            for o in 0..cout {
                let mut sum = bias.get(o).copied().unwrap_or(0.0);
                let mut size = sum.abs();
                for a in 0..kh {
                    for b in 0..kw {
                        let (row, column) = (i * geometry.stride.0 + a, j * geometry.stride.1 + b);
                        let (Some(row), Some(column)) = (row.checked_sub(geometry.pad_rows.0), column.checked_sub(geometry.pad_columns.0))
                        else {
                            continue;
                        };
                        if row >= h || column >= w {
                            continue;
                        }
                        for c in 0..cin {
                            let product = weight[((o * cin + c) * kh + a) * kw + b] * x[(row * w + column) * cin + c];
                            sum += product;
                            size += product.abs();
                        }
                    }
                }
                y.push(Bounded { value: sum, bound: roundings * size + TINY });
            }
        }
    }
    y
}

/// Each pixel of `[h, w, c]` as a 2x2 block of `[2h, 2w, c]` (torch.nn.functional.interpolate, mode nearest, factor 2).
pub fn upsample_nearest_2x(x: &[f64], (h, w, c): (usize, usize, usize)) -> Vec<f64> {
    let mut y = Vec::with_capacity(4 * h * w * c);
    for i in 0..2 * h {
        for j in 0..2 * w {
            let at = (i / 2 * w + j / 2) * c;
            y.extend_from_slice(&x[at..at + c]);
        }
    }
    y
}

/// A product of Winograd's that a result takes, along one axis: which of its three inputs it reads, and the sizes of G's row.
type Product = (&'static [usize], [f64; 3]);

/// The products of F(2, 3) that the first and the second of two results take.
pub const WINOGRAD: [&[Product]; 2] = [
    &[(&[0, 2], [1.0, 0.0, 0.0]), (&[1, 2], [0.5, 0.5, 0.5]), (&[1, 2], [0.5, 0.5, 0.5])],
    &[(&[0, 1], [0.5, 0.5, 0.5]), (&[0, 1], [0.5, 0.5, 0.5]), (&[0, 2], [0.0, 0.0, 1.0])],
];

/// The same where the two results are those of one pixel, enlarged twice; its inputs are the small pixels around it.
pub const WINOGRAD_UPSAMPLING: [&[Product]; 2] =
    [&[(&[1], [1.0, 1.0, 1.0]), (&[0, 1], [1.0, 0.0, 0.0])], &[(&[1], [1.0, 1.0, 1.0]), (&[1, 2], [0.0, 0.0, 1.0])]];

/// How far the sums of one pixel of a 3x3 convolution may be off where they are computed by Winograd's `products` in f32 (Lavin and Gray 2016,
/// arXiv:1509.09308), for each output channel.
///
/// `patch` is `[3, 3, cin]` around the pixel, zero outside of the plane, `weight` `[cout, cin, 3, 3]`; `odd` says whether the pixel's row and column
/// are odd. `rounded` where the transformed weights are stored as f16.
pub fn winograd_bound(
    products: [&[Product]; 2],
    patch: &[f64],
    cin: usize,
    weight: &[f64],
    cout: usize,
    odd: (bool, bool),
    rounded: bool,
) -> Vec<f64> {
    assert_eq!((patch.len(), weight.len()), (9 * cin, cout * cin * 9));
    // Sums over the channels and the products; transforms of both operands before, of the result behind.
    let roundings = gamma(cin + 32) + if rounded { 1.0 / 2048.0 } else { 0.0 };
    let subnormal = if rounded { 1.0 / 16384.0 / 1024.0 } else { 0.0 };
    let bound = |o: usize| {
        let mut bound = TINY;
        for c in 0..cin {
            for (rows, g_rows) in products[odd.0 as usize] {
                for (columns, g_columns) in products[odd.1 as usize] {
                    let x: f64 = rows.iter().flat_map(|a| columns.iter().map(move |b| patch[(a * 3 + b) * cin + c].abs())).sum();
                    let at = |n: usize| weight[(o * cin + c) * 9 + n].abs() * g_rows[n / 3] * g_columns[n % 3];
                    bound += x * (roundings * (0..9).map(at).sum::<f64>() + subnormal);
                }
            }
        }
        bound
    };
    (0..cout).map(bound).collect()
}

/// Adds [`winograd_bound`] to the bounds of all `sums`, `[h, w, cout]`, of a convolution of `x`, `[h, w, cin]`; with [`WINOGRAD_UPSAMPLING`] sums are `[2 h, 2 w, cout]`.
pub fn widen_by_winograd(
    products: [&[Product]; 2],
    sums: &mut [Bounded],
    x: &[f64],
    (h, w, cin): (usize, usize, usize),
    weight: &[f64],
    cout: usize,
    rounded: bool,
) {
    // 1, or 2 where the plane of the sums is enlarged.
    let scale = (sums.len() / (h * w * cout)).isqrt();
    for (pixel, sums) in sums.chunks_exact_mut(cout).enumerate() {
        let (i, j) = (pixel / (scale * w), pixel % (scale * w));
        let at =
            |n: usize| Some(((i / scale + n / 3).checked_sub(1)?, (j / scale + n % 3).checked_sub(1)?)).filter(|&(i, j)| i < h && j < w);
        let patch: Vec<f64> = (0..9).flat_map(|n| at(n).map_or(vec![0.0; cin], |(i, j)| x[(i * w + j) * cin..][..cin].to_vec())).collect();
        let bounds = winograd_bound(products, &patch, cin, weight, cout, (i % 2 == 1, j % 2 == 1), rounded);
        sums.iter_mut().zip(bounds).for_each(|(sum, bound)| sum.bound += bound);
    }
}
