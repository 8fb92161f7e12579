//! The configuration of a CLIP text encoder (transformers' `CLIPTextConfig`): from its `config.json`, or from the shapes of
//! its tensors where a single-file checkpoint brings none.
//!
//! Source: transformers `models/clip/configuration_clip.py`; open_clip `model.py` for SD 2.x and SDXL's second encoder.

use std::path::Path;

use serde::Serialize;

use super::infgen_config::TensorList;
use super::vae_config::{Fields, within};
use crate::error::{Error, Result};
use crate::kernels::Act;
use crate::weights::{View, clip_keys};

/// Activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP, SD 1.x.
    QuickGelu,
    /// GELU with erf: OpenCLIP, SD 2.x.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
}

impl From<HiddenAct> for Act {
    fn from(act: HiddenAct) -> Act {
        match act {
            HiddenAct::QuickGelu => Act::QuickGelu,
            HiddenAct::Gelu => Act::GeluErf,
            HiddenAct::GeluTanh => Act::GeluTanh,
        }
    }
}

/// Shapes and constants of a text encoder. [`ClipTextConfig::default`] is the one of SD 1.x (ViT-L/14).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClipTextConfig {
    /// Number of tokens that have an embedding.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers that run. Those of SD 2.x checkpoints leave out the last one of the file, as the model was trained.
    pub num_hidden_layers: usize,
    /// Heads, which divide the width.
    pub num_attention_heads: usize,
    /// Longest prompt in tokens, start and end included.
    pub max_position_embeddings: usize,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f32,
    /// Width of the pooled text of an encoder that has a projection for it (SDXL's second).
    pub projection_dim: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: None,
        }
    }
}

const MAX_LAYERS: usize = 256;

/// The matrix behind the last norm of the text's end, `[projection_dim, hidden_size]`.
pub(super) const PROJECTION: &str = "text_projection.weight";

impl ClipTextConfig {
    /// Reads transformers' `config.json` (of a `CLIPTextModel`, with or without projection); fields that change nothing here are passed over, absent ones take
    /// transformers' defaults. `path` stands for the JSON in messages.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        Self::parse(json).map_err(|detail| Error::Config { path: path.to_owned(), detail })
    }

    fn parse(json: &str) -> Result<Self, String> {
        let mut fields = Fields::parse(json)?;
        fields.only("model_type", &["clip_text_model", "clip"])?;
        let projects = fields.get("architectures").is_some_and(|list| list[0] == "CLIPTextModelWithProjection");
        // The config of a whole CLIP model has the text half inside.
        if let Some(text) = fields.get("text_config") {
            fields = Fields::parse(&text.to_string())?;
        }
        if fields.flag("use_attention_mask")? == Some(true) {
            return Err("`use_attention_mask` is true: prompts without their padding are not known to this version".into());
        }
        fields.only("hidden_act", &["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh"])?;
        let size = |field: &str, default: usize| fields.size(field).map(|value| value.unwrap_or(default));
        let config = Self {
            vocab_size: size("vocab_size", 49408)?,
            hidden_size: size("hidden_size", 512)?,
            intermediate_size: size("intermediate_size", 2048)?,
            num_hidden_layers: size("num_hidden_layers", 12)?,
            num_attention_heads: size("num_attention_heads", 8)?,
            max_position_embeddings: size("max_position_embeddings", 77)?,
            hidden_act: match fields.get("hidden_act").and_then(|act| act.as_str()) {
                None | Some("quick_gelu") => HiddenAct::QuickGelu,
                Some("gelu") => HiddenAct::Gelu,
                Some(_) => HiddenAct::GeluTanh,
            },
            layer_norm_eps: fields.real("layer_norm_eps")?.unwrap_or(1e-5) as f32,
            projection_dim: if projects { Some(size("projection_dim", 512)?) } else { None },
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads the sizes off the tensors of a checkpoint. Heads are 64 wide, as in all published encoders; OpenCLIP's names mean
    /// exact GELU, and that the last layer is left out, unless it is SDXL's second encoder.
    ///
    /// # Errors
    /// [`Error::Config`] for shapes that no such encoder has.
    pub fn infer(view: &View) -> Result<Self> {
        Self::inferred(view).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View) -> Result<Self, String> {
        let matrix = |name: &str| match view.info(name).map(|info| info.shape) {
            Some([rows, columns]) => Ok((*rows, *columns)),
            _ => Err(format!("`{}` is missing or no matrix", view.file_name(name))),
        };
        let open_clip = clip_keys::is_open_clip(view);
        let second = clip_keys::is_second(view);
        let (vocab_size, hidden_size) = matrix("embeddings.token_embedding.weight")?;
        let (max_position_embeddings, _) = matrix("embeddings.position_embedding.weight")?;
        let (intermediate_size, _) = matrix("encoder.layers.0.mlp.fc1.weight")?;
        let layers = (0..=MAX_LAYERS).take_while(|i| view.contains(&format!("encoder.layers.{i}.mlp.fc1.weight"))).count();
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: if open_clip && !second { layers.saturating_sub(1) } else { layers },
            num_attention_heads: (hidden_size / 64).max(1),
            max_position_embeddings,
            hidden_act: if open_clip { HiddenAct::Gelu } else { HiddenAct::QuickGelu },
            layer_norm_eps: 1e-5,
            projection_dim: if second { Some(matrix(PROJECTION)?.1) } else { None },
        };
        config.validate()?;
        Ok(config)
    }

    /// Takes over the projection that `view` has, where the config does not speak of one.
    pub fn take_projection(&mut self, view: &View) {
        if self.projection_dim.is_none() {
            self.projection_dim = view.info(PROJECTION).and_then(|info| info.shape.first().copied());
        }
    }

    /// Checks that the values are possible and fit together.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn validate(&self) -> Result<(), String> {
        within("vocab_size", self.vocab_size, 1 << 24)?;
        within("hidden_size", self.hidden_size, 16384)?;
        within("intermediate_size", self.intermediate_size, 1 << 17)?;
        within("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        within("num_attention_heads", self.num_attention_heads, 1024)?;
        within("max_position_embeddings", self.max_position_embeddings, 1 << 16)?;
        within("projection_dim", self.projection_dim.unwrap_or(1), 1 << 16)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!("`hidden_size` {} is no multiple of `num_attention_heads` {}", self.hidden_size, self.num_attention_heads));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return Err(format!("`layer_norm_eps` is {}, it must lie between 0 and 1", self.layer_norm_eps));
        }
        Ok(())
    }

    /// Name (transformers', without `text_model.`) and shape of every tensor that is used.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        list.push("embeddings.token_embedding.weight", &[self.vocab_size, width]);
        list.push("embeddings.position_embedding.weight", &[self.max_position_embeddings, width]);
        for i in 0..self.num_hidden_layers {
            let layer = |name: &str| format!("encoder.layers.{i}.{name}");
            list.norm(&layer("layer_norm1"), width);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                list.linear(&layer(&format!("self_attn.{projection}")), width, width);
            }
            list.norm(&layer("layer_norm2"), width);
            list.linear(&layer("mlp.fc1"), inner, width);
            list.linear(&layer("mlp.fc2"), width, inner);
        }
        list.norm("final_layer_norm", width);
        if let Some(projected) = self.projection_dim {
            list.push(PROJECTION, &[projected, width]);
        }
        list.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ClipTextConfig, String> {
        ClipTextConfig::from_json(json, Path::new("config.json")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_published_encoders_have_their_numbers_of_parameters() {
        let parameters = |config: &ClipTextConfig| config.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>();
        let sd1 = r#"{"architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
            "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768}"#;
        assert_eq!(parse(sd1).unwrap(), ClipTextConfig::default());
        assert_eq!(parameters(&ClipTextConfig::default()), 123_060_480);
        let sd2 =
            r#"{"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}"#;
        assert_eq!(parameters(&parse(sd2).unwrap()), 340_387_840);
        assert_eq!(parse(&format!(r#"{{"model_type": "clip", "text_config": {sd2}}}"#)), parse(sd2));
        let second = r#"{"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120,
            "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280}"#;
        assert_eq!((parse(second).unwrap().tensors().len(), parameters(&parse(second).unwrap())), (517, 694_659_840));
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (json, field) in [
            (r#"{"model_type": "t5"}"#, "model_type"),
            (r#"{"hidden_act": "relu"}"#, "hidden_act"),
            (r#"{"hidden_size": 0}"#, "hidden_size"),
            (r#"{"hidden_size": 100}"#, "num_attention_heads"),
            (r#"{"num_hidden_layers": 1e3}"#, "num_hidden_layers"),
            (r#"{"max_position_embeddings": 99999999}"#, "max_position_embeddings"),
            (r#"{"layer_norm_eps": -1}"#, "layer_norm_eps"),
            ("[]", "JSON object"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(field) && error.starts_with("config.json: "), "{json}: {error}");
        }
    }
}
