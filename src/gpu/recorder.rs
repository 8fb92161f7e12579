//! Recording: what is to be computed, as a list of dispatches over tensors that have no memory yet.
//!
//! Models append; nothing runs. A finished [`Recording`] knows every lifetime, so its peak memory is exact
//! before the first dispatch ([`super::plan`]), and it can be summed or printed with no device present.

use std::fmt;

use super::kernel::{Bind, Kernel};
use super::share;
use super::tensor::{Elem, Source, Tensor};
use crate::error::Error;

/// Which of a function's kernels is recorded, where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelFamily {
    /// `*_lanes`: no workgroup memory, made for software rasterisers.
    Lanes,
    /// `*_pairs` where there is one and weights are f16, else `*_lanes`: twice the output channels a lane, for twice the time to compile.
    Pairs,
    /// `*_broadcast` where the device's subgroups allow it ([`DeviceProfile::broadcast`]) and there are more than 28 output channels, else as
    /// [`KernelFamily::Pairs`]: made for software rasterisers too, the lanes of a subgroup read for each other.
    Broadcast,
    /// `conv2d_winograd` and `conv2d_phase_winograd` for convolutions whose weights are packed for them ([`crate::kernels::conv2d::packing`]), anything else as
    /// [`KernelFamily::Broadcast`].
    Winograd,
    /// `*_tile`: tiles staged in workgroup memory, for GPUs. Two tiles of output channels a workgroup where none is left over.
    Tile,
    /// `*_tile` with one tile of output channels a workgroup: fewer registers, more reads.
    NarrowTile,
    /// `conv2d_winograd_tile` and `conv2d_phase_winograd_tile` for convolutions whose weights are packed for it ([`crate::kernels::conv2d::packing`]), anything else as
    /// [`KernelFamily::Tile`].
    WinogradTile,
    /// `*_matrix` where the device has matrix units that kernels can use ([`DeviceProfile::matrix`]), weights are native f16 and there are
    /// more than 16 output channels, else `*_tile`. 128 output channels a workgroup where none is left over, else 64. Activations in f32 are
    /// multiplied as the sum of two f16.
    Matrix,
    /// `*_matrix` with 64 output channels a workgroup: fewer registers, more reads; attention with blocks of 32 keys instead of 64.
    NarrowMatrix,
}

impl KernelFamily {
    /// Every family. Each computes every shape on every device.
    pub const ALL: &'static [KernelFamily] = &[
        KernelFamily::Lanes,
        KernelFamily::Pairs,
        KernelFamily::Broadcast,
        KernelFamily::Winograd,
        KernelFamily::Tile,
        KernelFamily::NarrowTile,
        KernelFamily::WinogradTile,
        KernelFamily::Matrix,
        KernelFamily::NarrowMatrix,
    ];

    /// Whether it is more than another name of a family that needs less, for operands stored as these types.
    pub fn is_own(self, profile: &DeviceProfile, activations: Elem, weights: Elem) -> bool {
        match self {
            KernelFamily::Matrix | KernelFamily::NarrowMatrix => profile.matrix.is_some() && profile.native_f16 && weights == Elem::Half,
            KernelFamily::Broadcast => profile.broadcast,
            KernelFamily::Winograd => profile.broadcast && activations == weights,
            KernelFamily::WinogradTile => activations == weights,
            _ => true,
        }
    }

    /// The family whose kernels `operator` runs in this one: another one where this is a mere name of it.
    pub fn runs_as(self, operator: Operator) -> KernelFamily {
        match (operator, self) {
            (Operator::Linear | Operator::Attention, KernelFamily::Pairs) => KernelFamily::Lanes,
            (Operator::Linear | Operator::Attention, KernelFamily::Winograd) => KernelFamily::Broadcast,
            (Operator::Attention, KernelFamily::NarrowTile) => KernelFamily::Tile,
            (Operator::Linear | Operator::Attention, KernelFamily::WinogradTile) => KernelFamily::Tile,
            _ => self,
        }
    }

    /// Whether kernels use no workgroup memory, and norms are a pass of their own.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, KernelFamily::Lanes | KernelFamily::Pairs | KernelFamily::Broadcast | KernelFamily::Winograd)
    }
}

impl fmt::Display for KernelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KernelFamily::Lanes => "lanes",
            KernelFamily::Pairs => "pairs",
            KernelFamily::Broadcast => "broadcast",
            KernelFamily::Winograd => "winograd",
            KernelFamily::Tile => "tile",
            KernelFamily::NarrowTile => "narrow-tile",
            KernelFamily::WinogradTile => "winograd-tile",
            KernelFamily::Matrix => "matrix",
            KernelFamily::NarrowMatrix => "narrow-matrix",
        })
    }
}

/// What has kernels of several families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// 3x3 convolutions of stride 1.
    Conv,
    /// Upsampling convolutions.
    Upsample,
    /// Linear layers and 1x1 convolutions.
    Linear,
    /// Attention.
    Attention,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operator::Conv => "3x3 convolution",
            Operator::Upsample => "upsampling convolution",
            Operator::Linear => "linear layer",
            Operator::Attention => "attention",
        })
    }
}

/// The family of each operator that has several: what a tuner may choose. Other families sum in other orders, so it is part of the bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Families {
    /// 3x3 convolutions of stride 1.
    pub conv: KernelFamily,
    /// Upsampling convolutions.
    pub upsample: KernelFamily,
    /// Linear layers and 1x1 convolutions.
    pub linear: KernelFamily,
    /// Attention.
    pub attention: KernelFamily,
}

/// The families for activations of each storage type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelPlan {
    /// Activations in f16.
    pub f16: Families,
    /// Activations in f32, whatever the weights.
    pub f32: Families,
}

impl KernelPlan {
    /// One family for everything.
    pub fn uniform(family: KernelFamily) -> KernelPlan {
        let families = Families { conv: family, upsample: family, linear: family, attention: family };
        KernelPlan { f16: families, f32: families }
    }

    /// The families for activations stored as `elem`.
    pub fn of(&self, elem: Elem) -> &Families {
        if elem == Elem::Half { &self.f16 } else { &self.f32 }
    }

    /// The choice without measuring, for a device whose subgroups allow `*_broadcast` kernels or not, and of whose registers two tiles of channels take more
    /// than there are (`narrow`).
    pub fn fixed(software: bool, broadcast: bool, narrow: bool) -> KernelPlan {
        if !software {
            return KernelPlan::uniform(if narrow { KernelFamily::NarrowTile } else { KernelFamily::Tile });
        }
        if !broadcast {
            return KernelPlan::uniform(KernelFamily::Pairs);
        }
        let others = KernelFamily::Broadcast;
        let convs = KernelFamily::Winograd;
        let families = Families { conv: convs, upsample: convs, linear: others, attention: others };
        KernelPlan { f16: families, f32: families }
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "convolution {}, upsampling {}, linear {}, attention {}", self.conv, self.upsample, self.linear, self.attention)
    }
}

/// Reads what `Display` writes.
impl std::str::FromStr for Families {
    type Err = ();
    fn from_str(text: &str) -> Result<Families, ()> {
        let mut parts = text.split(", ");
        let mut part = |name: &str| {
            let family = parts.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            KernelFamily::ALL.iter().copied().find(|f| f.to_string() == family)
        };
        let families = Families {
            conv: part("convolution").ok_or(())?,
            upsample: part("upsampling").ok_or(())?,
            linear: part("linear").ok_or(())?,
            attention: part("attention").ok_or(())?,
        };
        if parts.next().is_none() { Ok(families) } else { Err(()) }
    }
}

/// Matrix units as WGSL sees them: products of f16 matrices of `side x side` with f32 sums, by subgroups of a known size (or smaller ones, which do the work
/// more than once).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixUnits {
    /// 8 or 16.
    pub side: u32,
    /// Invocations of a subgroup.
    pub subgroup: u32,
}

impl MatrixUnits {
    /// Those that kernels are used with: what `tests/shaders.rs` and `tests/shader_bounds.rs` go through.
    pub const KNOWN: [MatrixUnits; 6] = [
        MatrixUnits { side: 16, subgroup: 16 },
        MatrixUnits { side: 16, subgroup: 32 },
        MatrixUnits { side: 16, subgroup: 64 },
        MatrixUnits { side: 8, subgroup: 8 },
        MatrixUnits { side: 8, subgroup: 16 },
        MatrixUnits { side: 8, subgroup: 32 },
    ];
}

/// The facts about a device that choose kernels. Everything that can change bits is in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceProfile {
    /// A CPU pretending to be a GPU (lavapipe, SwiftShader, WARP): other kernels are fast there.
    pub software: bool,
    /// Kernels of convolutions, linear layers and attention.
    pub kernels: KernelPlan,
    /// `shader-f16` is there; else f16 is packed in u32.
    pub native_f16: bool,
    /// What `*_matrix` kernels run on.
    pub matrix: Option<MatrixUnits>,
    /// A software device whose subgroups have 8 lanes each: what `*_broadcast` kernels are written for.
    pub broadcast: bool,
    /// Largest storage binding in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Workgroups that fill the device: fewer take as long as these.
    pub fill: u32,
    /// Workgroup memory in bytes.
    pub max_workgroup_storage: u32,
    /// Invocations a workgroup.
    pub max_invocations: u32,
    /// Alignment of a storage binding's offset in bytes.
    pub offset_alignment: u64,
}

impl DeviceProfile {
    /// Kernels for an operator that reads activations `x`.
    pub fn families(&self, x: &Tensor) -> &Families {
        self.kernels.of(x.elem)
    }
}

/// Which units of a binding a range of workgroups touches: for workgroups `lo .. hi` it is
/// `[base + per . lo, base + per . (hi - 1) + extent)`, clamped to the tensor. [`Footprint::WHOLE`] is everything.
///
/// The executor binds just that range when the whole is larger than a binding may be.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// First unit for workgroup (0, 0, 0); may be negative (a halo above the first row).
    pub base: i64,
    /// Units by which the range moves for each workgroup in x, y, z.
    pub per: [i64; 3],
    /// Length of the range of one workgroup.
    pub extent: i64,
}

impl Footprint {
    /// Every workgroup may touch everything.
    pub const WHOLE: Footprint = Footprint { base: 0, per: [0; 3], extent: i64::MAX / 4 };

    /// Rows of a plane that move with the workgroup's y: `rows_per` rows a workgroup, from `-before` on, `rows` long.
    pub fn rows(units_a_row: u64, rows_per: usize, before: i64, rows: usize) -> Footprint {
        let row = units_a_row as i64;
        Footprint { base: -before * row, per: [0, rows_per as i64 * row, 0], extent: rows as i64 * row }
    }

    /// Units touched by workgroups `lo .. hi` of a tensor of `units` units.
    pub fn range(&self, lo: [u32; 3], hi: [u32; 3], units: u64) -> std::ops::Range<u64> {
        let (mut start, mut end) = (self.base, self.base + self.extent);
        for axis in 0..3 {
            start += self.per[axis] * lo[axis] as i64;
            end += self.per[axis] * (hi[axis] as i64 - 1);
        }
        let start = start.clamp(0, units as i64) as u64;
        start..end.clamp(start as i64, units as i64) as u64
    }
}

/// One storage binding of a dispatch.
#[derive(Debug, Clone)]
pub struct Binding {
    /// What is bound.
    pub tensor: Tensor,
    /// Which part a workgroup needs.
    pub footprint: Footprint,
}

impl Binding {
    /// The whole tensor.
    pub fn whole(tensor: &Tensor) -> Binding {
        Binding { tensor: tensor.clone(), footprint: Footprint::WHOLE }
    }

    /// Only what `footprint` says.
    pub fn part(tensor: &Tensor, footprint: Footprint) -> Binding {
        Binding { tensor: tensor.clone(), footprint }
    }
}

/// One kernel call over the whole of its grid; the executor may cut it into several.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// What runs.
    pub kernel: &'static Kernel,
    /// `override` constants.
    pub consts: Vec<(&'static str, u32)>,
    /// Storage bindings in the kernel's order.
    pub bindings: Vec<Binding>,
    /// Values of [`Kernel::params`]; an f32 as its bits.
    pub params: Vec<u32>,
    /// Workgroups in x, y, z; any size, cut where a device's limit is passed.
    pub grid: [u32; 3],
    /// Floating point operations (2 a multiply-add), as useful work: counted once, here.
    pub flops: u64,
}

impl Dispatch {
    /// Bytes that the kernel must move at least: each bound tensor once.
    pub fn bytes(&self) -> u64 {
        self.bindings.iter().map(|b| b.tensor.bytes()).sum()
    }

    /// A scalar for time prediction and progress: operations, with a byte worth four.
    pub fn work(&self) -> f64 {
        self.flops as f64 + 4.0 * self.bytes() as f64
    }

    /// Workgroups.
    pub fn groups(&self) -> f64 {
        self.grid.iter().map(|&groups| f64::from(groups)).product()
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub dispatch: Dispatch,
    /// Scope at the time of recording, e.g. `decoder.mid_block.resnets.0`.
    pub scope: String,
}

#[derive(Debug, Clone)]
pub(crate) struct VirtualTensor {
    pub bytes: u64,
    /// The resident tensor that it is a name for, if it has no memory of its own.
    pub placed: Option<Tensor>,
}

/// Collects dispatches. Created by [`super::Gpu::recorder`], or from a bare profile for a dry run.
#[derive(Debug)]
pub struct Recorder {
    profile: DeviceProfile,
    recording: Recording,
    scope: Vec<String>,
    keep_taps: bool,
}

/// A finished list of dispatches with its inputs and outputs.
#[derive(Debug)]
pub struct Recording {
    pub(crate) nodes: Vec<Node>,
    pub(crate) tensors: Vec<VirtualTensor>,
    pub(crate) uploads: Vec<(Tensor, Vec<u8>)>,
    pub(crate) outputs: Vec<(String, Tensor)>,
    /// Results that are read back without conversion.
    pub(crate) raw_outputs: Vec<(String, Tensor)>,
    /// Words that become a texture, and its width.
    pub(crate) picture: Option<(Tensor, usize)>,
    /// One label a health counter; counter `i` is word `i` of `health`.
    pub(crate) watched: Vec<String>,
    pub(crate) health: Option<Tensor>,
    /// Why it cannot be run.
    pub(crate) failure: Option<Error>,
}

/// Health counters a recording may have.
const MAX_WATCHED: usize = 1024;

impl Recorder {
    /// An empty recording for devices like `profile`.
    pub fn new(profile: DeviceProfile) -> Recorder {
        let recording = Recording {
            nodes: Vec::new(),
            tensors: Vec::new(),
            uploads: Vec::new(),
            outputs: Vec::new(),
            raw_outputs: Vec::new(),
            picture: None,
            watched: Vec::new(),
            health: None,
            failure: None,
        };
        Recorder { profile, recording, scope: Vec::new(), keep_taps: false }
    }

    /// The device that this is recorded for.
    pub fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    /// Keep every [`Recorder::tap`] as an output: for comparisons layer by layer.
    pub fn keep_taps(&mut self, keep: bool) {
        self.keep_taps = keep;
    }

    /// A new tensor, written by a later dispatch.
    pub fn tensor(&mut self, height: usize, width: usize, channels: usize, elem: Elem) -> Tensor {
        let id = self.recording.tensors.len() as u32;
        let tensor = Tensor { source: Source::Virtual(id), first: 0, height, width, channels, elem };
        self.recording.tensors.push(VirtualTensor { bytes: tensor.bytes(), placed: None });
        tensor
    }

    /// A tensor with values from the host: `data` is `[height, width, channels]`, row-major; pad channels become zero.
    ///
    /// # Panics
    /// If the length of `data` is not `height * width * channels`.
    pub fn upload(&mut self, data: &[f32], height: usize, width: usize, channels: usize, elem: Elem) -> Tensor {
        assert_eq!(data.len(), height * width * channels);
        self.upload_units(super::convert::to_units(data, channels, elem), height, width, channels, elem)
    }

    /// [`Recorder::upload`] of values that are units of `elem` already, as [`Recorder::output_units`] gives them.
    ///
    /// # Panics
    /// If the length of `units` is not that of the tensor.
    pub fn upload_units(&mut self, units: Vec<u8>, height: usize, width: usize, channels: usize, elem: Elem) -> Tensor {
        let tensor = self.tensor(height, width, channels, elem);
        assert_eq!(units.len() as u64, tensor.bytes());
        self.recording.uploads.push((tensor.clone(), units));
        tensor
    }

    /// Stands for [`Recorder::upload_units`] in a recording that is only planned. Running that recording panics.
    pub fn upload_later(&mut self, height: usize, width: usize, channels: usize, elem: Elem) -> Tensor {
        let tensor = self.tensor(height, width, channels, elem);
        self.recording.uploads.push((tensor.clone(), Vec::new()));
        tensor
    }

    /// Marks the recording as one that cannot be run, because an input could not be had; running it returns `error`.
    pub fn fail(&mut self, error: Error) {
        self.recording.failure.get_or_insert(error);
    }

    /// Gives `tensor`, which this recording computes, the memory of `resident`, so that it outlives the recording.
    ///
    /// # Panics
    /// If the tensors differ in size or type, or `tensor` is not one of this recording's: engine bugs.
    pub fn place(&mut self, tensor: &Tensor, resident: &Tensor) {
        assert_eq!((tensor.units(), tensor.elem, tensor.first), (resident.units(), resident.elem, 0), "place: another size");
        let Source::Virtual(id) = tensor.source else { panic!("place: not a tensor of this recording") };
        self.recording.tensors[id as usize].placed = Some(resident.clone());
    }

    /// Appends a kernel call.
    ///
    /// # Panics
    /// If bindings and kernel disagree, or one tensor's buffer is both read and written: engine bugs.
    pub fn dispatch(&mut self, dispatch: Dispatch) {
        let kernel = dispatch.kernel;
        assert_eq!(dispatch.bindings.len(), kernel.bindings.len(), "{}: number of bindings", kernel.name);
        assert_eq!(dispatch.params.len(), kernel.params.len(), "{}: number of parameters", kernel.name);
        for (bound, kind) in dispatch.bindings.iter().zip(kernel.bindings) {
            let fits = match kind {
                Bind::F32 | Bind::F32Write => bound.tensor.elem == Elem::F32,
                Bind::WordWrite | Bind::Counter => bound.tensor.elem == Elem::Word,
                Bind::X | Bind::X8 | Bind::W | Bind::W8 | Bind::Y | Bind::YRead => bound.tensor.elem != Elem::Word,
            };
            assert!(fits, "{}: a {:?} binding got {:?}", kernel.name, kind, bound.tensor.elem);
        }
        if dispatch.grid.contains(&0) {
            return;
        }
        self.recording.nodes.push(Node { dispatch, scope: self.scope.join(".") });
    }

    /// The call that computes exactly `tensor`, if it was the last to write to its memory: for one that can give more than it was asked for.
    pub(crate) fn producer(&mut self, tensor: &Tensor) -> Option<&mut Dispatch> {
        let Source::Virtual(id) = tensor.source else { return None };
        let writes = |binding: &Binding| matches!(binding.tensor.source, Source::Virtual(other) if other == id);
        let written =
            |node: &Node| node.dispatch.bindings.iter().zip(node.dispatch.kernel.bindings).any(|(b, kind)| kind.writes() && writes(b));
        let dispatch = &mut self.recording.nodes.iter_mut().rev().find(|node| written(node))?.dispatch;
        let whole = |b: &Binding| (b.tensor.first, b.tensor.shape(), b.tensor.elem) == (tensor.first, tensor.shape(), tensor.elem);
        let exact = dispatch.bindings.iter().any(|binding| writes(binding) && whole(binding));
        exact.then_some(dispatch)
    }

    /// Runs `body` with `name` appended to the scope; scopes name layers in profiles and errors.
    pub fn scoped<T>(&mut self, name: impl Into<String>, body: impl FnOnce(&mut Recorder) -> T) -> T {
        self.scope.push(name.into());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// Marks `tensor` as a result, to be read back under `name`.
    pub fn output(&mut self, name: impl Into<String>, tensor: &Tensor) {
        self.recording.outputs.push((name.into(), tensor.clone()));
    }

    /// [`Recorder::output`] in units of its storage type, as [`Recorder::upload_units`] takes them.
    pub fn output_units(&mut self, name: impl Into<String>, tensor: &Tensor) {
        self.recording.raw_outputs.push((name.into(), tensor.clone()));
    }

    /// Makes the first `width` words of each row of `words` the texture that the run gives back as
    /// [`Outputs::picture`](super::Outputs::picture), without a readback. One a recording.
    ///
    /// # Panics
    /// If rows are not padded to 64 words (256 bytes): an engine bug.
    pub fn picture(&mut self, words: &Tensor, width: usize) {
        assert!(words.elem == Elem::Word && words.width == share::pitch(width) && words.first == 0, "picture: rows");
        self.recording.picture = Some((words.clone(), width));
    }

    /// Names an intermediate result. Free unless [`Recorder::keep_taps`] was asked for.
    pub fn tap(&mut self, name: &str, tensor: &Tensor) {
        if self.keep_taps {
            self.output(name, tensor);
        }
    }

    /// A fresh health counter for the current scope: its index in the shared counter tensor, and that tensor.
    /// A kernel that meets a non-finite or overflown value adds to it; the run then fails with the scope's name.
    pub fn watch(&mut self) -> (u32, Tensor) {
        let index = self.recording.watched.len().min(MAX_WATCHED - 1);
        if index == self.recording.watched.len() {
            self.recording.watched.push(self.scope.join("."));
        }
        let health = match &self.recording.health {
            Some(tensor) => tensor.clone(),
            None => {
                let tensor = self.tensor(1, 1, MAX_WATCHED, Elem::Word);
                self.recording.uploads.push((tensor.clone(), vec![0; 4 * MAX_WATCHED]));
                self.recording.health = Some(tensor.clone());
                tensor
            }
        };
        (index as u32, health)
    }

    /// The finished recording.
    pub fn finish(self) -> Recording {
        self.recording
    }
}

impl Recording {
    /// Floating point operations in all.
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|node| node.dispatch.flops).sum()
    }

    /// Bytes of the texture that the run gives back, 0 without one.
    pub(crate) fn picture_bytes(&self) -> u64 {
        self.picture.as_ref().map_or(0, |(words, width)| share::picture_bytes(*width, words.height))
    }

    /// Number of kernel calls, before any is cut.
    pub fn dispatches(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes that go up before it and come down after it.
    pub fn host_bytes(&self) -> u64 {
        let tensors = self.uploads.iter().map(|(t, _)| t).chain(self.outputs.iter().chain(&self.raw_outputs).map(|(_, t)| t));
        tensors.map(Tensor::bytes).sum()
    }

    /// By layer, in order: name, kernel calls, operations, bytes that they move at least.
    pub fn layers(&self) -> Vec<(String, usize, u64, u64)> {
        let mut layers: Vec<(String, usize, u64, u64)> = Vec::new();
        for node in &self.nodes {
            if layers.last().is_none_or(|last| last.0 != node.scope) {
                layers.push((node.scope.clone(), 0, 0, 0));
            }
            let last = layers.last_mut().expect("just pushed");
            last.1 += 1;
            last.2 += node.dispatch.flops;
            last.3 += node.dispatch.bytes();
        }
        layers
    }

    /// Predicted work in all, see [`Dispatch::work`].
    pub fn work(&self) -> f64 {
        self.nodes.iter().map(|node| node.dispatch.work()).sum()
    }
}
