//! One network a file, and beside it the configuration that its shapes come from. No model names another.

pub mod autoencoder_kl;
pub mod clip;
pub mod clip_config;
pub mod dit;
pub mod dit_config;
pub mod infd;
pub mod infd_config;
pub mod infgen;
pub mod infgen_config;
pub mod taesd;
pub mod taesd_config;
pub mod unet;
pub mod unet_config;
pub mod vae_config;
