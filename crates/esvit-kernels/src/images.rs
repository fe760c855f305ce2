//! Images as a network takes them.

/// Normalizes `pixels [H, W, 3]` of one image into `out [3, H, W]`: `value * scale + shift` by channel.
///
/// # Panics
/// When lengths differ.
pub fn normalize(pixels: &[u8], scale: [f32; 3], shift: [f32; 3], out: &mut [f32]) {
    assert_eq!(pixels.len(), out.len(), "values of an image");
    let pixels = pixels.as_chunks::<3>().0;
    for (channel, plane) in out.chunks_exact_mut(pixels.len().max(1)).enumerate() {
        let (scale, shift) = (scale[channel], shift[channel]);
        for (value, pixel) in plane.iter_mut().zip(pixels) {
            *value = f32::from(pixel[channel]) * scale + shift;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_become_planes() {
        let pixels = [0, 10, 20, 255, 110, 120];
        let mut out = [f32::NAN; 6];
        normalize(&pixels, [1.0, 0.5, 2.0], [0.0, 1.0, -3.0], &mut out);
        assert_eq!(out, [0.0, 255.0, 6.0, 56.0, 37.0, 237.0]);
        normalize(&[], [1.0; 3], [0.0; 3], &mut []);
    }
}
