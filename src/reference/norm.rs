//! torch.nn.GroupNorm and torch.nn.LayerNorm, with the biased variance.

use super::{Bounded, TINY, ULP, gamma};

/// Mean and `1 / sqrt(variance + eps)` of a set of values, with bounds.
fn moments(set: &[f64], eps: f64) -> (Bounded, Bounded) {
    let n = set.len() as f64;
    let mean = set.iter().sum::<f64>() / n;
    let variance = set.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let largest = set.iter().fold(0.0f64, |a, v| a.max(v.abs()));
    // Blocks of at most 128 values are summed one by one; merging two sets costs a handful of roundings, and the depth of
    // merges is far below this count for the sizes that tests use.
    let roundings = gamma(set.len().min(128 + 8 * (set.len() as f64).sqrt() as usize) + 16);
    let mean_bound = roundings * largest + TINY;
    let variance_bound = 2.0 * roundings * variance + 2.0 * variance.sqrt() * mean_bound + mean_bound * mean_bound;
    let rstd = 1.0 / (variance + eps).sqrt();
    // The distance to what the largest admissible variance would give, by the mean value theorem, and 2 ulp of inverseSqrt.
    let low = (variance - variance_bound).max(0.0);
    let slope = 0.5 * (low + eps).powf(-1.5);
    let rstd_bound = slope * variance_bound + rstd * 6.0 * ULP;
    (Bounded { value: mean, bound: mean_bound }, Bounded { value: rstd, bound: rstd_bound })
}

/// `(x - mean) * rstd * weight + bias`
fn normalise(x: f64, mean: Bounded, rstd: Bounded, weight: f64, bias: f64) -> Bounded {
    let centred = x - mean.value;
    let scale = rstd.value * weight;
    let scale_bound = rstd.bound * weight.abs() + scale.abs() * 2.0 * ULP;
    let value = centred * scale + bias;
    // Whether the mean is subtracted first or folded into a shift, its size times an ulp is what is lost.
    let cancel = (x.abs() + mean.value.abs()) * 4.0 * ULP + mean.bound;
    let bound = centred.abs() * scale_bound + (scale.abs() + scale_bound) * cancel + mean.value.abs() * scale_bound;
    Bounded { value, bound: bound + (value.abs() + bias.abs()) * 4.0 * ULP + TINY }
}

/// `(x - mean_g) / sqrt(var_g + eps) * weight[c] + bias[c]` over each group of channels and all pixels
/// (Wu & He 2018, arXiv:1803.08494). `x` is `[pixels, channels]`.
pub fn group_norm(x: &[f64], channels: usize, groups: usize, weight: &[f64], bias: &[f64], eps: f64) -> Vec<Bounded> {
    let stats = group_moments(x, channels, groups, eps);
    let size = channels / groups;
    let at = |(i, &v): (usize, &f64)| {
        let c = i % channels;
        let (mean, rstd) = stats[c / size];
        normalise(v, mean, rstd, weight[c], bias[c])
    };
    x.iter().enumerate().map(at).collect()
}

/// Scale and shift of each channel, such that `x * scale + shift` is the group norm.
#[derive(Debug, Clone)]
pub struct Affine {
    /// `weight[c] * rstd`
    pub scale: Vec<Bounded>,
    /// `bias[c] - mean * scale[c]`
    pub shift: Vec<Bounded>,
}

/// The scale and shift of [`group_norm`].
pub fn group_norm_affine(x: &[f64], channels: usize, groups: usize, weight: &[f64], bias: &[f64], eps: f64) -> Affine {
    let stats = group_moments(x, channels, groups, eps);
    let (mut scale, mut shift) = (Vec::new(), Vec::new());
    for c in 0..channels {
        let (mean, rstd) = stats[c / (channels / groups)];
        let s = Bounded { value: weight[c] * rstd.value, bound: weight[c].abs() * (rstd.bound + rstd.value * ULP) + TINY };
        let product = mean.value * s.value;
        let bound = mean.bound * (s.value.abs() + s.bound) + mean.value.abs() * s.bound + (product.abs() + bias[c].abs()) * 4.0 * ULP;
        scale.push(s);
        shift.push(Bounded { value: bias[c] - product, bound: bound + TINY });
    }
    Affine { scale, shift }
}

fn group_moments(x: &[f64], channels: usize, groups: usize, eps: f64) -> Vec<(Bounded, Bounded)> {
    assert!(channels.is_multiple_of(groups) && x.len().is_multiple_of(channels));
    let size = channels / groups;
    (0..groups)
        .map(|g| {
            let set: Vec<f64> = x.chunks_exact(channels).flat_map(|pixel| &pixel[g * size..(g + 1) * size]).copied().collect();
            moments(&set, eps)
        })
        .collect()
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the channels of each token (Ba et al. 2016, arXiv:1607.06450).
pub fn layer_norm(x: &[f64], channels: usize, weight: &[f64], bias: &[f64], eps: f64) -> Vec<Bounded> {
    let token = |token: &[f64]| -> Vec<Bounded> {
        let (mean, rstd) = moments(token, eps);
        token.iter().zip(weight.iter().zip(bias)).map(|(&v, (&w, &b))| normalise(v, mean, rstd, w, b)).collect()
    };
    x.chunks_exact(channels).flat_map(token).collect()
}
