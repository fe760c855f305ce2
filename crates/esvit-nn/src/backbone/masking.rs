//! Which tokens are masked so that whole regions are hidden.

/// Sizes of a backbone's tokens where they can be masked, and of its regions, the tokens of its last map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masking {
    /// Width of the tokens after the patch embedding, one of which stands in place of masked ones.
    pub width: usize,
    /// Side of such a token in pixels.
    pub patch: usize,
    /// Tokens on a side of a region: 1 unless there are several stages.
    pub cell: usize,
}

impl Masking {
    /// Height and width in tokens after the patch embedding, of images of `[height, width]` pixels.
    pub fn tokens(&self, sides: [usize; 2]) -> [usize; 2] {
        sides.map(|side| side / self.patch)
    }

    /// Height and width in regions.
    pub fn regions(&self, sides: [usize; 2]) -> [usize; 2] {
        self.tokens(sides).map(|side| side.div_ceil(self.cell))
    }

    /// The part of an image in [`TokenMask::rows`](super::TokenMask::rows) whose regions, row-major, are
    /// masked or not: all tokens of a masked region are, as in SimMIM.
    ///
    /// # Panics
    /// When there are fewer regions than an image of these sides has.
    pub fn rows(&self, sides: [usize; 2], regions: &[bool]) -> Vec<f32> {
        let [height, width] = self.tokens(sides);
        let columns = width.div_ceil(self.cell);
        let row = |token: usize| {
            let [y, x] = [token / width, token % width].map(|place| place / self.cell);
            f32::from(u8::from(regions[y * columns + x]))
        };
        (0..height * width).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regions of 2 x 2 tokens of 3 pixels; the last ones of an odd map have fewer.
    #[test]
    fn tokens_of_masked_regions() {
        let masking = Masking { width: 8, patch: 3, cell: 2 };
        let sides = [11, 15];
        assert_eq!((masking.tokens(sides), masking.regions(sides)), ([3, 5], [2, 3]));
        let regions = [false, true, false, true, false, true];
        let expected: [u8; 15] = [0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1];
        assert_eq!(masking.rows(sides, &regions), expected.map(f32::from));
        // A single stage: tokens are regions.
        let alone = Masking { cell: 1, ..masking };
        assert_eq!(alone.rows([3, 6], &[true, false]), [1.0, 0.0]);
        assert_eq!(alone.rows([2, 6], &[]), [0.0; 0], "no whole token");
    }
}
