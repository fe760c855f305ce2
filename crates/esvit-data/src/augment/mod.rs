//! Augmentation: the operations, each on one picture, and the policies made of them.
//!
//! Operations on colour reproduce Pillow's arithmetic on 8-bit pixels, rounding included, since
//! that is what published recipes were tuned with.

pub mod blur;
pub mod color;
pub mod config;
mod crop;
mod erase;
mod flip;
mod geometry;
mod histogram;
mod lookup;
mod normalize;
mod overlay;
pub mod randaugment;
mod solarize;
#[cfg(test)]
pub(crate) mod test_pictures;
pub mod views;

pub use blur::gaussian_blur;
pub use color::{brightness, contrast, grayscale, hue, saturation};
pub use crop::CropBox;
pub use flip::horizontal_flip;
pub use normalize::{Normalization, SliceLength};
pub use solarize::solarize;
