//! Latents to pictures.

use std::ops::Range;
use std::sync::Arc;

#[cfg(not(target_arch = "wasm32"))]
use super::block;
use super::patches::Patches;
#[cfg(not(target_arch = "wasm32"))]
use super::work::IMAGE;
use super::work::{Front, LastBase, Work, WorkPlan, joined, some_rows};
use super::{Dtype, Estimate, MAX_SIDE, Rect, channels_last, hint};
use crate::bounded::{Form, HostPlane, HostRows, Prepared, Rows, Sink};
use crate::error::{Error, Result};
use crate::gpu::Outputs;
use crate::gpu::{Gpu, Observer, Picture};
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::{Recorder, Timing};
use crate::image::Image;
use crate::latent::{Latent, LatentSpace};
use crate::models::autoencoder_kl::VaeDecoder;
use crate::models::infd::InfdDecoder;
use crate::models::infgen::InfgenDecoder;
use crate::models::taesd::{self, Taesd};
use crate::nn::TOKENS_A_CHUNK;
use crate::nn::chain::{Area, Chain};

/// What is known about a loaded decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderFacts {
    /// `InfGen decoder`, `INFD decoder`, `AutoencoderKL decoder` or `TAESD decoder`.
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
pub(super) enum Network {
    Infgen(Box<InfgenDecoder>),
    Infd(Box<InfdDecoder>),
    Vae(Box<VaeDecoder>),
    Taesd(Taesd),
}

#[derive(Debug)]
pub(super) struct LoadedDecoder {
    pub gpu: Arc<Gpu>,
    pub dtype: Dtype,
    pub network: Network,
    pub facts: DecoderFacts,
    /// Bytes of host memory for planes.
    pub host_memory: u64,
    pub last: LastBase,
}

/// A decoder on the device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Decoder(pub(super) Arc<LoadedDecoder>);

impl From<LoadedDecoder> for Decoder {
    fn from(loaded: LoadedDecoder) -> Decoder {
        Decoder(Arc::new(loaded))
    }
}

impl Decoder {
    /// What it is.
    pub fn facts(&self) -> &DecoderFacts {
        &self.0.facts
    }

    /// How a latent of `latent`'s size will be decoded to `width x height` in this form, and what it needs.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes or latents that it cannot decode; [`Error::MemoryCeiling`] with the smallest ceiling that
    /// would do, [`Error::BufferTooLarge`], [`Error::HostMemory`].
    pub fn plan(&self, latent: &Latent, width: usize, height: usize, form: Form) -> Result<WorkPlan> {
        let input = self.input(latent, width, height)?;
        if let Some(patches) = self.patches(&input, form) {
            return patches.plan();
        }
        self.with_work(&input, form, TOKENS_A_CHUNK, |work| work.plan())
    }

    /// The sum of [`Decoder::plan`] for a picture in 8 bits, which takes slightly more than one in f32.
    ///
    /// # Errors
    /// As [`Decoder::plan`].
    pub fn estimate(&self, latent: &Latent, width: usize, height: usize) -> Result<Estimate> {
        let plan = self.plan(latent, width, height, Form::Rgba8)?;
        Ok(Estimate { peak_bytes: plan.peak_bytes, flops: plan.flops })
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
        let mut all = Vec::new();
        self.decode_rows_async(latent, width, height, Form::Float, observer, &mut joined(&mut all)).await?;
        Image::new(width, height, all)
    }

    /// The same picture in 8 bits, converted on the GPU: `[height, width, 3]` RGB,
    /// `round(255 * clamp(x / 2 + 1/2, 0, 1))`.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    pub async fn decode_rgb8_async(&self, latent: &Latent, width: usize, height: usize, observer: &Observer) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut sink = |_: Range<usize>, rows: Rows| {
            if let Rows::Rgba8(words) = rows {
                if all.is_empty() {
                    all.reserve_exact(3 * width * height);
                }
                all.extend(rgb8(&words));
            }
            Ok(())
        };
        self.decode_rows_async(latent, width, height, Form::Rgba8, observer, &mut sink).await?;
        Ok(all)
    }

    /// The same picture in 8 bits as textures, which never leave the GPU, each with the rectangle of the picture that it shows: for showing. One, or
    /// from an INFD decoder one a patch.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`]; [`Error::Invalid`] also for a size beyond the device's largest texture, and
    /// [`Error::MemoryCeiling`] where the decode does not fit in one piece: use [`Decoding::region_picture_async`] then.
    pub async fn decode_picture_async(
        &self,
        latent: &Latent,
        width: usize,
        height: usize,
        observer: &Observer,
    ) -> Result<Vec<(Rect, Picture)>> {
        let input = self.input(latent, width, height)?;
        let whole = Rect { x: 0, y: 0, w: width, h: height };
        if self.patches(&input, Form::Picture).is_some() {
            return self.prepare_async(latent, width, height, observer).await?.region_picture_async(whole, observer).await;
        }
        let outputs = self.run_whole(&input, Form::Picture, TOKENS_A_CHUNK, false, observer).await?;
        Ok(vec![(whole, outputs.picture.expect("a recording in this form makes a picture"))])
    }

    /// The same picture in bands of whole rows, from the top: `sink` is called with each as soon as it is there, so that a picture
    /// need never be whole in host memory. An error that `sink` returns ends the decode.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`], and what `sink` returns.
    pub async fn decode_rows_async(
        &self,
        latent: &Latent,
        width: usize,
        height: usize,
        form: Form,
        observer: &Observer,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let input = self.input(latent, width, height)?;
        if let Some(patches) = self.patches(&input, form) {
            return patches.run(observer, sink).await.map_err(|e| hint(e, self.0.dtype));
        }
        let (chain, _) = self.chain(&input);
        self.work(&input, &chain, &|rows| input.rows(rows), form, TOKENS_A_CHUNK)
            .run(observer, sink)
            .await
            .map_err(|e| hint(e, self.0.dtype))
    }

    /// Blocking form of [`Decoder::decode_rows_async`].
    ///
    /// # Errors
    /// As [`Decoder::decode_rows_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode_rows(
        &self,
        latent: &Latent,
        width: usize,
        height: usize,
        form: Form,
        observer: &Observer,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        block(self.decode_rows_async(latent, width, height, form, observer, sink))
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
        let input = self.input(latent, width, height)?;
        let timed = |rec: Recorder| Ok(block(self.0.gpu.run_timed(rec.finish(), &Observer::default()))?.timings);
        if let Some(patches) = self.patches(&input, Form::Rgba8) {
            return Ok(patches.recordings(false, timed)?.concat());
        }
        let (chain, _) = self.chain(&input);
        let rows = |rows| input.rows(rows);
        let work = self.work(&input, &chain, &rows, Form::Rgba8, TOKENS_A_CHUNK);
        let mut timings = work.base_work(|base| timed(base.whole(false, None))).transpose()?.unwrap_or_default();
        let base = block(work.make_base(&Observer::default()))?;
        timings.extend(timed(work.whole(false, base.as_deref()))?);
        Ok(timings)
    }

    /// Every named intermediate result of a decode besides the picture itself (`image`), channels-last in f32, for
    /// comparison with other implementations layer by layer.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn taps(&self, latent: &Latent, width: usize, height: usize) -> Result<Outputs> {
        let input = self.input(latent, width, height)?;
        if let Some(patches) = self.patches(&input, Form::Float) {
            return patches.taps();
        }
        block(self.run_whole(&input, Form::Float, TOKENS_A_CHUNK, true, &Observer::default()))
    }

    /// [`Decoder::decode`] with an InfGen's mask tokens in chunks of another size, which must change nothing.
    ///
    /// # Errors
    /// As [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(hidden)]
    pub fn decode_in_chunks(&self, latent: &Latent, width: usize, height: usize, tokens_a_chunk: usize) -> Result<Vec<f32>> {
        let input = self.input(latent, width, height)?;
        let mut outputs = block(self.run_whole(&input, Form::Float, tokens_a_chunk, false, &Observer::default()))?;
        Ok(outputs.numbers(IMAGE))
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
        let input = self.input(latent, width, height)?;
        if let Some(patches) = self.patches(&input, Form::Float) {
            patches.check()?;
            let features = patches.features(observer).await.map_err(|error| hint(error, self.0.dtype))?;
            return Ok(Decoding { decoder: self.clone(), input, shared: Shared::Features(features) });
        }
        let (chain, keep) = self.chain(&input);
        let rows = |rows| input.rows(rows);
        let work = self.work(&input, &chain, &rows, Form::Float, TOKENS_A_CHUNK);
        let prepared = work.prepare(keep, observer).await.map_err(|error| hint(error, self.0.dtype))?;
        Ok(Decoding { decoder: self.clone(), input, shared: Shared::Chain(prepared) })
    }

    /// The latent as its network takes it.
    fn input(&self, latent: &Latent, width: usize, height: usize) -> Result<Input> {
        self.check(latent, width, height)?;
        let facts = &self.0.facts;
        let values = latent.image(0).expect("a latent holds at least one image");
        let scale = |v: f32| (v as f64 / facts.scaling_factor + facts.shift_factor) as f32;
        let mut z = channels_last(values, latent.channels());
        match &self.0.network {
            Network::Taesd(_) => z.iter_mut().for_each(|v| *v = taesd::squashed(*v)),
            _ => z.iter_mut().for_each(|v| *v = scale(*v)),
        }
        Ok(Input { z, latent: (latent.height(), latent.width()), width, height })
    }

    /// The decode in patches, of a network that works so.
    fn patches<'a>(&'a self, input: &'a Input, form: Form) -> Option<Patches<'a>> {
        let Network::Infd(network) = &self.0.network else { return None };
        let Input { z, latent, width, height } = input;
        let (gpu, host_memory, last) = (&*self.0.gpu, self.0.host_memory, &self.0.last);
        Some(Patches { gpu, network, z, latent: *latent, form, width: *width, height: *height, host_memory, last })
    }

    /// The network behind its first plane (of one that works in patches, as far as they share it), and which plane regions start from.
    fn chain(&self, input: &Input) -> (Chain<'_>, usize) {
        match &self.0.network {
            Network::Infd(network) => (network.features_chain(input.latent), 0),
            Network::Infgen(network) => network.chain(network.grid(input.width, input.height), input.latent),
            Network::Vae(network) => network.chain(input.latent),
            Network::Taesd(network) => (network.chain(input.latent), 0),
        }
    }

    fn work<'a>(&'a self, input: &'a Input, chain: &'a Chain<'a>, rows: &'a HostRows<'a>, form: Form, tokens_a_chunk: usize) -> Work<'a> {
        let front = match &self.0.network {
            Network::Infgen(network) => Front::Infgen { network, z: &input.z, latent: input.latent, tokens_a_chunk, last: &self.0.last },
            Network::Infd(_) | Network::Vae(_) | Network::Taesd(_) => Front::Host(rows),
        };
        let area = Area { rows: 0..input.height, columns: 0..input.width };
        Work { gpu: &self.0.gpu, chain, front, form, area, host_memory: self.0.host_memory }
    }

    /// The whole network in one recording, whatever memory it needs.
    async fn run_whole(&self, input: &Input, form: Form, tokens_a_chunk: usize, taps: bool, observer: &Observer) -> Result<Outputs> {
        let (chain, _) = self.chain(input);
        let rows = |rows| input.rows(rows);
        let work = self.work(input, &chain, &rows, form, tokens_a_chunk);
        let run = async {
            let (of_base, observer) = &work.shares(observer);
            let base = work.make_base(of_base).await?;
            self.0.gpu.run(work.whole(taps, base.as_deref()).finish(), observer).await
        };
        run.await.map_err(|error| hint(error, self.0.dtype))
    }

    fn with_work<T>(&self, input: &Input, form: Form, tokens_a_chunk: usize, body: impl FnOnce(&Work<'_>) -> T) -> T {
        let (chain, _) = self.chain(input);
        body(&self.work(input, &chain, &|rows| input.rows(rows), form, tokens_a_chunk))
    }

    /// The smallest ceiling that would do for a decode, or for preparing for regions.
    pub(super) fn least(&self, latent: &Latent, width: usize, height: usize, form: Form, regions: bool) -> Result<u64> {
        let input = self.input(latent, width, height)?;
        if let Some(patches) = self.patches(&input, form) {
            return patches.least();
        }
        let (chain, keep) = self.chain(&input);
        let rows = |rows| input.rows(rows);
        self.work(&input, &chain, &rows, form, TOKENS_A_CHUNK).least(regions.then_some(keep))
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

/// A latent as its network takes it, and the size of the picture.
#[derive(Debug)]
struct Input {
    /// `[h, w, channels]`
    z: Vec<f32>,
    /// Height and width.
    latent: (usize, usize),
    width: usize,
    height: usize,
}

impl Input {
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        some_rows(&self.z, self.latent.0, rows)
    }
}

/// A decode from which rectangles are taken, see [`Decoder::prepare`].
///
/// It keeps the features behind the mid block (on the device, or on the host where the ceiling on GPU memory asks for that)
/// and every normalisation's scale and shift; a rectangle then costs itself and its halo. Of an INFD decoder it keeps the features that are rendered (on the
/// host); a rectangle then costs the patches that it touches. Dropping it frees both.
#[derive(Debug)]
pub struct Decoding {
    decoder: Decoder,
    input: Input,
    shared: Shared,
}

/// What rectangles of a decode share.
#[derive(Debug)]
enum Shared {
    Chain(Prepared),
    Features(Arc<HostPlane>),
}

impl Decoding {
    /// Width and height of the whole picture.
    pub fn size(&self) -> (usize, usize) {
        (self.input.width, self.input.height)
    }

    /// Bytes that it keeps on the device and on the host.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let (device, host) = match &self.shared {
            Shared::Chain(prepared) => prepared.bytes(),
            Shared::Features(plane) => (0, plane.units.len() as u64),
        };
        (device, host + 4 * self.input.z.len() as u64)
    }

    /// The rectangle `rect`: the same bits as that crop of the whole decode.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty rectangle or one that leaves the picture; otherwise as [`Decoder::decode_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn region(&self, rect: Rect) -> Result<Image> {
        block(self.region_async(rect, &Observer::default()))
    }

    /// [`Decoding::region`], without blocking.
    ///
    /// # Errors
    /// As [`Decoding::region`].
    pub async fn region_async(&self, rect: Rect, observer: &Observer) -> Result<Image> {
        check_region(rect, self.input.width, self.input.height)?;
        let mut all = vec![0.0; 3 * rect.w * rect.h];
        let mut place = |area: &Area, rows: Rows| {
            if let Rows::Float(values) = rows {
                paste(&mut all, &values, rect, area, 3);
            }
            Ok(())
        };
        self.pieces(rect, Form::Float, observer, &mut place).await?;
        Image::new(rect.w, rect.h, all)
    }

    /// The rectangle `rect` in 8 bits, `[h, w, 3]` RGB: the same bytes as that crop of [`Decoder::decode_rgb8_async`].
    ///
    /// # Errors
    /// As [`Decoding::region`].
    pub async fn region_rgb8_async(&self, rect: Rect, observer: &Observer) -> Result<Vec<u8>> {
        check_region(rect, self.input.width, self.input.height)?;
        let mut all = vec![0; 3 * rect.w * rect.h];
        let mut place = |area: &Area, rows: Rows| {
            if let Rows::Rgba8(words) = rows {
                paste(&mut all, &rgb8(&words).collect::<Vec<_>>(), rect, area, 3);
            }
            Ok(())
        };
        self.pieces(rect, Form::Rgba8, observer, &mut place).await?;
        Ok(all)
    }

    /// Blocking form of [`Decoding::region_rgb8_async`].
    ///
    /// # Errors
    /// As [`Decoding::region`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn region_rgb8(&self, rect: Rect, observer: &Observer) -> Result<Vec<u8>> {
        block(self.region_rgb8_async(rect, observer))
    }

    /// The rectangle `rect` in 8 bits as textures, each with the rectangle of the picture that it shows: one, unless the ceiling
    /// on memory asks for more.
    ///
    /// # Errors
    /// As [`Decoding::region`]; [`Error::Invalid`] also for a size beyond the device's largest texture.
    pub async fn region_picture_async(&self, rect: Rect, observer: &Observer) -> Result<Vec<(Rect, Picture)>> {
        let mut all = Vec::new();
        let mut place = |area: &Area, rows: Rows| {
            if let Rows::Picture(picture) = rows {
                let Area { rows, columns } = area;
                all.push((Rect { x: columns.start, y: rows.start, w: columns.len(), h: rows.len() }, picture));
            }
            Ok(())
        };
        self.pieces(rect, Form::Picture, observer, &mut place).await?;
        Ok(all)
    }

    /// As many pieces as the ceiling on memory asks for.
    async fn pieces(
        &self,
        rect: Rect,
        form: Form,
        observer: &Observer,
        place: &mut (dyn FnMut(&Area, Rows) -> Result<()> + Send),
    ) -> Result<()> {
        check_region(rect, self.input.width, self.input.height)?;
        let area = Area { rows: rect.y..rect.y + rect.h, columns: rect.x..rect.x + rect.w };
        let prepared = match &self.shared {
            Shared::Chain(prepared) => prepared,
            Shared::Features(features) => {
                let patches = self.decoder.patches(&self.input, form).expect("features are of a network that works in patches");
                return patches.region(features, &area, observer, place).await.map_err(|error| hint(error, self.decoder.0.dtype));
            }
        };
        let (chain, _) = self.decoder.chain(&self.input);
        let rows = |rows| self.input.rows(rows);
        let work = self.decoder.work(&self.input, &chain, &rows, form, TOKENS_A_CHUNK);
        work.region(prepared, &area, observer, place).await.map_err(|error| hint(error, self.decoder.0.dtype))
    }
}

/// Red, green and blue of packed pixels.
pub fn rgb8(words: &[u32]) -> impl Iterator<Item = u8> {
    words.iter().flat_map(|word| [*word as u8, (word >> 8) as u8, (word >> 16) as u8])
}

/// Copies `piece`, which is `area` of the picture, into `all`, which is `rect` of it.
pub(super) fn paste<T: Copy>(all: &mut [T], piece: &[T], rect: Rect, area: &Area, channels: usize) {
    let columns = area.columns.len() * channels;
    for (row, values) in area.rows.clone().zip(piece.chunks_exact(columns)) {
        let start = ((row - rect.y) * rect.w + area.columns.start - rect.x) * channels;
        all[start..start + columns].copy_from_slice(values);
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
