//! A chain of layers under a memory ceiling: planned before it runs, with the same bits as in one piece.
//!
//! A chain ([`crate::nn::chain`]) is swept from its first plane to its last. A sweep computes one plane in bands of rows from
//! planes that are kept, and gives that plane's group statistics, stores it (on the device or on the host), or both. A
//! plane that is not kept is computed again, with a halo, in every later sweep that needs it. `schedule` decides which planes
//! are kept where and how high the bands are; `run` carries it out. Once all statistics are known, any rectangle of
//! the last plane follows from one kept plane ([`Job::region`]).

mod run;
mod schedule;

use std::ops::Range;
use std::sync::Arc;

pub use run::{Prepared, Rows, Sink};
pub use schedule::{Budget, Schedule, Sweep};

use crate::error::Result;
use crate::gpu::{Elem, Gpu, Recorder, Tensor, to_units};
use crate::kernels::group_norm::{BLOCK_ROWS, statistics};
use crate::kernels::output::{image_to_picture, image_to_rgba8};
use crate::nn::chain::{Area, Chain, Part, PlaneShape, Planes};

/// Where plane 0 comes from.
pub enum Source<'a> {
    /// The host.
    Host(&'a HostRows<'a>),
    /// The device.
    Device(&'a (dyn DeviceSource + Sync)),
}

/// `[rows, width, channels]` values of some rows.
pub type HostRows<'a> = dyn Fn(Range<usize>) -> Result<Vec<f32>> + Sync + 'a;

/// Computes plane 0 on the device, from what it holds there.
pub trait DeviceSource {
    /// Records some rows.
    fn record(&self, rec: &mut Recorder, rows: Range<usize>) -> Tensor;

    /// Frees what it holds: it will not be asked again.
    fn release(&self);
}

/// Where a plane is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// Nowhere: computed again where it is needed.
    Recompute,
    /// In GPU memory.
    Device,
    /// In host memory; bands go up and down as they are needed.
    Host,
    /// It is the source, which can be asked again at no cost.
    Source,
}

/// Which form the last plane takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// f32 values.
    Float,
    /// Packed RGBA words of 8 bits a channel.
    Rgba8,
    /// A texture of 8 bits a channel, which never leaves the GPU.
    Picture,
}

/// One chain on one device.
pub struct Job<'a> {
    pub gpu: &'a Gpu,
    pub chain: &'a Chain<'a>,
    pub source: Source<'a>,
    /// The base picture, where the chain has one and this is not only planned.
    pub base: Option<Arc<HostPlane>>,
    /// Form of the results.
    pub form: Form,
    /// What is asked for of the last plane.
    pub area: Area,
}

/// A plane in host memory, in units of its storage type.
#[derive(Debug)]
pub struct HostPlane {
    pub(crate) shape: PlaneShape,
    pub(crate) units: Vec<u8>,
}

impl HostPlane {
    /// The plane of `shape`, of its `[height, width, channels]` values.
    pub(crate) fn new(shape: PlaneShape, values: &[f32]) -> HostPlane {
        HostPlane { shape, units: to_units(values, shape.channels, shape.elem) }
    }

    /// `area` of it on the device.
    pub(crate) fn upload(&self, rec: &mut Recorder, area: &Area) -> Tensor {
        rec.upload_units(self.cut(area), area.rows.len(), area.columns.len(), self.shape.channels, self.shape.elem)
    }

    /// The units of `area`, row-major.
    fn cut(&self, area: &Area) -> Vec<u8> {
        let row = self.shape.row_bytes() as usize;
        let pixel = row / self.shape.width;
        if area.columns.len() == self.shape.width {
            return self.units[area.rows.start * row..area.rows.end * row].to_vec();
        }
        let rows = area.rows.clone().map(|y| y * row + area.columns.start * pixel..y * row + area.columns.end * pixel);
        rows.flat_map(|span| &self.units[span]).copied().collect()
    }
}

/// A plane that exists.
#[derive(Debug)]
pub(crate) enum Stored {
    Device(Tensor),
    Host(HostPlane),
    /// In a recording that is only planned: on the host.
    Planned,
}

/// What a recording starts from.
struct Have<'a> {
    job: &'a Job<'a>,
    stored: &'a [Option<Stored>],
    /// `None` in a recording that is only planned.
    affines: Option<&'a [Option<Tensor>]>,
}

impl Planes for Have<'_> {
    fn has(&self, index: usize) -> bool {
        self.stored[index].is_some()
    }

    fn get(&self, rec: &mut Recorder, index: usize, area: &Area) -> Part {
        let PlaneShape { width, channels, elem, .. } = self.job.chain.planes[index];
        let (rows, columns) = (&area.rows, &area.columns);
        let planned = self.affines.is_none();
        match (&self.stored[index], &self.job.source) {
            (Some(Stored::Device(tensor)), _) => Part::whole(tensor.clone()).rows(rows),
            (Some(Stored::Host(plane)), _) => Part { tensor: plane.upload(rec, area), top: rows.start, left: columns.start },
            (Some(Stored::Planned), _) => {
                Part { tensor: rec.upload_later(rows.len(), columns.len(), channels, elem), top: rows.start, left: columns.start }
            }
            (None, Source::Host(_)) if planned => {
                Part { tensor: rec.upload_later(rows.len(), width, channels, elem), top: rows.start, left: 0 }
            }
            (None, Source::Host(values)) => {
                Part { tensor: upload_rows(rec, values, rows, (width, channels, elem)), top: rows.start, left: 0 }
            }
            (None, Source::Device(source)) => Part { tensor: source.record(rec, rows.clone()), top: rows.start, left: 0 },
        }
    }

    fn affine(&self, index: usize) -> Tensor {
        match self.affines {
            Some(affines) => affines[index].clone().expect("statistics come before their use"),
            None => Tensor::outside(2, 1, self.job.chain.planes[index].channels.next_multiple_of(4), Elem::F32),
        }
    }

    fn base(&self, rec: &mut Recorder, area: &Area) -> Part {
        let PlaneShape { channels, elem, .. } = self.job.chain.base.expect("this chain has a base picture");
        let tensor = match &self.job.base {
            Some(plane) => plane.upload(rec, area),
            None => rec.upload_later(area.rows.len(), area.columns.len(), channels, elem),
        };
        Part { tensor, top: area.rows.start, left: area.columns.start }
    }
}

/// What one band of a sweep is for.
struct Purpose<'a> {
    /// The plane's statistics of block rows.
    statistics: Option<&'a Tensor>,
    /// The plane itself on the device.
    device: Option<&'a Tensor>,
    /// Whether the band goes to the host as it is.
    host: bool,
}

/// Name of a band among the outputs of its recording.
const BAND: &str = "band";

impl Job<'_> {
    fn band(&self, have: &Have<'_>, target: usize, rows: Range<usize>, purpose: &Purpose<'_>) -> Recorder {
        let mut rec = self.gpu.recorder();
        let plane = self.chain.planes[target];
        let area = Area { rows: rows.clone(), columns: 0..plane.width };
        let part = self.chain.record(&mut rec, have, target, &area);
        let tensor = part.rows(&rows).tensor;
        if let Some(all) = purpose.statistics {
            let path = self.chain.units[target].norm().map_or("", |(_, path)| path).to_owned();
            let of_band = rec.scoped(path, |rec| statistics(rec, &tensor));
            rec.place(&of_band, &all.rows(rows.start / BLOCK_ROWS, rows.len().div_ceil(BLOCK_ROWS)));
        }
        if let Some(all) = purpose.device {
            rec.place(&part.tensor, &all.rows(rows.start, rows.len()));
        }
        if purpose.host {
            rec.output_units(BAND, &tensor);
        }
        rec
    }

    /// Records `area` of the picture from what there is.
    fn picture(&self, have: &Have<'_>, area: &Area) -> Recorder {
        let mut rec = self.gpu.recorder();
        let part = self.chain.record(&mut rec, have, self.chain.last(), area);
        let (top, left) = (area.rows.start - part.top, area.columns.start - part.left);
        match self.form {
            Form::Rgba8 => {
                let words = image_to_rgba8(&mut rec, &part.tensor, area.columns.len(), area.rows.len(), (top, left));
                rec.output(BAND, &words);
            }
            Form::Picture => image_to_picture(&mut rec, &part.tensor, area.columns.len(), area.rows.len(), (top, left)),
            Form::Float => {
                assert!(
                    part.left == area.columns.start && part.tensor.width == area.columns.len(),
                    "the last layer gives what is asked for"
                );
                rec.output(BAND, &part.rows(&area.rows).tensor);
            }
        }
        rec
    }

    fn wants_statistics(&self, plane: usize) -> bool {
        self.chain.units.get(plane).is_some_and(|unit| unit.norm().is_some())
    }

    fn is_global(&self, plane: usize) -> bool {
        plane > 0 && matches!(self.chain.units[plane - 1].op, crate::nn::chain::Op::Attention(_))
    }

    /// Which kept planes are still needed once planes up to `upto` have been dealt with, and whether the source is.
    fn live(&self, upto: usize, kept: impl Fn(usize) -> bool) -> (Vec<usize>, bool) {
        let units = &self.chain.units;
        let mut needed = vec![false; upto + 1];
        needed[upto] = upto < units.len();
        for unit in &units[upto..] {
            if let Some(skip) = unit.skip.filter(|skip| skip.plane <= upto) {
                needed[skip.plane] = true;
            }
        }
        for plane in (1..=upto).rev() {
            if needed[plane] && !kept(plane) {
                self.chain.inputs(plane - 1).for_each(|input| needed[input] = true);
            }
        }
        let source = needed[0] && !kept(0);
        ((0..=upto).filter(|&plane| needed[plane] && kept(plane)).collect(), source)
    }

    /// Bytes of the statistics of a plane's block rows, while it is swept.
    fn statistics_bytes(&self, plane: usize) -> u64 {
        let PlaneShape { height, channels, .. } = self.chain.planes[plane];
        if self.wants_statistics(plane) {
            crate::gpu::align((height.div_ceil(BLOCK_ROWS) * 2 * channels.div_ceil(4)) as u64 * 16)
        } else {
            0
        }
    }

    /// Bytes of the scale and shift of unit `plane`'s norm.
    fn affine_bytes(&self, plane: usize) -> u64 {
        if self.wants_statistics(plane) { crate::gpu::align(2 * self.chain.planes[plane].channels.div_ceil(4) as u64 * 16) } else { 0 }
    }
}

/// Uploads some rows; without them the recording fails.
pub(crate) fn upload_rows(rec: &mut Recorder, values: &HostRows<'_>, rows: &Range<usize>, of: (usize, usize, Elem)) -> Tensor {
    let (width, channels, elem) = of;
    match values(rows.clone()) {
        Ok(values) => rec.upload(&values, rows.len(), width, channels, elem),
        Err(error) => {
            rec.fail(error);
            rec.upload_later(rows.len(), width, channels, elem)
        }
    }
}

/// Checks that no dispatch of a recording needs a binding that the device cannot have.
fn bindable(gpu: &Gpu, rec: Recorder) -> Result<u64> {
    let recording = rec.finish();
    gpu.check_bindings(&recording)?;
    Ok(gpu.plan_bytes(&recording))
}
