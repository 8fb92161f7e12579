//! The namings of a CLIP text encoder, seen as one: transformers' names without `text_model.`.
//!
//! transformers' `CLIPTextModel` (with and without `text_model.`), the same inside SD 1.x and SDXL checkpoints, and OpenCLIP's
//! names inside SD 2.x checkpoints and of SDXL's second encoder. Rules: diffusers `loaders/single_file_utils.py` at 58eb52c.

use super::Weights;
use super::view::{Naming, View};

/// What stands in front of transformers' names: nothing, a component's own, or where checkpoints keep them.
const PREFIXES: [&str; 5] = [
    "text_model.",
    "",
    "cond_stage_model.transformer.text_model.",
    "text_encoder.text_model.",
    "conditioner.embedders.0.transformer.text_model.",
];

/// What stands in front of OpenCLIP's names.
const OPEN_CLIP_PREFIXES: [&str; 2] = ["cond_stage_model.model.", ""];

/// The same of SDXL's second encoder.
const SECOND_PREFIX: &str = "conditioner.embedders.1.model.";

/// A tensor that OpenCLIP names.
const OPEN_CLIP_SIGN: &str = "transformer.resblocks.0.attn.in_proj_weight";

/// The text encoder inside `weights` under transformers' names (`encoder.layers.0.mlp.fc1.weight`), or `None`.
pub fn view(weights: &Weights) -> Option<View<'_>> {
    let found =
        |prefixes: &[&'static str], name: &str| prefixes.iter().copied().find(|prefix| weights.contains(&format!("{prefix}{name}")));
    if let Some(prefix) = found(&PREFIXES, "embeddings.token_embedding.weight") {
        return Some(View::new(weights, prefix, Naming::Clip));
    }
    let prefix = found(&OPEN_CLIP_PREFIXES, OPEN_CLIP_SIGN)?;
    Some(View::new(weights, prefix, Naming::OpenClip))
}

/// The second text encoder of an SDXL checkpoint, as [`view`].
pub fn second(weights: &Weights) -> Option<View<'_>> {
    weights.contains(&format!("{SECOND_PREFIX}{OPEN_CLIP_SIGN}")).then(|| View::new(weights, SECOND_PREFIX, Naming::OpenClip))
}

/// Whether a view is of a [`second`] encoder.
pub fn is_second(view: &View) -> bool {
    view.file_name("embeddings.position_embedding.weight").starts_with(SECOND_PREFIX)
}

/// Whether a view is of OpenCLIP's form: the encoder of SD 2.x, the second of SDXL.
pub fn is_open_clip(view: &View) -> bool {
    view.file_name("embeddings.position_embedding.weight").ends_with("positional_embedding")
}

/// OpenCLIP's name of a tensor, and which third of it where q, k and v are fused; `None` if it has none there.
pub(super) fn open_clip_name(name: &str) -> Option<(String, Option<usize>)> {
    let segments: Vec<&str> = name.split('.').collect();
    Some(match segments[..] {
        ["embeddings", "token_embedding", "weight"] => ("token_embedding.weight".into(), None),
        ["embeddings", "position_embedding", "weight"] => ("positional_embedding".into(), None),
        ["final_layer_norm", leaf] => (format!("ln_final.{leaf}"), None),
        ["text_projection", "weight"] => ("text_projection".into(), None),
        ["encoder", "layers", i, ref tail @ ..] => {
            let (inner, third) = match *tail {
                ["layer_norm1", leaf] => (format!("ln_1.{leaf}"), None),
                ["layer_norm2", leaf] => (format!("ln_2.{leaf}"), None),
                ["mlp", "fc1", leaf] => (format!("mlp.c_fc.{leaf}"), None),
                ["mlp", "fc2", leaf] => (format!("mlp.c_proj.{leaf}"), None),
                ["self_attn", "out_proj", leaf] => (format!("attn.out_proj.{leaf}"), None),
                ["self_attn", projection, leaf] => {
                    let third = ["q_proj", "k_proj", "v_proj"].iter().position(|p| *p == projection)?;
                    (format!("attn.in_proj_{leaf}"), Some(third))
                }
                _ => return None,
            };
            (format!("transformer.resblocks.{i}.{inner}"), third)
        }
        _ => return None,
    })
}

/// Whether OpenCLIP stores the matrix that transformers calls `name` with inputs as rows.
pub(super) fn is_transposed(name: &str) -> bool {
    name == "text_projection.weight"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;
    use crate::weights::write::tests::bytes_of;

    #[test]
    fn fused_projections_are_read_by_thirds_and_checked_as_a_whole() {
        let values: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let (weight, bias) = ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.attn.in_proj_bias");
        let tensors = [(weight, Dtype::F32, &[6, 2][..], &values[..]), (bias, Dtype::F32, &[6], &values[..24])];
        let weights = Weights::from_bytes(bytes_of(&tensors, &[]), "m").unwrap();
        let view = view(&weights).unwrap();
        assert!(is_open_clip(&view));
        let name = |p: &str| format!("encoder.layers.0.self_attn.{p}");
        assert_eq!(view.get(&name("q_proj.weight"), &[2, 2]).unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(view.get(&name("v_proj.weight"), &[2, 2]).unwrap(), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(view.get(&name("k_proj.bias"), &[2]).unwrap(), [2.0, 3.0]);
        view.check(&[(name("k_proj.weight"), vec![2, 2]), (name("k_proj.bias"), vec![2])]).unwrap();
        let error = view.check(&[(name("k_proj.weight"), vec![3, 2])]).unwrap_err().to_string();
        assert!(error.contains("in_proj_weight") && error.contains("[9, 2]"), "{error}");
        let error = view.get("encoder.layers.0.mlp.fc1.bias", &[1]).unwrap_err().to_string();
        assert!(error.contains("transformer.resblocks.0.mlp.c_fc.bias"), "{error}");
    }

    #[test]
    fn the_second_encoder_of_a_checkpoint_is_apart_and_its_projection_turned() {
        let values: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let (first, second_name) =
            (format!("{}embeddings.token_embedding.weight", PREFIXES[4]), format!("{SECOND_PREFIX}{OPEN_CLIP_SIGN}"));
        let projection = format!("{SECOND_PREFIX}text_projection");
        let tensors = [
            (&*first, Dtype::F32, &[6, 2][..], &values[..]),
            (&*second_name, Dtype::F32, &[6, 2], &values[..]),
            (&*projection, Dtype::F32, &[2, 3], &values[..24]),
        ];
        let weights = Weights::from_bytes(bytes_of(&tensors, &[]), "m").unwrap();
        assert!(!is_second(&view(&weights).unwrap()));
        let second = second(&weights).unwrap();
        assert!(is_second(&second) && is_open_clip(&second));
        let name = "text_projection.weight";
        assert_eq!(second.get(name, &[3, 2]).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        second.check(&[(name.into(), vec![3, 2])]).unwrap();
        assert!(second.check(&[(name.into(), vec![2, 3])]).unwrap_err().to_string().contains("[3, 2]"));
    }

    #[test]
    fn a_projection_lies_beside_the_text_model() {
        let tensors = [
            ("text_model.embeddings.token_embedding.weight", Dtype::F32, &[1, 1][..], &[0; 4][..]),
            ("text_projection.weight", Dtype::F32, &[1, 1], &[0, 0, 128, 63]),
        ];
        let weights = Weights::from_bytes(bytes_of(&tensors, &[]), "m").unwrap();
        assert_eq!(view(&weights).unwrap().get("text_projection.weight", &[1, 1]).unwrap(), [1.0]);
    }

    #[test]
    fn every_prefix_is_found() {
        let data = [0; 4];
        for prefix in PREFIXES {
            let name = format!("{prefix}embeddings.token_embedding.weight");
            let weights = Weights::from_bytes(bytes_of(&[(&name, Dtype::F32, &[1, 1], &data)], &[]), "m").unwrap();
            let view = view(&weights).unwrap();
            assert_eq!(view.file_name("embeddings.token_embedding.weight"), name);
            assert!(!is_open_clip(&view));
        }
    }
}
