//! The models that ship inside the library.
//!
//! `build.rs` looks for them: with `weights/infgen-tiny-sd.safetensors` (or `encoder-tiny-sd`) and its line in
//! `weights/SHA256SUMS` present it is embedded, without it a build carries none and says so when asked. A build for the
//! browser embeds none: the package has the files beside it.

use super::Weights;
use crate::error::{Error, Result};

/// A model that ships inside the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    /// The InfGen decoder that is used when none is named.
    Decoder,
    /// The encoder that is used when none is named.
    Encoder,
}

struct Embedded {
    bytes: &'static [u8],
    sha256: &'static str,
}

#[cfg(builtin_decoder)]
const DECODER: Option<Embedded> =
    Some(Embedded { bytes: include_bytes!("../../weights/infgen-tiny-sd.safetensors"), sha256: env!("INFGEN_SHA256_DECODER") });
#[cfg(not(builtin_decoder))]
const DECODER: Option<Embedded> = None;

#[cfg(builtin_encoder)]
const ENCODER: Option<Embedded> =
    Some(Embedded { bytes: include_bytes!("../../weights/encoder-tiny-sd.safetensors"), sha256: env!("INFGEN_SHA256_ENCODER") });
#[cfg(not(builtin_encoder))]
const ENCODER: Option<Embedded> = None;

impl Builtin {
    /// The file in the repository that it was made from.
    pub fn file(self) -> &'static str {
        match self {
            Self::Decoder => "weights/infgen-tiny-sd.safetensors",
            Self::Encoder => "weights/encoder-tiny-sd.safetensors",
        }
    }

    /// Whether this build carries it.
    pub fn is_present(self) -> bool {
        self.embedded().is_some()
    }

    /// SHA-256 of that file, where this build knows it.
    pub fn sha256(self) -> Option<&'static str> {
        match self {
            Self::Decoder => option_env!("INFGEN_SHA256_DECODER"),
            Self::Encoder => option_env!("INFGEN_SHA256_ENCODER"),
        }
    }

    fn embedded(self) -> Option<Embedded> {
        match self {
            Self::Decoder => DECODER,
            Self::Encoder => ENCODER,
        }
    }
}

impl Weights {
    /// A model that ships inside the library, its SHA-256 checked; the bytes are not copied.
    ///
    /// # Errors
    /// [`Error::NoBuiltin`] where this build carries none, [`Error::Malformed`] where the program file is damaged.
    pub fn builtin(which: Builtin) -> Result<Self> {
        let embedded = which.embedded().ok_or(Error::NoBuiltin { file: which.file() })?;
        let name = format!("(built in) {}", which.file());
        verify(&embedded, &name)?;
        Self::from_bytes(embedded.bytes, &name)
    }
}

fn verify(embedded: &Embedded, name: &str) -> Result<()> {
    use sha2::Digest;
    let digest: String = sha2::Sha256::digest(embedded.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest == embedded.sha256 {
        return Ok(());
    }
    let detail = format!("SHA-256 is {digest}, expected {}: this program is damaged, install it again", embedded.sha256);
    Err(Error::Malformed { path: name.into(), format: "built-in model", detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found() {
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, B.1
        assert!(verify(&Embedded { bytes: b"abc", sha256 }, "m").is_ok());
        assert!(matches!(verify(&Embedded { bytes: b"abd", sha256 }, "m"), Err(Error::Malformed { .. })));
    }

    #[test]
    fn what_the_build_carries_opens_and_what_it_lacks_is_named() {
        for which in [Builtin::Decoder, Builtin::Encoder] {
            match Weights::builtin(which) {
                Ok(weights) => assert!(which.is_present() && !weights.is_empty()),
                Err(Error::NoBuiltin { file }) => assert!(!which.is_present() && file == which.file()),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
