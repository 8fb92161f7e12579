//! Hostile and damaged inputs: every reader answers with a value or a typed error, in one line, without a panic and
//! without memory out of proportion to the file; every writer leaves a whole file or none.

mod fuzzing;
mod latents;
mod pictures;
mod recognition;
mod weights;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use infgen::error::Error;
use infgen::image::Image;
use infgen::latent::{Latent, LatentSpace};
use infgen::models::clip_config::ClipTextConfig;
use infgen::models::infgen_config::InfgenConfig;
use infgen::models::taesd_config::TaesdConfig;
use infgen::models::unet_config::UnetConfig;
use infgen::models::vae_config::VaeConfig;
use infgen::weights::Weights;
use infgen::weights::recognise::{Recognised, check, inspect, recognise};
use infgen::weights::taesd_keys::Half;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

// ---- the largest single allocation of this thread -------------------------------------------------------------------

struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// What `work` returns, and the largest single allocation it made.
fn watched<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

/// Files here have a few KiB; the readers' own buffers take up to 256 KiB.
const MODEST: usize = 1 << 20;

// ---- building files -------------------------------------------------------------------------------------------------

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A safetensors file of these headers and bytes, whether or not they fit.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A valid safetensors file of zeros.
fn zeros<'a>(tensors: impl IntoIterator<Item = &'a (String, Vec<usize>)>, metadata: &[(&str, &str)]) -> Vec<u8> {
    let list: Vec<_> = tensors.into_iter().collect();
    let data: Vec<_> = list.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views =
        list.iter().zip(&data).map(|((name, shape), data)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let pairs = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(pairs)).unwrap()
}

fn tensor(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    (name.to_owned(), shape.to_vec())
}

fn small_vae() -> VaeConfig {
    VaeConfig { block_out_channels: vec![32, 64], layers_per_block: 1, ..VaeConfig::default() }
}

fn small_infgen() -> InfgenConfig {
    InfgenConfig {
        hidden_size: 32,
        num_blocks: 1,
        num_heads: 2,
        mlp_hidden: 8,
        inpe_features: 4,
        inpe_hidden: 8,
        up_block_channels: vec![32, 32, 32],
        layers_per_up_block: 1,
        ..InfgenConfig::table1()
    }
}

/// Values between and beyond the levels of 8 bits, no two channels alike.
fn picture(width: usize, height: usize) -> Image {
    let value = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0) * if i.is_multiple_of(11) { 1.2 } else { 1.0 };
    Image::new(width, height, (0..3 * width * height).map(value).collect()).unwrap()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The error's text: one line that names the input.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, input: &str) -> String {
    let text = result.expect_err(input).to_string();
    assert!(!text.contains('\n') && text.len() < 1000, "{text}");
    assert!(text.contains(input), "`{input}` is not named in: {text}");
    text
}
