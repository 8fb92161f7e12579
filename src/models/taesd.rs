//! TAESD, the tiny autoencoder of SD-family latents: convolutions and ReLU, no normalisation, no attention.
//!
//! Source: madebyollin/taesd `taesd.py` at 2a1b414.

use super::taesd_config::{TaesdConfig, TaesdLayer, TaesdLayerKind};
use crate::error::Result;
use crate::gpu::Elem;
use crate::kernels::Act;
use crate::nn::chain::{Chain, Op, PlaneShape, Skip, Unit};
use crate::nn::{Conv3x3, Loader, Precision, StridedConv, UpsampleConv, append};
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
    /// Of the input.
    channels: usize,
}

/// The decoder's clamp of a scaled latent, in front of its first layer.
pub fn squashed(scaled: f32) -> f32 {
    (scaled / 3.0).tanh() * 3.0
}

impl Taesd {
    /// Loads that half.
    ///
    /// # Errors
    /// As [`Loader::read`] and uploads.
    pub async fn load(loader: &Loader<'_>, config: &TaesdConfig, half: Half) -> Result<Taesd> {
        // The decoder's picture comes as 0 to 1 and leaves as -1 to 1.
        let range = if half == Half::Decoder { (2.0, -1.0) } else { (1.0, 0.0) };
        Taesd::load_at(loader, half.name(), config, half, range).await
    }

    /// Loads that half from tensors under `prefix`; its result is multiplied and moved by `range`.
    ///
    /// # Errors
    /// As [`Taesd::load`].
    pub async fn load_at(loader: &Loader<'_>, prefix: &str, config: &TaesdConfig, half: Half, range: (f32, f32)) -> Result<Taesd> {
        let mut layers = Vec::new();
        for TaesdLayer { index, kind, channels: (cin, cout) } in config.layers(half) {
            let path = format!("{prefix}.layers.{index}");
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
                TaesdLayerKind::ConvOut => Layer::ConvOut(Conv3x3::load_affine(loader, &path, cin, cout, range.0, range.1).await?),
            };
            layers.push((path, loaded));
        }
        let channels = config.layers(half).first().map_or(0, |layer| layer.channels.0);
        Ok(Taesd { half, precision: loader.precision(), layers, channels })
    }

    /// Encoder: from a picture `[height, width, 3]`, 0 to 1, to its scaled latent. Decoder: from `tanh(z / 3) * 3` of a scaled
    /// latent `[height, width, latent_channels]` to a picture, -1 to 1 without clamping. Both in f32.
    pub fn chain(&self, (height, width): (usize, usize)) -> Chain<'_> {
        let elem = self.precision.activations;
        let conv = |conv, act| Op::Conv { conv, norm: None, act };
        // No normalisation meets the values on the way, so each layer that can overflow f16 is watched.
        let unit = |path: &str, op, elem| Unit { watched: true, ..Unit::new(path, op, elem) };
        let mut units: Vec<Unit<'_>> = Vec::new();
        for (path, layer) in &self.layers {
            match layer {
                Layer::ConvIn(first) => {
                    let act = if self.half == Half::Decoder { Act::Relu } else { Act::None };
                    units.push(unit(path, conv(first, act), elem));
                }
                Layer::Block(convs) => {
                    let skip = Some(Skip { plane: units.len(), shortcut: None });
                    let [first, second, third] = &**convs;
                    units.push(Unit::new(path, conv(first, Act::Relu), elem));
                    units.push(Unit::new(path, conv(second, Act::Relu), elem));
                    units.push(Unit { skip, ..unit(path, conv(third, Act::Relu), elem) });
                }
                Layer::Down(down) => units.push(unit(path, Op::Strided(down), elem)),
                Layer::Up(up) => units.push(unit(path, Op::Upsample(up), elem)),
                Layer::ConvOut(last) => units.push(unit(path, conv(last, Act::None), Elem::F32)),
            }
            append(&mut units, [], Some(path.clone()));
        }
        Chain::new(PlaneShape { height, width, channels: self.channels, elem: Elem::F32 }, units)
    }
}
