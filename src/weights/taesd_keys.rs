//! The namings of TAESD, seen as one: diffusers' `AutoencoderTiny` (`encoder.layers.N.`, `decoder.layers.N.`).
//!
//! Upstream (madebyollin/taesd `taesd.py` at 2a1b414) saves each half as a bare `nn.Sequential`: the encoder's indices
//! equal diffusers'; the decoder's are one higher, since upstream's layer 0 is the `tanh(x/3)*3` that diffusers applies
//! outside. ComfyUI puts `taesd_encoder.` / `taesd_decoder.` in front (`comfy/taesd/taesd.py` at 01312a5).

use super::Weights;
use super::view::{Naming, View};

/// One half of TAESD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// RGB in [0, 1] to scaled latents.
    Encoder,
    /// Scaled latents to RGB in [0, 1].
    Decoder,
}

impl Half {
    /// `encoder` or `decoder`, as tensor names begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }
}

/// That half of TAESD under diffusers' names (`decoder.layers.0.weight`), or `None` where it is not in `weights`.
pub fn view(weights: &Weights, half: Half) -> Option<View<'_>> {
    let rank4 = |name: &str| weights.info(name).is_some_and(|info| info.shape.len() == 4);
    let own = half.name();
    if rank4(&format!("{own}.layers.0.weight")) {
        return Some(View::plain(weights, ""));
    }
    let offset = match half {
        Half::Encoder => 0,
        Half::Decoder => 1,
    };
    let bare = match half {
        Half::Encoder => weights.info("0.weight").is_some_and(|info| matches!(info.shape, [_, 3, 3, 3])),
        Half::Decoder => !weights.contains("0.weight"),
    };
    let prefixes = [format!("taesd_{own}."), format!("{own}."), String::new()];
    prefixes
        .into_iter()
        .find(|p| (bare || !p.is_empty()) && rank4(&format!("{p}{offset}.weight")) && weights.contains_prefix(&format!("{p}3.conv.")))
        .map(|prefix| View::new(weights, &prefix, Naming::Sequential { offset }))
}
