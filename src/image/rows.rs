//! Writing a picture row band by row band, so that it never has to be whole in memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use image::ImageEncoder;

use super::atomic::AtomicFile;
use super::{OutputFormat, quantise};
use crate::error::{Error, Result};
use crate::weights::{first_non_finite, npy, write};

const JPEG_QUALITY: u8 = 95;
/// Bytes of one PNG data chunk, written at once.
const PNG_CHUNK_BYTES: usize = 1 << 18;

/// Writes a picture from the top in bands of whole rows, in the format of its path's ending.
///
/// PNG, `.npy` and `.safetensors` are streamed; JPEG and WebP are collected in 8 bits and encoded at the end. The file
/// appears under its name in [`RowWriter::finish`]; dropped before, or after any error, it leaves nothing behind.
pub struct RowWriter {
    path: PathBuf,
    width: usize,
    height: usize,
    rows_written: usize,
    sink: Sink,
    file: AtomicFile,
}

enum Sink {
    /// The encoder writes through a second handle on the file.
    Png {
        stream: Box<png::StreamWriter<'static, Tracked>>,
        failure: Arc<OnceLock<io::Error>>,
    },
    Collect {
        format: OutputFormat,
        rgb: Vec<u8>,
    },
    /// Three f32 planes, from this position in the file.
    Planes {
        start: u64,
    },
}

impl RowWriter {
    /// Begins a picture of `width` x `height` pixels. `metadata` (keyword, text) becomes text chunks of a PNG and the
    /// metadata of a safetensors file; other formats carry none.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown ending, a size the format cannot hold, or a PNG keyword that is not 1 to 79
    /// Latin-1 characters; [`Error::Io`] where the file cannot be created.
    pub fn create(path: impl AsRef<Path>, width: usize, height: usize, metadata: &[(&str, &str)]) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let format = OutputFormat::from_path(&path)?;
        format.check_size(width, height)?;
        if format == OutputFormat::Png {
            metadata.iter().try_for_each(|(keyword, _)| check_keyword(keyword))?;
        }
        let mut file = AtomicFile::create(&path)?;
        let io = |source| Error::Io { path: path.clone(), source };
        let sink = match format {
            OutputFormat::Png => {
                let failure = Arc::new(OnceLock::new());
                let handle = file.file().try_clone().map_err(io)?;
                let tracked = Tracked { file: handle, failure: failure.clone() };
                let stream = png_stream(tracked, width as u32, height as u32, metadata).map_err(|e| png_error(&path, e))?;
                Sink::Png { stream: Box::new(stream), failure }
            }
            OutputFormat::Jpeg | OutputFormat::Webp => Sink::Collect { format, rgb: Vec::new() },
            OutputFormat::Npy | OutputFormat::Safetensors => {
                let shape = [3, height, width];
                let header = match format {
                    OutputFormat::Npy => npy::header(&shape),
                    _ => write::header("image", &shape, metadata),
                };
                file.write_all(&header).map_err(io)?;
                Sink::Planes { start: header.len() as u64 }
            }
        };
        Ok(Self { path, width, height, rows_written: 0, sink, file })
    }

    /// The next rows, 8-bit RGB interleaved, as [`Image::to_rgb8`](super::Image::to_rgb8) gives them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a band that is not whole rows, beyond the last row, or meant for `.npy` or
    /// `.safetensors`, which hold floats; [`Error::Io`].
    pub fn write_rgb8(&mut self, rows: &[u8]) -> Result<()> {
        let count = self.count_rows(rows.len())?;
        let io = |source| Error::Io { path: self.path.clone(), source };
        match &mut self.sink {
            Sink::Png { stream, .. } => stream.write_all(rows).map_err(io)?,
            Sink::Collect { rgb, .. } => rgb.extend_from_slice(rows),
            Sink::Planes { .. } => {
                return Err(Error::Invalid { what: "rows", detail: "8-bit rows for a format that holds floats".into() });
            }
        }
        self.rows_written += count;
        Ok(())
    }

    /// The next rows, f32 RGB interleaved, -1 black to 1 white; quantised where the format has 8 bits.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or infinity; otherwise as [`RowWriter::write_rgb8`], for every format.
    pub fn write_f32(&mut self, rows: &[f32]) -> Result<()> {
        let count = self.count_rows(rows.len())?;
        if first_non_finite(rows).is_some() {
            return Err(Error::NonFinite { layer: "image".into(), hint: "" });
        }
        let Sink::Planes { start } = self.sink else {
            // A band at a time: the floats may be the whole picture.
            return rows
                .chunks(3 * self.width * (1usize << 16).div_ceil(self.width))
                .try_for_each(|band| self.write_rgb8(&band.iter().map(|&x| quantise(x)).collect::<Vec<_>>()));
        };
        let plane = 4 * (self.width * self.height) as u64;
        let row_offset = 4 * (self.rows_written * self.width) as u64;
        for channel in 0..3 {
            let bytes: Vec<u8> = rows.iter().skip(channel).step_by(3).flat_map(|x| x.to_le_bytes()).collect();
            let mut file = self.file.file();
            file.seek(SeekFrom::Start(start + plane * channel as u64 + row_offset))
                .and_then(|_| file.write_all(&bytes))
                .map_err(|source| Error::Io { path: self.path.clone(), source })?;
        }
        self.rows_written += count;
        Ok(())
    }

    fn count_rows(&self, values: usize) -> Result<usize> {
        let row = 3 * self.width;
        if values.is_multiple_of(row) && values / row <= self.height - self.rows_written {
            return Ok(values / row);
        }
        let (left, width) = (self.height - self.rows_written, self.width);
        Err(Error::Invalid { what: "rows", detail: format!("{values} values; at most {left} rows of {width} RGB pixels are left") })
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::Invalid`] if rows are missing; [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        let Self { path, width, height, rows_written, sink, mut file } = self;
        if rows_written < height {
            return Err(Error::Invalid { what: "rows", detail: format!("{rows_written} of {height} rows were written") });
        }
        match sink {
            Sink::Png { stream, failure } => {
                stream.finish().map_err(|e| png_error(&path, e))?;
                // The last chunk is written in a destructor, which can only leave a note.
                if let Some(source) = failure.get() {
                    return Err(Error::Io { path, source: source.kind().into() });
                }
            }
            Sink::Collect { format, rgb } => {
                let mut out = io::BufWriter::new(&mut file);
                let (w, h, color) = (width as u32, height as u32, image::ExtendedColorType::Rgb8);
                match format {
                    OutputFormat::Jpeg => {
                        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY).write_image(&rgb, w, h, color)
                    }
                    _ => image::codecs::webp::WebPEncoder::new_lossless(&mut out).write_image(&rgb, w, h, color),
                }
                .map_err(|e| match e {
                    image::ImageError::IoError(source) => Error::Io { path: path.clone(), source },
                    other => Error::Io { path: path.clone(), source: io::Error::other(other) },
                })?;
                out.flush().map_err(|source| Error::Io { path: path.clone(), source })?;
            }
            Sink::Planes { .. } => {}
        }
        file.commit()
    }
}

fn png_stream(
    out: Tracked,
    width: u32,
    height: u32,
    metadata: &[(&str, &str)],
) -> Result<png::StreamWriter<'static, Tracked>, png::EncodingError> {
    let mut encoder = png::Encoder::new(out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    // 18 ms a megapixel on a photograph, where `Balanced` takes 650 for a file an eighth smaller (png 0.18.1, one core of
    // a shared Xeon).
    encoder.set_compression(png::Compression::Fast);
    for &(keyword, text) in metadata {
        // tEXt is Latin-1 and ends at a NUL; iTXt is UTF-8.
        if text.chars().all(|c| u32::from(c) < 256 && c != '\0') {
            encoder.add_text_chunk(keyword.into(), text.into())?;
        } else {
            encoder.add_itxt_chunk(keyword.into(), text.into())?;
        }
    }
    encoder.write_header()?.into_stream_writer_with_size(PNG_CHUNK_BYTES)
}

/// The PNG specification's rule for keywords (section 11.3.3.1), which the encoder leaves to its caller.
fn check_keyword(keyword: &str) -> Result<()> {
    let printable = |c: char| matches!(c, ' '..='~' | '\u{a1}'..='\u{ff}');
    if (1..=79).contains(&keyword.chars().count()) && keyword.chars().all(printable) && keyword == keyword.trim() {
        return Ok(());
    }
    let detail = format!("keyword {keyword:?}; 1 to 79 printable Latin-1 characters are needed");
    Err(Error::Invalid { what: "metadata", detail })
}

fn png_error(path: &Path, error: png::EncodingError) -> Error {
    match error {
        png::EncodingError::IoError(source) => Error::Io { path: path.to_owned(), source },
        other => Error::Io { path: path.to_owned(), source: io::Error::other(other) },
    }
}

/// A file that remembers its first failure, for a writer whose destructor swallows errors.
struct Tracked {
    file: File,
    failure: Arc<OnceLock<io::Error>>,
}

impl Tracked {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            // A second failure adds nothing to the first.
            let _ = self.failure.set(error.kind().into());
        })
    }
}

impl Write for Tracked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.file.write(bytes);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.file.flush();
        self.note(result)
    }
}
