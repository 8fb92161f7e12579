//! What the VAE's decoder and InfGen have in common: mid block, up blocks, output convolution.

use super::chain::{Op, Unit};
use super::{Conv3x3, GroupNorm, Loader, ResnetBlock, SelfAttention, UpsampleConv};
use crate::error::Result;
use crate::gpu::Elem;
use crate::kernels::Act;

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
    attention: Option<SelfAttention>,
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
                true => Some(SelfAttention::load(loader, &format!("{path}.attentions.0"), channels, 1, norm).await?),
                false => None,
            },
        })
    }

    /// Appends its layers. Taps: `{path}.resnets.0`, `{path}.attentions.0`, `{path}.resnets.1`.
    pub fn units<'a>(&'a self, units: &mut Vec<Unit<'a>>, path: &str, elem: Elem) {
        let named = |name: &str| format!("{path}.{name}");
        append(units, self.resnets[0].units(&named("resnets.0"), units.len(), elem), Some(named("resnets.0")));
        if let Some(attention) = &self.attention {
            let path = named("attentions.0");
            append(units, [Unit::new(&path, Op::Attention(attention), elem)], Some(path));
        }
        append(units, self.resnets[1].units(&named("resnets.1"), units.len(), elem), Some(named("resnets.1")));
    }
}

/// Appends layers, the last of which can be tapped as `tap`.
pub fn append<'a>(units: &mut Vec<Unit<'a>>, more: impl IntoIterator<Item = Unit<'a>>, tap: Option<String>) {
    units.extend(more);
    if let Some(last) = units.last_mut() {
        last.tap = tap;
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
    /// `conv_norm_out` and `conv_out`.
    output: Option<(GroupNorm, Conv3x3)>,
}

/// Shape of an [`UpDecoder`]: (input, output) channels of each resnet of each level, and whether the level upsamples.
pub struct UpDecoderShape<'a> {
    /// Channels at the coarsest level.
    pub top: usize,
    /// Whether the mid block has its attention.
    pub mid_attention: bool,
    /// Levels from the coarsest.
    pub levels: &'a [(Vec<(usize, usize)>, bool)],
    /// Channels of the picture; none: it ends with the features before the last norm.
    pub out: Option<usize>,
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
            output: match shape.out {
                Some(out) => Some((
                    GroupNorm::load(loader, "decoder.conv_norm_out", channels, norm.groups, norm.eps).await?,
                    Conv3x3::load(loader, "decoder.conv_out", channels, out).await?,
                )),
                None => None,
            },
        })
    }

    /// Appends its layers: from features `[h, w, top]` to pixels `[s h, s w, 3]` in f32 (or features in `elem`), s being 2 to the number of levels
    /// that upsample. Returns the index of the plane behind the mid block.
    pub fn units<'a>(&'a self, units: &mut Vec<Unit<'a>>, elem: Elem) -> usize {
        self.mid_block.units(units, "decoder.mid_block", elem);
        let features = units.len();
        for (u, block) in self.up_blocks.iter().enumerate() {
            let path = format!("decoder.up_blocks.{u}");
            for (r, resnet) in block.resnets.iter().enumerate() {
                append(units, resnet.units(&format!("{path}.resnets.{r}"), units.len(), elem), None);
            }
            if let Some(upsampler) = &block.upsampler {
                append(units, [Unit::new(format!("{path}.upsamplers.0"), Op::Upsample(upsampler), elem)], None);
            }
            append(units, [], Some(path));
        }
        if let Some((norm, conv)) = &self.output {
            let op = Op::Conv { conv, norm: Some((norm, "decoder.conv_norm_out".into())), act: Act::None };
            units.push(Unit::new("decoder.conv_out", op, Elem::F32));
        }
        units.last_mut().expect("not empty").watched = true;
        features
    }
}
