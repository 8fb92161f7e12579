//! Models by hub id (`org/name`): fetched once into the cache that Python's `huggingface_hub` shares.
//!
//! `hf-hub` 0.4 does the transfers: it goes on where an interrupted file stopped, which 1.0 does not, with a third of the dependencies. What
//! is fetched is what [`crate::pipeline::Parts`] reads, never a pickle. Files with a published SHA-256 (all large ones) are checked.
//!
//! Environment: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`, and the usual proxy variables.

use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, human_bytes};
use crate::gpu::{Observer, Progress};
use crate::pipeline::parts::Index;

/// From where and how.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// URL of the server; none: `HF_ENDPOINT`, or the public hub.
    pub endpoint: Option<String>,
    /// Branch, tag or commit; none: `main`.
    pub revision: Option<String>,
    /// Folder of the cache; none: `HF_HUB_CACHE`, `HF_HOME/hub`, or `~/.cache/huggingface/hub`.
    pub cache: Option<PathBuf>,
    /// Prefer half-precision files where a model has both.
    pub half: bool,
}

/// What to put into a folder by hand, where nothing can be fetched.
const BY_HAND: &str = "model_index.json, scheduler/scheduler_config.json, tokenizer/vocab.json and merges.txt, and in each of text_encoder/ \
    (model.safetensors), unet/ and vae/ (diffusion_pytorch_model.safetensors) the weights with config.json; of SDXL also text_encoder_2/ and \
    tokenizer_2/, of a class-conditional model transformer/ instead of unet/, text_encoder/ and tokenizer/";

/// Each part with weights, and the stem of their files: of text-to-image and of class-conditional models.
const TEXT_PARTS: &[(&str, &str)] =
    &[("text_encoder", "model"), (SECOND, "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")];
const CLASS_PARTS: &[(&str, &str)] = &[("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")];
/// The folder of the encoder that SDXL alone has.
const SECOND: &str = "text_encoder_2";
const SECOND_CONFIG: &str = "text_encoder_2/config.json";
const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const ATTEMPTS: u64 = 4;

/// `org/name`, or `org/name/file.safetensors` for one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`
    pub model: String,
    /// A single-file checkpoint in it.
    pub file: Option<String>,
}

impl HubId {
    /// Reads an id; none if the text cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if !parts.iter().all(plain) || parts.len() < 2 || parts[1].ends_with(".safetensors") {
            return None;
        }
        let file = (parts.len() > 2).then(|| parts[2..].join("/"));
        if file.as_ref().is_some_and(|file| !file.ends_with(".safetensors")) {
            return None;
        }
        Some(HubId { model: parts[..2].join("/"), file })
    }
}

/// The folder or file of `id`: from the cache if it is there whole, otherwise fetched.
///
/// Cancelling `observer` ends the wait at once; what has arrived is kept, and the next call goes on behind it.
///
/// # Errors
/// [`Error::Hub`] if it is not there, may not be read, or cannot be reached, with what to do instead; [`Error::UnknownModel`] for a model of
/// another family, before its weights are fetched; [`Error::Cancelled`].
pub fn fetch(id: &HubId, options: &HubOptions, observer: &Observer) -> Result<PathBuf> {
    let revision = options.revision.clone().unwrap_or_else(|| "main".into());
    let cache = Cache::new(cache_folder(options, id)?);
    let repo = |revision: &str| Repo::with_revision(id.model.clone(), RepoType::Model, revision.to_owned());
    let cached = cached(&cache, repo(&revision), &revision, id, options.half);
    if let Some(Cached::AsAsked(path)) = cached {
        return Ok(path);
    }
    // What the cache has does where nothing better can be had, unless files of it are missing.
    let instead = |why: String| match &cached {
        Some(Cached::AsAsked(path) | Cached::OtherForm(path)) => Ok(path.clone()),
        Some(Cached::Without(path, file)) => {
            Err(failed(id, format!("{why}, and what the cache has in {} lacks {file}; {}", path.display(), remedy())))
        }
        None => Err(failed(id, format!("{why}, and it is not in the cache {}; {}", cache.path().display(), remedy()))),
    };
    let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.to_lowercase().as_str(), "" | "0" | "false" | "no" | "off"));
    if offline {
        return instead("HF_HUB_OFFLINE is set".into());
    }
    let (sender, receiver) = mpsc::channel();
    let work = Work { id: id.clone(), half: options.half, revision, cache: cache.clone(), endpoint: endpoint(options, id)?, sender };
    // A thread of its own, because the transfer itself cannot be interrupted.
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            let result = work.run();
            let _ = work.sender.send(News::End(result));
        })
        .map_err(|error| failed(id, error.to_string()))?;
    loop {
        if observer.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(News::At { done, text }) => observer.report(Progress { done, layer: &text }),
            Ok(News::End(Err(Failure::Unreachable(detail)))) => return instead(detail),
            Ok(News::End(Err(Failure::Other(error)))) => return Err(error),
            Ok(News::End(Ok(path))) => return Ok(path),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(failed(id, "the transfer ended unexpectedly; run it again")),
        }
    }
}

fn remedy() -> String {
    format!(
        "bring the model here yourself and name its folder with --model, or a single-file checkpoint (.safetensors); a folder has {BY_HAND}"
    )
}

fn failed(id: &HubId, detail: impl Into<String>) -> Error {
    Error::Hub { id: id.model.clone(), detail: detail.into() }
}

fn cache_folder(options: &HubOptions, id: &HubId) -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let default = || Some(std::env::home_dir()?.join(".cache").join("huggingface").join("hub"));
    let folder = options.cache.clone().or_else(|| named("HF_HUB_CACHE")).or_else(|| Some(named("HF_HOME")?.join("hub"))).or_else(default);
    folder.ok_or_else(|| failed(id, "there is no home directory for the cache; set HF_HOME to a folder"))
}

fn endpoint(options: &HubOptions, id: &HubId) -> Result<Option<String>> {
    let given = options.endpoint.clone().or_else(|| std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty()));
    let Some(url) = given else { return Ok(None) };
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    match host.is_some_and(|host| !host.trim_matches('/').is_empty() && url.bytes().all(|b| b.is_ascii_graphic())) {
        true => Ok(Some(url.trim_end_matches('/').to_owned())),
        false => Err(failed(id, format!("`{url}` is no URL of a server; one looks like https://hub.example.org"))),
    }
}

/// What the cache has of a model.
enum Cached {
    /// What would be fetched.
    AsAsked(PathBuf),
    /// Half precision where full precision was asked for.
    OtherForm(PathBuf),
    /// All but this file, and perhaps others: a transfer was interrupted, or files were deleted.
    Without(PathBuf, String),
}

fn cached(cache: &Cache, repo: Repo, revision: &str, id: &HubId, half: bool) -> Option<Cached> {
    let folder = cache.path().join(repo.folder_name());
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
    if !plain_path(&commit) {
        return None;
    }
    let snapshot = folder.join("snapshots").join(commit.trim());
    let mut files = Vec::new();
    list(&snapshot, "", 0, &mut files);
    let choice = choose(&files, id.file.as_deref(), half).ok()?;
    let path = snapshot.join(choice.root());
    Some(match missing(&snapshot, &choice.files) {
        Some(file) => Cached::Without(path, file),
        None if choice.as_asked => Cached::AsAsked(path),
        None => Cached::OtherForm(path),
    })
}

/// A file that those chosen in a snapshot name and that is not there: the scheduler or second encoder of a model index, a shard of weights.
fn missing(snapshot: &Path, chosen: &[String]) -> Option<String> {
    let json = |name: &str| match name.ends_with(".json") {
        true => serde_json::from_slice::<serde_json::Value>(&std::fs::read(snapshot.join(name)).ok()?).ok(),
        false => None,
    };
    let absent = |name: &String| !snapshot.join(name).is_file();
    let named = chosen.iter().flat_map(|name| match json(name) {
        // Written as [library, class]; [null, null] where there is none.
        Some(index) if name == INDEX => {
            let named = [("scheduler", SCHEDULER), (SECOND, SECOND_CONFIG)].into_iter().filter(|(part, _)| index[part][1].is_string());
            named.map(|(_, file)| file.to_owned()).collect()
        }
        Some(index) if name.contains(".safetensors.index.") => {
            let (part, _) = name.rsplit_once('/').unwrap_or(("", name));
            let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
            shards.filter_map(|shard| Some(format!("{part}/{}", shard.as_str()?))).collect()
        }
        _ => vec![],
    });
    named.filter(absent).min()
}

fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Follows links: snapshots consist of them.
        match entry.path().metadata() {
            Ok(meta) if meta.is_dir() && depth < 4 => list(&entry.path(), &format!("{prefix}{name}/"), depth + 1, files),
            Ok(meta) if meta.is_file() => files.push(format!("{prefix}{name}")),
            _ => {}
        }
    }
}

/// Whether a server's name for a file stays in its folder.
fn plain_path(name: &str) -> bool {
    !name.is_empty() && !name.contains('\\') && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The files to fetch.
#[derive(Debug, PartialEq)]
struct Choice {
    files: Vec<String>,
    /// A diffusers folder, not a single file.
    folder: bool,
    /// No half-precision file where full precision was asked for.
    as_asked: bool,
}

impl Choice {
    fn root(&self) -> &str {
        if self.folder { "" } else { &self.files[0] }
    }
}

/// Chooses from the names of all files; an error says what is missing.
fn choose(all: &[String], file: Option<&str>, half: bool) -> Result<Choice, String> {
    let has = |name: &str| all.iter().any(|one| one == name);
    let checkpoints: Vec<&str> =
        all.iter().map(String::as_str).filter(|name| name.ends_with(".safetensors") && !name.contains('/')).collect();
    let single = |name: &str| Choice { files: vec![name.to_owned()], folder: false, as_asked: true };
    if let Some(file) = file {
        return match has(file) {
            true => Ok(single(file)),
            false => Err(format!("there is no `{file}` in it; its checkpoints are: {}", some_of(&checkpoints))),
        };
    }
    if !has(INDEX) {
        return match checkpoints[..] {
            [] => Err(format!("it has neither {INDEX} nor a .safetensors file: no model that this program reads")),
            [one] => Ok(single(one)),
            _ => Err(format!("it has several checkpoints, add one to the id: {}", some_of(&checkpoints))),
        };
    }
    let mut choice = Choice { files: vec![INDEX.to_owned()], folder: true, as_asked: true };
    let classes = has("transformer/config.json") && !has("unet/config.json") && !has("text_encoder/config.json");
    for (part, stem) in if classes { CLASS_PARTS } else { TEXT_PARTS } {
        let config = format!("{part}/config.json");
        // In place of a decoder that a class-conditional model lacks, the one that ships serves.
        if (*part == SECOND || classes && *part == "vae") && !has(&config) {
            continue;
        }
        if !has(&config) {
            let refiner = *part == "text_encoder" && has(SECOND_CONFIG);
            return Err(format!(
                "there is no {config} in it{}",
                if refiner { ": SDXL's refiner is not known to this version" } else { "" }
            ));
        }
        let (weights, is_half) = weights(all, part, stem, half).ok_or_else(|| {
            let pickle =
                all.iter().find(|name| name.starts_with(&format!("{part}/")) && (name.ends_with(".bin") || name.ends_with(".ckpt")));
            match pickle {
                Some(name) => format!(
                    "its {part}/ has no safetensors weights, only the pickle `{name}`, which is never read: take another copy of this model"
                ),
                None => format!("there are no weights in its {part}/"),
            }
        })?;
        choice.as_asked &= half || !is_half;
        choice.files.push(config);
        choice.files.extend(weights);
    }
    choice.files.extend(has(SCHEDULER).then(|| SCHEDULER.to_owned()));
    for (folder, read) in [("tokenizer", !classes), ("tokenizer_2", !classes && has(SECOND_CONFIG))] {
        if !read {
            continue;
        }
        let path = |name: &str| format!("{folder}/{name}");
        // The second tokenizer of SDXL has the public vocabulary, which is known.
        if folder == "tokenizer" && !(has(&path("tokenizer.json")) || has(&path("vocab.json")) && has(&path("merges.txt"))) {
            return Err(format!("there is no {folder}/vocab.json with merges.txt in it"));
        }
        let small = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"].map(path);
        choice.files.extend(small.into_iter().filter(|name| has(name)));
    }
    // Small ones first, so that a wrong model shows soon.
    choice.files.sort_by_key(|name| name.ends_with(".safetensors"));
    Ok(choice)
}

fn some_of(names: &[&str]) -> String {
    match names {
        [] => "none".into(),
        _ if names.len() > 8 => format!("{}, and {} more", names[..8].join(", "), names.len() - 8),
        _ => names.join(", "),
    }
}

/// A part's weights, one file or an index with its shards, and whether they are the half-precision form.
fn weights(all: &[String], part: &str, stem: &str, half: bool) -> Option<(Vec<String>, bool)> {
    let form = |is_half: bool| -> Option<(Vec<String>, bool)> {
        let (one, index) = match is_half {
            false => (format!("{part}/{stem}.safetensors"), format!("{part}/{stem}.safetensors.index.json")),
            true => (format!("{part}/{stem}.fp16.safetensors"), format!("{part}/{stem}.safetensors.index.fp16.json")),
        };
        if all.contains(&one) {
            return Some((vec![one], is_half));
        }
        let start = format!("{part}/{stem}");
        let shards = all.iter().filter(|name| {
            name.starts_with(&start) && name.ends_with(".safetensors") && name.contains("-of-") && name.contains(".fp16") == is_half
        });
        let shards: Vec<String> = shards.cloned().collect();
        (all.contains(&index) && !shards.is_empty()).then(|| ([vec![index], shards].concat(), is_half))
    };
    if half { form(true).or_else(|| form(false)) } else { form(false).or_else(|| form(true)) }
}

enum News {
    At { done: f64, text: String },
    End(Result<PathBuf, Failure>),
}

enum Failure {
    /// The server cannot be reached.
    Unreachable(String),
    Other(Error),
}

/// One fetch, in its thread.
struct Work {
    id: HubId,
    half: bool,
    revision: String,
    cache: Cache,
    endpoint: Option<String>,
    sender: mpsc::Sender<News>,
}

impl Work {
    fn run(&self) -> Result<PathBuf, Failure> {
        let other = |detail: String| Failure::Other(failed(&self.id, detail));
        let mut builder =
            ApiBuilder::from_cache(self.cache.clone()).with_progress(false).with_user_agent("infgen", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()) {
            builder = builder.with_token(Some(token.trim().to_owned()));
        }
        let api = builder.build().map_err(|error| other(error.to_string()))?;
        let repo = |revision: &str| Repo::with_revision(self.id.model.clone(), RepoType::Model, revision.to_owned());
        let info = api.repo(repo(&self.revision)).info().map_err(|error| self.explain(error, None))?;
        if !plain_path(&info.sha) {
            return Err(other("the server's answer names no commit".into()));
        }
        let names: Vec<String> = info.siblings.into_iter().map(|one| one.rfilename).filter(|name| plain_path(name)).collect();
        let choice = choose(&names, self.id.file.as_deref(), self.half).map_err(other)?;
        let mut root = PathBuf::new();
        for (index, name) in choice.files.iter().enumerate() {
            let path = self.file(&api, repo(&info.sha), name, index, choice.files.len())?;
            if choice.folder && name == INDEX {
                root = path.parent().map(Path::to_owned).unwrap_or_default();
                Index::open(&root).map_err(Failure::Other)?;
            } else if !choice.folder {
                root = path;
            }
        }
        // Only now: a branch in the cache stands for a whole model.
        self.cache.repo(repo(&self.revision)).create_ref(&info.sha).map_err(|error| other(error.to_string()))?;
        Ok(root)
    }

    /// One file, from the cache or the server, over several attempts.
    fn file(&self, api: &Api, repo: Repo, name: &str, index: usize, files: usize) -> Result<PathBuf, Failure> {
        if let Some(path) = self.cache.repo(repo.clone()).get(name) {
            return Ok(path);
        }
        let folder = self.cache.path().join(repo.folder_name());
        let handle: ApiRepo = api.repo(repo);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let meter = Meter { sender: self.sender.clone(), name: name.to_owned(), index, files, done: 0, total: 0, shown: None };
            let error = match handle.download_with_progress(name, meter) {
                Ok(path) if self.is_whole(&path) => return Ok(path),
                Ok(path) => {
                    let blob = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                    let _ = std::fs::remove_file(&blob);
                    let _ = std::fs::remove_file(&path);
                    if attempt < ATTEMPTS {
                        continue;
                    }
                    return Err(Failure::Other(failed(&self.id, format!("{name}: arrives with another SHA-256 than the server states"))));
                }
                Err(error) => error,
            };
            // A leftover that is longer than, or as long as, the file: begin it again.
            if matches!(error, ApiError::InvalidResume) || status(&error) == Some(416) {
                for entry in std::fs::read_dir(folder.join("blobs")).into_iter().flatten().flatten() {
                    if entry.path().extension().is_some_and(|e| e == "part") {
                        let _ = std::fs::remove_file(entry.path());
                    }
                }
            }
            let lasting = matches!(status(&error), Some(400..=407 | 410..=415))
                || matches!(&error, ApiError::IoError(e) if e.kind() == std::io::ErrorKind::StorageFull);
            if lasting || attempt >= ATTEMPTS {
                return Err(self.explain(error, Some(name)));
            }
            log::info!("{name}: {error}; again");
            std::thread::sleep(Duration::from_millis(250 * attempt * attempt));
        }
    }

    /// Compares a large file with the SHA-256 that is its name in the cache.
    fn is_whole(&self, path: &Path) -> bool {
        let Ok(blob) = std::fs::canonicalize(path) else { return false };
        let stated = blob.file_name().and_then(|name| name.to_str()).unwrap_or("").to_owned();
        if stated.len() != 64 || !stated.bytes().all(|b| b.is_ascii_hexdigit()) {
            return true;
        }
        let _ = self.sender.send(News::At { done: 1.0, text: "checking".into() });
        let mut hash = Sha256::new();
        let hashed = std::fs::File::open(&blob).and_then(|mut file| std::io::copy(&mut file, &mut hash));
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        hashed.is_ok() && found == stated.to_lowercase()
    }

    fn explain(&self, error: ApiError, file: Option<&str>) -> Failure {
        let server = self.endpoint.as_deref().unwrap_or("the hub");
        let detail = match (status(&error), &error) {
            (Some(401 | 403), _) => format!(
                "{server} asks for permission: it may not exist, or be private or gated; accept its terms there and set HF_TOKEN to your token"
            ),
            (Some(404), _) => match file {
                Some(file) => format!("{server} has no {file} of it"),
                None => format!("{server} has no such model at revision `{}`; the id is org/name", self.revision),
            },
            (Some(429), _) => format!("{server} asks to wait (status 429); run it again later, it goes on where it stopped"),
            (Some(code), _) => format!("{server} answers with status {code}; run it again later, it goes on where it stopped"),
            (None, ApiError::RequestError(error)) => {
                let detail = format!("{server} cannot be reached ({})", one_line(&error.to_string()));
                return Failure::Unreachable(detail);
            }
            (None, error) => {
                let what = file.map_or(String::new(), |file| format!("{file}: "));
                format!("{what}{}; run it again, it goes on where it stopped", one_line(&error.to_string()))
            }
        };
        Failure::Other(failed(&self.id, detail))
    }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or("").to_owned()
}

/// The HTTP status that an error stands for.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match &**error {
            ureq::Error::Status(code, _) => Some(*code),
            ureq::Error::Transport(_) => None,
        },
        ApiError::TooManyRetries(inner) => status(inner),
        _ => None,
    }
}

/// Tells how far a file is.
struct Meter {
    sender: mpsc::Sender<News>,
    name: String,
    index: usize,
    files: usize,
    done: u64,
    total: u64,
    shown: Option<Instant>,
}

impl Meter {
    fn show(&mut self) {
        let text =
            format!("{} {} of {} (file {} of {})", self.name, human_bytes(self.done), human_bytes(self.total), self.index + 1, self.files);
        let _ = self.sender.send(News::At { done: self.done as f64 / self.total.max(1) as f64, text });
        self.shown = Some(Instant::now());
    }
}

impl hf_hub::api::Progress for Meter {
    fn init(&mut self, size: usize, _filename: &str) {
        (self.done, self.total) = (0, size as u64);
        self.show();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.shown.is_none_or(|shown| shown.elapsed() >= Duration::from_millis(100)) {
            self.show();
        }
    }

    fn finish(&mut self) {
        self.show();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = |model: &str, file: Option<&str>| Some(HubId { model: model.into(), file: file.map(Into::into) });
        assert_eq!(HubId::parse("org/name-v1.5"), id("org/name-v1.5", None));
        assert_eq!(HubId::parse("org/name/a/b.safetensors"), id("org/name", Some("a/b.safetensors")));
        for path in ["name", "/abs/path", "./a/b", "../a", "a/b/", "a/b/c", "a\\b", "dir/file.safetensors", "a/../b", "a b/c", ""] {
            assert_eq!(HubId::parse(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_needed_is_chosen_and_nothing_else() {
        let names = |list: &[&str]| -> Vec<String> { list.iter().map(|name| (*name).to_owned()).collect() };
        let mut all = names(&[
            "model_index.json",
            "v1-5.safetensors",
            "v1-5.ckpt",
            "README.md",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "scheduler/scheduler_config.json",
            "safety_checker/model.safetensors",
        ]);
        let whole = choose(&all, None, false).unwrap();
        assert!(whole.folder && !whole.as_asked, "the VAE is there in half precision only");
        assert!(whole.files.contains(&"unet/diffusion_pytorch_model.safetensors".into()));
        assert!(whole.files.contains(&"text_encoder/model-00002-of-00002.safetensors".into()));
        assert_eq!((whole.files.len(), whole.files[0].as_str()), (12, INDEX));
        let half = choose(&all, None, true).unwrap();
        assert!(half.as_asked && half.files.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".into()));
        assert!(!half.files.contains(&"unet/diffusion_pytorch_model.safetensors".into()));
        assert_eq!(choose(&all, Some("v1-5.safetensors"), true).unwrap().root(), "v1-5.safetensors");
        assert!(choose(&all, Some("v2.safetensors"), true).unwrap_err().contains("v1-5.safetensors"));
        all.retain(|name| !name.starts_with("vae/diff"));
        assert!(choose(&all, None, true).unwrap_err().contains("no weights in its vae/"));
        all.push("vae/diffusion_pytorch_model.bin".into());
        assert!(choose(&all, None, true).unwrap_err().contains("pickle"));
        assert_eq!(choose(&names(&["a.safetensors", "x/b.safetensors"]), None, true).unwrap().files, ["a.safetensors"]);
        assert!(choose(&names(&["a.safetensors", "b.safetensors"]), None, true).unwrap_err().contains("a.safetensors, b.safetensors"));
        assert!(choose(&names(&["a.ckpt"]), None, true).unwrap_err().contains("neither"));
        let part = |part: &str| ["config.json", "diffusion_pytorch_model.safetensors"].map(|file| format!("{part}/{file}"));
        let mut dit =
            [names(&["model_index.json", "scheduler/scheduler_config.json"]), part("transformer").into(), part("vae").into()].concat();
        assert_eq!(choose(&dit, None, true).unwrap().files.len(), 6);
        dit.extend(names(&["text_encoder/config.json", "text_encoder/model.safetensors"]));
        assert!(choose(&dit, None, true).unwrap_err().contains("unet/config.json"), "a transformer that is told texts");
    }

    #[test]
    fn of_sdxl_the_second_encoder_and_its_tokenizer_are_chosen_too() {
        let mut all: Vec<String> =
            [INDEX, SCHEDULER, "sd_xl_base_1.0.safetensors", "vae_1_0/config.json", "unet/model.onnx"].map(String::from).into();
        for (part, stem) in TEXT_PARTS {
            all.push(format!("{part}/config.json"));
            all.extend(["safetensors", "fp16.safetensors", "msgpack"].map(|ending| format!("{part}/{stem}.{ending}")));
        }
        for folder in ["tokenizer", "tokenizer_2"] {
            all.extend(
                ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"].map(|name| format!("{folder}/{name}")),
            );
        }
        // Two, a config and weights of four parts, two tokenizers of four files.
        let whole = choose(&all, None, false).unwrap();
        assert_eq!((whole.files.len(), whole.files[0].as_str(), whole.as_asked), (18, INDEX, true));
        assert!(!whole.files.iter().any(|name| name.contains(".fp16.")), "{:?}", whole.files);
        for name in ["text_encoder_2/model.safetensors", SECOND_CONFIG, "tokenizer_2/vocab.json", "tokenizer_2/special_tokens_map.json"] {
            assert!(whole.files.iter().any(|one| one == name), "{name}");
        }
        let half = choose(&all, None, true).unwrap();
        assert_eq!(half.files.iter().filter(|name| name.ends_with(".fp16.safetensors")).count(), 4);
        assert_eq!(half.files.len(), 18);
        // A sharded UNet, whole and in half precision.
        all.retain(|name| !name.starts_with("unet/diff"));
        let whole_shards = ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors", ".safetensors.index.json"];
        let half_shards = [".fp16-00001-of-00002.safetensors", ".fp16-00002-of-00002.safetensors", ".safetensors.index.fp16.json"];
        let unet = |endings: [&str; 3]| endings.map(|ending| format!("unet/diffusion_pytorch_model{ending}"));
        all.extend(unet(whole_shards).into_iter().chain(unet(half_shards)));
        for (half, shards, others) in [(false, whole_shards, half_shards), (true, half_shards, whole_shards)] {
            let files = choose(&all, None, half).unwrap().files;
            assert_eq!(files.len(), 20);
            assert!(
                unet(shards).iter().all(|name| files.contains(name)) && !unet(others).iter().any(|name| files.contains(name)),
                "{files:?}"
            );
        }
        let without = |part: &str| -> Vec<String> { all.iter().filter(|name| !name.starts_with(part)).cloned().collect() };
        assert_eq!(choose(&without("tokenizer_2/"), None, true).unwrap().files.len(), 16);
        assert!(choose(&without("text_encoder/"), None, true).unwrap_err().contains("refiner"));
        assert!(choose(&without("text_encoder_2/model"), None, true).unwrap_err().contains("no weights in its text_encoder_2/"));
    }

    #[test]
    fn a_second_encoder_that_the_index_names_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let chosen = [INDEX.to_owned()];
        let missed = |index: &str| {
            std::fs::write(folder.path().join(INDEX), index).unwrap();
            missing(folder.path(), &chosen)
        };
        assert_eq!(missed(r#"{"text_encoder_2": [null, null]}"#), None);
        assert_eq!(missed(r#"{"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}"#).as_deref(), Some(SECOND_CONFIG));
    }

    #[test]
    fn names_that_leave_the_folder_are_none() {
        for name in ["../x", "/x", "a/../../x", "a\\..\\x", "", "./x"] {
            assert!(!plain_path(name) || name == "./x", "{name}");
        }
        assert!(plain_path("unet/config.json"));
    }
}
