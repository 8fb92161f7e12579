//! What the viewer remembers: recent files, theme, window size. A small JSON file; losing it costs nothing.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::atomic::AtomicFile;

/// Recent files kept.
const RECENT: usize = 10;

/// Light or dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    /// As the desktop.
    #[default]
    System,
    /// Dark.
    Dark,
    /// Light.
    Light,
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Files opened, latest first.
    pub recent: Vec<PathBuf>,
    /// Light or dark.
    pub theme: Theme,
    /// Size of the window in points.
    pub window: Option<(u32, u32)>,
}

impl Settings {
    /// Reads them; anything that is wrong with the file gives the defaults.
    pub fn read(path: &Path) -> Settings {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut settings: Settings = serde_json::from_str(&text).unwrap_or_default();
        settings.recent.truncate(RECENT);
        settings.window = settings.window.filter(|&(w, h)| (64..=16384).contains(&w) && (64..=16384).contains(&h));
        settings
    }

    /// Writes them, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        let mut file = AtomicFile::create(path)?;
        file.write_all(&serde_json::to_vec_pretty(self).expect("plain values")).map_err(io)?;
        file.commit()
    }

    /// Puts `path` first.
    pub fn opened(&mut self, path: &Path) {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.recent.retain(|known| *known != path);
        self.recent.insert(0, path);
        self.recent.truncate(RECENT);
    }
}

/// Where they are kept: `INFGEN_CONFIG`, or `infgen/viewer.json` in the platform's folder for configuration.
pub fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("INFGEN_CONFIG").filter(|value| !value.is_empty()) {
        return Some(path.into());
    }
    dirs::config_dir().map(|folder| folder.join("infgen").join("viewer.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_and_a_broken_file_gives_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/viewer.json");
        assert_eq!(Settings::read(&path), Settings::default());
        let mut settings = Settings { theme: Theme::Light, window: Some((800, 600)), ..Settings::default() };
        settings.opened(Path::new("/a"));
        settings.write(&path).unwrap();
        assert_eq!(Settings::read(&path), settings);
        for broken in ["", "{", "[1]", "{\"theme\":\"purple\"}", "\0"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(Settings::read(&path), Settings::default(), "{broken}");
        }
        std::fs::write(&path, "{\"window\":[0,99999],\"surprise\":1,\"theme\":\"dark\"}").unwrap();
        assert_eq!(Settings::read(&path), Settings { theme: Theme::Dark, ..Settings::default() });
    }

    #[test]
    fn recent_files_are_unique_latest_first_and_few() {
        let mut settings = Settings::default();
        for name in 0..15 {
            settings.opened(Path::new(&format!("/f/{}", name % 12)));
        }
        assert_eq!(settings.recent.len(), 10);
        assert_eq!(settings.recent[0], std::path::absolute("/f/2").unwrap());
        let mut unique = settings.recent.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), 10);
    }
}
