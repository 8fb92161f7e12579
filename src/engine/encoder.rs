//! Pictures to latents.

use std::ops::Range;
use std::sync::Arc;

#[cfg(not(target_arch = "wasm32"))]
use super::block;
use super::work::{Work, WorkPlan, joined};
use super::{Dtype, MAX_SIDE, channels_first, hint};
use crate::bounded::HostRows;
use crate::error::{Error, Result};
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::Outputs;
use crate::gpu::{Gpu, Observer};
use crate::image::{Image, RowSource};
use crate::latent::{Latent, LatentSpace};
use crate::models::autoencoder_kl::VaeEncoder;
use crate::models::taesd::Taesd;
use crate::nn::chain::Chain;

#[derive(Debug)]
pub(super) enum EncoderNetwork {
    Vae { network: Box<VaeEncoder>, scaling: f64, shift: f64 },
    Taesd(Taesd),
}

/// What is known about a loaded encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderFacts {
    /// `AutoencoderKL encoder`, `INFD encoder` or `TAESD encoder`.
    pub model: &'static str,
    /// Channels of the latents it gives.
    pub latent_channels: usize,
    /// Pixels a latent value side; sides of pictures must be multiples of it.
    pub scale: usize,
    /// The latent space, where that is known.
    pub latent_space: Option<LatentSpace>,
    /// Whether it gives a variance besides the mean, so that latents can be drawn.
    pub variance: bool,
}

/// An encoder on the device.
#[derive(Debug)]
pub struct Encoder {
    pub(super) gpu: Arc<Gpu>,
    pub(super) dtype: Dtype,
    pub(super) network: EncoderNetwork,
    pub(super) facts: EncoderFacts,
    /// Bytes of host memory for planes.
    pub(super) host_memory: u64,
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
    /// that has no variance, or noise of another length; otherwise as [`Decoder::decode_async`](super::Decoder::decode_async).
    pub async fn encode_async(&self, image: &Image, noise: Option<&[f32]>, observer: &Observer) -> Result<Latent> {
        self.encode_rows_async(image, noise, observer).await
    }

    /// [`Encoder::encode_async`] of a picture that need not be in memory: under a ceiling on GPU memory its rows are asked for
    /// band by band, some of them again for halos or for a second pass.
    ///
    /// # Errors
    /// As [`Encoder::encode_async`], and what `picture` returns.
    pub async fn encode_rows_async(&self, picture: &(dyn RowSource + Sync), noise: Option<&[f32]>, observer: &Observer) -> Result<Latent> {
        let ((w, h), scale, channels) = (picture.size(), self.facts.scale, self.facts.latent_channels);
        let invalid = |what, detail| Err(Error::Invalid { what, detail });
        self.check(w, h)?;
        let (lw, lh) = (w / scale, h / scale);
        let varies = self.facts.variance;
        if noise.is_some() && !varies {
            return invalid("sample", format!("the {} gives no variance to draw from", self.facts.model));
        }
        let data = match &self.network {
            EncoderNetwork::Vae { scaling, shift, .. } if varies => {
                if let Some(noise) = noise.filter(|noise| noise.len() != channels * lw * lh) {
                    return invalid("noise", format!("{} values for a latent of {channels}x{lh}x{lw}", noise.len()));
                }
                let moments = self.outputs(picture, observer).await?;
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
            EncoderNetwork::Taesd(_) | EncoderNetwork::Vae { .. } => self.outputs(picture, observer).await?,
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

    /// Blocking form of [`Encoder::encode_rows_async`].
    ///
    /// # Errors
    /// As [`Encoder::encode_rows_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn encode_rows(&self, picture: &(dyn RowSource + Sync), noise: Option<&[f32]>, observer: &Observer) -> Result<Latent> {
        block(self.encode_rows_async(picture, noise, observer))
    }

    /// How a picture of this size will be encoded, and what it needs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sides that are no multiples of `scale`; [`Error::MemoryCeiling`], [`Error::BufferTooLarge`] and
    /// [`Error::HostMemory`].
    pub fn plan(&self, width: usize, height: usize) -> Result<WorkPlan> {
        self.with_work(width, height, |work| work.plan())?
    }

    /// What `body` says of encoding a picture of this size.
    pub(super) fn with_work<T>(&self, width: usize, height: usize, body: impl FnOnce(&Work<'_>) -> T) -> Result<T> {
        self.check(width, height)?;
        Ok(body(&self.work(&self.chain(width, height), &|_| Ok(Vec::new()))))
    }

    /// The network's results for a picture, `[h / scale, w / scale, ..]`.
    async fn outputs(&self, picture: &(dyn RowSource + Sync), observer: &Observer) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        let (width, height) = picture.size();
        let chain = self.chain(width, height);
        self.work(&chain, &|rows| self.input(picture, rows)).run(observer, &mut joined(&mut all)).await.map_err(|e| hint(e, self.dtype))?;
        Ok(all)
    }

    /// Some rows of a picture in the range that the network takes.
    fn input(&self, picture: &dyn RowSource, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = picture.rows(rows)?;
        if let EncoderNetwork::Taesd(_) = self.network {
            values.iter_mut().for_each(|v| *v = *v * 0.5 + 0.5);
        }
        Ok(values)
    }

    fn chain(&self, width: usize, height: usize) -> Chain<'_> {
        match &self.network {
            EncoderNetwork::Vae { network, .. } => network.chain((height, width)),
            EncoderNetwork::Taesd(network) => network.chain((height, width)),
        }
    }

    fn work<'a>(&'a self, chain: &'a Chain<'a>, rows: &'a HostRows<'a>) -> Work<'a> {
        Work::whole_of(&self.gpu, chain, rows, self.host_memory)
    }

    fn check(&self, width: usize, height: usize) -> Result<()> {
        let scale = self.facts.scale;
        if !width.is_multiple_of(scale) || !height.is_multiple_of(scale) || width.max(height) > MAX_SIDE || width.min(height) == 0 {
            let detail = format!("{width}x{height}: sides must be multiples of {scale}, at most {MAX_SIDE}; resize the picture first");
            return Err(Error::Invalid { what: "image", detail });
        }
        Ok(())
    }

    /// Every named intermediate result of an encode, for comparison layer by layer.
    ///
    /// # Errors
    /// As [`Encoder::encode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn taps(&self, image: &Image) -> Result<Outputs> {
        let chain = self.chain(image.width(), image.height());
        let rows = |rows| self.input(image, rows);
        block(self.gpu.run(self.work(&chain, &rows).whole(true, None).finish(), &Observer::default()))
    }
}
