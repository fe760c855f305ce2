//! t-SNE (van der Maaten and Hinton 2008) with the Barnes-Hut approximation (van der Maaten 2014).

use bhtsne::{Neighbor, tSNE};
use rayon::prelude::*;

use super::MapError;

/// The usual perplexity.
const PERPLEXITY: f64 = 30.0;
/// Barnes-Hut accuracy; the usual value.
const THETA: f64 = 0.5;
/// Number of gradient descent steps.
pub const STEPS: usize = 2000;
/// Early exaggeration, for the first 250 steps; the usual value.
const EXAGGERATION: f64 = 12.0;
/// Minimum learning rate.
const MIN_LEARNING_RATE: f64 = 400.0;
/// Standard deviation of the initial coordinates.
const INIT_STD: f64 = 1e-4;

/// Perplexity for `rows` rows: each needs three times as many neighbors.
pub(super) fn perplexity(rows: usize) -> f64 {
    PERPLEXITY.min((rows - 1) as f64 / 3.0)
}

/// Embeds `values [rows, width]`, starting from `start` (scaled down).
///
/// Deterministic: the initialization is PCA, neighbors are exact instead of from a randomized tree,
/// and the descent runs on one thread, since its sums depend on how threads split them.
pub(super) fn run(
    values: &[f64],
    width: usize,
    start: &[[f64; 2]],
    mut done: impl FnMut() + Send,
) -> Result<Vec<[f64; 2]>, MapError> {
    let rows = start.len();
    let perplexity = perplexity(rows);
    let neighbors = neighbors(values, width, (3.0 * perplexity) as usize);
    let variance = start.iter().map(|place| place[0].powi(2)).sum::<f64>() / rows as f64;
    let scale = INIT_STD / variance.sqrt();
    let start: Vec<f64> = start.as_flattened().iter().map(|value| value * scale).collect();

    // The usual rate, rows / (4 * exaggeration) and at least 50, assumes a factor 4 in the
    // gradient, which the library omits, and unbounded gains, which it bounds: with that rate a map
    // is far from converged after these steps.
    let rate = MIN_LEARNING_RATE.max(rows as f64 / EXAGGERATION);
    let single_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let coords = single_thread.install(|| {
        let nothing = vec![(); rows];
        let mut tsne = tSNE::<f64, (), 2>::new(&nothing);
        tsne.perplexity(perplexity)
            .epochs(STEPS)
            .early_exaggeration(EXAGGERATION)
            .learning_rate(rate)
            .initial_embedding(start)
            .epoch_callback(move |_, _| done())
            .barnes_hut_with_neighbors(THETA, &neighbors)
            .embedding()
    });
    Ok(coords.as_chunks::<2>().0.to_vec())
}

/// The `count` nearest other rows of each row with Euclidean distances, ascending, ties by index.
/// O(rows^2).
fn neighbors(values: &[f64], width: usize, count: usize) -> Vec<Vec<Neighbor<f64>>> {
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    let of_row = |(index, row): (usize, &&[f64])| {
        let distance =
            |other: &[f64]| row.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let others = rows.iter().enumerate().filter(|&(other, _)| other != index);
        let mut found: Vec<Neighbor<f64>> =
            others.map(|(index, other)| Neighbor { index, distance: distance(other) }).collect();
        found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        found.truncate(count);
        found
    };
    rows.par_iter().enumerate().map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_are_others_nearest_first() {
        let found = neighbors(&[0.0, 5.0, 1.0, 1.0], 1, 2);
        let indices: Vec<Vec<usize>> =
            found.iter().map(|row| row.iter().map(|near| near.index).collect()).collect();
        assert_eq!(indices, [[2, 3], [2, 3], [3, 0], [2, 0]]);
        assert_eq!(found[1][0].distance, 4.0);
    }
}
