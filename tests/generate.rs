//! `infgen generate` as users call it, on the tiny model of tests/data/text-to-image.

mod common;

use std::path::Path;
use std::process::Command;

use common::program::{done, has_device, infgen, not_generated};
use common::text_to_image::{Case, Models, Tensor, models, picture, relative_l2, write};
use infgen::Latent;
use safetensors::tensor::Dtype;

struct Fixture {
    case: Case,
    models: Models,
}

impl Fixture {
    fn new() -> Fixture {
        let case = Case::open();
        Fixture { models: models(&case), case }
    }

    fn at(&self, name: &str) -> String {
        self.models.scratch.path().join(name).display().to_string()
    }

    fn folder(&self) -> String {
        self.models.folder.display().to_string()
    }

    fn file(&self) -> String {
        self.models.file.display().to_string()
    }

    fn latent(&self, name: &str) -> Vec<f32> {
        Latent::open(self.at(name)).unwrap().data().to_vec()
    }
}

#[test]
fn a_picture_its_latent_its_settings_and_a_ceiling() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let run = f.case.run("euler-a");
    let (png, latent, preview) = (f.at("a.png"), f.at("a.safetensors"), f.at("preview.png"));
    let common = ["generate", "-p", "a photo of a cat", "-n", "blurry", "--steps", "4", "--cfg", "7.5", "-s", "42", "--dtype", "f32"];
    let folder = f.folder();
    let own = ["--model", &folder, "--sampler", "euler-a", "--latent-size", "64x64", "--save-latent", &latent, "-o", &png];
    let report = done(&[&common[..], &own, &["--preview", &preview, "--preview-every", "2"]].concat());
    let (_, want) = f.case.expected(&run.name);
    let distance = relative_l2(&f.latent("a.safetensors"), &want);
    assert!(distance < 2e-3, "{distance:.2e}");
    assert_eq!(Latent::open(&latent).unwrap().space.as_deref(), Some("sd"));
    assert_eq!((&report["width"], &report["calls"], &report["seed"]), (&64.into(), &4.into(), &42.into()));
    assert!(report["iterations_per_second"].as_f64().unwrap() > 0.0 && report["peak_gpu_bytes"].as_u64().unwrap() > 0);
    for path in [&png, &preview] {
        let picture = infgen::Image::open(path).unwrap();
        assert_eq!((picture.width(), picture.height()), (64, 64), "{path}");
    }
    let bytes = std::fs::read(&png).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let settings =
        "a photo of a cat\nNegative prompt: blurry\nSteps: 4, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 64x64, Model: model";
    assert!(text.contains("parameters\0") && text.contains(settings));
    // They come back from it.
    let inspected: serde_json::Value = serde_json::from_slice(&infgen(&["inspect", &png, "--json"]).stdout).unwrap();
    assert_eq!((&inspected["width"], &inspected["texts"]["infgen"]["seed"]), (&64.into(), &42.into()));
    assert_eq!(inspected["texts"]["infgen"]["sampler"], "euler-a");
    let printed = String::from_utf8(infgen(&["inspect", &png]).stdout).unwrap();
    assert!(printed.starts_with("PNG picture, 64x64\n") && printed.contains("  Negative prompt: blurry\n"), "{printed}");

    // The single file of the same weights gives the same latent; what the plan names as the smallest ceiling is one.
    let again = f.at("b.safetensors");
    let (file, other) = (f.file(), f.at("b.npy"));
    let own = ["--model", &file, "--sampler", "euler-a", "--latent-size", "64x64", "--save-latent", &again, "-o", &other];
    done(&[&common[..], &own].concat());
    assert_eq!(f.latent("b.safetensors"), f.latent("a.safetensors"));
    let tight = infgen(&[&common[..], &["-q"], &own, &["--memory", "1MiB"]].concat());
    let stderr = String::from_utf8_lossy(&tight.stderr);
    assert_eq!(tight.status.code(), Some(1));
    let needed: u64 =
        stderr.split("needs ").nth(1).and_then(|t| t.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{stderr}"));
    let needed = needed.to_string();
    let report = done(&[&common[..], &own, &["--memory", &needed]].concat());
    assert!(report["peak_gpu_bytes"].as_u64().unwrap() <= needed.parse().unwrap(), "{report}");
    assert_eq!(f.latent("b.safetensors"), f.latent("a.safetensors"));
}

#[test]
fn half_precision_stays_near_and_noise_can_be_given() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let case = f.case.run("ddim-plain");
    let noise = f.at("noise.npy");
    let values = infgen::noise::torch_cpu_randn(42, 4 * 6 * 10);
    Latent::new([1, 4, 6, 10], values).unwrap().save(&noise).unwrap();
    let half = f.at("half.safetensors");
    f.case.write_single_file(Path::new(&half), Dtype::F16);
    let (latent, png, folder) = (f.at("l.npy"), f.at("p.png"), f.folder());
    for (model, dtype, tolerance) in [(&folder, "f32", 2e-3), (&folder, "f16", 1e-3), (&half, "f16", 1e-3)] {
        let report = done(&[
            "generate",
            "--model",
            model,
            "-p",
            "a photo of a cat",
            "--steps",
            "4",
            "--cfg",
            "1",
            "--sampler",
            "ddim",
            "--init-noise",
            &noise,
            "--save-latent",
            &latent,
            "--dtype",
            dtype,
            "-o",
            &png,
        ]);
        assert_eq!((&report["latent_width"], &report["latent_height"]), (&80.into(), &48.into()));
        let distance = relative_l2(&f.latent("l.npy"), &f.case.expected(&case.name).1);
        println!("{model} {dtype}: {distance:.2e}");
        assert!(distance < tolerance, "{model} {dtype}: {distance:.2e}");
    }
}

#[test]
fn loras_change_the_latent_as_the_merged_weights_would() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    // A LoRA in kohya's names on one linear layer, one 1x1 and one 3x3 convolution of the UNet and one layer of the text encoder.
    let targets = [
        (
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        ),
        ("unet", "mid_block.attentions.0.proj_in.weight", "lora_unet_mid_block_attentions_0_proj_in"),
        ("unet", "mid_block.resnets.0.conv1.weight", "lora_unet_mid_block_resnets_0_conv1"),
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc1.weight", "lora_te_text_model_encoder_layers_1_mlp_fc1"),
    ];
    let mut lora = Vec::new();
    let mut merged = Case::open();
    let merged_folder = f.models.scratch.path().join("merged");
    merged.scheduler = f.case.scheduler.clone();
    merged.write_folder(&merged_folder);
    for part in ["unet", "text_encoder"] {
        let mut tensors = f.case.tensors(part);
        for (_, name, stem) in targets.iter().filter(|(p, ..)| *p == part) {
            let tensor = tensors.iter_mut().find(|t| t.name == *name || t.name == name.trim_start_matches("text_model.")).unwrap();
            let (outputs, columns) = (tensor.shape[0], tensor.values.len() / tensor.shape[0]);
            let down = common::synthetic::fill(&format!("{stem}.down"), 2 * columns, 0.3, 0.0, 1);
            let up = common::synthetic::fill(&format!("{stem}.up"), outputs * 2, 0.3, 0.0, 1);
            for (i, v) in tensor.values.iter_mut().enumerate() {
                let (o, c) = (i / columns, i % columns);
                // Rank 2, alpha 1, strength 0.8.
                *v += 0.8 * 0.5 * (up[2 * o] * down[c] + up[2 * o + 1] * down[columns + c]);
            }
            let down_shape = [&[2], &tensor.shape[1..]].concat();
            let up_shape: Vec<usize> = [&[outputs, 2][..], &vec![1; tensor.shape.len() - 2]].concat();
            lora.push(Tensor { name: format!("{stem}.lora_down.weight"), shape: down_shape, values: down });
            lora.push(Tensor { name: format!("{stem}.lora_up.weight"), shape: up_shape, values: up });
            lora.push(Tensor { name: format!("{stem}.alpha"), shape: vec![], values: vec![1.0] });
        }
        let stem = if part == "unet" { "diffusion_pytorch_model" } else { "model" };
        write(&merged_folder.join(part).join(format!("{stem}.safetensors")), &tensors, Dtype::F32);
    }
    let file = f.at("lora.safetensors");
    write(Path::new(&file), &lora, Dtype::F32);
    let generate = |model: &str, lora: Option<&str>, latent: &str| {
        let (png, latent) = (f.at("l.png"), f.at(latent));
        let arguments = [
            "generate",
            "--model",
            model,
            "-p",
            "a cat",
            "--steps",
            "2",
            "-s",
            "1",
            "--sampler",
            "ddim",
            "--dtype",
            "f32",
            "--save-latent",
            &latent,
            "-o",
            &png,
        ];
        done(&[&arguments[..], &lora.map_or(vec![], |lora| vec!["--lora", lora])].concat());
        Latent::open(&latent).unwrap().data().to_vec()
    };
    let plain = generate(&f.folder(), None, "plain.npy");
    let with = generate(&f.folder(), Some(&format!("{file}:0.8")), "with.npy");
    let want = generate(&merged_folder.display().to_string(), None, "merged.npy");
    assert!(relative_l2(&with, &want) < 1e-4, "{:.2e}", relative_l2(&with, &want));
    assert!(relative_l2(&with, &plain) > 1e-2, "the LoRA changes nothing");

    // The same changes in PEFT's names, which have no alpha of their own: half the strength.
    let peft: Vec<Tensor> = lora
        .into_iter()
        .filter(|tensor| !tensor.name.ends_with(".alpha"))
        .map(|tensor| {
            let (stem, role) = tensor.name.split_once(".lora_").unwrap();
            let (part, name, _) = targets.iter().find(|(.., kohya)| *kohya == stem).unwrap();
            let role = if role.starts_with("down") { "lora_A" } else { "lora_B" };
            Tensor { name: format!("{part}.{}.{role}.weight", name.trim_end_matches(".weight")), ..tensor }
        })
        .collect();
    let other_names = f.at("peft.safetensors");
    write(Path::new(&other_names), &peft, Dtype::F32);
    assert_eq!(generate(&f.folder(), Some(&format!("{other_names}:0.4")), "peft.npy"), with);

    let foreign = f.at("foreign.safetensors");
    let tensor = |name: &str| Tensor { name: name.into(), shape: vec![1, 1], values: vec![1.0] };
    write(
        Path::new(&foreign),
        &[tensor("lora_unet_input_blocks_4_1_x.lora_down.weight"), tensor("lora_unet_input_blocks_4_1_x.lora_up.weight")],
        Dtype::F32,
    );
    let output = f.models.scratch.path().join("never.png");
    not_generated(
        &["--model", &f.folder(), "-p", "x", "--lora", &foreign],
        &output,
        &["foreign.safetensors", "changes nothing", "input_blocks_4_1_x"],
    );
}

#[test]
fn a_picture_can_be_changed_in_part() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (image, mask) = picture();
    let (image_path, mask_path) = (f.at("image.png"), f.at("mask.png"));
    image.save(&image_path, &[]).unwrap();
    mask.save(&mask_path, &[]).unwrap();
    let (latent, png, folder) = (f.at("i.npy"), f.at("i.png"), f.folder());
    let common =
        ["generate", "--model", &folder, "-p", "a photo of a cat", "-n", "blurry", "-s", "42", "--dtype", "f32", "--image", &image_path];
    let output = ["--save-latent", &latent, "-o", &png];
    done(&[&common[..], &output, &["--sampler", "ddim", "--steps", "5", "--strength", "0.6"]].concat());
    let distance = relative_l2(&f.latent("i.npy"), &f.case.expected("image").1);
    assert!(distance < 2e-3, "{distance:.2e}");
    done(&[&common[..], &output, &["--sampler", "euler-a", "--steps", "4", "--strength", "0.75", "--mask", &mask_path]].concat());
    let distance = relative_l2(&f.latent("i.npy"), &f.case.expected("inpaint").1);
    assert!(distance < 2e-3, "{distance:.2e}");
}

#[test]
fn an_inpainting_model_takes_mask_and_picture() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (image, mask) = picture();
    let (image_path, mask_path, nine) = (f.at("image.png"), f.at("mask.png"), f.models.nine.display().to_string());
    image.save(&image_path, &[]).unwrap();
    mask.save(&mask_path, &[]).unwrap();
    let (latent, png) = (f.at("n.npy"), f.at("n.png"));
    let common =
        ["generate", "--model", &nine, "-p", "a photo of a cat", "-n", "blurry", "-s", "42", "--dtype", "f32", "--sampler", "ddim"];
    done(&[&common[..], &["--steps", "3", "--image", &image_path, "--mask", &mask_path, "--save-latent", &latent, "-o", &png]].concat());
    let distance = relative_l2(&f.latent("n.npy"), &f.case.expected("inpaint-nine").1);
    assert!(distance < 2e-3, "{distance:.2e}");
    let never = f.models.scratch.path().join("never.png");
    not_generated(&["--model", &nine, "-p", "x"], &never, &["inpainting model", "--image and --mask"]);
}

#[test]
fn a_batch_is_decoded_at_any_size() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (output, latent, folder) = (f.at("b.jpg"), f.at("b.safetensors"), f.folder());
    let arguments = ["generate", "--model", &folder, "-p", "a cat", "--steps", "2", "-s", "7", "--batch", "2", "--size", "100x70"];
    let report = done(&[&arguments[..], &["--latent-size", "64x48", "--save-latent", &latent, "-o", &output]].concat());
    assert_eq!((&report["decoder"], report["outputs"].as_array().unwrap().len()), (&"builtin".into(), 2));
    assert_eq!(Latent::open(&latent).unwrap().shape(), [2, 4, 6, 8]);
    let pictures = ["b-000.jpg", "b-001.jpg"].map(|name| infgen::Image::open(f.at(name)).unwrap());
    assert!(pictures.iter().all(|picture| (picture.width(), picture.height()) == (100, 70)));
    assert_ne!(pictures[0].data(), pictures[1].data(), "each has its own noise");
    assert!(!Path::new(&output).exists());
}

#[test]
fn several_seeds_make_the_pictures_that_each_makes_alone() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (output, latent, folder) = (f.at("s.png"), f.at("s.safetensors"), f.folder());
    let common =
        ["generate", "--model", &folder, "-p", "a cat", "--steps", "2", "--latent-size", "64x64", "--save-latent", &latent, "-o", &output];
    let report = done(&[&common[..], &["-s", "11,7-8"]].concat());
    assert_eq!((&report["seed"], &report["seeds"]), (&11.into(), &serde_json::json!([11, 7, 8])));
    let together = Latent::open(&latent).unwrap();
    assert_eq!(together.shape(), [3, 4, 8, 8]);
    let picture = |name: &str| infgen::Image::open(f.at(name)).unwrap();
    for (at, seed) in ["11", "7", "8"].iter().enumerate() {
        let part = picture(&format!("s-00{at}.png"));
        done(&[&common[..], &["-s", seed]].concat());
        assert_eq!(Latent::open(&latent).unwrap().data(), together.image(at).unwrap(), "seed {seed}");
        assert_eq!(picture("s.png"), part, "seed {seed}");
    }
    let inspected: serde_json::Value = serde_json::from_slice(&infgen(&["inspect", &f.at("s-001.png"), "--json"]).stdout).unwrap();
    assert_eq!(inspected["texts"]["infgen"]["seed"], 7);
    assert_eq!(infgen(&[&common[..], &["-s", "4-1"]].concat()).status.code(), Some(2));
}

/// An interrupt ends it soon, with status 1, one line, and no picture.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_picture() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (png, preview, folder) = (f.at("c.png"), f.at("preview.png"), f.folder());
    let arguments = [
        "generate",
        "-q",
        "--model",
        &folder,
        "-p",
        "a cat",
        "--sampler",
        "euler",
        "--steps",
        "900",
        "--preview",
        &preview,
        "--preview-every",
        "1",
    ];
    let mut child = Command::new(env!("CARGO_BIN_EXE_infgen"))
        .args(arguments)
        .args(["-o", &png])
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !Path::new(&preview).exists() {
        assert!(begun.elapsed().as_secs() < 300 && child.try_wait().unwrap().is_none(), "it ended before its first preview");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let asked = std::time::Instant::now();
    let output = child.wait_with_output().unwrap();
    println!("ended {:.2} s after it was asked to", asked.elapsed().as_secs_f64());
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), "infgen: cancelled\n"));
    assert!(!Path::new(&png).exists());
}

#[test]
fn what_cannot_be_generated_is_refused_in_one_line_that_says_what_to_do() {
    let f = Fixture::new();
    let never = f.models.scratch.path().join("never.png");
    let (folder, file) = (f.folder(), f.file());
    let at = |name: &str| f.at(name);
    not_generated(&["--model", &at("nothing/here/x"), "-p", "x"], &never, &["nothing/here/x", "no such file or folder", "no hub id"]);
    not_generated(&["--model", &at("model/unet"), "-p", "x"], &never, &["unet", "name the folder above"]);
    not_generated(
        &["--model", &at("model/vae/diffusion_pytorch_model.safetensors"), "-p", "x"],
        &never,
        &["AutoencoderKL", "one part only"],
    );
    not_generated(&["--model", &at("."), "-p", "x"], &never, &["model.safetensors", "name the file itself"]);
    not_generated(&["--model", &folder, "-p", "x", "--latent-size", "100x64"], &never, &["multiples of 8", "96x64"]);
    not_generated(&["--model", &folder, "-p", "x", "--size", "100x64", "--decoder", "vae"], &never, &["100x64", "builtin"]);
    not_generated(&["--model", &folder, "-p", "x", "--lora", &file], &never, &["LoRA was looked for"]);
    not_generated(&["--model", &folder, "-p", "(x", "--emphasis"], &never, &["never closed"]);
    for missing in ["text_encoder", "unet"] {
        let other = f.models.scratch.path().join(format!("without-{missing}"));
        f.case.write_folder(&other);
        std::fs::remove_dir_all(other.join(missing)).unwrap();
        not_generated(&["--model", other.to_str().unwrap(), "-p", "x"], &never, &[missing, "model_index.json"]);
    }
    let other = f.models.scratch.path().join("padded-behind");
    f.case.write_folder(&other);
    let config = other.join("unet/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replacen('{', r#"{"downsample_padding": 0, "#, 1);
    std::fs::write(&config, text).unwrap();
    not_generated(&["--model", other.to_str().unwrap(), "-p", "x", "--latent-size", "8x64"], &never, &["8x64", "at least 16", "16x64"]);
    let other = f.models.scratch.path().join("sd3");
    f.case.write_folder(&other);
    std::fs::write(other.join("model_index.json"), r#"{"_class_name": "StableDiffusion3Pipeline"}"#).unwrap();
    not_generated(&["--model", other.to_str().unwrap(), "-p", "x"], &never, &["StableDiffusion3Pipeline", "1.x and 2.x"]);
    for wrong in [
        &["generate", "-p", "x", "-o", "y.png"][..],
        &["generate", "--model", "m", "-p", "x", "-o", "y.png", "--sampler", "magic"],
        &["generate", "--model", "m", "-p", "x", "-o", "y.png", "--strength", "0.5"],
        &["generate", "--model", "m", "-p", "x", "-o", "y.png", "--batch", "0"],
        &["generate", "--model", &f.folder(), "-o", "y.png"],
    ] {
        assert_eq!(infgen(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert!(String::from_utf8_lossy(&infgen(&["generate", "--help"]).stdout).contains("dpmpp-2m-karras"));
}
