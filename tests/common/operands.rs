//! Operands of kernel cases.

use infgen::gpu::{Elem, KernelFamily, Recorder, Tensor};
use infgen::kernels::conv2d::{ConvWeights, Packing};
use infgen::kernels::{Act, Packed};
use infgen::reference::{self, Activation, Bounded};

use super::devices::{Config, configs, skipped, skipped_matrix};
use super::suite::Suite;
use super::synthetic::fill;
use super::{stored, wide};

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

/// Every activation, and its definition.
pub const ACTS: [(Act, Activation); 6] = [
    (Act::None, Activation::Identity),
    (Act::Relu, Activation::Relu),
    (Act::Silu, Activation::Silu),
    (Act::GeluErf, Activation::GeluErf),
    (Act::GeluTanh, Activation::GeluTanh),
    (Act::QuickGelu, Activation::GeluQuick),
];

/// Operands of a convolution.
pub struct Conv {
    pub shape: (usize, usize, usize),
    pub cout: usize,
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Conv {
    pub fn new(label: &str, shape: (usize, usize, usize), cout: usize, kernel: usize, elem: Elem) -> Conv {
        let (h, w, cin) = shape;
        let amp = (3.0 / (cin * kernel * kernel) as f32).sqrt();
        Conv {
            shape,
            cout,
            x: values(label, "x", h * w * cin, 1.7, elem),
            weight: values(label, "weight", cout * cin * kernel * kernel, amp, elem),
            bias: values(label, "bias", cout, 0.5, Elem::F32),
        }
    }

    pub fn upload(&self, rec: &mut Recorder, elem: Elem, pack: &Packed) -> (Tensor, ConvWeights) {
        let (h, w, cin) = self.shape;
        let x = rec.upload(&self.x, h, w, cin, elem);
        let weight = packed(rec, pack, elem);
        let bias = vector(rec, &self.bias);
        (x, ConvWeights { weight, bias, cin, cout: self.cout, packing: Packing::Taps })
    }

    pub fn record(&self, rec: &mut Recorder, elem: Elem, pack: impl FnOnce(&[f32]) -> Packed) -> (Tensor, ConvWeights) {
        self.upload(rec, elem, &pack(&self.weight))
    }

    pub fn reference(&self, geometry: reference::Geometry) -> Vec<Bounded> {
        reference::conv2d(&wide(&self.x), self.shape, &wide(&self.weight), &wide(&self.bias), self.cout, geometry)
    }
}
