//! Augmentation: operations on single images, and the policies that combine them.
//!
//! Color operations reproduce Pillow's arithmetic on 8-bit pixels, rounding included, since
//! published recipes were tuned with it.

mod blur;
mod color;
mod config;
mod crop;
mod erase;
mod flip;
mod geometry;
mod histogram;
mod lookup;
mod normalize;
mod randaugment;
mod solarize;
#[cfg(test)]
pub(crate) mod test_draws;
#[cfg(test)]
pub(crate) mod test_images;
mod views;

pub use blur::gaussian_blur;
pub use color::{
    ColorJitter, add_brightness, brightness, contrast, grayscale, hue, jitter, saturation,
};
pub use config::{Blur, Policy, Solarize, ViewsConfig};
pub use crop::CropBox;
pub use erase::Erase;
pub use flip::{horizontal_flip, rotate90, vertical_flip};
pub use normalize::{Normalization, SliceLength};
pub use randaugment::RandAugment;
pub use solarize::solarize;
pub use views::{ErasedRect, View};
