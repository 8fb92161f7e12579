//! The program as its users and scripts call it: exit status, one line on stderr, whole files or none.

mod common;

use std::path::Path;
#[cfg(unix)]
use std::process::Command;

use common::golden::{Case, WeightsFolder};
use common::program::{done, has_device, infgen, refused};
use common::{data, synthetic};
use infgen::{Image, Latent};

/// A small InfGen decoder of synthetic weights and a latent for it.
struct Fixture {
    weights: WeightsFolder,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let case = Case::open("infgen-small-skip");
        let fixture = Fixture { weights: case.write_weights(), folder: tempfile::tempdir().unwrap() };
        let (shape, values) = case.input("latent.6x5");
        let scaled: Vec<f32> = values.iter().map(|v| v * 0.18215).collect();
        Latent::new([1, shape[0], shape[1], shape[2]], scaled.clone()).unwrap().save(fixture.at("latent.safetensors")).unwrap();
        let twice = [scaled.clone(), scaled.iter().map(|v| -v).collect()].concat();
        Latent::new([2, shape[0], shape[1], shape[2]], twice).unwrap().save(fixture.at("batch.npy")).unwrap();
        fixture
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn weights(&self) -> String {
        self.weights.path().display().to_string()
    }
}

/// `[3, H, W]` of a `.npy` written by the program.
fn npy(path: &Path) -> (usize, usize, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let header_length = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..10 + header_length]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("False"), "{header}");
    let shape = header.split("(").nth(1).unwrap().split(')').next().unwrap();
    let sides: Vec<usize> = shape.split(',').filter_map(|s| s.trim().parse().ok()).collect();
    assert_eq!(sides[0], 3);
    let values = bytes[10 + header_length..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (sides[2], sides[1], values)
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for arguments in [
        &["decode"][..],
        &["decode", "--latent", "x", "--size", "0x5", "-o", "y.png"],
        &["decode", "--latent", "x", "--size", "5x5", "--region", "1,2", "-o", "y.png"],
        &["decode", "--latent", "x", "--size", "5x5", "-o", "y.png", "--memory", "lots"],
        &["decode", "--latent", "x", "--size", "5x5", "-o", "y.png", "--dtype", "f8"],
        &["upscale", "--image", "x", "-o", "y.png"],
        &["generate", "--model", "m", "-p", "x", "-o", "y.png", "--steps", "0"],
        &["generate", "--model", "m", "-p", "x", "-o", "y.png", "--eta", "1.5"],
        &["upscale", "--image", "x", "--scale", "2", "--size", "5x5", "-o", "y.png"],
        &["frobnicate"],
        &[],
    ] {
        let output = infgen(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["decode", "--help"], &["--version"]] {
        assert!(infgen(arguments).status.success());
    }
    let help = String::from_utf8(infgen(&["decode", "--help"]).stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("--region"), "{help}");
}

#[test]
fn every_form_of_output_holds_the_same_picture_at_the_size_asked_for() {
    if !has_device() {
        return;
    }
    let fixture = Fixture::new();
    let (latent, weights) = (fixture.text("latent.safetensors"), fixture.weights());
    for size in ["1x1", "7x3", "130x67"] {
        let sides: Vec<usize> = size.split('x').map(|s| s.parse().unwrap()).collect();
        let (width, height) = (sides[0], sides[1]);
        let run = |name: &str, extra: &[&str]| {
            let output = fixture.text(name);
            let mut arguments = vec!["decode", "--latent", &latent, "--weights", &weights, "--size", size, "-o", &output];
            arguments.extend(extra);
            let report = done(&arguments);
            assert_eq!(report["output"], output.as_str());
            assert_eq!((report["width"].as_u64(), report["height"].as_u64()), (Some(width as u64), Some(height as u64)));
            assert!(
                report["peak_gpu_bytes"].as_u64().unwrap() > 0 && report["seconds"]["decode"].is_number() && !report["device"].is_null()
            );
            fixture.at(name)
        };
        let (w, h, values) = npy(&run("a.npy", &[]));
        assert_eq!((w, h), (width, height));
        let png = Image::open(run("a.png", &[])).unwrap();
        assert_eq!((png.width(), png.height()), (width, height));
        let again = npy(&run("b.npy", &[])).2;
        assert!(values == again, "two runs give other bytes");
        let eight: Vec<u8> = png.data().iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect();
        let plane = width * height;
        for (i, &got) in eight.iter().enumerate() {
            let value = values[i % 3 * plane + i / 3];
            let exact = 255.0 * (value as f64 / 2.0 + 0.5).clamp(0.0, 1.0);
            assert!((got as f64 - exact).abs() <= 0.5 + 1e-4, "{size} value {i}: {got} for {exact}");
        }
        let webp = Image::open(run("a.webp", &[])).unwrap();
        assert!(webp.to_rgb8() == png.to_rgb8());
        if width > 20 {
            let (w, h, part) = npy(&run_region(&fixture, &latent, &weights, size, "100,5,30x60"));
            assert_eq!((w, h), (30, 60));
            for (i, value) in part.iter().enumerate() {
                let (c, y, x) = (i / (30 * 60), i / 30 % 60, i % 30);
                assert_eq!(*value, values[c * plane + (y + 5) * width + x + 100], "region is no crop at {c},{y},{x}");
            }
        }
    }
}

fn run_region(fixture: &Fixture, latent: &str, weights: &str, size: &str, region: &str) -> std::path::PathBuf {
    let output = fixture.text("region.npy");
    done(&["decode", "--latent", latent, "--weights", weights, "--size", size, "--region", region, "-o", &output]);
    fixture.at("region.npy")
}

#[test]
fn a_batch_becomes_numbered_pictures_and_png_carries_the_settings() {
    if !has_device() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture.text("out.png");
    let report =
        done(&["decode", "--latent", &fixture.text("batch.npy"), "--weights", &fixture.weights(), "--size", "24x16", "-o", &output]);
    assert_eq!(report["outputs"].as_array().unwrap().len(), 2);
    assert!(!fixture.at("out.png").exists());
    let (first, second) = (Image::open(fixture.at("out-000.png")).unwrap(), Image::open(fixture.at("out-001.png")).unwrap());
    assert!(first != second);
    let bytes = std::fs::read(fixture.at("out-000.png")).unwrap();
    assert!(bytes.windows(4).any(|w| w == b"tEXt" || w == b"iTXt"), "no text chunk");
    assert!(bytes.windows(5).any(|w| w == b"24x16"), "the settings lack the size");
}

/// The ceiling that a refusal names does, and a byte less does not; whether there is room for the weights or not.
#[test]
fn memory_is_refused_with_what_suffices_and_that_suffices() {
    if !has_device() {
        return;
    }
    let fixture = Fixture::new();
    let (latent, weights, picture, folder) =
        (fixture.text("latent.safetensors"), fixture.weights(), fixture.text("in.png"), fixture.folder.path());
    let pixels = (0..3 * 64 * 48).map(|i| ((i % 251) as f32 / 125.5) - 1.0).collect();
    Image::new(64, 48, pixels).unwrap().save(&picture, &[]).unwrap();
    let least = |arguments: &[&str], output: &Path, memory: u64| -> u64 {
        let memory = memory.to_string();
        let all = [arguments, &["-o", output.to_str().unwrap(), "--memory", &memory, "--quiet"]].concat();
        refused(&all, output, &["at least ", "(--memory)"]);
        let text = String::from_utf8(infgen(&all).stderr).unwrap();
        text.split("at least ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    };
    let decode = ["decode", "--latent", &latent, "--weights", &weights, "--size", "256x256"];
    for (name, arguments) in [
        ("whole.png", decode.to_vec()),
        ("whole.npy", decode.to_vec()),
        ("part.png", [&decode[..], &["--region", "20,40,100x30"]].concat()),
        ("z.safetensors", vec!["encode", "--image", &picture]),
        ("large.png", vec!["upscale", "--image", &picture, "--scale", "5"]),
    ] {
        let output = folder.join(name);
        let needed = least(&arguments, &output, 1000);
        assert_eq!(least(&arguments, &output, needed - 1), needed, "{name}");
        let below = (needed - 1).to_string();
        let told = infgen(&[&arguments[..], &["-o", output.to_str().unwrap(), "--memory", &below]].concat());
        assert!(!String::from_utf8_lossy(&told.stderr).contains("round "), "{name}: refused before it starts");
        let done = done(&[&arguments[..], &["-o", output.to_str().unwrap(), "--memory", &needed.to_string()]].concat());
        let peak = done["peak_gpu_bytes"].as_u64().unwrap();
        // What is prepared for regions leaves room for more than the least of them.
        assert!(if name == "part.png" { peak <= needed } else { peak == needed }, "{name}: {peak} of {needed}");
    }
}

#[test]
fn bad_input_gives_one_line_and_no_file() {
    if !has_device() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture.at("out.png");
    let out = output.display().to_string();
    let (latent, weights) = (fixture.text("latent.safetensors"), fixture.weights());
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(fixture.at(name), bytes).unwrap();
        fixture.text(name)
    };
    let decode = |latent: &str, weights: &str, out: &str| -> Vec<String> {
        ["decode", "--quiet", "--latent", latent, "--weights", weights, "--size", "16x16", "-o", out].map(str::to_owned).to_vec()
    };
    let check = |arguments: Vec<String>, words: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&arguments, &output, words);
    };
    check(decode("missing.safetensors", &weights, &out), &["missing.safetensors"]);
    check(decode(&latent, "missing", &out), &["missing"]);
    let huge = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
    check(decode(&latent, &write("huge.safetensors", &huge), &out), &["huge.safetensors"]);
    check(decode(&write("short.safetensors", b"abc"), &weights, &out), &["short.safetensors"]);
    check(decode(&latent, &write("pickle.safetensors", b"\x80\x02}q\x00."), &out), &["pickle"]);
    let model = std::fs::read(fixture.weights.path().join("model.safetensors")).unwrap();
    let config = std::fs::read(fixture.weights.path().join("config.json")).unwrap();
    let folder = |name: &str, model: &[u8], config: &[u8]| {
        std::fs::create_dir(fixture.at(name)).unwrap();
        std::fs::write(fixture.at(name).join("model.safetensors"), model).unwrap();
        std::fs::write(fixture.at(name).join("config.json"), config).unwrap();
        fixture.text(name)
    };
    check(decode(&latent, &folder("cut", &model[..model.len() - 1], &config), &out), &["model.safetensors"]);
    let mut nan = model.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    check(decode(&latent, &folder("nan", &nan, &config), &out), &["non-finite"]);
    let mut large = model.clone();
    large[end - 4..].copy_from_slice(&1e5f32.to_le_bytes());
    let beyond = folder("beyond", &large, &config);
    check(decode(&latent, &beyond, &out), &["f16", "(--dtype)"]);
    let in_f32 = fixture.text("f32.png");
    done(&["decode", "--dtype", "f32", "--latent", &latent, "--weights", &beyond, "--size", "16x16", "-o", &in_f32]);
    let wider = String::from_utf8(config.clone()).unwrap().replace("\"mlp_hidden\":80", "\"mlp_hidden\":84");
    assert_ne!(wider.as_bytes(), config);
    check(decode(&latent, &folder("wider", &model, wider.as_bytes()), &out), &["shape"]);
    let unknown = String::from_utf8(config.clone()).unwrap().replacen('{', "{\"surprise\":1,", 1);
    check(decode(&latent, &folder("unknown", &model, unknown.as_bytes()), &out), &["surprise"]);
    let channels = fixture.text("five.npy");
    Latent::new([1, 5, 2, 2], vec![0.0; 20]).unwrap().save(&channels).unwrap();
    check(decode(&channels, &weights, &out), &["5 channels"]);
    check(decode(&latent, &weights, &fixture.text("out.gif")), &["gif"]);
    check(decode(&latent, &weights, "/nowhere/out.png"), &["/nowhere"]);
    let mut outside = decode(&latent, &weights, &out);
    outside.extend(["--region", "10,10,16x16"].map(str::to_owned));
    check(outside, &["region"]);
    let mut large = decode(&latent, &weights, &out);
    large[7] = "20000x16".into();
    check(large, &["16384"]);
    let nameless = Latent::new([1, 4, 2, 2], vec![0.0; 16]).unwrap().to_safetensors();
    let nameless = String::from_utf8_lossy(&nameless).replacen("\"latent\"", "\"lament\"", 1).into_bytes();
    check(decode(&write("nameless.safetensors", &nameless), &weights, &out), &["lament"]);
    let mut device = decode(&latent, &weights, &out);
    device.extend(["--device", "Voodoo 2"].map(str::to_owned));
    check(device, &["Voodoo 2"]);
}

#[test]
fn another_vae_size_is_refused_with_a_hint() {
    if !has_device() {
        return;
    }
    let case = Case::open("vae-small");
    let weights = case.write_weights();
    let folder = tempfile::tempdir().unwrap();
    let latent = folder.path().join("l.npy");
    Latent::new([1, 4, 2, 3], vec![0.5; 24]).unwrap().save(&latent).unwrap();
    let (latent, weights) = (latent.display().to_string(), weights.path().display().to_string());
    let output = folder.path().join("o.png");
    let out = output.display().to_string();
    refused(&["decode", "-q", "--latent", &latent, "--weights", &weights, "--size", "25x16", "-o", &out], &output, &["24x16", "InfGen"]);
    done(&["decode", "--latent", &latent, "--weights", &weights, "--size", "24x16", "-o", &out]);
}

#[test]
fn a_picture_is_encoded_and_inspected() {
    if !has_device() {
        return;
    }
    let case = Case::open("vae-small");
    let weights = case.write_weights();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let picture: Vec<f32> = synthetic::fill("picture", 19 * 26 * 3, 0.9, 0.0, 1);
    Image::new(26, 19, picture).unwrap().save(at("p.png"), &[]).unwrap();
    let weights = weights.path().display().to_string();
    let report = done(&["encode", "--image", &at("p.png"), "--weights", &weights, "-o", &at("l.safetensors")]);
    assert_eq!(report["latent"], serde_json::json!([1, 4, 2, 3]), "26x19 rounds down to 24x16");
    let mean = Latent::open(at("l.safetensors")).unwrap();
    done(&["encode", "--image", &at("p.png"), "--weights", &weights, "--sample", "--seed", "3", "-o", &at("s.npy")]);
    done(&["encode", "--image", &at("p.png"), "--weights", &weights, "--sample", "--seed", "3", "-o", &at("t.npy")]);
    let draw = Latent::open(at("s.npy")).unwrap();
    assert_eq!(draw.data(), Latent::open(at("t.npy")).unwrap().data());
    assert_ne!(draw.data(), mean.data());
    let inspected: serde_json::Value = serde_json::from_slice(&infgen(&["inspect", "--json", &at("l.safetensors")]).stdout).unwrap();
    assert_eq!(inspected["recognised"]["kind"], "latent");
    let text = String::from_utf8(infgen(&["inspect", &weights]).stdout).unwrap();
    assert!(text.contains("AutoencoderKL"), "{text}");
    assert!(data("vae-small").exists());
}

/// Compiled pipelines are kept in the user's cache folder; a damaged file, or a folder that cannot be, changes nothing but the speed.
#[cfg(target_os = "linux")]
#[test]
fn a_damaged_pipeline_cache_is_ignored_and_written_anew() {
    if !has_device() {
        return;
    }
    let fixture = Fixture::new();
    let cache = fixture.at("cache");
    let (weights, latent) = (fixture.weights.path().to_str().unwrap().to_owned(), fixture.at("latent.safetensors"));
    let decode = |cache: &Path, name: &str| {
        let output = fixture.at(name);
        let arguments = ["decode", "--weights", &weights, "--latent", latent.to_str().unwrap(), "--size", "9x7", "--output"];
        let result = Command::new(env!("CARGO_BIN_EXE_infgen"))
            .args(arguments)
            .args([output.as_os_str(), "--quiet".as_ref()])
            .env("XDG_CACHE_HOME", cache)
            .output()
            .unwrap();
        assert!(result.status.success() && result.stderr.is_empty(), "{}", String::from_utf8_lossy(&result.stderr));
        std::fs::read(output).unwrap()
    };
    let first = decode(&cache, "first.png");
    let files = || std::fs::read_dir(cache.join("infgen")).into_iter().flatten().map(|f| f.unwrap().path()).collect::<Vec<_>>();
    let [file] = &files()[..] else {
        println!("SKIPPED: this driver has no pipeline cache");
        return;
    };
    let kept = std::fs::read(file).unwrap();
    for damaged in [&kept[..kept.len() / 2], b"nonsense"] {
        std::fs::write(file, damaged).unwrap();
        assert_eq!(decode(&cache, "again.png"), first);
        assert_ne!(std::fs::read(file).unwrap(), damaged);
    }
    assert_eq!(files().len(), 1, "a temporary file was left behind");
    // A file where the folder should be.
    let blocked = fixture.at("blocked");
    std::fs::create_dir(&blocked).unwrap();
    std::fs::write(blocked.join("infgen"), "").unwrap();
    assert_eq!(decode(&blocked, "uncached.png"), first);
}

/// What is read is never written over, be it named in another way.
#[test]
fn an_output_that_is_an_input_is_refused() {
    let fixture = Fixture::new();
    let latent = fixture.text("batch.npy");
    let before = std::fs::read(&latent).unwrap();
    let other = fixture.folder.path().join(".").join("batch.npy").display().to_string();
    for arguments in [
        &["decode", "--latent", &latent, "--weights", &fixture.weights(), "--size", "9x7", "-o", &other][..],
        &["encode", "--image", &latent, "-o", &other],
        &["upscale", "--image", &latent, "--scale", "2", "-o", &other],
    ] {
        let result = infgen(arguments);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert_eq!(std::fs::read(&latent).unwrap(), before, "{arguments:?}");
    }
    let stderr = infgen(&["decode", "--latent", &latent, "--size", "9x7", "-o", &other]).stderr;
    assert!(String::from_utf8_lossy(&stderr).contains("what is read"), "{}", String::from_utf8_lossy(&stderr));

    // Weights are inputs too, whole folders of them, and so is what a batch's own names would replace.
    let folder = std::path::PathBuf::from(fixture.weights());
    let one = fixture.text("one-000.npy");
    std::fs::copy(&latent, &one).unwrap();
    for (input, weights, asked, kept) in [
        (&latent, folder.clone(), folder.join("model.safetensors"), folder.join("model.safetensors")),
        (&one, folder, fixture.folder.path().join("one.npy"), std::path::PathBuf::from(&one)),
    ] {
        let before = std::fs::read(&kept).unwrap();
        let (weights, asked) = (weights.display().to_string(), asked.display().to_string());
        let result = infgen(&["decode", "-q", "--latent", input, "--weights", &weights, "--size", "9x7", "-o", &asked]);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.code() == Some(1) && stderr.contains("what is read"), "{asked}: {stderr}");
        assert_eq!(std::fs::read(&kept).unwrap(), before, "{asked}");
    }
}

/// Files that have no end, that claim more than they hold, or whose names a terminal would obey.
#[cfg(target_os = "linux")]
#[test]
fn files_that_are_not_what_they_seem_are_refused_at_once() {
    let f = Fixture::new();
    let (fifo, output) = (f.text("pipe.png"), f.at("o.npy"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let o = output.display().to_string();
    for arguments in [
        &["encode", "-q", "--image", &fifo, "-o", &o][..],
        &["upscale", "-q", "--image", &fifo, "--scale", "2", "-o", &o],
        &["decode", "-q", "--latent", &fifo, "--size", "8x8", "-o", &o],
        &["inspect", &fifo],
    ] {
        refused(arguments, &output, &["pipe.png", "not a regular file"]);
    }

    // Three thousand bytes that claim 2^28 pixels.
    let jpeg = f.at("large.jpg");
    Image::new(64, 64, vec![0.25; 3 * 64 * 64]).unwrap().save(&jpeg, &[]).unwrap();
    let mut bytes = std::fs::read(&jpeg).unwrap();
    let frame = bytes.windows(2).position(|marker| marker[0] == 0xff && (0xc0..0xc3).contains(&marker[1])).unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
    std::fs::write(&jpeg, bytes).unwrap();
    refused(&["encode", "-q", "--image", &jpeg.display().to_string(), "-o", &o], &output, &["large.jpg", "cannot hold 16384x16384"]);

    let named = f.at("named.safetensors");
    let data = [0u8; 4];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data).unwrap();
    let name = format!("\u{1b}[31m{}", "x".repeat(1 << 20));
    std::fs::write(&named, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
    let result = infgen(&["decode", "-q", "--latent", &named.display().to_string(), "--size", "8x8", "-o", &o]);
    assert_eq!(result.status.code(), Some(1));
    assert!(result.stderr.len() < 4000 && result.stderr.iter().filter(|c| c.is_ascii_control()).count() == 1, "{}", result.stderr.len());

    // Half a gigabyte of which only the header is looked at.
    let large = f.at("large.npy");
    let mut header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': True, 'shape': (4, 4096, 4096), }".to_vec();
    header.resize(127, b' ');
    header.push(b'\n');
    std::fs::write(&large, &header).unwrap();
    std::fs::OpenOptions::new().write(true).open(&large).unwrap().set_len(128 + 8 * 4 * 4096 * 4096).unwrap();
    let facts = done(&["inspect", &large.display().to_string()]);
    assert_eq!((facts["parameters"].as_u64(), facts["dtypes"]["F64"].as_u64()), (Some(4 * 4096 * 4096), Some(1)), "{facts}");
}

/// Readers that stop early, and disks that are full.
#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_ends_is_no_panic() {
    let fixture = Fixture::new();
    let file = fixture.text("batch.npy");
    let inspect = |stdout: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_infgen"));
        let output = command.args(["inspect", &file]).stdout(stdout).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(inspect(writer.into()), (Some(0), String::new()));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, stderr) = inspect(full.into());
    assert!(code == Some(1) && stderr.starts_with("infgen: standard output") && stderr.lines().count() == 1, "{stderr}");
}

/// Nobody who reads progress and notes is no reason to stop.
#[cfg(target_os = "linux")]
#[test]
fn standard_error_that_is_full_is_no_panic() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (latent, weights, output) = (f.text("latent.safetensors"), f.weights(), f.at("o.png"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_infgen"));
    command.args(["decode", "--latent", &latent, "--weights", &weights, "--size", "9x7", "-o"]).arg(&output);
    assert_eq!(command.stderr(full).status().unwrap().code(), Some(0));
    assert!(output.exists());
}

/// A limit of the shell on the size of files is an error like a full disk, not a signal that ends the program.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_file_sizes_is_an_error() {
    if !has_device() {
        return;
    }
    let f = Fixture::new();
    let (latent, weights, output) = (f.text("latent.safetensors"), f.weights(), f.at("o.npy"));
    let decode = "ulimit -f 1; exec \"$0\" decode -q --latent \"$1\" --weights \"$2\" --size 64x64 -o \"$3\"";
    let ended = Command::new("sh")
        .args(["-c", decode, env!("CARGO_BIN_EXE_infgen"), &latent, &weights])
        .arg(&output)
        // What the driver's own cache makes of the limit is not the point.
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && stderr.lines().count() == 1 && stderr.contains("o.npy"), "{:?}: {stderr}", ended.status);
    let left: Vec<_> = std::fs::read_dir(f.folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".infgen") || name == "o.npy"), "{left:?}");
}

/// What ends a terminal or a service ends it politely, and `nohup` keeps it running.
#[cfg(unix)]
#[test]
fn signals_leave_no_unfinished_file() {
    if !has_device() {
        return;
    }
    let hangs_up = Command::new("sh").args(["-c", "kill -HUP $$; echo stayed"]).output().unwrap().stdout.is_empty();
    if !hangs_up {
        println!("SKIPPED: hang-ups are ignored where this runs");
        return;
    }
    let f = Fixture::new();
    let (program, latent) = (env!("CARGO_BIN_EXE_infgen"), f.text("latent.safetensors"));
    for (before, signals, size, status) in [
        (vec![], &["-HUP"][..], "3000x3000", Some(1)),
        (vec![], &["-TERM"], "3000x3000", Some(1)),
        // Who asks twice does not wait for what is running.
        (vec![], &["-INT", "-INT"], "3000x3000", Some(1)),
        (vec!["nohup"], &["-HUP"], "700x700", Some(0)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("o.png");
        let (weights, output) = (f.weights(), picture.display().to_string());
        let decode =
            [program, "decode", "-q", "--weights", &weights, "--latent", &latent, "--size", size, "--memory", "500MiB", "-o", &output];
        let command = [&before[..], &decode].concat();
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect::<Vec<_>>();
        let begun = std::time::Instant::now();
        while files().is_empty() {
            assert!(
                begun.elapsed().as_secs() < 300 && child.try_wait().unwrap().is_none(),
                "{signals:?}: it ended before it began its file"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for (n, signal) in signals.iter().enumerate() {
            std::thread::sleep(std::time::Duration::from_millis(20 * n as u64));
            let sent = Command::new("kill").args([*signal, &child.id().to_string()]).status().unwrap().success();
            assert!(sent || n > 0, "{signal}");
        }
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), status, "{before:?} {signals:?}: {:?}: {stderr}", ended.status);
        assert!(status == Some(0) || stderr == "infgen: cancelled\n", "{signals:?}: {stderr}");
        let left = if status == Some(0) { vec![std::ffi::OsString::from("o.png")] } else { vec![] };
        assert_eq!(files(), left, "{before:?} {signals:?}");
    }
}

/// An INFD file holds its encoder, too; one of other latents is refused before anything runs.
#[test]
fn an_infd_file_enlarges_pictures_by_itself() {
    if !has_device() {
        return;
    }
    let weights = Case::open("infd-small").write_weights();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let picture: Vec<f32> = synthetic::fill("picture", 21 * 30 * 3, 0.9, 0.0, 1);
    Image::new(30, 21, picture).unwrap().save(at("p.png"), &[]).unwrap();
    let weights = weights.path().display().to_string();
    let text = String::from_utf8(infgen(&["inspect", &weights]).stdout).unwrap();
    assert!(text.contains("INFD encoder and decoder (3 latent channels, 40 codes)"), "{text}");
    done(&["upscale", "--image", &at("p.png"), "--weights", &weights, "--size", "47x33", "-o", &at("o.npy")]);
    let (width, height, values) = npy(&folder.path().join("o.npy"));
    assert_eq!((width, height), (47, 33));
    assert!(values.iter().any(|v| *v != values[0]), "a picture");
    let output = folder.path().join("q.png");
    let out = output.display().to_string();
    let args = ["upscale", "-q", "--image", &at("p.png"), "--weights", &weights, "--encoder", "weights/encoder-tiny-sd.safetensors"];
    refused(&[&args[..], &["--scale", "2", "-o", &out]].concat(), &output, &["4 channels", "reads 3", "--encoder"]);
}
