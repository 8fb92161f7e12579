//! The configuration of an SD-family autoencoder (diffusers' `AutoencoderKL`): from its `config.json`, or from the
//! shapes of its tensors where a single-file checkpoint brings none.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py` and `vae.py` at 58eb52c.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::infgen_config::TensorList;
use crate::error::{Error, Result};
use crate::latent::LatentSpace;
use crate::weights::View;

/// Shapes and constants of an AutoencoderKL. [`VaeConfig::default`] is the VAE of SD 1.x and 2.x.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VaeConfig {
    /// Channels of the encoder's picture.
    pub in_channels: usize,
    /// Channels of the decoder's picture.
    pub out_channels: usize,
    /// Channels of the latent; the encoder gives twice as many (mean, log variance).
    pub latent_channels: usize,
    /// Channels of each level from the finest; the sides halve between levels.
    pub block_out_channels: Vec<usize>,
    /// Resnets of each encoder level; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm; their epsilon is 1e-6.
    pub norm_num_groups: usize,
    /// Pipelines hand on `(z - shift_factor) * scaling_factor`.
    pub scaling_factor: f64,
    /// See `scaling_factor`; 0 for SD and SDXL.
    pub shift_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the mid blocks have their self-attention.
    pub mid_block_add_attention: bool,
    /// Whether activations leave f16's range, as those of SDXL's own VAE do. Where the config does not say: whether the
    /// latent space is SDXL's.
    pub force_upcast: bool,
    /// Whether the encoder gives a log variance besides the mean (CompVis' `double_z`).
    #[serde(skip)]
    pub double_z: bool,
    /// Whether the decoder ends before its last norm, with features (CompVis' `give_pre_end`).
    #[serde(skip)]
    pub give_pre_end: bool,
    /// The space of its latents, where the constants or the checkpoint tell.
    pub latent_space: Option<LatentSpace>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: LatentSpace::Sd.scaling_factor(),
            shift_factor: 0.0,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            force_upcast: false,
            double_z: true,
            give_pre_end: false,
            latent_space: Some(LatentSpace::Sd),
        }
    }
}

impl VaeConfig {
    /// Reads diffusers' `config.json`; fields that change nothing here are passed over, absent ones take diffusers'
    /// defaults. `path` stands for the JSON in messages.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        Self::parse(json).map_err(|detail| Error::Config { path: path.to_owned(), detail })
    }

    fn parse(json: &str) -> Result<Self, String> {
        let fields = Fields::parse(json)?;
        fields.only("_class_name", &["AutoencoderKL"])?;
        fields.only("act_fn", &["silu", "swish"])?;
        fields.all("down_block_types", "DownEncoderBlock2D")?;
        fields.all("up_block_types", "UpDecoderBlock2D")?;
        for statistic in ["latents_mean", "latents_std"] {
            if fields.get(statistic).is_some() {
                return Err(format!("`{statistic}` is set: latents normalised channel by channel are not known to this version"));
            }
        }
        let scaling_factor = fields.real("scaling_factor")?.unwrap_or(LatentSpace::Sd.scaling_factor());
        let shift_factor = fields.real("shift_factor")?.unwrap_or(0.0);
        let latent_channels = fields.size("latent_channels")?.unwrap_or(4);
        let latent_space = LatentSpace::from_constants(latent_channels, scaling_factor, shift_factor);
        let config = Self {
            in_channels: fields.size("in_channels")?.unwrap_or(3),
            out_channels: fields.size("out_channels")?.unwrap_or(3),
            latent_channels,
            block_out_channels: fields.sizes("block_out_channels")?.unwrap_or_else(|| vec![64]),
            layers_per_block: fields.size("layers_per_block")?.unwrap_or(1),
            norm_num_groups: fields.size("norm_num_groups")?.unwrap_or(32),
            scaling_factor,
            shift_factor,
            use_quant_conv: fields.flag("use_quant_conv")?.unwrap_or(true),
            use_post_quant_conv: fields.flag("use_post_quant_conv")?.unwrap_or(true),
            mid_block_add_attention: fields.flag("mid_block_add_attention")?.unwrap_or(true),
            force_upcast: fields.flag("force_upcast")?.unwrap_or(latent_space == Some(LatentSpace::Sdxl)),
            latent_space,
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads the sizes off the tensors. What shapes cannot tell is taken from `space` (constants) and from the family's
    /// habit (32 groups).
    ///
    /// # Errors
    /// [`Error::Config`] for shapes that no such autoencoder has, and for 16 latent channels without a `space`.
    pub fn infer(view: &View, space: Option<LatentSpace>) -> Result<Self> {
        Self::inferred(view, space).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View, space: Option<LatentSpace>) -> Result<Self, String> {
        let conv = |name: &str| view.conv(name).ok();
        let levels = |part: &str, side: &str| -> Vec<usize> {
            (0..)
                .map_while(|i| conv(&format!("{part}.{side}_blocks.{i}.resnets.0.conv1")))
                .map(|(out, _)| out)
                .take(MAX_LEVELS + 1)
                .collect()
        };
        let layers = |part: &str, side: &str| {
            (0..=MAX_LAYERS).take_while(|n| view.contains(&format!("{part}.{side}_blocks.0.resnets.{n}.conv1.weight"))).count()
        };
        let (encoder, decoder) = (conv("encoder.conv_in"), conv("decoder.conv_in"));
        let decoder_levels = || levels("decoder", "up").into_iter().rev().collect::<Vec<_>>();
        let block_out_channels = if encoder.is_some() { levels("encoder", "down") } else { decoder_levels() };
        if encoder.is_some() && decoder.is_some() && block_out_channels != decoder_levels() {
            return Err("the encoder and the decoder have different channels".into());
        }
        let layers_per_block = match encoder {
            Some(_) => layers("encoder", "down"),
            None => layers("decoder", "up").saturating_sub(1),
        };
        let latent_channels = match decoder {
            Some((_, latent)) => latent,
            None => view.conv("encoder.conv_out")?.0 / 2,
        };
        let space = match (space, latent_channels) {
            (Some(space), channels) if space.channels() == channels => space,
            (None, 4) => LatentSpace::Sd,
            (Some(space), channels) => {
                return Err(format!("{channels} latent channels, the space `{}` has {}", space.name(), space.channels()));
            }
            (None, channels) => {
                return Err(format!("{channels} latent channels and no config.json: the scaling of these latents is not known"));
            }
        };
        let config = Self {
            in_channels: encoder.map_or(3, |(_, input)| input),
            out_channels: if decoder.is_some() { view.conv("decoder.conv_out")?.0 } else { 3 },
            latent_channels,
            block_out_channels,
            layers_per_block,
            norm_num_groups: 32,
            scaling_factor: space.scaling_factor(),
            shift_factor: space.shift_factor(),
            use_quant_conv: conv("quant_conv").is_some(),
            use_post_quant_conv: conv("post_quant_conv").is_some(),
            mid_block_add_attention: ["encoder", "decoder"]
                .iter()
                .any(|part| view.contains(&format!("{part}.mid_block.attentions.0.group_norm.weight"))),
            force_upcast: space == LatentSpace::Sdxl,
            latent_space: Some(space),
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        for (field, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels != 3 {
                return Err(format!("`{field}` is {channels}, pictures have 3"));
            }
        }
        within("latent_channels", self.latent_channels, 64)?;
        within("layers_per_block", self.layers_per_block, MAX_LAYERS)?;
        within("number of block_out_channels", self.block_out_channels.len(), MAX_LEVELS)?;
        within("norm_num_groups", self.norm_num_groups, 4096)?;
        for &channels in &self.block_out_channels {
            within("block_out_channels", channels, 4096)?;
            if !channels.is_multiple_of(self.norm_num_groups) {
                let groups = self.norm_num_groups;
                return Err(format!("`block_out_channels` holds {channels}, not a multiple of `norm_num_groups` {groups}"));
            }
        }
        if !(self.scaling_factor > 0.0 && self.scaling_factor <= 1e3) {
            return Err(format!("`scaling_factor` is {}, it must lie above 0 and not above 1000", self.scaling_factor));
        }
        if self.shift_factor.is_nan() || self.shift_factor.abs() > 1e3 {
            return Err(format!("`shift_factor` is {}, it must lie between -1000 and 1000", self.shift_factor));
        }
        Ok(())
    }

    /// Pixels a latent value side.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Channels that the encoder gives.
    pub fn moments(&self) -> usize {
        if self.double_z { 2 * self.latent_channels } else { self.latent_channels }
    }

    /// (input, output) channels of the resnets of each encoder level from the finest; all but the last level halve.
    pub fn down_blocks(&self) -> Vec<Vec<(usize, usize)>> {
        walk(self.block_out_channels[0], self.block_out_channels.iter().copied(), self.layers_per_block)
    }

    /// (input, output) channels of the resnets of each decoder level from the coarsest; all but the last level double.
    pub fn up_blocks(&self) -> Vec<Vec<(usize, usize)>> {
        walk(self.top_channels(), self.block_out_channels.iter().rev().copied(), self.layers_per_block + 1)
    }

    /// Channels of the coarsest level and of the mid blocks.
    pub fn top_channels(&self) -> usize {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }

    /// Name (diffusers') and shape of every tensor of the halves asked for.
    pub fn tensors(&self, encoder: bool, decoder: bool) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        let (top, base, latent) = (self.top_channels(), self.block_out_channels[0], self.latent_channels);
        let levels = self.block_out_channels.len();
        if encoder {
            list.conv("encoder.conv_in", base, self.in_channels, 3);
            for (i, resnets) in self.down_blocks().iter().enumerate() {
                let path = format!("encoder.down_blocks.{i}");
                list.resnets(&path, resnets);
                if i + 1 < levels {
                    let channels = self.block_out_channels[i];
                    list.conv(&format!("{path}.downsamplers.0.conv"), channels, channels, 3);
                }
            }
            list.mid_block("encoder", top, self.mid_block_add_attention);
            list.norm("encoder.conv_norm_out", top);
            list.conv("encoder.conv_out", self.moments(), top, 3);
            if self.use_quant_conv {
                list.conv("quant_conv", self.moments(), self.moments(), 1);
            }
        }
        if decoder {
            if self.use_post_quant_conv {
                list.conv("post_quant_conv", latent, latent, 1);
            }
            list.conv("decoder.conv_in", top, latent, 3);
            list.mid_block("decoder", top, self.mid_block_add_attention);
            for (u, resnets) in self.up_blocks().iter().enumerate() {
                let path = format!("decoder.up_blocks.{u}");
                list.resnets(&path, resnets);
                if u + 1 < levels {
                    let channels = self.block_out_channels[levels - 1 - u];
                    list.conv(&format!("{path}.upsamplers.0.conv"), channels, channels, 3);
                }
            }
            if !self.give_pre_end {
                list.norm("decoder.conv_norm_out", base);
                list.conv("decoder.conv_out", self.out_channels, base, 3);
            }
        }
        list.0
    }
}

pub(super) const MAX_LEVELS: usize = 8;
pub(super) const MAX_LAYERS: usize = 16;

fn walk(first: usize, channels: impl Iterator<Item = usize>, layers: usize) -> Vec<Vec<(usize, usize)>> {
    let mut previous = first;
    channels
        .map(|out| {
            let first = (std::mem::replace(&mut previous, out), out);
            std::iter::once(first).chain(std::iter::repeat_n((out, out), layers - 1)).collect()
        })
        .collect()
}

/// A diffusers config: an object in which `null` means absent.
pub(super) struct Fields(serde_json::Map<String, Value>);

impl Fields {
    pub fn parse(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map(Self).map_err(|e| format!("not a JSON object of fields: {e}"))
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn read<T>(&self, field: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        let wrong = |value: &Value| format!("`{field}` is {}, {what} is needed", shorten(value));
        self.get(field).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    pub fn size(&self, field: &str) -> Result<Option<usize>, String> {
        self.read(field, "a whole number", size)
    }

    pub fn sizes(&self, field: &str) -> Result<Option<Vec<usize>>, String> {
        self.read(field, "a list of whole numbers", |value| value.as_array()?.iter().map(size).collect())
    }

    pub fn real(&self, field: &str) -> Result<Option<f64>, String> {
        self.read(field, "a number", Value::as_f64)
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>, String> {
        self.read(field, "true or false", Value::as_bool)
    }

    /// Refuses any value but `allowed`.
    pub fn only(&self, field: &str, allowed: &[&str]) -> Result<(), String> {
        let what = format!("\"{}\"", allowed.join("\" or \""));
        self.read(field, &what, |value| value.as_str().filter(|v| allowed.contains(v)).map(drop)).map(drop)
    }

    /// Refuses a list with any other entry than `only`.
    fn all(&self, field: &str, only: &str) -> Result<(), String> {
        let all = |value: &Value| value.as_array().filter(|list| list.iter().all(|v| v == only)).map(drop);
        self.read(field, &format!("a list of \"{only}\""), all).map(drop)
    }
}

/// Refuses sizes of 0 and above `max`.
pub(super) fn within(field: &str, value: usize, max: usize) -> Result<(), String> {
    match value {
        v if (1..=max).contains(&v) => Ok(()),
        v => Err(format!("`{field}` is {v}, it must lie between 1 and {max}")),
    }
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64()?.try_into().ok()
}

/// The value as it stands, cut to a line's worth.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(57).chain("...".chars()).collect() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::tests::bytes_of;
    use crate::weights::{Dtype, Weights, vae_keys};

    const SD15: &str = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
        "DownEncoderBlock2D", "DownEncoderBlock2D"], "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"]}"#;

    fn parse(json: &str) -> Result<VaeConfig, String> {
        VaeConfig::from_json(json, Path::new("vae/config.json")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_sd_vae_has_248_tensors_and_83653863_parameters() {
        let tensors = VaeConfig::default().tensors(true, true);
        assert_eq!(tensors.len(), 248);
        assert_eq!(tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), 83_653_863);
    }

    #[test]
    fn published_configs_are_read() {
        assert_eq!(parse(SD15).unwrap(), VaeConfig::default());
        let sdxl = SD15.replace('{', r#"{"scaling_factor": 0.13025, "force_upcast": true, "latents_mean": null, "#);
        let sdxl = parse(&sdxl).unwrap();
        assert_eq!((sdxl.latent_space, sdxl.force_upcast), (Some(LatentSpace::Sdxl), true));
        let fixed = SD15.replace('{', r#"{"scaling_factor": 0.13025, "force_upcast": false, "#);
        assert!(!parse(&fixed).unwrap().force_upcast);
        let flux = SD15
            .replace(r#""latent_channels": 4"#, r#""latent_channels": 16"#)
            .replace('{', r#"{"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": false, "use_post_quant_conv": false, "#);
        let flux = parse(&flux).unwrap();
        assert_eq!((flux.latent_space, flux.shift_factor), (Some(LatentSpace::Flux), 0.1159));
        assert_eq!(flux.tensors(true, true).len(), 244);
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (json, field) in [
            (r#"{"_class_name": "AutoencoderTiny"}"#, "_class_name"),
            (r#"{"act_fn": "mish"}"#, "act_fn"),
            (r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#, "down_block_types"),
            (r#"{"up_block_types": "UpDecoderBlock2D"}"#, "up_block_types"),
            (r#"{"latents_mean": [0, 0, 0, 0]}"#, "latents_mean"),
            (r#"{"block_out_channels": []}"#, "block_out_channels"),
            (r#"{"block_out_channels": [64, 1e9]}"#, "block_out_channels"),
            (r#"{"block_out_channels": [64, 100]}"#, "block_out_channels"),
            (r#"{"block_out_channels": [9223372036854775807]}"#, "block_out_channels"),
            (r#"{"layers_per_block": 0}"#, "layers_per_block"),
            (r#"{"layers_per_block": "2"}"#, "layers_per_block"),
            (r#"{"norm_num_groups": 0}"#, "norm_num_groups"),
            (r#"{"latent_channels": 0}"#, "latent_channels"),
            (r#"{"in_channels": 4}"#, "in_channels"),
            (r#"{"scaling_factor": 0}"#, "scaling_factor"),
            (r#"{"shift_factor": 1e30}"#, "shift_factor"),
            (r#"{"force_upcast": "yes"}"#, "force_upcast"),
            ("[]", "JSON object"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(field) && error.starts_with("vae/config.json: "), "{json}: {error}");
        }
    }

    #[test]
    fn shapes_alone_give_the_config_back() {
        let config = VaeConfig { block_out_channels: vec![32, 64], layers_per_block: 3, ..VaeConfig::default() };
        for (encoder, decoder) in [(true, true), (true, false), (false, true)] {
            let tensors = config.tensors(encoder, decoder);
            let data = vec![0; 4 * 64 * 64 * 9];
            let list: Vec<_> = tensors
                .iter()
                .map(|(name, shape)| (&**name, Dtype::F32, &shape[..], &data[..4 * shape.iter().product::<usize>()]))
                .collect();
            let weights = Weights::from_bytes(bytes_of(&list, &[]), "m").unwrap();
            let view = vae_keys::view(&weights).unwrap();
            let inferred = VaeConfig::infer(&view, None).unwrap();
            let expected = VaeConfig { use_quant_conv: encoder, use_post_quant_conv: decoder, ..config.clone() };
            assert_eq!(inferred, expected);
            view.check(&inferred.tensors(encoder, decoder)).unwrap();
            let sdxl = VaeConfig::infer(&view, Some(LatentSpace::Sdxl)).unwrap();
            assert_eq!((sdxl.scaling_factor, sdxl.force_upcast), (0.13025, true));
            assert!(VaeConfig::infer(&view, Some(LatentSpace::Flux)).unwrap_err().to_string().contains("4 latent channels"));
        }
    }
}
