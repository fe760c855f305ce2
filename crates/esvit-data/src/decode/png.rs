//! The chunks of a PNG file, as far as the decoder needs help with them.

use std::borrow::Cow;

const SIGNATURE: usize = 8;

/// The last chunk of every file: no data, and its checksum.
pub(super) const END: [u8; 12] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xAE, 0x42, 0x60, 0x82];

/// What a walk over the chunks found.
pub(super) struct Chunks<'a> {
    /// The file, with an end if it had lost its own behind whole image data, as Pillow reads it.
    pub(super) file: Cow<'a, [u8]>,
    /// EXIF data behind the image data, where the decoder does not look for it.
    pub(super) late_exif: Option<&'a [u8]>,
    /// Bits of a sample.
    pub(super) depth: u8,
    /// Whether pixels may be transparent: alpha, or a transparent color.
    pub(super) has_alpha: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn of(file: &'a [u8]) -> Self {
        let mut chunks = Self {
            file: file.into(),
            late_exif: None,
            depth: file.get(24).map_or(8, |&bits| bits),
            // Gray or RGB with alpha.
            has_alpha: matches!(file.get(25), Some(4 | 6)),
        };
        let (mut at, mut seen_data) = (SIGNATURE, false);
        loop {
            let rest = &file[at.min(file.len())..];
            let length = rest.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
            let kind = rest.get(4..8);
            let whole = length.and_then(|length| rest.get(8..length.checked_add(12)?));
            match (kind, whole) {
                (Some(b"IEND"), Some(_)) => return chunks,
                (Some(b"IDAT"), Some(_)) => seen_data = true,
                (Some(b"tRNS"), Some(_)) => chunks.has_alpha = true,
                // Data that are cut off are missing.
                (Some(b"IDAT" | b"fdAT"), None) => return chunks,
                (Some(b"eXIf"), Some(body)) if seen_data => {
                    chunks.late_exif = body.get(..body.len() - 4);
                }
                (_, None) if seen_data => {
                    chunks.file = [&file[..at.min(file.len())], &END].concat().into();
                    return chunks;
                }
                (_, None) => return chunks,
                _ => {}
            }
            at += 12 + length.unwrap_or(0);
        }
    }
}
