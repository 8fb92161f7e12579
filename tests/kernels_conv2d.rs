//! Every convolution kernel against its definition in plain f64 loops, on odd shapes, in all storage kinds.

mod common;

use common::devices::{self, Config};
use common::operands::{ACTS, Conv, packed, start, values, vector};
use common::suite::Suite;
use common::wide;
use infgen::gpu::{DeviceProfile, Elem, KernelFamily, KernelPlan, Recorder};
use infgen::kernels::Act;
use infgen::kernels::conv2d::{self, ConvWeights, Geometry, Packing};
use infgen::reference::{self, Bounded};

/// Height, width, input and output channels of convolutions whose weights are packed for 8 lanes of output quads:
/// tiles are 8 pixels wide on a CPU and 64 on a GPU, 32 channels deep.
const WIDE: [(usize, usize, usize, usize); 9] = [
    (1, 1, 5, 29),
    (11, 1, 4, 30),
    (2, 3, 13, 31),
    (7, 8, 8, 32),
    (4, 9, 12, 33),
    (3, 16, 9, 36),
    (2, 17, 5, 65),
    (3, 64, 3, 37),
    (1, 65, 1, 34),
];

/// The same for 1, 2 and 4 lanes of output quads; each number of lanes is a pipeline of its own.
const NARROW: [(usize, usize, usize, usize); 7] =
    [(1, 1, 1, 1), (5, 7, 6, 3), (3, 9, 13, 4), (3, 2, 7, 5), (2, 63, 3, 8), (4, 7, 9, 13), (1, 9, 3, 16)];

/// Which planes a configuration runs: pipelines are what costs time here, so narrow ones run in two storage kinds only.
fn planes(config: &Config) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let narrow: &[_] = match config.name {
        "f32" => &NARROW,
        "packed" => &NARROW[..3],
        _ => &[],
    };
    WIDE.iter().chain(narrow).copied()
}

/// The `n`th plane of a list, with another activation each.
fn conv2d_3x3_case(suite: &mut Suite, config: &Config, n: usize, plane: (usize, usize, usize, usize), residual: bool) {
    let (elem, (h, w, cin, cout)) = (config.elem, plane);
    let (act, activation) = ACTS[n % ACTS.len()];
    let label = format!("{h}x{w} {cin}->{cout} {act:?} residual={residual}");
    let conv = Conv::new(&label, (h, w, cin), cout, 3, elem);
    let added = values(&label, "residual", h * w * cout, 1.0, elem);
    let record = |rec: &mut Recorder| {
        let (x, weights) = conv.upload(rec, elem, &conv2d::pack_square(&conv.weight, cout, cin, 3));
        let added = residual.then(|| rec.upload(&added, h, w, cout, elem));
        conv2d::conv2d_3x3(rec, &x, None, &weights, added.as_ref(), act, elem)
    };
    suite.case(config, &label, record, || {
        let sums = conv.reference(reference::Geometry::same(3)).into_iter();
        sums.zip(&added).map(|(v, &r)| activation.apply(if residual { v.plus(r as f64) } else { v })).collect()
    });
}

#[test]
fn conv2d_3x3_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("conv2d_3x3_agrees_with_its_definition") else { return };
    for config in &configs {
        let config = &Config { profile: DeviceProfile { kernels: KernelPlan::uniform(KernelFamily::Lanes), ..config.profile }, ..*config };
        for (n, plane) in planes(config).enumerate() {
            let both: &[bool] = match config.name {
                _ if plane.3 < 29 => &[false],
                "f32" | "f16" | "packed" => &[false, true],
                _ => &[true],
            };
            both.iter().for_each(|&residual| conv2d_3x3_case(&mut suite, config, n, plane, residual));
        }
    }
    suite.finish(80);
}

#[test]
fn conv2d_3x3_in_pairs_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("conv2d_3x3_in_pairs_agrees_with_its_definition") else { return };
    for config in configs.into_iter().filter(|c| matches!(c.name, "f16" | "packed")) {
        let config = config.with_kernels(KernelFamily::Pairs);
        // The kernel takes seconds to compile on a software device: narrow planes and sums without a residual in one storage kind.
        let packed = config.name == "packed";
        for (n, plane) in WIDE.iter().chain(NARROW.iter().filter(|_| packed)).copied().enumerate() {
            let both: &[bool] = match packed {
                true if plane.3 >= 29 => &[false, true],
                true => &[false],
                false => &[true],
            };
            both.iter().for_each(|&residual| conv2d_3x3_case(&mut suite, &config, n, plane, residual));
        }
    }
    suite.finish(34);
}

/// The configurations on which kernels run whose subgroups read for each other: none on a GPU.
fn by_broadcasts(test: &str, configs: Vec<Config>) -> Vec<Config> {
    let configs: Vec<Config> = configs.into_iter().filter(|c| c.profile.broadcast && matches!(c.name, "f32" | "f16" | "packed")).collect();
    if configs.is_empty() {
        devices::skipped_broadcast(test);
    }
    configs
}

#[test]
fn conv2d_3x3_by_broadcasts_agrees_with_its_definition() {
    let test = "conv2d_3x3_by_broadcasts_agrees_with_its_definition";
    let Some((mut suite, configs)) = start(test) else { return };
    let configs = by_broadcasts(test, configs);
    for (n, config) in configs.iter().enumerate() {
        let config = config.with_kernels(KernelFamily::Broadcast);
        let both: &[bool] = if config.name == "packed" { &[false, true] } else { &[true] };
        for (n, plane) in WIDE.iter().copied().enumerate().skip(n % 2) {
            both.iter().for_each(|&residual| conv2d_3x3_case(&mut suite, &config, n, plane, residual));
        }
        // One quad of output channels, of whose weights a lane reads a part for all.
        for (n, plane) in NARROW.iter().filter(|plane| plane.3 <= 4).copied().chain([(6, 71, 21, 3)]).enumerate() {
            both.iter().for_each(|&residual| conv2d_3x3_case(&mut suite, &config, n, plane, residual));
        }
    }
    suite.finish(if configs.is_empty() { 0 } else { 50 });
}

/// More than one tile of weights, and all lanes in use.
const WIDER: [(usize, usize, usize, usize); 2] = [(6, 33, 32, 64), (5, 7, 3, 100)];

/// The same sums by fewer products, of weights that are packed for it.
#[test]
fn conv2d_3x3_by_winograd_agrees_with_its_definition() {
    let test = "conv2d_3x3_by_winograd_agrees_with_its_definition";
    let Some((mut suite, configs)) = start(test) else { return };
    let configs = by_broadcasts(test, configs);
    for config in &configs {
        let elem = config.elem;
        let both: &[bool] = if config.name == "packed" { &[false, true] } else { &[true] };
        for (n, (h, w, cin, cout)) in WIDE.into_iter().chain(WIDER).enumerate() {
            for &residual in both {
                let (act, activation) = ACTS[n % ACTS.len()];
                let label = format!("winograd {h}x{w} {cin}->{cout} {act:?} residual={residual}");
                let conv = Conv::new(&label, (h, w, cin), cout, 3, elem);
                let added = values(&label, "residual", h * w * cout, 1.0, elem);
                let record = |rec: &mut Recorder| {
                    let (x, weights) = conv.upload(rec, elem, &conv2d::pack_winograd(&conv.weight, cout, cin));
                    let weights = ConvWeights { packing: Packing::Winograd, ..weights };
                    let added = residual.then(|| rec.upload(&added, h, w, cout, elem));
                    conv2d::conv2d_3x3(rec, &x, None, &weights, added.as_ref(), act, elem)
                };
                suite.case(config, &label, record, || {
                    let (x, weight) = (wide(&conv.x), wide(&conv.weight));
                    let mut sums = conv.reference(reference::Geometry::same(3));
                    reference::widen_by_winograd(reference::WINOGRAD, &mut sums, &x, (h, w, cin), &weight, cout, elem == Elem::Half);
                    let sums = sums.into_iter().zip(&added);
                    sums.map(|(v, &r)| activation.apply(if residual { v.plus(r as f64) } else { v })).collect()
                });
            }
        }
    }
    suite.finish(if configs.is_empty() { 0 } else { 44 });
}

#[test]
fn upsampling_convolution_agrees_with_upsampling_then_convolving() {
    let Some((mut suite, mut configs)) = start("upsampling_convolution_agrees_with_upsampling_then_convolving") else { return };
    // f16 goes in pairs of quads or by broadcasts on a software device and by single quads elsewhere: all of it, wherever this runs.
    for family in [KernelFamily::Lanes, KernelFamily::Pairs] {
        let packed = configs.iter().find(|c| c.name == "packed").copied();
        configs.extend(packed.map(|c| c.with_kernels(family)));
    }
    for config in &configs {
        let elem = config.elem;
        for (n, (h, w, cin, cout)) in planes(config).enumerate() {
            let (act, activation) = ACTS[(n + 1) % ACTS.len()];
            let label = format!("{h}x{w} {cin}->{cout} {act:?}");
            let mut conv = Conv::new(&label, (h, w, cin), cout, 3, elem);
            // Multiples of 1/64 below 1: sums of four are exact in f16, so packing rounds nothing.
            conv.weight.iter_mut().for_each(|v| *v = (*v * 64.0).round().clamp(-63.0, 63.0) / 64.0);
            let record = |rec: &mut Recorder| {
                let (x, weights) = conv.upload(rec, elem, &conv2d::pack_phases(&conv.weight, cout, cin));
                conv2d::upsample2x_conv2d_3x3(rec, &x, &weights, act, elem)
            };
            suite.case(config, &label, record, || {
                let large = reference::upsample_nearest_2x(&wide(&conv.x), conv.shape);
                let same = reference::Geometry::same(3);
                let sums = reference::conv2d(&large, (2 * h, 2 * w, cin), &wide(&conv.weight), &wide(&conv.bias), cout, same);
                sums.into_iter().map(|v| activation.apply(v)).collect()
            });
        }
    }
    suite.finish(60);
}

#[test]
fn upsampling_convolution_by_winograd_agrees_with_its_definition() {
    let test = "upsampling_convolution_by_winograd_agrees_with_its_definition";
    let Some((mut suite, configs)) = start(test) else { return };
    let configs = by_broadcasts(test, configs);
    for config in &configs {
        let elem = config.elem;
        for (n, (h, w, cin, cout)) in WIDE.into_iter().chain(WIDER).enumerate() {
            let (act, activation) = ACTS[n % ACTS.len()];
            let label = format!("winograd {h}x{w} {cin}->{cout} {act:?}");
            let conv = Conv::new(&label, (h, w, cin), cout, 3, elem);
            let record = |rec: &mut Recorder| {
                let (x, weights) = conv.upload(rec, elem, &conv2d::pack_phases_winograd(&conv.weight, cout, cin));
                let weights = ConvWeights { packing: Packing::Winograd, ..weights };
                conv2d::upsample2x_conv2d_3x3(rec, &x, &weights, act, elem)
            };
            suite.case(config, &label, record, || {
                let (x, weight) = (wide(&conv.x), wide(&conv.weight));
                let large = reference::upsample_nearest_2x(&x, conv.shape);
                let mut sums =
                    reference::conv2d(&large, (2 * h, 2 * w, cin), &weight, &wide(&conv.bias), cout, reference::Geometry::same(3));
                let products = reference::WINOGRAD_UPSAMPLING;
                reference::widen_by_winograd(products, &mut sums, &x, conv.shape, &weight, cout, elem == Elem::Half);
                sums.into_iter().map(|v| activation.apply(v)).collect()
            });
        }
    }
    suite.finish(if configs.is_empty() { 0 } else { 33 });
}

#[test]
fn strided_convolution_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("strided_convolution_agrees_with_its_definition") else { return };
    // Kernel, stride, zeros before and after.
    const GEOMETRIES: [(usize, usize, usize, usize); 8] =
        [(3, 2, 1, 1), (3, 2, 0, 1), (3, 1, 1, 1), (3, 1, 0, 0), (3, 3, 2, 0), (1, 1, 0, 0), (1, 2, 0, 0), (2, 2, 0, 0)];
    const SHAPES: [(usize, usize, usize, usize); 5] = [(3, 3, 5, 29), (7, 5, 4, 33), (4, 9, 3, 36), (5, 67, 7, 31), (9, 6, 13, 32)];
    for config in &configs {
        let elem = config.elem;
        for (n, (kernel, stride, pad_before, pad_after)) in GEOMETRIES.into_iter().enumerate() {
            // Other kernel sizes are pipelines of their own.
            if kernel != 3 && config.name != "f32" {
                continue;
            }
            for (m, (h, w, cin, cout)) in SHAPES.into_iter().enumerate() {
                let (act, activation) = ACTS[(n + m) % ACTS.len()];
                let label = format!("{kernel}x{kernel} stride {stride} pad {pad_before},{pad_after} {h}x{w} {cin}->{cout} {act:?}");
                let conv = Conv::new(&label, (h, w, cin), cout, kernel, elem);
                let geometry = Geometry { kernel, stride, pad_before, pad_after };
                let record = |rec: &mut Recorder| {
                    let (x, weights) = conv.upload(rec, elem, &conv2d::pack_square(&conv.weight, cout, cin, kernel));
                    conv2d::conv2d_strided(rec, &x, &weights, geometry, act, elem)
                };
                suite.case(config, &label, record, || {
                    let pads = (pad_before, pad_after);
                    let geometry =
                        reference::Geometry { kernel: (kernel, kernel), stride: (stride, stride), pad_rows: pads, pad_columns: pads };
                    conv.reference(geometry).into_iter().map(|v| activation.apply(v)).collect()
                });
            }
        }
    }
    suite.finish(180);
}

/// A kernel that is 1 at one tap from one channel to one other shifts the image, exactly.
#[test]
fn one_hot_kernels_shift_the_image_exactly() {
    let Some((mut suite, configs)) = start("one_hot_kernels_shift_the_image_exactly") else { return };
    let (h, w, cin, cout) = (4, 11, 6, 30);
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed")) {
        let elem = config.elem;
        for tap in 0..9 {
            let (from, to) = (tap % cin, (7 * tap + 3) % cout);
            let x = values("one hot", "x", h * w * cin, 1.7, elem);
            let mut weight = vec![0.0; cout * cin * 9];
            weight[(to * cin + from) * 9 + tap] = 1.0;
            let bias = vec![0.0; cout];
            let at = |i: usize, j: usize, h: usize, w: usize, scale: usize| {
                let (row, column) = ((i + tap / 3).wrapping_sub(1), (j + tap % 3).wrapping_sub(1));
                if row < h && column < w { x[(row / scale * (w / scale) + column / scale) * cin + from] as f64 } else { 0.0 }
            };
            let plane = |h: usize, w: usize, scale: usize| -> Vec<Bounded> {
                let mut y = vec![Bounded::exact(0.0); h * w * cout];
                (0..h * w).for_each(|p| y[p * cout + to].value = at(p / w, p % w, h, w, scale));
                y
            };
            for kind in ["conv2d_3x3", "upsample", "strided"] {
                let record = |rec: &mut Recorder| {
                    let image = rec.upload(&x, h, w, cin, elem);
                    let pack = if kind == "upsample" {
                        conv2d::pack_phases(&weight, cout, cin)
                    } else {
                        conv2d::pack_square(&weight, cout, cin, 3)
                    };
                    let weights =
                        ConvWeights { weight: packed(rec, &pack, elem), bias: vector(rec, &bias), cin, cout, packing: Packing::Taps };
                    match kind {
                        "conv2d_3x3" => conv2d::conv2d_3x3(rec, &image, None, &weights, None, Act::None, elem),
                        "upsample" => conv2d::upsample2x_conv2d_3x3(rec, &image, &weights, Act::None, elem),
                        _ => conv2d::conv2d_strided(
                            rec,
                            &image,
                            &weights,
                            Geometry { kernel: 3, stride: 1, pad_before: 1, pad_after: 1 },
                            Act::None,
                            elem,
                        ),
                    }
                };
                suite.exact(config, &format!("{kind} tap {tap}"), record, || {
                    if kind == "upsample" { plane(2 * h, 2 * w, 2) } else { plane(h, w, 1) }
                });
            }
        }
    }
    suite.finish(54);
}

#[test]
fn convolution_is_linear() {
    let Some((mut suite, configs)) = start("convolution_is_linear") else { return };
    let config = &configs[0];
    let (h, w, cin, cout) = (6, 13, 7, 29);
    let label = format!("{h}x{w} {cin}->{cout}");
    let mut conv = Conv::new(&label, (h, w, cin), cout, 3, Elem::F32);
    conv.bias.fill(0.0);
    let other = values(&label, "other", h * w * cin, 1.7, Elem::F32);
    let mut apply = |x: &[f32]| {
        let record = |rec: &mut Recorder| {
            conv.x = x.to_vec();
            let (x, weights) = conv.upload(rec, Elem::F32, &conv2d::pack_square(&conv.weight, cout, cin, 3));
            conv2d::conv2d_3x3(rec, &x, None, &weights, None, Act::None, Elem::F32)
        };
        common::suite::evaluate(config, record).unwrap().0
    };
    let first: Vec<f32> = conv_x(&label, h * w * cin);
    // Powers of two scale exactly; a sum of two images agrees to rounding.
    let (a, b) = (apply(&first), apply(&other));
    let doubled = apply(&first.iter().map(|v| v * -2.0).collect::<Vec<_>>());
    let exact = a.iter().map(|v| Bounded::exact(*v as f64 * -2.0)).collect::<Vec<_>>();
    suite.outcome("scaled by -2", common::compare::compare(&doubled, &exact, (h, w, cout)));
    let sum = apply(&first.iter().zip(&other).map(|(a, b)| a + b).collect::<Vec<_>>());
    let near = |(a, b): (&f32, &f32)| Bounded { value: *a as f64 + *b as f64, bound: 2e-5 };
    suite.outcome("sum", common::compare::compare(&sum, &a.iter().zip(&b).map(near).collect::<Vec<_>>(), (h, w, cout)));
    suite.finish(2);
}

fn conv_x(label: &str, len: usize) -> Vec<f32> {
    values(label, "x", len, 1.7, Elem::F32)
}
