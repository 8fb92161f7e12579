//! Kernels of the UNet and of INFD against their f64 references, as in kernels.rs: group norm over two tensors, nearest resampling, features where pixels lie.

mod common;

use common::devices::{configs, skipped};
use common::suite::Suite;
use common::synthetic::fill;
use common::{stored, wide};
use infgen::gpu::{Elem, Recorder};
use infgen::kernels::gather_features::{Place, gather_features};
use infgen::kernels::group_norm::{self, GroupNormWeights};
use infgen::kernels::resample::resample_nearest;
use infgen::reference::{self, Bounded};

fn values(label: &str, arg: &str, len: usize, elem: Elem) -> Vec<f32> {
    stored(fill(&format!("{label}.{arg}"), len, 1.7, 0.4, 0), elem)
}

#[test]
fn group_norm_of_two_tensors_is_that_of_their_concatenation() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("group_norm_of_two_tensors_is_that_of_their_concatenation");
    }
    let mut suite = Suite::new("group_norm_of_two_tensors_is_that_of_their_concatenation");
    // Groups that end at the seam, lie across it, or are the whole; channels that 4 does not divide on either side.
    let cases = [
        (5, 7, 8, 8, 2),
        (5, 7, 8, 4, 2),
        (9, 17, 6, 9, 5),
        (3, 2, 5, 3, 1),
        (1, 1, 7, 14, 3),
        (17, 33, 64, 32, 32),
        (2, 3, 1, 1, 1),
        (4, 4, 130, 70, 25),
    ];
    for config in &configs {
        for (h, w, a, b, groups) in cases {
            let label = format!("{h}x{w} {a}+{b} channels, {groups} groups");
            let (c, eps) = (a + b, 1e-3f32);
            let parts = [(a, values(&label, "a", h * w * a, config.elem)), (b, values(&label, "b", h * w * b, config.elem))];
            let joined: Vec<f32> = (0..h * w)
                .flat_map(|pixel| parts.iter().flat_map(move |(n, part)| part[pixel * n..(pixel + 1) * n].iter().copied()))
                .collect();
            let (weight, bias) = (values(&label, "weight", c, Elem::F32), values(&label, "bias", c, Elem::F32));
            for (side, silu) in [(0, false), (1, true)] {
                let record = |rec: &mut Recorder| {
                    let xs = [0, 1].map(|i| rec.upload(&parts[i].1, h, w, parts[i].0, config.elem));
                    let weights = GroupNormWeights {
                        weight: rec.upload(&weight, 1, 1, c, Elem::F32),
                        bias: rec.upload(&bias, 1, 1, c, Elem::F32),
                        groups,
                        eps,
                    };
                    let affine = group_norm::group_norm_joined(rec, &[&xs[0], &xs[1]], &weights);
                    group_norm::norm_apply(rec, &xs[side], &affine[side], silu, config.elem)
                };
                let want = || {
                    let all = reference::group_norm(&wide(&joined), c, groups, &wide(&weight), &wide(&bias), eps as f64);
                    let own = if side == 0 { 0..a } else { a..c };
                    let act = if silu { reference::Activation::Silu } else { reference::Activation::Identity };
                    all.chunks_exact(c).flat_map(|pixel| pixel[own.clone()].iter().map(|v| act.apply(*v))).collect::<Vec<Bounded>>()
                };
                suite.case(config, &format!("{label}, part {side}"), record, want);
            }
        }
    }
    suite.finish(8 * 2 * configs.len());
}

#[test]
fn resample_nearest_takes_the_pixel_that_torch_takes() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("resample_nearest_takes_the_pixel_that_torch_takes");
    }
    let mut suite = Suite::new("resample_nearest_takes_the_pixel_that_torch_takes");
    for config in &configs {
        for (h, w, c, oh, ow) in [(1, 1, 3, 1, 2), (5, 7, 6, 9, 13), (4, 3, 8, 8, 6), (2, 3, 1, 5, 4), (9, 16, 5, 17, 32)] {
            let label = format!("{h}x{w}x{c} to {oh}x{ow}");
            let x = values(&label, "x", h * w * c, config.elem);
            let record = |rec: &mut Recorder| {
                let plane = rec.upload(&x, h, w, c, config.elem);
                resample_nearest(rec, &plane, oh, ow, config.elem)
            };
            let want = || {
                let at = |i: usize, j: usize, k: usize| Bounded::exact(x[((i * h / oh) * w + j * w / ow) * c + k] as f64);
                let pixels = (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j)));
                pixels.flat_map(|(i, j)| (0..c).map(move |k| (i, j, k))).map(|(i, j, k)| at(i, j, k)).collect::<Vec<_>>()
            };
            suite.exact(config, &label, record, want);
        }
    }
    suite.finish(5 * configs.len());
}

#[test]
fn gathered_features_are_those_named_with_the_places_behind_them() {
    let test = "gathered_features_are_those_named_with_the_places_behind_them";
    let configs = configs();
    if configs.is_empty() {
        return skipped(test);
    }
    let mut suite = Suite::new(test);
    for config in &configs {
        for (h, w, c, rows, columns) in [(1, 1, 4, 1, 1), (5, 7, 8, 9, 13), (4, 3, 12, 2, 3), (2, 9, 64, 17, 33), (6, 5, 132, 11, 2)] {
            let label = format!("{h}x{w}x{c} to {rows}x{columns}");
            let x = values(&label, "x", h * w * c, config.elem);
            // Of rows and columns, indices in no order.
            let places = |name: &str, from: usize, count: usize| -> Vec<Place> {
                let [offset, size] = ["offset", "size"].map(|kind| values(&label, &format!("{name}.{kind}"), count, config.elem));
                (0..count).map(|i| Place { index: (7 * i + 3) % from, offset: offset[i], size: size[i] }).collect()
            };
            let (down, across) = (places("rows", h, rows), places("columns", w, columns));
            let record = |rec: &mut Recorder| {
                let plane = rec.upload(&x, h, w, c, config.elem);
                gather_features(rec, &plane, &down, &across, config.elem)
            };
            let want = || {
                let pixel = |i: &Place, j: &Place| {
                    let at = (i.index * w + j.index) * c;
                    x[at..at + c].iter().copied().chain([i.offset, j.offset, i.size, j.size]).collect::<Vec<f32>>()
                };
                let all = down.iter().flat_map(|i| across.iter().map(move |j| pixel(i, j)));
                all.flatten().map(|v| Bounded::exact(v as f64)).collect::<Vec<_>>()
            };
            suite.exact(config, &label, record, want);
        }
    }
    suite.finish(5 * configs.len());
}
