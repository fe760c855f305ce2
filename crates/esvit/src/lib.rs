//! Self-supervised pre-training of multi-stage vision transformers: EsViT in Rust.
//!
//! This crate re-exports the parts from which the program `esvit` is made: [`data`] (images,
//! augmentation, loading), [`nn`] (backbones and heads), [`train`] (objectives, optimizers, the
//! run) and [`eval`] (k-NN, features, numeric cases).

pub use esvit_data as data;
pub use esvit_eval as eval;
pub use esvit_model as model;
pub use esvit_nn as nn;
pub use esvit_train as train;
