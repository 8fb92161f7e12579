//! A model's parts: found in a diffusers folder or in a single-file checkpoint, opened, not yet loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::latent::LatentSpace;
use crate::models::clip_config::ClipTextConfig;
use crate::models::dit_config::{DitConfig, Positions};
use crate::models::infd_config::InfdConfig;
use crate::models::unet_config::UnetConfig;
use crate::models::vae_config::VaeConfig;
use crate::nn::RotaryScaling;
use crate::schedulers::{Prediction, Sampler, Scheduler, SchedulerConfig, with_class};
use crate::tokenizer::ClipTokenizer;
use crate::weights::recognise::{self, Recognised};
use crate::weights::{View, Weights, clip_keys, dit_keys, unet_keys};

/// What makes a latent of noise, and what it is told.
#[derive(Debug)]
pub enum Denoiser {
    /// A UNet that is told a text, or nothing.
    Unet {
        /// Its configuration.
        unet: Box<UnetConfig>,
        /// Where texts become what it reads, if it reads any.
        text: Option<Box<Text>>,
        /// The second such place of SDXL, whose tokens lie beside those of the first.
        second: Option<Box<SecondText>>,
    },
    /// A transformer that is told a class.
    Dit {
        /// Its configuration.
        dit: DitConfig,
        /// The names of the classes.
        labels: Labels,
    },
}

/// A text encoder.
#[derive(Debug)]
pub struct Text {
    /// Its configuration.
    pub config: ClipTextConfig,
    /// The tokenizer, its prompts as long as the text encoder's positions.
    pub tokenizer: ClipTokenizer,
}

/// SDXL's second text encoder, which pools the text, too.
#[derive(Debug)]
pub struct SecondText {
    /// The encoder.
    pub text: Text,
    /// Where no negative prompt is given, what it would be encoded to is zero everywhere (diffusers' `force_zeros_for_empty_prompt`).
    pub zeros_for_none: bool,
}

/// The weights of a model that makes latents, with their configurations.
#[derive(Debug)]
pub struct Parts {
    /// The folder or file.
    pub path: PathBuf,
    /// One file for all parts, or a folder each.
    files: Files,
    /// The denoiser.
    pub denoiser: Denoiser,
    /// The autoencoder, where there is one.
    pub vae: Option<VaeConfig>,
    /// Width and height of the model's native picture in pixels.
    pub native_size: (usize, usize),
    /// `sd1`, `sd2`, `sdxl`, `dit`, `fit`, `mdt`, `maskdit`, `infd` or `unknown`.
    pub family: &'static str,
    /// What was taken for granted, for the user.
    pub notes: Vec<String>,
    scheduler: SchedulerSource,
}

#[derive(Debug)]
enum Files {
    Single(Weights),
    /// The text encoders in the order of [`Parts::texts`].
    Folder {
        denoiser: Weights,
        texts: Vec<Weights>,
        vae: Option<PathBuf>,
    },
}

#[derive(Debug)]
enum SchedulerSource {
    Json {
        json: String,
        path: PathBuf,
    },
    Inferred {
        sampler: Sampler,
        prediction: Prediction,
    },
    /// As DiT, FiT and MDT, or SiT and FiTv2, or MaskDiT, were trained.
    Dit {
        prediction: Prediction,
    },
    /// As INFD was trained.
    Infd,
}

const FOLDERS: &str = "a diffusers folder has model_index.json, unet/, text_encoder/, tokenizer/, scheduler/ and vae/, that of SDXL also text_encoder_2/ and tokenizer_2/";

/// `scheduler_config.json` of SDXL base 1.0, for files that bring none.
const SDXL_SCHEDULER: &str = r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": false, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
    "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading", "use_karras_sigmas": false}"#;

const CLASS_FOLDERS: &str = "a diffusers folder of a class-conditional model has model_index.json, transformer/, scheduler/ and vae/";
const REFINER: &str = "SDXL's refiner has none, and is not known to this version; of another model use a complete file or folder";

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
        if let Some((_, dit)) = recognise::dit(&weights)? {
            return Parts::original_dit(path, dit, weights);
        }
        let recognised = recognise::recognise(&weights)?;
        let wanted = "a checkpoint of Stable Diffusion 1.x, 2.x or SDXL, a DiT, SiT, FiT, MDT or MaskDiT, or INFD with its diffusion model";
        let family = match &recognised {
            Recognised::Infd { config, unet: Some(unet) } => return Ok(Parts::infd(path, config, unet.clone(), weights)),
            Recognised::Checkpoint { family: family @ ("sd1" | "sd2" | "sdxl" | "unknown"), .. } => *family,
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
            let detail = match family {
                "sdxl" => format!("this checkpoint carries no first text encoder: {REFINER}"),
                _ => "this checkpoint carries no text encoder; use a complete one, or a diffusers folder".into(),
            };
            return Err(unknown(path, detail));
        };
        let second = match clip_keys::second(&weights) {
            Some(view) => {
                let config = ClipTextConfig::infer(&view)?;
                let tokenizer = embedded(path, &config)?.with_pad("!")?; // OpenCLIP pads with zeros
                Some(Box::new(SecondText { text: Text { config, tokenizer }, zeros_for_none: true }))
            }
            None => None,
        };
        let sdxl = second.is_some();
        if let Some(key) = ["edm_mean", "edm_vpred.sigma_max"].into_iter().find(|key| weights.contains(key)) {
            let detail = format!(
                "`{key}` in it says that it was trained with EDM's noise, as Playground 2.5 and CosXL are, which is not known to this version"
            );
            return Err(unknown(path, detail));
        }
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
        let scheduler = match sdxl {
            true => {
                let mut json = SDXL_SCHEDULER.to_owned();
                if prediction == Prediction::VPrediction {
                    json = json.replace("\"epsilon\"", "\"v_prediction\"");
                }
                if weights.contains("ztsnr") {
                    json = json.replacen('{', "{\"rescale_betas_zero_snr\": true, ", 1);
                }
                SchedulerSource::Json { json, path: path.to_owned() }
            }
            false => SchedulerSource::Inferred { sampler, prediction },
        };
        let mut notes = Vec::new();
        if stated.is_none() && prediction == Prediction::VPrediction && !weights.contains("v_pred") {
            notes.push(format!(
                "{}: nothing in it says what it predicts; taken for a v-prediction model of 768x768, as SD 2.1 is. If it is SD 2 base: --prediction epsilon --latent-size 512x512",
                path.display()
            ));
        }
        let native_side = match prediction {
            _ if sdxl => 1024,
            Prediction::VPrediction if open_clip => 768,
            _ => 512,
        };
        Ok(Parts {
            path: path.to_owned(),
            denoiser: Denoiser::Unet { unet: Box::new(unet), text: Some(Box::new(Text { config: text, tokenizer })), second },
            vae,
            native_size: (native_side, native_side),
            family,
            notes,
            scheduler,
            files: Files::Single(weights),
        })
    }

    /// INFD: noise to a latent of its autoencoder's, told nothing.
    fn infd(path: &Path, config: &InfdConfig, unet: Box<UnetConfig>, weights: Weights) -> Parts {
        // Latents of 64 x 64, whose size no tensor says.
        let side = 64 * config.autoencoder.scale();
        Parts {
            path: path.to_owned(),
            files: Files::Single(weights),
            denoiser: Denoiser::Unet { unet, text: None, second: None },
            vae: Some(config.autoencoder.clone()),
            native_size: (side, side),
            family: "infd",
            notes: Vec::new(),
            scheduler: SchedulerSource::Infd,
        }
    }

    /// A class-conditional model.
    fn class_conditional(
        path: &Path,
        dit: DitConfig,
        labels: Labels,
        vae: Option<VaeConfig>,
        scheduler: SchedulerSource,
        files: Files,
    ) -> Parts {
        let side = dit.sample_size * vae.as_ref().map_or(8, VaeConfig::scale);
        let family = match dit {
            _ if dit.positions == Positions::Rotary => "fit",
            _ if dit.decode_layers.is_some() => "mdt",
            _ if dit.decoder.is_some() => "maskdit",
            _ => "dit",
        };
        Parts {
            path: path.to_owned(),
            files,
            denoiser: Denoiser::Dit { dit, labels },
            vae,
            native_size: (side, side),
            family,
            notes: Vec::new(),
            scheduler,
        }
    }

    /// The original's weights and nothing else. Those of SiT have the same names and shapes: the name of the file, or of a folder near it, tells; so it
    /// does of FiT's models for 512 pixels (HRFT).
    fn original_dit(path: &Path, dit: DitConfig, weights: Weights) -> Result<Parts> {
        if dit.positions == Positions::Formula {
            let detail = format!("this is {dit}, one part of a model only: name the folder that it belongs to ({CLASS_FOLDERS})");
            return Err(unknown(path, detail));
        }
        // The hub's cache has a model's name four levels up.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let says = |name: &Path, word: &str| {
            let name = name.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
            name.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == word)
        };
        let nearest = |words: [&'static str; 2]| whole.ancestors().take(5).find_map(|name| words.into_iter().find(|word| says(name, word)));
        let (turns, low_rank, joined) = (dit.positions == Positions::Rotary, dit.modulation_rank.is_some(), dit.decode_layers.is_some());
        let source = |prediction| SchedulerSource::Dit { prediction };
        let files = Files::Single(weights);
        let mut parts = Parts::class_conditional(path, dit, Labels::default(), None, source(Prediction::Epsilon), files);
        if parts.is_edm() {
            parts.scheduler = source(Prediction::Edm);
        }
        let note = if turns {
            if low_rank {
                parts.scheduler = source(Prediction::Flow);
            }
            nearest(["hrft", "hr"]).map(|_| {
                let (w, h) = parts.native_size;
                parts.native_size = (2 * w, 2 * h);
                format!("taken for the model for {}x{} pixels, by its name; if it is not: --latent-size {w}x{h}", 2 * w, 2 * h)
            })
        } else if joined || parts.is_edm() {
            None
        } else {
            match nearest(["sit", "dit"]) {
                Some("sit") => {
                    parts.scheduler = source(Prediction::Flow);
                    Some("taken for SiT, by its name; if it is DiT, whose tensors are the same: --prediction epsilon".into())
                }
                Some(_) => None,
                None => Some("taken for DiT; if it is SiT, whose tensors are the same: --prediction flow".into()),
            }
        };
        parts.notes = note.iter().map(|note| format!("{}: {note}", path.display())).collect();
        Ok(parts)
    }

    /// Whether `path` is a folder with the parts of a model that [`Parts::open`] knows, rather than weights.
    pub fn is_folder_of_parts(path: &Path) -> bool {
        let transformer = || match Index::open(path) {
            Ok(Some(index)) => index.class() == Some(DIT_PIPELINE),
            Ok(None) => true,
            Err(_) => false,
        };
        path.join("unet").is_dir() || (path.join("transformer").is_dir() && transformer())
    }

    fn from_folder(path: &Path) -> Result<Parts> {
        let index = Index::open(path)?;
        let classes = match index.as_ref().and_then(Index::class) {
            Some(class) => class == DIT_PIPELINE,
            None => path.join("transformer").is_dir() && !path.join("unet").is_dir(),
        };
        // Weights beside the config.json that says their heads.
        if index.is_none()
            && !classes
            && !path.join("unet").is_dir()
            && let Ok(weights) = Weights::open(path)
            && let Some((_, dit)) = recognise::dit(&weights)?
        {
            return Parts::original_dit(path, dit, weights);
        }
        if classes { Parts::from_class_folder(path, index) } else { Parts::from_text_folder(path, index) }
    }

    /// One part of the model in `path`.
    fn component(path: &Path, name: &str) -> Result<Weights> {
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
            _ if name == "transformer" => format!("there is no {name}/ in it; {CLASS_FOLDERS}"),
            _ => format!("there is no {name}/ in it; {FOLDERS}"),
        };
        Err(unknown(path, detail))
    }

    /// The autoencoder of the folder `path` and where it is, if there is one.
    fn folder_vae(path: &Path) -> Result<(Option<VaeConfig>, Option<PathBuf>)> {
        let Some(folder) = Some(path.join("vae")).filter(|folder| folder.is_dir()) else { return Ok((None, None)) };
        let weights = Weights::open(&folder)?;
        let vae = recognise::vae(&weights)?.ok_or_else(|| wrong(&weights, "an AutoencoderKL"))?;
        Ok((Some(vae.config), Some(folder)))
    }

    /// `scheduler_config.json` of the folder `path`, under the class that the index names; where it is missing, `otherwise`, told its path.
    fn folder_scheduler(path: &Path, index: Option<&Index>, otherwise: impl FnOnce(&Path) -> SchedulerSource) -> Result<SchedulerSource> {
        let path = path.join("scheduler").join("scheduler_config.json");
        match std::fs::read_to_string(&path) {
            Ok(json) => {
                let json = match index.and_then(Index::scheduler) {
                    Some(class) => with_class(json, class),
                    None => json,
                };
                Ok(SchedulerSource::Json { json, path })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(otherwise(&path)),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    fn from_class_folder(path: &Path, index: Option<Index>) -> Result<Parts> {
        let weights = Parts::component(path, "transformer")?;
        let dit = match recognise::dit(&weights)? {
            Some((_, dit)) if dit.decoder.is_none() => dit,
            Some((_, dit)) => {
                return Err(unknown(path, format!("its transformer is {dit}, which diffusers does not have: name the file itself")));
            }
            None => return Err(wrong(&weights, "a DiT")),
        };
        let (vae, vae_path) = Parts::folder_vae(path)?;
        let labels = index.as_ref().map(Index::labels).unwrap_or_default();
        let mut notes = Vec::new();
        let scheduler = Parts::folder_scheduler(path, index.as_ref(), |missing| {
            notes.push(format!(
                "{}: missing; the noise is taken to be that which DiT was trained with, the sampler ddim",
                missing.display()
            ));
            SchedulerSource::Dit { prediction: Prediction::Epsilon }
        })?;
        let files = Files::Folder { denoiser: weights, texts: Vec::new(), vae: vae_path };
        Ok(Parts { notes, ..Parts::class_conditional(path, dit, labels, vae, scheduler, files) })
    }

    fn from_text_folder(path: &Path, index: Option<Index>) -> Result<Parts> {
        let unet_weights = Parts::component(path, "unet")?;
        let unet = match recognise::unet(&unet_weights)? {
            Some((_, config)) => config,
            None => return Err(wrong(&unet_weights, "a UNet of Stable Diffusion")),
        };
        let second_weights = match unet.added {
            Some(_) => Some(Parts::component(path, "text_encoder_2")?),
            None => None,
        };
        if second_weights.is_some() && !path.join("text_encoder").is_dir() {
            return Err(unknown(path, format!("there is no text_encoder/ in it: {REFINER}")));
        }
        let text_weights = Parts::component(path, "text_encoder")?;
        let text = match recognise::text_encoder(&text_weights)? {
            Some((_, config)) => config,
            None => return Err(wrong(&text_weights, "a CLIP text encoder")),
        };
        let second = match &second_weights {
            Some(weights) => {
                let Some((view, mut config)) = recognise::text_encoder(weights)? else {
                    return Err(wrong(weights, "a CLIP text encoder"));
                };
                if weights.config_json().is_none() {
                    let detail = "there is no text_encoder_2/config.json in it, and its tensors do not tell the activation";
                    return Err(unknown(path, detail));
                }
                config.take_projection(&view);
                let text = Parts::folder_text(path, "tokenizer_2", config, Some("!"))?;
                Some(Box::new(SecondText { text, zeros_for_none: index.as_ref().is_none_or(Index::zeros_for_none) }))
            }
            None => None,
        };
        let (vae, vae_path) = Parts::folder_vae(path)?;
        // Nothing reads a projection of the first.
        let text = Parts::folder_text(path, "tokenizer", ClipTextConfig { projection_dim: None, ..text }, None)?;
        let mut notes = Vec::new();
        for (name, weights) in [("unet", &unet_weights), ("text_encoder", &text_weights)] {
            if weights.config_json().is_none() {
                notes.push(format!("{name}/config.json is missing: what shapes do not tell (heads, groups, activations) is taken to be that of Stable Diffusion"));
            }
        }
        let scheduler = Parts::folder_scheduler(path, index.as_ref(), |missing| {
            let (sampler, model, source) = match second {
                Some(_) => ("euler", "SDXL", SchedulerSource::Json { json: SDXL_SCHEDULER.into(), path: missing.to_owned() }),
                None => ("pndm", "SD 1.5", SchedulerSource::Inferred { sampler: Sampler::Pndm, prediction: Prediction::Epsilon }),
            };
            notes.push(format!(
                "{}: missing; taken for a model that predicts the noise, with the sampler {sampler}, as {model} is. Otherwise: --prediction, --sampler",
                missing.display()
            ));
            source
        })?;
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
        let usual = if second.is_some() { 128 } else { 64 };
        let (height, width) = sample_size.filter(in_range).unwrap_or((usual, usual));
        let scale = vae.as_ref().map_or(8, VaeConfig::scale);
        let family = match text.config.hidden_size {
            _ if second.is_some() => "sdxl",
            768 => "sd1",
            1024 => "sd2",
            _ => "unknown",
        };
        Ok(Parts {
            path: path.to_owned(),
            native_size: (width as usize * scale, height as usize * scale),
            denoiser: Denoiser::Unet { unet: Box::new(unet), text: Some(Box::new(text)), second },
            vae,
            family,
            notes,
            scheduler,
            files: Files::Folder {
                denoiser: unet_weights,
                texts: std::iter::once(text_weights).chain(second_weights).collect(),
                vae: vae_path,
            },
        })
    }

    /// A text encoder with the tokenizer in `folder`, or the public one, padded with `pad`.
    fn folder_text(path: &Path, folder: &str, config: ClipTextConfig, pad: Option<&str>) -> Result<Text> {
        let folder = path.join(folder);
        let tokenizer = match (folder.is_dir(), pad) {
            (true, _) => ClipTokenizer::open(&folder)?,
            (false, Some(pad)) => embedded(path, &config)?.with_pad(pad)?,
            (false, None) => embedded(path, &config)?,
        };
        let positions = tokenizer.max_length().min(config.max_position_embeddings);
        Ok(Text { config, tokenizer: tokenizer.with_max_length(positions) })
    }

    fn check(&self) -> Result<()> {
        let (view, tensors) = (self.denoiser_view()?, self.denoiser_tensors());
        view.check(&tensors)?;
        if let (Files::Single(_), Some(other)) = (&self.files, view.surplus(&tensors, self.unused())) {
            // Read off its tensors, a relative has those that are looked for and more.
            let (what, have) = match &self.denoiser {
                Denoiser::Unet { unet, text: None, .. } => (unet.to_string(), "that of INFD does"),
                Denoiser::Unet { unet, .. } => (unet.to_string(), "the UNets of Stable Diffusion do"),
                Denoiser::Dit { dit, .. } => (dit.to_string(), "DiT, SiT, FiT, MDT and MaskDiT do"),
            };
            return Err(unknown(
                &self.path,
                format!("this is {what}, but for `{other}`, which {have} not have: a network that is not known"),
            ));
        }
        let config = |detail: String| Error::Config { path: self.path.clone(), detail };
        let channels = self.latent_channels();
        let (unet, second) = match &self.denoiser {
            Denoiser::Unet { unet, second, .. } => (unet, second),
            Denoiser::Dit { dit, .. } if dit.in_channels == channels => return Ok(()),
            Denoiser::Dit { dit, .. } => {
                return Err(config(format!("the transformer takes {} channels, the VAE's latents have {channels}", dit.in_channels)));
            }
        };
        for (which, text) in self.texts().enumerate() {
            self.text_view(which)?.check(&text.config.tensors())?;
        }
        let second = second.as_ref().map(|second| &second.text);
        let lengths: Vec<usize> = self.texts().map(|text| text.tokenizer.max_length()).collect();
        if lengths.iter().any(|length| *length != lengths[0]) {
            return Err(config(format!("the tokenizers give {lengths:?} tokens: parts of different models")));
        }
        // None: the UNet is told no text.
        let width: usize = self.texts().map(|text| text.config.hidden_size).sum();
        if unet.cross_attention_dim != width {
            let unet = unet.cross_attention_dim;
            return Err(config(format!(
                "the UNet attends to prompts of width {unet}, the text encoder gives {width}: parts of different models"
            )));
        }
        let pooled = second.and_then(|second| second.config.projection_dim);
        if unet.added.map(|added| added.pooled) != pooled {
            let width = |pooled: Option<usize>| pooled.map_or("none".into(), |width| format!("one of width {width}"));
            let (wanted, given) = (width(unet.added.map(|added| added.pooled)), width(pooled));
            return Err(config(format!("pooled text: the UNet takes {wanted}, the text encoders give {given}: parts of different models")));
        }
        for text in self.texts() {
            if text.tokenizer.max_id() as usize >= text.config.vocab_size {
                let (ids, rows) = (text.tokenizer.max_id() as usize + 1, text.config.vocab_size);
                return Err(config(format!("the tokenizer has {ids} tokens, the text encoder {rows}: parts of different models")));
            }
        }
        if unet.out_channels != channels {
            return Err(config(format!("the UNet gives {} channels, the VAE's latents have {channels}", unet.out_channels)));
        }
        match unet.in_channels {
            n if n == channels || n == 2 * channels + 1 => Ok(()),
            n => {
                let inpainting = 2 * channels + 1;
                Err(config(format!(
                    "the UNet takes {n} channels; {channels} (text to image) and {inpainting} (inpainting) are known to this version"
                )))
            }
        }
    }

    /// The UNet, if it is one.
    pub fn unet(&self) -> Option<&UnetConfig> {
        match &self.denoiser {
            Denoiser::Unet { unet, .. } => Some(unet),
            Denoiser::Dit { .. } => None,
        }
    }

    /// The text encoders: one, or SDXL's two; none of a model that is told a class, or nothing.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        let both = match &self.denoiser {
            Denoiser::Unet { text, second, .. } => [text.as_deref(), second.as_ref().map(|second| &second.text)],
            Denoiser::Dit { .. } => [None, None],
        };
        both.into_iter().flatten()
    }

    /// Whether it is one of SDXL.
    pub fn is_sdxl(&self) -> bool {
        matches!(self.denoiser, Denoiser::Unet { second: Some(_), .. })
    }

    /// Whether the model is told a class, and not a text.
    pub fn is_class_conditional(&self) -> bool {
        matches!(self.denoiser, Denoiser::Dit { .. })
    }

    /// Whether the model is told neither a text nor a class: INFD.
    pub fn is_unconditional(&self) -> bool {
        matches!(self.denoiser, Denoiser::Unet { text: None, .. })
    }

    /// Whether the model was trained as EDM has it, and is told a sigma: MaskDiT.
    pub fn is_edm(&self) -> bool {
        matches!(&self.denoiser, Denoiser::Dit { dit, .. } if dit.decoder.is_some())
    }

    /// Whether the denoiser was distilled with guidance, and is told its scale.
    pub fn is_distilled(&self) -> bool {
        self.unet().is_some_and(|unet| unet.time_cond_proj_dim.is_some())
    }

    /// The guidance scale that is usual for it, with the sampler that runs.
    pub fn default_guidance(&self, sampler: Sampler) -> f64 {
        match &self.denoiser {
            Denoiser::Dit { dit, .. } if dit.positions == Positions::Rotary || self.is_edm() => 1.5,
            Denoiser::Dit { .. } => 4.0,
            Denoiser::Unet { text: Some(_), .. } if sampler == Sampler::Lcm && !self.is_distilled() => 1.5,
            Denoiser::Unet { second: Some(_), .. } => 5.0,
            // There is nothing to lead it away from.
            Denoiser::Unet { text: None, .. } => 1.0,
            Denoiser::Unet { .. } => 7.5,
        }
    }

    /// The number of steps that is usual for it, with the sampler that runs: 4 of LCM, 200 of INFD as its own script has it, else 50.
    pub fn default_steps(&self, sampler: Sampler) -> usize {
        match sampler {
            Sampler::Lcm => 4,
            _ if self.is_unconditional() => 200,
            _ => 50,
        }
    }

    /// [`super::Request::eta`] that is usual for it: of INFD 1, as its own script has it.
    pub fn default_eta(&self) -> f64 {
        if self.is_unconditional() { 1.0 } else { 0.0 }
    }

    /// [`super::Request::guidance_power`] that is usual for it: of MDTv2 0.01, as its own script has it.
    pub fn default_guidance_power(&self) -> Option<f64> {
        matches!(&self.denoiser, Denoiser::Dit { dit, .. } if dit.decode_layers.is_some()).then_some(0.01)
    }

    /// [`super::Request::rotary`] where none is named, of models whose positions turn.
    pub fn default_rotary(&self) -> Option<RotaryScaling> {
        matches!(&self.denoiser, Denoiser::Dit { dit, .. } if dit.positions == Positions::Rotary).then(RotaryScaling::default)
    }

    /// Channels that the denoiser takes.
    pub fn in_channels(&self) -> usize {
        match &self.denoiser {
            Denoiser::Unet { unet, .. } => unet.in_channels,
            Denoiser::Dit { dit, .. } => dit.in_channels,
        }
    }

    /// Every tensor of the denoiser with its shape.
    pub fn denoiser_tensors(&self) -> Vec<(String, Vec<usize>)> {
        match &self.denoiser {
            Denoiser::Unet { unet, .. } => unet.tensors(),
            Denoiser::Dit { dit, .. } => dit.tensors(),
        }
    }

    /// Which tensors of a file the denoiser does not read.
    fn unused(&self) -> fn(&str) -> bool {
        match &self.denoiser {
            Denoiser::Dit { dit, .. } if dit.decode_layers.is_some() || dit.decoder.is_some() => dit_keys::is_unused,
            _ => |_| false,
        }
    }

    /// Channels of its latents.
    pub fn latent_channels(&self) -> usize {
        match (&self.vae, &self.denoiser) {
            (Some(vae), _) => vae.latent_channels,
            (None, Denoiser::Unet { unet, .. }) => unet.out_channels,
            (None, Denoiser::Dit { dit, .. }) => dit.in_channels,
        }
    }

    /// Pixels a latent value side.
    pub fn scale(&self) -> usize {
        self.vae.as_ref().map_or(8, VaeConfig::scale)
    }

    /// What the sides of its pictures are multiples of, in pixels; none where there is one size only.
    pub fn size_step(&self) -> Option<usize> {
        match &self.denoiser {
            Denoiser::Unet { .. } => Some(self.scale()),
            Denoiser::Dit { dit, .. } => (dit.positions == Positions::Rotary).then(|| self.scale() * dit.patch_size),
        }
    }

    /// Whether the denoiser takes a mask and a masked picture beside the latent.
    pub fn is_inpainting(&self) -> bool {
        self.in_channels() != self.latent_channels()
    }

    /// Latent tags of this model's space, where it is known.
    pub fn latent_space(&self) -> Option<LatentSpace> {
        match (&self.vae, &self.denoiser) {
            (Some(vae), _) => vae.latent_space,
            // Those that were published are all of Stable Diffusion's.
            (None, Denoiser::Dit { dit, .. }) if dit.in_channels == 4 => Some(LatentSpace::Sd),
            (None, Denoiser::Unet { unet, second: Some(_), .. }) if unet.out_channels == 4 => Some(LatentSpace::Sdxl),
            (None, _) => None,
        }
    }

    /// The denoiser's tensors under diffusers' names.
    pub fn denoiser_view(&self) -> Result<View<'_>> {
        let weights = match &self.files {
            Files::Single(weights) | Files::Folder { denoiser: weights, .. } => weights,
        };
        let (view, what) = match self.denoiser {
            Denoiser::Unet { .. } => (unet_keys::view(weights), "UNet"),
            Denoiser::Dit { .. } => (dit_keys::view(weights), "transformer"),
        };
        view.ok_or_else(|| unknown(weights.path(), format!("there is no {what} in it")))
    }

    /// The tensors of a text encoder, the first (0) or SDXL's second (1), under transformers' names.
    pub fn text_view(&self, which: usize) -> Result<View<'_>> {
        let view = match (&self.files, which) {
            (Files::Single(weights), 0) => clip_keys::view(weights),
            (Files::Single(weights), _) => clip_keys::second(weights),
            (Files::Folder { texts, .. }, _) => texts.get(which).and_then(clip_keys::view),
        };
        view.ok_or_else(|| unknown(&self.path, "a text encoder is missing in it"))
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

    /// The scheduler that comes with the model, or `sampler` with its settings; `prediction` instead of what its config says that it predicts.
    ///
    /// # Errors
    /// As [`Scheduler::from_json`] and [`Scheduler::new`].
    pub fn scheduler(&self, sampler: Option<Sampler>, prediction: Option<Prediction>) -> Result<Scheduler> {
        let invalid = |detail: &str| Err(Error::Invalid { what: "prediction", detail: detail.into() });
        if prediction == Some(Prediction::Flow) && self.unet().is_some() {
            return invalid("flow is for SiT and FiTv2: the UNets of Stable Diffusion are told a timestep of 0 to 999");
        }
        if prediction.is_some_and(|prediction| (prediction == Prediction::Edm) != self.is_edm()) {
            return invalid(
                "MaskDiT, and no other of these models, is told a sigma and predicts what belongs to it (EDM): leave out --prediction",
            );
        }
        match &self.scheduler {
            SchedulerSource::Json { json, path } => {
                let scheduler = Scheduler::from_json(json, sampler, path)?;
                match prediction {
                    Some(prediction) => scheduler.with(|config| config.prediction_type = prediction),
                    None => Ok(scheduler),
                }
            }
            SchedulerSource::Inferred { sampler: own, prediction: inferred } => {
                let sampler = sampler.unwrap_or(*own);
                Scheduler::new(sampler, SchedulerConfig::stable_diffusion(sampler, prediction.unwrap_or(*inferred)))
            }
            SchedulerSource::Infd => {
                let sampler = sampler.unwrap_or(Sampler::Ddim);
                Scheduler::new(sampler, SchedulerConfig::infd(sampler, prediction.unwrap_or(Prediction::Epsilon)))
            }
            SchedulerSource::Dit { prediction: inferred } => {
                let prediction = prediction.unwrap_or(*inferred);
                let own = if matches!(prediction, Prediction::Flow | Prediction::Edm) { Sampler::Heun } else { Sampler::Ddim };
                let sampler = sampler.unwrap_or(own);
                // diffusers' form has them, too, and its pipeline does not use them.
                let learned = |dit: &DitConfig| dit.out_channels > dit.in_channels && dit.positions != Positions::Formula;
                let learned = matches!(&self.denoiser, Denoiser::Dit { dit, .. } if learned(dit));
                let learned_variance = learned && sampler == Sampler::Ddpm && prediction == Prediction::Epsilon;
                Scheduler::new(sampler, SchedulerConfig { learned_variance, ..SchedulerConfig::dit(sampler, prediction) })
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

/// What `weights` are instead of what was `wanted`.
fn wrong(weights: &Weights, wanted: &str) -> Error {
    match recognise::recognise(weights) {
        Ok(found) => found.refuse(weights, wanted),
        Err(error) => error,
    }
}

const DIT_PIPELINE: &str = "DiTPipeline";

/// `model_index.json` of a pipeline that this version runs.
pub struct Index(Value);

impl Index {
    /// Reads that of `folder`, if there is one. Refuses pipelines of other families by their name.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] with the name; [`Error::Io`] and [`Error::Malformed`] for a file that cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Index>> {
        const SUPPORTED: [&str; 11] = [
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInpaintPipelineLegacy",
            "StableDiffusionPipelineSafe",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            DIT_PIPELINE,
        ];
        let path = folder.join("model_index.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let index: Value = serde_json::from_str(&text).map_err(|e| Error::Malformed {
            path: path.clone(),
            format: "model index",
            detail: e.to_string(),
        })?;
        match index["_class_name"].as_str() {
            Some(class) if !SUPPORTED.contains(&class) => {
                let detail = format!(
                    "its model_index.json says {class}; `infgen generate` runs Stable Diffusion 1.x and 2.x (StableDiffusionPipeline), SDXL (StableDiffusionXLPipeline) and DiT ({DIT_PIPELINE})"
                );
                Err(unknown(folder, detail))
            }
            _ => Ok(Some(Index(index))),
        }
    }

    fn class(&self) -> Option<&str> {
        self.0["_class_name"].as_str()
    }

    /// The scheduler's class: it counts, and the one in the scheduler's own config does not.
    fn scheduler(&self) -> Option<&str> {
        self.0["scheduler"][1].as_str()
    }

    fn zeros_for_none(&self) -> bool {
        self.0["force_zeros_for_empty_prompt"].as_bool().unwrap_or(true)
    }

    fn labels(&self) -> Labels {
        let names = |text: &str| text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let of = |(id, text): (&String, &Value)| Some((id.parse().ok()?, names(text.as_str()?)));
        Labels(self.0["id2label"].as_object().into_iter().flatten().filter_map(of).collect())
    }
}

/// The names of a model's classes, by their numbers; several each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<usize, Vec<String>>);

impl Labels {
    /// The class that `prompt` names, of `classes`: a number, or one of its names, in any case.
    ///
    /// # Errors
    /// [`Error::Invalid`] that says what is possible.
    pub fn class(&self, prompt: &str, classes: usize) -> Result<usize> {
        let invalid = |detail: String| Error::Invalid { what: "prompt", detail };
        let prompt = prompt.trim();
        let range = format!("a number from 0 to {}", classes.saturating_sub(1));
        if let Ok(class) = prompt.parse::<usize>() {
            return if class < classes { Ok(class) } else { Err(invalid(format!("there is no class {class}; this model takes {range}"))) };
        }
        if self.0.is_empty() {
            return Err(invalid(format!("`{prompt}`: this model is told a class, {range}; it brings no names for them")));
        }
        let called = |fits: &dyn Fn(&str) -> bool| -> Vec<usize> {
            // By one of its names, or by all as the hint below shows them.
            let fits = |names: &[String]| names.iter().any(|name| fits(name)) || fits(&names.join(", "));
            self.0.iter().filter(|(id, names)| **id < classes && fits(names)).map(|(id, _)| *id).collect()
        };
        let exactly = [called(&|name| name == prompt), called(&|name| name.eq_ignore_ascii_case(prompt))];
        match exactly.iter().find(|found| !found.is_empty()).map(Vec::as_slice) {
            Some([class]) => Ok(*class),
            Some(several) => {
                let several: Vec<String> = several.iter().map(usize::to_string).collect();
                Err(invalid(format!("several classes are called `{prompt}`: take a number, {}", several.join(" or "))))
            }
            None => {
                let lower = prompt.to_ascii_lowercase();
                let near = called(&|name| !lower.is_empty() && name.to_ascii_lowercase().contains(&lower));
                let near: Vec<String> = near.iter().take(8).map(|id| format!("{id} ({})", self.0[id].join(", "))).collect();
                let hint = if near.is_empty() { String::new() } else { format!("; near it are {}", near.join(", ")) };
                Err(invalid(format!("no class is called `{prompt}`; this model takes {range}, or a class's name{hint}")))
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first name of a class, if it has one.
    pub fn name(&self, class: usize) -> Option<&str> {
        self.0.get(&class)?.first().map(String::as_str)
    }
}
