//! Operands of kernel cases.

use infgen::gpu::{Elem, Recorder, Tensor};
use infgen::kernels::Packed;

use super::devices::{Config, configs, skipped};
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
