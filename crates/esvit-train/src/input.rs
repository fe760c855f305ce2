//! From crops of a batch to what a network takes.

use std::ops::Range;

use esvit_data::Crops;
use esvit_data::augment::Normalization;
use esvit_nn::{Device, Tensor, ops};

/// Some crops, normalized on a device: `[crops.len(), 3, side, side]`.
pub fn network_input(
    crops: &Crops,
    range: Range<usize>,
    normalization: &Normalization,
    device: &Device,
) -> Tensor {
    let shape = [range.len(), crops.side, crops.side, 3];
    let pixels = Tensor::new(crops.pixels_of(range.clone()).to_vec(), shape, device);
    let Normalization { scale, shift } = *normalization;
    let mut input = ops::normalize_images(&pixels, scale, shift);
    crops.for_each_erased(range, |start, values| input.write(start, values));
    input
}

#[cfg(test)]
mod tests {
    use esvit_data::augment::Erase;
    use esvit_data::{Image, Policy, ViewsConfig};

    use super::*;

    /// As Normalization, with the noise of random erasing in its place, in every part of a batch.
    #[test]
    fn normalized_on_the_device_as_on_the_host() {
        let erase = Erase { p: 0.5, ..Erase::default() };
        let config =
            ViewsConfig { global_size: 12, erase, ..ViewsConfig::for_policy(Policy::Deit) };
        let pixels = (0..40 * 30 * 3).map(|i| (i * 37 % 251) as u8).collect();
        let image = Image::new(40, 30, pixels).unwrap();
        let normalization = config.normalization();
        let len = 3 * 12 * 12;
        let mut crops = Crops::new(8, 12);
        let (mut expected, mut erased) = (Vec::new(), 0);
        for sample in 0..8 {
            let view = config.first_view(&image, 1, 0, sample).unwrap();
            crops.set(sample as usize, &view);
            let mut values = vec![0.0; len];
            normalization.write(&view.image, &mut values).unwrap();
            if let Some(noise) = &view.erased {
                erased += 1;
                noise.for_each_row(|x, y, channel, row| {
                    let at = (channel * 12 + y) * 12 + x;
                    values[at..at + row.len()].copy_from_slice(row);
                });
            }
            expected.extend(values);
        }
        assert!((1..8).contains(&erased), "{erased}");
        for range in [0..8, 3..5, 7..8] {
            let found = network_input(&crops, range.clone(), &normalization, &Device::Cpu);
            assert_eq!(found.shape(), [range.len(), 3, 12, 12].into());
            assert_eq!(found.to_vec::<f32>(), expected[range.start * len..range.end * len]);
        }
    }
}
