//! The operations that backbones and heads are written in.
//!
//! Models call these functions and no others on the hot path, so that how an operation is carried
//! out on a device can change without touching a model.

mod attention;
mod basic;
mod fused;
mod window;

pub use attention::{window_attention, window_attention_weights};
pub use basic::{
    gelu, l2_normalize, layer_norm, linear, merge_patches, patches, soft_cross_entropy,
};
pub use window::{WindowMap, WindowMaps};
