//! The UNet of Stable Diffusion 1.x, 2.x and SDXL: noisy latent, timestep and prompt to a prediction; and INFD's, which is told no prompt.
//!
//! Source: diffusers `models/unets/unet_2d_condition.py`, `unet_2d_blocks.py` at 58eb52c; CompVis stable-diffusion
//! `ldm/modules/diffusionmodules/openaimodel.py` at 21f890f; yinboc/infd `diffusion/unet.py` at b79aafe.
//!
//! A run has three parts, which may be recordings of their own: [`Unet::prompt`] once a prompt, [`Unet::step`] once a timestep (in SDXL once a
//! timestep and prompt), and [`Unet::forward`] once a timestep and prompt. What they share are tensors: those of a prompt outlive recordings if they come from
//! [`Unet::allocate_prompt`].

use super::unet_config::{AddedEmbedding, AttentionShape, BlockShape, UnetConfig};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::output::count_nonfinite;
use crate::kernels::resample::resample_nearest;
use crate::nn::{
    Conv3x3, GroupNorm, GroupNormConfig, KeysAndValues, Linear, Loader, Precision, ResnetBlock, SelfAttention, StridedConv, TimeEmbedding,
    TimeEmbeddingShape, Transformer2d, TransformerShape, UpsampleConv, timestep_features,
};

/// Doubling of the sides on the way up, then a 3x3 convolution.
#[derive(Debug)]
enum Upsampler {
    /// Sides double exactly: four 2x2 convolutions of the small plane, 2.25 times fewer operations.
    Doubling(UpsampleConv),
    /// To any size: the enlarged plane is stored. A last row or column that is cut off must be zero to the convolution, so the
    /// other form does not fit.
    AnySize(Conv3x3),
}

/// One block of the way down or up.
#[derive(Debug)]
struct Block {
    path: String,
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Attention>,
    downsampler: Option<StridedConv>,
    upsampler: Option<Upsampler>,
}

/// Resnet, attention, resnet.
#[derive(Debug)]
struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Attention,
}

/// What lies behind a resnet.
#[derive(Debug)]
enum Attention {
    /// Transformer blocks, which read the prompt.
    Transformer(Box<Transformer2d>),
    /// Self-attention alone, of a UNet that is told none.
    Own(Box<SelfAttention>),
}

impl Attention {
    async fn load(loader: &Loader<'_>, path: &str, config: &UnetConfig, channels: usize, shape: AttentionShape) -> Result<Attention> {
        let AttentionShape { heads, layers } = shape;
        if layers == 0 {
            return Ok(Attention::Own(Box::new(SelfAttention::load(loader, path, channels, heads, norm(config)).await?)));
        }
        let shape = TransformerShape {
            channels,
            heads,
            layers,
            context: config.cross_attention_dim,
            groups: config.norm_num_groups,
            linear_projection: config.use_linear_projection,
        };
        Ok(Attention::Transformer(Box::new(Transformer2d::load(loader, path, shape).await?)))
    }

    fn transformer(&self) -> Option<&Transformer2d> {
        match self {
            Attention::Transformer(transformer) => Some(transformer),
            Attention::Own(_) => None,
        }
    }
}

/// A loaded UNet.
#[derive(Debug)]
pub struct Unet {
    config: UnetConfig,
    precision: Precision,
    any_size: bool,
    time_embedding: TimeEmbedding,
    /// What SDXL adds to it.
    add_embedding: Option<[Linear; 2]>,
    conv_in: Conv3x3,
    down_blocks: Vec<Block>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

/// What a prompt is in every attention layer, and what it adds to the time embedding; [`Prompt::default`] for a UNet that is told none.
#[derive(Debug, Default)]
pub struct Prompt {
    /// Keys and values, in the order of computation.
    layers: Vec<KeysAndValues>,
    /// SDXL's added embedding, `[1, 1, time_embed_dim]` in f32.
    added: Option<Tensor>,
}

/// What a timestep adds in every resnet, in the order of computation.
#[derive(Debug)]
pub struct Step(Vec<Tensor>);

/// What goes into SDXL's added embedding: `pooled` and the features of `sizes` (height and width of the original, top and left of the crop, height
/// and width wanted, in pixels), `[pooled + 6 features]`.
///
/// Source: diffusers `models/unets/unet_2d_condition.py` `get_aug_embed`, `pipeline_stable_diffusion_xl.py` `_get_add_time_ids`.
pub fn added_features(config: &UnetConfig, pooled: &[f32], sizes: [usize; AddedEmbedding::SIZES]) -> Vec<f32> {
    let features = config.added.map_or(0, |added| added.features);
    let waves = sizes.iter().flat_map(|&size| timestep_features(size as f64, features, config.flip_sin_to_cos, config.freq_shift));
    pooled.iter().copied().chain(waves).collect()
}

impl Block {
    async fn load(loader: &Loader<'_>, path: String, config: &UnetConfig, shape: &BlockShape) -> Result<Block> {
        let mut block = Block { resnets: Vec::new(), attentions: Vec::new(), downsampler: None, upsampler: None, path };
        for (n, sources) in shape.resnets.iter().enumerate() {
            let path = format!("{}.resnets.{n}", block.path);
            block.resnets.push(load_resnet(loader, &path, config, sources, shape.channels).await?);
            if let Some(attention) = shape.attention {
                let path = format!("{}.attentions.{n}", block.path);
                block.attentions.push(Attention::load(loader, &path, config, shape.channels, attention).await?);
            }
        }
        Ok(block)
    }
}

async fn load_resnet(loader: &Loader<'_>, path: &str, config: &UnetConfig, sources: &[usize], channels: usize) -> Result<ResnetBlock> {
    ResnetBlock::load_with(loader, path, sources, channels, norm(config), Some(config.time_embed_dim)).await
}

fn norm(config: &UnetConfig) -> GroupNormConfig {
    GroupNormConfig { groups: config.norm_num_groups, eps: config.norm_eps }
}

impl Unet {
    /// Loads the UNet. `any_size`: latents whose sides are no multiples of [`UnetConfig::multiple`] are welcome too, which costs 2.25
    /// times the operations of the upsampling convolutions (5 % of all in SD 1.5); the weights take as much memory.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &UnetConfig, any_size: bool) -> Result<Unet> {
        let base = config.block_out_channels[0];
        let time = TimeEmbeddingShape {
            features: base,
            width: config.time_embed_dim,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
            guidance: config.time_cond_proj_dim,
        };
        let time_embedding = TimeEmbedding::load(loader, "time_embedding", time).await?;
        let width = config.time_embed_dim;
        let add_embedding = match config.added {
            Some(added) => Some([
                Linear::load(loader, "add_embedding.linear_1", added.inputs(), width).await?,
                Linear::load(loader, "add_embedding.linear_2", width, width).await?,
            ]),
            None => None,
        };
        let conv_in = Conv3x3::load(loader, "conv_in", config.in_channels, base).await?;
        let mut down_blocks = Vec::new();
        for (i, shape) in config.down_blocks().iter().enumerate() {
            let mut block = Block::load(loader, format!("down_blocks.{i}"), config, shape).await?;
            if shape.resample {
                let path = format!("{}.downsamplers.0.conv", block.path);
                let geometry = if config.downsample_padding == 1 { StridedConv::PAD_BOTH } else { StridedConv::PAD_AFTER };
                block.downsampler = Some(StridedConv::load(loader, &path, (shape.channels, shape.channels), true, geometry).await?);
            }
            down_blocks.push(block);
        }
        let mid_block = match config.mid() {
            Some((channels, attention)) => Some(MidBlock {
                resnets: [
                    load_resnet(loader, "mid_block.resnets.0", config, &[channels], channels).await?,
                    load_resnet(loader, "mid_block.resnets.1", config, &[channels], channels).await?,
                ],
                attention: Attention::load(loader, "mid_block.attentions.0", config, channels, attention).await?,
            }),
            None => None,
        };
        let mut up_blocks = Vec::new();
        for (u, shape) in config.up_blocks().iter().enumerate() {
            let mut block = Block::load(loader, format!("up_blocks.{u}"), config, shape).await?;
            if shape.resample {
                let (path, c) = (format!("{}.upsamplers.0.conv", block.path), shape.channels);
                block.upsampler = Some(match any_size {
                    true => Upsampler::AnySize(Conv3x3::load(loader, &path, c, c).await?),
                    false => Upsampler::Doubling(UpsampleConv::load(loader, &path, (c, c), true).await?),
                });
            }
            up_blocks.push(block);
        }
        Ok(Unet {
            config: config.clone(),
            precision: loader.precision(),
            any_size,
            time_embedding,
            add_embedding,
            conv_in,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(loader, "conv_norm_out", base, config.norm_num_groups, config.norm_eps).await?,
            conv_out: Conv3x3::load(loader, "conv_out", base, config.out_channels).await?,
        })
    }

    /// The configuration that it was loaded with.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Those that read the prompt.
    fn transformers(&self) -> impl Iterator<Item = &Transformer2d> {
        let down = self.down_blocks.iter().flat_map(|block| &block.attentions);
        let mid = self.mid_block.iter().map(|mid| &mid.attention);
        down.chain(mid).chain(self.up_blocks.iter().flat_map(|block| &block.attentions)).filter_map(Attention::transformer)
    }

    /// Whether it was loaded for latents of any size.
    pub fn any_size(&self) -> bool {
        self.any_size
    }

    fn resnets(&self) -> impl Iterator<Item = (String, &ResnetBlock)> {
        let named = |block: &'_ Block, n: usize| format!("{}.resnets.{n}", block.path);
        let down = self.down_blocks.iter().flat_map(move |b| b.resnets.iter().enumerate().map(move |(n, r)| (named(b, n), r)));
        let mid = self.mid_block.iter().flat_map(|mid| mid.resnets.iter().enumerate().map(|(n, r)| (format!("mid_block.resnets.{n}"), r)));
        let up = self.up_blocks.iter().flat_map(move |b| b.resnets.iter().enumerate().map(move |(n, r)| (named(b, n), r)));
        down.chain(mid).chain(up)
    }

    /// Memory for a prompt of `tokens` tokens that outlives recordings, to be filled by [`Unet::prompt_into`].
    ///
    /// # Errors
    /// As [`Gpu::resident`].
    pub async fn allocate_prompt(&self, gpu: &Gpu, tokens: usize) -> Result<Prompt> {
        let elem = self.precision.activations;
        let mut layers = Vec::new();
        for width in self.transformers().flat_map(Transformer2d::prompt_widths) {
            let zeros = vec![0; tokens * width / 4 * elem.bytes() as usize];
            let keys = gpu.resident("keys of a prompt", &zeros, tokens, 1, width, elem).await?;
            layers.push((keys, gpu.resident("values of a prompt", &zeros, tokens, 1, width, elem).await?));
        }
        let added = match self.config.added {
            Some(_) => Some(gpu.reserve("added embedding", 1, 1, self.config.time_embed_dim, Elem::F32).await?),
            None => None,
        };
        Ok(Prompt { layers, added })
    }

    /// [`Unet::allocate_prompt`] for recordings that are planned and never run, and the bytes that it would take.
    pub fn planned_prompt(&self, tokens: usize) -> (Prompt, u64) {
        let widths = self.transformers().flat_map(Transformer2d::prompt_widths);
        let plane = |width| Tensor::outside(tokens, 1, width, self.precision.activations);
        let layers: Vec<KeysAndValues> = widths.map(|width| (plane(width), plane(width))).collect();
        let added = self.config.added.map(|_| Tensor::outside(1, 1, self.config.time_embed_dim, Elem::F32));
        let all = layers.iter().flat_map(|(keys, values)| [keys, values]).chain(&added);
        let bytes = all.map(Tensor::resident_bytes).sum();
        (Prompt { layers, added }, bytes)
    }

    /// Keys and values of a prompt (`[tokens, cross_attention_dim]`) in every attention layer, for this recording. `added`: what [`added_features`]
    /// gives, for SDXL.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a prompt of another width, and for `added` that is missing, or not known to this UNet.
    pub fn prompt(&self, rec: &mut Recorder, context: &Tensor, added: Option<&[f32]>) -> Result<Prompt> {
        let (tokens, elem) = (context.pixels(), self.precision.activations);
        let widths = self.transformers().flat_map(Transformer2d::prompt_widths);
        let prompt = Prompt {
            layers: widths.map(|w| (rec.tensor(tokens, 1, w, elem), rec.tensor(tokens, 1, w, elem))).collect(),
            added: self.config.added.map(|_| rec.tensor(1, 1, self.config.time_embed_dim, Elem::F32)),
        };
        self.prompt_into(rec, context, added, &prompt)?;
        Ok(prompt)
    }

    /// [`Unet::prompt`] into memory from [`Unet::allocate_prompt`], for other recordings.
    ///
    /// # Errors
    /// As [`Unet::prompt`]; also for another number of tokens.
    pub fn prompt_into(&self, rec: &mut Recorder, context: &Tensor, added: Option<&[f32]>, into: &Prompt) -> Result<()> {
        let tokens = into.layers.first().map_or(context.pixels(), |(keys, _)| keys.pixels());
        let expected = (tokens, self.config.cross_attention_dim);
        if (context.pixels(), context.channels) != expected {
            let detail = format!(
                "{} tokens of width {}, the UNet takes {} of width {}: is the text encoder another model's?",
                context.pixels(),
                context.channels,
                expected.0,
                expected.1
            );
            return Err(Error::Invalid { what: "prompt embedding", detail });
        }
        let expected = self.config.added.map(|added| added.inputs());
        if added.map(<[f32]>::len) != expected {
            let values = |count: Option<usize>| count.map_or("none".into(), |count| count.to_string());
            let detail = format!("{} added values, the UNet takes {}", values(added.map(<[f32]>::len)), values(expected));
            return Err(Error::Invalid { what: "prompt embedding", detail });
        }
        if let (Some([linear_1, linear_2]), Some(values), Some(into)) = (&self.add_embedding, added, &into.added) {
            rec.scoped("add_embedding", |rec| {
                let x = rec.upload(values, 1, 1, values.len(), Elem::F32);
                let h = linear_1.forward(rec, &x, None, Act::Silu, Elem::F32);
                linear_2.forward_into(rec, &h, None, Act::None, into);
            });
            rec.tap("add_embedding", into);
        }
        let mut layers = into.layers.iter();
        rec.scoped("prompt", |rec| self.transformers().for_each(|attention| attention.prompt_into(rec, context, &mut layers)));
        Ok(())
    }

    /// What `timestep` (0 to 999, whole or not) adds everywhere; in SDXL, with what `prompt` adds. `guidance` (the scale less 1) matters to models that were distilled
    /// with it (`time_cond_proj_dim`), and is passed over by others. Tap: `time_embedding`, after SiLU.
    pub fn step(&self, rec: &mut Recorder, timestep: f64, guidance: Option<f64>, prompt: &Prompt) -> Step {
        let added = prompt.added.as_ref();
        let embedding = rec.scoped("time_embedding", |rec| self.time_embedding.forward(rec, timestep, guidance, added));
        rec.tap("time_embedding", &embedding);
        Step(self.resnets().map(|(path, resnet)| rec.scoped(path, |rec| resnet.time_bias(rec, &embedding))).collect())
    }

    /// The prediction for `latent` (`[h, w, in_channels]`): `[h, w, out_channels]` in f32.
    ///
    /// Taps: `conv_in`, `{block}.resnets.{n}`, `{block}.attentions.{n}`, `{block}.downsamplers.0`, `{block}.upsamplers.0`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of channels, for sides below [`UnetConfig::smallest`], and for those that need `any_size`.
    pub fn forward(&self, rec: &mut Recorder, latent: &Tensor, step: &Step, prompt: &Prompt) -> Result<Tensor> {
        let (height, width, channels) = latent.shape();
        if channels != self.config.in_channels {
            let detail = format!("{channels} channels, the UNet takes {}", self.config.in_channels);
            return Err(Error::Invalid { what: "latent", detail });
        }
        let (multiple, smallest) = (self.config.multiple(), self.config.smallest());
        if height.min(width) < smallest {
            let detail =
                format!("{width} x {height}, this UNet halves sides to nothing below {smallest}: take at least {smallest} x {smallest}");
            return Err(Error::Invalid { what: "latent", detail });
        }
        let doubles = height.is_multiple_of(multiple) && width.is_multiple_of(multiple);
        if !self.any_size && !doubles {
            let detail = format!("{width} x {height}, this UNet was loaded for multiples of {multiple}");
            return Err(Error::Invalid { what: "latent", detail });
        }
        let elem = self.precision.activations;
        let mut layers = Layers { step: step.0.iter(), prompt: prompt.layers.iter() };
        let mut h = rec.scoped("conv_in", |rec| self.conv_in.forward(rec, latent, None, Act::None, elem));
        rec.tap("conv_in", &h);
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            for n in 0..block.resnets.len() {
                h = layers.forward(rec, block, n, &[&h]);
                skips.push(h.clone());
            }
            if let Some(downsampler) = &block.downsampler {
                let path = format!("{}.downsamplers.0", block.path);
                h = rec.scoped(&path, |rec| downsampler.forward(rec, &h, elem));
                rec.tap(&path, &h);
                skips.push(h.clone());
            }
        }
        if let Some(mid) = &self.mid_block {
            h = layers.resnet(rec, "mid_block.resnets.0", &mid.resnets[0], &[&h]);
            h = layers.attention(rec, "mid_block.attentions.0", &mid.attention, &h);
            h = layers.resnet(rec, "mid_block.resnets.1", &mid.resnets[1], &[&h]);
        }
        for block in &self.up_blocks {
            for n in 0..block.resnets.len() {
                let skip = skips.pop().expect("as many as resnets on the way up");
                h = layers.forward(rec, block, n, &[&h, &skip]);
            }
            if let (Some(upsampler), Some(next)) = (&block.upsampler, skips.last()) {
                let path = format!("{}.upsamplers.0", block.path);
                h = rec.scoped(&path, |rec| match upsampler {
                    Upsampler::Doubling(conv) => conv.forward(rec, &h, elem),
                    Upsampler::AnySize(conv) => {
                        let large = resample_nearest(rec, &h, next.height, next.width, elem);
                        conv.forward(rec, &large, None, Act::None, elem)
                    }
                });
                rec.tap(&path, &h);
            }
        }
        let affine = rec.scoped("conv_norm_out", |rec| self.conv_norm_out.affine(rec, &h));
        Ok(rec.scoped("conv_out", |rec| {
            let y = self.conv_out.forward_norm_silu(rec, &h, &affine, None, Elem::F32);
            count_nonfinite(rec, &y);
            y
        }))
    }
}

/// Hands out what timestep and prompt bring to each layer, in the order of computation.
struct Layers<'a> {
    step: std::slice::Iter<'a, Tensor>,
    prompt: std::slice::Iter<'a, KeysAndValues>,
}

impl Layers<'_> {
    /// Resnet `n` of a block and the attention behind it.
    fn forward(&mut self, rec: &mut Recorder, block: &Block, n: usize, xs: &[&Tensor]) -> Tensor {
        let h = self.resnet(rec, &format!("{}.resnets.{n}", block.path), &block.resnets[n], xs);
        match block.attentions.get(n) {
            Some(attention) => self.attention(rec, &format!("{}.attentions.{n}", block.path), attention, &h),
            None => h,
        }
    }

    fn resnet(&mut self, rec: &mut Recorder, path: &str, resnet: &ResnetBlock, xs: &[&Tensor]) -> Tensor {
        let bias = self.step.next().expect("one for each resnet");
        let h = rec.scoped(path, |rec| resnet.forward_with(rec, xs, Some(bias)));
        rec.tap(path, &h);
        h
    }

    fn attention(&mut self, rec: &mut Recorder, path: &str, attention: &Attention, x: &Tensor) -> Tensor {
        let h = rec.scoped(path, |rec| match attention {
            Attention::Transformer(transformer) => transformer.forward(rec, x, &mut self.prompt),
            Attention::Own(attention) => attention.forward(rec, x),
        });
        rec.tap(path, &h);
        h
    }
}
