//! Images in, augmented views out.
//!
//! A [`Source`] lists images and loads them one by one; [`ViewsConfig`] describes how they are
//! augmented into views; a [`Loader`] prepares batches of views on worker threads. Random numbers
//! are keyed by seed, epoch, sample and view, so that a batch depends neither on the number of
//! threads nor on where a run was resumed.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod augment;
mod background;
mod conversion;
mod crops;
mod cutouts;
mod decode;
mod folder;
mod folders;
mod footprint;
mod loader;
mod materials;
mod memory;
mod names;
mod pixels;
mod png;
mod preprocess;
mod range;
mod read;
mod resize;
mod sheet;
mod source;
mod subset;
mod survey;

pub use augment::{Policy, View, ViewsConfig};
pub use background::{Background, BackgroundSetting};
pub use conversion::{Conversion, Levels, RangeSetting, SampleType};
pub use crops::Crops;
pub use cutouts::{Cutouts, VisibleColors};
pub use decode::{DecodeError, DecodeLimits, decode, decode_as};
pub use folder::{Folder, FolderError, Listing, Split, Unlisted};
pub use folders::Folders;
pub use footprint::decoded_bytes;
pub use loader::{Batch, Batches, BrokenImage, Loader, LoaderConfig, LoaderError, MAX_WORKERS};
pub use materials::{MATERIALS_LICENSE, MaterialsTask, sample_jpeg, training_materials};
pub use memory::InMemory;
pub use names::{counted, list_reasons, printable};
pub use pixels::{Image, ImageError};
pub use png::{PngError, encode_png};
pub use preprocess::Preprocess;
pub use range::ChosenRange;
pub use read::{ImageFiles, read_image};
pub use resize::{EvalTransform, Interpolation, resize, resized_crop, resized_crop_to};
pub use sheet::contact_sheet;
pub use source::{FileStamp, Source, SourceError, evenly_spaced};
pub use subset::Subset;
pub use survey::Survey;
