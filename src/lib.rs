//! infgen
pub mod error;
pub mod gpu;
#[path = "kernels/mod.rs"]
pub mod kernels;
