//! Self-supervised pre-training of multi-stage vision transformers: EsViT in Rust.
//!
//! This crate re-exports the crates that the program `esvit` is made of: [`data`] (images,
//! augmentation, loading), [`nn`] (backbones and heads), [`model`] (trained backbones for
//! inference), [`train`] (objectives, optimizers, the training loop) and, with the feature `eval`,
//! `eval` and `draw` (evaluations and their drawings). The program itself is the feature `cli`,
//! enabled by default. To embed images and no more, depend on `esvit-model` alone.

pub use esvit_data as data;
#[cfg(feature = "eval")]
pub use esvit_draw as draw;
#[cfg(feature = "eval")]
pub use esvit_eval as eval;
pub use esvit_model as model;
pub use esvit_nn as nn;
pub use esvit_train as train;
