//! PyTorch's two bicubic interpolations along an axis (`align_corners=False`).

use crate::interpolation;

/// The kernel's parameter without antialiasing.
const PLAIN: f64 = -0.75;
/// And with it.
const ANTIALIASED: f64 = -0.5;

/// The source positions, out of `from`, and weights of output position `at`; `to` is the number of
/// positions that the scale stands for. Positions beyond the border are those at it.
pub(crate) fn taps(from: usize, to: f64, at: usize) -> [(usize, f64); 4] {
    let center = (at as f64 + 0.5) * from as f64 / to - 0.5;
    let floor = center.floor();
    [-1.0, 0.0, 1.0, 2.0].map(|offset| {
        let place = (floor + offset).clamp(0.0, from as f64 - 1.0) as usize;
        (place, cubic(center - floor - offset, PLAIN))
    })
}

/// The weights of all `from` source positions in each of `to` output positions, those of [`taps`].
pub(crate) fn axis(from: usize, to: usize, scale: f64) -> Vec<Vec<f64>> {
    (0..to).map(|at| interpolation::row(from, taps(from, scale, at))).collect()
}

/// The same with antialiasing: the kernel is widened where there are fewer, and its weights add up to 1.
pub(crate) fn antialiased(from: usize, to: usize) -> Vec<Vec<f64>> {
    let ratio = from as f64 / to as f64;
    let row = |at: usize| -> Vec<f64> {
        let (center, width) = (ratio * (at as f64 + 0.5), ratio.max(1.0));
        let first = (center - 2.0 * width + 0.5).max(0.0) as usize;
        let end = ((center + 2.0 * width + 0.5) as usize).min(from);
        let mut weights = vec![0.0; from];
        for (place, weight) in weights.iter_mut().enumerate().take(end).skip(first) {
            *weight = cubic((place as f64 + 0.5 - center) / width, ANTIALIASED);
        }
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    };
    (0..to).map(row).collect()
}

/// Keys's cubic convolution kernel with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one() {
        for (from, to) in [(14, 6), (6, 14), (5, 5), (7, 1), (1, 4)] {
            for at in 0..to {
                let plain: f64 = taps(from, to as f64, at).iter().map(|tap| tap.1).sum();
                let smooth: f64 = antialiased(from, to)[at].iter().sum();
                assert!((plain - 1.0).abs() < 1e-12 && (smooth - 1.0).abs() < 1e-12, "{from} {to}");
            }
        }
        let same = antialiased(5, 5).swap_remove(3);
        assert!((same[3] - 1.0).abs() < 1e-12, "{same:?}");
    }

    /// Of three positions to two: sources 0.25 and 1.75. With antialiasing the kernel is 1.5 times as
    /// wide around 0.75.
    #[test]
    fn weights_by_hand() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        let expected =
            [(0, -0.105_468_75), (0, 0.878_906_25), (1, 0.261_718_75), (2, -0.035_156_25)];
        for ((place, weight), (at, expected)) in taps(3, 2.0, 0).into_iter().zip(expected) {
            assert_eq!(place, at);
            close(weight, expected);
        }
        assert_eq!(taps(3, 2.0, 1).map(|tap| tap.0), [0, 1, 2, 2]);
        let kernel = [-0.25, 0.75, 1.75].map(|x| cubic(x / 1.5, ANTIALIASED));
        let sum: f64 = kernel.iter().sum();
        for (found, expected) in antialiased(3, 2).swap_remove(0).into_iter().zip(kernel) {
            close(found, expected / sum);
        }
    }
}
