//! LoRA files (Hu et al. 2021, arXiv:2106.09685) as changes to a model's tensors: `W + strength * alpha / rank * up down`, made when the
//! tensor is read.
//!
//! Namings: kohya-ss (`lora_unet_..lora_down.weight`, also with `lora_mid`), PEFT (`unet...lora_A.weight`), and diffusers' older ones
//! (`...processor.to_q_lora.down.weight`, `...lora_linear_layer.down.weight`). Blocks of UNets have diffusers' names, or, in kohya-ss' files
//! for SDXL, CompVis' (`lora_unet_input_blocks_4_1_..`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Weights, unet_keys};
use crate::error::{Error, Result};

/// An opened LoRA file.
#[derive(Debug, Clone)]
pub struct Lora {
    weights: Arc<Weights>,
    strength: f64,
    /// By the name of what they change, all separators `_`, as the file has it.
    modules: BTreeMap<String, Module>,
    /// Changes that are not understood: tensors of other kinds, halves without their other half.
    strange: usize,
}

/// The tensors of one change, by their names in the file.
#[derive(Debug, Clone, Default)]
struct Module {
    down: Option<String>,
    up: Option<String>,
    mid: Option<String>,
    alpha: Option<String>,
    /// What PEFT's metadata says about it.
    stated: Option<Stated>,
}

/// From PEFT's metadata: alpha, and whether it counts by the root of the rank (rsLoRA, arXiv:2312.03732).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stated {
    alpha: f64,
    root: bool,
}

/// Which network a LoRA's names speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The denoiser.
    Unet,
    /// The text encoder; of SDXL, the first.
    TextEncoder,
    /// The second text encoder of SDXL.
    TextEncoder2,
}

/// Changes to the tensors of one network.
#[derive(Debug, Clone, Default)]
pub struct Patches {
    by_tensor: BTreeMap<String, Vec<Change>>,
}

#[derive(Debug, Clone)]
struct Change {
    weights: Arc<Weights>,
    module: Module,
    strength: f64,
}

#[derive(Clone, Copy)]
enum Role {
    Down,
    Up,
    Mid,
    Alpha,
}

const ENDINGS: [(&str, Role); 13] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".alpha", Role::Alpha),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
];
const OLD_UP: (&str, Role) = ("_lora.up.weight", Role::Up);

/// Parts of names of other kinds of adapters, and what they are called.
const OTHER_KINDS: [(&str, &str); 4] =
    [(".hada_", "LoHa"), (".lokr_", "LoKr"), (".dora_scale", "DoRA"), (".lora_magnitude_vector", "DoRA")];

impl Lora {
    /// Opens a LoRA file; its changes will count `strength` times (1 as trained).
    ///
    /// # Errors
    /// [`Error::UnknownModel`] for a file that is none, or another kind of adapter; otherwise as [`Weights::open`].
    pub fn open(path: impl AsRef<Path>, strength: f64) -> Result<Lora> {
        let weights = Weights::open(path)?;
        let unknown = |detail: String| Error::UnknownModel { path: weights.path().to_owned(), detail };
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut strange = 0;
        for name in weights.names() {
            if let Some((_, kind)) = OTHER_KINDS.iter().find(|(part, _)| name.contains(part)) {
                return Err(unknown(format!("this is a {kind}; LoRA and LoCon files are read by this version")));
            }
            let found = ENDINGS.iter().chain([&OLD_UP]).find_map(|(ending, role)| Some((name.strip_suffix(ending)?, role)));
            let Some((module, role)) = found else {
                strange += 1;
                continue;
            };
            let module = modules.entry(module.replace(".processor.", ".").replace('.', "_")).or_default();
            let slot = match role {
                Role::Down => &mut module.down,
                Role::Up => &mut module.up,
                Role::Mid => &mut module.mid,
                Role::Alpha => &mut module.alpha,
            };
            *slot = Some(name.to_owned());
        }
        let all = modules.len();
        modules.retain(|_, module| module.down.is_some() && module.up.is_some());
        strange += all - modules.len();
        if modules.is_empty() {
            let what = super::recognise::recognise(&weights).map_or("not recognised".into(), |found| found.to_string());
            return Err(unknown(format!(
                "a LoRA was looked for (tensors like `....lora_down.weight` or `....lora_A.weight`); this is {what}"
            )));
        }
        for adapter in adapters(&weights) {
            for (name, module) in modules.iter_mut() {
                // `text_encoder_2_` begins like `text_encoder_`.
                if let Some(own) = name.strip_prefix(&adapter.prefix).filter(|own| !own.starts_with("2_")) {
                    module.stated = Some(adapter.stated(own));
                }
            }
        }
        Ok(Lora { weights: Arc::new(weights), strength, modules, strange })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.weights.path().to_owned()
    }

    /// Number of changes that it has, those included that are not understood and so not made.
    pub fn len(&self) -> usize {
        self.modules.len() + self.strange
    }

    /// Whether it changes nothing; never so after [`Lora::open`].
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The name of a change, to show what a file speaks of.
    pub fn example(&self) -> &str {
        self.modules.keys().next().map_or("", String::as_str)
    }

    /// Adds this file's changes of `tensors` (names of the model, with their shapes) to `patches`. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] for a change of another shape: a LoRA for another model.
    pub fn add_to(&self, patches: &mut Patches, part: Part, tensors: &[(String, Vec<usize>)]) -> Result<usize> {
        let prefixes: &[&str] = match part {
            Part::Unet => &["lora_unet_", "unet_", "base_model_model_", ""],
            Part::TextEncoder => &[
                "lora_te_text_model_",
                "lora_te1_text_model_",
                "text_encoder_text_model_",
                "text_encoder_",
                "base_model_model_text_model_",
                "text_model_",
            ],
            // Without `text_model_` comes the projection.
            Part::TextEncoder2 => &["lora_te2_text_model_", "lora_te2_", "text_encoder_2_text_model_", "text_encoder_2_"],
        };
        let levels = (part == Part::Unet).then(|| unet_keys::levels_of(tensors));
        let mut count = 0;
        for (name, shape) in tensors {
            let flat = |name: &str| Some(name.strip_suffix(".weight")?.replace('.', "_"));
            let Some(own) = flat(name) else { continue };
            let ldm = levels.as_ref().and_then(|levels| flat(&unet_keys::ldm_name(name, levels)?));
            // Old diffusers files call `to_out.0` just `to_out`.
            let forms = [Some(own.as_str()), own.strip_suffix("_0").filter(|f| f.ends_with("to_out")), ldm.as_deref()];
            let keys = prefixes.iter().flat_map(|prefix| forms.iter().flatten().map(move |form| format!("{prefix}{form}")));
            let Some((key, module)) = keys.into_iter().find_map(|key| self.modules.get_key_value(&key)) else { continue };
            let change = Change { weights: self.weights.clone(), module: module.clone(), strength: self.strength };
            if let Err(detail) = change.check(shape) {
                let detail = format!("its `{key}` {detail}: this LoRA was made for another model");
                return Err(Error::UnknownModel { path: self.path(), detail });
            }
            patches.by_tensor.entry(name.clone()).or_default().push(change);
            count += 1;
        }
        Ok(count)
    }
}

/// What diffusers writes into the metadata about the modules of one network.
struct Adapter {
    /// Of their names.
    prefix: String,
    alpha: f64,
    root: bool,
    /// Other alphas, by the end of a module's name.
    alphas: Vec<(String, f64)>,
}

impl Adapter {
    /// For a module of that name, without the prefix.
    fn stated(&self, name: &str) -> Stated {
        let own =
            self.alphas.iter().find(|(end, _)| name.strip_suffix(end.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('_')));
        Stated { alpha: own.map_or(self.alpha, |(_, alpha)| *alpha), root: self.root }
    }
}

/// Ranks are those of the tensors, whatever the metadata says.
fn adapters(weights: &Weights) -> Vec<Adapter> {
    let Some(json) = weights.metadata().get("lora_adapter_metadata") else { return Vec::new() };
    let Ok(fields) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json) else { return Vec::new() };
    let of = |part: &str| {
        let field = |name: &str| fields.get(&format!("{part}.{name}"));
        let alphas = field("alpha_pattern").and_then(|pattern| pattern.as_object()).into_iter().flatten();
        Some(Adapter {
            prefix: format!("{part}_"),
            alpha: field("lora_alpha")?.as_f64()?,
            root: field("use_rslora").and_then(|root| root.as_bool()).unwrap_or(false),
            alphas: alphas.filter_map(|(end, alpha)| Some((end.replace('.', "_"), alpha.as_f64()?))).collect(),
        })
    };
    ["unet", "text_encoder", "text_encoder_2"].into_iter().filter_map(of).collect()
}

impl Patches {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_tensor.is_empty()
    }

    /// Whether a tensor is changed.
    pub fn contains(&self, name: &str) -> bool {
        self.by_tensor.contains_key(name)
    }

    /// Changes the values of the tensor that the model calls `name`.
    ///
    /// # Errors
    /// As [`Weights::get`], for the LoRA's own tensors.
    pub(super) fn apply(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        let changes = self.by_tensor.get(name).into_iter().flatten();
        changes.into_iter().try_for_each(|change| change.add(shape, values))
    }
}

impl Change {
    fn shape(&self, name: &Option<String>) -> Vec<usize> {
        name.as_ref().and_then(|name| self.weights.info(name)).map_or(Vec::new(), |info| info.shape.to_vec())
    }

    /// What does not fit a tensor of this shape.
    fn check(&self, shape: &[usize]) -> Result<(), String> {
        let (down, up, mid) = (self.shape(&self.module.down), self.shape(&self.module.up), self.shape(&self.module.mid));
        let (&rank, &outputs) = (down.first().unwrap_or(&0), shape.first().unwrap_or(&0));
        let inputs: usize = shape.iter().skip(1).product();
        let kernel: usize = shape.iter().skip(2).product();
        let product = |shape: &[usize]| shape.iter().product::<usize>();
        let fits = match &mid[..] {
            [] => product(&down) == rank * inputs && product(&up) == outputs * rank,
            [a, b, ..] => {
                *b == rank && product(&mid) == a * b * kernel && product(&down) * kernel == rank * inputs && product(&up) == outputs * a
            }
            _ => false,
        };
        match fits && rank > 0 {
            true => Ok(()),
            false => Err(format!("has shapes {down:?} and {up:?}, which change no tensor of shape {shape:?}")),
        }
    }

    fn add(&self, shape: &[usize], values: &mut [f32]) -> Result<()> {
        let read = |name: &Option<String>| match name {
            Some(name) => self.weights.get_any(name),
            None => Ok((Vec::new(), Vec::new())),
        };
        let (down_shape, mut down) = read(&self.module.down)?;
        let (_, up) = read(&self.module.up)?;
        let (mid_shape, mid) = read(&self.module.mid)?;
        let rank = down_shape[0];
        let alpha = match &self.module.alpha {
            Some(name) => self.weights.get_any(name)?.1.first().map(|&alpha| alpha as f64 / rank as f64),
            None => self.module.stated.map(|Stated { alpha, root }| alpha / if root { (rank as f64).sqrt() } else { rank as f64 }),
        };
        let scale = (self.strength * alpha.unwrap_or(1.0)) as f32;
        let mut inner = rank;
        if let [outer, ..] = mid_shape[..] {
            // [outer, rank, k, k] by [rank, inputs] is [outer, inputs, k, k].
            let kernel: usize = mid_shape.iter().skip(2).product();
            let inputs = down.len() / rank;
            let mut joined = vec![0.0; outer * inputs * kernel];
            for o in 0..outer {
                for r in 0..rank {
                    for i in 0..inputs {
                        let target = &mut joined[(o * inputs + i) * kernel..][..kernel];
                        let source = &mid[(o * rank + r) * kernel..][..kernel];
                        target.iter_mut().zip(source).for_each(|(t, s)| *t += s * down[r * inputs + i]);
                    }
                }
            }
            (down, inner) = (joined, outer);
        }
        let columns = values.len() / shape[0];
        for (row, factors) in values.chunks_exact_mut(columns).zip(up.chunks_exact(inner)) {
            for (factor, source) in factors.iter().zip(down.chunks_exact(columns)) {
                row.iter_mut().zip(source).for_each(|(v, s)| *v += scale * factor * s);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;
    use crate::weights::write::tests::bytes_of;

    fn lora(tensors: &[(&str, &[usize], &[f32])], metadata: &[(&str, &str)], strength: f64) -> Result<Lora> {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views: Vec<_> = tensors.iter().zip(&bytes).map(|((n, s, _), b)| (*n, Dtype::F32, *s, &b[..])).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        std::fs::write(&path, bytes_of(&views, metadata)).unwrap();
        Lora::open(path, strength)
    }

    fn changed(lora: &Lora, part: Part, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut patches = Patches::default();
        let count = lora.add_to(&mut patches, part, &[(name.into(), shape.to_vec())])?;
        assert_eq!(count, patches.contains(name) as usize);
        let mut values = vec![1.0; shape.iter().product()];
        patches.apply(name, shape, &mut values)?;
        Ok(values)
    }

    #[test]
    fn every_naming_changes_its_tensor() {
        let (down, up) = ([1.0, 2.0, 3.0], [10.0, 20.0]);
        let want = [11.0, 21.0, 31.0, 21.0, 41.0, 61.0];
        for (stem, part, name) in [
            (
                ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"],
                Part::Unet,
                "mid_block.attentions.0.proj_in.weight",
            ),
            (["unet.x.attn1.to_q.lora_A.weight", "unet.x.attn1.to_q.lora_B.weight"], Part::Unet, "x.attn1.to_q.weight"),
            (
                ["x.attn1.processor.to_out_lora.down.weight", "x.attn1.processor.to_out_lora.up.weight"],
                Part::Unet,
                "x.attn1.to_out.0.weight",
            ),
            (
                [
                    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
                    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
                ],
                Part::TextEncoder,
                "encoder.layers.0.mlp.fc1.weight",
            ),
            (
                [
                    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
                    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
                ],
                Part::TextEncoder,
                "encoder.layers.0.self_attn.q_proj.weight",
            ),
        ] {
            let lora = lora(&[(stem[0], &[1, 3], &down), (stem[1], &[2, 1], &up)], &[], 1.0).unwrap();
            assert_eq!(changed(&lora, part, name, &[2, 3]).unwrap(), want, "{name}");
            assert_eq!(changed(&lora, part, "other.weight", &[2, 3]).unwrap(), [1.0; 6]);
            let error = changed(&lora, part, name, &[2, 4]).unwrap_err().to_string();
            assert!(error.contains("another model"), "{error}");
        }
    }

    /// Tensors of a UNet with the levels of SDXL, and of an encoder; all `[2, 3]`.
    fn sdxl() -> [Vec<(String, Vec<usize>)>; 2] {
        let mut unet: Vec<String> = ["conv_in", "time_embedding.linear_1", "add_embedding.linear_1", "conv_out"].map(String::from).into();
        for (side, layers, attentions) in [("down_blocks", 2, [false, true, true]), ("up_blocks", 3, [true, true, false])] {
            for (b, attention) in attentions.into_iter().enumerate() {
                for n in 0..layers {
                    let resnet = ["conv1", "time_emb_proj", "conv_shortcut"];
                    unet.extend(resnet.map(|tensor| format!("{side}.{b}.resnets.{n}.{tensor}")));
                    let inner = ["norm", "proj_in", "transformer_blocks.1.attn1.to_q", "transformer_blocks.1.attn2.to_out.0"];
                    unet.extend(inner.iter().filter(|_| attention).map(|tensor| format!("{side}.{b}.attentions.{n}.{tensor}")));
                }
            }
        }
        unet.extend(
            ["mid_block.attentions.0.proj_in", "down_blocks.0.downsamplers.0.conv", "up_blocks.1.upsamplers.0.conv"].map(String::from),
        );
        let text = ["encoder.layers.0.self_attn.q_proj", "text_projection"].map(String::from).into();
        [unet, text].map(|names: Vec<String>| names.into_iter().map(|name| (format!("{name}.weight"), vec![2, 3])).collect())
    }

    /// The changes of `modules` of SDXL that each part finds: UNet, first, second encoder.
    fn found(modules: &[&str]) -> (Lora, [Patches; 3], [usize; 3]) {
        let names: Vec<_> = modules.iter().flat_map(|module| ["down", "up"].map(|half| format!("{module}.lora_{half}.weight"))).collect();
        let halves: [(&[usize], &[f32]); 2] = [(&[1, 3], &[1.0; 3]), (&[2, 1], &[1.0; 2])];
        let tensors: Vec<_> = names.iter().zip(halves.iter().cycle()).map(|(name, (shape, values))| (&**name, *shape, *values)).collect();
        let lora = lora(&tensors, &[], 1.0).unwrap();
        let [unet, text] = sdxl();
        let mut patches = [(); 3].map(|()| Patches::default());
        let [first, second, third] = &mut patches;
        let counts = [(first, Part::Unet, &unet), (second, Part::TextEncoder, &text), (third, Part::TextEncoder2, &text)]
            .map(|(patches, part, tensors)| lora.add_to(patches, part, tensors).unwrap());
        (lora, patches, counts)
    }

    #[test]
    fn both_namings_of_sdxl_change_the_same_tensors() {
        for (ldm, diffusers) in [
            ("input_blocks_0_0", "conv_in"),
            ("time_embed_0", "time_embedding.linear_1"),
            ("label_emb_0_0", "add_embedding.linear_1"),
            ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
            ("input_blocks_4_1_transformer_blocks_1_attn1_to_q", "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"),
            ("input_blocks_8_0_emb_layers_1", "down_blocks.2.resnets.1.time_emb_proj"),
            ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
            ("output_blocks_2_1_transformer_blocks_1_attn2_to_out_0", "up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_out.0"),
            ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
            ("output_blocks_8_0_in_layers_2", "up_blocks.2.resnets.2.conv1"),
            ("out_2", "conv_out"),
        ] {
            for module in [format!("lora_unet_{ldm}"), format!("lora_unet_{}", diffusers.replace('.', "_")), format!("unet.{diffusers}")] {
                let (_, [unet, ..], counts) = found(&[&module]);
                assert_eq!(counts, [1, 0, 0], "{module}");
                assert!(unet.contains(&format!("{diffusers}.weight")), "{module}");
            }
        }
    }

    #[test]
    fn each_encoder_of_sdxl_takes_its_own_changes() {
        let layer = "text_model_encoder_layers_0_self_attn_q_proj";
        let dotted = "text_model.encoder.layers.0.self_attn.q_proj";
        for (module, counts) in [
            (format!("lora_te_{layer}"), [0, 1, 0]),
            (format!("lora_te1_{layer}"), [0, 1, 0]),
            (format!("lora_te2_{layer}"), [0, 0, 1]),
            (format!("text_encoder.{dotted}"), [0, 1, 0]),
            (format!("text_encoder_2.{dotted}"), [0, 0, 1]),
            ("lora_te2_text_projection".into(), [0, 0, 1]),
            ("text_encoder_2.text_projection".into(), [0, 0, 1]),
        ] {
            assert_eq!(found(&[&module]).2, counts, "{module}");
        }
        let (unet, first, second) = ("lora_unet_input_blocks_4_1_proj_in", format!("lora_te1_{layer}"), format!("lora_te2_{layer}"));
        let (lora, _, counts) = found(&[unet, "lora_unet_input_blocks_9_1_proj_in", &first, &second, "lora_te3_x"]);
        assert_eq!((lora.len(), counts), (5, [1, 1, 1]), "two are of no tensor");
    }

    #[test]
    fn strength_alpha_and_kernels_count() {
        let k = "lora_unet_conv_in";
        let (down, up, alpha, mid) =
            (format!("{k}.lora_down.weight"), format!("{k}.lora_up.weight"), format!("{k}.alpha"), format!("{k}.lora_mid.weight"));
        // Rank 2, alpha 1: half; strength -0.5.
        let three =
            lora(&[(&down, &[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]), (&up, &[1, 2, 1, 1], &[1.0, 10.0]), (&alpha, &[], &[1.0])], &[], -0.5)
                .unwrap();
        assert_eq!(changed(&three, Part::Unet, "conv_in.weight", &[1, 1, 1, 2]).unwrap(), [1.0 - 0.25 * 31.0, 1.0 - 0.25 * 42.0]);
        let tucker = lora(
            &[(&down, &[2, 1, 1, 1], &[1.0, 2.0]), (&mid, &[1, 2, 1, 2], &[1.0, 2.0, 3.0, 4.0]), (&up, &[1, 1, 1, 1], &[10.0])],
            &[],
            1.0,
        )
        .unwrap();
        assert_eq!(changed(&tucker, Part::Unet, "conv_in.weight", &[1, 1, 1, 2]).unwrap(), [71.0, 101.0]);
        let peft = lora(
            &[("unet.a.lora_A.weight", &[2, 1], &[1.0, 1.0]), ("unet.a.lora_B.weight", &[1, 2], &[1.0, 1.0])],
            &[("lora_adapter_metadata", r#"{"unet.r": 2, "unet.lora_alpha": 8}"#)],
            1.0,
        )
        .unwrap();
        assert_eq!(changed(&peft, Part::Unet, "a.weight", &[1, 1]).unwrap(), [9.0]);
    }

    #[test]
    fn what_peft_says_about_some_modules_counts() {
        let ones = [1.0; 4];
        let tensors: [(&str, &[usize], &[f32]); 4] = [
            ("unet.a.to_q.lora_A.weight", &[4, 1], &ones),
            ("unet.a.to_q.lora_B.weight", &[1, 4], &ones),
            ("unet.a.to_k.lora_A.weight", &[4, 1], &ones),
            ("unet.a.to_k.lora_B.weight", &[1, 4], &ones),
        ];
        // A rank pattern says what the tensors' shapes say anyway.
        for (json, q, k) in [
            (r#"{"unet.r": 2, "unet.lora_alpha": 8, "unet.rank_pattern": {"to_q": 4}}"#, 9.0, 9.0),
            (r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"a.to_q": 2}}"#, 3.0, 9.0),
            (r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"o_q": 2}}"#, 9.0, 9.0),
            (r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": true}"#, 17.0, 17.0),
        ] {
            let peft = lora(&tensors, &[("lora_adapter_metadata", json)], 1.0).unwrap();
            let of = |name: &str| changed(&peft, Part::Unet, name, &[1, 1]).unwrap()[0];
            assert_eq!((of("a.to_q.weight"), of("a.to_k.weight")), (q, k), "{json}");
        }
        let text: [(&str, &[usize], &[f32]); 4] = [
            ("text_encoder.a.lora_A.weight", &[1, 1], &[1.0]),
            ("text_encoder.a.lora_B.weight", &[1, 1], &[1.0]),
            ("text_encoder_2.a.lora_A.weight", &[1, 1], &[1.0]),
            ("text_encoder_2.a.lora_B.weight", &[1, 1], &[1.0]),
        ];
        for (json, first, second) in [
            (r#"{"text_encoder.lora_alpha": 8, "text_encoder_2.lora_alpha": 4}"#, 9.0, 5.0),
            (r#"{"text_encoder.lora_alpha": 8}"#, 9.0, 2.0),
        ] {
            let peft = lora(&text, &[("lora_adapter_metadata", json)], 1.0).unwrap();
            let of = |part| changed(&peft, part, "a.weight", &[1, 1]).unwrap()[0];
            assert_eq!((of(Part::TextEncoder), of(Part::TextEncoder2)), (first, second), "{json}");
        }
    }

    #[test]
    fn what_is_not_understood_counts_as_not_made() {
        let one = [1.0];
        let file = lora(
            &[
                ("lora_unet_a.lora_down.weight", &[1, 1], &one),
                ("lora_unet_a.lora_up.weight", &[1, 1], &one),
                ("lora_unet_b.lora_down.weight", &[1, 1], &one),
                ("lora_unet_c.diff", &[1, 1], &one),
            ],
            &[],
            1.0,
        );
        assert_eq!(file.unwrap().len(), 3);
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let one = [1.0];
        let refused = |name: &str| lora(&[(name, &[1], &one)], &[], 1.0).unwrap_err().to_string();
        assert!(refused("lora_unet_a.hada_w1_a").contains("LoHa"));
        assert!(refused("decoder.conv_in.weight").contains("LoRA was looked for"));
        assert!(refused("lora_unet_a.lora_down.weight").contains("LoRA was looked for"));
    }
}
