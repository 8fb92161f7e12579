//! INFD with its diffusion model, told nothing: noise to pictures through the program, against the original's sampler.

mod common;

use std::path::Path;

use common::golden::{Case, relative_l2};
use common::program::{done, has_device, infgen, not_generated};
use infgen::Latent;
use infgen::pipeline::Parts;
use infgen::schedulers::Sampler;
use safetensors::SafeTensors;

/// The autoencoder and renderer of `infd-small` and the diffusion model of `unet-infd` in one file, as INFD's are; the last under `prefix`.
fn write(path: &Path, prefix: &str) {
    let folders = ["infd-small", "unet-infd"].map(|name| Case::open(name).write_weights());
    let bytes = folders.each_ref().map(|folder| std::fs::read(folder.path().join("model.safetensors")).unwrap());
    let parts = bytes.each_ref().map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let tensors = parts.iter().flat_map(SafeTensors::tensors).map(|(name, view)| (name.replace("z_dm_ema.", prefix), view));
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[test]
fn noise_becomes_the_latents_of_the_original_and_their_pictures() {
    if !has_device() {
        return;
    }
    let files = Files::new();
    let model = files.at("infd.safetensors");
    write(Path::new(&model), "z_dm_ema.");
    let case = Case::open("unet-infd");
    for run in case.runs.iter().filter(|run| run.op == "generate") {
        let number = |name: &str| run.facts[name].as_u64().unwrap().to_string();
        let (steps, seed, batch) = (number("steps"), number("seed"), number("batch"));
        let (size, latent, out) = (format!("{}x{}", 4 * run.width, 4 * run.height), files.at("l.safetensors"), files.at("p.npy"));
        let common = ["generate", "--model", &model, "--dtype", "f32", "--latent-size", &size, "--size", "41x50", "--save-latent", &latent];
        let report = done(&[&common[..], &["--steps", &steps, "-s", &seed, "--batch", &batch, "-o", &out]].concat());
        assert_eq!((&report["decoder_model"], &report["sampler"]), (&"INFD decoder".into(), &"ddim".into()));
        let latents = Latent::open(&latent).unwrap();
        assert_eq!(latents.batch(), run.expected.len());
        for (i, expected) in run.expected.iter().enumerate() {
            let one = latents.select(i).unwrap();
            let pixels = run.width * run.height;
            let last: Vec<f32> = (0..3 * pixels).map(|at| one.data()[at % 3 * pixels + at / 3]).collect();
            let error = expected.relative_l2(&last);
            assert!(error < 1e-5, "{} {}: {error:.2e}", run.name, expected.tap);
        }
        // The picture is what its own decoder makes of the latent.
        let picture = if latents.batch() > 1 { files.at("p-000.npy") } else { out };
        let first = files.at("first.safetensors");
        latents.select(0).unwrap().save(&first).unwrap();
        done(&["decode", "--latent", &first, "--weights", &model, "--dtype", "f32", "--size", "41x50", "-o", &files.at("d.npy")]);
        assert_eq!(std::fs::read(picture).unwrap(), std::fs::read(files.at("d.npy")).unwrap());
    }
}

#[test]
fn pictures_are_where_it_starts_from_too() {
    if !has_device() {
        return;
    }
    let files = Files::new();
    let (model, other) = (files.at("infd.safetensors"), files.at("last-step.safetensors"));
    write(Path::new(&model), "z_dm_ema.");
    write(Path::new(&other), "z_dm.");
    let run = |model: &str, more: &[&str], name: &str| {
        let (latent, out) = (files.at(&format!("{name}.safetensors")), files.at(&format!("{name}.png")));
        let common =
            ["generate", "--model", model, "--dtype", "f32", "-s", "3", "--latent-size", "32x32", "--save-latent", &latent, "-o", &out];
        done(&[&common[..], more].concat());
        Latent::open(latent).unwrap().data().to_vec()
    };
    let noise = run(&model, &["--steps", "3"], "a");
    assert_eq!(noise, run(&other, &["--steps", "3"], "b"), "without an average, the last step");
    let picture = files.at("a.png");
    let encoded = files.at("e.safetensors");
    done(&["encode", "--image", &picture, "--weights", &model, "--dtype", "f32", "-o", &encoded]);
    let of_picture = Latent::open(&encoded).unwrap().data().to_vec();
    let distance = |strength: &str, name: &str| {
        let latent = run(&model, &["--steps", "100", "--image", &picture, "--strength", strength, "--eta", "0"], name);
        relative_l2(&latent, &of_picture)
    };
    let (little, more) = (distance("0.01", "c"), distance("0.1", "d"));
    assert!(little < 0.1 && more > 2.0 * little, "{little:.2e} {more:.2e}");
}

#[test]
fn a_model_that_is_told_nothing_says_so() {
    let files = Files::new();
    let model = files.at("infd.safetensors");
    write(Path::new(&model), "z_dm_ema.");
    let parts = Parts::open(Path::new(&model)).unwrap();
    assert_eq!((parts.family, parts.native_size, parts.latent_channels(), parts.scale()), ("infd", (256, 256), 3, 4));
    let defaults = (parts.default_steps(Sampler::Ddim), parts.default_eta(), parts.default_guidance(Sampler::Ddim));
    assert_eq!(defaults, (200, 1.0, 1.0), "as its own script");
    let text = String::from_utf8(infgen(&["inspect", &model]).stdout).unwrap();
    assert!(text.contains("with its UNet (levels of 32, 64, 96 channels, 3 input channels, no prompt)"), "{text}");
    let never = files.0.path().join("never.png");
    for (more, words) in [
        (&["-p", "a face"][..], &["told nothing", "leave out"][..]),
        (&["-n", "a face"], &["told nothing"]),
        (&["--cfg", "3"], &["cfg", "--cfg"]),
        (&["--clip-skip", "1"], &["text encoder"]),
        (&["--decoder", "builtin"], &["4 channels", "makes 3"]),
        (&["--latent-size", "30x32"], &["multiples of 4"]),
    ] {
        not_generated(&[&["--model", &model], more].concat(), &never, words);
    }
    let alone = Case::open("infd-small").write_weights();
    not_generated(
        &["--model", alone.path().join("model.safetensors").to_str().unwrap()],
        &never,
        &["with its diffusion model", "this is INFD"],
    );
}
