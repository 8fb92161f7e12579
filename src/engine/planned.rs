//! Decoders and encoders whose weights are only counted: what a job needs can be told where not even the weights fit.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Builtin, Decoder, DecoderFacts, Encoder, EncoderFacts, Engine, Form, Weights};
use crate::error::{Error, Result};
use crate::gpu::Observer;
use crate::latent::Latent;
use crate::weights;

/// How weights are read.
pub(super) enum Reading<'a> {
    /// To the device; the observer is told of each tensor.
    ToDevice(&'a Observer),
    /// Not at all: their bytes on the device are added up.
    Counted(&'a AtomicU64),
}

/// A network without its weights: nothing of it is on the device, and it does not run.
#[derive(Debug)]
pub struct Planned<T> {
    network: T,
    weights_bytes: u64,
}

impl<T> Planned<T> {
    /// GPU memory that its weights would take, in bytes.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }
}

impl Planned<Decoder> {
    /// What it is.
    pub fn facts(&self) -> &DecoderFacts {
        self.network.facts()
    }

    /// The smallest ceiling on GPU memory, in bytes, under which it can be loaded and decode one latent of `latent`'s size to `width x height`;
    /// with `regions` it can be prepared for rectangles ([`Decoder::prepare`]).
    ///
    /// # Errors
    /// As [`Decoder::plan`], but for the ceiling.
    pub fn least_memory(&self, latent: &Latent, width: usize, height: usize, form: Form, regions: bool) -> Result<u64> {
        Ok(self.weights_bytes + self.network.least(latent, width, height, form, regions)?)
    }
}

impl Planned<Encoder> {
    /// What it is.
    pub fn facts(&self) -> &EncoderFacts {
        self.network.facts()
    }

    /// The smallest ceiling on GPU memory, in bytes, under which it can be loaded and encode a picture of this size.
    ///
    /// # Errors
    /// As [`Encoder::plan`], but for the ceiling.
    pub fn least_memory(&self, width: usize, height: usize) -> Result<u64> {
        Ok(self.weights_bytes + self.network.with_work(width, height, |work| work.least(None))??)
    }
}

impl Engine {
    /// A decoder that is not loaded, to ask what it needs.
    ///
    /// # Errors
    /// As [`Engine::load_decoder`], but for memory.
    pub async fn plan_decoder_async(&self, weights: impl Into<Weights>) -> Result<Planned<Decoder>> {
        self.planned_decoder(&weights.into().open(Builtin::Decoder)?).await
    }

    async fn planned_decoder(&self, weights: &weights::Weights) -> Result<Planned<Decoder>> {
        let bytes = AtomicU64::new(0);
        let network = Decoder::from(self.decoder(weights, &Reading::Counted(&bytes)).await?);
        Ok(Planned { network, weights_bytes: bytes.load(Ordering::Relaxed) })
    }

    /// The peak of a decode in 8 bits; beyond the ceiling the least that would do. Decoders adapt to the ceiling: how is known while the weights are there.
    pub(crate) async fn estimate(
        &self,
        decoder: impl Into<Weights>,
        latent: &Latent,
        (width, height): (usize, usize),
        observer: &Observer,
    ) -> Result<u64> {
        let weights = decoder.into().open(Builtin::Decoder)?;
        let estimate = match self.decoder(&weights, &Reading::ToDevice(observer)).await {
            Ok(loaded) => Decoder::from(loaded).estimate(latent, width, height).map(|estimate| estimate.peak_bytes),
            Err(Error::MemoryCeiling { .. }) => {
                self.planned_decoder(&weights).await?.least_memory(latent, width, height, Form::Rgba8, false)
            }
            Err(other) => Err(other),
        };
        match estimate {
            Err(Error::MemoryCeiling { needed, .. }) => Ok(needed),
            other => other,
        }
    }

    /// An encoder that is not loaded, to ask what it needs.
    ///
    /// # Errors
    /// As [`Engine::load_encoder`], but for memory.
    pub async fn plan_encoder_async(&self, weights: impl Into<Weights>) -> Result<Planned<Encoder>> {
        let weights = weights.into().open(Builtin::Encoder)?;
        let bytes = AtomicU64::new(0);
        let network = self.encoder(&weights, &Reading::Counted(&bytes)).await?;
        Ok(Planned { network, weights_bytes: bytes.load(Ordering::Relaxed) })
    }

    /// Blocking form of [`Engine::plan_decoder_async`].
    ///
    /// # Errors
    /// As [`Engine::plan_decoder_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan_decoder(&self, weights: impl Into<Weights>) -> Result<Planned<Decoder>> {
        super::block(self.plan_decoder_async(weights))
    }

    /// Blocking form of [`Engine::plan_encoder_async`].
    ///
    /// # Errors
    /// As [`Engine::plan_encoder_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan_encoder(&self, weights: impl Into<Weights>) -> Result<Planned<Encoder>> {
        super::block(self.plan_encoder_async(weights))
    }
}
