//! Preprocessing for a frozen backbone.

use esvit_settings::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::augment::Normalization;
use crate::resize::Interpolation;
use crate::{Background, Conversion, EvalTransform, Image, ImageError, Levels, ViewsConfig};

/// Preprocessing for a frozen backbone: resizing, center crop, normalization. Stored with weights;
/// what is deserialized is valid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Preprocess {
    /// Resizing and center crop.
    #[serde(flatten)]
    pub transform: EvalTransform,
    /// Mean of the channels, for values in 0..=1.
    pub mean: [f64; 3],
    /// Standard deviation of the channels.
    pub std: [f64; 3],
    /// What becomes black and white in images of more than 8 bits.
    #[serde(skip_serializing_if = "Levels::is_full")]
    pub range: Levels,
    /// What transparent pixels show.
    #[serde(skip_serializing_if = "is_usual")]
    pub background: Background,
}

fn is_usual(background: &Background) -> bool {
    *background == Background::default()
}

/// The stored form, each field of which errors name.
#[derive(Deserialize)]
struct Stored {
    resize: u32,
    crop: u32,
    #[serde(default)]
    interpolation: Interpolation,
    mean: [f64; 3],
    std: [f64; 3],
    #[serde(default)]
    range: Levels,
    #[serde(default)]
    background: Background,
}

impl TryFrom<Stored> for Preprocess {
    type Error = SettingError;

    fn try_from(stored: Stored) -> Result<Self, SettingError> {
        let Stored { resize, crop, interpolation, mean, std, range, background } = stored;
        let transform = EvalTransform { resize, crop, interpolation };
        let preprocess = Self { transform, mean, std, range, background };
        preprocess.validate()?;
        Ok(preprocess)
    }
}

impl Preprocess {
    /// Checks that images of any size can be shown so, in finite values.
    ///
    /// # Errors
    /// Names the first invalid field.
    pub fn validate(&self) -> Result<(), SettingError> {
        let EvalTransform { resize, crop, .. } = self.transform;
        check((1..=4096).contains(&crop), "crop", crop, "it must be between 1 and 4096 pixels")?;
        check(resize <= 65_536, "resize", resize, "it must be at most 65536 pixels")?;
        let is_number = self.mean.iter().all(|mean| mean.abs() <= 1e6);
        check(is_number, "mean", format_args!("{:?}", self.mean), "give numbers up to 1e6")?;
        let is_positive = self.std.iter().all(|std| (1e-6..=1e6).contains(std));
        check(is_positive, "std", format_args!("{:?}", self.std), "give numbers from 1e-6 to 1e6")
    }

    /// The center `crop` after the shorter side is resized to `resize` pixels (0 for 256/224 of
    /// the crop), normalized as in training.
    pub fn new(crop: u32, resize: u32, views: &ViewsConfig) -> Self {
        let mut transform = EvalTransform::new(crop);
        if resize > 0 {
            transform.resize = resize;
        }
        let (range, background) = Default::default();
        Self { transform, mean: views.mean, std: views.std, range, background }
    }

    /// Preprocessing of published networks, to `crop` pixels: ImageNet's mean and deviation.
    pub fn published(crop: u32) -> Self {
        Self::new(crop, 0, &ViewsConfig::default())
    }

    /// How images are to be loaded.
    pub fn conversion(&self) -> Conversion {
        Conversion { levels: self.range, background: self.background }
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
    fn what_is_read_is_valid() {
        let stored = serde_json::to_value(Preprocess::published(32)).unwrap();
        let read = |key: &str, value: serde_json::Value| {
            let mut stored = stored.clone();
            stored[key] = value;
            serde_json::from_value::<Preprocess>(stored)
        };
        assert_eq!(read("crop", 32.into()).unwrap(), Preprocess::published(32));
        for (key, value, expected) in [
            ("crop", 0.into(), "`crop` is 0: "),
            ("crop", 4097.into(), "`crop` is 4097: "),
            ("resize", 1_000_000_000.into(), "`resize` is 1000000000: "),
            ("mean", vec![0.5, 1e30, 0.5].into(), "`mean` is [0.5, 1e30, 0.5]: "),
            ("std", vec![0.5, 0.0, 0.5].into(), "`std` is [0.5, 0.0, 0.5]: "),
            ("std", "x".into(), "invalid type"),
        ] {
            let error = read(key, value).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn range_and_background_travel_along() {
        let usual = Preprocess::published(32);
        let stored = serde_json::to_value(&usual).unwrap();
        assert!(stored.get("range").is_none() && stored.get("background").is_none());
        let shown = Preprocess {
            range: Levels::default().with(crate::SampleType::Uint16, [0.0, 4095.0]),
            background: Background::Color([1, 2, 3]),
            ..usual
        };
        let stored = serde_json::to_value(&shown).unwrap();
        assert_eq!(stored["range"], "uint16 0..4095");
        assert_eq!(serde_json::from_value::<Preprocess>(stored).unwrap(), shown);
        let conversion = shown.conversion();
        assert_eq!((conversion.levels, conversion.background), (shown.range, shown.background));
    }

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
