//! Small squares that stand for pictures.

use std::path::Path;

use esvit_data::{EvalTransform, Picture, PictureError, Source};

/// The centre of a picture, as a square of `side` pixels.
///
/// # Errors
/// When the side is 0.
pub fn thumbnail(picture: &Picture, side: u32) -> Result<Picture, PictureError> {
    EvalTransform { resize: side, ..EvalTransform::new(side) }.apply(picture)
}

/// Thumbnail of picture `index` of a source; none if it cannot be read.
pub fn of_source(source: &dyn Source, index: usize, side: u32) -> Option<Picture> {
    thumbnail(&source.load(index).ok()?, side).ok()
}

/// Name of the class of picture `index` of a source, if it has one.
pub fn class_name(source: &dyn Source, index: usize) -> Option<&str> {
    Some(source.classes().get(source.label(index)? as usize)?.as_str())
}

/// The last part of a picture's name: that of its file.
pub fn file_name(name: &str) -> &str {
    Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_are_squares_of_any_picture() {
        let line = Picture::new(1, 500, vec![9; 1500]).unwrap();
        let small = thumbnail(&line, 24).unwrap();
        assert_eq!((small.width(), small.height(), small.pixel(3, 3)), (24, 24, Some([9; 3])));
    }
}
