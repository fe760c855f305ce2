//! Reads a run folder, as far as possible.

use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{Source, counted};
use esvit_files::read_regular;
use esvit_nn::Device;
use esvit_nn::params::Role;
use esvit_train::Config;
use esvit_train::checkpoint::{Best, Checkpoint};
use esvit_train::config_text::Origin;
use esvit_train::objective::{ObjectiveConfig, StepInfo, Teacher};
use esvit_train::run::RunFolder;
use serde_json::Value;

use super::ReportError;
use super::metrics::Metrics;
use super::tables;
use crate::preview;
use crate::record::{self, EvalRecord};

/// The contents of a run folder.
pub(super) struct Run {
    pub(super) path: PathBuf,
    /// Name of the folder.
    pub(super) name: String,
    /// Text of `config.toml`.
    pub(super) settings: Option<String>,
    pub(super) config: Option<Config>,
    pub(super) environment: Option<Value>,
    pub(super) metrics: Metrics,
    /// Whole epochs done.
    pub(super) epochs: u64,
    /// Latest results of each evaluation with the same settings.
    pub(super) evaluations: Vec<EvalRecord>,
    /// The best first, then by file name.
    pub(super) checkpoints: Vec<CheckpointFile>,
    /// Names of the files in `failures/`.
    pub(super) failures: Vec<String>,
    /// The error that it ended with, by its log.
    pub(super) error: Option<String>,
    /// The training images, if still available.
    pub(super) source: Result<Arc<dyn Source>, String>,
    /// The device that runs the network.
    pub(super) device: Device,
    /// Files that could not be read, and why.
    pub(super) problems: Vec<String>,
}

/// A file in `checkpoints/`.
pub(super) struct CheckpointFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// `[steps, epochs]` done, or why they are unknown.
    pub(super) state: Result<[u64; 2], String>,
    /// The best check of the run by then.
    pub(super) best: Option<Best>,
}

pub(super) const BEST: &str = "best.safetensors";

impl Run {
    /// Reads everything that can be read.
    pub(super) fn read(path: &Path, device: Device) -> Result<Self, ReportError> {
        if !["config.toml", "metrics.jsonl"].iter().any(|name| path.join(name).is_file()) {
            return Err(ReportError::NotARun(path.into()));
        }
        let mut reader = Reader { folder: path, problems: Vec::new() };
        let settings = reader.text("config.toml");
        let config = settings.as_ref().and_then(|text| {
            let origin = Origin::File(path.join("config.toml"));
            let mut config = reader.ok_or_record("config.toml", Config::parse(text, origin))?;
            RunFolder::at(path.into()).find_images(&mut config);
            Some(config)
        });
        let environment = reader
            .text("env.json")
            .and_then(|text| reader.ok_or_record("env.json", serde_json::from_str(&text)));
        let metrics = Metrics::parse(&reader.text("metrics.jsonl").unwrap_or_default());
        if metrics.unreadable > 0 {
            let count = metrics.unreadable;
            let lines = counted(count, "line");
            reader.problems.push(format!("`metrics.jsonl`: {lines} cannot be read"));
        }
        let epochs = reader.text("log.txt").map_or(0, |text| epochs_done(&text));
        let evaluations =
            reader.ok_or_record("eval/results.jsonl", record::read(path)).unwrap_or_default();
        let checkpoints = reader.checkpoints();
        let failures = reader.names("failures");
        let log = read_regular(&path.join("train.log")).unwrap_or_default();
        let error = last_error(&String::from_utf8_lossy(&log));
        let source = match &config {
            Some(config) => preview::source(config).map_err(|error| {
                reader.problems.push(format!("the training images: {error}"));
                error.to_string()
            }),
            None => Err("the training images are unknown without the settings".into()),
        };
        Ok(Self {
            name: name_of(path),
            path: path.into(),
            settings,
            config,
            environment,
            metrics,
            epochs,
            evaluations: latest(evaluations),
            checkpoints,
            failures,
            error,
            source,
            device,
            problems: reader.problems,
        })
    }

    /// The checkpoint used for drawings: the first readable one, the best if there is one.
    pub(super) fn checkpoint(&self) -> Option<PathBuf> {
        let file = self.checkpoints.iter().find(|file| file.state.is_ok())?;
        Some(self.path.join("checkpoints").join(&file.name))
    }

    /// The check of the best checkpoint.
    pub(super) fn best(&self) -> Option<Best> {
        self.checkpoints.first().filter(|file| file.name == BEST)?.best
    }

    /// Whether a teacher is made from the student while it learns. True if the settings cannot be
    /// read.
    pub(super) fn has_teacher(&self) -> bool {
        let Some(config) = &self.config else { return true };
        let (_, objective) = config.network(&Device::Cpu, 0);
        !matches!(objective.teacher(&StepInfo::FIRST), Teacher::None | Teacher::Shared)
    }

    /// Whether it learns from another network.
    pub(super) fn distills(&self) -> bool {
        let objective = self.config.as_ref().map(|config| &config.objective);
        matches!(objective, Some(ObjectiveConfig::Distill(_)))
    }

    /// Parameters of the heads, by the checkpoint at hand: their widths may follow from the images' classes or
    /// from another network. None if none can be read.
    pub(super) fn head_parameters(&self) -> Option<usize> {
        let config = self.config.as_ref()?;
        let checkpoint = Checkpoint::open(&self.checkpoint()?).ok()?;
        let (_, backbone) = config.model.backbone.build(0.0);
        let (network, _) = config.network(&Device::Cpu, 0);
        let statistics = network.specs().iter().filter(|spec| spec.role == Role::Buffer);
        let others: HashSet<&str> =
            backbone.iter().chain(statistics).map(|spec| spec.name.as_str()).collect();
        let tensors = checkpoint.file().tensors().iter();
        let of_heads = tensors.filter(|tensor| {
            let name = tensor.name.strip_prefix("student.");
            name.is_some_and(|name| !others.contains(name))
        });
        Some(of_heads.map(|tensor| tensor.shape.iter().product::<usize>()).sum())
    }

    /// Whether it is the teacher that is evaluated, if there is one.
    pub(super) fn evaluates_teacher(&self) -> bool {
        let Some(config) = &self.config else { return true };
        self.has_teacher() && !config.network(&Device::Cpu, 0).1.evaluates_student()
    }

    /// Whether regions are matched while it learns.
    pub(super) fn matches_regions(&self) -> bool {
        let objective = self.config.as_ref().map(|config| &config.objective);
        matches!(objective, Some(ObjectiveConfig::Esvit(esvit)) if esvit.region.enabled)
    }

    /// Whether all steps are done; `None` if the settings cannot be read.
    pub(super) fn is_finished(&self) -> Option<bool> {
        let train = &self.config.as_ref()?.train;
        let steps = train.steps.map(|steps| self.metrics.steps_done() >= steps);
        steps.or_else(|| Some(self.epochs >= train.epochs?))
    }

    /// How far the run is, in epochs or steps, as its length is given.
    pub(super) fn progress(&self) -> String {
        let train = self.config.as_ref().map(|config| &config.train);
        match train.map(|train| (train.steps, train.epochs)) {
            Some((Some(steps), _)) => format!("{} of {steps} steps", self.metrics.steps_done()),
            Some((None, Some(epochs))) => format!("{} of {epochs} epochs", self.epochs),
            _ => format!("{} epochs", self.epochs),
        }
    }

    /// k-NN top-1 of the untrained network in percent, from an evaluation that repeats one of the
    /// run's checks (same checkpoint, k and accuracy, hence the same task).
    pub(super) fn untrained_top1(&self) -> Option<f64> {
        let top1 = |record: &EvalRecord, features: &str, k: usize| -> Option<f64> {
            let rows = record.results.get("results")?.as_array()?;
            let row = rows.iter().find(|row| row["features"] == features)?;
            let accuracies = row["accuracies"].as_array()?;
            accuracies.iter().find(|entry| entry["k"] == k)?["top1"].as_f64()
        };
        let same = |record: &&EvalRecord, trained: f64, k: usize| {
            self.metrics.knn.iter().any(|check| {
                Some(check.epoch) == record.epochs
                    && check.knn_k == k
                    && (check.knn_top1 - trained).abs() < 1e-6
            })
        };
        let k = self.metrics.knn.last()?.knn_k;
        let temperature = self.config.as_ref().map(|config| config.knn.temperature);
        let checks = self.evaluations.iter().filter(|record| {
            let own = record.results.get("temperature").and_then(Value::as_f64);
            record.evaluation == "knn" && (own.is_none() || own == temperature)
        });
        let mut repeated = checks.filter(|record| {
            top1(record, "trained", k).is_some_and(|trained| same(record, trained, k))
        });
        top1(repeated.next()?, "untrained", k)
    }
}

/// Reads files and collects errors.
struct Reader<'a> {
    folder: &'a Path,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// The text of a file; invalid UTF-8 is replaced.
    fn text(&mut self, name: &str) -> Option<String> {
        let bytes = match read_regular(&self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.problems.push(format!("`{name}` is missing"));
                return None;
            }
            bytes => self.ok_or_record(name, bytes)?,
        };
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn ok_or_record<T, E: Display>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.problems.push(format!("`{name}`: {error}"))).ok()
    }

    /// Sorted file names of a folder; empty if it does not exist.
    fn names(&mut self, folder: &str) -> Vec<String> {
        let entries = match std::fs::read_dir(self.folder.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            entries => self.ok_or_record(folder, entries),
        };
        let entries = entries.into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    fn checkpoints(&mut self) -> Vec<CheckpointFile> {
        let names = self.names("checkpoints").into_iter();
        let names = names.filter(|name| name.ends_with(".safetensors") && !name.starts_with('.'));
        let file = |name: String| {
            let path = self.folder.join("checkpoints").join(&name);
            let about = std::fs::metadata(&path);
            let bytes = about.as_ref().map_or(0, |about| about.len());
            if about.is_ok_and(|about| !about.is_file()) {
                let state = Err("not a regular file".into());
                return CheckpointFile { name, bytes, state, best: None };
            }
            let read = Checkpoint::open(&path)
                .and_then(|file| file.run().map(|run| ([run.step, run.epoch], run.best)));
            let best = read.as_ref().ok().and_then(|(_, best)| *best);
            let state = read.map(|(state, _)| state).map_err(|error| error.to_string());
            CheckpointFile { name, bytes, state, best }
        };
        let mut files: Vec<CheckpointFile> = names.map(file).collect();
        // The best first; the others are named by step.
        files.sort_by(|a, b| (b.name == BEST, &b.name).cmp(&(a.name == BEST, &a.name)));
        files
    }
}

/// Name of a folder, also if the path ends in `.` or `..`.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.into());
    whole.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Epochs done according to `log.txt`, which has one line per epoch, from 0.
fn epochs_done(log: &str) -> u64 {
    let epoch = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("epoch")?.as_u64();
    log.lines().filter_map(epoch).max().map_or(0, |last| last + 1)
}

/// The error that a run ended with, by its `train.log`. An error is the last that a run says, and the
/// lines of what is said at once have one time.
fn last_error(log: &str) -> Option<String> {
    let (time, _) = log.lines().next_back()?.split_once(' ')?;
    let said = |line: &str| -> Option<String> {
        Some(line.strip_prefix(time)?.strip_prefix(' ')?.to_owned())
    };
    let mut lines: Vec<String> = log.lines().rev().map_while(said).collect();
    lines.reverse();
    let first = lines.iter().rposition(|line| line.starts_with("error: "))?;
    Some(lines[first..].join("\n").replacen("error: ", "", 1))
}

/// The latest record of each evaluation, task, checkpoint, network and settings, in order of first
/// occurrence.
fn latest(records: Vec<EvalRecord>) -> Vec<EvalRecord> {
    let mut kept: Vec<EvalRecord> = Vec::new();
    for record in records {
        let EvalRecord { evaluation, task, checkpoint, network, .. } = &record;
        let (key, settings) = ([evaluation, task, checkpoint, network], tables::settings(&record));
        let same = |r: &&mut EvalRecord| {
            [&r.evaluation, &r.task, &r.checkpoint, &r.network] == key
                && tables::settings(r) == settings
        };
        match kept.iter_mut().find(same) {
            Some(other) => *other = record,
            None => kept.push(record),
        }
    }
    kept
}

/// A run of which everything is known but its images and checkpoints: 40 steps, two epochs of four,
/// every figure another number.
#[cfg(test)]
pub(super) fn example() -> Run {
    use esvit_train::run::{KnnMetrics, RetrievalMetrics, StepMetrics};

    let figures = |step: u64, loss: f64| StepMetrics {
        step,
        epoch: 0,
        train_loss: loss,
        lr: 0.011,
        wd: 0.022,
        grad_norm: 5.5,
        batch_time: 0.25,
        data_wait: 0.125,
        img_per_s: 77.0,
        max_mem: 1536.0,
        objective: [
            ("view_loss", loss + 1.0),
            ("region_loss", loss + 2.0),
            ("momentum", 0.933),
            ("teacher_temp", 0.044),
            ("teacher_entropy", 1.25),
            ("marginal_entropy", 2.25),
            ("max_entropy", 3.25),
            ("rows", 8.0),
            ("center_norm", 0.5),
            ("feature_std", 0.75),
        ]
        .into_iter()
        .collect(),
        summary: None,
    };
    let check = |epoch, knn_top1| KnnMetrics {
        step: 20 * epoch,
        epoch,
        knn_k: 10,
        knn_top1,
        knn_top5: knn_top1 + 20.0,
    };
    let found = |(epoch, retrieval_top1)| RetrievalMetrics {
        step: 20 * epoch,
        epoch,
        retrieval_images: 40,
        retrieval_top1,
    };
    let mut config = Config::default();
    (config.train.epochs, config.train.batch_size) = (Some(4), 16);
    if let ObjectiveConfig::Esvit(objective) = &mut config.objective {
        (objective.head.out_dim, objective.head.hidden_dim) = (32, 16);
    }
    Run {
        path: "runs/x".into(),
        name: "x".into(),
        settings: None,
        config: Some(config),
        environment: None,
        metrics: Metrics {
            steps: vec![figures(10, 6.0), figures(40, 5.0)],
            knn: vec![check(1, 21.0), check(2, 30.0)],
            retrieval: [(0, 2.5), (1, 7.5), (2, 12.5)].map(found).into(),
            unreadable: 0,
        },
        epochs: 2,
        evaluations: Vec::new(),
        checkpoints: Vec::new(),
        failures: Vec::new(),
        error: None,
        source: Err("gone".into()),
        device: Device::Cpu,
        problems: Vec::new(),
    }
}

/// What `esvit eval knn` found of a checkpoint after some epochs.
#[cfg(test)]
pub(super) fn evaluated(epochs: u64, untrained: f64, trained: f64) -> EvalRecord {
    let row = |features: &str, top1: f64| {
        serde_json::json!({"features": features, "accuracies": [
            {"k": 20, "top1": 1.0, "top5": 2.0}, {"k": 10, "top1": top1, "top5": 99.0},
        ]})
    };
    EvalRecord {
        evaluation: "knn".into(),
        task: "task".into(),
        checkpoint: "best.safetensors".into(),
        network: "teacher".into(),
        epochs: Some(epochs),
        steps: None,
        results: serde_json::json!({"results": [row("untrained", untrained), row("trained", trained)]}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(evaluation: &str, checkpoint: &str, results: Value) -> EvalRecord {
        EvalRecord {
            evaluation: evaluation.into(),
            task: "task".into(),
            checkpoint: checkpoint.into(),
            network: "teacher".into(),
            epochs: Some(5),
            steps: Some(50),
            results,
        }
    }

    #[test]
    fn later_results_replace_earlier_ones_of_the_same_kind() {
        let kept = latest(vec![
            record("knn", "a", 1.into()),
            record("linear", "a", 2.into()),
            record("knn", "b", 3.into()),
            record("knn", "a", 4.into()),
        ]);
        let results: Vec<&Value> = kept.iter().map(|record| &record.results).collect();
        assert_eq!(results, [&Value::from(4), &Value::from(2), &Value::from(3)]);
    }

    /// Another temperature is another evaluation; of the same one the newest counts.
    #[test]
    fn results_with_other_settings_stay() {
        let knn = |temperature: f64, top1: u32| {
            record("knn", "a", serde_json::json!({"temperature": temperature, "top1": top1}))
        };
        let kept = latest(vec![knn(0.07, 1), knn(0.5, 2), knn(0.07, 3)]);
        let top1: Vec<&Value> = kept.iter().map(|record| &record.results["top1"]).collect();
        assert_eq!(top1, [3, 2]);
    }

    /// A pipe has no writer here: to read it would wait for ever.
    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("eval")).unwrap();
        std::fs::create_dir(path("checkpoints")).unwrap();
        std::fs::write(path("config.toml"), Config::default().to_toml()).unwrap();
        for name in ["metrics.jsonl", "eval/results.jsonl", "checkpoints/best.safetensors"] {
            let made = std::process::Command::new("mkfifo").arg(path(name)).status().unwrap();
            assert!(made.success());
        }
        std::os::unix::fs::symlink("/dev/zero", path("log.txt")).unwrap();
        let run = Run::read(folder.path(), Device::Cpu).unwrap();
        let problems = run.problems.join("\n");
        for name in ["metrics.jsonl", "log.txt", "results.jsonl"] {
            assert!(problems.contains(name), "{problems}");
        }
        assert_eq!(problems.matches("it is not a regular file").count(), 3, "{problems}");
        assert!(run.checkpoints[0].state.is_err());
    }

    #[test]
    fn the_objective_says_whether_there_is_a_teacher() {
        let mut run = example();
        assert!(run.has_teacher() && run.matches_regions() && run.evaluates_teacher());
        run.config.as_mut().unwrap().objective = ObjectiveConfig::named("supervised").unwrap();
        assert!(!run.has_teacher() && !run.matches_regions() && !run.evaluates_teacher());
        run.config.as_mut().unwrap().objective = ObjectiveConfig::named("byol").unwrap();
        assert!(run.has_teacher() && !run.evaluates_teacher());
    }

    #[test]
    fn the_error_that_ended_a_run_is_the_last_that_its_log_says() {
        let failed = "10:00 101 images\n10:01 error: step 4: the loss is NaN\n10:01 inputs in `x`\n\
                      10:01 hint: lower it\n";
        let error = "step 4: the loss is NaN\ninputs in `x`\nhint: lower it";
        assert_eq!(last_error(failed).as_deref(), Some(error));
        // The run that went on, and one that has no error.
        assert_eq!(last_error(&format!("{failed}10:02 going on after step 3\n")), None);
        let again = format!("{failed}10:02 101 images\n10:02 error: no room");
        assert_eq!(last_error(&again).as_deref(), Some("no room"));
        for log in ["", "\n", "x", "10:00 a note with error: in it\n"] {
            assert_eq!(last_error(log), None, "{log}");
        }
    }

    #[test]
    fn epochs_are_counted_by_the_last_whole_line() {
        assert_eq!(epochs_done("{\"epoch\":0}\n{\"epoch\":1}\n{\"epo"), 2);
        assert_eq!(epochs_done(""), 0);
    }

    #[test]
    fn a_folder_without_a_run_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = Run::read(folder.path(), Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("no run") && error.contains("\nhint: "), "{error}");
    }

    /// Only figures: everything else is missed, and named.
    #[test]
    fn what_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), "nothing\n").unwrap();
        std::fs::write(folder.path().join("env.json"), "{").unwrap();
        std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
        std::fs::write(folder.path().join("checkpoints/best.safetensors"), "no").unwrap();
        let run = Run::read(folder.path(), Device::Cpu).unwrap();
        let ok_or_record = run.problems.join("\n");
        for part in [
            "`config.toml` is missing",
            "`env.json`: ",
            "`metrics.jsonl`: 1 line cannot",
            "`log.txt` is missing",
        ] {
            assert!(ok_or_record.contains(part), "{ok_or_record}");
        }
        assert!(run.checkpoints[0].state.is_err() && run.checkpoint().is_none());
        assert!(run.source.is_err() && run.is_finished().is_none());
    }

    #[test]
    fn a_run_is_finished_after_its_last_epoch() {
        let mut run = example();
        let mut after = |epochs| {
            run.epochs = epochs;
            run.is_finished()
        };
        assert_eq!([3, 4, 5].map(&mut after), [Some(false), Some(true), Some(true)]);
    }

    #[test]
    fn the_untrained_network_is_known_where_a_check_was_repeated() {
        let untrained = |records: Vec<EvalRecord>| {
            let mut run = example();
            run.evaluations = records;
            run.untrained_top1()
        };
        assert_eq!(untrained(vec![evaluated(2, 14.5, 30.0)]), Some(14.5));
        assert_eq!(untrained(vec![evaluated(1, 14.5, 21.0)]), Some(14.5));
        // Another accuracy, and that of another epoch: not the task of the check.
        assert_eq!(untrained(vec![evaluated(2, 14.5, 30.1)]), None);
        assert_eq!(untrained(vec![evaluated(1, 14.5, 30.0)]), None);
        let mut other = evaluated(2, 14.5, 30.0);
        other.evaluation = "linear".into();
        assert_eq!(untrained(vec![other]), None);
        assert_eq!(untrained(vec![evaluated(2, 9.0, 29.0), evaluated(2, 14.5, 30.0)]), Some(14.5));
        // At another temperature the same accuracy is a coincidence.
        let mut warm = evaluated(2, 9.0, 30.0);
        warm.results["temperature"] = 0.5.into();
        assert_eq!(untrained(vec![warm.clone()]), None);
        assert_eq!(untrained(vec![warm, evaluated(2, 14.5, 30.0)]), Some(14.5));
    }

    #[test]
    fn results_of_both_networks_are_kept() {
        let student = EvalRecord { network: "student".into(), ..record("knn", "a", 2.into()) };
        assert_eq!(latest(vec![record("knn", "a", 1.into()), student]).len(), 2);
    }

    #[test]
    fn the_best_checkpoint_comes_first_and_then_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = folder.path().join("checkpoints");
        std::fs::create_dir(&checkpoints).unwrap();
        for name in [
            "best.safetensors",
            "step=000001.safetensors",
            "step=000002.safetensors",
            ".x.safetensors",
            "note.txt",
        ] {
            std::fs::write(checkpoints.join(name), "no").unwrap();
        }
        let mut reader = Reader { folder: folder.path(), problems: Vec::new() };
        let files = reader.checkpoints();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            ["best.safetensors", "step=000002.safetensors", "step=000001.safetensors"]
        );
        assert_eq!(files[0].bytes, 2);
        // The one to look at is the first that can be read.
        let file =
            |name: &str, state| CheckpointFile { name: name.into(), bytes: 2, state, best: None };
        let mut run = example();
        run.checkpoints = vec![file("best", Err("broken".into())), file("step", Ok([1, 1]))];
        assert_eq!(run.checkpoint(), Some("runs/x/checkpoints/step".into()));
    }
}
