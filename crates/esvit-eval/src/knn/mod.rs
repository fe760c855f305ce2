//! k-nearest-neighbor classification on frozen features, by DINO's protocol.
//!
//! Features are L2-normalized. Each of the k most similar training features of a query votes for
//! its class with weight `exp(similarity / temperature)`; classes are ranked by the sum of their
//! votes.

mod measure;
mod stored;
mod vote;

use esvit_kernels::nearest::Search;
use esvit_kernels::pool;
use esvit_model::features::{LabeledFeatures, NotFinite, first_not_finite};
use serde::{Deserialize, Serialize};

pub use esvit_kernels::nearest::Neighbor;
pub use measure::{KnnResults, accuracy, pixel_accuracy};
pub use stored::{STORED_FILES, StoredError, StoredResults, stored_accuracy, stored_rows};
pub use vote::accuracies;

/// Temperature of the protocol.
pub const TEMPERATURE: f64 = 0.07;
/// Numbers of neighbors of the protocol.
pub const NEIGHBORS: [usize; 4] = [10, 20, 100, 200];
/// Largest number of neighbors, which bounds the memory of a search.
pub const MAX_NEIGHBORS: usize = 1_000_000;

/// Accuracy for one number of neighbors, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Number of neighbors requested.
    pub k: usize,
    /// Number of neighbors that voted: `k`, or all training rows if there are fewer.
    #[serde(default)]
    pub neighbors: usize,
    /// Queries whose class is ranked first.
    pub top1: f64,
    /// Queries whose class is among the first five.
    pub top5: f64,
}

/// Accuracy cannot be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KnnError {
    /// One of the two sets, `training` or `query`, has no rows.
    #[error("the {0} set has no images")]
    Empty(&'static str),
    /// The two sets have different feature dimensions.
    #[error("training features have {train} values and query features {queries}")]
    Width {
        /// Dimension of the training features.
        train: usize,
        /// Dimension of the query features.
        queries: usize,
    },
    /// A number of neighbors is out of range.
    #[error("the number of neighbors is {0}, it must be 1 to {MAX_NEIGHBORS}")]
    Neighbors(usize),
    /// The temperature is out of range.
    #[error("the temperature is {0}, it must be finite and above 0")]
    Temperature(f64),
    /// A network makes features that are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// Features are not finite.
    #[error("row {row} of the {set} features, counted from 0, holds {value}")]
    Values {
        /// `training` or `query`.
        set: &'static str,
        /// The first such row.
        row: usize,
        /// The value.
        value: f32,
    },
}

impl KnnError {
    /// Checks the settings of a vote.
    pub(crate) fn check_settings(ks: &[usize], temperature: f64) -> Result<(), Self> {
        if let Some(&k) = ks.iter().find(|k| !(1..=MAX_NEIGHBORS).contains(*k)) {
            return Err(Self::Neighbors(k));
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Self::Temperature(temperature));
        }
        Ok(())
    }

    /// Checks that both sets, of `(rows, width)`, have rows of one width.
    pub(crate) fn check(train: (usize, usize), queries: (usize, usize)) -> Result<(), Self> {
        for (set, (rows, _)) in [("training", train), ("query", queries)] {
            if rows == 0 {
                return Err(Self::Empty(set));
            }
        }
        if train.1 != queries.1 {
            return Err(Self::Width { train: train.1, queries: queries.1 });
        }
        Ok(())
    }
}

/// Classifies `queries` by their neighbors in `train` (both L2-normalized) for each k in `ks`. Ties
/// are broken by row, for equal similarities, and by class index, for equal votes.
///
/// # Errors
/// [`KnnError`] if a set is empty, the dimensions differ, a value is not finite, or a setting is out
/// of range.
pub fn classify(
    train: &LabeledFeatures,
    queries: &LabeledFeatures,
    ks: &[usize],
    temperature: f64,
) -> Result<Vec<Accuracy>, KnnError> {
    let size = |set: &LabeledFeatures| (set.labels.len(), set.width);
    KnnError::check_settings(ks, temperature)?;
    KnnError::check(size(train), size(queries))?;
    for (set, rows) in [("training", train), ("query", queries)] {
        if let Some((row, value)) = first_not_finite(&rows.values, rows.width) {
            return Err(KnnError::Values { set, row, value });
        }
    }
    let neighbors = nearest(train, queries, ks.iter().copied().max().unwrap_or(0));
    Ok(accuracies(&neighbors, &train.labels, &queries.labels, ks, temperature))
}

/// The `k` most similar training rows of each query, in descending order.
pub fn nearest(train: &LabeledFeatures, queries: &LabeledFeatures, k: usize) -> Vec<Vec<Neighbor>> {
    let k = k.min(train.labels.len());
    pool::run(|| {
        let mut search = Search::new(&queries.values, train.width, k);
        search.add(&train.values);
        search.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_kernels::rng::Rng;

    fn features(rows: usize, width: usize, classes: u32, stream: u64) -> LabeledFeatures {
        let mut rng = Rng::new(stream, [0; 3]);
        let values = (0..rows * width).map(|_| rng.normal() as f32).collect();
        let labels = (0..rows as u32).map(|row| row % classes).collect();
        let mut features = LabeledFeatures { values, width, labels };
        features.normalize();
        features
    }

    /// Against sorting all similarities of a query.
    #[test]
    fn neighbors_are_those_of_a_full_sort() {
        let train = features(8229, 5, 3, 1);
        let queries = features(17, 5, 3, 2);
        let found = nearest(&train, &queries, 23);
        for (query, found) in queries.values.chunks_exact(5).zip(&found) {
            let mut all: Vec<f32> = train
                .values
                .chunks_exact(5)
                .map(|row| row.iter().zip(query).map(|(a, b)| a * b).sum())
                .collect();
            all.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(found.len(), 23);
            for (neighbor, expected) in found.iter().zip(all) {
                assert!((neighbor.similarity - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_set_finds_itself() {
        let train = features(40, 8, 40, 3);
        let accuracy = classify(&train, &train, &[1, 500], TEMPERATURE).unwrap();
        assert_eq!((accuracy[0].top1, accuracy[1].k), (100.0, 500));
    }

    #[test]
    fn one_image_one_class_and_nothing() {
        let one = features(1, 4, 1, 4);
        let accuracy = classify(&one, &one, &NEIGHBORS, TEMPERATURE).unwrap();
        assert!(accuracy.iter().all(|a| a.top1 == 100.0 && a.top5 == 100.0));
        let none = LabeledFeatures { width: 4, ..Default::default() };
        let error = classify(&none, &one, &[1], TEMPERATURE).unwrap_err();
        assert_eq!(error, KnnError::Empty("training"));
        let wide = features(1, 5, 1, 4);
        assert!(matches!(classify(&wide, &one, &[1], 0.1), Err(KnnError::Width { .. })));
    }

    #[test]
    fn what_gives_no_votes_is_refused() {
        let set = features(6, 4, 3, 5);
        for temperature in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, -1.0] {
            let error = classify(&set, &set, &[1], temperature).unwrap_err();
            assert!(error.to_string().contains(&format!("is {temperature},")), "{error}");
        }
        for k in [0, MAX_NEIGHBORS + 1, usize::MAX] {
            let error = classify(&set, &set, &[1, k], TEMPERATURE).unwrap_err();
            assert_eq!(error, KnnError::Neighbors(k));
            assert!(error.to_string().ends_with(&format!("is {k}, it must be 1 to 1000000")));
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut broken = set.clone();
            (broken.values[9], broken.values[20]) = (value, value);
            let of = |train, queries| classify(train, queries, &[1], TEMPERATURE).unwrap_err();
            let error = of(&broken, &set).to_string();
            assert!(error.starts_with("row 2 of the training features"), "{error}");
            let error = of(&set, &broken).to_string();
            assert!(error.starts_with("row 2 of the query") && error.ends_with(&value.to_string()));
        }
    }

    /// Accuracy depends on angles alone.
    #[test]
    fn the_scale_of_features_changes_nothing() {
        let scaled = |scale: f32, stream| {
            let mut set = features(60, 6, 4, stream);
            set.values.iter_mut().for_each(|value| *value *= scale);
            set.normalize();
            set
        };
        let of = |train, queries| {
            classify(&scaled(train, 6), &scaled(queries, 7), &[1, 5, 20], TEMPERATURE).unwrap()
        };
        let expected = of(1.0, 1.0);
        for scale in [1e20, 1e30, 1e-25, 1e-30] {
            assert_eq!(of(scale, scale), expected, "{scale}");
            assert_eq!(of(scale, 1.0), expected, "{scale}");
        }
    }

    #[test]
    fn rows_get_unit_length_and_zeros_stay() {
        let labels = vec![0; 3];
        let values = vec![3.0, 4.0, 0.0, 0.0, 0.0, -2.0];
        let mut features = LabeledFeatures { values, width: 2, labels };
        features.normalize();
        assert_eq!(features.values, [0.6, 0.8, 0.0, 0.0, 0.0, -1.0]);
    }
}
