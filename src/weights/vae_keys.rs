//! The three namings of an SD-family autoencoder, seen as one: diffusers' current names.
//!
//! CompVis' names (`first_stage_model.` in single-file checkpoints, `vae.` or nothing in extracted ones), diffusers'
//! names, and diffusers' old attention names. Rules: diffusers `loaders/single_file_utils.py` and
//! `models/modeling_utils.py` at 58eb52c, checked there as bijections on all 248 tensors of the SD VAE.

use super::Weights;
use super::view::{Naming, View};

/// Where single-file checkpoints keep the autoencoder, and no prefix for a file that is nothing else.
const PREFIXES: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// The autoencoder inside `weights` under diffusers' names (`decoder.up_blocks.0.resnets.0.conv1.weight`), or `None`
/// where there is neither an encoder nor a decoder of that family.
pub fn view(weights: &Weights) -> Option<View<'_>> {
    PREFIXES.into_iter().find_map(|prefix| {
        let has = |part: &str| weights.contains_prefix(&format!("{prefix}{part}"));
        if has("decoder.up_blocks.") || has("encoder.down_blocks.") {
            return Some(View::new(weights, prefix, Naming::Vae));
        }
        if has("decoder.up.") || has("encoder.down.") {
            let up_blocks = (0..).find(|i| !has(&format!("decoder.up.{i}."))).unwrap_or_default();
            return Some(View::new(weights, prefix, Naming::Ldm { up_blocks }));
        }
        None
    })
}

/// The CompVis name of a tensor of an autoencoder with `up_blocks` levels; `None` if it has none there.
pub(super) fn ldm_name(diffusers: &str, up_blocks: usize) -> Option<String> {
    let (part, rest) = diffusers.split_once('.')?;
    let segments: Vec<&str> = rest.split('.').collect();
    // CompVis numbers the decoder's levels from the finest.
    let level = |u: &str| up_blocks.checked_sub(1)?.checked_sub(u.parse().ok()?);
    let inner = |tail: &[&str]| tail.join(".").replace("conv_shortcut", "nin_shortcut");
    Some(match segments[..] {
        _ if !matches!(part, "encoder" | "decoder") => diffusers.to_owned(),
        ["conv_norm_out", leaf] => format!("{part}.norm_out.{leaf}"),
        ["down_blocks", i, "resnets", n, ref tail @ ..] => format!("{part}.down.{i}.block.{n}.{}", inner(tail)),
        ["down_blocks", i, "downsamplers", "0", ref tail @ ..] => format!("{part}.down.{i}.downsample.{}", inner(tail)),
        ["up_blocks", u, "resnets", n, ref tail @ ..] => format!("{part}.up.{}.block.{n}.{}", level(u)?, inner(tail)),
        ["up_blocks", u, "upsamplers", "0", ref tail @ ..] => {
            format!("{part}.up.{}.upsample.{}", level(u)?, inner(tail))
        }
        ["mid_block", "resnets", n, ref tail @ ..] => {
            format!("{part}.mid.block_{}.{}", n.parse::<usize>().ok()?.checked_add(1)?, inner(tail))
        }
        ["mid_block", "attentions", "0", ref tail @ ..] => {
            let (name, leaf) = attention(tail, ["norm", "q", "k", "v", "proj_out"])?;
            format!("{part}.mid.attn_1.{name}.{leaf}")
        }
        _ => diffusers.to_owned(),
    })
}

/// diffusers' name of an attention tensor before the move to one `Attention` class; `None` where it has not changed.
pub(super) fn old_attention_name(diffusers: &str) -> Option<String> {
    let (before, tail) = diffusers.split_once(".attentions.0.")?;
    let tail: Vec<&str> = tail.split('.').collect();
    let (name, leaf) = attention(&tail, ["group_norm", "query", "key", "value", "proj_attn"])?;
    (name != "group_norm").then(|| format!("{before}.attentions.0.{name}.{leaf}"))
}

fn attention<'a>(tail: &[&'a str], names: [&'static str; 5]) -> Option<(&'static str, &'a str)> {
    let [norm, q, k, v, out] = names;
    Some(match *tail {
        ["group_norm", leaf] => (norm, leaf),
        ["to_q", leaf] => (q, leaf),
        ["to_k", leaf] => (k, leaf),
        ["to_v", leaf] => (v, leaf),
        ["to_out", "0", leaf] => (out, leaf),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vae_config::VaeConfig;
    use crate::weights::Dtype;
    use crate::weights::write::tests::bytes_of;
    use std::collections::BTreeSet;

    #[test]
    fn ldm_names_are_those_of_the_specification() {
        let pairs = [
            ("decoder.conv_in.weight", "decoder.conv_in.weight"),
            ("quant_conv.bias", "quant_conv.bias"),
            ("encoder.conv_norm_out.bias", "encoder.norm_out.bias"),
            ("encoder.down_blocks.2.resnets.1.norm2.weight", "encoder.down.2.block.1.norm2.weight"),
            ("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down.0.downsample.conv.weight"),
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
            ("decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"),
            ("decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("decoder.mid_block.resnets.1.conv2.weight", "decoder.mid.block_2.conv2.weight"),
            ("encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.norm.weight"),
            ("encoder.mid_block.attentions.0.to_k.bias", "encoder.mid.attn_1.k.bias"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
        ];
        for (diffusers, ldm) in pairs {
            assert_eq!(ldm_name(diffusers, 4).as_deref(), Some(ldm));
        }
        for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
            let name = |attention| format!("encoder.mid_block.attentions.0.{attention}.bias");
            assert_eq!(old_attention_name(&name(new)), Some(name(old)));
        }
        assert_eq!(old_attention_name("encoder.mid_block.attentions.0.group_norm.bias"), None);
        assert_eq!(ldm_name("decoder.up_blocks.4.resnets.0.norm1.weight", 4), None);
    }

    #[test]
    fn every_tensor_of_the_sd_vae_has_a_ldm_name_of_its_own() {
        let tensors = VaeConfig::default().tensors(true, true);
        let names: BTreeSet<_> = tensors.iter().map(|(name, _)| ldm_name(name, 4).unwrap()).collect();
        assert_eq!(names.len(), tensors.len());
        let diffusers_only = ["blocks", "resnets", "to_", "attentions", "samplers", "shortcut"];
        let translated = |name: &&String| !diffusers_only.iter().any(|word| name.replace("nin_shortcut", "").contains(word));
        assert_eq!(names.iter().filter(translated).count(), tensors.len());
    }

    #[test]
    fn all_three_namings_give_the_same_tensor_and_errors_use_the_files_name() {
        let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let files = [
            ("", "decoder.up_blocks.0.x", "decoder.mid_block.attentions.0.to_out.0.weight", vec![2, 2]),
            ("", "decoder.up_blocks.0.x", "decoder.mid_block.attentions.0.proj_attn.weight", vec![2, 2]),
            ("first_stage_model.", "decoder.up.0.x", "decoder.mid.attn_1.proj_out.weight", vec![2, 2, 1, 1]),
            ("vae.", "decoder.up.0.x", "decoder.mid.attn_1.proj_out.weight", vec![2, 2, 1, 1]),
        ];
        for (prefix, marker, name, shape) in files {
            let (marker, name) = (format!("{prefix}{marker}"), format!("{prefix}{name}"));
            let tensors = [(&*marker, Dtype::F32, &[1][..], &data[..4]), (&*name, Dtype::F32, &shape[..], &data[..])];
            let weights = Weights::from_bytes(bytes_of(&tensors, &[]), "m").unwrap();
            let view = view(&weights).unwrap();
            let asked = "decoder.mid_block.attentions.0.to_out.0.weight";
            assert_eq!(view.get(asked, &[2, 2]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
            view.check(&[(asked.to_owned(), vec![2, 2])]).unwrap();
            assert!(view.get(asked, &[4, 1]).is_err());
            let error = view.get("decoder.mid_block.resnets.0.conv1.weight", &[1]).unwrap_err().to_string();
            assert!(error.contains(if prefix.is_empty() { "mid_block.resnets.0" } else { "mid.block_1" }), "{error}");
            assert!(error.contains(prefix), "{error}");
        }
    }
}
