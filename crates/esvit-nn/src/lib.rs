//! Backbones, heads and the operations that they are built from.
//!
//! A network is a description, built once over a list of named [`params`]; student and teacher
//! are two sets of values for it. [`network::Network`] is backbone and heads together.

pub mod backbone;
pub mod device;
pub mod forward_ctx;
pub mod head;
pub mod layers;
pub mod network;
pub mod onnx;
pub mod ops;
pub mod params;
pub mod weights;
pub mod zoo;

pub use backbone::swin::{Swin, SwinConfig};
pub use forward_ctx::ForwardCtx;
pub use network::Network;
pub use params::Params;
