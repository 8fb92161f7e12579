//! What goes together as a text-to-image model and what does not, and which decoder follows it: `infgen generate` on the tiny model of
//! tests/data/text-to-image, put together in ways in which people put models together.

mod common;

use std::path::{Path, PathBuf};

use common::program::{infgen, not_generated};
use common::text_to_image::{Case, models, write};
use infgen::Latent;
use infgen::pipeline::Parts;
use infgen::schedulers::{Prediction, Sampler};
use safetensors::tensor::Dtype;

/// Two steps at 64x64; `None` where there is no adapter.
fn generated(model: &Path, name: &str, arguments: &[&str]) -> Option<(PathBuf, Vec<f32>)> {
    let folder = model.parent().unwrap();
    let (png, latent) = (folder.join(format!("{name}.png")), folder.join(format!("{name}.npy")));
    let own = ["generate", "--json", "--model", model.to_str().unwrap(), "-p", "a cat", "--steps", "2", "-s", "1", "--cfg", "3"];
    let size = if arguments.contains(&"--latent-size") { &[][..] } else { &["--latent-size", "64x64"] };
    let files = ["--dtype", "f32", "--save-latent", latent.to_str().unwrap(), "-o", png.to_str().unwrap()];
    let output = infgen(&[&own[..], size, &files, arguments].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("no adapter") && std::env::var_os("REQUIRE_GPU").is_none() {
        println!("SKIPPED: no adapter");
        return None;
    }
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    let values = Latent::open(&latent).unwrap().data().to_vec();
    Some((png, values))
}

/// Exit status 1, one line on stderr that has all of `words`, and no picture.
fn refused(model: &Path, arguments: &[&str], words: &[&str]) {
    let never = model.parent().unwrap().join("never.png");
    not_generated(&[&["--model", model.to_str().unwrap(), "-p", "x"], arguments].concat(), &never, words);
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// What diffusers' pipelines make of a folder's JSON files beyond their own fields.
#[test]
fn the_index_names_the_scheduler_and_early_unets_are_of_their_real_size() {
    let case = Case::open();
    let models = models(&case);
    let folder = models.scratch.path().join("told");
    let facts = |index: &str, unet: &[(&str, serde_json::Value)]| {
        copy(&models.folder, &folder);
        std::fs::write(folder.join("model_index.json"), index).unwrap();
        let path = folder.join("unet/config.json");
        let mut config: serde_json::Map<_, _> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.extend(unet.iter().map(|(name, value)| (name.to_string(), value.clone())));
        std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        let parts = Parts::open(&folder).unwrap();
        (parts.scheduler(None, None).map(|scheduler| scheduler.sampler()), parts.native_size.0 / parts.scale())
    };
    let own = facts(r#"{"_class_name": "StableDiffusionPipeline"}"#, &[]).0.unwrap();
    assert_ne!(own, Sampler::EulerAncestral);
    let index = |class: &str| format!(r#"{{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "{class}"]}}"#);
    let (named, _) = facts(&index("EulerAncestralDiscreteScheduler"), &[]);
    assert_eq!(named.unwrap(), Sampler::EulerAncestral);
    let error = facts(&index("UniPCMultistepScheduler"), &[]).0.unwrap_err().to_string();
    assert!(error.contains("UniPCMultistepScheduler") && error.contains("--sampler"), "{error}");

    let size = |version: &str, size: serde_json::Value| facts("{}", &[("_diffusers_version", version.into()), ("sample_size", size)]).1;
    assert_eq!(size("0.6.0", 16.into()), 64);
    assert_eq!(size("0.8.1", 96.into()), 96);
    assert_eq!(size("0.6.0", vec![16, 16].into()), 16);
    assert_eq!(size("0.9.0", 16.into()), 16);
    assert_eq!(size("0.42.1", 16.into()), 16);
}

#[test]
fn parts_of_different_models_are_refused() {
    let case = Case::open();
    let models = models(&case);
    let root = models.scratch.path();
    let sd2 = root.join("sd2");
    case.write_sd2_folder(&sd2);
    let mixed = root.join("mixed");
    for part in ["unet", "text_encoder"] {
        copy(&models.folder, &mixed);
        copy(&sd2.join(part), &mixed.join(part));
        refused(&mixed, &[], &["mixed", "prompts of width", "64", "128", "parts of different models"]);
    }
    let told = |folder: &Path, options: &[&str]| {
        let output = infgen(&[&["inspect", folder.to_str().unwrap()], options].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = told(&sd2, &[]);
    assert!(text.starts_with("text-to-image model, 64x64") && text.contains("predicts v\n") && text.contains("sampler: ddim"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&told(&models.nine, &["--json"])).unwrap();
    assert_eq!((&json["recognised"]["inpainting"], &json["recognised"]["predicts"]), (&true.into(), &"the noise".into()));
    assert_eq!(infgen(&["inspect", mixed.to_str().unwrap()]).status.code(), Some(1));
    // An encoder that could project the text, which nothing here reads.
    let projects = root.join("projects");
    copy(&models.folder, &projects);
    let config = projects.join("text_encoder/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"CLIPTextModel\"", "\"CLIPTextModelWithProjection\"");
    assert!(text.contains("WithProjection"));
    std::fs::write(&config, text).unwrap();
    assert_eq!(Parts::open(&projects).unwrap().texts().map(|text| text.config.projection_dim).collect::<Vec<_>>(), [None]);
    // A part's folder with another part in it.
    copy(&models.folder, &mixed);
    copy(&models.folder.join("unet"), &mixed.join("text_encoder"));
    refused(&mixed, &[], &["text_encoder", "a CLIP text encoder was looked for"]);
    copy(&models.folder, &mixed);
    copy(&models.folder.join("text_encoder"), &mixed.join("vae"));
    refused(&mixed, &[], &["vae", "an AutoencoderKL was looked for"]);
    // A pickle where weights should be.
    copy(&models.folder, &mixed);
    std::fs::remove_file(mixed.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::write(mixed.join("unet/diffusion_pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    refused(&mixed, &[], &["diffusion_pytorch_model.bin", "pickle", "convert"]);
    // Another family's decoder, and what is no decoder.
    let unet = models.folder.join("unet");
    refused(&models.folder, &["--latent-size", "64x64", "--decoder", unet.to_str().unwrap()], &["a decoder was looked for"]);
    refused(&models.folder, &["--latent-size", "64x64", "--decoder", "magic"], &["magic"]);
}

#[test]
fn a_file_or_folder_without_a_part_says_which_and_what_to_do() {
    let case = Case::open();
    let models = models(&case);
    let root = models.scratch.path();
    let bare = root.join("bare");
    copy(&models.folder, &bare);
    std::fs::remove_dir_all(bare.join("vae")).unwrap();
    let file = root.join("part.safetensors");
    write(&file, &case.single_file(["unet", "text_encoder", ""]), Dtype::F32);
    for model in [&bare, &file] {
        refused(model, &["--latent-size", "64x64"], &["there is no VAE in it", "--decoder"]);
        refused(model, &["--latent-size", "64x64", "--image", "x.png"], &["x.png"]);
        let Some((png, _)) = generated(model, "bare", &["--decoder", "builtin"]) else { return };
        assert_eq!(infgen::Image::open(png).unwrap().width(), 64);
    }
    write(&file, &case.single_file(["unet", "", "vae"]), Dtype::F32);
    refused(&file, &[], &["part.safetensors", "no text encoder", "diffusers folder"]);
    write(&file, &case.single_file(["", "text_encoder", "vae"]), Dtype::F32);
    refused(&file, &[], &["part.safetensors", "one part only", "whole checkpoint"]);

    // Without scheduler/ and tokenizer/ it runs on what most models have, and says so.
    copy(&models.folder, &bare);
    std::fs::remove_dir_all(bare.join("scheduler")).unwrap();
    let never = root.join("x.png");
    let own = ["generate", "--model", bare.to_str().unwrap(), "-p", "a cat", "--steps", "1", "--cfg", "1", "--latent-size", "64x64"];
    let output = infgen(&[&own[..], &["-q", "-o", never.to_str().unwrap()]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("warning: ") && stderr.contains("scheduler_config.json") && stderr.contains("--prediction"), "{stderr}");
}

#[test]
fn a_checkpoint_inside_a_folder_is_read_as_what_it_is() {
    let case = Case::open();
    let models = models(&case);
    let Some((_, want)) = generated(&models.folder, "want", &[]) else { return };
    let inside = models.scratch.path().join("inside");
    copy(&models.folder, &inside);
    for part in ["unet/diffusion_pytorch_model", "text_encoder/model"] {
        std::fs::copy(&models.file, inside.join(format!("{part}.safetensors"))).unwrap();
    }
    assert_eq!(generated(&inside, "got", &[]).unwrap().1, want);
}

#[test]
fn a_single_file_of_sd_2_is_taken_for_what_was_trained() {
    let case = Case::open();
    let models = models(&case);
    let path = models.scratch.path().join("sd2.safetensors");
    case.write_sd2_file(&path, Dtype::BF16);
    let parts = Parts::open(&path).unwrap();
    let scheduler = parts.scheduler(None, None).unwrap();
    assert_eq!((scheduler.sampler(), scheduler.config().prediction_type), (Sampler::Ddim, Prediction::VPrediction));
    let text = parts.texts().next().unwrap();
    assert_eq!((parts.native_size, text.config.num_hidden_layers), ((768, 768), 2));
    assert_eq!(text.tokenizer.encode("a!").ids[2..4], [0, 49407]);
    assert!(parts.notes.iter().any(|note| note.contains("--prediction epsilon")), "{:?}", parts.notes);
    // Its inpainting form predicts the noise.
    let mut all = case.single_file(["unet_sd2", "", "vae"]);
    let conv_in = all.iter_mut().find(|t| t.name.ends_with("input_blocks.0.0.weight")).unwrap();
    let rows = conv_in.shape[0];
    conv_in.shape[1] = 9;
    conv_in.values = vec![0.01; rows * 81];
    case.write_sd2_file(&path, Dtype::F32);
    let bytes = std::fs::read(&path).unwrap();
    let text = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in text.iter().filter(|(name, _)| name.starts_with("cond_stage_model.")) {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        all.push(common::text_to_image::Tensor { name: name.into(), shape: view.shape().to_vec(), values });
    }
    write(&path, &all, Dtype::F32);
    let parts = Parts::open(&path).unwrap();
    assert!(parts.is_inpainting());
    assert_eq!((parts.scheduler(None, None).unwrap().config().prediction_type, parts.native_size), (Prediction::Epsilon, (512, 512)));
}

#[test]
fn every_choice_of_decoder_decodes_the_latent_that_was_saved() {
    let case = Case::open();
    let models = models(&case);
    let root = models.scratch.path();
    let vae = models.folder.join("vae");
    let Some((native, _)) = generated(&models.folder, "native", &["--decoder", "vae"]) else { return };
    let bytes = |path: &Path| infgen::Image::open(path).unwrap().data().to_vec();
    let latent = root.join("native.npy");
    let decode = |weights: Option<&Path>, size: &str| {
        let output = root.join("decoded.png");
        let own = ["decode", "--latent", latent.to_str().unwrap(), "--size", size, "--dtype", "f32", "-o", output.to_str().unwrap()];
        let weights = weights.map_or(vec![], |path| vec!["--weights", path.to_str().unwrap()]);
        let done = infgen(&[&own[..], &weights].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        bytes(&output)
    };
    // The model's own, also by its path and from the single file, and where nothing is said.
    let want = decode(Some(&vae), "64x64");
    assert_eq!(bytes(&native), want);
    for (name, model, arguments) in [
        ("default", &models.folder, &[][..]),
        ("path", &models.folder, &["--decoder", vae.to_str().unwrap()]),
        ("file", &models.file, &["--decoder", models.file.to_str().unwrap()]),
    ] {
        assert_eq!(bytes(&generated(model, name, arguments).unwrap().0), want, "{name}");
    }
    // The decoder that ships, at the native size where it is asked for, at any other without asking.
    let builtin = generated(&models.folder, "builtin", &["--decoder", "builtin"]).unwrap().0;
    assert_eq!(bytes(&builtin), decode(None, "64x64"));
    assert_ne!(bytes(&builtin), want);
    for size in ["1x1", "37x91", "200x64"] {
        let other = generated(&models.folder, "other", &["--size", size]).unwrap().0;
        assert_eq!(bytes(&other), decode(None, size), "{size}");
    }
}
