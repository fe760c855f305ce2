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

/// About how wide a line of words is in a drawing, in pixels.
pub fn words_width(words: &str, size: f64) -> f64 {
    0.62 * size * words.chars().count() as f64
}

/// `words`, cut at the end where the line would be wider than `width` pixels.
pub fn shortened(words: &str, size: f64, width: f64) -> String {
    if words_width(words, size) <= width {
        return words.into();
    }
    let room = (width / (0.62 * size)) as usize;
    words.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut() {
        assert_eq!(shortened("short", 10.0, 100.0), "short");
        let cut = shortened("a very long name", 10.0, 62.0);
        assert_eq!(cut, "a very lo…");
        assert!(words_width(&cut, 10.0) <= 62.0);
    }

    #[test]
    fn thumbnails_are_squares_of_any_picture() {
        let line = Picture::new(1, 500, vec![9; 1500]).unwrap();
        let small = thumbnail(&line, 24).unwrap();
        assert_eq!((small.width(), small.height(), small.pixel(3, 3)), (24, 24, Some([9; 3])));
    }
}
