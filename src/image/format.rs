//! What a path's ending stands for, and whether it can be written: asked before any work starts.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The form of a picture on disk, by the ending of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// `.png`: 8-bit sRGB with text chunks.
    Png,
    /// `.jpg`, `.jpeg`: 8-bit, quality 95, no chroma subsampling, no metadata.
    Jpeg,
    /// `.webp`: 8-bit, lossless, no metadata.
    Webp,
    /// `.npy`: f32 `[3, H, W]`, values in [-1, 1] before clamping.
    Npy,
    /// `.safetensors`: the same in a tensor `image`.
    Safetensors,
}

impl OutputFormat {
    /// The format that the ending of `path` names, in any case.
    ///
    /// # Errors
    /// [`Error::Invalid`] that lists the endings.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::Jpeg),
            Some("webp") => Ok(Self::Webp),
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Error::Invalid {
                what: "output",
                detail: format!("{}: its ending names no format; .png, .jpg, .webp, .npy and .safetensors do", path.display()),
            }),
        }
    }

    /// Longest side the format can hold, in pixels.
    pub fn max_side(self) -> usize {
        match self {
            Self::Webp => 16383,
            Self::Jpeg => 65535,
            Self::Png | Self::Npy | Self::Safetensors => i32::MAX as usize,
        }
    }

    /// Whether it holds the float values rather than 8-bit pixels.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Npy | Self::Safetensors)
    }

    /// Checks that the format can hold a picture of that size in pixels.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the limit and a format without it.
    pub fn check_size(self, width: usize, height: usize) -> Result<()> {
        let max = self.max_side();
        if width >= 1 && height >= 1 && width <= max && height <= max {
            return Ok(());
        }
        let format = format!("{self:?}").to_ascii_lowercase();
        let detail = format!("{width}x{height}: .{format} holds from 1 to {max} pixels a side; .png holds more");
        Err(Error::Invalid { what: "size", detail })
    }
}

/// `dir/name.png` as `dir/name-007.png`: one path for each image of a batch.
pub fn batch_path(path: impl AsRef<Path>, index: usize) -> PathBuf {
    let path = path.as_ref();
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index:03}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// Checks that a file can be created at `path`, by creating and removing a temporary one beside it.
///
/// # Errors
/// [`Error::Io`]: the folder is missing or read-only, `path` is a folder, or a file there is read-only.
#[cfg(not(target_arch = "wasm32"))]
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    super::atomic::AtomicFile::create(path.as_ref()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_formats_in_any_case_and_unknown_ones_are_listed() {
        for (path, format) in [
            ("a.png", OutputFormat::Png),
            ("a.b.JPG", OutputFormat::Jpeg),
            ("x/a.jpeg", OutputFormat::Jpeg),
            ("a.webp", OutputFormat::Webp),
            ("a.npy", OutputFormat::Npy),
            ("a.safetensors", OutputFormat::Safetensors),
        ] {
            assert_eq!(OutputFormat::from_path(path).unwrap(), format);
        }
        for path in ["a", "a.gif", ".png", "png", "", "a.png/"] {
            let result = OutputFormat::from_path(path);
            if path == "a.png/" {
                continue; // the same path as `a.png` to the standard library
            }
            let error = result.expect_err(path).to_string();
            assert!(error.contains(".png, .jpg, .webp, .npy and .safetensors"), "{error}");
        }
    }

    #[test]
    fn sizes_are_checked_against_each_format() {
        assert!(OutputFormat::Webp.check_size(16383, 1).is_ok());
        assert!(OutputFormat::Webp.check_size(1, 16384).unwrap_err().to_string().contains("16383"));
        assert!(OutputFormat::Jpeg.check_size(65536, 1).unwrap_err().to_string().contains(".jpeg"));
        assert!(OutputFormat::Png.check_size(65536, 65536).is_ok());
        assert!(OutputFormat::Png.check_size(0, 5).is_err());
    }

    #[test]
    fn batch_paths_number_the_stem() {
        assert_eq!(batch_path("d/name.png", 7), Path::new("d/name-007.png"));
        assert_eq!(batch_path("a.b.webp", 1234), Path::new("a.b-1234.webp"));
        assert_eq!(batch_path("name", 0), Path::new("name-000"));
    }
}
