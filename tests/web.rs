//! The browser build: headless Chromium against the native engine, on the same weights.
//!
//! Builds the package (`scripts/build-web`), computes here what the browser must come to, and lets `tests/web/run.mjs` drive
//! the browser. Where a tool for that is missing the test says so and does nothing; with `REQUIRE_WEB=1` (CI) that fails.
//! `scripts/setup-web` installs the tools on Debian. Pictures of the page are left in `target/web/test`.

mod common;
#[path = "common/variants.rs"]
mod variants;

use std::path::{Path, PathBuf};
use std::process::Command;

use infgen::gpu::{Bind, Storage, Variant};
use infgen::image::ResizeFilter;
use infgen::models::infgen_config::{InfgenConfig, METADATA_KEY};
use infgen::{Dtype, Engine, EngineOptions, Error, Image, Latent, Observer, Weights, kernels};
use serde_json::{Value, json};

/// Sizes of the decodes, one of them odd; and of the picture that is encoded.
const SIZES: [(usize, usize); 3] = [(64, 48), (77, 45), (128, 72)];
const ENCODED: (usize, usize) = (96, 64);

/// What is missing to run this, if anything.
fn missing() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    let browsers = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
    if !runs("node") {
        return Some("node".into());
    }
    if std::env::var_os("CHROMIUM").is_none() && !browsers.iter().any(|path| Path::new(path).exists()) {
        return Some("Chromium".into());
    }
    if !root.join("tests/web/node_modules/puppeteer-core").is_dir() {
        return Some("puppeteer-core (npm ci --prefix tests/web)".into());
    }
    None
}

fn skip(reason: &str) {
    use std::io::Write;
    assert!(std::env::var_os("REQUIRE_WEB").is_none_or(|v| v != "1"), "REQUIRE_WEB=1, but there is no {reason}; see scripts/setup-web");
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED the_browser_gives_the_native_pictures: no {reason}; scripts/setup-web installs what is needed (REQUIRE_WEB=1 makes this a failure)"
    );
}

/// Builds the package; false where there is no standard library for wasm32.
fn build(root: &Path) -> bool {
    // The build takes the compiler of the user's shell, not the one that cargo set for this test.
    let mut command = Command::new(root.join("scripts/build-web"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO") && name != "CARGO_HOME" || name == "RUSTC") {
        command.env_remove(name);
    }
    let status = command.status().expect("scripts/build-web runs");
    assert!(status.success() || status.code() == Some(3), "scripts/build-web failed");
    status.success()
}

/// Every shader with every set of constants, as the device would make it. Not those in native f16: SwiftShader has none; nor those that take more
/// workgroup memory than it has.
fn every_kernel() -> Value {
    let mut all = vec![];
    for kernel in kernels::ALL {
        for [x, w, y] in variants::storages(kernel) {
            if [x, w, y].contains(&Storage::F16) {
                continue;
            }
            // What naga takes for granted, browsers want to be told.
            let enable = if variants::uses_subgroups(kernel.wgsl) { "enable subgroups;\n" } else { "" };
            let source = format!("{enable}{}", kernel.source(&Variant { x, w, y, consts: vec![] }));
            let storage = kernel.bindings.iter().map(|bind: &Bind| if bind.writes() { "storage" } else { "read-only-storage" });
            let bindings: Vec<&str> = std::iter::once("uniform").chain(storage).collect();
            let sets = variants::constants(kernel).into_iter().filter(|set| variants::limits(kernel, set).1 <= 32 << 10);
            let constants: Vec<Value> = sets.map(|set| set.into_iter().collect()).collect();
            all.push(json!({ "label": format!("{} {x:?} {w:?} {y:?}", kernel.name), "source": source, "bindings": bindings, "constants": constants }));
        }
    }
    Value::Array(all)
}

/// A checkpoint of 1.6 GiB: an InfGen decoder of more than 400 MiB in f32 behind tensors of something else. All of it zeros, which a file
/// system does not store.
fn write_large(path: &Path) {
    let config = InfgenConfig { num_blocks: 24, ..InfgenConfig::table1() };
    let other = ("a.other.weight".to_owned(), vec![300 << 20]);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in std::iter::once(other).chain(config.tensors()) {
        let start = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    header.insert("__metadata__".into(), json!({ METADATA_KEY: config.to_json() }));
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes.splice(0..0, (bytes.len() as u64).to_le_bytes());
    std::fs::write(path, &bytes).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes.len() as u64 + end).unwrap();
}

fn floats(path: PathBuf) -> Vec<f32> {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// PSNR in dB of values whose full range is `range`.
fn psnr(got: &[f32], want: &[f32], range: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    let squares: f64 = got.iter().zip(want).map(|(&g, &w)| (g as f64 - w as f64).powi(2)).sum();
    20.0 * (range / (squares / got.len() as f64).sqrt()).log10()
}

#[test]
fn the_browser_gives_the_native_pictures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Some(reason) = missing() {
        return skip(&reason);
    }
    let device = common::devices::options().device;
    let engine = match Engine::new(EngineOptions { device, dtype: Dtype::F32, ..EngineOptions::default() }) {
        Ok(engine) => engine,
        Err(Error::NoAdapter { .. }) => return common::devices::skipped("the_browser_gives_the_native_pictures"),
        Err(error) => panic!("{error}"),
    };
    if !build(root) {
        return skip("standard library for wasm32-unknown-unknown");
    }
    let work = root.join("target/web/test");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(work.join(name), bytes).unwrap();

    // What the browser is given.
    let sample = std::fs::read(root.join("examples/sample.safetensors")).unwrap();
    let latent = Latent::from_bytes(sample.clone(), "sample").unwrap();
    let photograph = std::fs::read(common::data("taesd-photographs/kodim23.png")).unwrap();
    write("sample.safetensors", &sample);
    write("picture.png", &photograph);
    let picture = Image::from_bytes(&photograph, "picture.png").unwrap();
    picture.resize(96, 40, ResizeFilter::Lanczos3).unwrap().save(work.join("strip.png"), &[]).unwrap();
    let small: Vec<f32> = (0..4)
        .flat_map(|c| (0..9).flat_map(move |y| (0..16).map(move |x| (c * 36 + y + 12) * 64 + x + 24)))
        .map(|i| latent.data()[i])
        .collect();
    let mut small = Latent::new([1, 4, 9, 16], small).unwrap();
    small.space = latent.space.clone();
    write("small.safetensors", &small.to_safetensors());
    write("broken.safetensors", &small.to_safetensors()[..900]);
    write_large(&work.join("large.safetensors"));
    write("kernels.json", every_kernel().to_string().as_bytes());
    let name = |(w, h): (usize, usize)| format!("{w}x{h}");
    let decodes: Vec<Value> = SIZES.iter().map(|&(w, h)| json!({ "name": name((w, h)), "width": w, "height": h })).collect();
    let cases = json!({ "decodes": decodes, "encode": { "width": ENCODED.0, "height": ENCODED.1 } });
    write("cases.json", cases.to_string().as_bytes());

    let node = Command::new("node").arg(root.join("tests/web/run.mjs")).arg(root.join("web/dist")).arg(&work).status().expect("node runs");
    assert!(node.success(), "tests/web/run.mjs failed");

    // What it came to.
    engine.load_decoder(Weights::Builtin).unwrap();
    for size in SIZES {
        let want = engine.decode(&latent, size.0, size.1).unwrap();
        let db = psnr(&floats(work.join(format!("{}.web.f32", name(size)))), want.data(), 2.0);
        println!("decode {}: {db:.1} dB", name(size));
        assert!(db >= 50.0, "decode {}: {db:.1} dB", name(size));
    }
    let size = SIZES[0];
    let db = psnr(&floats(work.join("f16.web.f32")), engine.decode(&latent, size.0, size.1).unwrap().data(), 2.0);
    println!("decode {} in f16 at default limits: {db:.1} dB", name(size));
    assert!((45.0..150.0).contains(&db), "decode {} in f16: {db:.1} dB", name(size));
    let encoder = engine.load_encoder(Weights::Builtin).unwrap();
    let picture = picture.resize(ENCODED.0, ENCODED.1, ResizeFilter::Lanczos3).unwrap();
    let want = encoder.encode(&picture, None, &Observer::default()).unwrap();
    let range = want.data().iter().fold(0.0f64, |m, &v| m.max(v.abs() as f64));
    let db = psnr(&floats(work.join("latent.web.f32")), want.data(), range);
    println!("encode {}: {db:.1} dB", name(ENCODED));
    assert!(db >= 50.0, "encode: {db:.1} dB");

    same_messages(&engine, root, &latent, &serde_json::from_slice(&std::fs::read(work.join("errors.json")).unwrap()).unwrap());
}

/// The browser's refusals in the words of the native library.
fn same_messages(engine: &Engine, root: &Path, latent: &Latent, browser: &Value) {
    let weights = std::fs::read(root.join("weights/infgen-tiny-sd.safetensors")).unwrap();
    let encoder = std::fs::read(root.join("weights/encoder-tiny-sd.safetensors")).unwrap();
    let load = |bytes: Vec<u8>, name: &str| {
        let weights = infgen::weights::Weights::from_bytes(bytes, name)?;
        engine.load_decoder(weights).map(drop)
    };
    let native: [(&str, infgen::Result<()>); 9] = [
        ("truncated", load(weights[..400_000].to_vec(), "truncated.safetensors")),
        ("pickle", load(b"\x80\x02}q\x00.".to_vec(), "model.ckpt")),
        ("encoder", load(encoder, "encoder")),
        ("text", Latent::from_bytes(b"{\"a\": 1}".to_vec(), "latent.json").map(drop)),
        ("size", engine.decode(latent, 0, 10).map(drop)),
        ("huge", engine.decode(latent, 20000, 10).map(drop)),
        ("nan", Latent::new(latent.shape(), vec![f32::NAN; latent.data().len()]).map(drop)),
        ("shape", Latent::new([1, 3, 3, 3], latent.data().to_vec()).map(drop)),
        ("picture", Image::from_bytes(b"no picture", "picture.txt").map(drop)),
    ];
    for (case, result) in native {
        let error = result.expect_err(case);
        assert_eq!(browser[case]["message"], error.to_string(), "{case}");
        assert_eq!(browser[case]["code"], error.code(), "{case}");
    }
}
