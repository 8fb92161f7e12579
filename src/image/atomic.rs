//! A file that appears under its name when it is complete, or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A temporary file beside its target; dropped without [`AtomicFile::commit`], it is removed.
pub(crate) struct AtomicFile {
    temp: NamedTempFile,
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
        Ok(Self { temp, path: path.to_owned(), target })
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
