//! From a text to words: tokens that stand for themselves, normalisation, CLIP's pattern.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::{Added, BOS, EOS};

pub(super) enum Piece<'a> {
    Token(u32),
    Text(&'a str),
}

/// Calls `each` with the tokens found in `text`, the longest at the leftmost place, and with the texts between them.
pub(super) fn around<'a>(text: &'a str, tokens: &[&Added], each: &mut dyn FnMut(Piece<'a>)) {
    let mut start = 0;
    let mut at = 0;
    while at < text.len() {
        let here = tokens.iter().filter(|t| !t.content.is_empty() && text[at..].starts_with(&t.content)).max_by_key(|t| t.content.len());
        match here {
            Some(token) => {
                if start < at {
                    each(Piece::Text(&text[start..at]));
                }
                each(Piece::Token(token.id));
                at += token.content.len();
                start = at;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if start < text.len() {
        each(Piece::Text(&text[start..]));
    }
}

/// NFC, white space to single spaces, lower case character by character.
pub(super) fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_space = false;
    for c in text.nfc() {
        if c.is_whitespace() {
            if !in_space {
                out.push(' ');
            }
        } else {
            out.extend(c.to_lowercase());
        }
        in_space = c.is_whitespace();
    }
    out
}

#[derive(PartialEq, Clone, Copy)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_whitespace() {
        return Class::Space;
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Letter => Class::Letter,
        GeneralCategoryGroup::Number => Class::Number,
        _ => Class::Other,
    }
}

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// CLIP's pattern: a special token's text, a contraction, a run of letters, one number, or a run of anything else but
/// spaces. The text of a special token that was not taken for the token (`<|ENDOFTEXT|>`) falls apart at its brackets.
pub(super) fn words<'a>(text: &'a str, each: &mut dyn FnMut(&'a str)) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(special) = [BOS, EOS].into_iter().find(|s| rest.starts_with(s)) {
            let (inner, end) = (2..special.len() - 2, special.len());
            each(&rest[..2]);
            each(&rest[inner.clone()]);
            each(&rest[inner.end..end]);
            rest = &rest[end..];
            continue;
        }
        let length = match CONTRACTIONS.into_iter().find(|c| rest.starts_with(c)) {
            Some(contraction) => contraction.len(),
            None => match class(first) {
                Class::Space => {
                    rest = &rest[first.len_utf8()..];
                    continue;
                }
                Class::Number => first.len_utf8(),
                kind => rest.char_indices().find(|&(_, c)| class(c) != kind).map_or(rest.len(), |(at, _)| at),
            },
        };
        each(&rest[..length]);
        rest = &rest[length..];
    }
}
