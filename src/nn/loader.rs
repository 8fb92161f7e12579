//! From a weights file to packed tensors on the device, one at a time.

use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Observer, Operator, Progress, Tensor};
use crate::kernels::conv2d::{self, Packing};
use crate::weights::View;

/// Storage types of a model. Sums, statistics and position codes are f32 whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Type of stored activations.
    pub activations: Elem,
    /// Type of stored weights.
    pub weights: Elem,
}

impl Precision {
    /// Everything in f32.
    pub const F32: Precision = Precision { activations: Elem::F32, weights: Elem::F32 };
    /// Everything in f16.
    pub const F16: Precision = Precision { activations: Elem::Half, weights: Elem::Half };
    /// f16 weights, f32 activations: for networks whose activations leave f16's range (SDXL's VAE).
    pub const F16_WEIGHTS: Precision = Precision { activations: Elem::F32, weights: Elem::Half };
}

/// Reads tensors by name, checks them, packs them for the kernel that will read them and uploads them.
pub struct Loader<'a> {
    gpu: &'a Gpu,
    view: &'a View<'a>,
    precision: Precision,
    /// Bytes handed to the driver since it was last waited for.
    pending: std::sync::atomic::AtomicU64,
    /// Bytes that loading would take on the device, where nothing is loaded.
    planned: Option<std::sync::Arc<std::sync::atomic::AtomicU64>>,
    observed: Option<std::sync::Arc<Observed>>,
}

/// Who is told how much has been read, of how much.
#[derive(Debug)]
struct Observed {
    observer: Observer,
    total: u64,
    done: std::sync::atomic::AtomicU64,
}

/// Largest finite f16.
const F16_MAX: f32 = 65504.0;

/// Upload in portions of this size, so that the driver's staging memory stays small.
const PORTION: u64 = 32 << 20;

impl<'a> Loader<'a> {
    /// Loads from `view` onto `gpu`.
    pub fn new(gpu: &'a Gpu, view: &'a View<'a>, precision: Precision) -> Loader<'a> {
        Loader { gpu, view, precision, pending: Default::default(), planned: None, observed: None }
    }

    /// A loader that reads no data and uploads nothing: what it loads can be recorded and planned, not run.
    pub fn planning(gpu: &'a Gpu, view: &'a View<'a>, precision: Precision) -> Loader<'a> {
        Loader { planned: Some(Default::default()), ..Loader::new(gpu, view, precision) }
    }

    /// Tells `observer` after every tensor how far the model of these `tensors` is, and stops when it is cancelled.
    pub fn observed(self, observer: &Observer, tensors: &[(String, Vec<usize>)]) -> Loader<'a> {
        let total = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        Loader { observed: Some(std::sync::Arc::new(Observed { observer: observer.clone(), total, done: Default::default() })), ..self }
    }

    /// Bytes that the weights asked for so far would take; 0 for a loader that is not [`Loader::planning`].
    pub fn planned_bytes(&self) -> u64 {
        self.planned.as_ref().map_or(0, |bytes| bytes.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// The same with other storage types.
    pub fn with(&self, precision: Precision) -> Loader<'a> {
        Loader { planned: self.planned.clone(), observed: self.observed.clone(), ..Loader::new(self.gpu, self.view, precision) }
    }

    /// Storage types of what is loaded.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How the weights of a 3x3 or an upsampling convolution are packed here.
    pub fn packing(&self, operator: Operator, cin: usize, cout: usize) -> Packing {
        let Precision { activations, weights } = self.precision;
        conv2d::packing(self.gpu.profile(), operator, activations, weights, cin, cout)
    }

    /// Whether the file has `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.view.contains(name)
    }

    /// The values of `name`, which must have this shape and be finite.
    ///
    /// # Errors
    /// As [`View::get`]; [`Error::Cancelled`] if the observer asks to stop.
    pub async fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if let Some(observed) = &self.observed {
            if observed.observer.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let count = shape.iter().product::<usize>() as u64;
            // Weights that two layers share are read twice, and counted.
            let done = observed.done.fetch_add(count, std::sync::atomic::Ordering::Relaxed).min(observed.total);
            observed.observer.report(Progress { done: done as f64 / observed.total.max(1) as f64, layer: name });
        }
        if self.planned.is_some() {
            self.view.check(&[(name.to_owned(), shape.to_vec())])?;
            return Ok(vec![0.0; shape.iter().product()]);
        }
        self.view.get_async(name, shape).await
    }

    /// Uploads packed weight values in the storage type of weights.
    pub async fn upload_weight(&self, name: &str, values: &[f32]) -> Result<Tensor> {
        self.upload(name, values, values.len(), self.precision.weights).await
    }

    /// Uploads a vector as f32, zero-padded to whole quads.
    pub async fn upload_vector(&self, name: &str, values: &[f32]) -> Result<Tensor> {
        self.upload(name, values, values.len(), Elem::F32).await
    }

    /// Uploads rows of `channels` values, each zero-padded to whole quads: `[rows, 1, channels]`.
    ///
    /// # Errors
    /// [`Error::F16Range`] for a value that `elem` cannot hold; [`Error::MemoryCeiling`], [`Error::BufferTooLarge`],
    /// [`Error::OutOfMemory`] and [`Error::DeviceLost`] from the device.
    pub async fn upload(&self, name: &str, values: &[f32], channels: usize, elem: Elem) -> Result<Tensor> {
        if let Some(planned) = &self.planned {
            let tensor = Tensor::outside(values.len() / channels, 1, channels, elem);
            planned.fetch_add(tensor.resident_bytes(), std::sync::atomic::Ordering::Relaxed);
            return Ok(tensor);
        }
        if let Some(&value) = values.iter().find(|v| elem == Elem::Half && v.abs() > F16_MAX) {
            return Err(Error::F16Range { path: self.view.path().to_owned(), tensor: name.to_owned(), value });
        }
        let bytes = crate::gpu::to_units(values, channels, elem);
        let tensor = self.gpu.resident(name, &bytes, values.len() / channels, 1, channels, elem).await?;
        let pending = self.pending.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed) + bytes.len() as u64;
        if pending > PORTION {
            self.pending.store(0, std::sync::atomic::Ordering::Relaxed);
            self.gpu.flush().await?;
        }
        Ok(tensor)
    }
}
