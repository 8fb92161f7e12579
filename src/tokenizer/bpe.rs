//! Byte-pair encoding: symbols of a word are merged, the pair of lowest rank first, until no pair is in the table.

use std::collections::HashMap;

/// Appended to the last symbol of a word.
pub(super) const END_OF_WORD: &str = "</w>";

/// The vocabulary and the merges.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    ids: HashMap<String, u32>,
    tokens: HashMap<u32, String>,
    /// Pair of ids to its rank and the id of the result.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Symbol of each byte: GPT-2's table.
    bytes: [char; 256],
    /// Stands for symbols that the vocabulary lacks.
    unknown: u32,
}

/// GPT-2's byte table: printable bytes stand for themselves, the other 68 for U+0100 on (openai/CLIP `bytes_to_unicode`).
/// Returned in id order, too: printable ones first.
fn byte_symbols() -> ([char; 256], Vec<char>) {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut table = ['\0'; 256];
    let mut order: Vec<char> = Vec::with_capacity(256);
    for b in (0..=255).filter(|&b| printable(b)) {
        table[b as usize] = b as char;
        order.push(b as char);
    }
    for (next, b) in (256..).zip((0..=255).filter(|&b| !printable(b))) {
        let symbol = char::from_u32(next).expect("below the surrogates");
        table[b as usize] = symbol;
        order.push(symbol);
    }
    (table, order)
}

impl Bpe {
    /// From a vocabulary and its merges in the order of their rank.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn new(ids: HashMap<String, u32>, merges: &[(String, String)], unknown: u32) -> Result<Bpe, String> {
        let mut table = HashMap::with_capacity(merges.len());
        for (rank, (left, right)) in merges.iter().enumerate() {
            let id = |token: &str| {
                ids.get(token).copied().ok_or_else(|| format!("merge {rank} needs `{token}`, which is not in the vocabulary"))
            };
            let merged = id(&format!("{left}{right}"))?;
            table.entry((id(left)?, id(right)?)).or_insert((rank as u32, merged));
        }
        let tokens = ids.iter().map(|(token, &id)| (id, token.clone())).collect();
        Ok(Bpe { ids, tokens, merges: table, bytes: byte_symbols().0, unknown })
    }

    /// OpenAI's vocabulary; `clip_merges.bin` is made and described by `tools/goldens/clip_vocabulary.py`.
    pub fn embedded() -> Bpe {
        let pairs = include_bytes!("clip_merges.bin").chunks_exact(4);
        let (bytes, order) = byte_symbols();
        let mut all: Vec<String> = order.iter().map(char::to_string).collect();
        all.extend(order.iter().map(|symbol| format!("{symbol}{END_OF_WORD}")));
        let mut merges = HashMap::with_capacity(pairs.len());
        for (rank, pair) in pairs.enumerate() {
            let (left, right) = (u16::from_le_bytes([pair[0], pair[1]]), u16::from_le_bytes([pair[2], pair[3]]));
            merges.insert((left.into(), right.into()), (rank as u32, all.len() as u32));
            all.push(format!("{}{}", all[left as usize], all[right as usize]));
        }
        all.extend([super::BOS.to_owned(), super::EOS.to_owned()]);
        let unknown = all.len() as u32 - 1;
        let ids = all.iter().cloned().zip(0..).collect();
        Bpe { ids, tokens: (0..).zip(all).collect(), merges, bytes, unknown }
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn max_id(&self) -> u32 {
        self.ids.values().copied().max().unwrap_or(0).max(self.unknown)
    }

    /// Appends the ids of one word.
    pub fn encode(&self, word: &str, out: &mut Vec<u32>) {
        let last = word.len().saturating_sub(1);
        let symbol = |(i, byte): (usize, u8)| {
            let mut text = self.bytes[byte as usize].to_string();
            if i == last {
                text.push_str(END_OF_WORD);
            }
            self.id(&text).unwrap_or(self.unknown)
        };
        let mut parts: Vec<u32> = word.bytes().enumerate().map(symbol).collect();
        loop {
            let ranks =
                parts.windows(2).filter_map(|pair| self.merges.get(&(pair[0], pair[1])).map(|&(rank, id)| (rank, id, pair[0], pair[1])));
            let Some((_, merged, left, right)) = ranks.min() else { break };
            // All its occurrences at once, left to right.
            let mut kept = Vec::with_capacity(parts.len());
            let mut at = 0;
            while at < parts.len() {
                let here = parts[at] == left && parts.get(at + 1) == Some(&right);
                kept.push(if here { merged } else { parts[at] });
                at += 1 + here as usize;
            }
            parts = kept;
        }
        out.extend(parts);
    }

    pub fn decode(&self, ids: &[u32]) -> String {
        let text: String = ids.iter().filter_map(|id| self.tokens.get(id)).map(|token| token.replace(END_OF_WORD, " ")).collect();
        let byte = |c: char| self.bytes.iter().position(|&symbol| symbol == c).map(|b| b as u8);
        let bytes: Vec<u8> = text.chars().map(|c| byte(c).unwrap_or(b' ')).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}
