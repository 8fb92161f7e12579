//! The configuration of a UNet of Stable Diffusion, SDXL or INFD (diffusers' `UNet2DConditionModel`): from its `config.json`, or from the shapes
//! of its tensors where a single-file checkpoint brings none.
//!
//! Source: diffusers `models/unets/unet_2d_condition.py` and `unet_2d_blocks.py` at 58eb52c.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::infgen_config::TensorList;
use super::vae_config::{Fields, within};
use crate::error::{Error, Result};
use crate::weights::View;

/// Shapes and constants of a UNet. [`UnetConfig::default`] is the one of SD 1.x.
///
/// A list by level goes from the finest, at the latent's own size, to the coarsest, also where it is about the way up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnetConfig {
    /// Channels that go in: 4, or 9 for inpainting (latent, mask, masked picture's latent).
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each level; the sides halve between levels.
    pub block_out_channels: Vec<usize>,
    /// Resnets of each level of the way down; the way up has one more.
    pub layers_per_block: Vec<usize>,
    /// Whether each level of the way down has attention.
    pub down_attention: Vec<bool>,
    /// Whether each level of the way up has attention.
    pub up_attention: Vec<bool>,
    /// What lies between the ways.
    pub mid_block: MidBlockType,
    /// Transformer blocks of each attention of the way down; the last is also the mid block's. 0 everywhere: attentions are self-attention alone, without
    /// transformer blocks around it, in a UNet that is told no prompt.
    pub transformer_layers_per_block: Vec<usize>,
    /// Transformer blocks of each attention of the way up.
    pub up_transformer_layers_per_block: Vec<usize>,
    /// Heads of each level (what diffusers' configs call `attention_head_dim`); the last is also the mid block's.
    pub num_attention_heads: Vec<usize>,
    /// Width of the prompt's tokens; 0 where there is none.
    pub cross_attention_dim: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms of resnets and of the last; those in front of transformers have 1e-6.
    pub norm_eps: f32,
    /// Whether the projections around transformers are stored as matrices (SD 2.x) or as 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Width of the time embedding.
    pub time_embed_dim: usize,
    /// Whether cosines stand before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies.
    pub freq_shift: f64,
    /// Width of the guidance embedding of models that were distilled with guidance (LCM).
    pub time_cond_proj_dim: Option<usize>,
    /// What else is added to the time embedding: SDXL's pooled text and sizes.
    pub added: Option<AddedEmbedding>,
    /// Zero padding of the downsampling convolutions: 1 all round, or 0 for one row and column behind.
    pub downsample_padding: usize,
}

/// An embedding of pooled text and of [`AddedEmbedding::SIZES`] numbers, added to that of the time (diffusers' `text_time`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AddedEmbedding {
    /// Width of the pooled text.
    pub pooled: usize,
    /// Features of each number.
    pub features: usize,
}

impl AddedEmbedding {
    /// Height and width of the original, top and left of the crop, height and width wanted.
    pub const SIZES: usize = 6;

    /// Values that go in.
    pub fn inputs(&self) -> usize {
        self.pooled + Self::SIZES * self.features
    }

    /// From the width of what goes in.
    fn new(inputs: usize, features: usize) -> Result<AddedEmbedding, String> {
        within("addition_time_embed_dim", features, 1 << 14)?;
        within("projection_class_embeddings_input_dim", inputs, 1 << 18)?;
        match inputs.checked_sub(Self::SIZES * features) {
            Some(pooled @ 1..) => Ok(AddedEmbedding { pooled, features }),
            _ => Err(format!("the added embedding takes {inputs} values, too few for {} sizes of {features} features", Self::SIZES)),
        }
    }
}

/// What lies between the way down and the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MidBlockType {
    /// Resnet, attention, resnet.
    CrossAttention,
    /// Nothing, in some distilled models.
    None,
}

/// One attention of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of heads.
    pub heads: usize,
    /// Transformer blocks one after the other; 0: self-attention alone.
    pub layers: usize,
}

/// One block of the way down or up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockShape {
    /// Channels of each tensor that goes into each resnet: one, or on the way up the previous one's and the skip connection's.
    pub resnets: Vec<Vec<usize>>,
    /// Channels that each resnet gives.
    pub channels: usize,
    /// The attention behind each resnet.
    pub attention: Option<AttentionShape>,
    /// Whether the sides are halved (doubled) behind it.
    pub resample: bool,
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: vec![2; 4],
            down_attention: vec![true, true, true, false],
            up_attention: vec![true, true, true, false],
            mid_block: MidBlockType::CrossAttention,
            transformer_layers_per_block: vec![1; 4],
            up_transformer_layers_per_block: vec![1; 4],
            num_attention_heads: vec![8; 4],
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            time_embed_dim: 1280,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_cond_proj_dim: None,
            added: None,
            downsample_padding: 1,
        }
    }
}

const MAX_LEVELS: usize = 8;
const MAX_LAYERS: usize = 16;
const MAX_TRANSFORMER_LAYERS: usize = 64;

/// Fields that would change the network in ways that are not known here, with the values that do not.
const DEFAULTS: [(&str, &[&str]); 25] = [
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("only_cross_attention", &["false"]),
    ("mid_block_only_cross_attention", &["false"]),
    ("dual_cross_attention", &["false"]),
    ("center_input_sample", &["false"]),
    ("encoder_hid_dim", &[]),
    ("encoder_hid_dim_type", &[]),
    ("num_attention_heads", &[]),
    ("class_embed_type", &[]),
    ("num_class_embeds", &[]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("time_embedding_type", &["\"positional\""]),
    ("time_embedding_act_fn", &[]),
    ("timestep_post_act", &[]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("attention_type", &["\"default\""]),
    ("class_embeddings_concat", &["false"]),
    ("cross_attention_norm", &[]),
    ("resnet_act_fn", &["\"silu\"", "\"swish\""]),
    ("downsample_type", &["\"conv\""]),
    ("upsample_type", &["\"conv\""]),
];

impl UnetConfig {
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
        fields.only("_class_name", &["UNet2DConditionModel"])?;
        for (field, allowed) in DEFAULTS {
            if let Some(value) = fields.get(field).filter(|value| !allowed.contains(&value.to_string().as_str())) {
                return Err(format!("`{field}` is {value}, which is not known to this version"));
            }
        }
        let block_out_channels = fields.sizes("block_out_channels")?.unwrap_or_else(|| vec![320, 640, 1280, 1280]);
        let levels = block_out_channels.len();
        let by_level = |field: &str, default: usize| -> Result<Vec<usize>, String> {
            let list = match fields.get(field) {
                Some(Value::Array(_)) => fields.sizes(field)?.unwrap_or_default(),
                _ => vec![fields.size(field)?.unwrap_or(default); levels],
            };
            match list.len() {
                n if n == levels => Ok(list),
                n => Err(format!("`{field}` has {n} entries, `block_out_channels` {levels}")),
            }
        };
        let attention = |field: &str, without: &str, with: &str, default: &[bool]| -> Result<Vec<bool>, String> {
            let list = match fields.get(field) {
                None => default.to_vec(),
                Some(value) => {
                    let kinds = value.as_array().ok_or_else(|| format!("`{field}` is no list"))?;
                    let known = |kind: &Value| match kind.as_str() {
                        Some(kind) if kind == without => Ok(false),
                        Some(kind) if kind == with => Ok(true),
                        _ => Err(format!("`{field}` holds {kind}; {without} and {with} are known to this version")),
                    };
                    kinds.iter().map(known).collect::<Result<_, _>>()?
                }
            };
            match list.len() {
                n if n == levels => Ok(list),
                n => Err(format!("`{field}` has {n} entries, `block_out_channels` {levels}")),
            }
        };
        let down_attention = attention("down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", &[true, true, true, false])?;
        let mut up_attention = attention("up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", &[false, true, true, true])?;
        up_attention.reverse();
        // An absent mid block type is the usual one, `null` is none: `Fields` does not tell them apart.
        let absent = serde_json::from_str::<Value>(json).is_ok_and(|config| config.get("mid_block_type").is_none());
        fields.only("mid_block_type", &["UNetMidBlock2DCrossAttn"])?;
        let mid_block = if absent || fields.get("mid_block_type").is_some() { MidBlockType::CrossAttention } else { MidBlockType::None };
        let transformer_layers_per_block = by_level("transformer_layers_per_block", 1)?;
        let mut up_transformer_layers_per_block = match fields.get("reverse_transformer_layers_per_block") {
            Some(_) => by_level("reverse_transformer_layers_per_block", 1)?,
            None => transformer_layers_per_block.iter().rev().copied().collect(),
        };
        up_transformer_layers_per_block.reverse();
        let contexts = by_level("cross_attention_dim", 1280)?;
        if contexts.iter().any(|c| *c != contexts[0]) {
            return Err(format!("`cross_attention_dim` is {contexts:?}: one width for all levels is known to this version"));
        }
        fields.only("addition_embed_type", &["text_time"])?;
        let added = match fields.get("addition_embed_type") {
            Some(_) => {
                let needed =
                    |field: &str| fields.size(field)?.ok_or_else(|| format!("`{field}` is missing, which `addition_embed_type` needs"));
                Some(AddedEmbedding::new(needed("projection_class_embeddings_input_dim")?, needed("addition_time_embed_dim")?)?)
            }
            None => None,
        };
        let base = block_out_channels.first().copied().unwrap_or_default();
        let config = Self {
            in_channels: fields.size("in_channels")?.unwrap_or(4),
            out_channels: fields.size("out_channels")?.unwrap_or(4),
            layers_per_block: by_level("layers_per_block", 2)?,
            down_attention,
            up_attention,
            mid_block,
            transformer_layers_per_block,
            up_transformer_layers_per_block,
            num_attention_heads: by_level("attention_head_dim", 8)?,
            cross_attention_dim: contexts.first().copied().unwrap_or_default(),
            norm_num_groups: match fields.get("norm_num_groups") {
                Some(_) => fields.size("norm_num_groups")?.unwrap_or_default(),
                None => 32,
            },
            norm_eps: fields.real("norm_eps")?.unwrap_or(1e-5) as f32,
            use_linear_projection: fields.flag("use_linear_projection")?.unwrap_or(false),
            time_embed_dim: fields.size("time_embedding_dim")?.unwrap_or(base.saturating_mul(4)),
            flip_sin_to_cos: fields.flag("flip_sin_to_cos")?.unwrap_or(true),
            freq_shift: fields.real("freq_shift")?.unwrap_or(0.0),
            time_cond_proj_dim: fields.size("time_cond_proj_dim")?,
            added,
            downsample_padding: fields.size("downsample_padding")?.unwrap_or(1),
            block_out_channels,
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads the sizes off the tensors. What shapes cannot tell is the family's habit: 32 groups; 8 heads where projections are
    /// 1x1 convolutions (SD 1.x), heads 64 wide where they are matrices (SD 2.x, SDXL), 32 where there is self-attention alone (INFD); 256 features of
    /// each size (SDXL).
    ///
    /// # Errors
    /// [`Error::Config`] for shapes that no such UNet has.
    pub fn infer(view: &View) -> Result<Self> {
        Self::inferred(view).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View) -> Result<Self, String> {
        let shape = |name: &str| view.info(name).map(|info| info.shape.to_vec());
        let needed = |name: &str, axes: usize| {
            shape(name).filter(|s| s.len() >= axes).ok_or_else(|| format!("`{}` is missing or of another kind", view.file_name(name)))
        };
        let added = match shape("add_embedding.linear_1.weight").as_deref() {
            Some([_, inputs]) => Some(AddedEmbedding::new(*inputs, 256)?),
            _ => None,
        };
        let (conv_in, conv_out) = (needed("conv_in.weight", 4)?, needed("conv_out.weight", 4)?);
        let mut channels = Vec::new();
        let mut layers = Vec::new();
        while let Some(first) =
            shape(&format!("down_blocks.{}.resnets.0.conv1.weight", channels.len())).filter(|_| channels.len() <= MAX_LEVELS)
        {
            let i = channels.len();
            layers.push((0..=MAX_LAYERS).take_while(|n| view.contains(&format!("down_blocks.{i}.resnets.{n}.conv1.weight"))).count());
            channels.push(first[0]);
        }
        let levels = channels.len();
        let depth = |attention: &str| {
            let block = |k: &usize| view.contains(&format!("{attention}.transformer_blocks.{k}.norm1.weight"));
            (0..=MAX_TRANSFORMER_LAYERS).take_while(block).count()
        };
        let down = |i: usize| format!("down_blocks.{i}.attentions.0");
        let up = |i: usize| format!("up_blocks.{}.attentions.0", levels - 1 - i);
        let mid = "mid_block.attentions.0".to_owned();
        let depths = |of: &dyn Fn(usize) -> String| (0..levels).map(|i| depth(&of(i))).collect::<Vec<_>>();
        let (mut down_depths, up_depths) = (depths(&down), depths(&up));
        if let Some(last) = down_depths.last_mut().filter(|last| **last == 0) {
            *last = depth(&mid);
        }
        let any = (0..levels).flat_map(|i| [down(i), up(i)]).chain([mid.clone()]).find(|attention| depth(attention) > 0);
        let own = |attention: String| view.contains(&format!("{attention}.group_norm.weight"));
        let (use_linear_projection, cross_attention_dim) = match &any {
            Some(any) => (
                needed(&format!("{any}.proj_in.weight"), 2)?.len() == 2,
                needed(&format!("{any}.transformer_blocks.0.attn2.to_k.weight"), 2)?[1],
            ),
            None if view.own_heads().is_some() && own(mid.clone()) => (false, 0),
            None => return Err("there is no attention to a prompt in it".into()),
        };
        let time = needed("time_embedding.linear_1.weight", 2)?;
        let told = any.is_some();
        let heads = |c: &usize| match (told, use_linear_projection) {
            (true, false) => 8,
            (true, true) => (c / 64).max(1),
            (false, _) => view.own_heads().map_or(1, |width| (c / width).max(1)),
        };
        let has = |depth: usize, attention: String| depth > 0 || !told && own(attention);
        let blocks = |depths: &[usize]| depths.iter().map(|depth| (*depth).max(told as usize)).collect::<Vec<_>>();
        let config = Self {
            in_channels: conv_in[1],
            out_channels: conv_out[0],
            layers_per_block: layers,
            down_attention: (0..levels).map(|i| has(depth(&down(i)), down(i))).collect(),
            up_attention: (0..levels).map(|i| has(up_depths[i], up(i))).collect(),
            mid_block: if depth(&mid) > 0 || !told { MidBlockType::CrossAttention } else { MidBlockType::None },
            transformer_layers_per_block: blocks(&down_depths),
            up_transformer_layers_per_block: blocks(&up_depths),
            num_attention_heads: channels.iter().map(heads).collect(),
            cross_attention_dim,
            use_linear_projection,
            time_embed_dim: time[0],
            time_cond_proj_dim: shape("time_embedding.cond_proj.weight").and_then(|s| s.get(1).copied()),
            added,
            block_out_channels: channels,
            ..Self::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the values are possible and fit together.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn validate(&self) -> Result<(), String> {
        within("in_channels", self.in_channels, 1024)?;
        within("out_channels", self.out_channels, 1024)?;
        within("number of block_out_channels", self.block_out_channels.len(), MAX_LEVELS)?;
        within("norm_num_groups", self.norm_num_groups, 4096)?;
        within("time_embedding_dim", self.time_embed_dim, 1 << 16)?;
        within("time_cond_proj_dim", self.time_cond_proj_dim.unwrap_or(1), 1 << 16)?;
        for &layers in &self.layers_per_block {
            within("layers_per_block", layers, MAX_LAYERS)?;
        }
        let mut depths = self.transformer_layers_per_block.iter().chain(&self.up_transformer_layers_per_block);
        if self.cross_attention_dim > 0 || depths.clone().any(|layers| *layers > 0) {
            within("cross_attention_dim", self.cross_attention_dim, 1 << 16)?;
            depths.try_for_each(|layers| within("transformer_layers_per_block", *layers, MAX_TRANSFORMER_LAYERS))?;
        }
        for (&channels, &heads) in self.block_out_channels.iter().zip(&self.num_attention_heads) {
            within("block_out_channels", channels, 1 << 14)?;
            within("attention_head_dim", heads, 1024)?;
            if !channels.is_multiple_of(self.norm_num_groups) {
                let groups = self.norm_num_groups;
                return Err(format!("`block_out_channels` holds {channels}, not a multiple of `norm_num_groups` {groups}"));
            }
            if heads > channels {
                return Err(format!("`attention_head_dim` (the number of heads) is {heads} where there are {channels} channels"));
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(format!("`norm_eps` is {}, it must lie between 0 and 1", self.norm_eps));
        }
        if self.downsample_padding > 1 {
            return Err(format!("`downsample_padding` is {}, it must be 0 or 1", self.downsample_padding));
        }
        let features = self.added.map_or(usize::MAX, |added| added.features).min(self.block_out_channels[0]);
        let frequencies = (features / 2) as f64;
        if !(self.freq_shift >= 0.0 && self.freq_shift < frequencies.max(1.0)) {
            return Err(format!("`freq_shift` is {}, it must not be negative and lie below {frequencies}", self.freq_shift));
        }
        Ok(())
    }

    /// Sides of a latent that are multiples of this halve and double exactly.
    pub fn multiple(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The least side of a latent: where downsampling pads behind only, a side of 1 has no next level.
    pub fn smallest(&self) -> usize {
        if self.downsample_padding == 0 { self.multiple() } else { 1 }
    }

    /// The blocks of the way down, from the finest.
    pub fn down_blocks(&self) -> Vec<BlockShape> {
        let levels = self.block_out_channels.len();
        let mut previous = self.block_out_channels[0];
        let mut block = |i: usize| {
            let channels = self.block_out_channels[i];
            let resnets = (0..self.layers_per_block[i]).map(|_| vec![std::mem::replace(&mut previous, channels)]).collect();
            let attention = AttentionShape { heads: self.num_attention_heads[i], layers: self.transformer_layers_per_block[i] };
            BlockShape { resnets, channels, attention: self.down_attention[i].then_some(attention), resample: i + 1 < levels }
        };
        (0..levels).map(&mut block).collect()
    }

    /// Channels and attention of the mid block, if there is one.
    pub fn mid(&self) -> Option<(usize, AttentionShape)> {
        let last = self.block_out_channels.len() - 1;
        let attention = AttentionShape { heads: self.num_attention_heads[last], layers: self.transformer_layers_per_block[last] };
        (self.mid_block == MidBlockType::CrossAttention).then_some((self.block_out_channels[last], attention))
    }

    /// The blocks of the way up, from the coarsest. A resnet's second input is the skip connection that it takes.
    pub fn up_blocks(&self) -> Vec<BlockShape> {
        // What the way down leaves: conv_in, every resnet, every downsampling.
        let mut skips = vec![self.block_out_channels[0]];
        for block in self.down_blocks() {
            skips.extend(std::iter::repeat_n(block.channels, block.resnets.len() + block.resample as usize));
        }
        let mut previous = *self.block_out_channels.last().expect("validated");
        let mut block = |i: usize| {
            let channels = self.block_out_channels[i];
            let mut resnet = |_| {
                let skip = skips.pop().expect("as many as are taken");
                vec![std::mem::replace(&mut previous, channels), skip]
            };
            let resnets = (0..self.layers_per_block[i] + 1).map(&mut resnet).collect();
            let attention = AttentionShape { heads: self.num_attention_heads[i], layers: self.up_transformer_layers_per_block[i] };
            BlockShape { resnets, channels, attention: self.up_attention[i].then_some(attention), resample: i > 0 }
        };
        (0..self.block_out_channels.len()).rev().map(&mut block).collect()
    }

    /// Name (diffusers') and shape of every tensor.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        let base = self.block_out_channels[0];
        list.conv("conv_in", base, self.in_channels, 3);
        list.linear("time_embedding.linear_1", self.time_embed_dim, base);
        if let Some(width) = self.time_cond_proj_dim {
            list.push("time_embedding.cond_proj.weight", &[base, width]);
        }
        list.linear("time_embedding.linear_2", self.time_embed_dim, self.time_embed_dim);
        if let Some(added) = self.added {
            list.linear("add_embedding.linear_1", self.time_embed_dim, added.inputs());
            list.linear("add_embedding.linear_2", self.time_embed_dim, self.time_embed_dim);
        }
        let sides = [("down_blocks", "downsamplers", self.down_blocks()), ("up_blocks", "upsamplers", self.up_blocks())];
        for (side, sampler, blocks) in sides {
            for (i, block) in blocks.into_iter().enumerate() {
                let path = format!("{side}.{i}");
                for (n, sources) in block.resnets.iter().enumerate() {
                    self.resnet(&mut list, &format!("{path}.resnets.{n}"), sources.iter().sum(), block.channels);
                    if let Some(attention) = block.attention {
                        self.attention(&mut list, &format!("{path}.attentions.{n}"), block.channels, attention);
                    }
                }
                if block.resample {
                    list.conv(&format!("{path}.{sampler}.0.conv"), block.channels, block.channels, 3);
                }
            }
        }
        if let Some((channels, attention)) = self.mid() {
            self.resnet(&mut list, "mid_block.resnets.0", channels, channels);
            self.attention(&mut list, "mid_block.attentions.0", channels, attention);
            self.resnet(&mut list, "mid_block.resnets.1", channels, channels);
        }
        list.norm("conv_norm_out", base);
        list.conv("conv_out", self.out_channels, base, 3);
        list.0
    }

    fn resnet(&self, list: &mut TensorList, path: &str, cin: usize, cout: usize) {
        list.norm(&format!("{path}.norm1"), cin);
        list.conv(&format!("{path}.conv1"), cout, cin, 3);
        list.linear(&format!("{path}.time_emb_proj"), cout, self.time_embed_dim);
        list.norm(&format!("{path}.norm2"), cout);
        list.conv(&format!("{path}.conv2"), cout, cout, 3);
        if cin != cout {
            list.conv(&format!("{path}.conv_shortcut"), cout, cin, 1);
        }
    }

    fn attention(&self, list: &mut TensorList, path: &str, channels: usize, shape: AttentionShape) {
        let inner = channels / shape.heads * shape.heads;
        if shape.layers == 0 {
            list.norm(&format!("{path}.group_norm"), channels);
            for name in ["to_q", "to_k", "to_v"] {
                list.linear(&format!("{path}.{name}"), inner, channels);
            }
            list.linear(&format!("{path}.to_out.0"), channels, inner);
            return;
        }
        let projection = |list: &mut TensorList, path: &str, out: usize, input: usize| {
            if self.use_linear_projection { list.linear(path, out, input) } else { list.conv(path, out, input, 1) }
        };
        list.norm(&format!("{path}.norm"), channels);
        projection(list, &format!("{path}.proj_in"), inner, channels);
        for k in 0..shape.layers {
            let block = |name: &str| format!("{path}.transformer_blocks.{k}.{name}");
            for (attn, context) in [("attn1", inner), ("attn2", self.cross_attention_dim)] {
                list.push(&block(&format!("{attn}.to_q.weight")), &[inner, inner]);
                list.push(&block(&format!("{attn}.to_k.weight")), &[inner, context]);
                list.push(&block(&format!("{attn}.to_v.weight")), &[inner, context]);
                list.linear(&block(&format!("{attn}.to_out.0")), inner, inner);
            }
            for norm in ["norm1", "norm2", "norm3"] {
                list.norm(&block(norm), inner);
            }
            list.linear(&block("ff.net.0.proj"), 8 * inner, inner);
            list.linear(&block("ff.net.2"), inner, 4 * inner);
        }
        projection(list, &format!("{path}.proj_out"), channels, inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<UnetConfig, String> {
        UnetConfig::from_json(json, Path::new("unet/config.json")).map_err(|e| e.to_string())
    }

    fn parameters(config: &UnetConfig) -> usize {
        config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    const SD15: &str = r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;

    const SDXL: &str = r#"{"_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "class_embed_type": null, "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "in_channels": 4, "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 32, "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128, "transformer_layers_per_block": [1, 2, 10], "upcast_attention": null, "use_linear_projection": true,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}"#;

    #[test]
    fn published_configs_have_their_numbers_of_tensors_and_parameters() {
        let sd15 = parse(SD15).unwrap();
        assert_eq!(sd15, UnetConfig::default());
        assert_eq!((sd15.tensors().len(), parameters(&sd15)), (686, 859_520_964));
        let sd21 = SD15.replace(
            r#""attention_head_dim": 8"#,
            r#""attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true, "upcast_attention": true"#,
        );
        let sd21 = parse(&sd21.replace(r#""cross_attention_dim": 768"#, r#""cross_attention_dim": 1024"#)).unwrap();
        assert_eq!((sd21.tensors().len(), parameters(&sd21)), (686, 865_910_724));
        let sdxl = parse(SDXL).unwrap();
        assert_eq!((sdxl.tensors().len(), parameters(&sdxl)), (1680, 2_567_463_684));
        let inpainting = parse(&SD15.replace(r#""in_channels": 4"#, r#""in_channels": 9"#)).unwrap();
        assert_eq!(parameters(&inpainting), 859_535_364);
    }

    #[test]
    fn skip_connections_are_those_of_the_specification() {
        let up = UnetConfig::default().up_blocks();
        let inputs: Vec<Vec<usize>> = up.iter().map(|block| block.resnets.iter().map(|sources| sources.iter().sum()).collect()).collect();
        assert_eq!(inputs, [[2560, 2560, 2560], [2560, 2560, 1920], [1920, 1280, 960], [960, 640, 640]]);
        assert_eq!(up.iter().map(|block| block.attention.is_some()).collect::<Vec<_>>(), [false, true, true, true]);
        assert_eq!(up.iter().map(|block| block.resample).collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn lists_by_level_go_from_the_finest_on_both_ways() {
        let config = parse(
            r#"{"block_out_channels": [32, 64, 96], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": [1, 2, 3],
            "attention_head_dim": [2, 4, 8], "transformer_layers_per_block": [1, 2, 3], "mid_block_type": null}"#,
        )
        .unwrap();
        assert_eq!(config.up_attention, [true, false, true]);
        assert_eq!(config.mid(), None);
        let (down, up) = (config.down_blocks(), config.up_blocks());
        assert_eq!(down[2].attention, Some(AttentionShape { heads: 8, layers: 3 }));
        assert_eq!(up[0].attention, Some(AttentionShape { heads: 8, layers: 3 }));
        assert_eq!(up[2].attention, Some(AttentionShape { heads: 2, layers: 1 }));
        assert_eq!(up[0].resnets, [[96, 96], [96, 96], [96, 96], [96, 64]]);
        assert_eq!(up[2].resnets, [[64, 32], [32, 32]]);
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (json, field) in [
            (r#"{"_class_name": "UNet2DModel"}"#, "_class_name"),
            (r#"{"addition_embed_type": "text_image"}"#, "addition_embed_type"),
            (r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 256}"#, "projection_class_embeddings_input_dim"),
            (
                r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 1536}"#,
                "too few",
            ),
            (r#"{"class_embed_type": "timestep"}"#, "class_embed_type"),
            (r#"{"act_fn": "gelu"}"#, "act_fn"),
            (r#"{"only_cross_attention": [true, true, true, false]}"#, "only_cross_attention"),
            (r#"{"down_block_types": ["DownBlock2D"]}"#, "down_block_types"),
            (r#"{"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D", "AttnUpBlock2D"]}"#, "AttnUpBlock2D"),
            (r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#, "mid_block_type"),
            (r#"{"block_out_channels": []}"#, "block_out_channels"),
            (r#"{"block_out_channels": [320, 640, 1280, 1281]}"#, "norm_num_groups"),
            (r#"{"layers_per_block": [2, 2]}"#, "layers_per_block"),
            (r#"{"layers_per_block": 0}"#, "layers_per_block"),
            (r#"{"attention_head_dim": 0}"#, "attention_head_dim"),
            (r#"{"attention_head_dim": 1000}"#, "attention_head_dim"),
            (r#"{"cross_attention_dim": [1, 2, 3, 4]}"#, "cross_attention_dim"),
            (r#"{"norm_num_groups": 0}"#, "norm_num_groups"),
            (r#"{"downsample_padding": 2}"#, "downsample_padding"),
            (r#"{"freq_shift": 1000}"#, "freq_shift"),
            ("[]", "JSON object"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(field) && error.starts_with("unet/config.json: "), "{json}: {error}");
        }
    }
}
