//! PNG encoding.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::Image;

/// An image that cannot be encoded as PNG.
#[derive(Debug, thiserror::Error)]
#[error("an image of {width}x{height} cannot be written as PNG: {reason}")]
pub struct PngError {
    width: u32,
    height: u32,
    reason: String,
}

/// Encodes `image` as a PNG file.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, PngError> {
    let (width, height) = (image.width(), image.height());
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.pixels(), width, height, ExtendedColorType::Rgb8)
        .map_err(|error| PngError { width, height, reason: error.to_string() })?;
    Ok(bytes)
}
