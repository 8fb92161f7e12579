//! The kernels for GPUs, chosen whatever the device: against their f64 references, on odd shapes, in every storage kind, with
//! default limits, in NaN-filled memory with guard bands, and cut in every way.
//!
//! `CASE=<part of a label>` runs some cases only. `INFGEN_DEVICE` chooses the adapter; `REQUIRE_GPU=1` makes its absence a failure.

mod common;

use common::devices::{self, Config};
use common::operands::{ACTS, MATRIX, MIXED, packed, staged, start_gpu, values, vector};
use common::synthetic::fill;
use common::wide;
use infgen::gpu::{DeviceProfile, Elem, GpuOptions, KernelFamily, KernelPlan, MatrixUnits, Operator, Recorder, Tensor};
use infgen::kernels::conv2d::{self, ConvWeights, Packing};
use infgen::kernels::group_norm::{self, Norm};
use infgen::kernels::linear::{self, LinearWeights};
use infgen::kernels::{Act, Packed};
use infgen::nn::Precision;
use infgen::reference::{self, Bounded};

/// torch's weights, channels out and in.
type Pack = fn(&[f32], usize, usize, Packing) -> Packed;

struct Conv {
    shape: (usize, usize, usize),
    cout: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Conv {
    fn new(label: &str, (h, w, cin): (usize, usize, usize), cout: usize, stored: Precision) -> Conv {
        let amp = (3.0 / (cin * 9) as f32).sqrt();
        Conv {
            shape: (h, w, cin),
            cout,
            x: values(label, "x", h * w * cin, 1.7, stored.activations),
            weight: values(label, "weight", cout * cin * 9, amp, stored.weights),
            bias: values(label, "bias", cout, 0.5, Elem::F32),
            scale: fill(&format!("{label}.scale"), cin, 0.7, 0.9, 0),
            // Far from 0: padding before the activation instead of after it is seen at the border.
            shift: fill(&format!("{label}.shift"), cin, 0.5, 1.5, 0),
        }
    }

    fn upload(&self, rec: &mut Recorder, stored: Precision, pack: &Packed) -> (Tensor, ConvWeights) {
        let (h, w, cin) = self.shape;
        let x = rec.upload(&self.x, h, w, cin, stored.activations);
        let (weight, bias) = (packed(rec, pack, stored.weights), vector(rec, &self.bias));
        (x, ConvWeights { weight, bias, cin, cout: self.cout, packing: Packing::Taps })
    }

    /// With weights for Winograd's kernels where they run, of any number of channels, so not as `conv2d::packing` says.
    fn upload_packed(&self, rec: &mut Recorder, stored: Precision, operator: Operator, pack: Pack) -> (Tensor, ConvWeights) {
        let family = rec.profile().kernels.of(stored.activations).conv;
        let packing = if conv2d::winograd_runs(rec.profile(), operator, family) { Packing::Winograd } else { Packing::Taps };
        let (x, weights) = self.upload(rec, stored, &pack(&self.weight, self.cout, self.shape.2, packing));
        (x, ConvWeights { packing, ..weights })
    }

    fn record_upsampling(&self, rec: &mut Recorder, stored: Precision, act: Act) -> Tensor {
        let (x, weights) = self.upload_packed(rec, stored, Operator::Upsample, conv2d::pack_upsample);
        conv2d::upsample2x_conv2d_3x3(rec, &x, &weights, act, stored.activations)
    }

    fn affine(&self, rec: &mut Recorder) -> Tensor {
        let pad = |v: &[f32]| v.iter().copied().chain(std::iter::repeat(0.0)).take(v.len().next_multiple_of(4)).collect::<Vec<_>>();
        let both = [pad(&self.scale), pad(&self.shift)].concat();
        rec.upload(&both, 2, 1, both.len() / 2, Elem::F32)
    }

    /// `kind`: no norm, norm, norm and SiLU.
    fn record(&self, rec: &mut Recorder, stored: Precision, kind: usize, residual: Option<&[f32]>, act: Act) -> Tensor {
        let (h, w, _) = self.shape;
        let elem = stored.activations;
        let (x, weights) = self.upload_packed(rec, stored, Operator::Conv, conv2d::pack_3x3);
        let residual = residual.map(|r| rec.upload(r, h, w, self.cout, elem));
        let affine = (kind > 0).then(|| self.affine(rec));
        let norm = affine.as_ref().map(|affine| Norm { affine, silu: kind == 2 });
        conv2d::conv2d_3x3(rec, &x, norm, &weights, residual.as_ref(), act, elem)
    }

    /// `staged`: how far from a normalised input what is multiplied may be. `winograd`: by Winograd, and whether its weights are rounded to f16.
    fn reference(&self, kind: usize, staged: impl Fn(f64) -> f64, winograd: Option<bool>) -> Vec<Bounded> {
        let (_, _, cin) = self.shape;
        let mut x = wide(&self.x);
        // What the normalised input may be off by, as a share of its size.
        let mut slack = 0.0;
        if kind > 0 {
            for (i, v) in x.iter_mut().enumerate() {
                let exact = *v * self.scale[i % cin] as f64 + self.shift[i % cin] as f64;
                *v = if kind == 2 { exact / (1.0 + (-exact).exp()) } else { exact };
            }
            slack = 16.0 * reference::ULP * 4.0;
        }
        let same = reference::Geometry::same(3);
        let conv = |x: &[f64], w: &[f64], b: &[f64]| reference::conv2d(x, self.shape, w, b, self.cout, same);
        let mut y = conv(&x, &wide(&self.weight), &wide(&self.bias));
        // Values reach about 4, so `slack` bounds the absolute error of each; it passes through the weights' sizes.
        widen(&mut y, &x, |v| slack + staged(v), |off| conv(off, &sizes(&self.weight), &vec![0.0; self.cout]));
        if let Some(rounded) = winograd {
            reference::widen_by_winograd(reference::WINOGRAD, &mut y, &x, self.shape, &wide(&self.weight), self.cout, rounded);
        }
        y
    }
}

/// The configurations for Winograd's tiles beside those of `configs`, where the device has room for them.
fn with_winograd(test: &str, configs: Vec<Config>) -> Vec<Config> {
    let names = [("f32", "f32 by winograd"), ("f16", "f16 by winograd"), ("packed", "packed by winograd")];
    let named = |c: &Config| Some(Config { name: names.into_iter().find(|(name, _)| *name == c.name)?.1, ..*c });
    let runs = |c: &Config| conv2d::winograd_runs(&c.profile, Operator::Conv, KernelFamily::WinogradTile);
    let more: Vec<Config> =
        configs.iter().filter(|c| runs(c)).filter_map(named).map(|c| c.with_kernels(KernelFamily::WinogradTile)).collect();
    if more.is_empty() {
        devices::skipped_winograd(test);
    }
    configs.into_iter().chain(more).collect()
}

fn by_winograd(config: &Config) -> bool {
    config.profile.kernels.f32.conv == KernelFamily::WinogradTile
}

fn sizes(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| v.abs() as f64).collect()
}

/// Adds to the bounds of `sums` over `x` what inputs that are `off` by so much can change; `spread` is the same sum over sizes.
fn widen(sums: &mut [Bounded], x: &[f64], off: impl Fn(f64) -> f64, spread: impl Fn(&[f64]) -> Vec<Bounded>) {
    let off: Vec<f64> = x.iter().map(|&v| off(v)).collect();
    if off.iter().any(|&off| off > 0.0) {
        sums.iter_mut().zip(spread(&off)).for_each(|(sum, s)| sum.bound += s.value);
    }
}

/// Height, width, input and output channels; tiles are 8 x 16 pixels, 2 input quads, 32 or (even counts) 64 output channels.
const PLANES: [(usize, usize, usize, usize); 14] = [
    (1, 1, 5, 33),
    (1, 1, 3, 64),
    (9, 3, 4, 31),
    (3, 15, 9, 64),
    (8, 16, 8, 32),
    (7, 17, 12, 100),
    (9, 33, 5, 64),
    (17, 15, 33, 36),
    (16, 16, 31, 64),
    (10, 18, 6, 3),
    (5, 21, 100, 5),
    (2, 35, 3, 13),
    (11, 1, 13, 64),
    (1, 47, 20, 128),
];

/// Each number of lanes, pair, norm and residual is a pipeline of its own, and compiling is what costs time here: f32 runs
/// them all, other storage kinds the wide ones.
fn narrow(cout: usize) -> bool {
    cout < 29
}

#[test]
fn conv2d_3x3_tile_agrees_with_its_definition() {
    let test = "conv2d_3x3_tile_agrees_with_its_definition";
    let Some((mut suite, configs)) = start_gpu(test) else { return };
    let configs = with_winograd(test, configs);
    for config in &configs {
        let (elem, stored) = (config.elem, config.precision());
        for (n, (h, w, cin, cout)) in PLANES.into_iter().enumerate() {
            if narrow(cout) && config.name != "f32" {
                continue;
            }
            for kind in 0..3 {
                let residual = (n + kind) % 2 == 0;
                if config.name != "f32" && (residual != (kind == 2)) {
                    continue;
                }
                let (act, activation) = ACTS[(n + kind) % ACTS.len()];
                let label = format!("{h}x{w} {cin}->{cout} norm={kind} {act:?} residual={residual}");
                let conv = Conv::new(&label, (h, w, cin), cout, stored);
                let added = values(&label, "residual", h * w * cout, 1.0, elem);
                let record = |rec: &mut Recorder| conv.record(rec, stored, kind, residual.then_some(&added), act);
                suite.case(config, &label, record, || {
                    // A normalised input is rounded to f16 before it is multiplied.
                    let rounded = |v: f64| if config.name == MATRIX && kind > 0 { v.abs() * f64::powi(2.0, -11) } else { 0.0 };
                    let winograd = by_winograd(config).then_some(stored.weights == Elem::Half);
                    let sums = conv.reference(kind, |v| rounded(v) + staged(config, v), winograd).into_iter();
                    sums.zip(&added).map(|(v, &r)| activation.apply(if residual { v.plus(r as f64) } else { v })).collect()
                });
            }
        }
    }
    suite.finish(80);
}

/// A workgroup's share of the output channels, and for matrix units subgroups of half the size that the kernels count on.
#[test]
fn narrow_tiles_and_smaller_subgroups_change_no_bit() {
    let Some((mut suite, configs)) = start_gpu("narrow_tiles_and_smaller_subgroups_change_no_bit") else { return };
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed" | MATRIX | MIXED)) {
        let run = |family: KernelFamily, times: u32, record: Record| {
            let matrix = config.profile.matrix.map(|units| MatrixUnits { subgroup: times * units.subgroup, ..units });
            let profile = DeviceProfile { kernels: KernelPlan::uniform(family), matrix, ..config.profile };
            common::suite::evaluate(&Config { profile, ..*config }, |rec| record(rec, config.precision())).unwrap().0
        };
        let (wide, narrow, recordings) = match config.name {
            MATRIX | MIXED => (KernelFamily::Matrix, KernelFamily::NarrowMatrix, WIDE_RECORDINGS),
            _ => (KernelFamily::Tile, KernelFamily::NarrowTile, RECORDINGS),
        };
        for (name, record) in recordings {
            let expected = run(wide, 1, record);
            let others = [("narrow", narrow, 1), ("subgroups", wide, 2)];
            for (what, family, times) in &others[..1 + matches!(config.name, MATRIX | MIXED) as usize] {
                let values = run(*family, *times, record);
                let differ = expected.iter().zip(&values).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let outcome = if differ == 0 && values.len() == expected.len() { Ok(0.0) } else { Err(format!("{differ} values differ")) };
                suite.outcome(&format!("{name} {} {what}", config.name), outcome);
            }
        }
    }
    suite.finish(6);
}

/// 256 output channels, two workgroups of 128 or four of 64.
const WIDE_RECORDINGS: [(&str, Record); 3] = [
    ("conv2d_3x3", |rec, stored| {
        let elem = stored.activations;
        let conv = Conv::new("wide", (19, 37, 21), 256, stored);
        conv.record(rec, stored, 2, Some(&values("wide", "residual", 19 * 37 * 256, 1.0, elem)), Act::None)
    }),
    ("upsample2x_conv2d_3x3", |rec, stored| Conv::new("wide", (11, 19, 23), 256, stored).record_upsampling(rec, stored, Act::None)),
    ("linear", |rec, stored| {
        let elem = stored.activations;
        let x = rec.upload(&values("wide", "x", 301 * 43, 1.7, elem), 301, 1, 43, elem);
        let weight = packed(rec, &linear::pack_linear(&values("wide", "weight", 256 * 43, 0.5, stored.weights), 256, 43), stored.weights);
        let bias = vector(rec, &values("wide", "bias", 256, 0.5, Elem::F32));
        linear::linear(rec, &x, &LinearWeights { weight, bias, inputs: 43, outputs: 256 }, None, Act::Silu, elem)
    }),
];

/// A convolution that gives the statistics of its result gives those that a pass over the stored result gives, and the same result.
#[test]
fn statistics_in_the_store_are_those_of_the_stored_plane() {
    let test = "statistics_in_the_store_are_those_of_the_stored_plane";
    let Some((mut suite, configs)) = start_gpu(test) else { return };
    let configs = with_winograd(test, configs);
    const PLANES: [(usize, usize, usize, usize); 6] =
        [(1, 1, 5, 33), (8, 16, 8, 32), (9, 33, 5, 64), (17, 15, 13, 128), (23, 41, 4, 100), (16, 25, 3, 8)];
    for config in &configs {
        let (elem, stored) = (config.elem, config.precision());
        // Upsampling gives them by Winograd alone.
        for (n, (h, w, cin, cout)) in PLANES.into_iter().enumerate() {
            for scale in if by_winograd(config) { 1..=2 } else { 1..=1 } {
                let label = format!("{h}x{w} {cin}->{cout} x{scale} [{}]", config.name);
                if !suite.wants(&label) || (narrow(cout) && config.name != "f32") {
                    continue;
                }
                let conv = Conv::new(&label, (h, w, cin), cout, stored);
                let record = |rec: &mut Recorder| match scale {
                    1 => conv.record(rec, stored, n % 3, None, Act::None),
                    _ => conv.record_upsampling(rec, stored, Act::None),
                };
                let mut rec = config.recorder();
                let y = record(&mut rec);
                let rows = group_norm::statistics(&mut rec, &y);
                rec.output("y", &y);
                rec.output("rows", &rows);
                let recording = rec.finish();
                // The convolution and the merge of block rows.
                let fused = recording.layers().iter().map(|layer| layer.1).sum::<usize>() == 2;
                let mut outputs = devices::run(&config.device.lock(), recording).unwrap();
                let (y, got) = (outputs.numbers("y"), outputs.numbers("rows"));
                let mut rec = config.recorder();
                let plane = rec.upload(&y, scale * h, scale * w, cout, elem);
                let rows = group_norm::statistics(&mut rec, &plane);
                rec.output("rows", &rows);
                let want = devices::run(&config.device.lock(), rec.finish()).unwrap().numbers("rows");
                let plain = common::suite::evaluate(config, record).unwrap().0;
                let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                suite.outcome(
                    &label,
                    match (fused, differ(&got, &want), differ(&y, &plain)) {
                        (true, 0, 0) if got.len() == want.len() && y.len() == plain.len() => Ok(0.0),
                        all => Err(format!("in the store, statistics that differ, values that differ: {all:?}")),
                    },
                );
            }
        }
    }
    suite.finish(24);
}

/// A value that is no number, and one that f16 cannot hold, are seen by statistics in the store too.
#[test]
fn statistics_in_the_store_see_what_is_not_finite() {
    let test = "statistics_in_the_store_see_what_is_not_finite";
    let Some((mut suite, configs)) = start_gpu(test) else { return };
    let configs = with_winograd(test, configs);
    for config in &configs {
        for (what, value) in [("NaN", f32::NAN), ("overflow", 3e38)] {
            let label = format!("{what} [{}]", config.name);
            // 3e38 is a number in f32.
            if !suite.wants(&label) || (what == "overflow" && config.elem == Elem::F32) {
                continue;
            }
            let (h, w, cin, cout) = (19, 21, 6, 64);
            let mut conv = Conv::new("finite", (h, w, cin), cout, config.precision());
            conv.bias[37] = value;
            let mut rec = config.recorder();
            let y = conv.record(&mut rec, config.precision(), 0, None, Act::None);
            let rows = group_norm::statistics(&mut rec, &y);
            rec.output("rows", &rows);
            let rows = devices::run(&config.device.lock(), rec.finish()).unwrap().numbers("rows");
            // A quad of means, then one of M2, of four channels of a block row.
            let large: Vec<usize> = (0..rows.len()).filter(|i| i / 4 % 2 == 1 && (rows[*i] >= 1e38 || rows[*i].is_nan())).collect();
            let expected: Vec<usize> = (0..h.div_ceil(8)).map(|row| row * 2 * cout + 37 / 4 * 8 + 4 + 37 % 4).collect();
            suite.outcome(&label, if large == expected { Ok(0.0) } else { Err(format!("{large:?} instead of {expected:?}")) });
        }
    }
    suite.finish(8);
}

#[test]
fn upsampling_tile_agrees_with_upsampling_then_convolving() {
    let test = "upsampling_tile_agrees_with_upsampling_then_convolving";
    let Some((mut suite, configs)) = start_gpu(test) else { return };
    let configs = with_winograd(test, configs);
    for config in &configs {
        let stored = config.precision();
        for (n, (h, w, cin, cout)) in PLANES.into_iter().enumerate() {
            if narrow(cout) && config.name != "f32" {
                continue;
            }
            let (act, activation) = ACTS[(n + 1) % ACTS.len()];
            let label = format!("{h}x{w} {cin}->{cout} {act:?}");
            let mut conv = Conv::new(&label, (h, w, cin), cout, stored);
            // Multiples of 1/64 below 1: sums of four are exact in f16, so packing rounds nothing.
            conv.weight.iter_mut().for_each(|v| *v = (*v * 64.0).round().clamp(-63.0, 63.0) / 64.0);
            let record = |rec: &mut Recorder| conv.record_upsampling(rec, stored, act);
            suite.case(config, &label, record, || {
                let large = reference::upsample_nearest_2x(&wide(&conv.x), conv.shape);
                let same = reference::Geometry::same(3);
                let plane = (2 * h, 2 * w, cin);
                let mut sums = reference::conv2d(&large, plane, &wide(&conv.weight), &wide(&conv.bias), cout, same);
                let spread = |off: &[f64]| reference::conv2d(off, plane, &sizes(&conv.weight), &vec![0.0; cout], cout, same);
                widen(&mut sums, &large, |v| staged(config, v), spread);
                if by_winograd(config) {
                    let (products, rounded) = (reference::WINOGRAD_UPSAMPLING, stored.weights == Elem::Half);
                    reference::widen_by_winograd(products, &mut sums, &wide(&conv.x), conv.shape, &wide(&conv.weight), cout, rounded);
                }
                sums.into_iter().map(|v| activation.apply(v)).collect()
            });
        }
    }
    suite.finish(55);
}

#[test]
fn linear_tile_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start_gpu("linear_tile_agrees_with_its_definition") else { return };
    // Tokens, inputs, outputs; 64 tokens, 4 input quads, 32 or 64 outputs a tile.
    const SHAPES: [(usize, usize, usize); 13] = [
        (1, 1, 29),
        (1, 320, 64),
        (7, 5, 33),
        (63, 12, 100),
        (64, 16, 64),
        (65, 17, 31),
        (130, 13, 128),
        (77, 31, 64),
        (129, 36, 32),
        (3, 3, 1),
        (70, 6, 3),
        (65, 20, 8),
        (13, 15, 13),
    ];
    for config in &configs {
        let elem = config.elem;
        for (n, (tokens, inputs, outputs)) in SHAPES.into_iter().enumerate() {
            if narrow(outputs) && config.name != "f32" {
                continue;
            }
            for residual in [false, true] {
                let (act, activation) = ACTS[(n + 3) % ACTS.len()];
                let label = format!("{tokens} x {inputs}->{outputs} {act:?} residual={residual}");
                let x = values(&label, "x", tokens * inputs, 1.7, elem);
                let weight = values(&label, "weight", outputs * inputs, (3.0 / inputs as f32).sqrt(), config.weights);
                let bias = values(&label, "bias", outputs, 0.5, Elem::F32);
                let added = values(&label, "residual", tokens * outputs, 1.0, elem);
                let record = |rec: &mut Recorder| {
                    let x = rec.upload(&x, tokens, 1, inputs, elem);
                    let weight = packed(rec, &linear::pack_linear(&weight, outputs, inputs), config.weights);
                    let weights = LinearWeights { weight, bias: vector(rec, &bias), inputs, outputs };
                    let added = residual.then(|| rec.upload(&added, tokens, 1, outputs, elem));
                    linear::linear(rec, &x, &weights, added.as_ref(), act, elem)
                };
                suite.case(config, &label, record, || {
                    let x = wide(&x);
                    let mut sums = reference::linear(&x, inputs, &wide(&weight), &wide(&bias), outputs);
                    let spread = |off: &[f64]| reference::linear(off, inputs, &sizes(&weight), &vec![0.0; outputs], outputs);
                    widen(&mut sums, &x, |v| staged(config, v), spread);
                    sums.into_iter().zip(&added).map(|(v, &r)| activation.apply(if residual { v.plus(r as f64) } else { v })).collect()
                });
            }
        }
    }
    suite.finish(95);
}

/// A kernel that is 1 at one tap from one channel to one other shifts the image, exactly.
#[test]
fn one_hot_kernels_shift_the_image_exactly() {
    let Some((mut suite, configs)) = start_gpu("one_hot_kernels_shift_the_image_exactly") else { return };
    let (h, w, cin, cout) = (9, 19, 10, 64);
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed" | MATRIX | MIXED)) {
        let (elem, stored) = (config.elem, config.precision());
        let mut conv = Conv::new("one hot", (h, w, cin), cout, stored);
        // Of which two f16 are the sum.
        if config.name == MIXED {
            conv.x.iter_mut().for_each(|v| *v = (*v * 1048576.0).round() / 1048576.0);
        }
        conv.bias.fill(0.0);
        for tap in 0..9 {
            let (from, to) = (7 * tap % cin, (29 * tap + 3) % cout);
            conv.weight.fill(0.0);
            conv.weight[(to * cin + from) * 9 + tap] = 1.0;
            let plane = |h: usize, w: usize, scale: usize| -> Vec<Bounded> {
                let mut y = vec![Bounded::exact(0.0); h * w * cout];
                for (i, j) in (0..h).flat_map(|i| (0..w).map(move |j| (i, j))) {
                    let (row, column) = ((i + tap / 3).wrapping_sub(1), (j + tap % 3).wrapping_sub(1));
                    if row < h && column < w {
                        y[(i * w + j) * cout + to].value = conv.x[(row / scale * (w / scale) + column / scale) * cin + from] as f64;
                    }
                }
                y
            };
            suite.exact(config, &format!("conv2d_3x3 tap {tap}"), |rec| conv.record(rec, stored, 0, None, Act::None), || plane(h, w, 1));
            let record = |rec: &mut Recorder| {
                let (x, weights) = conv.upload(rec, stored, &conv2d::pack_phases(&conv.weight, cout, cin));
                conv2d::upsample2x_conv2d_3x3(rec, &x, &weights, Act::None, elem)
            };
            suite.exact(config, &format!("upsample tap {tap}"), record, || plane(2 * h, 2 * w, 2));
        }
    }
    suite.finish(36);
}

type Record = fn(&mut Recorder, Precision) -> Tensor;

/// Planes of more than 16 KiB a workgroup's rows or so, and weights of less than 24 KiB.
const RECORDINGS: [(&str, Record); 3] = [
    ("conv2d_3x3", |rec, stored| {
        let elem = stored.activations;
        let conv = Conv::new("cut", (71, 37, 5), 64, stored);
        conv.record(rec, stored, 2, Some(&values("cut", "residual", 71 * 37 * 64, 1.0, elem)), Act::None)
    }),
    ("upsample2x_conv2d_3x3", |rec, stored| Conv::new("cut", (53, 19, 3), 29, stored).record_upsampling(rec, stored, Act::None)),
    ("linear", |rec, stored| {
        let elem = stored.activations;
        let x = rec.upload(&values("cut", "x", 1501 * 13, 1.7, elem), 1501, 1, 13, elem);
        let weight = packed(rec, &linear::pack_linear(&values("cut", "weight", 64 * 13, 0.5, stored.weights), 64, 13), stored.weights);
        let bias = vector(rec, &values("cut", "bias", 64, 0.5, Elem::F32));
        let residual = rec.upload(&values("cut", "residual", 1501 * 64, 1.0, elem), 1501, 1, 64, elem);
        linear::linear(rec, &x, &LinearWeights { weight, bias, inputs: 13, outputs: 64 }, Some(&residual), Act::GeluErf, elem)
    }),
];

/// The same bits however a dispatch is cut: by workgroups in every direction, and by the range that a binding may have.
#[test]
fn cutting_dispatches_changes_no_bit() {
    let Some((mut suite, _)) = start_gpu("cutting_dispatches_changes_no_bit") else { return };
    let (tile, matrix) = (KernelFamily::Tile, KernelFamily::Matrix);
    let (f16, mixed) = (Precision::F16, Precision::F16_WEIGHTS);
    let winograd = KernelFamily::WinogradTile;
    for (guard_memory, stored, family) in [
        (false, Precision::F32, tile),
        (true, f16, tile),
        (false, Precision::F32, winograd),
        (true, f16, winograd),
        (true, f16, matrix),
        (true, mixed, matrix),
    ] {
        let elem = stored.activations;
        let packed_f16 = elem == Elem::Half && family != matrix;
        let options = GpuOptions { guard_memory, packed_f16, native_f16: !packed_f16, kernels: Some(family), ..devices::options() };
        let Some(gpu) = devices::open(&options) else { return };
        if family == matrix && gpu.profile().matrix.is_none() {
            continue;
        }
        // Linear layers are those of the tiles.
        for (name, record) in RECORDINGS.into_iter().filter(|(name, _)| family != winograd || *name != "linear") {
            let bits = |max_binding: u64, max_groups: u32| {
                let mut rec = gpu.recorder();
                let mut y = record(&mut rec, stored);
                y.channels = 4 * y.quads();
                rec.output("y", &y);
                gpu.force_cuts(max_binding, max_groups);
                let mut outputs = devices::run(&gpu, rec.finish()).map_err(|e| e.to_string())?;
                Ok::<Vec<u32>, String>(outputs.numbers("y").into_iter().map(f32::to_bits).collect())
            };
            let whole = bits(u64::MAX, u32::MAX).unwrap();
            // 8 rows of the largest plane, and more than the largest weights.
            let small = if elem == Elem::Half { 64 << 10 } else { 128 << 10 };
            for (max_binding, max_groups) in [(u64::MAX, u32::MAX), (u64::MAX, 1), (u64::MAX, 3), (small, u32::MAX), (2 * small, 5)] {
                let label = format!("{name} {family} {stored:?} bindings of {max_binding}, {max_groups} groups");
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
    suite.finish(30);
}
