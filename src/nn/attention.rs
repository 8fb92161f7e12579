//! Attention layers.

use super::{GroupNorm, Linear, Loader};
use crate::error::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::attention::attention;
use crate::kernels::group_norm::norm_apply;

/// Tokens that go through a block of layers at a time, so that its intermediate results stay small. Each token depends on
/// itself and on the context alone: no bit depends on this number.
pub const TOKENS_A_CHUNK: usize = 8192;

/// Projections of multi-head attention. Heads whose width is no multiple of 4 are padded with zero channels, in the
/// weights, so that kernels see whole quads; the result is the same.
#[derive(Debug)]
pub struct Heads {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    scale: f32,
}

impl Heads {
    /// Loads `to_q`, `to_k`, `to_v` and `to_out.0` at `path`, all `[channels, channels]` with bias. The head is the slow
    /// index of the channels, scores are scaled by `1 / sqrt(channels / heads)`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, heads: usize) -> Result<Heads> {
        let d = channels / heads;
        let padded = d.next_multiple_of(4);
        // Channel c of the padded layout, or none for a pad channel.
        let source: Vec<Option<usize>> = (0..heads * padded).map(|c| (c % padded < d).then(|| c / padded * d + c % padded)).collect();
        let mut inward = Vec::new();
        for name in ["to_q", "to_k", "to_v"] {
            let path = format!("{path}.{name}");
            let weight = loader.read(&format!("{path}.weight"), &[channels, channels]).await?;
            let bias = loader.read(&format!("{path}.bias"), &[channels]).await?;
            let rows = |c: &Option<usize>| c.map_or(vec![0.0; channels], |c| weight[c * channels..(c + 1) * channels].to_vec());
            let weight: Vec<f32> = source.iter().flat_map(rows).collect();
            let bias: Vec<f32> = source.iter().map(|c| c.map_or(0.0, |c| bias[c])).collect();
            inward.push(Linear::from_values(loader, &path, &weight, &bias, channels).await?);
        }
        let path = format!("{path}.to_out.0");
        let weight = loader.read(&format!("{path}.weight"), &[channels, channels]).await?;
        let bias = loader.read(&format!("{path}.bias"), &[channels]).await?;
        let columns = |row: &[f32]| source.iter().map(|c| c.map_or(0.0, |c| row[c])).collect::<Vec<_>>();
        let weight: Vec<f32> = weight.chunks_exact(channels).flat_map(columns).collect();
        let to_out = Linear::from_values(loader, &path, &weight, &bias, heads * padded).await?;
        let mut inward = inward.into_iter();
        let mut next = || inward.next().expect("three projections");
        Ok(Heads { to_q: next(), to_k: next(), to_v: next(), to_out, heads, scale: 1.0 / (d as f32).sqrt() })
    }

    /// Keys and values of `context` (`[m tokens, channels]`).
    pub fn keys_and_values(&self, rec: &mut Recorder, context: &Tensor) -> (Tensor, Tensor) {
        let elem = context.elem;
        (self.to_k.forward(rec, context, None, Act::None, elem), self.to_v.forward(rec, context, None, Act::None, elem))
    }

    /// `residual + to_out(attention(to_q(x), k, v))`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, k: &Tensor, v: &Tensor, residual: &Tensor) -> Tensor {
        let elem = x.elem;
        let q = self.to_q.forward(rec, x, None, Act::None, elem);
        let y = attention(rec, &q, k, v, self.heads, self.scale, false, elem);
        self.to_out.forward(rec, &y, Some(residual), Act::None, elem)
    }
}

/// Self-attention of the VAE's mid block: one head as wide as the channels.
///
/// Source: diffusers `models/unets/unet_2d_blocks.py` `UNetMidBlock2D`, `attention_processor.py` `Attention`.
#[derive(Debug)]
pub struct MidAttention {
    group_norm: GroupNorm,
    heads: Heads,
}

impl MidAttention {
    /// Loads the layer at `path`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, groups: usize, eps: f32) -> Result<MidAttention> {
        Ok(MidAttention {
            group_norm: GroupNorm::load(loader, &format!("{path}.group_norm"), channels, groups, eps).await?,
            heads: Heads::load(loader, path, channels, 1).await?,
        })
    }

    /// `x + attention(norm(x))` on `[h, w, c]`; whole in memory are `x`, keys, values and the result.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        let affine = self.group_norm.affine(rec, x);
        let (h, w, c) = x.shape();
        let inner = self.heads.to_k.outputs();
        let (k, v) = (rec.tensor(h, w, inner, x.elem), rec.tensor(h, w, inner, x.elem));
        let out = rec.tensor(h, w, c, x.elem);
        let step = (TOKENS_A_CHUNK / w).max(1);
        let chunks = || (0..h).step_by(step).map(|row| (row, step.min(h - row)));
        for (row, rows) in chunks() {
            let tokens = norm_apply(rec, &x.rows(row, rows), &affine, false, x.elem);
            self.heads.to_k.forward_into(rec, &tokens, None, Act::None, &k.rows(row, rows));
            self.heads.to_v.forward_into(rec, &tokens, None, Act::None, &v.rows(row, rows));
        }
        for (row, rows) in chunks() {
            let x = x.rows(row, rows);
            let tokens = norm_apply(rec, &x, &affine, false, x.elem);
            let q = self.heads.to_q.forward(rec, &tokens, None, Act::None, x.elem);
            let y = attention(rec, &q, &k, &v, self.heads.heads, self.heads.scale, false, x.elem);
            self.heads.to_out.forward_into(rec, &y, Some(&x), Act::None, &out.rows(row, rows));
        }
        out
    }
}
