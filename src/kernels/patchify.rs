//! A plane as tokens of square patches, and back.

use std::ops::Range;

use crate::gpu::{Bind, Binding, Dispatch, Elem, Footprint, Kernel, Recorder, Tensor};

/// `patchify.wgsl`
pub const PATCHIFY: Kernel = Kernel {
    name: "patchify",
    wgsl: include_str!("../../shaders/patchify.wgsl"),
    params: &["units", "c4", "w", "side"],
    bindings: &[Bind::X, Bind::Y],
};

/// `unpatchify.wgsl`
pub const UNPATCHIFY: Kernel = Kernel {
    name: "unpatchify",
    wgsl: include_str!("../../shaders/unpatchify.wgsl"),
    params: &["units", "c4", "w", "side", "s4", "first"],
    bindings: &[Bind::X, Bind::Y],
};

/// `x` (`[h, w, c]`, sides multiples of `patch`, `c` of 4) as tokens `[h / patch, w / patch, patch * patch * c]`: a token's pixels row by row, channels
/// fastest.
pub fn patchify(rec: &mut Recorder, x: &Tensor, patch: usize, elem: Elem) -> Tensor {
    let (h, w, c) = x.shape();
    assert!(h.is_multiple_of(patch) && w.is_multiple_of(patch) && c.is_multiple_of(4), "patchify: {h} x {w} x {c} by {patch}");
    let y = rec.tensor(h / patch, w / patch, patch * patch * c, elem);
    rec.dispatch(Dispatch {
        kernel: &PATCHIFY,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: vec![y.units() as u32, x.quads() as u32, w as u32, patch as u32],
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 0,
    });
    y
}

/// The plane of `x` (tokens as [`patchify`] makes them) with `channels` of each pixel's; bounds and numbers of channels multiples of 4.
pub fn unpatchify(rec: &mut Recorder, x: &Tensor, patch: usize, channels: Range<usize>, elem: Elem) -> Tensor {
    let stored = x.channels / (patch * patch);
    let whole = stored * patch * patch == x.channels && [stored, channels.start, channels.end].iter().all(|n| n.is_multiple_of(4));
    assert!(whole && channels.end <= stored, "unpatchify: channels {channels:?} of {} in patches of {patch}", x.channels);
    let y = rec.tensor(x.height * patch, x.width * patch, channels.len(), elem);
    rec.dispatch(Dispatch {
        kernel: &UNPATCHIFY,
        consts: vec![],
        bindings: vec![Binding::whole(x), Binding::part(&y, Footprint::rows(1, 64, 0, 64))],
        params: vec![y.units() as u32, y.quads() as u32, y.width as u32, patch as u32, stored as u32 / 4, channels.start as u32 / 4],
        grid: [1, y.units().div_ceil(64) as u32, 1],
        flops: 0,
    });
    y
}
