//! What can be opened: latents, pictures (encoded first), weights.

use std::path::Path;

use crate::engine::{Decoder, Engine, Weights};
use crate::error::{Error, Result};
use crate::gpu::{Observer, Picture};
use crate::image::{Image, ResizeFilter};
use crate::latent::Latent;
use crate::weights::recognise::{Recognised, recognise};

/// Longest side, in pixels, at which pictures are encoded: attention over a latent costs the square of its size, and
/// decoders are trained on latents of such sizes.
const ENCODE_SIDE: usize = 1024;

/// What a file turned out to be.
pub enum Opened {
    /// Something to show.
    Document(Document),
    /// A decoder, loaded.
    Decoder(LoadedDecoder),
}

/// A latent, or several, and where they came from.
pub struct Document {
    /// File name.
    pub name: String,
    /// One or more latents.
    pub latents: Latent,
    /// The picture that was encoded.
    pub original: Option<Picture>,
    /// What was done to it, for the status line.
    pub note: Option<String>,
}

/// A decoder on the device and what to call it.
#[derive(Clone)]
pub struct LoadedDecoder {
    /// The decoder.
    pub decoder: Decoder,
    /// File or folder name.
    pub name: String,
}

/// The last component of a path.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Opens `path`; the content decides what it is.
///
/// # Errors
/// Anything that can be wrong with a file, in its own words; [`Error::Cancelled`].
pub fn open(engine: &Engine, path: &Path, observer: &Observer) -> Result<Opened> {
    if is_picture(path) {
        return Ok(Opened::Document(encode(engine, path, observer)?));
    }
    let npy = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npy"));
    if !npy {
        let weights = crate::weights::Weights::open(path)?;
        if !matches!(recognise(&weights)?, Recognised::Latent { .. }) {
            return decoder(engine, path).map(Opened::Decoder);
        }
    }
    let latents = Latent::open(path)?;
    let note = (latents.batch() > 1).then(|| format!("{} latents: Page Up and Page Down step through them", latents.batch()));
    Ok(Opened::Document(Document { name: name_of(path), latents, original: None, note }))
}

/// Loads the decoder at `path`.
///
/// # Errors
/// As [`Engine::load_decoder`].
pub fn decoder(engine: &Engine, path: &Path) -> Result<LoadedDecoder> {
    Ok(LoadedDecoder { decoder: engine.load_decoder(path)?, name: name_of(path) })
}

/// The decoder that ships.
///
/// # Errors
/// As [`Engine::load_decoder`].
pub fn builtin(engine: &Engine) -> Result<LoadedDecoder> {
    Ok(LoadedDecoder { decoder: engine.load_decoder(Weights::Builtin)?, name: "built-in decoder".into() })
}

fn is_picture(path: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(12).read_to_end(&mut head));
    read.is_ok()
        && (head.starts_with(b"\x89PNG") || head.starts_with(b"\xff\xd8\xff") || (head.starts_with(b"RIFF") && head.ends_with(b"WEBP")))
}

fn encode(engine: &Engine, path: &Path, observer: &Observer) -> Result<Document> {
    let picture = Image::open(path)?;
    let encoder = engine.load_encoder(Weights::Builtin)?;
    let (width, height) = encoded_size(picture.width(), picture.height(), encoder.facts().scale);
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let same = (width, height) == (picture.width(), picture.height());
    let sized = if same { picture } else { picture.resize(width, height, ResizeFilter::Lanczos3)? };
    let latents = encoder.encode(&sized, None, observer)?;
    let original = pollster::block_on(engine.gpu().picture_from_rgb8(width, height, &sized.to_rgb8()))?;
    let note = Some(format!("encoded at {width} × {height}"));
    Ok(Document { name: name_of(path), latents, original: Some(original), note })
}

/// The size at which a picture is encoded: its own, at most [`ENCODE_SIDE`], each side rounded to a multiple of `scale`.
fn encoded_size(width: usize, height: usize, scale: usize) -> (usize, usize) {
    let factor = (ENCODE_SIDE as f64 / width.max(height) as f64).min(1.0);
    let side = |length: usize| (((length as f64 * factor) / scale as f64).round() as usize).max(1) * scale;
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_encoded_at_multiples_of_the_scale_and_no_larger_than_the_limit() {
        assert_eq!(encoded_size(512, 512, 8), (512, 512));
        assert_eq!(encoded_size(4000, 3000, 8), (1024, 768));
        assert_eq!(encoded_size(3, 5, 8), (8, 8));
        assert_eq!(encoded_size(100, 9000, 8), (8, 1024));
    }

    #[test]
    fn the_content_tells_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\n...."[..], true),
            (b"\xff\xd8\xff\xe0", true),
            (b"RIFF\x10\0\0\0WEBPVP8 ", true),
            (b"RIFF\x10\0\0\0WAVE", false),
            (b"\x93NUMPY", false),
            (b"", false),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_picture(&path), expected, "{bytes:?}");
        }
        assert!(!is_picture(folder.path()));
    }
}
