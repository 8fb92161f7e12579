//! The document, its decoders, the view on it and the decodes that show it. Knows the engine, but no window.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cache::Cache;
use super::demand::{Demand, Pieces, Shown};
use super::files::{Document, LoadedDecoder};
use super::jobs::{Decoded, Message, PixelAt, Worker};
use super::paint::{Filter, Quad};
use super::split::{Compare, Split};
use super::view::{Level, Mode, Placement, View};
use super::work::{Action, Key, Rest, Side, Work};
use crate::engine::{Decoding, Engine, MAX_SIDE, Rect};
use crate::error::{Error, Result};
use crate::gpu::{Observer, Picture};
use crate::latent::{Latent, LatentSpace};

/// Rest after a change before decoding starts.
const REST: Duration = Duration::from_millis(100);

/// A job's name: of which document, and which piece.
type Job = (u64, Key);

/// What one key stands for: pictures, each with the rectangle of its level that it shows. One, unless a ceiling on memory cuts
/// a tile.
type Pictures = Vec<(Rect, Arc<Picture>)>;

/// What is shown and how.
pub struct Scene {
    engine: Arc<Engine>,
    live: Worker,
    work: Work<Job>,
    /// Of the running job.
    observer: Observer,
    cancelled_at: Option<Instant>,
    progress: f64,
    document: Option<Shows>,
    decoders: HashMap<Side, LoadedDecoder>,
    view: Option<View>,
    canvas: (usize, usize),
    rest: Rest,
    cache: Cache<Key, Pictures>,
    prepared: HashMap<Side, (Level, Arc<Decoding>)>,
    refused: HashSet<Key>,
    /// Longest side that could be decoded, by decoder.
    max_side: HashMap<Side, usize>,
    compare: Compare,
    /// The line of the comparison.
    pub split: Split,
    /// The pointer, in pixels of the canvas.
    pub pointer: Option<(f64, f64)>,
    /// Counts documents and decoders: results of earlier ones are dropped.
    generation: u64,
    tile_side: usize,
    max_texture: usize,
    seconds: Option<f64>,
    stopped: bool,
    /// Shown in place of the document while one is generated.
    preview: Option<Arc<Picture>>,
}

/// The open document.
struct Shows {
    name: String,
    latents: Latent,
    index: usize,
    latent: Arc<Latent>,
    original: Option<Arc<Picture>>,
    settings: Option<Value>,
}

/// What an ended job has to say to people.
pub enum Ended {
    /// Nothing.
    Quiet,
    /// It was cancelled, so long ago.
    Cancelled(Duration),
    /// A piece is there.
    Decoded,
    /// Shown beside the status.
    Notice(String),
    /// Shown as a dialog.
    Failed(Error),
}

impl Scene {
    /// Nothing shown yet. `budget`: bytes of decoded pictures kept.
    pub fn new(engine: Arc<Engine>, live: Worker, budget: u64) -> Scene {
        let software = engine.device().kind == "software";
        let max_texture = engine.gpu().handles().device.limits().max_texture_dimension_2d as usize;
        Scene {
            engine,
            live,
            work: Work::default(),
            observer: Observer::default(),
            cancelled_at: None,
            progress: 0.0,
            document: None,
            decoders: HashMap::new(),
            view: None,
            canvas: (1, 1),
            rest: Rest::new(REST),
            cache: Cache::new(budget),
            prepared: HashMap::new(),
            refused: HashSet::new(),
            max_side: HashMap::new(),
            compare: Compare::Off,
            split: Split::default(),
            pointer: None,
            generation: 0,
            tile_side: if software { 128 } else { 512 },
            max_texture,
            seconds: None,
            stopped: false,
            preview: None,
        }
    }

    /// Shows `document` from its first latent on.
    pub fn show(&mut self, document: Document) {
        let Document { name, latents, original, settings, .. } = document;
        self.preview = None;
        let Some(latent) = latents.select(0) else { return };
        self.document = Some(Shows { name, latents, index: 0, latent: Arc::new(latent), original: original.map(Arc::new), settings });
        self.forget(|_| true);
        self.view = None;
        self.make_view();
        if !self.can_compare(self.compare) {
            self.compare = Compare::Off;
        }
    }

    /// Shows a rough picture in place of the document, or the document again.
    pub fn set_preview(&mut self, preview: Option<Picture>) {
        self.preview = preview.map(Arc::new);
    }

    /// How the document was generated.
    pub fn settings(&self) -> Option<&Value> {
        self.document.as_ref()?.settings.as_ref()
    }

    /// Puts a decoder in its place.
    pub fn load(&mut self, side: Side, decoder: LoadedDecoder) {
        self.decoders.insert(side, decoder);
        self.forget(|key| key.side() == side);
        if side == Side::B {
            self.compare = Compare::Decoder;
        }
        self.make_view();
    }

    /// Drops what was decoded and matches.
    fn forget(&mut self, matches: impl Fn(&Key) -> bool) {
        self.generation += 1;
        self.cache.retain(|key| !matches(key));
        self.refused.clear();
        self.max_side.clear();
        self.prepared.clear();
        self.seconds = None;
        self.rest.settle();
    }

    fn make_view(&mut self) {
        let (Some(document), Some(main)) = (&self.document, self.decoders.get(&Side::A)) else { return };
        let scale = main.decoder.facts().scale;
        let native = Level { w: document.latent.width() * scale, h: document.latent.height() * scale };
        match &mut self.view {
            Some(view) if view.native() != native => view.set_native(native),
            Some(_) => {}
            None => self.view = Some(View::new(native, self.canvas)),
        }
    }

    /// Steps through the latents of a batch.
    pub fn step_batch(&mut self, by: isize) {
        let Some(document) = &mut self.document else { return };
        let index = document.index.saturating_add_signed(by).min(document.latents.batch() - 1);
        if index == document.index {
            return;
        }
        let Some(latent) = document.latents.select(index) else { return };
        (document.index, document.latent) = (index, Arc::new(latent));
        self.forget(|_| true);
    }

    /// The canvas has this size now. Whether that is a change.
    pub fn set_canvas(&mut self, w: usize, h: usize) -> bool {
        if self.canvas == (w, h) {
            return false;
        }
        self.canvas = (w, h);
        if let Some(view) = &mut self.view {
            view.set_canvas(w, h);
            if self.cache.iter().next().is_some() {
                self.rest.disturb(Instant::now());
            }
        }
        true
    }

    /// Changes the view; a change of the level waits for rest.
    pub fn change(&mut self, change: impl FnOnce(&mut View)) {
        let before = self.place(Side::A).map(|place| place.level);
        if let Some(view) = &mut self.view {
            change(view);
        }
        if self.place(Side::A).map(|place| place.level) != before {
            self.rest.disturb(Instant::now());
        }
    }

    /// Sets what is compared with, if that is there.
    pub fn set_compare(&mut self, compare: Compare) {
        if self.can_compare(compare) {
            self.compare = compare;
        }
    }

    /// What is compared with.
    pub fn compare(&self) -> Compare {
        self.compare
    }

    /// Whether there is something to compare with.
    pub fn can_compare(&self, compare: Compare) -> bool {
        match compare {
            Compare::Off | Compare::Lanczos | Compare::Bicubic => true,
            Compare::Decoder => self.decoders.contains_key(&Side::B),
            Compare::Original => self.document.as_ref().is_some_and(|document| document.original.is_some()),
        }
    }

    fn any_size(&self, side: Side) -> bool {
        self.decoders.get(&side).is_some_and(|loaded| loaded.decoder.facts().any_size)
    }

    /// Where a decoder's picture lies on the canvas.
    pub fn place(&self, side: Side) -> Option<Placement> {
        let view = self.view.as_ref().filter(|_| self.decoders.contains_key(&side))?;
        let max_side = self.max_side.get(&side).copied().unwrap_or(MAX_SIDE);
        Some(view.place(self.any_size(side), max_side))
    }

    fn demand(&self) -> Option<Demand> {
        let (view, place) = (self.view.as_ref()?, self.place(Side::A)?);
        let other = if self.compare == Compare::Decoder { self.place(Side::B) } else { None };
        let share = |at: f64, start: f64, length: f64| ((at - start.max(0.0)) / length.max(1.0)).clamp(0.0, 1.0);
        let (cw, ch) = (self.canvas.0 as f64, self.canvas.1 as f64);
        let focus = self.pointer.map(|(x, y)| (share(x, place.x, place.w.min(cw)), share(y, place.y, place.h.min(ch))));
        Some(Demand {
            main: Shown { side: Side::A, place },
            other: other.map(|place| Shown { side: Side::B, place }),
            compare: self.compare,
            native: view.native(),
            fitted: if self.any_size(Side::A) { view.fitted() } else { view.native() },
            tile_side: self.tile_side,
            max_texture: self.max_texture,
            focus: focus.unwrap_or((0.5, 0.5)),
        })
    }

    fn has(&self, key: &Key) -> bool {
        match key {
            Key::Prepare(side, level) => self.prepared.get(side).is_some_and(|(prepared, _)| prepared == level),
            _ => self.cache.contains(key),
        }
    }

    fn wanted(&self) -> Vec<Key> {
        self.demand().map_or(vec![], |demand| demand.wanted(|key| self.has(key), |key| self.refused.contains(key)))
    }

    /// Decodes nothing any more: the device is lost.
    pub fn stop(&mut self) {
        self.cancel();
        self.stopped = true;
    }

    /// Starts and cancels decodes. When to call again, if nothing else happens.
    pub fn steer(&mut self, now: Instant) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let generation = self.generation;
        let mut wanted: Vec<Job> = self.wanted().into_iter().map(|key| (generation, key)).collect();
        if !self.rest.is_over(now) {
            let running = self.work.running();
            wanted.retain(|job| Some(*job) == running);
        }
        match self.work.steer(&wanted) {
            Action::Leave => {}
            Action::Cancel => {
                self.observer.cancel();
                self.cancelled_at = Some(now);
            }
            Action::Start(id, (_, key)) => self.start(id, key),
        }
        self.rest.due(now)
    }

    fn start(&mut self, id: u64, key: Key) {
        let (Some(document), Some(loaded)) = (&self.document, self.decoders.get(&key.side())) else { return };
        let (latent, decoder) = (document.latent.clone(), loaded.decoder.clone());
        let Level { w, h } = key.level();
        self.progress = 0.0;
        self.observer = match key {
            Key::Whole(..) => self.live.run(true, id, Message::Decoded, move |observer| {
                pollster::block_on(decoder.decode_picture_async(&latent, w, h, observer)).map(Decoded::Pictures)
            }),
            Key::Prepare(side, _) => {
                // Two levels at once would take twice the memory.
                self.prepared.remove(&side);
                self.live.run(true, id, Message::Decoded, move |observer| {
                    pollster::block_on(decoder.prepare_async(&latent, w, h, observer)).map(Decoded::Prepared)
                })
            }
            Key::Tile(side, level, tile) => {
                let decoding = self.prepared.get(&side).map(|(_, decoding)| decoding.clone());
                let rect = tile.rect(level, self.tile_side);
                self.live.run(true, id, Message::Decoded, move |observer| {
                    let decoding = decoding.ok_or(Error::Cancelled)?;
                    pollster::block_on(decoding.region_picture_async(rect, observer)).map(Decoded::Pictures)
                })
            }
        };
    }

    /// Takes in what the live worker reports.
    pub fn ended(&mut self, id: u64, result: Result<Decoded>, seconds: f64) -> Ended {
        let cancelled = self.cancelled_at.take();
        let generation = self.generation;
        let Some((_, key)) = self.work.ended(id, |(of, _)| *of == generation) else {
            return cancelled.map_or(Ended::Quiet, |at| Ended::Cancelled(at.elapsed()));
        };
        match result {
            Ok(Decoded::Pictures(pictures)) => {
                let bytes = pictures.iter().map(|(_, picture)| picture.bytes()).sum();
                let pictures = pictures.into_iter().map(|(rect, picture)| (rect, Arc::new(picture))).collect();
                self.cache.insert(key, pictures, bytes);
                self.shrink();
                self.took(key, seconds);
                Ended::Decoded
            }
            Ok(Decoded::Prepared(decoding)) => {
                self.prepared.insert(key.side(), (key.level(), Arc::new(decoding)));
                self.took(key, seconds);
                Ended::Quiet
            }
            Err(Error::Cancelled) => Ended::Quiet,
            Err(error) => self.failed(key, error),
        }
    }

    /// Notes the time of what is shown on the left: a decode that it is compared with does not count.
    fn took(&mut self, key: Key, seconds: f64) {
        if self.place(Side::A).is_none_or(|place| key.side() != Side::A || key.level() != place.level) {
            return;
        }
        self.seconds = Some(match key {
            Key::Tile(..) => self.seconds.unwrap_or(0.0) + seconds,
            Key::Whole(..) | Key::Prepare(..) => seconds,
        });
    }

    fn failed(&mut self, key: Key, error: Error) -> Ended {
        self.refused.insert(key);
        let Level { w, h } = key.level();
        let memory = matches!(error, Error::MemoryCeiling { .. } | Error::BufferTooLarge { .. } | Error::OutOfMemory { .. });
        if !memory {
            return Ended::Failed(error);
        }
        // What the pool kept may be what is missing next time.
        self.engine.gpu().trim();
        match key {
            Key::Whole(side, level) if self.any_size(side) && self.max_side.get(&side).is_none_or(|&most| most >= 32) => {
                log::info!("{w}x{h} does not fit as a whole: {error}");
                if self.demand().is_some_and(|demand| demand.fitted == level) {
                    return Ended::Notice(format!("{w} × {h} does not fit into GPU memory at once: decoding it in tiles"));
                }
                Ended::Quiet
            }
            Key::Prepare(side, level) if level.w.max(level.h) > 64 => {
                let most = level.w.max(level.h) / 2;
                self.max_side.insert(side, most);
                Ended::Notice(format!("{w} × {h} does not fit into GPU memory: showing a decode of {most} pixels enlarged"))
            }
            _ => Ended::Failed(error),
        }
    }

    /// Notes how far job `id` is.
    pub fn progressed(&mut self, done: f64) {
        self.progress = done;
    }

    /// What the view shows and what enlargements start from, there or not.
    fn pinned(&self) -> Option<HashSet<Key>> {
        let demand = self.demand()?;
        let have = |key: &Key| self.cache.contains(key);
        let refused = |key: &Key| self.refused.contains(key);
        let mut pinned: HashSet<Key> = HashSet::new();
        for shown in [Some(demand.main), demand.other].into_iter().flatten() {
            pinned.extend(demand.pieces(shown, have, refused).keys());
            pinned.insert(Key::Whole(shown.side, demand.fitted));
            pinned.insert(Key::Whole(shown.side, demand.native));
        }
        Some(pinned)
    }

    fn shrink(&mut self) {
        let Some(pinned) = self.pinned() else { return };
        for key in &pinned {
            self.cache.touch(key);
        }
        self.cache.shrink(|key| pinned.contains(key));
    }

    /// Bytes of pictures that are out of view.
    pub fn spare_bytes(&self) -> u64 {
        self.pinned().map_or(0, |pinned| self.cache.spare(|key| pinned.contains(key)))
    }

    /// Drops pictures that are out of view until `bytes` are free. How many are.
    pub fn free(&mut self, bytes: u64) -> u64 {
        self.pinned().map_or(0, |pinned| self.cache.free(bytes, |key| pinned.contains(key)))
    }

    /// Numbers jobs behind those of `earlier`, whose last one may still report its end.
    pub fn follow(&mut self, earlier: &Scene) {
        self.work = Work::after(&earlier.work);
    }

    /// Whether nothing more is to come, be it that all is there or that it failed.
    pub fn is_settled(&self) -> bool {
        !self.stopped && self.preview.is_none() && self.demand().is_some() && self.wanted().is_empty() && self.rest.is_over(Instant::now())
    }

    /// Whether all that the view shows is there at full resolution.
    pub fn is_complete(&self) -> bool {
        self.is_settled()
            && self.demand().is_some_and(|demand| {
                let pieces = demand.pieces(demand.main, |key| self.cache.contains(key), |key| self.refused.contains(key));
                pieces.keys().iter().all(|key| self.cache.contains(key))
            })
    }

    /// Whether the worker decodes.
    pub fn is_busy(&self) -> bool {
        self.work.is_busy()
    }

    /// What it decodes and how far it is.
    pub fn running(&self) -> Option<(Key, f64)> {
        self.work.running().map(|(_, key)| (key, self.progress))
    }

    /// Tiles of the view that are there, and all of them, if it is shown in tiles.
    pub fn tiles(&self) -> Option<(usize, usize)> {
        let demand = self.demand()?;
        match demand.pieces(demand.main, |key| self.cache.contains(key), |key| self.refused.contains(key)) {
            Pieces::Whole(_) => None,
            Pieces::Tiles(keys) => Some((keys.iter().filter(|key| self.cache.contains(key)).count(), keys.len())),
        }
    }

    /// Seconds that decoding what is shown took.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }

    /// Name of the document, the latent's place in its batch, and the number of latents.
    pub fn document(&self) -> Option<(&str, usize, usize)> {
        self.document.as_ref().map(|document| (document.name.as_str(), document.index, document.latents.batch()))
    }

    /// What is needed to decode the picture elsewhere: for saving.
    pub fn subject(&self) -> Option<(LoadedDecoder, Arc<Latent>)> {
        Some((self.decoders.get(&Side::A)?.clone(), self.document.as_ref()?.latent.clone()))
    }

    /// Channels of the latents that a decoder decodes.
    pub fn latent_channels(&self, side: Side) -> Option<usize> {
        Some(self.decoders.get(&side)?.decoder.facts().latent_channels)
    }

    /// The latents that a decoder decodes, where it is known.
    pub fn latent_space(&self, side: Side) -> Option<LatentSpace> {
        self.decoders.get(&side)?.decoder.facts().latent_space
    }

    /// What a decoder is called.
    pub fn decoder_name(&self, side: Side) -> Option<&str> {
        self.decoders.get(&side).map(|loaded| loaded.name.as_str())
    }

    /// Size at 100 %, zoom, and what the zoom follows.
    pub fn zoom(&self) -> Option<(Level, f64, Mode)> {
        self.view.as_ref().map(|view| (view.native(), view.scale(), view.mode()))
    }

    /// Bytes of decoded pictures.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Stops the running decode.
    pub fn cancel(&self) {
        self.observer.cancel();
    }

    /// Rectangles to draw, first to last, with the canvas' corner at `corner` of the target.
    pub fn quads(&self, corner: (u32, u32)) -> Vec<Quad> {
        let (w, h) = (self.canvas.0 as u32, self.canvas.1 as u32);
        if let Some(preview) = &self.preview {
            let place = View::new(Level { w: preview.width(), h: preview.height() }, self.canvas).place(true, MAX_SIDE);
            return vec![quad(preview, place, corner, [corner.0, corner.1, w, h], Filter::Smooth)];
        }
        let Some(demand) = self.demand() else { return vec![] };
        let column = if self.compare == Compare::Off { w } else { self.split.column(self.canvas.0) as u32 };
        let left = [corner.0, corner.1, column, h];
        let right = [corner.0 + column, corner.1, w - column, h];
        let mut quads = Vec::new();
        self.draw(&demand, demand.main, corner, left, &mut quads);
        let place = demand.main.place;
        let base = self.cache.peek(&Key::Whole(Side::A, demand.native)).and_then(|pictures| pictures.first());
        let enlarged = |filter| base.map(|(_, picture)| (picture, filter));
        let whole = match self.compare {
            Compare::Off => None,
            Compare::Lanczos => enlarged(Filter::Lanczos),
            Compare::Bicubic => enlarged(Filter::Bicubic),
            Compare::Original => self.document.as_ref().and_then(|d| d.original.as_ref()).map(|picture| (picture, Filter::Lanczos)),
            Compare::Decoder => {
                if let Some(other) = demand.other {
                    self.draw(&demand, other, corner, right, &mut quads);
                }
                None
            }
        };
        if let Some((picture, filter)) = whole {
            quads.push(quad(picture, place, corner, right, filter));
        }
        quads
    }

    /// One decoder's part: what there is at other sizes first, scaled, then the level itself.
    fn draw(&self, demand: &Demand, shown: Shown, corner: (u32, u32), clip: [u32; 4], quads: &mut Vec<Quad>) {
        let Shown { side, place } = shown;
        let any_size = self.any_size(side);
        let pieces = demand.pieces(shown, |key| self.cache.contains(key), |key| self.refused.contains(key));
        let complete = pieces.keys().iter().all(|key| self.cache.contains(key));
        if !complete {
            let distance = |level: Level| (level.w as f64 / place.level.w as f64).ln().abs();
            let others = self.cache.iter().filter(|(key, _)| key.side() == side && key.level() != place.level);
            let (tiles, wholes): (Vec<_>, Vec<_>) = others.partition(|(key, _)| matches!(key, Key::Tile(..)));
            // The nearest whole picture, then tiles, the nearest size last.
            let nearest = wholes.into_iter().min_by(|(a, _), (b, _)| distance(a.level()).total_cmp(&distance(b.level())));
            let mut tiles: Vec<_> = tiles;
            tiles.sort_by(|(a, _), (b, _)| distance(b.level()).total_cmp(&distance(a.level())));
            for (key, pictures) in nearest.into_iter().chain(tiles) {
                quads.extend(pictures.iter().map(|piece| part(piece, key.level(), place, corner, clip, Filter::Smooth)));
            }
        }
        let filter = match (any_size, place.magnified(), place.w < place.level.w as f64) {
            (false, _, true) => Filter::Smooth,
            // What is compared is what one would do with that decoder: enlarge its picture.
            (false, true, _) if side == Side::B => Filter::Lanczos,
            _ => Filter::Nearest,
        };
        for key in pieces.keys() {
            let pictures = self.cache.peek(key).into_iter().flatten();
            quads.extend(pictures.map(|piece| part(piece, key.level(), place, corner, clip, filter)));
        }
    }

    /// The texel under the pointer, where there is one at full resolution: its picture, place in it and place in the level.
    pub fn texel(&self) -> Option<(Arc<Picture>, [u32; 2], PixelAt)> {
        let (x, y) = self.pointer?;
        let demand = self.demand()?;
        let right = self.compare != Compare::Off && x >= self.split.column(self.canvas.0) as f64;
        let shown = match (right, self.compare) {
            (false, _) => demand.main,
            (true, Compare::Decoder) => demand.other?,
            // An enlargement has no texel of its own.
            (true, _) => return None,
        };
        let pixel = shown.place.pixel(x, y)?;
        let at = PixelAt { level: pixel, epoch: self.generation };
        let (level, side) = (shown.place.level, self.tile_side);
        let tile = super::tiles::Tile { col: (pixel.0 / side) as u32, row: (pixel.1 / side) as u32 };
        let keys = [Key::Whole(shown.side, level), Key::Tile(shown.side, level, tile)];
        let (rect, picture) = keys.iter().filter_map(|key| self.cache.peek(key)).flatten().find(|(rect, _)| holds(*rect, pixel))?;
        Some((picture.clone(), [(pixel.0 - rect.x) as u32, (pixel.1 - rect.y) as u32], at))
    }
}

/// `picture`, which shows the whole level, where `place` puts that.
fn quad(picture: &Arc<Picture>, place: Placement, corner: (u32, u32), clip: [u32; 4], filter: Filter) -> Quad {
    let dest = [place.x + f64::from(corner.0), place.y + f64::from(corner.1), place.w, place.h];
    Quad { picture: picture.clone(), dest, clip, filter }
}

/// A picture that shows `rect` of `level`, where `place` puts that.
fn part(
    (rect, picture): &(Rect, Arc<Picture>),
    level: Level,
    place: Placement,
    corner: (u32, u32),
    clip: [u32; 4],
    filter: Filter,
) -> Quad {
    let (across, down) = (place.w / level.w as f64, place.h / level.h as f64);
    let at = Placement {
        x: place.x + rect.x as f64 * across,
        y: place.y + rect.y as f64 * down,
        w: rect.w as f64 * across,
        h: rect.h as f64 * down,
        ..place
    };
    quad(picture, at, corner, clip, filter)
}

fn holds(rect: Rect, (x, y): (usize, usize)) -> bool {
    (rect.x..rect.x + rect.w).contains(&x) && (rect.y..rect.y + rect.h).contains(&y)
}
