//! What samplers do to latents.

use super::{Bounded, TINY, ULP, gamma};

/// `clamp(sum of c x, -clip, clip)`, element by element.
pub fn combine(terms: &[(f64, &[f64])], clip: f64) -> Vec<Bounded> {
    let len = terms.first().map_or(0, |(_, x)| x.len());
    let element = |i: usize| {
        let products = terms.iter().map(|(c, x)| c * x[i]);
        let size: f64 = products.clone().map(f64::abs).sum();
        Bounded { value: products.sum::<f64>().clamp(-clip, clip), bound: gamma(terms.len() + 1) * size + TINY }
    };
    (0..len).map(element).collect()
}

/// `(1 - m) a + m b` on `[pixels, channels]`, `m` one value a pixel.
pub fn blend(a: &[f64], b: &[f64], mask: &[f64], channels: usize) -> Vec<Bounded> {
    let element = |i: usize| {
        let (m, a, b) = (mask[i / channels], a[i], b[i]);
        Bounded { value: (1.0 - m) * a + m * b, bound: gamma(4) * (((1.0 - m) * a).abs() + (m * b).abs()) + TINY }
    };
    (0..a.len()).map(element).collect()
}

/// `noise exp(base + slope v)`, element by element.
pub fn spread_noise(noise: &[f64], v: &[f64], (base, slope): (f64, f64)) -> Vec<Bounded> {
    let element = |(noise, v): (&f64, &f64)| {
        let argument = base + slope * v;
        // WGSL: exp within 3 + 2 |x| ulp; the argument itself within two roundings.
        let error = (3.0 + 2.0 * argument.abs() + 2.0) * ULP + gamma(2) * (base.abs() + (slope * v).abs());
        let value = noise * argument.exp();
        Bounded { value, bound: error * value.abs() + TINY }
    };
    noise.iter().zip(v).map(element).collect()
}

/// `x (1 + phi (std(text) / std(x) - 1))` (Lin et al. 2023, equations 15 and 16).
pub fn guidance_rescale(text: &[f64], x: &[f64], phi: f64) -> Vec<Bounded> {
    let variance = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        v.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
    };
    let ratio = (variance(text) / variance(x)).sqrt();
    let factor = 1.0 + phi * (ratio - 1.0);
    // Two sums of as many terms, a division and a root.
    let error = (gamma(x.len()) * 2.0 + 8.0 * ULP) * (1.0 + ratio);
    x.iter().map(|v| Bounded { value: factor * v, bound: error * v.abs() + TINY }).collect()
}
