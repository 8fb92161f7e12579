//! Writing pictures: the whole at any size, or what the window shows.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::engine::{Decoder, Form, Rows, rgb8};
use crate::error::Result;
use crate::gpu::Observer;
use crate::image::{OutputFormat, RowWriter, check_writable};
use crate::latent::Latent;

/// Decodes `latent` to `w x h` pixels and writes it in the form that the ending of `path` names.
///
/// # Errors
/// As [`Decoder::decode_async`] and [`RowWriter`]; nothing is left behind then.
pub fn picture(
    decoder: &Decoder,
    latent: &Latent,
    (w, h): (usize, usize),
    path: &Path,
    about: &Value,
    observer: &Observer,
) -> Result<PathBuf> {
    let format = OutputFormat::from_path(path)?;
    format.check_size(w, h)?;
    check_writable(path)?;
    let mut settings = about.clone();
    settings["size"] = format!("{w}x{h}").into();
    let settings = settings.to_string();
    let metadata = [("Software", concat!("infgen ", env!("CARGO_PKG_VERSION"))), ("infgen", settings.as_str())];
    let mut file = RowWriter::create(path, w, h, &metadata)?;
    // Rows are written as they come: a picture of 16384 pixels is never whole in memory.
    let mut sink = |_: Range<usize>, rows: Rows| match rows {
        Rows::Float(values) => file.write_f32(&values),
        Rows::Rgba8(words) => file.write_rgb8(&rgb8(&words).collect::<Vec<_>>()),
        Rows::Picture(_) => unreachable!("rows were asked for"),
    };
    let form = if format.is_float() { Form::Float } else { Form::Rgba8 };
    decoder.decode_rows(latent, w, h, form, observer, &mut sink)?;
    file.finish()?;
    Ok(path.to_owned())
}

/// Writes RGBA pixels, without their alpha.
///
/// # Errors
/// As [`RowWriter`].
pub fn pixels(rgba: &[u8], (w, h): (usize, usize), path: &Path, about: &str) -> Result<()> {
    let metadata = [("Software", concat!("infgen ", env!("CARGO_PKG_VERSION"))), ("infgen", about)];
    let mut file = RowWriter::create(path, w, h, &metadata)?;
    let rgb: Vec<u8> = rgba.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
    if OutputFormat::from_path(path)?.is_float() {
        file.write_f32(&rgb.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect::<Vec<_>>())?;
    } else {
        file.write_rgb8(&rgb)?;
    }
    file.finish()
}
