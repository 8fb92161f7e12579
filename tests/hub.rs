//! Models by hub id, from a server on this machine.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use common::hub_server::{COMMIT, Server};
use common::text_to_image::{Case, Tensor, write};
use infgen::hub::{HubId, HubOptions, fetch};
use infgen::pipeline::Parts;
use infgen::{Error, Observer};
use safetensors::tensor::Dtype;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A model with a tokenizer folder, and what must not be fetched.
fn model(folder: &Path) {
    Case::open().write_folder(folder);
    std::fs::create_dir_all(folder.join("tokenizer")).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::write(folder.join("tokenizer").join(name), "{}").unwrap();
    }
    std::fs::write(folder.join("README.md"), "# a model").unwrap();
    std::fs::write(folder.join("unet/diffusion_pytorch_model.bin"), "pickle").unwrap();
}

struct Fixture {
    scratch: tempfile::TempDir,
    server: Server,
}

impl Fixture {
    fn new() -> Fixture {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("model");
        model(&folder);
        Fixture { server: Server::of(&folder), scratch }
    }

    fn cache(&self) -> PathBuf {
        self.scratch.path().join("cache")
    }

    fn options(&self) -> HubOptions {
        HubOptions { endpoint: Some(self.server.url.clone()), cache: Some(self.cache()), ..HubOptions::default() }
    }

    fn fetch(&self, id: &str) -> infgen::Result<PathBuf> {
        fetch(&HubId::parse(id).unwrap(), &self.options(), &Observer::default())
    }
}

fn error(result: infgen::Result<PathBuf>, words: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)) && error.lines().count() == 1, "{error} lacks one of {words:?}");
}

#[test]
fn a_model_is_fetched_once_whole_and_nothing_beside_it() {
    let f = Fixture::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    let observer = Observer::new(move |p| sink.lock().unwrap().push((p.done, p.layer.to_owned())));
    let path = fetch(&HubId::parse("org/name").unwrap(), &f.options(), &observer).unwrap();
    assert!(path.ends_with(format!("snapshots/{COMMIT}")), "{path:?}");
    let state = f.server.state.lock().unwrap();
    for (name, bytes) in &state.files {
        let wanted = name != "README.md" && !name.ends_with(".bin");
        assert_eq!(path.join(name).exists(), wanted, "{name}");
        assert!(!wanted || std::fs::read(path.join(name)).unwrap() == *bytes, "{name}");
    }
    let told = told.lock().unwrap();
    assert!(told.iter().any(|(done, text)| *done == 1.0 && text.contains(UNET) && text.contains("MiB of")), "{told:?}");
    let requests = state.seen.len();
    drop(state);
    // The second time nothing is asked.
    assert_eq!(f.fetch("org/name").unwrap(), path);
    assert_eq!(f.server.state.lock().unwrap().seen.len(), requests);
}

#[test]
fn an_interrupted_file_goes_on_where_it_stopped() {
    let f = Fixture::new();
    let length = f.server.state.lock().unwrap().files[UNET].len();
    f.server.change(|state| state.breaks = [(UNET.to_owned(), 1000)].into());
    error(f.fetch("org/name"), &["org/name", "run it again", "where it stopped"]);
    let ranges = f.server.ranges(UNET);
    assert_eq!(ranges, [0, 1000, 2000, 3000], "each attempt goes on");
    // Not taken for a model that is there.
    assert!(Parts::open(&f.cache().join("models--org--name/snapshots").join(COMMIT)).is_err());
    f.server.change(|state| state.breaks.clear());
    let path = f.fetch("org/name").unwrap();
    assert_eq!(f.server.ranges(UNET)[4..], [4000]);
    assert_eq!(std::fs::read(path.join(UNET)).unwrap().len(), length);
}

#[test]
fn bytes_that_change_on_the_way_are_noticed() {
    let f = Fixture::new();
    f.server.change(|state| state.spoils.push(UNET.into()));
    let path = f.fetch("org/name").unwrap();
    assert_eq!(f.server.ranges(UNET), [0, 0], "once more from the start");
    assert!(std::fs::read(path.join(UNET)).unwrap() == f.server.state.lock().unwrap().files[UNET]);
    let f = Fixture::new();
    f.server.change(|state| state.spoils.extend(std::iter::repeat_n(UNET.to_owned(), 9)));
    error(f.fetch("org/name"), &[UNET, "SHA-256"]);
}

#[test]
fn what_the_server_says_becomes_advice() {
    let f = Fixture::new();
    for (status, words) in [(401, "HF_TOKEN"), (404, "no such model"), (429, "again later"), (500, "status 500")] {
        f.server.change(|state| state.status = Some(status));
        error(f.fetch("org/name"), &["org/name", words]);
    }
    f.server.change(|state| state.status = None);
    error(f.fetch("org/name/other.safetensors"), &["no `other.safetensors`"]);
    // Another family is refused before its weights are fetched.
    f.server.change(|state| {
        state.files.insert("model_index.json".into(), br#"{"_class_name": "StableDiffusion3Pipeline"}"#.to_vec());
    });
    error(f.fetch("org/name"), &["StableDiffusion3Pipeline"]);
    assert!(f.server.ranges(UNET).is_empty());
    f.server.change(|state| drop(state.files.remove(UNET)));
    error(f.fetch("org/name"), &["diffusion_pytorch_model.bin", "never read"]);
    let mut options = f.options();
    options.endpoint = Some("hub.example".into());
    error(fetch(&HubId::parse("org/name").unwrap(), &options, &Observer::default()), &["no URL"]);
    let observer = Observer::default();
    observer.cancel();
    assert!(matches!(fetch(&HubId::parse("org/name").unwrap(), &f.options(), &observer), Err(Error::Cancelled)));
}

/// A snapshot in the cache with a file missing, as an interrupted transfer of another program leaves it.
#[test]
fn what_the_cache_lacks_is_fetched_or_named() {
    const SHARDS: [&str; 2] = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"];
    let f = Fixture::new();
    f.server.change(|state| {
        let bytes = state.files.remove(UNET).unwrap();
        let index = r#"{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}"#;
        state.files.insert("model_index.json".into(), index.into());
        let map = serde_json::json!({ "weight_map": { "a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0] } });
        state.files.insert(format!("{UNET}.index.json"), map.to_string().into_bytes());
        state.files.insert(format!("unet/{}", SHARDS[0]), bytes.clone());
        state.files.insert(format!("unet/{}", SHARDS[1]), bytes);
    });
    let path = f.fetch("org/name").unwrap();
    let away = HubOptions { endpoint: Some("http://127.0.0.1:9".into()), ..f.options() };
    for name in ["scheduler/scheduler_config.json", &format!("unet/{}", SHARDS[0]), &format!("unet/{}", SHARDS[1])] {
        std::fs::remove_file(path.join(name)).unwrap();
        error(fetch(&HubId::parse("org/name").unwrap(), &away, &Observer::default()), &["cannot be reached", name, "cache"]);
        assert_eq!(f.fetch("org/name").unwrap(), path);
        assert!(path.join(name).exists(), "{name}");
    }
    assert_eq!(fetch(&HubId::parse("org/name").unwrap(), &away, &Observer::default()).unwrap(), path, "whole again");
}

#[test]
fn a_single_checkpoint_is_fetched_alone() {
    let f = Fixture::new();
    let checkpoint = f.scratch.path().join("v1.safetensors");
    write(&checkpoint, &[Tensor { name: "x".into(), shape: vec![1], values: vec![1.0] }], Dtype::F32);
    let bytes = std::fs::read(&checkpoint).unwrap();
    f.server.change(|state| drop(state.files.insert("v1.safetensors".into(), bytes.clone())));
    let path = f.fetch("org/name/v1.safetensors").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert!(!path.with_file_name("model_index.json").exists());
}

fn infgen(f: &Fixture, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infgen"));
    command.args(["generate", "-q", "-p", "a cat"]).args(arguments).current_dir(f.scratch.path());
    for name in ["HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_CACHE", f.cache()).envs(environment.iter().copied()).output().unwrap()
}

/// With nothing to connect to: one line that names the files and where to put them.
#[test]
fn without_a_server_the_program_says_which_files_to_put_where() {
    let f = Fixture::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    for (environment, reason) in [(("HF_ENDPOINT", url.as_str()), "cannot be reached"), (("HF_HUB_OFFLINE", "1"), "HF_HUB_OFFLINE")] {
        let output = infgen(&f, &[environment], &["--model", "org/name", "-o", "never.png"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        let words =
            [reason, "org/name", "model_index.json", "unet/", "diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "--model"];
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
        assert!(!f.scratch.path().join("never.png").exists());
    }
    // Fetched once, it is there without a server.
    f.fetch("org/name").unwrap();
    let output = infgen(&f, &[("HF_HUB_OFFLINE", "1")], &["--model", "org/name", "-o", "never.png"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("tokenizer"), "its tokenizer is no real one: {stderr}");
}

/// From the id to the picture.
#[test]
fn the_program_generates_from_a_hub_id() {
    let f = Fixture::new();
    let listed = Command::new(env!("CARGO_BIN_EXE_infgen")).args(["devices", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    if listed["devices"].as_array().is_none_or(Vec::is_empty) {
        assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no adapter");
        return common::devices::skipped("the_program_generates_from_a_hub_id");
    }
    let checkpoint = f.scratch.path().join("v1.safetensors");
    Case::open().write_single_file(&checkpoint, Dtype::F16);
    let bytes = std::fs::read(&checkpoint).unwrap();
    f.server.change(|state| drop(state.files.insert("v1.safetensors".into(), bytes)));
    let common = ["--steps", "1", "--cfg", "1", "-s", "1", "--latent-size", "64x64", "-o", "out.png"];
    let latent = |model: &str, name: &str| {
        let own = ["--model", model, "--hub-endpoint", &f.server.url, "--save-latent", name];
        let output = infgen(&f, &[], &[&own[..], &common].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        infgen::Latent::open(f.scratch.path().join(name)).unwrap().data().to_vec()
    };
    assert_eq!(latent("org/name/v1.safetensors", "hub.npy"), latent("v1.safetensors", "local.npy"));
    assert_eq!(f.server.ranges("v1.safetensors"), [0]);
}
