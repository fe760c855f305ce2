//! The rows of a large set that are most similar to each of some queries, by dot product, without
//! holding more similarities at a time than fit the caches.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{Dims, Gemm, Lhs, NR, Output, PackedRhs};
use crate::simd::dispatch;

/// Queries that one task works on: with 1,024 values each they fill the second-level cache.
const QUERIES: usize = 192;
/// Rows that are laid out for products at a time.
const ROWS: usize = 8192;

/// A row that was found, and its similarity to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Number of the row, in the order of [`Search::add`].
    pub row: usize,
    /// Dot product with the query.
    pub similarity: f32,
}

/// A search that is shown the set piece by piece.
///
/// Of equally similar rows the earlier ones are kept. A similarity that is no number counts as
/// not found.
#[derive(Debug)]
pub struct Search<'a> {
    queries: &'a [f32],
    width: usize,
    best: Vec<Best>,
    seen: usize,
}

impl<'a> Search<'a> {
    /// A search for the `k` most similar rows of every query of `queries [.., width]`.
    ///
    /// # Panics
    /// When `queries` are not whole rows.
    pub fn new(queries: &'a [f32], width: usize, k: usize) -> Self {
        assert!(width > 0 && queries.len().is_multiple_of(width), "whole rows");
        let best = (0..queries.len() / width).map(|_| Best::new(k)).collect();
        Self { queries, width, best, seen: 0 }
    }

    /// Shows the next rows of the set, `[.., width]`.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn add(&mut self, rows: &[f32]) {
        let width = self.width;
        assert!(rows.len().is_multiple_of(width), "whole rows");
        for rows in rows.chunks(ROWS * width) {
            let rhs = PackedRhs::<f32>::from_transposed(rows, width, None);
            let seen = self.seen;
            let tasks =
                self.queries.par_chunks(QUERIES * width).zip(self.best.par_chunks_mut(QUERIES));
            tasks.for_each(|(queries, best)| look(queries, width, &rhs, best, seen));
            self.seen += rows.len() / width;
        }
    }

    /// What was found for every query, most similar first.
    pub fn finish(self) -> Vec<Vec<Neighbour>> {
        self.best.into_par_iter().map(Best::sorted).collect()
    }
}

/// Compares some queries with laid out rows, of which the first has number `seen`.
fn look(queries: &[f32], width: usize, rhs: &PackedRhs<f32>, best: &mut [Best], seen: usize) {
    let mut similarities = Buffer::<f32>::uninit(best.len() * NR);
    for (first, panel) in rhs.panels() {
        let row = panel.width;
        let dims = Dims { m: best.len(), k_steps: rhs.k_steps() };
        let mut out = Output { values: &mut similarities, row_stride: row };
        f32::gemm(Lhs::from_rows(queries, width), panel, dims, &mut out, false);
        let columns = row.min(rhs.n() - first);
        for (similarities, best) in similarities.chunks_exact(row).zip(best.iter_mut()) {
            best.offer(&similarities[..columns], seen + first);
        }
    }
}

/// The best rows of one query: a list of up to twice as many as are asked for, cut back to the best
/// half whenever it is full.
#[derive(Debug)]
struct Best {
    k: usize,
    found: Vec<Neighbour>,
    /// What a row must exceed to be among the best so far.
    threshold: f32,
}

impl Best {
    fn new(k: usize) -> Self {
        let threshold = if k == 0 { f32::INFINITY } else { f32::NEG_INFINITY };
        Self { k, found: Vec::new(), threshold }
    }

    fn offer(&mut self, similarities: &[f32], first: usize) {
        if !any_above(similarities, self.threshold) {
            return;
        }
        for (column, &similarity) in similarities.iter().enumerate() {
            if similarity > self.threshold {
                self.found.push(Neighbour { row: first + column, similarity });
                if self.found.len() == 2 * self.k {
                    self.cut();
                }
            }
        }
    }

    /// Keeps the best `k`; later rows must be more similar than the last of them.
    fn cut(&mut self) {
        let (_, last, _) = self.found.select_nth_unstable_by(self.k - 1, order);
        self.threshold = last.similarity;
        self.found.truncate(self.k);
    }

    fn sorted(mut self) -> Vec<Neighbour> {
        self.found.sort_unstable_by(order);
        self.found.truncate(self.k);
        self.found
    }
}

/// Most similar first, of equal ones the earlier row.
fn order(a: &Neighbour, b: &Neighbour) -> std::cmp::Ordering {
    b.similarity.total_cmp(&a.similarity).then(a.row.cmp(&b.row))
}

dispatch! {
    fn any_above(values: &[f32], threshold: f32) -> bool {
        // Without a way out of the loop it is one comparison of 16 values a step.
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

    fn all_sorted(query: &[f32], rows: &[f32]) -> Vec<(usize, f64)> {
        let dot = |row: &[f32]| -> f64 {
            row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut all: Vec<(usize, f64)> =
            rows.chunks_exact(query.len()).map(dot).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all
    }

    /// Against sorting all similarities, whatever the pieces in which the rows come.
    #[test]
    fn against_the_definition() {
        let mut rng = Rng::new(5, [0; 3]);
        for (width, queries, rows, k) in
            [(1, 1, 1, 1), (3, 7, 65, 4), (16, 193, 130, 40), (33, 5, ROWS + 17, 9), (8, 3, 20, 50)]
        {
            let mut values =
                |n: usize| -> Vec<f32> { (0..n * width).map(|_| rng.normal() as f32).collect() };
            let (queries, rows) = (values(queries), values(rows));
            under_each(|_| {
                let mut search = Search::new(&queries, width, k);
                let (head, tail) = rows.split_at(rows.len() / width / 3 * width);
                search.add(head);
                search.add(tail);
                for (query, found) in queries.chunks_exact(width).zip(search.finish()) {
                    let expected = all_sorted(query, &rows);
                    assert_eq!(found.len(), k.min(expected.len()));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((f64::from(found.similarity) - expected.1).abs() < 1e-4);
                    }
                }
            });
        }
    }

    #[test]
    fn of_equal_rows_the_first_and_no_row_that_is_no_number() {
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
