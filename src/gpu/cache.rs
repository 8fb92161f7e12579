//! What is kept on disk for the next start: compiled pipelines, so that a driver without a cache of its own compiles once a machine and
//! not once a start (only Vulkan has such data), and the choice of kernels.
//!
//! One file an adapter, driver and version of this crate, in the user's cache folder: the SHA-256 of the rest, then the data. A file that is damaged, or that a driver refuses, costs a line in the log and is written anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::adapter::AdapterFacts;

/// Bytes of the checksum in front of the data.
const SUM: usize = 32;

/// The pipeline cache of an open device; written when it is dropped, if pipelines were compiled.
pub(crate) struct PipelineStore {
    cache: Option<wgpu::PipelineCache>,
    path: Option<PathBuf>,
    grown: AtomicBool,
}

impl PipelineStore {
    /// A store that keeps nothing.
    pub fn none() -> PipelineStore {
        PipelineStore { cache: None, path: None, grown: AtomicBool::new(false) }
    }

    /// The store for `device`, which has `PIPELINE_CACHE`, filled from the file in `folder` if there is a sound one.
    pub fn open(device: &wgpu::Device, facts: &AdapterFacts, folder: &Path) -> PipelineStore {
        let path = folder.join(file_name(facts, "pipelines", ""));
        let data = read(&path);
        // SAFETY: the data must come from `PipelineCache::get_data`. It is taken from a file that this type wrote for the same adapter,
        // driver and crate version, whose checksum holds; wgpu checks its header, and falls back to an empty cache.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor { label: Some("infgen"), data: data.as_deref(), fallback: true })
        };
        PipelineStore { cache: Some(cache), path: Some(path), grown: AtomicBool::new(false) }
    }

    /// For pipeline descriptors.
    pub fn cache(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref()
    }

    /// Notes that a pipeline was made that may not be in the file.
    pub fn grew(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }
}

impl Drop for PipelineStore {
    fn drop(&mut self) {
        let (Some(cache), Some(path), true) = (&self.cache, &self.path, self.grown.load(Ordering::Relaxed)) else { return };
        let Some(data) = cache.get_data() else { return };
        if read(path).is_some_and(|old| old == data) {
            return;
        }
        // A cache that cannot be written is no failure of what the program was asked for.
        match write(path, &data, true) {
            Ok(()) => log::debug!("{} bytes of compiled pipelines in {}", data.len(), path.display()),
            Err(error) => log::warn!("compiled pipelines are not kept: {}: {error}", path.display()),
        }
    }
}

/// The user's cache folder of this program, where there is one.
pub(crate) fn folder() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("infgen"))
}

/// A name for what belongs to this adapter, driver and version of the crate.
fn file_name(facts: &AdapterFacts, kind: &str, key: &str) -> String {
    let key = [&facts.name, &facts.backend, &facts.driver, env!("CARGO_PKG_VERSION"), "1", key].join("\n");
    let sum: String = Sha256::digest(key).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}-{sum}.bin")
}

/// What [`remember`] keeps under `key`.
pub(crate) fn recall(folder: &Path, facts: &AdapterFacts, key: &str) -> Option<Vec<u8>> {
    read(&folder.join(file_name(facts, "choices", key)))
}

/// Keeps `data` under `key` unless something is kept there already, and gives back what is kept.
pub(crate) fn remember(folder: &Path, facts: &AdapterFacts, key: &str, data: &[u8]) -> Vec<u8> {
    keep_first(&folder.join(file_name(facts, "choices", key)), data)
}

fn keep_first(path: &Path, data: &[u8]) -> Vec<u8> {
    for _ in 0..2 {
        match write(path, data, false) {
            Ok(()) => return data.to_vec(),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => match read(path) {
                Some(kept) => return kept,
                // Damaged: out of the way with it.
                None => drop(std::fs::remove_file(path)),
            },
            Err(error) => {
                log::warn!("the choice of kernels is not kept: {}: {error}", path.display());
                break;
            }
        }
    }
    data.to_vec()
}

/// No driver's pipelines are larger; what is, is not ours.
const MOST: u64 = 1 << 30;

/// The data in the file, if the checksum in front of it holds.
fn read(path: &Path) -> Option<Vec<u8>> {
    let regular = std::fs::metadata(path).and_then(|meta| match meta.is_file() && meta.len() <= MOST {
        true => std::fs::read(path),
        false => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "not a file of the size that is kept here")),
    });
    let mut bytes = match regular {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            log::warn!("compiled pipelines cannot be read: {}: {error}", path.display());
            return None;
        }
    };
    if bytes.len() < SUM || Sha256::digest(&bytes[SUM..])[..] != bytes[..SUM] {
        log::warn!("{} is damaged and will be written anew", path.display());
        return None;
    }
    Some(bytes.split_off(SUM))
}

/// Writes beside the file and renames, so that nobody ever sees half of it; fails if there is one that must not be replaced.
fn write(path: &Path, data: &[u8], replace: bool) -> std::io::Result<()> {
    use std::io::Write;
    let folder = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&Sha256::digest(data))?;
    file.write_all(data)?;
    if replace {
        file.persist(path)?;
    } else {
        file.persist_noclobber(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_or_missing_file_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/pipelines.bin");
        assert_eq!(read(&path), None);
        write(&path, b"compiled", true).unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"compiled"[..]));
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..SUM - 1], b"", &[&whole[..SUM], b"compilex"].concat()] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None, "{damaged:?}");
        }
        write(&path, b"", true).unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b""[..]));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn the_first_choice_is_kept_unless_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("choices.bin");
        assert_eq!(keep_first(&path, b"first"), b"first");
        assert_eq!(keep_first(&path, b"second"), b"first");
        std::fs::write(&path, b"damaged").unwrap();
        assert_eq!(keep_first(&path, b"third"), b"third");
        assert_eq!(read(&path).as_deref(), Some(&b"third"[..]));
        // A file where the folder should be: the choice holds, it is only not kept.
        assert_eq!(keep_first(&path.join("below"), b"fourth"), b"fourth");
    }
}
