//! Kernels against their f64 reference: odd shapes, three storage kinds, default limits, NaN-filled memory with guard bands. Convolutions are in
//! tests/kernels_conv2d.rs, attention and the kernels of one model in files of their own.
//!
//! `CASE=<part of a label>` runs some cases only. `INFGEN_DEVICE` chooses the adapter; `REQUIRE_GPU=1` makes its absence a failure.

mod common;

use common::devices::{self, configs, skipped};
use common::operands::{ACTS, Conv, packed, start, values, vector};
use common::synthetic::fill;
use common::{stored, wide};
use infgen::gpu::{Bind, Binding, DeviceProfile, Dispatch, Elem, GpuOptions, Kernel, Recorder, Tensor};
use infgen::kernels::attention::{RelativeBias, attention, attention_biased_into};
use infgen::kernels::conv2d::{self, ConvWeights, Geometry, Packing};
use infgen::kernels::group_norm::{self, GroupNormWeights};
use infgen::kernels::layer_norm::{LayerNormWeights, layer_norm};
use infgen::kernels::linear::{self, LinearWeights};
use infgen::kernels::rotary::{Rotary, rotary};
use infgen::kernels::{Act, glu, inpe, output, peak, resample};
use infgen::reference::{self, Activation, Bounded};

#[test]
fn linear_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("linear_agrees_with_its_definition") else { return };
    // Tokens, inputs, outputs; 8 or 64 tokens by 32 outputs a tile.
    const WIDE: [(usize, usize, usize); 9] =
        [(1, 1, 29), (1, 320, 32), (7, 5, 33), (8, 12, 37), (9, 3, 64), (17, 13, 31), (63, 4, 36), (64, 7, 65), (65, 10, 30)];
    const NARROW: [(usize, usize, usize); 6] = [(1, 3, 1), (11, 6, 3), (5, 9, 4), (13, 7, 7), (9, 5, 13), (8, 17, 16)];
    for config in &configs {
        let elem = config.elem;
        let narrow: &[_] = match config.name {
            "f32" => &NARROW,
            "packed" => &NARROW[..3],
            _ => &[],
        };
        for (n, (tokens, inputs, outputs)) in WIDE.iter().chain(narrow).copied().enumerate() {
            let both: &[bool] = match config.name {
                _ if outputs < 29 => &[false],
                "f32" | "f16" | "packed" => &[false, true],
                _ => &[true],
            };
            for &residual in both {
                let (act, activation) = ACTS[(n + 3) % ACTS.len()];
                let label = format!("{tokens} x {inputs}->{outputs} {act:?} residual={residual}");
                let x = values(&label, "x", tokens * inputs, 1.7, elem);
                let weight = values(&label, "weight", outputs * inputs, (3.0 / inputs as f32).sqrt(), elem);
                let bias = values(&label, "bias", outputs, 0.5, Elem::F32);
                let added = values(&label, "residual", tokens * outputs, 1.0, elem);
                let record = |rec: &mut Recorder| {
                    let x = rec.upload(&x, tokens, 1, inputs, elem);
                    let weight = packed(rec, &linear::pack_linear(&weight, outputs, inputs), elem);
                    let weights = LinearWeights { weight, bias: vector(rec, &bias), inputs, outputs };
                    let added = residual.then(|| rec.upload(&added, tokens, 1, outputs, elem));
                    linear::linear(rec, &x, &weights, added.as_ref(), act, elem)
                };
                suite.case(config, &label, record, || {
                    let sums = reference::linear(&wide(&x), inputs, &wide(&weight), &wide(&bias), outputs).into_iter();
                    sums.zip(&added).map(|(v, &r)| activation.apply(if residual { v.plus(r as f64) } else { v })).collect()
                });
            }
        }
    }
    suite.finish(80);
}

#[test]
fn group_norm_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("group_norm_agrees_with_its_definition") else { return };
    // Height, width, channels, groups, mean of the input; statistics blocks are 8 x 16 pixels.
    const CASES: [(usize, usize, usize, usize, f32); 12] = [
        (1, 1, 4, 2, 0.0),
        (1, 1, 3, 1, 5.0),
        (5, 6, 12, 3, 0.0),
        (7, 15, 10, 5, 0.0),
        (8, 16, 8, 8, 0.0),
        (9, 17, 6, 1, -3.0),
        (16, 32, 20, 4, 0.0),
        (17, 33, 30, 10, 30.0),
        (3, 50, 13, 13, 0.0),
        (25, 2, 60, 6, 1.0),
        (2, 5, 320, 32, 0.0),
        (40, 70, 7, 7, 300.0),
    ];
    for config in &configs {
        let elem = config.elem;
        for (h, w, c, groups, offset) in CASES {
            let label = format!("{h}x{w}x{c} in {groups} groups, mean {offset}");
            let x = stored(fill(&format!("{label}.x"), h * w * c, 1.7, offset, 0), elem);
            let (weight, bias) = (values(&label, "weight", c, 1.3, Elem::F32), values(&label, "bias", c, 0.9, Elem::F32));
            let eps = 1e-5f32;
            let norm = |rec: &mut Recorder, x: &Tensor| {
                let weights = GroupNormWeights { weight: vector(rec, &weight), bias: vector(rec, &bias), groups, eps };
                group_norm::group_norm(rec, x, &weights)
            };
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, h, w, c, elem);
                let mut affine = norm(rec, &x);
                affine.channels = c; // the kernel calls its padded channels real; here they must be zero
                affine
            };
            let (x64, w64, b64) = (wide(&x), wide(&weight), wide(&bias));
            suite.case(config, &format!("statistics {label}"), record, || {
                let affine = reference::group_norm_affine(&x64, c, groups, &w64, &b64, eps as f64);
                affine.scale.into_iter().chain(affine.shift).collect()
            });
            for silu in [true, false] {
                if !silu && config.name != "f32" {
                    continue;
                }
                let record = |rec: &mut Recorder| {
                    let x = rec.upload(&x, h, w, c, elem);
                    let affine = norm(rec, &x);
                    group_norm::norm_apply(rec, &x, &affine, silu, elem)
                };
                suite.case(config, &format!("{label} silu={silu}"), record, || {
                    let y = reference::group_norm(&x64, c, groups, &w64, &b64, eps as f64).into_iter();
                    y.map(|v| if silu { Activation::Silu.apply(v) } else { v }).collect()
                });
            }
        }
    }
    suite.finish(160);
}

#[test]
fn layer_norm_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("layer_norm_agrees_with_its_definition") else { return };
    // Tokens (8 a workgroup), channels (8 quads a pass), mean.
    const CASES: [(usize, usize, f32); 9] =
        [(1, 1, 0.0), (1, 4, 2.0), (7, 20, 0.0), (8, 31, 0.0), (9, 32, -3.0), (17, 33, 30.0), (5, 36, 0.0), (3, 512, 0.0), (2, 1283, 1.0)];
    for config in &configs {
        let elem = config.elem;
        for (tokens, c, offset) in CASES {
            let label = format!("{tokens} tokens of {c}, mean {offset}");
            let x = stored(fill(&format!("{label}.x"), tokens * c, 1.7, offset, 0), elem);
            let (weight, bias) = (values(&label, "weight", c, 1.3, Elem::F32), values(&label, "bias", c, 0.9, Elem::F32));
            let eps = 1e-5f32;
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, tokens, 1, c, elem);
                let affine = rec.upload(&[weight.as_slice(), &bias].concat(), 2, 1, c, Elem::F32);
                layer_norm(rec, &x, &LayerNormWeights { affine, eps }, elem)
            };
            suite.case(config, &label, record, || reference::layer_norm(&wide(&x), c, &wide(&weight), &wide(&bias), eps as f64));
        }
    }
    suite.finish(60);
}

#[test]
fn gated_units_agree_with_their_definition() {
    let Some((mut suite, configs)) = start("gated_units_agree_with_their_definition") else { return };
    for config in &configs {
        for (tokens, half) in [(1, 4), (7, 12), (65, 20), (3, 1280)] {
            for (act, reference) in [(Act::GeluErf, Activation::GeluErf), (Act::Silu, Activation::Silu)] {
                let label = format!("{tokens} tokens of {half}, {act:?}");
                let x = values(&label, "x", tokens * 2 * half, 4.0, config.elem);
                let record = |rec: &mut Recorder| {
                    let x = rec.upload(&x, tokens, 1, 2 * half, config.elem);
                    glu::glu(rec, &x, act, config.elem)
                };
                suite.case(config, &label, record, || reference::glu(&wide(&x), half, reference));
            }
        }
    }
    suite.finish(48);
}

/// Every activation over its whole range, through a linear layer that is the identity.
#[test]
fn activations_agree_over_their_whole_range() {
    let Some((mut suite, configs)) = start("activations_agree_over_their_whole_range") else { return };
    let n = 29;
    let mut weight = vec![0.0; n * n];
    (0..n).for_each(|i| weight[i * n + i] = 1.0);
    let mut special: Vec<f32> =
        vec![0.0, -0.0, 1e-20, -1e-20, 1e-3, -1e-3, 5.0, -5.0, 9.0, -9.0, 40.0, -40.0, 79.0, -79.0, 88.0, -88.0, 120.0, -120.0, 3e4, -3e4];
    special.extend(fill("activations", 71 * n - special.len(), 12.0, 0.0, 0));
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed")) {
        let x = stored(special.clone(), config.elem);
        for (act, activation) in ACTS {
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, 71, 1, n, config.elem);
                let weight = packed(rec, &linear::pack_linear(&weight, n, n), config.elem);
                let weights = LinearWeights { weight, bias: vector(rec, &vec![0.0; n]), inputs: n, outputs: n };
                linear::linear(rec, &x, &weights, None, act, config.elem)
            };
            suite.case(config, &format!("{act:?}"), record, || x.iter().map(|&v| activation.apply(Bounded::exact(v as f64))).collect());
        }
    }
    suite.finish(12);
}

#[test]
fn position_features_agree_with_their_definition() {
    let Some((mut suite, configs)) = start("position_features_agree_with_their_definition") else { return };
    use std::f32::consts::{FRAC_PI_2, PI};
    // Grid rows and columns, first row and rows computed, features, spans.
    let cases = [
        ((1, 1), 0, 1, 1, FRAC_PI_2, FRAC_PI_2),
        ((3, 5), 0, 3, 6, FRAC_PI_2, FRAC_PI_2),
        ((7, 4), 2, 3, 33, FRAC_PI_2, FRAC_PI_2),
        ((13, 11), 12, 1, 5, 2.0 * PI, PI),
        ((9, 66), 0, 9, 256, 2.0 * PI, PI),
    ];
    for config in configs.iter().filter(|c| c.elem == Elem::F32 && !c.name.contains("other")) {
        for (grid, row0, rows, m, lon, lat) in cases {
            let label = format!("{grid:?} rows {row0}+{rows}, {m} features");
            let b = values(&label, "B", m * 3, 69.0, Elem::F32);
            let record = |rec: &mut Recorder| {
                let b = vector(rec, &b);
                inpe::inpe_features(rec, &b, m, inpe::GridRows { grid, row0, rows }, lon, lat)
            };
            suite.case(config, &label, record, || {
                let cells = (row0..row0 + rows).flat_map(|i| (0..grid.1).map(move |j| (i, j)));
                cells
                    .flat_map(|cell| reference::fourier_features(&wide(&b), reference::sphere_point(cell, grid, lon as f64, lat as f64)))
                    .collect()
            });
        }
    }
    suite.finish(10);
}

#[test]
fn bilinear_resampling_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("bilinear_resampling_agrees_with_its_definition") else { return };
    // Source height and width, grid, first row, rows, channels.
    let cases = [
        ((1, 1), (1, 1), 0, 1, 1),
        ((1, 1), (3, 2), 0, 3, 7),
        ((3, 4), (5, 9), 0, 5, 5),
        ((9, 7), (4, 3), 1, 2, 5),
        ((4, 5), (4, 5), 0, 4, 6),
        ((2, 11), (7, 6), 3, 4, 4),
        ((16, 16), (41, 13), 40, 1, 13),
    ];
    for config in &configs {
        for ((h, w), grid, row0, rows, c) in cases {
            let label = format!("{h}x{w}x{c} to {grid:?} rows {row0}+{rows}");
            let x = values(&label, "x", h * w * c, 1.7, config.elem);
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, h, w, c, config.elem);
                resample::resample_bilinear(rec, &x, inpe::GridRows { grid, row0, rows }, config.elem)
            };
            suite.case(config, &label, record, || {
                let a_row = grid.1 * c;
                reference::resample_bilinear(&wide(&x), (h, w, c), grid.0, grid.1)[row0 * a_row..(row0 + rows) * a_row].to_vec()
            });
        }
    }
    suite.finish(40);
}

#[test]
fn bicubic_resampling_of_any_part_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("bicubic_resampling_of_any_part_agrees_with_its_definition") else { return };
    // Source and target heights and widths, rows and columns of the target.
    let cases = [
        ((1, 1), (3, 2), 0..3, 0..2),
        ((5, 7), (13, 16), 0..13, 0..16),
        ((5, 7), (13, 16), 4..9, 3..14),
        ((29, 23), (4, 9), 0..4, 0..9),
        ((29, 23), (4, 9), 1..3, 5..8),
        ((8, 8), (8, 8), 2..7, 1..8),
        ((3, 90), (11, 147), 5..11, 7..140),
    ];
    for config in &configs {
        for ((h, w), to, rows, columns) in &cases {
            let label = format!("{h}x{w} to {to:?}, rows {rows:?}, columns {columns:?}");
            let x = values(&label, "x", h * w * 3, 1.7, config.elem);
            let sizes = resample::Bicubic { from: (*h, *w), to: *to };
            let (down, across) = (sizes.reads(0, rows), sizes.reads(1, columns));
            let record = |rec: &mut Recorder| {
                // Only what it says that it reads.
                let part: Vec<f32> = down.clone().flat_map(|i| &x[(i * w + across.start) * 3..(i * w + across.end) * 3]).copied().collect();
                let part = rec.upload(&part, down.len(), across.len(), 3, config.elem);
                resample::resample_bicubic(rec, (&part, (down.start, across.start)), sizes, rows, columns, config.elem)
            };
            suite.case(config, &label, record, || {
                let whole = reference::resample_bicubic(&wide(&x), (*h, *w, 3), to.0, to.1);
                rows.clone().flat_map(|i| whole[(i * to.1 + columns.start) * 3..(i * to.1 + columns.end) * 3].to_vec()).collect()
            });
        }
    }
    suite.finish(40);
}

#[test]
fn pixels_are_rounded_half_to_even_and_clamped() {
    let Some((mut suite, configs)) = start("pixels_are_rounded_half_to_even_and_clamped") else { return };
    for config in &configs {
        for ((h, w), (height, width)) in [((1, 1), (1, 1)), ((3, 5), (3, 5)), ((7, 66), (5, 65)), ((4, 64), (4, 63))] {
            let label = format!("{h}x{w} cropped to {height}x{width} [{}]", config.name);
            if !suite.wants(&label) {
                continue;
            }
            let mut x = values(&label, "x", h * w * 3, 1.3, config.elem);
            x[0] = -1.0;
            x[1] = 1.0;
            x[2] = 1e4;
            let mut rec = config.recorder();
            let image = rec.upload(&x, h, w, 3, config.elem);
            let words = output::image_to_rgba8(&mut rec, &image, width, height, (0, 0));
            rec.output("y", &words);
            let got = devices::run(&config.device.lock(), rec.finish()).unwrap().words("y");
            let cropped: Vec<f64> = (0..height).flat_map(|i| wide(&x[i * w * 3..(i * w + width) * 3])).collect();
            let want = reference::image_to_rgba8(&cropped);
            let mut result = if got.len() == want.len() { Ok(0.0) } else { Err(format!("{} words for {} pixels", got.len(), want.len())) };
            for (p, (word, want)) in got.iter().zip(&want).enumerate() {
                for (c, (byte, want)) in word.to_le_bytes().iter().zip(want).enumerate() {
                    // f32 may land on the other side of a half.
                    let level = 255.0 * reference::image_to_unit(if c < 3 { cropped[3 * p + c] } else { 1.0 });
                    let tie = (level - level.floor() - 0.5).abs() < 1e-4;
                    if byte != want && !(tie && byte.abs_diff(*want) == 1) {
                        result =
                            Err(format!("row {}, column {}, channel {c}: {byte}, expected {want} (level {level})", p / width, p % width));
                    }
                }
            }
            suite.outcome(&label, result);
        }
    }
    suite.finish(24);
}

/// The same bits however a dispatch is cut: by workgroups in every direction, and by the range that a binding may have.
#[test]
fn cutting_dispatches_changes_no_bit() {
    let Some((mut suite, _)) = start("cutting_dispatches_changes_no_bit") else { return };
    for (guard_memory, packed_f16) in [(false, false), (true, true)] {
        let options = GpuOptions { guard_memory, packed_f16, ..devices::options() };
        let Some(gpu) = devices::open(&options) else { return };
        let elem = if packed_f16 { Elem::Half } else { Elem::F32 };
        for (name, record) in RECORDINGS {
            let bits = |max_binding: u64, max_groups: u32| {
                let mut rec = gpu.recorder();
                let mut y = record(&mut rec, elem);
                if y.elem != Elem::Word {
                    y.channels = 4 * y.quads();
                }
                rec.output("y", &y);
                gpu.force_cuts(max_binding, max_groups);
                let mut outputs = devices::run(&gpu, rec.finish()).map_err(|e| e.to_string())?;
                Ok::<Vec<u32>, String>(match y.elem {
                    Elem::Word => outputs.words("y"),
                    _ => outputs.numbers("y").into_iter().map(f32::to_bits).collect(),
                })
            };
            let whole = bits(u64::MAX, u32::MAX).unwrap();
            // A workgroup of a kernel for GPUs touches more rows.
            let least = if gpu.profile().software { 4 << 10 } else { 16 << 10 };
            // Twice, the second time in memory that the first has used.
            for (max_binding, max_groups) in [(u64::MAX, u32::MAX), (u64::MAX, 1), (u64::MAX, 3), (4 * least, u32::MAX), (3 * least, 5)] {
                let label = format!("{name} {elem:?} bindings of {max_binding}, {max_groups} groups");
                if !suite.wants(&label) {
                    continue;
                }
                let result = bits(max_binding, max_groups).and_then(|cut| match whole.iter().zip(&cut).position(|(a, b)| a != b) {
                    None if cut.len() == whole.len() => Ok(0.0),
                    at => Err(format!("element {at:?} differs, {} of {} values", cut.len(), whole.len())),
                });
                suite.outcome(&label, result);
            }
        }
    }
    suite.finish(120 + 30);
}

type Record = fn(&mut Recorder, Elem) -> Tensor;

/// One call of each kernel, with planes of more than 16 KiB and weights of less than 12 KiB: only what has a footprint can be cut.
const RECORDINGS: [(&str, Record); 19] = [
    ("upsample2x_conv2d_3x3 by winograd, where it runs", |rec, elem| {
        let packing = if rec.profile().broadcast { Packing::Winograd } else { Packing::Taps };
        let (x, weights) = Conv::new("cut", (151, 5, 3), 29, 3, elem).record(rec, elem, |w| conv2d::pack_upsample(w, 29, 3, packing));
        conv2d::upsample2x_conv2d_3x3(rec, &x, &ConvWeights { packing, ..weights }, Act::None, elem)
    }),
    ("conv2d_3x3 by winograd, where it runs", |rec, elem| {
        let packing = if rec.profile().broadcast { Packing::Winograd } else { Packing::Taps };
        let (x, weights) = Conv::new("cut", (79, 19, 4), 29, 3, elem).record(rec, elem, |w| conv2d::pack_3x3(w, 29, 4, packing));
        let residual = rec.upload(&values("cut", "residual", 79 * 19 * 29, 1.0, elem), 79, 19, 29, elem);
        conv2d::conv2d_3x3(rec, &x, None, &ConvWeights { packing, ..weights }, Some(&residual), Act::Silu, elem)
    }),
    ("conv2d_3x3", |rec, elem| {
        let (x, weights) = Conv::new("cut", (79, 19, 6), 29, 3, elem).record(rec, elem, |w| conv2d::pack_square(w, 29, 6, 3));
        let residual = rec.upload(&values("cut", "residual", 79 * 19 * 29, 1.0, elem), 79, 19, 29, elem);
        conv2d::conv2d_3x3(rec, &x, None, &weights, Some(&residual), Act::Silu, elem)
    }),
    ("upsample2x_conv2d_3x3", |rec, elem| {
        let (x, weights) = Conv::new("cut", (151, 5, 3), 29, 3, elem).record(rec, elem, |w| conv2d::pack_phases(w, 29, 3));
        conv2d::upsample2x_conv2d_3x3(rec, &x, &weights, Act::None, elem)
    }),
    ("conv2d_strided", |rec, elem| {
        let (x, weights) = Conv::new("cut", (139, 21, 6), 29, 3, elem).record(rec, elem, |w| conv2d::pack_square(w, 29, 6, 3));
        conv2d::conv2d_strided(rec, &x, &weights, Geometry { kernel: 3, stride: 2, pad_before: 1, pad_after: 1 }, Act::Relu, elem)
    }),
    ("glu", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 301 * 72, 1.7, elem), 301, 1, 72, elem);
        glu::glu(rec, &x, Act::Silu, elem)
    }),
    ("rotary", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 2 * 19 * 23 * 24, 1.7, elem), 2 * 19, 23, 24, elem);
        let table = rec.upload(&values("cut", "table", 42 * 4, 1.0, Elem::F32), 42, 1, 4, Elem::F32);
        rotary(rec, &x, 3, &Rotary { table, rows: 19, columns: 23, norm: Some(1e-6) })
    }),
    ("attention_biased", |rec, elem| {
        let tokens = rec.upload(&values("cut", "x", 9 * 17 * 16, 1.7, elem), 9, 17, 16, elem);
        let bias = RelativeBias {
            table: rec.upload(&values("cut", "table", 2 * 561, 1.0, Elem::F32), 2, 1, 561, Elem::F32),
            rows: 9,
            columns: 17,
        };
        let y = rec.tensor(9, 17, 16, elem);
        attention_biased_into(rec, [&tokens, &tokens, &tokens], 2, 0.3, &bias, &y);
        y
    }),
    ("linear", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 1501 * 13, 1.7, elem), 1501, 1, 13, elem);
        let weight = packed(rec, &linear::pack_linear(&values("cut", "weight", 31 * 13, 0.5, elem), 31, 13), elem);
        let bias = vector(rec, &values("cut", "bias", 31, 0.5, Elem::F32));
        let residual = rec.upload(&values("cut", "residual", 1501 * 31, 1.0, elem), 1501, 1, 31, elem);
        linear::linear(rec, &x, &LinearWeights { weight, bias, inputs: 13, outputs: 31 }, Some(&residual), Act::GeluErf, elem)
    }),
    ("group_norm statistics", |rec, elem| {
        let (x, affine) = cut_group_norm(rec, elem);
        let _ = x;
        affine
    }),
    ("norm_apply", |rec, elem| {
        let (x, affine) = cut_group_norm(rec, elem);
        group_norm::norm_apply(rec, &x, &affine, true, elem)
    }),
    ("layer_norm", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 1501 * 30, 1.7, elem), 1501, 1, 30, elem);
        let affine = rec.upload(&values("cut", "affine", 60, 1.0, Elem::F32), 2, 1, 30, Elem::F32);
        layer_norm(rec, &x, &LayerNormWeights { affine, eps: 1e-5 }, elem)
    }),
    ("attention", |rec, elem| {
        let q = rec.upload(&values("cut", "q", 701 * 40, 2.0, elem), 701, 1, 40, elem);
        let k = rec.upload(&values("cut", "k", 37 * 40, 2.0, elem), 37, 1, 40, elem);
        let v = rec.upload(&values("cut", "v", 37 * 40, 2.0, elem), 37, 1, 40, elem);
        attention(rec, &q, &k, &v, 2, 0.25, false, elem)
    }),
    ("attention over ranges", |rec, elem| {
        *rec = Recorder::new(DeviceProfile { max_binding: 8 << 10, ..*rec.profile() });
        let q = rec.upload(&values("cut", "q", 11 * 40, 2.0, elem), 11, 1, 40, elem);
        let k = rec.upload(&values("cut", "k", 217 * 40, 2.0, elem), 217, 1, 40, elem);
        let v = rec.upload(&values("cut", "v", 217 * 40, 2.0, elem), 217, 1, 40, elem);
        attention(rec, &q, &k, &v, 2, 0.25, false, elem)
    }),
    ("attention in passes", |rec, elem| {
        let q = rec.upload(&values("cut", "q", 299 * 80, 2.0, elem), 299, 1, 80, elem);
        let k = rec.upload(&values("cut", "k", 37 * 80, 2.0, elem), 37, 1, 80, elem);
        let v = rec.upload(&values("cut", "v", 37 * 80, 2.0, elem), 37, 1, 80, elem);
        attention(rec, &q, &k, &v, 1, 0.25, false, elem)
    }),
    ("inpe_features", |rec, _| {
        let b = vector(rec, &values("cut", "B", 99, 69.0, Elem::F32));
        inpe::inpe_features(rec, &b, 33, inpe::GridRows { grid: (23, 31), row0: 2, rows: 20 }, 1.5, 1.5)
    }),
    ("resample_bilinear", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 11 * 13 * 9, 1.7, elem), 11, 13, 9, elem);
        resample::resample_bilinear(rec, &x, inpe::GridRows { grid: (41, 37), row0: 1, rows: 39 }, elem)
    }),
    ("resample_bicubic", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 25 * 29 * 3, 1.7, elem), 25, 29, 3, elem);
        let sizes = resample::Bicubic { from: (25, 29), to: (90, 150) };
        resample::resample_bicubic(rec, (&x, (0, 0)), sizes, &(3..90), &(5..150), elem)
    }),
    ("image_to_rgba8", |rec, elem| {
        let x = rec.upload(&values("cut", "x", 71 * 99 * 3, 1.2, elem), 71, 99, 3, elem);
        output::image_to_rgba8(rec, &x, 97, 70, (0, 0))
    }),
];

fn cut_group_norm(rec: &mut Recorder, elem: Elem) -> (Tensor, Tensor) {
    let x = rec.upload(&values("cut", "x", 131 * 21 * 12, 1.7, elem), 131, 21, 12, elem);
    let (weight, bias) =
        (vector(rec, &values("cut", "weight", 12, 1.0, Elem::F32)), vector(rec, &values("cut", "bias", 12, 1.0, Elem::F32)));
    let affine = group_norm::group_norm(rec, &x, &GroupNormWeights { weight, bias, groups: 4, eps: 1e-5 });
    (x, affine)
}

/// NaN, infinities and f16 overflow are found wherever they are, in every storage kind, and the layer is named; nothing else is.
#[test]
fn values_out_of_range_are_found_and_their_layer_named() {
    let Some((mut suite, configs)) = start("values_out_of_range_are_found_and_their_layer_named") else { return };
    let (h, w, c) = (9, 17, 7);
    for config in configs.iter().filter(|c| !c.name.contains("other")) {
        let half = config.elem == Elem::Half;
        let largest = if half { 65472.0 } else { 1e9 };
        let planted = [None, Some(f32::NAN), Some(f32::INFINITY), Some(f32::NEG_INFINITY), half.then_some(65504.0), half.then_some(-1e6)];
        for (n, value) in planted.into_iter().enumerate() {
            if n > 3 && value.is_none() {
                continue;
            }
            for at in [0, h * w * c - 1, (n * 131 + 64) % (h * w * c)] {
                for layer in ["count_nonfinite", "group_norm"] {
                    let label = format!("{layer}: {value:?} at {at} [{}]", config.name);
                    if !suite.wants(&label) {
                        continue;
                    }
                    let mut x = values(&label, "x", h * w * c, 1.7, config.elem);
                    x[at] = value.unwrap_or(largest);
                    let clean = values(&label, "clean", h * w * c, 1.7, config.elem);
                    let mut rec = config.recorder();
                    let affine = |rec: &mut Recorder| {
                        let ones = vector(rec, &[1.0; 7]);
                        GroupNormWeights { weight: ones.clone(), bias: ones, groups: 1, eps: 1e-5 }
                    };
                    rec.scoped("decoder", |rec| {
                        // A clean layer before and after the bad one.
                        for (name, data) in [("first", &clean), ("second", &x), ("third", &clean)] {
                            rec.scoped(name, |rec| {
                                let tensor = rec.upload(data, h, w, c, config.elem);
                                if layer == "group_norm" {
                                    let weights = affine(rec);
                                    let y = group_norm::group_norm(rec, &tensor, &weights);
                                    rec.output(name, &y);
                                } else {
                                    output::count_nonfinite(rec, &tensor);
                                }
                            });
                        }
                    });
                    let got = devices::run(&config.device.lock(), rec.finish()).map(|_| ());
                    suite.outcome(
                        &label,
                        match (value, got) {
                            (None, Ok(())) => Ok(0.0),
                            (Some(_), Err(infgen::Error::NonFinite { layer, .. })) if layer == "decoder.second" => Ok(0.0),
                            (_, got) => Err(format!("the run gave {got:?}")),
                        },
                    );
                }
            }
        }
    }
    suite.finish(120);
}

/// The argument of sine and cosine is reduced well: at the centre of a grid the point is (0, 0, 1), so angles are exact.
#[test]
fn large_angles_are_reduced_well() {
    let Some((mut suite, configs)) = start("large_angles_are_reduced_well") else { return };
    let m = 301;
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "browser f32")) {
        let b = values("angles", "B", 3 * m, 400.0, Elem::F32);
        let record = |rec: &mut Recorder| {
            let b = vector(rec, &b);
            inpe::inpe_features(rec, &b, m, inpe::GridRows { grid: (5, 3), row0: 2, rows: 1 }, 1.5, 1.5)
        };
        suite.case(config, "angles up to 400", record, || {
            let cells = (0..3).map(|j| reference::sphere_point((2, j), (5, 3), 1.5, 1.5));
            let features = cells.flat_map(|point| reference::fourier_features(&wide(&b), point));
            let exact = |i: usize| i / (2 * m) == 1;
            features.enumerate().map(|(i, v)| if exact(i) { Bounded { bound: 4e-6, ..v } } else { v }).collect()
        });
    }
    suite.finish(2);
}

/// Results past the range of f16 are stored as +-65504, and found.
#[test]
fn overflowing_results_saturate_and_are_found() {
    let Some((mut suite, configs)) = start("overflowing_results_saturate_and_are_found") else { return };
    let n = 29;
    let mut weight = vec![0.0; n * n];
    (0..n).for_each(|i| weight[i * n + i] = 3.0);
    for config in configs.iter().filter(|c| c.elem == Elem::Half && !c.name.contains("other")) {
        let mut x = values("overflow", "x", 7 * n, 1.7, config.elem);
        for (at, value) in [(0, 3e4), (40, -3e4), (100, 6e4), (7 * n - 1, -6e4)] {
            x[at] = value;
        }
        let x = stored(x, config.elem);
        let product = |rec: &mut Recorder| {
            let x = rec.upload(&x, 7, 1, n, config.elem);
            let weight = packed(rec, &linear::pack_linear(&weight, n, n), config.elem);
            let weights = LinearWeights { weight, bias: vector(rec, &vec![0.0; n]), inputs: n, outputs: n };
            linear::linear(rec, &x, &weights, None, Act::None, config.elem)
        };
        suite.case(config, "saturated", product, || x.iter().map(|&v| Bounded::exact(3.0 * v as f64)).collect());
        let mut rec = config.recorder();
        rec.scoped("layer", |rec| {
            let y = product(rec);
            output::count_nonfinite(rec, &y);
        });
        let found = match devices::run(&config.device.lock(), rec.finish()) {
            Err(infgen::Error::NonFinite { layer, .. }) if layer == "layer" => Ok(0.0),
            other => Err(format!("the run gave {other:?}")),
        };
        suite.outcome(&format!("found [{}]", config.name), found);
    }
    suite.finish(6);
}

/// Storage kinds may differ between input, weights and output: f32 position features meet f16 weights.
#[test]
fn storage_kinds_mix() {
    let Some((mut suite, configs)) = start("storage_kinds_mix") else { return };
    for config in configs.iter().filter(|c| c.elem == Elem::Half && !c.name.contains("other")) {
        for (x_elem, w_elem, y_elem) in
            [(Elem::F32, Elem::Half, Elem::Half), (Elem::Half, Elem::F32, Elem::F32), (Elem::Half, Elem::Half, Elem::F32)]
        {
            let label = format!("{x_elem:?} {w_elem:?} {y_elem:?}");
            let (tokens, inputs, outputs) = (11, 13, 29);
            let x = values(&label, "x", tokens * inputs, 1.7, x_elem);
            let weight = values(&label, "weight", outputs * inputs, 0.5, w_elem);
            let bias = values(&label, "bias", outputs, 0.5, Elem::F32);
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, tokens, 1, inputs, x_elem);
                let weight = packed(rec, &linear::pack_linear(&weight, outputs, inputs), w_elem);
                let weights = LinearWeights { weight, bias: vector(rec, &bias), inputs, outputs };
                linear::linear(rec, &x, &weights, None, Act::None, y_elem)
            };
            suite.case(config, &label, record, || reference::linear(&wide(&x), inputs, &wide(&weight), &wide(&bias), outputs));
        }
    }
    suite.finish(6);
}

/// What benchmarks measure the device by does the work that it claims.
#[test]
fn peak_kernels_do_their_work() {
    let Some((mut suite, configs)) = start("peak_kernels_do_their_work") else { return };
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "browser f32")) {
        for (tokens, c) in [(1, 3), (256, 4), (85, 12), (257, 5)] {
            let x = values("peak", "x", tokens * c, 1.7, Elem::F32);
            let record = |rec: &mut Recorder| {
                let x = rec.upload(&x, tokens, 1, c, Elem::F32);
                peak::peak_copy(rec, &x)
            };
            suite.exact(config, &format!("copy {tokens} x {c}"), record, || x.iter().map(|&v| Bounded::exact(v as f64)).collect());
        }
        let (workgroups, rounds) = (3, 50);
        suite.case(
            config,
            "fma",
            |rec| peak::peak_fma(rec, workgroups, rounds),
            || {
                // Two roundings a step where the device does not fuse it.
                let steps = 8 * rounds;
                let chain = |start: f64| (0..steps).fold(start, |v, _| v * 0.999f32 as f64 + 0.001f32 as f64);
                let invocation = |i: u32| (0..2).map(|k| chain(i as f64 * 1e-6 + k as f64 * 0.1)).sum::<f64>();
                (0..workgroups * 64)
                    .flat_map(|i| [invocation(i); 4])
                    .map(|value| Bounded { value, bound: 2.0 * steps as f64 * reference::ULP * value })
                    .collect()
            },
        );
    }
    suite.finish(10);
}

/// Rows of a tensor are a tensor: read and written in place, the rest untouched.
#[test]
fn rows_of_a_tensor_are_read_and_written_in_place() {
    let Some((mut suite, configs)) = start("rows_of_a_tensor_are_read_and_written_in_place") else { return };
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed")) {
        let elem = config.elem;
        let (h, w, inputs, outputs) = (7, 5, 6, 29);
        let x = values("rows", "x", h * w * inputs, 1.7, elem);
        let weight = values("rows", "weight", outputs * inputs, 0.5, elem);
        let bias = values("rows", "bias", outputs, 0.5, Elem::F32);
        let record = |rec: &mut Recorder| {
            let image = rec.upload(&x, h, w, inputs, elem);
            let y = rec.tensor(h, w, outputs, elem);
            let weight = packed(rec, &linear::pack_linear(&weight, outputs, inputs), elem);
            let weights = LinearWeights { weight, bias: vector(rec, &bias), inputs, outputs };
            for (first, count) in [(3, 4), (0, 1), (1, 2)] {
                linear::linear_into(rec, &image.rows(first, count), &weights, None, Act::None, &y.rows(first, count));
            }
            y
        };
        suite.case(config, "7 rows in three parts", record, || reference::linear(&wide(&x), inputs, &wide(&weight), &wide(&bias), outputs));
    }
    suite.finish(2);
}

/// The harness itself: guard bands see a stray write, and the comparison sees what it must.
mod harness {
    use super::*;
    use common::compare::{compare, same_bits};

    fn plane() -> (Vec<f32>, Vec<Bounded>, (usize, usize, usize)) {
        let shape = (5, 7, 6);
        let conv = Conv::new("harness", (5, 7, 4), 6, 3, Elem::F32);
        let want = conv.reference(reference::Geometry::same(3));
        (want.iter().map(|v| v.value as f32).collect(), want, shape)
    }

    #[test]
    fn one_wrong_element_is_seen_and_named() {
        let (mut got, want, shape) = plane();
        assert!(compare(&got, &want, shape).is_ok());
        got[(3 * 7 + 2) * 6 + 5] += 1e-3;
        let message = compare(&got, &want, shape).unwrap_err();
        assert!(message.contains("1 of 210") && message.contains("row 3, column 2, channel 5"), "{message}");
        got[0] = f32::NAN;
        assert!(compare(&got, &want, shape).unwrap_err().contains("row 0, column 0, channel 0"));
        got[0] = f32::INFINITY;
        assert!(compare(&got, &want, shape).is_err());
    }

    #[test]
    fn swapped_axes_are_seen() {
        let (got, want, (h, w, c)) = plane();
        let swapped: Vec<f32> = (0..h * w * c).map(|i| got[(i / c % w * h + i / (w * c)) % (h * w) * c + i % c]).collect();
        assert!(compare(&swapped, &want, (h, w, c)).is_err());
        let channels: Vec<f32> = (0..h * w * c).map(|i| got[i % (h * w) * c + i / (h * w)]).collect();
        assert!(compare(&channels, &want, (h, w, c)).is_err());
    }

    #[test]
    fn a_missing_tail_is_seen() {
        let (mut got, want, shape) = plane();
        assert!(compare(&got[..got.len() - 1], &want, shape).is_err());
        assert!(compare(&got[..0], &want[..0], shape).is_err());
        let last = got.len() - 1;
        got[last] = 0.0;
        assert!(compare(&got, &want, shape).is_err());
        assert!(same_bits(&[1.0, 0.0], &[1.0, -0.0], 1).is_err());
        assert!(same_bits(&[1.0], &[1.0, 2.0], 1).is_err());
    }

    /// A bound must not hide a wrong tap: each weight in turn changes its sign.
    #[test]
    fn every_weight_counts() {
        let mut conv = Conv::new("harness", (3, 4, 5), 3, 3, Elem::Half);
        let stored = |plane: Vec<Bounded>| plane.into_iter().map(Bounded::stored_f16).collect::<Vec<_>>();
        let want = stored(conv.reference(reference::Geometry::same(3)));
        let mut unseen = 0;
        for i in 0..conv.weight.len() {
            conv.weight[i] = -conv.weight[i];
            let got: Vec<f32> = conv.reference(reference::Geometry::same(3)).iter().map(|v| v.value as f32).collect();
            unseen += compare(&got, &want, (3, 4, 3)).is_ok() as usize;
            conv.weight[i] = -conv.weight[i];
        }
        assert_eq!(unseen, 0);
    }

    /// A shader that writes one unit past its tensor, or leaves one unwritten, is caught.
    #[test]
    fn stray_and_missing_writes_are_seen() {
        const COPY: Kernel = Kernel {
            name: "planted_copy",
            wgsl: "struct Params { wg: vec4<u32>, b0: vec4<u32>, b1: vec4<u32>, units: u32, first: u32 }
                @group(0) @binding(0) var<uniform> p: Params;
                @group(0) @binding(1) var<storage, read> x: array<X4>;
                @group(0) @binding(2) var<storage, read_write> y: array<Y4>;
                @compute @workgroup_size(64)
                fn main(@builtin(global_invocation_id) id: vec3<u32>) {
                    if id.x >= p.units { return; }
                    y[id.x + p.first - p.b0.y] = y_put(x_get(x[min(id.x, 4u) - p.b0.x]));
                }",
            params: &["units", "first"],
            bindings: &[Bind::X, Bind::Y],
        };
        let configs = configs();
        if configs.is_empty() {
            return skipped("stray_and_missing_writes_are_seen");
        }
        for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed")) {
            let copy = |units: u32, first: u32| {
                let x = values("copy", "x", 20, 1.0, config.elem);
                let record = |rec: &mut Recorder| {
                    let from = rec.upload(&x, 5, 1, 4, config.elem);
                    let y = rec.tensor(5, 1, 4, config.elem);
                    rec.dispatch(Dispatch {
                        kernel: &COPY,
                        consts: vec![],
                        bindings: vec![Binding::whole(&from), Binding::whole(&y)],
                        params: vec![units, first],
                        grid: [1, 1, 1],
                        flops: 0,
                    });
                    y
                };
                let want: Vec<Bounded> = x.iter().map(|&v| Bounded::exact(v as f64)).collect();
                common::suite::evaluate(config, record).and_then(|(got, shape, _)| compare(&got, &want, shape))
            };
            assert!(copy(5, 0).is_ok(), "{:?}", copy(5, 0));
            let behind = copy(6, 0).unwrap_err();
            assert!(behind.contains("guard band"), "{behind}");
            let before = copy(6, u32::MAX).unwrap_err();
            assert!(before.contains("guard band"), "{before}");
            let missing = copy(4, 0).unwrap_err();
            assert!(missing.contains("got NaN"), "{missing}");
        }
    }
}
