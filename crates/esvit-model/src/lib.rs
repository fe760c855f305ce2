//! A trained vision backbone for inference: load weights of any supported program, compute
//! features, and export the features or the backbone.
//!
//! ```no_run
//! use esvit_data::{DecodeLimits, decode};
//! use esvit_model::PretrainedBackbone;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backbone = PretrainedBackbone::open("backbone.safetensors".as_ref())?;
//! let image = decode(&std::fs::read("photo.jpg")?, &DecodeLimits::default())?;
//! let features = backbone.embed(&[image])?;
//! assert_eq!(features[0].len(), backbone.width());
//! # Ok(())
//! # }
//! ```
//!
//! No training, no drawing, no command line.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

mod card;
pub mod difference;
pub mod embedding;
pub mod export;
pub mod features;
pub mod metadata;
mod pretrained;

pub use esvit_files::npy;
pub use metadata::ModelMetadata;
pub use pretrained::{BackboneError, EmbedError, OpenOptions, PretrainedBackbone, SourceFile};
