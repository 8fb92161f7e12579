//! UNets of Stable Diffusion 1.x and 2.x against diffusers, block by block, in both namings, and INFD's against its source: the cases `unet-*` of
//! `tests/data`.

mod common;

use std::path::Path;

use common::devices::{self, BROWSER, NATIVE, device, open, skipped};
use common::golden::{Case, Run, relative_l2};
use infgen::gpu::{Elem, Gpu, GpuOptions, KernelFamily, Outputs, Recorder, Tensor};
use infgen::models::unet::{Prompt, Unet};
use infgen::models::unet_config::UnetConfig;
use infgen::nn::{Loader, Precision};
use infgen::weights::recognise::{self, Recognised};
use infgen::weights::{View, Weights};
use pollster::block_on;

const CASES: [&str; 6] = ["unet-sd1", "unet-sd2", "unet-quiet", "unet-odd", "unet-distilled", "unet-infd"];

/// Relative L2 of each tap in f32.
const F32_LIMIT: f64 = 1e-4;

fn load(gpu: &Gpu, weights: &Weights, precision: Precision, any_size: bool) -> Unet {
    let (view, config): (View<'_>, UnetConfig) = recognise::unet(weights).unwrap().expect("a UNet");
    view.check(&config.tensors()).unwrap();
    block_on(Unet::load(&Loader::new(gpu, &view, precision), &config, any_size)).unwrap()
}

/// `[C, H, W]` of the case as a plane.
fn plane(rec: &mut Recorder, case: &Case, name: &str) -> Tensor {
    let (shape, values) = case.input(name);
    let (c, pixels) = (shape[0], shape[1] * shape[2]);
    let last: Vec<f32> = (0..values.len()).map(|i| values[i % c * pixels + i / c]).collect();
    rec.upload(&last, shape[1], shape[2], c, Elem::F32)
}

fn context(rec: &mut Recorder, case: &Case) -> Tensor {
    let (shape, values) = case.input("context");
    rec.upload(&values, shape[0], 1, shape[1], Elem::F32)
}

fn forward(gpu: &Gpu, unet: &Unet, case: &Case, run: &Run) -> Outputs {
    let mut rec = gpu.recorder();
    rec.keep_taps(true);
    let latent = plane(&mut rec, case, &run.input);
    let prompt = match run.facts["context"].is_null() {
        true => Prompt::default(),
        false => {
            let context = context(&mut rec, case);
            unet.prompt(&mut rec, &context, None).unwrap()
        }
    };
    let step = unet.step(&mut rec, run.facts["timestep"].as_f64().unwrap(), run.facts["guidance"].as_f64(), &prompt);
    let y = unet.forward(&mut rec, &latent, &step, &prompt).unwrap();
    assert_eq!(y.shape(), (run.height, run.width, unet.config().out_channels));
    rec.output("sample", &y);
    devices::run(gpu, rec.finish()).unwrap_or_else(|e| panic!("{} {}: {e}", case.name, run.name))
}

fn check(label: &str, run: &Run, mut outputs: Outputs) {
    let mut worst = 0.0f64;
    for expected in &run.expected {
        let error = expected.relative_l2(&outputs.numbers(&expected.tap));
        assert!(error <= F32_LIMIT, "{label} {}: first tap that drifts is {}, relative L2 {error:.2e}", run.name, expected.tap);
        worst = worst.max(error);
    }
    assert!(run.expected.len() > 10, "{label}: hardly anything was compared");
    println!("{label} {}: {} taps, worst relative L2 {worst:.1e}", run.name, run.expected.len());
}

fn doubles(unet: &UnetConfig, run: &Run) -> bool {
    run.width.is_multiple_of(unet.multiple()) && run.height.is_multiple_of(unet.multiple())
}

/// Every run of every case; sides that double exactly run in both forms of the upsampler.
fn check_all(label: &str, gpu: &Gpu) {
    for case in CASES.map(Case::open) {
        let folder = case.write_weights();
        let weights = Weights::open(folder.path()).unwrap();
        assert!(matches!(recognise::recognise(&weights).unwrap(), Recognised::Unet { .. }));
        for any_size in [false, true] {
            let unet = load(gpu, &weights, Precision::F32, any_size);
            let label = format!("{} ({label}, any size: {any_size})", case.name);
            for run in case.runs.iter().filter(|run| run.op == "unet" && (any_size || doubles(unet.config(), run))) {
                check(&label, run, forward(gpu, &unet, &case, run));
            }
        }
    }
}

#[test]
fn unets_equal_diffusers_block_by_block() {
    let Some(device) = device(NATIVE) else { return skipped("unets_equal_diffusers_block_by_block") };
    check_all("native", &device.lock());
}

#[test]
fn unets_agree_at_webgpu_default_limits() {
    let Some(device) = device(BROWSER) else { return skipped("unets_agree_at_webgpu_default_limits") };
    let gpu = device.lock();
    let case = Case::open("unet-odd");
    let folder = case.write_weights();
    let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F32, true);
    check("unet-odd (browser)", &case.runs[0], forward(&gpu, &unet, &case, &case.runs[0]));
}

/// The kernels that a GPU gets, wherever this runs.
#[test]
fn unets_agree_with_the_kernels_for_gpus() {
    let options = GpuOptions { kernels: Some(KernelFamily::Tile), ..devices::options() };
    let Some(gpu) = open(&options) else { return skipped("unets_agree_with_the_kernels_for_gpus") };
    for name in ["unet-sd1", "unet-odd", "unet-infd"] {
        let case = Case::open(name);
        let folder = case.write_weights();
        let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F32, true);
        check(&format!("{name} (tile)"), &case.runs[0], forward(&gpu, &unet, &case, &case.runs[0]));
    }
}

#[test]
fn the_single_file_form_gives_the_same_bits() {
    let Some(device) = device(NATIVE) else { return skipped("the_single_file_form_gives_the_same_bits") };
    let gpu = device.lock();
    for case in ["unet-sd1", "unet-sd2"].map(Case::open) {
        let run = case.runs.last().unwrap();
        let sample = |path: &Path| {
            let weights = Weights::open(path).unwrap();
            forward(&gpu, &load(&gpu, &weights, Precision::F32, true), &case, run).numbers("sample")
        };
        let want = sample(case.write_weights().path());
        let folder = case.write_alias("ldm");
        // No config.json: all sizes come from the tensors.
        let file = folder.path().join("checkpoint.safetensors");
        std::fs::rename(folder.path().join("diffusion_pytorch_model.safetensors"), &file).unwrap();
        let recognised = recognise::recognise(&Weights::open(&file).unwrap()).unwrap();
        assert!(matches!(&recognised, Recognised::Checkpoint { unet: Some(_), .. }), "{recognised}");
        assert_eq!(sample(&file), want, "{}", case.name);
    }
}

#[test]
fn f16_keeps_45_db_against_f32_native_and_packed() {
    let tile = Some(KernelFamily::Tile);
    for (default_limits, kernels) in [(false, None), (true, None), (true, tile)] {
        let options = GpuOptions { default_limits, kernels, ..devices::options() };
        let Some(gpu) = open(&options) else { return skipped("f16_keeps_45_db_against_f32_native_and_packed") };
        // torch's own f16 runs keep 46.6 and 58.7 dB here.
        for (name, n) in [("unet-sd1", 2), ("unet-sd2", 0)] {
            let case = Case::open(name);
            let folder = case.write_weights();
            let (run, weights) = (&case.runs[n], Weights::open(folder.path()).unwrap());
            let unet = load(&gpu, &weights, Precision::F16, true);
            let got = forward(&gpu, &unet, &case, run).numbers("sample");
            let expected = run.expected.last().unwrap();
            let peak = expected.values.iter().fold(0.0f32, |a, v| a.max(v.abs())) as f64;
            let rms = (expected.values.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / expected.values.len() as f64).sqrt();
            let db = 20.0 * (2.0 * peak / (expected.relative_l2(&got) * rms)).log10();
            println!("{name} f16 (default limits: {default_limits}, kernels: {kernels:?}): {db:.1} dB");
            assert!((45.0..120.0).contains(&db), "{name}: {db} dB");
            assert_eq!(got, forward(&gpu, &unet, &case, run).numbers("sample"), "{name}: a second run gives other bits");
        }
    }
}

/// As text to image runs it, with f32 between layers: products of matrix units are those of f32, to 21 bits.
#[test]
fn matrix_units_round_f32_activations_no_more_than_other_kernels() {
    let [tile, matrix] = [KernelFamily::Tile, KernelFamily::Matrix]
        .map(|family| open(&GpuOptions { kernels: Some(family), native_f16: true, ..devices::options() }));
    let (Some(tile), Some(matrix)) = (tile, matrix) else {
        return skipped("matrix_units_round_f32_activations_no_more_than_other_kernels");
    };
    if matrix.profile().matrix.is_none() {
        return devices::skipped_matrix("matrix_units_round_f32_activations_no_more_than_other_kernels");
    }
    for (name, n) in [("unet-sd1", 2), ("unet-sd2", 0)] {
        let case = Case::open(name);
        let folder = case.write_weights();
        let (run, weights) = (&case.runs[n], Weights::open(folder.path()).unwrap());
        let [tile, matrix] = [&tile, &matrix].map(|gpu| {
            let unet = load(gpu, &weights, Precision::F16_WEIGHTS, true);
            forward(gpu, &unet, &case, run).numbers("sample")
        });
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| (v as f64).powi(2)).sum::<f64>();
        let off = (square(&mut tile.iter().zip(&matrix).map(|(a, b)| a - b)) / square(&mut tile.iter().copied())).sqrt();
        println!("{name}: {off:.1e}");
        assert!(off > 0.0, "{name}: nothing ran on matrix units");
        // The lanes family differs from the tile one by 1.9e-5 and 3.8e-6.
        assert!(off < 5e-5, "{name}: {off:.1e}");
    }
}

/// As a pipeline runs it: the prompts once, then steps with and without the prompt in one recording.
#[test]
fn prompts_kept_between_recordings_change_no_bit() {
    let Some(device) = device(NATIVE) else { return skipped("prompts_kept_between_recordings_change_no_bit") };
    let gpu = device.lock();
    let case = Case::open("unet-sd1");
    let folder = case.write_weights();
    let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F16, true);
    let run = &case.runs[0];
    let want = forward(&gpu, &unet, &case, run).numbers("sample");

    let (shape, values) = case.input("context");
    let kept = [(); 2].map(|()| block_on(unet.allocate_prompt(&gpu, shape[0])).unwrap());
    let mut rec = gpu.recorder();
    let words = rec.upload(&values, shape[0], 1, shape[1], Elem::F32);
    let empty = rec.upload(&vec![0.5; values.len()], shape[0], 1, shape[1], Elem::F32);
    unet.prompt_into(&mut rec, &words, None, &kept[0]).unwrap();
    unet.prompt_into(&mut rec, &empty, None, &kept[1]).unwrap();
    devices::run(&gpu, rec.finish()).unwrap();
    for _ in 0..2 {
        let mut rec = gpu.recorder();
        let latent = plane(&mut rec, &case, &run.input);
        let step = unet.step(&mut rec, run.facts["timestep"].as_f64().unwrap(), None, &kept[0]);
        for (name, prompt) in [("empty", &kept[1]), ("words", &kept[0])] {
            let y = unet.forward(&mut rec, &latent, &step, prompt).unwrap();
            rec.output(name, &y);
        }
        let mut outputs = devices::run(&gpu, rec.finish()).unwrap();
        assert_eq!(outputs.numbers("words"), want);
        let far = relative_l2(&outputs.numbers("empty"), &want);
        assert!(far > 1e-2, "another prompt gives nearly the same: {far}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(device) = device(NATIVE) else { return skipped("what_does_not_fit_is_refused") };
    let gpu = device.lock();
    let case = Case::open("unet-sd2");
    let folder = case.write_weights();
    let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F32, false);
    let mut rec = gpu.recorder();
    let wide = rec.upload(&[0.0; 41], 1, 1, 41, Elem::F32);
    assert!(unet.prompt(&mut rec, &wide, None).unwrap_err().to_string().contains("width 41"));
    let context = context(&mut rec, &case);
    assert!(unet.prompt(&mut rec, &context, Some(&[0.0; 3])).unwrap_err().to_string().contains("3 added values"));
    let prompt = unet.prompt(&mut rec, &context, None).unwrap();
    let step = unet.step(&mut rec, 1.0, None, &prompt);
    for ((h, w, c), word) in [((6, 6, 9), "9 channels"), ((6, 5, 4), "5 x 6"), ((3, 6, 4), "6 x 3")] {
        let latent = rec.upload(&vec![0.0; h * w * c], h, w, c, Elem::F32);
        let error = unet.forward(&mut rec, &latent, &step, &prompt).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let few = block_on(unet.allocate_prompt(&gpu, 3)).unwrap();
    assert!(unet.prompt_into(&mut rec, &context, None, &few).unwrap_err().to_string().contains("7 tokens"));
}

/// A side of 1 has no row and column for a 3x3 kernel that is padded behind only.
#[test]
fn latents_that_shrink_to_nothing_are_refused() {
    let Some(device) = device(NATIVE) else { return skipped("latents_that_shrink_to_nothing_are_refused") };
    let gpu = device.lock();
    let case = Case::open("unet-odd");
    let folder = case.write_weights();
    let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F32, true);
    assert_eq!((unet.config().downsample_padding, unet.config().multiple()), (0, 4));
    let mut rec = gpu.recorder();
    let context = context(&mut rec, &case);
    let prompt = unet.prompt(&mut rec, &context, None).unwrap();
    let step = unet.step(&mut rec, 1.0, None, &prompt);
    for (h, w) in [(1, 9), (9, 3), (2, 2), (3, 4)] {
        let latent = rec.upload(&vec![0.0; h * w * 9], h, w, 9, Elem::F32);
        let error = unet.forward(&mut rec, &latent, &step, &prompt).unwrap_err();
        assert!(matches!(error, infgen::Error::Invalid { what: "latent", .. }), "{error:?}");
        assert!(error.to_string().contains("at least 4 x 4"), "{error}");
    }
    let latent = rec.upload(&[0.1; 4 * 5 * 9], 4, 5, 9, Elem::F32);
    let y = unet.forward(&mut rec, &latent, &step, &prompt).unwrap();
    rec.output("sample", &y);
    assert_eq!(devices::run(&gpu, rec.finish()).unwrap().numbers("sample").len(), 4 * 5 * 4);
}

#[test]
fn a_nan_names_its_layer() {
    let Some(device) = device(NATIVE) else { return skipped("a_nan_names_its_layer") };
    let gpu = device.lock();
    let case = Case::open("unet-sd2");
    let folder = case.write_weights();
    let unet = load(&gpu, &Weights::open(folder.path()).unwrap(), Precision::F32, false);
    let mut rec = gpu.recorder();
    let latent = rec.upload(&[1e30; 6 * 6 * 4], 6, 6, 4, Elem::F32);
    let context = context(&mut rec, &case);
    let prompt = unet.prompt(&mut rec, &context, None).unwrap();
    let step = unet.step(&mut rec, 1.0, None, &prompt);
    let y = unet.forward(&mut rec, &latent, &step, &prompt).unwrap();
    rec.output("sample", &y);
    let error = devices::run(&gpu, rec.finish()).unwrap_err().to_string();
    assert!(error.contains("down_blocks.0.resnets.0.norm1"), "{error}");
}
