//! Images with corrupted patches, and the colors that these had.

use esvit_data::augment::Normalization;
use esvit_kernels::rng::Rng;
use esvit_nn::Tensor;

use super::MaskedPatchConfig;

/// RNG purpose of the corruption.
const CORRUPTION_PURPOSE: u64 = 0x3A5C;

/// Bits of each of red, green and blue.
const BITS: usize = 3;
/// Number of colors.
pub const COLORS: usize = 1 << (3 * BITS);

/// A corrupted patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patch {
    /// The image among those of the micro-batch.
    pub image: usize,
    /// Its row and column among the patches of the image.
    pub place: [usize; 2],
    /// The mean color that it had, below [`COLORS`].
    pub color: i32,
}

/// What becomes of a corrupted patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It has the mean color of all images, 0 after normalization.
    Masked,
    /// It is another patch of the image.
    Replaced(usize),
    Kept,
}

/// The corrupted ones of so many patches of an image, in ascending order. There are always as many.
fn draw(rng: &mut Rng, patches: usize, config: &MaskedPatchConfig) -> Vec<(usize, Fate)> {
    let count = (patches as f64 * config.corrupted).ceil() as usize;
    let chosen = rng.subset(patches, count);
    let fate = |patch: usize| {
        let draw = rng.uniform();
        // The others are numbered as if this one were not there.
        let other = rng.below(patches.saturating_sub(1) as u64) as usize;
        let other = if other < patch { other } else { other + 1 };
        if draw < config.masked || (draw < config.masked + config.replaced && other >= patches) {
            Fate::Masked
        } else if draw < config.masked + config.replaced {
            Fate::Replaced(other)
        } else {
            Fate::Kept
        }
    };
    chosen.iter().copied().zip(chosen.iter().copied().map(fate)).collect()
}

/// How images are cut into patches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// Side of a patch in pixels.
    pub side: usize,
    /// What was done to the images' pixels.
    pub normalization: Normalization,
}

impl Cut {
    /// A view of images, `[B, 3, H, W]`, with corrupted patches, and these, image by image. What an edge
    /// leaves of a patch stays as it is. `place` is the step and the view, `numbers` are those of the images.
    pub fn corrupt(
        &self,
        view: &Tensor,
        config: &MaskedPatchConfig,
        seed: u64,
        [step, number_of_view]: [u64; 2],
        numbers: &[u64],
    ) -> (Tensor, Vec<Patch>) {
        let [images, channels, height, width] = view.dims();
        let grid = [height / self.side, width / self.side];
        let before = view.to_vec::<f32>();
        let (mut after, mut corrupted) = (before.clone(), Vec::new());
        let len = channels * height * width;
        for (image, &number) in numbers.iter().enumerate().take(images) {
            let place = [step, number, number_of_view];
            let mut rng = Rng::for_purpose(seed, CORRUPTION_PURPOSE, place);
            let whole = &before[image * len..][..len];
            let after = &mut after[image * len..][..len];
            for (patch, fate) in draw(&mut rng, grid[0] * grid[1], config) {
                let at = |patch: usize| [patch / grid[1], patch % grid[1]];
                let color = self.color(whole, [height, width], at(patch));
                corrupted.push(Patch { image, place: at(patch), color });
                let to = self.rows([height, width], at(patch));
                match fate {
                    Fate::Masked => to.for_each(|start| after[start..][..self.side].fill(0.0)),
                    Fate::Replaced(other) => {
                        let from = self.rows([height, width], at(other));
                        for (to, from) in to.zip(from) {
                            let row = &whole[from..][..self.side];
                            after[to..][..self.side].copy_from_slice(row);
                        }
                    }
                    Fate::Kept => {}
                }
            }
        }
        (Tensor::new(after, view.shape(), &view.device()), corrupted)
    }

    /// Where the rows of a patch begin in an image `[3, height, width]`, channel by channel.
    fn rows(
        &self,
        [height, width]: [usize; 2],
        [row, column]: [usize; 2],
    ) -> impl Iterator<Item = usize> {
        let side = self.side;
        (0..3).flat_map(move |channel| {
            (0..side).map(move |y| (channel * height + row * side + y) * width + column * side)
        })
    }

    /// The highest bits of a patch's mean color: red, green, blue. The means of 8-bit pixels are exact.
    fn color(&self, image: &[f32], size: [usize; 2], place: [usize; 2]) -> i32 {
        let pixels = (self.side * self.side) as f64;
        let mut sums = [0.0; 3];
        for (row, start) in self.rows(size, place).enumerate() {
            let sum: f64 = image[start..][..self.side].iter().map(|&value| f64::from(value)).sum();
            sums[row / self.side] += sum;
        }
        let Normalization { scale, shift } = self.normalization;
        (0..3).fold(0, |color, channel| {
            let [scale, shift] = [scale[channel], shift[channel]].map(f64::from);
            // The sum of the pixels' bytes.
            let sum = ((sums[channel] - pixels * shift) / scale).round();
            let level = (sum / pixels).clamp(0.0, 255.0) as i32 >> (8 - BITS);
            color << BITS | level
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;

    const CONFIG: MaskedPatchConfig =
        MaskedPatchConfig { corrupted: 0.5, masked: 0.8, replaced: 0.1 };
    const NORMALIZATION: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

    fn cut(side: usize) -> Cut {
        let (mean, std) = NORMALIZATION;
        Cut { side, normalization: Normalization::new(mean, std) }
    }

    /// Images of these bytes, `[images, 3, height, width]`.
    fn view(images: usize, [height, width]: [usize; 2], byte: impl Fn(usize) -> u8) -> Tensor {
        let (mean, std) = NORMALIZATION;
        let value = |index: usize| {
            let channel = index / (height * width) % 3;
            ((f64::from(byte(index)) / 255.0 - mean[channel]) / std[channel]) as f32
        };
        let values = (0..images * 3 * height * width).map(value).collect();
        Tensor::new(values, [images, 3, height, width], &Device::Cpu)
    }

    fn noise(index: usize) -> u8 {
        (index as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
    }

    /// By loops over images, patches and pixels, for images with an edge that no patch has.
    #[test]
    fn patches_by_their_definition() {
        let (images, size, side) = (3, [9, 14], 4);
        let (before, numbers) = (view(images, size, noise), [7, 1, 30]);
        let (after, patches) = cut(side).corrupt(&before, &CONFIG, 5, [2, 1], &numbers);
        // Two by three patches of each image.
        assert_eq!(
            patches.iter().map(|patch| patch.image).collect::<Vec<_>>(),
            [0, 0, 0, 1, 1, 1, 2, 2, 2]
        );
        let [before, after] = [before, after].map(|view| view.to_vec::<f32>());
        let index = |image: usize, channel: usize, y: usize, x: usize| {
            ((image * 3 + channel) * size[0] + y) * size[1] + x
        };
        let pixels = |values: &[f32], image: usize, [row, column]: [usize; 2]| -> Vec<f32> {
            let mut found = Vec::new();
            for channel in 0..3 {
                for y in row * side..(row + 1) * side {
                    for x in column * side..(column + 1) * side {
                        found.push(values[index(image, channel, y, x)]);
                    }
                }
            }
            found
        };
        let places = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]];
        for image in 0..images {
            for place in places {
                let of_place = |patch: &&Patch| (patch.image, patch.place) == (image, place);
                let own = pixels(&before, image, place);
                let Some(patch) = patches.iter().find(of_place) else {
                    assert_eq!(pixels(&after, image, place), own);
                    continue;
                };
                let mut color = 0;
                for channel in 0..3 {
                    let mut sum = 0usize;
                    for y in place[0] * side..(place[0] + 1) * side {
                        for x in place[1] * side..(place[1] + 1) * side {
                            sum += usize::from(noise(index(image, channel, y, x)));
                        }
                    }
                    color = 8 * color + (sum / (side * side) / 32) as i32;
                }
                assert_eq!(patch.color, color, "{image} {place:?}");
                let found = pixels(&after, image, place);
                let others = places.map(|other| pixels(&before, image, other));
                assert!(found.iter().all(|&value| value == 0.0) || others.contains(&found));
            }
            // What is left at the edges.
            for (y, x) in [(8, 3), (3, 12), (8, 13)] {
                let at = index(image, 2, y, x);
                assert_eq!(after[at].to_bits(), before[at].to_bits());
            }
        }
    }

    /// Of 1,000 draws half of the patches each, most of them masked, some replaced by another one.
    #[test]
    fn shares_of_the_fates() {
        let mut counts = [0usize; 3];
        for seed in 0..1000 {
            let found = draw(&mut Rng::new(seed, [0; 3]), 10, &CONFIG);
            assert_eq!(found.len(), 5);
            for (patch, fate) in found {
                counts[match fate {
                    Fate::Masked => 0,
                    Fate::Replaced(other) => {
                        assert!(other != patch && other < 10, "{patch} {other}");
                        1
                    }
                    Fate::Kept => 2,
                }] += 1;
            }
        }
        for (count, expected) in counts.into_iter().zip([4000, 500, 500]) {
            assert!(count.abs_diff(expected) < 100, "{counts:?}");
        }
        // One patch has no other; an odd number is rounded up; there may be none.
        let replaced = MaskedPatchConfig { masked: 0.0, replaced: 1.0, ..CONFIG };
        assert_eq!(draw(&mut Rng::new(1, [0; 3]), 1, &replaced), [(0, Fate::Masked)]);
        assert_eq!(draw(&mut Rng::new(1, [0; 3]), 49, &CONFIG).len(), 25);
        assert!(draw(&mut Rng::new(1, [0; 3]), 0, &CONFIG).is_empty());
    }

    /// The borders of the levels, of all pixels alike: seven bits below do not count.
    #[test]
    fn levels_of_colors() {
        for (bytes, expected) in [
            ([0, 0, 0], 0),
            ([31, 32, 255], 0o017),
            ([255, 255, 255], 0o777),
            ([63, 64, 96], 0o123),
            ([224, 223, 0], 0o760),
        ] {
            let all = view(1, [4, 4], |index| bytes[index / 16]);
            let color = cut(4).color(&all.to_vec::<f32>(), [4, 4], [0, 0]);
            assert_eq!(color, expected, "{bytes:?}: {color:o}");
        }
    }

    /// Each part of the place has draws of its own; the other images of the batch are none.
    #[test]
    fn corruption_by_place() {
        let images = view(2, [16, 16], noise);
        let of = |seed, place, numbers: [u64; 2]| {
            let (view, patches) = cut(4).corrupt(&images, &CONFIG, seed, place, &numbers);
            (view.to_vec::<f32>(), patches)
        };
        let first = of(5, [2, 1], [7, 8]);
        assert!(of(5, [2, 1], [7, 8]) == first);
        for other in [
            of(6, [2, 1], [7, 8]),
            of(5, [3, 1], [7, 8]),
            of(5, [2, 0], [7, 8]),
            of(5, [2, 1], [9, 8]),
        ] {
            assert!(other.1 != first.1);
        }
        let of_second = |(view, patches): &(Vec<f32>, Vec<Patch>)| {
            let own = patches.iter().filter(|patch| patch.image == 1).copied();
            (view[3 * 256..].to_vec(), own.collect::<Vec<Patch>>())
        };
        assert!(of_second(&of(5, [2, 1], [9, 8])) == of_second(&first));
    }
}
