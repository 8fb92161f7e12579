//! The two namings of a UNet of Stable Diffusion or SDXL, and that of INFD's, seen as one: diffusers' names.
//!
//! CompVis' names (`model.diffusion_model.` in single-file checkpoints, nothing in extracted ones) number blocks in the order of
//! computation; diffusers' names number them by level. Rules: diffusers `loaders/single_file_utils.py` at 58eb52c, checked
//! there as a bijection on all 686 tensors of SD 1.5 and all 1680 of SDXL. INFD's (yinboc/infd `diffusion/unet.py` at b79aafe) has those of CompVis, but
//! for its attention, in which q, k and v are fused head by head.

use std::collections::HashSet;
use std::sync::Arc;

use super::Weights;
use super::view::{Naming, View};

/// Where CompVis' names begin: in checkpoints, and in extracted UNets.
const LDM_PREFIXES: [&str; 2] = ["model.diffusion_model.", ""];

/// Where INFD's begin: the average of training's last steps, which is what its own script samples with, else the last step.
const INFD_PREFIXES: [&str; 2] = ["z_dm_ema.", "z_dm."];

/// Width of INFD's heads (`num_head_channels`), which its files do not say.
const INFD_HEAD: usize = 32;

/// Where diffusers' names begin.
const PREFIXES: [&str; 2] = ["", "unet."];

/// Blocks that are read at most; a file cannot make us count further.
const MAX_BLOCKS: usize = 512;

/// What CompVis' block numbers depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Levels {
    /// Resnets of each level of the way down, from the finest.
    layers: Vec<usize>,
    /// Whether each level of the way up, from the coarsest, has attention.
    up_attention: Vec<bool>,
    /// Width of the heads of fused self-attention, where that stands in place of transformers.
    pub(super) own_heads: Option<usize>,
}

/// The UNet inside `weights` under diffusers' names (`down_blocks.0.resnets.0.conv1.weight`), or `None`.
pub fn view(weights: &Weights) -> Option<View<'_>> {
    let has = |prefix: &str, names: [&str; 3]| names.iter().all(|name| weights.contains(&format!("{prefix}{name}")));
    let ldm = ["input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"];
    let heads = LDM_PREFIXES.map(|prefix| (prefix, None)).into_iter().chain(INFD_PREFIXES.map(|prefix| (prefix, Some(INFD_HEAD))));
    if let Some((prefix, own_heads)) = heads.into_iter().find(|(prefix, _)| has(prefix, ldm)) {
        let levels = Levels { own_heads, ..levels(weights, prefix) };
        return Some(View::new(weights, prefix, Naming::UnetLdm(Arc::new(levels))));
    }
    let diffusers = ["conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight"];
    let prefix = PREFIXES.into_iter().find(|prefix| has(prefix, diffusers))?;
    Some(View::new(weights, prefix, Naming::Plain))
}

fn levels(weights: &Weights, prefix: &str) -> Levels {
    let has = |name: String| weights.contains(&format!("{prefix}{name}"));
    let mut layers = vec![0];
    for i in 1..MAX_BLOCKS {
        if has(format!("input_blocks.{i}.0.op.weight")) {
            layers.push(0);
        } else if has(format!("input_blocks.{i}.0.in_layers.2.weight")) {
            layers[..].last_mut().map(|count| *count += 1).expect("never empty");
        } else {
            break;
        }
    }
    let mut first = 0;
    let mut up_attention = Vec::new();
    for count in layers.iter().rev() {
        up_attention.push(has(format!("output_blocks.{first}.1.norm.weight")));
        first += count + 1;
    }
    Levels { layers, up_attention, own_heads: None }
}

/// The CompVis name of a tensor; `None` if it has none there.
pub(super) fn ldm_name(diffusers: &str, levels: &Levels) -> Option<String> {
    let segments: Vec<&str> = diffusers.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    // Blocks before level `b` of a way that has `more` blocks beyond the resnets of a level.
    let before = |mut counts: Box<dyn Iterator<Item = &usize> + '_>, b: usize| -> Option<(usize, usize)> {
        let mut first = 0;
        for _ in 0..b {
            first += counts.next()? + 1;
        }
        Some((first, *counts.next()?))
    };
    Some(match segments[..] {
        ["time_embedding", "linear_1", leaf] => format!("time_embed.0.{leaf}"),
        ["time_embedding", "linear_2", leaf] => format!("time_embed.2.{leaf}"),
        ["time_embedding", "cond_proj", leaf] => format!("time_embed.cond_proj.{leaf}"),
        ["add_embedding", "linear_1", leaf] => format!("label_emb.0.0.{leaf}"),
        ["add_embedding", "linear_2", leaf] => format!("label_emb.0.2.{leaf}"),
        ["conv_in", leaf] => format!("input_blocks.0.0.{leaf}"),
        ["conv_norm_out", leaf] => format!("out.0.{leaf}"),
        ["conv_out", leaf] => format!("out.2.{leaf}"),
        ["mid_block", "resnets", n, ref tail @ ..] => format!("middle_block.{}.{}", 2 * number(n)?, resnet(tail)?),
        ["mid_block", "attentions", "0", ref tail @ ..] => format!("middle_block.1.{}", attention(tail, levels)?),
        ["down_blocks", b, kind, n, ref tail @ ..] => {
            let (first, count) = before(Box::new(levels.layers.iter()), number(b)?)?;
            let n = number(n)?;
            match kind {
                "resnets" => format!("input_blocks.{}.0.{}", 1 + first + n, resnet(tail)?),
                "attentions" => format!("input_blocks.{}.1.{}", 1 + first + n, attention(tail, levels)?),
                "downsamplers" => format!("input_blocks.{}.0.op.{}", 1 + first + count, tail.last()?),
                _ => return None,
            }
        }
        ["up_blocks", b, kind, n, ref tail @ ..] => {
            let level = number(b)?;
            let (first, count) = before(Box::new(levels.layers.iter().rev()), level)?;
            let n = number(n)?;
            match kind {
                "resnets" => format!("output_blocks.{}.0.{}", first + n, resnet(tail)?),
                "attentions" => format!("output_blocks.{}.1.{}", first + n, attention(tail, levels)?),
                "upsamplers" => {
                    let j = if *levels.up_attention.get(level)? { 2 } else { 1 };
                    format!("output_blocks.{}.{j}.conv.{}", first + count, tail.last()?)
                }
                _ => return None,
            }
        }
        _ => return None,
    })
}

fn resnet(tail: &[&str]) -> Option<String> {
    let [part, leaf] = *tail else { return None };
    let part = match part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    };
    Some(format!("{part}.{leaf}"))
}

fn attention(tail: &[&str], levels: &Levels) -> Option<String> {
    if levels.own_heads.is_none() {
        return Some(tail.join("."));
    }
    Some(match *tail {
        ["group_norm", leaf] => format!("norm.{leaf}"),
        ["to_q" | "to_k" | "to_v", leaf] => format!("qkv.{leaf}"),
        ["to_out", "0", leaf] => format!("proj_out.{leaf}"),
        _ => return None,
    })
}

/// Which third of the fused rows of self-attention a tensor is.
pub(super) fn third(name: &str) -> Option<usize> {
    let (_, tail) = name.split_once(".attentions.")?;
    ["to_q", "to_k", "to_v"].into_iter().position(|part| tail.split('.').nth(1) == Some(part))
}

/// The levels of a UNet with these tensors, which have diffusers' names.
pub(super) fn levels_of(tensors: &[(String, Vec<usize>)]) -> Levels {
    let names: HashSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|i| names.contains(name(*i).as_str())).count();
    let levels = count(&|b| format!("down_blocks.{b}.resnets.0.conv1.weight"));
    let layers = (0..levels).map(|b| count(&|n| format!("down_blocks.{b}.resnets.{n}.conv1.weight"))).collect();
    let up_attention = (0..levels).map(|b| names.contains(format!("up_blocks.{b}.attentions.0.norm.weight").as_str())).collect();
    Levels { layers, up_attention, own_heads: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::unet_config::{AddedEmbedding, UnetConfig};
    use std::collections::BTreeSet;

    fn sd15() -> Levels {
        Levels { layers: vec![2; 4], up_attention: vec![false, true, true, true], own_heads: None }
    }

    #[test]
    fn self_attention_has_its_own_names() {
        let infd = Levels { up_attention: vec![true, true, true, false], own_heads: Some(32), ..sd15() };
        for (diffusers, own, part) in [
            ("mid_block.attentions.0.group_norm.bias", "middle_block.1.norm.bias", None),
            ("down_blocks.1.attentions.0.to_k.weight", "input_blocks.4.1.qkv.weight", Some(1)),
            ("up_blocks.2.attentions.2.to_v.bias", "output_blocks.8.1.qkv.bias", Some(2)),
            ("up_blocks.0.attentions.1.to_out.0.weight", "output_blocks.1.1.proj_out.weight", None),
            ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight", None),
            ("up_blocks.3.resnets.1.conv_shortcut.weight", "output_blocks.10.0.skip_connection.weight", None),
        ] {
            assert_eq!((ldm_name(diffusers, &infd).as_deref(), third(diffusers)), (Some(own), part));
        }
        assert_eq!(ldm_name("mid_block.attentions.0.proj_in.weight", &infd), None);
    }

    #[test]
    fn ldm_names_are_those_of_the_specification() {
        let pairs = [
            ("conv_in.weight", "input_blocks.0.0.weight"),
            ("time_embedding.linear_2.bias", "time_embed.2.bias"),
            ("down_blocks.0.resnets.1.norm1.weight", "input_blocks.2.0.in_layers.0.weight"),
            ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
            ("down_blocks.1.resnets.0.conv_shortcut.bias", "input_blocks.4.0.skip_connection.bias"),
            ("down_blocks.2.attentions.1.proj_in.weight", "input_blocks.8.1.proj_in.weight"),
            ("down_blocks.3.resnets.1.time_emb_proj.bias", "input_blocks.11.0.emb_layers.1.bias"),
            ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
            ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"),
            ("up_blocks.0.resnets.2.norm2.weight", "output_blocks.2.0.out_layers.0.weight"),
            ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
            ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            ("up_blocks.3.attentions.2.norm.bias", "output_blocks.11.1.norm.bias"),
            ("conv_norm_out.weight", "out.0.weight"),
            ("conv_out.bias", "out.2.bias"),
        ];
        for (diffusers, ldm) in pairs {
            assert_eq!(ldm_name(diffusers, &sd15()).as_deref(), Some(ldm));
        }
        for none in ["up_blocks.4.resnets.0.norm1.weight", "down_blocks.0.resnets.0.norm3.weight", "class_embedding.weight"] {
            assert_eq!(ldm_name(none, &sd15()), None);
        }
    }

    #[test]
    fn every_tensor_of_sdxl_has_a_ldm_name_of_its_own() {
        let sdxl = UnetConfig {
            block_out_channels: vec![320, 640, 1280],
            layers_per_block: vec![2; 3],
            down_attention: vec![false, true, true],
            up_attention: vec![false, true, true],
            transformer_layers_per_block: vec![1, 2, 10],
            up_transformer_layers_per_block: vec![1, 2, 10],
            num_attention_heads: vec![5, 10, 20],
            added: Some(AddedEmbedding { pooled: 1280, features: 256 }),
            ..UnetConfig::default()
        };
        let levels = levels_of(&sdxl.tensors());
        assert_eq!(levels, Levels { layers: vec![2; 3], up_attention: vec![true, true, false], own_heads: None });
        let names: BTreeSet<_> = sdxl.tensors().iter().map(|(name, _)| ldm_name(name, &levels).unwrap()).collect();
        assert_eq!(names.len(), 1680);
        for name in
            ["label_emb.0.2.bias", "output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight", "input_blocks.4.1.proj_in.weight"]
        {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_tensor_of_sd15_has_a_ldm_name_of_its_own() {
        let tensors = UnetConfig::default().tensors();
        let names: BTreeSet<_> = tensors.iter().map(|(name, _)| ldm_name(name, &sd15()).unwrap()).collect();
        assert_eq!(names.len(), 686);
    }
}
