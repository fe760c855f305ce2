//! Decodes image files.
//!
//! An image is decoded completely or refused with a reason: training on half-gray images would be
//! silently wrong.

use std::io::{Cursor, ErrorKind};

use esvit_settings::settings;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::Image;

settings! {
    /// Limits on the size of an image, checked from its header before pixels are decoded.
    #[derive(Copy, Eq)]
    pub struct DecodeLimits {
        /// Most pixels (width x height); above the default, Pillow suspects a decompression bomb.
        pub max_pixels: u64 = 178_956_970,
        /// Most bytes of the decoded image in the pixel format of the file.
        pub max_bytes: u64 = 1 << 30,
    }
}

/// Why bytes cannot be decoded. The caller adds the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the file is empty (0 bytes)\nhint: copy it again or delete it")]
    Empty,
    /// Not a supported format.
    #[error(
        "not an image: it begins with {begin}\n\
         hint: JPEG, PNG, WebP, TIFF, BMP and GIF are read, recognized by content"
    )]
    UnknownFormat {
        /// The first bytes, readable.
        begin: String,
    },
    /// The file ends before the image does.
    #[error("the {format} file is truncated: it ends before the image does\nhint: copy it again")]
    Truncated {
        /// Name of the format.
        format: &'static str,
    },
    /// More pixels than allowed.
    #[error(
        "{width}x{height} is {pixels} pixels, more than `max_pixels` = {limit}\n\
         hint: shrink the image or raise the limit"
    )]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Their product.
        pixels: u64,
        /// The limit.
        limit: u64,
    },
    /// More memory than allowed.
    #[error(
        "decoding needs {bytes} bytes, more than `max_bytes` = {limit}\n\
         hint: shrink the image or raise the limit"
    )]
    TooManyBytes {
        /// Bytes needed.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A feature of the format that is not supported.
    #[error("the {format} file uses a feature that is not supported: {reason}\nhint: save it anew")]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// The decoder's message.
        reason: String,
    },
    /// Anything else the decoder objects to.
    #[error("the {format} file is damaged: {reason}\nhint: copy it again or save it anew")]
    Damaged {
        /// Name of the format.
        format: &'static str,
        /// The decoder's message.
        reason: String,
    },
}

/// Decodes a JPEG, PNG, WebP, TIFF, BMP or GIF (first frame) file, recognized by its content.
///
/// Gray becomes RGB, 16 bits become 8, palettes are resolved, alpha is dropped (like Pillow's
/// `convert("RGB")`), CMYK is converted, and the EXIF orientation is applied.
///
/// ```
/// use esvit_data::{DecodeLimits, Image, decode, encode_png};
/// let image = Image::new(1, 1, vec![1, 2, 3])?;
/// assert_eq!(decode(&encode_png(&image)?, &DecodeLimits::default())?, image);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = match image::guess_format(bytes) {
        Ok(format) if name(format).is_some() => format,
        _ => return Err(DecodeError::UnknownFormat { begin: describe_head(bytes) }),
    };
    let name = name(format).unwrap_or_default();
    let to_decode_error = |error| to_decode_error(error, name);

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // Also limits the decoders' own buffers (compressed chunks, metadata).
    let mut own = Limits::no_limits();
    own.max_alloc = Some(limits.max_bytes);
    reader.limits(own);
    let mut decoder = reader.into_decoder().map_err(to_decode_error)?;

    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(DecodeError::TooManyPixels { width, height, pixels, limit: limits.max_pixels });
    }
    let bytes_needed = decoder.total_bytes();
    if bytes_needed > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes_needed, limit: limits.max_bytes });
    }
    // The JPEG decoder fills missing data with gray, and the WebP decoder does not distinguish
    // truncation from other damage.
    let complete = match format {
        ImageFormat::Jpeg => jpeg_is_complete(bytes),
        ImageFormat::WebP => webp_is_complete(bytes),
        _ => true,
    };
    if !complete {
        return Err(DecodeError::Truncated { format: name });
    }

    // An image with an unreadable orientation is still usable.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(to_decode_error)?;
    let mut rgb = DynamicImage::ImageRgb8(decoded.into_rgb8());
    rgb.apply_orientation(orientation);
    let (width, height) = (rgb.width(), rgb.height());
    Image::new(width, height, rgb.into_rgb8().into_raw())
        .map_err(|error| DecodeError::Damaged { format: name, reason: error.to_string() })
}

/// Names of the supported formats.
fn name(format: ImageFormat) -> Option<&'static str> {
    match format {
        ImageFormat::Jpeg => Some("JPEG"),
        ImageFormat::Png => Some("PNG"),
        ImageFormat::WebP => Some("WebP"),
        ImageFormat::Tiff => Some("TIFF"),
        ImageFormat::Bmp => Some("BMP"),
        ImageFormat::Gif => Some("GIF"),
        _ => None,
    }
}

/// The first bytes as text if they are text (a web page saved as `.jpg` is common), else in
/// hexadecimal.
fn describe_head(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(16)];
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
            format!("the text `{}`", text.escape_default())
        }
        _ => {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("the bytes `{}`", hex.join(" "))
        }
    }
}

/// Whether a JPEG file reaches its end-of-image marker (ITU T.81, annex B). Segments are skipped
/// by their length, so that the end of an embedded thumbnail does not count. A file that lacks
/// only the marker is refused too, as in Pillow.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xD9;
    let mut at = 2;
    loop {
        // Between segments and in entropy-coded data, the next marker is the next 0xFF that is
        // followed neither by 0x00 (a stuffed byte) nor by 0xFF (fill).
        let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF))
        else {
            return false;
        };
        at += offset + 1;
        match bytes.get(at) {
            None => return false,
            Some(&END_OF_IMAGE) => return true,
            // Stuffing, fill, TEM, restart markers and a repeated start have no length.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            Some(0xFF) => {}
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                // A scan's compressed data follow its header and are searched as above.
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

/// Whether all bytes are there that the RIFF header announces.
fn webp_is_complete(bytes: &[u8]) -> bool {
    let Some(&[_, _, _, _, a, b, c, d]) = bytes.first_chunk::<8>() else { return false };
    bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes([a, b, c, d]))
}

fn to_decode_error(error: ImageError, format: &'static str) -> DecodeError {
    let reason = error.to_string();
    match error {
        ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format }
        }
        ImageError::Unsupported(_) => DecodeError::Unsupported { format, reason },
        // Some decoders report the end of the data as a message only.
        _ if reason.to_ascii_lowercase().contains("end of file")
            || reason.to_ascii_lowercase().contains("unexpected eof") =>
        {
            DecodeError::Truncated { format }
        }
        _ => DecodeError::Damaged { format, reason },
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
