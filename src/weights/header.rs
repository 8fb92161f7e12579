//! The header of one safetensors file: `u64` length, JSON, data. Checked before anything is allocated for it.
//!
//! Format: <https://huggingface.co/docs/safetensors>. The `safetensors` crate has the types; offsets and shapes are checked
//! here in 64 bits, since its check counts in `usize`: in a browser that refuses tensors of 512 MiB and files of 4 GiB.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use safetensors::Dtype;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::source::{Content, Source};
use crate::error::{Error, Result};

const FORMAT: &str = "safetensors file";
/// The format's own limit on the JSON.
const MAX_HEADER_BYTES: u64 = 100_000_000;

pub(super) struct Header {
    pub tensors: Vec<(String, TensorInfo)>,
    pub metadata: BTreeMap<String, String>,
    /// Position in the file of the byte that data offsets count from.
    pub data_start: u64,
}

/// Waits for the bytes that [`read`] will look at; of a header that it will refuse, none.
pub(super) async fn prefetch(source: &mut Source) -> Result<()> {
    let head = source.read_up_to(0, 8)?;
    let length = <[u8; 8]>::try_from(head).map_or(0, u64::from_le_bytes);
    if source.len() >= 8 && length <= MAX_HEADER_BYTES.min(source.len() - 8) {
        source.prefetch(8, length as usize).await?;
    }
    Ok(())
}

/// Reads and checks the header of `source`.
///
/// # Errors
/// [`Error::Pickle`]; [`Error::Malformed`] for anything that the format forbids: a header longer than the file, bad
/// JSON, unknown types, duplicate names, offsets that overlap, leave gaps or disagree with the shape, missing or surplus
/// data.
pub(super) fn read(source: &Source) -> Result<Header> {
    match source.sniff()? {
        Content::Pickle => return Err(Error::Pickle { path: source.path().to_owned() }),
        Content::Empty => return Err(source.malformed(FORMAT, "the file is empty")),
        Content::Npy => return Err(source.malformed(FORMAT, "this is a .npy array")),
        Content::Json => return Err(source.malformed(FORMAT, "this is JSON text")),
        Content::Other(what) => return Err(source.malformed(FORMAT, format!("this is {what}"))),
        Content::Safetensors => {}
    }
    let file_len = source.len();
    if file_len < 8 {
        return Err(source.malformed(FORMAT, format!("truncated: {file_len} bytes, the header length alone takes 8")));
    }
    let mut length = [0; 8];
    source.read_at(0, &mut length)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER_BYTES {
        let detail = format!("its first 8 bytes promise a header of {header_len} bytes, the limit is {MAX_HEADER_BYTES}");
        return Err(source.malformed(FORMAT, detail));
    }
    if header_len > file_len - 8 {
        let detail = format!("truncated: the header takes {header_len} bytes, the file has {} after its length", file_len - 8);
        return Err(source.malformed(FORMAT, detail));
    }
    let json = source.read_up_to(8, header_len as usize)?;
    let raw: RawHeader = serde_json::from_slice(&json).map_err(|e| source.malformed(FORMAT, format!("header: {e}")))?;

    let mut tensors = raw.tensors;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let promised = data_length(&tensors).map_err(|e| source.malformed(FORMAT, format!("header: {e}")))?;
    let present = file_len - 8 - header_len;
    if promised > present {
        let detail = format!("truncated: the header promises {promised} bytes of data, the file has {present}");
        return Err(source.malformed(FORMAT, detail));
    }
    if promised < present {
        let detail = format!("{} bytes follow the last tensor", present - promised);
        return Err(source.malformed(FORMAT, detail));
    }
    Ok(Header { tensors, metadata: raw.metadata.into_iter().collect(), data_start: 8 + header_len })
}

/// One tensor as the header has it.
#[derive(serde::Deserialize)]
pub(super) struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub data_offsets: (u64, u64),
}

/// Bytes of all data, if the tensors, sorted by offset, lie side by side and each has the length of its shape.
fn data_length(tensors: &[(String, TensorInfo)]) -> Result<u64, String> {
    let mut end = 0;
    for (name, info) in tensors {
        let (start, stop) = info.data_offsets;
        if start != end || stop < start {
            return Err(format!("invalid offset for tensor `{name}`"));
        }
        let elements = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize() as u64));
        let bits = bits.filter(|_| info.shape.iter().all(|&d| usize::try_from(d).is_ok()));
        let Some(bits) = bits else { return Err(format!("overflow computing the size of tensor `{name}`")) };
        if bits % 8 != 0 || stop - start != bits / 8 {
            return Err(format!("invalid shape, type or offsets of tensor `{name}`"));
        }
        end = stop;
    }
    Ok(end)
}

/// The header's JSON with its duplicates still visible: a map type would silently keep the last.
#[derive(Default)]
struct RawHeader {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> serde::Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from tensor names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("duplicate name `{name}`")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
            } else {
                header.tensors.push((name, map.next_value()?));
            }
        }
        Ok(header)
    }
}
