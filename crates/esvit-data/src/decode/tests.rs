//! Every way in which a file can be odd, with files made here.

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;

use super::*;
use crate::augment::test_images::noise;
use crate::{Background, Levels};

fn read(bytes: &[u8]) -> Result<Image, DecodeError> {
    decode(bytes, &DecodeLimits::default())
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// An image with enough detail that half of its file is half of the image.
fn detailed(width: u32, height: u32) -> DynamicImage {
    let image = noise(width, height, 1);
    RgbImage::from_raw(width, height, image.pixels().to_vec()).unwrap().into()
}

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Tiff,
    ImageFormat::Bmp,
    ImageFormat::Gif,
];

#[test]
fn every_format_is_recognized_by_its_content() {
    let image = DynamicImage::from(RgbImage::from_pixel(19, 7, Rgb([200, 100, 50])));
    for format in FORMATS {
        let image = read(&encode(&image, format)).unwrap();
        assert_eq!((image.width(), image.height()), (19, 7), "{format:?}");
        let color = image.pixel(9, 3).unwrap();
        let near = color.iter().zip([200, 100, 50]).all(|(a, b)| a.abs_diff(b) <= 3);
        assert!(near, "{format:?} {color:?}");
    }
}

#[test]
fn truncated_files_of_every_format_are_named_as_such() {
    for format in FORMATS {
        let bytes = encode(&detailed(64, 64), format);
        for keep in [bytes.len() * 9 / 10, bytes.len() / 2] {
            match read(&bytes[..keep]) {
                Err(DecodeError::Truncated { .. }) => {}
                other => panic!("{format:?} cut to {keep} of {}: {other:?}", bytes.len()),
            }
        }
    }
    let bytes = encode(&detailed(64, 64), ImageFormat::Jpeg);
    let error = read(&bytes[..bytes.len() - 2]).unwrap_err();
    assert!(error.to_string().starts_with("the JPEG file is truncated"), "{error}");
}

#[test]
fn the_end_of_an_embedded_thumbnail_is_not_the_end() {
    let thumbnail = encode(&detailed(8, 8), ImageFormat::Jpeg);
    let mut bytes = encode(&detailed(64, 64), ImageFormat::Jpeg);
    let mut segment = vec![0xFF, 0xE5];
    segment.extend(((thumbnail.len() + 2) as u16).to_be_bytes());
    segment.extend(thumbnail);
    bytes.splice(2..2, segment);
    assert_eq!(read(&bytes).unwrap().width(), 64);
    let half = bytes.len() / 2;
    assert!(matches!(read(&bytes[..half]), Err(DecodeError::Truncated { .. })));
}

#[test]
fn bytes_after_the_end_do_no_harm() {
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp] {
        let mut bytes = encode(&detailed(16, 16), format);
        let clean = read(&bytes).unwrap();
        bytes.extend(b"\0\0 trailing \xFF\xD8 bytes");
        assert_eq!(read(&bytes).unwrap(), clean, "{format:?}");
    }
}

#[test]
fn what_is_no_image_is_described() {
    assert!(matches!(read(b""), Err(DecodeError::Empty)));
    let text = read(b"<!DOCTYPE html><html>").unwrap_err().to_string();
    assert!(text.starts_with("not an image: it begins with the text `<!DOCTYPE html>"), "{text}");
    let bytes = read(&[0, 159, 146, 150]).unwrap_err().to_string();
    assert!(bytes.contains("the bytes `00 9f 92 96`"), "{bytes}");
    assert!(matches!(read(&[0, 159, 146, 150]), Err(DecodeError::UnknownFormat { .. })));
}

/// Whatever the file is called.
#[test]
fn formats_that_are_known_but_not_read_are_named() {
    let ftyp = |brands: &str| [b"\0\0\0\x1cftyp", brands.as_bytes()].concat();
    for (head, name) in [
        (ftyp("heic\0\0\0\0mif1heic"), "HEIC"),
        (ftyp("heix\0\0\0\0mif1"), "HEIC"),
        (ftyp("mif1\0\0\0\0mif1heic"), "HEIC"),
        (ftyp("avif\0\0\0\0mif1avif"), "AVIF"),
        (ftyp("mif1\0\0\0\0miafavif"), "AVIF"),
        (ftyp("qt  \0\0\0\0"), "MP4 or QuickTime"),
        (b"qoif\0\0\0\x01\0\0\0\x01\x03\0".to_vec(), "QOI"),
        (b"\0\0\0\x0cJXL \r\n\x87\n".to_vec(), "JPEG XL"),
        (b"8BPS\0\x01".to_vec(), "Photoshop"),
    ] {
        let error = read(&head).unwrap_err();
        let expected =
            format!("the file is {name}, which is not read\nhint: convert it to JPEG or PNG");
        assert_eq!(error.to_string(), expected);
        assert!(check_head(&head).is_err());
    }
    for format in FORMATS {
        let bytes = encode(&detailed(9, 9), format);
        assert!(check_head(&bytes[..HEAD]).is_ok(), "{format:?}");
    }
}

#[test]
fn a_huge_header_is_refused_before_anything_is_allocated() {
    let mut bytes = encode(&detailed(8, 8), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&50_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&50_000u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    // Decoding would have found out that the file holds far less than its header says.
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, DecodeError::TooManyPixels { pixels: 2_500_000_000, .. }), "{error}");
    let limits = DecodeLimits { max_pixels: u64::MAX, ..DecodeLimits::default() };
    let error = decode(&bytes, &limits).unwrap_err();
    assert!(matches!(error, DecodeError::TooManyBytes { bytes: 7_500_000_000, .. }), "{error}");
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[test]
fn limits_can_be_lowered_and_are_allowed_themselves() {
    let bytes = encode(&detailed(10, 10), ImageFormat::Png);
    let with = |max_pixels, max_bytes| decode(&bytes, &DecodeLimits { max_pixels, max_bytes });
    assert!(with(100, 1 << 20).is_ok());
    assert_eq!(
        with(99, 1 << 20).unwrap_err().to_string(),
        "10x10 is 100 pixels, more than `max_pixels` = 99\nhint: shrink the image or raise the limit"
    );
    assert_eq!(
        with(100, 299).unwrap_err().to_string(),
        "decoding needs 300 bytes, more than `max_bytes` = 299\nhint: shrink the image or raise the \
         limit"
    );
    let bmp = encode(&detailed(10, 10), ImageFormat::Bmp);
    assert!(decode(&bmp, &DecodeLimits { max_pixels: 100, max_bytes: 300 }).is_ok());
    let DecodeLimits { max_pixels, max_bytes } = DecodeLimits::default();
    assert_eq!((max_pixels, max_bytes), (178_956_970, 1 << 30));
}

/// The header of the RIFF container counts the bytes behind its own first eight.
#[test]
fn webp_is_truncated_by_a_few_bytes() {
    let bytes = encode(&detailed(16, 16), ImageFormat::WebP);
    assert!(webp_is_complete(&bytes));
    for missing in [1, 2, 7, 8, 9] {
        let cut = &bytes[..bytes.len() - missing];
        assert!(matches!(read(cut), Err(DecodeError::Truncated { format: "WebP" })), "{missing}");
    }
    assert!(!webp_is_complete(b"RIFF\0\0\0"));
}

#[test]
fn markers_of_jpeg_are_walked() {
    let complete =
        |middle: &[u8]| jpeg_is_complete(&[&[0xFF, 0xD8], middle, &[0xFF, 0xD9]].concat());
    assert!(complete(&[]));
    // Stuffed bytes, restarts, a repeated start and fill stand alone.
    assert!(complete(&[7, 0xFF, 0x00, 0xD9, 0xFF, 0xD0, 0xFF, 0xD7, 0xFF, 0xD8, 0xFF, 0xFF, 0x01]));
    // A segment is skipped whole: its own end of image does not count, nor does a segment that
    // reaches beyond the end.
    assert!(complete(&[0xFF, 0xE1, 0, 4, 0xFF, 0xD9]));
    assert!(!complete(&[0xFF, 0xE1, 0, 5, 0xFF, 0xD9]));
    assert!(!complete(&[0xFF, 0xE1, 0, 6, 0xFF, 0xD9]));
    // A length counts itself, so it is at least two.
    assert!(complete(&[0xFF, 0xE1, 0, 0]));
    assert!(!jpeg_is_complete(&[0xFF, 0xD8, 0xFF, 0xE1, 0]));
    assert!(!jpeg_is_complete(&[0xFF, 0xD8, 0xFF]));
    assert!(!jpeg_is_complete(&[0xFF, 0xD8]));
}

#[test]
fn gray_deep_and_transparent_pixels_become_rgb() {
    let gray = image::GrayImage::from_pixel(3, 2, image::Luma([90])).into();
    assert_eq!(read(&encode(&gray, ImageFormat::Png)).unwrap().pixel(2, 1), Some([90; 3]));
    assert_eq!(read(&encode(&gray, ImageFormat::Jpeg)).unwrap().pixel(2, 1), Some([90; 3]));

    let deep: image::ImageBuffer<Rgb<u16>, _> =
        image::ImageBuffer::from_pixel(3, 2, Rgb([0u16, 257 * 100, 65_535]));
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let image = read(&encode(&deep.clone().into(), format)).unwrap();
        assert_eq!(image.pixel(0, 0), Some([0, 100, 255]), "{format:?}");
    }
}

/// One hidden, one half visible and one visible pixel.
const HIDDEN: [[u8; 4]; 3] = [[255, 0, 9, 0], [200, 100, 0, 128], [50, 100, 200, 255]];

#[test]
fn transparent_pixels_show_the_mean_of_the_visible_ones_or_a_color() {
    let pixels = HIDDEN.concat();
    let eight: DynamicImage = image::RgbaImage::from_raw(3, 1, pixels.clone()).unwrap().into();
    let deep = pixels.iter().map(|&value| u16::from(value) * 257).collect();
    let deep: DynamicImage =
        image::ImageBuffer::<image::Rgba<u16>, Vec<u16>>::from_raw(3, 1, deep).unwrap().into();
    // Weights 128 and 255: (200*128 + 50*255) / 383 = 100.13 and so on.
    let mean = [100, 100, 133];
    let half = |color: u8, behind: f64| {
        (f64::from(color) * 128.0 / 255.0 + behind * 127.0 / 255.0).round() as u8
    };
    let means = [100.130_548, 100.0, 133.159_269];
    let expected = [mean, [0, 1, 2].map(|c| half(HIDDEN[1][c], means[c])), [50, 100, 200]];
    for (image, format) in [
        (&eight, ImageFormat::Png),
        (&eight, ImageFormat::WebP),
        (&eight, ImageFormat::Tiff),
        (&deep, ImageFormat::Png),
        (&deep, ImageFormat::Tiff),
    ] {
        let bytes = encode(image, format);
        assert_eq!(read(&bytes).unwrap().pixels(), expected.concat(), "{format:?}");
        let conversion =
            Conversion { background: Background::Color([0, 255, 10]), ..Conversion::default() };
        let shown = decode_as(&bytes, &DecodeLimits::default(), &conversion).unwrap();
        let over = [0.0, 255.0, 10.0];
        let expected =
            [[0, 255, 10], [0, 1, 2].map(|c| half(HIDDEN[1][c], over[c])), [50, 100, 200]];
        assert_eq!(shown.pixels(), expected.concat(), "{format:?}");
    }
    // GIF has only all or nothing.
    let gif: DynamicImage =
        image::RgbaImage::from_raw(2, 1, vec![255, 0, 0, 0, 0, 0, 255, 255]).unwrap().into();
    let gif = read(&encode(&gif, ImageFormat::Gif)).unwrap();
    assert_eq!(gif.pixel(0, 0), gif.pixel(1, 0));
}

#[test]
fn visible_colors_have_a_mean_and_a_spread() {
    let look =
        |bytes: &[u8]| visible_colors(bytes, &DecodeLimits::default(), &Levels::default()).unwrap();
    let eight: DynamicImage = image::RgbaImage::from_raw(3, 1, HIDDEN.concat()).unwrap().into();
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let found = look(&encode(&eight, format)).unwrap();
        let means = [100.130_548, 100.0, 133.159_269];
        assert!(found.mean.iter().zip(means).all(|(a, b)| (a - b).abs() < 1e-3), "{found:?}");
        // Two colors with the weights 128 and 255, 250 from each other.
        let spread = 250.0 * (128.0_f64 * 255.0).sqrt() / 383.0;
        assert!((found.spread - spread).abs() < 1e-6, "{found:?}");
        assert!((found.transparency - (1.0 - 383.0 / 765.0)).abs() < 1e-9, "{found:?}");
    }
    let deep: Vec<u16> = vec![100, 65_535, 200, 0];
    let deep = image::ImageBuffer::<image::LumaA<u16>, _>::from_raw(2, 1, deep).unwrap();
    let levels = Levels::default().with(SampleType::Uint16, [0.0, 255.0]);
    let bytes = encode(&deep.into(), ImageFormat::Png);
    let found = visible_colors(&bytes, &DecodeLimits::default(), &levels).unwrap().unwrap();
    assert_eq!((found.mean, found.spread, found.transparency), ([100.0; 3], 0.0, 0.5));

    let plain = DynamicImage::from(RgbImage::from_pixel(2, 2, Rgb([9, 8, 7])));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Tiff] {
        assert_eq!(look(&encode(&plain, format)), None, "{format:?}");
    }
    let clear = image::RgbaImage::from_pixel(3, 2, image::Rgba([10, 20, 30, 0])).into();
    assert_eq!(look(&encode(&clear, ImageFormat::Png)), None);
    // A transparent color, in a chunk between the header and the data.
    let mut bytes = encode(&plain, ImageFormat::Png);
    let body = [b"tRNS".as_slice(), &[0, 1, 0, 2, 0, 3]].concat();
    let chunk = [&6u32.to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat();
    bytes.splice(33..33, chunk);
    let found = look(&bytes).unwrap();
    assert_eq!((found.mean, found.spread, found.transparency), ([9.0, 8.0, 7.0], 0.0, 0.0));
}

#[test]
fn what_is_opaque_keeps_its_colors_and_what_is_invisible_is_gray() {
    let color = image::RgbaImage::from_pixel(3, 2, image::Rgba([10, 20, 30, 255])).into();
    assert_eq!(read(&encode(&color, ImageFormat::Png)).unwrap().pixel(1, 1), Some([10, 20, 30]));
    let gray = image::GrayAlphaImage::from_raw(2, 1, vec![90, 255, 7, 0]).unwrap().into();
    assert_eq!(read(&encode(&gray, ImageFormat::Png)).unwrap().pixels(), [90; 6]);
    let clear = image::RgbaImage::from_pixel(3, 2, image::Rgba([10, 20, 30, 0])).into();
    assert_eq!(read(&encode(&clear, ImageFormat::Png)).unwrap().pixel(1, 1), Some([128; 3]));
    // The fourth byte of a BMP file is often left unused.
    assert_eq!(read(&encode(&clear, ImageFormat::Bmp)).unwrap().pixel(1, 1), Some([10, 20, 30]));
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    let values: Vec<u16> = (0..=u16::MAX).collect();
    let gray = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(256, 256, values).unwrap();
    let image = read(&encode(&gray.into(), ImageFormat::Png)).unwrap();
    let expected = (0..=u32::from(u16::MAX)).map(|value| ((value + 128) / 257) as u8);
    assert!(image.pixels().iter().step_by(3).copied().eq(expected));
}

#[test]
fn levels_say_what_is_black_and_white() {
    let gray: Vec<u16> = vec![0, 100, 2100, 4100, 65535];
    let gray = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(5, 1, gray).unwrap();
    let levels = Levels::default().with(SampleType::Uint16, [100.0, 4100.0]);
    let conversion = Conversion { levels, ..Conversion::default() };
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let bytes = encode(&gray.clone().into(), format);
        let image = decode_as(&bytes, &DecodeLimits::default(), &conversion).unwrap();
        assert!(image.pixels().iter().step_by(3).eq(&[0, 0, 128, 255, 255]), "{format:?}");
    }
    let eight = encode(&detailed(4, 4), ImageFormat::Png);
    let image = decode_as(&eight, &DecodeLimits::default(), &conversion).unwrap();
    assert_eq!(image, read(&eight).unwrap());
}

#[test]
fn a_png_without_its_end_is_read_if_the_image_is_whole() {
    for image in [detailed(64, 64), detailed(300, 300)] {
        let bytes = encode(&image, ImageFormat::Png);
        let whole = read(&bytes).unwrap();
        for missing in 1..=12 {
            assert_eq!(read(&bytes[..bytes.len() - missing]).unwrap(), whole, "{missing}");
        }
        // Inside of the image data, and between two chunks of them.
        let cut = &bytes[..bytes.len() - 13];
        assert!(matches!(read(cut), Err(DecodeError::Truncated { .. })));
        let mut halved = bytes.clone();
        let at = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap();
        let body: Vec<u8> = bytes[at + 4..at + 104].to_vec();
        halved.truncate(at - 4);
        halved.extend(100u32.to_be_bytes());
        halved.extend(b"IDAT");
        halved.extend(&body);
        halved.extend(crc32(&[b"IDAT", body.as_slice()].concat()).to_be_bytes());
        let error = read(&halved).unwrap_err();
        assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
    }
}

#[test]
fn palettes_are_looked_up() {
    // Two rows of two pixels, one byte per pixel, stored without compression.
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        bytes.extend(&body);
        bytes.extend(crc32(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 8, 3, 0, 0, 0]);
    chunk(b"PLTE", &[255, 0, 0, 1, 2, 3]);
    let rows = [0, 0, 1, 0, 1, 0];
    let adler = rows.iter().fold((1u32, 0u32), |(a, b), &x| (a + x, b + a + x));
    let mut data = vec![0x78, 0x01, 1, 6, 0, 249, 255];
    data.extend(rows.map(|x| x as u8));
    data.extend((adler.1 << 16 | adler.0).to_be_bytes());
    chunk(b"IDAT", &data);
    chunk(b"IEND", &[]);
    let image = read(&bytes).unwrap();
    assert_eq!(image.pixels(), [255, 0, 0, 1, 2, 3, 1, 2, 3, 255, 0, 0]);
}

/// EXIF data with nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

#[test]
fn the_orientation_is_applied() {
    // In the order of the tag's values: rows of what is seen, for pixels 1 2 3 over 4 5 6.
    let seen: [&[&[u8]]; 8] = [
        &[&[1, 2, 3], &[4, 5, 6]],
        &[&[3, 2, 1], &[6, 5, 4]],
        &[&[6, 5, 4], &[3, 2, 1]],
        &[&[4, 5, 6], &[1, 2, 3]],
        &[&[1, 4], &[2, 5], &[3, 6]],
        &[&[4, 1], &[5, 2], &[6, 3]],
        &[&[6, 3], &[5, 2], &[4, 1]],
        &[&[3, 6], &[2, 5], &[1, 4]],
    ];
    let pixels: Vec<u8> = (1..=6).flat_map(|value| [value; 3]).collect();
    for (orientation, rows) in (1..).zip(seen) {
        let mut png = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&pixels, 3, 2, ExtendedColorType::Rgb8).unwrap();
        let image = read(&png).unwrap();
        assert_eq!(image.width() as usize, rows[0].len());
        assert!(image.pixels().iter().step_by(3).eq(rows.concat().iter()), "{orientation}");
    }
    // A number that means nothing is no reason to lose the image.
    let mut jpeg = Vec::new();
    for (orientation, size) in [(6, (2, 3)), (77, (3, 2))] {
        jpeg.clear();
        let mut encoder = JpegEncoder::new(&mut jpeg);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&pixels, 3, 2, ExtendedColorType::Rgb8).unwrap();
        let image = read(&jpeg).unwrap();
        assert_eq!((image.width(), image.height()), size);
    }
}

#[test]
fn the_orientation_may_be_a_long_and_stand_behind_the_image() {
    let exif =
        [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06".as_slice(), &[0; 4]].concat();
    let image = detailed(6, 4);
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        let mut bytes = Vec::new();
        match format {
            ImageFormat::Jpeg => {
                let mut encoder = JpegEncoder::new(&mut bytes);
                encoder.set_exif_metadata(exif.clone()).unwrap();
                image.write_with_encoder(encoder).unwrap();
            }
            ImageFormat::Png => {
                let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
                encoder.set_exif_metadata(exif.clone()).unwrap();
                image.write_with_encoder(encoder).unwrap();
            }
            _ => {
                let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
                encoder.set_exif_metadata(exif.clone()).unwrap();
                image.write_with_encoder(encoder).unwrap();
            }
        }
        let seen = read(&bytes).unwrap();
        assert_eq!((seen.width(), seen.height()), (4, 6), "{format:?}");
    }
    let mut late = encode(&image, ImageFormat::Png);
    late.truncate(late.len() - 12);
    late.extend((exif.len() as u32).to_be_bytes());
    let body = [b"eXIf", exif.as_slice()].concat();
    late.extend(&body);
    late.extend(crc32(&body).to_be_bytes());
    late.extend(crate::decode::png::END);
    assert_eq!(read(&late).unwrap().width(), 4);
}

/// A JPEG of one 8 x 8 block whose four components are constant, marked by Adobe's segment as
/// CMYK (transform 0) or YCCK (2). Only the constant term is coded, in 8 bits.
fn four_components(values: [u8; 4], transform: u8) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xEE, 0, 14];
    bytes.extend(b"Adobe\0\x64\0\0\0\0");
    bytes.push(transform);
    bytes.extend([0xFF, 0xDB, 0, 67, 0]);
    bytes.extend([1; 64]);
    bytes.extend([0xFF, 0xC0, 0, 20, 8, 0, 8, 0, 8, 4]);
    (1..=4).for_each(|id| bytes.extend([id, 0x11, 0]));
    // Constant terms: lengths 0 to 11 bits, in codes of 4 bits. Others: end of block, code 0.
    bytes.extend([0xFF, 0xC4, 0, 31, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(0..12);
    bytes.extend([0xFF, 0xC4, 0, 20, 0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0xFF, 0xDA, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]);
    let mut bits = String::new();
    for value in values {
        let constant = (i32::from(value) - 128) * 8;
        let length = 32 - constant.unsigned_abs().leading_zeros();
        let coded = if constant < 0 { constant + (1 << length) - 1 } else { constant };
        bits += &format!("{length:04b}");
        if length > 0 {
            bits += &format!("{coded:0width$b}", width = length as usize);
        }
        bits += "0";
    }
    bits += &"1".repeat((8 - bits.len() % 8) % 8);
    for byte in bits.as_bytes().chunks(8) {
        let byte = byte.iter().fold(0u8, |byte, bit| byte << 1 | (bit - b'0'));
        bytes.push(byte);
        if byte == 0xFF {
            bytes.push(0);
        }
    }
    bytes.extend([0xFF, 0xD9]);
    bytes
}

#[test]
fn cmyk_is_converted() {
    let near = |bytes: &[u8], expected: [u8; 3]| {
        let got = read(bytes).unwrap().pixel(4, 4).unwrap();
        assert!(got.iter().zip(expected).all(|(g, e)| g.abs_diff(e) <= 3), "{got:?} {expected:?}");
    };
    // Adobe stores inverted ink: 255 is none. Full cyan ink leaves green and blue.
    near(&four_components([0, 255, 255, 255], 0), [0, 255, 255]);
    near(&four_components([200, 100, 50, 255], 0), [200, 100, 50]);
    near(&four_components([255, 255, 255, 128], 0), [128, 128, 128]);
    // In YCCK, the first three are YCbCr of the complement; neutral chroma makes them equal.
    near(&four_components([180, 128, 128, 255], 2), [75, 75, 75]);
}

#[test]
fn extreme_shapes() {
    for (width, height) in [(1, 1), (1, 5000), (5000, 1)] {
        for format in FORMATS {
            let image = read(&encode(&detailed(width, height), format)).unwrap();
            assert_eq!((image.width(), image.height()), (width, height), "{format:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damage_never_panics(
        which in 0usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&detailed(12, 9), FORMATS[which]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        let limits = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 };
        if let Ok(image) = decode(&bytes, &limits) {
            prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 20);
        }
    }
}
