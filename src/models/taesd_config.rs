//! The shape of TAESD (tiny autoencoders of SD-family latents), read off its tensors: the files bring no config.
//!
//! Source: madebyollin/taesd `taesd.py` at 2a1b414; diffusers `models/autoencoders/vae.py` (`EncoderTiny`,
//! `DecoderTiny`) at 049ca38.

use std::path::Path;

use serde::Serialize;

use super::infgen_config::TensorList;
use super::vae_config::Fields;
use crate::error::{Error, Result};
use crate::weights::View;
use crate::weights::taesd_keys::Half;

/// One half of TAESD, as its `nn.Sequential`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaesdConfig {
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Width of each stage in the order of the forward pass; 64 throughout as published.
    pub channels: Vec<usize>,
    /// Blocks of each stage in the order of the forward pass; the encoder halves the sides before every stage but the
    /// first, the decoder doubles them after every stage but the last. `[1, 3, 3, 3]` and `[3, 3, 3, 1]` as published.
    pub blocks: Vec<usize>,
}

/// One layer of the sequence that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaesdLayer {
    /// N in `{half}.layers.N`.
    pub index: usize,
    /// What it is.
    pub kind: TaesdLayerKind,
    /// Input and output channels.
    pub channels: (usize, usize),
}

/// Kinds of [`TaesdLayer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaesdLayerKind {
    /// 3x3 convolution with bias, image or latent to the first width. The decoder's is followed by ReLU, its input is
    /// `tanh(x/3)*3` of the latent.
    ConvIn,
    /// `relu(conv.4(relu(conv.2(relu(conv.0(x))))) + x)`, all 3x3 with bias.
    Block,
    /// 3x3 convolution of stride 2 without bias (encoder), or nearest-2x and a 3x3 convolution without bias (decoder).
    Resize,
    /// 3x3 convolution with bias, the last width to latent or image.
    ConvOut,
}

/// Most stages, blocks of a stage, and channels.
pub(super) const MAX_STAGES: usize = 8;
pub(super) const MAX_BLOCKS: usize = 64;
pub(super) const MAX_CHANNELS: usize = 1024;

impl TaesdConfig {
    /// Reads the sizes off the tensors of `view`, which must hold that half.
    ///
    /// # Errors
    /// [`Error::Config`] for a sequence that is not TAESD's.
    pub fn infer(view: &View, half: Half) -> Result<Self> {
        Self::inferred(view, half).map_err(|detail| Error::Config { path: view.path().to_owned(), detail })
    }

    fn inferred(view: &View, half: Half) -> Result<Self, String> {
        let part = half.name();
        let shape = |n: usize| view.info(&format!("{part}.layers.{n}.weight")).map(|info| info.shape);
        let odd = |n: usize| format!("layer {n} of the {part} (`{}`) fits no TAESD", view.file_name(&format!("{part}.layers.{n}.weight")));
        let Some(&[first, input, 3, 3]) = shape(0) else { return Err(odd(0)) };

        let (mut channels, mut blocks, mut n) = (vec![first], vec![0], half.first_block());
        let out = loop {
            let stages = blocks.len();
            match shape(n) {
                None if view.contains(&format!("{part}.layers.{n}.conv.0.weight")) => {
                    blocks[stages - 1] += 1;
                    if blocks[stages - 1] > MAX_BLOCKS {
                        return Err(odd(n));
                    }
                }
                // The decoder's upsampling takes an index and holds nothing.
                None if half == Half::Decoder && shape(n + 1).is_some() => {}
                Some(&[out, b, 3, 3]) if b == channels[stages - 1] => {
                    // A convolution without bias resizes, unless nothing follows: then the last one has lost its bias.
                    let holds = |n: usize| shape(n).is_some() || view.contains(&format!("{part}.layers.{n}.conv.0.weight"));
                    if view.contains(&format!("{part}.layers.{n}.bias")) || !(holds(n + 1) || holds(n + 2)) {
                        break out;
                    }
                    channels.push(out);
                    blocks.push(0);
                    if stages == MAX_STAGES {
                        return Err(odd(n));
                    }
                }
                _ => return Err(odd(n)),
            }
            n += 1;
        };
        let (latent_channels, image) = match half {
            Half::Encoder => (out, input),
            Half::Decoder => (input, out),
        };
        if image != 3 || !(1..=64).contains(&latent_channels) || !channels.iter().all(|c| (1..=MAX_CHANNELS).contains(c)) {
            return Err(format!("{image} image, {latent_channels} latent and {channels:?} inner channels fit no TAESD"));
        }
        Ok(Self { latent_channels, channels, blocks })
    }

    /// Checks that the `config.json` of diffusers' `AutoencoderTiny` asks for nothing but TAESD.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn check_json(json: &str, path: &Path) -> Result<()> {
        Self::checked(json).map_err(|detail| Error::Config { path: path.to_owned(), detail })
    }

    fn checked(json: &str) -> Result<(), String> {
        let fields = Fields::parse(json)?;
        fields.only("act_fn", &["relu"])?;
        fields.only("upsample_fn", &["nearest"])?;
        for (field, only) in [("upsampling_scaling_factor", 2.0), ("scaling_factor", 1.0), ("shift_factor", 0.0)] {
            if let Some(value) = fields.real(field)?.filter(|value| *value != only) {
                return Err(format!("`{field}` is {value}: this version runs TAESD with {only} only"));
            }
        }
        Ok(())
    }

    /// Pixels a latent value side.
    pub fn scale(&self) -> usize {
        1 << (self.blocks.len() - 1)
    }

    /// The layers with weights in the order of the forward pass.
    pub fn layers(&self, half: Half) -> Vec<TaesdLayer> {
        let (input, output) = match half {
            Half::Encoder => (3, self.latent_channels),
            Half::Decoder => (self.latent_channels, 3),
        };
        let mut width = self.channels[0];
        let mut layers = vec![TaesdLayer { index: 0, kind: TaesdLayerKind::ConvIn, channels: (input, width) }];
        let mut index = half.first_block();
        for (stage, (&blocks, &channels)) in self.blocks.iter().zip(&self.channels).enumerate() {
            if stage > 0 {
                index += half.resize_offset();
                layers.push(TaesdLayer { index, kind: TaesdLayerKind::Resize, channels: (width, channels) });
                index += 1;
            }
            width = channels;
            layers.extend((index..index + blocks).map(|index| TaesdLayer { index, kind: TaesdLayerKind::Block, channels: (width, width) }));
            index += blocks;
        }
        layers.push(TaesdLayer { index, kind: TaesdLayerKind::ConvOut, channels: (width, output) });
        layers
    }

    /// Name (diffusers') and shape of every tensor.
    pub fn tensors(&self, half: Half) -> Vec<(String, Vec<usize>)> {
        let mut list = TensorList::default();
        self.list(&mut list, half.name(), half);
        list.0
    }

    /// Appends every tensor of that half under `prefix`.
    pub(crate) fn list(&self, list: &mut TensorList, prefix: &str, half: Half) {
        for TaesdLayer { index, kind, channels: (cin, cout) } in self.layers(half) {
            let path = format!("{prefix}.layers.{index}");
            match kind {
                TaesdLayerKind::ConvIn | TaesdLayerKind::ConvOut => list.conv(&path, cout, cin, 3),
                TaesdLayerKind::Block => {
                    [0, 2, 4].iter().for_each(|i| list.conv(&format!("{path}.conv.{i}"), cout, cin, 3));
                }
                TaesdLayerKind::Resize => list.push(&format!("{path}.weight"), &[cout, cin, 3, 3]),
            }
        }
    }
}

impl Half {
    /// Index of the first block: the decoder has a ReLU after its first convolution.
    fn first_block(self) -> usize {
        match self {
            Self::Encoder => 1,
            Self::Decoder => 2,
        }
    }

    /// Indices between the last block of a stage and the convolution that resizes: the decoder's upsampling takes one.
    fn resize_offset(self) -> usize {
        match self {
            Self::Encoder => 0,
            Self::Decoder => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::tests::bytes_of;
    use crate::weights::{Dtype, Weights, taesd_keys};

    fn published(half: Half) -> TaesdConfig {
        let blocks = if half == Half::Encoder { vec![1, 3, 3, 3] } else { vec![3, 3, 3, 1] };
        TaesdConfig { latent_channels: 4, channels: vec![64; 4], blocks }
    }

    #[test]
    fn the_published_halves_have_67_tensors_and_their_layers_stand_where_upstream_has_them() {
        for (half, parameters, convs) in [(Half::Encoder, 1_222_532, [2, 6, 10, 14]), (Half::Decoder, 1_222_531, [6, 11, 16, 18])] {
            let config = published(half);
            let tensors = config.tensors(half);
            assert_eq!(tensors.len(), 67);
            assert_eq!(tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), parameters);
            let plain = |l: &TaesdLayer| matches!(l.kind, TaesdLayerKind::Resize | TaesdLayerKind::ConvOut).then_some(l.index);
            assert_eq!(config.layers(half).iter().filter_map(plain).collect::<Vec<_>>(), convs);
            assert_eq!(config.scale(), 8);
        }
    }

    #[test]
    fn configs_that_are_not_taesd_are_refused_by_the_fields_name() {
        let check = |json: &str| TaesdConfig::check_json(json, Path::new("config.json")).map_err(|error| error.to_string());
        let published = r#"{"_class_name": "AutoencoderTiny", "act_fn": "relu", "upsample_fn": "nearest", "scaling_factor": 1.0,
            "upsampling_scaling_factor": 2, "shift_factor": 0.0, "latent_magnitude": 3}"#;
        assert_eq!(check(published), Ok(()));
        assert_eq!(check("{}"), Ok(()));
        for (field, value) in
            [("act_fn", r#""gelu""#), ("scaling_factor", "0.5"), ("shift_factor", "0.3"), ("upsampling_scaling_factor", "4")]
        {
            let error = check(&format!("{{\"{field}\": {value}}}")).unwrap_err();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
        assert!(check("[]").is_err());
    }

    #[test]
    fn every_naming_gives_the_config_back() {
        for half in [Half::Encoder, Half::Decoder] {
            let config = TaesdConfig { latent_channels: 5, channels: vec![2, 3, 1, 4], ..published(half) };
            let offset = usize::from(half == Half::Decoder);
            let own = half.name();
            for prefix in [format!("{own}.layers."), String::new(), format!("taesd_{own}."), format!("{own}.")] {
                let shift = if prefix.ends_with("layers.") { 0 } else { offset };
                let data = [0; 4096];
                let named: Vec<_> = config
                    .tensors(half)
                    .into_iter()
                    .map(|(name, shape)| {
                        let (n, leaf) = name.strip_prefix(&format!("{own}.layers.")).and_then(|r| r.split_once('.')).unwrap();
                        (format!("{prefix}{}.{leaf}", n.parse::<usize>().unwrap() + shift), shape)
                    })
                    .collect();
                let list: Vec<_> =
                    named.iter().map(|(n, s)| (&**n, Dtype::F32, &s[..], &data[..4 * s.iter().product::<usize>()])).collect();
                let weights = Weights::from_bytes(bytes_of(&list, &[]), "m").unwrap();
                let view = taesd_keys::view(&weights, half).expect(&prefix);
                assert_eq!(TaesdConfig::infer(&view, half).unwrap(), config, "{prefix}");
                view.check(&config.tensors(half)).unwrap();
                let other = if half == Half::Encoder { Half::Decoder } else { Half::Encoder };
                assert!(taesd_keys::view(&weights, other).is_none(), "{prefix}");
            }
        }
    }
}
