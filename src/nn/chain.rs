//! A network as a chain of local layers over planes, any rectangle of which can be computed by itself.
//!
//! Layers are convolutions, each with an optional group normalisation before it and an optional residual; the
//! normalisations see a whole plane, everything else a pixel and its neighbours. So once the normalisations' scales and
//! shifts are known, any rectangle of any plane follows from a slightly larger one of an earlier plane, with the same
//! bits as in the whole: sums keep their order. One layer, the mid block's attention, is global.

use std::ops::Range;

use super::{Conv3x3, GroupNorm, Linear, SelfAttention, StridedConv, UpsampleConv};
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::conv2d::{Residual, Window};
use crate::kernels::group_norm::Norm;
use crate::kernels::output::count_nonfinite;
use crate::kernels::resample::{Bicubic, resample_bicubic};

/// What a unit does to the plane before it.
#[derive(Debug)]
pub enum Op<'a> {
    /// 3x3 convolution, of `silu(norm(x))` if there is a norm (with its path).
    Conv { conv: &'a Conv3x3, norm: Option<(&'a GroupNorm, String)>, act: Act },
    /// Nearest-2x upsampling and a 3x3 convolution.
    Upsample(&'a UpsampleConv),
    /// 3x3 convolution of stride 2.
    Strided(&'a StridedConv),
    /// 1x1 convolution.
    Pointwise(&'a Linear),
    /// Self-attention over the whole plane, with its own norm and residual.
    Attention(&'a SelfAttention),
}

/// A plane that is added to a unit's result, through a 1x1 convolution if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Skip<'a> {
    /// Index of the plane.
    pub plane: usize,
    /// `conv_shortcut`.
    pub shortcut: Option<&'a Linear>,
}

/// One layer of a chain: makes plane `i + 1` from plane `i`.
#[derive(Debug)]
pub struct Unit<'a> {
    /// Names the layer in errors and profiles.
    pub path: String,
    /// What it computes.
    pub op: Op<'a>,
    /// Added before the activation.
    pub skip: Option<Skip<'a>>,
    /// Storage of the result.
    pub elem: Elem,
    /// Name under which the result can be tapped.
    pub tap: Option<String>,
    /// No normalisation will see the result: its values are checked here.
    pub watched: bool,
}

impl<'a> Unit<'a> {
    /// A layer without residual, tap or check.
    pub fn new(path: impl Into<String>, op: Op<'a>, elem: Elem) -> Unit<'a> {
        Unit { path: path.into(), op, skip: None, elem, tap: None, watched: false }
    }

    /// The norm before it.
    pub fn norm(&self) -> Option<(&'a GroupNorm, &str)> {
        match &self.op {
            Op::Conv { norm: Some((norm, path)), .. } => Some((norm, path)),
            _ => None,
        }
    }
}

/// Size and storage of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaneShape {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub elem: Elem,
}

impl PlaneShape {
    /// Bytes of one row as stored on a device.
    pub fn row_bytes(&self) -> u64 {
        (self.width * self.channels.div_ceil(4)) as u64 * self.elem.bytes()
    }

    /// Bytes of the whole as stored on a device.
    pub fn bytes(&self) -> u64 {
        self.height as u64 * self.row_bytes()
    }

    /// The whole of it.
    pub fn area(&self) -> Area {
        Area { rows: 0..self.height, columns: 0..self.width }
    }
}

/// A rectangle of a plane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Area {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Area {
    fn union(&self, other: &Area) -> Area {
        let span = |a: &Range<usize>, b: &Range<usize>| a.start.min(b.start)..a.end.max(b.end);
        Area { rows: span(&self.rows, &other.rows), columns: span(&self.columns, &other.columns) }
    }

    fn map(&self, rows: impl Fn(&Range<usize>) -> Range<usize>, columns: impl Fn(&Range<usize>) -> Range<usize>) -> Area {
        Area { rows: rows(&self.rows), columns: columns(&self.columns) }
    }
}

/// A part of a plane on the device: the plane's pixel `(top, left)` is the tensor's first.
#[derive(Debug, Clone)]
pub struct Part {
    pub tensor: Tensor,
    pub top: usize,
    pub left: usize,
}

impl Part {
    /// A whole plane.
    pub fn whole(tensor: Tensor) -> Part {
        Part { tensor, top: 0, left: 0 }
    }

    /// Only the given rows of the plane, all columns that are there.
    pub fn rows(&self, rows: &Range<usize>) -> Part {
        Part { tensor: self.tensor.rows(rows.start - self.top, rows.len()), top: rows.start, left: self.left }
    }
}

/// The layers with the planes between them: unit `i` reads plane `i` and makes plane `i + 1`.
#[derive(Debug)]
pub struct Chain<'a> {
    pub units: Vec<Unit<'a>>,
    pub planes: Vec<PlaneShape>,
    /// A picture of another size that the last unit, which has no other residual, adds to its result, resampled bicubically.
    pub base: Option<PlaneShape>,
}

/// Where parts of planes that exist already come from; a chain asks for the nearest that it needs.
pub trait Planes {
    /// Whether plane `index` exists.
    fn has(&self, index: usize) -> bool;
    /// At least `area` of plane `index`.
    fn get(&self, rec: &mut Recorder, index: usize, area: &Area) -> Part;
    /// Scale and shift of the norm in unit `index`.
    fn affine(&self, index: usize) -> Tensor;
    /// At least `area` of the base picture, where the chain has one.
    fn base(&self, rec: &mut Recorder, area: &Area) -> Part;
}

impl<'a> Chain<'a> {
    /// The chain of `units` behind a plane of this shape.
    pub fn new(source: PlaneShape, units: Vec<Unit<'a>>) -> Chain<'a> {
        let mut planes = vec![source];
        for unit in &units {
            let PlaneShape { height, width, channels, .. } = planes[planes.len() - 1];
            let (height, width, channels) = match unit.op {
                Op::Conv { conv, .. } => (height, width, conv.outputs()),
                Op::Upsample(conv) => (2 * height, 2 * width, conv.outputs()),
                Op::Strided(conv) => (conv.geometry().output(height), conv.geometry().output(width), conv.outputs()),
                Op::Pointwise(linear) => (height, width, linear.outputs()),
                Op::Attention(_) => (height, width, channels),
            };
            planes.push(PlaneShape { height, width, channels, elem: unit.elem });
        }
        Chain { units, planes, base: None }
    }

    /// `area` of the base picture at the last plane's size, from what `part` gives of it.
    fn base(&self, rec: &mut Recorder, area: &Area, part: impl FnOnce(&mut Recorder, &Area) -> Part) -> Option<Part> {
        let (base, last) = (self.base?, self.planes[self.last()]);
        let sizes = Bicubic { from: (base.height, base.width), to: (last.height, last.width) };
        let part = part(rec, &area.map(|rows| sizes.reads(0, rows), |columns| sizes.reads(1, columns)));
        let at = (part.top, part.left);
        let tensor =
            rec.scoped("base.resample", |rec| resample_bicubic(rec, (&part.tensor, at), sizes, &area.rows, &area.columns, last.elem));
        Some(Part { tensor, top: area.rows.start, left: area.columns.start })
    }

    /// Index of the last plane.
    pub fn last(&self) -> usize {
        self.units.len()
    }

    /// Which planes unit `index` reads.
    pub fn inputs(&self, index: usize) -> impl Iterator<Item = usize> {
        [Some(index), self.units[index].skip.map(|skip| skip.plane)].into_iter().flatten()
    }

    /// What unit `index` computes at least when `area` of its result is asked for.
    fn computed(&self, index: usize, area: &Area) -> Area {
        match self.units[index].op {
            // Both rows and columns of a small pixel come at once.
            Op::Upsample(_) => {
                let even = |r: &Range<usize>| r.start / 2 * 2..r.end.next_multiple_of(2);
                area.map(even, even)
            }
            Op::Attention(_) => self.planes[index + 1].area(),
            _ => area.clone(),
        }
    }

    /// What unit `index` reads of the plane before it to compute `area`.
    fn read(&self, index: usize, area: &Area) -> Area {
        let PlaneShape { height, width, .. } = self.planes[index];
        let grown = |r: &Range<usize>, all: usize| r.start.saturating_sub(1)..(r.end + 1).min(all);
        match self.units[index].op {
            Op::Conv { .. } => area.map(|r| grown(r, height), |c| grown(c, width)),
            Op::Upsample(_) => {
                let small = |r: &Range<usize>, all| grown(&(r.start / 2..r.end.div_ceil(2)), all);
                area.map(|r| small(r, height), |c| small(c, width))
            }
            Op::Strided(conv) => {
                let g = conv.geometry();
                let span = |r: &Range<usize>, all: usize| {
                    let first = (r.start * g.stride).saturating_sub(g.pad_before);
                    first..(((r.end - 1) * g.stride + g.kernel).saturating_sub(g.pad_before)).clamp(first + 1, all)
                };
                area.map(|r| span(r, height), |c| span(c, width))
            }
            Op::Pointwise(_) => area.clone(),
            Op::Attention(_) => self.planes[index].area(),
        }
    }

    /// Which area of each plane is needed for `area` of plane `target`, back to planes that exist.
    pub fn needs(&self, target: usize, area: &Area, has: impl Fn(usize) -> bool) -> Vec<Option<Area>> {
        let mut needs: Vec<Option<Area>> = vec![None; target + 1];
        needs[target] = Some(area.clone());
        for plane in (0..=target).rev() {
            let Some(area) = needs[plane].clone().filter(|_| plane > 0 && !has(plane)) else { continue };
            let unit = plane - 1;
            let area = self.computed(unit, &area);
            needs[plane] = Some(area.clone());
            let mut add = |plane: usize, area: Area| {
                needs[plane] = Some(match &needs[plane] {
                    Some(already) => already.union(&area),
                    None => area,
                });
            };
            add(unit, self.read(unit, &area));
            if let Some(skip) = self.units[unit].skip {
                add(skip.plane, area);
            }
        }
        needs
    }

    /// Records `area` of plane `target`, computing what `planes` does not have. The result holds that area at least, and
    /// exactly its rows and columns if no unit upsamples to an odd bound.
    pub fn record(&self, rec: &mut Recorder, planes: &impl Planes, target: usize, area: &Area) -> Part {
        let needs = self.needs(target, area, |plane| planes.has(plane));
        let mut parts: Vec<Option<Part>> = vec![None; target + 1];
        for (plane, need) in needs.iter().enumerate() {
            let Some(area) = need else { continue };
            let part = match plane == 0 || planes.has(plane) {
                true => planes.get(rec, plane, area),
                false => {
                    let unit = &self.units[plane - 1];
                    let affine = unit.norm().map(|_| planes.affine(plane - 1));
                    let skip = match unit.skip {
                        Some(skip) => Some(parts[skip.plane].clone().expect("needed planes come first")),
                        None if plane == self.last() => self.base(rec, area, |rec, area| planes.base(rec, area)),
                        None => None,
                    };
                    let input = parts[plane - 1].as_ref().expect("needed planes come first");
                    unit.part(rec, input, affine.as_ref(), skip.as_ref(), area)
                }
            };
            parts[plane] = Some(part);
        }
        parts.pop().flatten().expect("the target is needed")
    }

    /// Records the whole chain at once, every plane whole; `base` is the base picture, where the chain has one.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor, base: Option<&Tensor>) -> Tensor {
        assert_eq!(self.base.is_some(), base.is_some(), "a base picture where the chain has one");
        let mut parts = vec![Part::whole(x.clone())];
        for (index, unit) in self.units.iter().enumerate() {
            let input = parts[index].clone();
            let affine = unit.norm().map(|(norm, path)| rec.scoped(path, |rec| norm.affine(rec, &input.tensor)));
            let area = self.planes[index + 1].area();
            let skip = match (unit.skip, base) {
                (Some(skip), _) => Some(parts[skip.plane].clone()),
                (None, Some(base)) if index + 1 == self.last() => self.base(rec, &area, |_, _| Part::whole(base.clone())),
                _ => None,
            };
            let part = unit.part(rec, &input, affine.as_ref(), skip.as_ref(), &area);
            if let Some(tap) = &unit.tap {
                rec.tap(tap, &part.tensor);
            }
            parts.push(part);
        }
        parts.pop().expect("at least the source").tensor
    }
}

impl Unit<'_> {
    /// Records `area` of this unit's result from parts of its inputs.
    fn part(&self, rec: &mut Recorder, input: &Part, affine: Option<&Tensor>, skip: Option<&Part>, area: &Area) -> Part {
        rec.scoped(&self.path, |rec| {
            let Area { rows, columns } = area;
            let origin = |stride: usize| {
                let at = |first: usize, start: usize| (first * stride) as i64 - start as i64;
                (at(rows.start, input.top), at(columns.start, input.left))
            };
            let odd = (rows.start % 2 == 1, columns.start % 2 == 1);
            let window = |(top, left): (i64, i64)| Window { height: rows.len(), width: columns.len(), top, left, odd };
            let shortcut = self.skip.and_then(|skip| skip.shortcut);
            let skip = skip.map(|skip| match shortcut {
                Some(linear) => Part { tensor: linear.forward(rec, &skip.tensor, None, Act::None, self.elem), ..*skip },
                None => skip.clone(),
            });
            let residual =
                skip.as_ref().map(|skip| Residual { tensor: &skip.tensor, top: rows.start - skip.top, left: columns.start - skip.left });
            let tensor = match &self.op {
                Op::Conv { conv, act, .. } => {
                    let norm = affine.map(|affine| Norm { affine, silu: true });
                    conv.window(rec, (&input.tensor, norm), residual, *act, self.elem, window(origin(1)))
                }
                Op::Upsample(conv) => {
                    let at = |start: usize, first: usize| (start / 2) as i64 - first as i64;
                    let (height, width) = (rows.len() / 2, columns.len() / 2);
                    let (top, left) = (at(rows.start, input.top), at(columns.start, input.left));
                    conv.window(rec, &input.tensor, self.elem, Window { height, width, top, left, odd })
                }
                Op::Strided(conv) => conv.window(rec, &input.tensor, self.elem, window(origin(conv.geometry().stride))),
                Op::Pointwise(linear) => {
                    let part = input.rows(rows);
                    let tensor = linear.forward(rec, &part.tensor, None, Act::None, self.elem);
                    if self.watched {
                        count_nonfinite(rec, &tensor);
                    }
                    return Part { tensor, ..part };
                }
                Op::Attention(attention) => attention.forward(rec, &input.tensor),
            };
            if self.watched {
                count_nonfinite(rec, &tensor);
            }
            Part { tensor, top: rows.start, left: columns.start }
        })
    }
}
