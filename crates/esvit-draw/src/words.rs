//! Text that fits into a width.

/// Estimated width in pixels of a line of text in font size `size`.
pub fn text_width(words: &str, size: f64) -> f64 {
    0.62 * size * words.chars().count() as f64
}

/// `words`, truncated with an ellipsis if wider than `width` pixels.
pub fn ellipsize(words: &str, size: f64, width: f64) -> String {
    if text_width(words, size) <= width {
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
        assert_eq!(ellipsize("short", 10.0, 100.0), "short");
        let cut = ellipsize("a very long name", 10.0, 62.0);
        assert_eq!(cut, "a very lo…");
        assert!(text_width(&cut, 10.0) <= 62.0);
    }
}
