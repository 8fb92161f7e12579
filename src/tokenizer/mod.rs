//! CLIP's tokenizer: byte-pair encoding of lower-cased text, 77 ids a prompt. No GPU.
//!
//! Source: openai/CLIP `clip/simple_tokenizer.py` for the vocabulary and the pattern; Hugging Face's `CLIPTokenizer` (transformers 5,
//! `models/clip/tokenization_clip.py`) for everything around it, which is what users of diffusers run: NFC, runs of white space
//! become one space, each character is lower-cased by itself; neither ftfy nor HTML unescaping.

mod bpe;
mod emphasis;
mod files;
mod split;

use std::path::Path;

use bpe::Bpe;

use crate::error::{Error, Result};

/// Turns prompts into token ids.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    bpe: Bpe,
    /// Tokens that are found in the text before anything is split, and their ids.
    added: Vec<Added>,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
}

/// A token that stands for itself wherever it appears.
#[derive(Debug, Clone, PartialEq)]
struct Added {
    content: String,
    id: u32,
    /// Looked for in the normalised text instead of in the text as given.
    normalized: bool,
}

/// A prompt as a text encoder takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    /// Begin, the prompt, end, padding: [`ClipTokenizer::max_length`] of them.
    pub ids: Vec<u32>,
    /// The weight of each id, where [`ClipTokenizer::encode_with_emphasis`] found one that is not 1.
    pub weights: Option<Vec<f32>>,
    /// The end of the prompt that did not fit, as text; a model never sees it.
    pub cut: Option<String>,
}

/// What ids are called in `vocab.json` of every CLIP.
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// Most ids a prompt is given: no text encoder of this family has more positions.
const MAX_LENGTH: usize = 4096;

impl ClipTokenizer {
    /// The public vocabulary of OpenAI's CLIP (49408 tokens; MIT licence, Copyright (c) 2021 OpenAI), which Stable Diffusion 1.x and 2.x
    /// share and single-file checkpoints do not carry. Padding is `<|endoftext|>` as in 1.x; see [`ClipTokenizer::with_pad`].
    pub fn embedded() -> ClipTokenizer {
        let bpe = Bpe::embedded();
        let (bos, eos) = (bpe.id(BOS).expect("in the vocabulary"), bpe.id(EOS).expect("in the vocabulary"));
        let added = [(BOS, bos), (EOS, eos)].map(|(content, id)| Added { content: content.into(), id, normalized: false }).into();
        ClipTokenizer { bpe, added, bos, eos, pad: eos, max_length: 77 }
    }

    /// The tokenizer in a model's `tokenizer/` folder: `vocab.json` with `merges.txt`, or `tokenizer.json`; beside them
    /// `tokenizer_config.json` and `special_tokens_map.json`, where they are there.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for files that contradict themselves or hold another kind of tokenizer.
    pub fn open(folder: impl AsRef<Path>) -> Result<ClipTokenizer> {
        files::open(folder.as_ref())
    }

    /// The same with another padding token: SD 2.x pads with `!`, which then is id 0 wherever it appears in a prompt, as with
    /// Hugging Face's tokenizer.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the vocabulary has no such token.
    pub fn with_pad(mut self, token: &str) -> Result<ClipTokenizer> {
        let unknown = || Error::Invalid { what: "padding token", detail: format!("`{token}` is not in the vocabulary") };
        self.pad = self.bpe.id(token).ok_or_else(unknown)?;
        self.add(token, self.pad, false);
        Ok(self)
    }

    /// The same with another number of ids a prompt: that of the text encoder's positions.
    pub fn with_max_length(mut self, max_length: usize) -> ClipTokenizer {
        self.max_length = max_length.clamp(2, MAX_LENGTH);
        self
    }

    fn add(&mut self, content: &str, id: u32, normalized: bool) {
        // What is looked for in normalised text is normalised itself, as Hugging Face's tokenizers do.
        let content = if normalized { split::normalise(content) } else { content.to_owned() };
        match self.added.iter_mut().find(|a| a.content == content) {
            Some(known) => known.normalized = normalized,
            None => self.added.push(Added { content, id, normalized }),
        }
    }

    /// Number of ids of every prompt.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Largest id, for a check against the rows of a token embedding.
    pub fn max_id(&self) -> u32 {
        let added = self.added.iter().map(|added| added.id).max().unwrap_or(0);
        self.bpe.max_id().max(self.bos).max(self.eos).max(self.pad).max(added)
    }

    /// Where the text of an encoded prompt ends: the first end token, which pads may follow.
    pub fn end(&self, ids: &[u32]) -> usize {
        ids.iter().position(|id| *id == self.eos).unwrap_or(ids.len().saturating_sub(1))
    }

    /// Ids of the text alone, without begin, end or padding.
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let raw: Vec<&Added> = self.added.iter().filter(|a| !a.normalized).collect();
        let normal: Vec<&Added> = self.added.iter().filter(|a| a.normalized).collect();
        split::around(text, &raw, &mut |piece| match piece {
            split::Piece::Token(id) => ids.push(id),
            split::Piece::Text(text) => {
                let text = split::normalise(text);
                split::around(&text, &normal, &mut |piece| match piece {
                    split::Piece::Token(id) => ids.push(id),
                    split::Piece::Text(text) => split::words(text, &mut |word| self.bpe.encode(word, &mut ids)),
                });
            }
        });
        ids
    }

    /// A prompt, cut or padded to [`ClipTokenizer::max_length`] ids.
    pub fn encode(&self, prompt: &str) -> Tokens {
        self.finish(self.ids(prompt), None)
    }

    /// A prompt with emphasis: `(word)` weighs 1.1, `(word:1.3)` 1.3, `[word]` 1 / 1.1, nested ones multiply, a backslash makes
    /// a bracket an ordinary character.
    ///
    /// # Errors
    /// [`Error::Invalid`] for brackets that do not match and for weights that are no numbers or beyond +-10.
    pub fn encode_with_emphasis(&self, prompt: &str) -> Result<Tokens> {
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for (text, weight) in emphasis::parse(prompt)? {
            ids.extend(self.ids(&text));
            weights.resize(ids.len(), weight);
        }
        Ok(self.finish(ids, Some(weights)))
    }

    fn finish(&self, mut ids: Vec<u32>, weights: Option<Vec<f32>>) -> Tokens {
        let room = self.max_length - 2;
        let cut = (ids.len() > room).then(|| self.decode(&ids[room..]));
        ids.truncate(room);
        let used = ids.len();
        ids.insert(0, self.bos);
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        let weights = weights.map(|weights| {
            let inner = weights.into_iter().take(used);
            let mut all: Vec<f32> = std::iter::once(1.0).chain(inner).collect();
            all.resize(self.max_length, 1.0);
            all
        });
        Tokens { ids, weights: weights.filter(|w| w.iter().any(|&w| w != 1.0)), cut }
    }

    /// Text of ids; ends of words become spaces.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.bpe.decode(ids)
    }
}
