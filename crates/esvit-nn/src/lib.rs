//! Backbones, heads and the operations that they are built from.
//!
//! A network is a description, built once over a list of named [`params`]; student and teacher
//! are two sets of values for it. [`network::Network`] is backbone and heads together.

pub mod backbone;
mod bicubic;
mod bilinear;
pub mod collective;
pub mod cost;
pub mod device;
pub mod esvit_heads;
pub mod forward_ctx;
pub mod gradients;
pub mod head;
mod interpolation;
pub mod layers;
mod limits;
mod memo;
pub mod network;
pub mod onnx;
pub mod ops;
pub mod params;
pub mod projection;
pub mod resize;
mod sine_cosine;
pub mod tape;
pub mod tensor;
pub mod weights;
pub mod zoo;

pub use backbone::{Backbone, BackboneConfig};
pub use collective::{Collective, Solo};
pub use device::Device;
pub use esvit_heads::EsvitHeads;
pub use forward_ctx::ForwardCtx;
pub use gradients::ParamGradients;
pub use network::Network;
pub use params::Params;
pub use tape::Tape;
pub use tensor::Tensor;
