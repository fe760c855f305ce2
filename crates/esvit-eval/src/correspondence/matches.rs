//! Matches cells by their features.

use esvit_kernels::best_match::best_matches;
use esvit_model::features::normalize;

use super::Grid;
use super::score::Scores;

/// Matches from one view to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Matches {
    /// For each cell of the first view, the most similar cell of the second; the first of equals.
    pub best_match: Vec<usize>,
    /// Cosine similarity of each cell to its match.
    pub similarity: Vec<f32>,
    /// Cells of the first view in descending order of similarity.
    pub order: Vec<usize>,
}

/// Matches the cells of two views, `[cells, width]` each, by cosine similarity.
///
/// # Panics
/// If the second view has no cells.
pub fn match_cells(first: &[f32], second: &[f32], width: usize) -> Matches {
    let [cells, others] = [first, second].map(|view| view.len() / width);
    // Of unit length, so that the search does not depend on the scale of features.
    let [firsts, seconds] = [first, second].map(|view| {
        let mut rows = view.to_vec();
        normalize(&mut rows, width);
        rows
    });
    let found = best_matches(&firsts, &seconds, width, &[(0..cells, 0..others)]);
    let best_match: Vec<usize> = found.into_iter().map(|cell| cell as usize).collect();
    let pairs = first.chunks_exact(width).zip(&best_match);
    let similarity: Vec<f32> =
        pairs.map(|(cell, &other)| cosine(cell, &second[other * width..][..width])).collect();
    let mut order: Vec<usize> = (0..cells).collect();
    order.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]));
    Matches { best_match, similarity, order }
}

/// Cosine similarity; 0 if a vector is zero.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    if norms > 0.0 { (dot(a, b) / norms) as f32 } else { 0.0 }
}

impl Matches {
    /// Scores the `pairs` most similar matches among the cells whose true position in the second
    /// view is known. `None` if there is no such cell.
    ///
    /// `truth` holds the true position, in pixels of the second view, of each cell of the first
    /// view; `grid` is that of the second view.
    pub fn scores(&self, truth: &[Option<[f64; 2]>], grid: &Grid, pairs: usize) -> Option<Scores> {
        let mut known = self.order.iter().filter_map(|&cell| Some((cell, truth[cell]?)));
        let measured = known.by_ref().take(pairs);
        let scores =
            Scores::new(measured.map(|(cell, truth)| (self.best_match[cell], truth)), grid)?;
        let next_similarity = known.next().map(|(cell, _)| f64::from(self.similarity[cell]));
        Some(Scores { next_similarity, ..scores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_kernels::rng::Rng;

    #[test]
    fn the_scale_of_features_changes_no_match() {
        let view = |stream, scale: f32| -> Vec<f32> {
            let mut rng = Rng::new(stream, [0; 3]);
            (0..12 * 5).map(|_| scale * rng.normal() as f32).collect()
        };
        let matched = |first, second| match_cells(&view(1, first), &view(2, second), 5);
        let expected = matched(1.0, 1.0);
        for scale in [1e20, 1e-25] {
            for found in [matched(scale, scale), matched(1.0, scale), matched(scale, 1.0)] {
                assert_eq!(
                    (&found.best_match, &found.order),
                    (&expected.best_match, &expected.order)
                );
                for (found, expected) in found.similarity.iter().zip(&expected.similarity) {
                    assert!((found - expected).abs() < 1e-5, "{scale}");
                }
            }
        }
        let none = match_cells(&[0.0; 5], &view(2, 1.0), 5);
        assert_eq!((none.best_match[0], none.similarity[0]), (0, 0.0));
    }
}
