//! Pictures: read from PNG, JPEG and WebP, resized, and written by the ending of their path. No GPU.
//!
//! An [`Image`] holds RGB in f32, [-1, 1] as decoders give it. Writing goes through [`RowWriter`], row band by row band
//! into a temporary file beside the target that takes its name only when it is complete.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod atomic;
mod format;
#[cfg(not(target_arch = "wasm32"))]
mod rows;
#[cfg(not(target_arch = "wasm32"))]
mod source;

use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

#[cfg(not(target_arch = "wasm32"))]
pub use atomic::{remove_unfinished, write_whole};
#[cfg(not(target_arch = "wasm32"))]
pub use format::check_writable;
pub use format::{OutputFormat, batch_path};
#[cfg(not(target_arch = "wasm32"))]
pub use rows::RowWriter;
#[cfg(not(target_arch = "wasm32"))]
pub use source::{PngFacts, PngRows, RowFile};

use crate::error::{Error, Result};
use crate::weights::source::Source;

const FORMAT: &str = "PNG, JPEG or WebP image";
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Most pixels of a picture that is read: 16384 x 16384.
const MAX_PIXELS: u64 = 1 << 28;
/// What a decoder may allocate: [`MAX_PIXELS`] as 16-bit RGBA, and as much again for its own buffers.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 16;

/// Deflate compresses no better than 1032 to 1: a PNG that promises more rows than its bytes can hold is not worth the memory.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// An RGB picture in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    width: usize,
    height: usize,
    data: Vec<f32>,
}

/// How [`Image::resize`] interpolates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeFilter {
    /// Lanczos with three lobes.
    Lanczos3,
    /// Catmull-Rom, the bicubic kernel with a = -1/2 that Pillow uses.
    Bicubic,
}

impl Image {
    /// A picture from its values: RGB interleaved, `[height, width, 3]`, -1 black to 1 white; values outside are kept
    /// until the picture is quantised.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a side of 0 and for another number of values than `3 * width * height`.
    pub fn new(width: usize, height: usize, data: Vec<f32>) -> Result<Self> {
        let values = width.checked_mul(height).and_then(|n| n.checked_mul(3)).filter(|&n| n > 0);
        if values != Some(data.len()) {
            let detail = format!("{} values for {width}x{height} RGB", data.len());
            return Err(Error::Invalid { what: "image", detail });
        }
        Ok(Self { width, height, data })
    }

    /// A picture from 8-bit RGB, `[height, width, 3]`: `x / 127.5 - 1`.
    ///
    /// # Errors
    /// As [`Image::new`].
    pub fn from_rgb8(width: usize, height: usize, rgb: &[u8]) -> Result<Self> {
        Self::new(width, height, rgb.iter().map(|&x| f32::from(x) / 127.5 - 1.0).collect())
    }

    /// Reads a PNG, JPEG or WebP file; the content decides, not the ending.
    ///
    /// The EXIF orientation is applied, 16 bits are kept, transparency is put on white, grey becomes RGB, an animation
    /// gives its first frame. Colour profiles are ignored: samples are taken as sRGB.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for anything else than such a picture of at most 2^28 pixels.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let source = Source::open(path.as_ref())?;
        if source.len() > MAX_FILE_BYTES {
            let detail = format!("{} bytes, more than the {MAX_FILE_BYTES} that are read", source.len());
            return Err(source.malformed(FORMAT, detail));
        }
        Self::read(&source.read_up_to(0, MAX_FILE_BYTES as usize)?, path.as_ref())
    }

    /// As [`Image::open`], from the bytes of such a file. `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        Self::read(bytes, Path::new(name))
    }

    fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        let malformed = |detail| Error::Malformed { path: path.to_owned(), format: FORMAT, detail };
        let refuse = |error: image::ImageError| malformed(one_line(&error.to_string()));
        let format = image::guess_format(bytes).ok();
        let Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) = format else {
            return Err(malformed("its first bytes are those of none of them".into()));
        };
        if format == ImageFormat::Jpeg && is_cut_short(bytes) {
            return Err(malformed("truncated: the JPEG has no end-of-image marker after its data".into()));
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = image::Limits::default();
        limits.max_alloc = Some(MAX_DECODER_BYTES);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(refuse)?;
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels > MAX_PIXELS {
            return Err(malformed(format!("{width}x{height} pixels; from 1 to {MAX_PIXELS} are read")));
        }
        let least = match format {
            ImageFormat::Png => png_bytes(bytes, width, height) / MAX_DEFLATE_RATIO,
            // Each block of 8 x 8 pixels takes a bit at least, of the brightness alone.
            ImageFormat::Jpeg => pixels / 512,
            // A few bytes can be a plain picture of any size.
            _ => 0,
        };
        if least > bytes.len() as u64 {
            return Err(malformed(format!("{} bytes cannot hold {width}x{height} pixels", bytes.len())));
        }
        let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
        let mut picture = DynamicImage::from_decoder(decoder).map_err(refuse)?;
        picture.apply_orientation(orientation);
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Self::new(width, height, rgb_f32(&picture))
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values: RGB interleaved, `[height, width, 3]`, -1 black to 1 white, before clamping.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, by value.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The picture at `width` x `height` pixels, clamped to [-1, 1]; antialiased when it shrinks.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a side of 0 or more than 2^28 pixels.
    pub fn resize(&self, width: usize, height: usize, filter: ResizeFilter) -> Result<Self> {
        let side = |value: usize| u32::try_from(value).ok().filter(|&v| v > 0);
        let (Some(w), Some(h)) = (side(width), side(height)) else { return Err(bad_size(width, height)) };
        if u64::from(w) * u64::from(h) > MAX_PIXELS {
            return Err(bad_size(width, height));
        }
        // The resampler clamps f32 to [0, 1].
        let unit: Vec<f32> = self.data.iter().map(|x| x / 2.0 + 0.5).collect();
        let own = (self.width as u32, self.height as u32);
        let source = image::Rgb32FImage::from_raw(own.0, own.1, unit).ok_or_else(|| bad_size(self.width, self.height))?;
        let filter = match filter {
            ResizeFilter::Lanczos3 => image::imageops::FilterType::Lanczos3,
            ResizeFilter::Bicubic => image::imageops::FilterType::CatmullRom,
        };
        let resized = image::imageops::resize(&source, w, h, filter).into_raw();
        Self::new(width, height, resized.into_iter().map(|x| x * 2.0 - 1.0).collect())
    }

    /// 8-bit RGB, `[height, width, 3]`: `round(255 * clamp(x/2 + 1/2, 0, 1))`, halves to even, as numpy rounds.
    pub fn to_rgb8(&self) -> Vec<u8> {
        self.data.iter().map(|&x| quantise(x)).collect()
    }

    /// Writes the picture by the ending of `path` (see [`OutputFormat`]); `metadata` becomes text chunks of a PNG and
    /// the metadata of a safetensors file, other formats carry none. The file appears whole or not at all.
    ///
    /// # Errors
    /// As [`RowWriter`]; [`Error::NonFinite`] for NaN or infinity among the values.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<Path>, metadata: &[(&str, &str)]) -> Result<()> {
        let mut rows = RowWriter::create(path, self.width, self.height, metadata)?;
        rows.write_f32(&self.data)?;
        rows.finish()
    }
}

/// A picture whose rows are read when they are needed: mostly from the top, with overlaps, some more than once.
pub trait RowSource {
    /// Width and height in pixels.
    fn size(&self) -> (usize, usize);

    /// RGB interleaved, `[rows, width, 3]`, -1 black to 1 white.
    ///
    /// # Errors
    /// Whatever keeps a row from being read.
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>>;
}

impl RowSource for Image {
    fn size(&self) -> (usize, usize) {
        (self.width(), self.height())
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        Ok(self.data()[rows.start * self.width() * 3..rows.end * self.width() * 3].to_vec())
    }
}

/// Bytes of a PNG's rows before compression: of its own samples, which the decoder widens to 8 bits and palettes to colours.
fn png_bytes(png: &[u8], width: u32, height: u32) -> u64 {
    // Behind the signature, the first chunk's length and name, and the sides.
    let (depth, color) = (png.get(24).copied().unwrap_or(8), png.get(25).copied().unwrap_or(0));
    let samples = match color {
        2 => 3,
        4 => 2,
        6 => 4,
        _ => 1,
    };
    u64::from(height) * (u64::from(width) * samples * u64::from(depth)).div_ceil(8)
}

/// Whether a JPEG's bytes end before its end-of-image marker: the decoder fills in grey for what is missing. What lies behind the marker is
/// another's business, and what segments hold (previews have markers of their own) is passed over.
fn is_cut_short(jpeg: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // The next marker: scans follow their header until then, with 0xff escaped or as the start of a restart marker.
        let Some(found) = jpeg.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff)) else { return true };
        at += found + 1;
        match jpeg.get(at) {
            None => return true,
            Some(0xd9) => return false,
            // Fill bytes, which end where the marker begins.
            Some(0xff) => {}
            // Segments with a length, the scan's header among them.
            Some(0xc0..=0xcf | 0xda..=0xef | 0xfe) => match jpeg.get(at + 1..at + 3) {
                Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2),
                None => return true,
            },
            Some(_) => at += 1,
        }
    }
}

fn quantise(x: f32) -> u8 {
    (255.0 * (x / 2.0 + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8
}

fn bad_size(width: usize, height: usize) -> Error {
    Error::Invalid { what: "size", detail: format!("{width}x{height} pixels; each side at least 1, {MAX_PIXELS} in all") }
}

/// RGB in [-1, 1], `[H, W, 3]`, with transparency put on white.
fn rgb_f32(picture: &DynamicImage) -> Vec<f32> {
    let wide = matches!(
        picture,
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_)
    );
    match (wide, picture.color().has_alpha()) {
        (false, false) => picture.to_rgb8().iter().map(|&x| f32::from(x) / 127.5 - 1.0).collect(),
        (true, false) => picture.to_rgb16().iter().map(|&x| f32::from(x) / 32767.5 - 1.0).collect(),
        (false, true) => picture.to_rgba8().chunks_exact(4).flat_map(|p| on_white(p, 255.0)).collect(),
        (true, true) => picture.to_rgba16().chunks_exact(4).flat_map(|p| on_white(p, 65535.0)).collect(),
    }
}

fn on_white<T: Copy + Into<f32>>(rgba: &[T], max: f32) -> [f32; 3] {
    let alpha = rgba[3].into() / max;
    [0, 1, 2].map(|i| (rgba[i].into() / max * 2.0 - 1.0) * alpha + (1.0 - alpha))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};

    fn png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).unwrap();
        bytes
    }

    #[test]
    fn halves_round_to_even_as_numpy_rounds_them() {
        let half = |k: u8| (f32::from(k) + 0.5) / 127.5 - 1.0;
        let ties: Vec<u8> = (0..255).filter(|&k| 255.0 * (half(k) / 2.0 + 0.5) == f32::from(k) + 0.5).collect();
        assert!(ties.len() > 100 && ties.iter().any(|k| k % 2 == 0) && ties.iter().any(|k| k % 2 == 1));
        for k in ties {
            assert_eq!(quantise(half(k)), k + k % 2);
        }
        for (x, expected) in [(-1.0, 0), (1.0, 255), (-7.0, 0), (1e30, 255), (f32::NEG_INFINITY, 0)] {
            assert_eq!(quantise(x), expected, "{x}");
        }
        let all: Vec<u8> = (0..=255).collect();
        let image = Image::from_rgb8(256, 1, &all.iter().flat_map(|&x| [x; 3]).collect::<Vec<_>>()).unwrap();
        assert_eq!(image.to_rgb8().iter().step_by(3).copied().collect::<Vec<_>>(), all);
    }

    #[test]
    fn grey_alpha_and_16_bits_become_rgb() {
        let read = |pixels: &[u8], color| Image::from_bytes(&png(pixels, 1, 1, color), "p").unwrap().into_data();
        assert_eq!(read(&[255], ExtendedColorType::L8), [1.0; 3]);
        assert_eq!(read(&[0, 255, 51], ExtendedColorType::Rgb8), [-1.0, 1.0, 51.0 / 127.5 - 1.0]);
        assert_eq!(read(&[0, 0, 255, 0], ExtendedColorType::Rgba8), [1.0; 3]);
        let half = read(&[0, 255, 0, 51], ExtendedColorType::Rgba8);
        assert!((half[0] - 0.6).abs() < 1e-6 && half[1] == 1.0 && half[0] == half[2], "{half:?}");
        let wide = read(bytemuck::bytes_of(&[1u16, 32768, 65535]), ExtendedColorType::Rgb16);
        assert_eq!(wide, [1.0 / 32767.5 - 1.0, 32768.0 / 32767.5 - 1.0, 1.0]);
        let wide_alpha = read(bytemuck::bytes_of(&[0u16, 65535]), ExtendedColorType::La16);
        assert_eq!(wide_alpha, [-1.0; 3]);
    }

    #[test]
    fn exif_orientation_is_applied() {
        // Orientation 6: the first row of the file is the right column of the picture.
        let exif = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00";
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.write_image(&[10, 20, 30, 40, 50, 60], 3, 2, ExtendedColorType::L8).unwrap();
        let image = Image::from_bytes(&bytes, "p").unwrap();
        assert_eq!((image.width(), image.height()), (2, 3));
        assert_eq!(image.to_rgb8().iter().step_by(3).copied().collect::<Vec<_>>(), [40, 10, 50, 20, 60, 30]);
    }

    /// A PNG as simple encoders write it: `depth` bits a sample of palette or grey, all samples 0.
    fn flat_png(side: usize, depth: png::BitDepth, color: png::ColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side as u32, side as u32);
        encoder.set_depth(depth);
        encoder.set_color(color);
        encoder.set_compression(png::Compression::High);
        if color == png::ColorType::Indexed {
            encoder.set_palette(&[255, 0, 0, 0, 0, 255][..]);
            encoder.set_trns(&[255u8, 0][..]);
        }
        let row = (side * depth as usize).div_ceil(8);
        encoder.write_header().unwrap().write_image_data(&vec![0; row * side]).unwrap();
        bytes
    }

    #[test]
    fn flat_pngs_of_few_bits_are_no_bombs() {
        use png::{BitDepth, ColorType};
        for depth in [BitDepth::One, BitDepth::Two, BitDepth::Four, BitDepth::Eight] {
            for (color, expected) in [(ColorType::Indexed, [255, 0, 0]), (ColorType::Grayscale, [0; 3])] {
                let image = Image::from_bytes(&flat_png(1500, depth, color), "p").unwrap_or_else(|e| panic!("{depth:?} {color:?}: {e}"));
                assert_eq!((image.width(), image.height(), &image.to_rgb8()[..3]), (1500, 1500, &expected[..]));
            }
        }
        // The same bytes cannot be a picture of a hundred times as many pixels.
        for depth in [BitDepth::One, BitDepth::Eight] {
            let mut bytes = flat_png(1500, depth, ColorType::Grayscale);
            bytes[16..24].copy_from_slice(&[0, 0, 0x3a, 0x98, 0, 0, 0x3a, 0x98]);
            let crc = chunk_crc(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
            let error = Image::from_bytes(&bytes, "p").unwrap_err().to_string();
            assert!(error.contains("cannot hold 15000x15000"), "{error}");
        }
    }

    /// The CRC of PNG chunks.
    fn chunk_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |c, _| c >> 1 ^ if c & 1 == 1 { 0xedb8_8320 } else { 0 }))
    }

    #[test]
    fn jpegs_may_have_something_behind_their_end_and_nothing_missing() {
        let pixels: Vec<u8> = (0..64 * 48 * 3u32).map(|i| (i * i / 7) as u8).collect();
        let mut whole = Vec::new();
        image::codecs::jpeg::JpegEncoder::new(&mut whole).write_image(&pixels, 64, 48, ExtendedColorType::Rgb8).unwrap();
        let picture = Image::from_bytes(&whole, "p").unwrap();
        // Cameras append previews of their own, cut or whole, and notes.
        for tail in [&b"\0\0\0"[..], b"SEFT\xff\xda\x00\x08 notes", &whole[..whole.len() / 2], &whole] {
            let image = Image::from_bytes(&[&whole, tail].concat(), "p").unwrap_or_else(|e| panic!("{} bytes behind it: {e}", tail.len()));
            assert_eq!(image, picture);
        }
        for length in [whole.len() / 4, whole.len() / 2, whole.len() - 2, whole.len() - 1] {
            assert!(Image::from_bytes(&whole[..length], "p").is_err(), "{length} of {} bytes", whole.len());
        }
        // A preview in front of the picture, whole, says nothing about the picture.
        let mut app = vec![0xff, 0xd8, 0xff, 0xe1];
        app.extend((whole.len() as u16 + 2).to_be_bytes());
        app.extend(&whole);
        assert_eq!(Image::from_bytes(&[&app, &whole[2..]].concat(), "p").unwrap(), picture);
        let error = Image::from_bytes(&[&app, &whole[2..whole.len() * 3 / 4]].concat(), "p").unwrap_err().to_string();
        assert!(error.contains("truncated"), "{error}");
    }

    #[test]
    fn resize_keeps_flat_pictures_and_refuses_absurd_sizes() {
        let flat = Image::from_rgb8(5, 4, &[200; 60]).unwrap();
        for filter in [ResizeFilter::Lanczos3, ResizeFilter::Bicubic] {
            let resized = flat.resize(13, 3, filter).unwrap();
            assert_eq!((resized.width(), resized.height()), (13, 3));
            assert!(resized.to_rgb8().iter().all(|&x| x == 200));
        }
        for (w, h) in [(0, 4), (4, 0), (1 << 20, 1 << 20), (usize::MAX, 1)] {
            assert!(flat.resize(w, h, ResizeFilter::Bicubic).is_err(), "{w}x{h}");
        }
        // halving a picture whose left half is black keeps its sides apart
        let edge: Vec<u8> = (0..8 * 2).flat_map(|i| [if i % 8 < 4 { 0 } else { 255 }; 3]).collect();
        let half = Image::from_rgb8(8, 2, &edge).unwrap().resize(4, 1, ResizeFilter::Lanczos3).unwrap();
        let grey = half.to_rgb8();
        assert!(grey[0] < 10 && grey[9] > 245, "{grey:?}");
    }

    #[test]
    fn wrong_numbers_of_values_are_refused() {
        for (w, h, n) in [(2, 2, 11), (0, 2, 0), (usize::MAX, 2, 4)] {
            assert!(Image::new(w, h, vec![0.0; n]).is_err());
        }
    }
}
