//! The loop: latents stay on the GPU in f32 from the first noise to the last step.

use std::sync::Arc;

use super::kept::Encoded;
use super::network::{Conditioned, Network, uploaded};
use super::parts::Denoiser;
use super::{Pipeline, Request, Start, Told, channels_first, channels_last};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Observer, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::combine::{blend_into, combine, combine_into, spread_noise};
use crate::kernels::linear::linear;
use crate::kernels::output::{count_nonfinite, image_to_rgba8};
use crate::latent::LatentSpace;
use crate::models::dit::Classes;
use crate::models::unet::{Prompt, Unet, added_features};
use crate::nn::Loader;
use crate::noise::TorchGenerator;
use crate::schedulers::{Call, Combination, Schedule, Spread, State};

/// How the model's predictions for prompt and negative prompt are joined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guidance {
    /// `negative + scale * (prompt - negative)`; none: the prompt's alone.
    pub scale: Option<f64>,
    /// See [`Request::guidance_power`]; with what a timestep is divided by to lie between 0 and 1.
    pub power: Option<(f64, f64)>,
    /// See [`Request::guidance_rescale`].
    pub rescale: f64,
    /// What models distilled with guidance are told.
    pub embedded: Option<f64>,
}

impl Guidance {
    /// The scale at a timestep.
    pub fn scale_at(&self, timestep: f64) -> Option<f64> {
        match (self.scale, self.power) {
            (Some(scale), Some((power, duration))) => {
                let share = (1.0 - timestep / duration).clamp(0.0, 1.0).powf(power);
                Some(1.0 + (scale - 1.0) * 0.5 * (1.0 - (std::f64::consts::PI * share).cos()))
            }
            (scale, _) => scale,
        }
    }
}

/// What inpainting holds on to.
pub(super) struct Known {
    /// 1 where the picture may change, `[h, w]`.
    pub mask: Vec<f32>,
    /// The masked picture's latent, `[h, w, channels]`, for models that take it.
    pub masked: Option<Vec<f32>>,
}

/// Told after every call of the model.
#[derive(Debug)]
pub struct Report<'a> {
    /// Which picture of the batch.
    pub image: usize,
    /// How many there are.
    pub images: usize,
    /// Calls done for this picture.
    pub call: usize,
    /// Calls it takes.
    pub calls: usize,
    /// What the picture will look like, if it was asked for now.
    pub preview: Option<&'a Preview>,
}

/// A rough picture of a latent at the latent's own size.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

/// Colours of the four channels of Stable Diffusion's latents, and what a grey latent adds: a linear fit that is common knowledge among
/// tools with previews.
const SD_COLOURS: [[f32; 4]; 3] =
    [[0.3512, 0.3250, -0.2829, -0.2120], [0.2297, 0.4974, 0.1762, -0.2616], [0.3227, 0.2350, 0.2721, -0.7177]];

/// The same of SDXL's, fitted by least squares to TAESDXL's latents of 43 photographs (86 % of their variance).
const SDXL_COLOURS: [[f32; 4]; 3] =
    [[0.3998, -0.2192, 0.0922, -0.2729], [0.4234, 0.0008, 0.0944, -0.2511], [0.4496, 0.0999, -0.0159, -0.2918]];

/// What stays on the device between calls.
struct States {
    /// The latent, and where the next goes.
    samples: [Tensor; 2],
    kept: Vec<Tensor>,
}

/// What is the same in every call.
struct Loop<'a> {
    gpu: &'a Gpu,
    network: Conditioned<'a>,
    guidance: Guidance,
    /// Added to the scaled latent to give the model's input: mask and masked picture behind empty channels.
    extra: Option<Tensor>,
    mask: Option<Tensor>,
    /// The picture's latent where what is outside the mask is held to it.
    image: Option<Tensor>,
    channels: usize,
    /// Of the latents, where it is known.
    space: Option<LatentSpace>,
    activations: Elem,
}

impl Pipeline {
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn denoise(
        &self,
        network: &Network,
        told: Told,
        schedule: &Schedule,
        request: &Request,
        guidance: Guidance,
        start: Start,
        generator: &TorchGenerator,
        observer: &Observer,
        report: &(dyn Fn(&Report<'_>) + Sync),
    ) -> Result<Vec<f32>> {
        let (gpu, channels) = (self.gpu(), self.parts.latent_channels());
        let (w, h) = (request.width / self.parts.scale(), request.height / self.parts.scale());
        let count = channels * w * h;
        let resident = async |label: &str, data: &[f32], channels: usize| {
            gpu.resident(label, &crate::gpu::to_units(data, channels, Elem::F32), h, w, channels, Elem::F32).await
        };
        let zeros = vec![0.0; count];
        let states = States {
            samples: [resident("latent", &zeros, channels).await?, resident("latent", &zeros, channels).await?],
            kept: {
                let mut kept = Vec::new();
                for _ in 0..schedule.kept {
                    kept.push(resident("sampler state", &zeros, channels).await?);
                }
                kept
            },
        };
        let network = match (network, told) {
            (Network::Unet(unet), Told::Texts(contexts)) => {
                let mut prompts = self.prompts(unet, &contexts, (request.width, request.height), observer).await?.into_iter();
                Conditioned::Unet { unet, prompt: prompts.next().expect("at least one prompt"), negative: prompts.next() }
            }
            (Network::Unet(unet), Told::Nothing) => Conditioned::Unet { unet, prompt: Prompt::default(), negative: None },
            (Network::Dit(dit), Told::Classes(classes)) => Conditioned::Dit { dit, classes, rotary: request.rotary.unwrap_or_default() },
            _ => unreachable!("both are of one model"),
        };
        let (mut extra, mut mask, mut image) = (None, None, None);
        if let Some(known) = &start.known {
            match &known.masked {
                Some(masked) => {
                    let inputs = self.parts.in_channels();
                    let mut planes = vec![0.0; w * h * inputs];
                    for (i, pixel) in planes.chunks_exact_mut(inputs).enumerate() {
                        pixel[channels] = known.mask[i];
                        pixel[channels + 1..].copy_from_slice(&masked[i * channels..(i + 1) * channels]);
                    }
                    extra = Some(resident("mask and masked picture", &planes, inputs).await?);
                }
                None => {
                    mask = Some(resident("mask", &known.mask, 1).await?);
                    let picture = start.image.as_ref().expect("encoded for this");
                    image = Some(resident("picture's latent", picture, channels).await?);
                }
            }
        }
        let (space, activations) = (self.parts.latent_space(), self.precision().activations);
        let run = Loop { gpu, network, guidance, extra, mask, image, channels, space, activations };
        let mut latents = Vec::with_capacity(request.batch * count);
        for index in 0..request.batch {
            // Each draw is for the whole batch; every picture takes its part of it.
            let mut generator = generator.clone();
            let part = |all: Vec<f32>| channels_last(&all[index * count..(index + 1) * count], channels);
            let noise = channels_last(&start.noise[index * count..(index + 1) * count], channels);
            let first: Vec<f32> = match &start.image {
                Some(image) if !start.from_noise => {
                    let mix = schedule.start;
                    image.iter().zip(&noise).map(|(z, n)| (mix.signal * *z as f64 + mix.noise * *n as f64) as f32).collect()
                }
                _ => noise.iter().map(|n| (*n as f64 * schedule.init_noise_sigma) as f32).collect(),
            };
            gpu.write(&states.samples[0], &crate::gpu::to_units(&first, channels, Elem::F32));
            let mut result = Vec::new();
            for (k, call) in schedule.calls.iter().enumerate() {
                let done = (index * schedule.calls.len() + k) as f64;
                let all = (request.batch * schedule.calls.len()) as f64;
                let within = observer.part(done / all, 1.0 / all);
                // The original of DiT draws for the null class, too, which it does not use.
                let unused = if call.spread.is_some() && guidance.scale.is_some() { request.batch * count } else { 0 };
                let fresh = call.draws_noise().then(|| part(generator.randn(request.batch * count + unused)));
                let last = k + 1 == schedule.calls.len();
                let wants_preview = request.preview_every > 0 && ((k + 1).is_multiple_of(request.preview_every) || last);
                let rec = run.record(call, &states, k, fresh.as_deref(), &noise, wants_preview, last)?;
                let mut outputs = gpu.run(rec.finish(), &within).await?;
                let preview = wants_preview.then(|| {
                    let words = outputs.words("preview");
                    let rgb = words.iter().flat_map(|w| [*w as u8, (w >> 8) as u8, (w >> 16) as u8]).collect();
                    Preview { width: w, height: h, rgb }
                });
                report(&Report {
                    image: index,
                    images: request.batch,
                    call: k + 1,
                    calls: schedule.calls.len(),
                    preview: preview.as_ref(),
                });
                if last {
                    result = outputs.numbers("latent");
                }
            }
            if let Some(at) = result.iter().position(|v| !v.is_finite()) {
                log::debug!("value {at} of the latent is {}", result[at]);
                return Err(Error::NonFinite { layer: "sampler".into(), hint: "" });
            }
            latents.extend(channels_first(&result, channels));
        }
        Ok(latents)
    }

    /// Peak bytes of loading the denoiser and of every call that `request` makes.
    pub(super) async fn plan_denoiser(&self, request: &Request, observer: &Observer) -> Result<u64> {
        let view = self.parts.denoiser_view()?;
        let loader = Loader::planning(self.gpu(), &view, self.precision()).observed(observer, &self.parts.denoiser_tensors());
        let network = Network::load(&loader, &self.parts.denoiser, self.any_size(request.width, request.height)).await?;
        self.peak_of_calls(&network, request, loader.planned_bytes())
    }

    /// Peak bytes of every call that `request` makes of `network`, with what is on the device now and `held` bytes that are not there yet.
    pub(super) fn peak_of_calls(&self, network: &Network, request: &Request, mut held: u64) -> Result<u64> {
        let gpu = self.gpu();
        let schedule = self.scheduler(request)?.schedule(request.steps, self.skipped(request), request.eta)?;
        let (channels, inputs) = (self.parts.latent_channels(), self.parts.in_channels());
        let (w, h) = (request.width / self.parts.scale(), request.height / self.parts.scale());
        let guidance = self.guidance(request);
        let plane = |held: &mut u64, channels: usize| {
            let tensor = Tensor::outside(h, w, channels, Elem::F32);
            *held += tensor.resident_bytes();
            tensor
        };
        let states = States {
            samples: [plane(&mut held, channels), plane(&mut held, channels)],
            kept: (0..schedule.kept).map(|_| plane(&mut held, channels)).collect(),
        };
        let mut peak = 0;
        let network = match (network, &self.parts.denoiser) {
            (Network::Unet(unet), Denoiser::Unet { text: None, .. }) => {
                Conditioned::Unet { unet, prompt: Prompt::default(), negative: None }
            }
            (Network::Unet(unet), Denoiser::Unet { text: Some(text), .. }) => {
                let tokens = text.tokenizer.max_length();
                let mut planned = || {
                    let (prompt, bytes) = unet.planned_prompt(tokens);
                    held += bytes;
                    prompt
                };
                let prompt = planned();
                let negative = guidance.scale.map(|_| planned());
                let width = unet.config().cross_attention_dim;
                let mut rec = gpu.recorder();
                let context = rec.upload(&vec![0.0; tokens * width], tokens, 1, width, self.precision().activations);
                let added = unet.config().added.map(|added| vec![0.0; added.inputs()]);
                unet.prompt_into(&mut rec, &context, added.as_deref(), &prompt)?;
                peak = gpu.peak_bytes(&rec.finish()) + held;
                Conditioned::Unet { unet, prompt, negative }
            }
            (Network::Dit(dit), Denoiser::Dit { dit: config, .. }) => {
                let count = 1 + guidance.scale.is_some() as usize;
                Conditioned::Dit { dit, classes: Classes::planned(config, count), rotary: request.rotary.unwrap_or_default() }
            }
            _ => unreachable!("both are of one model"),
        };
        let inpaints = request.mask.is_some();
        let nine = inputs != channels;
        let extra = (inpaints && nine).then(|| plane(&mut held, inputs));
        let mask = (inpaints && !nine).then(|| plane(&mut held, 1));
        let image = (inpaints && !nine).then(|| plane(&mut held, channels));
        let (space, activations) = (self.parts.latent_space(), self.precision().activations);
        let run = Loop { gpu, network, guidance, extra, mask, image, channels, space, activations };
        let values = vec![0.0; channels * w * h];
        // Calls of one form need the same.
        let mut seen = Vec::new();
        for (k, call) in schedule.calls.iter().enumerate() {
            let last = k + 1 == schedule.calls.len();
            let preview = request.preview_every > 0 && ((k + 1).is_multiple_of(request.preview_every) || last);
            let targets: Vec<State> = call.updates.iter().map(|u| u.target).collect();
            let form = (call.draws_noise(), targets, preview, last);
            if seen.contains(&form) {
                continue;
            }
            let fresh = form.0.then_some(&values[..]);
            let rec = run.record(call, &states, k, fresh, &values, preview, last)?;
            peak = peak.max(gpu.peak_bytes(&rec.finish()) + held);
            seen.push(form);
        }
        Ok(peak)
    }

    /// What each prompt is to the UNet, for pictures of this size, kept on the device.
    async fn prompts(&self, unet: &Unet, encoded: &[Arc<Encoded>], size: (usize, usize), observer: &Observer) -> Result<Vec<Prompt>> {
        let width = unet.config().cross_attention_dim;
        let (w, h) = size;
        let mut prompts = Vec::new();
        for text in encoded {
            let tokens = text.context.len() / width;
            let prompt = unet.allocate_prompt(self.gpu(), tokens).await?;
            let mut rec = self.gpu().recorder();
            let context = rec.upload(&text.context, tokens, 1, width, self.precision().activations);
            // Nothing was cropped from an original of this size.
            let added = text.pooled.as_ref().map(|pooled| added_features(unet.config(), pooled, [h, w, 0, 0, h, w]));
            rec.scoped("prompt", |rec| unet.prompt_into(rec, &context, added.as_deref(), &prompt))?;
            self.gpu().run(rec.finish(), &observer.quiet()).await?;
            prompts.push(prompt);
        }
        Ok(prompts)
    }
}

impl Loop<'_> {
    /// Call number `k`: the model, guidance, the sampler's updates. The latent is in `samples[k % 2]` and goes to the other.
    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        call: &Call,
        states: &States,
        k: usize,
        fresh: Option<&[f32]>,
        noise: &[f32],
        preview: bool,
        last: bool,
    ) -> Result<Recorder> {
        let (sample, next) = (&states.samples[k % 2], &states.samples[(k + 1) % 2]);
        let (h, w, _) = sample.shape();
        let mut rec = self.gpu.recorder();
        let rec_ref = &mut rec;
        let mut terms = vec![(sample, call.input_scale)];
        terms.extend(self.extra.as_ref().map(|extra| (extra, 1.0)));
        let input = combine(rec_ref, &terms, None, self.network.in_channels(), self.activations);
        let (output, variance) = self.network.predict(rec_ref, &input, call, self.guidance, self.channels)?;
        rec_ref.scoped("sampler", |rec| count_nonfinite(rec, &output));
        let fresh = fresh.map(|values| rec_ref.upload(values, h, w, self.channels, Elem::F32));
        let fresh = match (fresh, call.spread, variance) {
            (Some(fresh), Some(Spread { base, slope }), Some(variance)) => {
                rec_ref.scoped("sampler", |rec| count_nonfinite(rec, &variance));
                Some(spread_noise(rec_ref, &fresh, &variance, (base, slope)))
            }
            (fresh, ..) => fresh,
        };
        let mut predicted: Option<Tensor> = None;
        let gather = |combination: &Combination, predicted: &Option<Tensor>| -> Vec<(Tensor, f64)> {
            let tensor = |state: State| match state {
                State::Sample => sample.clone(),
                State::Output => output.clone(),
                State::Noise => fresh.clone().expect("drawn where it is read"),
                State::Predicted => predicted.clone().expect("written before it is read"),
                State::Kept(n) => states.kept[n as usize].clone(),
            };
            combination.terms().iter().map(|&(state, c)| (tensor(state), c)).collect()
        };
        let add = |rec: &mut Recorder, value: &Combination, clip: Option<f64>, target: &Tensor, predicted: &Option<Tensor>| {
            let terms = gather(value, predicted);
            let terms: Vec<(&Tensor, f64)> = terms.iter().map(|(t, c)| (t, *c)).collect();
            combine_into(rec, &terms, clip, target, sample);
        };
        if preview {
            let clean = rec_ref.tensor(h, w, self.channels, Elem::F32);
            add(rec_ref, &call.predicted, None, &clean, &predicted);
            let words = rgb(rec_ref, &clean, self.space);
            rec_ref.output("preview", &words);
        }
        for update in &call.updates {
            match (update.target, &self.mask, &self.image) {
                (State::Sample, Some(mask), Some(image)) => {
                    let moved = rec_ref.tensor(h, w, self.channels, Elem::F32);
                    add(rec_ref, &update.value, update.clip, &moved, &predicted);
                    let noise = rec_ref.upload(noise, h, w, self.channels, Elem::F32);
                    let mut terms = vec![(image, call.known.signal)];
                    if call.known.noise != 0.0 {
                        terms.push((&noise, call.known.noise));
                    }
                    let known = combine(rec_ref, &terms, None, self.channels, Elem::F32);
                    blend_into(rec_ref, &known, &moved, mask, next);
                }
                (State::Sample, ..) => add(rec_ref, &update.value, update.clip, next, &predicted),
                (State::Kept(n), ..) => add(rec_ref, &update.value, update.clip, &states.kept[n as usize], &predicted),
                (State::Predicted, ..) => {
                    let target = rec_ref.tensor(h, w, self.channels, Elem::F32);
                    add(rec_ref, &update.value, update.clip, &target, &predicted);
                    predicted = Some(target);
                }
                (State::Output | State::Noise, ..) => unreachable!("samplers write neither"),
            }
        }
        if last {
            rec_ref.output("latent", next);
        }
        Ok(rec)
    }
}

/// A latent's colours as 8-bit pixels.
fn rgb(rec: &mut Recorder, latent: &Tensor, space: Option<LatentSpace>) -> Tensor {
    let channels = latent.channels;
    let weight: Vec<f32> = match channels {
        4 if space == Some(LatentSpace::Sdxl) => SDXL_COLOURS.concat(),
        4 => SD_COLOURS.concat(),
        // Some other space: its first channels.
        _ => (0..3 * channels).map(|i| if i % channels == (i / channels).min(channels - 1) { 0.5 } else { 0.0 }).collect(),
    };
    let weights = uploaded(rec, &weight, 3, channels);
    let picture = linear(rec, latent, &weights, None, Act::None, Elem::F32);
    image_to_rgba8(rec, &picture, latent.width, latent.height, (0, 0))
}
