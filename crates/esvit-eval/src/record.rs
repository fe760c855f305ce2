//! What evaluations found, kept with the run that they belong to: one JSON object a line of
//! `RUN/eval/results.jsonl`.

use std::path::{Path, PathBuf};

use esvit_files::{FileError, LineLog};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use esvit_model::PretrainedBackbone;

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Which evaluation, as on the command line: `knn`, `linear`, `correspondence`, ...
    pub evaluation: String,
    /// On which images.
    pub task: String,
    /// Name of the checkpoint's file.
    pub checkpoint: String,
    /// Which of the file's networks, `student` or `teacher`.
    pub network: String,
    /// Epochs done, if known.
    pub epochs: Option<u64>,
    /// Optimizer steps done, if known.
    pub steps: Option<u64>,
    /// What the evaluation's `--json` prints.
    pub results: Value,
}

/// Why results cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder or the file cannot be used.
    #[error("cannot use `{path}`: {source}", path = path.display())]
    Io {
        /// The folder or the file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A result is not JSON, or a line of the file is not.
    #[error("cannot use `{path}`: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl EvalRecord {
    /// What `evaluation` found of `backbone`, read from `checkpoint`.
    ///
    /// # Errors
    /// When the results cannot be written as JSON.
    pub fn new(
        evaluation: &str,
        task: &str,
        backbone: &PretrainedBackbone,
        checkpoint: &Path,
        results: &impl Serialize,
    ) -> Result<Self, RecordError> {
        let results = serde_json::to_value(results)
            .map_err(|source| RecordError::Json { path: checkpoint.into(), source })?;
        Ok(Self {
            evaluation: evaluation.into(),
            task: task.into(),
            checkpoint: checkpoint.file_name().unwrap_or_default().to_string_lossy().into(),
            network: backbone.network_name().into(),
            epochs: backbone.source.epochs,
            steps: backbone.source.steps,
            results,
        })
    }
}

/// The folder of the run that a checkpoint lies in, if it lies in one:
/// `RUN/checkpoints/FILE` with `RUN/config.toml`.
pub fn run_of(checkpoint: &Path) -> Option<PathBuf> {
    let checkpoints = checkpoint.parent().filter(|folder| folder.ends_with("checkpoints"))?;
    let run = checkpoints.parent()?;
    let run = if run.as_os_str().is_empty() { Path::new(".") } else { run };
    run.join("config.toml").is_file().then(|| run.into())
}

/// Where a run's results lie.
pub fn file_of(run: &Path) -> PathBuf {
    run.join("eval").join("results.jsonl")
}

/// Adds a result to those of a run; returns the file.
///
/// # Errors
/// When the file cannot be written.
pub fn append(run: &Path, record: &EvalRecord) -> Result<PathBuf, RecordError> {
    let path = file_of(run);
    let folder = run.join("eval");
    std::fs::create_dir_all(&folder).map_err(|source| RecordError::Io { path: folder, source })?;
    let line = serde_json::to_string(record)
        .map_err(|source| RecordError::Json { path: path.clone(), source })?;
    let mut log = LineLog::open(&path)?;
    log.append_line(&line)?;
    log.sync()?;
    Ok(path)
}

/// All results of a run, oldest first; none where nothing was evaluated yet.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(run: &Path) -> Result<Vec<EvalRecord>, RecordError> {
    let path = file_of(run);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|source| RecordError::Io { path: path.clone(), source })?,
    };
    let record = |line| {
        serde_json::from_str(line)
            .map_err(|source| RecordError::Json { path: path.clone(), source })
    };
    text.lines().map(record).collect()
}
