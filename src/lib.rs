//! infgen
pub mod error;
pub mod gpu;
pub mod image;
pub mod kernels;
pub mod latent;
pub mod models;
pub mod nn;
pub mod weights;
