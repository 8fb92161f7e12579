//! A file that appears under its name when it is complete, or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Temporary files that are there now.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the temporary files of everything that is being written: for a process that is about to end without unwinding.
pub fn remove_unfinished() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // It may just have got its name.
        let _ = std::fs::remove_file(path);
    }
}

/// Keeps a file in the list above.
struct Listed(PathBuf);

impl Listed {
    fn new(path: &Path) -> Listed {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        Listed(path.to_owned())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    file.commit()
}

/// A temporary file beside its target; dropped without [`AtomicFile::commit`], it is removed.
pub(crate) struct AtomicFile {
    temp: NamedTempFile,
    _listed: Listed,
    /// What messages call it.
    path: PathBuf,
    /// Where it goes: `path` with links followed.
    target: PathBuf,
}

impl AtomicFile {
    /// # Errors
    /// [`Error::Io`] where no file could be put at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let target = match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => return Err(io(io::ErrorKind::IsADirectory.into())),
            Ok(meta) if !meta.is_file() => {
                return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
            }
            // A rename would replace it all the same; whoever write-protected it meant something.
            Ok(meta) if meta.permissions().readonly() => {
                return Err(io(io::Error::new(io::ErrorKind::PermissionDenied, "the file exists and is read-only")));
            }
            Ok(_) => std::fs::canonicalize(path).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Err(io(io::Error::new(io::ErrorKind::NotFound, "a link to something that is not there")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(io(error)),
        };
        if target.file_name().is_none() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file")));
        }
        let folder = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            let missing = format!("the folder {} does not exist", folder.display());
            return Err(io(io::Error::new(io::ErrorKind::NotFound, missing)));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".infgen-").suffix(".part");
        #[cfg(unix)]
        {
            // tempfile's own default hides the file from everyone else; the umask decides as for any other output.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let temp = builder.tempfile_in(folder).map_err(io)?;
        Ok(Self { _listed: Listed::new(temp.path()), temp, path: path.to_owned(), target })
    }

    /// The open file, for positioned writes.
    pub fn file(&self) -> &File {
        self.temp.as_file()
    }

    /// Gives the file its name, replacing what was there.
    pub fn commit(self) -> Result<()> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        // Some file systems report a full disk only here.
        self.temp.as_file().sync_all().map_err(io)?;
        self.temp.persist(&self.target).map_err(|e| io(e.error))?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temp.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temp.as_file_mut().flush()
    }
}
