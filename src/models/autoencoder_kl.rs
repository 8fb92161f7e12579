//! Encoder and decoder of the Stable Diffusion VAE.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py` and `vae.py` at 58eb52c; CompVis latent-diffusion
//! `ldm/modules/diffusionmodules/model.py`.

use super::vae_config::VaeConfig;
use crate::error::Result;
use crate::gpu::Elem;
use crate::kernels::Act;
use crate::nn::chain::{Chain, Op, PlaneShape, Unit};
use crate::nn::{
    Conv3x3, GroupNorm, GroupNormConfig, Linear, Loader, MidBlock, Precision, ResnetBlock, StridedConv, UpDecoder, UpDecoderShape, append,
};

/// Epsilon of every group normalisation of the VAE.
const NORM_EPS: f32 = 1e-6;

/// Latent to picture.
#[derive(Debug)]
pub struct VaeDecoder {
    precision: Precision,
    post_quant_conv: Option<Linear>,
    conv_in: Conv3x3,
    decoder: UpDecoder,
    latent_channels: usize,
}

impl VaeDecoder {
    /// Loads `post_quant_conv` and everything below `decoder.`.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &VaeConfig) -> Result<VaeDecoder> {
        let (latent, top) = (config.latent_channels, config.top_channels());
        let blocks = config.up_blocks();
        let last = blocks.len() - 1;
        let levels: Vec<_> = blocks.into_iter().enumerate().map(|(u, resnets)| (resnets, u < last)).collect();
        let out = (!config.give_pre_end).then_some(config.out_channels);
        let shape = UpDecoderShape { top, mid_attention: config.mid_block_add_attention, levels: &levels, out };
        Ok(VaeDecoder {
            precision: loader.precision(),
            post_quant_conv: match config.use_post_quant_conv {
                true => Some(Linear::load_conv1x1(loader, "post_quant_conv", latent, latent).await?),
                false => None,
            },
            conv_in: Conv3x3::load(loader, "decoder.conv_in", latent, top).await?,
            decoder: UpDecoder::load(loader, &shape, GroupNormConfig { groups: config.norm_num_groups, eps: NORM_EPS }).await?,
            latent_channels: latent,
        })
    }

    /// From `z` `[height, width, latent_channels]` f32, not scaled, to `[s h, s w, 3]` in f32, -1 to 1 without clamping (or to features); and the
    /// index of the plane behind the mid block.
    pub fn chain(&self, (height, width): (usize, usize)) -> (Chain<'_>, usize) {
        let elem = self.precision.activations;
        let mut units = Vec::new();
        if let Some(conv) = &self.post_quant_conv {
            append(&mut units, [Unit::new("decoder.conv_in", Op::Pointwise(conv), Elem::F32)], None);
        }
        let path = "decoder.conv_in";
        append(&mut units, [Unit::new(path, Op::Conv { conv: &self.conv_in, norm: None, act: Act::None }, elem)], Some(path.into()));
        let features = self.decoder.units(&mut units, elem);
        (Chain::new(PlaneShape { height, width, channels: self.latent_channels, elem: Elem::F32 }, units), features)
    }
}

/// Picture to the posterior of its latent.
#[derive(Debug)]
pub struct VaeEncoder {
    precision: Precision,
    conv_in: Conv3x3,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<StridedConv>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    quant_conv: Option<Linear>,
    in_channels: usize,
}

impl VaeEncoder {
    /// Loads everything below `encoder.` and `quant_conv`.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &VaeConfig) -> Result<VaeEncoder> {
        let norm = GroupNormConfig { groups: config.norm_num_groups, eps: NORM_EPS };
        let (base, top, moments) = (config.block_out_channels[0], config.top_channels(), config.moments());
        let mut down_blocks = Vec::new();
        for (i, channels) in config.down_blocks().iter().enumerate() {
            let path = format!("encoder.down_blocks.{i}");
            let mut resnets = Vec::new();
            for (r, &(cin, cout)) in channels.iter().enumerate() {
                resnets.push(ResnetBlock::load(loader, &format!("{path}.resnets.{r}"), cin, cout, norm.groups, norm.eps).await?);
            }
            let downsampler = match i + 1 < config.block_out_channels.len() {
                true => {
                    let path = format!("{path}.downsamplers.0.conv");
                    let channels = config.block_out_channels[i];
                    Some(StridedConv::load(loader, &path, (channels, channels), true, StridedConv::PAD_AFTER).await?)
                }
                false => None,
            };
            down_blocks.push((resnets, downsampler));
        }
        Ok(VaeEncoder {
            precision: loader.precision(),
            conv_in: Conv3x3::load(loader, "encoder.conv_in", config.in_channels, base).await?,
            down_blocks,
            mid_block: MidBlock::load(loader, "encoder.mid_block", top, config.mid_block_add_attention, norm).await?,
            conv_norm_out: GroupNorm::load(loader, "encoder.conv_norm_out", top, norm.groups, norm.eps).await?,
            conv_out: Conv3x3::load(loader, "encoder.conv_out", top, moments).await?,
            quant_conv: match config.use_quant_conv {
                true => Some(Linear::load_conv1x1(loader, "quant_conv", moments, moments).await?),
                false => None,
            },
            in_channels: config.in_channels,
        })
    }

    /// From `x` `[height, width, in_channels]` f32, -1 to 1, to `[h / s, w / s, moments]` in f32: mean, then log
    /// variance, not clamped, where the network gives one.
    pub fn chain(&self, (height, width): (usize, usize)) -> Chain<'_> {
        let elem = self.precision.activations;
        let conv = |conv, norm| Op::Conv { conv, norm, act: Act::None };
        let mut units = Vec::new();
        let path = "encoder.conv_in";
        append(&mut units, [Unit::new(path, conv(&self.conv_in, None), elem)], Some(path.into()));
        for (i, (resnets, downsampler)) in self.down_blocks.iter().enumerate() {
            let path = format!("encoder.down_blocks.{i}");
            for (r, resnet) in resnets.iter().enumerate() {
                let first = units.len();
                append(&mut units, resnet.units(&format!("{path}.resnets.{r}"), first, elem), None);
            }
            if let Some(downsampler) = downsampler {
                append(&mut units, [Unit::new(format!("{path}.downsamplers.0"), Op::Strided(downsampler), elem)], None);
            }
            append(&mut units, [], Some(path));
        }
        self.mid_block.units(&mut units, "encoder.mid_block", elem);
        units.push(Unit::new(
            "encoder.conv_out",
            conv(&self.conv_out, Some((&self.conv_norm_out, "encoder.conv_norm_out".into()))),
            Elem::F32,
        ));
        if let Some(conv) = &self.quant_conv {
            units.push(Unit::new("encoder.conv_out", Op::Pointwise(conv), Elem::F32));
        }
        units.last_mut().expect("not empty").watched = true;
        Chain::new(PlaneShape { height, width, channels: self.in_channels, elem: Elem::F32 }, units)
    }
}
