//! k-NN and correspondence against values of the official code, on features that a hash makes.

#![allow(clippy::unwrap_used)]

use esvit_eval::correspondence::{Grid, MEASURED_PAIRS, View, match_cells};
use esvit_eval::knn::{TEMPERATURE, classify, nearest};
use esvit_model::features::LabeledFeatures;
use esvit_testing::{assert_close, hash, hashed};

const CLASSES: u32 = 7;

fn labeled(stream: u32, rows: u32, factor: u32) -> LabeledFeatures {
    let labels = (0..rows).map(|row| factor * row % CLASSES).collect();
    let mut features =
        LabeledFeatures { values: hashed(stream, 6 * rows as usize), width: 6, labels };
    features.normalize();
    features
}

#[test]
fn knn() {
    let (train, queries) = (labeled(21, 40, 5), labeled(22, 12, 3));
    let found = classify(&train, &queries, &[10, 20, 3], TEMPERATURE).unwrap();
    for accuracy in &found {
        assert!((accuracy.top1 - 100.0 / 12.0).abs() < 1e-9, "{accuracy:?}");
    }
    for accuracy in &found[..2] {
        assert!((accuracy.top5 - 1000.0 / 12.0).abs() < 1e-9, "{accuracy:?}");
    }
}

/// The classes that the first queries' ten neighbors vote for most.
#[test]
fn knn_ranks_classes() {
    let (train, queries) = (labeled(21, 40, 5), labeled(22, 12, 3));
    let neighbors = nearest(&train, &queries, 10);
    for (query, expected) in [[5, 6, 2], [5, 3, 1], [5, 2, 6]].into_iter().enumerate() {
        let mut votes: Vec<(f64, u32)> = (0..CLASSES).map(|class| (0.0, class)).collect();
        for neighbor in &neighbors[query] {
            let class = train.labels[neighbor.row] as usize;
            votes[class].0 += (f64::from(neighbor.similarity) / 0.07).exp();
        }
        votes.sort_by(|a, b| b.0.total_cmp(&a.0));
        let first: Vec<u32> = votes[..3].iter().map(|&(_, class)| class).collect();
        assert_eq!(first, expected, "query {query}");

        let one = |label| LabeledFeatures {
            values: queries.values[query * 6..][..6].to_vec(),
            width: 6,
            labels: vec![label],
        };
        for class in 0..CLASSES {
            let accuracy = classify(&train, &one(class), &[10], TEMPERATURE).unwrap();
            let top1 = if class == expected[0] { 100.0 } else { 0.0 };
            assert_eq!(accuracy[0].top1, top1, "query {query}, class {class}");
        }
    }
}

const GRID: usize = 7;
const STRIDE: usize = 32;
const WIDTH: usize = 8;

/// Matches the views and compares: accuracy, distance, the 11th similarity, and the best pair with
/// its similarity.
fn check(second: &[f32], [accuracy, distance]: [f64; 2], eleventh: f64, best: (usize, usize, f64)) {
    let found = match_cells(&hashed(31, GRID * GRID * WIDTH), second, WIDTH);
    let grid = Grid { rows: GRID, columns: GRID, cell: STRIDE };
    let whole = View::whole([(GRID * STRIDE) as u32; 2]);
    let truth = whole.truth(&grid, &whole.clone().mirrored(), &grid);
    let scores = found.scores(&truth, &grid, MEASURED_PAIRS).unwrap();
    assert!((scores.accuracy - accuracy).abs() < 1e-9, "{scores:?}");
    assert!((scores.distance - distance).abs() < 1e-5, "{scores:?}");
    let first = found.order[0];
    assert_eq!((first, found.best_match[first]), (best.0, best.1));
    assert_close("first similarity", &[found.similarity[first]], &[best.2], 1e-6);
    assert!((scores.next_similarity.unwrap() - eleventh).abs() < 1e-6, "{scores:?}");
}

#[test]
fn correspondence_of_unrelated_views() {
    let second = hashed(32, GRID * GRID * WIDTH);
    check(&second, [0.1, 97.59553], 0.846038, (29, 21, 0.953786));
}

#[test]
fn correspondence_of_a_noisy_mirror_image() {
    let second: Vec<f32> = (0..GRID * GRID * WIDTH)
        .map(|i| {
            let (row, column, channel) = (i / (GRID * WIDTH), i / WIDTH % GRID, i % WIDTH);
            let mirrored = (row * GRID + GRID - 1 - column) * WIDTH + channel;
            (hash(31, mirrored) + 0.35 * hash(33, i)) as f32
        })
        .collect();
    check(&second, [1.0, 0.0], 0.970728, (8, 12, 0.985551));
}
