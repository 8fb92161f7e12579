//! The tiny text-to-image model of `tests/data/text-to-image` (made by tools/goldens/text_to_image.py), written as a folder and as a
//! single-file checkpoint.

use std::path::{Path, PathBuf};

use infgen::gpu::{Elem, Gpu, Outputs};
use infgen::models::unet::Unet;
use infgen::models::unet_config::UnetConfig;
use infgen::nn::{Loader, Precision};
use infgen::pipeline::{Parts, Pipeline, Request};
use infgen::schedulers::{Prediction, Sampler};
use infgen::tokenizer::ClipTokenizer;
use infgen::{Image, Latent, Observer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{data, devices, synthetic};

/// Name, shape, amplitude, offset.
pub type Spec = (String, Vec<usize>, f32, f32);

#[derive(Deserialize)]
pub struct Case {
    seed: u64,
    pub unet: Value,
    pub text_encoder: Value,
    pub vae: Value,
    pub scheduler: Value,
    sd2: Form,
    pub runs: Vec<Run>,
    pub blocks: Blocks,
    tensors: std::collections::BTreeMap<String, Vec<Spec>>,
}

/// What is different in the form of SD 2.x.
#[derive(Deserialize)]
struct Form {
    unet: Value,
    text_encoder: Value,
    scheduler: Value,
}

/// One call of the UNet, of which every block's output is kept as `block.<tap>`.
#[derive(Deserialize)]
pub struct Blocks {
    pub prompt: String,
    pub timestep: f64,
    pub seed: u64,
    /// Of rows, columns, channels.
    pub stride: [usize; 3],
    /// In the order of computation.
    pub taps: Vec<String>,
}

#[derive(Deserialize, Clone)]
pub struct Run {
    pub name: String,
    pub prompt: String,
    /// None: an empty text; of SDXL, zeros.
    #[serde(default)]
    pub negative: Option<String>,
    #[serde(default)]
    pub sampler: Option<String>,
    #[serde(default)]
    pub steps: usize,
    #[serde(default)]
    pub cfg: f64,
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub width: usize,
    #[serde(default)]
    pub height: usize,
    #[serde(default)]
    pub batch: usize,
    #[serde(default)]
    pub rescale: f64,
    #[serde(default)]
    pub image: bool,
    #[serde(default)]
    pub mask: bool,
    #[serde(default)]
    pub strength: f64,
    #[serde(default)]
    pub prediction: Option<String>,
    /// On the inpainting model.
    #[serde(default)]
    pub nine: bool,
    /// On the model in the form of SD 2.x.
    #[serde(default)]
    pub sd2: bool,
    #[serde(default)]
    pub eta: f64,
    #[serde(default)]
    pub clip_skip: usize,
    /// Seed of the first noise, where that is given.
    #[serde(default)]
    pub given: Option<u64>,
    #[serde(default)]
    pub ids: Vec<u32>,
}

impl Run {
    pub fn request(&self) -> Request {
        let (image, mask) = picture();
        Request {
            negative: self.negative.clone(),
            sampler: self.sampler.as_deref().map(|name| Sampler::from_name(name).unwrap()),
            prediction: self.prediction.as_deref().map(|name| match name {
                "v_prediction" => Prediction::VPrediction,
                other => panic!("{other}"),
            }),
            steps: self.steps,
            cfg: self.cfg,
            guidance_rescale: self.rescale,
            eta: self.eta,
            clip_skip: self.clip_skip,
            seed: self.seed,
            batch: self.batch,
            image: self.image.then_some(image),
            strength: self.strength,
            mask: self.mask.then_some(mask),
            init_noise: self.given.map(|seed| {
                let (w, h) = (self.width / 8, self.height / 8);
                Latent::new([1, 4, h, w], infgen::noise::torch_cpu_randn(seed, 4 * h * w)).unwrap()
            }),
            ..Request::new(self.prompt.clone(), self.width, self.height)
        }
    }
}

/// One call of the UNet of the model at `path` on noise of 8x8, every tap kept, and `sample`: what comes out. `added` as [`Unet::prompt`] takes it.
pub fn one_call(
    gpu: &Gpu,
    path: &Path,
    seed: u64,
    timestep: f64,
    context: &[f32],
    added: impl FnOnce(&UnetConfig) -> Option<Vec<f32>>,
) -> Outputs {
    let parts = Parts::open(path).unwrap();
    let (view, config) = (parts.denoiser_view().unwrap(), parts.unet().unwrap());
    let unet = pollster::block_on(Unet::load(&Loader::new(gpu, &view, Precision::F32), config, false)).unwrap();
    let mut rec = gpu.recorder();
    rec.keep_taps(true);
    let noise = infgen::noise::torch_cpu_randn(seed, 4 * 8 * 8);
    let last: Vec<f32> = (0..noise.len()).map(|i| noise[i % 4 * 64 + i / 4]).collect();
    let latent = rec.upload(&last, 8, 8, 4, Elem::F32);
    let context = rec.upload(context, context.len() / config.cross_attention_dim, 1, config.cross_attention_dim, Elem::F32);
    let prompt = unet.prompt(&mut rec, &context, added(config).as_deref()).unwrap();
    let step = unet.step(&mut rec, timestep, None, &prompt);
    let y = unet.forward(&mut rec, &latent, &step, &prompt).unwrap();
    rec.output("sample", &y);
    devices::run(gpu, rec.finish()).unwrap()
}

/// Every so many rows, columns and channels of `values`, `[h, w, c]`.
pub fn strided(values: &[f32], [h, w, c]: [usize; 3], [rows, columns, channels]: [usize; 3]) -> Vec<f32> {
    assert_eq!(values.len(), h * w * c);
    let pixels = (0..h).step_by(rows).flat_map(|y| (0..w).step_by(columns).map(move |x| (y * w + x) * c));
    pixels.flat_map(|at| values[at..][..c].iter().step_by(channels).copied()).collect()
}

/// The latents that `request` gives.
pub fn latents(pipeline: &Pipeline, request: &Request) -> Vec<f32> {
    pipeline.generate(request, &Observer::default(), &|_| {}).unwrap().latent.data().to_vec()
}

pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Case {
    pub fn open() -> Case {
        serde_json::from_str(&std::fs::read_to_string(data("text-to-image/case.json")).unwrap()).unwrap()
    }

    pub fn run(&self, name: &str) -> &Run {
        self.runs.iter().find(|run| run.name == name).unwrap()
    }

    /// A stored result: shape and values.
    pub fn expected(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        expected("text-to-image", name)
    }

    /// The tensors of `unet`, `text_encoder`, `vae`, or of the first two in SD 2.x's form (`unet_sd2`, `text_encoder_sd2`).
    pub fn tensors(&self, part: &str) -> Vec<Tensor> {
        part_filled(&self.tensors[part], part, self.seed)
    }

    /// Writes a diffusers folder.
    pub fn write_folder(&self, folder: &Path) {
        let configs = [&self.unet, &self.text_encoder, &self.vae, &self.scheduler];
        self.write_parts(folder, configs, ["unet", "text_encoder", "vae"]);
        // The vocabulary is the embedded one; the folder's own is tested in tests/tokenizer.rs.
        assert_eq!(ClipTokenizer::embedded().max_id(), 49407);
    }

    /// Writes a diffusers folder in the form of SD 2.x, with a tokenizer that pads with `!`.
    pub fn write_sd2_folder(&self, folder: &Path) {
        let configs = [&self.sd2.unet, &self.sd2.text_encoder, &self.vae, &self.sd2.scheduler];
        self.write_parts(folder, configs, ["unet_sd2", "text_encoder_sd2", "vae"]);
        write_tokenizer(&folder.join("tokenizer"), "!");
    }

    fn write_parts(&self, folder: &Path, [unet, text, vae, scheduler]: [&Value; 4], parts: [&str; 3]) {
        let stems = [("unet", unet, "diffusion_pytorch_model"), ("text_encoder", text, "model"), ("vae", vae, "diffusion_pytorch_model")];
        for ((name, config, stem), part) in stems.into_iter().zip(parts) {
            let at = folder.join(name);
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("config.json"), config.to_string()).unwrap();
            write(&at.join(format!("{stem}.safetensors")), &self.tensors(part), Dtype::F32);
        }
        std::fs::create_dir_all(folder.join("scheduler")).unwrap();
        std::fs::write(folder.join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
        std::fs::write(folder.join("model_index.json"), json!({ "_class_name": "StableDiffusionPipeline" }).to_string()).unwrap();
    }

    /// Writes the inpainting form: a mask and a masked picture behind the latent.
    pub fn write_inpainting_folder(&self, folder: &Path) {
        self.write_folder(folder);
        let mut config = self.unet.clone();
        config["in_channels"] = json!(9);
        std::fs::write(folder.join("unet/config.json"), config.to_string()).unwrap();
        let wide = self.tensors("unet_nine");
        let own = self.tensors("unet").into_iter().filter(|tensor| wide.iter().all(|other| other.name != tensor.name));
        let all: Vec<Tensor> = own.chain(self.tensors("unet_nine")).collect();
        write(&folder.join("unet/diffusion_pytorch_model.safetensors"), &all, Dtype::F32);
        std::fs::write(folder.join("model_index.json"), json!({ "_class_name": "StableDiffusionInpaintPipeline" }).to_string()).unwrap();
    }

    /// Writes the same weights as a CompVis checkpoint.
    pub fn write_single_file(&self, path: &Path, dtype: Dtype) {
        write(path, &self.single_file(["unet", "text_encoder", "vae"]), dtype);
    }

    /// Writes the weights in SD 2.x's form as a Stability checkpoint: OpenCLIP's names, q, k and v in one, and a last layer and a
    /// projection that must not be used.
    pub fn write_sd2_file(&self, path: &Path, dtype: Dtype) {
        let mut all = self.single_file(["unet_sd2", "", "vae"]);
        let text = self.tensors("text_encoder_sd2");
        let layers = self.sd2.text_encoder["num_hidden_layers"].as_u64().unwrap();
        let extra: Vec<Tensor> = text.iter().filter_map(|t| extra_layer(t, layers)).collect();
        let width = self.sd2.text_encoder["hidden_size"].as_u64().unwrap() as usize;
        all.extend(open_clip(text.into_iter().chain(extra)));
        let projection = synthetic::fill("text_projection", width * width, 1.0, 0.0, 1);
        all.push(Tensor { name: "cond_stage_model.model.text_projection".into(), shape: vec![width, width], values: projection });
        all.push(Tensor { name: "cond_stage_model.model.logit_scale".into(), shape: vec![], values: vec![4.6] });
        write(path, &all, dtype);
    }

    /// The tensors of a checkpoint; a part without a name is left out.
    pub fn single_file(&self, parts: [&str; 3]) -> Vec<Tensor> {
        let mut all = Vec::new();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            all.extend(self.tensors(part).into_iter().map(|tensor| {
                let name = match part {
                    "unet" | "unet_sd2" => format!("model.diffusion_model.{}", unet_name(&tensor.name)),
                    "text_encoder" => format!("cond_stage_model.transformer.{}", tensor.name),
                    _ => format!("first_stage_model.{}", vae_name(&tensor.name)),
                };
                let square = part == "vae" && tensor.name.contains("attentions") && tensor.shape.len() == 2;
                let shape = if square { [&tensor.shape[..], &[1, 1]].concat() } else { tensor.shape };
                Tensor { name, shape, values: tensor.values }
            }));
        }
        all
    }
}

/// A result stored in the folder `case` of tests/data: shape and values.
pub fn expected(case: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(data(case).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (view.shape().to_vec(), values)
}

/// [`filled`] for a part of a model, whose inpainting form (`_nine`) has the values of the other where it has the same shapes.
pub fn part_filled(specs: &[Spec], part: &str, seed: u64) -> Vec<Tensor> {
    filled(specs, seed ^ (synthetic::fnv1a64(part.trim_end_matches("_nine").as_bytes()) & 0xffff))
}

/// The tensors that a case lists.
pub fn filled(specs: &[Spec], seed: u64) -> Vec<Tensor> {
    let fill = |(name, shape, amp, offset): &Spec| Tensor {
        name: name.clone(),
        shape: shape.clone(),
        values: synthetic::fill(name, shape.iter().product(), *amp, *offset, seed),
    };
    specs.iter().map(fill).collect()
}

/// A tensor of layer 0 as one of layer `layers`, larger than it should be.
fn extra_layer(tensor: &Tensor, layers: u64) -> Option<Tensor> {
    let rest = tensor.name.strip_prefix("text_model.encoder.layers.0.")?;
    let values = tensor.values.iter().map(|v| 3.0 * v).collect();
    Some(Tensor { name: format!("text_model.encoder.layers.{layers}.{rest}"), shape: tensor.shape.clone(), values })
}

/// Under OpenCLIP's names, with q, k and v one after the other in one tensor.
pub fn open_clip(tensors: impl Iterator<Item = Tensor>) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = Vec::new();
    let mut thirds: std::collections::BTreeMap<String, [Option<Tensor>; 3]> = Default::default();
    for tensor in tensors {
        let own = tensor.name.trim_start_matches("text_model.");
        let renames = [
            ("embeddings.token_embedding.", "token_embedding."),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("final_layer_norm.", "ln_final."),
            ("encoder.layers.", "transformer.resblocks."),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ];
        let name = renames.iter().fold(own.to_owned(), |name, (now, then)| name.replace(now, then));
        let name = format!("cond_stage_model.model.{name}");
        let third = ["q_proj", "k_proj", "v_proj"].iter().position(|p| name.contains(&format!("self_attn.{p}.")));
        match third {
            None => all.push(Tensor { name, ..tensor }),
            Some(n) => {
                let fused =
                    ["q_proj.", "k_proj.", "v_proj."].iter().fold(name, |name, p| name.replace(&format!("self_attn.{p}"), "attn.in_proj_"));
                thirds.entry(fused).or_default()[n] = Some(tensor);
            }
        }
    }
    for (name, parts) in thirds {
        let parts = parts.map(Option::unwrap);
        let mut shape = parts[0].shape.clone();
        shape[0] *= 3;
        all.push(Tensor { name, shape, values: parts.into_iter().flat_map(|part| part.values).collect() });
    }
    all
}

/// A `tokenizer/` folder with the public vocabulary, as tools/goldens/clip_vocabulary.py writes it.
pub fn write_tokenizer(folder: &Path, pad: &str) {
    let printable: Vec<u32> = (0x21..=0x7e).chain(0xa1..=0xac).chain(0xae..=0xff).collect();
    let symbols = printable.iter().copied().chain(256..256 + 256 - printable.len() as u32).map(|c| char::from_u32(c).unwrap().to_string());
    let mut tokens: Vec<String> = symbols.collect();
    tokens.extend((0..256).map(|i| format!("{}</w>", tokens[i])).collect::<Vec<_>>());
    let mut merges = String::from("#version: 0.2\n");
    let embedded = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tokenizer/clip_merges.bin")).unwrap();
    for pair in embedded.chunks_exact(4) {
        let part = |i: usize| &tokens[u16::from_le_bytes([pair[i], pair[i + 1]]) as usize];
        let (left, right) = (part(0).clone(), part(2).clone());
        merges.push_str(&format!("{left} {right}\n"));
        tokens.push(left + &right);
    }
    tokens.extend(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let vocab: serde_json::Map<String, Value> = tokens.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("vocab.json"), Value::Object(vocab).to_string()).unwrap();
    std::fs::write(folder.join("merges.txt"), merges).unwrap();
    let config = json!({ "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad });
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &[Tensor], dtype: Dtype) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let stored: Vec<Vec<u8>> = tensors.iter().map(|t| bytes(&t.values)).collect();
    let views = tensors.iter().zip(&stored).map(|(t, b)| (t.name.clone(), TensorView::new(dtype, t.shape.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// CompVis' name of a UNet's tensor, the inverse of `weights::unet_keys`, for one resnet a level.
pub fn unet_name(name: &str) -> String {
    const LAYERS: usize = 1;
    let parts: Vec<&str> = name.split('.').collect();
    let resnet = |tail: &[&str]| {
        let inner = match tail[0] {
            "norm1" => "in_layers.0",
            "conv1" => "in_layers.2",
            "time_emb_proj" => "emb_layers.1",
            "norm2" => "out_layers.0",
            "conv2" => "out_layers.3",
            "conv_shortcut" => "skip_connection",
            other => panic!("{other}"),
        };
        format!("{inner}.{}", tail[1])
    };
    let n = |text: &str| text.parse::<usize>().unwrap();
    match parts[..] {
        ["time_embedding", "linear_1", leaf] => format!("time_embed.0.{leaf}"),
        ["time_embedding", "linear_2", leaf] => format!("time_embed.2.{leaf}"),
        ["conv_in", leaf] => format!("input_blocks.0.0.{leaf}"),
        ["conv_norm_out", leaf] => format!("out.0.{leaf}"),
        ["conv_out", leaf] => format!("out.2.{leaf}"),
        ["down_blocks", b, "resnets", i, ref tail @ ..] => format!("input_blocks.{}.0.{}", 1 + n(b) * (LAYERS + 1) + n(i), resnet(tail)),
        ["down_blocks", b, "attentions", i, ref tail @ ..] => {
            format!("input_blocks.{}.1.{}", 1 + n(b) * (LAYERS + 1) + n(i), tail.join("."))
        }
        ["down_blocks", b, "downsamplers", "0", "conv", leaf] => format!("input_blocks.{}.0.op.{leaf}", 1 + n(b) * (LAYERS + 1) + LAYERS),
        ["mid_block", "resnets", i, ref tail @ ..] => format!("middle_block.{}.{}", 2 * n(i), resnet(tail)),
        ["mid_block", "attentions", "0", ref tail @ ..] => format!("middle_block.1.{}", tail.join(".")),
        ["up_blocks", b, "resnets", i, ref tail @ ..] => format!("output_blocks.{}.0.{}", n(b) * (LAYERS + 1) + n(i), resnet(tail)),
        ["up_blocks", b, "attentions", i, ref tail @ ..] => format!("output_blocks.{}.1.{}", n(b) * (LAYERS + 1) + n(i), tail.join(".")),
        // Behind the last resnet of a level without attention.
        ["up_blocks", b, "upsamplers", "0", "conv", leaf] => format!("output_blocks.{}.1.conv.{leaf}", n(b) * (LAYERS + 1) + LAYERS),
        _ => panic!("{name}"),
    }
}

pub fn vae_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let inner = |tail: &[&str]| tail.join(".").replace("conv_shortcut", "nin_shortcut");
    let reversed = |u: &str| 3 - u.parse::<usize>().unwrap();
    match parts[..] {
        [part, "conv_norm_out", leaf] => format!("{part}.norm_out.{leaf}"),
        [part, "down_blocks", i, "resnets", n, ref tail @ ..] => format!("{part}.down.{i}.block.{n}.{}", inner(tail)),
        [part, "down_blocks", i, "downsamplers", "0", ref tail @ ..] => format!("{part}.down.{i}.downsample.{}", inner(tail)),
        [part, "up_blocks", u, "resnets", n, ref tail @ ..] => format!("{part}.up.{}.block.{n}.{}", reversed(u), inner(tail)),
        [part, "up_blocks", u, "upsamplers", "0", ref tail @ ..] => format!("{part}.up.{}.upsample.{}", reversed(u), inner(tail)),
        [part, "mid_block", "resnets", n, ref tail @ ..] => format!("{part}.mid.block_{}.{}", n.parse::<usize>().unwrap() + 1, inner(tail)),
        [part, "mid_block", "attentions", "0", ref tail @ ..] => {
            let own = tail.join(".");
            let pairs = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
            let (from, to) = pairs.into_iter().find(|(from, _)| own.starts_with(from)).unwrap();
            format!("{part}.mid.attn_1.{}", own.replacen(from, to, 1))
        }
        _ => name.to_owned(),
    }
}

/// The picture and the mask that the goldens started from.
pub fn picture() -> (Image, Image) {
    let at = |i: usize| (i % 64, i / 64);
    let rgb: Vec<u8> = (0..64 * 64)
        .flat_map(|i| {
            let (x, y) = at(i);
            (0..3).map(move |c| ((x * 3 + y * (c + 1) + 40 * c + (x * y) / 16) % 256) as u8)
        })
        .collect();
    let mask: Vec<u8> = (0..64 * 64)
        .flat_map(|i| {
            let (x, y) = at(i);
            [if x + y >= 40 && x < 52 { 255 } else { 0 }; 3]
        })
        .collect();
    (Image::from_rgb8(64, 64, &rgb).unwrap(), Image::from_rgb8(64, 64, &mask).unwrap())
}

/// A folder with the model in both forms.
pub struct Models {
    pub scratch: tempfile::TempDir,
    pub folder: PathBuf,
    pub file: PathBuf,
    /// The inpainting form.
    pub nine: PathBuf,
}

pub fn models(case: &Case) -> Models {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, file) = (scratch.path().join("model"), scratch.path().join("model.safetensors"));
    let nine = scratch.path().join("inpainting");
    case.write_folder(&folder);
    case.write_inpainting_folder(&nine);
    case.write_single_file(&file, Dtype::F32);
    Models { scratch, folder, file, nine }
}

pub fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |it: &mut dyn Iterator<Item = f64>| it.map(|v| v * v).sum::<f64>().sqrt();
    let distance = sum(&mut got.iter().zip(want).map(|(g, w)| *g as f64 - *w as f64));
    distance / sum(&mut want.iter().map(|w| *w as f64)).max(1e-30)
}
