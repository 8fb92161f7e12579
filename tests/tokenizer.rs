//! The CLIP tokenizer against Hugging Face's (`tools/goldens/tokenizer.py`), and its files.

mod common;

use std::path::Path;

use infgen::tokenizer::ClipTokenizer;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Case {
    pad: String,
    text: String,
    ids: Vec<u32>,
    padded: Vec<u32>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(common::data("tokenizer/cases.json")).unwrap()).unwrap()
}

#[test]
fn ids_are_those_of_hugging_face() {
    let plain = ClipTokenizer::embedded();
    let exclamation = ClipTokenizer::embedded().with_pad("!").unwrap();
    let cases = cases();
    assert!(cases.len() > 60);
    for case in &cases {
        let tokenizer = if case.pad == "!" { &exclamation } else { &plain };
        assert_eq!(tokenizer.ids(&case.text), case.ids, "{:?}, padded with {}", case.text, case.pad);
        let tokens = tokenizer.encode(&case.text);
        assert_eq!(tokens.ids, case.padded, "{:?}, padded with {}", case.text, case.pad);
        assert_eq!(tokens.cut.is_some(), case.ids.len() > 75, "{:?}", case.text);
        assert_eq!(tokens.weights, None);
    }
}

#[test]
fn what_is_cut_is_named() {
    let prompt = format!("{}and a café 🙂 at the end", "very ".repeat(75));
    assert_eq!(ClipTokenizer::embedded().encode(&prompt).cut.as_deref(), Some("and a café 🙂 at the end"));
    let short = ClipTokenizer::embedded().with_max_length(6);
    let tokens = short.encode("one two three four five");
    assert_eq!((tokens.ids.len(), tokens.cut.as_deref()), (6, Some("five")));
}

#[test]
fn emphasis_changes_weights_and_not_ids_and_is_off_unless_asked_for() {
    let tokenizer = ClipTokenizer::embedded();
    let plain = tokenizer.encode("a red cat on a mat");
    let strong = tokenizer.encode_with_emphasis("a (red:1.5) cat [on a mat]").unwrap();
    assert_eq!(plain.ids, strong.ids);
    let weights = strong.weights.unwrap();
    assert_eq!((weights.len(), &weights[..4]), (77, &[1.0, 1.0, 1.5, 1.0][..]));
    assert!(weights[4..7].iter().all(|w| (w - 1.0 / 1.1).abs() < 1e-6) && weights[7..].iter().all(|&w| w == 1.0));
    assert_eq!(tokenizer.encode_with_emphasis("no brackets").unwrap().weights, None);
    assert_ne!(tokenizer.encode("a (red:1.5) cat").ids, tokenizer.encode("a red cat").ids);
    assert!(tokenizer.encode_with_emphasis("a (red cat").is_err());
}

/// A folder with a vocabulary of the 512 byte symbols, a few merges and the special tokens.
fn small(folder: &Path) -> (serde_json::Map<String, serde_json::Value>, Vec<&'static str>) {
    let mut vocab = serde_json::Map::new();
    for (id, token) in
        ["a", "b", "c", "d</w>", "a</w>", "b</w>", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>", "!"].iter().enumerate()
    {
        vocab.insert(token.to_string(), id.into());
    }
    std::fs::create_dir_all(folder).unwrap();
    (vocab, vec!["a b", "ab c</w>"])
}

fn write(folder: &Path, name: &str, content: impl ToString) {
    std::fs::write(folder.join(name), content.to_string()).unwrap();
}

#[test]
fn folders_are_read_in_both_forms_with_their_special_tokens() {
    let scratch = tempfile::tempdir().unwrap();
    let (vocab, merges) = small(scratch.path());
    let old = scratch.path().join("old");
    std::fs::create_dir(&old).unwrap();
    write(&old, "vocab.json", json!(vocab));
    write(&old, "merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n")));
    write(&old, "tokenizer_config.json", json!({ "model_max_length": 8, "pad_token": "<|endoftext|>" }));
    write(&old, "special_tokens_map.json", json!({ "pad_token": "!", "eos_token": { "content": "<|endoftext|>", "normalized": true } }));
    let new = scratch.path().join("new");
    std::fs::create_dir(&new).unwrap();
    let pairs: Vec<Vec<&str>> = merges.iter().map(|m| m.split(' ').collect()).collect();
    let model = json!({ "type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": pairs });
    write(&new, "tokenizer.json", json!({ "model": model, "added_tokens": [{ "id": 11, "content": "!", "normalized": false }] }));
    write(&new, "tokenizer_config.json", json!({ "model_max_length": 8, "pad_token": "!" }));
    for folder in [&old, &new] {
        let tokenizer = ClipTokenizer::open(folder).unwrap();
        // Unknown symbols are <|endoftext|>; `!` is the padding token wherever it stands.
        assert_eq!(tokenizer.encode("ABC a! x").ids, [9, 8, 4, 11, 10, 10, 11, 11], "{}", folder.display());
        assert_eq!(tokenizer.max_id(), 11);
    }
    // Tokens added later, in each of the files that may say so.
    for (name, content) in [
        ("added_tokens.json", json!({ "<cat>": 12 })),
        ("tokenizer_config.json", json!({ "model_max_length": 8, "added_tokens_decoder": { "12": { "content": "<cat>" } } })),
        ("tokenizer.json", json!({ "added_tokens": [{ "id": 12, "content": "<cat>", "normalized": false }] })),
    ] {
        let folder = scratch.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        for file in ["vocab.json", "merges.txt", "special_tokens_map.json"] {
            std::fs::copy(old.join(file), folder.join(file)).unwrap();
        }
        write(&folder, name, content);
        let tokenizer = ClipTokenizer::open(&folder).unwrap();
        assert_eq!((tokenizer.ids("a <cat> b"), tokenizer.max_id()), (vec![4, 12, 5], 12), "{name}");
    }
    assert_eq!(ClipTokenizer::open(&old).unwrap().ids("a<|ENDOFTEXT|>"), [4, 10]);
    assert_ne!(ClipTokenizer::open(&new).unwrap().ids("a<|ENDOFTEXT|>"), [4, 10]);
}

#[test]
fn broken_folders_are_errors_with_their_file() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let refused = |words: &[&str]| {
        let error = ClipTokenizer::open(folder).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error} lacks one of {words:?}");
    };
    refused(&["vocab.json", "tokenizer.json"]);
    write(folder, "tokenizer.json", json!({ "model": { "type": "Unigram" } }));
    refused(&["tokenizer.json", "another kind"]);
    write(folder, "tokenizer.json", "{");
    refused(&["tokenizer.json"]);
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let (vocab, _) = small(folder);
    write(folder, "vocab.json", json!(vocab));
    refused(&["merges.txt", "missing"]);
    write(folder, "merges.txt", "a b\nc d</w>\n");
    refused(&["cd</w>", "not in the vocabulary"]);
    write(folder, "merges.txt", "a b\nabc\n");
    refused(&["pairs"]);
    write(folder, "merges.txt", "a b\n");
    write(folder, "tokenizer_config.json", json!({ "pad_token": "<pad>" }));
    refused(&["<pad>"]);
    write(folder, "vocab.json", json!({ "a": -1 }));
    refused(&["vocab.json"]);
}
