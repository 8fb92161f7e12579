//! The one error type of the crate. Variants carry facts; the text of each says what was wrong, where, and what to do.

use std::path::PathBuf;

/// Everything that can go wrong, told apart by whose business it is: the caller's input
/// (files, shapes, arguments), this machine's limits (adapter, memory, device loss), or
/// a stop that the caller asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what its format demands (truncated, hostile, or something else altogether).
    #[error("{}: not a valid {format}: {detail}", path.display())]
    Malformed {
        /// The file, or a name for bytes that came from memory.
        path: PathBuf,
        /// The format that was expected, as users call it.
        format: &'static str,
        /// Where and how it breaks the format.
        detail: String,
    },
    /// A pickle (`.ckpt`, `.pt`, `.pth`): refused, since unpickling runs code from the file.
    #[error("{}: this is a Python pickle, which can run code when opened, so it is never read; convert it to safetensors first (for instance with `safetensors.torch.save_file(torch.load(path, weights_only=True), out)`)", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A tensor that the model needs is not in the file.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor {
        /// The weights file or folder.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model's config demands.
    #[error("{}: tensor `{tensor}` has shape {got:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The weights file or folder.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Shape that the config implies.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A tensor has an element type that weights cannot have (integers, f8, f64 ...).
    #[error("{}: tensor `{tensor}` has type {got}; f32, f16 and bf16 are read", path.display())]
    TensorType {
        /// The weights file or folder.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// The type in the file.
        got: String,
    },
    /// A weight or latent holds NaN or infinity.
    #[error("{}: tensor `{tensor}` holds a non-finite value (NaN or infinity) at element {index}", path.display())]
    NonFiniteTensor {
        /// The file.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Index of the first such element, row-major.
        index: usize,
    },
    /// A weight that f16 cannot hold; loading it would change the model without a word.
    #[error("{}: tensor `{tensor}` holds {value}, beyond f16's range of +-65504; it needs dtype f32", path.display())]
    F16Range {
        /// The weights file.
        path: PathBuf,
        /// Full name of the tensor, or of the layer it was packed for.
        tensor: String,
        /// The first such value.
        value: f32,
    },
    /// A model's configuration contradicts itself or asks for what this version does not know.
    #[error("{}: {detail}", path.display())]
    Config {
        /// The config file, or the weights file that embeds it.
        path: PathBuf,
        /// Field and reason.
        detail: String,
    },
    /// This build carries no built-in model of that kind.
    #[error("this build carries no `{file}`; name the weights to use")]
    NoBuiltin {
        /// The file that it would have been built from.
        file: &'static str,
    },
    /// Weights that are none of the known models.
    #[error("{}: not recognised as a model this version can run ({detail})", path.display())]
    UnknownModel {
        /// The weights file or folder.
        path: PathBuf,
        /// What was looked for.
        detail: String,
    },
    /// A model that is no file here and could not be fetched from the hub either.
    #[error("{id}: no such file or folder, and from the hub it cannot be had: {detail}")]
    Hub {
        /// The id, `org/name`.
        id: String,
        /// What went wrong, and what to do.
        detail: String,
    },
    /// An argument is outside its range, or arguments contradict each other.
    #[error("{what}: {detail}")]
    Invalid {
        /// The argument, as the caller knows it.
        what: &'static str,
        /// Value, range and remedy.
        detail: String,
    },
    /// The values of a layer left the range of its number type during the computation.
    #[error("non-finite values after layer `{layer}`: the picture would be garbage and was not written{hint}")]
    NonFinite {
        /// The first layer in which they were seen.
        layer: String,
        /// What to try (`; try dtype f32`), or nothing.
        hint: &'static str,
    },
    /// No adapter, or none that fits the request.
    #[error("no usable GPU adapter: {detail}")]
    NoAdapter {
        /// What was searched, what was found, and what to install.
        detail: String,
    },
    /// There is no window to be had: no display, or one that the device cannot draw on.
    #[error("no window could be opened: {detail}")]
    Display {
        /// What was missing.
        detail: String,
    },
    /// The work needs more GPU memory than the ceiling allows. Nothing was dispatched.
    #[error("this needs {needed} bytes of GPU memory ({}), more than the ceiling of {ceiling} bytes; raise it to at least {needed}, or ask for a smaller size", human_bytes(*needed))]
    MemoryCeiling {
        /// Smallest ceiling with which it would run, in bytes.
        needed: u64,
        /// The ceiling in force, in bytes.
        ceiling: u64,
    },
    /// Under the ceiling of GPU memory planes would have to be kept on the host, and they are too large for that.
    #[error("under this ceiling of GPU memory planes must be kept in host memory, and {ceiling} bytes ({}) of it are not enough; raise one of the two", human_bytes(*ceiling))]
    HostMemory {
        /// Bytes of host memory that could be used.
        ceiling: u64,
    },
    /// One buffer or one binding would be larger than the device allows. Nothing was dispatched.
    #[error("{op}: needs a single buffer of {bytes} bytes ({}), the device allows {limit}; ask for a smaller size", human_bytes(*bytes))]
    BufferTooLarge {
        /// The tensor or kernel.
        op: String,
        /// Bytes it would need.
        bytes: u64,
        /// The device's limit in bytes.
        limit: u64,
    },
    /// The driver could not allocate although the plan was within the ceiling.
    #[error(
        "the GPU is out of memory while {during} (asked for {bytes} bytes; other programs may hold the rest): free some or set a lower ceiling"
    )]
    OutOfMemory {
        /// What was going on.
        during: String,
        /// Size of the allocation that failed.
        bytes: u64,
    },
    /// The device was lost (driver reset, unplugged, watchdog).
    #[error("the GPU device was lost while {during}: {reason}; create a new engine to go on")]
    DeviceLost {
        /// What was going on.
        during: String,
        /// The driver's words.
        reason: String,
    },
    /// The driver or wgpu rejected an operation: a bug of ours or of the driver.
    #[error("GPU validation failed while {during}: {detail}")]
    Gpu {
        /// What was going on.
        during: String,
        /// wgpu's message.
        detail: String,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The variant's name: what programs tell errors apart by where the type is out of reach (JavaScript, JSON).
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "Io",
            Error::Malformed { .. } => "Malformed",
            Error::Pickle { .. } => "Pickle",
            Error::MissingTensor { .. } => "MissingTensor",
            Error::TensorShape { .. } => "TensorShape",
            Error::TensorType { .. } => "TensorType",
            Error::NonFiniteTensor { .. } => "NonFiniteTensor",
            Error::F16Range { .. } => "F16Range",
            Error::Config { .. } => "Config",
            Error::NoBuiltin { .. } => "NoBuiltin",
            Error::UnknownModel { .. } => "UnknownModel",
            Error::Hub { .. } => "Hub",
            Error::Invalid { .. } => "Invalid",
            Error::NonFinite { .. } => "NonFinite",
            Error::NoAdapter { .. } => "NoAdapter",
            Error::Display { .. } => "Display",
            Error::MemoryCeiling { .. } => "MemoryCeiling",
            Error::HostMemory { .. } => "HostMemory",
            Error::BufferTooLarge { .. } => "BufferTooLarge",
            Error::OutOfMemory { .. } => "OutOfMemory",
            Error::DeviceLost { .. } => "DeviceLost",
            Error::Gpu { .. } => "Gpu",
            Error::Cancelled => "Cancelled",
        }
    }
}

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `1536` as `1.5 KiB`, in powers of 1024, for messages.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
/// serde's message for a `T` whose fields all have defaults, with the field in front where it does not name one (wrong types, unknown values).
pub(crate) fn explain_json<T: serde::de::DeserializeOwned>(json: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    if message.contains("field `") {
        return message;
    }
    let fields: serde_json::Map<String, serde_json::Value> = match serde_json::from_str(json) {
        Ok(fields) => fields,
        Err(_) => return format!("not a JSON object of fields: {message}"),
    };
    // Every field has a default, so the culprit also fails alone.
    let culprit = fields.into_iter().find_map(|(field, value)| {
        let alone = serde_json::Value::Object([(field.clone(), value)].into_iter().collect());
        serde_json::from_value::<T>(alone).err().map(|e| format!("`{field}`: {e}"))
    });
    culprit.unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever calls from Rust or a browser has no command line; the program names its options itself.
    #[test]
    fn advice_on_devices_and_memory_names_no_options_of_the_program() {
        let path = PathBuf::from("w.safetensors");
        for error in [
            Error::MemoryCeiling { needed: 2, ceiling: 1 },
            Error::HostMemory { ceiling: 1 },
            Error::OutOfMemory { during: "loading".into(), bytes: 1 },
            Error::BufferTooLarge { op: "x".into(), bytes: 2, limit: 1 },
            Error::F16Range { path, tensor: "x".into(), value: 1e6 },
            crate::engine::hint(Error::NonFinite { layer: "x".into(), hint: "" }, crate::Dtype::F16),
        ] {
            assert!(!error.to_string().contains("--"), "{error}");
        }
    }
}
