//! Bytes of a file, of memory or on their way behind one reader, and what their first bytes say they are.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// `Send + Sync` where there are threads to send to: everywhere but in a browser.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shared: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shared for T {}
/// `Send + Sync` where there are threads to send to: everywhere but in a browser.
#[cfg(target_arch = "wasm32")]
pub trait Shared {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shared for T {}

/// Bytes that a [`ByteStream`] will deliver.
#[cfg(not(target_arch = "wasm32"))]
pub type Fetched<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;
/// Bytes that a [`ByteStream`] will deliver.
#[cfg(target_arch = "wasm32")]
pub type Fetched<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// A file whose bytes arrive over time, for instance from a network; see [`super::Weights::stream`].
pub trait ByteStream: Shared {
    /// Length of the whole in bytes; it does not change.
    fn length(&self) -> u64;

    /// Fills `buffer` from `offset`, when the bytes are there. Ranges are asked for one after the other, in any order.
    ///
    /// # Errors
    /// Whatever keeps the bytes from coming; `UnexpectedEof` for a range beyond the end.
    fn fetch<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> Fetched<'a>;
}

/// What [`Source::sniff`] looks at: always the head, of zip archives also the tail.
const HEAD_BYTES: usize = 1024;
const TAIL_BYTES: usize = 1 << 16;

/// Random access to the bytes of one file, or to bytes in memory or on their way under a name for messages.
pub(crate) struct Source {
    path: PathBuf,
    len: u64,
    store: Store,
}

/// Opens a file that has an end: no folder, and neither a FIFO, which would wait for its other end, nor a device.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.is_dir() {
        return Err(io(io::ErrorKind::IsADirectory.into()));
    }
    if !meta.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    File::open(path).map_err(io)
}

enum Store {
    File(Mutex<File>),
    Bytes(Cow<'static, [u8]>),
    Stream { stream: Box<dyn ByteStream>, prefetched: Vec<(u64, Vec<u8>)> },
}

impl Source {
    /// Opens a regular file; its length is taken now and trusted by every later check.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let len = file.metadata().map_err(|source| Error::Io { path: path.to_owned(), source })?.len();
        Ok(Self { path: path.to_owned(), len, store: Store::File(Mutex::new(file)) })
    }

    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Self {
        let bytes = bytes.into();
        Self { path: name.into(), len: bytes.len() as u64, store: Store::Bytes(bytes) }
    }

    /// Bytes on their way. The ends of it that [`Source::sniff`] looks at are fetched here.
    pub async fn stream(stream: Box<dyn ByteStream>, name: &str) -> Result<Self> {
        let len = stream.length();
        let mut source = Self { path: name.into(), len, store: Store::Stream { stream, prefetched: Vec::new() } };
        source.prefetch(0, HEAD_BYTES).await?;
        if source.read_up_to(0, 2)? == b"PK" {
            source.prefetch(len.saturating_sub(TAIL_BYTES as u64), TAIL_BYTES).await?;
        }
        Ok(source)
    }

    /// Waits for up to `len` bytes from `offset`, so that [`Source::read_at`] has them.
    pub async fn prefetch(&mut self, offset: u64, len: usize) -> Result<()> {
        let Store::Stream { stream, prefetched } = &mut self.store else { return Ok(()) };
        let mut buffer = vec![0; (len as u64).min(self.len.saturating_sub(offset)) as usize];
        stream.fetch(offset, &mut buffer).await.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        prefetched.push((offset, buffer));
        Ok(())
    }

    /// Frees what [`Source::prefetch`] has brought.
    pub fn forget_prefetched(&mut self) {
        if let Store::Stream { prefetched, .. } = &mut self.store {
            *prefetched = Vec::new();
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset`; a range beyond the end is an I/O error, never a panic.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = match &self.store {
            Store::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(buffer))
            }
            Store::Bytes(bytes) => usize::try_from(offset)
                .ok()
                .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?))
                .map(|range| buffer.copy_from_slice(range))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            Store::Stream { prefetched, .. } => prefetched
                .iter()
                .find_map(|(start, bytes)| {
                    let from = usize::try_from(offset.checked_sub(*start)?).ok()?;
                    bytes.get(from..from.checked_add(buffer.len())?)
                })
                .map(|range| buffer.copy_from_slice(range))
                .ok_or_else(|| io::ErrorKind::WouldBlock.into()),
        };
        read.map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// [`Source::read_at`] that waits for bytes on their way.
    pub async fn read_at_async(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match &self.store {
            Store::Stream { stream, .. } => {
                stream.fetch(offset, buffer).await.map_err(|source| Error::Io { path: self.path.clone(), source })
            }
            _ => self.read_at(offset, buffer),
        }
    }

    /// Up to `len` bytes from `offset`; fewer at the end.
    pub fn read_up_to(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; (len as u64).min(self.len.saturating_sub(offset)) as usize];
        if !buffer.is_empty() {
            self.read_at(offset, &mut buffer)?;
        }
        Ok(buffer)
    }

    /// The whole text, if it is UTF-8 and at most `cap` bytes long.
    pub fn read_text(&self, format: &'static str, cap: u64) -> Result<String> {
        if self.len > cap {
            return Err(self.malformed(format, format!("{} bytes, more than the {cap} that are read", self.len)));
        }
        String::from_utf8(self.read_up_to(0, cap as usize)?)
            .map_err(|e| self.malformed(format, format!("byte {} is not UTF-8", e.utf8_error().valid_up_to())))
    }

    pub fn malformed(&self, format: &'static str, detail: impl Into<String>) -> Error {
        Error::Malformed { path: self.path.clone(), format, detail: detail.into() }
    }

    /// What the content is, whatever the name ends in.
    pub fn sniff(&self) -> Result<Content> {
        let head = self.read_up_to(0, HEAD_BYTES)?;
        Ok(match &head[..] {
            [] => Content::Empty,
            [b'P', b'K', 3, 4, ..] => {
                // torch.save writes `<name>/data.pkl` first; the directory at the end of the file lists it in any case.
                let tail = self.read_up_to(self.len.saturating_sub(TAIL_BYTES as u64), TAIL_BYTES)?;
                let listed = |bytes: &[u8]| bytes.windows(8).any(|w| w == b"data.pkl");
                if listed(&head) || listed(&tail) { Content::Pickle } else { Content::Other("a zip archive") }
            }
            // A pickle of protocol 2 to 5; also the first bytes of a safetensors header of 640, 896, 1152 or 1408
            // bytes, which no pickle can continue like: NUL is not an opcode.
            [0x80, 2..=5, rest @ ..] if !matches!(rest, [0, 0, 0, 0, 0, 0, b'{', ..]) => Content::Pickle,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Content::Npy,
            [0x89, b'P', b'N', b'G', ..] => Content::Other("a PNG image"),
            [0xff, 0xd8, 0xff, ..] => Content::Other("a JPEG image"),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Content::Other("a WebP image"),
            [b'G', b'G', b'U', b'F', ..] => Content::Other("a GGUF file, which this version does not read"),
            text if text.starts_with(b"version https://git-lfs") => {
                Content::Other("a Git LFS pointer and not the file itself; fetch it with `git lfs pull`")
            }
            text if is_html(text) => Content::Other("an HTML page, probably a failed download"),
            text if text.trim_ascii_start().first() == Some(&b'{') => Content::Json,
            _ => Content::Safetensors,
        })
    }
}

fn is_html(text: &[u8]) -> bool {
    let start: Vec<u8> = text.trim_ascii_start().iter().take(14).map(u8::to_ascii_lowercase).collect();
    start.starts_with(b"<html") || start.starts_with(b"<!doctype html")
}

/// What the first bytes of a file say it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Empty,
    /// Written by Python's pickle, bare or in torch's zip.
    Pickle,
    Npy,
    Json,
    /// Recognised, and nothing that holds tensors for us; the words complete "this is ...".
    Other(&'static str),
    /// Safetensors have no magic number: whatever is none of the others is read as one, and its header is checked.
    Safetensors,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniff(bytes: &[u8]) -> Content {
        Source::from_bytes(bytes.to_vec(), "test").sniff().unwrap()
    }

    #[test]
    fn pickles_are_told_from_safetensors_headers_that_begin_with_the_same_bytes() {
        for protocol in 2..=5 {
            assert_eq!(sniff(&[0x80, protocol, b'}', b'q', 0, b'.']), Content::Pickle);
            assert_eq!(sniff(&[0x80, protocol]), Content::Pickle);
            let header = [&[0x80, protocol, 0, 0, 0, 0, 0, 0][..], b"{\"a\":"].concat();
            assert_eq!(sniff(&header), Content::Safetensors);
        }
        // torch's legacy format: a pickled magic number, LONG1 of ten bytes
        assert_eq!(sniff(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), Content::Pickle);
    }

    #[test]
    fn a_zip_is_a_pickle_only_with_data_pkl_in_it() {
        assert_eq!(sniff(b"PK\x03\x04..archive/data.pkl.."), Content::Pickle);
        let late = [b"PK\x03\x04".to_vec(), vec![b'x'; 200_000], b"archive/data.pkl".to_vec(), vec![0; 300]].concat();
        assert_eq!(sniff(&late), Content::Pickle);
        assert_eq!(sniff(b"PK\x03\x04..word/document.xml"), Content::Other("a zip archive"));
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let source = Source::from_bytes(vec![1, 2, 3], "three");
        assert!(source.read_at(u64::MAX, &mut [0]).is_err());
        assert!(source.read_at(2, &mut [0, 0]).is_err());
        assert_eq!(source.read_up_to(1, 100).unwrap(), [2, 3]);
        assert_eq!(source.read_up_to(9, 100).unwrap(), [0; 0]);
    }
}
