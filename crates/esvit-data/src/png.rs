//! PNG files of pictures.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::Picture;

/// The PNG encoder refused the picture.
#[derive(Debug, thiserror::Error)]
#[error("a picture of {width}x{height} cannot be written as PNG: {reason}")]
pub struct PngError {
    width: u32,
    height: u32,
    reason: String,
}

/// The bytes of a PNG file that shows `picture`.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>, PngError> {
    let (width, height) = (picture.width(), picture.height());
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(picture.pixels(), width, height, ExtendedColorType::Rgb8)
        .map_err(|error| PngError { width, height, reason: error.to_string() })?;
    Ok(bytes)
}
