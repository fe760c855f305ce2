//! Images as a network takes them.

use esvit_kernels::{buffer, images};
use rayon::prelude::*;

use super::cpu::made;
use crate::tensor::Tensor;

/// Normalizes pixels `[B, H, W, 3]`, u8, to `[B, 3, H, W]`, f32: `value * scale + shift` by channel.
/// Not recorded.
///
/// # Panics
/// When the pixels have another shape or type.
pub fn normalize_images(pixels: &Tensor, scale: [f32; 3], shift: [f32; 3]) -> Tensor {
    let [batch, height, width, channels] = pixels.dims();
    assert_eq!(channels, 3, "channels of {:?}", pixels.shape());
    let image = (channels * height * width).max(1);
    let mut out = buffer::uninit(pixels.numel());
    out.par_chunks_mut(image)
        .zip(pixels.values::<u8>().par_chunks(image))
        .for_each(|(out, pixels)| images::normalize(pixels, scale, shift, out));
    made(out, [batch, channels, height, width])
}
