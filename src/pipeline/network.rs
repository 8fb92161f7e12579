//! The denoiser on the device, and one call of it under guidance.

use super::Guidance;
use super::parts::Denoiser;
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::combine::{combine, guidance_rescale};
use crate::kernels::linear::{LinearWeights, linear, pack_linear};
use crate::models::dit::{Classes, Dit};
use crate::models::unet::{Prompt, Unet};
use crate::nn::{Loader, RotaryScaling};
use crate::schedulers::Call;

/// A loaded denoiser.
#[derive(Debug)]
pub(super) enum Network {
    Unet(Box<Unet>),
    Dit(Box<Dit>),
}

/// A denoiser with what it is told in every call.
pub(super) enum Conditioned<'a> {
    Unet { unet: &'a Unet, prompt: Prompt, negative: Option<Prompt> },
    Dit { dit: &'a Dit, classes: Classes, rotary: RotaryScaling },
}

impl Network {
    /// `any_size`: see [`Unet::load`].
    pub async fn load(loader: &Loader<'_>, denoiser: &Denoiser, any_size: bool) -> Result<Network> {
        Ok(match denoiser {
            Denoiser::Unet { unet, .. } => Network::Unet(Box::new(Unet::load(loader, unet, any_size).await?)),
            Denoiser::Dit { dit, .. } => Network::Dit(Box::new(Dit::load(loader, dit).await?)),
        })
    }

    /// Whether it was loaded in the form that latents of the usual sizes, or of any size, take.
    pub fn fits(&self, any_size: bool) -> bool {
        match self {
            Network::Unet(unet) => unet.any_size() == any_size,
            Network::Dit(_) => true,
        }
    }
}

impl Conditioned<'_> {
    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        match self {
            Conditioned::Unet { unet, .. } => unet.config().in_channels,
            Conditioned::Dit { dit, .. } => dit.config().in_channels,
        }
    }

    /// The prediction for `call` under guidance, `[h, w, channels]` in f32, and what was learned for the variance where the call asks for it.
    pub fn predict(
        &self,
        rec: &mut Recorder,
        input: &Tensor,
        call: &Call,
        guidance: Guidance,
        channels: usize,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (timestep, mut variance) = (call.timestep, None);
        let (with, without, guided_channels) = match self {
            Conditioned::Unet { unet, prompt, negative } => {
                let mut step = unet.step(rec, timestep, guidance.embedded, prompt);
                let with = rec.scoped("unet", |rec| unet.forward(rec, input, &step, prompt))?;
                let without = match negative {
                    Some(negative) => {
                        if unet.config().added.is_some() {
                            step = unet.step(rec, timestep, guidance.embedded, negative);
                        }
                        Some(rec.scoped("unet", |rec| unet.forward(rec, input, &step, negative))?)
                    }
                    None => None,
                };
                (with, without, channels)
            }
            Conditioned::Dit { dit, classes, rotary } => {
                let learned = call.spread.is_some();
                let (all, of_first) = rec.scoped("transformer", |rec| dit.forward(rec, input, timestep, classes, *rotary, learned))?;
                let mut all = all.into_iter();
                variance = of_first;
                (all.next().expect("there is a class"), all.next(), dit.config().guided_channels)
            }
        };
        let (Some(without), Some(scale)) = (without, guidance.scale_at(timestep)) else { return Ok((with, variance)) };
        let guided = match guided_channels {
            all if all == channels => combine(rec, &[(&without, 1.0 - scale), (&with, scale)], None, channels, Elem::F32),
            some => {
                let away = combine(rec, &[(&with, 1.0), (&without, -1.0)], None, channels, Elem::F32);
                add_to_first(rec, &with, &away, some, scale - 1.0)
            }
        };
        let output = match guidance.rescale {
            phi if phi > 0.0 => guidance_rescale(rec, &with, &guided, phi),
            _ => guided,
        };
        Ok((output, variance))
    }
}

/// `x + factor * y` in the first `some` channels, `x` in the others.
fn add_to_first(rec: &mut Recorder, x: &Tensor, y: &Tensor, some: usize, factor: f64) -> Tensor {
    let n = x.channels;
    let diagonal: Vec<f32> = (0..n * n).map(|i| if i % n == i / n && i / n < some { factor as f32 } else { 0.0 }).collect();
    let weights = uploaded(rec, &diagonal, n, n);
    linear(rec, y, &weights, Some(x), Act::None, Elem::F32)
}

/// A linear layer without bias for this recording, `weight` `[outputs, inputs]`.
pub(super) fn uploaded(rec: &mut Recorder, weight: &[f32], outputs: usize, inputs: usize) -> LinearWeights {
    let packed = pack_linear(weight, outputs, inputs).values;
    let zeros = vec![0.0; outputs];
    LinearWeights {
        weight: rec.upload(&packed, 1, 1, packed.len(), Elem::F32),
        bias: rec.upload(&zeros, 1, 1, outputs, Elem::F32),
        inputs,
        outputs,
    }
}
