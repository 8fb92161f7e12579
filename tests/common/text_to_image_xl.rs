//! The tiny SDXL of `tests/data/text-to-image-xl` (made by tools/goldens/text_to_image_xl.py), written as a folder and as a single-file
//! checkpoint.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::Value;

use super::data;
use super::text_to_image::{self, Run, Spec, Tensor};

#[derive(Deserialize)]
pub struct Case {
    seed: u64,
    pub model_index: Value,
    pub unet: Value,
    pub text_encoder: Value,
    pub text_encoder_2: Value,
    pub vae: Value,
    pub scheduler: Value,
    pub runs: Vec<Run>,
    pub own: Own,
    pub blocks: Blocks,
    tensors: std::collections::BTreeMap<String, Vec<Spec>>,
}

/// The prompt of which `context.own` and `pooled.own` are kept.
#[derive(Deserialize)]
pub struct Own {
    pub prompt: String,
    pub ids: Vec<u32>,
    /// Of the second tokenizer.
    pub ids_2: Vec<u32>,
}

/// One call of the UNet, of which every block's output is kept as `block.<tap>`.
#[derive(Deserialize)]
pub struct Blocks {
    pub prompt: String,
    pub timestep: f64,
    pub seed: u64,
    /// Height and width of the original, top and left of the crop, height and width wanted.
    pub time_ids: [usize; 6],
    /// Of rows, columns, channels.
    pub stride: [usize; 3],
    /// Name and shape (`[h, w, c]`), in the order of computation.
    pub taps: Vec<(String, [usize; 3])>,
}

impl Case {
    pub fn open() -> Case {
        serde_json::from_str(&std::fs::read_to_string(data("text-to-image-xl/case.json")).unwrap()).unwrap()
    }

    pub fn run(&self, name: &str) -> &Run {
        self.runs.iter().find(|run| run.name == name).unwrap()
    }

    /// A stored result: shape and values.
    pub fn expected(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        text_to_image::expected("text-to-image-xl", name)
    }

    /// The tensors of `unet`, `text_encoder`, `text_encoder_2` or `vae`, or those of the inpainting form's UNet that are its own (`unet_nine`).
    pub fn tensors(&self, part: &str) -> Vec<Tensor> {
        text_to_image::part_filled(&self.tensors[part], part, self.seed)
    }

    /// Writes a diffusers folder.
    pub fn write_folder(&self, folder: &Path) {
        let parts = [
            ("unet", &self.unet, "diffusion_pytorch_model"),
            ("text_encoder", &self.text_encoder, "model"),
            ("text_encoder_2", &self.text_encoder_2, "model"),
            ("vae", &self.vae, "diffusion_pytorch_model"),
        ];
        for (name, config, stem) in parts {
            let at = folder.join(name);
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("config.json"), config.to_string()).unwrap();
            text_to_image::write(&at.join(format!("{stem}.safetensors")), &self.tensors(name), Dtype::F32);
        }
        text_to_image::write_tokenizer(&folder.join("tokenizer"), "<|endoftext|>");
        text_to_image::write_tokenizer(&folder.join("tokenizer_2"), "!");
        std::fs::create_dir_all(folder.join("scheduler")).unwrap();
        std::fs::write(folder.join("scheduler/scheduler_config.json"), self.scheduler.to_string()).unwrap();
        self.write_index(folder, true);
    }

    /// Writes the inpainting form: a mask and a masked picture behind the latent.
    pub fn write_inpainting_folder(&self, folder: &Path) {
        self.write_folder(folder);
        let mut config = self.unet.clone();
        config["in_channels"] = 9.into();
        std::fs::write(folder.join("unet/config.json"), config.to_string()).unwrap();
        text_to_image::write(&folder.join("unet/diffusion_pytorch_model.safetensors"), &self.widened("", self.tensors("unet")), Dtype::F32);
        let mut index = self.model_index.clone();
        index["_class_name"] = "StableDiffusionXLInpaintPipeline".into();
        std::fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
    }

    /// Writes the inpainting form as a Stability checkpoint.
    pub fn write_inpainting_file(&self, path: &Path) {
        text_to_image::write(path, &self.widened("model.diffusion_model.", self.single_file()), Dtype::F32);
    }

    /// `tensors` with those of the inpainting form in the places of the UNet's, whose names begin with `prefix`.
    fn widened(&self, prefix: &str, mut tensors: Vec<Tensor>) -> Vec<Tensor> {
        for wide in self.tensors("unet_nine") {
            let name = match prefix {
                "" => wide.name,
                _ => format!("{prefix}{}", unet_name(&wide.name)),
            };
            let own = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
            *own = Tensor { name, ..wide };
        }
        tensors
    }

    /// Writes model_index.json: whether no negative prompt is one of zeros.
    pub fn write_index(&self, folder: &Path, force_zeros: bool) {
        let mut index = self.model_index.clone();
        index["force_zeros_for_empty_prompt"] = force_zeros.into();
        std::fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
    }

    /// Writes the same weights as a Stability checkpoint.
    pub fn write_single_file(&self, path: &Path, dtype: Dtype) {
        text_to_image::write(path, &self.single_file(), dtype);
    }

    /// The tensors of a checkpoint.
    pub fn single_file(&self) -> Vec<Tensor> {
        let mut all = Vec::new();
        for tensor in self.tensors("unet") {
            all.push(Tensor { name: format!("model.diffusion_model.{}", unet_name(&tensor.name)), ..tensor });
        }
        for tensor in self.tensors("text_encoder") {
            all.push(Tensor { name: format!("conditioner.embedders.0.transformer.{}", tensor.name), ..tensor });
        }
        const SECOND: &str = "conditioner.embedders.1.model";
        let (projection, text): (Vec<_>, Vec<_>) =
            self.tensors("text_encoder_2").into_iter().partition(|tensor| tensor.name == "text_projection.weight");
        for tensor in text_to_image::open_clip(text.into_iter()) {
            all.push(Tensor { name: tensor.name.replacen("cond_stage_model.model", SECOND, 1), ..tensor });
        }
        all.push(Tensor { name: format!("{SECOND}.text_projection"), ..transposed(projection.into_iter().next().unwrap()) });
        all.push(Tensor { name: format!("{SECOND}.logit_scale"), shape: vec![], values: vec![4.6] });
        for tensor in self.tensors("vae") {
            let square = tensor.name.contains("attentions") && tensor.shape.len() == 2;
            let shape = if square { [&tensor.shape[..], &[1, 1]].concat() } else { tensor.shape };
            let name = format!("first_stage_model.{}", text_to_image::vae_name(&tensor.name));
            all.push(Tensor { name, shape, values: tensor.values });
        }
        all
    }
}

fn transposed(matrix: Tensor) -> Tensor {
    let [rows, columns] = matrix.shape[..] else { panic!("{}: {:?}", matrix.name, matrix.shape) };
    let values = (0..rows * columns).map(|i| matrix.values[i % rows * columns + i / rows]).collect();
    Tensor { shape: vec![columns, rows], values, ..matrix }
}

/// The checkpoint's name of a UNet's tensor: SD 1.5's, with the added embedding, and with upsamplers behind an attention.
fn unet_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["add_embedding", "linear_1", leaf] => format!("label_emb.0.0.{leaf}"),
        ["add_embedding", "linear_2", leaf] => format!("label_emb.0.2.{leaf}"),
        // The last of two entries of each level.
        ["up_blocks", b, "upsamplers", "0", "conv", leaf] => format!("output_blocks.{}.2.conv.{leaf}", 2 * b.parse::<usize>().unwrap() + 1),
        _ => text_to_image::unet_name(name),
    }
}

/// A folder with the model in both forms.
pub struct Models {
    pub scratch: tempfile::TempDir,
    pub folder: PathBuf,
    pub file: PathBuf,
    /// The inpainting form, as a folder and as a file.
    pub nine: [PathBuf; 2],
}

pub fn models(case: &Case) -> Models {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, file) = (scratch.path().join("model"), scratch.path().join("model.safetensors"));
    case.write_folder(&folder);
    case.write_single_file(&file, Dtype::F32);
    let nine = ["inpainting", "inpainting.safetensors"].map(|name| scratch.path().join(name));
    case.write_inpainting_folder(&nine[0]);
    case.write_inpainting_file(&nine[1]);
    Models { scratch, folder, file, nine }
}
