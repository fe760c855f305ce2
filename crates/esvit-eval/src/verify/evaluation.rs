//! Cases of kinds `knn` and `correspondence`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Case, CaseError, Check, Outcome, Result, absolute_error};
use crate::correspondence::{Grid, View, match_cells};
use crate::knn::{Neighbor, classify, nearest};
use esvit_model::features::LabeledFeatures;

#[derive(Deserialize)]
struct KnnSettings {
    temperature: f64,
    num_classes: u32,
    results: BTreeMap<String, KnnResult>,
}

#[derive(Deserialize)]
struct KnnResult {
    top1: f64,
    top5: f64,
    /// Range over all orders of tied classes.
    top1_range: Option<[f64; 2]>,
    top5_range: Option<[f64; 2]>,
}

pub(super) fn knn(case: &Case) -> Result<Outcome> {
    let settings: KnnSettings = case.settings()?;
    let (train, queries) = (labeled(case, "train")?, labeled(case, "test")?);
    let ks: Vec<usize> = settings
        .results
        .keys()
        .map(|k| k.parse().map_err(|_| CaseError::Settings(format!("`{k}` is no number"))))
        .collect::<Result<_, _>>()?;
    let found = classify(&train, &queries, &ks, settings.temperature)
        .map_err(|e| CaseError::Computation(e.to_string()))?;
    let mut checks = Vec::new();
    for (accuracy, expected) in found.iter().zip(settings.results.values()) {
        let by_number = |n| without_votes(&train, &queries, accuracy.k, n, settings.num_classes);
        for (what, found, exact, range) in [
            ("top-1", accuracy.top1 + by_number(1), expected.top1, expected.top1_range),
            ("top-5", accuracy.top5 + by_number(5), expected.top5, expected.top5_range),
        ] {
            let [low, high] = range.unwrap_or([exact, exact]);
            let difference = (low - found).max(found - high).max(0.0);
            let what = format!("{what}, k = {}", accuracy.k);
            checks.push(Check::new(what, difference, 1e-9));
        }
    }
    Ok(Outcome::Compared(checks))
}

/// Percent of queries of a class without votes that the reference counts as right: it ranks these
/// classes by number, after those with votes, which [`classify`] does not.
fn without_votes(
    train: &LabeledFeatures,
    queries: &LabeledFeatures,
    k: usize,
    n: usize,
    classes: u32,
) -> f64 {
    let neighbors = nearest(train, queries, k);
    let is_right = |&(found, &label): &(&Vec<Neighbor>, &u32)| {
        let voted: BTreeSet<u32> = found.iter().map(|near| train.labels[near.row]).collect();
        let before = (0..label).filter(|class| !voted.contains(class)).count();
        label < classes && !voted.contains(&label) && voted.len() + before < n
    };
    let right = neighbors.iter().zip(&queries.labels).filter(is_right).count();
    100.0 * right as f64 / queries.labels.len().max(1) as f64
}

fn labeled(case: &Case, set: &str) -> Result<LabeledFeatures> {
    let (shape, values) = case.tensor(&format!("{set}_features"))?;
    let labels = case.integers(&format!("{set}_labels"))?;
    let labels = labels
        .into_iter()
        .map(|label| u32::try_from(label).map_err(|e| CaseError::Settings(e.to_string())))
        .collect::<Result<_, _>>()?;
    Ok(LabeledFeatures { values, width: shape.last().copied().unwrap_or(0), labels })
}

#[derive(Deserialize)]
struct CorrespondenceSettings {
    grid: usize,
    stride: usize,
    pairs: usize,
    accuracy: f64,
    distance_error: f64,
}

pub(super) fn correspondence(case: &Case) -> Result<Outcome> {
    let settings: CorrespondenceSettings = case.settings()?;
    let (shape, first) = case.tensor("features1")?;
    let (_, second) = case.tensor("features2")?;
    let found = match_cells(&first, &second, shape.last().copied().unwrap_or(1).max(1));
    let expected = case.integers("best_match")?;
    let wrong = found.best_match.iter().zip(&expected).filter(|&(&a, &b)| a as i64 != b).count();
    let missing = found.best_match.len().abs_diff(expected.len());
    let CorrespondenceSettings { grid: side, stride, pairs, .. } = settings;
    if side.checked_mul(side) != Some(found.order.len()) {
        let cells = found.order.len();
        return Err(CaseError::Settings(format!("{cells} cells do not fill a grid of {side}")));
    }
    let extent = side.checked_mul(stride).and_then(|extent| u32::try_from(extent).ok());
    let extent = extent.ok_or_else(|| CaseError::Settings(format!("`stride` is {stride}")))?;
    let grid = Grid { rows: side, columns: side, cell: stride };
    let whole = View::whole([extent; 2]);
    let truth = whole.truth(&grid, &whole.clone().mirrored(), &grid);
    let scores = found
        .scores(&truth, &grid, pairs)
        .ok_or_else(|| CaseError::Settings("there are no pairs".into()))?;
    let (_, similarity) = case.tensor("similarity")?;
    Ok(Outcome::Compared(vec![
        Check::new("best_match, cells that differ", (wrong + missing) as f64, 0.0),
        absolute_error("similarity", &found.similarity, &similarity, 1e-5),
        Check::new("accuracy", (scores.accuracy - settings.accuracy).abs(), 1e-9),
        Check::new("distance_error", (scores.distance - settings.distance_error).abs(), 1e-4),
    ]))
}
