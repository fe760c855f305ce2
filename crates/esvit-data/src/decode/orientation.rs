//! The orientation of an image from its metadata.

use image::ImageDecoder;
use image::metadata::Orientation;

/// EXIF's tag of the orientation, also that of TIFF.
pub(super) const ORIENTATION: u16 = 0x0112;

/// The orientation that EXIF or, where that says nothing, XMP gives. What cannot be read is no
/// reason to lose the image.
pub(super) fn of(decoder: &mut impl ImageDecoder, late_exif: Option<&[u8]>) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    let exif = exif.as_deref().or(late_exif);
    exif.and_then(from_exif)
        .or_else(|| decoder.xmp_metadata().ok().flatten().and_then(|xmp| from_xmp(&xmp)))
        .unwrap_or(Orientation::NoTransforms)
}

/// The orientation in EXIF data, stored as any integer type.
fn from_exif(exif: &[u8]) -> Option<Orientation> {
    // WebP files may have JPEG's prefix.
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let big_endian = match exif.first_chunk::<4>()? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let bytes = |at: usize, count: usize| exif.get(at..at.checked_add(count)?);
    let integer = |at: usize, count: usize| {
        let fold = |value: u32, &byte: &u8| value << 8 | u32::from(byte);
        let bytes = bytes(at, count)?.iter();
        Some(if big_endian { bytes.fold(0, fold) } else { bytes.rev().fold(0, fold) })
    };
    let first = integer(4, 4)? as usize;
    let entries = integer(first, 2)? as usize;
    (0..entries).find_map(|entry| {
        let at = first.checked_add(2 + 12 * entry)?;
        if integer(at, 2)? != u32::from(ORIENTATION) || integer(at + 4, 4)? != 1 {
            return None;
        }
        // BYTE, SHORT, LONG, and the signed SBYTE, SSHORT, SLONG.
        let size = match integer(at + 2, 2)? {
            1 | 6 => 1,
            3 | 8 => 2,
            4 | 9 => 4,
            _ => return None,
        };
        from_number(integer(at + 8, size)?)
    })
}

/// The orientation in XMP's `tiff:Orientation`, an attribute or an element.
fn from_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = xmp.windows(NAME.len()).position(|part| part == NAME)? + NAME.len();
    let digit = match xmp.get(at..)? {
        [b'=', b'"' | b'\'', digit, ..] | [b'>', digit, ..] => *digit,
        _ => return None,
    };
    from_number(u32::from(digit).checked_sub(u32::from(b'0'))?)
}

/// The orientation that a number means.
pub(super) fn from_number(number: impl TryInto<u8>) -> Option<Orientation> {
    Orientation::from_exif(number.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry of a given type in both byte orders.
    fn exif(kind: u16, value: &[u8], big_endian: bool) -> Vec<u8> {
        let short = |value: u16| match big_endian {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        };
        let long = |value: u32| match big_endian {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        };
        let head: &[u8] = if big_endian { b"MM\0*" } else { b"II*\0" };
        let mut value = value.to_vec();
        value.resize(4, 0);
        [head, &long(8), &short(1), &short(ORIENTATION), &short(kind), &long(1), &value, &[0; 4]]
            .concat()
    }

    #[test]
    fn every_integer_type_counts() {
        for (kind, little, big) in [
            (1, vec![6], vec![6]),
            (3, vec![6, 0], vec![0, 6]),
            (4, vec![6, 0, 0, 0], vec![0, 0, 0, 6]),
            (9, vec![6, 0, 0, 0], vec![0, 0, 0, 6]),
        ] {
            for (value, big_endian) in [(little, false), (big, true)] {
                let exif = exif(kind, &value, big_endian);
                assert_eq!(from_exif(&exif), Some(Orientation::Rotate90), "{kind} {big_endian}");
                let prefixed = [b"Exif\0\0", exif.as_slice()].concat();
                assert_eq!(from_exif(&prefixed), Some(Orientation::Rotate90));
                // The value is behind the first 18 bytes.
                (0..=18).for_each(|cut| assert_eq!(from_exif(&exif[..cut]), None));
            }
        }
        for nonsense in [exif(4, &[9, 0, 0, 0], false), exif(4, &[6, 1, 0, 0], false)] {
            assert_eq!(from_exif(&nonsense), None);
        }
        assert_eq!(from_exif(&exif(5, &[6, 0, 0, 0], false)), None);
        assert_eq!(from_exif(b"nothing"), None);
    }

    #[test]
    fn xmp_says_it_as_attribute_or_element() {
        for xmp in ["a tiff:Orientation=\"8\" b", "<tiff:Orientation>8</tiff:Orientation>"] {
            assert_eq!(from_xmp(xmp.as_bytes()), Some(Orientation::Rotate270));
        }
        for xmp in ["tiff:Orientation", "tiff:Orientation=8", "tiff:Orientation>x", ""] {
            assert_eq!(from_xmp(xmp.as_bytes()), None);
        }
    }
}
