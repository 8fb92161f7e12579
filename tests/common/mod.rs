//! What the test files share: synthetic tensors, devices, comparison with bounds, and cases that can be rerun by name.
#![allow(dead_code)]

pub mod compare;
pub mod devices;
pub mod golden;
pub mod hub_server;
pub mod operands;
pub mod program;
pub mod suite;
pub mod synthetic;
pub mod text_to_image;
pub mod text_to_image_xl;

use half::f16;
use infgen::gpu::Elem;

/// `values` as they will be stored: f16 for [`Elem::Half`].
pub fn stored(values: Vec<f32>, elem: Elem) -> Vec<f32> {
    match elem {
        Elem::Half => values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
        _ => values,
    }
}

/// f32 to f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

/// A folder of `tests/data`: where cargo runs the test, else where it was built.
pub fn data(path: &str) -> std::path::PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    std::path::Path::new(&root).join("tests/data").join(path)
}
