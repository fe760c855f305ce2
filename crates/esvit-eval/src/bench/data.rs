//! Benchmark of JPEG decoding and multi-crop augmentation on one core.

use std::path::Path;

use esvit_data::{DecodeLimits, Policy, ViewsConfig, decode};
use esvit_files::read_hint;
use serde::Serialize;

use super::{BenchError, median, repeat};

/// Results, on one core.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    /// Width and height of the image.
    pub size: [u32; 2],
    /// Decoding, in milliseconds.
    pub decode_ms: f64,
    /// Two global crops of 224 and eight local crops of 96 pixels by the `dino` policy, normalized,
    /// in milliseconds.
    pub views_ms: f64,
    /// The sum, in milliseconds.
    pub total_ms: f64,
    /// Images per second.
    pub images_per_s: f64,
}

/// Times decoding and augmentation of an image file, or of a built-in one.
///
/// # Errors
/// [`BenchError::Image`] if the image cannot be read.
pub fn data(image: Option<&Path>, iterations: usize) -> Result<DataReport, BenchError> {
    let fail = |error: &dyn std::fmt::Display| BenchError::Image(error.to_string());
    let bytes = match image {
        Some(path) => std::fs::read(path).map_err(|error| {
            let hint = read_hint(&error);
            fail(&format!("cannot read `{}`: {error}\nhint: {hint}", path.display()))
        })?,
        None => esvit_data::sample_jpeg().to_vec(),
    };
    let limits = DecodeLimits::default();
    let image = decode(&bytes, &limits).map_err(|error| fail(&error))?;
    let config = ViewsConfig::for_policy(Policy::Dino);
    let decoding = repeat(iterations, |_| {
        decode(&bytes, &limits).map(|image| drop(std::hint::black_box(image)))
    })
    .map_err(|error| fail(&error))?;
    let views = repeat(iterations, |sample| {
        config.views(&image, 0, 0, sample as u64).map(|views| drop(std::hint::black_box(views)))
    })
    .map_err(|error| fail(&error))?;
    let [decode_ms, views_ms] = [&decoding, &views].map(|seconds| median(seconds) * 1e3);
    let total_ms = decode_ms + views_ms;
    Ok(DataReport {
        size: [image.width(), image.height()],
        decode_ms,
        views_ms,
        total_ms,
        images_per_s: 1e3 / total_ms,
    })
}
