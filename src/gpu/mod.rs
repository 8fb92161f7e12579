//! The GPU room: device, memory, recordings and their execution. The only room that names `wgpu`.
//!
//! A model appends [`Dispatch`]es to a [`Recorder`]; [`Gpu::run`] plans its memory, cuts it into short submissions and
//! reads the results back. Rooms above `kernels` use [`Recorder`] and [`Tensor`] only.

mod adapter;
#[cfg(not(target_arch = "wasm32"))]
mod cache;
mod context;
mod convert;
mod execute;
mod gate;
mod kernel;
mod loss;
mod observer;
mod outputs;
mod pace;
mod pipelines;
mod plan;
mod recorder;
mod share;
mod tensor;

pub use adapter::{AdapterFacts, NO_DRIVER, adapters};
pub use context::{Gpu, GpuOptions, MemoryUse};
pub use convert::to_units;
pub use gate::Turn;
pub use kernel::{Bind, HEADER_BYTES, Kernel, Storage, Variant};
pub use observer::{Observer, Progress};
pub use outputs::{Outputs, Plane, Timing};
pub use pipelines::PROVEN_HEADS;
pub use plan::{Plan, align};
pub use recorder::{
    Binding, DeviceProfile, Dispatch, Families, Footprint, KernelFamily, KernelPlan, MatrixUnits, Operator, Recorder, Recording,
};
pub(crate) use share::pitch as picture_pitch;
pub use share::{Handles, Picture};
pub use tensor::{Elem, Tensor};
