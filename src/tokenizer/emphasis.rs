//! Emphasis in prompts, in the syntax that AUTOMATIC1111's web UI made common.

use crate::error::{Error, Result};

const ROUND: f32 = 1.1;
const MAX_WEIGHT: f32 = 10.0;

fn invalid(detail: String) -> Error {
    Error::Invalid { what: "prompt", detail }
}

/// Texts with their weights, in order; neighbours of one weight are one text.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn parse(prompt: &str) -> Result<Vec<(String, f32)>> {
    let mut parts: Vec<(String, f32)> = Vec::new();
    // Open brackets: which, and the first part inside.
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut text = String::new();
    let mut chars = prompt.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().unwrap_or('\\')),
            '(' | '[' => {
                parts.push((std::mem::take(&mut text), 1.0));
                open.push((c, parts.len()));
            }
            ')' | ']' => {
                let wanted = if c == ')' { '(' } else { '[' };
                let Some((_, first)) = open.pop_if(|(bracket, _)| *bracket == wanted) else {
                    return Err(invalid(format!("`{c}` without its `{wanted}`; write `\\{c}` for the character itself")));
                };
                let mut weight = if c == ')' { ROUND } else { 1.0 / ROUND };
                if let Some((before, number)) = text.rsplit_once(':').filter(|(_, n)| c == ')' && !n.trim().is_empty())
                    && number.trim().starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))
                {
                    weight = match number.trim().parse::<f32>() {
                        Ok(value) if value.abs() <= MAX_WEIGHT => value,
                        _ => return Err(invalid(format!("`{number}` is no weight; a number from -10 to 10 is needed"))),
                    };
                    text = before.to_owned();
                }
                parts.push((std::mem::take(&mut text), 1.0));
                parts[first..].iter_mut().for_each(|(_, w)| *w *= weight);
            }
            c => text.push(c),
        }
    }
    if let Some((bracket, _)) = open.pop() {
        return Err(invalid(format!("`{bracket}` is never closed; write `\\{bracket}` for the character itself")));
    }
    parts.push((text, 1.0));
    let mut merged: Vec<(String, f32)> = Vec::new();
    for (text, weight) in parts.into_iter().filter(|(text, _)| !text.is_empty()) {
        match merged.last_mut() {
            Some((last, w)) if *w == weight => last.push_str(&text),
            _ => merged.push((text, weight)),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(prompt: &str) -> Vec<(String, f32)> {
        parse(prompt).unwrap().into_iter().map(|(t, w)| (t, (w * 1e4).round() / 1e4)).collect()
    }

    #[test]
    fn brackets_weigh_nest_and_escape() {
        let part = |t: &str, w: f32| (t.to_owned(), w);
        assert_eq!(parsed("a cat"), [part("a cat", 1.0)]);
        assert_eq!(parsed("a (red:1.3) cat"), [part("a ", 1.0), part("red", 1.3), part(" cat", 1.0)]);
        assert_eq!(parsed("(a [b] (c:2))"), [part("a ", 1.1), part("b", 1.0), part(" ", 1.1), part("c", 2.2)]);
        assert_eq!(parsed("[b]"), [part("b", 0.9091)]);
        assert_eq!(parsed(r"\(a\) \\"), [part(r"(a) \", 1.0)]);
        assert_eq!(parsed("(at 12: noon)"), [part("at 12: noon", 1.1)]);
        assert_eq!(parsed(""), []);
        for bad in ["(a", "a)", "(a]", "[a)", "(a:1e9)", "(a:99)", "(a:-11)"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
