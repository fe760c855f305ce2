//! PNG encoding.

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::Image;

/// An image that cannot be encoded as PNG.
#[derive(Debug, thiserror::Error)]
#[error("an image of {width}x{height} cannot be written as PNG: {source}")]
pub struct PngError {
    width: u32,
    height: u32,
    source: image::ImageError,
}

/// Encodes `image` as a PNG file.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, PngError> {
    let (width, height) = (image.width(), image.height());
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.pixels(), width, height, ExtendedColorType::Rgb8)
        .map_err(|source| PngError { width, height, source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_images::noise;
    use crate::{DecodeLimits, decode};

    #[test]
    fn a_image_survives() {
        let image = noise(7, 5, 1);
        let bytes = encode_png(&image).unwrap();
        assert!(bytes.starts_with(b"\x89PNG"));
        assert_eq!(decode(&bytes, &DecodeLimits::default()).unwrap(), image);
    }
}
