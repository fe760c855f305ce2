//! How pictures are shown to a frozen backbone.

use serde::{Deserialize, Serialize};

use crate::augment::Normalization;
use crate::{EvalTransform, Picture, PictureError, ViewsConfig};

/// How pictures are shown to a frozen backbone. Travels with weights that leave a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Resizing and centre crop.
    #[serde(flatten)]
    pub transform: EvalTransform,
    /// Mean of the channels, for values in 0..=1.
    pub mean: [f64; 3],
    /// Standard deviation of the channels.
    pub std: [f64; 3],
}

impl Preprocess {
    /// The centre `crop` after the shorter side is resized to `resize` pixels (0 for the usual
    /// 256/224 of the crop), normalised as in training.
    pub fn new(crop: u32, resize: u32, views: &ViewsConfig) -> Self {
        let mut transform = EvalTransform::new(crop);
        if resize > 0 {
            transform.resize = resize;
        }
        Self { transform, mean: views.mean, std: views.std }
    }

    /// How pictures of `crop` pixels are shown to published networks: ImageNet's mean and deviation.
    pub fn published(crop: u32) -> Self {
        Self::new(crop, 0, &ViewsConfig::default())
    }

    /// Side of what the network sees, in pixels.
    pub fn size(&self) -> usize {
        self.transform.crop as usize
    }

    /// A picture as normalised `[3, size, size]`.
    ///
    /// # Errors
    /// When the picture cannot be resized.
    pub fn prepare(&self, picture: &Picture) -> Result<Vec<f32>, PictureError> {
        Ok(self.normalized(&self.transform.apply(picture)?))
    }

    /// A picture as it is, as normalised `[3, height, width]`.
    pub fn normalized(&self, picture: &Picture) -> Vec<f32> {
        let mut values = vec![0.0; picture.pixels().len()];
        Normalization::new(self.mean, self.std)
            .write(picture, &mut values)
            .expect("as many values as the picture has");
        values
    }
}
