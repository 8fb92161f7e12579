//! Which files a path stands for: one file, an index with its shards, a component folder, a pipeline folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source::{Content, Source};
use super::{Config, Weights};
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 24;
const MAX_INDEX_BYTES: u64 = 1 << 27;
/// Shards stay open, and 256 open files is the smallest default limit of a system (macOS).
const MAX_SHARDS: usize = 200;

/// In the order of preference: full precision before its half-precision twin.
const STANDARD_NAMES: [&str; 8] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
];

pub(super) fn open(path: &Path) -> Result<Weights> {
    let meta = std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    if !meta.is_dir() {
        return open_file(path, path);
    }
    // A pipeline may have checkpoints of other programs beside its parts.
    if path.join("model_index.json").is_file() && path.join("vae").is_dir() {
        return open(&path.join("vae"));
    }
    match component_file(path)? {
        Found::File(file) => open_file(path, &file),
        Found::None if path.join("vae").is_dir() => open(&path.join("vae")),
        Found::None => Err(Error::UnknownModel { path: path.to_owned(), detail: "no .safetensors file in this folder".into() }),
        Found::Several(names) => {
            let detail = format!("several .safetensors files in this folder, name one: {}", names.join(", "));
            Err(Error::UnknownModel { path: path.to_owned(), detail })
        }
    }
}

enum Found {
    File(PathBuf),
    None,
    Several(Vec<String>),
}

fn component_file(folder: &Path) -> Result<Found> {
    if let Some(name) = STANDARD_NAMES.iter().find(|name| folder.join(name).is_file()) {
        return Ok(Found::File(folder.join(name)));
    }
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let (mut safetensors, mut pickle) = (Vec::new(), None);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => safetensors.push(path),
            Some("bin" | "ckpt" | "pt" | "pth") => pickle = Some(path),
            _ => {}
        }
    }
    safetensors.sort();
    let is_pickle = |path: &PathBuf| Source::open(path).and_then(|s| s.sniff()).is_ok_and(|c| c == Content::Pickle);
    match (safetensors.len(), pickle.filter(is_pickle)) {
        (0, Some(path)) => Err(Error::Pickle { path }),
        (0, None) => Ok(Found::None),
        (1, _) => Ok(Found::File(safetensors.remove(0))),
        _ => {
            let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
            Ok(Found::Several(safetensors.iter().filter_map(name).collect()))
        }
    }
}

/// Opens `file`; `shown` is what messages call the whole.
fn open_file(shown: &Path, file: &Path) -> Result<Weights> {
    let source = Source::open(file)?;
    let config = if shown != file || is_standard(file) { read_config(file)? } else { None };
    let shards = if source.sniff()? == Content::Json { open_shards(&source)? } else { vec![source] };
    Weights::from_sources(shown.to_owned(), shards, config)
}

fn is_standard(file: &Path) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| STANDARD_NAMES.contains(&name))
}

fn read_config(beside: &Path) -> Result<Option<Config>> {
    let path = beside.with_file_name(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let json = Source::open(&path)?.read_text("config.json", MAX_CONFIG_BYTES)?;
    Ok(Some(Config { path, json }))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(index: &Source) -> Result<Vec<Source>> {
    const FORMAT: &str = "safetensors index";
    let text = index.read_text(FORMAT, MAX_INDEX_BYTES)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| index.malformed(FORMAT, e.to_string()))?;
    let names: BTreeSet<&str> = parsed.weight_map.values().map(String::as_str).collect();
    if names.len() > MAX_SHARDS {
        return Err(index.malformed(FORMAT, format!("{} shards, more than the {MAX_SHARDS} that are read", names.len())));
    }
    names
        .into_iter()
        .map(|name| {
            // A plain name only: an index from the internet must not reach outside its folder.
            let plain = Path::new(name).file_name().is_some_and(|file| file == name) && !name.contains('\\');
            if plain {
                Source::open(&index.path().with_file_name(name))
            } else {
                Err(index.malformed(FORMAT, format!("`{name}` is not the name of a file beside it")))
            }
        })
        .collect()
}
