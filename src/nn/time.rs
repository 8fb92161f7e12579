//! The embedding of a diffusion model's timestep.

use super::{Linear, Loader};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;

/// `linear_2(silu(linear_1(sinusoid(t) + cond_proj(guidance))))`, and a SiLU behind it, which all its readers begin with.
///
/// Source: diffusers `models/embeddings.py` `Timesteps`, `TimestepEmbedding`.
#[derive(Debug)]
pub struct TimeEmbedding {
    shape: TimeEmbeddingShape,
    linear_1: Linear,
    linear_2: Linear,
    cond_proj: Option<Linear>,
}

/// Sizes and conventions of a [`TimeEmbedding`].
#[derive(Debug, Clone, Copy)]
pub struct TimeEmbeddingShape {
    /// Features of the sinusoid.
    pub features: usize,
    /// Width of the embedding.
    pub width: usize,
    /// Whether cosines stand before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies.
    pub freq_shift: f64,
    /// Features of the guidance embedding, in models that were distilled with one.
    pub guidance: Option<usize>,
}

impl TimeEmbedding {
    /// Loads `linear_1`, `linear_2` and, where the shape has it, `cond_proj` at `path`.
    pub async fn load(loader: &Loader<'_>, path: &str, shape: TimeEmbeddingShape) -> Result<TimeEmbedding> {
        let TimeEmbeddingShape { features, width, .. } = shape;
        Ok(TimeEmbedding {
            shape,
            linear_1: Linear::load(loader, &format!("{path}.linear_1"), features, width).await?,
            linear_2: Linear::load(loader, &format!("{path}.linear_2"), width, width).await?,
            cond_proj: match shape.guidance {
                Some(inputs) => Some(Linear::load_without_bias(loader, &format!("{path}.cond_proj"), inputs, features).await?),
                None => None,
            },
        })
    }

    /// `silu(embedding + added)` of a timestep, whole or not: `[1, 1, width]` in f32. `guidance` (the scale less 1) is passed over by models that
    /// have no embedding for it.
    pub fn forward(&self, rec: &mut Recorder, timestep: f64, guidance: Option<f64>, added: Option<&Tensor>) -> Tensor {
        let TimeEmbeddingShape { features, flip_sin_to_cos, freq_shift, .. } = self.shape;
        let sinusoid = timestep_features(timestep, features, flip_sin_to_cos, freq_shift);
        let mut x = rec.upload(&sinusoid, 1, 1, features, Elem::F32);
        if let (Some(proj), Some(inputs), Some(guidance)) = (&self.cond_proj, self.shape.guidance, guidance) {
            let condition = rec.upload(&guidance_features(guidance, inputs), 1, 1, inputs, Elem::F32);
            x = proj.forward(rec, &condition, Some(&x), Act::None, Elem::F32);
        }
        self.embed(rec, &x, added)
    }

    /// The same of features that are there already (`[n, features]`), with an embedding of something else, such as a class, added in front of the last SiLU.
    pub fn embed(&self, rec: &mut Recorder, features: &Tensor, labels: Option<&Tensor>) -> Tensor {
        let h = self.linear_1.forward(rec, features, None, Act::Silu, Elem::F32);
        self.linear_2.forward(rec, &h, labels, Act::Silu, Elem::F32)
    }
}

/// Sines and cosines of `t * 10000^(-k / (n / 2 - freq_shift))`, k = 0 .. n / 2; an odd `n` ends on a zero.
///
/// Frequencies and their products with `t` are rounded to f32, as diffusers has them: at t = 999 the argument's rounding is 3e-5 rad.
pub fn timestep_features(t: f64, n: usize, flip_sin_to_cos: bool, freq_shift: f64) -> Vec<f32> {
    let half = n / 2;
    let exponent = |k: usize| (-(10000f64.ln()) as f32 * k as f32) / (half as f64 - freq_shift) as f32;
    waves(t as f32, n, flip_sin_to_cos, |k| (exponent(k) as f64).exp() as f32)
}

/// Features of a guidance scale less 1, as LCM was distilled with: sines and cosines of
/// `1000 w 10000^(-k / (n / 2 - 1))`.
///
/// Source: diffusers `pipelines/latent_consistency_models` `get_guidance_scale_embedding`.
pub fn guidance_features(w: f64, n: usize) -> Vec<f32> {
    let step = (10000f64.ln() / ((n / 2) as f64 - 1.0).max(1.0)) as f32;
    waves((w * 1000.0) as f32, n, false, |k| (k as f64 * -(step as f64)).exp() as f32)
}

fn waves(t: f32, n: usize, cosines_first: bool, frequency: impl Fn(usize) -> f32) -> Vec<f32> {
    let argument = |k: usize| (t * frequency(k)) as f64;
    let (sines, cosines) = ((0..n / 2).map(|k| argument(k).sin() as f32), (0..n / 2).map(|k| argument(k).cos() as f32));
    let mut features: Vec<f32> = if cosines_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
    features.resize(n, 0.0);
    features
}
