//! Text, or a class, or nothing but noise to image: prompt, text encoder, denoiser; out comes a latent, which any decoder of its space turns into a picture.
//!
//! Source of what is computed, and in which order noise is drawn: diffusers 0.42 `pipelines/stable_diffusion/`
//! (`pipeline_stable_diffusion.py`, `_img2img.py`, `_inpaint.py`), `pipelines/stable_diffusion_xl/` and `pipelines/dit/`. A seed gives the noise of
//! `torch.Generator("cpu").manual_seed(seed)` on every device.

mod denoise;
mod inpaint;
mod kept;
mod network;
pub mod parts;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use denoise::{Guidance, Known};
pub use denoise::{Preview, Report};
use kept::Kept;
pub use kept::{Encoded, Keep};
use parts::Denoiser;
pub use parts::Parts;

use crate::engine::{Dtype, Engine, Weights, channels_first, channels_last, hint};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Observer};
use crate::image::Image;
use crate::latent::{Latent, LatentSpace};
use crate::models::clip::ClipText;
use crate::models::dit::Classes;
use crate::models::unet_config::UnetConfig;
use crate::nn::{Loader, Precision, RotaryScaling};
use crate::noise::TorchGenerator;
use crate::schedulers::{Prediction, Sampler, Scheduler};
use crate::weights::lora::{Lora, Part, Patches};

/// How to open a [`Pipeline`].
#[derive(Debug, Clone, Default)]
pub struct PipelineOptions {
    /// LoRA files with their strengths (1 as trained).
    pub loras: Vec<(PathBuf, f64)>,
    /// What stays for the next call of [`Pipeline::generate`].
    pub keep: Keep,
}

/// A text-to-image, class-conditional or unconditional model on an engine. Holds files, prompts that it encoded, and on the device what [`Keep`] says.
///
/// ```no_run
/// # fn main() -> infgen::Result<()> {
/// use infgen::pipeline::{Pipeline, PipelineOptions, Request};
/// use infgen::{Engine, EngineOptions, Observer};
/// let engine = Engine::new(EngineOptions::default())?;
/// let pipeline = Pipeline::open(&engine, "sd15", &PipelineOptions::default())?;
/// let request = Request { steps: 25, seed: 42, ..Request::new("a lighthouse in a storm", 512, 512) };
/// let generated = pipeline.generate(&request, &Observer::default(), &|report| eprintln!("{}/{}", report.call, report.calls))?;
/// engine.decode(&generated.latent, 1920, 1080)?.save("lighthouse.png", &[])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipeline {
    engine: Engine,
    parts: Parts,
    denoiser_patches: Arc<Patches>,
    /// Of each text encoder.
    text_patches: [Arc<Patches>; 2],
    notes: Vec<String>,
    keep: Keep,
    kept: Mutex<Kept>,
}

/// What to generate. [`Request::new`] has the usual settings.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to show: a text, or for a class-conditional model the number or a name of a class; empty for an unconditional one.
    pub prompt: String,
    /// What not to show; it counts with `cfg` above 1. None is an empty text, but for SDXL, which is then led away from zeros
    /// (diffusers' `force_zeros_for_empty_prompt`). Models that are told no text have none.
    pub negative: Option<String>,
    /// Read `(word:1.2)` and `[word]` in prompts as emphasis.
    pub emphasis: bool,
    /// Last layers of the text encoder that are left out.
    pub clip_skip: usize,
    /// The sampler; none: the model's own.
    pub sampler: Option<Sampler>,
    /// What the model predicts; none: what its config says.
    pub prediction: Option<Prediction>,
    /// Steps of a whole run, of which image to image leaves out the first.
    pub steps: usize,
    /// Guidance scale; 1 and below: none.
    pub cfg: f64,
    /// Guidance of class-conditional models by a power cosine: 1 and the share `(1 - cos(pi (1 - t)^power)) / 2` of what the scale is more, `t` the model's
    /// timestep between 0 and 1. So it grows as the noise fades (MDT), or falls where the time runs from noise to data (FiTv2, whose source has it so). 0: the
    /// scale throughout, as MaskDiT alone takes it, which is told no such time; none: [`Parts::default_guidance_power`].
    pub guidance_power: Option<f64>,
    /// Share by which guided predictions take the spread of unguided ones, 0 to 1.
    pub guidance_rescale: f64,
    /// Noise of DDIM, 0 to 1.
    pub eta: f64,
    /// Seed of all noise; as in torch, its low 32 bits count.
    pub seed: u64,
    /// Number of pictures, from one stream of noise.
    pub batch: usize,
    /// How rotary positions follow sizes beyond those of training, in models that have them; none: [`RotaryScaling::default`].
    pub rotary: Option<RotaryScaling>,
    /// Width of stage one in pixels, a multiple of the VAE's scale.
    pub width: usize,
    /// Height of stage one in pixels.
    pub height: usize,
    /// The first noise, of unit variance, instead of a draw: one latent, or one for each picture.
    pub init_noise: Option<Latent>,
    /// The picture to start from.
    pub image: Option<Image>,
    /// How much of that picture may change, 0 to 1.
    pub strength: f64,
    /// Where it may change: white; black stays.
    pub mask: Option<Image>,
    /// Make a preview after every that many calls of the model; 0: none.
    pub preview_every: usize,
}

impl Request {
    /// `prompt` at `width x height` pixels with 50 steps, guidance 7.5, seed 0. [`Parts::default_guidance`] knows what suits a model.
    pub fn new(prompt: impl Into<String>, width: usize, height: usize) -> Request {
        Request {
            prompt: prompt.into(),
            negative: None,
            emphasis: false,
            clip_skip: 0,
            sampler: None,
            prediction: None,
            steps: 50,
            cfg: 7.5,
            guidance_power: None,
            guidance_rescale: 0.0,
            eta: 0.0,
            seed: 0,
            batch: 1,
            rotary: None,
            width,
            height,
            init_noise: None,
            image: None,
            strength: 0.8,
            mask: None,
            preview_every: 0,
        }
    }
}

/// What came of a [`Request`].
#[derive(Debug, Clone)]
pub struct Generated {
    /// The latents, scaled as pipelines hand them on.
    pub latent: Latent,
    /// The sampler that ran.
    pub sampler: Sampler,
    /// Calls of the denoiser for each picture; each is two passes with guidance.
    pub calls: usize,
    /// Seconds spent in them, for all pictures.
    pub denoise_seconds: f64,
    /// What had to be loaded, of `text_encoder`, `text_encoder_2`, `vae_encoder` and `denoiser`; the rest was still there, or not needed.
    pub loaded: Vec<&'static str>,
    /// What the user should know, such as the part of a prompt that was cut off.
    pub notes: Vec<String>,
}

fn invalid(what: &'static str, detail: impl Into<String>) -> Error {
    Error::Invalid { what, detail: detail.into() }
}

/// Most pictures of one request.
const MAX_BATCH: usize = 256;

impl Pipeline {
    /// Opens the model at `path`: a diffusers folder or a single-file checkpoint.
    ///
    /// # Errors
    /// As [`Parts::open`] and [`Lora::open`]; [`Error::UnknownModel`] for a LoRA that changes nothing in this model.
    pub fn open(engine: &Engine, path: impl Into<PathBuf>, options: &PipelineOptions) -> Result<Pipeline> {
        Pipeline::new(engine, Parts::open(&path.into())?, options)
    }

    /// [`Pipeline::open`] of parts that are open already.
    ///
    /// # Errors
    /// As [`Lora::open`]; [`Error::UnknownModel`] for a LoRA that changes nothing in this model.
    pub fn new(engine: &Engine, parts: Parts, options: &PipelineOptions) -> Result<Pipeline> {
        let (mut denoiser, mut texts, mut notes) = (Patches::default(), [Patches::default(), Patches::default()], parts.notes.clone());
        let text_tensors: Vec<_> = parts.texts().map(|text| text.config.tensors()).collect();
        for (path, strength) in &options.loras {
            let lora = Lora::open(path, *strength)?;
            let mut matched = lora.add_to(&mut denoiser, Part::Unet, &parts.denoiser_tensors())?;
            for ((patches, part), tensors) in texts.iter_mut().zip([Part::TextEncoder, Part::TextEncoder2]).zip(&text_tensors) {
                matched += lora.add_to(patches, part, tensors)?;
            }
            if matched == 0 {
                let detail = format!(
                    "this LoRA changes nothing in {}: none of its {} names fits, for instance `{}`; it was made for another family of models",
                    parts.path.display(),
                    lora.len(),
                    lora.example()
                );
                return Err(Error::UnknownModel { path: lora.path(), detail });
            }
            if matched < lora.len() {
                notes.push(format!(
                    "{}: {} of its {} changes fit this model, the others are left out",
                    lora.path().display(),
                    matched,
                    lora.len()
                ));
            }
        }
        let (denoiser_patches, text_patches) = (Arc::new(denoiser), texts.map(Arc::new));
        Ok(Pipeline { engine: engine.share(), parts, denoiser_patches, text_patches, notes, keep: options.keep, kept: Mutex::default() })
    }

    /// What the model is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    fn gpu(&self) -> &Gpu {
        self.engine.gpu()
    }

    /// What flows between layers stays f32: in f16 a step of SD 1.5's UNet is off by 2e-3 instead of 3e-4, and it is weights that memory goes to.
    fn precision(&self) -> Precision {
        match self.engine.dtype() {
            Dtype::F32 => Precision::F32,
            Dtype::F16 => Precision::F16_WEIGHTS,
        }
    }

    /// The sampler of `request` with the settings that diffusers' `StableDiffusionPipeline` insists on; those of SDXL, DiT and INFD insist on none.
    ///
    /// # Errors
    /// As [`Scheduler::from_json`].
    pub fn scheduler(&self, request: &Request) -> Result<Scheduler> {
        let scheduler = self.parts.scheduler(request.sampler, request.prediction)?;
        if !matches!(self.parts.denoiser, Denoiser::Unet { text: Some(_), second: None, .. }) {
            return Ok(scheduler);
        }
        scheduler.with(|config| {
            // StableDiffusionPipeline.__init__ corrects outdated configs so, and its inpainting form leaves out PNDM's Runge-Kutta steps.
            config.steps_offset = 1;
            config.clip_sample = false;
            config.skip_prk_steps |= request.mask.is_some();
        })
    }

    fn check(&self, request: &Request) -> Result<()> {
        let scale = self.parts.scale();
        let step = self.parts.size_step().unwrap_or(scale);
        for side in [request.width, request.height] {
            if side == 0 || !side.is_multiple_of(step) || side > crate::engine::MAX_SIDE {
                let near = |side: usize| (side / step).max(1) * step;
                let (w, h) = (near(request.width), near(request.height));
                let detail = format!(
                    "{}x{}: stage one needs sides that are multiples of {step}, at most {}, for instance {w}x{h}; --size sets the size of the picture freely",
                    request.width,
                    request.height,
                    crate::engine::MAX_SIDE
                );
                return Err(invalid("latent size", detail));
            }
        }
        if request.rotary.is_some() && self.parts.default_rotary().is_none() {
            return Err(invalid("rope", "this model's positions do not turn, as FiT's do: leave out --rope"));
        }
        match &self.parts.denoiser {
            Denoiser::Unet { unet, text, .. } => {
                let least = unet.smallest() * scale;
                if request.width.min(request.height) < least {
                    let (w, h) = (request.width.max(least), request.height.max(least));
                    let detail =
                        format!("{}x{}: sides of this model are at least {least}, for instance {w}x{h}", request.width, request.height);
                    return Err(invalid("latent size", detail));
                }
                if text.is_none() {
                    self.check_unconditional(request)?;
                }
                // The last layer is not among those that SDXL reads.
                let read = self.parts.texts().map(|text| text.config.num_hidden_layers - self.parts.is_sdxl() as usize).min();
                if let Some(read) = read.filter(|read| request.clip_skip >= *read) {
                    return Err(invalid("clip skip", format!("{} of {read} layers cannot be skipped", request.clip_skip)));
                }
            }
            Denoiser::Dit { dit, labels } => {
                if !dit.takes(request.width / scale, request.height / scale) {
                    let ((w, h), (width, height)) = (self.parts.native_size, (request.width, request.height));
                    let detail =
                        format!("{width}x{height}: this model has positions for {w}x{h} alone; --size sets the size of the picture freely");
                    return Err(invalid("latent size", detail));
                }
                if request.negative.as_ref().is_some_and(|text| !text.trim().is_empty()) {
                    return Err(invalid("negative prompt", "a class-conditional model has none: guidance leads away from the null class"));
                }
                if request.emphasis || request.clip_skip > 0 {
                    return Err(invalid("prompt", "emphasis and skipped layers are a text encoder's; this model is told a class"));
                }
                labels.class(&request.prompt, dit.num_classes)?;
            }
        }
        if !(1..=MAX_BATCH).contains(&request.batch) {
            return Err(invalid("batch", format!("{}; from 1 to {MAX_BATCH} are possible", request.batch)));
        }
        let within = |what, value: f64, low: f64, high: f64| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(invalid(what, format!("{value} does not lie between {low} and {high}"))),
        };
        within("cfg", request.cfg, -100.0, 1000.0)?;
        if let Some(power) = request.guidance_power {
            within("guidance power", power, 0.0, 100.0)?;
            if !self.parts.is_class_conditional() {
                return Err(invalid("guidance power", "it is for models that are told a class: leave out --cfg-power"));
            }
            if power > 0.0 && self.parts.is_edm() {
                return Err(invalid(
                    "guidance power",
                    "it is for models with timesteps, and MaskDiT is told a sigma: leave out --cfg-power",
                ));
            }
        }
        within("guidance rescale", request.guidance_rescale, 0.0, 1.0)?;
        within("strength", request.strength, 0.0, 1.0)?;
        if let Some(noise) = &request.init_noise {
            let (c, h, w) = (self.parts.latent_channels(), request.height / scale, request.width / scale);
            let [batch, channels, height, width] = noise.shape();
            if (channels, height, width) != (c, h, w) || (batch != 1 && batch != request.batch) {
                let detail = format!("shape {:?}; [{}, {c}, {h}, {w}] is needed here", noise.shape(), request.batch);
                return Err(invalid("init noise", detail));
            }
            if request.image.is_some() && request.mask.is_none() {
                return Err(invalid("init noise", "image to image starts from the picture; leave out one of them"));
            }
        }
        if request.mask.is_some() && request.image.is_none() {
            return Err(invalid("mask", "it says where a picture may change: name the picture with --image"));
        }
        if self.parts.is_inpainting() && request.mask.is_none() {
            return Err(invalid("model", "this is an inpainting model: it needs --image and --mask"));
        }
        Ok(())
    }

    /// Refuses what a model that is told nothing cannot be told.
    fn check_unconditional(&self, request: &Request) -> Result<()> {
        let some = |text: &str| !text.trim().is_empty();
        if some(&request.prompt) || request.negative.as_deref().is_some_and(some) {
            return Err(invalid("prompt", "this model is told nothing: leave out the prompts"));
        }
        if request.emphasis || request.clip_skip > 0 {
            return Err(invalid("prompt", "emphasis and skipped layers are a text encoder's, and this model has none"));
        }
        if request.cfg > 1.0 {
            return Err(invalid("cfg", format!("{}: there is no prompt to lead this model to: leave out --cfg", request.cfg)));
        }
        Ok(())
    }

    /// Generates latents, blocking.
    ///
    /// # Errors
    /// As [`Pipeline::generate_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn generate(&self, request: &Request, observer: &Observer, report: &(dyn Fn(&Report<'_>) + Sync)) -> Result<Generated> {
        pollster::block_on(self.generate_async(request, observer, report))
    }

    /// Generates latents: encodes the prompts, encodes the picture and frees the VAE, then loads the denoiser and runs it, picture by picture. What it
    /// finds from an earlier call it does not load or encode again, see [`Keep`]. `report` is told after every call of the model.
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings that are impossible or that this model cannot follow; the errors of loading and running.
    pub async fn generate_async(&self, request: &Request, observer: &Observer, report: &(dyn Fn(&Report<'_>) + Sync)) -> Result<Generated> {
        let generated = self.run(request, observer, report).await;
        self.settle();
        generated
    }

    async fn run(&self, request: &Request, observer: &Observer, report: &(dyn Fn(&Report<'_>) + Sync)) -> Result<Generated> {
        self.check(request)?;
        let scheduler = self.scheduler(request)?;
        let schedule = scheduler.schedule(request.steps, self.skipped(request), request.eta)?;
        let mut loaded = Vec::new();
        let guidance = self.guidance(request);
        let mut notes = self.notes.clone();

        let told = match &self.parts.denoiser {
            Denoiser::Unet { text: None, .. } => Told::Nothing,
            Denoiser::Unet { second, .. } => {
                let zeros = request.negative.is_none() && second.as_ref().is_some_and(|second| second.zeros_for_none);
                let mut texts = vec![("prompt", &*request.prompt)];
                if guidance.scale.is_some() && !zeros {
                    texts.push(("negative prompt", request.negative.as_deref().unwrap_or_default()));
                }
                let mut prompts = Vec::new();
                for (what, text) in texts {
                    let prompt = self.tokens(text, request.emphasis)?;
                    if let Some(cut) = &prompt[0].cut {
                        let room = prompt[0].ids.len() - 2;
                        notes.push(format!("the {what} is longer than the {room} tokens that the model sees; cut off: \"{cut}\""));
                    }
                    prompts.push(prompt);
                }
                let mut encoded = self.encode(&prompts, request.clip_skip, observer, &mut loaded).await?;
                if guidance.scale.is_some() && zeros {
                    encoded.push(Arc::new(encoded[0].zeros()));
                }
                Told::Texts(encoded)
            }
            Denoiser::Dit { dit, labels } => {
                let class = labels.class(&request.prompt, dit.num_classes)?;
                if let Some(name) = labels.name(class).filter(|name| *name != request.prompt.trim()) {
                    notes.push(format!("class {class}: {name}"));
                }
                let rows: &[usize] = if guidance.scale.is_some() { &[class, dit.num_classes] } else { &[class] };
                Told::Classes(Classes::read(&self.parts.denoiser_view()?, dit, rows).await?)
            }
        };

        let mut generator = TorchGenerator::new(request.seed);
        let start = self.prepare(request, &mut generator, observer, &mut loaded).await?;

        let network = self.denoiser(self.any_size(request.width, request.height), observer, &mut loaded).await?;
        if self.gpu().memory_ceiling().is_some() {
            self.make_room(self.peak_of_calls(&network, request, 0)?);
        }
        let begun = web_time::Instant::now();
        let latents = self.denoise(&network, told, &schedule, request, guidance, start, &generator, observer, report).await;
        let data = latents.map_err(|error| hint(error, self.engine.dtype()))?;
        let denoise_seconds = begun.elapsed().as_secs_f64();
        drop(network);
        let (w, h) = (request.width / self.parts.scale(), request.height / self.parts.scale());
        let mut latent = Latent::new([request.batch, self.parts.latent_channels(), h, w], data)?;
        latent.space = self.parts.latent_space().map(|space| space.name().to_owned());
        Ok(Generated { latent, sampler: scheduler.sampler(), calls: schedule.calls.len(), denoise_seconds, loaded, notes })
    }

    /// What `request` and decoding one of its latents to `size` will need at most: text encoder and denoiser are recorded and planned without
    /// being loaded; the decoder is loaded for its plan and dropped. Encoding a picture is the first thing that a run does, and refused there.
    /// `observer` is told how far the denoiser is, and can cancel.
    ///
    /// # Errors
    /// As [`Pipeline::generate_async`]; [`Error::MemoryCeiling`] with the smallest ceiling that would do.
    pub async fn plan_async(
        &self,
        request: &Request,
        decoder: impl Into<crate::engine::Weights>,
        size: (usize, usize),
        observer: &Observer,
    ) -> Result<u64> {
        self.check(request)?;
        let gpu = self.gpu();
        // Counted with everything else on the device, and freed where it is in the way.
        let kept = self.kept_bytes();
        let mut peaks = Vec::new();
        let (scale, channels) = (self.parts.scale(), self.parts.latent_channels());
        let (w, h) = (request.width / scale, request.height / scale);
        for (which, text) in self.parts.texts().enumerate() {
            let view = self.parts.text_view(which)?;
            let loader = Loader::planning(gpu, &view, self.precision()).observed(&observer.quiet(), &[]);
            let encoder = ClipText::load(&loader, &text.config).await?;
            let tokens = text.tokenizer.max_length();
            let rec = self.record_text(&encoder, &vec![0.0; tokens * text.config.hidden_size], request.clip_skip, tokens - 1)?;
            peaks.push(gpu.peak_bytes(&rec.finish()) + loader.planned_bytes());
        }
        peaks.push(self.plan_denoiser(request, observer).await?);
        let latent = Latent::new([1, channels, h, w], vec![0.0; channels * h * w])?;
        peaks.push(self.engine.estimate(decoder, &latent, size, &observer.quiet()).await?);
        gpu.trim();
        let needed = peaks.into_iter().max().unwrap_or(0).saturating_sub(kept);
        match gpu.memory_ceiling() {
            Some(ceiling) if needed > ceiling => Err(Error::MemoryCeiling { needed, ceiling }),
            _ => Ok(needed),
        }
    }

    /// Blocking form of [`Pipeline::plan_async`].
    ///
    /// # Errors
    /// As [`Pipeline::plan_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan(
        &self,
        request: &Request,
        decoder: impl Into<crate::engine::Weights>,
        size: (usize, usize),
        observer: &Observer,
    ) -> Result<u64> {
        pollster::block_on(self.plan_async(request, decoder, size, observer))
    }

    /// Steps at the start that image to image leaves out.
    fn skipped(&self, request: &Request) -> usize {
        match &request.image {
            Some(_) => request.steps.saturating_sub((request.steps as f64 * request.strength) as usize),
            None => 0,
        }
    }

    fn guidance(&self, request: &Request) -> Guidance {
        let distilled = self.parts.is_distilled();
        let guided = request.cfg > 1.0 && !distilled;
        Guidance {
            scale: guided.then_some(request.cfg),
            power: self.guidance_power(request),
            rescale: if guided { request.guidance_rescale } else { 0.0 },
            embedded: distilled.then_some(request.cfg - 1.0),
        }
    }

    /// Power, and timestep of the noise alone, or of the data where those go the other way.
    fn guidance_power(&self, request: &Request) -> Option<(f64, f64)> {
        let power = request.guidance_power.or_else(|| self.parts.default_guidance_power()).filter(|power| *power > 0.0)?;
        let scheduler = self.scheduler(request).ok()?;
        let flow = scheduler.config().prediction_type == Prediction::Flow;
        Some((power, if flow { 1.0 } else { scheduler.config().num_train_timesteps as f64 }))
    }

    /// Whether a latent of this size is more than whole doublings of the UNet's coarsest level.
    fn any_size(&self, width: usize, height: usize) -> bool {
        let multiple = self.parts.scale() * self.parts.unet().map_or(1, UnetConfig::multiple);
        !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple)
    }

    /// The token ids and text embeddings of a prompt, for comparison with other implementations.
    ///
    /// # Errors
    /// As [`Pipeline::generate_async`]; [`Error::Invalid`] for a model without a text encoder.
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn embed(&self, prompt: &str, clip_skip: usize) -> Result<(Vec<u32>, Encoded)> {
        let prompts = [self.tokens(prompt, false)?];
        let first = prompts[0].first().ok_or_else(|| invalid("prompt", "this model has no text encoder"))?;
        let encoded = pollster::block_on(self.encode(&prompts, clip_skip, &Observer::default(), &mut Vec::new()))?;
        self.settle();
        Ok((first.ids.clone(), (*encoded[0]).clone()))
    }
}

/// What the denoiser is told, on the host.
enum Told {
    /// Prompt and, with guidance, negative prompt.
    Texts(Vec<Arc<Encoded>>),
    /// The class and, with guidance, the null class.
    Classes(Classes),
    Nothing,
}

/// Where a run starts, on the host.
struct Start {
    /// `[batch, channels, h, w]` noise of unit variance.
    noise: Vec<f32>,
    /// The picture's latent, `[h, w, channels]`.
    image: Option<Vec<f32>>,
    /// Start from noise alone although there is a picture.
    from_noise: bool,
    known: Option<Known>,
}

impl Pipeline {
    /// Encodes what the request brings and draws the first noise, in diffusers' order.
    async fn prepare(
        &self,
        request: &Request,
        generator: &mut TorchGenerator,
        observer: &Observer,
        loaded: &mut Vec<&'static str>,
    ) -> Result<Start> {
        let (channels, scale) = (self.parts.latent_channels(), self.parts.scale());
        let count = channels * (request.width / scale) * (request.height / scale);
        let nine = self.parts.is_inpainting();
        // Given noise is where diffusers' inpainting starts, whatever the strength.
        let from_noise = request.image.is_none() || (request.mask.is_some() && (request.strength == 1.0 || request.init_noise.is_some()));
        if request.image.is_some() {
            loaded.push("vae_encoder");
            if self.gpu().memory_ceiling().is_some() {
                self.release();
            }
        }
        let no_vae = self.parts.vae.is_none() && self.parts.latent_space() == Some(LatentSpace::Sd);
        let encoder = match &request.image {
            // Class-conditional models often come without; the latents of those of this space are those of the encoder that ships.
            Some(_) if no_vae => Some(self.engine.load_encoder_async(Weights::Builtin, &observer.quiet()).await?),
            Some(_) => Some(self.engine.load_encoder_async(self.parts.vae_path()?, &observer.quiet()).await?),
            None => None,
        };
        let encode = async |picture: &Image, draw: &[f32]| -> Result<Vec<f32>> {
            let encoder = encoder.as_ref().expect("there is a picture");
            let draw = encoder.facts().variance.then_some(draw);
            let latent = encoder.encode_async(picture, draw, &observer.quiet()).await?;
            Ok(channels_last(latent.data(), channels))
        };
        let picture = request.image.as_ref().map(|image| inpaint::sized(image, request.width, request.height)).transpose()?;
        let mut image = None;
        if let Some(picture) = picture.as_ref().filter(|_| !(nine && from_noise)) {
            image = Some(encode(picture, &generator.randn(count)).await?);
        }
        let noise = match &request.init_noise {
            Some(given) => (0..request.batch).flat_map(|i| given.image(i % given.batch()).unwrap_or(&[])).copied().collect(),
            None => generator.randn(request.batch * count),
        };
        let known = match (&request.mask, &picture) {
            (Some(mask), Some(picture)) => {
                let mask = inpaint::binary(mask, request.width, request.height)?;
                // The 4-channel form encodes the masked picture, too, and draws for it, without using it.
                let draw = generator.randn(count);
                let masked = if nine { Some(encode(&inpaint::masked(picture, &mask)?, &draw).await?) } else { None };
                Some(Known { mask: inpaint::at_latent(&mask, request.width, request.height, scale), masked })
            }
            _ => None,
        };
        drop(encoder);
        self.gpu().trim();
        Ok(Start { noise, image, from_noise, known })
    }
}

/// Weights of tokens on their embeddings `[tokens, width]`; the mean of all values stays what it was, as in AUTOMATIC1111's web UI.
fn emphasise(context: &mut [f32], weights: &[f32]) {
    let mean = |values: &[f32]| values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
    let before = mean(context);
    let width = context.len() / weights.len();
    for (row, weight) in context.chunks_exact_mut(width).zip(weights) {
        row.iter_mut().for_each(|v| *v *= weight);
    }
    let after = mean(context);
    if after != 0.0 {
        let factor = (before / after) as f32;
        context.iter_mut().for_each(|v| *v *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emphasis_moves_tokens_and_keeps_the_mean() {
        let mut context = vec![1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
        emphasise(&mut context, &[1.0, 2.0, 1.0]);
        let mean = context.iter().sum::<f32>() / 6.0;
        assert!((mean - 4.0).abs() < 1e-5, "{context:?}");
        assert!((context[2] / context[0] - 6.0).abs() < 1e-4, "{context:?}");
    }
}
