//! TAESD, the tiny autoencoder of SD-family latents: convolutions and ReLU, no normalisation, no attention.
//!
//! Source: madebyollin/taesd `taesd.py` at 2a1b414.

use super::taesd_config::{TaesdConfig, TaesdLayer, TaesdLayerKind};
use crate::error::Result;
use crate::gpu::{Elem, Recorder, Tensor};
use crate::kernels::Act;
use crate::kernels::output::count_nonfinite;
use crate::nn::{Conv3x3, Loader, Precision, StridedConv, UpsampleConv};
use crate::weights::taesd_keys::Half;

#[derive(Debug)]
enum Layer {
    ConvIn(Conv3x3),
    /// `relu(conv(relu(conv(relu(conv(x))))) + x)`
    Block(Box<[Conv3x3; 3]>),
    Down(StridedConv),
    Up(UpsampleConv),
    ConvOut(Conv3x3),
}

/// One half of a TAESD.
#[derive(Debug)]
pub struct Taesd {
    half: Half,
    precision: Precision,
    layers: Vec<(String, Layer)>,
}

impl Taesd {
    /// Loads that half.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &TaesdConfig, half: Half) -> Result<Taesd> {
        let mut layers = Vec::new();
        for TaesdLayer { index, kind, channels: (cin, cout) } in config.layers(half) {
            let path = format!("{}.layers.{index}", half.name());
            let loaded = match kind {
                TaesdLayerKind::ConvIn => Layer::ConvIn(Conv3x3::load(loader, &path, cin, cout).await?),
                TaesdLayerKind::Block => Layer::Block(Box::new([
                    Conv3x3::load(loader, &format!("{path}.conv.0"), cin, cout).await?,
                    Conv3x3::load(loader, &format!("{path}.conv.2"), cin, cout).await?,
                    Conv3x3::load(loader, &format!("{path}.conv.4"), cin, cout).await?,
                ])),
                TaesdLayerKind::Resize => match half {
                    Half::Encoder => Layer::Down(StridedConv::load(loader, &path, (cin, cout), false, StridedConv::PAD_BOTH).await?),
                    Half::Decoder => Layer::Up(UpsampleConv::load(loader, &path, (cin, cout), false).await?),
                },
                TaesdLayerKind::ConvOut => {
                    // The decoder's picture comes as 0 to 1 and leaves as -1 to 1.
                    let (gain, offset) = if half == Half::Decoder { (2.0, -1.0) } else { (1.0, 0.0) };
                    Layer::ConvOut(Conv3x3::load_affine(loader, &path, cin, cout, gain, offset).await?)
                }
            };
            layers.push((path, loaded));
        }
        Ok(Taesd { half, precision: loader.precision(), layers })
    }

    /// Encoder: a picture `[h, w, 3]`, 0 to 1, to its scaled latent. Decoder: `tanh(z / 3) * 3` of a scaled latent
    /// `[h, w, latent_channels]` to a picture, -1 to 1 without clamping. Both in f32.
    pub fn forward(&self, rec: &mut Recorder, x: &Tensor) -> Tensor {
        let elem = self.precision.activations;
        let mut h = x.clone();
        for (path, layer) in &self.layers {
            rec.scoped(path, |rec| {
                h = match layer {
                    Layer::ConvIn(conv) => {
                        let act = if self.half == Half::Decoder { Act::Relu } else { Act::None };
                        conv.forward(rec, &h, None, act, elem)
                    }
                    Layer::Block(convs) => {
                        let [first, second, third] = &**convs;
                        let inner = first.forward(rec, &h, None, Act::Relu, elem);
                        let inner = second.forward(rec, &inner, None, Act::Relu, elem);
                        third.forward(rec, &inner, Some(&h), Act::Relu, elem)
                    }
                    Layer::Down(conv) => conv.forward(rec, &h, elem),
                    Layer::Up(conv) => conv.forward(rec, &h, elem),
                    Layer::ConvOut(conv) => conv.forward(rec, &h, None, Act::None, Elem::F32),
                };
                // No normalisation meets the values on the way, so each layer that can overflow f16 is watched.
                count_nonfinite(rec, &h);
            });
            rec.tap(path, &h);
        }
        h
    }
}
