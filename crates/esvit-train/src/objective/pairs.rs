//! Pairs of views: which view learns from which.

use esvit_nn::Tensor;

use super::{GLOBAL_VIEWS, MicroBatch, Views};

/// The place of the view that keys are made of where each other view is a query.
pub const KEY_VIEW: usize = 1;

/// All views but the key's.
pub fn query_views(batch: &MicroBatch) -> Vec<Tensor> {
    let views = batch.views.iter().enumerate().filter(|(view, _)| *view != KEY_VIEW);
    views.map(|(_, view)| view.clone()).collect()
}

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

/// The rows of every global view, `[batch, D]`, among view-major ones.
pub fn by_view(rows: &Tensor, batch: usize) -> Vec<Tensor> {
    (0..GLOBAL_VIEWS).map(|view| rows_of_view(rows, view, batch)).collect()
}

/// The rows of the first view at hand among those of all that are, view-major, and a global view that it
/// learns from.
pub fn first_pair(rows: &Tensor, views: &Views) -> (Tensor, usize) {
    let other = others(views.at_hand.start).next().expect("there are two global views");
    (rows_of_view(rows, 0, rows.shape()[0] / views.at_hand.len()), other)
}

/// The sum over all pairs of a view at hand and a global view that it learns from: `weight` times the
/// `loss` of the rows of the first, among those of all that are at hand, view-major, and the second.
pub fn sum_over_pairs(
    rows: &Tensor,
    views: &Views,
    weight: f64,
    loss: impl Fn(Tensor, usize) -> Tensor,
) -> Tensor {
    let batch = rows.shape()[0] / views.at_hand.len();
    let pairs = views.at_hand.clone().enumerate().flat_map(|(place, view)| {
        let own = rows_of_view(rows, place, batch);
        others(view).map(move |other| (own.clone(), other))
    });
    let losses = pairs.map(|(own, other)| loss(own, other) * weight);
    losses.reduce(|sum, loss| sum + loss).expect("a view has a pair")
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
