//! Accuracy, PCK and distance of matched cells.

use serde::Serialize;

use super::Grid;
use super::interval::{Estimate, estimate};

/// PCK thresholds, as shares of the view's longer side.
pub const ALPHAS: [f64; 3] = [0.05, 0.1, 0.2];

/// Number of values of [`Scores`] that every image has.
const VALUES: usize = 2 + ALPHAS.len();

/// Scores of the measured pairs of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Share of the pairs whose matched cell contains the true position.
    pub accuracy: f64,
    /// Share of the pairs whose matched cell's center is within each of [`ALPHAS`] of the true
    /// position.
    pub pck: [f64; ALPHAS.len()],
    /// Mean distance from the matched cell's center to the true position, in pixels of the view.
    pub distance: f64,
    /// Similarity of the first pair that was not measured.
    pub next_similarity: Option<f64>,
}

/// PCK (percentage of correct keypoints), as a share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pck {
    /// Threshold, as a share of the view's longer side.
    pub alpha: f64,
    /// Share of the pairs within the threshold.
    #[serde(flatten)]
    pub share: Estimate,
}

/// Means over images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// See [`Scores::accuracy`].
    pub accuracy: Estimate,
    /// See [`Scores::distance`].
    pub distance: Estimate,
    /// See [`Scores::pck`].
    pub pck: Vec<Pck>,
    /// See [`Scores::next_similarity`]; only if every image has one.
    pub next_similarity: Option<Estimate>,
}

impl Scores {
    /// Scores pairs of a matched cell and a true position; `None` without pairs.
    pub fn new(pairs: impl IntoIterator<Item = (usize, [f64; 2])>, grid: &Grid) -> Option<Self> {
        let side = grid.size().into_iter().fold(0.0, f64::max);
        let (mut count, mut exact, mut within, mut total) = (0, 0, [0; ALPHAS.len()], 0.0);
        for (cell, truth @ [x, y]) in pairs {
            let [found_x, found_y] = grid.center(cell);
            let distance = ((found_x - x).powi(2) + (found_y - y).powi(2)).sqrt();
            count += 1;
            exact += usize::from(grid.cell_at(truth) == Some(cell));
            for (within, alpha) in within.iter_mut().zip(ALPHAS) {
                *within += usize::from(distance <= alpha * side);
            }
            total += distance;
        }
        let share = |of: usize| of as f64 / count as f64;
        (count > 0).then(|| Self {
            accuracy: share(exact),
            pck: within.map(share),
            distance: total / count as f64,
            next_similarity: None,
        })
    }

    /// Expected scores of random cells.
    pub fn random_chance(truth: &[[f64; 2]], grid: &Grid) -> Option<Self> {
        let pairs = truth.iter().flat_map(|&truth| (0..grid.cells()).map(move |at| (at, truth)));
        Self::new(pairs, grid)
    }

    /// Scores of always choosing the right cell: the error is that of quantizing positions to
    /// cells.
    pub fn upper_bound(truth: &[[f64; 2]], grid: &Grid) -> Option<Self> {
        let right = |&truth: &[f64; 2]| Some((grid.cell_at(truth)?, truth));
        Self::new(truth.iter().filter_map(right), grid)
    }

    fn values(&self) -> [f64; VALUES] {
        let [a, b, c] = self.pck;
        [self.accuracy, self.distance, a, b, c]
    }
}

impl Summary {
    /// Means over images, with confidence intervals.
    pub fn from_scores(scores: &[Scores]) -> Self {
        let values: Vec<[f64; VALUES]> = scores.iter().map(Scores::values).collect();
        let [accuracy, distance, pck @ ..] = estimate(&values);
        let next: Option<Vec<[f64; 1]>> =
            scores.iter().map(|scores| scores.next_similarity.map(|value| [value])).collect();
        Self {
            accuracy,
            distance,
            pck: ALPHAS.into_iter().zip(pck).map(|(alpha, share)| Pck { alpha, share }).collect(),
            next_similarity: next.map(|values| estimate(&values)[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { rows: 2, columns: 2, cell: 50 };

    #[test]
    fn distances_shares_and_the_right_cell() {
        // The first is right and 5 pixels off, the second wrong and 50 off.
        let scores = Scores::new([(0, [28.0, 29.0]), (1, [25.0, 25.0])], &GRID).unwrap();
        assert_eq!((scores.accuracy, scores.distance), (0.5, 27.5));
        assert_eq!(scores.pck, [0.5, 0.5, 0.5]);
        let near = Scores::new([(0, [25.0, 43.0])], &GRID).unwrap();
        assert_eq!(near.pck, [0.0, 0.0, 1.0]);
        assert_eq!(Scores::new([], &GRID), None);
    }

    #[test]
    fn chance_is_the_mean_over_all_cells_and_the_best_is_the_right_one() {
        let truth = [[25.0, 25.0], [80.0, 75.0]];
        let chance = Scores::random_chance(&truth, &GRID).unwrap();
        assert_eq!(chance.accuracy, 0.25);
        let first = (0.0 + 50.0 + 50.0 + 50f64.hypot(50.0)) / 4.0;
        let second = (5.0 + 55.0 + 5f64.hypot(50.0) + 55f64.hypot(50.0)) / 4.0;
        assert!((chance.distance - (first + second) / 2.0).abs() < 1e-12);
        let best = Scores::upper_bound(&truth, &GRID).unwrap();
        assert_eq!((best.accuracy, best.distance, best.pck[0]), (1.0, 2.5, 1.0));
    }

    #[test]
    fn thresholds_are_shares_of_the_longer_side() {
        for (rows, columns, truth) in [(1, 10, [23.0, 5.0]), (10, 1, [5.0, 23.0])] {
            let grid = Grid { rows, columns, cell: 10 };
            // 8 of 100 pixels beside the center of the second cell.
            let scores = Scores::new([(1, truth)], &grid).unwrap();
            assert_eq!((scores.distance, scores.pck), (8.0, [0.0, 1.0, 1.0]));
        }
    }

    #[test]
    fn summaries_are_means_over_images() {
        let scores = |accuracy, next_similarity| Scores {
            accuracy,
            pck: [0.0, accuracy, 1.0],
            distance: 10.0 * accuracy,
            next_similarity,
        };
        let summary = Summary::from_scores(&[scores(0.0, Some(0.5)), scores(1.0, Some(0.7))]);
        let means = [summary.accuracy, summary.distance, summary.pck[1].share];
        assert_eq!(means.map(|estimate| estimate.mean), [0.5, 5.0, 0.5]);
        assert_eq!(summary.pck.iter().map(|pck| pck.alpha).collect::<Vec<_>>(), ALPHAS);
        assert!((summary.next_similarity.unwrap().mean - 0.6).abs() < 1e-12);
        // One image without such a pair, and there is no mean.
        let summary = Summary::from_scores(&[scores(0.0, Some(0.5)), scores(1.0, None)]);
        assert_eq!(summary.next_similarity, None);
    }
}
