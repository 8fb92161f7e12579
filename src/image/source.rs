//! Pictures in files, whose rows come to memory as they are needed.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use image::DynamicImage;

use super::{FORMAT, MAX_PIXELS, RowSource, one_line, rgb_f32};
use crate::error::{Error, Result};
use crate::weights::source::open_regular;

/// Most bytes of text that compressed chunks of a picture may hold in all.
const MAX_PACKED_TEXT: usize = 8 << 20;

/// What a PNG says of itself before its pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct PngFacts {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Keyword and text of each text chunk that stands before the pixels.
    pub texts: Vec<(String, String)>,
}

impl PngFacts {
    /// Reads them; `None` for what is no PNG.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a broken header.
    pub fn open(path: impl AsRef<Path>) -> Result<Option<PngFacts>> {
        let path = path.as_ref();
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut file = open_regular(path)?;
        let mut signature = Vec::new();
        Read::by_ref(&mut file).take(8).read_to_end(&mut signature).map_err(io)?;
        if signature != b"\x89PNG\r\n\x1a\n" {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let broken =
            |error: png::DecodingError| Error::Malformed { path: path.to_owned(), format: FORMAT, detail: one_line(&error.to_string()) };
        let reader = png::Decoder::new(BufReader::new(file)).read_info().map_err(broken)?;
        let info = reader.info();
        let mut texts: Vec<(String, String)> = Vec::new();
        texts.extend(info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())));
        // What is too much, or does not unpack, is left out like any other chunk that says nothing to us.
        let mut left = MAX_PACKED_TEXT;
        for mut chunk in info.compressed_latin1_text.iter().cloned() {
            if let (Ok(()), Ok(text)) = (chunk.decompress_text_with_limit(left), chunk.get_text()) {
                left = left.saturating_sub(text.len());
                texts.push((chunk.keyword, text));
            }
        }
        for mut chunk in info.utf8_text.iter().cloned() {
            if let (Ok(()), Ok(text)) = (chunk.decompress_text_with_limit(left), chunk.get_text()) {
                left = left.saturating_sub(text.len());
                texts.push((chunk.keyword, text));
            }
        }
        Ok(Some(PngFacts { width: info.width as usize, height: info.height as usize, texts }))
    }
}

/// A PNG file read row by row; the same values as [`Image::open`](super::Image::open) gives.
pub struct PngRows {
    path: PathBuf,
    width: usize,
    height: usize,
    state: Mutex<Option<Reading>>,
}

struct Reading {
    reader: png::Reader<BufReader<File>>,
    /// First row of `recent`.
    first: usize,
    /// The rows read last, as they are in the file.
    recent: Vec<u8>,
}

impl PngRows {
    /// Opens a PNG whose rows come in their order; `None` for anything else ([`Image::open`](super::Image::open) reads that): another format, an
    /// interlaced or turned picture.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a picture of more than 2^28 pixels or a broken header.
    pub fn open(path: impl AsRef<Path>) -> Result<Option<PngRows>> {
        let path = path.as_ref();
        let mut signature = [0; 8];
        let mut file = open_regular(path)?;
        if file.read_exact(&mut signature).is_err() || signature != *b"\x89PNG\r\n\x1a\n" {
            return Ok(None);
        }
        let this = PngRows { path: path.to_owned(), width: 0, height: 0, state: Mutex::new(None) };
        let reader = this.start()?;
        let info = reader.info();
        if info.interlaced || info.exif_metadata.is_some() || info.animation_control.is_some() {
            return Ok(None);
        }
        let (width, height) = (info.width as usize, info.height as usize);
        if width as u64 * height as u64 > MAX_PIXELS {
            return Err(this.malformed(&format!("{width}x{height} pixels; from 1 to {MAX_PIXELS} are read")));
        }
        let state = Mutex::new(Some(Reading { reader, first: 0, recent: Vec::new() }));
        Ok(Some(PngRows { width, height, state, ..this }))
    }

    fn start(&self) -> Result<png::Reader<BufReader<File>>> {
        let file = open_regular(&self.path)?;
        let mut decoder = png::Decoder::new(BufReader::new(file));
        decoder.set_transformations(png::Transformations::EXPAND);
        decoder.read_info().map_err(|error| self.malformed(&error.to_string()))
    }

    fn malformed(&self, detail: &str) -> Error {
        Error::Malformed { path: self.path.clone(), format: FORMAT, detail: one_line(detail) }
    }

    /// Values of `rows` rows of 8-bit or big-endian 16-bit samples.
    fn values(&self, raw: &[u8], rows: usize, color: (png::ColorType, png::BitDepth)) -> Option<Vec<f32>> {
        use png::{BitDepth, ColorType};
        let (w, h) = (self.width as u32, rows as u32);
        let wide = || raw.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect::<Vec<_>>();
        let picture = match color {
            (ColorType::Grayscale, BitDepth::Eight) => image::GrayImage::from_raw(w, h, raw.to_vec()).map(DynamicImage::ImageLuma8),
            (ColorType::GrayscaleAlpha, BitDepth::Eight) => {
                image::GrayAlphaImage::from_raw(w, h, raw.to_vec()).map(DynamicImage::ImageLumaA8)
            }
            (ColorType::Rgb, BitDepth::Eight) => image::RgbImage::from_raw(w, h, raw.to_vec()).map(DynamicImage::ImageRgb8),
            (ColorType::Rgba, BitDepth::Eight) => image::RgbaImage::from_raw(w, h, raw.to_vec()).map(DynamicImage::ImageRgba8),
            (ColorType::Grayscale, BitDepth::Sixteen) => image::ImageBuffer::from_raw(w, h, wide()).map(DynamicImage::ImageLuma16),
            (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => image::ImageBuffer::from_raw(w, h, wide()).map(DynamicImage::ImageLumaA16),
            (ColorType::Rgb, BitDepth::Sixteen) => image::ImageBuffer::from_raw(w, h, wide()).map(DynamicImage::ImageRgb16),
            (ColorType::Rgba, BitDepth::Sixteen) => image::ImageBuffer::from_raw(w, h, wide()).map(DynamicImage::ImageRgba16),
            _ => None,
        };
        picture.map(|picture| rgb_f32(&picture))
    }
}

impl RowSource for PngRows {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A file can only be read from the top; after an error there is nothing to go on from either.
        let mut reading = match state.take() {
            Some(reading) if reading.first <= rows.start => reading,
            _ => Reading { reader: self.start()?, first: 0, recent: Vec::new() },
        };
        let color = reading.reader.output_color_type();
        let row_bytes = reading.reader.output_line_size(self.width as u32).ok_or_else(|| self.malformed("its rows are too long"))?;
        let mut next = reading.first + reading.recent.len() / row_bytes;
        while next < rows.end {
            // A trailing part of what was read is wanted again at most.
            let wanted = rows.start.min(next);
            if reading.first < wanted {
                reading.recent.drain(..(wanted - reading.first) * row_bytes);
                reading.first = wanted;
            }
            let row = reading.reader.next_row().map_err(|error| self.malformed(&error.to_string()))?;
            let row = row.ok_or_else(|| self.malformed("it ends before its last row"))?;
            reading.recent.extend_from_slice(row.data());
            next += 1;
            if next == self.height {
                // To the end of the file: the checksum of the last piece of data comes after it.
                reading.reader.finish().map_err(|error| self.malformed(&error.to_string()))?;
            }
        }
        let start = (rows.start - reading.first) * row_bytes;
        let raw = &reading.recent[start..start + rows.len() * row_bytes];
        let values = self.values(raw, rows.len(), color).ok_or_else(|| self.malformed("samples of an unknown kind"))?;
        *state = Some(reading);
        Ok(values)
    }
}

/// A picture in a nameless file: written once from the top, then read in any order. For what is too large for memory.
pub struct RowFile {
    file: Mutex<File>,
    /// Its folder, for messages.
    folder: PathBuf,
    width: usize,
    height: usize,
    written: usize,
}

impl RowFile {
    /// Creates it in `folder`. It takes 12 bytes a pixel there and disappears with this value or the process.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_in(folder: &Path, width: usize, height: usize) -> Result<RowFile> {
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        let file = tempfile::tempfile_in(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        Ok(RowFile { file: Mutex::new(file), folder: folder.to_owned(), width, height, written: 0 })
    }

    /// The next rows, RGB interleaved.
    ///
    /// # Errors
    /// [`Error::Io`], a full disk among others; [`Error::Invalid`] for values that are no whole rows or too many.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        let row = 3 * self.width;
        if !values.len().is_multiple_of(row) || self.written + values.len() / row > self.height {
            return Err(Error::Invalid {
                what: "rows",
                detail: format!("{} values at row {} of {}", values.len(), self.written, self.height),
            });
        }
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.write_all(bytemuck::cast_slice(values)).map_err(|source| Error::Io { path: self.folder.clone(), source })?;
        self.written += values.len() / row;
        Ok(())
    }
}

impl RowSource for RowFile {
    fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = vec![0f32; rows.len() * self.width * 3];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start((rows.start * self.width * 12) as u64))
            .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut values)))
            .map_err(|source| Error::Io { path: self.folder.clone(), source })?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Image;
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};

    #[test]
    fn texts_are_read_up_to_what_a_person_could_have_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.png");
        let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
        encoder.add_ztxt_chunk("small".into(), "settings".into()).unwrap();
        for n in 0..3 {
            encoder.add_ztxt_chunk(format!("large {n}"), " ".repeat(5 << 20)).unwrap();
        }
        encoder.add_itxt_chunk("last".into(), "words".into()).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[7]).unwrap();
        writer.finish().unwrap();
        let texts = PngFacts::open(&path).unwrap().unwrap().texts;
        let read: Vec<(&str, usize)> = texts.iter().map(|(key, text)| (key.as_str(), text.len())).collect();
        assert_eq!(read, [("small", 8), ("large 0", 5 << 20), ("last", 5)]);
    }

    #[test]
    fn png_rows_are_those_of_the_whole_picture_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let (w, h) = (13u32, 29u32);
        let kinds = [
            (ExtendedColorType::L8, 1),
            (ExtendedColorType::La8, 2),
            (ExtendedColorType::Rgb8, 3),
            (ExtendedColorType::Rgba8, 4),
            (ExtendedColorType::L16, 2),
            (ExtendedColorType::Rgb16, 6),
            (ExtendedColorType::Rgba16, 8),
        ];
        for (kind, bytes) in kinds {
            let samples: Vec<u8> = (0..w * h * bytes).map(|i| (i * i % 251) as u8).collect();
            let path = folder.path().join("picture.png");
            image::codecs::png::PngEncoder::new(File::create(&path).unwrap()).write_image(&samples, w, h, kind).unwrap();
            let whole = Image::open(&path).unwrap();
            let rows = PngRows::open(&path).unwrap().expect("a PNG with its rows in order");
            assert_eq!(rows.size(), (13, 29));
            for range in [0..5, 3..9, 4..6, 9..9, 20..29, 0..29, 28..29, 0..1] {
                assert_eq!(rows.rows(range.clone()).unwrap(), RowSource::rows(&whole, range.clone()).unwrap(), "{kind:?} {range:?}");
            }
        }
    }

    #[test]
    fn a_png_that_ends_early_is_an_error_where_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.png");
        let samples: Vec<u8> = (0..64 * 64 * 3u32).map(|i| ((i * 7919) >> 3) as u8).collect();
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(&samples, 64, 64, ExtendedColorType::Rgb8).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let rows = PngRows::open(&path).unwrap().unwrap();
        assert!(rows.rows(0..4).is_ok());
        for _ in 0..2 {
            assert!(matches!(rows.rows(0..64), Err(Error::Malformed { .. })));
        }
        std::fs::write(&path, b"not a picture").unwrap();
        assert!(PngRows::open(&path).unwrap().is_none());
    }

    #[test]
    fn a_damaged_png_is_an_error_wherever_the_damage_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.png");
        let samples: Vec<u8> = (0..40 * 30 * 3u32).map(|i| ((i * 7919) >> 3) as u8).collect();
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(&samples, 40, 30, ExtendedColorType::Rgb8).unwrap();
        // From behind the header's chunk to the end of the data.
        for at in (45..bytes.len() - 16).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            let rows = PngRows::open(&path).and_then(|rows| rows.expect("a PNG").rows(0..30));
            assert!(matches!(rows, Err(Error::Malformed { .. })), "byte {at} of {}", bytes.len());
        }
    }

    #[test]
    fn a_row_file_gives_back_what_was_written() {
        let values: Vec<f32> = (0..5 * 7 * 3).map(|i| i as f32).collect();
        let mut file = RowFile::create_in(Path::new(""), 5, 7).unwrap();
        file.write(&values[..30]).unwrap();
        file.write(&values[30..]).unwrap();
        assert!(matches!(file.write(&values[..15]), Err(Error::Invalid { .. })));
        assert_eq!(file.rows(2..5).unwrap(), values[30..75]);
        assert_eq!(file.rows(0..7).unwrap(), values);
    }
}
