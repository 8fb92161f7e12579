//! The transformer of Stable Diffusion's UNet: self-attention, attention to the prompt, gated feed-forward.

use super::{GroupNorm, Heads, HeadsShape, LayerNorm, Linear, Loader};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::glu::glu;

/// Epsilon of the group norm in front, whatever the config says.
const GROUP_NORM_EPS: f32 = 1e-6;
/// Epsilon of the layer norms.
const LAYER_NORM_EPS: f32 = 1e-5;

/// Sizes of a [`Transformer2d`].
#[derive(Debug, Clone, Copy)]
pub struct TransformerShape {
    /// Channels of the plane.
    pub channels: usize,
    /// Number of heads; tokens have `channels / heads` (rounded down) times as many channels.
    pub heads: usize,
    /// Blocks one after the other.
    pub layers: usize,
    /// Width of the prompt's tokens.
    pub context: usize,
    /// Groups of the norm in front.
    pub groups: usize,
    /// Whether the projections are stored as matrices or as 1x1 convolutions; they compute the same.
    pub linear_projection: bool,
}

/// Keys and values of a prompt in one attention layer, each `[tokens, heads * padded head dim]`.
pub type KeysAndValues = (Tensor, Tensor);

/// `x + attn1(norm1 x)`, `x + attn2(norm2 x, prompt)`, `x + ff(norm3 x)`.
///
/// Source: diffusers `models/attention.py` `BasicTransformerBlock`, `FeedForward` with GEGLU.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Heads,
    norm2: LayerNorm,
    attn2: Heads,
    norm3: LayerNorm,
    proj: Linear,
    out: Linear,
}

impl TransformerBlock {
    async fn load(loader: &Loader<'_>, path: &str, channels: usize, shape: TransformerShape) -> Result<TransformerBlock> {
        let heads = |context: usize| HeadsShape { channels, context, heads: shape.heads, bias: false };
        Ok(TransformerBlock {
            norm1: LayerNorm::load(loader, &format!("{path}.norm1"), channels, LAYER_NORM_EPS).await?,
            attn1: Heads::load_shape(loader, &format!("{path}.attn1"), heads(channels)).await?,
            norm2: LayerNorm::load(loader, &format!("{path}.norm2"), channels, LAYER_NORM_EPS).await?,
            attn2: Heads::load_shape(loader, &format!("{path}.attn2"), heads(shape.context)).await?,
            norm3: LayerNorm::load(loader, &format!("{path}.norm3"), channels, LAYER_NORM_EPS).await?,
            proj: Linear::load(loader, &format!("{path}.ff.net.0.proj"), channels, 8 * channels).await?,
            out: Linear::load(loader, &format!("{path}.ff.net.2"), 4 * channels, channels).await?,
        })
    }

    fn forward(&self, rec: &mut Recorder, x: &Tensor, prompt: &KeysAndValues) -> Tensor {
        let elem = x.elem;
        let x = rec.scoped("attn1", |rec| {
            let h = self.norm1.forward(rec, x, elem);
            let (k, v) = self.attn1.keys_and_values(rec, &h);
            self.attn1.forward(rec, &h, &k, &v, x)
        });
        let x = rec.scoped("attn2", |rec| {
            let h = self.norm2.forward(rec, &x, elem);
            self.attn2.forward(rec, &h, &prompt.0, &prompt.1, &x)
        });
        rec.scoped("ff", |rec| {
            let h = self.norm3.forward(rec, &x, elem);
            let h = self.proj.forward(rec, &h, None, Act::None, elem);
            let h = glu(rec, &h, Act::GeluErf, elem);
            self.out.forward(rec, &h, Some(&x), Act::None, elem)
        })
    }
}

/// Group norm, projection, transformer blocks on the pixels as tokens, projection, and the input added.
///
/// Source: diffusers `models/transformers/transformer_2d.py` `Transformer2DModel`.
#[derive(Debug)]
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl Transformer2d {
    /// Loads the layer at `path`.
    pub async fn load(loader: &Loader<'_>, path: &str, shape: TransformerShape) -> Result<Transformer2d> {
        let TransformerShape { channels, heads, .. } = shape;
        let inner = channels / heads * heads;
        let mut transformer_blocks = Vec::new();
        for k in 0..shape.layers {
            transformer_blocks.push(TransformerBlock::load(loader, &format!("{path}.transformer_blocks.{k}"), inner, shape).await?);
        }
        let (proj_in, proj_out) = (format!("{path}.proj_in"), format!("{path}.proj_out"));
        let (proj_in, proj_out) = match shape.linear_projection {
            true => (Linear::load(loader, &proj_in, channels, inner).await?, Linear::load(loader, &proj_out, inner, channels).await?),
            false => (
                Linear::load_conv1x1(loader, &proj_in, channels, inner).await?,
                Linear::load_conv1x1(loader, &proj_out, inner, channels).await?,
            ),
        };
        let norm = GroupNorm::load(loader, &format!("{path}.norm"), channels, shape.groups, GROUP_NORM_EPS).await?;
        Ok(Transformer2d { norm, proj_in, transformer_blocks, proj_out })
    }

    /// Width of the keys and values of each block, heads padded to whole quads.
    pub fn prompt_widths(&self) -> impl Iterator<Item = usize> + '_ {
        self.transformer_blocks.iter().map(|block| block.attn2.stored_width())
    }

    /// Keys and values of a prompt (`[tokens, context]`) in each block, into tensors of [`Transformer2d::prompt_widths`].
    pub fn prompt_into<'a>(&self, rec: &mut Recorder, context: &Tensor, into: &mut impl Iterator<Item = &'a KeysAndValues>) {
        for block in &self.transformer_blocks {
            let (k, v) = into.next().expect("keys and values of every block");
            block.attn2.keys_and_values_into(rec, context, k, v);
        }
    }

    /// `[h, w, channels]` to the same shape; takes the keys and values of its blocks from `prompt`.
    pub fn forward<'a>(&self, rec: &mut Recorder, x: &Tensor, prompt: &mut impl Iterator<Item = &'a KeysAndValues>) -> Tensor {
        let elem: Elem = x.elem;
        let h = rec.scoped("norm", |rec| self.norm.forward(rec, x, false, elem));
        let mut h = rec.scoped("proj_in", |rec| self.proj_in.forward(rec, &h, None, Act::None, elem));
        for (k, block) in self.transformer_blocks.iter().enumerate() {
            let prompt = prompt.next().expect("keys and values of every block");
            h = rec.scoped(format!("transformer_blocks.{k}"), |rec| block.forward(rec, &h, prompt));
        }
        rec.scoped("proj_out", |rec| self.proj_out.forward(rec, &h, Some(x), Act::None, elem))
    }
}
