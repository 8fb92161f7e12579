//! INFD's names, seen as diffusers': CompVis' inside `encoder.0.` and `decoder.1.`, 1x1 convolutions beside them.

use super::Weights;
use super::vae_keys::ldm_name;
use super::view::{Naming, View};

/// The autoencoder (under diffusers' names), `quantizer.` and `renderer.` (under their own) inside `weights`, or `None` where there is no decoder with
/// a renderer behind it.
pub fn view(weights: &Weights) -> Option<View<'_>> {
    if !weights.contains_prefix("decoder.1.up.") || !weights.contains_prefix("renderer.net.") {
        return None;
    }
    let up_blocks = (0..).find(|i| !weights.contains_prefix(&format!("decoder.1.up.{i}."))).unwrap_or_default();
    Some(View::new(weights, "", Naming::Infd { up_blocks }))
}

/// The file's name of a tensor of a decoder with `up_blocks` levels; `None` if it has none there.
pub(super) fn own_name(name: &str, up_blocks: usize) -> Option<String> {
    Some(match name.split_once('.')? {
        ("post_quant_conv", leaf) => format!("decoder.0.{leaf}"),
        ("quant_conv", leaf) => format!("encoder.1.{leaf}"),
        ("decoder", _) => ldm_name(name, up_blocks)?.replacen("decoder.", "decoder.1.", 1),
        ("encoder", _) => ldm_name(name, up_blocks)?.replacen("encoder.", "encoder.0.", 1),
        _ => name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        for (ours, file) in [
            ("post_quant_conv.weight", "decoder.0.weight"),
            ("quant_conv.bias", "encoder.1.bias"),
            ("decoder.conv_in.weight", "decoder.1.conv_in.weight"),
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.1.up.2.block.2.conv1.weight"),
            ("decoder.mid_block.attentions.0.to_out.0.bias", "decoder.1.mid.attn_1.proj_out.bias"),
            ("encoder.down_blocks.1.downsamplers.0.conv.bias", "encoder.0.down.1.downsample.conv.bias"),
            ("encoder.conv_norm_out.weight", "encoder.0.norm_out.weight"),
            ("renderer.net.model.1.norm1.weight", "renderer.net.model.1.norm1.weight"),
            ("quantizer.embedding.weight", "quantizer.embedding.weight"),
        ] {
            assert_eq!(own_name(ours, 3).as_deref(), Some(file));
        }
        assert_eq!(own_name("decoder.up_blocks.3.resnets.0.norm1.weight", 3), None);
    }
}
