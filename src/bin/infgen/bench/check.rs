//! Results against the f64 definitions, at some positions of the very shapes that are timed: what is wrong is not worth timing.

use infgen::gpu::{DeviceProfile, Elem, Gpu, Observer, Operator, Recorder};
use infgen::kernels::conv2d::{self, Packing};
use infgen::reference::{self, Activation, Bounded};
use infgen::{Error, Result};

use super::cases::{EPS, GROUPS, Op, Operands};

/// Positions of a plane or rows of a matrix that are looked at: both ends, both sides of what may be a tile's edge, and some between.
fn positions(count: usize) -> Vec<usize> {
    let mut at: Vec<usize> = [0, 7, 8, 15, 16, 31, 32, 63, 64].into_iter().chain((1..6).map(|i| i * 7919 % count)).collect();
    at.extend([count - 1, count.saturating_sub(2), count / 2, count / 2 + 1]);
    at.retain(|&i| i < count);
    at.sort_unstable();
    at.dedup();
    at
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

/// `(first index, expected values)` of runs of the result; `None` where this operator has no check here.
fn expected(o: &Operands, profile: &DeviceProfile) -> Option<Vec<(usize, Vec<Bounded>)>> {
    let (weight, bias) = (wide(&o.weight), wide(&o.bias));
    Some(match o.op {
        Op::Conv { h, w, cin, cout } | Op::NormConv { h, w, cin, cout } => {
            let packing = conv2d::packing(profile, Operator::Conv, o.precision.activations, o.precision.weights, cin, cout);
            let pixel = |i: usize, j: usize| {
                let winograd = (packing == Packing::Winograd).then_some((i % 2 == 1, j % 2 == 1));
                let mut sums = conv_at(o, (h, w, cin), cout, (i as i64 - 1, j as i64 - 1), &weight, &bias, winograd);
                for (sum, &r) in sums.iter_mut().zip(o.residual.iter().skip((i * w + j) * cout)) {
                    *sum = sum.plus(r as f64);
                }
                ((i * w + j) * cout, sums)
            };
            positions(h * w).into_iter().map(|at| pixel(at / w, at % w)).collect()
        }
        Op::Stride2 { h, w, cin, cout } => {
            let ow = w.div_ceil(2);
            let pixel = |i: usize, j: usize| {
                ((i * ow + j) * cout, conv_at(o, (h, w, cin), cout, (2 * i as i64 - 1, 2 * j as i64 - 1), &weight, &bias, None))
            };
            positions(h.div_ceil(2) * ow).into_iter().map(|at| pixel(at / ow, at % ow)).collect()
        }
        Op::Upsample { h, w, cin, cout } => {
            let packing = conv2d::packing(profile, Operator::Upsample, o.precision.activations, o.precision.weights, cin, cout);
            // The 3x3 patch around (i, j) of the plane that is `larger` times the small one in each direction.
            let patch = |i: usize, j: usize, larger: usize| {
                let mut patch = vec![0.0; 9 * cin];
                for (tap, to) in patch.chunks_exact_mut(cin).enumerate() {
                    let (y, x) = ((i + tap / 3) as i64 - 1, (j + tap % 3) as i64 - 1);
                    if (0..(larger * h) as i64).contains(&y) && (0..(larger * w) as i64).contains(&x) {
                        let from = (y as usize / larger * w + x as usize / larger) * cin;
                        to.iter_mut().zip(&o.x[from..]).for_each(|(to, &v)| *to = v as f64);
                    }
                }
                patch
            };
            // A pixel of the large image through the 3x3 kernel: its neighbours are pixels of the small one.
            let pixel = |i: usize, j: usize| {
                let rounded = o.precision.weights == Elem::Half;
                let large = patch(i, j, 2);
                let mut sums = valid(&large, cin, cout, &weight, &bias);
                if packing == Packing::Winograd {
                    let (small, odd) = (patch(i / 2, j / 2, 1), (i % 2 == 1, j % 2 == 1));
                    let bounds = reference::winograd_bound(reference::WINOGRAD_UPSAMPLING, &small, cin, &weight, cout, odd, rounded);
                    sums.iter_mut().zip(bounds).for_each(|(sum, bound)| sum.bound += bound);
                } else if rounded {
                    // Weights of a phase are sums of up to four, rounded to their storage type.
                    let size: Vec<f64> = weight.iter().map(|w| w.abs()).collect();
                    let sizes = valid(&large.iter().map(|v: &f64| v.abs()).collect::<Vec<_>>(), cin, cout, &size, &[]);
                    sums.iter_mut().zip(sizes).for_each(|(sum, size)| sum.bound += size.value / 2048.0);
                }
                ((i * 2 * w + j) * cout, sums)
            };
            positions(4 * h * w).into_iter().map(|at| pixel(at / (2 * w), at % (2 * w))).collect()
        }
        Op::Linear { rows, k, n } => {
            let row = |r: usize| (r * n, reference::linear(&wide(&o.x[r * k..(r + 1) * k]), k, &weight, &bias, n));
            positions(rows).into_iter().map(row).collect()
        }
        Op::Attention { n, heads, d, .. } => {
            let c = heads * d;
            let kv = wide(&o.x[n * c..]);
            let split = reference::Heads { heads, head_dim: d, scale: 1.0 / (d as f64).sqrt(), causal: false };
            let query = |q: usize| (q * c, reference::attention(&wide(&o.x[q * c..(q + 1) * c]), &kv, &kv, split));
            positions(n).into_iter().map(query).collect()
        }
        Op::GroupNorm { c, .. } => {
            let normed = reference::group_norm(&wide(&o.x), c, GROUPS, &weight, &bias, EPS as f64);
            vec![(0, normed.into_iter().map(|v| Activation::Silu.apply(v)).collect())]
        }
        Op::LayerNorm { c, .. } => vec![(0, reference::layer_norm(&wide(&o.x), c, &weight[..c], &weight[c..], EPS as f64))],
        Op::Geglu { c, .. } => vec![(0, reference::glu(&wide(&o.x), c / 2, reference::Activation::GeluErf))],
        Op::Inpe { .. } | Op::Bilinear { .. } | Op::Bicubic { .. } | Op::Pixels { .. } | Op::CountNonfinite { .. } => return None,
    })
}

/// One output pixel of a 3x3 convolution whose patch starts at `(top, left)`, all channels. `winograd`: computed by it, and whether the pixel's
/// row and column are odd.
fn conv_at(
    o: &Operands,
    (h, w, cin): (usize, usize, usize),
    cout: usize,
    (top, left): (i64, i64),
    weight: &[f64],
    bias: &[f64],
    winograd: Option<(bool, bool)>,
) -> Vec<Bounded> {
    let mut patch = vec![0.0; 9 * cin];
    let mut slack = vec![0.0; 9 * cin];
    for tap in 0..9 {
        let (y, x) = (top + tap as i64 / 3, left + tap as i64 % 3);
        if !(0..h as i64).contains(&y) || !(0..w as i64).contains(&x) {
            continue;
        }
        let from = (y as usize * w + x as usize) * cin;
        for c in 0..cin {
            let mut v = Bounded::exact(o.x[from + c] as f64);
            if !o.affine.is_empty() {
                let (scale, shift) = (o.affine[c] as f64, o.affine[cin + c] as f64);
                let size = (v.value * scale).abs() + shift.abs();
                v = Activation::Silu.apply(Bounded { value: v.value * scale + shift, bound: 2.0 * reference::ULP * size });
                // Lanes store the normalised value; tiles may too.
                if o.precision.activations == Elem::Half {
                    v = v.stored_f16();
                }
            }
            patch[tap * cin + c] = v.value;
            slack[tap * cin + c] = v.bound;
        }
    }
    let mut sums = valid(&patch, cin, cout, weight, bias);
    if let Some(odd) = winograd {
        let bounds = reference::winograd_bound(reference::WINOGRAD, &patch, cin, weight, cout, odd, o.precision.weights == Elem::Half);
        sums.iter_mut().zip(bounds).for_each(|(sum, bound)| sum.bound += bound);
    }
    if !o.affine.is_empty() {
        let size: Vec<f64> = weight.iter().map(|w| w.abs()).collect();
        sums.iter_mut().zip(valid(&slack, cin, cout, &size, &[])).for_each(|(sum, s)| sum.bound += s.value);
    }
    sums
}

/// A 3x3 patch through a 3x3 kernel: one pixel.
fn valid(patch: &[f64], cin: usize, cout: usize, weight: &[f64], bias: &[f64]) -> Vec<Bounded> {
    let geometry = reference::Geometry { kernel: (3, 3), stride: (1, 1), pad_rows: (0, 0), pad_columns: (0, 0) };
    reference::conv2d(patch, (3, 3, cin), weight, bias, cout, geometry)
}

/// Runs the operator once and compares. The largest distance over its bound, or nothing where there is no check.
///
/// # Errors
/// [`Error::Gpu`] names the first value that is off.
pub fn check(gpu: &Gpu, rec: Recorder, record: &dyn Fn(&mut Recorder) -> infgen::gpu::Tensor, operands: &Operands) -> Result<Option<f64>> {
    let Some(runs) = expected(operands, rec.profile()) else { return Ok(None) };
    let mut rec = rec;
    let y = record(&mut rec);
    rec.output("y", &y);
    let got = pollster::block_on(gpu.run(rec.finish(), &Observer::default()))?.numbers("y");
    let mut worst = 0.0f64;
    for (first, expected) in runs {
        for (i, e) in expected.into_iter().enumerate() {
            let e = if y.elem == Elem::Half { e.stored_f16() } else { e };
            let value = got[first + i] as f64;
            let ratio = (value - e.value).abs() / e.bound.max(f64::MIN_POSITIVE);
            if ratio.is_nan() || ratio > 1.0 {
                let detail = format!("{}: element {} is {value}, should be {} +- {:.1e}", operands.op.name(), first + i, e.value, e.bound);
                return Err(Error::Gpu { during: "checking a kernel".into(), detail });
            }
            worst = worst.max(ratio);
        }
    }
    Ok(Some(worst))
}
