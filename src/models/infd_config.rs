//! The shape of INFD's autoencoder and renderer (Image Neural Field Diffusion, arXiv:2406.07480), read off its tensors: the files bring no config.
//!
//! Source: yinboc/infd `models/infd_base.py`, `models/vqgan/utils.py`, `models/renderers/wrappers.py` at b79aafe.

use serde::Serialize;

use super::infgen_config::TensorList;
use super::vae_config::{MAX_LAYERS, MAX_LEVELS, VaeConfig, within};
use crate::error::{Error, Result};
use crate::weights::View;

/// Shapes of INFD's autoencoder, which ends in features, and of the renderer that makes pictures of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InfdConfig {
    /// The autoencoder; its groups are 32 everywhere, in the renderer too.
    pub autoencoder: VaeConfig,
    /// Whether the encoder is there.
    pub encoder: bool,
    /// Number of codes that latents are rounded to before they are decoded; none: they are taken as they are.
    pub codes: Option<usize>,
    /// Channels of the renderer.
    pub renderer_channels: usize,
    /// Resnets of the renderer.
    pub renderer_layers: usize,
}

impl InfdConfig {
    /// Offsets and sizes behind the features that the renderer takes.
    pub const COORDINATES: usize = 4;

    /// Reads the sizes off the tensors of `view`.
    ///
    /// # Errors
    /// [`Error::Config`] for shapes that no such model has.
    pub fn infer(view: &View) -> Result<Self> {
        Self::inferred(view).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View) -> Result<Self, String> {
        // From the coarsest; the view counts as many levels as there are.
        let levels: Vec<usize> =
            (0..=MAX_LEVELS).map_while(|u| view.conv(&format!("decoder.up_blocks.{u}.resnets.0.conv1")).ok()).map(|(out, _)| out).collect();
        let layers = (0..=MAX_LAYERS).take_while(|n| view.contains(&format!("decoder.up_blocks.0.resnets.{n}.conv1.weight"))).count();
        let codes = view.info("quantizer.embedding.weight").map(|info| info.shape.first().copied().unwrap_or(0));
        let (renderer_channels, taken) = view.conv("renderer.net.model.0")?;
        let config = Self {
            autoencoder: VaeConfig {
                latent_channels: view.conv("decoder.conv_in")?.1,
                block_out_channels: levels.into_iter().rev().collect(),
                layers_per_block: layers.saturating_sub(1),
                scaling_factor: 1.0,
                double_z: false,
                give_pre_end: true,
                latent_space: None,
                ..VaeConfig::default()
            },
            encoder: view.contains("encoder.conv_in.weight"),
            codes,
            renderer_channels,
            renderer_layers: (1..=MAX_LAYERS).take_while(|n| view.contains(&format!("renderer.net.model.{n}.conv1.weight"))).count(),
        };
        config.autoencoder.validate()?;
        within("renderer channels", renderer_channels, 4096)?;
        if let Some(codes) = codes {
            within("number of codes", codes, 1 << 20)?;
        }
        if !renderer_channels.is_multiple_of(config.autoencoder.norm_num_groups) {
            return Err(format!("the renderer has {renderer_channels} channels, not a multiple of 32"));
        }
        if !matches!(config.renderer_layers, 2 | 3) {
            return Err(format!("the renderer has {} resnets one after the other, the known ones have 2 or 3", config.renderer_layers));
        }
        let given = config.features() + Self::COORDINATES;
        if taken != given {
            return Err(format!(
                "the renderer takes {taken} channels, {} features with offsets and sizes are {given}: sinusoids of coordinates are not known to this version",
                config.features()
            ));
        }
        Ok(config)
    }

    /// Channels of the features.
    pub fn features(&self) -> usize {
        self.autoencoder.block_out_channels[0]
    }

    /// Name and shape of every tensor of the halves asked for.
    pub fn tensors(&self, encoder: bool, decoder: bool) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList(self.autoencoder.tensors(encoder, decoder));
        if decoder {
            if let Some(codes) = self.codes {
                list.push("quantizer.embedding.weight", &[codes, self.autoencoder.latent_channels]);
            }
            let width = self.renderer_channels;
            list.conv("renderer.net.model.0", width, self.features() + Self::COORDINATES, 3);
            for n in 1..=self.renderer_layers {
                for half in ["1", "2"] {
                    list.norm(&format!("renderer.net.model.{n}.norm{half}"), width);
                    list.conv(&format!("renderer.net.model.{n}.conv{half}"), width, width, 3);
                }
            }
            list.norm("renderer.net.norm_out", width);
            list.conv("renderer.net.conv_out", 3, width, 3);
        }
        list.0
    }
}
