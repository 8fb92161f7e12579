//! Attention layers.

use super::{GroupNorm, GroupNormConfig, Linear, Loader};
use crate::error::Result;
use crate::gpu::{Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::attention::{RelativeBias, attention_biased_into, attention_into};
use crate::kernels::group_norm::norm_apply;
use crate::kernels::rotary::{Rotary, rotary as turned};

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

/// Widths of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct HeadsShape {
    /// Channels of the queries' tokens and of the result.
    pub channels: usize,
    /// Channels of the tokens that keys and values come from.
    pub context: usize,
    /// Number of heads, each `channels / heads` wide.
    pub heads: usize,
    /// Whether q, k and v have a bias.
    pub bias: bool,
}

impl Heads {
    /// Loads `to_q`, `to_k`, `to_v` and `to_out.0` at `path`, all `[channels, channels]` with bias. The head is the slow
    /// index of the channels, scores are scaled by `1 / sqrt(channels / heads)`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, heads: usize) -> Result<Heads> {
        Heads::load_shape(loader, path, HeadsShape { channels, context: channels, heads, bias: true }).await
    }

    /// [`Heads::load`] with keys and values of another width, or without biases; `to_out.0` always has one.
    pub async fn load_shape(loader: &Loader<'_>, path: &str, shape: HeadsShape) -> Result<Heads> {
        Heads::load_named(loader, path, ["to_q", "to_k", "to_v", "to_out.0"], shape).await
    }

    /// [`Heads::load_shape`] with other names for q, k, v and the output.
    pub async fn load_named(loader: &Loader<'_>, path: &str, names: [&str; 4], shape: HeadsShape) -> Result<Heads> {
        let HeadsShape { channels, context, heads, bias } = shape;
        let d = channels / heads;
        let inner = heads * d;
        let padded = d.next_multiple_of(4);
        // Channel c of the padded layout, or none for a pad channel.
        let source: Vec<Option<usize>> = (0..heads * padded).map(|c| (c % padded < d).then(|| c / padded * d + c % padded)).collect();
        let mut inward = Vec::new();
        for (name, inputs) in names.into_iter().zip([channels, context, context]) {
            let path = format!("{path}.{name}");
            let weight = loader.read(&format!("{path}.weight"), &[inner, inputs]).await?;
            let bias = if bias { loader.read(&format!("{path}.bias"), &[inner]).await? } else { vec![0.0; inner] };
            let rows = |c: &Option<usize>| c.map_or(vec![0.0; inputs], |c| weight[c * inputs..(c + 1) * inputs].to_vec());
            let weight: Vec<f32> = source.iter().flat_map(rows).collect();
            let bias: Vec<f32> = source.iter().map(|c| c.map_or(0.0, |c| bias[c])).collect();
            inward.push(Linear::from_values(loader, &path, &weight, &bias, inputs).await?);
        }
        let path = format!("{path}.{}", names[3]);
        let weight = loader.read(&format!("{path}.weight"), &[channels, inner]).await?;
        let bias = loader.read(&format!("{path}.bias"), &[channels]).await?;
        let columns = |row: &[f32]| source.iter().map(|c| c.map_or(0.0, |c| row[c])).collect::<Vec<_>>();
        let weight: Vec<f32> = weight.chunks_exact(inner).flat_map(columns).collect();
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

    /// Width of keys and values as they are stored, every head padded to whole quads.
    pub fn stored_width(&self) -> usize {
        self.to_k.outputs()
    }

    /// [`Heads::keys_and_values`] into tensors that are already there, `[m tokens, stored_width]`.
    pub fn keys_and_values_into(&self, rec: &mut Recorder, context: &Tensor, k: &Tensor, v: &Tensor) {
        self.to_k.forward_into(rec, context, None, Act::None, k);
        self.to_v.forward_into(rec, context, None, Act::None, v);
    }

    /// `residual + to_out(attention(to_q(x), k, v))`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, k: &Tensor, v: &Tensor, residual: &Tensor) -> Tensor {
        self.forward_part(rec, x, k, v, residual, x.pixels())
    }

    /// [`Heads::forward`] for some of `whole` tokens, with the bits that they have in the whole.
    pub fn forward_part(&self, rec: &mut Recorder, x: &Tensor, k: &Tensor, v: &Tensor, residual: &Tensor, whole: usize) -> Tensor {
        let out = rec.tensor(x.height, x.width, self.to_out.outputs(), x.elem);
        self.attend(rec, x, [k, v], residual, false, whole, &out);
        out
    }

    /// [`Heads::forward`] in which token `i` sees tokens `0 ..= i` only.
    pub fn forward_causal(&self, rec: &mut Recorder, x: &Tensor, k: &Tensor, v: &Tensor, residual: &Tensor) -> Tensor {
        let out = rec.tensor(x.height, x.width, self.to_out.outputs(), x.elem);
        self.attend(rec, x, [k, v], residual, true, x.pixels(), &out);
        out
    }

    /// `to_out(attention(x, x, x))` of a batch: `count` runs of tokens below each other in `x`, none of which sees another. Queries and keys turn by
    /// `rotary`, scores have `bias` added, if there are any.
    pub fn self_attention(
        &self,
        rec: &mut Recorder,
        x: &Tensor,
        count: usize,
        rotary: Option<&Rotary>,
        bias: Option<&RelativeBias>,
    ) -> Tensor {
        let [mut q, mut k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|to| to.forward(rec, x, None, Act::None, x.elem));
        if let Some(positions) = rotary {
            [q, k] = [q, k].map(|t| turned(rec, &t, self.heads, positions));
        }
        let y = rec.tensor(x.height, x.width, q.channels, x.elem);
        let rows = x.height / count;
        for n in 0..count {
            let [q, k, v, y] = [&q, &k, &v, &y].map(|t| t.rows(n * rows, rows));
            match bias {
                Some(bias) => attention_biased_into(rec, [&q, &k, &v], self.heads, self.scale, bias, &y),
                None => attention_into(rec, [&q, &k, &v], self.heads, self.scale, false, &y, q.pixels()),
            }
        }
        self.to_out.forward(rec, &y, None, Act::None, x.elem)
    }

    /// For some of `whole` tokens, into `out`.
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    fn attend(&self, rec: &mut Recorder, x: &Tensor, [k, v]: [&Tensor; 2], residual: &Tensor, causal: bool, whole: usize, out: &Tensor) {
        let q = self.to_q.forward(rec, x, None, Act::None, x.elem);
        let y = rec.tensor(q.height, q.width, q.channels, x.elem);
        attention_into(rec, [&q, k, v], self.heads, self.scale, causal, &y, whole);
        self.to_out.forward_into(rec, &y, Some(residual), Act::None, out);
    }
}

/// Self-attention of pixels behind a norm, with a residual: of a VAE's mid block (one head as wide as the channels), and of UNets that are told no prompt.
///
/// Source: diffusers `models/unets/unet_2d_blocks.py` `UNetMidBlock2D`, `attention_processor.py` `Attention`; guided-diffusion's `AttentionBlock`.
#[derive(Debug)]
pub struct SelfAttention {
    group_norm: GroupNorm,
    heads: Heads,
}

impl SelfAttention {
    /// Loads the layer at `path`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, heads: usize, norm: GroupNormConfig) -> Result<SelfAttention> {
        Ok(SelfAttention {
            group_norm: GroupNorm::load(loader, &format!("{path}.group_norm"), channels, norm.groups, norm.eps).await?,
            heads: Heads::load(loader, path, channels, heads).await?,
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
            self.heads.attend(rec, &tokens, [&k, &v], &x, false, h * w, &out.rows(row, rows));
        }
        out
    }
}
