//! Resizes tables of positions to other windows and maps.

use crate::{bicubic, bilinear};

/// Resizes a table `[positions, heads]` to `rows` positions: each head is an image with sides of
/// `2 * window - 1`, interpolated bicubically with `align_corners=False`, as in the official code.
/// None unless both are squares.
pub(super) fn relative_positions(table: &[f32], heads: usize, rows: usize) -> Option<Vec<f32>> {
    let old_rows = table.len().checked_div(heads)?;
    let (old, new) = (old_rows.isqrt(), rows.isqrt());
    if old == 0 || old * old * heads != table.len() || new * new != rows {
        return None;
    }
    let taps: Vec<[(usize, f64); 4]> =
        (0..new).map(|position| bicubic::taps(old, new as f64, position)).collect();
    let mut resized = Vec::with_capacity(rows * heads);
    for down in &taps {
        for across in &taps {
            for head in 0..heads {
                let mut sum = 0.0;
                for &(y, weight) in down {
                    let row: f64 = across
                        .iter()
                        .map(|&(x, weight)| weight * f64::from(table[(y * old + x) * heads + head]))
                        .sum();
                    sum += weight * row;
                }
                resized.push(sum as f32);
            }
        }
    }
    Some(resized)
}

/// Resizes a table of absolute positions `[tokens, width]` to `rows` tokens as timm does, with
/// antialiasing. Both have as many tokens before those of a square map, which stay. None if they do not.
pub(super) fn positions(table: &[f32], width: usize, rows: usize) -> Option<Vec<f32>> {
    separable(table, width, rows, bicubic::antialiased)
}

/// The same by bilinear interpolation, as a pyramid vision transformer does.
pub(super) fn bilinear_positions(table: &[f32], width: usize, rows: usize) -> Option<Vec<f32>> {
    separable(table, width, rows, bilinear::axis)
}

/// Resizes positions along one axis, `[from, width]`, to `to` by bicubic interpolation, as a vision
/// longformer has them for rows and columns.
pub(super) fn axis_positions(table: &[f32], width: usize, to: usize) -> Option<Vec<f32>> {
    let from = table.len().checked_div(width).filter(|&from| from > 0)?;
    let mut resized = Vec::with_capacity(to * width);
    for weights in bicubic::axis(from, to, to as f64) {
        resized.extend((0..width).map(|channel| {
            let values = table[channel..].iter().step_by(width);
            values.zip(&weights).map(|(value, weight)| f64::from(*value) * weight).sum::<f64>()
                as f32
        }));
    }
    Some(resized)
}

/// Interpolates a square map along both axes: `axis(old, new)` are the weights of all old positions in each
/// new one.
fn separable(
    table: &[f32],
    width: usize,
    rows: usize,
    axis: impl Fn(usize, usize) -> Vec<Vec<f64>>,
) -> Option<Vec<f32>> {
    let old_rows = table.len().checked_div(width)?;
    let side = |tokens: usize| Some(tokens.isqrt()).filter(|side| side * side == tokens);
    // Class and distillation token.
    let sides = |prefix: usize| {
        let map = |rows: usize| side(rows.checked_sub(prefix)?).filter(|&side| side > 0);
        let [old, new] = [old_rows, rows].map(map);
        Some((prefix, old?, new?))
    };
    let (prefix, old, new) = (0..=2).find_map(sides)?;
    let (kept, map) = table.split_at(prefix * width);
    let weights = axis(old, new);
    let mut resized = kept.to_vec();
    for down in &weights {
        for across in &weights {
            let mut sums = vec![0.0; width];
            for (y, weight_y) in down.iter().enumerate() {
                for (x, weight_x) in across.iter().enumerate() {
                    let token = &map[(y * old + x) * width..][..width];
                    let weight = weight_y * weight_x;
                    sums.iter_mut().zip(token).for_each(|(sum, v)| *sum += weight * f64::from(*v));
                }
            }
            resized.extend(sums.into_iter().map(|sum| sum as f32));
        }
    }
    Some(resized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_changes_nothing() {
        let table: Vec<f32> = (0..18).map(|i| (i * i) as f32).collect();
        assert_eq!(relative_positions(&table, 2, 9).unwrap(), table);
    }

    /// `torch.nn.functional.interpolate(torch.arange(9.).square().view(1, 1, 3, 3), size=(5, 5),
    /// mode="bicubic", align_corners=False)`
    #[test]
    fn as_pytorch_does() {
        let table: Vec<f32> = (0..9).map(|i| (i * i) as f32).collect();
        let expected = FROM_PYTORCH;
        let found = relative_positions(&table, 1, 25).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    /// The class token stays; of two positions to three, the middle one is their mean.
    #[test]
    fn positions_of_a_pyramid() {
        let table = [9.0, 0.0, 4.0, 10.0, 14.0];
        let found = bilinear_positions(&table, 1, 10).unwrap();
        assert_eq!(found, [9.0, 0.0, 2.0, 4.0, 5.0, 7.0, 9.0, 10.0, 12.0, 14.0]);
        assert!(bilinear_positions(&table, 1, 9).is_none());
        // A class token alone has no map.
        assert!(bilinear_positions(&[9.0], 1, 10).is_none() && positions(&[9.0], 1, 10).is_none());
    }

    /// The same along one axis as of a table whose columns are all alike.
    #[test]
    fn positions_along_an_axis() {
        let axis = [1.0, -2.0, 4.0, 0.5, 9.0, 3.0];
        assert_eq!(axis_positions(&axis, 2, 3).unwrap(), axis);
        let found = axis_positions(&axis, 2, 5).unwrap();
        let table: Vec<f32> = axis.chunks(2).flat_map(|row| [row, row, row].concat()).collect();
        let expected = relative_positions(&table, 2, 25).unwrap();
        for (found, expected) in found.chunks(2).zip(expected.chunks(10)) {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        assert!(axis_positions(&[], 2, 3).is_none() && axis_positions(&axis, 0, 3).is_none());
    }

    #[test]
    fn what_is_no_square_has_no_other_size() {
        assert!(relative_positions(&[0.0; 8], 1, 25).is_none());
        assert!(relative_positions(&[0.0; 9], 1, 24).is_none());
        assert!(relative_positions(&[0.0; 9], 0, 25).is_none());
    }

    const FROM_PYTORCH: [f32; 25] = [
        -0.9047, -0.8740, -0.4400, 1.0740, 2.2167, 1.2700, 2.3191, 4.4440, 7.6489, 9.8100, 8.3280,
        11.0680, 16.0000, 22.0120, 25.8640, 25.1060, 29.5369, 37.2760, 46.0951, 51.6380, 37.2887,
        42.7380, 52.1680, 62.6780, 69.2393,
    ];
}
