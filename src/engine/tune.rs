//! Which kernels a device computes convolutions, linear layers and attention with, measured once and remembered.
//!
//! The plan is part of the bits, so it is settled before anything runs and stays: one file an adapter, driver, version, storage
//! types and set of shaders, in the user's cache folder; who writes it first wins. A candidate whose result differs from that of
//! the fixed choice by more than rounding, or that fails, is never taken.

use log::{debug, warn};
use sha2::{Digest, Sha256};
use web_time::Instant;

use super::{Dtype, Tuning};
use crate::error::Result;
use crate::gpu::{DeviceProfile, Elem, Families, Gpu, KernelFamily, KernelPlan, Observer, Operator, Progress, Recorder, Tensor};
use crate::kernels::attention;
use crate::kernels::conv2d::{self, ConvWeights, Packing};
use crate::kernels::group_norm::{self, Norm};
use crate::kernels::linear::{self, LinearWeights};
use crate::kernels::{self, Act, Packed};
use crate::nn::Precision;
use crate::noise::torch_cpu_randn;

/// Measured rounds of each candidate.
const ROUNDS: usize = 5;

/// Another kernel than the fixed choice must be faster by this much.
const MARGIN: f64 = 0.95;

/// Largest relative L2 distance to the fixed choice's result: roundings of the storage type, or of the sums. Some matrix units add
/// by cutting off (Fasi et al. 2021, doi 10.7717/peerj-cs.330): over 2304 products that comes to 1e-5 to 3e-5, where rounding gives 1e-6
/// and leaving out the second part of an activation 1e-2.
fn tolerance(elem: Elem, family: KernelFamily) -> f64 {
    match (elem, family) {
        (Elem::Half, _) => 2e-3,
        (_, KernelFamily::Matrix | KernelFamily::NarrowMatrix) => 1e-4,
        _ => 1e-5,
    }
}

/// The plan to use on `gpu` by an engine of storage type `dtype`: remembered, else measured and remembered.
///
/// # Errors
/// What running kernels may fail with, [`crate::Error::Cancelled`]; not being able to read or write the cache is none.
pub(super) async fn plan(gpu: &Gpu, dtype: Dtype, tuning: Tuning, observer: &Observer) -> Result<KernelPlan> {
    let fixed = gpu.profile().kernels;
    let software = gpu.profile().software;
    if tuning == Tuning::Off || (software && tuning == Tuning::Gpus) {
        return Ok(fixed);
    }
    Ok(match dtype {
        Dtype::F16 => KernelPlan {
            f16: families(gpu, Precision::F16, &fixed.f16, &observer.part(0.0, 0.5)).await?,
            f32: families(gpu, Precision::F16_WEIGHTS, &fixed.f32, &observer.part(0.5, 0.5)).await?,
        },
        Dtype::F32 => KernelPlan { f32: families(gpu, Precision::F32, &fixed.f32, observer).await?, ..fixed },
    })
}

/// The families for one pair of storage types.
async fn families(gpu: &Gpu, precision: Precision, fixed: &Families, observer: &Observer) -> Result<Families> {
    let key = key(gpu, precision);
    if let Some(families) = gpu.recall(&key).and_then(|bytes| parse(&bytes)) {
        debug!("kernels for {precision:?}, as remembered: {families}");
        return Ok(families);
    }
    let began = Instant::now();
    let best = async |at: usize, op: Operator, fixed: KernelFamily| {
        observer.report(Progress { done: at as f64 / 4.0, layer: &format!("choosing kernels: {op}") });
        Bench::new(gpu, precision, op, observer.quiet()).await?.best(fixed).await
    };
    let families = Families {
        conv: best(0, Operator::Conv, fixed.conv).await?,
        upsample: best(1, Operator::Upsample, fixed.upsample).await?,
        linear: best(2, Operator::Linear, fixed.linear).await?,
        attention: best(3, Operator::Attention, fixed.attention).await?,
    };
    gpu.trim();
    debug!("kernels for {precision:?}, measured in {:.2} s: {families}", began.elapsed().as_secs_f64());
    // Another process may have been first: its choice is the one that counts.
    let kept = gpu.remember(&key, families.to_string().as_bytes());
    Ok(parse(&kept).unwrap_or(families))
}

/// What besides adapter, driver and version the choice depends on.
fn key(gpu: &Gpu, precision: Precision) -> String {
    let mut sources = Sha256::new();
    for kernel in kernels::ALL {
        sources.update(kernel.wgsl);
    }
    let sum: String = sources.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let profile = gpu.profile();
    let Precision { activations, weights } = precision;
    let DeviceProfile { native_f16, matrix, broadcast, max_binding, .. } = profile;
    format!("kernels {activations:?} {weights:?} f16={native_f16} matrix={matrix:?} broadcast={broadcast} binding={max_binding} {sum}")
}

/// The inverse of `Families`' `Display`.
fn parse(bytes: &[u8]) -> Option<Families> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// One operator with operands on the device.
struct Bench<'a> {
    gpu: &'a Gpu,
    precision: Precision,
    op: Operator,
    /// Stops it.
    observer: Observer,
    x: Tensor,
    weight: Tensor,
    /// The same packed for Winograd's kernels, where there is one.
    winograd: Option<Tensor>,
    bias: Tensor,
    affine: Tensor,
    residual: Tensor,
    /// Channels in and out.
    channels: usize,
}

impl<'a> Bench<'a> {
    async fn new(gpu: &'a Gpu, precision: Precision, op: Operator, observer: Observer) -> Result<Bench<'a>> {
        // Enough workgroups for a large GPU, and not too much work for a small one. Any is right, so bits do not depend on this.
        let (side, channels) = match gpu.facts().kind.as_str() {
            "software" => (16, 64),
            "discrete" => (128, 256),
            _ => (64, 256),
        };
        let (h, w) = match op {
            Operator::Conv => (side, side),
            Operator::Upsample => (side / 2, side),
            Operator::Linear | Operator::Attention => (side * side / 2, 1),
        };
        let put = async |seed: u64, h: usize, w: usize, c: usize, amp: f32, elem: Elem| {
            let values: Vec<f32> = torch_cpu_randn(seed, h * w * c).into_iter().map(|v| v * amp).collect();
            gpu.resident("tuning", &crate::gpu::to_units(&values, c, elem), h, w, c, elem).await
        };
        let taps = if matches!(op, Operator::Linear | Operator::Attention) { 1 } else { 9 };
        let amp = (1.0 / (taps * channels) as f32).sqrt();
        let weight: Vec<f32> = torch_cpu_randn(2, channels * channels * taps).into_iter().map(|v| v * amp).collect();
        let pack = |packing: Packing| match op {
            Operator::Conv => conv2d::pack_3x3(&weight, channels, channels, packing),
            Operator::Upsample => conv2d::pack_upsample(&weight, channels, channels, packing),
            Operator::Linear | Operator::Attention => linear::pack_linear(&weight, channels, channels),
        };
        let Precision { activations: elem, weights } = precision;
        let resident = async |packed: Packed| {
            let units = crate::gpu::to_units(&packed.values, packed.values.len(), weights);
            gpu.resident("tuning", &units, 1, 1, packed.values.len(), weights).await
        };
        let winograd = match conv2d::winograd_exists(gpu.profile(), op) {
            true => Some(resident(pack(Packing::Winograd)).await?),
            false => None,
        };
        Ok(Bench {
            gpu,
            precision,
            op,
            observer,
            x: put(1, h, w, channels, 1.0, elem).await?,
            weight: resident(pack(Packing::Taps)).await?,
            winograd,
            bias: put(3, 1, 1, channels, 1.0, Elem::F32).await?,
            affine: put(4, 2, 1, channels, 1.0, Elem::F32).await?,
            residual: put(5, h, w, channels, 1.0, elem).await?,
            channels,
        })
    }

    fn record(&self, rec: &mut Recorder) -> Tensor {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        let elem = self.precision.activations;
        let conv = || {
            let (cin, cout) = (self.channels, self.channels);
            let packing = conv2d::packing(rec.profile(), self.op, elem, self.precision.weights, cin, cout);
            let weight = self.winograd.as_ref().filter(|_| packing == Packing::Winograd).unwrap_or(&weight).clone();
            ConvWeights { weight, bias: bias.clone(), cin, cout, packing }
        };
        match self.op {
            // As in a resnet: families differ in what they fuse.
            Operator::Conv => {
                let norm = Norm { affine: &self.affine, silu: true };
                let conv = conv();
                conv2d::conv2d_3x3(rec, &self.x, Some(norm), &conv, Some(&self.residual), Act::None, elem)
            }
            Operator::Upsample => {
                let conv = conv();
                conv2d::upsample2x_conv2d_3x3(rec, &self.x, &conv, Act::None, elem)
            }
            Operator::Linear => {
                let layer = LinearWeights { weight, bias, inputs: self.channels, outputs: self.channels };
                linear::linear(rec, &self.x, &layer, None, Act::None, elem)
            }
            // Heads of 64, or 32 on software.
            Operator::Attention => self.attention(rec, &self.x, if self.channels > 64 { self.channels / 64 } else { 2 }),
        }
    }

    fn recorder(&self, family: KernelFamily) -> Recorder {
        Recorder::new(DeviceProfile { kernels: KernelPlan::uniform(family), ..*self.gpu.profile() })
    }

    /// The operator's result, and what its other kernels give: statistics out of the store, attention in one head of all channels, and of queries
    /// so few that keys are split.
    async fn result(&self, family: KernelFamily) -> Result<Vec<Vec<f32>>> {
        let mut rec = self.recorder(family);
        let y = self.record(&mut rec);
        let beside = match self.op {
            Operator::Conv | Operator::Upsample => vec![group_norm::statistics(&mut rec, &y)],
            Operator::Linear => vec![],
            Operator::Attention => vec![self.attention(&mut rec, &self.x, 1), self.attention(&mut rec, &self.x.rows(0, 64), 1)],
        };
        let names = ["y", "beside", "few"];
        for (name, tensor) in names.into_iter().zip(std::iter::once(&y).chain(&beside)) {
            rec.output(name, tensor);
        }
        let mut outputs = self.gpu.run(rec.finish(), &self.observer).await?;
        Ok(names[..1 + beside.len()].iter().map(|name| outputs.numbers(name)).collect())
    }

    /// Scores spread widely, so that peaks grow on the way, as in pictures.
    fn attention(&self, rec: &mut Recorder, queries: &Tensor, heads: usize) -> Tensor {
        attention::attention(rec, queries, &self.residual, &self.residual, heads, 0.5, false, self.precision.activations)
    }

    async fn seconds(&self, family: KernelFamily) -> Result<f64> {
        let mut rec = self.recorder(family);
        self.record(&mut rec);
        let start = Instant::now();
        let outputs = self.gpu.run_timed(rec.finish(), &self.observer).await?;
        let timed: f64 = outputs.timings.iter().map(|t| t.seconds).sum();
        Ok(if timed > 0.0 { timed } else { start.elapsed().as_secs_f64() })
    }

    /// The fastest of the families that computes what `fixed` does.
    async fn best(&self, fixed: KernelFamily) -> Result<KernelFamily> {
        let expected = self.result(fixed).await?;
        let mut candidates = vec![(fixed, Vec::new())];
        for &family in KernelFamily::ALL {
            if !self.distinct(family, fixed) || !self.agrees(family, &expected).await? {
                continue;
            }
            candidates.push((family, Vec::new()));
        }
        // In turn, so that a clock that changes meets them all; the first round does not count, and ends who is far behind.
        let mut first = Vec::new();
        for (family, _) in &candidates {
            first.push(self.seconds(*family).await?);
        }
        let least = first.iter().copied().fold(f64::INFINITY, f64::min);
        let mut far = first.iter().map(|&seconds| seconds > 2.0 * least);
        candidates.retain(|(family, _)| !far.next().unwrap_or(false) || *family == fixed);
        for _ in 0..ROUNDS {
            for (family, times) in &mut candidates {
                times.push(self.seconds(*family).await?);
            }
        }
        let median = |times: &[f64]| {
            let mut times = times.to_vec();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let usual = median(&candidates[0].1);
        let (family, seconds) =
            candidates.iter().map(|(family, times)| (*family, median(times))).min_by(|a, b| a.1.total_cmp(&b.1)).expect("the fixed one");
        debug!("{}: {family} {:.3} ms, {fixed} {:.3} ms", self.op, seconds * 1e3, usual * 1e3);
        Ok(if seconds < MARGIN * usual { family } else { fixed })
    }

    /// Whether `family` computes this operator with another kernel or grid than `fixed`.
    fn distinct(&self, family: KernelFamily, fixed: KernelFamily) -> bool {
        family.runs_as(self.op) == family
            && family != fixed.runs_as(self.op)
            && family.is_own(self.gpu.profile(), self.precision.activations, self.precision.weights)
    }

    async fn agrees(&self, family: KernelFamily, expected: &[Vec<f32>]) -> Result<bool> {
        let got = match self.result(family).await {
            Ok(got) => got,
            Err(error @ (crate::Error::DeviceLost { .. } | crate::Error::Cancelled)) => return Err(error),
            Err(error) => {
                warn!("{}: {family} is not used here: {error}", self.op);
                return Ok(false);
            }
        };
        let distances: Vec<f64> = got.iter().zip(expected).map(|(got, expected)| distance(got, expected)).collect();
        // A NaN is no agreement.
        let agrees = distances.iter().all(|&distance| distance <= tolerance(self.precision.activations, family));
        if !agrees {
            let off: Vec<String> = distances.iter().map(|distance| format!("{distance:.1e}")).collect();
            warn!("{}: {family} is not used here: its results are off by {}", self.op, off.join(", "));
        }
        Ok(agrees)
    }
}

/// Relative L2 distance.
fn distance(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let (mut difference, mut size) = (0.0f64, 0.0f64);
    for (&g, &e) in got.iter().zip(expected) {
        difference += (g as f64 - e as f64).powi(2);
        size += (e as f64).powi(2);
    }
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_result_is_no_agreement() {
        let right: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.37).sin()).collect();
        let off = |change: &dyn Fn(&mut Vec<f32>)| {
            let mut got = right.clone();
            change(&mut got);
            let distance = distance(&got, &right);
            distance.is_nan() || distance > tolerance(Elem::Half, KernelFamily::Tile)
        };
        assert!(!off(&|_| ()));
        assert!(!off(&|got| got.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32())));
        assert!(off(&|got| got[7] = f32::NAN), "a NaN");
        assert!(off(&|got| got[4095] += 0.5), "one wrong element");
        assert!(off(&|got| got[4088..].fill(0.0)), "a missing tail");
        assert!(off(&|got| got.swap(0, 4)), "swapped elements");
        assert!(off(&|got| got.truncate(4095)), "too few");
    }

    #[test]
    fn names_of_other_families_are_no_candidates_and_families_are() {
        for op in [Operator::Conv, Operator::Upsample, Operator::Linear, Operator::Attention] {
            for &family in KernelFamily::ALL {
                let own = family.runs_as(op);
                assert_eq!(own.runs_as(op), own, "{op}: {family}");
            }
            assert_eq!(KernelFamily::Broadcast.runs_as(op), KernelFamily::Broadcast, "{op}");
        }
        assert_eq!(KernelFamily::Winograd.runs_as(Operator::Attention), KernelFamily::Broadcast);
    }

    #[test]
    fn plans_survive_their_file() {
        for &conv in KernelFamily::ALL {
            let families = Families { conv, upsample: KernelFamily::Tile, linear: KernelFamily::Lanes, attention: KernelFamily::Matrix };
            assert_eq!(parse(families.to_string().as_bytes()), Some(families));
        }
        for text in [
            "",
            "tile",
            "convolution tile, upsampling tile, linear tile",
            "convolution tile, upsampling tile, linear x, attention tile",
            "\u{0}",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
