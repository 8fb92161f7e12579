//! A picture in patches, each a network of its own behind features that all of them share: INFD.
//!
//! Each patch has its own statistics, so it is computed whole, and a rectangle of the picture from the patches that it touches: the same bits, whatever is
//! asked for.

use std::ops::Range;
use std::sync::Arc;

use super::Rect;
use super::decoder::paste;
use super::work::{Front, LastBase, LayerCost, Work, WorkPlan, some_rows};
#[cfg(not(target_arch = "wasm32"))]
use super::work::{IMAGE, joined};
use crate::bounded::{Form, HostPlane, Rows, Sink};
use crate::error::{Error, Result};
use crate::gpu::{Elem, Gpu, Observer, picture_pitch};
#[cfg(not(target_arch = "wasm32"))]
use crate::gpu::{Outputs, Recorder};
use crate::models::infd::{InfdDecoder, Patch};
use crate::nn::chain::{Area, Chain, PlaneShape};

/// See the module.
pub(super) struct Patches<'a> {
    pub gpu: &'a Gpu,
    pub network: &'a InfdDecoder,
    /// `[h, w, channels]`, not yet rounded to codes.
    pub z: &'a [f32],
    pub latent: (usize, usize),
    pub form: Form,
    pub width: usize,
    pub height: usize,
    pub host_memory: u64,
    /// The features of the latent that was decoded last.
    pub last: &'a LastBase,
}

impl Patches<'_> {
    /// Making the features, as work of its own.
    pub fn features_work<T>(&self, codes: &[f32], body: impl FnOnce(&Work<'_>) -> T) -> T {
        let (chain, rows) = (self.network.features_chain(self.latent), self.rows(codes));
        body(&Work::whole_of(self.gpu, &chain, &rows, self.host_memory))
    }

    /// Some rows of the latent, rounded to codes.
    fn rows<'c>(&self, codes: &'c [f32]) -> impl Fn(Range<usize>) -> Result<Vec<f32>> + use<'c> {
        let height = self.latent.0;
        move |rows| some_rows(codes, height, rows)
    }

    /// `area` of a patch, counted from the first pixel that is rendered; without `features` only to be planned.
    fn patch_work<T>(&self, patch: &Patch, area: Area, features: Option<&HostPlane>, body: impl FnOnce(&Work<'_>) -> T) -> T {
        let chain = self.network.patch_chain(patch);
        body(&self.work(&chain, patch, area, features))
    }

    fn work<'a>(&'a self, chain: &'a Chain<'a>, patch: &'a Patch, area: Area, features: Option<&'a HostPlane>) -> Work<'a> {
        let shape = self.shape();
        let front = Front::Patch { network: self.network, features, shape, patch, size: (self.height, self.width) };
        Work { gpu: self.gpu, chain, front, form: self.form, area, host_memory: self.host_memory.saturating_sub(shape.bytes()) }
    }

    fn whole(&self) -> Area {
        Area { rows: 0..self.height, columns: 0..self.width }
    }

    /// The patches that show some of `area`, each with what it shows of it.
    fn touched(&self, area: &Area) -> Vec<(Patch, Area)> {
        let patches = Patch::rows(self.height, self.width).into_iter().flatten();
        patches.filter_map(|patch| patch.part(area).map(|part| (patch, part))).collect()
    }

    /// One patch of each size that occurs, and how often it does. Of those at the picture's edges another part is shown, which costs the same.
    fn kinds(&self) -> Vec<(Patch, Area, u64)> {
        let size = |patch: &Patch| (patch.rendered.rows.len(), patch.rendered.columns.len());
        let mut kinds: Vec<(Patch, Area, u64)> = Vec::new();
        for (patch, part) in self.touched(&self.whole()) {
            match kinds.iter_mut().find(|(other, _, _)| size(other) == size(&patch)) {
                Some((_, _, count)) => *count += 1,
                None => kinds.push((patch, part, 1)),
            }
        }
        kinds
    }

    /// Of the features.
    fn shape(&self) -> PlaneShape {
        let chain = self.network.features_chain(self.latent);
        chain.planes[chain.last()]
    }

    fn kept(&self) -> Option<Arc<HostPlane>> {
        self.last.of(self.z, self.shape())
    }

    /// How it will be run.
    ///
    /// # Errors
    /// As [`Work::plan`].
    pub fn plan(&self) -> Result<WorkPlan> {
        self.planned().map_err(|error| match error {
            Error::MemoryCeiling { needed, ceiling } => Error::MemoryCeiling { needed: self.least().unwrap_or(needed), ceiling },
            other => other,
        })
    }

    /// Refuses a ceiling that is too low for any part of it, before anything runs.
    pub fn check(&self) -> Result<()> {
        if self.gpu.memory_ceiling().is_some() { self.plan().map(|_| ()) } else { Ok(()) }
    }

    fn planned(&self) -> Result<WorkPlan> {
        let mut all = match self.kept() {
            None => self.features_work(&[], |work| work.plan())?,
            // Made already: its operations count, its memory does not.
            Some(_) => {
                WorkPlan { peak_bytes: 0, schedule: None, ..self.features_work(&[], |work| work.in_one_piece(&work.planned().finish())) }
            }
        };
        for (patch, part, count) in self.kinds() {
            let plan = self.patch_work(&patch, part, None, |work| work.plan())?;
            all.peak_bytes = all.peak_bytes.max(plan.peak_bytes);
            all.flops += count * plan.flops;
            for LayerCost { layer, passes, flops, bytes } in plan.layers {
                let (passes, flops, bytes) = (count as usize * passes, count * flops, count * bytes);
                match all.layers.iter_mut().find(|other| other.layer == layer) {
                    Some(other) => {
                        (other.passes, other.flops, other.bytes) = (other.passes + passes, other.flops + flops, other.bytes + bytes)
                    }
                    None => all.layers.push(LayerCost { layer, passes, flops, bytes }),
                }
            }
            all.schedule = plan.schedule.or(all.schedule);
        }
        Ok(all)
    }

    /// The smallest ceiling that would do.
    pub fn least(&self) -> Result<u64> {
        let first = if self.kept().is_some() { 0 } else { self.features_work(&[], |work| work.least(None))? };
        self.kinds()
            .into_iter()
            .try_fold(first, |most, (patch, part, _)| Ok(most.max(self.patch_work(&patch, part, None, |work| work.least(None))?)))
    }

    /// Progress of the features, and of all patches.
    pub fn shares(&self, observer: &Observer) -> (Observer, Observer) {
        let flops = |work: &Work<'_>| work.planned().finish().flops() as f64;
        let features = if self.kept().is_some() { 0.0 } else { self.features_work(&[], flops) };
        let patches: f64 = self.kinds().iter().map(|(patch, part, n)| *n as f64 * self.patch_work(patch, part.clone(), None, flops)).sum();
        let share = features / (features + patches);
        (observer.part(0.0, share), observer.part(share, 1.0 - share))
    }

    /// The features of the latent, on the host, from where each patch takes what it needs.
    ///
    /// # Errors
    /// As [`Work::run`].
    pub async fn features(&self, observer: &Observer) -> Result<Arc<HostPlane>> {
        if let Some(kept) = self.kept() {
            return Ok(kept);
        }
        let chain = self.network.features_chain(self.latent);
        let codes = self.network.quantised(self.z);
        let rows = self.rows(&codes);
        let plane = Arc::new(Work::whole_of(self.gpu, &chain, &rows, self.host_memory).plane(observer).await?);
        self.last.keep(self.z, &plane);
        Ok(plane)
    }

    /// `area` of the picture, a patch at a time.
    ///
    /// # Errors
    /// As [`Work::run`].
    pub async fn region(
        &self,
        features: &HostPlane,
        area: &Area,
        observer: &Observer,
        place: &mut (dyn FnMut(&Area, Rows) -> Result<()> + Send),
    ) -> Result<()> {
        let touched = self.touched(area);
        let count = touched.len() as f64;
        // Buffers of another size, here and between patches.
        self.gpu.trim();
        let mut before = None;
        for (n, (patch, part)) in touched.into_iter().enumerate() {
            let chain = self.network.patch_chain(&patch);
            if before.replace(chain.planes[0]).is_some_and(|plane| plane != chain.planes[0]) {
                self.gpu.trim();
            }
            let (top, left) = (patch.rendered.rows.start, patch.rendered.columns.start);
            let columns = left + part.columns.start..left + part.columns.end;
            let first = top + part.rows.start;
            let mut sink = |rows: Range<usize>, values: Rows| {
                place(&Area { rows: first + rows.start..first + rows.end, columns: columns.clone() }, values)
            };
            let work = self.work(&chain, &patch, part, Some(features));
            work.run(&observer.part(n as f64 / count, 1.0 / count), &mut sink).await?;
        }
        Ok(())
    }

    /// The whole picture in rows of patches, from the top.
    ///
    /// # Errors
    /// As [`Work::run`], and what `sink` returns.
    pub async fn run(&self, observer: &Observer, sink: &mut Sink<'_>) -> Result<()> {
        self.check()?;
        let (of_features, observer) = self.shares(observer);
        let features = self.features(&of_features).await?;
        // Textures cannot be joined on their way: rows of them are made of words.
        let through = Patches { form: if self.form == Form::Picture { Form::Rgba8 } else { self.form }, ..*self };
        for row in Patch::rows(self.height, self.width) {
            let rows = row[0].shown.rows.clone();
            let (mut floats, mut words) = (Vec::new(), Vec::new());
            let band = Rect { x: 0, y: rows.start, w: self.width, h: rows.len() };
            match through.form {
                Form::Float => floats.resize(3 * rows.len() * self.width, 0.0),
                _ => words.resize(rows.len() * self.width, 0),
            }
            let mut place = |area: &Area, values: Rows| {
                match values {
                    Rows::Float(values) => paste(&mut floats, &values, band, area, 3),
                    Rows::Rgba8(values) => paste(&mut words, &values, band, area, 1),
                    Rows::Picture(_) => {}
                }
                Ok(())
            };
            let area = Area { rows: rows.clone(), columns: 0..self.width };
            let share = observer.part(rows.start as f64 / self.height as f64, rows.len() as f64 / self.height as f64);
            through.region(&features, &area, &share, &mut place).await?;
            let done = match self.form {
                Form::Float => Rows::Float(floats),
                Form::Rgba8 => Rows::Rgba8(words),
                Form::Picture => self.picture(&words, rows.len()).await?,
            };
            sink(rows, done)?;
        }
        Ok(())
    }

    /// Words `[height, width]` as a texture.
    async fn picture(&self, words: &[u32], height: usize) -> Result<Rows> {
        let pitch = picture_pitch(self.width);
        let mut units = Vec::with_capacity(4 * pitch * height);
        for row in words.chunks_exact(self.width) {
            units.extend(row.iter().flat_map(|word| word.to_le_bytes()));
            units.resize(units.len() + 4 * (pitch - self.width), 0);
        }
        let mut rec = self.gpu.recorder();
        let words = rec.upload_units(units, height, pitch, 1, Elem::Word);
        rec.picture(&words, self.width);
        let outputs = self.gpu.run(rec.finish(), &Observer::default()).await?;
        Ok(Rows::Picture(outputs.picture.expect("a recording in this form makes a picture")))
    }

    /// Every named intermediate result of the features and, where the picture is a single patch, of that; and the picture.
    ///
    /// # Errors
    /// As [`Work::run`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn taps(&self) -> Result<Outputs> {
        let mut parts = self.recordings(true, |rec| super::block(self.gpu.run(rec.finish(), &Observer::default())))?;
        let single = parts.len() == 2;
        let mut all = Outputs::default();
        for part in &mut parts[..if single { 2 } else { 1 }] {
            part.numbers(IMAGE);
            all.join(std::mem::take(part));
        }
        let mut image = Vec::new();
        super::block(self.run(&Observer::default(), &mut joined(&mut image)))?;
        all.put(IMAGE, image);
        Ok(all)
    }

    /// What `body` makes of each recording of a decode: of the features, then of each patch.
    ///
    /// # Errors
    /// As [`Work::run`], and what `body` returns.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn recordings<T>(&self, taps: bool, body: impl Fn(Recorder) -> Result<T>) -> Result<Vec<T>> {
        let codes = self.network.quantised(self.z);
        let mut all = vec![self.features_work(&codes, |work| body(work.whole(taps, None)))?];
        let features = super::block(self.features(&Observer::default()))?;
        for (patch, part) in self.touched(&self.whole()) {
            all.push(self.patch_work(&patch, part, Some(&features), |work| body(work.whole(taps, None)))?);
        }
        Ok(all)
    }
}
