//! Positions of a square map that are not trained: sines and cosines of row and column, as in MoCo v3.

/// The longest wave is `2 pi` times as many patches.
const TEMPERATURE: f64 = 10_000.0;

/// Value `at` of a table `[rows, width]`: of every patch the sines of its row at `width / 4` frequencies and the
/// cosines, then those of its column. Tokens before the map have zeros.
pub(crate) fn value([rows, width]: [usize; 2], at: usize) -> f64 {
    let side = rows.isqrt();
    let Some(patch) = (at / width).checked_sub(rows - side * side) else { return 0.0 };
    let (channel, waves) = (at % width, width / 4);
    let position = [patch / side, patch % side][channel / (2 * waves)];
    let frequency = libm::pow(TEMPERATURE, -((channel % waves) as f64) / waves as f64);
    let angle = position as f64 * frequency;
    if channel / waves % 2 == 0 { libm::sin(angle) } else { libm::cos(angle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token and a map of 2 x 2, with frequencies 1 and 1/100.
    #[test]
    fn rows_before_columns() {
        let table: Vec<f64> = (0..5 * 8).map(|at| value([5, 8], at)).collect();
        assert_eq!(table[..8], [0.0; 8]);
        let still = [0.0, 0.0, 1.0, 1.0];
        let moved = [1f64.sin(), 0.01f64.sin(), 1f64.cos(), 0.01f64.cos()];
        let expected = [[still, still], [still, moved], [moved, still], [moved, moved]];
        for (found, expected) in table[8..].iter().zip(expected.as_flattened().as_flattened()) {
            assert!((found - expected).abs() < 1e-12, "{found} instead of {expected}");
        }
    }
}
