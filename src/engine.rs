//! What users call: an [`Engine`] on a device, decoders and encoders loaded onto it, pictures out.

mod decoder;
mod encoder;
mod patches;
mod planned;
#[cfg(not(target_arch = "wasm32"))]
mod tune;
mod work;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use decoder::{LoadedDecoder, Network};
use encoder::EncoderNetwork;
use planned::Reading;

use crate::error::{Error, Result};
use crate::gpu::{AdapterFacts, Gpu, GpuOptions, KernelFamily, KernelPlan, MemoryUse, Observer};
use crate::image::Image;
use crate::latent::Latent;
use crate::models::autoencoder_kl::{VaeDecoder, VaeEncoder};
use crate::models::infd::InfdDecoder;
use crate::models::infgen::InfgenDecoder;
use crate::models::taesd::Taesd;
use crate::nn::{Loader, Precision};
use crate::weights::builtin::Builtin;
use crate::weights::recognise::{self, Recognised};
use crate::weights::taesd_keys::{self, Half};
use crate::weights::{self, View, infd_keys, vae_keys};

pub use decoder::{Decoder, DecoderFacts, Decoding, check_region, rgb8};
pub use encoder::{Encoder, EncoderFacts};
pub use planned::Planned;
pub use work::{LayerCost, WorkPlan};

pub use crate::bounded::{Form, Rows, Sink};

/// Largest side of a picture in pixels.
pub const MAX_SIDE: usize = 16384;

/// INFD's renderer was trained with pictures of up to 1024 pixels a side (FFHQ) for features of 256.
const INFD_STEP: f64 = 4.0;

/// Storage type of weights and activations. Sums, statistics, softmax and position codes are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// Half the memory; more than 45 dB PSNR from f32.
    #[default]
    F16,
    /// Agrees with PyTorch's f32 to a relative L2 of 1e-3.
    F32,
}

/// Whether kernels are chosen by measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tuning {
    /// The fixed choice of the device's class.
    #[default]
    Off,
    /// Measured at the first use of a GPU, about two seconds, and remembered in the user's cache folder. Software devices keep the
    /// fixed choice, and so does the browser.
    Gpus,
    /// Software devices too.
    Always,
}

/// How to open an [`Engine`].
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Adapter index, a part of its name, or a backend; none: the best one ([`crate::gpu::adapters`] lists them).
    pub device: Option<String>,
    /// Storage type.
    pub dtype: Dtype,
    /// Ceiling on GPU memory in bytes, weights included.
    pub memory: Option<u64>,
    /// Ceiling in bytes on the host memory that planes take which have no room on the device; none: half of the machine's.
    pub host_memory: Option<u64>,
    /// Ask the device for no more than WebGPU's default limits, and no `shader-f16`.
    pub default_limits: bool,
    /// Keep compiled pipelines in the user's cache folder for the next start, where backend and driver allow it (Vulkan).
    pub pipeline_cache: bool,
    /// Whether the kernels of convolutions and linear layers are chosen by measuring. The choice is part of the bits: decodes are equal
    /// to the bit on engines with the same one ([`Engine::kernels`]).
    pub tuning: Tuning,
    /// Where pipelines and that choice are kept; none: the user's cache folder.
    pub cache_folder: Option<PathBuf>,
    /// For tests: kernels of this family whatever the device.
    #[doc(hidden)]
    pub kernels: Option<KernelFamily>,
    /// For planning only: see [`GpuOptions::as_discrete`].
    #[doc(hidden)]
    pub as_discrete: bool,
    /// For measuring only: see [`GpuOptions::bounds_checks`].
    #[doc(hidden)]
    pub bounds_checks: Option<bool>,
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
    /// Peak GPU memory in bytes under the ceiling in force, weights and everything else on this device included.
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
    host_memory: u64,
    current: Mutex<Option<Decoder>>,
}

/// Blocks on a future where that is possible: everywhere but in a browser.
#[cfg(not(target_arch = "wasm32"))]
fn block<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

/// Half of this machine's memory, in bytes.
fn host_memory() -> u64 {
    #[cfg(not(target_arch = "wasm32"))]
    let total =
        sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()))
            .total_memory();
    // A page has 4 GiB of address space, most of it not ours.
    #[cfg(target_arch = "wasm32")]
    let total = 512 << 20;
    total / 2
}

impl Engine {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new(options: EngineOptions) -> Result<Engine> {
        block(Engine::new_async(options, &Observer::default()))
    }

    /// [`Engine::new`], without blocking; `observer` is told of kernels that are measured, and can cancel that.
    ///
    /// # Errors
    /// [`Error::NoAdapter`]; [`Error::Cancelled`].
    pub async fn new_async(options: EngineOptions, observer: &Observer) -> Result<Engine> {
        let gpu = Gpu::new(&GpuOptions {
            device: options.device.clone(),
            memory_ceiling: options.memory,
            default_limits: options.default_limits,
            pipeline_cache: options.pipeline_cache,
            cache_folder: options.cache_folder.clone(),
            kernels: options.kernels,
            as_discrete: options.as_discrete,
            bounds_checks: options.bounds_checks,
            ..GpuOptions::default()
        })
        .await?;
        Engine::on_async(gpu, &options, observer).await
    }

    /// An engine on a device that is open already, for instance on one that a window presents with
    /// ([`Gpu::for_surface`]), with the fixed choice of kernels.
    pub fn on(gpu: Gpu, dtype: Dtype) -> Engine {
        Engine { gpu: Arc::new(gpu), dtype, host_memory: host_memory(), current: Mutex::new(None) }
    }

    /// [`Engine::on`] with kernels chosen as [`Engine::new`] chooses them, so that the bits are the same. Of `options` it takes what the
    /// device does not say already: storage type, host memory, tuning.
    ///
    /// # Errors
    /// Of kernels that are measured: [`Error::DeviceLost`], [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub async fn on_async(
        #[cfg_attr(target_arch = "wasm32", expect(unused_mut, reason = "a page has no place to remember a choice"))] mut gpu: Gpu,
        options: &EngineOptions,
        #[cfg_attr(target_arch = "wasm32", expect(unused_variables, reason = "nothing is measured in a page"))] observer: &Observer,
    ) -> Result<Engine> {
        #[cfg(not(target_arch = "wasm32"))]
        if options.kernels.is_none() {
            let plan = tune::plan(&gpu, options.dtype, options.tuning, observer).await?;
            gpu.set_kernels(plan);
        }
        let host_memory = options.host_memory.unwrap_or_else(host_memory);
        Ok(Engine { host_memory, ..Engine::on(gpu, options.dtype) })
    }

    /// The adapter in use.
    pub fn device(&self) -> &AdapterFacts {
        self.gpu.facts()
    }

    /// The device itself, for programs that record kernels of their own.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Which kernels it computes with, as words: for activations of its storage type and, where those of some networks (text to image, SDXL's
    /// VAE) stay f32, for these too.
    pub fn kernels(&self) -> String {
        let KernelPlan { f16, f32 } = self.gpu.profile().kernels;
        match self.dtype {
            Dtype::F32 => f32.to_string(),
            Dtype::F16 if f16 == f32 => f16.to_string(),
            Dtype::F16 => format!("{f16}; for f32 activations: {f32}"),
        }
    }

    /// Storage type of what it loads.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Another engine on the same device, with a decoder of its own.
    pub(crate) fn share(&self) -> Engine {
        Engine { gpu: self.gpu.clone(), dtype: self.dtype, host_memory: self.host_memory, current: Mutex::new(None) }
    }

    /// Lets go of the decoder loaded last: [`Engine::decode`] keeps it, and its memory, until another one is loaded.
    pub fn forget_decoder(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        block(self.load_decoder_async(weights, &Observer::default()))
    }

    /// [`Engine::load_decoder`], without blocking; `observer` is told of each tensor and can cancel.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`]; [`Error::Cancelled`].
    pub async fn load_decoder_async(&self, weights: impl Into<Weights>, observer: &Observer) -> Result<Decoder> {
        let weights = weights.into().open(Builtin::Decoder)?;
        let decoder = Decoder::from(self.decoder(&weights, &Reading::ToDevice(observer)).await?);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(decoder.clone());
        Ok(decoder)
    }

    async fn decoder(&self, weights: &weights::Weights, reading: &Reading<'_>) -> Result<LoadedDecoder> {
        let recognised = recognise::recognise(weights)?;
        let before = self.gpu.memory().current;
        let (network, facts) = match &recognised {
            Recognised::Infgen { config } => {
                let view = weights.view();
                config.check(&view)?;
                let load = async |loader: &Loader<'_>| InfgenDecoder::load(loader, config).await;
                let network = Network::Infgen(Box::new(self.load(&view, self.precision(false), &config.tensors(), reading, load).await?));
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
            Recognised::Infd { config, .. } => {
                let view = infd_keys::view(weights).ok_or_else(|| recognised.refuse(weights, "a decoder"))?;
                let tensors = config.tensors(false, true);
                view.check(&tensors)?;
                let load = async |loader: &Loader<'_>| InfdDecoder::load(loader, config).await;
                let network = Network::Infd(Box::new(self.load(&view, self.precision(false), &tensors, reading, load).await?));
                let facts = DecoderFacts {
                    model: "INFD decoder",
                    latent_channels: config.autoencoder.latent_channels,
                    scale: config.autoencoder.scale(),
                    latent_space: None,
                    any_size: true,
                    scaling_factor: 1.0,
                    shift_factor: 0.0,
                    max_step_scale: INFD_STEP,
                    weights_bytes: 0,
                };
                (network, facts)
            }
            Recognised::Vae(vae) | Recognised::Checkpoint { vae: Some(vae), .. } if vae.decoder => {
                let view = vae_keys::view(weights).ok_or_else(|| recognised.refuse(weights, "a decoder"))?;
                let tensors = vae.config.tensors(false, true);
                view.check(&tensors)?;
                let load = async |loader: &Loader<'_>| VaeDecoder::load(loader, &vae.config).await;
                let precision = self.precision(vae.config.force_upcast);
                let network = Network::Vae(Box::new(self.load(&view, precision, &tensors, reading, load).await?));
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
                let tensors = config.tensors(Half::Decoder);
                view.check(&tensors)?;
                let load = async |loader: &Loader<'_>| Taesd::load(loader, config, Half::Decoder).await;
                let network = Network::Taesd(self.load(&view, self.precision(false), &tensors, reading, load).await?);
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
        let weights_bytes = match reading {
            Reading::ToDevice(_) => self.gpu.memory().current - before,
            Reading::Counted(bytes) => bytes.load(Ordering::Relaxed),
        };
        let facts = DecoderFacts { weights_bytes, ..facts };
        Ok(LoadedDecoder {
            gpu: self.gpu.clone(),
            dtype: self.dtype,
            network,
            facts,
            host_memory: self.host_memory,
            last: Default::default(),
        })
    }

    /// Loads an encoder: of an AutoencoderKL, of TAESD, or the one that ships.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn load_encoder(&self, weights: impl Into<Weights>) -> Result<Encoder> {
        block(self.load_encoder_async(weights, &Observer::default()))
    }

    /// [`Engine::load_encoder`], without blocking; `observer` is told of each tensor and can cancel.
    ///
    /// # Errors
    /// As [`Engine::load_decoder_async`].
    pub async fn load_encoder_async(&self, weights: impl Into<Weights>, observer: &Observer) -> Result<Encoder> {
        let weights = weights.into().open(Builtin::Encoder)?;
        self.encoder(&weights, &Reading::ToDevice(observer)).await
    }

    async fn encoder(&self, weights: &weights::Weights, reading: &Reading<'_>) -> Result<Encoder> {
        let recognised = recognise::recognise(weights)?;
        let (network, facts) = match &recognised {
            Recognised::Vae(vae) | Recognised::Checkpoint { vae: Some(vae), .. } if vae.encoder => {
                let view = vae_keys::view(weights).ok_or_else(|| recognised.refuse(weights, "an encoder"))?;
                let tensors = vae.config.tensors(true, false);
                view.check(&tensors)?;
                let config = &vae.config;
                let load = async |loader: &Loader<'_>| VaeEncoder::load(loader, config).await;
                let network = Box::new(self.load(&view, self.precision(config.force_upcast), &tensors, reading, load).await?);
                let facts = EncoderFacts {
                    model: "AutoencoderKL encoder",
                    latent_channels: config.latent_channels,
                    scale: config.scale(),
                    latent_space: config.latent_space,
                    variance: true,
                };
                let (scaling, shift) = (config.scaling_factor, config.shift_factor);
                (EncoderNetwork::Vae { network, scaling, shift }, facts)
            }
            Recognised::Infd { config, .. } if config.encoder => {
                let view = infd_keys::view(weights).ok_or_else(|| recognised.refuse(weights, "an encoder"))?;
                let (tensors, vae) = (config.tensors(true, false), &config.autoencoder);
                view.check(&tensors)?;
                let load = async |loader: &Loader<'_>| VaeEncoder::load(loader, vae).await;
                let network = Box::new(self.load(&view, self.precision(false), &tensors, reading, load).await?);
                let facts = EncoderFacts {
                    model: "INFD encoder",
                    latent_channels: vae.latent_channels,
                    scale: vae.scale(),
                    latent_space: None,
                    variance: vae.double_z,
                };
                (EncoderNetwork::Vae { network, scaling: vae.scaling_factor, shift: vae.shift_factor }, facts)
            }
            Recognised::Taesd { encoder: Some(config), latent_space, .. } => {
                let view = taesd_keys::view(weights, Half::Encoder).ok_or_else(|| recognised.refuse(weights, "an encoder"))?;
                let tensors = config.tensors(Half::Encoder);
                view.check(&tensors)?;
                let load = async |loader: &Loader<'_>| Taesd::load(loader, config, Half::Encoder).await;
                let network = self.load(&view, self.precision(false), &tensors, reading, load).await?;
                let facts = EncoderFacts {
                    model: "TAESD encoder",
                    latent_channels: config.latent_channels,
                    scale: config.scale(),
                    latent_space: *latent_space,
                    variance: false,
                };
                (EncoderNetwork::Taesd(network), facts)
            }
            other => return Err(other.refuse(weights, "an encoder")),
        };
        self.gpu.flush().await?;
        Ok(Encoder { gpu: self.gpu.clone(), dtype: self.dtype, network, facts, host_memory: self.host_memory })
    }

    /// What `load` makes of `view`, reading these `tensors`. Under a ceiling that is too low for the weights the error says what all of them need.
    async fn load<T>(
        &self,
        view: &View<'_>,
        precision: Precision,
        tensors: &[(String, Vec<usize>)],
        reading: &Reading<'_>,
        load: impl AsyncFn(&Loader<'_>) -> Result<T>,
    ) -> Result<T> {
        let planning = Loader::planning(&self.gpu, view, precision);
        let observer = match reading {
            Reading::ToDevice(observer) => observer,
            Reading::Counted(bytes) => {
                let network = load(&planning).await?;
                bytes.fetch_add(planning.planned_bytes(), Ordering::Relaxed);
                return Ok(network);
            }
        };
        let before = self.gpu.held_bytes();
        match load(&Loader::new(&self.gpu, view, precision).observed(observer, tensors)).await {
            Err(Error::MemoryCeiling { ceiling, .. }) => {
                load(&planning).await?;
                Err(Error::MemoryCeiling { needed: before + planning.planned_bytes(), ceiling })
            }
            done => done,
        }
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
            None => self.load_decoder_async(Weights::Builtin, &observer.quiet()).await?,
        };
        decoder.decode_async(latent, width, height, observer).await
    }
}

/// `[channels, h, w]` to `[h, w, channels]`.
pub(crate) fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|i| values[i % channels * pixels + i / channels]).collect()
}

/// `[h, w, channels]` to `[channels, h, w]`.
pub(crate) fn channels_first(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|i| values[i % pixels * channels + i / pixels]).collect()
}

/// Tells what to try where f16 was too narrow.
pub(crate) fn hint(error: Error, dtype: Dtype) -> Error {
    match error {
        Error::NonFinite { layer, .. } if dtype == Dtype::F16 => Error::NonFinite { layer, hint: "; try dtype f32" },
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
    }
}
