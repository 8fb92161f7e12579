//! The namings of a class-conditional diffusion transformer, seen as one: diffusers' names.
//!
//! diffusers' `DiTTransformer2DModel`, and the original's, in which q, k and v are fused, all blocks share one embedding of timestep and class, and the
//! table of positions is stored (`pos_embed.pos_embed` here). FiT's are those of the original, without the table; what diffusers has no name for is
//! `ff.value`, `ff.gate`, `norm1.linear_2` and `global_modulation`. MDTv2's blocks are `en_inblocks`, `en_outblocks` and `de_blocks`, with `skip_linear` and
//! `attn1.rel_pos_bias`; MaskDiT's decoder has `decoder_layer` and `decoder_blocks`, and all its names a prefix. Sources: diffusers `models/transformers/dit_transformer_2d.py` 0.42;
//! facebookresearch/DiT `models.py` at ed81ce2; whlzy/FiT `fit/model/` at b22b7b0; sail-sg/MDT `masked_diffusion/models.py` at 7d26c21;
//! Anima-Lab/MaskDiT `models/maskdit.py` at 73cfb96.

use super::Weights;
use super::view::{Naming, View};

/// Where the original's names begin: MaskDiT's lie in a wrapper, and in another where it was compiled before it was saved.
const PREFIXES: [&str; 3] = ["", "model.", "_orig_mod.model."];

/// The transformer inside `weights` under diffusers' names, or `None`.
pub fn view(weights: &Weights) -> Option<View<'_>> {
    if weights.contains("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight") {
        return Some(View::new(weights, "", Naming::Plain));
    }
    let prefix = PREFIXES.into_iter().find(|prefix| {
        let all = |names: [&str; 2]| names.into_iter().all(|name| weights.contains(&format!("{prefix}{name}")));
        let blocks = match prefix.is_empty() {
            true => all(["pos_embed", "blocks.0.adaLN_modulation.1.weight"]) || weights.contains(GATE) || is_mdt(weights),
            false => all(["decoder_layer.linear.weight", "blocks.0.adaLN_modulation.1.weight"]),
        };
        blocks && all(["x_embedder.proj.weight", "y_embedder.embedding_table.weight"])
    })?;
    Some(View::new(weights, prefix, Naming::Dit))
}

/// FiT's gates, which DiT has not.
const GATE: &str = "blocks.0.mlp.fc1_g.weight";

/// Whether a mask token in `weights` is MDTv2's or MaskDiT's, which only their training needs.
pub fn is_masked(weights: &Weights) -> bool {
    weights.contains("decoder_pos_embed")
}

/// Whether `weights` are an MDTv2.
fn is_mdt(weights: &Weights) -> bool {
    weights.contains("decoder_pos_embed") && weights.contains("en_inblocks.0.adaLN_modulation.1.weight")
}

/// Whether a tensor of MDTv2's or MaskDiT's files is for training alone, or follows from the others.
pub fn is_unused(file_name: &str) -> bool {
    file_name.rsplit('.').next() == Some("mask_token")
        || file_name.starts_with("sideblocks.")
        || file_name.ends_with(".relative_position_index")
}

/// Whether a [`view`] is of FiT.
pub fn is_fit(view: &View) -> bool {
    view.weights().contains(GATE)
}

/// Whether a [`view`] is of the original's form.
pub fn is_original(view: &View) -> bool {
    view.file_name("proj_out_2.weight").contains("final_layer")
}

/// The original's name of a tensor, and which third of it where q, k and v are fused; `None` if it has none there.
pub(super) fn original_name(name: &str) -> Option<(String, Option<usize>)> {
    let segments: Vec<&str> = name.split('.').collect();
    Some(match segments[..] {
        ["pos_embed", "pos_embed"] => ("pos_embed".into(), None),
        ["pos_embed", "proj", leaf] => (format!("x_embedder.proj.{leaf}"), None),
        ["proj_out_1", leaf] => (format!("final_layer.adaLN_modulation.1.{leaf}"), None),
        ["global_modulation", leaf] => (format!("global_adaLN_modulation.1.{leaf}"), None),
        ["decoder_layer", "modulation", leaf] => (format!("decoder_layer.adaLN_modulation.1.{leaf}"), None),
        ["proj_out_2", leaf] => (format!("final_layer.linear.{leaf}"), None),
        ["transformer_blocks", "0", "norm1", "emb", "class_embedder", "embedding_table", leaf] => {
            (format!("y_embedder.embedding_table.{leaf}"), None)
        }
        ["transformer_blocks", "0", "norm1", "emb", "timestep_embedder", "linear_1", leaf] => (format!("t_embedder.mlp.0.{leaf}"), None),
        ["transformer_blocks", "0", "norm1", "emb", "timestep_embedder", "linear_2", leaf] => (format!("t_embedder.mlp.2.{leaf}"), None),
        [group @ ("transformer_blocks" | "en_inblocks" | "en_outblocks" | "de_blocks" | "decoder_blocks"), i, ref tail @ ..] => {
            let (inner, third) = match *tail {
                ["norm1", "linear", leaf] => (format!("adaLN_modulation.1.{leaf}"), None),
                ["norm1", "linear_2", leaf] => (format!("adaLN_modulation.2.{leaf}"), None),
                ["skip_linear", leaf] => (format!("skip_linear.{leaf}"), None),
                ["attn1", "rel_pos_bias", leaf] => (format!("attn.rel_pos_bias.{leaf}"), None),
                ["attn1", "to_out", "0", leaf] => (format!("attn.proj.{leaf}"), None),
                ["attn1", projection, leaf] => {
                    let third = ["to_q", "to_k", "to_v"].iter().position(|p| *p == projection)?;
                    (format!("attn.qkv.{leaf}"), Some(third))
                }
                ["ff", "value", leaf] => (format!("mlp.fc1_x.{leaf}"), None),
                ["ff", "gate", leaf] => (format!("mlp.fc1_g.{leaf}"), None),
                ["ff", "net", "0", "proj", leaf] => (format!("mlp.fc1.{leaf}"), None),
                ["ff", "net", "2", leaf] => (format!("mlp.fc2.{leaf}"), None),
                _ => return None,
            };
            let group = if group == "transformer_blocks" { "blocks" } else { group };
            (format!("{group}.{i}.{inner}"), third)
        }
        _ => return None,
    })
}
