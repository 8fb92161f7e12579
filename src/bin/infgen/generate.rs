//! `infgen generate`

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use infgen::error::human_bytes;
use infgen::hub::{self, HubId, HubOptions};
use infgen::image::{OutputFormat, ResizeFilter, batch_path, check_writable};
use infgen::nn::RotaryScaling;
use infgen::pipeline::parts::Denoiser;
use infgen::pipeline::{Generated, Keep, Parts, Pipeline, PipelineOptions, Preview, Request};
use infgen::schedulers::{Prediction, Sampler};
use infgen::weights::recognise::{self, Recognised};
use infgen::{Dtype, Error, Image, Latent, Result, Weights};
use serde_json::json;

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::args::{Args, GenerateArgs, PredictionArg, Size};
use crate::decode::{Writer, check_apart, check_output, check_size};
use crate::run::Run;

fn invalid(what: &'static str, detail: impl Into<String>) -> Error {
    Error::Invalid { what, detail: detail.into() }
}

/// Where the picture comes from.
#[derive(Debug, PartialEq)]
enum DecoderChoice {
    Vae,
    Builtin,
    File(PathBuf),
}

impl DecoderChoice {
    /// `free`: the model's own decoder is none, or does not make the size.
    fn new(argument: Option<&str>, free: bool) -> DecoderChoice {
        match argument {
            Some("vae") => DecoderChoice::Vae,
            Some("builtin") => DecoderChoice::Builtin,
            Some(path) => DecoderChoice::File(path.into()),
            None if free => DecoderChoice::Builtin,
            None => DecoderChoice::Vae,
        }
    }

    fn weights(&self, parts: &Parts) -> Result<Weights> {
        Ok(match self {
            DecoderChoice::Vae => Weights::Path(parts.vae_path()?),
            DecoderChoice::Builtin => Weights::Builtin,
            DecoderChoice::File(path) => Weights::Path(path.clone()),
        })
    }

    fn path(&self) -> Option<&Path> {
        match self {
            DecoderChoice::Vae | DecoderChoice::Builtin => None,
            DecoderChoice::File(path) => Some(path),
        }
    }

    fn name(&self) -> String {
        match self {
            DecoderChoice::Vae => "vae".into(),
            DecoderChoice::Builtin => "builtin".into(),
            DecoderChoice::File(path) => path.display().to_string(),
        }
    }

    /// Refuses, before anything is generated, what this decoder could not decode afterwards.
    fn check(&self, parts: &Parts, native: Size, size: Size) -> Result<()> {
        let weights = match self {
            DecoderChoice::Vae => infgen::weights::Weights::open(parts.vae_path()?)?,
            DecoderChoice::Builtin => infgen::weights::Weights::builtin(infgen::weights::Builtin::Decoder)?,
            DecoderChoice::File(path) => infgen::weights::Weights::open(path)?,
        };
        let recognised = recognise::recognise(&weights)?;
        recognise::check(&weights, &recognised)?;
        let (channels, space, any_size) = match &recognised {
            Recognised::Infgen { config } => (config.latent_channels, Some(config.latent_space), true),
            Recognised::Infd { config, .. } => (config.autoencoder.latent_channels, None, true),
            Recognised::Vae(vae) | Recognised::Checkpoint { vae: Some(vae), .. } if vae.decoder => {
                (vae.config.latent_channels, vae.config.latent_space, false)
            }
            Recognised::Taesd { decoder: Some(config), latent_space, .. } => (config.latent_channels, *latent_space, false),
            other => return Err(other.refuse(&weights, "a decoder")),
        };
        if channels != parts.latent_channels() {
            let detail = format!("{} decodes latents of {channels} channels, this model makes {}", self.name(), parts.latent_channels());
            return Err(invalid("decoder", detail));
        }
        if let (Some(of_decoder), Some(of_model)) = (space, parts.latent_space())
            && of_decoder != of_model
        {
            let (name, decoded, made) = (self.name(), of_decoder.name(), of_model.name());
            let other = match self {
                DecoderChoice::Builtin => {
                    format!("; for another size than {}x{} name a decoder of that space with --decoder", native.width, native.height)
                }
                _ => String::new(),
            };
            let detail = format!("{name} decodes latents of the space `{decoded}`, this model makes those of `{made}`{other}");
            return Err(invalid("decoder", detail));
        }
        if !any_size && size != native {
            let detail = format!(
                "{}x{}: the decoder `{}` only makes {}x{} of this latent; {} makes any size",
                size.width,
                size.height,
                self.name(),
                native.width,
                native.height,
                if parts.is_sdxl() { "an InfGen decoder of the space `sdxl`" } else { "--decoder builtin" }
            );
            return Err(invalid("size", detail));
        }
        Ok(())
    }
}

pub fn generate(run: &Run, args: &GenerateArgs) -> Result<()> {
    OutputFormat::from_path(&args.output)?;
    if let Some(path) = &args.save_latent {
        Latent::check_ending(path)?;
        check_writable(path)?;
    }
    if let Some(path) = &args.preview {
        OutputFormat::from_path(path)?;
        check_writable(path)?;
    }
    let model = model_path(run, args)?;
    let parts = run.stage("read", |_| Parts::open(&model))?;
    let image = args.image.as_ref().map(|path| run.stage("read", |_| Image::open(path))).transpose()?;
    let mask = args.mask.as_ref().map(|path| run.stage("read", |_| Image::open(path))).transpose()?;
    let init_noise = args.init_noise.as_ref().map(|path| run.stage("read", |_| Latent::open(path))).transpose()?;

    let native = stage_one_size(args, &parts, image.as_ref(), init_noise.as_ref());
    let size = args.size.unwrap_or(native);
    check_size(size.width, size.height)?;
    let class_conditional = parts.is_class_conditional();
    if args.prompt.is_none() && !parts.is_unconditional() {
        let text = "this model is told what to show: name it with --prompt <TEXT>";
        Args::command().error(ErrorKind::MissingRequiredArgument, text).exit();
    }
    // Their files bring no decoder, and their latents are those that the package decodes.
    let without = class_conditional && parts.vae.is_none();
    let decoder_choice = DecoderChoice::new(args.decoder.as_deref(), (size != native && !parts.is_unconditional()) || without);
    let seeds = args.seed.as_ref().map_or_else(|| vec![random_seed()], |seeds| seeds.0.clone());
    let outputs: Vec<PathBuf> = match args.batch.saturating_mul(seeds.len()) {
        1 => vec![args.output.clone()],
        n => (0..n).map(|index| batch_path(&args.output, index)).collect(),
    };
    for output in &outputs {
        check_output(output, size.width, size.height)?;
    }
    let mut inputs = vec![args.image.as_deref(), args.mask.as_deref(), args.init_noise.as_deref(), Some(&*model), decoder_choice.path()];
    inputs.extend(args.loras.iter().map(|lora| Some(&*lora.path)));
    let mut places = HashSet::new();
    for output in outputs.iter().chain(&args.save_latent).chain(&args.preview) {
        check_apart(output, &inputs)?;
        // The same file may be called by several names.
        let folder = output.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let place = folder.canonicalize().ok().zip(output.file_name()).map_or(output.clone(), |(folder, name)| folder.join(name));
        if !places.insert(place) {
            return Err(invalid("output", format!("{} is asked for twice: choose other names", output.display())));
        }
    }

    let sampler = args.sampler.map(Sampler::from);
    let prediction = args.prediction.map(|p| match p {
        PredictionArg::Epsilon => Prediction::Epsilon,
        PredictionArg::V => Prediction::VPrediction,
        PredictionArg::Sample => Prediction::Sample,
        PredictionArg::Flow => Prediction::Flow,
    });
    let own = parts.scheduler(sampler, prediction)?.sampler();
    let mut request = Request {
        negative: args.negative.clone(),
        emphasis: args.emphasis,
        clip_skip: args.clip_skip,
        sampler,
        prediction,
        steps: args.steps.unwrap_or(parts.default_steps(own)),
        cfg: args.cfg.unwrap_or(parts.default_guidance(own)),
        guidance_power: args.cfg_power.or(parts.default_guidance_power()),
        guidance_rescale: args.guidance_rescale,
        eta: args.eta.unwrap_or(parts.default_eta()),
        seed: seeds[0],
        batch: args.batch,
        rotary: args.rope.or(parts.default_rotary()),
        init_noise,
        image,
        strength: args.strength.unwrap_or(match args.mask {
            // As diffusers' pipelines: at 1 a run starts from noise alone.
            Some(_) if parts.is_sdxl() => 0.9999,
            Some(_) => 1.0,
            None => 0.8,
        }),
        mask,
        preview_every: if args.preview.is_some() { args.preview_every } else { 0 },
        ..Request::new(args.prompt.clone().unwrap_or_default(), native.width, native.height)
    };
    // Latents can be all that is wanted of a size that no decoder is there for.
    decoder_choice.check(&parts, native, size)?;
    let loras: Vec<(PathBuf, f64)> = args.loras.iter().map(|lora| (lora.path.clone(), lora.strength)).collect();

    let engine = run.engine()?;
    let pipeline =
        Pipeline::new(&engine, parts, &PipelineOptions { loras, keep: if seeds.len() > 1 { Keep::Denoiser } else { Keep::Nothing } })?;
    let facts = pipeline.parts();
    let what = match &facts.denoiser {
        Denoiser::Unet { unet, .. } => facts.texts().fold(unet.to_string(), |all, text| format!("{all}, {}", text.config)),
        Denoiser::Dit { dit, .. } => dit.to_string(),
    };
    run.say(&format!("model: {} ({what})", facts.path.display()));
    // Planning a large model takes seconds, and without a ceiling nothing is refused.
    let planned = match run.common.memory {
        Some(_) => Some(run.stage("plan", |observer| {
            pipeline.plan(&request, decoder_choice.weights(pipeline.parts())?, (size.width, size.height), observer)
        })?),
        None => None,
    };
    run.say(&format!(
        "{} of {} steps with {own}, seed {}, {}x{} then {}x{}{}",
        if outputs.len() == 1 { "1 picture".into() } else { format!("{} pictures", outputs.len()) },
        request.steps,
        join(&seeds),
        native.width,
        native.height,
        size.width,
        size.height,
        planned.map_or(String::new(), |bytes| format!(": at most {} of GPU memory", human_bytes(bytes)))
    ));

    let status = run.status();
    let trouble = Mutex::new(None);
    let begun: Mutex<Option<Instant>> = Mutex::new(None);
    let mut all: Vec<Generated> = Vec::new();
    for (round, &seed) in seeds.iter().enumerate() {
        request.seed = seed;
        let generated = run.stage("generate", |observer| {
            let observer = observer.part(round as f64 / seeds.len() as f64, 1.0 / seeds.len() as f64);
            pipeline.generate(&request, &observer, &|report| {
                let mut begun = begun.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let (image, images) = (round * args.batch + report.image, outputs.len());
                // The first call compiles and warms up; speed is measured from its end on.
                let speed = match *begun {
                    None => String::new(),
                    Some(start) => {
                        let calls = image * report.calls + report.call - 1;
                        format!(", {:.2} it/s", calls as f64 / start.elapsed().as_secs_f64())
                    }
                };
                begun.get_or_insert_with(Instant::now);
                let which = if images > 1 { format!("picture {}/{images}, ", image + 1) } else { String::new() };
                status(format!("{which}step {}/{}{speed}  ", report.call, report.calls));
                if let (Some(preview), Some(path)) = (report.preview, &args.preview)
                    && let Err(error) = save_preview(preview, path, native)
                {
                    *trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                }
            })
        })?;
        all.push(generated);
    }
    status(String::new());
    let mut notes = std::mem::take(&mut all[0].notes);
    notes.extend(stretch(native, size, pipeline.parts().size_step()));
    if let Some(error) = trouble.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        notes.push(format!("no preview was written: {error}"));
    }
    for note in &notes {
        run.warn(note);
    }
    let (sampler, calls) = (all[0].sampler, all[0].calls);
    let denoise_seconds: f64 = all.iter().map(|generated| generated.denoise_seconds).sum();
    let latent = Latent::join(all.into_iter().map(|generated| generated.latent))?;
    if let Some(path) = &args.save_latent {
        run.stage("write", |_| latent.save(path))?;
    }
    let weights = decoder_choice.weights(pipeline.parts())?;
    let model_name = args.model.trim_end_matches('/').rsplit('/').next().unwrap_or(&args.model).trim_end_matches(".safetensors").to_owned();
    drop(pipeline);

    let decoder = run.load_decoder(&engine, weights)?;
    for (at, output) in outputs.iter().enumerate() {
        let (seed, index) = (seeds[at / args.batch], at % args.batch);
        request.seed = seed;
        let settings = json!({
            "model": args.model, "prompt": request.prompt, "negative_prompt": request.negative, "steps": request.steps,
            "sampler": sampler.name(), "cfg": request.cfg, "seed": seed, "index": index, "batch": args.batch,
            "latent_size": format!("{}x{}", native.width, native.height), "size": format!("{}x{}", size.width, size.height),
            "decoder": decoder_choice.name(), "eta": request.eta, "cfg_power": request.guidance_power, "guidance_rescale": request.guidance_rescale,
            "rope": request.rotary.map(RotaryScaling::name), "clip_skip": request.clip_skip, "emphasis": request.emphasis,
            "loras": args.loras.iter().map(|l| json!({ "file": l.path.display().to_string(), "strength": l.strength })).collect::<Vec<_>>(),
            "image": args.image.as_ref().map(|p| p.display().to_string()),
            "strength": args.image.as_ref().map(|_| request.strength),
            "mask": args.mask.as_ref().map(|p| p.display().to_string()),
            "dtype": format!("{:?}", run.common.dtype).to_lowercase(),
        });
        let writer = Writer {
            decoder: &decoder,
            size: (size.width, size.height),
            region: None,
            metadata: vec![
                ("parameters", parameters(&request, &sampler, &model_name, args, native, size)),
                ("Software", format!("infgen {}", env!("CARGO_PKG_VERSION"))),
                ("infgen", settings.to_string()),
            ],
        };
        let one = latent.select(at).ok_or_else(|| invalid("batch", "the latent is missing"))?;
        run.stage("decode", |observer| writer.run(&one, output, observer))?;
    }
    let passes = (calls * outputs.len()) as f64;
    run.say(&format!("{:.3} it/s over {} calls of the denoiser", passes / denoise_seconds, calls * outputs.len()));
    let summary = json!({
        "command": "generate", "width": size.width, "height": size.height, "latent": latent.shape(),
        "latent_width": native.width, "latent_height": native.height, "model": args.model, "sampler": sampler.name(),
        "steps": request.steps, "calls": calls, "cfg": request.cfg, "seed": seeds[0], "seeds": seeds, "decoder": decoder_choice.name(),
        "decoder_model": decoder.facts().model, "iterations_per_second": passes / denoise_seconds,
        "denoise_seconds": denoise_seconds, "planned_peak_gpu_bytes": planned,
        "latent_output": args.save_latent.as_ref().map(|p| p.display().to_string()), "notes": notes,
    });
    let paths: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
    run.finish(&engine, &paths, summary)
}

/// A note where the picture has another shape than the latent: the decoder stretches it, to which nothing in a prompt's latent is matched. `step`: what sides
/// are multiples of, where the model takes latents of any shape.
fn stretch(native: Size, size: Size, step: Option<usize>) -> Option<String> {
    let shape = |size: Size| size.width as f64 / size.height as f64;
    let change = shape(size) / shape(native);
    if (0.95..1.05).contains(&change) {
        return None;
    }
    let stretched = format!("a latent of {}x{} was stretched to {}x{}", native.width, native.height, size.width, size.height);
    let Some(step) = step else { return Some(format!("{stretched}: this model makes no other shape")) };
    let short = native.width.min(native.height) as f64;
    let side = |length: usize| (length as f64 * short / size.width.min(size.height) as f64 / step as f64).round() as usize * step;
    Some(format!("{stretched}; --latent-size {}x{} makes one of that shape", side(size.width), side(size.height)))
}

/// Stage one's size: asked for, the noise's, the picture's in whole steps where the model takes any, or the model's own.
fn stage_one_size(args: &GenerateArgs, parts: &Parts, image: Option<&Image>, noise: Option<&Latent>) -> Size {
    let scale = parts.scale();
    args.latent_size
        .or_else(|| noise.map(|noise| Size { width: noise.width() * scale, height: noise.height() * scale }))
        .or_else(|| {
            let (image, step) = image.zip(parts.size_step())?;
            let whole = |side: usize| (side / step).max(1) * step;
            Some(Size { width: whole(image.width()), height: whole(image.height()) })
        })
        .unwrap_or(Size { width: parts.native_size.0, height: parts.native_size.1 })
}

/// The path of the model: as given, or what its hub id stands for.
fn model_path(run: &Run, args: &GenerateArgs) -> Result<PathBuf> {
    let path = PathBuf::from(&args.model);
    let id = if path.exists() { None } else { HubId::parse(&args.model) };
    let Some(id) = id else { return Ok(path) };
    let options = HubOptions {
        endpoint: args.hub_endpoint.clone(),
        revision: args.revision.clone(),
        half: Dtype::from(run.common.dtype) == Dtype::F16,
        ..HubOptions::default()
    };
    run.stage("fetch", |observer| hub::fetch(&id, &options, observer))
}

fn join(seeds: &[u64]) -> String {
    let shown: Vec<String> = seeds.iter().take(8).map(u64::to_string).collect();
    format!("{}{}", shown.join(", "), if seeds.len() > 8 { ", ..." } else { "" })
}

/// From the clock: another one every time.
fn random_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mixed = (now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 32
}

fn save_preview(preview: &Preview, path: &Path, size: Size) -> Result<()> {
    let picture = Image::from_rgb8(preview.width, preview.height, &preview.rgb)?;
    picture.resize(size.width, size.height, ResizeFilter::Bicubic)?.save(path, &[])
}

/// The settings in the words that other tools read from a PNG (AUTOMATIC1111's infotext).
fn parameters(request: &Request, sampler: &Sampler, model: &str, args: &GenerateArgs, native: Size, size: Size) -> String {
    let mut text = request.prompt.clone();
    for lora in &args.loras {
        let name = lora.path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        text.push_str(&format!(" <lora:{name}:{}>", lora.strength));
    }
    if let Some(negative) = request.negative.as_ref().filter(|negative| !negative.is_empty()) {
        text.push_str(&format!("\nNegative prompt: {negative}"));
    }
    let mut fields = vec![
        format!("Steps: {}", request.steps),
        format!("Sampler: {}", sampler.common_name()),
        format!("CFG scale: {}", request.cfg),
        format!("Seed: {}", request.seed),
        format!("Size: {}x{}", native.width, native.height),
        format!("Model: {}", model.replace(',', " ")),
    ];
    if request.image.is_some() {
        fields.push(format!("Denoising strength: {}", request.strength));
    }
    if request.clip_skip > 0 {
        fields.push(format!("Clip skip: {}", request.clip_skip + 1));
    }
    if request.eta > 0.0 {
        fields.push(format!("Eta: {}", request.eta));
    }
    if let Some(power) = request.guidance_power {
        fields.push(format!("CFG power: {power}"));
    }
    if let Some(rotary) = request.rotary {
        fields.push(format!("RoPE: {}", rotary.name()));
    }
    if size != native {
        fields.push(format!("Decoded size: {}x{}", size.width, size.height));
    }
    fields.push("RNG: CPU".into());
    fields.push(format!("Version: infgen {}", env!("CARGO_PKG_VERSION")));
    format!("{text}\n{}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_another_shape_than_its_latent_is_noted_with_the_size_that_has_its_shape() {
        let size = |width, height| Size { width, height };
        assert_eq!(stretch(size(512, 512), size(2048, 2048), Some(8)), None);
        assert_eq!(stretch(size(768, 512), size(1919, 1280), Some(8)), None);
        let note = stretch(size(512, 512), size(1920, 1080), Some(8)).unwrap();
        assert!(note.ends_with("--latent-size 912x512 makes one of that shape"), "{note}");
        assert!(stretch(size(912, 512), size(100, 200), Some(8)).unwrap().contains("512x1024"));
        assert!(stretch(size(256, 256), size(100, 200), None).unwrap().ends_with("no other shape"));
    }

    #[test]
    fn a_decoder_of_any_size_is_taken_where_the_size_asks_for_it() {
        assert_eq!(DecoderChoice::new(None, false), DecoderChoice::Vae);
        assert_eq!(DecoderChoice::new(None, true), DecoderChoice::Builtin);
        assert_eq!(DecoderChoice::new(Some("vae"), true), DecoderChoice::Vae);
        assert_eq!(DecoderChoice::new(Some("x.safetensors"), false), DecoderChoice::File("x.safetensors".into()));
    }
}
