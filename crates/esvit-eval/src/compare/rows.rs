//! What the runs of each variant say together, beside raw pixels and the untrained networks.

use serde::Serialize;

use super::{FailedRun, RunResult, Scores, Speeds};
use crate::probe::MeanStd;

/// Means over the runs of a variant, or over the networks that they began with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Whether it is a variant, and not something to compare with.
    #[serde(skip)]
    pub is_variant: bool,
    /// Number of seeds that the figures are of; 1 where there is nothing random.
    pub seeds: usize,
    /// Number of seeds whose runs failed: the figures are without them.
    pub failed: usize,
    /// The images that it was trained on, in words.
    pub data: Option<String>,
    /// Images that it saw.
    pub images_seen: Option<MeanStd>,
    /// k-NN top-1, in percent.
    pub knn: Option<MeanStd>,
    /// Top-1 of a linear probe, in percent.
    pub linear: Option<MeanStd>,
    /// Right matches of an image and its mirror image, in percent.
    pub correspondence: Option<MeanStd>,
    /// Crops whose most similar one is of the same image, in percent.
    pub retrieval: Option<MeanStd>,
    /// Training time.
    pub training_seconds: Option<MeanStd>,
    /// Largest resident memory while it was trained, in MiB.
    pub peak_memory_mb: Option<MeanStd>,
    /// Parameters of the backbone, without heads.
    pub parameters: Option<usize>,
    /// Images per second of the backbone's forward pass.
    pub forward_images_per_s: Option<f64>,
}

/// A row for raw pixels, for the untrained networks, for the weights of a file that runs began with, and for each
/// of the `variants` that has a run which is done or failed. Variants with the same network share a row of the
/// untrained ones, and those that prepare images in the same way one of raw pixels.
pub fn rows(
    variants: &[&str],
    results: &[RunResult],
    failed: &[FailedRun],
    speeds: &Speeds,
) -> Vec<Row> {
    let pixels = groups(results, |result| &result.preprocess);
    let networks = groups(results, |result| (&result.preprocess, &result.shape));
    let begun = results.iter().filter(|result| result.original.is_some());
    let originals = groups(begun, |result| {
        let weights = result.original.as_ref().map(|original| &original.weights);
        (weights, &result.preprocess, &result.shape)
    });
    let mut rows = Vec::new();
    for group in &pixels {
        let name = named("raw pixels", group, pixels.len());
        rows.push(Row::of_scores(name, &[group[0].raw_pixels]));
    }
    for group in &networks {
        // The initial values follow from the seed.
        let mut seeds: Vec<&RunResult> = Vec::new();
        for result in group {
            if !seeds.iter().any(|other| other.seed == result.seed) {
                seeds.push(result);
            }
        }
        let scores: Vec<Scores> = seeds.iter().map(|result| result.untrained).collect();
        let row = Row::of_scores(named("untrained", group, networks.len()), &scores);
        rows.push(Row { parameters: Some(group[0].parameters), ..row });
    }
    for group in &originals {
        let first = group[0].original.iter().map(|original| original.scores);
        let name = named("original weights", group, originals.len());
        let row = Row::of_scores(name, &first.collect::<Vec<_>>());
        rows.push(Row { parameters: Some(group[0].parameters), ..row });
    }
    for name in variants {
        let runs: Vec<&RunResult> =
            results.iter().filter(|result| result.variant == *name).collect();
        let failed = failed.iter().filter(|run| run.variant == *name).count();
        if !runs.is_empty() || failed > 0 {
            rows.push(Row { failed, ..Row::of_variant(name, &runs, speeds) });
        }
    }
    rows
}

/// Runs with the same key, in the order of the first of each.
pub(super) fn groups<'a, K: PartialEq>(
    results: impl IntoIterator<Item = &'a RunResult>,
    key: impl Fn(&'a RunResult) -> K,
) -> Vec<Vec<&'a RunResult>> {
    let mut groups: Vec<(K, Vec<&RunResult>)> = Vec::new();
    for result in results {
        let own = key(result);
        match groups.iter_mut().find(|(key, _)| *key == own) {
            Some((_, group)) => group.push(result),
            None => groups.push((own, vec![result])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// A name with those of the variants that it holds for, if there are several such rows.
fn named(name: &str, group: &[&RunResult], rows: usize) -> String {
    match rows {
        0 | 1 => name.into(),
        _ => format!("{name} ({})", variants_of(group).join(", ")),
    }
}

/// The variants of some runs.
pub(super) fn variants_of<'a>(group: &[&'a RunResult]) -> Vec<&'a str> {
    let mut variants: Vec<&str> = Vec::new();
    for result in group {
        if !variants.contains(&&*result.variant) {
            variants.push(&result.variant);
        }
    }
    variants
}

/// The mean of values that all have.
fn mean<T>(items: &[T], value: impl Fn(&T) -> Option<f64>) -> Option<MeanStd> {
    let values: Vec<f64> = items.iter().map(value).collect::<Option<_>>()?;
    (!values.is_empty()).then(|| MeanStd::of(&values))
}

impl Row {
    fn of_scores(name: String, scores: &[Scores]) -> Self {
        Self {
            name,
            is_variant: false,
            seeds: scores.len(),
            failed: 0,
            data: None,
            images_seen: None,
            knn: mean(scores, |scores| scores.knn),
            linear: mean(scores, |scores| scores.linear),
            correspondence: mean(scores, |scores| scores.correspondence),
            retrieval: mean(scores, |scores| scores.retrieval),
            training_seconds: None,
            peak_memory_mb: None,
            parameters: None,
            forward_images_per_s: None,
        }
    }

    fn of_variant(name: &str, runs: &[&RunResult], speeds: &Speeds) -> Self {
        let trained: Vec<Scores> = runs.iter().map(|run| run.trained).collect();
        let first = runs.first();
        Self {
            is_variant: true,
            data: first.map(|run| run.data.clone()),
            images_seen: mean(runs, |run| Some(run.images_seen as f64)),
            training_seconds: mean(runs, |run| Some(run.training_seconds)),
            peak_memory_mb: mean(runs, |run| run.peak_memory_mb),
            parameters: first.map(|run| run.parameters),
            forward_images_per_s: first.and_then(|run| speeds.of(run)),
            ..Self::of_scores(name.into(), &trained)
        }
    }

    /// Its name, and which of its runs are missing.
    pub(super) fn label(&self) -> String {
        let Self { name, seeds, failed, .. } = self;
        match (seeds, failed) {
            (_, 0) => name.clone(),
            (0, _) => format!("{name} (failed)"),
            _ => format!("{name} ({seeds} of {} seeds)", seeds + failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Original;
    use crate::compare::result::{example, failed};

    fn names(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn variants_are_means_over_their_seeds() {
        let results =
            [example("view", 0, 30.0), example("both", 0, 20.0), example("view", 1, 34.0)];
        let rows = rows(&["view", "both", "not begun"], &results, &[], &Speeds::default());
        assert_eq!(names(&rows), ["raw pixels", "untrained", "view", "both"]);
        assert_eq!(rows.iter().map(|row| row.seeds).collect::<Vec<_>>(), [1, 2, 2, 1]);
        let of = |row: usize| rows[row].knn.unwrap();
        assert_eq!(of(0), MeanStd { mean: 3.0, std: None });
        // The first seed of both variants is the same network.
        assert_eq!(of(1), MeanStd { mean: 5.5, std: Some(0.5f64.sqrt()) });
        assert_eq!(of(2), MeanStd { mean: 32.0, std: Some(8f64.sqrt()) });
        assert_eq!(of(3), MeanStd { mean: 20.0, std: None });
        assert_eq!(rows[2].training_seconds.unwrap().mean, 10.5);
        assert_eq!((rows[0].parameters, rows[1].parameters), (None, Some(250_000)));
        assert!(rows[0].data.is_none() && rows[2].images_seen.unwrap().mean == 80.0);
        assert!(rows[2].is_variant && !rows[1].is_variant);
    }

    /// A figure that one run lacks has no mean.
    #[test]
    fn what_one_run_lacks_is_missing() {
        let mut results = [example("view", 0, 30.0), example("view", 1, 34.0)];
        results[1].peak_memory_mb = None;
        let rows = rows(&["view"], &results, &[], &Speeds::default());
        assert_eq!((rows[2].peak_memory_mb, rows[2].linear), (None, None));
        assert!(rows[2].retrieval.is_some());
    }

    /// Of weights there is one row, whatever the seed and the variant.
    #[test]
    fn weights_to_begin_with_are_something_to_compare_with() {
        let scores = Scores { knn: Some(41.0), ..Scores::default() };
        let begun = |variant: &str, seed, file: &str| RunResult {
            original: Some(Original { weights: file.into(), scores }),
            ..example(variant, seed, 30.0)
        };
        let mut results = vec![example("a", 0, 30.0), begun("b", 0, "w"), begun("b", 1, "w")];
        let found = rows(&["a", "b"], &results, &[], &Speeds::default());
        assert_eq!(names(&found)[2..], ["original weights", "a", "b"]);
        assert_eq!(found[2].knn, Some(MeanStd { mean: 41.0, std: None }));
        assert_eq!((found[2].seeds, found[2].parameters), (1, Some(250_000)));
        assert!(!found[2].is_variant && found[2].training_seconds.is_none());
        results.push(begun("c", 0, "other"));
        let found = rows(&["a", "b", "c"], &results, &[], &Speeds::default());
        assert_eq!(names(&found)[2..4], ["original weights (b)", "original weights (c)"]);
    }

    /// The mean is that of the seeds that are left, and the row says so.
    #[test]
    fn failed_runs_are_counted() {
        let results =
            [example("view", 0, 30.0), example("view", 2, 34.0), example("both", 0, 20.0)];
        let failed = [failed("bad", 0), failed("view", 1), failed("bad", 1)];
        let found = rows(&["bad", "view", "both"], &results, &failed, &Speeds::default());
        let labels: Vec<String> = found[2..].iter().map(Row::label).collect();
        assert_eq!(labels, ["bad (failed)", "view (2 of 3 seeds)", "both"]);
        assert_eq!(names(&found)[2..], ["bad", "view", "both"]);
        let counts: Vec<_> = found[2..].iter().map(|row| (row.seeds, row.failed)).collect();
        assert_eq!(counts, [(0, 2), (2, 1), (1, 0)]);
        assert_eq!(found[3].knn.unwrap().mean, 32.0);
        let Row { knn, parameters, data, images_seen, .. } = &found[2];
        assert!(knn.is_none() && parameters.is_none() && data.is_none() && images_seen.is_none());
        assert_eq!(names(&rows(&["bad"], &[], &failed, &Speeds::default())), ["bad"]);
    }

    #[test]
    fn other_networks_and_sizes_have_rows_of_their_own() {
        let mut results = [example("a", 0, 30.0), example("b", 0, 30.0), example("c", 0, 30.0)];
        results[1].shape = "vit".into();
        results[2].preprocess = "64".into();
        let rows = rows(&["a", "b", "c"], &results, &[], &Speeds::default());
        assert_eq!(
            names(&rows),
            [
                "raw pixels (a, b)",
                "raw pixels (c)",
                "untrained (a)",
                "untrained (b)",
                "untrained (c)",
                "a",
                "b",
                "c",
            ]
        );
    }
}
