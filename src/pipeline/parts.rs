//! A model's parts: found in a diffusers folder or in a single-file checkpoint, opened, not yet loaded.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::clip_config::ClipTextConfig;
use crate::models::unet_config::UnetConfig;
use crate::models::vae_config::VaeConfig;
use crate::schedulers::{Prediction, Sampler, Scheduler, SchedulerConfig, with_class};
use crate::tokenizer::ClipTokenizer;
use crate::weights::recognise::{self, Recognised};
use crate::weights::{View, Weights, clip_keys, unet_keys};

/// The weights of a text-to-image model with their configurations.
#[derive(Debug)]
pub struct Parts {
    /// The folder or file.
    pub path: PathBuf,
    /// One file for all parts, or a folder each.
    files: Files,
    /// The denoiser.
    pub unet: UnetConfig,
    /// The text encoder.
    pub text: ClipTextConfig,
    /// The autoencoder, where there is one.
    pub vae: Option<VaeConfig>,
    /// The tokenizer, its prompts as long as the text encoder's positions.
    pub tokenizer: ClipTokenizer,
    /// Width and height of the model's native picture in pixels.
    pub native_size: (usize, usize),
    /// `sd1`, `sd2` or `unknown`.
    pub family: &'static str,
    /// What was taken for granted, for the user.
    pub notes: Vec<String>,
    scheduler: SchedulerSource,
}

#[derive(Debug)]
enum Files {
    Single(Weights),
    Folder { unet: Weights, text: Weights, vae: Option<PathBuf> },
}

#[derive(Debug)]
enum SchedulerSource {
    Json { json: String, path: PathBuf },
    Inferred { sampler: Sampler, prediction: Prediction },
}

const FOLDERS: &str = "a diffusers folder has model_index.json, unet/, text_encoder/, tokenizer/, scheduler/ and vae/";

fn unknown(path: &Path, detail: impl Into<String>) -> Error {
    Error::UnknownModel { path: path.to_owned(), detail: detail.into() }
}

impl Parts {
    /// Finds and checks the parts of the model at `path`: names, shapes and types of all tensors, no data.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] for what is no such model, with what it is or lacks; [`Error::Config`], [`Error::MissingTensor`],
    /// [`Error::TensorShape`], [`Error::Pickle`] and the other errors of [`Weights::open`] for parts that are broken.
    pub fn open(path: &Path) -> Result<Parts> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let detail = format!("there is no such file or folder, and it is no hub id (org/name) either; {FOLDERS}");
                return Err(unknown(path, detail));
            }
            Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
        };
        let parts = if meta.is_dir() { Parts::from_folder(path)? } else { Parts::from_file(path)? };
        parts.check()?;
        Ok(parts)
    }

    fn from_file(path: &Path) -> Result<Parts> {
        let weights = Weights::open(path)?;
        let recognised = recognise::recognise(&weights)?;
        let wanted = "a checkpoint of Stable Diffusion 1.x or 2.x";
        let family = match &recognised {
            Recognised::Checkpoint { family: family @ ("sd1" | "sd2" | "unknown"), .. } => *family,
            Recognised::Unet { .. } | Recognised::TextEncoder { .. } | Recognised::Vae(_) => {
                let detail = format!(
                    "this is {recognised}; it is one part only: name a whole checkpoint, or the folder that it belongs to ({FOLDERS})"
                );
                return Err(unknown(path, detail));
            }
            Recognised::Other { what: "LoRA" } => {
                return Err(unknown(path, "this is a LoRA: name the model with --model and this file with --lora"));
            }
            _ => return Err(recognised.refuse(&weights, wanted)),
        };
        let (_, unet) = recognise::unet(&weights)?.ok_or_else(|| recognised.refuse(&weights, wanted))?;
        let Some((text_view, text)) = recognise::text_encoder(&weights)? else {
            let detail = "this checkpoint carries no text encoder; use a complete one, or a diffusers folder";
            return Err(unknown(path, detail));
        };
        let open_clip = clip_keys::is_open_clip(&text_view);
        let vae = recognise::vae(&weights)?.filter(|vae| vae.decoder || vae.encoder).map(|vae| vae.config);
        let mut tokenizer = embedded(path, &text)?;
        if open_clip {
            tokenizer = tokenizer.with_pad("!")?; // SD 2.x was trained so
        }
        // diffusers' single_file_utils.py takes SD 2.x for the 768 v-prediction model unless it is told otherwise.
        let stated = weights.metadata().get("modelspec.prediction_type").map(|p| p.to_ascii_lowercase());
        let prediction = match stated.as_deref() {
            Some("epsilon" | "eps") => Prediction::Epsilon,
            Some("v" | "v_prediction" | "v-prediction") => Prediction::VPrediction,
            // Its inpainting model predicts the noise.
            _ if open_clip && unet.in_channels == unet.out_channels || weights.contains("v_pred") => Prediction::VPrediction,
            _ => Prediction::Epsilon,
        };
        let sampler = if open_clip { Sampler::Ddim } else { Sampler::Pndm };
        let mut notes = Vec::new();
        if stated.is_none() && prediction == Prediction::VPrediction && !weights.contains("v_pred") {
            notes.push(format!(
                "{}: nothing in it says what it predicts; taken for a v-prediction model of 768x768, as SD 2.1 is. If it is SD 2 base: --prediction epsilon --latent-size 512x512",
                path.display()
            ));
        }
        let native_side = if prediction == Prediction::VPrediction && open_clip { 768 } else { 512 };
        Ok(Parts {
            path: path.to_owned(),
            unet,
            text,
            vae,
            tokenizer,
            native_size: (native_side, native_side),
            family,
            notes,
            scheduler: SchedulerSource::Inferred { sampler, prediction },
            files: Files::Single(weights),
        })
    }

    fn from_folder(path: &Path) -> Result<Parts> {
        let named = check_index(path)?;
        let component = |name: &str| -> Result<Weights> {
            let folder = path.join(name);
            if folder.is_dir() {
                return Weights::open(&folder).map_err(|error| match error {
                    Error::UnknownModel { detail, .. } => unknown(&folder, detail),
                    other => other,
                });
            }
            let alone = path.join("config.json").is_file();
            let detail = match whole_file_in(path) {
                _ if alone => format!("there is no {name}/ in it: it looks like one part of a model, name the folder above it ({FOLDERS})"),
                Some(file) if name == "unet" => {
                    format!("there is no unet/ in it, but `{}`: if that is a single-file checkpoint, name the file itself", file.display())
                }
                _ => format!("there is no {name}/ in it; {FOLDERS}"),
            };
            Err(unknown(path, detail))
        };
        let unet_weights = component("unet")?;
        let text_weights = component("text_encoder")?;
        let wrong = |weights: &Weights, wanted: &str| match recognise::recognise(weights) {
            Ok(found) => found.refuse(weights, wanted),
            Err(error) => error,
        };
        let unet = match recognise::unet(&unet_weights)? {
            Some((_, config)) => config,
            None => return Err(wrong(&unet_weights, "a UNet of Stable Diffusion")),
        };
        let text = match recognise::text_encoder(&text_weights)? {
            Some((_, config)) => config,
            None => return Err(wrong(&text_weights, "a CLIP text encoder")),
        };
        let vae_path = Some(path.join("vae")).filter(|folder| folder.is_dir());
        let vae = match &vae_path {
            Some(folder) => {
                let weights = Weights::open(folder)?;
                Some(recognise::vae(&weights)?.ok_or_else(|| wrong(&weights, "an AutoencoderKL"))?.config)
            }
            None => None,
        };
        let tokenizer_folder = path.join("tokenizer");
        let tokenizer = if tokenizer_folder.is_dir() { ClipTokenizer::open(&tokenizer_folder)? } else { embedded(path, &text)? };
        let positions = tokenizer.max_length().min(text.max_position_embeddings);
        let mut notes = Vec::new();
        for (name, weights) in [("unet", &unet_weights), ("text_encoder", &text_weights)] {
            if weights.config_json().is_none() {
                notes.push(format!("{name}/config.json is missing: what shapes do not tell (heads, groups, activations) is taken to be that of SD 1.x or 2.x"));
            }
        }
        let scheduler_path = path.join("scheduler").join("scheduler_config.json");
        let scheduler = match std::fs::read_to_string(&scheduler_path) {
            Ok(json) => {
                let json = match named {
                    Some(class) => with_class(json, &class),
                    None => json,
                };
                SchedulerSource::Json { json, path: scheduler_path }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                notes.push(format!(
                    "{}: missing; taken for a model that predicts the noise, with the sampler pndm, as SD 1.5 is. Otherwise: --prediction, --sampler",
                    scheduler_path.display()
                ));
                SchedulerSource::Inferred { sampler: Sampler::Pndm, prediction: Prediction::Epsilon }
            }
            Err(source) => return Err(Error::Io { path: scheduler_path, source }),
        };
        let sample_size = unet_weights.config_json().and_then(|json| serde_json::from_str::<Value>(json).ok()).and_then(|config| {
            let size = &config["sample_size"];
            let sides = |height: &Value, width: &Value| Some((height.as_u64()?, width.as_u64()?));
            // As StableDiffusionPipeline takes it: UNets made from SD 1.x in the first months said 32.
            let early = config["_diffusers_version"].as_str().is_some_and(|version| {
                let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
                (parts.next(), parts.next()) < (Some(0), Some(9))
            });
            match size.as_array().map(Vec::as_slice) {
                Some([height, width]) => sides(height, width),
                _ if early && size.as_u64().is_some_and(|side| side < 64) => Some((64, 64)),
                _ => sides(size, size),
            }
        });
        let in_range = |(height, width): &(u64, u64)| [height, width].iter().all(|side| (1..=2048).contains(*side));
        let (height, width) = sample_size.filter(in_range).unwrap_or((64, 64));
        let scale = vae.as_ref().map_or(8, VaeConfig::scale);
        let family = match text.hidden_size {
            768 => "sd1",
            1024 => "sd2",
            _ => "unknown",
        };
        Ok(Parts {
            path: path.to_owned(),
            native_size: (width as usize * scale, height as usize * scale),
            unet,
            text,
            vae,
            tokenizer: tokenizer.with_max_length(positions),
            family,
            notes,
            scheduler,
            files: Files::Folder { unet: unet_weights, text: text_weights, vae: vae_path },
        })
    }

    fn check(&self) -> Result<()> {
        self.unet_view()?.check(&self.unet.tensors())?;
        self.text_view()?.check(&self.text.tensors())?;
        let config = |detail: String| Error::Config { path: self.path.clone(), detail };
        if self.unet.cross_attention_dim != self.text.hidden_size {
            let (unet, text) = (self.unet.cross_attention_dim, self.text.hidden_size);
            return Err(config(format!(
                "the UNet attends to prompts of width {unet}, the text encoder gives {text}: parts of different models"
            )));
        }
        if self.tokenizer.max_id() as usize >= self.text.vocab_size {
            let (ids, rows) = (self.tokenizer.max_id() as usize + 1, self.text.vocab_size);
            return Err(config(format!("the tokenizer has {ids} tokens, the text encoder {rows}: parts of different models")));
        }
        let channels = self.latent_channels();
        if self.unet.out_channels != channels {
            return Err(config(format!("the UNet gives {} channels, the VAE's latents have {channels}", self.unet.out_channels)));
        }
        match self.unet.in_channels {
            n if n == channels || n == 2 * channels + 1 => Ok(()),
            n => {
                let inpainting = 2 * channels + 1;
                Err(config(format!(
                    "the UNet takes {n} channels; {channels} (text to image) and {inpainting} (inpainting) are known to this version"
                )))
            }
        }
    }

    /// Channels of its latents.
    pub fn latent_channels(&self) -> usize {
        self.vae.as_ref().map_or(self.unet.out_channels, |vae| vae.latent_channels)
    }

    /// Pixels a latent value side.
    pub fn scale(&self) -> usize {
        self.vae.as_ref().map_or(8, VaeConfig::scale)
    }

    /// Whether the UNet takes a mask and a masked picture beside the latent.
    pub fn is_inpainting(&self) -> bool {
        self.unet.in_channels != self.latent_channels()
    }

    /// Latent tags of this model's space, where it is known.
    pub fn latent_space(&self) -> Option<crate::latent::LatentSpace> {
        self.vae.as_ref().and_then(|vae| vae.latent_space)
    }

    /// The UNet's tensors under diffusers' names.
    pub fn unet_view(&self) -> Result<View<'_>> {
        let weights = match &self.files {
            Files::Single(weights) => weights,
            Files::Folder { unet, .. } => unet,
        };
        unet_keys::view(weights).ok_or_else(|| unknown(weights.path(), "there is no UNet in it"))
    }

    /// The text encoder's tensors under transformers' names.
    pub fn text_view(&self) -> Result<View<'_>> {
        let weights = match &self.files {
            Files::Single(weights) => weights,
            Files::Folder { text, .. } => text,
        };
        clip_keys::view(weights).ok_or_else(|| unknown(weights.path(), "there is no text encoder in it"))
    }

    /// Where the autoencoder is: what [`crate::Engine::load_decoder`] and [`crate::Engine::load_encoder`] take.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] if there is none.
    pub fn vae_path(&self) -> Result<PathBuf> {
        let path = match &self.files {
            Files::Single(_) => self.vae.as_ref().map(|_| self.path.clone()),
            Files::Folder { vae, .. } => vae.clone(),
        };
        path.ok_or_else(|| unknown(&self.path, "there is no VAE in it; name a decoder with --decoder"))
    }

    /// The scheduler that comes with the model, or `sampler` with its settings.
    ///
    /// # Errors
    /// As [`Scheduler::from_json`].
    pub fn scheduler(&self, sampler: Option<Sampler>) -> Result<Scheduler> {
        match &self.scheduler {
            SchedulerSource::Json { json, path } => Scheduler::from_json(json, sampler, path),
            SchedulerSource::Inferred { sampler: own, prediction } => {
                let sampler = sampler.unwrap_or(*own);
                Scheduler::new(sampler, SchedulerConfig::stable_diffusion(sampler, *prediction))
            }
        }
    }
}

/// OpenAI's vocabulary, for models that have that many token embeddings.
fn embedded(path: &Path, text: &ClipTextConfig) -> Result<ClipTokenizer> {
    let tokenizer = ClipTokenizer::embedded().with_max_length(text.max_position_embeddings);
    if tokenizer.max_id() as usize + 1 == text.vocab_size {
        return Ok(tokenizer);
    }
    let detail =
        format!("its text encoder knows {} tokens and CLIP's public vocabulary has 49408: a tokenizer/ folder is needed", text.vocab_size);
    Err(unknown(path, detail))
}

/// A `.safetensors` file at the top of a folder.
fn whole_file_in(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).min()
}

/// Refuses pipelines of other families by the name in `model_index.json`. Gives the scheduler's class that stands there: it counts, and the one in the
/// scheduler's own config does not.
///
/// # Errors
/// [`Error::UnknownModel`] with the name; [`Error::Io`] and [`Error::Malformed`] for a file that cannot be read.
pub fn check_index(folder: &Path) -> Result<Option<String>> {
    const SUPPORTED: [&str; 7] = [
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ];
    let path = folder.join("model_index.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let index: Value =
        serde_json::from_str(&text).map_err(|e| Error::Malformed { path: path.clone(), format: "model index", detail: e.to_string() })?;
    match index["_class_name"].as_str() {
        Some(class) if !SUPPORTED.contains(&class) => {
            let detail =
                format!("its model_index.json says {class}; `infgen generate` runs Stable Diffusion 1.x and 2.x (StableDiffusionPipeline)");
            Err(unknown(folder, detail))
        }
        _ => Ok(index["scheduler"][1].as_str().map(str::to_owned)),
    }
}
