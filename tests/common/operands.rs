//! Operands of kernel cases.

use infgen::gpu::{Elem, KernelFamily, Recorder, Tensor};
use infgen::kernels::Packed;

use super::devices::{Config, configs, skipped, skipped_matrix};
use super::stored;
use super::suite::Suite;
use super::synthetic::fill;

/// Values of the argument `arg` of a case, as stored.
pub fn values(label: &str, arg: &str, len: usize, amp: f32, elem: Elem) -> Vec<f32> {
    stored(fill(&format!("{label}.{arg}"), len, amp, 0.0, 0), elem)
}

/// Weights go up like activations here, so that they too lie between guard bands.
pub fn packed(rec: &mut Recorder, packed: &Packed, elem: Elem) -> Tensor {
    rec.upload(&packed.values, 1, 1, packed.values.len(), elem)
}

pub fn vector(rec: &mut Recorder, values: &[f32]) -> Tensor {
    rec.upload(values, 1, 1, values.len(), Elem::F32)
}

/// A suite and every way in which a kernel must work; nothing, said loudly, if this machine has no adapter.
pub fn start(test: &'static str) -> Option<(Suite, Vec<Config>)> {
    let configs = configs();
    if configs.is_empty() {
        skipped(test);
        return None;
    }
    Some((Suite::new(test), configs))
}

/// Every storage kind and set of limits, with the tile family, and with matrix units where the device has them.
pub fn start_gpu(test: &'static str) -> Option<(Suite, Vec<Config>)> {
    let (suite, mut all) = start(test)?;
    all.retain(|c| !c.name.contains("other kind"));
    let matrix = all.iter().find(|c| c.name == "f16" && c.profile.matrix.is_some());
    let matrix: Vec<Config> = matrix
        .map(|c| c.with_kernels(KernelFamily::Matrix))
        .into_iter()
        .flat_map(|c| [Config { name: MATRIX, ..c }, Config { name: MIXED, elem: Elem::F32, ..c }])
        .collect();
    if matrix.is_empty() {
        skipped_matrix(test);
    }
    Some((suite, all.into_iter().map(|c| c.with_kernels(KernelFamily::Tile)).chain(matrix).collect()))
}

/// Native f16 through matrix units.
pub const MATRIX: &str = "f16, matrix units";

/// f32 activations and f16 weights through matrix units.
pub const MIXED: &str = "f32 and f16 weights, matrix units";

/// How far from an activation what is multiplied may be: in [`MIXED`] the sum of two f16, a sixteenth as large.
pub fn staged(config: &Config, x: f64) -> f64 {
    if config.name == MIXED { (x.abs() + 1.0) * f64::powi(2.0, -20) } else { 0.0 }
}
