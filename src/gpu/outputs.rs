//! What a run gives back.

use super::share::Picture;

/// What a run gives back.
#[derive(Debug, Default)]
pub struct Outputs {
    pub(super) planes: Vec<(String, Plane)>,
    /// Seconds and operations per kernel, if timing was asked for.
    pub timings: Vec<Timing>,
    /// What [`super::Recorder::picture`] marked: a texture, never read back.
    pub picture: Option<Picture>,
}

/// One result on the host.
#[derive(Debug)]
pub enum Plane {
    /// `[height, width, channels]`, row-major, pad channels dropped.
    Numbers(Vec<f32>),
    /// Raw words.
    Words(Vec<u32>),
    /// Units as stored on the device.
    Units(Vec<u8>),
}

impl Outputs {
    /// Takes the numbers recorded under `name`.
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn numbers(&mut self, name: &str) -> Vec<f32> {
        match self.take(name) {
            Plane::Numbers(values) => values,
            _ => panic!("output `{name}` holds no numbers"),
        }
    }

    /// Takes the words recorded under `name`.
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn words(&mut self, name: &str) -> Vec<u32> {
        match self.take(name) {
            Plane::Words(values) => values,
            _ => panic!("output `{name}` holds no words"),
        }
    }

    /// Takes the units recorded under `name` by [`super::Recorder::output_units`].
    ///
    /// # Panics
    /// If the recording has no such output: an engine bug.
    pub fn units(&mut self, name: &str) -> Vec<u8> {
        match self.take(name) {
            Plane::Units(bytes) => bytes,
            _ => panic!("output `{name}` holds no units"),
        }
    }

    /// Adds what another run gave.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn join(&mut self, other: Outputs) {
        self.planes.extend(other.planes);
    }

    /// Adds numbers under `name`.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn put(&mut self, name: &str, values: Vec<f32>) {
        self.planes.push((name.to_owned(), Plane::Numbers(values)));
    }

    /// Names of the outputs that were not taken yet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.planes.iter().map(|(name, _)| name.as_str())
    }

    fn take(&mut self, name: &str) -> Plane {
        let index = self.planes.iter().position(|(n, _)| n == name).unwrap_or_else(|| panic!("no output `{name}`"));
        self.planes.swap_remove(index).1
    }
}

/// GPU time of one dispatch of the recording.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Timing {
    /// Kernel name.
    pub kernel: &'static str,
    /// Layer.
    pub layer: String,
    /// Seconds on the GPU.
    pub seconds: f64,
    /// Operations, see [`super::Dispatch::flops`].
    pub flops: u64,
    /// Bytes moved at least.
    pub bytes: u64,
}
