//! TIFF files made here tag by tag.

use super::super::{DecodeError, DecodeLimits, decode, decode_as};
use crate::conversion::{Conversion, Levels};
use crate::{Image, SampleType};

/// A file with one strip.
struct Made {
    big_endian: bool,
    big: bool,
    size: (u32, u32),
    /// Integers of 16 bits, in the order of their tags.
    tags: Vec<(u16, Vec<u16>)>,
    data: Vec<u8>,
}

impl Made {
    /// Gray of `bits` bits, a row of pixels.
    fn new(width: u32, height: u32, photometric: u16, bits: &[u16], data: Vec<u8>) -> Self {
        let tags = vec![
            (258, bits.to_vec()),
            (259, vec![1]),
            (262, vec![photometric]),
            (277, vec![bits.len() as u16]),
        ];
        Self { big_endian: false, big: false, size: (width, height), tags, data }
    }

    fn tag(mut self, tag: u16, values: &[u16]) -> Self {
        self.tags.retain(|(other, _)| *other != tag);
        self.tags.push((tag, values.to_vec()));
        self
    }

    /// 16 bits of data and all integers in the byte order.
    fn integer(&self, value: u64, size: usize) -> Vec<u8> {
        match self.big_endian {
            true => value.to_be_bytes()[8 - size..].to_vec(),
            false => value.to_le_bytes()[..size].to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (word, count) = if self.big { (8, 8) } else { (4, 2) };
        let mut file: Vec<u8> = if self.big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        file.extend(self.integer(if self.big { 43 } else { 42 }, 2));
        if self.big {
            file.extend(self.integer(8, 2));
            file.extend(self.integer(0, 2));
        }
        let mut entries: Vec<(u16, u16, Vec<u64>)> = vec![
            (256, 4, vec![self.size.0.into()]),
            (257, 4, vec![self.size.1.into()]),
            (273, 4, vec![0]),
            (278, 4, vec![self.size.1.into()]),
            (279, 4, vec![self.data.len() as u64]),
        ];
        for (tag, values) in &self.tags {
            entries.push((*tag, 3, values.iter().map(|&value| value.into()).collect()));
        }
        entries.sort();
        let directory = file.len() + word;
        file.extend(self.integer(directory as u64, word));
        let mut extra = directory + count + entries.len() * (4 + 2 * word) + word;
        let mut outside = Vec::new();
        file.extend(self.integer(entries.len() as u64, count));
        let sizes = |kind: u16| if kind == 3 { 2 } else { 4 };
        let total: usize = entries
            .iter()
            .map(|(_, kind, values)| sizes(*kind) * values.len())
            .filter(|&bytes| bytes > word)
            .sum();
        let data_at = extra + total;
        for (tag, kind, values) in entries {
            file.extend(self.integer(tag.into(), 2));
            file.extend(self.integer(kind.into(), 2));
            file.extend(self.integer(values.len() as u64, word));
            let values = if tag == 273 { vec![data_at as u64] } else { values };
            let mut bytes: Vec<u8> =
                values.iter().flat_map(|&value| self.integer(value, sizes(kind))).collect();
            if bytes.len() <= word {
                bytes.resize(word, 0);
                file.extend(bytes);
            } else {
                file.extend(self.integer(extra as u64, word));
                extra += bytes.len();
                outside.extend(bytes);
            }
        }
        file.extend(self.integer(0, word));
        file.extend(outside);
        file.extend(&self.data);
        file
    }

    fn read(&self) -> Result<Image, DecodeError> {
        decode(&self.bytes(), &DecodeLimits::default())
    }

    fn gray(&self) -> Vec<u8> {
        self.read().unwrap().pixels().iter().step_by(3).copied().collect()
    }
}

#[test]
fn every_container_reads_alike() {
    for (big_endian, big) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut file = Made::new(2, 2, 1, &[8], vec![1, 2, 3, 4]);
        (file.big_endian, file.big) = (big_endian, big);
        assert_eq!(file.gray(), [1, 2, 3, 4], "{big_endian} {big}");
        file.tags[2].1 = vec![0];
        assert_eq!(file.gray(), [254, 253, 252, 251]);
        let mut deep = Made::new(2, 1, 1, &[16], Vec::new());
        (deep.big_endian, deep.big) = (big_endian, big);
        deep.data = [257 * 9, 257 * 200].map(|value| deep.integer(value, 2)).concat();
        assert_eq!(deep.gray(), [9, 200]);
    }
}

/// The same bytes with their bits reversed, whatever they are compressed with.
#[test]
fn the_order_of_bits_is_followed() {
    let packbits = vec![1, 10, 200, 255, 77, 1, 30, 40];
    let deflate = {
        // Stored without compression.
        let bytes = [10u8, 200, 77, 77, 30, 40];
        let (a, b) =
            bytes.iter().fold((1u32, 0u32), |(a, b), &x| (a + u32::from(x), b + a + u32::from(x)));
        let mut data = vec![0x78, 0x01, 1, 6, 0, 249, 255];
        data.extend(bytes);
        data.extend((b << 16 | a).to_be_bytes());
        data
    };
    let plain = vec![10, 200, 77, 77, 30, 40];
    for (compression, data) in [(1, plain), (32773, packbits), (8, deflate)] {
        let file = Made::new(3, 2, 1, &[8], data.clone()).tag(259, &[compression]);
        assert_eq!(file.gray(), [10, 200, 77, 77, 30, 40], "{compression}");
        let reversed = data.iter().map(|byte| byte.reverse_bits()).collect();
        let file = Made::new(3, 2, 1, &[8], reversed).tag(259, &[compression]).tag(266, &[2]);
        assert_eq!(file.gray(), [10, 200, 77, 77, 30, 40], "{compression} reversed");
    }
    for (bits, data, expected) in [
        (1, vec![0b0100_1101], vec![0, 255, 0, 0, 255, 255, 0, 255]),
        (2, vec![0b0001_1011], vec![0, 85, 170, 255]),
        (4, vec![0x0f, 0x30], vec![0, 255, 51, 0]),
        (16, vec![0, 255, 255, 255], vec![254, 255]),
    ] {
        let width = expected.len() as u32;
        assert_eq!(Made::new(width, 1, 1, &[bits], data.clone()).gray(), expected, "{bits}");
        let reversed = data.iter().map(|byte: &u8| byte.reverse_bits()).collect();
        let file = Made::new(width, 1, 1, &[bits], reversed).tag(266, &[2]);
        assert_eq!(file.gray(), expected, "{bits} reversed");
    }
    let rgb = vec![1u8, 2, 3, 40, 50, 60];
    let reversed = rgb.iter().map(|byte| byte.reverse_bits()).collect();
    let file = Made::new(2, 1, 2, &[8, 8, 8], reversed).tag(266, &[2]);
    assert_eq!(file.read().unwrap().pixels(), rgb);
    let error = Made::new(1, 1, 1, &[8], vec![0]).tag(266, &[3]).read().unwrap_err().to_string();
    assert!(error.contains("FillOrder 3"), "{error}");
}

fn floats(photometric: u16, channels: usize, values: &[f32]) -> Made {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let width = values.len() / channels;
    Made::new(width as u32, 1, photometric, &vec![32; channels], data).tag(339, &vec![3; channels])
}

#[test]
fn floating_point_numbers_are_from_zero_to_one_unless_levels_say_more() {
    assert_eq!(floats(1, 1, &[0.0, 0.2, 1.0, 1.01, -0.01]).gray(), [0, 51, 255, 255, 0]);
    assert_eq!(floats(0, 1, &[0.0, 0.2]).gray(), [255, 204]);
    assert_eq!(floats(2, 3, &[0.0, 0.2, 1.0]).read().unwrap().pixels(), [0, 51, 255]);
    for photometric in [1, 2] {
        let file = floats(photometric, usize::from(2 * photometric - 1), &[0.0, 51.0, 255.0]);
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("from 0 to 255") && error.contains("`data.range="), "{error}");
        let levels = Levels::default().with(SampleType::Float, [0.0, 255.0]);
        let conversion = Conversion { levels, ..Conversion::default() };
        let image = decode_as(&file.bytes(), &DecodeLimits::default(), &conversion).unwrap();
        let expected: &[u8] =
            if photometric == 1 { &[0, 0, 0, 51, 51, 51, 255, 255, 255] } else { &[0, 51, 255] };
        assert_eq!(image.pixels(), expected);
        for bad in [f32::NAN, f32::INFINITY] {
            let file = floats(photometric, usize::from(2 * photometric - 1), &[0.0, bad, 1.0]);
            let error = decode_as(&file.bytes(), &DecodeLimits::default(), &conversion);
            assert!(matches!(error, Err(DecodeError::NotFinite)), "{photometric} {bad}");
        }
    }
}

#[test]
fn integers_have_the_range_of_their_type() {
    let signed = |bits: u16, data: Vec<u8>, width| {
        Made::new(width, 1, 1, &[bits], data).tag(339, &[2]).gray()
    };
    assert_eq!(signed(8, vec![128, 0, 127], 3), [0, 128, 255]);
    let shorts = [i16::MIN, 0, i16::MAX].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(signed(16, shorts, 3), [0, 128, 255]);
    let longs = [i32::MIN, 0, i32::MAX].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(signed(32, longs, 3), [0, 128, 255]);
    let longs = [0, 1 << 31, u32::MAX].iter().flat_map(|value: &u32| value.to_le_bytes()).collect();
    assert_eq!(Made::new(3, 1, 1, &[32], longs).gray(), [0, 128, 255]);
    for bits in [12, 24, 64] {
        let error = Made::new(1, 1, 1, &[bits], vec![0; 8]).read().unwrap_err().to_string();
        assert!(error.contains(&format!("{bits} bits")), "{error}");
    }
}

/// Where zero is white, levels are those of the stored values.
#[test]
fn levels_are_of_stored_values() {
    let data = [0u16, 1000, 4000].iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = Made::new(3, 1, 0, &[16], data);
    let conversion = Conversion { levels: Levels::all([0.0, 4000.0]), ..Conversion::default() };
    let image = decode_as(&file.bytes(), &DecodeLimits::default(), &conversion).unwrap();
    assert!(image.pixels().iter().step_by(3).eq(&[255, 191, 0]));
}

#[test]
fn associated_alpha_is_divided_out() {
    // Half visible red of 200, stored as 100; and opaque.
    let data = vec![100, 20, 0, 128, 10, 20, 30, 255, 0, 0, 0, 0];
    let straight = |color: f64| color * 255.0 / 128.0;
    let file = Made::new(3, 1, 2, &[8; 4], data.clone()).tag(338, &[1]);
    let image = file.read().unwrap();
    let weight = 128.0 / 255.0 + 1.0;
    let mean = [(100.0 + 10.0) / weight, (20.0 + 20.0) / weight, 30.0 / weight];
    let over = |c: usize| {
        let color = straight(f64::from(data[c]));
        (color * 128.0 / 255.0 + mean[c] * 127.0 / 255.0).round() as u8
    };
    assert_eq!(image.pixels()[..6], [over(0), over(1), over(2), 10, 20, 30]);
    assert_eq!(image.pixels()[6..], mean.map(|value| value.round() as u8));
    // The same values as straight alpha are darker; a fourth sample of no kind is left out.
    let straight = Made::new(3, 1, 2, &[8; 4], data.clone()).tag(338, &[2]).read().unwrap();
    assert!(straight.pixels()[0] < image.pixels()[0]);
    let other = Made::new(3, 1, 2, &[8; 4], data).tag(338, &[0]).read().unwrap();
    assert_eq!(other.pixels(), [100, 20, 0, 10, 20, 30, 0, 0, 0]);
    let gray = Made::new(2, 1, 1, &[8; 2], vec![90, 255, 7, 0]).tag(338, &[2]);
    assert_eq!(gray.gray(), [90, 90]);
    let white = Made::new(2, 1, 0, &[8; 2], vec![90, 255, 7, 0]).tag(338, &[2]);
    assert_eq!(white.gray(), [165, 165]);
}

#[test]
fn palettes_planes_and_other_colors_are_resolved() {
    let map: Vec<u16> = [[0u16, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]].concat();
    let wide: Vec<u16> = map.iter().map(|value| value << 8 | 77).collect();
    for map in [map, wide] {
        let file = Made::new(4, 1, 3, &[2], vec![0b11_10_00_01]).tag(320, &map);
        assert_eq!(file.read().unwrap().pixels(), [3, 13, 23, 2, 12, 22, 0, 10, 20, 1, 11, 21]);
    }
    let error = Made::new(1, 1, 3, &[8], vec![0]).tag(320, &[0; 6]).read().unwrap_err();
    assert!(error.to_string().contains("palette has 2 colors"), "{error}");

    let planes = Made::new(2, 1, 2, &[8; 3], vec![1, 2, 3, 4, 5, 6]).tag(284, &[2]);
    // The builder has one strip, and every plane needs its own.
    assert!(matches!(planes.read(), Err(DecodeError::Damaged { .. })));

    let cmyk = Made::new(2, 1, 5, &[8; 4], vec![255, 0, 0, 0, 0, 0, 0, 155]);
    assert_eq!(cmyk.read().unwrap().pixels(), [0, 255, 255, 100, 100, 100]);
    let inks = Made::new(1, 1, 5, &[8; 4], vec![0; 4]).tag(332, &[2]).read().unwrap_err();
    assert!(inks.to_string().contains("InkSet 2"), "{inks}");

    let ycbcr = Made::new(2, 1, 6, &[8; 3], vec![77, 128, 128, 76, 85, 255]);
    assert_eq!(ycbcr.tag(530, &[1, 1]).read().unwrap().pixels(), [77, 77, 77, 254, 0, 0]);
    let halved = Made::new(2, 1, 6, &[8; 3], vec![0; 6]).read().unwrap_err().to_string();
    assert!(halved.contains("chroma"), "{halved}");
    for (photometric, name) in [(8, "L*a*b*"), (32803, "camera"), (4, "mask"), (99, "99")] {
        let error = Made::new(1, 1, photometric, &[8], vec![0]).read().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let bands = Made::new(1, 1, 1, &[8; 5], vec![0; 5]).tag(338, &[0; 4]).read().unwrap_err();
    assert!(bands.to_string().contains("5 channels"), "{bands}");
}

#[test]
fn the_orientation_is_that_of_the_tag() {
    let file = Made::new(3, 1, 1, &[8], vec![1, 2, 3]).tag(274, &[6]);
    let image = file.read().unwrap();
    assert_eq!((image.width(), image.height()), (1, 3));
    assert_eq!(Made::new(3, 1, 1, &[8], vec![1, 2, 3]).tag(274, &[2]).gray(), [3, 2, 1]);
    assert_eq!(Made::new(3, 1, 1, &[8], vec![1, 2, 3]).tag(274, &[99]).gray(), [1, 2, 3]);
}

#[test]
fn sizes_are_checked_before_anything_is_allocated() {
    let file = Made::new(60_000, 60_000, 1, &[8], vec![0; 9]);
    assert!(matches!(file.read(), Err(DecodeError::TooManyPixels { .. })));
    let limits = DecodeLimits { max_pixels: u64::MAX, max_bytes: 1 << 20 };
    assert!(matches!(decode(&file.bytes(), &limits), Err(DecodeError::TooManyBytes { .. })));
    let bytes = Made::new(4, 1, 1, &[8], vec![1, 2, 3, 4]).bytes();
    for keep in 1..bytes.len() {
        assert!(decode(&bytes[..keep], &DecodeLimits::default()).is_err(), "{keep}");
    }
}
