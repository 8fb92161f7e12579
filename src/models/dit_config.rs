//! The configuration of a class-conditional diffusion transformer (DiT, SiT, FiT, MDT, MaskDiT): from diffusers' `config.json`, or from the shapes of its tensors in the
//! original's files, which bring none.
//!
//! Sources: diffusers `models/transformers/dit_transformer_2d.py` 0.42; facebookresearch/DiT `models.py` at ed81ce2; whlzy/FiT `fit/model/` at b22b7b0; sail-sg/MDT
//! `masked_diffusion/models.py` at 7d26c21; Anima-Lab/MaskDiT `models/maskdit.py` at 73cfb96. diffusers and the original are not the same network: the frequencies of the timestep differ, the epsilon of a norm can, and the original guides 3
//! channels of 4.

use std::path::Path;

use serde::Serialize;

use super::infgen_config::TensorList;
use super::vae_config::{Fields, within};
use crate::error::{Error, Result};
use crate::weights::{View, dit_keys};

/// How a transformer knows where its tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// By a tensor of the file that is added to them.
    Stored,
    /// By the same from a formula.
    Formula,
    /// By turning the heads of queries and keys, which works at any size (FiT).
    Rotary,
}

/// MaskDiT's blocks behind the others, narrower, with positions of their own; what modulates them is as wide as the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DitDecoder {
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Width inside the MLPs.
    pub mlp_hidden: usize,
}

/// Shapes and constants of a DiT. [`DitConfig::default`] is the original's DiT-XL/2 for 256 x 256 pixels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DitConfig {
    /// Channels of the latent.
    pub in_channels: usize,
    /// Channels of the output: as many, or twice as many where a variance was learned too.
    pub out_channels: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads of every attention.
    pub num_attention_heads: usize,
    /// Width inside the MLPs.
    pub mlp_hidden: usize,
    /// Side of a token's square in the latent.
    pub patch_size: usize,
    /// Side of the latents that it was trained with, and has positions for, if they are not rotary.
    pub sample_size: usize,
    /// Classes, without the one that stands for none.
    pub num_classes: usize,
    /// Epsilon of the norm before the MLP; the others have 1e-6.
    pub norm_eps: f32,
    /// Subtracted from the number of frequencies of the timestep.
    pub freq_shift: f64,
    /// GELU with tanh, or with erf.
    pub gelu_tanh: bool,
    /// Channels that guidance acts on; the others are those of the class.
    pub guided_channels: usize,
    /// One embedding of timestep and class for all blocks (the original), or one for each (diffusers).
    pub shared_embedding: bool,
    /// Where positions come from.
    pub positions: Positions,
    /// SwiGLU instead of GELU in the MLPs.
    pub gated_mlp: bool,
    /// Layer norm of the heads of queries and keys.
    pub qk_norm: bool,
    /// Shifts, scales and gates of a block from so few channels, added to those of one layer for all blocks; none: from a layer of its own.
    pub modulation_rank: Option<usize>,
    /// MDTv2: the last so many blocks decode, those before them are joined in pairs, and attention has biases by relative position; none: one block after
    /// the other.
    pub decode_layers: Option<usize>,
    /// MaskDiT's decoder, behind all `num_layers` blocks. Its classes are columns of a linear layer without bias, and none of them is zeros; else they are
    /// rows of a table, none the last of them.
    pub decoder: Option<DitDecoder>,
    /// Whether channels are the slowest index within a token; else the fastest.
    pub channels_first: bool,
}

impl Default for DitConfig {
    fn default() -> Self {
        Self {
            in_channels: 4,
            out_channels: 8,
            hidden_size: 1152,
            num_layers: 28,
            num_attention_heads: 16,
            mlp_hidden: 4608,
            patch_size: 2,
            sample_size: 32,
            num_classes: 1000,
            norm_eps: 1e-6,
            freq_shift: 0.0,
            gelu_tanh: true,
            guided_channels: 3,
            shared_embedding: true,
            positions: Positions::Stored,
            gated_mlp: false,
            qk_norm: false,
            modulation_rank: None,
            decode_layers: None,
            decoder: None,
            channels_first: false,
        }
    }
}

/// Features of the timestep's sinusoid.
pub const TIME_FEATURES: usize = 256;

const MAX_LAYERS: usize = 512;

/// Most tokens a side that have biases by relative position.
const MAX_RELATIVE: usize = 64;

/// Where a block of MDTv2 stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What it makes is kept for a later block.
    In,
    /// Joined with what was kept last.
    Out,
    /// Joined with the tokens that all began with.
    Decode,
}

/// Widths of DiT-S, B, L and XL with their heads, of MaskDiT's H and of FiTv2-3B.
const ORIGINAL_HEADS: [(usize, usize); 6] = [(384, 6), (768, 12), (1024, 16), (1152, 16), (1280, 16), (2304, 24)];

/// Heads of MaskDiT's decoder, whatever its size.
const DECODER_HEADS: usize = 16;

impl DitConfig {
    /// Reads diffusers' `config.json`; absent fields take diffusers' defaults. `path` stands for the JSON in messages.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        Self::parse(json).map_err(|detail| Error::Config { path: path.to_owned(), detail })
    }

    fn parse(json: &str) -> Result<Self, String> {
        let fields = Fields::parse(json)?;
        fields.only("_class_name", &["DiTTransformer2DModel", "Transformer2DModel"])?;
        fields.only("norm_type", &["ada_norm_zero"])?;
        fields.only("activation_fn", &["gelu-approximate", "gelu"])?;
        for (field, needed) in [("norm_elementwise_affine", false), ("attention_bias", true)] {
            let value = fields.flag(field)?.unwrap_or(needed);
            if value != needed {
                return Err(format!("`{field}` is {value}, which is not known to this version"));
            }
        }
        for field in ["cross_attention_dim", "caption_channels", "num_vector_embeds"] {
            if let Some(value) = fields.get(field) {
                return Err(format!("`{field}` is {value}: a transformer that is told more than a class is not known to this version"));
            }
        }
        let in_channels = fields.size("in_channels")?.unwrap_or(4);
        let heads = fields.size("num_attention_heads")?.unwrap_or(16);
        let hidden_size = heads.saturating_mul(fields.size("attention_head_dim")?.unwrap_or(72));
        let config = Self {
            in_channels,
            out_channels: fields.size("out_channels")?.unwrap_or(in_channels),
            hidden_size,
            num_layers: fields.size("num_layers")?.unwrap_or(28),
            num_attention_heads: heads,
            mlp_hidden: hidden_size.saturating_mul(4),
            patch_size: fields.size("patch_size")?.unwrap_or(2),
            sample_size: fields.size("sample_size")?.unwrap_or(32),
            num_classes: fields.size("num_embeds_ada_norm")?.unwrap_or(1000),
            norm_eps: fields.real("norm_eps")?.unwrap_or(1e-5) as f32,
            freq_shift: 1.0,
            gelu_tanh: fields.get("activation_fn").is_none_or(|value| value == "gelu-approximate"),
            guided_channels: in_channels,
            shared_embedding: false,
            positions: Positions::Formula,
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads the sizes off the tensors. The number of heads does not show in them: it is that of DiT-S, B, L, XL, MaskDiT-H or FiTv2-3B by the width, or `num_heads` of `json`,
    /// the folder's `config.json`; of MDTv2 it shows, MaskDiT's decoder has 16. FiT's tokens are 2 x 2 pixels of 4 channels, trained on 32 x 32.
    ///
    /// # Errors
    /// [`Error::Config`] for shapes that no such transformer has.
    pub fn infer(view: &View, json: Option<&str>) -> Result<Self> {
        Self::inferred(view, json).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View, json: Option<&str>) -> Result<Self, String> {
        let axes = |name: &str, n: usize| {
            let shape = view.info(name).map(|info| info.shape.to_vec()).filter(|shape| shape.len() == n);
            shape.ok_or_else(|| format!("`{}` is missing or of another kind", view.file_name(name)))
        };
        if !dit_keys::is_original(view) {
            return Err("the transformer of a diffusers folder, whose config.json is missing".into());
        }
        let fit = dit_keys::is_fit(view);
        let (hidden_size, in_channels, patch_size) = match fit {
            true => (axes("pos_embed.proj.weight", 2)?[0], 4, 2),
            false => {
                let patch = axes("pos_embed.proj.weight", 4)?;
                (patch[0], patch[1], patch[2])
            }
        };
        let stated = match json {
            Some(json) => {
                let fields = Fields::parse(json)?;
                fields.size("num_heads")?.or(fields.size("num_attention_heads")?)
            }
            None => None,
        };
        let biases = "en_inblocks.0.attn1.rel_pos_bias.relative_position_bias_table";
        let stated = stated.or(if view.contains(biases) { Some(axes(biases, 2)?[1]) } else { None });
        let known = ORIGINAL_HEADS.iter().find(|(width, _)| *width == hidden_size).map(|(_, heads)| *heads);
        let num_attention_heads = stated.or(known).ok_or_else(|| {
            format!(
                "how many heads a width of {hidden_size} has does not show in the tensors: put a config.json with `num_heads` beside it, or take diffusers' form"
            )
        })?;
        let outputs = axes("proj_out_2.weight", 2)?[0];
        let count = |group: &str| (0..=MAX_LAYERS).take_while(|i| view.contains(&format!("{group}.{i}.norm1.linear.weight"))).count();
        let [plain, inward, outward, decode] = ["transformer_blocks", "en_inblocks", "en_outblocks", "de_blocks"].map(count);
        if inward != outward {
            return Err(format!("{inward} en_inblocks and {outward} en_outblocks: there must be as many"));
        }
        let decoder = match view.contains("decoder_layer.linear.weight") {
            true => Some(DitDecoder {
                hidden_size: axes("decoder_layer.linear.weight", 2)?[0],
                num_layers: count("decoder_blocks"),
                num_attention_heads: DECODER_HEADS,
                mlp_hidden: axes("decoder_blocks.0.ff.net.0.proj.weight", 2)?[0],
            }),
            false => None,
        };
        let table = axes("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight", 2)?;
        let num_classes = if decoder.is_some() { table[1] } else { table[0].saturating_sub(1) };
        let known = Self {
            in_channels,
            out_channels: outputs / patch_size.saturating_mul(patch_size).max(1),
            hidden_size,
            num_layers: plain + inward + outward + decode,
            decode_layers: (inward > 0).then_some(decode),
            num_attention_heads,
            patch_size,
            num_classes,
            guided_channels: if decoder.is_some() { in_channels } else { in_channels.min(3) },
            decoder,
            ..Self::default()
        };
        if fit {
            let global = view.contains("global_modulation.weight");
            let config = Self {
                mlp_hidden: axes("transformer_blocks.0.ff.gate.weight", 2)?[0],
                positions: Positions::Rotary,
                gated_mlp: true,
                qk_norm: global,
                modulation_rank: if global { Some(axes("transformer_blocks.0.norm1.linear.weight", 2)?[0]) } else { None },
                channels_first: true,
                ..known
            };
            return config.validate().map(|()| config);
        }
        let tokens = axes("pos_embed.pos_embed", 3)?[1];
        let config = Self {
            mlp_hidden: axes(&format!("{}.ff.net.0.proj.weight", known.block(0)), 2)?[0],
            sample_size: tokens.isqrt().saturating_mul(patch_size),
            ..known
        };
        config.validate()?;
        if config.tokens() != tokens {
            return Err(format!("`{}` has {tokens} positions, which are no square", view.file_name("pos_embed.pos_embed")));
        }
        Ok(config)
    }

    /// Checks that the values are possible and fit together.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn validate(&self) -> Result<(), String> {
        within("in_channels", self.in_channels, 1024)?;
        within("num_attention_heads", self.num_attention_heads, 1024)?;
        within("hidden size", self.hidden_size, 1 << 14)?;
        within("num_layers", self.num_layers, MAX_LAYERS)?;
        within("MLP width", self.mlp_hidden, 1 << 16)?;
        within("patch_size", self.patch_size, 64)?;
        within("sample_size", self.sample_size, 512)?;
        within("num_embeds_ada_norm (the number of classes)", self.num_classes, 1 << 20)?;
        if !self.sample_size.is_multiple_of(self.patch_size) {
            return Err(format!("`sample_size` is {}, no multiple of `patch_size` {}", self.sample_size, self.patch_size));
        }
        if !self.hidden_size.is_multiple_of(4) || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let heads = self.num_attention_heads;
            return Err(format!("{} channels in {heads} heads: the channels must be a multiple of 4 and of the heads", self.hidden_size));
        }
        if !self.in_channels.is_multiple_of(4) || (self.out_channels != self.in_channels && self.out_channels != 2 * self.in_channels) {
            let (input, output) = (self.in_channels, self.out_channels);
            return Err(format!(
                "{input} channels to {output}: a multiple of 4 to as many, or to twice as many (with variances), is known to this version"
            ));
        }
        if self.positions == Positions::Rotary {
            let (channels, heads) = (self.hidden_size, self.num_attention_heads);
            if !(channels / heads).is_multiple_of(8) {
                return Err(format!("{channels} channels in {heads} heads: heads that turn are multiples of 8 channels wide"));
            }
            if self.sample_size < 2 * self.patch_size {
                return Err(format!("`sample_size` is {}, rotary positions take at least two tokens", self.sample_size));
            }
        }
        if self.gated_mlp && !self.mlp_hidden.is_multiple_of(4) {
            return Err(format!("MLP width is {}, gates take multiples of 4", self.mlp_hidden));
        }
        if let Some(decode) = self.decode_layers {
            let (layers, across) = (self.num_layers, self.sample_size / self.patch_size);
            if self.positions == Positions::Rotary {
                return Err("positions that turn and biases by relative position, which no network of these has both".into());
            }
            if decode > layers || !(layers - decode).is_multiple_of(2) {
                return Err(format!("{layers} blocks of which {decode} decode: the others must be pairs"));
            }
            if across > MAX_RELATIVE {
                return Err(format!("{across}x{across} tokens: biases of up to {MAX_RELATIVE}x{MAX_RELATIVE} are known to this version"));
            }
        }
        if let Some(decoder) = &self.decoder {
            let DitDecoder { hidden_size, num_layers, num_attention_heads: heads, mlp_hidden } = *decoder;
            within("the decoder's hidden size", hidden_size, 1 << 14)?;
            within("the decoder's num_layers", num_layers, MAX_LAYERS)?;
            within("the decoder's MLP width", mlp_hidden, 1 << 16)?;
            if !hidden_size.is_multiple_of(4) || !hidden_size.is_multiple_of(heads) {
                return Err(format!(
                    "{hidden_size} channels in {heads} heads of the decoder: the channels must be a multiple of 4 and of the heads"
                ));
            }
            if self.out_channels != self.in_channels {
                return Err(format!("{} channels to {}: behind a decoder there are as many", self.in_channels, self.out_channels));
            }
            if self.positions != Positions::Stored || self.gated_mlp || self.modulation_rank.is_some() || self.decode_layers.is_some() {
                return Err("a decoder behind FiT's or MDT's blocks, which no network of these has".into());
            }
        }
        if let Some(rank) = self.modulation_rank {
            within("rank of the modulation", rank, 1 << 14)?;
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("`norm_eps` is {}, it must lie between 0 and 1", self.norm_eps));
        }
        Ok(())
    }

    /// Whether it takes latents of this size.
    pub fn takes(&self, width: usize, height: usize) -> bool {
        let whole = |side: usize| side > 0 && side.is_multiple_of(self.patch_size);
        match self.positions {
            Positions::Rotary => whole(width) && whole(height),
            _ => (width, height) == (self.sample_size, self.sample_size),
        }
    }

    /// [`DitConfig::takes`], for messages.
    pub fn sizes(&self) -> String {
        let side = self.sample_size;
        match self.positions {
            Positions::Rotary => format!("multiples of {}", self.patch_size),
            _ => format!("{side} x {side}"),
        }
    }

    /// Number of tokens of a latent of the size that it was trained with.
    pub fn tokens(&self) -> usize {
        let across = self.sample_size / self.patch_size;
        across * across
    }

    /// Number of blocks, the decoder's included.
    pub fn blocks(&self) -> usize {
        self.num_layers + self.decoder.as_ref().map_or(0, |decoder| decoder.num_layers)
    }

    /// Tokens' width, heads, and width inside the MLP of block `i`; behind the last, those of the last.
    pub fn widths(&self, i: usize) -> (usize, usize, usize) {
        match &self.decoder {
            Some(decoder) if i >= self.num_layers => (decoder.hidden_size, decoder.num_attention_heads, decoder.mlp_hidden),
            _ => (self.hidden_size, self.num_attention_heads, self.mlp_hidden),
        }
    }

    /// Shape of a table of classes.
    pub fn class_table(&self) -> [usize; 2] {
        if self.decoder.is_some() { [self.hidden_size, self.num_classes] } else { [self.num_classes + 1, self.hidden_size] }
    }

    /// Path of block `i`.
    pub fn block(&self, i: usize) -> String {
        if i >= self.num_layers && self.decoder.is_some() {
            return format!("decoder_blocks.{}", i - self.num_layers);
        }
        let Some(decode) = self.decode_layers else { return format!("transformer_blocks.{i}") };
        let half = self.num_layers.saturating_sub(decode) / 2;
        match self.stage(i) {
            Some(Stage::Out) => format!("en_outblocks.{}", i - half),
            Some(Stage::Decode) => format!("de_blocks.{}", i - 2 * half),
            _ => format!("en_inblocks.{i}"),
        }
    }

    /// Where block `i` stands; none where they follow each other.
    pub fn stage(&self, i: usize) -> Option<Stage> {
        let half = self.num_layers.saturating_sub(self.decode_layers?) / 2;
        Some(match i {
            i if i < half => Stage::In,
            i if i < 2 * half => Stage::Out,
            _ => Stage::Decode,
        })
    }

    /// Entries of the table of biases a head: those by relative position, and three that nothing reads.
    pub fn relative_entries(&self) -> usize {
        let side = 2 * (self.sample_size / self.patch_size) - 1;
        side * side + 3
    }

    /// Path of the embedding of timestep and class that block `i` is told.
    pub fn embedding(&self, i: usize) -> String {
        format!("transformer_blocks.{}.norm1.emb", if self.shared_embedding { 0 } else { i })
    }

    /// Number of such embeddings.
    pub fn embeddings(&self) -> usize {
        if self.shared_embedding { 1 } else { self.num_layers }
    }

    /// Every tensor with its shape, under diffusers' names.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        let (d, patch) = (self.hidden_size, self.patch_size);
        match self.positions {
            Positions::Rotary => list.linear("pos_embed.proj", d, patch * patch * self.in_channels),
            _ => list.conv("pos_embed.proj", d, self.in_channels, patch),
        }
        if self.positions == Positions::Stored {
            list.push("pos_embed.pos_embed", &[1, self.tokens(), d]);
        }
        if self.decode_layers.is_some() || self.decoder.is_some() {
            list.push("decoder_pos_embed", &[1, self.tokens(), self.widths(self.num_layers).0]);
        }
        if let Some(decoder) = &self.decoder {
            list.linear("decoder_layer.modulation", 2 * d, d);
            list.linear("decoder_layer.linear", decoder.hidden_size, d);
        }
        if self.modulation_rank.is_some() {
            list.linear("global_modulation", 6 * d, d);
        }
        for i in 0..self.embeddings() {
            let path = self.embedding(i);
            list.linear(&format!("{path}.timestep_embedder.linear_1"), d, TIME_FEATURES);
            list.linear(&format!("{path}.timestep_embedder.linear_2"), d, d);
            list.push(&format!("{path}.class_embedder.embedding_table.weight"), &self.class_table());
        }
        for i in 0..self.blocks() {
            let (path, (width, _, mlp)) = (self.block(i), self.widths(i));
            let block = |name: &str| format!("{path}.{name}");
            if self.decode_layers.is_some() {
                list.push(&block("attn1.rel_pos_bias.relative_position_bias_table"), &[self.relative_entries(), self.num_attention_heads]);
            }
            if matches!(self.stage(i), Some(Stage::Out | Stage::Decode)) {
                list.linear(&block("skip_linear"), d, 2 * d);
            }
            match self.modulation_rank {
                Some(rank) => {
                    list.linear(&block("norm1.linear"), rank, d);
                    list.linear(&block("norm1.linear_2"), 6 * d, rank);
                }
                None => list.linear(&block("norm1.linear"), 6 * width, d),
            }
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                list.linear(&block(&format!("attn1.{projection}")), width, width);
            }
            for inward in if self.gated_mlp { &["ff.value", "ff.gate"][..] } else { &["ff.net.0.proj"] } {
                list.linear(&block(inward), mlp, width);
            }
            list.linear(&block("ff.net.2"), width, mlp);
        }
        let (width, ..) = self.widths(self.blocks());
        list.linear("proj_out_1", 2 * width, d);
        list.linear("proj_out_2", patch * patch * self.out_channels, width);
        list.0
    }

    /// The position of every token, `[tokens, hidden_size]`, row by row: a quarter of the channels each for sines and cosines of the column, then of the
    /// row, at frequencies `10000^(-k / quarter)`.
    pub fn positions(&self) -> Vec<f32> {
        let (across, quarter) = (self.sample_size / self.patch_size, self.hidden_size / 4);
        let waves = |at: usize| -> Vec<f32> {
            let angle = |k: usize| at as f64 / 10000f64.powf(k as f64 / quarter as f64);
            (0..quarter).map(|k| angle(k).sin() as f32).chain((0..quarter).map(|k| angle(k).cos() as f32)).collect()
        };
        let waves: Vec<Vec<f32>> = (0..across).map(waves).collect();
        (0..across * across).flat_map(|token| [&waves[token % across][..], &waves[token / across][..]].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::tests::bytes_of;
    use crate::weights::{Dtype, Weights};

    #[test]
    fn dit_xl_2_has_the_tensors_and_parameters_that_were_published() {
        let config = DitConfig::default();
        let parameters = |config: &DitConfig| config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        // q, k and v are one tensor in the file.
        assert_eq!((config.tensors().len() - 28 * 4, parameters(&config)), (292, 675_129_632));
        let large = DitConfig { sample_size: 64, ..config };
        assert_eq!((large.tokens(), parameters(&large)), (1024, 675_129_632 + 768 * 1152));
    }

    #[test]
    fn fit_and_mdt_have_the_tensors_and_parameters_that_were_published() {
        let parameters = |config: &DitConfig| config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        let fused = |config: &DitConfig| config.tensors().len() - 4 * config.num_layers;
        let fit = DitConfig { positions: Positions::Rotary, gated_mlp: true, channels_first: true, ..DitConfig::default() };
        assert_eq!((fused(&fit), parameters(&fit)), (347, 823_599_392));
        let second =
            DitConfig { num_layers: 36, mlp_hidden: 3072, out_channels: 4, qk_norm: true, modulation_rank: Some(288), ..fit.clone() };
        assert_eq!((fused(&second), parameters(&second)), (517, 671_045_776));
        assert!(second.validate().is_ok() && second.takes(80, 40) && !second.takes(80, 41) && !second.takes(0, 2));
        // Its files have a side block, a mask token and indices besides, which inference does not need.
        let mdt = DitConfig { decode_layers: Some(4), ..DitConfig::default() };
        let block = 6912 * 1153 + 3456 * 1153 + 1152 * 1153 + 4608 * 1153 + 1152 * 4609 + 964 * 16;
        assert_eq!((fused(&mdt) + 28 + 12 + 1, parameters(&mdt) + block + 1152), (394, 742_263_904));
        assert_eq!(
            [0, 11, 12, 23, 24, 27].map(|i| mdt.block(i)).join(" "),
            "en_inblocks.0 en_inblocks.11 en_outblocks.0 en_outblocks.11 de_blocks.0 de_blocks.3"
        );
        // With the mask token of training.
        let decoder = DitDecoder { hidden_size: 512, num_layers: 8, num_attention_heads: 16, mlp_hidden: 2048 };
        let masked = DitConfig { out_channels: 4, guided_channels: 4, decoder: Some(decoder.clone()), ..DitConfig::default() };
        assert_eq!((fused(&masked) - 4 * 8 + 1, parameters(&masked) + 512), (378, 730_541_200));
        assert_eq!(
            [0, 27, 28, 35].map(|i| masked.block(i)).join(" "),
            "transformer_blocks.0 transformer_blocks.27 decoder_blocks.0 decoder_blocks.7"
        );
        let refused = |config: DitConfig, word: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.contains(word), "{error}");
        };
        refused(DitConfig { decode_layers: Some(3), ..DitConfig::default() }, "pairs");
        refused(DitConfig { decode_layers: Some(29), ..DitConfig::default() }, "pairs");
        refused(DitConfig { sample_size: 256, ..mdt.clone() }, "128x128");
        refused(DitConfig { positions: Positions::Rotary, ..mdt }, "turn");
        refused(DitConfig { num_attention_heads: 96, ..fit.clone() }, "multiples of 8");
        refused(DitConfig { decoder: Some(decoder.clone()), out_channels: 4, ..fit.clone() }, "FiT's or MDT's");
        refused(DitConfig { out_channels: 8, ..masked.clone() }, "as many");
        refused(DitConfig { decoder: Some(DitDecoder { hidden_size: 40, ..decoder }), ..masked }, "40 channels in 16 heads of the decoder");
        refused(DitConfig { modulation_rank: Some(0), ..fit }, "rank");
    }

    #[test]
    fn configs_that_are_impossible_or_unknown_name_the_field() {
        let refused = |json: &str, words: &[&str]| {
            let error = DitConfig::from_json(json, Path::new("config.json")).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{json}: {error}");
        };
        refused(r#"{"num_embeds_ada_norm": 0}"#, &["num_embeds_ada_norm", "between 1"]);
        refused(r#"{"patch_size": 0}"#, &["patch_size"]);
        refused(r#"{"sample_size": [32, 32]}"#, &["sample_size", "whole number"]);
        refused(r#"{"sample_size": 4096}"#, &["sample_size", "512"]);
        refused(r#"{"num_attention_heads": 18446744073709551615}"#, &["num_attention_heads"]);
        refused(r#"{"attention_head_dim": 3, "num_attention_heads": 1}"#, &["3 channels in 1 heads"]);
        refused(r#"{"in_channels": 3}"#, &["3 channels", "multiple of 4"]);
        refused(r#"{"norm_eps": 0}"#, &["norm_eps"]);
        refused(r#"{"attention_bias": false}"#, &["attention_bias"]);
        refused("[]", &["not a JSON object"]);
    }

    #[test]
    fn shapes_of_nothing_are_refused() {
        let shapes: [(&str, &[usize]); 6] = [
            ("x_embedder.proj.weight", &[384, 4, 0, 0]),
            ("pos_embed", &[1, 0, 384]),
            ("y_embedder.embedding_table.weight", &[0, 384]),
            ("blocks.0.adaLN_modulation.1.weight", &[0, 384]),
            ("final_layer.linear.weight", &[0, 384]),
            ("blocks.0.mlp.fc1.weight", &[0, 384]),
        ];
        let tensors = shapes.map(|(name, shape)| (name, Dtype::F32, shape, &[][..]));
        let weights = Weights::from_bytes(bytes_of(&tensors, &[]), "m").unwrap();
        let error = DitConfig::infer(&dit_keys::view(&weights).unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("between 1 and"), "{error}");
    }
}
