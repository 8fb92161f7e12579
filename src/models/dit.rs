//! The diffusion transformers DiT, FiT, MDTv2 and MaskDiT: noisy latent, timestep and class to a prediction.
//!
//! Sources: Peebles & Xie 2022 (arXiv:2212.09748); facebookresearch/DiT `models.py` at ed81ce2; diffusers
//! `models/transformers/dit_transformer_2d.py` 0.42; Lu et al. 2024 (arXiv:2402.12376, arXiv:2410.13925), whlzy/FiT `fit/model/` at b22b7b0; Gao et al. 2023
//! (arXiv:2303.14389), sail-sg/MDT `masked_diffusion/models.py` at 7d26c21; Zheng et al. 2023 (arXiv:2306.09305), Anima-Lab/MaskDiT
//! `models/maskdit.py` at 73cfb96.
//!
//! A call with guidance predicts for the class and for none at once: their tokens lie one after the other in one matrix, so that every weight is read
//! once, and only norms, gates and attention, which differ or must not mix, take them one by one.

use super::dit_config::{DitConfig, Positions, Stage, TIME_FEATURES};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::attention::RelativeBias;
use crate::kernels::gated_add::gated_add_into;
use crate::kernels::glu::glu;
use crate::kernels::layer_norm::{LayerNormWeights, layer_norm_into};
use crate::kernels::output::count_nonfinite;
use crate::kernels::patchify::{patchify, unpatchify};
use crate::kernels::rotary::Rotary;
use crate::nn::{Heads, HeadsShape, Linear, Loader, Precision, RotaryScaling, TimeEmbedding, TimeEmbeddingShape, timestep_features};
use crate::weights::View;

/// Epsilon of the norms whose own the config does not say.
const NORM_EPS: f32 = 1e-6;

/// Shift, scale, gate of the attention, then of the MLP, so that norms find scale and shift side by side.
const BLOCK_ORDER: [usize; 6] = [1, 0, 2, 4, 3, 5];

/// A linear layer that gives shifts, scales and gates: `terms` rows of the token's width, in an order of our own, and 1 added to the scales.
#[derive(Debug)]
struct Modulation {
    /// The first half, where the layer is of low rank.
    inward: Option<Linear>,
    linear: Linear,
    terms: usize,
    channels: usize,
}

impl Modulation {
    /// `order`: which row of the file's stands where; `scales`: rows, in the new order, that are scales.
    async fn load(
        loader: &Loader<'_>,
        path: &str,
        (inputs, channels): (usize, usize),
        order: &[usize],
        scales: &[usize],
    ) -> Result<Modulation> {
        let terms = order.len();
        let weight = loader.read(&format!("{path}.weight"), &[terms * channels, inputs]).await?;
        let bias = loader.read(&format!("{path}.bias"), &[terms * channels]).await?;
        let part = |values: &[f32], width: usize| -> Vec<f32> {
            order.iter().flat_map(|&row| values[row * channels * width..(row + 1) * channels * width].to_vec()).collect()
        };
        let (weight, mut bias) = (part(&weight, inputs), part(&bias, 1));
        for &row in scales {
            bias[row * channels..(row + 1) * channels].iter_mut().for_each(|b| *b += 1.0);
        }
        Ok(Modulation { inward: None, linear: Linear::from_values(loader, path, &weight, &bias, inputs).await?, terms, channels })
    }

    /// Of block `i`.
    async fn of_block(loader: &Loader<'_>, config: &DitConfig, i: usize) -> Result<Modulation> {
        let (path, d, (width, ..)) = (config.block(i), config.hidden_size, config.widths(i));
        let (first, second) = (format!("{path}.norm1.linear"), format!("{path}.norm1.linear_2"));
        match config.modulation_rank {
            None => Modulation::load(loader, &first, (d, width), &BLOCK_ORDER, &[0, 3]).await,
            Some(rank) => {
                let inward = Some(Linear::load(loader, &first, d, rank).await?);
                Ok(Modulation { inward, ..Modulation::load(loader, &second, (rank, d), &BLOCK_ORDER, &[0, 3]).await? })
            }
        }
    }

    /// For each row of `conditions` (`[n, channels]`, after SiLU) its terms, below each other, in f32; `shared` is added.
    fn all(&self, rec: &mut Recorder, conditions: &Tensor, shared: Option<&Tensor>) -> Tensor {
        let narrow = self.inward.as_ref().map(|inward| inward.forward(rec, conditions, None, Act::None, Elem::F32));
        self.linear.forward(rec, narrow.as_ref().unwrap_or(conditions), shared, Act::None, Elem::F32)
    }

    /// [`Modulation::all`], taken apart.
    fn forward(&self, rec: &mut Recorder, conditions: &Tensor, shared: Option<&Tensor>) -> Vec<Terms> {
        let all = self.all(rec, conditions, shared);
        let quads = (self.channels / 4) as u64;
        let of = |n: usize| Terms(all.view((n * self.terms) as u64 * quads, self.terms, 1, self.channels));
        (0..conditions.pixels()).map(of).collect()
    }
}

/// What a [`Modulation`] gave for one condition: `[terms, 1, channels]`.
struct Terms(Tensor);

impl Terms {
    /// The rows `at` and `at + 1` as weight and bias of a layer normalisation.
    fn norm(&self, at: usize, eps: f32) -> LayerNormWeights {
        LayerNormWeights { affine: self.0.rows(at, 2), eps }
    }

    fn gate(&self, at: usize) -> Tensor {
        self.0.rows(at, 1)
    }
}

/// `[channels, pixels]` as `[pixels, channels]`.
fn pixels_first<T: Clone>(values: &[T], channels: usize, pixels: usize) -> Vec<T> {
    (0..channels * pixels).map(|i| values[i % channels * pixels + i / channels].clone()).collect()
}

/// The positions that blocks which decode begin with, of MDTv2 and MaskDiT: `[h, w, width of those blocks]`.
async fn load_decoder_positions(loader: &Loader<'_>, config: &DitConfig) -> Result<Tensor> {
    const NAME: &str = "decoder_pos_embed";
    let ((width, ..), across) = (config.widths(config.num_layers), config.sample_size / config.patch_size);
    let table = loader.read(NAME, &[1, config.tokens(), width]).await?;
    Ok(loader.upload(NAME, &table, width, loader.precision().activations).await?.reshape(across, across))
}

/// adaLN-Zero, self-attention, MLP.
#[derive(Debug)]
struct Block {
    /// Of the tokens, and of those from an earlier block that they are joined with.
    skip: Option<[Linear; 2]>,
    bias: Option<RelativeBias>,
    modulation: Modulation,
    heads: Heads,
    proj: Linear,
    out: Linear,
}

/// What stands between the blocks of MaskDiT's encoder and those of its decoder: norm and linear layer to the decoder's width.
#[derive(Debug)]
struct DecoderLayer {
    modulation: Modulation,
    linear: Linear,
    /// `[h, w, width]`
    positions: Tensor,
}

/// A loaded DiT, FiT, MDTv2 or MaskDiT.
#[derive(Debug)]
pub struct Dit {
    config: DitConfig,
    precision: Precision,
    patch: Linear,
    /// `[h, w, hidden_size]`; none where they are rotary.
    positions: Option<Tensor>,
    /// Of MDTv2: `[h, w, hidden_size]`, added before the blocks that decode, and a row of ones.
    decoder_positions: Option<[Tensor; 2]>,
    decoder_layer: Option<DecoderLayer>,
    embeddings: Vec<TimeEmbedding>,
    /// What all blocks' modulations share, where they are of low rank.
    shared_modulation: Option<Modulation>,
    blocks: Vec<Block>,
    last_modulation: Modulation,
    last: Linear,
}

/// What the model is told beside the timestep: for each of its embeddings the rows of the classes, `[embeddings, classes, hidden_size]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes {
    values: Vec<f32>,
    count: usize,
}

impl Classes {
    /// Reads the rows of `classes`; [`DitConfig::num_classes`] is the null class.
    ///
    /// # Errors
    /// As [`View::get_rows`]; [`Error::Invalid`] for no classes or one that there is not.
    pub async fn read(view: &View<'_>, config: &DitConfig, classes: &[usize]) -> Result<Classes> {
        if classes.is_empty() || classes.iter().any(|class| *class > config.num_classes) {
            return Err(Error::Invalid { what: "class", detail: format!("{classes:?} of {}", config.num_classes) });
        }
        let shape = config.class_table();
        let mut values = Vec::new();
        for i in 0..config.embeddings() {
            let name = format!("{}.class_embedder.embedding_table.weight", config.embedding(i));
            if config.decoder.is_some() {
                let table = view.get_async(&name, &shape).await?;
                for &class in classes {
                    values.extend(table.chunks_exact(config.num_classes).map(|row| row.get(class).copied().unwrap_or(0.0)));
                }
                continue;
            }
            for &class in classes {
                values.extend(view.get_rows(&name, &shape, class..class + 1).await?);
            }
        }
        Ok(Classes { values, count: classes.len() })
    }

    /// As many, of no class: for recordings that are planned and never run.
    pub fn planned(config: &DitConfig, count: usize) -> Classes {
        Classes { values: vec![0.0; config.embeddings() * count * config.hidden_size], count }
    }
}

impl Dit {
    /// Loads the transformer.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &DitConfig) -> Result<Dit> {
        let (d, c, p) = (config.hidden_size, config.in_channels, config.patch_size);
        let shape = if config.positions == Positions::Rotary { vec![d, c * p * p] } else { vec![d, c, p, p] };
        let weight = loader.read("pos_embed.proj.weight", &shape).await?;
        let bias = loader.read("pos_embed.proj.bias", &[d]).await?;
        // From torch's [d, c, p, p] to tokens' [d, p, p, c].
        let by_pixel: Vec<f32> = weight.chunks_exact(c * p * p).flat_map(|row| pixels_first(row, c, p * p)).collect();
        let patch = Linear::from_values(loader, "pos_embed.proj", &by_pixel, &bias, p * p * c).await?;
        let positions = match config.positions {
            Positions::Stored => Some(loader.read("pos_embed.pos_embed", &[1, config.tokens(), d]).await?),
            Positions::Formula => Some(config.positions()),
            Positions::Rotary => None,
        };
        let across = config.sample_size / p;
        let positions = match positions {
            Some(table) => {
                let table = loader.upload("pos_embed.pos_embed", &table, d, loader.precision().activations).await?;
                Some(table.reshape(across, across))
            }
            None => None,
        };
        let decoder_positions = match config.decode_layers {
            Some(_) => Some([load_decoder_positions(loader, config).await?, loader.upload("ones", &vec![1.0; d], d, Elem::F32).await?]),
            None => None,
        };
        let decoder_layer = match &config.decoder {
            Some(decoder) => Some(DecoderLayer {
                modulation: Modulation::load(loader, "decoder_layer.modulation", (d, d), &[1, 0], &[0]).await?,
                linear: Linear::load(loader, "decoder_layer.linear", d, decoder.hidden_size).await?,
                positions: load_decoder_positions(loader, config).await?,
            }),
            None => None,
        };
        let shape =
            TimeEmbeddingShape { features: TIME_FEATURES, width: d, flip_sin_to_cos: true, freq_shift: config.freq_shift, guidance: None };
        let mut embeddings = Vec::new();
        for i in 0..config.embeddings() {
            embeddings.push(TimeEmbedding::load(loader, &format!("{}.timestep_embedder", config.embedding(i)), shape).await?);
        }
        let shared_modulation = match config.modulation_rank {
            Some(_) => Some(Modulation::load(loader, "global_modulation", (d, d), &BLOCK_ORDER, &[]).await?),
            None => None,
        };
        let mut blocks = Vec::new();
        for i in 0..config.blocks() {
            let (block, (width, heads, mlp)) = (config.block(i), config.widths(i));
            let heads = HeadsShape { channels: width, context: width, heads, bias: true };
            let path = |name: &str| format!("{block}.{name}");
            let skip = match config.stage(i) {
                Some(Stage::Out | Stage::Decode) => {
                    let parts = Linear::load_parts(loader, &path("skip_linear"), &[d, d], d).await?;
                    Some(<[Linear; 2]>::try_from(parts).expect("one for each source"))
                }
                Some(Stage::In) | None => None,
            };
            let bias = match config.decode_layers {
                Some(_) => {
                    let (name, heads) = (path("attn1.rel_pos_bias.relative_position_bias_table"), config.num_attention_heads);
                    let table = loader.read(&name, &[config.relative_entries(), heads]).await?;
                    let entries = config.relative_entries() - 3;
                    let by_head: Vec<f32> = (0..heads * entries).map(|i| table[i % entries * heads + i / entries]).collect();
                    let table = loader.upload(&name, &by_head, entries, Elem::F32).await?;
                    Some(RelativeBias { table, rows: across, columns: across })
                }
                None => None,
            };
            blocks.push(Block {
                skip,
                bias,
                modulation: Modulation::of_block(loader, config, i).await?,
                heads: Heads::load_shape(loader, &path("attn1"), heads).await?,
                proj: match config.gated_mlp {
                    true => {
                        let (mut weight, mut bias) = (Vec::new(), Vec::new());
                        for half in [path("ff.value"), path("ff.gate")] {
                            weight.extend(loader.read(&format!("{half}.weight"), &[mlp, width]).await?);
                            bias.extend(loader.read(&format!("{half}.bias"), &[mlp]).await?);
                        }
                        Linear::from_values(loader, &path("ff.value"), &weight, &bias, width).await?
                    }
                    false => Linear::load(loader, &path("ff.net.0.proj"), width, mlp).await?,
                },
                out: Linear::load(loader, &path("ff.net.2"), mlp, width).await?,
            });
        }
        let (width, ..) = config.widths(config.blocks());
        let last = match config.channels_first {
            true => {
                let (pixels, outputs) = (p * p, config.out_channels);
                let weight = loader.read("proj_out_2.weight", &[outputs * pixels, width]).await?;
                let bias = loader.read("proj_out_2.bias", &[outputs * pixels]).await?;
                let rows: Vec<&[f32]> = weight.chunks_exact(width).collect();
                let (weight, bias) = (pixels_first(&rows, outputs, pixels).concat(), pixels_first(&bias, outputs, pixels));
                Linear::from_values(loader, "proj_out_2", &weight, &bias, width).await?
            }
            false => Linear::load(loader, "proj_out_2", width, p * p * config.out_channels).await?,
        };
        Ok(Dit {
            config: config.clone(),
            precision: loader.precision(),
            patch,
            positions,
            decoder_positions,
            decoder_layer,
            embeddings,
            shared_modulation,
            blocks,
            last_modulation: Modulation::load(loader, "proj_out_1", (d, width), &[1, 0], &[0]).await?,
            last,
        })
    }

    /// The configuration that it was loaded with.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// The predictions for `latent` (`[h, w, in_channels]`) at `timestep` (0 to 999 for DiT, 0 to 1 for SiT and FiTv2, `ln(sigma) / 4` for MaskDiT, whole or not), one for each of
    /// `classes`: `[h, w, in_channels]` in f32; where `variance` asks for it, also what was learned for the first one's. Rotary positions follow larger sizes by `scaling`.
    ///
    /// Taps: `pos_embed`, every [`DitConfig::block`], `decoder_layer`, all classes below each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a latent of another shape than the model's, classes of another model, or a variance that it has not learned.
    pub fn forward(
        &self,
        rec: &mut Recorder,
        latent: &Tensor,
        timestep: f64,
        classes: &Classes,
        scaling: RotaryScaling,
        variance: bool,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let (channels, (h, w, c)) = (self.config.in_channels, latent.shape());
        if c != channels || !self.config.takes(w, h) {
            let detail = format!("{w} x {h} of {c} channels, this transformer takes {} of {channels}", self.config.sizes());
            return Err(Error::Invalid { what: "latent", detail });
        }
        if variance && self.config.out_channels < 2 * channels {
            return Err(Error::Invalid { what: "variance", detail: "this transformer has not learned it".into() });
        }
        let (d, elem, count) = (self.config.hidden_size, self.precision.activations, classes.count);
        if count == 0 || classes.values.len() != self.config.embeddings() * count * d {
            return Err(Error::Invalid { what: "class", detail: "it was read for another model".into() });
        }
        let features = timestep_features(timestep, TIME_FEATURES, true, self.config.freq_shift).repeat(count);
        let features = rec.upload(&features, count, 1, TIME_FEATURES, Elem::F32);
        let labels = rec.upload(&classes.values, self.config.embeddings() * count, 1, d, Elem::F32);
        let conditions: Vec<Tensor> = self
            .embeddings
            .iter()
            .enumerate()
            .map(|(i, embedding)| {
                let rows = labels.rows(i * count, count);
                rec.scoped("time_embedding", |rec| embedding.embed(rec, &features, Some(&rows)))
            })
            .collect();
        let condition = |i: usize| &conditions[if self.config.shared_embedding { 0 } else { i }];
        let (rows, columns) = (h / self.config.patch_size, w / self.config.patch_size);
        let part = |x: &Tensor, n: usize| x.rows(n * rows, rows);
        let mut x = rec.tensor(count * rows, columns, d, elem);
        rec.scoped("pos_embed", |rec| {
            let tokens = patchify(rec, latent, self.config.patch_size, elem);
            (0..count).for_each(|n| self.patch.forward_into(rec, &tokens, self.positions.as_ref(), Act::None, &part(&x, n)));
        });
        rec.tap("pos_embed", &x);
        let rotary = self.positions.is_none().then(|| {
            let head = d / self.config.num_attention_heads;
            let table = scaling.table(head, rows, columns, self.config.sample_size / self.config.patch_size);
            let table = rec.upload(&table, rows + columns, 1, head / 2, Elem::F32);
            Rotary { table, rows, columns, norm: self.config.qk_norm.then_some(NORM_EPS) }
        });
        let shared = self.shared_modulation.as_ref();
        let shared = shared.map(|modulation| rec.scoped("modulation", |rec| modulation.all(rec, condition(0), None)));
        let norm = |rec: &mut Recorder, x: &Tensor, terms: &[Terms], at: usize, eps: f32| {
            let y = rec.tensor(count * rows, columns, x.channels, elem);
            for (n, terms) in terms.iter().enumerate() {
                layer_norm_into(rec, &part(x, n), &terms.norm(at, eps), &part(&y, n));
            }
            y
        };
        let add = |rec: &mut Recorder, y: &Tensor, x: &Tensor, terms: &[Terms], at: usize| {
            let sum = rec.tensor(count * rows, columns, x.channels, elem);
            for (n, terms) in terms.iter().enumerate() {
                gated_add_into(rec, &part(y, n), &terms.gate(at), &part(x, n), &part(&sum, n));
            }
            sum
        };
        let gelu = if self.config.gelu_tanh { Act::GeluTanh } else { Act::GeluErf };
        let (first, mut kept) = (x.clone(), Vec::new());
        for (i, block) in self.blocks.iter().enumerate() {
            let (path, stage) = (self.config.block(i), self.config.stage(i));
            if let Some(DecoderLayer { modulation, linear, positions }) =
                self.decoder_layer.as_ref().filter(|_| i == self.config.num_layers)
            {
                x = rec.scoped("decoder_layer", |rec| {
                    let terms = modulation.forward(rec, condition(0), None);
                    let h = norm(rec, &x, &terms, 0, NORM_EPS);
                    let y = rec.tensor(count * rows, columns, positions.channels, elem);
                    (0..count).for_each(|n| linear.forward_into(rec, &part(&h, n), Some(positions), Act::None, &part(&y, n)));
                    y
                });
                rec.tap("decoder_layer", &x);
            }
            x = rec.scoped(&path, |rec| {
                if let Some([own, other]) = &block.skip {
                    let with = if stage == Some(Stage::Out) { kept.pop().expect("as many go in as come out") } else { first.clone() };
                    let h = own.forward(rec, &x, None, Act::None, elem);
                    x = other.forward(rec, &with, Some(&h), Act::None, elem);
                }
                let terms = block.modulation.forward(rec, condition(i), shared.as_ref());
                let h = norm(rec, &x, &terms, 0, NORM_EPS);
                let h = rec.scoped("attn1", |rec| block.heads.self_attention(rec, &h, count, rotary.as_ref(), block.bias.as_ref()));
                let x = add(rec, &h, &x, &terms, 2);
                let h = norm(rec, &x, &terms, 3, self.config.norm_eps);
                let h = rec.scoped("ff", |rec| {
                    let h = match self.config.gated_mlp {
                        true => {
                            let both = block.proj.forward(rec, &h, None, Act::None, elem);
                            glu(rec, &both, Act::Silu, elem)
                        }
                        false => block.proj.forward(rec, &h, None, gelu, elem),
                    };
                    block.out.forward(rec, &h, None, Act::None, elem)
                });
                add(rec, &h, &x, &terms, 5)
            });
            rec.tap(&path, &x);
            if stage == Some(Stage::In) {
                kept.push(x.clone());
            }
            let coded = stage == Some(Stage::Out) && self.config.stage(i + 1) == Some(Stage::Decode);
            if let Some([positions, ones]) = self.decoder_positions.as_ref().filter(|_| coded) {
                let sum = rec.tensor(count * rows, columns, d, elem);
                (0..count).for_each(|n| gated_add_into(rec, positions, ones, &part(&x, n), &part(&sum, n)));
                x = sum;
            }
        }
        Ok(rec.scoped("proj_out", |rec| {
            let terms = self.last_modulation.forward(rec, condition(0), None);
            let h = norm(rec, &x, &terms, 0, NORM_EPS);
            let tokens = self.last.forward(rec, &h, None, Act::None, Elem::F32);
            count_nonfinite(rec, &tokens);
            let plane =
                |rec: &mut Recorder, n: usize, channels| unpatchify(rec, &part(&tokens, n), self.config.patch_size, channels, Elem::F32);
            let predictions = (0..count).map(|n| plane(rec, n, 0..channels)).collect();
            (predictions, variance.then(|| plane(rec, 0, channels..2 * channels)))
        }))
    }
}
