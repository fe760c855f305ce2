//! Folders of images, good and odd ones.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage};

use crate::place::Place;

/// Some pixel values that depend on the place.
fn value(x: u32, y: u32, seed: u32) -> u8 {
    let mixed = (x * 31 + y * 57 + seed * 101).wrapping_mul(2_654_435_761);
    (mixed >> 26) as u8 + (x * 3 + y * 2 + seed * 37) as u8 % 192
}

pub(crate) fn textured(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| value(x, y, seed + 7 * c))))
}

pub(crate) fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Writes images of several formats into a folder, flat.
pub(crate) fn good(place: &Place, folder: &str, count: u32) {
    let formats = [
        (ImageFormat::Jpeg, "jpg"),
        (ImageFormat::Png, "png"),
        (ImageFormat::WebP, "webp"),
        (ImageFormat::Tiff, "tif"),
        (ImageFormat::Bmp, "bmp"),
        (ImageFormat::Gif, "gif"),
    ];
    for number in 0..count {
        let (format, extension) = formats[number as usize % formats.len()];
        let image = encoded(textured(40 + number, 48, number), format);
        place.write(&format!("{folder}/good-{number:02}.{extension}"), image);
    }
}

/// Writes `count` images into each of three class folders; the classes differ in color.
pub(crate) fn labeled(place: &Place, folder: &str, count: u32) {
    for (class, name) in ["blue", "green", "red"].iter().enumerate() {
        for number in 0..count {
            let seed = count * class as u32 + number;
            let mut image = textured(40, 40, seed);
            image.pixels_mut().for_each(|pixel| pixel[2 - class] /= 16);
            let bytes = encoded(image, ImageFormat::Png);
            place.write(&format!("{folder}/{name}/{number}.png"), bytes);
        }
    }
}

/// Odd images that can be used, by their file names.
pub(crate) fn usable() -> Vec<(&'static str, Vec<u8>)> {
    let gray = GrayImage::from_fn(40, 40, |x, y| Luma([value(x, y, 0)]));
    let deep: ImageBuffer<Rgb<u16>, Vec<u16>> =
        ImageBuffer::from_fn(
            40,
            40,
            |x, y| Rgb([1, 2, 3].map(|c| 257 * u16::from(value(x, y, c)))),
        );
    vec![
        ("cmyk.jpg", cmyk_jpeg([200, 100, 50, 255])),
        ("deep.png", encoded(deep, ImageFormat::Png)),
        ("gray.png", encoded(gray, ImageFormat::Png)),
        ("palette.png", palette_png()),
        ("palette.gif", encoded(textured(30, 30, 1), ImageFormat::Gif)),
        ("one-pixel.png", encoded(textured(1, 1, 1), ImageFormat::Png)),
        ("line.png", encoded(textured(1, 5000, 1), ImageFormat::Png)),
        ("line.jpg", encoded(textured(5000, 1, 1), ImageFormat::Jpeg)),
    ]
}

/// Files that are no usable images, by their file names.
pub(crate) fn unusable() -> Vec<(&'static str, Vec<u8>)> {
    let mut cut = encoded(textured(64, 64, 2), ImageFormat::Jpeg);
    cut.truncate(cut.len() / 2);
    let mut barely_cut = encoded(textured(64, 64, 3), ImageFormat::Jpeg);
    barely_cut.truncate(barely_cut.len() - 2);
    let mut cut_png = encoded(textured(64, 64, 4), ImageFormat::Png);
    cut_png.truncate(cut_png.len() / 2);
    vec![
        ("barely-cut.jpg", barely_cut),
        ("cut.jpg", cut),
        ("cut.png", cut_png),
        ("empty.jpg", Vec::new()),
        ("huge.png", huge_png()),
        ("text.jpg", b"<!DOCTYPE html><html>404 not found</html>".to_vec()),
    ]
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in chunks {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [*kind, *data].concat();
        bytes.extend(&body);
        bytes.extend(crc32(&body).to_be_bytes());
    }
    bytes
}

/// A header of 50,000 x 50,000 pixels with next to nothing behind it.
fn huge_png() -> Vec<u8> {
    let side = 50_000u32.to_be_bytes();
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
    png(&[
        (b"IHDR", &header),
        (b"IDAT", &[0x78, 0x01, 1, 0, 0, 255, 255, 0, 0, 0, 1]),
        (b"IEND", &[]),
    ])
}

/// Two rows of two pixels out of a palette, stored without compression.
fn palette_png() -> Vec<u8> {
    let rows = [0u8, 0, 1, 0, 1, 0];
    let (a, b) =
        rows.iter().fold((1u32, 0u32), |(a, b), &x| (a + u32::from(x), b + a + u32::from(x)));
    let data = [&[0x78, 0x01, 1, 6, 0, 249, 255][..], &rows, &(b << 16 | a).to_be_bytes()].concat();
    png(&[
        (b"IHDR", &[0, 0, 0, 2, 0, 0, 0, 2, 8, 3, 0, 0, 0]),
        (b"PLTE", &[255, 0, 0, 1, 2, 3]),
        (b"IDAT", &data),
        (b"IEND", &[]),
    ])
}

/// A JPEG of one 8 x 8 block whose four components are constant. Only the constant terms are
/// coded.
fn cmyk_jpeg(values: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xEE, 0, 14];
    bytes.extend(b"Adobe\0\x64\0\0\0\0\0");
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
        let length = (32 - constant.unsigned_abs().leading_zeros()) as usize;
        let coded = if constant < 0 { constant + (1 << length) - 1 } else { constant };
        bits += &format!("{length:04b}{coded:0length$b}0");
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
