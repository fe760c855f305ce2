//! Best match by cosine similarity: EsViT's region task matches every token with one of another
//! crop.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{LANES, Lhs, PackedRhs};

/// For every group, matches each row of `queries [.., C]` in its first range with the row of `keys
/// [.., C]` in its second range of largest cosine similarity; ties go to the first. Returns row
/// indices of `keys`, group after group. A key of zeros has cosine 0.
///
/// # Panics
/// When a range does not lie within its matrix, or a range of keys is empty.
pub fn best_matches(
    queries: &[f32],
    keys: &[f32],
    width: usize,
    groups: &[(Range<usize>, Range<usize>)],
) -> Vec<u32> {
    let matched: Vec<Vec<u32>> = groups
        .par_iter()
        .map(|(of, among)| {
            assert!(!among.is_empty(), "nothing to match with");
            let of = &queries[of.start * width..of.end * width];
            // The norm of a query does not change its argmax, so only keys are normalized.
            let mut unit = Buffer::<f32>::uninit(among.len() * width);
            unit.copy_from_slice(&keys[among.start * width..among.end * width]);
            for row in unit.chunks_exact_mut(width) {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                row.iter_mut().for_each(|value| *value /= norm);
            }
            let rhs = PackedRhs::<f32>::from_transposed(&unit, width, None);
            let rows = of.len() / width;
            let padded = among.len().next_multiple_of(LANES);
            let mut cosines = Buffer::<f32>::uninit(rows * padded);
            rhs.gemm(Lhs::from_rows(of, width), rows, &mut cosines, padded, false);
            let best = cosines.chunks_exact(padded).map(|row| {
                let row = &row[..among.len()];
                let larger = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
                (among.start + (1..row.len()).fold(0, larger)) as u32
            });
            best.collect()
        })
        .collect();
    matched.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;

    #[test]
    fn against_the_definition() {
        let mut rng = Rng::new(3, [0; 3]);
        for (width, queries, keys) in [(1, 3, 2), (7, 9, 17), (48, 30, 49), (33, 5, 100)] {
            let mut values =
                |n: usize| -> Vec<f32> { (0..n * width).map(|_| rng.normal() as f32).collect() };
            let (q, k) = (values(queries), values(keys));
            let cosine = |i: usize, j: usize| -> f64 {
                let (a, b) = (&q[i * width..][..width], &k[j * width..][..width]);
                let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                dot / b.iter().map(|b| f64::from(b * b)).sum::<f64>().sqrt()
            };
            let groups = [(0..queries, 0..keys), (1..queries, keys / 2..keys)];
            under_each(|_| {
                let found = best_matches(&q, &k, width, &groups);
                let rows = groups
                    .iter()
                    .flat_map(|(of, among)| of.clone().map(move |row| (row, among.clone())));
                for ((row, among), found) in rows.zip(found) {
                    let best = among.clone().map(|j| cosine(row, j)).fold(f64::MIN, f64::max);
                    assert!(among.contains(&(found as usize)));
                    assert!((cosine(row, found as usize) - best).abs() < 1e-5);
                }
            });
        }
    }

    #[test]
    fn first_of_equal_ones() {
        let keys = [0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0];
        assert_eq!(best_matches(&[1.0, 1.0], &keys, 2, &[(0..1, 0..4)]), [1]);
        assert_eq!(best_matches(&[0.0, 0.0], &keys, 2, &[(0..1, 1..4)]), [1]);
    }
}
