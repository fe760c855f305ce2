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
