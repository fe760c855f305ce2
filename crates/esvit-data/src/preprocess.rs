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
    pub fn apply(&self, image: &Image) -> Result<Vec<f32>, ImageError> {
        Ok(self.normalize(&self.transform.apply(image)?))
    }

    /// Only normalizes an image: `[3, height, width]`.
    pub fn normalize(&self, image: &Image) -> Vec<f32> {
        let mut values = vec![0.0; image.pixels().len()];
        Normalization::new(self.mean, self.std)
            .write(image, &mut values)
            .expect("as many values as the image has");
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_shown_as_the_settings_say() {
        let views = ViewsConfig::default();
        let sides = |crop, resize| {
            let transform = Preprocess::new(crop, resize, &views).transform;
            (transform.crop, transform.resize)
        };
        assert_eq!(
            (sides(224, 0), sides(224, 230), sides(112, 0)),
            ((224, 256), (224, 230), (112, 128))
        );
        let run = Preprocess::new(96, 100, &views);
        assert_eq!((run.size(), run.transform.resize, run.mean), (96, 100, views.mean));
        let white = Image::new(1, 1, vec![255, 0, 51]).unwrap();
        let shown = Preprocess { mean: [0.5, 0.5, 0.2], std: [0.5, 0.25, 1.0], ..run };
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        let values = shown.normalize(&white);
        assert!(close(values[0], 1.0) && close(values[1], -2.0) && close(values[2], 0.0));
    }
}
