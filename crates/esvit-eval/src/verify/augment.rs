//! Cases of kind `augment`: image operations, compared in gray levels.

use esvit_data::augment::{self, CropBox};
use esvit_data::{EvalTransform, Image, ImageError, Interpolation, resized_crop};
use serde::Deserialize;

use super::{Case, CaseError, Check, Outcome, Result};

const MEAN_TOLERANCE: f64 = 0.5;
const BLUR_MEAN_TOLERANCE: f64 = 1.0;
const LARGEST_TOLERANCE: f64 = 3.0;

#[derive(Deserialize)]
struct Settings {
    operations: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    input: Option<String>,
    #[serde(flatten)]
    operation: Operation,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Operation {
    ResizedCrop {
        top: u32,
        left: u32,
        height: u32,
        width: u32,
        size: u32,
        interpolation: Interpolation,
    },
    EvalTransform {
        resize_shorter: u32,
        center_crop: u32,
        interpolation: Interpolation,
    },
    HorizontalFlip,
    Brightness {
        factor: f64,
    },
    Contrast {
        factor: f64,
    },
    Saturation {
        factor: f64,
    },
    Hue {
        factor: f64,
    },
    Grayscale,
    GaussianBlur {
        radius: f64,
    },
    Solarize {
        threshold: u32,
    },
}

pub(super) fn run(case: &Case) -> Result<Outcome> {
    let settings: Settings = case.settings()?;
    let mut checks = Vec::new();
    for (index, step) in settings.operations.iter().enumerate() {
        let input = image(case, step.input.as_deref().unwrap_or("image"))?;
        let expected = image(case, &format!("out.{index}"))?;
        let found =
            step.operation.apply(input).map_err(|e| CaseError::Computation(e.to_string()))?;
        let (mean, largest) = gray_levels(&found, &expected);
        let name = case.settings["operations"][index]["op"].as_str().unwrap_or_default();
        let blurred = matches!(step.operation, Operation::GaussianBlur { .. });
        let tolerance = if blurred { BLUR_MEAN_TOLERANCE } else { MEAN_TOLERANCE };
        checks.push(Check::new(format!("{name} ({index}), mean"), mean, tolerance));
        checks.push(Check::new(format!("{name} ({index}), largest"), largest, LARGEST_TOLERANCE));
    }
    Ok(Outcome::Compared(checks))
}

impl Operation {
    fn apply(&self, mut image: Image) -> Result<Image, ImageError> {
        match *self {
            Self::ResizedCrop { top, left, height, width, size, interpolation } => {
                let area = CropBox { left, top, width, height };
                return resized_crop(&image, area, size, interpolation);
            }
            Self::EvalTransform { resize_shorter: resize, center_crop: crop, interpolation } => {
                return EvalTransform { resize, crop, interpolation }.apply(&image);
            }
            Self::HorizontalFlip => augment::horizontal_flip(&mut image),
            Self::Brightness { factor } => augment::brightness(&mut image, factor),
            Self::Contrast { factor } => augment::contrast(&mut image, factor),
            Self::Saturation { factor } => augment::saturation(&mut image, factor),
            Self::Hue { factor } => augment::hue(&mut image, factor),
            Self::Grayscale => augment::grayscale(&mut image),
            Self::GaussianBlur { radius } => augment::gaussian_blur(&mut image, radius),
            Self::Solarize { threshold } => augment::solarize(&mut image, threshold),
        }
        Ok(image)
    }
}

/// An image stored as bytes `[height, width, 3]`.
fn image(case: &Case, name: &str) -> Result<Image> {
    let (shape, pixels) = case.bytes(name)?;
    let &[height, width, 3] = shape.as_slice() else {
        return Err(CaseError::Settings(format!("`{name}` has shape {shape:?}")));
    };
    Image::new(width as u32, height as u32, pixels)
        .map_err(|e| CaseError::Settings(format!("`{name}`: {e}")))
}

/// Mean and largest absolute difference in gray levels.
fn gray_levels(found: &Image, expected: &Image) -> (f64, f64) {
    let [found, expected] = [found.pixels(), expected.pixels()];
    if found.len() != expected.len() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let differences = || found.iter().zip(expected).map(|(a, b)| u32::from(a.abs_diff(*b)));
    let mean = f64::from(differences().sum::<u32>()) / found.len() as f64;
    (mean, f64::from(differences().max().unwrap_or(0)))
}
