//! Normalisations.

use super::Loader;
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::group_norm::{self, GroupNormWeights, group_norm_joined, norm_apply};
use crate::kernels::layer_norm::{LayerNormWeights, layer_norm};

/// `torch.nn.GroupNorm`, with an optional SiLU after it.
#[derive(Debug)]
pub struct GroupNorm(GroupNormWeights);

impl GroupNorm {
    /// Loads `{path}.weight` and `{path}.bias`, both `[channels]`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, groups: usize, eps: f32) -> Result<GroupNorm> {
        let mut vectors = Vec::new();
        for name in [format!("{path}.weight"), format!("{path}.bias")] {
            vectors.push(loader.upload_vector(&name, &loader.read(&name, &[channels]).await?).await?);
        }
        let (bias, weight) = (vectors.remove(1), vectors.remove(0));
        Ok(GroupNorm(GroupNormWeights { weight, bias, groups, eps }))
    }

    /// Scale and shift per channel that normalise `x` (`[h, w, c]`) over the whole plane, for a kernel that applies them as
    /// it reads `x`. A non-finite value in `x` makes the run fail.
    pub fn affine(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        group_norm::group_norm(rec, x, &self.0)
    }

    /// [`GroupNorm::affine`] of a plane of this shape (`(h, w, c)`) from the statistics of its block rows
    /// ([`group_norm::statistics`]).
    pub fn fold(&self, rec: &mut Recorder, rows: &Tensor, shape: (usize, usize, usize)) -> Tensor {
        group_norm::fold(rec, rows, shape, &self.0)
    }

    /// [`GroupNorm::affine`] of one or two tensors as if their channels stood side by side in one; one result for each.
    pub fn affine_joined(&self, rec: &mut Recorder, xs: &[&Tensor]) -> Vec<Tensor> {
        group_norm_joined(rec, xs, &self.0)
    }

    /// Normalises `x` (`[h, w, c]`) over the whole plane. A non-finite value in `x` makes the run fail.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, silu: bool, elem: Elem) -> Tensor {
        let affine = self.affine(rec, x);
        norm_apply(rec, x, &affine, silu, elem)
    }
}

/// `torch.nn.LayerNorm` over the channels of each token.
#[derive(Debug)]
pub struct LayerNorm(LayerNormWeights);

impl LayerNorm {
    /// Loads `{path}.weight` and `{path}.bias`, both `[channels]`.
    pub async fn load(loader: &Loader<'_>, path: &str, channels: usize, eps: f32) -> Result<LayerNorm> {
        let mut values = loader.read(&format!("{path}.weight"), &[channels]).await?;
        values.extend(loader.read(&format!("{path}.bias"), &[channels]).await?);
        let affine = loader.upload(path, &values, channels, Elem::F32).await?;
        Ok(LayerNorm(LayerNormWeights { affine, eps }))
    }

    /// A new tensor of `x`'s shape.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, elem: Elem) -> Tensor {
        layer_norm(rec, x, &self.0, elem)
    }
}
