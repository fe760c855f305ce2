//! Images in, augmented views out.
//!
//! A [`Source`] lists images and loads them one by one; [`ViewsConfig`] says how an image
//! becomes the crops ("views") that a network is trained on; a [`Loader`] prepares batches of
//! views on worker threads. Every random choice is a function of the seed and of the place it is
//! made for (epoch, sample, view), so a batch is the same whatever the number of threads and
//! wherever a run was resumed.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod augment;
mod decode;
mod folder;
mod loader;
mod materials;
mod memory;
mod pixels;
mod png;
mod preprocess;
mod resize;
mod sheet;
mod source;

pub use augment::{Policy, View, ViewsConfig};
pub use decode::{DecodeError, DecodeLimits, decode};
pub use folder::{Folder, FolderError};
pub use loader::{Batch, Batches, BrokenImage, Loader, LoaderConfig, LoaderError};
pub use materials::{MATERIALS_LICENSE, MaterialsTask, sample_jpeg, training_materials};
pub use memory::InMemory;
pub use pixels::{Image, ImageError};
pub use png::{PngError, encode_png};
pub use preprocess::Preprocess;
pub use resize::{EvalTransform, Interpolation, resized, resized_crop, resized_crop_to};
pub use sheet::contact_sheet;
pub use source::{Source, SourceError};
