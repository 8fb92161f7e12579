//! The files of a `tokenizer/` folder.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::bpe::{Bpe, END_OF_WORD};
use super::{BOS, ClipTokenizer, EOS};
use crate::error::{Error, Result};
use crate::weights::source::Source;

const MAX_BYTES: u64 = 1 << 26;
const FORMAT: &str = "CLIP tokenizer";

fn text(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    Source::open(path)?.read_text(FORMAT, MAX_BYTES).map(Some)
}

fn json(path: &Path) -> Result<Option<Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| malformed(path, e.to_string()))
}

fn malformed(path: &Path, detail: impl Into<String>) -> Error {
    Error::Malformed { path: path.to_owned(), format: FORMAT, detail: detail.into() }
}

/// A special token as the files write it: a string, or an object with `content`.
fn special(value: &Value) -> Option<(&str, bool)> {
    match value {
        Value::String(content) => Some((content, false)),
        Value::Object(fields) => {
            Some((fields.get("content")?.as_str()?, fields.get("normalized").and_then(Value::as_bool).unwrap_or(false)))
        }
        _ => None,
    }
}

pub(super) fn open(folder: &Path) -> Result<ClipTokenizer> {
    let (vocab_path, merges_path, whole_path) = (folder.join("vocab.json"), folder.join("merges.txt"), folder.join("tokenizer.json"));
    let whole = if vocab_path.is_file() && merges_path.is_file() { None } else { json(&whole_path)? };
    let (ids, merges, from) = match &whole {
        Some(whole) => {
            let model = &whole["model"];
            if model["type"].as_str().is_some_and(|t| t != "BPE") || model["end_of_word_suffix"].as_str() != Some(END_OF_WORD) {
                return Err(malformed(&whole_path, "this is another kind of tokenizer; CLIP's is a BPE with `</w>` at the end of words"));
            }
            (vocabulary(&model["vocab"]), merges_of(&model["merges"]), &whole_path)
        }
        None => {
            let Some(vocab) = json(&vocab_path)? else {
                let detail = "no vocab.json with merges.txt, and no tokenizer.json, in this folder";
                return Err(malformed(folder, detail));
            };
            let Some(merges) = text(&merges_path)? else {
                return Err(malformed(&merges_path, "it is missing; it belongs to vocab.json beside it"));
            };
            (vocabulary(&vocab), merge_lines(&merges), &vocab_path)
        }
    };
    let ids = ids.ok_or_else(|| malformed(from, "the vocabulary is not a map from tokens to ids below 2^31"))?;
    let merges = merges.ok_or_else(|| malformed(from, "the merges are not pairs of tokens"))?;

    // The map overrides the config, as in transformers.
    let config = json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let map = json(&folder.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
    let decoder = config["added_tokens_decoder"].as_object();
    let token = |name: &str, default: &str| -> (String, bool) {
        let found = special(&map[name]).or_else(|| special(&config[name]));
        let (content, normalized) = found.unwrap_or((default, false));
        let listed = decoder.and_then(|all| all.values().filter_map(special).find(|(c, _)| *c == content));
        (content.to_owned(), normalized || listed.is_some_and(|(_, normalized)| normalized))
    };
    let (bos, eos, unk) = (token("bos_token", BOS), token("eos_token", EOS), token("unk_token", EOS));
    let pad = token("pad_token", EOS);
    let id = |token: &str| ids.get(token).copied().ok_or_else(|| malformed(from, format!("`{token}` is not in the vocabulary")));
    let (bos_id, eos_id, pad_id, unknown) = (id(&bos.0)?, id(&eos.0)?, id(&pad.0)?, id(&unk.0)?);
    let max_length = config["model_max_length"].as_f64().filter(|n| (2.0..=super::MAX_LENGTH as f64).contains(n));
    let added = added_tokens(folder, whole.as_ref(), &config)?;
    let bpe = Bpe::new(ids, &merges, unknown).map_err(|detail| malformed(from, detail))?;
    let mut tokenizer = ClipTokenizer {
        bpe,
        added: Vec::new(),
        bos: bos_id,
        eos: eos_id,
        pad: pad_id,
        // A folder may say "no limit" by a huge number; the text encoder's positions then decide.
        max_length: max_length.map_or(77, |n| n as usize),
    };
    for (content, id, normalized) in &added {
        tokenizer.add(content, *id, *normalized);
    }
    for ((content, normalized), id) in [(bos, bos_id), (eos, eos_id), (unk, unknown), (pad, pad_id)] {
        if !tokenizer.added.iter().any(|a| a.content == content) || normalized {
            tokenizer.add(&content, id, normalized);
        }
    }
    Ok(tokenizer)
}

/// Tokens that a folder adds to the vocabulary, with their ids and whether they are looked for in the normalized text: `tokenizer.json` (beside
/// `vocab.json` too), else `tokenizer_config.json`, else `added_tokens.json`.
fn added_tokens(folder: &Path, whole: Option<&Value>, config: &Value) -> Result<Vec<(String, u32, bool)>> {
    let id = |value: Option<u64>| value.filter(|&id| id < 1 << 31).map(|id| id as u32);
    let beside = if whole.is_none() { json(&folder.join("tokenizer.json"))? } else { None };
    let mut all: Vec<(String, u32, bool)> = Vec::new();
    for value in whole.or(beside.as_ref()).and_then(|whole| whole["added_tokens"].as_array()).into_iter().flatten() {
        if let (Some((content, normalized)), Some(id)) = (special(value), id(value["id"].as_u64())) {
            all.push((content.to_owned(), id, normalized));
        }
    }
    for (key, value) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        if let (Some((content, normalized)), Some(id)) = (special(value), id(key.parse().ok())) {
            all.push((content.to_owned(), id, normalized));
        }
    }
    for (content, value) in json(&folder.join("added_tokens.json"))?.as_ref().and_then(Value::as_object).into_iter().flatten() {
        if let Some(id) = id(value.as_u64()) {
            all.push((content.clone(), id, true));
        }
    }
    // Where several files name a token the first of them counts.
    let mut seen = std::collections::HashSet::new();
    all.retain(|(content, ..)| seen.insert(content.clone()));
    Ok(all)
}

fn vocabulary(value: &Value) -> Option<HashMap<String, u32>> {
    let id = |v: &Value| v.as_u64().filter(|&id| id < 1 << 31).map(|id| id as u32);
    value.as_object()?.iter().map(|(token, v)| Some((token.clone(), id(v)?))).collect()
}

fn merges_of(value: &Value) -> Option<Vec<(String, String)>> {
    let pair = |v: &Value| match v {
        Value::String(line) => line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(both) if both.len() == 2 => Some((both[0].as_str()?.to_owned(), both[1].as_str()?.to_owned())),
        _ => None,
    };
    value.as_array()?.iter().map(pair).collect()
}

/// `merges.txt`: a pair a line, after an optional `#version` line.
fn merge_lines(text: &str) -> Option<Vec<(String, String)>> {
    let lines = text.lines().enumerate().filter(|(n, line)| !(line.is_empty() || *n == 0 && line.starts_with("#version")));
    lines.map(|(_, line)| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()))).collect()
}
