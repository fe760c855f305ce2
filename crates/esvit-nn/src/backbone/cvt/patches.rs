//! Overlapping patches of maps of tokens: a convolution is a linear layer over them.

use super::TokenMaps;
use crate::backbone::maps::joined;
use crate::ops::Segment;
use crate::tensor::Tensor;

/// The geometry of a convolution with a square filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patches {
    /// Side of the filter.
    pub(super) side: usize,
    /// Step from one patch to the next.
    pub(super) stride: usize,
    /// Zeros on every side of the map.
    pub(super) padding: usize,
}

impl Patches {
    /// Number of patches along a side of `length` tokens; None when not one fits.
    pub(super) fn count(&self, length: usize) -> Option<usize> {
        let free = (length + 2 * self.padding).checked_sub(self.side)?;
        (length > 0).then_some(free / self.stride + 1)
    }

    /// The patches of `maps`, as maps of rows `[patches, side * side * C]`: the tokens of a patch
    /// row by row, with all channels of each.
    ///
    /// # Panics
    /// When a map holds no patch.
    pub(super) fn of(&self, maps: &TokenMaps) -> TokenMaps {
        let width = maps.rows.shape()[1];
        let of_segment = |(tokens, segment): (Tensor, &Segment)| {
            let map = segment.map.map(|length| self.count(length).expect("a map holds a patch"));
            let patches = with_zero_token(tokens).index_select(1, self.tokens(segment.map, map));
            let rows = segment.images * map[0] * map[1];
            let patches = patches.reshape([rows, self.side * self.side * width]);
            (patches, Segment::new(segment.images, map))
        };
        let parts = maps.parts().into_iter().zip(&maps.segments).map(of_segment);
        let (rows, segments): (Vec<_>, Vec<_>) = parts.unzip();
        TokenMaps { rows: joined(rows), segments }
    }

    /// The tokens of every patch of a map `[height, width]`; `height * width`, one past the last,
    /// for zeros around it.
    fn tokens(&self, [height, width]: [usize; 2], [rows, columns]: [usize; 2]) -> Vec<i32> {
        let Self { side, stride, padding } = *self;
        let mut tokens = Vec::with_capacity(rows * columns * side * side);
        for patch in 0..rows * columns {
            let [top, left] = [patch / columns * stride, patch % columns * stride];
            for tap in 0..side * side {
                // Counted from the first of the zeros.
                let [y, x] = [top + tap / side, left + tap % side];
                let is_inside = (padding..padding + height).contains(&y)
                    && (padding..padding + width).contains(&x);
                let token =
                    if is_inside { (y - padding) * width + x - padding } else { height * width };
                tokens.push(token as i32);
            }
        }
        tokens
    }
}

/// Tokens `[images, n, C]` with a token of zeros after those of each image, `[images, n + 1, C]`.
pub(super) fn with_zero_token(tokens: Tensor) -> Tensor {
    let [images, _, width] = tokens.dims();
    let zero = Tensor::zeros([images, 1, width], &tokens.device());
    Tensor::cat(vec![tokens, zero], 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    const CASES: [(Patches, [usize; 2]); 4] = [
        (Patches { side: 7, stride: 4, padding: 2 }, [11, 8]),
        (Patches { side: 3, stride: 2, padding: 1 }, [5, 4]),
        (Patches { side: 3, stride: 1, padding: 1 }, [2, 3]),
        (Patches { side: 2, stride: 2, padding: 0 }, [5, 2]),
    ];

    #[test]
    fn numbers_of_patches() {
        let [first, second, _, whole] = CASES.map(|(patches, _)| patches);
        assert_eq!([224, 96, 64, 225, 227].map(|n| first.count(n)), [56, 24, 16, 56, 57].map(Some));
        assert_eq!([56, 28, 7, 3, 2, 1].map(|n| second.count(n)), [28, 14, 4, 2, 1, 1].map(Some));
        assert_eq!([first.count(2), first.count(3), whole.count(1)], [None, Some(1), None]);
        assert_eq!(Patches { padding: 2, ..second }.count(0), None);
    }

    /// A linear layer over the patches is the convolution, of maps of two sizes at once.
    #[test]
    fn a_convolution_is_a_linear_layer_over_them() {
        const INPUTS: usize = 2;
        const OUTPUTS: usize = 3;
        let values = |seed: usize, len: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * i + seed * i) % 11) as f32 - 5.0).collect()
        };
        for (patches, map) in CASES {
            let taps = patches.side * patches.side;
            let weight = Tensor::new(
                values(3, OUTPUTS * INPUTS * taps),
                [OUTPUTS, INPUTS, patches.side, patches.side],
                &Device::Cpu,
            );
            let other = map.map(|side| side + 2);
            let images = [(2, map), (1, other)].map(|(count, [height, width])| {
                let len = count * INPUTS * height * width;
                Tensor::new(values(5, len), [count, INPUTS, height, width], &Device::Cpu)
            });
            let expected = images.iter().flat_map(|images| {
                let Patches { stride, padding, .. } = patches;
                let y = images.clone().conv2d(weight.clone(), None, stride, padding, 1);
                y.permute(&[0, 2, 3, 1]).to_vec::<f32>()
            });
            let expected: Vec<f32> = expected.collect();
            let tokens = images.into_iter().map(|images| {
                let [count, _, height, width] = images.dims();
                images.permute(&[0, 2, 3, 1]).reshape([count * height * width, INPUTS])
            });
            let segments = vec![Segment::new(2, map), Segment::new(1, other)];
            let found = patches.of(&TokenMaps { rows: joined(tokens.collect()), segments });
            let weight = weight.reshape([OUTPUTS, INPUTS, taps]).swap_dims(1, 2);
            let weight = weight.reshape([OUTPUTS, taps * INPUTS]);
            let found = found.rows.matmul(weight.transpose()).to_vec::<f32>();
            // Whole numbers below 2^24 have no rounding.
            assert_eq!(found, expected, "{patches:?}");
        }
    }
}
