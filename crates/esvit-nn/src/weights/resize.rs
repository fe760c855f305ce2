//! Resizes relative position biases to other window sizes.

/// The coefficient of PyTorch's bicubic interpolation.
const A: f64 = -0.75;

/// Resizes a table `[positions, heads]` to `rows` positions: each head is an image with sides of
/// `2 * window - 1`, interpolated bicubically with `align_corners=False`, as in the official code.
/// None unless both are squares.
pub(super) fn relative_positions(table: &[f32], heads: usize, rows: usize) -> Option<Vec<f32>> {
    let old_rows = table.len().checked_div(heads)?;
    let (old, new) = (old_rows.isqrt(), rows.isqrt());
    if old == 0 || old * old * heads != table.len() || new * new != rows {
        return None;
    }
    let taps: Vec<[(usize, f64); 4]> = (0..new).map(|position| taps(position, old, new)).collect();
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

/// Source positions and weights of an output position.
fn taps(position: usize, old: usize, new: usize) -> [(usize, f64); 4] {
    let center = (position as f64 + 0.5) * old as f64 / new as f64 - 0.5;
    let floor = center.floor();
    let fraction = center - floor;
    let distances = [1.0 + fraction, fraction, 1.0 - fraction, 2.0 - fraction];
    let mut offset = -1.0;
    distances.map(|distance| {
        let at = (floor + offset).clamp(0.0, old as f64 - 1.0) as usize;
        offset += 1.0;
        (at, cubic(distance))
    })
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64) -> f64 {
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    }
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
