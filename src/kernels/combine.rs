//! What a sampler does to latents: linear combinations, masks, rescaled guidance, noise of a learned size. All in f32.

use super::product;
use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `combine.wgsl`
pub const COMBINE: Kernel = Kernel {
    name: "combine",
    wgsl: include_str!("../../shaders/combine.wgsl"),
    params: &["units", "c4", "count", "clip", "c_0", "c_1", "c_2", "c_3", "c_4", "c_5", "q_0", "q_1", "q_2", "q_3", "q_4", "q_5"],
    bindings: &[Bind::F32, Bind::F32, Bind::F32, Bind::F32, Bind::F32, Bind::F32, Bind::Y],
};

/// `blend.wgsl`
pub const BLEND: Kernel = Kernel {
    name: "blend",
    wgsl: include_str!("../../shaders/blend.wgsl"),
    params: &["units", "c4"],
    bindings: &[Bind::F32, Bind::F32, Bind::F32, Bind::F32Write],
};

/// `guidance_rescale.wgsl`
pub const GUIDANCE_RESCALE: Kernel = Kernel {
    name: "guidance_rescale",
    wgsl: include_str!("../../shaders/guidance_rescale.wgsl"),
    params: &["units", "c4", "channels", "phi"],
    bindings: &[Bind::F32, Bind::F32, Bind::F32Write],
};

/// `spread_noise.wgsl`
pub const SPREAD_NOISE: Kernel = Kernel {
    name: "spread_noise",
    wgsl: include_str!("../../shaders/spread_noise.wgsl"),
    params: &["units", "base", "slope"],
    bindings: &[Bind::F32, Bind::F32, Bind::F32Write],
};

/// Most terms of one combination.
pub const MAX_TERMS: usize = 6;

/// `sum of coefficient * x`, clipped to `+-clip`, into `y`, which must be none of the inputs; at most [`MAX_TERMS`] inputs of `y`'s size, each
/// with as many channels or fewer. No terms: zeros. Coefficients are rounded to f32 here.
pub fn combine_into(rec: &mut Recorder, terms: &[(&Tensor, f64)], clip: Option<f64>, y: &Tensor, spare: &Tensor) {
    assert!(terms.len() <= MAX_TERMS, "combine: {} terms", terms.len());
    let none = [(spare, 0.0)];
    let terms = if terms.is_empty() { &none } else { terms };
    assert!(terms.iter().all(|(x, _)| x.pixels() == y.pixels() && x.quads() <= y.quads()), "combine: shapes");
    let mut coefficients = [0u32; MAX_TERMS];
    let mut quads = [0u32; MAX_TERMS];
    for (k, (x, c)) in terms.iter().enumerate() {
        coefficients[k] = (*c as f32).to_bits();
        quads[k] = x.quads() as u32;
    }
    let clip = clip.map_or(f32::MAX, |c| c as f32);
    let mut bindings: Vec<Binding> = (0..MAX_TERMS).map(|k| Binding::whole(terms.get(k).unwrap_or(&terms[0]).0)).collect();
    bindings.push(Binding::part(y, Footprint::rows(1, 256, 0, 256)));
    let head = [y.units() as u32, y.quads() as u32, terms.len() as u32, clip.to_bits()];
    rec.dispatch(Dispatch {
        kernel: &COMBINE,
        consts: vec![],
        bindings,
        params: head.into_iter().chain(coefficients).chain(quads).collect(),
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 2 * product([terms.len(), y.pixels(), y.channels]),
    });
}

/// [`combine_into`] a new tensor of `channels` channels.
pub fn combine(rec: &mut Recorder, terms: &[(&Tensor, f64)], clip: Option<f64>, channels: usize, elem: Elem) -> Tensor {
    let first = terms[0].0;
    let y = rec.tensor(first.height, first.width, channels, elem);
    combine_into(rec, terms, clip, &y, first);
    y
}

/// `(1 - mask) a + mask b` into `y`, which must be none of them; `mask` has one channel.
pub fn blend_into(rec: &mut Recorder, a: &Tensor, b: &Tensor, mask: &Tensor, y: &Tensor) {
    let shapes = [a.shape(), b.shape()].iter().all(|s| *s == y.shape());
    assert!(shapes && mask.channels == 1 && mask.pixels() == y.pixels(), "blend: shapes");
    rec.dispatch(Dispatch {
        kernel: &BLEND,
        consts: vec![],
        bindings: vec![Binding::whole(a), Binding::whole(b), Binding::whole(mask), Binding::part(y, Footprint::rows(1, 256, 0, 256))],
        params: vec![y.units() as u32, y.quads() as u32],
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 4 * product([y.pixels(), y.channels]),
    });
}

/// `x` with its standard deviation moved by the share `phi` (0 to 1) towards that of `text`, both `[h, w, c]`.
pub fn guidance_rescale(rec: &mut Recorder, text: &Tensor, x: &Tensor, phi: f64) -> Tensor {
    assert_eq!(text.shape(), x.shape(), "guidance_rescale: shapes");
    let y = rec.tensor(x.height, x.width, x.channels, Elem::F32);
    rec.dispatch(Dispatch {
        kernel: &GUIDANCE_RESCALE,
        consts: vec![],
        bindings: vec![Binding::whole(text), Binding::whole(x), Binding::whole(&y)],
        params: vec![x.units() as u32, x.quads() as u32, x.channels as u32, (phi as f32).to_bits()],
        grid: [1, 1, 1],
        flops: 11 * product([x.pixels(), x.channels]),
    });
    y
}

/// `noise * exp(base + slope * v)`, both `[h, w, c]`; the numbers are rounded to f32 here.
pub fn spread_noise(rec: &mut Recorder, noise: &Tensor, v: &Tensor, (base, slope): (f64, f64)) -> Tensor {
    assert_eq!(noise.shape(), v.shape(), "spread_noise: shapes");
    let y = rec.tensor(noise.height, noise.width, noise.channels, Elem::F32);
    rec.dispatch(Dispatch {
        kernel: &SPREAD_NOISE,
        consts: vec![],
        bindings: vec![Binding::whole(noise), Binding::whole(v), Binding::part(&y, Footprint::rows(1, 256, 0, 256))],
        params: vec![y.units() as u32, (base as f32).to_bits(), (slope as f32).to_bits()],
        grid: [1, y.units().div_ceil(256) as u32, 1],
        flops: 4 * product([y.pixels(), y.channels]),
    });
    y
}
