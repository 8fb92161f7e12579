//! The InfGen decoder: a latent of fixed size to a picture of any size in one pass.
//!
//! Paper: InfGen, ICCV 2025, arXiv:2509.10441 (supplementary, Table 1). The authors have published no code; what the
//! paper leaves open is settled in this crate's format (`InfgenConfig`) and in `training/infgen_model.py`, its PyTorch twin.

use std::ops::Range;

use super::infgen_config::{Activation, InfgenConfig, LatentSkip, Stem};
use super::taesd::{self, Taesd};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::inpe::{GridRows, inpe_features};
use crate::kernels::output::count_nonfinite;
use crate::kernels::resample::resample_bilinear;
use crate::nn::chain::{Chain, PlaneShape};
use crate::nn::{Conv3x3, GroupNormConfig, Heads, LayerNorm, Linear, Loader, Precision, UpDecoder, UpDecoderShape};
use crate::weights::taesd_keys::Half;

impl From<Activation> for Act {
    fn from(activation: Activation) -> Act {
        match activation {
            Activation::GeluErf => Act::GeluErf,
            Activation::GeluTanh => Act::GeluTanh,
            Activation::Silu => Act::Silu,
        }
    }
}

/// What all mask tokens of one latent share.
#[derive(Debug, Clone)]
pub struct InfgenContext {
    /// Features of the latent, `[h, w, hidden_size]`.
    pub stem: Tensor,
    /// Keys and values of each block, `[h, w, hidden_size]`.
    pub keys_and_values: Vec<(Tensor, Tensor)>,
}

impl InfgenContext {
    /// Its tensors, in a fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.stem).chain(self.keys_and_values.iter().flat_map(|(k, v)| [k, v]))
    }

    /// The same with every tensor replaced, in the order of [`InfgenContext::tensors`].
    pub fn map(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> InfgenContext {
        let stem = f(&self.stem);
        InfgenContext { stem, keys_and_values: self.keys_and_values.iter().map(|(k, v)| (f(k), f(v))).collect() }
    }
}

/// The two convolutions in front.
#[derive(Debug)]
enum PostQuantConv {
    Conv3x3(Conv3x3),
    Conv1x1(Linear),
}

/// Implicit neural positional embedding: `fc2(act(fc1([cos B p, sin B p])))`, in f32 throughout.
#[derive(Debug)]
struct Inpe {
    b: Tensor,
    fc1: Linear,
    fc2: Linear,
}

/// Cross-attention from mask tokens to latent tokens, then an MLP; both pre-norm with a residual.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    norm_kv: LayerNorm,
    attn: Heads,
    norm2: LayerNorm,
    proj: Linear,
    out: Linear,
}

/// A loaded InfGen decoder.
#[derive(Debug)]
pub struct InfgenDecoder {
    config: InfgenConfig,
    precision: Precision,
    post_quant_conv: PostQuantConv,
    conv_in: Conv3x3,
    inpe_latent: Inpe,
    /// Its `fc2` has the mask token in the bias.
    inpe_mask: Inpe,
    blocks: Vec<Block>,
    decoder: UpDecoder,
    base: Option<Taesd>,
}

impl Inpe {
    async fn load(loader: &Loader<'_>, path: &str, config: &InfgenConfig, token: Option<&[f32]>) -> Result<Inpe> {
        let loader = &loader.with(Precision::F32);
        let (m, hidden, width) = (config.inpe_features, config.inpe_hidden, config.hidden_size);
        let name = format!("{path}.B");
        let mut b = loader.read(&name, &[m, 3]).await?;
        b.resize(b.len().next_multiple_of(4), 0.0);
        let fc2 = format!("{path}.fc2");
        let weight = loader.read(&format!("{fc2}.weight"), &[width, hidden]).await?;
        let mut bias = loader.read(&format!("{fc2}.bias"), &[width]).await?;
        if let Some(token) = token {
            bias.iter_mut().zip(token).for_each(|(b, t)| *b += t);
        }
        Ok(Inpe {
            b: loader.upload(&name, &b, b.len(), Elem::F32).await?,
            fc1: Linear::load(loader, &format!("{path}.fc1"), 2 * m, hidden).await?,
            fc2: Linear::from_values(loader, &fc2, &weight, &bias, hidden).await?,
        })
    }

    /// `residual + PE` for some rows of a grid: `[rows, grid_w, hidden_size]`.
    fn forward(&self, rec: &mut Recorder, config: &InfgenConfig, at: GridRows, residual: Option<&Tensor>, elem: Elem) -> Tensor {
        let y = rec.tensor(at.rows, at.grid.1, config.hidden_size, elem);
        self.forward_into(rec, config, at, residual, &y);
        y
    }

    fn forward_into(&self, rec: &mut Recorder, config: &InfgenConfig, at: GridRows, residual: Option<&Tensor>, y: &Tensor) {
        let (lon, lat) = (config.inpe_lon_span as f32, config.inpe_lat_span as f32);
        let features = inpe_features(rec, &self.b, config.inpe_features, at, lon, lat);
        let hidden = self.fc1.forward(rec, &features, None, config.inpe_act.into(), Elem::F32);
        self.fc2.forward_into(rec, &hidden, residual, Act::None, y);
    }
}

impl Block {
    async fn load(loader: &Loader<'_>, path: &str, config: &InfgenConfig) -> Result<Block> {
        let (width, hidden, eps) = (config.hidden_size, config.mlp_hidden, config.ln_eps);
        Ok(Block {
            norm1: LayerNorm::load(loader, &format!("{path}.norm1"), width, eps).await?,
            norm_kv: LayerNorm::load(loader, &format!("{path}.norm_kv"), width, eps).await?,
            attn: Heads::load(loader, &format!("{path}.attn"), width, config.num_heads).await?,
            norm2: LayerNorm::load(loader, &format!("{path}.norm2"), width, eps).await?,
            proj: Linear::load(loader, &format!("{path}.ff.net.0.proj"), width, hidden).await?,
            out: Linear::load(loader, &format!("{path}.ff.net.2"), hidden, width).await?,
        })
    }

    /// Mask tokens after this block, some of `whole`; written into `y` if it is given.
    fn forward(&self, rec: &mut Recorder, mask: &Tensor, whole: usize, (k, v): &(Tensor, Tensor), act: Act, y: Option<&Tensor>) -> Tensor {
        let elem = mask.elem;
        let q = self.norm1.forward(rec, mask, elem);
        let mask = self.attn.forward_part(rec, &q, k, v, mask, whole);
        let h = self.norm2.forward(rec, &mask, elem);
        let h = self.proj.forward(rec, &h, None, act, elem);
        let y = y.cloned().unwrap_or_else(|| rec.tensor(mask.height, mask.width, mask.channels, elem));
        self.out.forward_into(rec, &h, Some(&mask), Act::None, &y);
        y
    }
}

impl InfgenDecoder {
    /// Loads every tensor that `config` implies.
    ///
    /// # Errors
    /// As [`Loader::read`] for a tensor that is missing, of another shape or not finite; as an upload for memory.
    pub async fn load(loader: &Loader<'_>, config: &InfgenConfig) -> Result<InfgenDecoder> {
        let (width, latent) = (config.hidden_size, config.latent_channels);
        let mask_token = loader.read("mask_token", &[width]).await?;
        let (latent_prefix, mask_prefix) = match config.inpe_prefixes() {
            [shared] => (*shared, *shared),
            [latent, mask, ..] => (*latent, *mask),
            [] => unreachable!("a config names one or two position networks"),
        };
        let (post_quant_conv, cin) = match config.stem {
            Stem::Conv3x3 => {
                let between = config.stem_channels();
                (PostQuantConv::Conv3x3(Conv3x3::load(loader, "post_quant_conv", latent, between).await?), between)
            }
            Stem::Sd => (PostQuantConv::Conv1x1(Linear::load_conv1x1(loader, "post_quant_conv", latent, latent).await?), latent),
        };
        let mut blocks = Vec::new();
        for i in 0..config.num_blocks {
            blocks.push(Block::load(loader, &format!("blocks.{i}"), config).await?);
        }
        let levels: Vec<_> = config.up_blocks().into_iter().map(|block| (block.resnets, block.upsample)).collect();
        let shape = UpDecoderShape { top: width, mid_attention: config.mid_block_add_attention, levels: &levels, out: Some(3) };
        let norm = GroupNormConfig { groups: config.norm_num_groups, eps: config.norm_eps };
        let base = match config.base() {
            Some(base) => Some(Taesd::load_at(loader, "base", &base, Half::Decoder, (1.0, 0.0)).await?),
            None => None,
        };
        Ok(InfgenDecoder {
            base,
            precision: loader.precision(),
            post_quant_conv,
            conv_in: Conv3x3::load(loader, "decoder.conv_in", cin, width).await?,
            inpe_latent: Inpe::load(loader, latent_prefix, config, None).await?,
            inpe_mask: Inpe::load(loader, mask_prefix, config, Some(&mask_token)).await?,
            blocks,
            decoder: UpDecoder::load(loader, &shape, norm).await?,
            config: config.clone(),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &InfgenConfig {
        &self.config
    }

    /// The grid of mask tokens for a picture of `width x height`: rows, columns.
    pub fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        (height.div_ceil(self.config.patch), width.div_ceil(self.config.patch))
    }

    /// Everything behind the tokens of a grid for a latent of the size `latent`, and the index of the plane behind the mid block.
    ///
    /// The last plane is `[patch rows, patch columns, 3]` in f32, -1 to 1 without clamping; the picture is its top-left part.
    pub fn chain(&self, (height, width): (usize, usize), latent: (usize, usize)) -> (Chain<'_>, usize) {
        let elem = self.precision.activations;
        let mut units = Vec::new();
        let features = self.decoder.units(&mut units, elem);
        let chain = Chain::new(PlaneShape { height, width, channels: self.config.hidden_size, elem }, units);
        let base = self.base_chain(latent).map(|base| base.planes[base.last()]);
        (Chain { base, ..chain }, features)
    }

    /// The base decoder for a latent of this height and width, if there is one. Its last plane is the base picture, in f32.
    pub fn base_chain(&self, latent: (usize, usize)) -> Option<Chain<'_>> {
        self.base.as_ref().map(|base| base.chain(latent))
    }

    /// What the base decoder takes of a latent `z` in VAE units.
    pub fn base_input(&self, z: &[f32]) -> Vec<f32> {
        let factor = self.config.scaling_factor();
        z.iter().map(|&v| taesd::squashed((v as f64 * factor) as f32)).collect()
    }

    /// Records what all mask tokens of one latent share.
    ///
    /// `z` is `[h, w, latent_channels]` in VAE units (already divided by the scaling factor).
    pub fn context(&self, rec: &mut Recorder, z: &Tensor) -> InfgenContext {
        let elem = self.precision.activations;
        let x = rec.scoped("decoder.conv_in", |rec| {
            let x = match &self.post_quant_conv {
                PostQuantConv::Conv3x3(conv) => conv.forward(rec, z, None, Act::None, elem),
                PostQuantConv::Conv1x1(conv) => conv.forward(rec, z, None, Act::None, elem),
            };
            self.conv_in.forward(rec, &x, None, Act::None, elem)
        });
        rec.tap("decoder.conv_in", &x);
        let at = GridRows { grid: (x.height, x.width), row0: 0, rows: x.height };
        let latent = rec.scoped("inpe.latent", |rec| self.inpe_latent.forward(rec, &self.config, at, Some(&x), elem));
        let keys_and_values = self.blocks.iter().map(|block| {
            let context = block.norm_kv.forward(rec, &latent, elem);
            block.attn.keys_and_values(rec, &context)
        });
        InfgenContext { keys_and_values: keys_and_values.collect(), stem: x }
    }

    /// Records some rows of the mask tokens after the last block, `[rows, columns, hidden_size]`, `tokens_a_chunk` at a time.
    /// Every token depends on its position and the latent alone, so neither changes a bit.
    pub fn tokens(
        &self,
        rec: &mut Recorder,
        context: &InfgenContext,
        grid: (usize, usize),
        rows: Range<usize>,
        tokens_a_chunk: usize,
    ) -> Tensor {
        let elem = self.precision.activations;
        let config = &self.config;
        let out = rec.tensor(rows.len(), grid.1, config.hidden_size, elem);
        let rows_a_chunk = (tokens_a_chunk / grid.1).max(1);
        for row0 in rows.clone().step_by(rows_a_chunk) {
            let at = GridRows { grid, row0, rows: rows_a_chunk.min(rows.end - row0) };
            let skip = (config.latent_skip == LatentSkip::Bilinear).then(|| resample_bilinear(rec, &context.stem, at, elem));
            let place = || out.rows(at.row0 - rows.start, at.rows);
            // Without blocks nothing else writes the rows.
            let mut mask = if self.blocks.is_empty() { place() } else { rec.tensor(at.rows, grid.1, config.hidden_size, elem) };
            rec.scoped("inpe.mask", |rec| self.inpe_mask.forward_into(rec, config, at, skip.as_ref(), &mask));
            rec.tap("mask_tokens", &mask);
            for (i, (block, context)) in self.blocks.iter().zip(&context.keys_and_values).enumerate() {
                let last = (i + 1 == self.blocks.len()).then(place);
                mask = rec.scoped(format!("blocks.{i}"), |rec| {
                    let mask = block.forward(rec, &mask, grid.0 * grid.1, context, config.mlp_act.into(), last.as_ref());
                    count_nonfinite(rec, &mask);
                    mask
                });
                rec.tap(&format!("blocks.{i}"), &mask);
            }
        }
        out
    }
}
