//! Formats by their first bytes.

use image::ImageFormat;

/// Bytes from the beginning of a file that tell its format.
pub(crate) const HEAD: usize = 64;

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// By `tiff`, classic or BigTIFF.
    Tiff,
    /// By `image`.
    Other(ImageFormat, &'static str),
}

impl Format {
    /// The format that a file begins like, if it is read.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"II+\0") || head.starts_with(b"MM\0+") {
            return Some(Self::Tiff);
        }
        Some(match image::guess_format(head).ok()? {
            ImageFormat::Tiff => Self::Tiff,
            format @ ImageFormat::Jpeg => Self::Other(format, "JPEG"),
            format @ ImageFormat::Png => Self::Other(format, "PNG"),
            format @ ImageFormat::WebP => Self::Other(format, "WebP"),
            format @ ImageFormat::Bmp => Self::Other(format, "BMP"),
            format @ ImageFormat::Gif => Self::Other(format, "GIF"),
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tiff => "TIFF",
            Self::Other(_, name) => name,
        }
    }
}

/// The name of a format of images or documents that is known but not read.
pub(super) fn foreign(head: &[u8]) -> Option<&'static str> {
    if head.get(4..8) == Some(b"ftyp") {
        return Some(match head.get(8..12)? {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" => "HEIC",
            // HEIF's common brand; the compatible brands tell which codec it is.
            b"mif1" | b"msf1" | b"miaf" => {
                let is_avif = head[12..].windows(4).any(|brand| brand == b"avif");
                if is_avif { "AVIF" } else { "HEIC" }
            }
            b"crx " => "Canon CR3",
            _ => "MP4 or QuickTime",
        });
    }
    const BEGINNINGS: [(&[u8], &str); 14] = [
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"DDS ", "DirectDraw"),
        (b"qoif", "QOI"),
        (b"\0\0\x01\0", "Windows icon"),
        (b"%PDF", "PDF"),
        (b"<svg", "SVG"),
        (b"SIMPLE  =", "FITS"),
        (b"\x89HDF\r\n", "HDF5"),
    ];
    BEGINNINGS.iter().find(|(begin, _)| head.starts_with(begin)).map(|(_, name)| *name)
}

/// The first bytes as text if they are text (a web page saved as `.jpg` is common), else in
/// hexadecimal.
pub(super) fn describe_head(bytes: &[u8]) -> String {
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
