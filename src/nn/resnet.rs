//! The residual block of the VAE's encoder and decoder, without time embedding.

use super::chain::{Op, Skip, Unit};
use super::{Conv3x3, GroupNorm, Linear, Loader};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;

/// `conv2(silu(norm2(conv1(silu(norm1(x)))))) + shortcut(x)`
///
/// Source: diffusers `models/resnet.py` `ResnetBlock2D` with `temb_channels=None`, output scale 1.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Linear>,
}

impl ResnetBlock {
    /// Loads the block at `path`; it has a `conv_shortcut` when `cin` and `cout` differ.
    pub async fn load(loader: &Loader<'_>, path: &str, cin: usize, cout: usize, groups: usize, eps: f32) -> Result<ResnetBlock> {
        Ok(ResnetBlock {
            norm1: GroupNorm::load(loader, &format!("{path}.norm1"), cin, groups, eps).await?,
            conv1: Conv3x3::load(loader, &format!("{path}.conv1"), cin, cout).await?,
            norm2: GroupNorm::load(loader, &format!("{path}.norm2"), cout, groups, eps).await?,
            conv2: Conv3x3::load(loader, &format!("{path}.conv2"), cout, cout).await?,
            conv_shortcut: match cin == cout {
                true => None,
                false => Some(Linear::load_conv1x1(loader, &format!("{path}.conv_shortcut"), cin, cout).await?),
            },
        })
    }

    /// Its two layers, the first of which makes plane `first + 1` from plane `first`.
    pub fn units(&self, path: &str, first: usize, elem: Elem) -> [Unit<'_>; 2] {
        let conv = |conv, norm, name| Op::Conv { conv, norm: Some((norm, format!("{path}.{name}"))), act: Act::None };
        let inner = Unit::new(path, conv(&self.conv1, &self.norm1, "norm1"), elem);
        let skip = Some(Skip { plane: first, shortcut: self.conv_shortcut.as_ref() });
        [inner, Unit { skip, ..Unit::new(path, conv(&self.conv2, &self.norm2, "norm2"), elem) }]
    }

    /// `[h, w, cin]` to `[h, w, cout]`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        let elem = x.elem;
        let affine = rec.scoped("norm1", |rec| self.norm1.affine(rec, x));
        let h = self.conv1.forward_norm_silu(rec, x, &affine, None, elem);
        let affine = rec.scoped("norm2", |rec| self.norm2.affine(rec, &h));
        let shortcut = self.conv_shortcut.as_ref().map(|conv| conv.forward(rec, x, None, Act::None, elem));
        self.conv2.forward_norm_silu(rec, &h, &affine, Some(shortcut.as_ref().unwrap_or(x)), elem)
    }
}
