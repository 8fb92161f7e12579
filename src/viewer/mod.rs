//! The native viewer, `infgen view`: a latent decoded at exactly the pixels that it covers on the screen.
//!
//! A shell over the engine: it opens the device that the window presents on ([`crate::gpu::Gpu::for_surface`]), decodes on
//! a thread of its own into textures that never leave the GPU, and draws them itself; egui draws the controls on top. What
//! needs no window (zoom and pan, tiles, cache, what is wanted next, cancelling) is in files of its own and tested without.

mod app;
mod cache;
mod demand;
mod device;
mod dialogs;
mod files;
mod jobs;
mod measure;
mod paint;
mod prompt;
mod save;
mod scene;
mod settings;
mod split;
mod tiles;
mod ui;
mod view;
mod work;

pub use app::{ViewerOptions, run};
