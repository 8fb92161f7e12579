//! Latents: what stands between a diffusion model and a decoder.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::weights::source::{Content, Source};
use crate::weights::{Weights, first_non_finite, npy};

/// Name of the tensor in a latent's safetensors file, and of the metadata key that names its space.
const TENSOR: &str = "latent";
pub(crate) const SPACE_KEY: &str = "latent_space";
const FORMAT: &str = "latent (a .safetensors file with a tensor `latent`, or a .npy array)";

/// Largest batch, channel count and side, and most values in all (4 GiB of f32).
const MAX_BATCH: usize = 1024;
const MAX_CHANNELS: usize = 256;
const MAX_SIDE: usize = 16384;
const MAX_ELEMENTS: usize = 1 << 30;

/// The latent space of a family of autoencoders, with the constants that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentSpace {
    /// Stable Diffusion 1.x and 2.x; also DiT, SiT and the like.
    Sd,
    /// Stable Diffusion XL.
    Sdxl,
    /// Stable Diffusion 3.x.
    Sd3,
    /// FLUX.1.
    Flux,
}

impl LatentSpace {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sd, Self::Sdxl, Self::Sd3, Self::Flux];

    /// The name in files and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd => "sd",
            Self::Sdxl => "sdxl",
            Self::Sd3 => "sd3",
            Self::Flux => "flux",
        }
    }

    /// The space of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|space| space.name() == name)
    }

    /// Pipelines hand on `(z - shift_factor) * scaling_factor` of the autoencoder's `z`.
    pub fn scaling_factor(self) -> f64 {
        match self {
            Self::Sd => 0.18215,
            Self::Sdxl => 0.13025,
            Self::Sd3 => 1.5305,
            Self::Flux => 0.3611,
        }
    }

    /// See [`LatentSpace::scaling_factor`].
    pub fn shift_factor(self) -> f64 {
        match self {
            Self::Sd | Self::Sdxl => 0.0,
            Self::Sd3 => 0.0609,
            Self::Flux => 0.1159,
        }
    }

    /// Channels of its latents.
    pub fn channels(self) -> usize {
        match self {
            Self::Sd | Self::Sdxl => 4,
            Self::Sd3 | Self::Flux => 16,
        }
    }

    /// The space with these constants, if it is one of ours.
    pub(crate) fn from_constants(channels: usize, scaling: f64, shift: f64) -> Option<Self> {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
        Self::ALL
            .into_iter()
            .find(|space| space.channels() == channels && near(space.scaling_factor(), scaling) && near(space.shift_factor(), shift))
    }
}

/// A batch of latents, scaled as diffusion pipelines hand them on (diffusers' `output_type="latent"`): decoding divides
/// by the decoder's scaling factor.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    data: Vec<f32>,
    /// The latent space, where it is known: `sd`, `sdxl`, ... Not limited to [`LatentSpace`]'s names.
    pub space: Option<String>,
}

impl Latent {
    /// A latent from its values, `[batch, channels, height, width]` row-major.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0 or beyond 1024 x 256 x 16384 x 16384 or 2^30 values in all, for another
    /// number of values than the sizes give, and for NaN or infinity.
    pub fn new([batch, channels, height, width]: [usize; 4], data: Vec<f32>) -> Result<Self> {
        let invalid = |detail| Error::Invalid { what: "latent", detail };
        let elements = check_sizes([batch, channels, height, width]).map_err(invalid)?;
        if data.len() != elements {
            return Err(invalid(format!("{} values for a shape of {elements}", data.len())));
        }
        if let Some(index) = first_non_finite(&data) {
            return Err(invalid(format!("value {index} is not finite (NaN or infinity)")));
        }
        Ok(Self { batch, channels, height, width, data, space: None })
    }

    /// Reads a `.safetensors` file with a tensor `latent`, or a `.npy` array; `[C, h, w]` or `[B, C, h, w]`, f32, f16
    /// or bf16 (`.npy`: little-endian f2, f4 or f8, either order). The content decides, not the ending.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Pickle`], [`Error::Malformed`], [`Error::MissingTensor`], [`Error::TensorType`],
    /// [`Error::NonFiniteTensor`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let source = Source::open(path)?;
        match source.sniff()? {
            Content::Safetensors => Self::from_weights(&Weights::open(path)?),
            content => Self::from_source(&source, content),
        }
    }

    /// As [`Latent::open`], from the bytes of such a file. `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Latent::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: &str) -> Result<Self> {
        let bytes = bytes.into();
        let source = Source::from_bytes(bytes.clone(), name);
        match source.sniff()? {
            Content::Safetensors => Self::from_weights(&Weights::from_bytes(bytes, name)?),
            content => Self::from_source(&source, content),
        }
    }

    fn from_source(source: &Source, content: Content) -> Result<Self> {
        let not = |what: &str| Err(source.malformed(FORMAT, what));
        match content {
            Content::Npy => {
                let (shape, data) = npy::read(source, MAX_ELEMENTS)?;
                Self::from_parts(source.path(), &shape, data)
            }
            Content::Pickle => Err(Error::Pickle { path: source.path().to_owned() }),
            Content::Empty => not("the file is empty"),
            Content::Json => not("this is JSON text"),
            Content::Other(what) => not(&format!("this is {what}")),
            Content::Safetensors => not("this is a safetensors file"),
        }
    }

    /// What the header of a `.npy` file says, and its shape as `[B, C, h, w]`.
    pub(crate) fn npy_facts(source: &Source) -> Result<(npy::Facts, [usize; 4])> {
        let facts = npy::facts(source, MAX_ELEMENTS)?;
        let shape = Self::dims(source.path(), &facts.shape)?;
        Ok((facts, shape))
    }

    /// The tensor `latent` of `weights`.
    ///
    /// # Errors
    /// As [`Latent::open`].
    pub fn from_weights(weights: &Weights) -> Result<Self> {
        let Some(info) = weights.info(TENSOR) else {
            let names: Vec<&str> = weights.names().take(8).collect();
            let detail = format!("there is no such tensor among its {}: {}", weights.names().count(), names.join(", "));
            return Err(Error::Malformed { path: weights.path().to_owned(), format: FORMAT, detail });
        };
        Self::dims(weights.path(), info.shape)?; // before the data is read
        let (shape, data) = weights.get_any(TENSOR)?;
        let latent = Self::from_parts(weights.path(), &shape, data)?;
        Ok(Self { space: weights.metadata().get(SPACE_KEY).cloned(), ..latent })
    }

    fn from_parts(path: &Path, shape: &[usize], data: Vec<f32>) -> Result<Self> {
        let [batch, channels, height, width] = Self::dims(path, shape)?;
        if let Some(index) = first_non_finite(&data) {
            return Err(Error::NonFiniteTensor { path: path.to_owned(), tensor: TENSOR.into(), index });
        }
        Ok(Self { batch, channels, height, width, data, space: None })
    }

    /// `[C, h, w]` or `[B, C, h, w]` as `[B, C, h, w]`, each within its cap.
    pub(crate) fn dims(path: &Path, shape: &[usize]) -> Result<[usize; 4]> {
        let malformed = |detail| Error::Malformed { path: path.to_owned(), format: FORMAT, detail };
        let sizes = match *shape {
            [c, h, w] => [1, c, h, w],
            [b, c, h, w] => [b, c, h, w],
            _ => return Err(malformed(format!("shape {shape:?}; [C, h, w] or [B, C, h, w] is needed"))),
        };
        check_sizes(sizes).map_err(malformed)?;
        Ok(sizes)
    }

    /// The bytes of a `.safetensors` file: tensor `latent`, f32 `[B, C, h, w]`, the space in its metadata.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let space = self.space.as_deref().map(|space| (SPACE_KEY, space));
        let mut file = crate::weights::write::header(TENSOR, &self.shape(), space.as_slice());
        file.extend(self.data.iter().flat_map(|x| x.to_le_bytes()));
        file
    }

    /// Writes f32 `[B, C, h, w]` by the ending: `.safetensors` (tensor `latent`, the space in its metadata) or `.npy`.
    /// The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another ending, [`Error::Io`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        use std::io::Write;
        let path = path.as_ref();
        let header = Self::format_of(path)?.header(self);
        let mut file = crate::image::atomic::AtomicFile::create(path)?;
        let io = |source| Error::Io { path: path.to_owned(), source };
        file.write_all(&header).map_err(io)?;
        for chunk in self.data.chunks(1 << 16) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(io)?;
        }
        file.commit()
    }

    /// Checks that [`Latent::save`] can write by this ending.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn check_ending(path: impl AsRef<Path>) -> Result<()> {
        Self::format_of(path.as_ref()).map(drop)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn format_of(path: &Path) -> Result<FileForm> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("safetensors") => Ok(FileForm::Safetensors),
            Some("npy") => Ok(FileForm::Npy),
            _ => Err(Error::Invalid { what: "output", detail: format!("{}: latents are written as .safetensors or .npy", path.display()) }),
        }
    }

    /// Images in the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Channels (4 for SD and SDXL).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[batch, channels, height, width]`
    pub fn shape(&self) -> [usize; 4] {
        [self.batch, self.channels, self.height, self.width]
    }

    /// All values, row-major in the order of [`Latent::shape`].
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// One image of a batch as a latent of its own; `None` beyond the batch.
    pub fn select(&self, index: usize) -> Option<Self> {
        let data = self.image(index)?.to_vec();
        Some(Self { batch: 1, data, space: self.space.clone(), ..*self })
    }

    /// The images of several latents as one batch, in the first one's space.
    ///
    /// # Errors
    /// [`Error::Invalid`] for none, and for latents of different sizes.
    pub fn join(latents: impl IntoIterator<Item = Self>) -> Result<Self> {
        let mut latents = latents.into_iter();
        let invalid = |detail| Error::Invalid { what: "latent", detail };
        let mut joined = latents.next().ok_or_else(|| invalid("there is none".to_owned()))?;
        for latent in latents {
            let (own, other) = (joined.shape(), latent.shape());
            if own[1..] != other[1..] {
                return Err(invalid(format!("shapes {own:?} and {other:?} are no one batch")));
            }
            joined.batch += latent.batch;
            joined.data.extend(latent.data);
        }
        check_sizes(joined.shape()).map_err(invalid)?;
        Ok(joined)
    }

    /// One image's values, `[channels, height, width]`; `None` beyond the batch.
    pub fn image(&self, index: usize) -> Option<&[f32]> {
        self.data.chunks_exact(self.channels * self.height * self.width).nth(index)
    }
}

#[cfg(not(target_arch = "wasm32"))]
enum FileForm {
    Safetensors,
    Npy,
}

#[cfg(not(target_arch = "wasm32"))]
impl FileForm {
    fn header(self, latent: &Latent) -> Vec<u8> {
        match self {
            Self::Npy => npy::header(&latent.shape()),
            Self::Safetensors => {
                let space = latent.space.as_deref().map(|space| (SPACE_KEY, space));
                crate::weights::write::header(TENSOR, &latent.shape(), space.as_slice())
            }
        }
    }
}

fn check_sizes(sizes: [usize; 4]) -> Result<usize, String> {
    let caps = [MAX_BATCH, MAX_CHANNELS, MAX_SIDE, MAX_SIDE];
    let names = ["batch", "channels", "height", "width"];
    for ((size, cap), name) in sizes.into_iter().zip(caps).zip(names) {
        if !(1..=cap).contains(&size) {
            return Err(format!("{name} is {size}, it must lie between 1 and {cap}"));
        }
    }
    let elements = sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
    elements.ok_or_else(|| format!("shape {sizes:?} has more than {MAX_ELEMENTS} values"))
}
