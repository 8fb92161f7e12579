//! What users call: an [`Engine`] on a device, decoders and encoders loaded onto it, pictures out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::{AdapterFacts, Elem, Gpu, GpuOptions, KernelFamily, MemoryUse, Observer, Outputs, Picture, Recorder, Tensor, Timing};
use crate::image::Image;
use crate::kernels::output::{image_to_picture, image_to_rgba8};
use crate::latent::{Latent, LatentSpace};
use crate::models::autoencoder_kl::{VaeDecoder, VaeEncoder};
use crate::models::infgen::{InfgenDecoder, TOKENS_A_CHUNK};
use crate::models::taesd::Taesd;
use crate::nn::{Loader, Precision};
use crate::weights::builtin::Builtin;
use crate::weights::recognise::{self, Recognised};
use crate::weights::taesd_keys::{self, Half};
use crate::weights::{self, vae_keys};

/// Largest side of a picture in pixels.
pub const MAX_SIDE: usize = 16384;

/// Storage type of weights and activations. Sums, statistics, softmax and position codes are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// Half the memory; more than 45 dB PSNR from f32.
    #[default]
    F16,
    /// Agrees with PyTorch's f32 to a relative L2 of 1e-3.
    F32,
}

/// How to open an [`Engine`].
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Adapter index or a part of its name; none: the best one ([`crate::gpu::adapters`] lists them).
    pub device: Option<String>,
    /// Storage type.
    pub dtype: Dtype,
    /// Ceiling on GPU memory in bytes, weights included.
    pub memory: Option<u64>,
    /// Ask the device for no more than WebGPU's default limits, and no `shader-f16`.
    pub default_limits: bool,
    /// For tests: kernels of this family whatever the device.
    #[doc(hidden)]
    pub kernels: Option<KernelFamily>,
}

/// Where weights come from.
#[derive(Debug)]
pub enum Weights {
    /// What ships inside the library: an InfGen decoder for SD latents, and an encoder.
    Builtin,
    /// A `.safetensors` file, a sharded one's index, or a diffusers folder.
    Path(PathBuf),
    /// Weights that are open already, for instance from bytes.
    Open(weights::Weights),
}

impl From<&str> for Weights {
    fn from(path: &str) -> Weights {
        Weights::Path(path.into())
    }
}

impl From<&Path> for Weights {
    fn from(path: &Path) -> Weights {
        Weights::Path(path.into())
    }
}

impl From<PathBuf> for Weights {
    fn from(path: PathBuf) -> Weights {
        Weights::Path(path)
    }
}

impl From<weights::Weights> for Weights {
    fn from(open: weights::Weights) -> Weights {
        Weights::Open(open)
    }
}

impl Weights {
    fn open(self, builtin: Builtin) -> Result<weights::Weights> {
        match self {
            Weights::Builtin => weights::Weights::builtin(builtin),
            Weights::Path(path) => weights::Weights::open(path),
            Weights::Open(open) => Ok(open),
        }
    }
}

/// A rectangle of a picture, in pixels from its top-left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Columns left of it.
    pub x: usize,
    /// Rows above it.
    pub y: usize,
    /// Width.
    pub w: usize,
    /// Height.
    pub h: usize,
}

/// What a decode needs, known before it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Peak GPU memory in bytes, weights and everything else on this device included: the smallest ceiling that will do.
    pub peak_bytes: u64,
    /// Floating point operations.
    pub flops: u64,
}

/// A GPU with its pipelines, and the decoder loaded last.
///
/// ```no_run
/// # fn main() -> infgen::Result<()> {
/// use infgen::{Engine, EngineOptions, Latent, Weights};
/// let engine = Engine::new(EngineOptions::default())?;
/// engine.load_decoder(Weights::Builtin)?;
/// let latent = Latent::open("sample.safetensors")?;
/// let image = engine.decode(&latent, 1920, 1080)?;
/// image.save("sample.png", &[])?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    gpu: Arc<Gpu>,
    dtype: Dtype,
    current: Mutex<Option<Decoder>>,
}

/// Blocks on a future where that is possible: everywhere but in a browser.
#[cfg(not(target_arch = "wasm32"))]
fn block<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

impl Engine {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(options: EngineOptions) -> Result<Engine> {
        block(Engine::new_async(options))
    }

    /// [`Engine::new`], without blocking.
    ///
    /// # Errors
    /// [`Error::NoAdapter`].
    pub async fn new_async(options: EngineOptions) -> Result<Engine> {
        let gpu = Gpu::new(&GpuOptions {
            device: options.device,
            memory_ceiling: options.memory,
            default_limits: options.default_limits,
            kernels: options.kernels,
            ..GpuOptions::default()
        })
        .await?;
        Ok(Engine::on(gpu, options.dtype))
    }

    /// An engine on a device that is open already, for instance on one that a window presents with
    /// ([`Gpu::for_surface`]).
    pub fn on(gpu: Gpu, dtype: Dtype) -> Engine {
        Engine { gpu: Arc::new(gpu), dtype, current: Mutex::new(None) }
    }

    /// The adapter in use.
    pub fn device(&self) -> &AdapterFacts {
        self.gpu.facts()
    }

    /// The device itself, for programs that record kernels of their own.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// GPU memory held by this engine, in bytes.
    pub fn memory(&self) -> MemoryUse {
        self.gpu.memory()
    }

    /// Loads a decoder and makes it the one that [`Engine::decode`] uses.
    ///
    /// # Errors
    /// Anything that can be wrong with weights (see [`Error`]), or too little memory for them.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load_decoder(&self, weights: impl Into<Weights>) -> Result<Decoder> {
        block(self.load_decoder_async(weights))
    }

    /// [`Engine::load_decoder`], without blocking.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`].
    pub async fn load_decoder_async(&self, weights: impl Into<Weights>) -> Result<Decoder> {
        let weights = weights.into().open(Builtin::Decoder)?;
        let decoder = Decoder(Arc::new(self.decoder(&weights).await?));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(decoder.clone());
        Ok(decoder)
    }

    async fn decoder(&self, weights: &weights::Weights) -> Result<LoadedDecoder> {
        let recognised = recognise::recognise(weights)?;
        let before = self.gpu.memory().current;
        let (network, facts) = match &recognised {
            Recognised::Infgen { config } => {
                let view = weights.view();
                config.check(&view)?;
                let loader = Loader::new(&self.gpu, &view, self.precision(false));
                let network = Network::Infgen(Box::new(InfgenDecoder::load(&loader, config).await?));
                let facts = DecoderFacts {
                    model: "InfGen decoder",
                    latent_channels: config.latent_channels,
                    scale: config.patch,
                    latent_space: Some(config.latent_space),
                    any_size: true,
                    scaling_factor: config.scaling_factor(),
                    shift_factor: config.latent_space.shift_factor(),
                    max_step_scale: config.max_step_scale,
                    weights_bytes: 0,
                };
                (network, facts)
            }
            Recognised::Vae(vae) | Recognised::Checkpoint { vae: Some(vae), .. } if vae.decoder => {
                let view = vae_keys::view(weights).ok_or_else(|| recognised.refuse(weights, "a decoder"))?;
                view.check(&vae.config.tensors(false, true))?;
                let loader = Loader::new(&self.gpu, &view, self.precision(vae.config.force_upcast));
                let network = Network::Vae(Box::new(VaeDecoder::load(&loader, &vae.config).await?));
                let facts = DecoderFacts {
                    model: "AutoencoderKL decoder",
                    latent_channels: vae.config.latent_channels,
                    scale: vae.config.scale(),
                    latent_space: vae.config.latent_space,
                    any_size: false,
                    scaling_factor: vae.config.scaling_factor,
                    shift_factor: vae.config.shift_factor,
                    max_step_scale: 1.0,
                    weights_bytes: 0,
                };
                (network, facts)
            }
            Recognised::Taesd { decoder: Some(config), latent_space, .. } => {
                let view = taesd_keys::view(weights, Half::Decoder).ok_or_else(|| recognised.refuse(weights, "a decoder"))?;
                view.check(&config.tensors(Half::Decoder))?;
                let loader = Loader::new(&self.gpu, &view, self.precision(false));
                let network = Network::Taesd(Taesd::load(&loader, config, Half::Decoder).await?);
                let facts = DecoderFacts {
                    model: "TAESD decoder",
                    latent_channels: config.latent_channels,
                    scale: config.scale(),
                    latent_space: *latent_space,
                    any_size: false,
                    scaling_factor: 1.0,
                    shift_factor: 0.0,
                    max_step_scale: 1.0,
                    weights_bytes: 0,
                };
                (network, facts)
            }
            other => return Err(other.refuse(weights, "a decoder")),
        };
        self.gpu.flush().await?;
        let weights_bytes = self.gpu.memory().current - before;
        Ok(LoadedDecoder { gpu: self.gpu.clone(), dtype: self.dtype, network, facts: DecoderFacts { weights_bytes, ..facts } })
    }

    /// Loads an encoder: of an AutoencoderKL, of TAESD, or the one that ships.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load_encoder(&self, weights: impl Into<Weights>) -> Result<Encoder> {
        block(self.load_encoder_async(weights))
    }

    /// [`Engine::load_encoder`], without blocking.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`].
    pub async fn load_encoder_async(&self, weights: impl Into<Weights>) -> Result<Encoder> {
        let weights = weights.into().open(Builtin::Encoder)?;
        let recognised = recognise::recognise(&weights)?;
        let (network, facts) = match &recognised {
            Recognised::Vae(vae) | Recognised::Checkpoint { vae: Some(vae), .. } if vae.encoder => {
                let view = vae_keys::view(&weights).ok_or_else(|| recognised.refuse(&weights, "an encoder"))?;
                view.check(&vae.config.tensors(true, false))?;
                let loader = Loader::new(&self.gpu, &view, self.precision(vae.config.force_upcast));
                let config = &vae.config;
                let facts = EncoderFacts {
                    model: "AutoencoderKL encoder",
                    latent_channels: config.latent_channels,
                    scale: config.scale(),
                    latent_space: config.latent_space,
                };
                let (scaling, shift) = (config.scaling_factor, config.shift_factor);
                (EncoderNetwork::Vae { network: Box::new(VaeEncoder::load(&loader, config).await?), scaling, shift }, facts)
            }
            Recognised::Taesd { encoder: Some(config), latent_space, .. } => {
                let view = taesd_keys::view(&weights, Half::Encoder).ok_or_else(|| recognised.refuse(&weights, "an encoder"))?;
                view.check(&config.tensors(Half::Encoder))?;
                let loader = Loader::new(&self.gpu, &view, self.precision(false));
                let facts = EncoderFacts {
                    model: "TAESD encoder",
                    latent_channels: config.latent_channels,
                    scale: config.scale(),
                    latent_space: *latent_space,
                };
                (EncoderNetwork::Taesd(Taesd::load(&loader, config, Half::Encoder).await?), facts)
            }
            other => return Err(other.refuse(&weights, "an encoder")),
        };
        self.gpu.flush().await?;
        Ok(Encoder { gpu: self.gpu.clone(), dtype: self.dtype, network, facts })
    }

    fn precision(&self, wide_activations: bool) -> Precision {
        match (self.dtype, wide_activations) {
            (Dtype::F32, _) => Precision::F32,
            (Dtype::F16, true) => Precision::F16_WEIGHTS,
            (Dtype::F16, false) => Precision::F16,
        }
    }

    /// Decodes one latent to a picture of exactly `width x height` pixels with the decoder loaded last; loads the
    /// built-in one if there is none.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode(&self, latent: &Latent, width: usize, height: usize) -> Result<Image> {
        block(self.decode_async(latent, width, height, &Observer::default()))
    }

    /// [`Engine::decode`], without blocking; `observer` is told of progress and can cancel.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    pub async fn decode_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Image> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let decoder = match current {
            Some(decoder) => decoder,
            None => self.load_decoder_async(Weights::Builtin).await?,
        };
        decoder.decode_async(latent, width, height, observer).await
    }
}

/// What is known about a loaded decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderFacts {
    /// `InfGen decoder`, `AutoencoderKL decoder` or `TAESD decoder`.
    pub model: &'static str,
    /// Channels of the latents it takes.
    pub latent_channels: usize,
    /// Pixels a latent value side, at the latent's native size.
    pub scale: usize,
    /// The latent space it belongs to, where that is known.
    pub latent_space: Option<LatentSpace>,
    /// Whether it decodes to any size, or to `scale` times the latent only.
    pub any_size: bool,
    /// Latents are divided by this.
    pub scaling_factor: f64,
    /// Added to latents after the division.
    pub shift_factor: f64,
    /// Largest step of the extrapolation that it was trained for, output side over `scale` x latent side.
    pub max_step_scale: f64,
    /// GPU memory of its weights, in bytes.
    pub weights_bytes: u64,
}

#[derive(Debug)]
enum Network {
    Infgen(Box<InfgenDecoder>),
    Vae(Box<VaeDecoder>),
    Taesd(Taesd),
}

#[derive(Debug)]
struct LoadedDecoder {
    gpu: Arc<Gpu>,
    dtype: Dtype,
    network: Network,
    facts: DecoderFacts,
}

/// A decoder on the device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Decoder(Arc<LoadedDecoder>);

/// Which form the result of a decode takes on the GPU.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Float,
    Rgba8,
    Picture,
}

impl Decoder {
    /// What it is.
    pub fn facts(&self) -> &DecoderFacts {
        &self.0.facts
    }

    /// What decoding a latent of `latent`'s size to `width x height` will need.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes or latents that it cannot decode.
    pub fn estimate(&self, latent: &Latent, width: usize, height: usize) -> Result<Estimate> {
        let rec = self.record(latent, width, height, Form::Rgba8, false)?.finish();
        Ok(Estimate { peak_bytes: self.0.gpu.peak_bytes(&rec), flops: rec.flops() })
    }

    /// Decodes one latent to a picture of exactly `width x height` pixels.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode(&self, latent: &Latent, width: usize, height: usize) -> Result<Image> {
        block(self.decode_async(latent, width, height, &Observer::default()))
    }

    /// Decodes one latent to a picture of exactly `width x height` pixels; `observer` is told of progress and can cancel.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0 or beyond [`MAX_SIDE`], another size than `scale` times the latent where the
    /// decoder knows no other, a batch, or a latent of other channels or another space; [`Error::MemoryCeiling`] and
    /// [`Error::BufferTooLarge`] before anything runs; [`Error::NonFinite`], [`Error::Cancelled`],
    /// [`Error::OutOfMemory`] and [`Error::DeviceLost`] while it runs.
    pub async fn decode_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Image> {
        let rec = self.record(latent, width, height, Form::Float, false)?;
        let mut outputs = self.run(rec, observer).await?;
        let data = outputs.numbers(IMAGE);
        let full_width = width.next_multiple_of(self.0.facts.scale);
        Image::new(width, height, crop(&data, full_width, Rect { x: 0, y: 0, w: width, h: height }))
    }

    /// The same picture in 8 bits, converted on the GPU: `[height, width, 3]` RGB,
    /// `round(255 * clamp(x / 2 + 1/2, 0, 1))`.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    pub async fn decode_rgb8_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Vec<u8>> {
        let rec = self.record(latent, width, height, Form::Rgba8, false)?;
        let words = self.run(rec, observer).await?.words(IMAGE);
        Ok(words.iter().flat_map(|word| [*word as u8, (word >> 8) as u8, (word >> 16) as u8]).collect())
    }

    /// The same picture in 8 bits as a texture, which never leaves the GPU: for showing.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`]; [`Error::Invalid`] also for a size beyond the device's largest texture.
    pub async fn decode_picture_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Picture> {
        let rec = self.record(latent, width, height, Form::Picture, false)?;
        Ok(self.run(rec, observer).await?.picture.expect("a recording in this form makes a picture"))
    }

    /// Blocking form of [`Decoder::decode_rgb8_async`].
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode_rgb8(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Vec<u8>> {
        block(self.decode_rgb8_async(latent, width, height, observer))
    }

    /// GPU time of every kernel of one decode; empty where the device has no timestamps.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile(&self, latent: &Latent, width: usize, height: usize) -> Result<Vec<Timing>> {
        let rec = self.record(latent, width, height, Form::Rgba8, false)?;
        Ok(block(self.0.gpu.run_timed(rec.finish(), &Observer::default()))?.timings)
    }

    /// Every named intermediate result of a decode besides the picture itself (`image`), channels-last in f32, for
    /// comparison with other implementations layer by layer.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn taps(&self, latent: &Latent, width: usize, height: usize) -> Result<Outputs> {
        let rec = self.record(latent, width, height, Form::Float, true)?;
        block(self.run(rec, &Observer::default()))
    }

    /// [`Decoder::decode`] with an InfGen's mask tokens in chunks of another size, which must change nothing.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn decode_in_chunks(&self, latent: &Latent, width: usize, height: usize, tokens_a_chunk: usize) -> Result<Vec<f32>> {
        let rec = self.record_chunked(latent, width, height, Form::Float, false, tokens_a_chunk)?;
        Ok(block(self.run(rec, &Observer::default()))?.numbers(IMAGE))
    }

    /// Prepares the decode of one latent to `width x height`, any rectangle of which [`Decoding::region`] then gives.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prepare(&self, latent: &Latent, width: usize, height: usize) -> Result<Decoding> {
        block(self.prepare_async(latent, width, height, &Observer::default()))
    }

    /// [`Decoder::prepare`], without blocking.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    pub async fn prepare_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Decoding> {
        Ok(Decoding { image: self.decode_async(latent, width, height, observer).await? })
    }

    async fn run(&self, rec: Recorder, observer: &Observer) -> Result<Outputs> {
        self.0.gpu.run(rec.finish(), observer).await.map_err(|error| hint(error, self.0.dtype))
    }

    fn record(&self, latent: &Latent, width: usize, height: usize, form: Form, taps: bool) -> Result<Recorder> {
        self.record_chunked(latent, width, height, form, taps, TOKENS_A_CHUNK)
    }

    fn record_chunked(
        &self,
        latent: &Latent,
        width: usize,
        height: usize,
        form: Form,
        taps: bool,
        tokens_a_chunk: usize,
    ) -> Result<Recorder> {
        let loaded = &*self.0;
        let facts = &loaded.facts;
        self.check(latent, width, height)?;
        let values = latent.image(0).expect("a latent holds at least one image");
        let channels = latent.channels();
        let scale = |v: f32| (v as f64 / facts.scaling_factor + facts.shift_factor) as f32;
        let mut rec = loaded.gpu.recorder();
        rec.keep_taps(taps);
        let mut z = channels_last(values, channels);
        match &loaded.network {
            Network::Taesd(_) => z.iter_mut().for_each(|v| *v = (*v / 3.0).tanh() * 3.0),
            _ => z.iter_mut().for_each(|v| *v = scale(*v)),
        }
        let z = rec.upload(&z, latent.height(), latent.width(), channels, Elem::F32);
        let image: Tensor = match &loaded.network {
            Network::Infgen(network) => network.forward(&mut rec, &z, width, height, tokens_a_chunk),
            Network::Vae(network) => network.forward(&mut rec, &z),
            Network::Taesd(network) => network.forward(&mut rec, &z),
        };
        match form {
            Form::Rgba8 => {
                let words = image_to_rgba8(&mut rec, &image, width, height, (0, 0));
                rec.output(IMAGE, &words);
            }
            Form::Picture => image_to_picture(&mut rec, &image, width, height, (0, 0)),
            Form::Float => rec.output(IMAGE, &image.rows(0, height)),
        }
        Ok(rec)
    }

    fn check(&self, latent: &Latent, width: usize, height: usize) -> Result<()> {
        let facts = self.facts();
        let invalid = |what, detail| Err(Error::Invalid { what, detail });
        if latent.batch() != 1 {
            let detail = format!("holds {} latents; decode them one by one (`Latent::select`)", latent.batch());
            return invalid("latent", detail);
        }
        if latent.channels() != facts.latent_channels {
            let detail = format!("has {} channels, this {} takes {}", latent.channels(), facts.model, facts.latent_channels);
            return invalid("latent", detail);
        }
        if let (Some(of_latent), Some(of_decoder)) = (&latent.space, facts.latent_space)
            && of_latent != of_decoder.name()
        {
            let detail = format!("belongs to the space `{of_latent}`, this {} decodes `{}`", facts.model, of_decoder.name());
            return invalid("latent", detail);
        }
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return invalid("size", format!("{width}x{height}: each side must lie between 1 and {MAX_SIDE}"));
        }
        let native = (latent.width() * facts.scale, latent.height() * facts.scale);
        if !facts.any_size && (width, height) != native {
            let detail = format!(
                "{width}x{height}: this {} only decodes this latent to {}x{}; an InfGen decoder takes any size",
                facts.model, native.0, native.1
            );
            return invalid("size", detail);
        }
        Ok(())
    }
}

/// Name of the picture among the outputs of a decode.
const IMAGE: &str = "image";

/// A decode from which rectangles are taken.
///
/// As of now the whole picture is computed when it is prepared and kept on the host; a region is a copy out of it.
#[derive(Debug)]
pub struct Decoding {
    image: Image,
}

impl Decoding {
    /// The rectangle `rect`: the same bytes as that crop of the whole decode.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty rectangle or one that leaves the picture.
    pub fn region(&self, rect: Rect) -> Result<Image> {
        let (width, height) = (self.image.width(), self.image.height());
        check_region(rect, width, height)?;
        Image::new(rect.w, rect.h, crop(self.image.data(), width, rect))
    }
}

/// [`Error::Invalid`] unless `rect` lies in a picture of `width x height` and is not empty.
pub fn check_region(rect: Rect, width: usize, height: usize) -> Result<()> {
    let inside = |start: usize, length: usize, all: usize| length > 0 && start.checked_add(length).is_some_and(|end| end <= all);
    if inside(rect.x, rect.w, width) && inside(rect.y, rect.h, height) {
        return Ok(());
    }
    let Rect { x, y, w, h } = rect;
    Err(Error::Invalid { what: "region", detail: format!("{x},{y},{w}x{h} does not lie inside the {width}x{height} picture") })
}

#[derive(Debug)]
enum EncoderNetwork {
    Vae { network: Box<VaeEncoder>, scaling: f64, shift: f64 },
    Taesd(Taesd),
}

/// What is known about a loaded encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderFacts {
    /// `AutoencoderKL encoder` or `TAESD encoder`.
    pub model: &'static str,
    /// Channels of the latents it gives.
    pub latent_channels: usize,
    /// Pixels a latent value side; sides of pictures must be multiples of it.
    pub scale: usize,
    /// The latent space, where that is known.
    pub latent_space: Option<LatentSpace>,
}

/// An encoder on the device.
#[derive(Debug)]
pub struct Encoder {
    gpu: Arc<Gpu>,
    dtype: Dtype,
    network: EncoderNetwork,
    facts: EncoderFacts,
}

/// Bounds of the log variance of a VAE's posterior (diffusers `DiagonalGaussianDistribution`).
const LOG_VARIANCE: std::ops::RangeInclusive<f32> = -30.0..=20.0;

impl Encoder {
    /// What it is.
    pub fn facts(&self) -> &EncoderFacts {
        &self.facts
    }

    /// The scaled latent of a picture: the mean of the posterior, or with `noise` (one standard normal value for each
    /// value of the latent, `[channels, h, w]`) a draw from it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sides that are no multiples of `scale` or beyond [`MAX_SIDE`], a draw from an encoder
    /// that has no variance, or noise of another length; otherwise as [`Decoder::decode_async`].
    pub async fn encode_async(&self, image: &Image, noise: Option<&[f32]>, observer: &Observer) -> Result<Latent> {
        let (w, h, scale, channels) = (image.width(), image.height(), self.facts.scale, self.facts.latent_channels);
        let invalid = |what, detail| Err(Error::Invalid { what, detail });
        if !w.is_multiple_of(scale) || !h.is_multiple_of(scale) || w > MAX_SIDE || h > MAX_SIDE {
            let detail = format!("{w}x{h}: sides must be multiples of {scale}, at most {MAX_SIDE}; resize the picture first");
            return invalid("image", detail);
        }
        let (lw, lh) = (w / scale, h / scale);
        let outputs = |rec: Recorder| async { self.gpu.run(rec.finish(), observer).await.map_err(|e| hint(e, self.dtype)) };
        let mut rec = self.gpu.recorder();
        let data = match &self.network {
            EncoderNetwork::Taesd(network) => {
                if noise.is_some() {
                    return invalid("sample", format!("a {} gives no variance to draw from", self.facts.model));
                }
                let picture: Vec<f32> = image.data().iter().map(|v| v * 0.5 + 0.5).collect();
                let x = rec.upload(&picture, h, w, 3, Elem::F32);
                let latent = network.forward(&mut rec, &x);
                rec.output("latent", &latent);
                outputs(rec).await?.numbers("latent")
            }
            EncoderNetwork::Vae { network, scaling, shift } => {
                if let Some(noise) = noise.filter(|noise| noise.len() != channels * lw * lh) {
                    return invalid("noise", format!("{} values for a latent of {channels}x{lh}x{lw}", noise.len()));
                }
                let x = rec.upload(image.data(), h, w, 3, Elem::F32);
                let moments = network.forward(&mut rec, &x);
                rec.output("moments", &moments);
                let moments = outputs(rec).await?.numbers("moments");
                let value = |pixel: usize, c: usize| {
                    let at = pixel * 2 * channels + c;
                    let draw = noise.map_or(0.0, |noise| {
                        let log_variance = moments[at + channels].clamp(*LOG_VARIANCE.start(), *LOG_VARIANCE.end());
                        (log_variance / 2.0).exp() * noise[c * lw * lh + pixel]
                    });
                    ((moments[at] + draw) as f64 - shift) as f32 * *scaling as f32
                };
                (0..lw * lh).flat_map(|pixel| (0..channels).map(move |c| (pixel, c))).map(|(pixel, c)| value(pixel, c)).collect()
            }
        };
        let mut latent = Latent::new([1, channels, lh, lw], channels_first(&data, channels))?;
        latent.space = self.facts.latent_space.map(|space| space.name().to_owned());
        Ok(latent)
    }

    /// Blocking form of [`Encoder::encode_async`].
    ///
    /// # Errors
    /// As [`Encoder::encode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn encode(&self, image: &Image, noise: Option<&[f32]>, observer: &Observer) -> Result<Latent> {
        block(self.encode_async(image, noise, observer))
    }

    /// Every named intermediate result of an encode, for comparison layer by layer.
    ///
    /// # Errors
    /// As [`Encoder::encode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn taps(&self, image: &Image) -> Result<Outputs> {
        let mut rec = self.gpu.recorder();
        rec.keep_taps(true);
        let unit: Vec<f32> = image.data().iter().map(|v| v * 0.5 + 0.5).collect();
        let (data, name) = match &self.network {
            EncoderNetwork::Vae { .. } => (image.data(), "moments"),
            EncoderNetwork::Taesd(_) => (&unit[..], "latent"),
        };
        let x = rec.upload(data, image.height(), image.width(), 3, Elem::F32);
        let y = match &self.network {
            EncoderNetwork::Vae { network, .. } => network.forward(&mut rec, &x),
            EncoderNetwork::Taesd(network) => network.forward(&mut rec, &x),
        };
        rec.output(name, &y);
        block(self.gpu.run(rec.finish(), &Observer::default()))
    }
}

/// `[channels, h, w]` to `[h, w, channels]`.
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|i| values[i % channels * pixels + i / channels]).collect()
}

/// `[h, w, channels]` to `[channels, h, w]`.
fn channels_first(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|i| values[i % pixels * channels + i / pixels]).collect()
}

/// The rectangle `rect` of an RGB picture `width` pixels wide.
fn crop(rgb: &[f32], width: usize, rect: Rect) -> Vec<f32> {
    let rows = (rect.y..rect.y + rect.h).map(|row| (row * width + rect.x) * 3);
    rows.flat_map(|start| &rgb[start..start + rect.w * 3]).copied().collect()
}

/// Tells what to try where f16 was too narrow.
fn hint(error: Error, dtype: Dtype) -> Error {
    match error {
        Error::NonFinite { layer, .. } if dtype == Dtype::F16 => Error::NonFinite { layer, hint: "; try --dtype f32" },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_each_others_inverse_and_keep_pixels_together() {
        let first: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let last = channels_last(&first, 4);
        assert_eq!(&last[..4], [0.0, 6.0, 12.0, 18.0]);
        assert_eq!(channels_first(&last, 4), first);
    }

    #[test]
    fn regions_must_lie_inside() {
        let rect = |x, y, w, h| Rect { x, y, w, h };
        assert!(check_region(rect(0, 0, 10, 5), 10, 5).is_ok());
        assert!(check_region(rect(9, 4, 1, 1), 10, 5).is_ok());
        for bad in [rect(0, 0, 0, 5), rect(1, 0, 10, 5), rect(0, 5, 1, 1), rect(usize::MAX, 0, 2, 1)] {
            assert!(matches!(check_region(bad, 10, 5), Err(Error::Invalid { .. })), "{bad:?}");
        }
        let picture: Vec<f32> = (0..4 * 3 * 3).map(|i| i as f32).collect();
        assert_eq!(crop(&picture, 4, rect(1, 2, 2, 1)), [27.0, 28.0, 29.0, 30.0, 31.0, 32.0]);
    }
}
