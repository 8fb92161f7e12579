//! What a file holds, told from its tensors' names and shapes and from its config.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::source::{Content, Source};
use super::taesd_keys::{self, Half};
use super::{View, Weights, clip_keys, dit_keys, infd_keys, unet_keys, vae_keys};
use crate::error::{Error, Result};
use crate::latent::{Latent, LatentSpace};
use crate::models::clip_config::ClipTextConfig;
use crate::models::dit_config::{DitConfig, Positions};
use crate::models::infd_config::InfdConfig;
use crate::models::infgen_config::InfgenConfig;
use crate::models::taesd_config::TaesdConfig;
use crate::models::unet_config::UnetConfig;
use crate::models::vae_config::VaeConfig;

/// What weights, or a latent file, were recognised as.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Recognised {
    /// An InfGen decoder.
    Infgen {
        /// Its configuration.
        config: Box<InfgenConfig>,
    },
    /// The autoencoder and the renderer of INFD, whatever lies beside them.
    Infd {
        /// Its configuration.
        config: Box<InfdConfig>,
        /// The diffusion model's, if it is there.
        unet: Option<Box<UnetConfig>>,
    },
    /// An AutoencoderKL and nothing else.
    Vae(Vae),
    /// One or both halves of TAESD.
    Taesd {
        /// The encoder's shape, if it is there.
        encoder: Option<TaesdConfig>,
        /// The decoder's shape, if it is there.
        decoder: Option<TaesdConfig>,
        /// The latent space, from the metadata or the name of the file (`taesdxl`, ...): the tensors do not tell.
        latent_space: Option<LatentSpace>,
    },
    /// A single-file checkpoint of a whole diffusion model.
    Checkpoint {
        /// Which family: `sd1`, `sd2`, `sdxl`, `sd3`, `flux`, or `unknown`.
        family: &'static str,
        /// The autoencoder inside, if there is one that this version reads.
        vae: Option<Vae>,
        /// The UNet inside, if it is one that this version runs.
        unet: Option<Box<UnetConfig>>,
        /// The text encoder inside, if it is one that this version runs.
        text_encoder: Option<ClipTextConfig>,
        /// SDXL's second one.
        text_encoder_2: Option<ClipTextConfig>,
    },
    /// A Stable Diffusion UNet and nothing else.
    Unet {
        /// Its configuration.
        config: Box<UnetConfig>,
    },
    /// A class-conditional diffusion transformer and nothing else.
    Dit {
        /// Its configuration.
        config: DitConfig,
    },
    /// A CLIP text encoder and nothing else.
    TextEncoder {
        /// Its configuration.
        config: ClipTextConfig,
    },
    /// A latent.
    Latent {
        /// `[batch, channels, height, width]`
        shape: [usize; 4],
        /// The latent space, if the file says.
        latent_space: Option<String>,
    },
    /// Weights that have a name but no use for decoding.
    Other {
        /// `UNet`, `text encoder`, `LoRA`, ...
        what: &'static str,
    },
    /// None of these.
    Unknown,
}

/// An AutoencoderKL as it was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vae {
    /// From its `config.json`, or read off the tensors.
    pub config: VaeConfig,
    /// Whether the encoder is there.
    pub encoder: bool,
    /// Whether the decoder is there.
    pub decoder: bool,
}

impl fmt::Display for Recognised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = |space: &Option<LatentSpace>| space.map_or("unknown", LatentSpace::name);
        match self {
            Self::Infgen { config } => {
                let InfgenConfig { preset, hidden_size, num_blocks, latent_space, .. } = &**config;
                write!(
                    f,
                    "InfGen decoder (preset {preset}, {num_blocks} blocks of width {hidden_size}, latent space {})",
                    latent_space.name()
                )
            }
            Self::Infd { config, unet } => {
                let (channels, codes) = (config.autoencoder.latent_channels, config.codes.map_or("no".into(), |n| n.to_string()));
                let model = unet.as_ref().map_or(String::new(), |unet| format!(" with its {unet}"));
                write!(f, "INFD {} ({channels} latent channels, {codes} codes){model}", halves(config.encoder, true))
            }
            Self::Vae(vae) => write!(f, "{vae}"),
            Self::Taesd { encoder, decoder, latent_space } => {
                let halves = halves(encoder.is_some(), decoder.is_some());
                let channels = encoder.as_ref().or(decoder.as_ref()).map_or(0, |config| config.latent_channels);
                write!(f, "TAESD {halves} ({channels} latent channels, latent space {})", space(latent_space))
            }
            Self::Checkpoint { family, vae, unet, text_encoder, text_encoder_2 } => {
                write!(f, "checkpoint of a diffusion model (family {family}) ")?;
                match vae {
                    Some(vae) => write!(f, "with {vae}")?,
                    None => f.write_str("without an autoencoder that could decode")?,
                }
                unet.iter().try_for_each(|unet| write!(f, ", {unet}"))?;
                text_encoder.iter().chain(text_encoder_2).try_for_each(|text| write!(f, ", {text}"))
            }
            Self::Unet { config } => write!(f, "{config}: it decodes no latents"),
            Self::Dit { config } => write!(f, "{config}: it decodes no latents"),
            Self::TextEncoder { config } => write!(f, "{config}: it decodes no latents"),
            Self::Latent { shape: [b, c, h, w], latent_space } => {
                let space = latent_space.as_deref().unwrap_or("unknown");
                write!(f, "latent of {b} x {c} x {h} x {w} (batch x channels x height x width), latent space {space}")
            }
            Self::Other { what } => write!(f, "{what}: it decodes no latents"),
            Self::Unknown => f.write_str("not recognised"),
        }
    }
}

impl fmt::Display for Vae {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VaeConfig { latent_channels, scaling_factor, latent_space, .. } = &self.config;
        let space = latent_space.map_or("unknown", LatentSpace::name);
        let halves = halves(self.encoder, self.decoder);
        write!(f, "AutoencoderKL {halves} ({latent_channels} latent channels, scaling factor {scaling_factor}, latent space {space})")
    }
}

impl fmt::Display for UnetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<String> = self.block_out_channels.iter().map(usize::to_string).collect();
        let prompt = match self.cross_attention_dim {
            0 => "no prompt".into(),
            width => format!("prompt width {width}"),
        };
        write!(f, "UNet (levels of {} channels, {} input channels, {prompt})", channels.join(", "), self.in_channels)
    }
}

impl fmt::Display for DitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DitConfig { num_layers, hidden_size, num_classes, sample_size, .. } = self;
        let (name, or_other) = match (self.positions, self.modulation_rank) {
            (Positions::Rotary, None) => ("FiT", " or any size"),
            (Positions::Rotary, Some(_)) => ("FiTv2", " or any size"),
            _ if self.decode_layers.is_some() => ("MDTv2", ""),
            _ if self.decoder.is_some() => ("MaskDiT", ""),
            _ => ("DiT", ""),
        };
        let behind = self.decoder.as_ref().map(|d| format!(" and {} of width {}", d.num_layers, d.hidden_size)).unwrap_or_default();
        write!(
            f,
            "{name} ({num_layers} blocks of width {hidden_size}{behind}, {num_classes} classes, latents of {sample_size}x{sample_size}{or_other})"
        )
    }
}

impl fmt::Display for ClipTextConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CLIP text encoder ({} layers of width {})", self.num_hidden_layers, self.hidden_size)
    }
}

fn halves(encoder: bool, decoder: bool) -> &'static str {
    match (encoder, decoder) {
        (true, true) => "encoder and decoder",
        (true, false) => "encoder",
        _ => "decoder",
    }
}

/// Says what `weights` hold. Reads no tensor data; of a model it checks the config and not yet that every tensor is
/// there (the configs' `tensors` with [`View::check`] do).
///
/// # Errors
/// [`Error::Config`] for a model that was recognised and whose config or shapes contradict themselves.
pub fn recognise(weights: &Weights) -> Result<Recognised> {
    if (weights.contains("mask_token") && !dit_keys::is_masked(weights))
        || weights.metadata().contains_key(crate::models::infgen_config::METADATA_KEY)
    {
        return Ok(Recognised::Infgen { config: Box::new(InfgenConfig::from_weights(weights)?) });
    }
    if let Some(info) = weights.info("latent").filter(|_| weights.len() == 1) {
        let shape = Latent::dims(weights.path(), info.shape)?;
        let latent_space = weights.metadata().get(crate::latent::SPACE_KEY).cloned();
        return Ok(Recognised::Latent { shape, latent_space });
    }
    if let Some(family) = checkpoint_family(weights) {
        // Parts that this version cannot run do not keep the others from running.
        let known = !matches!(family, "sd3" | "flux");
        let unet = unet_keys::view(weights).filter(|_| known).and_then(|view| UnetConfig::infer(&view).ok()).map(Box::new);
        let text_encoder = clip_keys::view(weights).filter(|_| known).and_then(|view| ClipTextConfig::infer(&view).ok());
        let text_encoder_2 = clip_keys::second(weights).and_then(|view| ClipTextConfig::infer(&view).ok());
        return Ok(Recognised::Checkpoint { family, vae: vae(weights)?, unet, text_encoder, text_encoder_2 });
    }
    // Before the others: adapters and ControlNets carry pieces of the names of what they adapt.
    if let Some(what) = adapter(weights) {
        return Ok(Recognised::Other { what });
    }
    if let Some(view) = infd_keys::view(weights) {
        let unet = unet_keys::view(weights).and_then(|view| UnetConfig::infer(&view).ok()).map(Box::new);
        return Ok(Recognised::Infd { config: Box::new(InfdConfig::infer(&view)?), unet });
    }
    let half = |half| taesd_keys::view(weights, half).map(|view| TaesdConfig::infer(&view, half)).transpose();
    let (encoder, decoder) = (half(Half::Encoder)?, half(Half::Decoder)?);
    if encoder.is_some() || decoder.is_some() {
        if let Some(json) = weights.config_json() {
            TaesdConfig::check_json(json, weights.config_path())?;
        }
        return Ok(Recognised::Taesd { encoder, decoder, latent_space: taesd_space(weights) });
    }
    if let Some(vae) = vae(weights)? {
        return Ok(Recognised::Vae(vae));
    }
    match dit(weights) {
        Ok(Some((_, config))) => return Ok(Recognised::Dit { config }),
        Err(error) if weights.config_json().is_some() => return Err(error),
        // Without a config, what does not show in the tensors is no contradiction: a relative of DiT.
        Ok(None) | Err(_) => {}
    }
    if weights.contains_prefix("transformer_blocks.") {
        return Ok(Recognised::Other { what: part(weights).unwrap_or("diffusion transformer") });
    }
    if let Some((_, config)) = unet(weights)? {
        return Ok(Recognised::Unet { config: Box::new(config) });
    }
    if let Some((_, config)) = text_encoder(weights)? {
        return Ok(Recognised::TextEncoder { config });
    }
    Ok(part(weights).map_or(Recognised::Unknown, |what| Recognised::Other { what }))
}

/// The autoencoder inside `weights`, alone or in a checkpoint, with its config: the folder's `config.json`, else what
/// the tensors' shapes, the checkpoint's other parts and, last, the file's name tell.
///
/// # Errors
/// [`Error::Config`].
pub fn vae(weights: &Weights) -> Result<Option<Vae>> {
    let Some(view) = vae_keys::view(weights) else { return Ok(None) };
    let half = |part: &str| view.contains(&format!("{part}.conv_in.weight")) && view.contains(&format!("{part}.conv_out.weight"));
    let (encoder, decoder) = (half("encoder"), half("decoder"));
    if !encoder && !decoder {
        return Ok(None);
    }
    let config = match weights.config_json() {
        Some(json) => VaeConfig::from_json(json, weights.config_path())?,
        None => VaeConfig::infer(&view, vae_space(weights, &view))?,
    };
    Ok(Some(Vae { config, encoder, decoder }))
}

/// The UNet inside `weights`, alone or in a checkpoint: its tensors under diffusers' names, and its config from the folder's
/// `config.json` or the tensors' shapes.
///
/// # Errors
/// [`Error::Config`].
pub fn unet(weights: &Weights) -> Result<Option<(View<'_>, UnetConfig)>> {
    let Some(view) = unet_keys::view(weights) else { return Ok(None) };
    // INFD's comes without one.
    let config = match weights.config_json().filter(|_| view.own_heads().is_none()) {
        Some(json) => UnetConfig::from_json(json, weights.config_path())?,
        None => UnetConfig::infer(&view)?,
    };
    Ok(Some((view, config)))
}

/// The class-conditional transformer that `weights` are: its tensors under diffusers' names, and its config from the folder's `config.json` or the
/// tensors' shapes.
///
/// # Errors
/// [`Error::Config`].
pub fn dit(weights: &Weights) -> Result<Option<(View<'_>, DitConfig)>> {
    let Some(view) = dit_keys::view(weights) else { return Ok(None) };
    let config = match weights.config_json() {
        Some(json) if !dit_keys::is_original(&view) => DitConfig::from_json(json, weights.config_path())?,
        json => DitConfig::infer(&view, json)?,
    };
    Ok(Some((view, config)))
}

/// The CLIP text encoder inside `weights`, alone or in a checkpoint: its tensors under transformers' names (without
/// `text_model.`), and its config from the folder's `config.json` or the tensors' shapes.
///
/// # Errors
/// [`Error::Config`].
pub fn text_encoder(weights: &Weights) -> Result<Option<(View<'_>, ClipTextConfig)>> {
    let Some(view) = clip_keys::view(weights) else { return Ok(None) };
    let config = match weights.config_json() {
        Some(json) => ClipTextConfig::from_json(json, weights.config_path())?,
        None => ClipTextConfig::infer(&view)?,
    };
    Ok(Some((view, config)))
}

fn vae_space(weights: &Weights, view: &View) -> Option<LatentSpace> {
    match checkpoint_family(weights) {
        Some("sdxl") => return Some(LatentSpace::Sdxl),
        Some("sd3") => return Some(LatentSpace::Sd3),
        Some("flux") => return Some(LatentSpace::Flux),
        Some(_) => return Some(LatentSpace::Sd),
        None => {}
    }
    let stated = weights.metadata().get("modelspec.architecture").map(|a| a.to_ascii_lowercase()).unwrap_or_default();
    let name = file_name(weights.path());
    // A name is a hint: one that the shapes contradict says nothing.
    let fits = |space: &LatentSpace| match view.info("decoder.conv_in.weight").map(|info| info.shape) {
        Some([_, channels, ..]) => space.channels() == *channels,
        _ => true,
    };
    [stated, name].iter().find_map(|text| {
        let of = |words: &[&str], space| words.iter().any(|word| text.contains(word)).then_some(space);
        of(&["sdxl", "xl-v1", "xl_v1", "xl_base", "xl_vae"], LatentSpace::Sdxl)
            .or_else(|| of(&["sd3", "stable-diffusion-3"], LatentSpace::Sd3))
            .or_else(|| of(&["flux"], LatentSpace::Flux))
            .filter(fits)
    })
}

/// Upstream's `TAESD` also guesses from the name (`guess_latent_channels`).
/// From the metadata key `latent_space`, else from the file's name.
fn taesd_space(weights: &Weights) -> Option<LatentSpace> {
    if let Some(space) = weights.metadata().get(crate::latent::SPACE_KEY) {
        return LatentSpace::from_name(space);
    }
    let name = file_name(weights.path());
    [("taesdxl", LatentSpace::Sdxl), ("taesd3", LatentSpace::Sd3), ("taef1", LatentSpace::Flux), ("taesd", LatentSpace::Sd)]
        .into_iter()
        .find_map(|(word, space)| name.contains(word).then_some(space))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Which diffusion model a single-file checkpoint holds, from the prefixes of diffusers' `single_file_utils.py`.
fn checkpoint_family(weights: &Weights) -> Option<&'static str> {
    let unet = "model.diffusion_model.";
    if !weights.contains_prefix(unet) {
        return None;
    }
    let has = |name: &str| weights.contains_prefix(name);
    Some(if has("model.diffusion_model.joint_blocks.") {
        "sd3"
    } else if has("model.diffusion_model.double_blocks.") {
        "flux"
    } else if has("conditioner.embedders.") || has("model.diffusion_model.label_emb.") {
        "sdxl"
    } else {
        let context = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
        match weights.info(context).map(|info| info.shape) {
            Some([_, 768]) => "sd1",
            Some([_, 1024]) => "sd2",
            _ => "unknown",
        }
    })
}

fn adapter(weights: &Weights) -> Option<&'static str> {
    let named = |words: &[&str]| weights.names().any(|name| words.iter().any(|word| name.contains(word)));
    if named(&[".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", "lora_unet_", "lora_te"]) {
        Some("LoRA")
    } else if named(&["control_model.", "controlnet_cond_embedding."]) {
        Some("ControlNet")
    } else {
        None
    }
}

fn part(weights: &Weights) -> Option<&'static str> {
    let has = |name: &str| weights.contains_prefix(name);
    if has("time_embedding.") || has("input_blocks.") {
        Some("UNet")
    } else if has("transformer_blocks.") || has("x_embedder.") || has("joint_blocks.") || has("double_blocks.") || has("pos_embed.") {
        Some("diffusion transformer")
    } else if has("text_model.") || has("encoder.block.0.layer.0.SelfAttention.") {
        Some("text encoder")
    } else if has("emb_params") || has("clip_l") || has("string_to_param") {
        Some("textual inversion")
    } else {
        None
    }
}

/// What `infgen inspect` says about a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Bytes of tensor data.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values in all of them.
    pub parameters: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<String, usize>,
    /// The file's metadata.
    pub metadata: BTreeMap<String, String>,
    /// What it was recognised as.
    pub recognised: Recognised,
    /// The first tensor that is missing or has a wrong shape or type, in the words of its error; `None` if the model
    /// is whole.
    pub problem: Option<String>,
}

/// Looks into weights or a latent file (`.npy` too).
///
/// # Errors
/// As [`Weights::open`], [`Latent::open`] and [`recognise`].
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let path = path.as_ref();
    if path.is_file()
        && let source = Source::open(path)?
        && source.sniff()? == Content::Npy
    {
        let (facts, shape) = Latent::npy_facts(&source)?;
        return Ok(Inspection {
            bytes: facts.bytes,
            tensors: 1,
            parameters: facts.bytes / facts.width,
            dtypes: BTreeMap::from([(format!("F{}", 8 * facts.width), 1)]),
            metadata: BTreeMap::new(),
            recognised: Recognised::Latent { shape, latent_space: None },
            problem: None,
        });
    }
    let weights = Weights::open(path)?;
    let recognised = recognise(&weights)?;
    let mut inspection = Inspection {
        bytes: 0,
        tensors: weights.len(),
        parameters: 0,
        dtypes: BTreeMap::new(),
        metadata: weights.metadata().clone(),
        problem: check(&weights, &recognised).err().map(|error| error.to_string()),
        recognised,
    };
    for name in weights.names() {
        if let Some(info) = weights.info(name) {
            let elements = info.elements() as u64;
            inspection.parameters += elements;
            inspection.bytes += elements * info.dtype.bitsize() as u64 / 8;
            *inspection.dtypes.entry(info.dtype.to_string()).or_default() += 1;
        }
    }
    Ok(inspection)
}

/// Checks that every tensor of the recognised model is there, with its shape and type, without reading data.
///
/// # Errors
/// As [`View::check`].
pub fn check(weights: &Weights, recognised: &Recognised) -> Result<()> {
    let found = |view: Option<View>, tensors: &[(String, Vec<usize>)]| match view {
        Some(view) => view.check(tensors),
        None => Ok(()),
    };
    match recognised {
        Recognised::Infgen { config } => config.check(&weights.view()),
        Recognised::Infd { config, unet } => {
            found(infd_keys::view(weights), &config.tensors(config.encoder, true))?;
            match unet {
                Some(unet) => found(unet_keys::view(weights), &unet.tensors()),
                None => Ok(()),
            }
        }
        Recognised::Vae(vae) => found(vae_keys::view(weights), &vae.config.tensors(vae.encoder, vae.decoder)),
        Recognised::Checkpoint { vae, unet, text_encoder, text_encoder_2, .. } => {
            if let Some(vae) = vae {
                found(vae_keys::view(weights), &vae.config.tensors(vae.encoder, vae.decoder))?;
            }
            if let Some(unet) = unet {
                found(unet_keys::view(weights), &unet.tensors())?;
            }
            for (text, view) in [(text_encoder, clip_keys::view(weights)), (text_encoder_2, clip_keys::second(weights))] {
                if let Some(text) = text {
                    found(view, &text.tensors())?;
                }
            }
            Ok(())
        }
        Recognised::Unet { config } => found(unet_keys::view(weights), &config.tensors()),
        Recognised::Dit { config } => found(dit_keys::view(weights), &config.tensors()),
        Recognised::TextEncoder { config } => found(clip_keys::view(weights), &config.tensors()),
        Recognised::Taesd { encoder, decoder, .. } => {
            for (config, half) in [(encoder, Half::Encoder), (decoder, Half::Decoder)] {
                if let Some(config) = config {
                    found(taesd_keys::view(weights, half), &config.tensors(half))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

impl Recognised {
    /// [`Error::UnknownModel`] for a use that these weights have no part for; `wanted` says which was looked for.
    pub fn refuse(&self, weights: &Weights, wanted: &str) -> Error {
        Error::UnknownModel { path: weights.path().to_owned(), detail: format!("{wanted} was looked for; this is {self}") }
    }
}
