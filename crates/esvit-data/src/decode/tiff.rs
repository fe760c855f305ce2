//! TIFF files, classic and BigTIFF: the first image.
//!
//! The `tiff` crate decompresses, and hands out samples uninterpreted: the copy of the file that it
//! is given says "gray, zero is black" whatever the colors are. Colors are made here, since the
//! crate has no palettes, drops alpha from gray and does not look at the order of bits.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use tiff::decoder::ifd::Value;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{TiffError, TiffUnsupportedError};

use super::orientation::{self, ORIENTATION};
use super::raster::{Alpha, Raster, Samples};
use super::{DecodeError, DecodeLimits, check_size, is_end_of_data};

const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const INK_SET: u16 = 332;
const YCBCR_COEFFICIENTS: u16 = 529;
const REFERENCE_BLACK_WHITE: u16 = 532;

/// Compressions whose data are bytes of a JPEG file, to which the order of bits does not apply.
const JPEG: [u16; 2] = [6, 7];

/// What the samples of a pixel mean; alpha and others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colors {
    Gray { inverted: bool },
    Rgb,
    Palette,
    Cmyk,
    YCbCr,
}

/// The first image of a file and its orientation.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
) -> Result<(Raster, Orientation), DecodeError> {
    let bytes = as_gray(bytes)?;
    let mut file = File::open(&bytes.bytes, limits)?;
    let colors = colors(bytes.photometric, file.number(Tag::Compression)?.unwrap_or(1))?;
    let (width, height) = file.decoder.dimensions().map_err(error)?;
    let samples = file.number(Tag::SamplesPerPixel)?.unwrap_or(1) as usize;
    let bits = file.numbers(Tag::BitsPerSample)?.first().map_or(1, |&bits| bits as usize);
    let size = u64::from(width) * u64::from(height);
    let bytes_of_all = size.saturating_mul((samples * bits.max(8) / 8).max(3) as u64);
    check_size(width, height, bytes_of_all, limits)?;
    if !(matches!(bits, 1..=8 | 16 | 32) || bits == 64) {
        return Err(unsupported(format!("{bits} bits per sample")));
    }

    let (kept, alpha) = channels(colors, samples, &file.numbers(Tag::ExtraSamples)?)?;
    let planar = file.number(Tag::PlanarConfiguration)? == Some(2) && samples > 1;
    let orientation = file.number(Tag::Unknown(ORIENTATION)).ok().flatten();
    let orientation = orientation.and_then(orientation::from_number);
    let ink_set = file.number(Tag::Unknown(INK_SET))?.unwrap_or(1);
    if colors == Colors::Cmyk && ink_set != 1 {
        return Err(unsupported(format!("inks that are not CMYK (InkSet {ink_set})")));
    }
    let palette = match colors {
        Colors::Palette => file.palette(bits)?,
        _ => Vec::new(),
    };
    let ycbcr = match colors {
        Colors::YCbCr => Some(file.ycbcr()?),
        _ => None,
    };

    let stored = file.samples()?;
    let layout = Layout { pixels: size as usize, width: width as usize, samples, bits, planar };
    let mut raster = Raster {
        width,
        height,
        channels: kept,
        alpha,
        inverted: colors == Colors::Gray { inverted: true },
        samples: layout.take(stored, if colors == Colors::Palette { None } else { Some(kept) })?,
    };
    match colors {
        Colors::Gray { .. } | Colors::Rgb => {}
        Colors::Palette => look_up(&mut raster, &palette, bits)?,
        Colors::Cmyk => cmyk_to_rgb(&mut raster)?,
        Colors::YCbCr => ycbcr_to_rgb(&mut raster, &ycbcr.unwrap_or_default())?,
    }
    Ok((raster, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Whether the first image of a file has alpha.
pub(super) fn has_alpha(bytes: &[u8], limits: &DecodeLimits) -> Result<bool, DecodeError> {
    let bytes = as_gray(bytes)?;
    let mut file = File::open(&bytes.bytes, limits)?;
    let colors = colors(bytes.photometric, file.number(Tag::Compression)?.unwrap_or(1))?;
    let samples = file.number(Tag::SamplesPerPixel)?.unwrap_or(1) as usize;
    let (_, alpha) = channels(colors, samples, &file.numbers(Tag::ExtraSamples)?)?;
    Ok(alpha != Alpha::None)
}

/// The bytes of a file that says "gray, zero is black", with the highest bit of each byte first.
struct AsGray<'a> {
    bytes: Cow<'a, [u8]>,
    /// What the file says of its colors.
    photometric: u64,
}

fn as_gray(bytes: &[u8]) -> Result<AsGray<'_>, DecodeError> {
    let ifd = Ifd::first(bytes).ok_or(DecodeError::Truncated { format: "TIFF" })?;
    let missing = || damaged("it does not say what its colors are (PhotometricInterpretation)");
    let (at, size) = ifd.place_of(PHOTOMETRIC).ok_or_else(missing)?;
    let photometric = ifd.integer(at, size).ok_or_else(missing)?;
    let mut copy = Cow::Borrowed(bytes);
    if photometric != 1 {
        let one = if ifd.big_endian { size - 1 } else { 0 };
        let value = &mut copy.to_mut()[at..at + size];
        value.fill(0);
        value[one] = 1;
    }
    let order = ifd.place_of(FILL_ORDER).and_then(|(at, size)| ifd.integer(at, size));
    match order.unwrap_or(1) {
        1 => {}
        2 => reverse_bits(bytes, copy.to_mut())?,
        order => return Err(unsupported(format!("FillOrder {order}"))),
    }
    Ok(AsGray { bytes: copy, photometric })
}

/// Reverses the bits of all image data but those of JPEG.
fn reverse_bits(bytes: &[u8], copy: &mut [u8]) -> Result<(), DecodeError> {
    let mut file = File::open(bytes, &DecodeLimits::default())?;
    let compression = file.number(Tag::Compression)?.unwrap_or(1);
    if JPEG.iter().any(|&jpeg| u64::from(jpeg) == compression) {
        return Ok(());
    }
    let tiled = file.decoder.get_chunk_type() == tiff::decoder::ChunkType::Tile;
    let [offsets, lengths] = match tiled {
        true => [Tag::TileOffsets, Tag::TileByteCounts],
        false => [Tag::StripOffsets, Tag::StripByteCounts],
    };
    for (offset, length) in file.numbers(offsets)?.into_iter().zip(file.numbers(lengths)?) {
        // Parts beyond the end are found to be missing later.
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = offset.saturating_add(length).min(bytes.len() as u64) as usize;
        let part = start..end.max(start);
        for (copy, byte) in copy[part.clone()].iter_mut().zip(&bytes[part]) {
            *copy = byte.reverse_bits();
        }
    }
    Ok(())
}

/// The first image file directory.
struct Ifd<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    is_big: bool,
    /// Place of its first entry, and their number.
    entries: (usize, usize),
}

impl<'a> Ifd<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let big_endian = bytes.first() == Some(&b'M');
        let mut ifd = Self { bytes, big_endian, is_big: false, entries: (0, 0) };
        ifd.is_big = ifd.integer(2, 2)? == 43;
        let at = if ifd.is_big { ifd.integer(8, 8)? } else { ifd.integer(4, 4)? };
        let (at, size) = (usize::try_from(at).ok()?, if ifd.is_big { 8 } else { 2 });
        ifd.entries = (at.checked_add(size)?, usize::try_from(ifd.integer(at, size)?).ok()?);
        Some(ifd)
    }

    fn integer(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?.iter();
        let fold = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        Some(if self.big_endian { bytes.fold(0, fold) } else { bytes.rev().fold(0, fold) })
    }

    /// Place and size of the value of a tag that is one integer.
    fn place_of(&self, tag: u16) -> Option<(usize, usize)> {
        let (first, count) = self.entries;
        let (size, value) = if self.is_big { (20, 12) } else { (12, 8) };
        for entry in 0..count {
            let at = first.checked_add(entry.checked_mul(size)?)?;
            if self.integer(at, 2)? == u64::from(tag) {
                let bytes = match self.integer(at + 2, 2)? {
                    1 => 1,
                    3 => 2,
                    4 => 4,
                    _ => return None,
                };
                return Some((at + value, bytes));
            }
        }
        None
    }
}

/// A file as its decoder reads it.
struct File<'a> {
    decoder: Decoder<Cursor<&'a [u8]>>,
}

impl<'a> File<'a> {
    fn open(bytes: &'a [u8], limits: &DecodeLimits) -> Result<Self, DecodeError> {
        let most = usize::try_from(limits.max_bytes).unwrap_or(usize::MAX);
        let mut own = Limits::default();
        own.decoding_buffer_size = most;
        own.intermediate_buffer_size = most;
        own.ifd_value_size = most;
        let decoder = Decoder::new(Cursor::new(bytes)).map_err(error)?.with_limits(own);
        Ok(Self { decoder })
    }

    fn number(&mut self, tag: Tag) -> Result<Option<u64>, DecodeError> {
        Ok(self.numbers(tag)?.first().copied())
    }

    fn numbers(&mut self, tag: Tag) -> Result<Vec<u64>, DecodeError> {
        Ok(self.decoder.find_tag_unsigned_vec(tag).map_err(error)?.unwrap_or_default())
    }

    /// Red, green and blue of all indices. Some programs store 8 bits where 16 are asked for.
    fn palette(&mut self, bits: usize) -> Result<Vec<[u8; 3]>, DecodeError> {
        let map = self.numbers(Tag::ColorMap)?;
        let count = map.len() / 3;
        if bits > 16 || map.len() != 3 << bits {
            return Err(damaged(format!("its palette has {count} colors for {bits} bits")));
        }
        let shift = if map.iter().all(|&value| value < 256) { 0 } else { 8 };
        let color = |index: usize| [0, 1, 2].map(|c| (map[c * count + index] >> shift) as u8);
        Ok((0..count).map(color).collect())
    }

    fn ycbcr(&mut self) -> Result<YCbCr, DecodeError> {
        let compression = self.number(Tag::Compression)?.unwrap_or(1);
        // JPEG's own definition is the default of both tags.
        if compression == 7 {
            return Ok(YCbCr::default());
        }
        let subsampling = self.numbers(Tag::ChromaSubsampling)?;
        if subsampling != [1, 1] {
            return Err(unsupported("YCbCr with fewer chroma samples, but not compressed as JPEG"));
        }
        let mut ycbcr = YCbCr::default();
        let mut rationals = |tag: u16, values: &mut [f64]| -> Result<(), DecodeError> {
            let Some(value) = self.decoder.find_tag(Tag::Unknown(tag)).map_err(error)? else {
                return Ok(());
            };
            let found: Option<Vec<f64>> = match value {
                Value::List(list) => list.iter().map(rational).collect(),
                _ => None,
            };
            match found {
                Some(found) if found.len() == values.len() => values.copy_from_slice(&found),
                _ => return Err(damaged(format!("tag {tag} has no {} numbers", values.len()))),
            }
            Ok(())
        };
        rationals(YCBCR_COEFFICIENTS, &mut ycbcr.coefficients)?;
        rationals(REFERENCE_BLACK_WHITE, &mut ycbcr.reference)?;
        Ok(ycbcr)
    }

    /// All samples, planes one after the other if the file has them so.
    fn samples(mut self) -> Result<DecodingResult, DecodeError> {
        let mut buffer = DecodingResult::U8(Vec::new());
        let layout = self.decoder.read_image_to_buffer(&mut buffer).map_err(error)?;
        if buffer.as_buffer(0).byte_len() < layout.complete_len {
            return Err(unsupported("its planes need more memory than `max_bytes` allows"));
        }
        Ok(buffer)
    }
}

/// The number that a fraction or an integer is.
fn rational(value: &Value) -> Option<f64> {
    let number = match *value {
        Value::Rational(above, below) => f64::from(above) / f64::from(below),
        Value::SRational(above, below) => f64::from(above) / f64::from(below),
        Value::Short(number) => number.into(),
        Value::Unsigned(number) => number.into(),
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn colors(photometric: u64, compression: u64) -> Result<Colors, DecodeError> {
    if compression == 6 {
        return Err(unsupported("JPEG compression of the old style (Compression 6)"));
    }
    Ok(match photometric {
        0 => Colors::Gray { inverted: true },
        1 => Colors::Gray { inverted: false },
        2 => Colors::Rgb,
        3 => Colors::Palette,
        5 => Colors::Cmyk,
        6 => Colors::YCbCr,
        4 => return Err(unsupported("a transparency mask in place of an image")),
        8..=10 => return Err(unsupported("L*a*b* colors")),
        32803 | 34892 => return Err(unsupported("raw data of a camera")),
        other => return Err(unsupported(format!("PhotometricInterpretation {other}"))),
    })
}

/// Number of channels that are kept, the first ones, and what the last is.
fn channels(colors: Colors, samples: usize, extra: &[u64]) -> Result<(usize, Alpha), DecodeError> {
    let of_color = match colors {
        Colors::Gray { .. } | Colors::Palette => 1,
        Colors::Rgb | Colors::YCbCr => 3,
        Colors::Cmyk => 4,
    };
    let more = samples.checked_sub(of_color).ok_or_else(|| {
        damaged(format!("it has {samples} samples per pixel for colors of {of_color}"))
    })?;
    let alpha = match extra.first() {
        _ if more == 0 => Alpha::None,
        Some(1) => Alpha::Associated,
        Some(2) => Alpha::Straight,
        // Four samples of RGB without a word are RGBA for most programs.
        None if colors == Colors::Rgb && more == 1 => Alpha::Straight,
        _ => Alpha::None,
    };
    let bands = matches!(colors, Colors::Gray { .. }) && more > 1;
    if bands && alpha == Alpha::None {
        return Err(unsupported(format!(
            "{samples} channels that are not RGB; keep one or three of them"
        )));
    }
    Ok((of_color + usize::from(alpha != Alpha::None), alpha))
}

/// How the decoder's buffer is laid out.
struct Layout {
    pixels: usize,
    width: usize,
    samples: usize,
    bits: usize,
    planar: bool,
}

impl Layout {
    /// The first `kept` samples of every pixel (`None`: as many as there are), in chunky order;
    /// fewer than 8 bits are spread over 8, unless they are all kept, as indices.
    fn take(&self, stored: DecodingResult, kept: Option<usize>) -> Result<Samples, DecodeError> {
        let count = kept.unwrap_or(self.samples);
        Ok(match stored {
            DecodingResult::U8(values) if self.bits < 8 => {
                let most = ((1u32 << self.bits) - 1) as f32;
                let spread = |value: u8| (f32::from(value) * 255.0 / most).round() as u8;
                let mut unpacked = self.unpack(&values)?;
                if kept.is_some() {
                    unpacked.iter_mut().for_each(|value| *value = spread(*value));
                }
                Samples::U8(self.arrange(unpacked, count)?)
            }
            DecodingResult::U8(values) => Samples::U8(self.arrange(values, count)?),
            DecodingResult::I8(values) => Samples::I8(self.arrange(values, count)?),
            DecodingResult::U16(values) => Samples::U16(self.arrange(values, count)?),
            DecodingResult::I16(values) => Samples::I16(self.arrange(values, count)?),
            DecodingResult::U32(values) => Samples::U32(self.arrange(values, count)?),
            DecodingResult::I32(values) => Samples::I32(self.arrange(values, count)?),
            DecodingResult::F16(values) => {
                let values = values.into_iter().map(|value| value.to_f32()).collect();
                Samples::F32(self.arrange(values, count)?)
            }
            DecodingResult::F32(values) => Samples::F32(self.arrange(values, count)?),
            DecodingResult::F64(values) => Samples::F64(self.arrange(values, count)?),
            DecodingResult::U64(_) | DecodingResult::I64(_) => {
                return Err(unsupported("integers of 64 bits"));
            }
        })
    }

    fn arrange<T: Copy>(&self, values: Vec<T>, kept: usize) -> Result<Vec<T>, DecodeError> {
        if values.len() < self.pixels * self.samples {
            return Err(DecodeError::Truncated { format: "TIFF" });
        }
        if self.planar {
            let pixel = |i| (0..kept).map(move |channel| channel * self.pixels + i);
            return Ok((0..self.pixels).flat_map(pixel).map(|at| values[at]).collect());
        }
        if kept == self.samples {
            return Ok(values);
        }
        Ok(values.chunks_exact(self.samples).flat_map(|pixel| &pixel[..kept]).copied().collect())
    }

    /// One value per byte. Rows begin at bytes, the highest bits come first.
    fn unpack(&self, packed: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let in_row = if self.planar { self.width } else { self.width * self.samples };
        let bytes = (in_row * self.bits).div_ceil(8);
        let rows = self.pixels / self.width * if self.planar { self.samples } else { 1 };
        if packed.len() < rows * bytes {
            return Err(DecodeError::Truncated { format: "TIFF" });
        }
        let mask = (1u16 << self.bits) - 1;
        let value = |row: &[u8], at: usize| {
            let (byte, bit) = (at * self.bits / 8, at * self.bits % 8);
            let next = row.get(byte + 1).copied().unwrap_or(0);
            let two = u16::from_be_bytes([row[byte], next]);
            (two >> (16 - self.bits - bit) & mask) as u8
        };
        let rows = packed.chunks_exact(bytes).take(rows);
        Ok(rows.flat_map(|row| (0..in_row).map(move |at| value(row, at))).collect())
    }
}

/// Replaces indices by colors. Alpha stays.
fn look_up(raster: &mut Raster, palette: &[[u8; 3]], bits: usize) -> Result<(), DecodeError> {
    let indices: Vec<usize> = match &raster.samples {
        Samples::U8(values) => values.iter().map(|&index| index.into()).collect(),
        Samples::U16(values) => values.iter().map(|&index| index.into()).collect(),
        _ => return Err(unsupported("a palette for values that are not unsigned integers")),
    };
    let most = ((1u32 << bits) - 1) as f32;
    let alpha = |value: usize| (value as f32 * 255.0 / most).round() as u8;
    let stored = indices.len() / (raster.width as usize * raster.height as usize);
    let mut colors = Vec::with_capacity(indices.len() / stored * (raster.channels + 2));
    for pixel in indices.chunks_exact(stored) {
        colors.extend(palette[pixel[0]]);
        if raster.alpha != Alpha::None {
            colors.push(alpha(pixel[1]));
        }
    }
    raster.channels += 2;
    raster.samples = Samples::U8(colors);
    Ok(())
}

/// Replaces the first `from` samples of every pixel by RGB.
fn to_rgb<T: Copy>(
    values: &[T],
    channels: usize,
    from: usize,
    rgb: impl Fn(&[T]) -> [T; 3],
) -> Vec<T> {
    let pixels = values.chunks_exact(channels);
    pixels
        .flat_map(|pixel| rgb(&pixel[..from]).into_iter().chain(pixel[from..].iter().copied()))
        .collect()
}

/// The plain conversion, without color profiles.
fn cmyk_to_rgb(raster: &mut Raster) -> Result<(), DecodeError> {
    let channels = raster.channels;
    raster.samples = match &raster.samples {
        Samples::U8(values) => Samples::U8(to_rgb(values, channels, 4, |cmyk| {
            let paper = 255.0 - f32::from(cmyk[3]);
            [0, 1, 2].map(|ink| ((255.0 - f32::from(cmyk[ink])) * paper / 255.0) as u8)
        })),
        Samples::U16(values) => Samples::U16(to_rgb(values, channels, 4, |cmyk| {
            let paper = 65535.0 - f64::from(cmyk[3]);
            [0, 1, 2].map(|ink| ((65535.0 - f64::from(cmyk[ink])) * paper / 65535.0) as u16)
        })),
        _ => return Err(unsupported("CMYK of other than 8 or 16 bits")),
    };
    raster.channels -= 1;
    Ok(())
}

/// How YCbCr is defined.
struct YCbCr {
    /// Shares of red, green and blue in luma.
    coefficients: [f64; 3],
    /// Codes of black and white of luma, and of 0 and the largest value of Cb and Cr.
    reference: [f64; 6],
}

impl Default for YCbCr {
    fn default() -> Self {
        Self {
            coefficients: [0.299, 0.587, 0.114],
            reference: [0.0, 255.0, 128.0, 255.0, 128.0, 255.0],
        }
    }
}

/// TIFF 6.0, section 21.
fn ycbcr_to_rgb(raster: &mut Raster, definition: &YCbCr) -> Result<(), DecodeError> {
    let Samples::U8(values) = &raster.samples else {
        return Err(unsupported("YCbCr of other than 8 bits"));
    };
    let YCbCr { coefficients: [red, green, blue], reference } = definition;
    let scaled = |code: u8, place: usize, full: f64| {
        let [low, high] = [reference[place], reference[place + 1]];
        (f64::from(code) - low) * full / (high - low)
    };
    let rgb = to_rgb(values, raster.channels, 3, |ycc| {
        let (y, cb, cr) =
            (scaled(ycc[0], 0, 255.0), scaled(ycc[1], 2, 127.0), scaled(ycc[2], 4, 127.0));
        let r = cr * (2.0 - 2.0 * red) + y;
        let b = cb * (2.0 - 2.0 * blue) + y;
        let g = (y - blue * b - red * r) / green;
        [r, g, b].map(|value| value.round() as u8)
    });
    raster.samples = Samples::U8(rgb);
    Ok(())
}

fn unsupported(reason: impl Into<String>) -> DecodeError {
    DecodeError::Unsupported { format: "TIFF", reason: reason.into() }
}

fn damaged(reason: impl Into<String>) -> DecodeError {
    DecodeError::Damaged { format: "TIFF", reason: reason.into() }
}

fn error(error: TiffError) -> DecodeError {
    let reason = error.to_string();
    match error {
        TiffError::UnsupportedError(TiffUnsupportedError::UnsupportedCompressionMethod(method)) => {
            unsupported(format!("{method:?} compression"))
        }
        TiffError::UnsupportedError(_) => unsupported(reason),
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: "TIFF" }
        }
        TiffError::LimitsExceeded => unsupported("it needs more memory than `max_bytes` allows"),
        _ if is_end_of_data(&reason) => DecodeError::Truncated { format: "TIFF" },
        _ => damaged(reason),
    }
}

#[cfg(test)]
#[path = "tiff_tests.rs"]
mod tests;
