//! SDXL as users meet it, on the tiny model of tests/data/text-to-image-xl: `infgen inspect`, `infgen generate`, and a pipeline that stays.

mod common;

use std::path::Path;
use std::sync::Mutex;

use common::program::{done, has_device, infgen, not_generated};
use common::synthetic::fill;
use common::text_to_image::{Tensor, picture, relative_l2, write};
use common::text_to_image_xl::Case;
use infgen::pipeline::{Keep, Pipeline, PipelineOptions, Request};
use infgen::{Dtype, Engine, EngineOptions, Image, Latent, Observer};
use serde_json::{Value, json};

struct Fixture {
    case: Case,
    scratch: tempfile::TempDir,
}

impl Fixture {
    /// With the folder `model` and the file `model.safetensors`.
    fn new() -> Fixture {
        let f = Fixture { case: Case::open(), scratch: tempfile::tempdir().unwrap() };
        f.case.write_single_file(Path::new(&f.at("model.safetensors")), safetensors::Dtype::F32);
        f.folder("model");
        f
    }

    fn on_device() -> Option<Fixture> {
        has_device().then(Fixture::new)
    }

    fn at(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// The report of a run that leaves the latent `name`.safetensors and the picture `name`.png, and the latent.
    fn generate(&self, model: &str, name: &str, own: &[&str]) -> (Value, Vec<f32>) {
        let (latent, png) = (self.at(&format!("{name}.safetensors")), self.at(&format!("{name}.png")));
        let common = ["generate", "--model", model, "-p", "a photo of a cat", "-s", "42", "--dtype", "f32"];
        let report = done(&[&common[..], &["--save-latent", &latent, "-o", &png], own].concat());
        let latent = Latent::open(&latent).unwrap();
        assert_eq!(latent.space.as_deref(), Some("sdxl"), "{name}");
        (report, latent.data().to_vec())
    }

    /// The model as a folder of that name.
    fn folder(&self, name: &str) -> String {
        self.case.write_folder(&self.scratch.path().join(name));
        self.at(name)
    }

    /// A file of those tensors.
    fn save(&self, name: &str, tensors: &[Tensor]) -> String {
        write(&self.scratch.path().join(name), tensors, safetensors::Dtype::F32);
        self.at(name)
    }

    fn change(&self, name: &str, field: &str, value: usize) {
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(self.at(name)).unwrap()).unwrap();
        json[field] = value.into();
        std::fs::write(self.at(name), json.to_string()).unwrap();
    }

    fn refused(&self, model: &str, own: &[&str], words: &[&str]) {
        let never = self.scratch.path().join("never.png");
        // No device is looked for.
        not_generated(&[&["--model", model, "-p", "x", "--device", "none"], own].concat(), &never, words);
    }
}

fn near(got: &[f32], want: &[f32], what: &str) {
    let distance = relative_l2(got, want);
    assert!(distance < 1e-4, "{what}: {distance:.2e}");
}

fn inspected(path: &str) -> (Value, String) {
    let text = |own: &[&str]| String::from_utf8(infgen(&[&["inspect", path], own].concat()).stdout).unwrap();
    (serde_json::from_str(&text(&["--json"])).unwrap(), text(&[]))
}

#[test]
fn both_forms_are_inspected() {
    let f = Fixture::new();
    let values = |part: &str| f.case.tensors(part).iter().map(|tensor| tensor.values.len()).sum::<usize>();
    let (first, second) = ("CLIP text encoder (3 layers of width 64)", "CLIP text encoder (3 layers of width 128)");
    let (facts, printed) = inspected(&f.at("model"));
    let facts = &facts["recognised"];
    assert_eq!((&facts["kind"], &facts["family"], &facts["vae"]), (&json!("text_to_image"), &json!("sdxl"), &json!(true)));
    assert_eq!((&facts["native_size"], &facts["sampler"], &facts["notes"]), (&json!([64, 64]), &json!("euler"), &json!([])));
    for (part, text) in [("text_encoder", first), ("text_encoder_2", second)] {
        let count = format!("{part}_parameters");
        assert_eq!((&facts[part], &facts[&count]), (&json!(text), &json!(values(part))), "{part}");
        assert!(printed.contains(&format!("\ntext encoder: {text}, {} values\n", values(part))), "{printed}");
    }
    assert!(printed.starts_with("text-to-image model, 64x64, family sdxl\n") && printed.contains("\nsampler: euler\n"), "{printed}");

    let (facts, printed) = inspected(&f.at("model.safetensors"));
    assert_eq!(facts["problem"], Value::Null);
    let facts = &facts["recognised"];
    assert_eq!((&facts["kind"], &facts["family"]), (&json!("checkpoint"), &json!("sdxl")));
    let encoder = |part: &str| ["hidden_size", "num_hidden_layers", "projection_dim", "hidden_act"].map(|field| facts[part][field].clone());
    assert_eq!(encoder("text_encoder"), [json!(64), json!(3), Value::Null, json!("quick_gelu")]);
    assert_eq!(encoder("text_encoder_2"), [json!(128), json!(3), json!(128), json!("gelu")]);
    assert!(printed.contains("(family sdxl)") && printed.contains(&format!("{first}, {second}\n")), "{printed}");
    // What a checkpoint does not say is SDXL's.
    f.refused(&f.at("model.safetensors"), &["--size", "64x64", "--decoder", "vae"], &["64x64", "1024x1024"]);
}

#[test]
fn a_picture_its_latent_its_settings_and_three_negative_prompts() {
    let Some(f) = Fixture::on_device() else { return };
    let folder = f.at("model");
    // Sampler, guidance and size are the model's own.
    let (report, own) = f.generate(&folder, "own", &["--steps", "4"]);
    near(&own, &f.case.expected("own").1, "own");
    assert_eq!((&report["width"], &report["height"], &report["calls"]), (&json!(64), &json!(64), &json!(4)));
    assert_eq!((&report["sampler"], &report["cfg"], &report["decoder"]), (&json!("euler"), &json!(5.0), &json!("vae")));
    let decode = ["decode", "--size", "64x64", "--dtype", "f32", "--latent", &f.at("own.safetensors"), "--weights", &f.at("model/vae")];
    done(&[&decode[..], &["-o", &f.at("decoded.png")]].concat());
    let [picture, decoded] = ["own.png", "decoded.png"].map(|name| Image::open(f.at(name)).unwrap());
    assert_eq!(picture, decoded, "its own VAE made the picture");
    let bytes = |name: &str| std::fs::read(f.at(name)).unwrap();
    let first = ["own.png", "own.safetensors"].map(bytes);
    f.generate(&folder, "own", &["--steps", "4"]);
    assert!(["own.png", "own.safetensors"].map(bytes) == first, "it repeats");
    let (report, single) = f.generate(&f.at("model.safetensors"), "single", &["--steps", "4", "--latent-size", "64x64"]);
    assert!(single == own && report["sampler"] == "euler", "the single file is the same model: {report}");

    let mut latents: Vec<Vec<f32>> = Vec::new();
    for (name, negative) in [("none", None), ("empty-negative", Some("")), ("negative", Some("blurry"))] {
        let given = negative.map_or(vec![], |text| vec!["-n", text]);
        let (_, latent) = f.generate(&folder, name, &[&["--steps", "4", "--sampler", "ddim"], &given[..]].concat());
        given.iter().for_each(|_| near(&latent, &f.case.expected(name).1, name));
        assert!(latents.iter().all(|other| relative_l2(&latent, other) > 0.01), "{name} is another one's");
        latents.push(latent);
        let (facts, printed) = inspected(&f.at(&format!("{name}.png")));
        let settings = &facts["texts"]["infgen"];
        assert!(settings.get("negative_prompt").is_some_and(|text| *text == json!(negative)), "{settings}");
        assert_eq!((&settings["sampler"], &settings["cfg"], &settings["size"]), (&json!("ddim"), &json!(5.0), &json!("64x64")));
        assert_eq!(printed.contains("Negative prompt: blurry\n"), name == "negative", "{printed}");
    }
    // A model that does not force zeros takes a missing negative prompt for an empty one.
    f.case.write_index(Path::new(&f.at("model")), false);
    let (_, unforced) = f.generate(&folder, "unforced", &["--steps", "4", "--sampler", "ddim"]);
    assert!(unforced == latents[1]);
}

#[test]
fn another_size_takes_a_decoder_of_the_same_space() {
    let f = Fixture::new();
    let folder = f.at("model");
    let [sd, sdxl] = ["sd", "sdxl"].map(|space| format!("{}/weights/infgen-tiny-{space}.safetensors", env!("CARGO_MANIFEST_DIR")));
    f.refused(&folder, &["--size", "90x70"], &["builtin", "`sd`", "`sdxl`", "64x64", "--decoder"]);
    f.refused(&folder, &["--size", "90x70", "--decoder", &sd], &["infgen-tiny-sd.safetensors", "`sd`", "`sdxl`"]);
    if !has_device() {
        return;
    }
    let (report, latent) = f.generate(&folder, "odd", &["--steps", "4", "--size", "90x70", "--decoder", &sdxl]);
    near(&latent, &f.case.expected("own").1, "the latent is that of the native size");
    assert_eq!((&report["decoder"], &report["latent_width"]), (&json!(sdxl), &json!(64)));
    let picture = Image::open(f.at("odd.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (90, 70));
    let spread = picture.data().iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    assert!(spread.1 - spread.0 > 0.2, "nothing to see: {spread:?}");
}

#[test]
fn the_plan_is_kept_and_its_smallest_ceiling_does() {
    let Some(f) = Fixture::on_device() else { return };
    // The same model, whose second encoder takes the most.
    let (deep, mut tensors) = (f.folder("deep"), f.case.tensors("text_encoder_2"));
    f.change("deep/text_encoder_2/config.json", "num_hidden_layers", 120);
    let own = tensors.len();
    for (layer, i) in (3..120).flat_map(|layer| (0..own).map(move |i| (layer, i))) {
        if let Some(name) = tensors[i].name.strip_prefix("text_model.encoder.layers.1.") {
            let name = format!("text_model.encoder.layers.{layer}.{name}");
            tensors.push(Tensor { name, shape: tensors[i].shape.clone(), values: tensors[i].values.clone() });
        }
    }
    f.save("deep/text_encoder_2/model.safetensors", &tensors);
    for model in [f.at("model"), deep] {
        let (_, latent) = f.generate(&model, "free", &["--steps", "2"]);
        let bytes = |report: &Value| ["peak_gpu_bytes", "planned_peak_gpu_bytes"].map(|name| report[name].as_u64().unwrap());
        let [peak, planned] = bytes(&f.generate(&model, "ample", &["--steps", "2", "--memory", "1GiB"]).0);
        assert!(peak <= planned && planned - peak < planned / 10, "{peak} of {planned}");
        let refused = |ceiling: &str| {
            let own = ["--steps", "2", "--dtype", "f32", "-o", &f.at("never.png"), "--memory", ceiling];
            let output = infgen(&[&["generate", "-q", "--model", &model, "-p", "a photo of a cat"], &own[..]].concat());
            assert!(output.status.code() == Some(1) && !Path::new(&f.at("never.png")).exists(), "{ceiling}: {output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let stderr = refused("1MiB");
        let needed = stderr.split("needs ").nth(1).and_then(|t| t.split(' ').next()).unwrap_or_else(|| panic!("{stderr}"));
        let (tight, under) = f.generate(&model, "tight", &["--steps", "2", "--memory", needed]);
        assert!(bytes(&tight).iter().all(|bytes| *bytes <= needed.parse().unwrap()), "{tight}");
        assert!(under == latent, "a ceiling changes no bit");
        assert!(refused(&(needed.parse::<u64>().unwrap() - 1).to_string()).contains(&format!("needs {needed} ")));
        // What is kept for the next prompt makes way where the plan has no room for it.
        let options = EngineOptions { dtype: Dtype::F32, memory: Some(needed.parse().unwrap()), ..EngineOptions::default() };
        let engine = Engine::new(options).unwrap();
        let pipeline = Pipeline::open(&engine, &model, &PipelineOptions { keep: Keep::All, ..PipelineOptions::default() }).unwrap();
        for prompt in ["a photo of a cat", "a bird"] {
            let request = Request { steps: 2, cfg: 5.0, ..Request::new(prompt, 64, 64) };
            pipeline.generate(&request, &Observer::default(), &|_| {}).unwrap_or_else(|error| panic!("{model}, {prompt}: {error}"));
        }
    }
}

/// Part, tensor, and kohya's name with the UNet's blocks as CompVis has them.
const CHANGED: [(&str, &str, &str); 8] = [
    ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"),
    ("unet", "up_blocks.0.attentions.1.proj_out", "lora_unet_output_blocks_1_1_proj_out"),
    ("unet", "up_blocks.1.upsamplers.0.conv", "lora_unet_output_blocks_3_2_conv"),
    ("unet", "add_embedding.linear_1", "lora_unet_label_emb_0_0"),
    ("text_encoder", "text_model.encoder.layers.1.mlp.fc1", "lora_te1_text_model_encoder_layers_1_mlp_fc1"),
    ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc2", "lora_te2_text_model_encoder_layers_0_mlp_fc2"),
    ("text_encoder_2", "text_model.encoder.layers.2.self_attn.k_proj", "lora_te2_text_model_encoder_layers_2_self_attn_k_proj"),
    ("text_encoder_2", "text_projection", "lora_te2_text_projection"),
];

#[test]
fn loras_change_the_latent_as_the_merged_weights_would() {
    let Some(f) = Fixture::on_device() else { return };
    f.folder("merged");
    let (mut kohya, mut diffusers, mut own_files) = (Vec::new(), Vec::new(), Vec::new());
    for part in ["unet", "text_encoder", "text_encoder_2"] {
        let (mut tensors, begin) = (f.case.tensors(part), kohya.len());
        for (_, name, stem) in CHANGED.iter().filter(|(of, ..)| *of == part) {
            let tensor = tensors.iter_mut().find(|tensor| tensor.name == format!("{name}.weight")).unwrap();
            let (outputs, columns) = (tensor.shape[0], tensor.values.len() / tensor.shape[0]);
            let (down, up) = (fill(&format!("{stem}.down"), columns, 0.6, 0.0, 1), fill(&format!("{stem}.up"), outputs, 0.6, 0.0, 1));
            for (i, v) in tensor.values.iter_mut().enumerate() {
                // Rank 1, alpha 0.5, strength 0.8.
                *v += 0.4 * up[i / columns] * down[i % columns];
            }
            let ends = vec![1; tensor.shape.len() - 2];
            let down = ("lora_down.weight", [&[1], &tensor.shape[1..]].concat(), down);
            let halves = [down, ("lora_up.weight", [&[outputs, 1], &ends[..]].concat(), up), ("alpha", vec![], vec![0.5])];
            let other = if part == "unet" { format!("lora_unet_{}", name.replace('.', "_")) } else { stem.to_string() };
            for (to, stem) in [(&mut kohya, *stem), (&mut diffusers, &*other)] {
                let named = |(end, shape, values): (&str, Vec<usize>, Vec<f32>)| Tensor { name: format!("{stem}.{end}"), shape, values };
                to.extend(halves.clone().map(named));
            }
        }
        let stem = if part == "unet" { "diffusion_pytorch_model" } else { "model" };
        f.save(&format!("merged/{part}/{stem}.safetensors"), &tensors);
        own_files.push(f.save(&format!("lora-{part}.safetensors"), &kohya[begin..]));
    }
    let (one, other) = (f.save("kohya.safetensors", &kohya), f.save("diffusers.safetensors", &diffusers));
    let generate = |model: &str, lora: &str, strength: &str| {
        let lora = format!("{lora}:{strength}");
        let (report, latent) = f.generate(model, "l", &["--steps", "2", "-n", "", "--latent-size", "64x64", "--lora", &lora]);
        assert_eq!((&report["notes"], report["latent"][3].as_u64()), (&json!([]), Some(8)), "{lora}: all of it fits");
        latent
    };
    let [plain, with] = ["0", "0.8"].map(|strength| generate(&f.at("model"), &one, strength));
    let want = generate(&f.at("merged"), &one, "0");
    near(&with, &want, "merged");
    assert!(generate(&f.at("model.safetensors"), &one, "0.8") == with, "in the single file");
    assert!(generate(&f.at("model"), &other, "0.8") == with, "under diffusers' names");
    // Nothing of it is too small to be missed.
    for file in &own_files {
        assert!(relative_l2(&generate(&f.at("model"), file, "0.8"), &plain) > 1e-3, "{file} changes nothing");
    }
    // SD's prompts are as wide as one encoder.
    let stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let half = |end, a, b| Tensor { name: format!("{stem}.lora_{end}.weight"), shape: vec![a, b], values: vec![1.0; a * b] };
    let foreign = f.save("sd15.safetensors", &[half("down", 1, 64), half("up", 128, 1)]);
    let (model, never) = (f.at("model"), f.scratch.path().join("never.png"));
    not_generated(&["--model", &model, "-p", "x", "--lora", &foreign], &never, &["sd15.safetensors", stem, "made for another model"]);
}

#[test]
fn parts_of_different_models_are_refused() {
    let f = Fixture::new();
    let (other, mut tensors) = (f.folder("other-unet"), f.case.tensors("unet"));
    f.change("other-unet/unet/config.json", "projection_class_embeddings_input_dim", 1600);
    let added = tensors.iter_mut().find(|tensor| tensor.name == "add_embedding.linear_1.weight").unwrap();
    (added.shape, added.values) = (vec![256, 1600], vec![0.0; 256 * 1600]);
    f.save("other-unet/unet/diffusion_pytorch_model.safetensors", &tensors);
    f.refused(&other, &[], &["pooled text", "width 64", "width 128", "different models"]);

    let other = f.folder("short");
    f.change("short/tokenizer_2/tokenizer_config.json", "model_max_length", 60);
    f.refused(&other, &[], &["tokenizers", "77, 60", "different models"]);

    let other = f.folder("robbed");
    std::fs::remove_dir_all(Path::new(&other).join("vae")).unwrap();
    f.refused(&other, &["--decoder", "builtin"], &["`sd`", "`sdxl`"]);
    for (part, word) in [("text_encoder", "refiner"), ("text_encoder_2", "there is no text_encoder_2/")] {
        std::fs::remove_dir_all(Path::new(&other).join(part)).unwrap();
        f.refused(&other, &[], &[word]);
    }
    // Relatives, read off their tensors.
    let one = |name: &str| Tensor { name: name.into(), shape: vec![4], values: vec![0.0; 4] };
    for (name, words) in [
        ("model.diffusion_model.middle_block.3.in_layers.0.weight", ["middle_block.3.in_layers.0.weight", "not known"]),
        ("edm_vpred.sigma_max", ["edm_vpred.sigma_max", "EDM"]),
    ] {
        let tensors: Vec<Tensor> = f.case.single_file().into_iter().chain([one(name)]).collect();
        f.refused(&f.save("relative.safetensors", &tensors), &[], &words);
    }
    // As the refiner is: what base calls its second encoder is its first, and only one.
    const FIRST: &str = "conditioner.embedders.0.";
    let without = || f.case.single_file().into_iter().filter(|tensor| !tensor.name.starts_with(FIRST));
    let renamed = without().map(|tensor| Tensor { name: tensor.name.replacen("conditioner.embedders.1.", FIRST, 1), ..tensor });
    for tensors in [without().collect::<Vec<_>>(), renamed.collect()] {
        f.refused(&f.save("last.safetensors", &tensors), &[], &["last.safetensors", "no first text encoder", "refiner"]);
    }
}

#[test]
fn a_pipeline_keeps_both_encoders_or_none() {
    let Some(f) = Fixture::on_device() else { return };
    let engine = Engine::new(EngineOptions { dtype: Dtype::F32, ..EngineOptions::default() }).unwrap();
    let bare = engine.memory().current;
    let open = |keep| Pipeline::open(&engine, f.at("model"), &PipelineOptions { keep, ..PipelineOptions::default() }).unwrap();
    let asked = |prompt: &str| Request { steps: 2, cfg: 5.0, ..Request::new(prompt, 64, 64) };
    let run = |pipeline: &Pipeline, request: &Request| {
        let generated = pipeline.generate(request, &Observer::default(), &|_| {}).unwrap();
        (generated.loaded, generated.latent.data().to_vec())
    };
    let (cat, dog) = (asked("a cat"), asked("a dog"));
    let everything = vec!["text_encoder", "text_encoder_2", "denoiser"];
    let all = open(Keep::All);
    let (loaded, first) = run(&all, &cat);
    assert_eq!(loaded, everything);
    let (loaded, second) = run(&all, &dog);
    assert!(loaded.is_empty() && second != first, "{loaded:?}");
    assert!(all.release() > 0 && engine.memory().current == bare);
    assert_eq!(run(&all, &cat), (vec!["denoiser"], first.clone()), "kept prompts need no encoder");
    let negative = Request { negative: Some("blurry".into()), ..cat.clone() };
    assert_eq!(run(&all, &negative).0, ["text_encoder", "text_encoder_2"]);
    drop(all);
    let nothing = open(Keep::Nothing);
    assert_eq!(run(&nothing, &cat), (everything.clone(), first));
    assert_eq!(engine.memory().current, bare);
    assert_eq!(run(&nothing, &dog), (everything, second));
    assert_eq!(run(&nothing, &dog).0, ["denoiser"]);
    let few = Request { clip_skip: 2, ..asked("a bird") };
    let refused = nothing.generate(&few, &Observer::default(), &|_| {}).unwrap_err().to_string();
    assert!(refused.contains("clip skip: 2 of 2 layers"), "{refused}");

    // The preview after the last call is of the latent that comes out: its red is this sum (`SDXL_COLOURS`).
    let last = Mutex::new(Vec::new());
    let request = Request { preview_every: 1, ..cat };
    let report = |report: &infgen::pipeline::Report<'_>| *last.lock().unwrap() = report.preview.unwrap().rgb.clone();
    let latent = nothing.generate(&request, &Observer::default(), &report).unwrap().latent;
    for (i, pixel) in last.into_inner().unwrap().chunks_exact(3).enumerate() {
        let red: f32 = [0.3998, -0.2192, 0.0922, -0.2729].iter().enumerate().map(|(c, weight)| weight * latent.data()[c * 64 + i]).sum();
        assert!(((red.clamp(-1.0, 1.0) + 1.0) * 127.5 - f32::from(pixel[0])).abs() < 1.0, "pixel {i}: {red} and {pixel:?}");
    }
}

#[test]
fn a_picture_can_be_changed_and_previews_are_written() {
    let Some(f) = Fixture::on_device() else { return };
    let (image, preview) = (f.at("image.png"), f.at("preview.png"));
    picture().0.save(&image, &[]).unwrap();
    let own = ["-n", "blurry", "--sampler", "ddim", "--steps", "5", "--image", &image, "--preview", &preview];
    let (report, latent) = f.generate(&f.at("model"), "i", &[&own[..], &["--strength", "0.6", "--preview-every", "2"]].concat());
    near(&latent, &f.case.expected("image").1, "image");
    assert_eq!(report["calls"], 3);
    let preview = Image::open(preview).unwrap();
    assert_eq!((preview.width(), preview.height()), (64, 64));
    let settings = &inspected(&f.at("i.png")).0["texts"]["infgen"];
    assert_eq!((&settings["strength"], &settings["image"]), (&json!(0.6), &json!(image)));
}
