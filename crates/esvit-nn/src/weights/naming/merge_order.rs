//! The order in which patch merging has the channels of its four patches.
//!
//! The official code concatenates the patches: channel `c` of patch `k` is input `k * width + c`,
//! and the patches are those at rows and columns (0, 0), (1, 0), (0, 1), (1, 1). OpenMMLab takes them
//! with `nn.Unfold`, which has the patches of a channel side by side, row by row: channel `c` of the
//! patch at row `y` and column `x` is input `4 * c + 2 * y + x`.

/// Where `Unfold` has the official patches.
const UNFOLDED: [usize; 4] = [0, 2, 1, 3];

/// Puts every row of `row` values from the order of `nn.Unfold` into the official one.
pub(super) fn concatenated(values: &[f32], row: usize) -> Vec<f32> {
    reordered(values, row, |official, unfolded| (official, unfolded))
}

/// The inverse of [`concatenated`].
pub(super) fn unfolded(values: &[f32], row: usize) -> Vec<f32> {
    reordered(values, row, |official, unfolded| (unfolded, official))
}

/// `place` says to and from where a value goes, given its places in the two orders.
fn reordered(
    values: &[f32],
    row: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<f32> {
    let width = row / UNFOLDED.len();
    let mut out = values.to_vec();
    for (values, out) in values.chunks_exact(row.max(1)).zip(out.chunks_exact_mut(row.max(1))) {
        for (patch, at) in UNFOLDED.into_iter().enumerate() {
            for channel in 0..width {
                let (to, from) = place(patch * width + channel, channel * 4 + at);
                out[to] = values[from];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of three channels; a value tells row, channel, and the patch's row and column.
    #[test]
    fn channels_follow_the_patches() {
        let of = |row: u16, y: u16, x: u16, channel: u16| {
            f32::from(1000 * row + 100 * channel + 10 * y + x)
        };
        let (mut official, mut unfold) = (Vec::new(), Vec::new());
        for row in 0..2 {
            for (y, x) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                official.extend((0..3).map(|channel| of(row, y, x, channel)));
            }
            for channel in 0..3 {
                unfold
                    .extend([(0, 0), (0, 1), (1, 0), (1, 1)].map(|(y, x)| of(row, y, x, channel)));
            }
        }
        assert_eq!(concatenated(&unfold, 12), official);
        assert_eq!(unfolded(&official, 12), unfold);
    }
}
