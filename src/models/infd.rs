//! INFD's decoder: a latent, rounded to the nearest codes, to features at their own size once, and features to any patch of a picture of any size by the
//! convolutional renderer CLIF.
//!
//! Source: yinboc/infd `models/infd_base.py`, `models/vqgan/model.py` (`SimpleRendererNet`), `utils/geometry.py` and `gen_samples.py` at b79aafe.

use std::ops::Range;

use super::autoencoder_kl::VaeDecoder;
use super::infd_config::InfdConfig;
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::gather_features::{Place, gather_features};
use crate::nn::chain::{Area, Chain, Op, Part, PlaneShape, Unit};
use crate::nn::{Conv3x3, GroupNorm, Loader, ResnetBlock, append};

/// Epsilon of every group normalisation.
const NORM_EPS: f32 = 1e-6;
/// Side of the patches that a picture is rendered in, whose normalisations see nothing but the patch: the size of a patch is part of the result
/// (`gen_samples.py --patch-size`).
const PATCH: usize = 256;
/// Pixels around a patch that are rendered with it, where the picture has them (`--patch-padding`).
const CONTEXT: usize = 8;

/// Latent to features, features to pictures.
#[derive(Debug)]
pub struct InfdDecoder {
    /// `[codes, latent_channels]`
    codes: Option<Vec<f32>>,
    autoencoder: VaeDecoder,
    conv_in: Conv3x3,
    resnets: Vec<ResnetBlock>,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
    channels: usize,
    latent_channels: usize,
    elem: Elem,
}

/// A patch of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// What it shows of the picture.
    pub shown: Area,
    /// What is rendered: the same with its context.
    pub rendered: Area,
}

impl Patch {
    /// The patches of a picture, in rows from the top.
    pub fn rows(height: usize, width: usize) -> Vec<Vec<Patch>> {
        let spans = |all: usize| (0..all).step_by(PATCH).map(move |start| start..(start + PATCH).min(all));
        let with_context = |r: &Range<usize>, all: usize| r.start.saturating_sub(CONTEXT)..(r.end + CONTEXT).min(all);
        let patch = |rows: &Range<usize>, columns: Range<usize>| Patch {
            rendered: Area { rows: with_context(rows, height), columns: with_context(&columns, width) },
            shown: Area { rows: rows.clone(), columns },
        };
        spans(height).map(|rows| spans(width).map(|columns| patch(&rows, columns)).collect()).collect()
    }

    /// `area` of the picture, as far as this patch shows it, counted from the first pixel that is rendered.
    pub fn part(&self, area: &Area) -> Option<Area> {
        let span = |shown: &Range<usize>, asked: &Range<usize>, origin: usize| {
            let (start, end) = (shown.start.max(asked.start), shown.end.min(asked.end));
            (start < end).then(|| start - origin..end - origin)
        };
        Some(Area {
            rows: span(&self.shown.rows, &area.rows, self.rendered.rows.start)?,
            columns: span(&self.shown.columns, &area.columns, self.rendered.columns.start)?,
        })
    }
}

/// Where `range` of `out` rows of pixels lies among `features` rows, in f32 as the original has it: centres at -1 to 1, the nearest one rounded to even.
fn places(features: usize, out: usize, range: Range<usize>) -> Vec<Place> {
    let centre = |index: usize, count: usize| -1.0 + 2.0 * ((0.5 + index as f32) / count as f32);
    range
        .map(|i| {
            let at = centre(i, out);
            let index = (((at + 1.0) * features as f32 - 1.0) / 2.0).round_ties_even().clamp(0.0, (features - 1) as f32) as usize;
            let offset = (at - centre(index, features)) * features as f32;
            Place { index, offset, size: (2.0 / out as f64) as f32 * features as f32 }
        })
        .collect()
}

/// Which of the features' rows these places need; how many depends on the number of places alone, so that a patch stands for all of its size in plans.
fn span(places: &[Place], features: usize, out: usize) -> Range<usize> {
    let count = (((places.len() - 1) * features).div_ceil(out) + 2).min(features);
    let start = places[0].index.min(features - count);
    assert!(places[places.len() - 1].index < start + count, "rows of features");
    start..start + count
}

impl InfdDecoder {
    /// Loads the decoder, the codes and the renderer.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &InfdConfig) -> Result<InfdDecoder> {
        let (vae, width) = (&config.autoencoder, config.renderer_channels);
        let mut resnets = Vec::new();
        for n in 1..=config.renderer_layers {
            resnets.push(ResnetBlock::load(loader, &format!("renderer.net.model.{n}"), width, width, vae.norm_num_groups, NORM_EPS).await?);
        }
        Ok(InfdDecoder {
            codes: match config.codes {
                Some(codes) => Some(loader.read("quantizer.embedding.weight", &[codes, vae.latent_channels]).await?),
                None => None,
            },
            autoencoder: VaeDecoder::load(loader, vae).await?,
            conv_in: Conv3x3::load(loader, "renderer.net.model.0", config.features() + InfdConfig::COORDINATES, width).await?,
            resnets,
            norm_out: GroupNorm::load(loader, "renderer.net.norm_out", width, vae.norm_num_groups, NORM_EPS).await?,
            conv_out: Conv3x3::load(loader, "renderer.net.conv_out", width, 3).await?,
            channels: config.features(),
            latent_channels: vae.latent_channels,
            elem: loader.precision().activations,
        })
    }

    /// Each pixel of `z` (`[.., latent_channels]`) becomes the nearest code, of several the first.
    pub fn quantised(&self, z: &[f32]) -> Vec<f32> {
        let Some(codes) = &self.codes else { return z.to_vec() };
        let nearest = |pixel: &[f32]| {
            let distance = |code: &[f32]| code.iter().zip(pixel).map(|(c, v)| (*c as f64 - *v as f64).powi(2)).sum::<f64>();
            let mut best = (f64::INFINITY, &codes[..self.latent_channels]);
            for code in codes.chunks_exact(self.latent_channels) {
                let d = distance(code);
                if d < best.0 {
                    best = (d, code);
                }
            }
            best.1
        };
        z.chunks_exact(self.latent_channels).flat_map(nearest).copied().collect()
    }

    /// From codes `[height, width, latent_channels]` in f32 to features `[s h, s w, c]`.
    pub fn features_chain(&self, latent: (usize, usize)) -> Chain<'_> {
        self.autoencoder.chain(latent).0
    }

    /// From what [`InfdDecoder::gathered`] gives of a patch to its pixels `[h, w, 3]` in f32, -1 to 1 without clamping.
    pub fn patch_chain(&self, patch: &Patch) -> Chain<'_> {
        let path = |name: &str| format!("renderer.net.{name}");
        let mut units = Vec::new();
        let conv_in = Op::Conv { conv: &self.conv_in, norm: None, act: Act::None };
        append(&mut units, [Unit::new(path("model.0"), conv_in, self.elem)], Some(path("model.0")));
        for (n, resnet) in (1..).zip(&self.resnets) {
            let path = path(&format!("model.{n}"));
            let layers = resnet.units(&path, units.len(), self.elem);
            append(&mut units, layers, Some(path));
        }
        let norm = Some((&self.norm_out, path("norm_out")));
        let op = Op::Conv { conv: &self.conv_out, norm, act: Act::None };
        units.push(Unit { watched: true, ..Unit::new(path("conv_out"), op, Elem::F32) });
        let Area { rows, columns } = &patch.rendered;
        let channels = self.channels + InfdConfig::COORDINATES;
        Chain::new(PlaneShape { height: rows.len(), width: columns.len(), channels, elem: self.elem }, units)
    }

    /// Rows of the first plane of [`InfdDecoder::patch_chain`], of a picture of `size` (height, width). `features` gives what is asked for of them.
    pub fn gathered(
        &self,
        rec: &mut Recorder,
        shape: PlaneShape,
        features: impl FnOnce(&mut Recorder, &Area) -> Part,
        (patch, rows): (&Patch, Range<usize>),
        size: (usize, usize),
    ) -> Tensor {
        let Area { rows: all, columns } = &patch.rendered;
        let mut rows = places(shape.height, size.0, all.start + rows.start..all.start + rows.end);
        let mut columns = places(shape.width, size.1, columns.clone());
        let part = features(rec, &Area { rows: span(&rows, shape.height, size.0), columns: span(&columns, shape.width, size.1) });
        rows.iter_mut().for_each(|place| place.index -= part.top);
        columns.iter_mut().for_each(|place| place.index -= part.left);
        rec.scoped("renderer", |rec| gather_features(rec, &part.tensor, &rows, &columns, self.elem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_tile_the_picture_and_carry_the_context_that_there_is() {
        for (height, width) in [(1, 1), (256, 257), (600, 300)] {
            let rows = Patch::rows(height, width);
            let pixels: usize = rows.iter().flatten().map(|p| p.shown.rows.len() * p.shown.columns.len()).sum();
            assert_eq!(pixels, height * width);
        }
        let middle = &Patch::rows(600, 300)[1][1];
        assert_eq!(middle.shown, Area { rows: 256..512, columns: 256..300 });
        assert_eq!(middle.rendered, Area { rows: 248..520, columns: 248..300 });
        assert_eq!(middle.part(&Area { rows: 500..600, columns: 0..260 }), Some(Area { rows: 252..264, columns: 8..12 }));
        assert_eq!(middle.part(&Area { rows: 0..256, columns: 0..300 }), None);
    }

    #[test]
    fn spans_hold_every_place() {
        for (features, out) in [(256, 256), (256, 1000), (20, 37), (20, 9), (64, 16384), (7, 3), (1, 5)] {
            for start in (0..out).step_by(11.min(out)) {
                for length in [1, 2, 8, 272] {
                    let places = places(features, out, start..(start + length).min(out));
                    let span = span(&places, features, out);
                    assert!(places.iter().all(|p| span.contains(&p.index)) && span.end <= features, "{features} {out} {start} {length}");
                }
            }
        }
    }

    #[test]
    fn at_the_features_own_size_pixels_are_their_cells() {
        for (i, place) in places(256, 256, 0..256).into_iter().enumerate() {
            assert_eq!(place, Place { index: i, offset: 0.0, size: 2.0 });
        }
        // Four pixels a cell: -3/4, -1/4, 1/4, 3/4 of half a cell.
        let four = places(64, 256, 128..132);
        assert!(four.iter().all(|p| p.index == 32 && p.size == 0.5));
        for (p, offset) in four.iter().zip([-0.75, -0.25, 0.25, 0.75]) {
            assert!((p.offset - offset).abs() < 1e-5, "{p:?}");
        }
    }
}
