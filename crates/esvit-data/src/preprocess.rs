//! Preprocessing for a frozen backbone.

use serde::{Deserialize, Serialize};

use crate::augment::Normalization;
use crate::{EvalTransform, Image, ImageError, ViewsConfig};

/// Preprocessing for a frozen backbone: resizing, center crop, normalization. Stored with weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Resizing and center crop.
    #[serde(flatten)]
    pub transform: EvalTransform,
    /// Mean of the channels, for values in 0..=1.
    pub mean: [f64; 3],
    /// Standard deviation of the channels.
    pub std: [f64; 3],
}

impl Preprocess {
    /// The center `crop` after the shorter side is resized to `resize` pixels (0 for 256/224 of
    /// the crop), normalized as in training.
    pub fn new(crop: u32, resize: u32, views: &ViewsConfig) -> Self {
        let mut transform = EvalTransform::new(crop);
        if resize > 0 {
            transform.resize = resize;
        }
        Self { transform, mean: views.mean, std: views.std }
    }

    /// Preprocessing of published networks, to `crop` pixels: ImageNet's mean and deviation.
    pub fn published(crop: u32) -> Self {
        Self::new(crop, 0, &ViewsConfig::default())
    }

    /// Side of the network's input, in pixels.
    pub fn size(&self) -> usize {
        self.transform.crop as usize
    }

    /// Resizes, crops and normalizes an image: `[3, size, size]`.
    ///
    /// # Errors
    /// When the image cannot be resized.
    pub fn prepare(&self, image: &Image) -> Result<Vec<f32>, ImageError> {
        Ok(self.normalized(&self.transform.apply(image)?))
    }

    /// Only normalizes an image: `[3, height, width]`.
    pub fn normalized(&self, image: &Image) -> Vec<f32> {
        let mut values = vec![0.0; image.pixels().len()];
        Normalization::new(self.mean, self.std)
            .write(image, &mut values)
            .expect("as many values as the image has");
        values
    }
}
