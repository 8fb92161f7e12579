//! What a kernel is: one WGSL file, its bindings, and the storage types it is compiled for.

use super::tensor::Elem;

/// What a storage binding holds. `X`, `W` and `Y` name the element types that the prelude defines
/// (`X4`, `W4`, `Y4` with `x_get`, `w_get`, `y_get`, `y_put`), so that one source serves f32, f16 and packed f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bind {
    /// Read: `array<X4>`, the input activation's type.
    X,
    /// Read: `array<X8>`, the input activation's type, two quads at a time.
    X8,
    /// Read: `array<W4>`, the weights' type.
    W,
    /// Read: `array<W8>`, the weights' type, two quads at a time.
    W8,
    /// Read: `array<Y4>`, the output's type (a residual).
    YRead,
    /// Read and write: `array<Y4>`.
    Y,
    /// Read: `array<vec4<f32>>`, whatever the storage type (biases, scales, statistics).
    F32,
    /// Read and write: `array<vec4<f32>>`.
    F32Write,
    /// Read and write: `array<u32>`.
    WordWrite,
    /// Read and write: `array<atomic<u32>>`.
    Counter,
}

impl Bind {
    /// Whether the shader may write through it.
    pub const fn writes(self) -> bool {
        matches!(self, Bind::Y | Bind::F32Write | Bind::WordWrite | Bind::Counter)
    }
}

/// One compute kernel: a constant beside its `.wgsl` file.
///
/// Binding 0 is a uniform `Params` that starts with the three `vec4<u32>` of [`HEADER_BYTES`]; storage
/// bindings follow from 1 in the order of `bindings`.
#[derive(Debug)]
pub struct Kernel {
    /// Stem of the file, shown in profiles and errors.
    pub name: &'static str,
    /// The source, without the prelude.
    pub wgsl: &'static str,
    /// Names of the kernel's own members of `Params`, after the header; each is a `u32` or `f32`.
    pub params: &'static [&'static str],
    /// Storage bindings 1, 2, ...
    pub bindings: &'static [Bind],
}

impl Kernel {
    /// The whole source in `variant`, whose constants are left to the pipeline.
    pub fn source(&self, variant: &Variant) -> String {
        format!("{}{}", variant.prelude(), self.wgsl)
    }
}

/// Every `Params` starts with `wg: vec4<u32>` (origin of this dispatch in workgroups), `b0`, `b1: vec4<u32>`
/// (for storage binding `i + 1`, the index of the first unit that is bound; subtract it from every index).
/// The executor writes them when it cuts a dispatch.
pub const HEADER_BYTES: usize = 48;

/// Uniform slots are this far apart (WebGPU's `minUniformBufferOffsetAlignment`).
pub const PARAMS_STRIDE: usize = 256;

/// How four channels are stored in a shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// `vec4<f32>`
    F32,
    /// `vec4<f16>`, needs `shader-f16`
    F16,
    /// `vec2<u32>` through `pack2x16float`
    Packed,
}

/// Everything that makes another pipeline of the same kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Storage of `X4`.
    pub x: Storage,
    /// Storage of `W4`.
    pub w: Storage,
    /// Storage of `Y4`.
    pub y: Storage,
    /// Values of the kernel's `override` constants.
    pub consts: Vec<(&'static str, u32)>,
}

impl Variant {
    /// The text put in front of a kernel: the three element types and their accessors, and for kernels with a constant `SIDE` the
    /// matrices of matrix units.
    pub fn prelude(&self) -> String {
        let side = self.consts.iter().find(|(name, _)| *name == "SIDE");
        let half = side.is_some() || [self.x, self.w, self.y].contains(&Storage::F16);
        let mut text = String::from(if half { "enable f16;\n" } else { "" });
        if let Some((_, side)) = side {
            text.push_str("enable wgpu_cooperative_matrix;\n");
            for (name, scalar, role) in [("MatA", "f16", "A"), ("MatB", "f16", "B"), ("MatC", "f32", "C")] {
                text.push_str(&format!("alias {name} = coop_mat{side}x{side}<{scalar}, {role}>;\n"));
            }
            text.push_str(include_str!("../../shaders/common/split.wgsl"));
            for (name, storage) in [("x", self.x), ("w", self.w)] {
                let (kind, half) =
                    (name.to_uppercase(), if storage == Storage::F16 { "v".into() } else { format!("vec4<f16>({name}_get(v))") });
                text.push_str(&format!("fn {name}_half(v: {kind}4) -> vec4<f16> {{ return {half}; }}\n"));
            }
        }
        for (name, storage) in [("x", self.x), ("w", self.w), ("y", self.y)] {
            let source = match storage {
                Storage::F32 => include_str!("../../shaders/common/element_f32.wgsl"),
                Storage::F16 => include_str!("../../shaders/common/element_f16.wgsl"),
                Storage::Packed => include_str!("../../shaders/common/element_packed.wgsl"),
            };
            text.push_str(&source.replace("ELEM", &name.to_uppercase()).replace("elem_", &format!("{name}_")));
        }
        text
    }
}

/// Storage of `elem` on a device with or without native f16.
pub(crate) fn storage_of(elem: Elem, native_f16: bool) -> Storage {
    match elem {
        Elem::Half if native_f16 => Storage::F16,
        Elem::Half => Storage::Packed,
        Elem::F32 | Elem::Word => Storage::F32,
    }
}
