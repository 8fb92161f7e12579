//! Latents to pictures of any size on any GPU.
//!
//! `infgen` runs the InfGen decoder (arXiv:2509.10441) and the autoencoders of Stable Diffusion as hand-written WGSL
//! kernels on Vulkan, Metal, DX12 or WebGPU, through [wgpu](https://docs.rs/wgpu) and nothing else.
//!
//! ```no_run
//! # fn main() -> infgen::Result<()> {
//! use infgen::{Engine, EngineOptions, Latent, Weights};
//!
//! let engine = Engine::new(EngineOptions::default())?;
//! engine.load_decoder(Weights::Builtin)?;
//! let latent = Latent::open("latent.safetensors")?;
//! engine.decode(&latent, 1920, 1080)?.save("picture.png", &[])?;
//! # Ok(())
//! # }
//! ```
//!
//! ARCHITECTURE.md, beside the sources, follows one decode through the rooms: [`engine`] uses [`bounded`], [`models`] and [`weights`],
//! models use [`nn`], layers use [`kernels`], kernels use [`gpu`]. Nothing points upward.

pub mod bounded;
pub mod engine;
pub mod error;
pub mod gpu;
#[cfg(not(target_arch = "wasm32"))]
pub mod hub;
pub mod image;
pub mod kernels;
pub mod latent;
pub mod models;
pub mod nn;
pub mod noise;
pub mod pipeline;
#[doc(hidden)]
pub mod reference;
pub mod schedulers;
pub mod tokenizer;
#[cfg(all(feature = "viewer", not(target_arch = "wasm32")))]
pub mod viewer;
#[cfg(target_arch = "wasm32")]
mod web;
pub mod weights;

pub use engine::{Decoder, Decoding, Dtype, Encoder, Engine, EngineOptions, Estimate, Rect, Tuning, Weights};
pub use error::{Error, Result};
pub use gpu::{Observer, Progress};
pub use image::Image;
pub use latent::Latent;
