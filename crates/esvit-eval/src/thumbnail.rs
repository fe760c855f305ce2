//! Thumbnails and display names of images.

use std::path::Path;

use esvit_data::{Conversion, EvalTransform, Image, ImageError, Source};

/// The center square of an image, resized to `side` pixels.
///
/// # Errors
/// [`ImageError`] if `side` is 0.
pub fn thumbnail(image: &Image, side: u32) -> Result<Image, ImageError> {
    EvalTransform { resize: side, ..EvalTransform::new(side) }.apply(image)
}

/// Thumbnail of image `index` of a source, loaded as `conversion` says, which is what the network was
/// shown; `None` if it cannot be read.
pub fn load_thumbnail(
    source: &dyn Source,
    index: usize,
    conversion: &Conversion,
    side: u32,
) -> Option<Image> {
    thumbnail(&source.load_as(index, conversion).ok()?, side).ok()
}

/// Class name of image `index` of a source, if it has one.
pub fn class_name(source: &dyn Source, index: usize) -> Option<&str> {
    Some(source.classes().get(source.label(index)? as usize)?.as_str())
}

/// File name of an image name that is a path.
pub fn file_name(name: &str) -> &str {
    Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_are_squares_of_any_image() {
        let line = Image::new(1, 500, vec![9; 1500]).unwrap();
        let small = thumbnail(&line, 24).unwrap();
        assert_eq!((small.width(), small.height(), small.pixel(3, 3)), (24, 24, Some([9; 3])));
    }

    #[test]
    fn thumbnails_show_the_whole_square() {
        let ramp = (0..64 * 64).flat_map(|i| [4 * (i % 64) as u8, 4 * (i / 64) as u8, 0]).collect();
        let small = thumbnail(&Image::new(64, 64, ramp).unwrap(), 16).unwrap();
        let [first, last] = [small.pixel(0, 0), small.pixel(15, 15)].map(Option::unwrap);
        assert!(
            first[0] < 12 && first[1] < 12 && last[0] > 240 && last[1] > 240,
            "{first:?} {last:?}"
        );
        assert_eq!(file_name("a/b.c/d.tar.png"), "d.tar.png");
    }
}
