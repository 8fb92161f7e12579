//! From the networks' -1..1 to pixels (diffusers image_processor.py, `denormalize` and `numpy_to_pil`).

/// `clamp(x / 2 + 1/2, 0, 1)`
pub fn image_to_unit(x: f64) -> f64 {
    (x / 2.0 + 0.5).clamp(0.0, 1.0)
}

/// 8-bit red, green, blue and alpha (255) of each pixel of `[h, w, 3]`; halves round to even.
pub fn image_to_rgba8(x: &[f64]) -> Vec<[u8; 4]> {
    let byte = |v: f64| (255.0 * image_to_unit(v)).round_ties_even() as u8;
    x.chunks_exact(3).map(|p| [byte(p[0]), byte(p[1]), byte(p[2]), 255]).collect()
}
