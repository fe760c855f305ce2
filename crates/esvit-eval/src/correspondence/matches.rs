//! Matches cells by their features.

use esvit_kernels::best_match::best_matches;

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
    let found = best_matches(first, second, width, &[(0..cells, 0..others)]);
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
    (dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()).max(1e-12)) as f32
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
