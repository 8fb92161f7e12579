//! The samplers' kernels against their f64 reference, as tests/kernels.rs does it.

mod common;

use common::operands::start;
use common::synthetic::fill;
use common::{stored, wide};
use infgen::gpu::{Elem, Recorder, Tensor};
use infgen::kernels::combine::{self, MAX_TERMS};
use infgen::reference;

fn values(label: &str, arg: &str, len: usize) -> Vec<f32> {
    fill(&format!("{label}.{arg}"), len, 1.7, 0.2, 0)
}

fn plane(rec: &mut Recorder, data: &[f32], (h, w, c): (usize, usize, usize)) -> Tensor {
    rec.upload(data, h, w, c, Elem::F32)
}

/// Height, width, channels: one quad and more, pad channels, one pixel, more than a workgroup of quads.
const SHAPES: [(usize, usize, usize); 6] = [(1, 1, 1), (3, 5, 4), (7, 2, 3), (5, 9, 9), (17, 16, 4), (19, 15, 16)];

#[test]
fn combinations_agree_with_their_definition() {
    let Some((mut suite, configs)) = start("combinations_agree_with_their_definition") else { return };
    for config in &configs {
        for shape in SHAPES {
            for count in 1..=MAX_TERMS {
                let label = format!("combine {} {shape:?} {count} terms", config.name);
                let (h, w, c) = shape;
                let coefficients: Vec<f64> = (0..count).map(|k| [0.7, -1.3, 14.6, 0.001, -0.25, 2.0][k]).collect();
                let inputs: Vec<Vec<f32>> = (0..count).map(|k| values(&label, &format!("x{k}"), h * w * c)).collect();
                let clip = (count == 3).then_some(5.0);
                suite.case(
                    config,
                    &label,
                    |rec| {
                        let tensors: Vec<Tensor> = inputs.iter().map(|x| plane(rec, x, shape)).collect();
                        let terms: Vec<(&Tensor, f64)> = tensors.iter().zip(coefficients.iter().copied()).collect();
                        combine::combine(rec, &terms, clip, c, config.elem)
                    },
                    || {
                        let inputs: Vec<Vec<f64>> = inputs.iter().map(|x| wide(x)).collect();
                        let rounded = coefficients.iter().map(|&c| c as f32 as f64);
                        let terms: Vec<(f64, &[f64])> = rounded.zip(inputs.iter().map(Vec::as_slice)).collect();
                        reference::combine(&terms, clip.unwrap_or(f64::INFINITY))
                    },
                );
            }
        }
    }
    suite.finish(configs.len() * SHAPES.len() * MAX_TERMS);
}

#[test]
fn an_input_with_fewer_channels_is_zero_in_the_others() {
    let Some((mut suite, configs)) = start("an_input_with_fewer_channels_is_zero_in_the_others") else { return };
    for config in &configs {
        for (narrow, wide_channels) in [(4, 9), (3, 8), (4, 5), (1, 9)] {
            let label = format!("widen {} {narrow} to {wide_channels}", config.name);
            let (h, w) = (5, 7);
            let x = values(&label, "x", h * w * narrow);
            let extra = values(&label, "extra", h * w * wide_channels);
            suite.case(
                config,
                &label,
                |rec| {
                    let (x, extra) = (plane(rec, &x, (h, w, narrow)), plane(rec, &extra, (h, w, wide_channels)));
                    combine::combine(rec, &[(&x, 0.5), (&extra, 1.0)], None, wide_channels, config.elem)
                },
                || {
                    let mut widened = vec![0.0; h * w * wide_channels];
                    for (i, &v) in x.iter().enumerate() {
                        widened[i / narrow * wide_channels + i % narrow] = v as f64;
                    }
                    reference::combine(&[(0.5, &widened), (1.0, &wide(&extra))], f64::INFINITY)
                },
            );
        }
    }
    suite.finish(configs.len() * 4);
}

#[test]
fn masks_choose_between_two_latents() {
    let Some((mut suite, configs)) = start("masks_choose_between_two_latents") else { return };
    for config in configs.iter().filter(|c| c.elem == Elem::F32) {
        for shape in SHAPES {
            let label = format!("blend {} {shape:?}", config.name);
            let (h, w, c) = shape;
            let (a, b) = (values(&label, "a", h * w * c), values(&label, "b", h * w * c));
            let mask: Vec<f32> = (0..h * w).map(|i| [0.0, 1.0, 0.25][i % 3]).collect();
            suite.case(
                config,
                &label,
                |rec| {
                    let (a, b, mask) = (plane(rec, &a, shape), plane(rec, &b, shape), plane(rec, &mask, (h, w, 1)));
                    let y = rec.tensor(h, w, c, Elem::F32);
                    combine::blend_into(rec, &a, &b, &mask, &y);
                    y
                },
                || reference::blend(&wide(&a), &wide(&b), &wide(&mask), c),
            );
        }
    }
    suite.finish(SHAPES.len());
}

#[test]
fn noise_takes_the_size_that_was_learned() {
    let Some((mut suite, configs)) = start("noise_takes_the_size_that_was_learned") else { return };
    for config in configs.iter().filter(|c| c.elem == Elem::F32) {
        for shape in SHAPES {
            for (base, slope) in [(-3.25, 0.5), (0.125, -2.0)] {
                let label = format!("spread_noise {} {shape:?} {base}", config.name);
                let (h, w, c) = shape;
                let (noise, v) = (values(&label, "noise", h * w * c), values(&label, "v", h * w * c));
                suite.case(
                    config,
                    &label,
                    |rec| {
                        let (noise, v) = (plane(rec, &noise, shape), plane(rec, &v, shape));
                        combine::spread_noise(rec, &noise, &v, (base, slope))
                    },
                    || reference::spread_noise(&wide(&noise), &wide(&v), (base, slope)),
                );
            }
        }
    }
    suite.finish(2 * SHAPES.len());
}

#[test]
fn guidance_takes_the_spread_of_the_conditional_output() {
    let Some((mut suite, configs)) = start("guidance_takes_the_spread_of_the_conditional_output") else { return };
    for config in configs.iter().filter(|c| c.elem == Elem::F32) {
        for shape in &SHAPES[1..] {
            for phi in [0.0, 0.7, 1.0] {
                let label = format!("guidance_rescale {} {shape:?} {phi}", config.name);
                let (h, w, c) = *shape;
                let text = stored(values(&label, "text", h * w * c), Elem::F32);
                let x: Vec<f32> = values(&label, "x", h * w * c).iter().map(|v| 3.0 * v - 1.0).collect();
                suite.case(
                    config,
                    &label,
                    |rec| {
                        let (text, x) = (plane(rec, &text, *shape), plane(rec, &x, *shape));
                        combine::guidance_rescale(rec, &text, &x, phi)
                    },
                    || reference::guidance_rescale(&wide(&text), &wide(&x), phi as f32 as f64),
                );
            }
        }
    }
    suite.finish(3 * (SHAPES.len() - 1));
}
