//! Operations that map every value by itself, as tables of 256 bytes.

use crate::Image;

/// Replaces every value by its entry.
pub(super) fn apply(image: &mut Image, table: &[u8; 256]) {
    for value in image.pixels_mut() {
        *value = table[*value as usize];
    }
}

/// A table from a function of the value.
pub(super) fn table(of: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|value| of(value as u8))
}

/// Pillow's blend of a degenerate value `from` with `to`: `from + factor * (to - from)` in single
/// precision, cut to 0..=255 and truncated.
#[inline]
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // A float's conversion to u8 truncates and saturates.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}
