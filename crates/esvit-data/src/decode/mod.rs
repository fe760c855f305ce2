//! Decodes image files.
//!
//! An image is decoded completely or refused with a reason: training on half-gray images would be
//! silently wrong.

mod format;
mod orientation;
mod png;
mod raster;
mod tiff;

use std::io::{Cursor, ErrorKind};

use esvit_settings::settings;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use self::format::Format;
use self::raster::{Alpha, Raster, Samples};
use crate::conversion::{Conversion, SampleType};
use crate::{Image, Levels, VisibleColors};

pub(crate) use self::format::HEAD;

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

impl DecodeLimits {
    /// Most bytes of a file: twice what an image may have decoded, and at least 64 MiB.
    pub fn max_file_bytes(&self) -> u64 {
        self.max_bytes.saturating_mul(2).max(64 << 20)
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
    /// A format that is known and not supported.
    #[error("the file is {format}, which is not read\nhint: convert it to JPEG or PNG")]
    Foreign {
        /// Name of the format.
        format: &'static str,
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
    /// A file that is far larger than an image.
    #[error(
        "the file has {bytes} bytes, more than the {limit} that an image may have\n\
         hint: save it anew, compressed and without other images in the file"
    )]
    FileTooLarge {
        /// Size of the file.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Not-a-number or infinite values.
    #[error(
        "some of its values are not finite (NaN or infinity)\n\
         hint: replace them by numbers, or save it as 8 or 16 bits"
    )]
    NotFinite,
    /// Floating-point values that are not from 0 to 1.
    #[error(
        "its values are from {least} to {most}, and black and white are 0 and 1\n\
         hint: scale them to 0 to 1; training has `data.range=[LOW,HIGH]` for it"
    )]
    OutsideUnit {
        /// The smallest value.
        least: f64,
        /// The largest value.
        most: f64,
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

/// Decodes a JPEG, PNG, WebP, TIFF, BMP or GIF (first frame) file, recognized by its content, with
/// the usual [`Conversion`].
///
/// ```
/// use esvit_data::{DecodeLimits, Image, decode, encode_png};
/// let image = Image::new(1, 1, vec![1, 2, 3])?;
/// assert_eq!(decode(&encode_png(&image)?, &DecodeLimits::default())?, image);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Image, DecodeError> {
    decode_as(bytes, limits, &Conversion::default())
}

/// Decodes a file as `conversion` says.
///
/// Gray becomes RGB, more than 8 bits become 8, palettes are resolved, transparent pixels show a
/// background, CMYK is converted, and the EXIF orientation is applied.
pub fn decode_as(
    bytes: &[u8],
    limits: &DecodeLimits,
    conversion: &Conversion,
) -> Result<Image, DecodeError> {
    let format = recognize(bytes)?;
    let (raster, orientation) = read(bytes, format, limits)?;
    let (width, height) = (raster.width, raster.height);
    let pixels = raster.into_rgb8(conversion)?;
    let damaged = |reason| DecodeError::Damaged { format: format.name(), reason };
    if orientation == Orientation::NoTransforms {
        return Image::new(width, height, pixels).map_err(|error| damaged(error.to_string()));
    }
    let rgb = image::RgbImage::from_raw(width, height, pixels);
    let mut rgb = DynamicImage::from(rgb.ok_or_else(|| damaged("pixels are missing".into()))?);
    rgb.apply_orientation(orientation);
    let (width, height) = (rgb.width(), rgb.height());
    Image::new(width, height, rgb.into_rgb8().into_raw())
        .map_err(|error| damaged(error.to_string()))
}

/// The stored values of an image of more than 8 bits: their type and about `most` of those of its
/// visible pixels, evenly spaced. `None` for 8 bits.
pub(crate) fn deep_values(
    bytes: &[u8],
    limits: &DecodeLimits,
    most: usize,
) -> Result<Option<(SampleType, Vec<f64>)>, DecodeError> {
    let format = recognize(bytes)?;
    let may_be_deep = match format {
        Format::Tiff => true,
        Format::Other(ImageFormat::Png, _) => png::Chunks::of(bytes).depth > 8,
        Format::Other(..) => false,
    };
    if !may_be_deep {
        return Ok(None);
    }
    Ok(read(bytes, format, limits)?.0.deep_values(most))
}

/// The visible colors of an image with an alpha channel; `None` without one, or if nothing is visible.
pub(crate) fn visible_colors(
    bytes: &[u8],
    limits: &DecodeLimits,
    levels: &Levels,
) -> Result<Option<VisibleColors>, DecodeError> {
    let format = recognize(bytes)?;
    let may_have_alpha = match format {
        Format::Tiff => tiff::has_alpha(bytes, limits)?,
        Format::Other(ImageFormat::Jpeg, _) => false,
        Format::Other(ImageFormat::Png, _) => png::Chunks::of(bytes).has_alpha,
        Format::Other(..) => true,
    };
    if !may_have_alpha {
        return Ok(None);
    }
    read(bytes, format, limits)?.0.visible_colors(levels)
}

/// Refuses a file by its first [`HEAD`] bytes unless its format is read.
pub(crate) fn check_head(head: &[u8]) -> Result<(), DecodeError> {
    recognize(head).map(drop)
}

fn recognize(bytes: &[u8]) -> Result<Format, DecodeError> {
    let head = &bytes[..bytes.len().min(HEAD)];
    if head.is_empty() {
        return Err(DecodeError::Empty);
    }
    Format::of(head).ok_or_else(|| match format::foreign(head) {
        Some(format) => DecodeError::Foreign { format },
        None => DecodeError::UnknownFormat { begin: format::describe_head(head) },
    })
}

/// The samples of a file and its orientation.
fn read(
    bytes: &[u8],
    format: Format,
    limits: &DecodeLimits,
) -> Result<(Raster, Orientation), DecodeError> {
    let (format, name) = match format {
        Format::Tiff => return tiff::decode(bytes, limits),
        Format::Other(format, name) => (format, name),
    };
    let to_decode_error = |error| to_decode_error(error, name);
    let chunks = (format == ImageFormat::Png).then(|| png::Chunks::of(bytes));
    let late_exif = chunks.as_ref().and_then(|chunks| chunks.late_exif);
    let bytes = chunks.as_ref().map_or(bytes, |chunks| &chunks.file);

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // Also limits the decoders' own buffers (compressed chunks, metadata).
    let mut own = Limits::no_limits();
    own.max_alloc = Some(limits.max_bytes);
    reader.limits(own);
    let mut decoder = reader.into_decoder().map_err(to_decode_error)?;

    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.total_bytes(), limits)?;
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

    let orientation = orientation::of(&mut decoder, late_exif);
    let decoded = DynamicImage::from_decoder(decoder).map_err(to_decode_error)?;
    let (channels, alpha) = match decoded.color().channel_count() {
        count @ (2 | 4) => (count, Alpha::Straight),
        count => (count, Alpha::None),
    };
    let samples = match decoded {
        DynamicImage::ImageLuma8(image) => Samples::U8(image.into_raw()),
        DynamicImage::ImageLumaA8(image) => Samples::U8(image.into_raw()),
        DynamicImage::ImageRgb8(image) => Samples::U8(image.into_raw()),
        DynamicImage::ImageRgba8(image) => Samples::U8(image.into_raw()),
        DynamicImage::ImageLuma16(image) => Samples::U16(image.into_raw()),
        DynamicImage::ImageLumaA16(image) => Samples::U16(image.into_raw()),
        DynamicImage::ImageRgb16(image) => Samples::U16(image.into_raw()),
        DynamicImage::ImageRgba16(image) => Samples::U16(image.into_raw()),
        DynamicImage::ImageRgb32F(image) => Samples::F32(image.into_raw()),
        DynamicImage::ImageRgba32F(image) => Samples::F32(image.into_raw()),
        other => {
            let reason = format!("{:?}", other.color());
            return Err(DecodeError::Unsupported { format: name, reason });
        }
    };
    let channels = channels.into();
    let mut raster = Raster { width, height, channels, alpha, inverted: false, samples };
    if format == ImageFormat::Bmp {
        raster.drop_empty_alpha();
    }
    Ok((raster, orientation))
}

fn check_size(
    width: u32,
    height: u32,
    bytes: u64,
    limits: &DecodeLimits,
) -> Result<(), DecodeError> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(DecodeError::TooManyPixels { width, height, pixels, limit: limits.max_pixels });
    }
    if bytes > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes, limit: limits.max_bytes });
    }
    Ok(())
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
        _ if is_end_of_data(&reason) => DecodeError::Truncated { format },
        _ => DecodeError::Damaged { format, reason },
    }
}

/// Some decoders report the end of the data as a message only.
fn is_end_of_data(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    ["end of file", "unexpected eof", "insufficientinput"].iter().any(|end| reason.contains(end))
}

#[cfg(test)]
mod tests;
