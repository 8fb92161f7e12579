//! A convolution of a part of a plane gives the bits of that part of the whole, from exactly the pixels that it needs.

mod common;

use common::compare::same_bits;
use common::devices::{self, Config, configs, skipped};
use common::stored;
use common::synthetic::fill;
use infgen::gpu::{DeviceProfile, Elem, KernelFamily, KernelPlan, Operator, Recorder, Tensor};
use infgen::kernels::conv2d::{self, Conv3x3Call, ConvWeights, Geometry, Packing, Residual, Window};
use infgen::kernels::group_norm::Norm;
use infgen::kernels::{Act, Packed};

/// First row, first column, height, width.
type Rectangle = (usize, usize, usize, usize);

fn cut(values: &[f32], width: usize, channels: usize, (y, x, h, w): Rectangle) -> Vec<f32> {
    (y..y + h).flat_map(|row| &values[(row * width + x) * channels..(row * width + x + w) * channels]).copied().collect()
}

/// The span `[start, start + length)` grown by `before` and `after`, inside a plane of `all`.
fn grown(start: usize, length: usize, before: usize, after: usize, all: usize) -> (usize, usize) {
    let first = start.saturating_sub(before);
    (first, (start + length + after).min(all) - first)
}

fn upload(rec: &mut Recorder, packed: &Packed, bias: &[f32], (cin, cout): (usize, usize), elem: Elem, packing: Packing) -> ConvWeights {
    let weight = rec.upload(&packed.values, 1, 1, packed.values.len(), elem);
    ConvWeights { weight, bias: rec.upload(bias, 1, 1, cout, Elem::F32), cin, cout, packing }
}

fn run(config: &Config, family: KernelFamily, record: impl FnOnce(&mut Recorder) -> Tensor) -> Vec<f32> {
    let mut rec = Recorder::new(DeviceProfile { kernels: KernelPlan::uniform(family), ..config.profile });
    let y = record(&mut rec);
    rec.output("y", &y);
    devices::run(&config.device.lock(), rec.finish()).expect("runs").numbers("y")
}

/// Calls `check` for both families on f32 and two kinds of f16; false without an adapter.
fn everywhere(test: &str, check: impl Fn(&Config, KernelFamily)) {
    let configs = configs();
    if configs.is_empty() {
        skipped(test);
    }
    // Activations in f32, weights in f16.
    let mixed = configs.iter().find(|config| config.name == "f16").map(|config| Config { name: "mixed", elem: Elem::F32, ..*config });
    for config in configs.iter().filter(|config| ["f32", "f16", "packed"].contains(&config.name)).chain(&mixed) {
        for &family in KernelFamily::ALL {
            // What is not for matrix units reads each type by the same accessors whatever the others are.
            let seen = config.name == "mixed" && !matches!(family, KernelFamily::Matrix | KernelFamily::NarrowMatrix);
            if family.is_own(&config.profile, config.elem, config.weights) && !seen {
                check(config, family);
            }
        }
    }
}

fn packing(config: &Config, operator: Operator, family: KernelFamily) -> Packing {
    if conv2d::winograd_runs(&config.profile, operator, family) { Packing::Winograd } else { Packing::Taps }
}

const PLANE: (usize, usize) = (21, 45);
const CHANNELS: (usize, usize) = (12, 36);
const RECTANGLES: [Rectangle; 7] =
    [(0, 0, 21, 45), (0, 0, 5, 9), (3, 0, 8, 45), (16, 30, 5, 15), (7, 11, 1, 1), (1, 1, 19, 43), (4, 6, 13, 20)];

#[test]
fn windows_of_a_3x3_convolution_are_crops_of_the_whole() {
    everywhere("windows_of_a_3x3_convolution_are_crops_of_the_whole", |config, family| {
        let ((h, w), (cin, cout), elem) = (PLANE, CHANNELS, config.elem);
        let x = stored(fill("windows.x", h * w * cin, 1.7, 0.0, 0), elem);
        let added = stored(fill("windows.added", h * w * cout, 1.0, 0.0, 0), elem);
        let packing = packing(config, Operator::Conv, family);
        let weight = conv2d::pack_3x3(&stored(fill("windows.w", cout * cin * 9, 0.2, 0.0, 0), config.weights), cout, cin, packing);
        let bias = fill("windows.b", cout, 0.5, 0.0, 0);
        let affine = fill("windows.affine", 2 * cin, 0.7, 0.1, 0);
        for norm in [false, true] {
            let part = |(y0, x0, oh, ow): Rectangle| {
                let (top, height) = grown(y0, oh, 1, 1, h);
                let (left, width) = grown(x0, ow, 1, 1, w);
                let input = cut(&x, w, cin, (top, left, height, width));
                // The residual's tensor has a margin of its own.
                let (rtop, rheight) = grown(y0, oh, 2, 1, h);
                let (rleft, rwidth) = grown(x0, ow, 3, 0, w);
                let residual = cut(&added, w, cout, (rtop, rleft, rheight, rwidth));
                run(config, family, |rec| {
                    let weights = upload(rec, &weight, &bias, CHANNELS, config.weights, packing);
                    let affine = norm.then(|| rec.upload(&affine, 2, 1, cin, Elem::F32));
                    let x = rec.upload(&input, height, width, cin, elem);
                    let tensor = &rec.upload(&residual, rheight, rwidth, cout, elem);
                    let call = Conv3x3Call {
                        x: &x,
                        norm: affine.as_ref().map(|affine| Norm { affine, silu: true }),
                        weights: &weights,
                        residual: Some(Residual { tensor, top: y0 - rtop, left: x0 - rleft }),
                        act: Act::Relu,
                        elem,
                        window: Window {
                            height: oh,
                            width: ow,
                            top: (y0 - top) as i64,
                            left: (x0 - left) as i64,
                            odd: (y0 % 2 == 1, x0 % 2 == 1),
                        },
                    };
                    conv2d::conv2d_3x3_window(rec, &call)
                })
            };
            let whole = part(RECTANGLES[0]);
            for rectangle in RECTANGLES {
                let same = same_bits(&part(rectangle), &cut(&whole, w, cout, rectangle), cout);
                assert_eq!(same, Ok(()), "{rectangle:?} norm={norm} {family:?} {}", config.name);
            }
        }
    });
}

#[test]
fn windows_of_an_upsampling_convolution_are_crops_of_the_whole() {
    everywhere("windows_of_an_upsampling_convolution_are_crops_of_the_whole", |config, family| {
        let ((h, w), (cin, cout), elem) = (PLANE, CHANNELS, config.elem);
        let x = stored(fill("windows.x", h * w * cin, 1.7, 0.0, 0), elem);
        let packing = packing(config, Operator::Upsample, family);
        let weight = conv2d::pack_upsample(&stored(fill("windows.w", cout * cin * 9, 0.2, 0.0, 0), config.weights), cout, cin, packing);
        let bias = fill("windows.b", cout, 0.5, 0.0, 0);
        let part = |(y0, x0, height, width): Rectangle| {
            let (top, rows) = grown(y0, height, 1, 1, h);
            let (left, columns) = grown(x0, width, 1, 1, w);
            let input = cut(&x, w, cin, (top, left, rows, columns));
            run(config, family, |rec| {
                let weights = upload(rec, &weight, &bias, CHANNELS, config.weights, packing);
                let x = rec.upload(&input, rows, columns, cin, elem);
                let window = Window { height, width, top: (y0 - top) as i64, left: (x0 - left) as i64, odd: (false, false) };
                conv2d::upsample2x_conv2d_3x3_window(rec, &x, &weights, Act::None, elem, window)
            })
        };
        let whole = part(RECTANGLES[0]);
        for rectangle in RECTANGLES {
            let (y0, x0, oh, ow) = rectangle;
            let same = same_bits(&part(rectangle), &cut(&whole, 2 * w, cout, (2 * y0, 2 * x0, 2 * oh, 2 * ow)), cout);
            assert_eq!(same, Ok(()), "{rectangle:?} {family:?} {}", config.name);
        }
    });
}

#[test]
fn windows_of_a_strided_convolution_are_crops_of_the_whole() {
    let after = Geometry { kernel: 3, stride: 2, pad_before: 0, pad_after: 1 };
    let both = Geometry { kernel: 3, stride: 2, pad_before: 1, pad_after: 1 };
    everywhere("windows_of_a_strided_convolution_are_crops_of_the_whole", |config, family| {
        let ((h, w), (cin, cout), elem) = (PLANE, CHANNELS, config.elem);
        let x = stored(fill("windows.x", h * w * cin, 1.7, 0.0, 0), elem);
        let weight = conv2d::pack_square(&stored(fill("windows.w", cout * cin * 9, 0.2, 0.0, 0), config.weights), cout, cin, 3);
        let bias = fill("windows.b", cout, 0.5, 0.0, 0);
        for geometry in [after, both] {
            let (gh, gw) = (geometry.output(h), geometry.output(w));
            let part = |(y0, x0, height, width): Rectangle| {
                // Rows 2 y0 - pad .. 2 (y0 + height - 1) - pad + 3 of the plane.
                let (top, rows) = grown(2 * y0, 2 * height - 1, geometry.pad_before, 2 - geometry.pad_before, h);
                let (left, columns) = grown(2 * x0, 2 * width - 1, geometry.pad_before, 2 - geometry.pad_before, w);
                let input = cut(&x, w, cin, (top, left, rows, columns));
                run(config, family, |rec| {
                    let weights = upload(rec, &weight, &bias, CHANNELS, config.weights, Packing::Taps);
                    let x = rec.upload(&input, rows, columns, cin, elem);
                    let window =
                        Window { height, width, top: 2 * y0 as i64 - top as i64, left: 2 * x0 as i64 - left as i64, odd: (false, false) };
                    conv2d::conv2d_strided_window(rec, &x, &weights, geometry, Act::None, elem, window)
                })
            };
            let whole = part((0, 0, gh, gw));
            for rectangle in [(0, 0, 3, gw), (2, 3, 5, 7), (gh - 2, gw - 1, 2, 1), (1, 0, gh - 1, 4)] {
                let same = same_bits(&part(rectangle), &cut(&whole, gw, cout, rectangle), cout);
                assert_eq!(same, Ok(()), "{rectangle:?} {geometry:?} {family:?} {}", config.name);
            }
        }
    });
}
