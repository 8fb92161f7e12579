//! The CLIP text encoders of Stable Diffusion 1.x (ViT-L/14), 2.x (OpenCLIP ViT-H) and SDXL (ViT-L/14 and OpenCLIP ViT-bigG).
//!
//! Source: transformers `models/clip/modeling_clip.py`; open_clip `transformer.py` for SD 2.x; diffusers
//! `pipeline_stable_diffusion_xl.py` `encode_prompt` at 58eb52c for what SDXL reads.

use std::ops::Range;

use super::clip_config::{ClipTextConfig, PROJECTION};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::output::count_nonfinite;
use crate::nn::{Heads, HeadsShape, LayerNorm, Linear, Loader, Precision};
use crate::weights::View;

/// Causal self-attention, then an MLP; both pre-norm with a residual.
#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Heads,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// A loaded text encoder. The token embeddings are not among what is loaded: a prompt needs 77 of 49408 rows, which
/// [`embeddings`] reads when they are needed.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    precision: Precision,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl Layer {
    async fn load(loader: &Loader<'_>, path: &str, config: &ClipTextConfig) -> Result<Layer> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let shape = HeadsShape { channels: width, context: width, heads: config.num_attention_heads, bias: true };
        Ok(Layer {
            layer_norm1: LayerNorm::load(loader, &format!("{path}.layer_norm1"), width, eps).await?,
            self_attn: Heads::load_named(loader, &format!("{path}.self_attn"), ["q_proj", "k_proj", "v_proj", "out_proj"], shape).await?,
            layer_norm2: LayerNorm::load(loader, &format!("{path}.layer_norm2"), width, eps).await?,
            fc1: Linear::load(loader, &format!("{path}.mlp.fc1"), width, inner).await?,
            fc2: Linear::load(loader, &format!("{path}.mlp.fc2"), inner, width).await?,
        })
    }

    fn forward(&self, rec: &mut Recorder, x: &Tensor, act: Act) -> Tensor {
        let elem = x.elem;
        let h = self.layer_norm1.forward(rec, x, elem);
        let (k, v) = self.self_attn.keys_and_values(rec, &h);
        let x = self.self_attn.forward_causal(rec, &h, &k, &v, x);
        let h = self.layer_norm2.forward(rec, &x, elem);
        let h = self.fc1.forward(rec, &h, None, act, elem);
        self.fc2.forward(rec, &h, Some(&x), Act::None, elem)
    }
}

impl ClipText {
    /// Loads the layers and the last norm.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &ClipTextConfig) -> Result<ClipText> {
        let mut layers = Vec::new();
        for i in 0..config.num_hidden_layers {
            layers.push(Layer::load(loader, &format!("encoder.layers.{i}"), config).await?);
        }
        let final_layer_norm = LayerNorm::load(loader, "final_layer_norm", config.hidden_size, config.layer_norm_eps).await?;
        let text_projection = match config.projection_dim {
            Some(projected) => {
                let path = PROJECTION.trim_end_matches(".weight");
                Some(Linear::load_without_bias(loader, path, config.hidden_size, projected).await?)
            }
            None => None,
        };
        Ok(ClipText { config: config.clone(), precision: loader.precision(), layers, final_layer_norm, text_projection })
    }

    /// The configuration that it was loaded with.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// From [`embeddings`] (`[tokens, hidden_size]`) to the final layer norm of the state after the last layer but
    /// `clip_skip`: `[tokens, hidden_size]` in f32. Taps: `encoder.layers.{i}`. No token sees a later one; padding is seen like words, as Stable
    /// Diffusion was trained.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a `clip_skip` that leaves no layer.
    ///
    /// # Panics
    /// If `embeddings` is no whole number of rows.
    pub fn forward(&self, rec: &mut Recorder, embeddings: &[f32], clip_skip: usize) -> Result<Tensor> {
        let h = self.embedded(rec, embeddings);
        let h = self.run(rec, h, 0..self.kept_layers(clip_skip, 0)?);
        rec.scoped("final_layer_norm", |rec| {
            let y = self.final_layer_norm.forward(rec, &h, Elem::F32);
            count_nonfinite(rec, &y);
            Ok(y)
        })
    }

    /// What SDXL reads: the state after the last layer but one, and but `clip_skip` more, without a norm (`[tokens, hidden_size]`), and of an
    /// encoder with a projection the pooled text (`[1, projection_dim]`): the last layer's state at token `end`, normed and projected, in f32.
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    ///
    /// # Panics
    /// If `embeddings` is no whole number of rows, or has no row `end`.
    pub fn penultimate(&self, rec: &mut Recorder, embeddings: &[f32], clip_skip: usize, end: usize) -> Result<(Tensor, Option<Tensor>)> {
        let kept = self.kept_layers(clip_skip, 1)?;
        let h = self.embedded(rec, embeddings);
        let h = self.run(rec, h, 0..kept);
        count_nonfinite(rec, &h);
        let pooled = self.text_projection.as_ref().map(|projection| {
            let last = self.run(rec, h.clone(), kept..self.layers.len());
            rec.scoped("text_projection", |rec| {
                let y = self.final_layer_norm.forward(rec, &last.rows(end, 1), Elem::F32);
                let y = projection.forward(rec, &y, None, Act::None, Elem::F32);
                count_nonfinite(rec, &y);
                y
            })
        });
        Ok((h, pooled))
    }

    /// Layers that are left of all but `unread`.
    fn kept_layers(&self, clip_skip: usize, unread: usize) -> Result<usize> {
        let read = self.layers.len().saturating_sub(unread);
        let kept = read.checked_sub(clip_skip).filter(|kept| *kept > 0);
        kept.ok_or_else(|| Error::Invalid { what: "clip skip", detail: format!("{clip_skip} of {read} layers cannot be skipped") })
    }

    fn embedded(&self, rec: &mut Recorder, embeddings: &[f32]) -> Tensor {
        let width = self.config.hidden_size;
        rec.upload(embeddings, embeddings.len() / width, 1, width, self.precision.activations)
    }

    fn run(&self, rec: &mut Recorder, mut h: Tensor, layers: Range<usize>) -> Tensor {
        for i in layers {
            let path = format!("encoder.layers.{i}");
            h = rec.scoped(&path, |rec| self.layers[i].forward(rec, &h, self.config.hidden_act.into()));
            rec.tap(&path, &h);
        }
        h
    }
}

/// Token plus position embedding of each of `tokens`: `[tokens, hidden_size]`, read row by row from the file.
///
/// # Errors
/// [`Error::Invalid`] for more tokens than positions, none, or an id beyond the vocabulary; otherwise as [`View::get`].
pub async fn embeddings(view: &View<'_>, config: &ClipTextConfig, tokens: &[u32]) -> Result<Vec<f32>> {
    let (width, positions) = (config.hidden_size, config.max_position_embeddings);
    if tokens.is_empty() || tokens.len() > positions {
        let detail = format!("{} tokens, the text encoder takes 1 to {positions}", tokens.len());
        return Err(Error::Invalid { what: "prompt", detail });
    }
    let mut x = view.get_rows("embeddings.position_embedding.weight", &[positions, width], 0..tokens.len()).await?;
    for (row, &token) in x.chunks_exact_mut(width).zip(tokens) {
        let id = token as usize;
        if id >= config.vocab_size {
            let detail =
                format!("token {id} is not among the {} that the text encoder knows: its tokenizer is another one", config.vocab_size);
            return Err(Error::Invalid { what: "prompt", detail });
        }
        let token = view.get_rows("embeddings.token_embedding.weight", &[config.vocab_size, width], id..id + 1).await?;
        row.iter_mut().zip(token).for_each(|(x, t)| *x += t);
    }
    Ok(x)
}
