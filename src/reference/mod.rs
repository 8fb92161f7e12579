//! What each kernel should compute, as plain loops in f64 over channels-last data, with a bound on how far f32 may stray.
//!
//! Written from the papers and torch's definitions, not from the WGSL, and tied to torch's numbers in
//! `tests/data/ops`. Nothing here is fast, and nothing outside tests and tools uses it.
//!
//! A bound covers any order of summation: for a sum of K products it is `gamma_K * sum |w x|` (Higham 2002, section 3.1).
//! exp, division and inverse square root enter with the accuracy that the WGSL specification promises
//! (section "Floating point accuracy"), sine and cosine with that of their argument.

mod activation;
mod attention;
mod conv2d;
mod image;
mod inpe;
mod latent;
mod linear;
mod norm;
mod resample;

pub use activation::{Activation, erf, glu};
pub use attention::{Heads, attention};
pub use conv2d::{Geometry, WINOGRAD, WINOGRAD_UPSAMPLING, conv2d, upsample_nearest_2x, widen_by_winograd, winograd_bound};
pub use image::{image_to_rgba8, image_to_unit};
pub use inpe::{fourier_features, sphere_point};
pub use latent::{blend, combine, guidance_rescale, spread_noise};
pub use linear::linear;
pub use norm::{Affine, group_norm, group_norm_affine, layer_norm};
pub use resample::{resample_bicubic, resample_bilinear};

/// Largest relative error of one f32 operation. WGSL lets implementations round either way, so it is a whole ulp.
pub const ULP: f64 = 1.0 / (1u64 << 23) as f64;

/// Room for subnormals that a device flushes to zero.
pub const TINY: f64 = 1e-30;

/// `k ulp / (1 - k ulp)`: relative error of `k` roundings in a row.
pub fn gamma(k: usize) -> f64 {
    let error = k as f64 * ULP;
    error / (1.0 - error)
}

/// A value and how far from it a correct f32 computation may end up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounded {
    /// The value in f64.
    pub value: f64,
    /// Largest acceptable distance from it.
    pub bound: f64,
}

impl Bounded {
    /// A value that must come out exactly.
    pub fn exact(value: f64) -> Bounded {
        Bounded { value, bound: 0.0 }
    }

    /// The sum with a number that is stored exactly, such as a residual.
    pub fn plus(self, other: f64) -> Bounded {
        let value = self.value + other;
        Bounded { value, bound: self.bound + (self.bound + self.value.abs() + other.abs()) * 2.0 * ULP }
    }

    /// After storage as f16, which may round either way and flush subnormals.
    pub fn stored_f16(self) -> Bounded {
        let value = self.value.clamp(-65504.0, 65504.0);
        Bounded { value, bound: self.bound + (value.abs() + self.bound) / 1024.0 + 1.0 / 16384.0 }
    }
}

/// The values without their bounds.
pub fn values(plane: &[Bounded]) -> Vec<f64> {
    plane.iter().map(|v| v.value).collect()
}
