//! NumPy's `.npy`: a header that is a Python dict literal, then the array.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1.0 to 3.0.

use super::source::Source;
use crate::error::Result;

const FORMAT: &str = ".npy array";
const MAGIC: &[u8] = b"\x93NUMPY";
/// Far above what `numpy.save` writes for a plain array (it pads to 128 bytes).
const MAX_HEADER_BYTES: u64 = 1 << 16;
const MAX_DIMS: usize = 8;

/// What the header says, which the file's length bears out.
pub(crate) struct Facts {
    pub shape: Vec<usize>,
    /// Bytes of a value: 2, 4 or 8.
    pub width: u64,
    fortran: bool,
    /// Where the values begin.
    start: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads the header of an array as [`read`] takes them.
pub(crate) fn facts(source: &Source, max_elements: usize) -> Result<Facts> {
    let malformed = |detail: &str| source.malformed(FORMAT, detail);
    let head = source.read_up_to(0, 12)?;
    let (version, length) = match head[..] {
        [0x93, b'N', b'U', b'M', b'P', b'Y', version @ 1, _, a, b, ..] => (version, u64::from(u16::from_le_bytes([a, b]))),
        [0x93, b'N', b'U', b'M', b'P', b'Y', version @ 2..=3, _, a, b, c, d] => (version, u64::from(u32::from_le_bytes([a, b, c, d]))),
        [0x93, b'N', b'U', b'M', b'P', b'Y', version, ..] if !matches!(version, 1..=3) => {
            return Err(source.malformed(FORMAT, format!("format version {version}; 1, 2 and 3 are read")));
        }
        _ if head.starts_with(MAGIC) => return Err(malformed("truncated in its header")),
        _ => return Err(malformed("it does not begin with the magic \\x93NUMPY")),
    };
    let header_start = if version == 1 { 10 } else { 12 };
    if length > MAX_HEADER_BYTES || header_start + length > source.len() {
        return Err(source.malformed(FORMAT, format!("a header of {length} bytes in a file of {}", source.len())));
    }
    let header = source.read_up_to(header_start, length as usize)?;
    let header = std::str::from_utf8(&header).map_err(|_| malformed("the header is not UTF-8"))?;
    let Header { descr, fortran, shape } =
        parse(header).ok_or_else(|| malformed("the header is not a dict of descr, fortran_order and shape"))?;

    let width = match descr.as_str() {
        "<f2" => 2,
        "<f4" => 4,
        "<f8" => 8,
        other => return Err(source.malformed(FORMAT, format!("element type {other}; <f2, <f4 and <f8 are read"))),
    };
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= max_elements);
    let Some(elements) = elements else {
        return Err(source.malformed(FORMAT, format!("shape {shape:?} has more than {max_elements} elements")));
    };
    let (start, present) = (header_start + length, source.len() - header_start - length);
    let promised = elements as u64 * width;
    if promised != present {
        return Err(source.malformed(FORMAT, format!("shape {shape:?} takes {promised} bytes of data, the file has {present}")));
    }

    Ok(Facts { shape, width, fortran, start, bytes: promised })
}

/// Reads a little-endian f2, f4 or f8 array in C or Fortran order: its shape and its values in C order.
///
/// Values outside f32's range become infinite; the caller looks for those.
pub(crate) fn read(source: &Source, max_elements: usize) -> Result<(Vec<usize>, Vec<f32>)> {
    let Facts { shape, width, fortran, start, bytes } = facts(source, max_elements)?;
    let bytes = source.read_up_to(start, bytes as usize)?;
    let values: Vec<f32> = match width {
        2 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        4 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        _ => bytes.chunks_exact(8).map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32).collect(),
    };
    let values = if fortran { c_order(&shape, &values) } else { values };
    Ok((shape, values))
}

/// The bytes that precede the data of a little-endian f32 array in C order.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn header(shape: &[usize]) -> Vec<u8> {
    let dims = match shape {
        [one] => format!("{one},"),
        many => many.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}").into_bytes();
    // Magic, version, length, dict and newline together fill a multiple of 64 bytes.
    dict.resize((10 + dict.len() + 1).next_multiple_of(64) - 11, b' ');
    dict.push(b'\n');
    [MAGIC, &[1, 0], &(dict.len() as u16).to_le_bytes(), &dict].concat()
}

/// Values whose first axis varies fastest, reordered so that the last does.
fn c_order(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let mut index = vec![0; shape.len()];
    (0..values.len())
        .map(|_| {
            let from = shape.iter().zip(&index).rev().fold(0, |at, (&size, &i)| at * size + i);
            for (i, &size) in index.iter_mut().zip(shape).rev() {
                *i += 1;
                if *i < size {
                    break;
                }
                *i = 0;
            }
            values[from]
        })
        .collect()
}

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 8, 8), }` with its keys in any order.
fn parse(text: &str) -> Option<Header> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = match key {
            "descr" if descr.is_none() => {
                let (text, after) = quoted(value)?;
                descr = Some(text.to_owned());
                after
            }
            "fortran_order" if fortran.is_none() => {
                let is = value.starts_with("True");
                fortran = Some(is);
                value.strip_prefix(if is { "True" } else { "False" })?
            }
            "shape" if shape.is_none() => {
                let (inside, after) = value.strip_prefix('(')?.split_once(')')?;
                shape = Some(dims(inside)?);
                after
            }
            _ => return None,
        }
        .trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return None,
        };
    }
    Some(Header { descr: descr?, fortran: fortran?, shape: shape? })
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn dims(inside: &str) -> Option<Vec<usize>> {
    let inside = inside.trim();
    let inside = inside.strip_suffix(',').unwrap_or(inside);
    if inside.is_empty() {
        return Some(Vec::new());
    }
    let dims: Option<Vec<usize>> = inside.split(',').map(|d| d.trim().parse().ok()).collect();
    dims.filter(|dims| dims.len() <= MAX_DIMS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(dict: &str, data: &[u8]) -> Vec<u8> {
        [MAGIC, &[1, 0], &(dict.len() as u16).to_le_bytes(), dict.as_bytes(), data].concat()
    }

    fn read_bytes(bytes: Vec<u8>) -> Result<(Vec<usize>, Vec<f32>)> {
        read(&Source::from_bytes(bytes, "a.npy"), 1000)
    }

    #[test]
    fn the_header_is_numpys_own() {
        // numpy.save of zeros((1, 4, 2, 3), float32)
        let expected = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 2, 3), }";
        let header = header(&[1, 4, 2, 3]);
        assert_eq!(header.len() % 64, 0);
        assert_eq!(header[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(std::str::from_utf8(&header[10..]).unwrap().trim_end(), expected);
        assert!(super::header(&[5]).windows(6).any(|w| w == b" (5,),"));
    }

    #[test]
    fn all_versions_types_and_orders_are_read() {
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let f2: Vec<u8> = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        let f4: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f8: Vec<u8> = values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        for (descr, data) in [("<f2", &f2), ("<f4", &f4), ("<f8", &f8)] {
            let c = format!("{{\"shape\": (2, 3), 'descr': '{descr}', 'fortran_order': False}}");
            assert_eq!(read_bytes(array(&c, data)).unwrap(), (vec![2, 3], values.to_vec()));
            let f = format!("{{'descr': '{descr}', 'fortran_order': True, 'shape': (2, 3), }} \n");
            assert_eq!(read_bytes(array(&f, data)).unwrap(), (vec![2, 3], vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
        }
        for version in [2, 3] {
            let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }";
            let bytes = [MAGIC, &[version, 0], &(dict.len() as u32).to_le_bytes(), dict.as_bytes(), &f4].concat();
            assert_eq!(read_bytes(bytes).unwrap(), (vec![6], values.to_vec()));
        }
    }

    #[test]
    fn lies_are_refused() {
        let dict = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
        for (shape, says) in [
            ("4611686018427387904, 4", "more than 1000"),
            ("4611686018427387904", "more than 1000"),
            ("1001,", "more than 1000"),
            ("3,", "takes 12 bytes"),
            ("1,", "takes 4 bytes"),
            ("-2,", "not a dict"),
            ("99999999999999999999999,", "not a dict"),
            ("1,1,1,1,1,1,1,1,2", "not a dict"),
        ] {
            let error = read_bytes(array(&dict(shape), &[0; 8])).unwrap_err().to_string();
            assert!(error.contains(says), "{shape}: {error}");
        }
        for (dict, says) in [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}", ">f4"),
            ("{'descr': '|V2', 'fortran_order': False, 'shape': (2,)}", "|V2"),
            ("{'descr': '<f4', 'fortran_order': maybe, 'shape': (2,)}", "not a dict"),
            ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "not a dict"),
            ("{'descr': '<f4', 'shape': (2,)}", "not a dict"),
            ("{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}", "not a dict"),
            ("{'é", "not a dict"),
            ("", "not a dict"),
        ] {
            let error = read_bytes(array(dict, &[0; 8])).unwrap_err().to_string();
            assert!(error.contains(says), "{dict}: {error}");
        }
        assert!(read_bytes(b"\x93NUMPY\x07\x00".to_vec()).unwrap_err().to_string().contains("version 7"));
        assert!(read_bytes(b"\x93NUMPY\x01\x00\xff\xff{".to_vec()).unwrap_err().to_string().contains("65535"));
        assert!(read_bytes(b"\x93NUMPY\x02\x00\xff".to_vec()).unwrap_err().to_string().contains("truncated"));
    }
}
