//! Encoder and decoder of the Stable Diffusion VAE.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py` and `vae.py` at 58eb52c; CompVis latent-diffusion
//! `ldm/modules/diffusionmodules/model.py`.

use super::vae_config::VaeConfig;
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::output::count_nonfinite;
use crate::nn::{
    Conv3x3, GroupNorm, GroupNormConfig, Linear, Loader, MidBlock, Precision, ResnetBlock, StridedConv, UpDecoder, UpDecoderShape,
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
        let shape = UpDecoderShape { top, mid_attention: config.mid_block_add_attention, levels: &levels, out: config.out_channels };
        Ok(VaeDecoder {
            precision: loader.precision(),
            post_quant_conv: match config.use_post_quant_conv {
                true => Some(Linear::load_conv1x1(loader, "post_quant_conv", latent, latent).await?),
                false => None,
            },
            conv_in: Conv3x3::load(loader, "decoder.conv_in", latent, top).await?,
            decoder: UpDecoder::load(loader, &shape, GroupNormConfig { groups: config.norm_num_groups, eps: NORM_EPS }).await?,
        })
    }

    /// `z` `[h, w, latent_channels]`, not scaled, to `[s h, s w, 3]` in f32, -1 to 1 without clamping.
    pub fn forward(&self, rec: &mut Recorder, z: &Tensor) -> Tensor {
        let elem = self.precision.activations;
        let x = rec.scoped("decoder.conv_in", |rec| {
            let z = match &self.post_quant_conv {
                Some(conv) => conv.forward(rec, z, None, Act::None, Elem::F32),
                None => z.clone(),
            };
            self.conv_in.forward(rec, &z, None, Act::None, elem)
        });
        rec.tap("decoder.conv_in", &x);
        self.decoder.forward(rec, &x)
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
}

impl VaeEncoder {
    /// Loads everything below `encoder.` and `quant_conv`.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &VaeConfig) -> Result<VaeEncoder> {
        let norm = GroupNormConfig { groups: config.norm_num_groups, eps: NORM_EPS };
        let (base, top, moments) = (config.block_out_channels[0], config.top_channels(), 2 * config.latent_channels);
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
        })
    }

    /// `x` `[h, w, 3]`, -1 to 1, to `[h / s, w / s, 2 latent_channels]` in f32: mean, then log variance, not clamped.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        let elem = self.precision.activations;
        let mut h = rec.scoped("encoder.conv_in", |rec| self.conv_in.forward(rec, x, None, Act::None, elem));
        rec.tap("encoder.conv_in", &h);
        for (i, (resnets, downsampler)) in self.down_blocks.iter().enumerate() {
            let path = format!("encoder.down_blocks.{i}");
            rec.scoped(&path, |rec| {
                for (r, resnet) in resnets.iter().enumerate() {
                    h = rec.scoped(format!("resnets.{r}"), |rec| resnet.forward(rec, &h));
                }
                if let Some(downsampler) = downsampler {
                    h = rec.scoped("downsamplers.0", |rec| downsampler.forward(rec, &h, elem));
                }
            });
            rec.tap(&path, &h);
        }
        let h = self.mid_block.forward(rec, &h, "encoder.mid_block");
        let affine = rec.scoped("encoder.conv_norm_out", |rec| self.conv_norm_out.affine(rec, &h));
        rec.scoped("encoder.conv_out", |rec| {
            let h = self.conv_out.forward_norm_silu(rec, &h, &affine, None, Elem::F32);
            let moments = match &self.quant_conv {
                Some(conv) => conv.forward(rec, &h, None, Act::None, Elem::F32),
                None => h,
            };
            count_nonfinite(rec, &moments);
            moments
        })
    }
}
