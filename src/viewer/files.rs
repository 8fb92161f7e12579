//! What can be opened: latents, pictures (encoded first), weights.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::prompt::settings_of;
use crate::engine::{Decoder, Engine, Weights};
use crate::error::{Error, Result};
use crate::gpu::{Observer, Picture};
use crate::image::{Image, ResizeFilter};
use crate::latent::Latent;
use crate::pipeline::{Parts, Pipeline, PipelineOptions};
use crate::weights::recognise::{Recognised, recognise};

/// Longest side, in pixels, at which pictures are encoded: attention over a latent costs the square of its size, and
/// decoders are trained on latents of such sizes.
const ENCODE_SIDE: usize = 1024;

/// What a file turned out to be.
pub enum Opened {
    /// Something to show.
    Document(Box<Document>),
    /// A decoder, loaded.
    Decoder(LoadedDecoder),
    /// A text-to-image, class-conditional or unconditional model.
    Model(Box<Pipeline>),
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
    /// How it was generated.
    pub settings: Option<Value>,
}

/// A decoder on the device and what to call it.
#[derive(Clone)]
pub struct LoadedDecoder {
    /// The decoder.
    pub decoder: Decoder,
    /// File or folder name.
    pub name: String,
}

/// The last component of a path; of a file that is called as in every diffusers folder, the folder's.
pub fn name_of(path: &Path) -> String {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folder = path.parent().filter(|folder| stem.starts_with("diffusion_pytorch_model") && folder.file_name().is_some());
    let path = folder.unwrap_or(path);
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Opens `path`; the content decides what it is. A checkpoint of a whole model is that model, or the decoder in it where
/// `as_decoder`.
///
/// # Errors
/// Anything that can be wrong with a file, in its own words; [`Error::Cancelled`].
pub fn open(engine: &Engine, path: &Path, as_decoder: bool, observer: &Observer) -> Result<Opened> {
    if Parts::is_folder_of_parts(path) && !as_decoder {
        return model(engine, path).map(Opened::Model);
    }
    if is_picture(path) {
        return Ok(Opened::Document(Box::new(encode(engine, path, observer)?)));
    }
    let npy = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npy"));
    if !npy {
        let weights = crate::weights::Weights::open(path)?;
        match recognise(&weights)? {
            Recognised::Latent { .. } => {}
            Recognised::Checkpoint { unet: Some(_), .. } | Recognised::Infd { unet: Some(_), .. } | Recognised::Dit { .. }
                if !as_decoder =>
            {
                return model(engine, path).map(Opened::Model);
            }
            _ => return decoder(engine, path, observer).map(Opened::Decoder),
        }
    }
    let latents = Latent::open(path)?;
    let note = (latents.batch() > 1).then(|| format!("{} latents: Page Up and Page Down step through them", latents.batch()));
    Ok(Opened::Document(Box::new(Document { name: name_of(path), latents, original: None, note, settings: None })))
}

/// Opens the text-to-image, class-conditional or unconditional model at `path`. Its weights are loaded when it works.
///
/// # Errors
/// As [`Pipeline::open`].
pub fn model(engine: &Engine, path: &Path) -> Result<Box<Pipeline>> {
    Ok(Box::new(Pipeline::open(engine, path, &PipelineOptions::default())?))
}

/// Loads the decoder at `path`.
///
/// # Errors
/// As [`Engine::load_decoder_async`].
pub fn decoder(engine: &Engine, path: &Path, observer: &Observer) -> Result<LoadedDecoder> {
    Ok(LoadedDecoder { decoder: pollster::block_on(engine.load_decoder_async(path, observer))?, name: name_of(path) })
}

/// The decoder that ships.
///
/// # Errors
/// As [`Engine::load_decoder`].
pub fn builtin(engine: &Engine) -> Result<LoadedDecoder> {
    Ok(LoadedDecoder { decoder: engine.load_decoder(Weights::Builtin)?, name: "built-in decoder".into() })
}

/// The file after `path`, or before it, among the latents and pictures of its folder by name; from the last to the first.
pub fn neighbour(path: &Path, forward: bool) -> Option<PathBuf> {
    let is_shown = |path: &Path| match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("npy" | "png" | "jpg" | "jpeg" | "webp") => path.is_file(),
        Some("safetensors") => {
            let recognised = crate::weights::Weights::open(path).and_then(|weights| recognise(&weights));
            matches!(recognised, Ok(Recognised::Latent { .. }))
        }
        _ => false,
    };
    let path = std::path::absolute(path).ok()?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(path.parent()?).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    if !forward {
        files.reverse();
    }
    let at = files.iter().position(|file| *file == path).map_or(0, |at| at + 1);
    let (before, after) = files.split_at(at);
    after.iter().chain(before).find(|file| **file != path && is_shown(file)).cloned()
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
    let encoder = pollster::block_on(engine.load_encoder_async(Weights::Builtin, &observer.quiet()))?;
    let (width, height) = encoded_size(picture.width(), picture.height(), encoder.facts().scale);
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let same = (width, height) == (picture.width(), picture.height());
    let sized = if same { picture } else { picture.resize(width, height, ResizeFilter::Lanczos3)? };
    let latents = encoder.encode(&sized, None, observer)?;
    let original = pollster::block_on(engine.gpu().picture_from_rgb8(width, height, &sized.to_rgb8()))?;
    let settings = settings_of(path);
    let note = match settings.as_ref().and_then(|settings| settings["prompt"].as_str()) {
        Some(prompt) => format!("encoded at {width} × {height}; generated from \"{prompt}\""),
        None => format!("encoded at {width} × {height}"),
    };
    Ok(Document { name: name_of(path), latents, original: Some(original), note: Some(note), settings })
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
    fn neighbours_are_the_latents_and_pictures_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b.npy", "d.PNG", "c.txt", "e.safetensors", "f.jpg"] {
            std::fs::write(at(name), "x").unwrap();
        }
        assert_eq!(neighbour(&at("b.npy"), true), Some(at("d.PNG")));
        assert_eq!(neighbour(&at("d.PNG"), true), Some(at("f.jpg")), "e is no latent");
        assert_eq!(neighbour(&at("f.jpg"), true), Some(at("b.npy")));
        assert_eq!(neighbour(&at("b.npy"), false), Some(at("f.jpg")));
        assert_eq!(neighbour(&at("gone.npy"), true), Some(at("b.npy")));
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sample.safetensors"), at("a.safetensors")).unwrap();
        assert_eq!(neighbour(&at("f.jpg"), true), Some(at("a.safetensors")));
        let alone = tempfile::tempdir().unwrap();
        assert_eq!(neighbour(&alone.path().join("x.npy"), true), None);
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
