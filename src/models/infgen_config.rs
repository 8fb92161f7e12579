//! The configuration of an InfGen decoder: `config.json`, or the `infgen_config` of the weights' metadata.
//!
//! Paper: arXiv:2509.10441. The authors have published neither code nor weights, so the file format is this project's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::taesd_config::{MAX_BLOCKS, MAX_CHANNELS, MAX_STAGES, TaesdConfig};
use crate::error::{Error, Result, explain_json};
use crate::latent::LatentSpace;
use crate::weights::taesd_keys::Half;
use crate::weights::{View, Weights};

/// Key of the safetensors metadata that holds the config of a single-file decoder.
pub const METADATA_KEY: &str = "infgen_config";

/// Everything that the shapes and the forward pass of an InfGen decoder depend on.
///
/// A field that is absent from the JSON takes the value of [`InfgenConfig::table1`], or of [`InfgenConfig::sd4`] where `preset` says so (`scaling_factor`:
/// that of `latent_space`); an unknown field is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfgenConfig {
    /// Always `infgen`.
    pub model_type: String,
    /// Always 1.
    pub format_version: u32,
    /// Which preset it was made from; informative.
    pub preset: String,
    /// The VAE latent space it was trained on: `sd` or `sdxl`.
    pub latent_space: LatentSpace,
    /// What latents are divided by before the first layer; `None` stands for that of `latent_space`. Read it with
    /// [`InfgenConfig::scaling_factor`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f64>,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Latent size `[h, w]` it was trained on; a plan hint, other sizes are legal.
    pub base_latent_size: [usize; 2],
    /// Pixels a token side: the product of the up blocks' upsampling.
    pub patch: usize,
    /// Width of the tokens.
    pub hidden_size: usize,
    /// The two convolutions in front.
    pub stem: Stem,
    /// Channels between these two, where `stem` is `conv3x3`; absent: `hidden_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stem_channels: Option<usize>,
    /// Cross-attention blocks.
    pub num_blocks: usize,
    /// Heads of each.
    pub num_heads: usize,
    /// Hidden width of their MLP.
    pub mlp_hidden: usize,
    /// Activation of their MLP.
    pub mlp_act: Activation,
    /// Where their layer norms stand.
    pub norm: NormPlacement,
    /// Epsilon of the layer norms.
    pub ln_eps: f32,
    /// Always false in format 1.
    pub qk_norm: bool,
    /// Whether the stem's output, resampled, is added to the mask tokens.
    pub latent_skip: LatentSkip,
    /// One position network for both grids, or one each.
    pub inpe_shared: bool,
    /// Rows of `inpe.B`.
    pub inpe_features: usize,
    /// Standard deviation that `inpe.B` was drawn with; informative.
    pub inpe_sigma: f64,
    /// Hidden width of the position network.
    pub inpe_hidden: usize,
    /// Activation of the position network.
    pub inpe_act: Activation,
    /// Longitude that the width of the picture spans, in radians.
    pub inpe_lon_span: f64,
    /// Latitude that the height of the picture spans, in radians.
    pub inpe_lat_span: f64,
    /// Whether the mid block has its self-attention.
    pub mid_block_add_attention: bool,
    /// Resnets of each up block.
    pub layers_per_up_block: usize,
    /// Output channels of each up block.
    pub up_block_channels: Vec<usize>,
    /// Whether each up block doubles the size.
    pub up_block_upsample: Vec<bool>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of every group norm.
    pub norm_eps: f32,
    /// What the encoder's posterior is reduced to in extrapolation.
    pub encode_mode: EncodeMode,
    /// Largest step of the extrapolation, output side over 8 x latent side; one decode may exceed it.
    pub max_step_scale: f64,
    /// Channels of each stage of the base decoder, at the latent's size and at each doubling of it; none: there is no base decoder.
    ///
    /// It has TAESD's layers and decodes the latent at its own size; the base picture that it makes, resampled bicubically, is added to the output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub base_channels: Vec<usize>,
    /// Blocks of each of these stages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub base_blocks: Vec<usize>,
}

/// `stem`: how the latent becomes `hidden_size` channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 3x3 latent to hidden, then 3x3 hidden to hidden (the paper's Table 1).
    Conv3x3,
    /// 1x1 latent to latent, then 3x3 latent to hidden (as in the SD decoder).
    Sd,
}

/// Activation between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x/2 * (1 + erf(x/sqrt 2))`
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x * sigmoid(x)`
    Silu,
}

/// `norm`: where a block's layer norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// In front of attention and MLP.
    Pre,
}

/// `latent_skip`: what the mask tokens start from, besides the mask token and the position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatentSkip {
    /// Nothing.
    None,
    /// The stem's output, resampled bilinearly (half-pixel centres, clamped edges, no antialiasing).
    Bilinear,
}

/// `encode_mode`: the latent of the next round of extrapolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodeMode {
    /// Mean of the posterior.
    Mode,
    /// A draw from it.
    Sample,
}

/// One level of the decoder's convolutional half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpBlock {
    /// (input, output) channels of each resnet; unequal ones have a `conv_shortcut`.
    pub resnets: Vec<(usize, usize)>,
    /// Whether a nearest-2x upsampling with a 3x3 convolution follows.
    pub upsample: bool,
}

impl Default for InfgenConfig {
    fn default() -> Self {
        Self::table1()
    }
}

impl InfgenConfig {
    /// The paper's Table 1, taken literally: three up blocks that all upsample.
    pub fn table1() -> Self {
        Self {
            model_type: "infgen".into(),
            format_version: 1,
            preset: "table1".into(),
            latent_space: LatentSpace::Sd,
            scaling_factor: None,
            latent_channels: 4,
            base_latent_size: [64, 64],
            patch: 8,
            hidden_size: 512,
            stem: Stem::Conv3x3,
            stem_channels: None,
            num_blocks: 8,
            num_heads: 8,
            mlp_hidden: 2048,
            mlp_act: Activation::GeluErf,
            norm: NormPlacement::Pre,
            ln_eps: 1e-5,
            qk_norm: false,
            latent_skip: LatentSkip::None,
            inpe_shared: true,
            inpe_features: 256,
            inpe_sigma: 40.0,
            inpe_hidden: 512,
            inpe_act: Activation::Silu,
            inpe_lon_span: std::f64::consts::FRAC_PI_2,
            inpe_lat_span: std::f64::consts::FRAC_PI_2,
            mid_block_add_attention: true,
            layers_per_up_block: 3,
            up_block_channels: vec![512, 256, 128],
            up_block_upsample: vec![true; 3],
            norm_num_groups: 32,
            norm_eps: 1e-6,
            encode_mode: EncodeMode::Mode,
            max_step_scale: 4.0,
            base_channels: vec![],
            base_blocks: vec![],
        }
    }

    /// The decoder half of the SD VAE with the InfGen blocks between its stem and its mid block: its weights can start
    /// from an SD VAE's.
    pub fn sd4() -> Self {
        Self {
            preset: "sd4".into(),
            stem: Stem::Sd,
            up_block_channels: vec![512, 512, 256, 128],
            up_block_upsample: vec![true, true, true, false],
            ..Self::table1()
        }
    }

    /// Parses and validates; `path` stands for the JSON in messages.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        let refuse = |detail| Error::Config { path: path.to_owned(), detail };
        if !json.trim_start().starts_with('{') {
            return Err(refuse("not a JSON object of fields".into())); // serde would take a list for the fields in order
        }
        let mut config: Self = serde_json::from_str(json).map_err(|e| refuse(explain_json::<Self>(json, &e)))?;
        if config.preset == "sd4" {
            config = Self::sd4().with_fields(json).map_err(|e| refuse(e.to_string()))?;
        }
        config.validate().map_err(refuse)?;
        Ok(config)
    }

    /// This one with the fields that `json` has, which are known to be of this type.
    fn with_fields(&self, json: &str) -> serde_json::Result<Self> {
        let mut all: serde_json::Map<String, serde_json::Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        all.extend(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json)?);
        serde_json::from_value(all.into())
    }

    /// The config that belongs to `weights` (its `config.json`, else its metadata), validated.
    ///
    /// # Errors
    /// [`Error::Config`], also where there is none.
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let json = weights.config_json().ok_or_else(|| Error::Config {
            path: weights.path().to_owned(),
            detail: format!("no config.json beside the weights and no `{METADATA_KEY}` in their metadata"),
        })?;
        Self::from_json(json, weights.config_path())
    }

    /// As JSON, with `scaling_factor` written out.
    pub fn to_json(&self) -> String {
        let full = Self { scaling_factor: Some(self.scaling_factor()), ..self.clone() };
        serde_json::to_string_pretty(&full).unwrap_or_default() // cannot fail: no maps with other keys than strings
    }

    /// What latents are divided by before the first layer.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor.unwrap_or(self.latent_space.scaling_factor())
    }

    /// Checks every field against its range and against the others; the message names the field.
    fn validate(&self) -> Result<(), String> {
        let is = |field: &str, ok: bool, rule: String| if ok { Ok(()) } else { Err(format!("`{field}` {rule}")) };
        let within = |field: &str, value: usize, max: usize| {
            is(field, (1..=max).contains(&value), format!("is {value}, it must lie between 1 and {max}"))
        };
        let real = |field: &str, value: f64, max: f64| {
            is(field, value > 0.0 && value <= max, format!("is {value}, it must lie above 0 and not above {max}"))
        };
        is("model_type", self.model_type == "infgen", format!("is \"{}\", it must be \"infgen\"", self.model_type))?;
        is("format_version", self.format_version == 1, format!("is {}, this version reads 1", self.format_version))?;
        is("qk_norm", !self.qk_norm, "is true, format 1 has no such tensors".into())?;
        let (space, expected) = (self.latent_space.name(), self.latent_space.scaling_factor());
        is("latent_space", matches!(space, "sd" | "sdxl"), format!("is \"{space}\", it must be \"sd\" or \"sdxl\""))?;
        let factor = self.scaling_factor();
        let near = (factor - expected).abs() <= 1e-3 * expected;
        is("scaling_factor", near, format!("is {factor}, that of `latent_space` {space} is {expected}"))?;

        within("latent_channels", self.latent_channels, 64)?;
        within("base_latent_size", self.base_latent_size[0].max(self.base_latent_size[1]), 1 << 16)?;
        within("base_latent_size", self.base_latent_size[0].min(self.base_latent_size[1]), 1 << 16)?;
        within("hidden_size", self.hidden_size, 4096)?;
        within("stem_channels", self.stem_channels(), 4096)?;
        is("num_blocks", self.num_blocks <= 64, format!("is {}, it must not be above 64", self.num_blocks))?;
        within("num_heads", self.num_heads, self.hidden_size)?;
        let heads = format!("is {}, it must divide `hidden_size` {}", self.num_heads, self.hidden_size);
        is("num_heads", self.hidden_size.is_multiple_of(self.num_heads), heads)?;
        within("mlp_hidden", self.mlp_hidden, 1 << 16)?;
        within("inpe_features", self.inpe_features, 8192)?;
        within("inpe_hidden", self.inpe_hidden, 1 << 14)?;
        within("layers_per_up_block", self.layers_per_up_block, 16)?;
        for (field, eps) in [("ln_eps", self.ln_eps), ("norm_eps", self.norm_eps)] {
            is(field, (0.0..=1.0).contains(&eps), format!("is {eps}, it must lie between 0 and 1"))?;
        }
        for (field, span) in [("inpe_lon_span", self.inpe_lon_span), ("inpe_lat_span", self.inpe_lat_span)] {
            is(field, span.abs() <= std::f64::consts::TAU, format!("is {span}, it must lie between -2 pi and 2 pi"))?;
        }
        real("max_step_scale", self.max_step_scale, 1024.0)?;
        let steps = format!("is {}, it must be at least 1", self.max_step_scale);
        is("max_step_scale", self.max_step_scale >= 1.0, steps)?;

        let (channels, flags) = (&self.up_block_channels, &self.up_block_upsample);
        within("up_block_channels", channels.len(), 8).map_err(|e| e.replace("is", "has a length of"))?;
        let lengths = format!("has {} entries, `up_block_channels` has {}", flags.len(), channels.len());
        is("up_block_upsample", flags.len() == channels.len(), lengths)?;
        let scale = 1usize << flags.iter().filter(|&&up| up).count();
        let patch = format!("is {}, the blocks that `up_block_upsample` marks enlarge by {scale}", self.patch);
        is("patch", self.patch == scale, patch)?;
        within("norm_num_groups", self.norm_num_groups, self.hidden_size)?;
        let groups = self.norm_num_groups;
        let grouped =
            |field: &str, c: usize| is(field, c.is_multiple_of(groups), format!("holds {c}, not a multiple of `norm_num_groups` {groups}"));
        grouped("hidden_size", self.hidden_size)?;
        for &c in channels {
            within("up_block_channels", c, 4096)?;
            grouped("up_block_channels", c)?;
        }
        let (channels, blocks) = (&self.base_channels, &self.base_blocks);
        let lengths = format!("has {} entries, `base_channels` has {}", blocks.len(), channels.len());
        is("base_blocks", blocks.len() == channels.len(), lengths)?;
        is("base_channels", channels.len() <= MAX_STAGES, format!("has {} entries, more than {MAX_STAGES}", channels.len()))?;
        channels.iter().try_for_each(|&c| within("base_channels", c, MAX_CHANNELS))?;
        blocks.iter().try_for_each(|&n| is("base_blocks", n <= MAX_BLOCKS, format!("holds {n}, more than {MAX_BLOCKS}")))
    }

    /// Channels between the convolutions of a `conv3x3` stem.
    pub fn stem_channels(&self) -> usize {
        self.stem_channels.unwrap_or(self.hidden_size)
    }

    /// The base decoder, if there is one.
    pub fn base(&self) -> Option<TaesdConfig> {
        let (channels, blocks) = (self.base_channels.clone(), self.base_blocks.clone());
        (!channels.is_empty()).then_some(TaesdConfig { latent_channels: self.latent_channels, channels, blocks })
    }

    /// Channels of each up block, from the mid block outwards.
    pub fn up_blocks(&self) -> Vec<UpBlock> {
        let mut previous = self.hidden_size;
        std::iter::zip(&self.up_block_channels, &self.up_block_upsample)
            .map(|(&channels, &upsample)| {
                let first = (std::mem::replace(&mut previous, channels), channels);
                let rest = std::iter::repeat_n((channels, channels), self.layers_per_up_block - 1);
                UpBlock { resnets: std::iter::once(first).chain(rest).collect(), upsample }
            })
            .collect()
    }

    /// Channels of `conv_norm_out` and of `conv_out`'s input.
    pub fn out_channels(&self) -> usize {
        self.up_block_channels.last().copied().unwrap_or(self.hidden_size)
    }

    /// Name and shape of every tensor, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        let (h, m, latent) = (self.hidden_size, self.inpe_features, self.latent_channels);
        match self.stem {
            Stem::Conv3x3 => {
                let between = self.stem_channels();
                list.conv("post_quant_conv", between, latent, 3);
                list.conv("decoder.conv_in", h, between, 3);
            }
            Stem::Sd => {
                list.conv("post_quant_conv", latent, latent, 1);
                list.conv("decoder.conv_in", h, latent, 3);
            }
        }
        list.push("mask_token", &[h]);
        for inpe in self.inpe_prefixes() {
            list.push(&format!("{inpe}.B"), &[m, 3]);
            list.linear(&format!("{inpe}.fc1"), self.inpe_hidden, 2 * m);
            list.linear(&format!("{inpe}.fc2"), h, self.inpe_hidden);
        }
        for i in 0..self.num_blocks {
            let block = |name: &str| format!("blocks.{i}.{name}");
            list.norm(&block("norm1"), h);
            list.norm(&block("norm_kv"), h);
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                list.linear(&block(&format!("attn.{projection}")), h, h);
            }
            list.norm(&block("norm2"), h);
            list.linear(&block("ff.net.0.proj"), self.mlp_hidden, h);
            list.linear(&block("ff.net.2"), h, self.mlp_hidden);
        }
        list.mid_block("decoder", h, self.mid_block_add_attention);
        for (u, block) in self.up_blocks().into_iter().enumerate() {
            let path = format!("decoder.up_blocks.{u}");
            list.resnets(&path, &block.resnets);
            if block.upsample {
                list.conv(&format!("{path}.upsamplers.0.conv"), self.up_block_channels[u], self.up_block_channels[u], 3);
            }
        }
        list.norm("decoder.conv_norm_out", self.out_channels());
        list.conv("decoder.conv_out", 3, self.out_channels(), 3);
        if let Some(base) = self.base() {
            base.list(&mut list, "base", Half::Decoder);
        }
        list.0
    }

    /// Checks that `view` holds every tensor with its shape, and `inpe.B` as f32, without reading data, and no others of a decoder: a network of which
    /// the config leaves out a part is another one.
    ///
    /// # Errors
    /// As [`View::check`]; [`Error::Config`] for tensors that the config has no place for.
    pub fn check(&self, view: &View) -> Result<()> {
        let tensors = self.tensors();
        view.check(&tensors)?;
        let known: std::collections::HashSet<String> = tensors.iter().map(|(name, _)| view.file_name(name)).collect();
        let parts = ["base.", "blocks.", "decoder.", "inpe.", "post_quant_conv."];
        if let Some(name) = view.names().find(|name| parts.iter().any(|part| name.starts_with(part)) && !known.contains(*name)) {
            let detail = format!("the weights hold `{name}`, which the network of this config does not have");
            return Err(Error::Config { path: view.path().to_owned(), detail });
        }
        // Phases B p reach 160 rad: a B rounded to 16 bits is another model.
        self.inpe_prefixes().iter().try_for_each(|inpe| view.require_f32(&format!("{inpe}.B")))
    }

    /// Tensor prefixes of the position networks: of both grids, or of the latent's and the mask's.
    pub fn inpe_prefixes(&self) -> &'static [&'static str] {
        if self.inpe_shared { &["inpe"] } else { &["inpe.latent", "inpe.mask"] }
    }
}

/// Names and shapes of tensors, as diffusers' modules of those kinds name them.
#[derive(Default)]
pub(crate) struct TensorList(pub Vec<(String, Vec<usize>)>);

impl TensorList {
    pub fn push(&mut self, name: &str, shape: &[usize]) {
        self.0.push((name.to_owned(), shape.to_vec()));
    }

    pub fn conv(&mut self, path: &str, out: usize, input: usize, kernel: usize) {
        self.push(&format!("{path}.weight"), &[out, input, kernel, kernel]);
        self.push(&format!("{path}.bias"), &[out]);
    }

    pub fn linear(&mut self, path: &str, out: usize, input: usize) {
        self.push(&format!("{path}.weight"), &[out, input]);
        self.push(&format!("{path}.bias"), &[out]);
    }

    pub fn norm(&mut self, path: &str, channels: usize) {
        self.push(&format!("{path}.weight"), &[channels]);
        self.push(&format!("{path}.bias"), &[channels]);
    }

    /// `{path}.resnets.{i}` for each (input, output) pair.
    pub fn resnets(&mut self, path: &str, channels: &[(usize, usize)]) {
        for (i, &(input, out)) in channels.iter().enumerate() {
            let resnet = format!("{path}.resnets.{i}");
            self.norm(&format!("{resnet}.norm1"), input);
            self.conv(&format!("{resnet}.conv1"), out, input, 3);
            self.norm(&format!("{resnet}.norm2"), out);
            self.conv(&format!("{resnet}.conv2"), out, out, 3);
            if input != out {
                self.conv(&format!("{resnet}.conv_shortcut"), out, input, 1);
            }
        }
    }

    /// `{part}.mid_block`: a resnet, attention if it is there, a resnet.
    pub fn mid_block(&mut self, part: &str, channels: usize, attention: bool) {
        let path = format!("{part}.mid_block");
        self.resnets(&path, &[(channels, channels); 2]);
        if attention {
            self.norm(&format!("{path}.attentions.0.group_norm"), channels);
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.linear(&format!("{path}.attentions.0.{projection}"), channels, channels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<InfgenConfig, String> {
        InfgenConfig::from_json(json, Path::new("config.json")).map_err(|e| e.to_string())
    }

    fn parameters(config: &InfgenConfig) -> usize {
        config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_presets_have_the_specified_numbers_of_tensors_and_parameters() {
        let (table1, sd4) = (InfgenConfig::table1(), InfgenConfig::sd4());
        assert_eq!((table1.tensors().len(), sd4.tensors().len()), (266, 290));
        // `inpe.B` is a buffer, not a parameter
        let buffer = 256 * 3;
        let millions = |config| format!("{:.2}", (parameters(config) - buffer) as f64 / 1e6);
        assert_eq!((millions(&table1), millions(&sd4)), ("61.23".into(), "75.24".into()));
        let separate = InfgenConfig { inpe_shared: false, ..table1 };
        assert_eq!(separate.tensors().len(), 271);
    }

    #[test]
    fn an_empty_object_is_table1_and_both_presets_survive_a_round_trip() {
        assert_eq!(parse("{}").unwrap(), InfgenConfig::table1());
        for config in [InfgenConfig::table1(), InfgenConfig::sd4()] {
            let parsed = parse(&config.to_json()).unwrap();
            assert_eq!(parsed.scaling_factor(), 0.18215);
            assert_eq!(InfgenConfig { scaling_factor: None, ..parsed }, config);
        }
        assert_eq!(parse(r#"{"latent_space": "sdxl"}"#).unwrap().scaling_factor(), 0.13025);
    }

    #[test]
    fn the_channel_walk_follows_the_up_blocks() {
        let walk = InfgenConfig::sd4().up_blocks();
        assert_eq!(walk[2], UpBlock { resnets: vec![(512, 256), (256, 256), (256, 256)], upsample: true });
        assert_eq!(walk[3], UpBlock { resnets: vec![(256, 128), (128, 128), (128, 128)], upsample: false });
        assert_eq!(walk.len(), 4);
    }

    #[test]
    fn absent_fields_are_those_of_the_preset() {
        let config = parse(r#"{"preset": "sd4", "hidden_size": 256, "up_block_channels": [256, 256, 128, 64]}"#).unwrap();
        assert_eq!(config, InfgenConfig { hidden_size: 256, up_block_channels: vec![256, 256, 128, 64], ..InfgenConfig::sd4() });
        let own = r#"{"preset": "sd4", "stem": "conv3x3", "latent_space": "sdxl"}"#;
        assert_eq!(parse(own).unwrap(), InfgenConfig { stem: Stem::Conv3x3, latent_space: LatentSpace::Sdxl, ..InfgenConfig::sd4() });
        assert_eq!(parse(r#"{"preset": "of my own", "num_blocks": 0}"#).unwrap().stem, Stem::Conv3x3);
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (json, field) in [
            (r#"{"hidden": 512}"#, "hidden"),
            (r#"{"model_type": "vae"}"#, "model_type"),
            (r#"{"format_version": 2}"#, "format_version"),
            (r#"{"norm": "post"}"#, "norm"),
            (r#"{"qk_norm": true}"#, "qk_norm"),
            (r#"{"stem": "conv5x5"}"#, "stem"),
            (r#"{"mlp_act": 3}"#, "mlp_act"),
            (r#"{"latent_space": "flux"}"#, "latent_space"),
            (r#"{"latent_space": "sd7"}"#, "latent_space"),
            (r#"{"latent_space": "sdxl", "scaling_factor": 0.18215}"#, "scaling_factor"),
            (r#"{"scaling_factor": 1e999}"#, "number out of range at line 1"),
            (r#"{"scaling_factor": -0.18215}"#, "scaling_factor"),
            (r#"{"latent_channels": 0}"#, "latent_channels"),
            (r#"{"latent_channels": 4.5}"#, "latent_channels"),
            (r#"{"base_latent_size": [64]}"#, "base_latent_size"),
            (r#"{"base_latent_size": [0, 64]}"#, "base_latent_size"),
            (r#"{"base_latent_size": [64, 99999999]}"#, "base_latent_size"),
            (r#"{"patch": 16}"#, "patch"),
            (r#"{"hidden_size": 4611686018427387904}"#, "hidden_size"),
            (r#"{"hidden_size": -1}"#, "hidden_size"),
            (r#"{"hidden_size": 520}"#, "hidden_size"),
            (r#"{"num_heads": 7}"#, "num_heads"),
            (r#"{"num_heads": 0}"#, "num_heads"),
            (r#"{"num_blocks": 100000}"#, "num_blocks"),
            (r#"{"mlp_hidden": 0}"#, "mlp_hidden"),
            (r#"{"inpe_features": 0}"#, "inpe_features"),
            (r#"{"inpe_hidden": 1000000}"#, "inpe_hidden"),
            (r#"{"inpe_lon_span": 6.3}"#, "inpe_lon_span"),
            (r#"{"inpe_lat_span": -6.3}"#, "inpe_lat_span"),
            (r#"{"ln_eps": 1.5}"#, "ln_eps"),
            (r#"{"norm_eps": -1e-6}"#, "norm_eps"),
            (r#"{"layers_per_up_block": 0}"#, "layers_per_up_block"),
            (r#"{"up_block_channels": []}"#, "up_block_channels"),
            (r#"{"up_block_channels": [512, 256, 100]}"#, "up_block_channels"),
            (r#"{"up_block_channels": [512, 256, 0]}"#, "up_block_channels"),
            (r#"{"up_block_upsample": [true, true]}"#, "up_block_upsample"),
            (r#"{"up_block_upsample": [true, true, false]}"#, "patch"),
            (r#"{"norm_num_groups": 0}"#, "norm_num_groups"),
            (r#"{"max_step_scale": 0.5}"#, "max_step_scale"),
            (r#"{"stem_channels": 0}"#, "stem_channels"),
            (r#"{"base_channels": [64, 64], "base_blocks": [1]}"#, "base_blocks"),
            (r#"{"base_channels": [64, 0], "base_blocks": [1, 1]}"#, "base_channels"),
            (r#"{"base_channels": [64], "base_blocks": [65]}"#, "base_blocks"),
            (r#"{"base_channels": [8,8,8,8,8,8,8,8,8], "base_blocks": [1,1,1,1,1,1,1,1,1]}"#, "base_channels"),
            (r#"{"patch": 8, "patch": 8}"#, "patch"),
            ("[]", "JSON object"),
            ("{", "JSON object"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(field) && error.starts_with("config.json: "), "{json}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
