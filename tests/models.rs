//! Whole networks against their PyTorch originals, block by block: the cases of `tests/data` (see tools/goldens/README.md).
//!
//! Weights are synthetic, made here by the same rule as there. `INFGEN_CASE=name` runs one case.

mod common;

use std::path::{Path, PathBuf};

use common::golden::{Case, Run};
use infgen::gpu::{KernelFamily, Outputs};
use infgen::{Dtype, Engine, EngineOptions, Image, Latent};

/// End to end in f32, as design demands; single taps may be a little worse where a residual stream nearly cancels.
const F32_LIMIT: f64 = 1e-3;

/// An engine, or none where there is no adapter: then the test says so, and fails if `REQUIRE_GPU=1`.
fn engine(dtype: Dtype, default_limits: bool) -> Option<Engine> {
    engine_with(EngineOptions { dtype, default_limits, ..EngineOptions::default() })
}

fn engine_with(options: EngineOptions) -> Option<Engine> {
    match Engine::new(options) {
        Ok(engine) => Some(engine),
        Err(error) if std::env::var_os("REQUIRE_GPU").is_some() => panic!("{error}"),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

fn relative_l2(got: impl Iterator<Item = f32>, want: &[f32]) -> f64 {
    let (mut error, mut norm, mut count) = (0.0f64, 0.0f64, 0);
    for (g, &w) in got.zip(want) {
        assert!(g.is_finite(), "non-finite value");
        error += (g as f64 - w as f64).powi(2);
        norm += (w as f64).powi(2);
        count += 1;
    }
    assert_eq!(count, want.len(), "fewer values than expected");
    (error / norm.max(1e-30)).sqrt()
}

/// Our name of the tap that upstream calls `tap`.
fn our_name(case: &Case, run: &Run, tap: &str) -> String {
    match (&case.model[..], run.op.as_str()) {
        ("taesd_decoder" | "taesd", "decode") if tap != "image" => format!("decoder.layers.{}", tap.parse::<usize>().unwrap() - 1),
        (_, "encode") if ["latent", "moments"].contains(&tap) => "image".into(),
        ("taesd_encoder" | "taesd", "encode") => format!("encoder.layers.{tap}"),
        _ => tap.to_owned(),
    }
}

/// Compares every stored tap of a run; returns the worst and the result's relative error, and what we do not have.
fn compare(case: &Case, run: &Run, mut outputs: Outputs) -> (f64, Vec<String>) {
    let names: Vec<String> = outputs.names().map(str::to_owned).collect();
    let mut missing = Vec::new();
    let mut result = f64::NAN;
    for expected in &run.expected {
        let name = our_name(case, run, &expected.tap);
        if !names.contains(&name) {
            missing.push(expected.tap.clone());
            continue;
        }
        let values = outputs.numbers(&name);
        let [h, w, c] = expected.shape;
        let pitch = values.len() / (c * h).max(1);
        let zero_to_one = case.model.starts_with("taesd") && expected.tap == "image";
        let at = |y: usize, x: usize, k: usize| {
            let value = values[(y * pitch + x) * c + k];
            if zero_to_one { value * 0.5 + 0.5 } else { value }
        };
        let [oy, ox, oc] = expected.offset;
        let [sy, sx, sc] = expected.stride;
        let sample = (oy..h).step_by(sy).flat_map(|y| (ox..w).step_by(sx).map(move |x| (y, x)));
        let sample = sample.flat_map(|(y, x)| (oc..c).step_by(sc).map(move |k| (y, x, k))).map(|(y, x, k)| at(y, x, k));
        // Upstream's decoder counts its first convolution (1) and the ReLU after it (2); here they are one layer.
        let first = case.model.starts_with("taesd") && run.op == "decode" && expected.tap == "1";
        let want: Vec<f32> = expected.values.iter().map(|v| if first { v.max(0.0) } else { *v }).collect();
        let error = relative_l2(sample, &want);
        assert!(error <= F32_LIMIT, "{} {}: first tap that drifts is {}, relative L2 {error:.2e}", case.name, run.name, expected.tap);
        result = error;
    }
    (result, missing)
}

fn latent_of(case: &Case, run: &Run, scaling: f64) -> Latent {
    let (shape, values) = case.input(&run.input);
    let scaled = values.iter().map(|v| (*v as f64 * scaling) as f32).collect();
    Latent::new([1, shape[0], shape[1], shape[2]], scaled).unwrap()
}

fn image_of(case: &Case, run: &Run) -> Image {
    let (shape, values) = case.input(&run.input);
    let pixels = shape[1] * shape[2];
    let zero_to_one = case.model.starts_with("taesd");
    let last = (0..values.len()).map(|i| values[i % 3 * pixels + i / 3]);
    let data = last.map(|v| if zero_to_one { v * 2.0 - 1.0 } else { v }).collect();
    Image::new(shape[2], shape[1], data).unwrap()
}

/// Taps that are fused away here: SiLU rides on the last normalisation, the embedding on the tokens it is added to.
const FUSED: &[&str] = &["decoder.conv_norm_out", "encoder.conv_norm_out", "inpe.latent", "inpe.mask"];

fn check_run(engine: &Engine, case: &Case, weights: &Path, run: &Run) -> f64 {
    let outputs = match run.op.as_str() {
        "decode" => {
            let decoder = engine.load_decoder(weights).unwrap();
            let latent = latent_of(case, run, decoder.facts().scaling_factor);
            decoder.taps(&latent, run.width, run.height)
        }
        "encode" => engine.load_encoder(weights).unwrap().taps(&image_of(case, run)),
        other => panic!("unknown op {other}"),
    };
    let outputs = outputs.unwrap_or_else(|e| panic!("{} {}: {e}", case.name, run.name));
    let (error, missing) = compare(case, run, outputs);
    assert!(missing.iter().all(|tap| FUSED.contains(&tap.as_str())), "{} {}: no tap for {missing:?}", case.name, run.name);
    assert!(error.is_finite(), "{} {}: nothing was compared", case.name, run.name);
    error
}

fn check_case(name: &str, default_limits: bool) {
    check_case_with(name, EngineOptions { dtype: Dtype::F32, default_limits, ..EngineOptions::default() });
}

fn check_case_with(name: &str, options: EngineOptions) {
    if std::env::var("INFGEN_CASE").is_ok_and(|only| only != name) {
        return;
    }
    let Some(engine) = engine_with(options) else { return };
    let case = Case::open(name);
    let folder = case.write_weights();
    for run in &case.runs {
        let start = std::time::Instant::now();
        let error = check_run(&engine, &case, folder.path(), run);
        println!("{name} {} {}: relative L2 {error:.2e}, {:.1} s", run.op, run.name, start.elapsed().as_secs_f64());
    }
}

macro_rules! cases {
    ($($test:ident $name:literal;)*) => { $(#[test] fn $test() { check_case($name, false); })* };
}

cases! {
    autoencoder_kl_small_equals_diffusers "vae-small";
    autoencoder_kl_small_sdxl_equals_diffusers "vae-small-sdxl";
    autoencoder_kl_sd15_equals_diffusers "vae-sd15";
    taesd_decoder_equals_upstream "taesd-decoder";
    taesd_encoder_equals_upstream "taesd-encoder";
    infgen_skip_equals_pytorch "infgen-small-skip";
    infgen_two_inpe_equals_pytorch "infgen-small-two-inpe";
    infgen_odd_channels_equals_pytorch "infgen-small-odd-channels";
    infgen_patch4_equals_pytorch "infgen-small-patch4";
    infgen_patch16_equals_pytorch "infgen-small-patch16";
    infgen_without_blocks_equals_pytorch "infgen-small-no-blocks";
    infgen_with_a_base_picture_equals_pytorch "infgen-small-base";
    infgen_with_a_base_picture_that_is_reduced_equals_pytorch "infgen-small-base-reduced";
    infgen_with_zeroed_parts_is_the_plain_vae "infgen-plain-vae";
    infgen_table1_equals_pytorch "infgen-table1";
    infgen_sd4_equals_pytorch "infgen-sd4";
    infd_equals_pytorch "infd-small";
}

#[test]
fn networks_agree_at_webgpu_default_limits() {
    check_case("infgen-small-odd-channels", true);
    check_case("vae-small", true);
    check_case("infd-small", true);
}

/// The kernels that a GPU gets, wherever this runs.
#[test]
fn networks_agree_with_the_kernels_for_gpus() {
    for name in ["vae-small", "infgen-small-odd-channels", "infgen-small-skip", "infd-small"] {
        for family in [KernelFamily::Tile, KernelFamily::WinogradTile] {
            check_case_with(name, EngineOptions { dtype: Dtype::F32, kernels: Some(family), ..EngineOptions::default() });
        }
    }
}

/// PSNR of `got` against `want`, both in -1 to 1.
fn psnr(got: &[f32], want: &[f32]) -> f64 {
    let mse = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum::<f64>() / want.len() as f64;
    10.0 * (4.0 / mse).log10()
}

#[test]
fn f16_keeps_45_db_against_f32_native_and_packed() {
    for (name, run_index) in [("infgen-small-skip", 1), ("vae-small", 1), ("taesd-decoder", 1), ("vae-small-sdxl", 0), ("infd-small", 0)] {
        let Some(full) = engine(Dtype::F32, false) else { return };
        let case = Case::open(name);
        let folder = case.write_weights();
        let run = &case.runs[run_index];
        let reference = full.load_decoder(folder.path()).unwrap();
        let latent = latent_of(&case, run, reference.facts().scaling_factor);
        let want = reference.decode(&latent, run.width, run.height).unwrap();
        // The synthetic decoders give pictures of their own range; PSNR is taken over that range.
        let range = want.data().iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let unit = |image: &Image| image.data().iter().map(|v| v / range).collect::<Vec<_>>();
        let tile = Some(KernelFamily::Tile);
        // On a GPU also through matrix units, if it has them.
        let matrix = (full.device().kind != "software").then_some((false, Some(KernelFamily::Matrix)));
        for (default_limits, kernels) in [(false, None), (true, None), (false, tile), (true, tile)].into_iter().chain(matrix) {
            let half = engine_with(EngineOptions { dtype: Dtype::F16, default_limits, kernels, ..EngineOptions::default() }).unwrap();
            let decoder = half.load_decoder(folder.path()).unwrap();
            let got = decoder.decode(&latent, run.width, run.height).unwrap();
            let db = psnr(&unit(&got), &unit(&want));
            println!("{name} f16 (default limits: {default_limits}, kernels: {kernels:?}): {db:.1} dB");
            assert!(db >= 45.0, "{name}: {db} dB");
            assert!(got == decoder.decode(&latent, run.width, run.height).unwrap(), "{name}: a second run gives other bytes");
        }
    }
}

#[test]
fn single_file_and_old_names_give_the_same_picture() {
    let Some(engine) = engine(Dtype::F32, false) else { return };
    let case = Case::open("vae-small");
    let run = case.runs.iter().find(|run| run.op == "decode").unwrap();
    let decode = |path: &Path| {
        let decoder = engine.load_decoder(path).unwrap();
        decoder.decode(&latent_of(&case, run, decoder.facts().scaling_factor), run.width, run.height).unwrap()
    };
    let plain = case.write_weights();
    let want = decode(plain.path());
    for form in ["ldm", "old_attention"] {
        let folder = case.write_alias(form);
        assert!(decode(folder.path()) == want, "{form}: another picture");
    }
}

#[test]
fn taesd_with_published_weights_reproduces_photographs() {
    let Some(folder) = std::env::var_os("INFGEN_WEIGHTS").map(PathBuf::from) else {
        println!("SKIPPED: the published weights of TAESD are an extra; INFGEN_WEIGHTS names their folder (see tools/goldens/README.md)");
        return;
    };
    let Some(engine) = engine(Dtype::F32, false) else { return };
    let case = Case::open("taesd-photographs");
    for run in &case.runs {
        let weights = folder.join(run.weights.as_ref().unwrap());
        let error = match run.op.as_str() {
            "encode" => {
                let png = Case::folder("taesd-photographs").join(&run.input);
                let encoder = engine.load_encoder(weights.as_path()).unwrap();
                let outputs = encoder.taps(&Image::open(png).unwrap()).unwrap();
                compare(&case, run, outputs).0
            }
            _ => {
                let latent = case.stored(&run.input);
                let decoder = engine.load_decoder(weights.as_path()).unwrap();
                let ([h, w, c], values) = latent;
                let first = (0..values.len()).map(|i| values[i % (h * w) * c + i / (h * w)]).collect();
                let outputs = decoder.taps(&Latent::new([1, c, h, w], first).unwrap(), run.width, run.height).unwrap();
                compare(&case, run, outputs).0
            }
        };
        println!("{} {}: relative L2 {error:.2e}", run.op, run.name);
        assert!(error <= F32_LIMIT);
    }
}

#[test]
fn token_chunks_change_no_bit() {
    let Some(engine) = engine(Dtype::F16, false) else { return };
    let case = Case::open("infgen-small-skip");
    let folder = case.write_weights();
    let decoder = engine.load_decoder(folder.path()).unwrap();
    let run = case.runs.iter().find(|run| run.width == 129).unwrap();
    let latent = latent_of(&case, run, decoder.facts().scaling_factor);
    let whole = decoder.decode_in_chunks(&latent, run.width, run.height, usize::MAX).unwrap();
    // 17 columns: one row, two rows, and four rows of tokens at a time.
    for tokens in [1, 34, 70] {
        let chunked = decoder.decode_in_chunks(&latent, run.width, run.height, tokens).unwrap();
        assert!(chunked == whole, "{tokens} tokens at a time give another picture");
    }
}

#[test]
fn equal_grids_have_equal_embeddings_so_a_native_decode_needs_no_resampling() {
    // With the bilinear skip and equal grids, mask tokens are the latent's features plus the shared embedding plus the
    // mask token: the two embeddings must cancel exactly in the difference of both taps for every cell.
    let Some(engine) = engine(Dtype::F32, false) else { return };
    let case = Case::open("infgen-small-skip");
    let folder = case.write_weights();
    let decoder = engine.load_decoder(folder.path()).unwrap();
    let run = case.runs.iter().find(|run| run.input == "latent.9x14").unwrap();
    let latent = latent_of(&case, run, decoder.facts().scaling_factor);
    let tokens = |latent: &Latent| {
        let mut taps = decoder.taps(latent, 8 * latent.width(), 8 * latent.height()).unwrap();
        let (x, mask) = (taps.numbers("decoder.conv_in"), taps.numbers("mask_tokens"));
        mask.iter().zip(&x).map(|(m, x)| m - x).collect::<Vec<f32>>()
    };
    let zero = Latent::new([1, 4, latent.height(), latent.width()], vec![0.0; latent.data().len()]).unwrap();
    let (one, other) = (tokens(&latent), tokens(&zero));
    let worst = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "the embedding depends on the latent: {worst}");
    assert!(one.iter().any(|v| v.abs() > 0.1), "the embedding is there");
}

/// `tools/goldens/shipped.py` must be run again whenever a shipped decoder changes.
#[test]
fn the_shipped_decoders_equal_pytorch_on_a_photograph() {
    let Some(full) = engine(Dtype::F32, false) else { return };
    let half = engine(Dtype::F16, false).unwrap();
    let tiles =
        |dtype: Dtype| Engine::new(EngineOptions { dtype, kernels: Some(KernelFamily::WinogradTile), ..EngineOptions::default() }).unwrap();
    let by_tiles = [tiles(Dtype::F32), tiles(Dtype::F16)];
    let sums = std::fs::read_to_string("weights/SHA256SUMS").unwrap();
    let odd = &[(331, 97)][..];
    for (name, space, sizes) in
        [("infgen-tiny-sd", "sd", &[(256, 144), (331, 97)][..]), ("infgen-tiny-sdxl", "sdxl", odd), ("infgen-base-sd", "sd", odd)]
    {
        let bytes = std::fs::read(common::data("shipped").join(format!("{name}.safetensors"))).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let of_golden = &metadata.metadata().as_ref().unwrap()["weights_sha256"];
        let file = format!("{name}.safetensors");
        let line = format!("{of_golden}  {file}");
        assert!(sums.lines().any(|l| l == line), "{name}: the golden belongs to other weights: run tools/goldens/shipped.py");
        let mut latent = Latent::open("examples/sample.safetensors").unwrap();
        latent.space = Some(space.into());
        let load = |engine: &Engine| engine.load_decoder(Path::new("weights").join(&file)).unwrap();
        let pairs = [[load(&full), load(&half)], by_tiles.each_ref().map(load)];
        for &(width, height) in sizes {
            let stored = expected.tensor(&format!("{width}x{height}")).unwrap();
            let want: Vec<f32> = stored.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let sample = |image: &Image| {
                let at = |y: usize, x: usize, c: usize| image.data()[(y * width + x) * 3 + c];
                let pixels = (0..height).step_by(3).flat_map(|y| (0..width).step_by(3).map(move |x| (y, x)));
                pixels.flat_map(|(y, x)| (0..3).map(move |c| (y, x, c))).map(|(y, x, c)| at(y, x, c)).collect::<Vec<f32>>()
            };
            for ([full, half], kernels) in pairs.iter().zip(["chosen", "by Winograd in tiles"]) {
                let got = sample(&full.decode(&latent, width, height).unwrap());
                let error = relative_l2(got.iter().copied(), &want);
                let db = psnr(&sample(&half.decode(&latent, width, height).unwrap()), &want);
                println!("{name} {width}x{height}, kernels {kernels}: relative L2 {error:.2e} in f32, {db:.1} dB in f16");
                assert!(error <= F32_LIMIT && db >= 45.0);
            }
        }
    }
}
