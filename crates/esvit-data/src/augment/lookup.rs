//! Pointwise operations as tables of 256 bytes.

use crate::Image;

/// Maps every value by a table.
pub(super) fn apply_lut(image: &mut Image, lut: &[u8; 256]) {
    for value in image.pixels_mut() {
        *value = lut[*value as usize];
    }
}

/// Tabulates a function.
pub(super) fn lut(of: impl Fn(u8) -> u8) -> [u8; 256] {
    std::array::from_fn(|value| of(value as u8))
}

/// Pillow's blend: `from + factor * (to - from)` in f32, clamped to 0..=255 and truncated.
#[inline]
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // The cast truncates and saturates.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}
