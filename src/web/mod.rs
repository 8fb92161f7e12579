//! The browser shell: what `web/infgen-worker.js` calls. Its classes hold what lives in wasm memory; names, defaults and
//! types for users are in `web/infgen.js` and `web/infgen.d.ts`.
//!
//! Every call that waits returns a promise and borrows nothing while it waits, so handles may be freed at any time.
//! A rejected promise carries an `Error` with the text of [`crate::Error`] and its name in `code`.

mod canvas;
mod error;
mod stream;

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use js_sys::{Array, Float32Array, Function, Promise, Reflect, Uint8ClampedArray};
use serde_json::json;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::future_to_promise;

use crate::engine::{DecoderFacts, EncoderFacts, Form, MAX_SIDE, Rows, check_region};
use crate::gpu::KernelFamily;
use crate::image::ResizeFilter;
use crate::weights::Builtin;
use crate::{Decoder, Decoding, Dtype, Encoder, Engine, EngineOptions, Error, Image, Latent, Observer, Rect, Result};
use canvas::Screen;
use error::to_js;
use stream::JsStream;

/// Runs `work` as a promise.
fn promise<T: Into<JsValue>>(work: impl Future<Output = Result<T>> + 'static) -> Promise {
    future_to_promise(async move { work.await.map(Into::into).map_err(to_js) })
}

/// A length that JavaScript gave: any number.
fn length(what: &'static str, value: f64) -> Result<usize> {
    if value.fract() == 0.0 && (0.0..=u32::MAX as f64).contains(&value) {
        return Ok(value as usize);
    }
    Err(Error::Invalid { what, detail: format!("{value} is not a whole number of pixels") })
}

fn size(width: f64, height: f64) -> Result<(usize, usize)> {
    Ok((length("width", width)?, length("height", height)?))
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(message: &str);
    #[wasm_bindgen(js_namespace = console, js_name = warn)]
    fn console_warn(message: &str);
}

/// Warnings and errors go to the console.
struct Console;

impl log::Log for Console {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => console_error(&record.args().to_string()),
            log::Level::Warn => console_warn(&record.args().to_string()),
            _ => {}
        }
    }

    fn flush(&self) {}
}

#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| console_error(&format!("infgen: {info}"))));
    // Refused where a program that embeds this has set a logger of its own.
    let _ = log::set_logger(&Console).map(|()| log::set_max_level(log::LevelFilter::Warn));
}

thread_local! {
    /// Progress callbacks by task: an [`Observer`] may be sent between threads, a JavaScript function may not.
    static PROGRESS: RefCell<HashMap<u32, Function>> = RefCell::default();
}

/// One call in progress: told how far it is, and where it is stopped.
#[wasm_bindgen]
pub struct Task {
    id: u32,
    observer: Observer,
}

#[wasm_bindgen]
impl Task {
    /// `progress(done, layer)` is called with the share done, 0 to 1, and the layer that runs.
    #[wasm_bindgen(constructor)]
    pub fn new(id: u32, progress: Function) -> Task {
        PROGRESS.with_borrow_mut(|all| all.insert(id, progress));
        let observer = Observer::new(move |at| {
            let call = PROGRESS.with_borrow(|all| all.get(&id).cloned());
            if let Some(call) = call {
                // What a callback throws is its own affair.
                let _ = call.call2(&JsValue::NULL, &at.done.into(), &at.layer.into());
            }
        });
        Task { id, observer }
    }

    /// Stops the call, which then fails with `Cancelled`.
    pub fn cancel(&self) {
        self.observer.cancel();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        PROGRESS.with_borrow_mut(|all| all.remove(&self.id));
    }
}

thread_local! {
    /// Typed arrays that are being filled, by number; see [`PROGRESS`].
    static FILLING: RefCell<HashMap<u32, JsValue>> = RefCell::default();
}

/// Values on their way to the page, in a typed array outside of wasm memory: a picture is never whole in there. The array is
/// made when the first values come, behind everything that refuses a size.
struct Filling<T> {
    id: u32,
    length: usize,
    values: PhantomData<T>,
}

/// What a [`Filling`] holds.
trait Element: Sized {
    const ARRAY: &str;
    fn copy(values: &[Self], array: &JsValue, first: u32);
}

impl Element for u8 {
    const ARRAY: &str = "Uint8ClampedArray";
    fn copy(values: &[u8], array: &JsValue, first: u32) {
        let array: &Uint8ClampedArray = array.unchecked_ref();
        array.subarray(first, first + values.len() as u32).copy_from(values);
    }
}

impl Element for f32 {
    const ARRAY: &str = "Float32Array";
    fn copy(values: &[f32], array: &JsValue, first: u32) {
        let array: &Float32Array = array.unchecked_ref();
        array.subarray(first, first + values.len() as u32).copy_from(values);
    }
}

impl<T: Element> Filling<T> {
    fn new(length: usize) -> Filling<T> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Filling { id: NEXT.fetch_add(1, Ordering::Relaxed), length, values: PhantomData }
    }

    /// Copies `values` to element `first` and on.
    ///
    /// # Errors
    /// [`Error::Io`] if the browser has no room for the array.
    fn put(&self, first: usize, values: &[T]) -> Result<()> {
        FILLING.with_borrow_mut(|all| {
            let array = match all.entry(self.id) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(empty) => empty.insert(self.array()?),
            };
            T::copy(values, array, first as u32);
            Ok(())
        })
    }

    fn array(&self) -> Result<JsValue> {
        let arguments = Array::of1(&(self.length as f64).into());
        Reflect::get(&js_sys::global(), &T::ARRAY.into())
            .and_then(|class| Reflect::construct(class.unchecked_ref::<Function>(), &arguments))
            .map_err(|thrown| {
                let refused = std::io::Error::new(std::io::ErrorKind::OutOfMemory, stream::text(&thrown));
                Error::Io { path: "the picture".into(), source: refused }
            })
    }

    fn take(&self) -> JsValue {
        FILLING.with_borrow_mut(|all| all.remove(&self.id)).unwrap_or_default()
    }
}

impl<T> Drop for Filling<T> {
    fn drop(&mut self) {
        FILLING.with_borrow_mut(|all| all.remove(&self.id));
    }
}

/// [`Engine`]
#[wasm_bindgen(js_name = WasmEngine)]
pub struct WebEngine(Rc<Engine>);

#[wasm_bindgen(js_class = WasmEngine)]
impl WebEngine {
    /// Opens a device: `half` for f16 storage, `memory` a ceiling in bytes, `vendor` that of the GPU, which wgpu does not tell in a browser.
    pub fn open(half: bool, memory: Option<f64>, default_limits: bool, vendor: Option<String>) -> Promise {
        let dtype = if half { Dtype::F16 } else { Dtype::F32 };
        // As natively (`AdapterFacts::has_few_registers`).
        let kernels = (vendor.as_deref() == Some("apple")).then_some(KernelFamily::NarrowTile);
        let options =
            EngineOptions { dtype, memory: memory.map(|bytes| bytes as u64), default_limits, kernels, ..EngineOptions::default() };
        promise(async move { Ok(WebEngine(Rc::new(Engine::new_async(options, &Observer::default()).await?))) })
    }

    /// Facts about the device, as JSON.
    pub fn device(&self) -> String {
        serde_json::to_string(self.0.device()).unwrap_or_default()
    }

    /// Bytes of GPU memory, as JSON.
    pub fn memory(&self) -> String {
        let memory = self.0.memory();
        json!({ "current": memory.current, "peak": memory.peak }).to_string()
    }

    /// Frees the buffers that are kept from the last run for the next.
    pub fn trim(&self) {
        self.0.gpu().trim();
    }

    /// A [`WebDecoder`] from `{ length, read(offset, length) }`.
    #[wasm_bindgen(js_name = loadDecoder)]
    pub fn load_decoder(&self, source: stream::JsSource, name: String) -> Promise {
        let engine = self.0.clone();
        promise(async move {
            let weights = JsStream::open(source, &name).await?;
            Ok(WebDecoder(engine.load_decoder_async(weights, &Observer::default()).await?))
        })
    }

    /// A [`WebEncoder`] from `{ length, read(offset, length) }`.
    #[wasm_bindgen(js_name = loadEncoder)]
    pub fn load_encoder(&self, source: stream::JsSource, name: String) -> Promise {
        let engine = self.0.clone();
        promise(async move {
            let weights = JsStream::open(source, &name).await?;
            Ok(WebEncoder(Rc::new(engine.load_encoder_async(weights, &Observer::default()).await?)))
        })
    }

    /// A [`WebScreen`] that draws on an `OffscreenCanvas`.
    pub fn screen(&self, canvas: web_sys::OffscreenCanvas) -> Result<WebScreen, JsValue> {
        Ok(WebScreen(Rc::new(Screen::new(self.0.clone(), canvas).map_err(to_js)?)))
    }
}

/// SHA-256 of a file as it arrives.
#[wasm_bindgen]
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

#[wasm_bindgen]
impl Sha256 {
    /// Of nothing yet.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Sha256 {
        Sha256::default()
    }

    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(&mut self.0, bytes);
    }

    /// Of everything so far, as 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        sha2::Digest::finalize(self.0.clone()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The weights that ship beside the package, as JSON: file name and SHA-256 of each.
#[wasm_bindgen(js_name = builtinFiles)]
pub fn builtin_files() -> String {
    let file = |which: Builtin| json!({ "file": which.file().trim_start_matches("weights/"), "sha256": which.sha256() });
    json!({ "decoder": file(Builtin::Decoder), "encoder": file(Builtin::Encoder) }).to_string()
}

/// [`Latent`]
#[wasm_bindgen(js_name = WasmLatent)]
pub struct WebLatent(Rc<Latent>);

#[wasm_bindgen(js_class = WasmLatent)]
impl WebLatent {
    /// From values `[batch, channels, height, width]`.
    #[wasm_bindgen(js_name = fromValues)]
    pub fn from_values(shape: &[u32], data: Vec<f32>, space: Option<String>) -> Result<WebLatent, JsValue> {
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        let shape = match shape[..] {
            [c, h, w] => [1, c, h, w],
            [b, c, h, w] => [b, c, h, w],
            _ => {
                let detail = format!("shape {shape:?}; [C, h, w] or [B, C, h, w] is needed");
                return Err(to_js(Error::Invalid { what: "latent", detail }));
            }
        };
        let mut latent = Latent::new(shape, data).map_err(to_js)?;
        latent.space = space;
        Ok(WebLatent(Rc::new(latent)))
    }

    /// From the bytes of a `.safetensors` or `.npy` file.
    #[wasm_bindgen(js_name = fromBytes)]
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<WebLatent, JsValue> {
        Ok(WebLatent(Rc::new(Latent::from_bytes(bytes, name).map_err(to_js)?)))
    }

    /// `[batch, channels, height, width]`
    pub fn shape(&self) -> Vec<u32> {
        self.0.shape().iter().map(|&n| n as u32).collect()
    }

    /// The values.
    pub fn data(&self) -> Float32Array {
        Float32Array::from(self.0.data())
    }

    /// The latent space, if it is known.
    pub fn space(&self) -> Option<String> {
        self.0.space.clone()
    }

    /// A `.safetensors` file.
    #[wasm_bindgen(js_name = toSafetensors)]
    pub fn to_safetensors(&self) -> Vec<u8> {
        self.0.to_safetensors()
    }
}

fn decoder_facts(facts: &DecoderFacts) -> String {
    json!({
        "model": facts.model,
        "latentChannels": facts.latent_channels,
        "scale": facts.scale,
        "latentSpace": facts.latent_space,
        "anySize": facts.any_size,
        "maxStepScale": facts.max_step_scale,
        "weightsBytes": facts.weights_bytes,
        "maxSide": MAX_SIDE,
    })
    .to_string()
}

/// [`Decoder`]
#[wasm_bindgen(js_name = WasmDecoder)]
pub struct WebDecoder(Decoder);

#[wasm_bindgen(js_class = WasmDecoder)]
impl WebDecoder {
    /// What it is, as JSON.
    pub fn facts(&self) -> String {
        decoder_facts(self.0.facts())
    }

    /// Peak bytes and operations of a decode, as JSON.
    pub fn estimate(&self, latent: &WebLatent, width: f64, height: f64) -> Result<String, JsValue> {
        let (width, height) = size(width, height).map_err(to_js)?;
        let estimate = self.0.estimate(&latent.0, width, height).map_err(to_js)?;
        Ok(json!({ "peakBytes": estimate.peak_bytes, "flops": estimate.flops }).to_string())
    }

    /// RGBA bytes of the picture.
    pub fn decode(&self, latent: &WebLatent, width: f64, height: f64, task: &Task) -> Promise {
        let (decoder, latent, observer) = (self.0.clone(), latent.0.clone(), task.observer.clone());
        promise(async move {
            let (width, height) = size(width, height)?;
            let pixels = Filling::new(4usize.saturating_mul(width).saturating_mul(height));
            let mut sink = |rows: Range<usize>, band: Rows| match band {
                Rows::Rgba8(words) => pixels.put(4 * rows.start * width, bytemuck::cast_slice::<u32, u8>(&words)),
                _ => Ok(()),
            };
            decoder.decode_rows_async(&latent, width, height, Form::Rgba8, &observer, &mut sink).await?;
            Ok(pixels.take())
        })
    }

    /// RGB values of the picture, -1 to 1 before clamping.
    #[wasm_bindgen(js_name = decodeFloat)]
    pub fn decode_float(&self, latent: &WebLatent, width: f64, height: f64, task: &Task) -> Promise {
        let (decoder, latent, observer) = (self.0.clone(), latent.0.clone(), task.observer.clone());
        promise(async move {
            let (width, height) = size(width, height)?;
            let values = Filling::new(3usize.saturating_mul(width).saturating_mul(height));
            let mut sink = |rows: Range<usize>, band: Rows| match band {
                Rows::Float(band) => values.put(3 * rows.start * width, &band),
                _ => Ok(()),
            };
            decoder.decode_rows_async(&latent, width, height, Form::Float, &observer, &mut sink).await?;
            Ok(values.take())
        })
    }

    /// Draws the picture on `screen` without reading it back: as one texture, or in bands where memory asks for that.
    #[wasm_bindgen(js_name = decodeToScreen)]
    pub fn decode_to_screen(&self, latent: &WebLatent, width: f64, height: f64, screen: &WebScreen, task: &Task) -> Promise {
        let (decoder, latent, observer, screen) = (self.0.clone(), latent.0.clone(), task.observer.clone(), screen.0.clone());
        promise(async move {
            let (width, height) = size(width, height)?;
            screen.check(width, height)?;
            let pieces = match decoder.decode_picture_async(&latent, width, height, &observer).await {
                Err(Error::MemoryCeiling { .. } | Error::BufferTooLarge { .. } | Error::OutOfMemory { .. }) => {
                    let whole = screen.collect(width, height).await?;
                    let mut sink = |rows: Range<usize>, band: Rows| {
                        if let Rows::Picture(band) = band {
                            whole.put(rows.start, band);
                        }
                        Ok(())
                    };
                    decoder.decode_rows_async(&latent, width, height, Form::Picture, &observer, &mut sink).await?;
                    vec![(Rect { x: 0, y: 0, w: width, h: height }, whole.picture)]
                }
                other => other?,
            };
            screen.draw(Rect { x: 0, y: 0, w: width, h: height }, pieces).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// A [`WebDecoding`].
    pub fn prepare(&self, latent: &WebLatent, width: f64, height: f64, task: &Task) -> Promise {
        let (decoder, latent, observer) = (self.0.clone(), latent.0.clone(), task.observer.clone());
        promise(async move {
            let (width, height) = size(width, height)?;
            Ok(WebDecoding(Rc::new(decoder.prepare_async(&latent, width, height, &observer).await?)))
        })
    }
}

/// Pixels of a region that pass through wasm memory at a time.
const REGION_PIXELS: usize = 4 << 20;

/// [`Decoding`]
#[wasm_bindgen(js_name = WasmDecoding)]
pub struct WebDecoding(Rc<Decoding>);

#[wasm_bindgen(js_class = WasmDecoding)]
impl WebDecoding {
    /// RGBA bytes of a rectangle.
    pub fn region(&self, x: f64, y: f64, width: f64, height: f64, task: &Task) -> Promise {
        let (decoding, observer) = (self.0.clone(), task.observer.clone());
        promise(async move {
            let (w, h) = size(width, height)?;
            let rect = Rect { x: length("x", x)?, y: length("y", y)?, w, h };
            let (whole_width, whole_height) = decoding.size();
            check_region(rect, whole_width, whole_height)?;
            let pixels = Filling::new(4 * w * h);
            // Large rectangles in bands, each of which costs its halo once more.
            let band = (REGION_PIXELS / w).max(8);
            for top in (0..h).step_by(band) {
                let rows = band.min(h - top);
                let observer = observer.part(top as f64 / h as f64, rows as f64 / h as f64);
                let rgb = decoding.region_rgb8_async(Rect { y: rect.y + top, h: rows, ..rect }, &observer).await?;
                let rgba: Vec<u8> = rgb.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect();
                pixels.put(4 * top * w, &rgba)?;
            }
            Ok(pixels.take())
        })
    }

    /// Draws a rectangle on `screen`.
    #[wasm_bindgen(js_name = regionToScreen)]
    pub fn region_to_screen(&self, x: f64, y: f64, width: f64, height: f64, screen: &WebScreen, task: &Task) -> Promise {
        let (decoding, observer, screen) = (self.0.clone(), task.observer.clone(), screen.0.clone());
        promise(async move {
            let (w, h) = size(width, height)?;
            let rect = Rect { x: length("x", x)?, y: length("y", y)?, w, h };
            screen.check(w, h)?;
            let pieces = decoding.region_picture_async(rect, &observer).await?;
            screen.draw(rect, pieces).await?;
            Ok(JsValue::UNDEFINED)
        })
    }
}

/// [`Encoder`]
#[wasm_bindgen(js_name = WasmEncoder)]
pub struct WebEncoder(Rc<Encoder>);

#[wasm_bindgen(js_class = WasmEncoder)]
impl WebEncoder {
    /// What it is, as JSON.
    pub fn facts(&self) -> String {
        let EncoderFacts { model, latent_channels, scale, latent_space, .. } = self.0.facts();
        json!({ "model": model, "latentChannels": latent_channels, "scale": scale, "latentSpace": latent_space }).to_string()
    }

    /// A [`WebLatent`] of `image`, resized to `width x height` (0: its own size) rounded down to steps of `scale`.
    pub fn encode(&self, image: &WebImage, width: f64, height: f64, task: &Task) -> Promise {
        let (encoder, image, observer) = (self.0.clone(), image.0.clone(), task.observer.clone());
        promise(async move {
            let (width, height) = size(width, height)?;
            let scale = encoder.facts().scale;
            let fit = |asked: usize, own: usize| (if asked == 0 { own } else { asked } / scale * scale).max(scale);
            let (width, height) = (fit(width, image.width()), fit(height, image.height()));
            let sized = match (width, height) == (image.width(), image.height()) {
                true => image,
                false => Rc::new(image.resize(width, height, ResizeFilter::Lanczos3)?),
            };
            Ok(WebLatent(Rc::new(encoder.encode_async(&sized, None, &observer).await?)))
        })
    }
}

/// [`Image`]
#[wasm_bindgen(js_name = WasmImage)]
pub struct WebImage(Rc<Image>);

#[wasm_bindgen(js_class = WasmImage)]
impl WebImage {
    /// From the bytes of a PNG, JPEG or WebP file.
    #[wasm_bindgen(js_name = fromBytes)]
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<WebImage, JsValue> {
        Ok(WebImage(Rc::new(Image::from_bytes(bytes, name).map_err(to_js)?)))
    }

    /// From RGBA bytes; what is transparent is put on white.
    #[wasm_bindgen(js_name = fromRgba)]
    pub fn from_rgba(rgba: &[u8], width: u32, height: u32) -> Result<WebImage, JsValue> {
        let over_white = |p: &[u8]| {
            let alpha = p[3] as f32 / 255.0;
            [0, 1, 2].map(|i| (p[i] as f32 / 127.5 - 1.0) * alpha + (1.0 - alpha))
        };
        let data = rgba.chunks_exact(4).flat_map(over_white).collect();
        Ok(WebImage(Rc::new(Image::new(width as usize, height as usize, data).map_err(to_js)?)))
    }

    /// Width and height in pixels.
    pub fn size(&self) -> Vec<u32> {
        vec![self.0.width() as u32, self.0.height() as u32]
    }
}

/// A canvas that decodes are drawn on.
#[wasm_bindgen(js_name = WasmScreen)]
pub struct WebScreen(Rc<Screen>);
