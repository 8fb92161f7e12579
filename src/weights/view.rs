//! One model's tensors under the names that the model uses.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::lora::Patches;
use super::unet_keys::Levels;
use super::vae_keys::{ldm_name, old_attention_name};
use super::{Dtype, Info, Weights, clip_keys, dit_keys, infd_keys, unet_keys};
use crate::error::{Error, Result};

/// The tensors of one model inside [`Weights`], asked for by the model's own names.
///
/// Made by [`Weights::view`] (names as in the file), and by the `view` functions of [`vae_keys`](super::vae_keys),
/// [`taesd_keys`](super::taesd_keys), [`unet_keys`], [`clip_keys`] and [`dit_keys`] (diffusers' names, whatever the file uses). Errors name the tensor as
/// it is, or would be, called in the file.
#[derive(Debug, Clone)]
pub struct View<'a> {
    weights: &'a Weights,
    prefix: String,
    naming: Naming,
    patches: Option<Arc<Patches>>,
}

/// How names of the model become names in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Naming {
    /// The same.
    Plain,
    /// AutoencoderKL: the same, or the old attention names.
    Vae,
    /// AutoencoderKL in CompVis' names; up blocks count backwards from `up_blocks`.
    Ldm { up_blocks: usize },
    /// TAESD as a bare `nn.Sequential`: `encoder.layers.N` is `{N + offset}`.
    Sequential { offset: usize },
    /// A UNet in CompVis' names.
    UnetLdm(Arc<Levels>),
    /// A text encoder in transformers' names: the same, but that its projection lies beside `text_model.`.
    Clip,
    /// A text encoder in OpenCLIP's names, with q, k and v fused.
    OpenClip,
    /// A DiT in the original's names, with q, k and v fused.
    Dit,
    /// INFD's autoencoder and renderer; up blocks count backwards from `up_blocks`.
    Infd { up_blocks: usize },
}

impl<'a> View<'a> {
    pub(super) fn plain(weights: &'a Weights, prefix: &str) -> Self {
        Self::new(weights, prefix, Naming::Plain)
    }

    pub(super) fn new(weights: &'a Weights, prefix: &str, naming: Naming) -> Self {
        Self { weights, prefix: prefix.to_owned(), naming, patches: None }
    }

    /// The same tensors with changes that [`View::get`] makes as it reads them.
    pub fn patched(self, patches: Arc<Patches>) -> Self {
        Self { patches: Some(patches), ..self }
    }

    /// The weights behind it.
    pub fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// The file or folder, for messages.
    pub fn path(&self) -> &'a Path {
        self.weights.path()
    }

    /// What the file calls the tensor that the model calls `name`.
    pub fn file_name(&self, name: &str) -> String {
        let own = || format!("{}{name}", self.prefix);
        match &self.naming {
            Naming::Plain => own(),
            Naming::UnetLdm(levels) => unet_keys::ldm_name(name, levels).map_or_else(own, |ldm| format!("{}{ldm}", self.prefix)),
            Naming::Clip if name.starts_with("text_projection.") => format!("{}{name}", self.prefix.trim_end_matches("text_model.")),
            Naming::Clip => own(),
            Naming::OpenClip => clip_keys::open_clip_name(name).map_or_else(own, |(open_clip, _)| format!("{}{open_clip}", self.prefix)),
            Naming::Dit => dit_keys::original_name(name).map_or_else(own, |(original, _)| format!("{}{original}", self.prefix)),
            Naming::Vae => {
                let old = old_attention_name(name).map(|old| format!("{}{old}", self.prefix));
                old.filter(|old| self.weights.contains(old)).unwrap_or_else(own)
            }
            Naming::Ldm { up_blocks } => ldm_name(name, *up_blocks).map_or_else(own, |ldm| format!("{}{ldm}", self.prefix)),
            Naming::Infd { up_blocks } => infd_keys::own_name(name, *up_blocks).unwrap_or_else(own),
            Naming::Sequential { offset } => {
                let numbered = name.splitn(4, '.').collect::<Vec<_>>();
                match numbered[..] {
                    [_, "layers", n, rest] => match n.parse::<usize>() {
                        Ok(n) => format!("{}{}.{rest}", self.prefix, n + offset),
                        Err(_) => own(),
                    },
                    _ => own(),
                }
            }
        }
    }

    /// The file's names of all its tensors, whatever model they are of.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.weights.names()
    }

    /// Whether the file has the tensor that the model calls `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.file_name(name))
    }

    /// Type and shape as the file has them; [`View::get`] may accept another shape (see there).
    pub fn info(&self, name: &str) -> Option<Info<'a>> {
        self.weights.info(&self.file_name(name))
    }

    /// Output and input channels of the convolution `name`, for configurations that are read off the tensors; an error says what it lacks.
    pub(crate) fn conv(&self, name: &str) -> std::result::Result<(usize, usize), String> {
        let weight = format!("{name}.weight");
        match self.info(&weight).map(|info| info.shape) {
            Some([out, input, ..]) => Ok((*out, *input)),
            _ => Err(format!("`{}` is missing or no convolution", self.file_name(&weight))),
        }
    }

    /// A tensor as f32, as [`Weights::get`]. The linear maps of an autoencoder's attention are taken as `[C, C]` or as
    /// 1x1 convolutions `[C, C, 1, 1]`, which older files hold.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        super::now(self.get_async(name, shape), self.path())
    }

    /// [`View::get`] that waits for bytes on their way.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub async fn get_async(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = self.read(name, shape).await?;
        match &self.patches {
            Some(patches) => patches.apply(name, shape, &mut values).map(|()| values),
            None => Ok(values),
        }
    }

    async fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file_name = self.file_name(name);
        if let Some(third) = self.third(name) {
            let fused = fused(shape);
            let fused =
                self.weights.info(&file_name).filter(|info| self.same_shape(name, &fused, info.shape)).map_or(&*fused, |info| info.shape);
            // Rows of one head after the other, or of all heads.
            let run = self.own_heads().unwrap_or(shape[0]);
            let mut values = Vec::new();
            for first in (0..shape[0]).step_by(run) {
                let start = 3 * first + third * run;
                values.extend(self.weights.get_rows(&file_name, fused, start..start + run).await?);
            }
            return Ok(values);
        }
        if let (true, [rows, columns]) = (self.is_transposed(name), shape) {
            let turned = self.weights.get_async(&file_name, &[*columns, *rows]).await?;
            return Ok((0..rows * columns).map(|i| turned[i % columns * rows + i / columns]).collect());
        }
        match self.weights.info(&file_name) {
            Some(info) if self.same_shape(name, shape, info.shape) => self.weights.get_async(&file_name, info.shape).await,
            _ => self.weights.get_async(&file_name, shape).await,
        }
    }

    /// Some rows of a tensor that the file holds as it is, see [`Weights::get_rows`].
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub async fn get_rows(&self, name: &str, shape: &[usize], rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
        self.weights.get_rows(&self.file_name(name), shape, rows).await
    }

    /// Width of the heads of a UNet whose attention is self-attention alone, with q, k and v fused head by head.
    pub(crate) fn own_heads(&self) -> Option<usize> {
        match &self.naming {
            Naming::UnetLdm(levels) => levels.own_heads,
            _ => None,
        }
    }

    /// Which third of a fused tensor `name` is; `None` where it is a tensor of its own.
    fn third(&self, name: &str) -> Option<usize> {
        match &self.naming {
            Naming::OpenClip => clip_keys::open_clip_name(name)?.1,
            Naming::Dit => dit_keys::original_name(name)?.1,
            Naming::UnetLdm(levels) if levels.own_heads.is_some() => unet_keys::third(name),
            _ => None,
        }
    }

    /// A tensor of the file, where this model's names are, that is none of `tensors`, nor one that the model does not use (by the file's name).
    pub fn surplus(&self, tensors: &[(String, Vec<usize>)], unused: fn(&str) -> bool) -> Option<&'a str> {
        let known: HashSet<String> = tensors.iter().map(|(name, _)| self.file_name(name)).collect();
        self.names().find(|name| name.starts_with(&self.prefix) && !known.contains(*name) && !unused(name))
    }

    /// Whether the file has `name` with inputs as rows.
    fn is_transposed(&self, name: &str) -> bool {
        self.naming == Naming::OpenClip && clip_keys::is_transposed(name)
    }

    /// Checks that all of `tensors` are there with these shapes and a type that can be read, without reading any data.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`]: the first in the order of `tensors`.
    pub fn check(&self, tensors: &[(String, Vec<usize>)]) -> Result<()> {
        for (name, shape) in tensors {
            let file_name = self.file_name(name);
            let entry = self.weights.entry(&file_name)?;
            let shape = match shape[..] {
                _ if self.third(name).is_some() => &fused(shape),
                [rows, columns] if self.is_transposed(name) => &vec![columns, rows],
                _ => shape,
            };
            if !self.same_shape(name, shape, &entry.shape) {
                return Err(self.weights.wrong_shape(&file_name, shape, &entry.shape));
            }
            if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(self.weights.wrong_type(&file_name, entry.dtype));
            }
        }
        Ok(())
    }

    /// [`Error::Config`] unless the tensor is stored as f32.
    pub(crate) fn require_f32(&self, name: &str) -> Result<()> {
        let file_name = self.file_name(name);
        match self.weights.entry(&file_name)?.dtype {
            Dtype::F32 => Ok(()),
            other => {
                let detail = format!("tensor `{file_name}` has type {other}; this one must be stored as F32");
                Err(Error::Config { path: self.path().to_owned(), detail })
            }
        }
    }

    fn same_shape(&self, name: &str, expected: &[usize], got: &[usize]) -> bool {
        let convs = matches!(self.naming, Naming::Vae | Naming::Ldm { .. } | Naming::Infd { .. }) || self.own_heads().is_some();
        let conv_as_linear = convs
            && name.contains(".attentions.")
            && matches!((expected, got), ([a, b], [c, d, ones @ ..]) if (a, b) == (c, d) && matches!(ones, [1] | [1, 1]));
        expected == got || conv_as_linear
    }
}

/// Shape of the tensor that holds three of `shape` one after the other.
fn fused(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[0] *= 3;
    shape
}
