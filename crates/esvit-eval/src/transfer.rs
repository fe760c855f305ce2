//! Linear probes of a backbone on many datasets, optionally against a second backbone.
//!
//! Results are appended to a file, so that an interrupted evaluation can be continued.

mod dataset;
mod known;

use std::path::{Path, PathBuf};

use esvit_files::{FileError, LineLog, read_hint};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use dataset::Dataset;
pub use known::{KnownSet, SETS};

use crate::probe::{Metric, Metrics, Probe, ProbeError, SplitFeatures};
use esvit_model::PretrainedBackbone;

/// Identifies a result: only one with an equal key is reused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Folder of the dataset, as given.
    pub set: String,
    /// Fingerprint of weights and preprocessing.
    pub weights: String,
    /// The probe's options.
    pub probe: Value,
    /// The metric that its setting is chosen by.
    pub metric: Metric,
    /// Number of training images.
    #[serde(alias = "train_pictures")]
    pub train_images: usize,
    /// Number of query images.
    #[serde(alias = "query_pictures")]
    pub query_images: usize,
}

/// Result of a probe on a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetResult {
    /// Value of the metric, in percent.
    pub value: f64,
    /// 95 % confidence interval of top-1; other metrics have none.
    pub interval: Option<[f64; 2]>,
    /// The chosen setting and its metrics.
    pub best: Value,
    /// Classes or labels that the metric's mean leaves out, since no query image tells anything of
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    result: DatasetResult,
}

/// Results cannot be computed or stored.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A dataset cannot be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}\nhint: {hint}", path = path.display(), hint = read_hint(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A line of the file is not a result.
    #[error(
        "line {line} of `{path}` is no result of a transfer evaluation: {source}\n\
         hint: name another file with `--out`",
        path = path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The parse error.
        source: serde_json::Error,
    },
}

/// Hash (FNV-1a) of preprocessing and weights.
pub fn fingerprint(backbone: &PretrainedBackbone) -> String {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01B3);
    format!("{:?}", backbone.preprocess).bytes().for_each(|byte| add(byte.into()));
    for value in backbone.params.values() {
        for value in value.to_vec::<f32>() {
            add(value.to_bits().into());
        }
    }
    format!("{hash:016x}")
}

/// Probes a backbone on one dataset, whose classes or labels have these names, by features of the
/// largest number of last blocks that the probe tries.
///
/// # Errors
/// As [`Probe::run`].
pub fn measure(
    probe: &Probe,
    splits: &SplitFeatures,
    classes: &[String],
) -> Result<DatasetResult, TransferError> {
    let targets = &splits.queries.targets;
    let metric = probe.metric_of(targets);
    let best = probe.run(&splits.train, &splits.queries, None)?.best;
    let interval = match best.metrics {
        Metrics::Classes(of) if metric == Metric::Top1 => Some(of.accuracy.interval),
        _ => None,
    };
    let left_out = metric.left_out(targets);
    let name = |class: usize| classes.get(class).cloned().unwrap_or_default();
    Ok(DatasetResult {
        // A probe refuses a metric that its query images do not have.
        value: best.metrics.get(metric).unwrap_or(f64::NAN),
        interval,
        best: serde_json::to_value(best).unwrap_or_default(),
        left_out: left_out.into_iter().map(name).collect(),
    })
}

/// A file of results.
#[derive(Debug)]
pub struct Results {
    lines: Vec<Line>,
    log: LineLog,
}

impl Results {
    /// Opens or creates a file. A half-written last line is dropped.
    ///
    /// # Errors
    /// [`TransferError`] if it cannot be read or written, or has a line that is not a result.
    pub fn open(path: &Path) -> Result<Self, TransferError> {
        let text = match esvit_files::read_text(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(|source| TransferError::Read { path: path.into(), source })?,
        };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let parse = |(line, number): (&str, usize)| {
            serde_json::from_str(line).map_err(|source| TransferError::Line {
                path: path.into(),
                line: number,
                source,
            })
        };
        let lines = whole.lines().zip(1..).map(parse).collect::<Result<_, _>>()?;
        Ok(Self { lines, log: LineLog::open(path)? })
    }

    /// The latest result for a key.
    pub fn find(&self, key: &Key) -> Option<&DatasetResult> {
        self.lines.iter().rev().find(|line| line.key == *key).map(|line| &line.result)
    }

    /// Appends a result and flushes it to the disk.
    ///
    /// # Errors
    /// [`TransferError::File`] if it cannot be written.
    pub fn add(&mut self, key: Key, result: DatasetResult) -> Result<(), TransferError> {
        let line = Line { key, result };
        let text = serde_json::json!(line).to_string();
        self.log.append_line(&text)?;
        self.log.sync()?;
        self.lines.push(line);
        Ok(())
    }
}

/// Summary of a backbone's results, optionally against a second backbone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Number of datasets with a result.
    pub sets: usize,
    /// Mean value in percent; `None` without results.
    pub mean: Option<f64>,
    /// Mean value of the second backbone.
    pub against_mean: Option<f64>,
    /// Number of datasets on which the value is higher than the second backbone's.
    pub wins: usize,
    /// Number of datasets on which the values are equal.
    pub ties: usize,
    /// Number of datasets on which the value is lower.
    pub losses: usize,
}

impl Summary {
    /// Summarizes pairs of values: the backbone's and, if any, the second backbone's.
    pub fn of(values: &[(f64, Option<f64>)]) -> Self {
        let mean = |values: &[f64]| {
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let others: Vec<f64> = values.iter().filter_map(|value| value.1).collect();
        let count = |holds: fn(f64, f64) -> bool| {
            let pairs = values.iter().filter_map(|&(own, other)| Some((own, other?)));
            pairs.filter(|&(own, other)| holds(own, other)).count()
        };
        Self {
            sets: values.len(),
            mean: mean(&values.iter().map(|value| value.0).collect::<Vec<f64>>()),
            against_mean: mean(&others),
            wins: count(|own, other| own > other),
            ties: count(|own, other| own == other),
            losses: count(|own, other| own < other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backbone;

    fn key(set: &str) -> Key {
        Key {
            set: set.into(),
            weights: "1".into(),
            probe: serde_json::json!({ "solver": "sgd", "lr": [0.1] }),
            metric: Metric::Top1,
            train_images: 3,
            query_images: 2,
        }
    }

    fn result(value: f64) -> DatasetResult {
        let best = serde_json::json!({ "n": 4 });
        let left_out = vec!["a class".into()];
        DatasetResult { value, interval: Some([value / 2.0, value]), best, left_out }
    }

    #[test]
    fn results_are_found_again_also_after_a_cut_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("transfer.jsonl");
        let mut results = Results::open(&path).unwrap();
        results.add(key("a"), result(12.5)).unwrap();
        results.add(key("b"), result(100.0 / 3.0)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"set\":")).unwrap();
        let results = Results::open(&path).unwrap();
        assert_eq!(results.find(&key("b")), Some(&result(100.0 / 3.0)));
        assert_eq!(results.find(&Key { query_images: 3, ..key("b") }), None);
        assert_eq!(results.find(&Key { metric: Metric::MeanPerClass, ..key("b") }), None);
        assert_eq!(results.find(&key("c")), None);
        std::fs::write(&path, "no result\n").unwrap();
        let error = Results::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 of"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "no result\n");
    }

    #[test]
    fn wins_are_counted_where_both_have_a_value() {
        let values = [(80.0, Some(70.0)), (50.0, Some(50.0)), (10.0, Some(30.0)), (60.0, None)];
        let summary = Summary::of(&values);
        assert_eq!((summary.wins, summary.ties, summary.losses), (1, 1, 1));
        assert_eq!((summary.mean, summary.against_mean), (Some(50.0), Some(50.0)));
        assert_eq!(Summary::of(&[]).mean, None);
    }

    #[test]
    fn the_newest_of_several_results_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("transfer.jsonl");
        let mut results = Results::open(&path).unwrap();
        results.add(key("a"), result(1.0)).unwrap();
        results.add(key("a"), result(2.0)).unwrap();
        assert_eq!(results.find(&key("a")), Some(&result(2.0)));
        assert_eq!(Results::open(&path).unwrap().find(&key("a")), Some(&result(2.0)));
    }

    #[test]
    fn fingerprints_tell_weights_and_what_is_shown_apart() {
        let print = |seed| fingerprint(&backbone(seed));
        assert_eq!((print(1), print(1).len()), (print(1), 16));
        assert_ne!(print(1), print(2));
        let mut other = backbone(1);
        other.preprocess.transform.resize += 1;
        assert_ne!(fingerprint(&other), print(1));
    }

    /// As written before sets had metrics of their own.
    #[test]
    fn older_results_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("transfer.jsonl");
        let line = serde_json::json!({
            "set": "a", "weights": "1", "probe": { "solver": "sgd", "lr": [0.1] },
            "train_images": 3, "query_images": 2, "metric": "top1", "value": 10.0,
            "interval": [5.0, 10.0], "best": { "n": 4 },
        });
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let results = Results::open(&path).unwrap();
        let found = DatasetResult { left_out: vec![], ..result(10.0) };
        assert_eq!(results.find(&key("a")), Some(&found));
    }

    fn probe(metric: Option<Metric>) -> Probe {
        let logistic = crate::probe::Logistic { l2s: vec![1e-3], max_iterations: 50 };
        Probe {
            solver: crate::probe::Solver::Logistic(logistic),
            blocks: vec![crate::probe::LastBlocks { n: 1, first: 0 }],
            standardize: false,
            refit: true,
            metric,
        }
    }

    /// One feature, which is the class, or 0 without labels; the last query image looks like class 0.
    fn splits(count: usize) -> SplitFeatures {
        let side = |of: Vec<u32>| crate::probe::Examples {
            values: of.iter().map(|&class| class as f32).collect(),
            width: 1,
            targets: crate::probe::Targets::Classes { of, count },
        };
        let mut queries = side(vec![0, 1, 0, 0, 1]);
        queries.values[4] = 0.0;
        let train = side([0, 1].repeat(10));
        SplitFeatures { train, queries, train_images: vec![], left_out: vec![] }
    }

    #[test]
    fn accuracies_of_probes_come_with_their_intervals() {
        let names = ["a", "b"].map(String::from);
        let found = measure(&probe(None), &splits(2), &names).unwrap();
        assert_eq!((found.value, found.left_out.len()), (80.0, 0));
        assert_eq!(found.interval, Some(crate::probe::wilson_interval(4, 5)));
        assert_eq!(found.best["top1"], 80.0);
    }

    #[test]
    fn other_metrics_name_the_classes_that_they_leave_out() {
        let names = ["a", "b", "c"].map(String::from);
        let found = measure(&probe(Some(Metric::MeanPerClass)), &splits(3), &names).unwrap();
        assert_eq!((found.value, found.interval), (75.0, None));
        assert_eq!(found.left_out, ["c"]);
        assert_eq!(found.best["mean_per_class"], 75.0);
        // Of six pairs of a positive and a negative three are in order, three alike.
        let found = measure(&probe(Some(Metric::RocAuc)), &splits(2), &names[..2]).unwrap();
        assert_eq!((found.value, found.interval, found.left_out.len()), (75.0, None, 0));
        let error = measure(&probe(Some(Metric::Map)), &splits(2), &names[..2]).unwrap_err();
        assert!(error.to_string().contains("mAP cannot be measured"), "{error}");
    }
}
