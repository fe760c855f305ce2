//! The palette: colors that stand for those of an image.

use crate::backbone::CHANNELS;
use crate::ops::{self, Segment};
use crate::params::Params;
use crate::tensor::Tensor;

/// Name of the parameter that holds it.
pub(super) const PALETTE: &str = "palette";

/// The mean color of every square of `patch` x `patch` pixels of `images [B, 3, H, W]`: rows
/// `[B * h * w, 3]`, row-major over the map of `h = H / patch` by `w = W / patch`. Pixels beyond the last
/// whole square are dropped.
pub fn patch_colors(images: Tensor, patch: usize) -> (Tensor, Segment) {
    let (rows, segment) = ops::patchify(images, patch);
    if patch == 1 {
        return (rows, segment);
    }
    let [count, _] = rows.dims();
    let means = rows.reshape([count, CHANNELS, patch * patch]).mean_dim(2);
    (means.reshape([count, CHANNELS]), segment)
}

/// The token of every square of `images [B, 3, H, W]`: the nearest color of `palette [colors, 3]`, in the order
/// of [`patch_colors`].
pub fn tokens(images: Tensor, patch: usize, palette: &[f32]) -> Vec<i32> {
    let (pixels, _) = patch_colors(images, patch);
    let size = [palette.len() / CHANNELS, CHANNELS];
    ops::nearest_colors(&pixels, &Tensor::new(palette.to_vec(), size, &pixels.device()))
}

/// The place of the palette among the parameters of a network, if it has one.
fn place(params: &Params) -> Option<usize> {
    params.specs().iter().position(|spec| spec.name == PALETTE)
}

/// The palette `[colors, 3]` of a network, in units of its input; None of a network without.
pub fn palette(params: &Params) -> Option<Vec<f32>> {
    place(params).map(|index| params.value(index).to_vec())
}

/// Gives a network another palette. Nothing happens to a network without.
///
/// # Panics
/// When it has another number of colors.
pub fn set_palette(params: &mut Params, palette: &[f32]) {
    if let Some(index) = place(params) {
        params.set(index, palette);
    }
}

/// The 8-bit value of a channel that is from -1 to 1 (`value / 127.5 - 1`), rounded to the nearest one, halves to
/// even.
pub fn to_byte(channel: f32) -> u8 {
    (127.5 * (channel + 1.0)).round_ties_even() as u8
}
