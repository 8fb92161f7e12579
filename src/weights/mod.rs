//! Safetensors as named, typed, shaped tensors, read one at a time. No GPU.
//!
//! [`Weights`] has three constructors, [`Weights::open`] for files and folders, [`Weights::from_bytes`] for memory (the
//! decoder that ships in the package) and [`Weights::stream`] for bytes that arrive over time (the browser), and one way
//! out: [`Weights::get_async`], which checks type, shape and finiteness and up-casts to f32. Files are read by seeking to a tensor, never whole and never mapped: a file that
//! shrinks under us is an error, not a crash. A [`View`] lets a model ask for the names of its own format whatever
//! naming the file uses ([`vae_keys`], [`taesd_keys`], [`unet_keys`], [`clip_keys`], [`dit_keys`], [`infd_keys`]); [`recognise`] says what a file holds.

pub mod builtin;
pub mod clip_keys;
pub mod dit_keys;
mod folder;
mod header;
pub mod infd_keys;
pub mod lora;
pub(crate) mod npy;
pub mod recognise;
pub(crate) mod source;
pub mod taesd_keys;
pub mod unet_keys;
pub mod vae_keys;
mod view;
pub(crate) mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};

pub use safetensors::Dtype;

pub use builtin::Builtin;
pub use view::View;

use crate::error::{Error, Result};
use source::Source;
pub use source::{ByteStream, Fetched, Shared};

/// Bytes converted at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// The tensors of one model: a safetensors file, a sharded set of them, a folder, or bytes in memory.
///
/// Cheap to hold (the headers and open files); tensors are read on demand. `Send` and `Sync`.
pub struct Weights {
    path: PathBuf,
    shards: Vec<Source>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    config: Option<Config>,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Position of the first byte in the shard's file, and the byte after the last.
    bytes: std::ops::Range<u64>,
}

struct Config {
    path: PathBuf,
    json: String,
}

/// Type and shape of a tensor, as the file has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, slowest first, in torch's order (`[out, in, kh, kw]` for a convolution).
    pub shape: &'a [usize],
}

impl Info<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product() // the header's validation has excluded an overflow
    }
}

impl Weights {
    /// Opens `path`: a safetensors file, a `*.index.json` with its shards beside it, a component folder (`config.json`
    /// beside `diffusion_pytorch_model[.fp16].safetensors` or `model[.fp16].safetensors`, or the only `.safetensors` in
    /// it), or a pipeline folder, of which the `vae/` is taken.
    ///
    /// The content decides, not the ending. A standard file name inside a component folder brings the folder's
    /// `config.json` with it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pickle`] for a pickle under any name; [`Error::Malformed`] for a file that breaks the
    /// format; [`Error::UnknownModel`] for a folder without safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        folder::open(path.as_ref())
    }

    /// One safetensors file in memory. `name` stands for it in messages. Static bytes are not copied.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self> {
        Self::from_sources(name.into(), vec![Source::from_bytes(bytes, name)], None)
    }

    /// One safetensors file whose bytes arrive over time: the header now, each tensor when it is asked for.
    /// `name` stands for it in messages. Its tensors come through [`Weights::get_async`] alone.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub async fn stream(stream: impl ByteStream + 'static, name: &str) -> Result<Self> {
        let mut source = Source::stream(Box::new(stream), name).await?;
        header::prefetch(&mut source).await?;
        let mut weights = Self::from_sources(name.into(), vec![source], None)?;
        weights.shards.iter_mut().for_each(Source::forget_prefetched);
        Ok(weights)
    }

    /// All tensors of `shards`, which must not share a name.
    fn from_sources(path: PathBuf, shards: Vec<Source>, config: Option<Config>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        for (shard, source) in shards.iter().enumerate() {
            let header = header::read(source)?;
            metadata.extend(header.metadata);
            for (name, info) in header.tensors {
                let (begin, end) = info.data_offsets;
                let bytes = header.data_start + begin..header.data_start + end;
                let entry = Entry { shard, dtype: info.dtype, shape: info.shape.iter().map(|&d| d as usize).collect(), bytes };
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(source.malformed("shard", format!("tensor `{name}` is also in another shard")));
                }
            }
        }
        Ok(Self { path, shards, tensors, metadata, config })
    }

    /// The file or folder that was opened, or the name given to [`Weights::from_bytes`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether some tensor's name begins with `prefix`.
    pub fn contains_prefix(&self, prefix: &str) -> bool {
        let after = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        self.tensors.range::<str, _>(after).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<Info<'_>> {
        self.tensors.get(name).map(|entry| Info { dtype: entry.dtype, shape: &entry.shape })
    }

    /// The `__metadata__` of the file; that of all shards together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The model's configuration as JSON: the folder's `config.json`, else the `infgen_config` of the metadata.
    pub fn config_json(&self) -> Option<&str> {
        let folder = self.config.as_ref().map(|config| config.json.as_str());
        folder.or_else(|| self.metadata.get(crate::models::infgen_config::METADATA_KEY).map(String::as_str))
    }

    /// Where [`Weights::config_json`] stands, for messages: `config.json`, or the weights that embed it.
    pub fn config_path(&self) -> &Path {
        self.config.as_ref().map_or(&self.path, |config| &config.path)
    }

    /// A tensor as f32, row-major, up-cast from f32, f16 or bf16.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`], [`Error::NonFiniteTensor`], and
    /// [`Error::Io`] if the file has changed since it was opened, or if its bytes are still on their way
    /// ([`Weights::stream`]).
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        now(self.get_async(name, shape), &self.path)
    }

    /// [`Weights::get`] that waits for bytes on their way.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub async fn get_async(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(self.wrong_shape(name, shape, &entry.shape));
        }
        self.read(name, entry).await
    }

    /// Some rows (slices along the first axis) of the tensor `name`, which must have this shape; otherwise as
    /// [`Weights::get`]. Only those bytes are read.
    ///
    /// # Errors
    /// As [`Weights::get`].
    ///
    /// # Panics
    /// If `rows` leaves the tensor.
    pub async fn get_rows(&self, name: &str, shape: &[usize], rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(self.wrong_shape(name, shape, &entry.shape));
        }
        assert!(rows.start <= rows.end && rows.end <= shape[0], "rows {rows:?} of {shape:?}");
        let a_row = shape[1..].iter().product::<usize>();
        self.read_elements(name, entry, rows.start * a_row..rows.end * a_row).await
    }

    /// A tensor of whatever shape, with its shape; otherwise as [`Weights::get`].
    ///
    /// # Errors
    /// As [`Weights::get`], less the shape.
    pub fn get_any(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let entry = self.entry(name)?;
        Ok((entry.shape.clone(), now(self.read(name, entry), &self.path)?))
    }

    /// The tensors under their own names, the mid block's attention also under the names that it has in older files.
    pub fn view(&self) -> View<'_> {
        View::new(self, "", view::Naming::Vae)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { path: self.path.clone(), tensor: name.to_owned() })
    }

    fn wrong_shape(&self, name: &str, expected: &[usize], got: &[usize]) -> Error {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        Error::TensorShape { path, tensor, expected: expected.to_vec(), got: got.to_vec() }
    }

    fn wrong_type(&self, name: &str, got: Dtype) -> Error {
        Error::TensorType { path: self.path.clone(), tensor: name.to_owned(), got: got.to_string() }
    }

    async fn read(&self, name: &str, entry: &Entry) -> Result<Vec<f32>> {
        self.read_elements(name, entry, 0..entry.shape.iter().product()).await
    }

    async fn read_elements(&self, name: &str, entry: &Entry, elements: std::ops::Range<usize>) -> Result<Vec<f32>> {
        let decode: fn(&[u8], &mut Vec<f32>) = match entry.dtype {
            Dtype::F32 => |bytes, out| out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::F16 => |bytes, out| out.extend(bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::BF16 => |bytes, out| out.extend(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            other => return Err(self.wrong_type(name, other)),
        };
        let source = &self.shards[entry.shard];
        // The header's check has tied the shape to bytes that exist in the file, so this is at most twice its size.
        let mut values = Vec::with_capacity(elements.len());
        let element_bytes = entry.dtype.bitsize() as u64 / 8;
        let mut offset = entry.bytes.start + elements.start as u64 * element_bytes;
        let end = entry.bytes.start + elements.end as u64 * element_bytes;
        let mut buffer = vec![0; CHUNK_BYTES.min((end - offset) as usize)];
        while offset < end {
            let chunk = &mut buffer[..CHUNK_BYTES.min((end - offset) as usize)];
            source.read_at_async(offset, chunk).await?;
            let first = values.len();
            decode(chunk, &mut values);
            if let Some(index) = first_non_finite(&values[first..]) {
                let (path, tensor) = (self.path.clone(), name.to_owned());
                return Err(Error::NonFiniteTensor { path, tensor, index: elements.start + first + index });
            }
            offset += chunk.len() as u64;
        }
        Ok(values)
    }
}

/// The result of a future that has nothing to wait for: reading from a file or from memory.
fn now<T>(future: impl Future<Output = Result<T>>, path: &Path) -> Result<T> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::Io { path: path.to_owned(), source: std::io::ErrorKind::WouldBlock.into() }),
    }
}

/// Index of the first NaN or infinity.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // x * 0 is 0 for every finite x and NaN otherwise: a sum the compiler can vectorise, in front of the exact search.
    let probe: f32 = values.chunks(16).map(|c| c.iter().map(|x| x * 0.0).sum::<f32>()).sum();
    if probe == 0.0 { None } else { values.iter().position(|x| !x.is_finite()) }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::write::tests::bytes_of;

    #[test]
    fn first_non_finite_finds_each_position_and_nothing_in_finite_data() {
        let mut values = vec![f32::MAX; 100];
        values[7] = f32::MIN_POSITIVE / 2.0;
        assert_eq!(first_non_finite(&values), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 15, 16, 63, 99] {
                let mut values = values.clone();
                values[at] = bad;
                values[99] = bad;
                assert_eq!(first_non_finite(&values), Some(at));
            }
        }
    }

    #[test]
    fn values_longer_than_a_chunk_come_back_whole_in_every_type() {
        let n = CHUNK_BYTES / 4 + 3;
        let values: Vec<f32> = (0..n).map(|i| (i % 255) as f32 - 100.0).collect(); // exact in f16 and bf16
        let files: [(Dtype, Vec<u8>); 3] = [
            (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()),
            (Dtype::BF16, values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()),
        ];
        for (dtype, data) in files {
            let weights = Weights::from_bytes(bytes_of(&[("a", dtype, &[n], &data)], &[]), "m").unwrap();
            assert_eq!(weights.get("a", &[n]).unwrap(), values, "{dtype}");
        }
        let mut data = bytes_of(&[("a", Dtype::F32, &[n], &vec![0; 4 * n])], &[]);
        let last = data.len() - 4;
        data[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = Weights::from_bytes(data, "m").and_then(|weights| weights.get("a", &[n])).unwrap_err();
        assert!(matches!(error, Error::NonFiniteTensor { index, .. } if index == n - 1), "{error}");
    }

    #[test]
    fn get_checks_name_shape_type_and_finiteness() {
        let ints = [0; 16];
        let nan: Vec<u8> = [1.0, f32::NAN, 2.0, 3.0].iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let tensors = [("i", Dtype::I64, &[2][..], &ints[..]), ("n", Dtype::F32, &[2, 2], &nan)];
        let weights = Weights::from_bytes(bytes_of(&tensors, &[("k", "v")]), "mem").unwrap();
        assert!(matches!(weights.get("x", &[2]), Err(Error::MissingTensor { tensor, .. }) if tensor == "x"));
        assert!(matches!(weights.get("i", &[2]), Err(Error::TensorType { got, .. }) if got == "I64"));
        assert!(matches!(weights.get("n", &[4]), Err(Error::TensorShape { .. })));
        assert!(matches!(weights.get("n", &[2, 2]), Err(Error::NonFiniteTensor { index: 1, .. })));
        assert!(matches!(weights.get_any("n"), Err(Error::NonFiniteTensor { index: 1, .. })));
        assert_eq!(weights.metadata()["k"], "v");
        assert_eq!(weights.names().collect::<Vec<_>>(), ["i", "n"]);
        assert!(weights.contains_prefix("n") && !weights.contains_prefix("j") && !weights.contains_prefix("nn"));
    }
}
