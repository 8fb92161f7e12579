//! Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762).

use super::{Bounded, TINY, ULP, gamma};

/// How channels are split, and what a query may see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Number of heads; the slow index of the channels.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Factor of the scores, usually `head_dim^-1/2`.
    pub scale: f64,
    /// Query `i` sees keys `0 ..= i` only.
    pub causal: bool,
}

/// `y[i, h] = sum_j softmax_j(scale q[i, h] . k[j, h]) v[j, h]`, with `q` `[n, heads * head_dim]`, `k` and `v` `[m, heads * head_dim]`.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], split: Heads) -> Vec<Bounded> {
    let Heads { heads, head_dim: d, scale, causal } = split;
    let channels = heads * d;
    let (n, m) = (q.len() / channels, k.len() / channels);
    let mut y = vec![Bounded::exact(0.0); n * channels];
    for i in 0..n {
        let seen = if causal { m.min(i + 1) } else { m };
        for h in 0..heads {
            let query = &q[i * channels + h * d..][..d];
            let mut scores = Vec::with_capacity(seen);
            let mut score_bound = 0.0f64;
            for j in 0..seen {
                let key = &k[j * channels + h * d..][..d];
                let (mut sum, mut size) = (0.0, 0.0);
                for (a, b) in query.iter().zip(key) {
                    sum += a * b;
                    size += (a * b).abs();
                }
                scores.push(sum * scale);
                score_bound = score_bound.max(gamma(d + 4) * size * scale.abs());
            }
            let peak = scores.iter().fold(f64::NEG_INFINITY, |a, &s| a.max(s));
            let range = scores.iter().fold(0.0f64, |a, &s| a.max(peak - s));
            let weights: Vec<f64> = scores.iter().map(|s| (s - peak).exp()).collect();
            let total: f64 = weights.iter().sum();
            // Relative error of one weight: its score's and the peak's error, exp (3 + 2|x| ulp), rounding of the difference,
            // and one rescaling a block of keys; twice, for numerator and denominator.
            let blocks = seen.div_ceil(8) as f64;
            let exp = (3.0 + 2.0 * range.min(90.0) + (range + peak.abs()) + 6.0 * blocks) * ULP;
            let relative = 2.0 * (2.0 * score_bound + exp + gamma(seen + 8));
            for c in 0..d {
                let (mut sum, mut size) = (0.0, 0.0);
                for (j, w) in weights.iter().enumerate() {
                    let product = w / total * v[j * channels + h * d + c];
                    sum += product;
                    size += product.abs();
                }
                y[i * channels + h * d + c] = Bounded { value: sum, bound: relative * size + 4.0 * ULP * sum.abs() + TINY };
            }
        }
    }
    y
}
