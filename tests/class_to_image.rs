//! Models that are told a class: DiT in diffusers' form and in the original's, FiT, MDTv2, MaskDiT, against their sources, and through the program.

mod common;

use std::path::{Path, PathBuf};

use common::devices::{self, skipped};
use common::golden::relative_l2;
use common::program::{done, has_device, infgen, not_generated};
use common::text_to_image::{Spec, Tensor, filled, write};
use common::{data, text_to_image};
use infgen::gpu::Elem;
use infgen::models::dit::{Classes, Dit};
use infgen::nn::{Loader, Precision, RotaryScaling};
use infgen::pipeline::Parts;
use infgen::pipeline::parts::Denoiser;
use infgen::{Image, Latent};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    seed: u64,
    transformer: Value,
    odd: Value,
    scheduler: Value,
    /// Timestep and class.
    calls: Vec<(f64, usize)>,
    /// Height and width of the latents.
    sizes: std::collections::BTreeMap<String, (usize, usize)>,
    ropes: Vec<String>,
    runs: Vec<Run>,
    tensors: std::collections::BTreeMap<String, Vec<Spec>>,
}

#[derive(Deserialize)]
struct Run {
    name: String,
    model: String,
    sampler: Option<String>,
    class: usize,
    steps: usize,
    cfg: f64,
    seed: u64,
    #[serde(default)]
    rescale: f64,
    rope: Option<String>,
    power: Option<f64>,
    #[serde(default = "one")]
    batch: usize,
}

fn one() -> usize {
    1
}

/// Files of MaskDiT's weights: as they were saved, where the model was compiled before, and without the wrapper.
const MASKDIT: [(&str, &str); 3] =
    [("maskdit.safetensors", "model."), ("compiled.safetensors", "_orig_mod.model."), ("bare.safetensors", "")];

/// All models in a folder, removed with it.
struct Models {
    case: Case,
    scratch: tempfile::TempDir,
}

impl Models {
    fn new() -> Models {
        let case: Case = serde_json::from_str(&std::fs::read_to_string(data("class-to-image/case.json")).unwrap()).unwrap();
        let models = Models { case, scratch: tempfile::tempdir().unwrap() };
        let folder = models.path("diffusers");
        let odd = models.path("odd");
        for part in [folder.join("transformer"), folder.join("scheduler"), odd.join("transformer")] {
            std::fs::create_dir_all(part).unwrap();
        }
        std::fs::write(odd.join("transformer/config.json"), models.case.odd.to_string()).unwrap();
        write(&odd.join("transformer/diffusion_pytorch_model.safetensors"), &models.tensors("odd"), Dtype::F32);
        std::fs::write(folder.join("transformer/config.json"), models.case.transformer.to_string()).unwrap();
        std::fs::write(folder.join("scheduler/scheduler_config.json"), models.case.scheduler.to_string()).unwrap();
        let labels = json!({ "134": "crane", "207": "golden retriever", "281": "tabby, tabby cat", "517": "crane, hoist" });
        let index = json!({ "_class_name": "DiTPipeline", "scheduler": ["diffusers", "DDIMScheduler"], "id2label": labels });
        std::fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
        let stem = folder.join("transformer/diffusion_pytorch_model.safetensors");
        write(&stem, &models.tensors("diffusers"), Dtype::F32);
        write(&models.path("original"), &models.tensors("original"), Dtype::F32);
        std::fs::copy(models.path("original"), models.path("sit")).unwrap();
        // Their width is none of those that were published: a config.json says the heads; MDT's table of biases does, too.
        for (name, heads) in [("fit1", Some(2)), ("fit2", Some(4)), ("mdt", None)] {
            let folder = models.path(name);
            std::fs::create_dir_all(&folder).unwrap();
            if let Some(heads) = heads {
                std::fs::write(folder.join("config.json"), json!({ "num_heads": heads }).to_string()).unwrap();
            }
            let mut tensors = models.tensors(name);
            if name == "mdt" {
                // Such as its files hold and inference does not need.
                for (name, shape) in [
                    ("mask_token", &[1, 1, 60][..]),
                    ("sideblocks.0.attn.proj.bias", &[60]),
                    ("de_blocks.0.attn.rel_pos_bias.relative_position_index", &[6, 10]),
                ] {
                    tensors.push(Tensor { name: name.into(), shape: shape.into(), values: vec![f32::NAN; 60] });
                }
            }
            write(&folder.join("model_ema.safetensors"), &tensors, Dtype::F32);
        }
        // MaskDiT's names lie in a wrapper.
        for (file, prefix) in MASKDIT {
            let mut tensors = models.tensors("maskdit");
            tensors.push(Tensor { name: "mask_token".into(), shape: vec![1, 1, 96], values: vec![f32::NAN; 96] });
            tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, prefix));
            write(&models.scratch.path().join(file), &tensors, Dtype::F32);
        }
        models
    }

    /// The folder of diffusers' form, the files of the original's and, under a name that says so, of SiT.
    fn path(&self, model: &str) -> PathBuf {
        self.scratch.path().join(match model {
            "original" => "original-DiT.safetensors",
            "sit" => "SiT-S-2.safetensors",
            "maskdit" => "maskdit.safetensors",
            folder => folder,
        })
    }

    fn at(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    fn tensors(&self, model: &str) -> Vec<Tensor> {
        filled(&self.case.tensors[model], self.case.seed)
    }
}

/// A stored result, `[4, h, w]`.
fn expected(name: &str) -> Vec<f32> {
    text_to_image::expected("class-to-image", name).1
}

fn channels_last(planes: &[f32]) -> Vec<f32> {
    let area = planes.len() / 4;
    (0..planes.len()).map(|i| planes[i % 4 * area + i / 4]).collect()
}

/// One call each, alone and with another class below it, which must change no bit.
#[test]
fn a_call_predicts_what_the_sources_predict() {
    let Some(gpu) = devices::open(&devices::options()) else { return skipped("a_call_predicts_what_the_sources_predict") };
    let models = Models::new();
    for (name, &(h, w)) in &models.case.sizes {
        let parts = Parts::open(&models.path(name)).unwrap();
        let Denoiser::Dit { dit: config, .. } = &parts.denoiser else { panic!("{name}: no DiT") };
        let view = parts.denoiser_view().unwrap();
        let dit = pollster::block_on(Dit::load(&Loader::new(&gpu, &view, Precision::F32), config)).unwrap();
        let predictions = |timestep: f64, classes: &[usize], scaling: RotaryScaling| -> Vec<Vec<f32>> {
            let classes = pollster::block_on(Classes::read(&view, config, classes)).unwrap();
            let mut rec = gpu.recorder();
            let noise = channels_last(&infgen::noise::torch_cpu_randn(1, 4 * h * w));
            let latent = rec.upload(&noise, h, w, 4, Elem::F32);
            let (all, variance) = dit.forward(&mut rec, &latent, timestep, &classes, scaling, false).unwrap();
            assert!(variance.is_none());
            all.iter().enumerate().for_each(|(n, y)| rec.output(n.to_string(), y));
            let mut outputs = devices::run(&gpu, rec.finish()).unwrap();
            (0..all.len()).map(|n| outputs.numbers(&n.to_string())).collect()
        };
        let calls = if name == "odd" { vec![(500.0, 7)] } else { models.case.calls.clone() };
        let own = RotaryScaling::default();
        for (timestep, class) in calls {
            let timestep = match &**name {
                "fit2" => timestep / 1000.0,
                "maskdit" => timestep / -500.0,
                _ => timestep,
            };
            let alone = predictions(timestep, &[class], own);
            let want = channels_last(&expected(&format!("call.{name}.{class}")));
            let distance = relative_l2(&alone[0], &want);
            println!("{name}, timestep {timestep}, class {class}: {distance:.2e}");
            assert!(distance < 1e-5, "{name}, timestep {timestep}, class {class}: relative L2 {distance:.2e}");
            let both = predictions(timestep, &[class, 5], own);
            assert!(both[0] == alone[0] && both[1] == predictions(timestep, &[5], own)[0], "{name}: classes see each other");
        }
        for rope in models.case.ropes.iter().filter(|_| name == "fit2") {
            let distance = relative_l2(
                &predictions(0.3, &[5], RotaryScaling::from_name(rope).unwrap())[0],
                &channels_last(&expected(&format!("rope.{rope}"))),
            );
            println!("{name}, rope {rope}: {distance:.2e}");
            assert!(distance < 1e-5, "{name}, rope {rope}: relative L2 {distance:.2e}");
        }
    }
}

#[test]
fn latents_are_those_of_the_sources() {
    if !has_device() {
        return;
    }
    let models = Models::new();
    let (latent, output) = (models.at("l.npy"), models.at("l.png"));
    for run in &models.case.runs {
        let path = models.path(&run.model).display().to_string();
        let (class, steps, cfg, seed) = (run.class.to_string(), run.steps.to_string(), run.cfg.to_string(), run.seed.to_string());
        let common = ["generate", "--model", &path, "-p", &class, "--steps", &steps, "--cfg", &cfg, "-s", &seed];
        let (rescale, batch) = (run.rescale.to_string(), run.batch.to_string());
        let mut sampler = vec!["--guidance-rescale", &*rescale, "--batch", &*batch];
        sampler.extend(run.sampler.iter().flat_map(|sampler| ["--sampler", sampler]));
        let power = run.power.map(|power| power.to_string());
        // Its own is what its script has.
        sampler.extend(power.iter().filter(|_| run.name != "mdt-own-cfg").flat_map(|power| ["--cfg-power", power]));
        sampler.extend(run.rope.iter().flat_map(|rope| ["--rope", rope]));
        let (h, w) = models.case.sizes[if run.model == "sit" { "original" } else { &run.model }];
        let size = format!("{}x{}", 8 * w, 8 * h);
        if run.model.starts_with("fit") {
            sampler.extend(["--latent-size", &size]);
        }
        for (dtype, tolerance) in [("f32", 2e-5), ("f16", 3e-3)] {
            if (run.name == "original-dpmpp-2m-cfg" || run.sampler.as_deref() == Some("ddpm")) && dtype == "f16" {
                continue; // These random models' latents are hundreds of times what networks know, and leave the range of f16 there.
            }
            let report = done(&[&common[..], &sampler, &["--dtype", dtype, "--save-latent", &latent, "-o", &output]].concat());
            let own = if ["sit", "fit2", "maskdit"].contains(&&*run.model) { "heun" } else { "ddim" };
            assert_eq!(report["sampler"], run.sampler.as_deref().unwrap_or(own));
            let got = Latent::open(&latent).unwrap();
            assert_eq!(got.shape(), [run.batch, 4, h, w]);
            let distance = relative_l2(got.data(), &expected(&run.name));
            println!("{} {dtype}: {distance:.2e}", run.name);
            assert!(distance < tolerance, "{} {dtype}: relative L2 {distance:.2e}", run.name);
        }
    }
}

#[test]
fn a_class_becomes_a_picture_of_any_size() {
    if !has_device() {
        return;
    }
    let models = Models::new();
    let (folder, file) = (models.at("diffusers"), models.at("original-DiT.safetensors"));
    let (by_number, by_name, output) = (models.at("number.safetensors"), models.at("name.safetensors"), models.at("p.png"));
    let generate = |prompt: &str, latent: &str| {
        let common = ["generate", "--model", &folder, "-p", prompt, "--steps", "2", "-s", "1", "--size", "100x70"];
        done(&[&common[..], &["--save-latent", latent, "-o", &output]].concat())
    };
    let report = generate("207", &by_number);
    // There is no VAE in the folder: the decoder that ships is taken, and guidance is that of class-conditional models.
    assert_eq!((&report["decoder"], &report["cfg"], &report["latent_width"]), (&"builtin".into(), &4.0.into(), &96.into()));
    assert_eq!(report["notes"][0], "class 207: golden retriever");
    let picture = Image::open(&output).unwrap();
    assert_eq!((picture.width(), picture.height()), (100, 70));
    assert_eq!(Latent::open(&by_number).unwrap().space.as_deref(), Some("sd"));
    generate("Golden Retriever", &by_name);
    assert_eq!(Latent::open(&by_name).unwrap(), Latent::open(&by_number).unwrap());
    generate("208", &by_name);
    assert_ne!(Latent::open(&by_name).unwrap(), Latent::open(&by_number).unwrap());

    // What the plan names as the smallest ceiling is one.
    let (fit, mdt, masked) = (models.at("fit2"), models.at("mdt"), models.at("maskdit.safetensors"));
    for model in [&fit, &mdt, &masked, &file] {
        let common = ["generate", "--model", model, "-p", "1", "--steps", "2", "-s", "1", "--save-latent", &by_name, "-o", &output];
        done(&common);
        let whole = Latent::open(&by_name).unwrap();
        let tight = infgen(&[&common[..], &["-q", "--memory", "1MiB"]].concat());
        let stderr = String::from_utf8_lossy(&tight.stderr);
        let needed = stderr.split("needs ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("{stderr}")).to_owned();
        let report = done(&[&common[..], &["--memory", &needed]].concat());
        assert!(report["peak_gpu_bytes"].as_u64().unwrap() <= needed.parse().unwrap(), "{report}");
        assert_eq!(Latent::open(&by_name).unwrap(), whole);
        let less = (needed.parse::<u64>().unwrap() - 1).to_string();
        assert_eq!(infgen(&[&common[..], &["-q", "--memory", &less]].concat()).status.code(), Some(1));
    }
    let common = ["generate", "--model", &file, "-p", "1", "--steps", "2", "-s", "1", "--save-latent", &by_name, "-o", &output];
    let whole = Latent::open(&by_name).unwrap();

    // A batch's first picture takes the first part of the noise, which is all of it where there is one.
    let noise = models.at("noise.npy");
    Latent::new([1, 4, 8, 8], infgen::noise::torch_cpu_randn(1, 4 * 8 * 8)).unwrap().save(&noise).unwrap();
    std::fs::remove_file(&output).unwrap();
    done(&[&common[..], &["--init-noise", &noise, "--batch", "2"]].concat());
    let both = Latent::open(&by_name).unwrap();
    assert_eq!((both.shape(), both.select(0).unwrap().data()), ([2, 4, 8, 8], whole.data()));
    assert_eq!(both.select(1).unwrap().data(), whole.data());
    std::fs::rename(models.at("p-000.png"), &output).unwrap();

    // A picture to start from takes the model's size, and where there is no VAE the encoder that ships.
    let other = models.at("other.png");
    std::fs::rename(&output, &other).unwrap();
    // With the least of strengths little changes.
    let from_picture = ["--image", &other, "--steps", "50", "--strength", "0.02", "--size", "64x48"];
    let common = ["generate", "--model", &file, "-p", "1", "-s", "1", "--cfg", "1", "--save-latent", &by_name, "-o", &output];
    let report = done(&[&common[..], &from_picture].concat());
    assert_eq!((&report["latent_width"], &report["calls"]), (&64.into(), &1.into()));
    let encoded = models.at("encoded.npy");
    done(&["encode", "--image", &other, "--size", "64x64", "-o", &encoded]);
    let distance = relative_l2(Latent::open(&by_name).unwrap().data(), Latent::open(&encoded).unwrap().data());
    assert!(distance < 0.1, "{distance:.2e} from the picture's latent");

    for (model, words) in [
        (&folder, ["\"class_to_image\"", "\"classes\":1000"]),
        (&file, ["\"dit\"", "\"num_attention_heads\":6"]),
        (&fit, ["\"positions\":\"rotary\"", "\"modulation_rank\":20"]),
        (&mdt, ["\"dit\"", "\"decode_layers\":2"]),
        (&masked, ["\"decoder\":{\"hidden_size\":96", "\"num_classes\":1000"]),
    ] {
        let inspected = String::from_utf8(infgen(&["inspect", model, "--json"]).stdout).unwrap();
        assert!(words.iter().all(|word| inspected.contains(word)), "{inspected}");
    }
}

#[test]
fn what_a_class_conditional_model_cannot_do_is_refused() {
    let models = Models::new();
    let (folder, file, never) = (models.at("diffusers"), models.at("original-DiT.safetensors"), models.scratch.path().join("never.png"));
    let no = |model: &str, arguments: &[&str], words: &[&str]| not_generated(&[&["--model", model], arguments].concat(), &never, words);
    if has_device() {
        no(&folder, &["-p", "1000"], &["no class 1000", "0 to 999"]);
        no(&folder, &["-p", "crane"], &["134 or 517"]);
        no(&folder, &["-p", ""], &["no class is called ``"]);
        no(&folder, &["-p", "tabb"], &["no class is called `tabb`", "281 (tabby, tabby cat)"]);
        no(&file, &["-p", "a cat"], &["a cat", "0 to 999", "no names"]);
        no(&file, &["-p", "1", "-n", "2"], &["negative prompt", "class-conditional"]);
        no(&file, &["-p", "1", "--latent-size", "128x128"], &["128x128", "64x64", "--size"]);
        no(&file, &["-p", "1", "--emphasis"], &["emphasis"]);
        no(&models.at("maskdit.safetensors"), &["-p", "1", "--cfg-power", "2"], &["leave out --cfg-power", "sigma"]);
        no(&file, &["-p", "1", "--rope", "yarn"], &["leave out --rope", "FiT"]);
        no(&models.at("fit2"), &["-p", "1", "--latent-size", "64x72"], &["64x72", "multiples of 16", "64x64"]);
    }
    let masked = models.at("maskdit.safetensors");
    no(&file, &["-p", "1", "--sampler", "ddpm", "--steps", "1"], &["ddpm", "2 at least"]);
    no(&masked, &["-p", "1", "--sampler", "ddim"], &["ddim", "EDM", "heun or euler"]);
    no(&masked, &["-p", "1", "--prediction", "epsilon"], &["MaskDiT", "leave out --prediction"]);
    no(&file, &["-p", "1", "--decoder", "vae"], &["no VAE", "--decoder"]);
    no(&file, &["-p", "1", "--prediction", "flow", "--sampler", "ddim"], &["ddim", "flow", "heun or euler"]);

    let configs = MASKDIT.map(|(name, _)| match Parts::open(&models.scratch.path().join(name)).unwrap().denoiser {
        Denoiser::Dit { dit, .. } => dit,
        other => panic!("{name}: {other:?}"),
    });
    assert!(configs[0].decoder.is_some() && configs.iter().all(|config| *config == configs[0]));

    // DiT and SiT look the same: a name that says neither gets a note.
    let unnamed = models.scratch.path().join("model.safetensors");
    std::fs::copy(&file, &unnamed).unwrap();
    let notes = |path: &Path| Parts::open(path).unwrap().notes;
    assert!(notes(&unnamed)[0].contains("--prediction flow") && notes(&models.path("sit"))[0].contains("taken for SiT"));
    assert!(notes(&models.path("original")).is_empty());
    let cached = models.scratch.path().join("models--org--SiT-XL-2/snapshots/0123");
    std::fs::create_dir_all(&cached).unwrap();
    std::fs::copy(&file, cached.join("model.safetensors")).unwrap();
    assert!(notes(&cached.join("model.safetensors"))[0].contains("taken for SiT"));

    // FiT's models for 512 pixels have a name that says so.
    let large = models.scratch.path().join("FiTv2_XL_HRFT");
    std::fs::create_dir_all(&large).unwrap();
    for file in ["config.json", "model_ema.safetensors"] {
        std::fs::copy(models.path("fit2").join(file), large.join(file)).unwrap();
    }
    assert!(notes(&large)[0].contains("--latent-size 256x256"));
    let size = |path: &Path| Parts::open(path).unwrap().native_size;
    assert_eq!((size(&large), size(&models.path("fit2"))), ((512, 512), (256, 256)));

    // One part of a folder, a relative with more tensors, a decoder of another space, a folder of another pipeline.
    let part = Path::new(&folder).join("transformer");
    no(part.to_str().unwrap(), &["-p", "1"], &["one part", "transformer/, scheduler/"]);
    no(part.join("diffusion_pytorch_model.safetensors").to_str().unwrap(), &["-p", "1"], &["one part"]);
    let mut more = models.tensors("original");
    more.push(Tensor { name: "blocks.0.attn.q_norm.weight".into(), shape: vec![64], values: vec![1.0; 64] });
    let relative = models.scratch.path().join("relative-dit.safetensors");
    write(&relative, &more, Dtype::F32);
    no(relative.to_str().unwrap(), &["-p", "1"], &["attn.q_norm", "not known"]);
    let xl = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/infgen-tiny-sdxl.safetensors");
    no(&file, &["-p", "1", "--decoder", xl.to_str().unwrap()], &["`sdxl`", "`sd`"]);
    let flux = models.scratch.path().join("flux");
    std::fs::create_dir_all(flux.join("transformer")).unwrap();
    std::fs::write(flux.join("model_index.json"), json!({ "_class_name": "FluxPipeline" }).to_string()).unwrap();
    no(flux.to_str().unwrap(), &["-p", "1"], &["FluxPipeline", "DiTPipeline"]);
    // A MaskDiT in a folder as diffusers lays them out, which would be told timesteps; a wrapped relative of DiT, which is no MaskDiT.
    let wrong = models.scratch.path().join("wrong/transformer");
    std::fs::create_dir_all(&wrong).unwrap();
    std::fs::copy(models.path("maskdit"), wrong.join("diffusion_pytorch_model.safetensors")).unwrap();
    no(wrong.parent().unwrap().to_str().unwrap(), &["-p", "1"], &["MaskDiT", "name the file itself"]);
    let mut wrapped = models.tensors("original");
    wrapped.iter_mut().for_each(|tensor| tensor.name.insert_str(0, "model."));
    let relative = models.scratch.path().join("wrapped-dit.safetensors");
    write(&relative, &wrapped, Dtype::F32);
    no(relative.to_str().unwrap(), &["-p", "1"], &["not recognised"]);
    assert!(!Parts::is_folder_of_parts(&flux) && Parts::is_folder_of_parts(Path::new(&folder)));

    // A width that is none of the published ones needs a config.json that says how many heads it has.
    let narrow = models.scratch.path().join("narrow");
    std::fs::create_dir(&narrow).unwrap();
    let half = |tensor: Tensor| {
        let kept = |n: usize| if n.is_multiple_of(384) { n / 384 * 40 } else { n };
        let shape: Vec<usize> = tensor.shape.iter().map(|n| kept(*n)).collect();
        Tensor { values: vec![0.01; shape.iter().product()], shape, name: tensor.name }
    };
    let tensors: Vec<Tensor> = models.tensors("original").into_iter().map(half).collect();
    let weights = narrow.join("model.safetensors");
    write(&weights, &tensors, Dtype::F32);
    no(weights.to_str().unwrap(), &["-p", "1"], &["40", "num_heads"]);
    assert!(infgen(&["inspect", weights.to_str().unwrap()]).status.success(), "what it is can be said all the same");
    std::fs::write(narrow.join("config.json"), json!({ "num_heads": 5 }).to_string()).unwrap();
    let parts = Parts::open(&narrow).unwrap();
    assert!(matches!(&parts.denoiser, Denoiser::Dit { dit, .. } if dit.num_attention_heads == 5));
    std::fs::write(narrow.join("config.json"), json!({ "num_heads": 7 }).to_string()).unwrap();
    no(narrow.to_str().unwrap(), &["-p", "1"], &["7 heads"]);

    let config = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut config = models.case.transformer.clone();
        change(&mut config);
        std::fs::write(Path::new(&folder).join("transformer/config.json"), config.to_string()).unwrap();
        no(&folder, &["-p", "1"], words);
    };
    config(&|c| c["norm_type"] = json!("ada_norm_single"), &["norm_type", "ada_norm_zero"]);
    config(&|c| c["out_channels"] = json!(6), &["4 channels to 6"]);
    config(&|c| c["num_layers"] = json!(4), &["transformer_blocks.3", "missing"]);
    config(&|c| c["caption_channels"] = json!(4096), &["caption_channels", "more than a class"]);
    config(&|c| c["sample_size"] = json!(13), &["sample_size", "13"]);
}
