//! CLIP text encoders against transformers, layer by layer, in every naming: the cases `clip-*` of `tests/data`.

mod common;

use common::devices::{self, BROWSER, Device, NATIVE, device, skipped};
use common::golden::{Case, Run};
use infgen::gpu::Outputs;
use infgen::models::clip::{ClipText, embeddings};
use infgen::nn::{Loader, Precision};
use infgen::weights::Weights;
use infgen::weights::recognise::{self, Recognised};
use pollster::block_on;

const CASES: [&str; 3] = ["clip-sd1", "clip-sd2", "clip-odd"];

fn tokens(run: &Run) -> Vec<u32> {
    serde_json::from_value(run.facts["tokens"].clone()).unwrap()
}

/// The encoder's taps and its result `embedding`, from weights in any naming.
fn encode(device: &Device, weights: &Weights, precision: Precision, run: &Run) -> Outputs {
    let gpu = device.lock();
    let (view, config) = recognise::text_encoder(weights).unwrap().expect("a text encoder");
    view.check(&config.tensors()).unwrap();
    let model = block_on(ClipText::load(&Loader::new(&gpu, &view, precision), &config)).unwrap();
    let x = block_on(embeddings(&view, &config, &tokens(run))).unwrap();
    let mut rec = gpu.recorder();
    rec.keep_taps(true);
    let y = model.forward(&mut rec, &x, run.facts["clip_skip"].as_u64().unwrap() as usize).unwrap();
    rec.output("embedding", &y);
    devices::run(&gpu, rec.finish()).unwrap()
}

fn check(label: &str, run: &Run, mut outputs: Outputs) {
    for expected in &run.expected {
        let error = expected.relative_l2(&outputs.numbers(&expected.tap));
        assert!(error <= 1e-4, "{label} {}: first tap that drifts is {}, relative L2 {error:.2e}", run.name, expected.tap);
    }
    assert!(run.expected.len() > 1, "{label}: nothing was compared");
}

#[test]
fn text_encoders_equal_transformers_layer_by_layer() {
    for name in [NATIVE, BROWSER] {
        let Some(device) = device(name) else { return skipped("text_encoders_equal_transformers_layer_by_layer") };
        for case in CASES.map(Case::open) {
            // An OpenCLIP file has a layer that must not run; the other forms have no such layer.
            let folder = if case.name == "clip-sd2" { case.write_alias("open_clip") } else { case.write_weights() };
            let weights = Weights::open(folder.path()).unwrap();
            assert!(matches!(recognise::recognise(&weights).unwrap(), Recognised::TextEncoder { .. }));
            for run in &case.runs {
                check(&case.name, run, encode(device, &weights, Precision::F32, run));
            }
        }
    }
}

#[test]
fn every_naming_gives_the_same_bits() {
    let Some(device) = device(NATIVE) else { return skipped("every_naming_gives_the_same_bits") };
    for case in CASES.map(Case::open) {
        let of = |weights: &Weights| encode(device, weights, Precision::F32, &case.runs[0]).numbers("embedding");
        let folder = case.write_weights();
        let want = of(&Weights::open(folder.path()).unwrap());
        let mut forms = 0;
        for form in case.forms() {
            let folder = case.write_alias(form);
            // Without the folder's config.json, as in a checkpoint, sizes and activation come from the tensors.
            let bare = folder.path().join("checkpoint.safetensors");
            std::fs::rename(folder.path().join("model.safetensors"), &bare).unwrap();
            let inferred = matches!(form, "ldm" | "open_clip");
            let weights = Weights::open(if inferred { bare.as_path() } else { folder.path() }).unwrap();
            assert_eq!(weights.config_json().is_none(), inferred);
            assert_eq!(of(&weights), want, "{} {form}", case.name);
            forms += 1;
        }
        assert!(forms > 0);
    }
}

#[test]
fn f16_stays_close() {
    let Some(device) = device(NATIVE) else { return skipped("f16_stays_close") };
    for case in ["clip-sd2", "clip-odd"].map(Case::open) {
        let folder = case.write_weights();
        let run = &case.runs[0];
        let got = encode(device, &Weights::open(folder.path()).unwrap(), Precision::F16, run).numbers("embedding");
        let error = run.expected.last().unwrap().relative_l2(&got);
        assert!(error > 0.0 && error <= 5e-3, "{}: relative L2 {error:.2e}", case.name);
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let case = Case::open("clip-sd1");
    let folder = case.write_weights();
    let weights = Weights::open(folder.path()).unwrap();
    let (view, config) = recognise::text_encoder(&weights).unwrap().unwrap();
    for (tokens, word) in [(vec![], "0 tokens"), (vec![1; 17], "17 tokens"), (vec![1, 61], "token 61")] {
        let error = block_on(embeddings(&view, &config, &tokens)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let Some(device) = device(NATIVE) else { return skipped("prompts_that_do_not_fit_are_refused") };
    let gpu = device.lock();
    let model = block_on(ClipText::load(&Loader::new(&gpu, &view, Precision::F32), &config)).unwrap();
    let x = block_on(embeddings(&view, &config, &[1, 2])).unwrap();
    let error = model.forward(&mut gpu.recorder(), &x, 3).unwrap_err().to_string();
    assert!(error.contains("clip skip"), "{error}");
}
