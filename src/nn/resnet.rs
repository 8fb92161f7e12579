//! The residual block of VAE and UNet.

use super::chain::{Op, Skip, Unit};
use super::{Conv3x3, GroupNorm, GroupNormConfig, Linear, Loader, Precision};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;

/// `conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(silu(emb))))) + shortcut(x)`
///
/// The time embedding is in the UNet only; it is added as the bias of `conv1`. On the UNet's way up `x` stands in two tensors, which
/// are not copied together: norm1 takes its statistics from both, and convolutions are sums over both.
///
/// Source: diffusers `models/resnet.py` `ResnetBlock2D`, output scale 1.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    /// One for each tensor that `x` stands in.
    conv1: Vec<Conv3x3>,
    /// With the bias of `conv1` in its own.
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    /// One for each tensor that `x` stands in, or none for the identity.
    conv_shortcut: Vec<Linear>,
}

impl ResnetBlock {
    /// Loads the block at `path`; it has a `conv_shortcut` when `cin` and `cout` differ.
    pub async fn load(loader: &Loader<'_>, path: &str, cin: usize, cout: usize, groups: usize, eps: f32) -> Result<ResnetBlock> {
        ResnetBlock::load_with(loader, path, &[cin], cout, GroupNormConfig { groups, eps }, None).await
    }

    /// [`ResnetBlock::load`] of a block whose input stands in tensors of `sources` channels, with the projection of a time
    /// embedding of `time` channels.
    ///
    /// # Panics
    /// If several sources have `cout` channels together: the input itself would have to be in one piece.
    pub async fn load_with(
        loader: &Loader<'_>,
        path: &str,
        sources: &[usize],
        cout: usize,
        norm: GroupNormConfig,
        time: Option<usize>,
    ) -> Result<ResnetBlock> {
        let GroupNormConfig { groups, eps } = norm;
        let cin: usize = sources.iter().sum();
        assert!(sources.len() == 1 || cin != cout, "a joined input needs a shortcut of its own");
        let shortcut = format!("{path}.conv_shortcut");
        Ok(ResnetBlock {
            norm1: GroupNorm::load(loader, &format!("{path}.norm1"), cin, groups, eps).await?,
            conv1: Conv3x3::load_parts(loader, &format!("{path}.conv1"), sources, cout).await?,
            time_emb_proj: match time {
                Some(time) => Some(time_projection(loader, path, time, cout).await?),
                None => None,
            },
            norm2: GroupNorm::load(loader, &format!("{path}.norm2"), cout, groups, eps).await?,
            conv2: Conv3x3::load(loader, &format!("{path}.conv2"), cout, cout).await?,
            conv_shortcut: match cin == cout {
                true => Vec::new(),
                false => Linear::load_conv1x1_parts(loader, &shortcut, sources, cout).await?,
            },
        })
    }

    /// Its two layers, of a block with one source and without time embedding, the first of which makes plane `first + 1` from plane `first`.
    pub fn units(&self, path: &str, first: usize, elem: Elem) -> [Unit<'_>; 2] {
        let conv = |conv, norm, name| Op::Conv { conv, norm: Some((norm, format!("{path}.{name}"))), act: Act::None };
        let inner = Unit::new(path, conv(&self.conv1[0], &self.norm1, "norm1"), elem);
        let skip = Some(Skip { plane: first, shortcut: self.conv_shortcut.first() });
        [inner, Unit { skip, ..Unit::new(path, conv(&self.conv2, &self.norm2, "norm2"), elem) }]
    }

    /// What the time embedding adds behind `conv1`, bias included: `[1, 1, cout]` in f32, for [`ResnetBlock::forward_with`].
    /// `embedding` is `silu(emb)`, `[1, 1, time]`.
    ///
    /// # Panics
    /// If the block was loaded without a projection.
    pub fn time_bias(&self, rec: &mut Recorder, embedding: &Tensor) -> Tensor {
        let projection = self.time_emb_proj.as_ref().expect("a block with a time embedding");
        projection.forward(rec, embedding, None, Act::None, Elem::F32)
    }

    /// `[h, w, cin]` to `[h, w, cout]`.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        self.forward_with(rec, &[x], None)
    }

    /// [`ResnetBlock::forward`] of the tensors that the input stands in, with the result of [`ResnetBlock::time_bias`].
    pub fn forward_with(&self, rec: &mut Recorder, xs: &[&Tensor], time_bias: Option<&Tensor>) -> Tensor {
        assert_eq!(xs.len(), self.conv1.len(), "resnet: inputs");
        let elem = xs[0].elem;
        let affines = rec.scoped("norm1", |rec| self.norm1.affine_joined(rec, xs));
        let mut sum = None;
        for (n, (x, affine)) in xs.iter().zip(&affines).enumerate() {
            let timed = time_bias.filter(|_| n == 0).map(|bias| self.conv1[n].with_bias(bias));
            let conv = timed.as_ref().unwrap_or(&self.conv1[n]);
            sum = Some(conv.forward_norm_silu(rec, x, affine, sum.as_ref(), elem));
        }
        let h = sum.expect("at least one input");
        let affine = rec.scoped("norm2", |rec| self.norm2.affine(rec, &h));
        let mut shortcut = None;
        for (x, conv) in xs.iter().zip(&self.conv_shortcut) {
            shortcut = Some(conv.forward(rec, x, shortcut.as_ref(), Act::None, elem));
        }
        self.conv2.forward_norm_silu(rec, &h, &affine, Some(shortcut.as_ref().unwrap_or(xs[0])), elem)
    }
}

async fn time_projection(loader: &Loader<'_>, path: &str, time: usize, cout: usize) -> Result<Linear> {
    let name = format!("{path}.time_emb_proj");
    let weight = loader.read(&format!("{name}.weight"), &[cout, time]).await?;
    let mut bias = loader.read(&format!("{name}.bias"), &[cout]).await?;
    let conv = loader.read(&format!("{path}.conv1.bias"), &[cout]).await?;
    bias.iter_mut().zip(conv).for_each(|(b, c)| *b = (*b as f64 + c as f64) as f32);
    let precision = Precision { activations: Elem::F32, ..loader.precision() };
    Linear::from_values(&loader.with(precision), &name, &weight, &bias, time).await
}
