//! What the VAE's decoder and InfGen have in common: mid block, up blocks, output convolution.

use super::{Conv3x3, GroupNorm, Loader, MidAttention, ResnetBlock, UpsampleConv};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};

/// Groups and epsilon that all group normalisations of a network share.
#[derive(Debug, Clone, Copy)]
pub struct GroupNormConfig {
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

/// Resnet, attention, resnet at the coarsest level.
///
/// Source: diffusers `models/unets/unet_2d_blocks.py` `UNetMidBlock2D`.
#[derive(Debug)]
pub struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<MidAttention>,
}

impl MidBlock {
    /// Loads the block at `path`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, attention: bool, norm: GroupNormConfig) -> Result<MidBlock> {
        let GroupNormConfig { groups, eps } = norm;
        Ok(MidBlock {
            resnets: [
                ResnetBlock::load(loader, &format!("{path}.resnets.0"), channels, channels, groups, eps).await?,
                ResnetBlock::load(loader, &format!("{path}.resnets.1"), channels, channels, groups, eps).await?,
            ],
            attention: match attention {
                true => Some(MidAttention::load(loader, &format!("{path}.attentions.0"), channels, groups, eps).await?),
                false => None,
            },
        })
    }

    /// `[h, w, c]` to the same shape. Taps: `{path}.resnets.0`, `{path}.attentions.0`, `{path}.resnets.1`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, path: &str) -> Tensor {
        rec.scoped(path, |rec| {
            let mut h = rec.scoped("resnets.0", |rec| self.resnets[0].forward(rec, x));
            rec.tap(&format!("{path}.resnets.0"), &h);
            if let Some(attention) = &self.attention {
                h = rec.scoped("attentions.0", |rec| attention.forward(rec, &h));
                rec.tap(&format!("{path}.attentions.0"), &h);
            }
            let h = rec.scoped("resnets.1", |rec| self.resnets[1].forward(rec, &h));
            rec.tap(&format!("{path}.resnets.1"), &h);
            h
        })
    }
}

/// Resnets of one level, then the doubling of the sides.
///
/// Source: diffusers `UpDecoderBlock2D`.
#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<UpsampleConv>,
}

/// Mid block, up blocks, `conv_norm_out`, SiLU, `conv_out`: from features at the coarsest level to pixels.
///
/// Source: diffusers `models/autoencoders/vae.py` `Decoder`.
#[derive(Debug)]
pub struct UpDecoder {
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

/// Shape of an [`UpDecoder`]: (input, output) channels of each resnet of each level, and whether the level upsamples.
pub struct UpDecoderShape<'a> {
    /// Channels at the coarsest level.
    pub top: usize,
    /// Whether the mid block has its attention.
    pub mid_attention: bool,
    /// Levels from the coarsest.
    pub levels: &'a [(Vec<(usize, usize)>, bool)],
    /// Channels of the picture.
    pub out: usize,
}

impl UpDecoder {
    /// Loads everything below `decoder.`, but for `decoder.conv_in`.
    pub async fn load(loader: &Loader<'_>, shape: &UpDecoderShape<'_>, norm: GroupNormConfig) -> Result<UpDecoder> {
        let mut up_blocks = Vec::new();
        let mut channels = shape.top;
        for (u, (resnets, upsample)) in shape.levels.iter().enumerate() {
            let path = format!("decoder.up_blocks.{u}");
            let mut block = UpBlock { resnets: Vec::new(), upsampler: None };
            for (r, &(cin, cout)) in resnets.iter().enumerate() {
                let path = format!("{path}.resnets.{r}");
                block.resnets.push(ResnetBlock::load(loader, &path, cin, cout, norm.groups, norm.eps).await?);
                channels = cout;
            }
            if *upsample {
                block.upsampler = Some(UpsampleConv::load(loader, &format!("{path}.upsamplers.0.conv"), (channels, channels), true).await?);
            }
            up_blocks.push(block);
        }
        Ok(UpDecoder {
            mid_block: MidBlock::load(loader, "decoder.mid_block", shape.top, shape.mid_attention, norm).await?,
            up_blocks,
            conv_norm_out: GroupNorm::load(loader, "decoder.conv_norm_out", channels, norm.groups, norm.eps).await?,
            conv_out: Conv3x3::load(loader, "decoder.conv_out", channels, shape.out).await?,
        })
    }

    /// Features `[h, w, top]` to pixels `[s h, s w, 3]` in f32, s being 2 to the number of levels that upsample.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        let elem = x.elem;
        let mut h = self.mid_block.forward(rec, x, "decoder.mid_block");
        for (u, block) in self.up_blocks.iter().enumerate() {
            let path = format!("decoder.up_blocks.{u}");
            rec.scoped(&path, |rec| {
                for (r, resnet) in block.resnets.iter().enumerate() {
                    h = rec.scoped(format!("resnets.{r}"), |rec| resnet.forward(rec, &h));
                }
                if let Some(upsampler) = &block.upsampler {
                    h = rec.scoped("upsamplers.0", |rec| upsampler.forward(rec, &h, elem));
                }
            });
            rec.tap(&path, &h);
        }
        let affine = rec.scoped("decoder.conv_norm_out", |rec| self.conv_norm_out.affine(rec, &h));
        rec.scoped("decoder.conv_out", |rec| {
            let image = self.conv_out.forward_norm_silu(rec, &h, &affine, None, Elem::F32);
            crate::kernels::output::count_nonfinite(rec, &image);
            image
        })
    }
}
