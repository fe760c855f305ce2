//! Exact k-nearest-neighbor search by dot product, in blocks whose similarities fit the caches.

use rayon::prelude::*;

use crate::gemm::{Lhs, PackedRhs};
use crate::rows::for_each_panel;
use crate::simd::dispatch;

/// Queries of a task: with 1,024 values each they fill L2.
const QUERY_BLOCK: usize = 192;
/// Gallery rows that are packed at a time.
const GALLERY_BLOCK: usize = 8192;

/// A gallery row and its similarity to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbor {
    /// Index of the row, counted over all calls of [`Search::add`].
    pub row: usize,
    /// Dot product with the query.
    pub similarity: f32,
}

/// A search over a gallery that is added piece by piece.
///
/// Ties go to the earlier row. Rows whose similarity is NaN are never found.
#[derive(Debug)]
pub struct Search<'a> {
    queries: &'a [f32],
    width: usize,
    top_k: Vec<TopK>,
    seen: usize,
}

impl<'a> Search<'a> {
    /// A search for the `k` most similar rows of every query of `queries [.., width]`.
    ///
    /// # Panics
    /// When `queries` are not whole rows.
    pub fn new(queries: &'a [f32], width: usize, k: usize) -> Self {
        assert!(width > 0 && queries.len().is_multiple_of(width), "whole rows");
        let top_k = (0..queries.len() / width).map(|_| TopK::new(k)).collect();
        Self { queries, width, top_k, seen: 0 }
    }

    /// Adds the next rows of the gallery, `[.., width]`.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn add(&mut self, gallery: &[f32]) {
        let width = self.width;
        assert!(gallery.len().is_multiple_of(width), "whole rows");
        for gallery in gallery.chunks(GALLERY_BLOCK * width) {
            let rhs = PackedRhs::<f32>::from_transposed(gallery, width, None);
            let seen = self.seen;
            let tasks = self
                .queries
                .par_chunks(QUERY_BLOCK * width)
                .zip(self.top_k.par_chunks_mut(QUERY_BLOCK));
            tasks.for_each(|(queries, top_k)| search_block(queries, width, &rhs, top_k, seen));
            self.seen += gallery.len() / width;
        }
    }

    /// The neighbors of every query, most similar first.
    pub fn finish(self) -> Vec<Vec<Neighbor>> {
        self.top_k.into_par_iter().map(TopK::sorted).collect()
    }
}

/// Searches packed gallery rows, the first of which has index `seen`, for some queries.
fn search_block(
    queries: &[f32],
    width: usize,
    rhs: &PackedRhs<f32>,
    top_k: &mut [TopK],
    seen: usize,
) {
    let queries = Lhs::from_rows(queries, width);
    for_each_panel(queries, top_k.len(), rhs, |first, columns, similarities, padded| {
        for (similarities, top_k) in similarities.chunks_exact(padded).zip(top_k.iter_mut()) {
            top_k.push(&similarities[..columns], seen + first);
        }
    });
}

/// Top-k of one query: up to `2 k` candidates, pruned to the best `k` whenever full, which is
/// amortized O(1) per candidate.
#[derive(Debug)]
struct TopK {
    k: usize,
    found: Vec<Neighbor>,
    /// Similarity that a candidate must exceed.
    threshold: f32,
}

impl TopK {
    fn new(k: usize) -> Self {
        let threshold = if k == 0 { f32::INFINITY } else { f32::NEG_INFINITY };
        Self { k, found: Vec::new(), threshold }
    }

    fn push(&mut self, similarities: &[f32], first: usize) {
        if !any_above(similarities, self.threshold) {
            return;
        }
        for (column, &similarity) in similarities.iter().enumerate() {
            if similarity > self.threshold {
                self.found.push(Neighbor { row: first + column, similarity });
                if self.found.len() == 2 * self.k {
                    self.prune();
                }
            }
        }
    }

    /// Keeps the best `k` and raises the threshold to the last of them.
    fn prune(&mut self) {
        let (_, last, _) = self.found.select_nth_unstable_by(self.k - 1, descending);
        self.threshold = last.similarity;
        self.found.truncate(self.k);
    }

    fn sorted(mut self) -> Vec<Neighbor> {
        self.found.sort_unstable_by(descending);
        self.found.truncate(self.k);
        self.found
    }
}

/// Most similar first, ties by row.
fn descending(a: &Neighbor, b: &Neighbor) -> std::cmp::Ordering {
    b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row))
}

dispatch! {
    fn any_above(values: &[f32], threshold: f32) -> bool {
        // Without early exit the loop vectorizes.
        let mut any = false;
        for &value in values {
            any |= value > threshold;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;
    use crate::testing::{dot, wide};

    /// Similarities of all rows, and their rows, most similar first.
    fn all_sorted(query: &[f32], rows: &[f32]) -> Vec<(usize, f64)> {
        let similarity = |row: &[f32]| dot(&wide(row), &wide(query));
        let rows = rows.chunks_exact(query.len());
        let mut all: Vec<(usize, f64)> = rows.map(similarity).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all
    }

    /// Against sorting all similarities, whatever the pieces in which the rows come.
    #[test]
    fn against_the_definition() {
        let mut rng = Rng::new(5, [0; 3]);
        for (width, queries, rows, k) in [
            (1, 1, 1, 1),
            (3, 7, 65, 4),
            (16, 193, 130, 40),
            (33, 5, GALLERY_BLOCK + 17, 9),
            (8, 3, 20, 50),
        ] {
            let mut values =
                |n: usize| -> Vec<f32> { (0..n * width).map(|_| rng.normal() as f32).collect() };
            let (queries, rows) = (values(queries), values(rows));
            under_each(|_| {
                let mut search = Search::new(&queries, width, k);
                let (head, tail) = rows.split_at(rows.len() / width / 3 * width);
                let (middle, tail) = tail.split_at(tail.len() / width / 2 * width);
                [head, middle, tail].into_iter().for_each(|piece| search.add(piece));
                for (query, found) in queries.chunks_exact(width).zip(search.finish()) {
                    let expected = all_sorted(query, &rows);
                    assert_eq!(found.len(), k.min(expected.len()));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((f64::from(found.similarity) - expected.1).abs() < 1e-4);
                        // Rows that are as similar but for rounding may change places.
                        let own = all_sorted(query, &rows[found.row * width..][..width])[0].1;
                        assert!((own - expected.1).abs() < 1e-4, "{found:?} {expected:?}");
                    }
                    let mut rows: Vec<usize> = found.iter().map(|found| found.row).collect();
                    rows.sort_unstable();
                    rows.dedup();
                    assert_eq!(rows.len(), found.len(), "a row is found once");
                }
            });
        }
    }

    #[test]
    fn ties_go_to_the_first_and_nan_is_never_found() {
        let rows = [1.0, f32::NAN, 2.0, 1.0, 2.0, 2.0, f32::INFINITY];
        let mut search = Search::new(&[1.0], 1, 3);
        search.add(&rows);
        let rows: Vec<usize> = search.finish()[0].iter().map(|found| found.row).collect();
        assert_eq!(rows, [6, 2, 4]);
    }

    #[test]
    fn nothing_asked_for() {
        let mut search = Search::new(&[1.0, 2.0], 2, 0);
        search.add(&[1.0, 1.0]);
        assert_eq!(search.finish(), [vec![]]);
    }
}
