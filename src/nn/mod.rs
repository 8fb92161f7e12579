//! Layers: weights on the device and a `forward` that records kernels. No layer knows a device or a model.

mod attention;
pub mod chain;
mod conv;
mod loader;
mod norm;
mod resnet;
mod rotary;
mod time;
mod transformer;
mod up_decoder;

pub use attention::{Heads, HeadsShape, SelfAttention, TOKENS_A_CHUNK};
pub use conv::{Conv3x3, Linear, StridedConv, UpsampleConv};
pub use loader::{Loader, Precision};
pub use norm::{GroupNorm, LayerNorm};
pub use resnet::ResnetBlock;
pub use rotary::RotaryScaling;
pub use time::{TimeEmbedding, TimeEmbeddingShape, guidance_features, timestep_features};
pub use transformer::{KeysAndValues, Transformer2d, TransformerShape};
pub use up_decoder::{GroupNormConfig, MidBlock, UpDecoder, UpDecoderShape, append};
