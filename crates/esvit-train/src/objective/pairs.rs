//! Pairs of views: which view learns from which.

use esvit_nn::Tensor;

use super::GLOBAL_VIEWS;

/// The global views other than `view`, which it learns from.
pub fn others(view: usize) -> impl Iterator<Item = usize> {
    (0..GLOBAL_VIEWS).filter(move |&other| other != view)
}

/// The share of a pair of views in a loss that has a weight of 1 for each of the two pairs of two views:
/// with more views it is the mean over all pairs, times 2.
pub fn share(views: usize) -> f64 {
    GLOBAL_VIEWS as f64 / (GLOBAL_VIEWS * (views - 1)) as f64
}

/// The rows `[batch, D]` of a view among view-major ones, `[views * batch, D]`.
pub fn rows_of_view(rows: &Tensor, view: usize, batch: usize) -> Tensor {
    rows.clone().narrow(0, view * batch, batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two global views and two local ones have six pairs, of 2 in all.
    #[test]
    fn shares_of_all_pairs_add_up_to_two() {
        for views in 2..6 {
            let pairs = (0..views).flat_map(others).count();
            assert_eq!(pairs, 2 * (views - 1));
            assert!((pairs as f64 * share(views) - 2.0).abs() < 1e-12, "{views}");
        }
        assert_eq!(others(1).collect::<Vec<_>>(), [0]);
        assert_eq!(others(3).collect::<Vec<_>>(), [0, 1]);
    }
}
