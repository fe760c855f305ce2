//! Results of evaluations, stored with their run: one JSON object per line of
//! `RUN/eval/results.jsonl`.

use std::io;
use std::path::{Path, PathBuf};

use esvit_files::{FileError, LineLog, read_regular};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use esvit_model::PretrainedBackbone;

/// Results of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Name of the evaluation, as on the command line: `knn`, `linear`, `correspondence`, ...
    pub evaluation: String,
    /// Description of the images.
    pub task: String,
    /// File name of the checkpoint.
    pub checkpoint: String,
    /// `student` or `teacher`.
    pub network: String,
    /// Epochs done, if known.
    pub epochs: Option<u64>,
    /// Optimizer steps done, if known.
    pub steps: Option<u64>,
    /// JSON output of the evaluation.
    pub results: Value,
}

/// Results cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder or the file cannot be used, a result not be serialized, or a line not be parsed.
    #[error("cannot use `{path}`: {source}", path = path.display())]
    Unusable {
        /// The folder or the file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// Makes an error about a path.
fn unusable<E: Into<io::Error>>(path: &Path) -> impl Fn(E) -> RecordError {
    |source| RecordError::Unusable { path: path.into(), source: source.into() }
}

impl EvalRecord {
    /// A record of `results` for `backbone`, loaded from `checkpoint`.
    ///
    /// # Errors
    /// [`RecordError::Unusable`] if the results cannot be serialized.
    pub fn new(
        evaluation: &str,
        task: &str,
        backbone: &PretrainedBackbone,
        checkpoint: &Path,
        results: &impl Serialize,
    ) -> Result<Self, RecordError> {
        let results = serde_json::to_value(results).map_err(unusable(checkpoint))?;
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

/// The run folder of a checkpoint `RUN/checkpoints/FILE`, if `RUN/config.toml` exists.
pub fn run_folder_of(checkpoint: &Path) -> Option<PathBuf> {
    let checkpoints = checkpoint.parent().filter(|folder| folder.ends_with("checkpoints"))?;
    let run = checkpoints.parent()?;
    let run = if run.as_os_str().is_empty() { Path::new(".") } else { run };
    run.join("config.toml").is_file().then(|| run.into())
}

/// Path of a run's results.
pub fn results_path(run: &Path) -> PathBuf {
    run.join("eval").join("results.jsonl")
}

/// Appends a record to a run's results and returns the path of the file.
///
/// # Errors
/// [`RecordError`] if the file cannot be written.
pub fn append(run: &Path, record: &EvalRecord) -> Result<PathBuf, RecordError> {
    let path = results_path(run);
    let folder = run.join("eval");
    std::fs::create_dir_all(&folder).map_err(unusable(&folder))?;
    let line = serde_json::to_string(record).map_err(unusable(&path))?;
    let mut log = LineLog::open(&path)?;
    log.append_line(&line)?;
    log.sync()?;
    Ok(path)
}

/// All records of a run, oldest first; empty if the file does not exist.
///
/// # Errors
/// [`RecordError`] if the file exists and cannot be read.
pub fn read(run: &Path) -> Result<Vec<EvalRecord>, RecordError> {
    let path = results_path(run);
    let bytes = match read_regular(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.map_err(unusable(&path))?,
    };
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let text = String::from_utf8(bytes).map_err(invalid).map_err(unusable(&path))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(unusable(&path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backbone;

    #[test]
    fn results_are_kept_beside_their_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let checkpoint = run.join("checkpoints/best.safetensors");
        std::fs::create_dir_all(run.join("checkpoints")).unwrap();
        assert_eq!(run_folder_of(&checkpoint), None);
        std::fs::write(run.join("config.toml"), "").unwrap();
        assert_eq!(run_folder_of(&checkpoint), Some(run.clone()));
        // A file of another folder is no checkpoint of the run.
        std::fs::create_dir(run.join("other")).unwrap();
        assert_eq!(run_folder_of(&run.join("other/best.safetensors")), None);

        let mut backbone = backbone(1);
        (backbone.source.epochs, backbone.source.steps) = (Some(3), Some(40));
        let record =
            |results: f64| EvalRecord::new("knn", "task", &backbone, &checkpoint, &results);
        assert_eq!(read(&run).unwrap(), []);
        append(&run, &record(1.5).unwrap()).unwrap();
        assert_eq!(append(&run, &record(2.5).unwrap()).unwrap(), results_path(&run));
        let records = read(&run).unwrap();
        assert_eq!(records.len(), 2);
        let expected = EvalRecord {
            evaluation: "knn".into(),
            task: "task".into(),
            checkpoint: "best.safetensors".into(),
            network: "teacher".into(),
            epochs: Some(3),
            steps: Some(40),
            results: 2.5.into(),
        };
        assert_eq!(records[1], expected);
        std::fs::write(results_path(&run), "no result\n").unwrap();
        assert!(matches!(read(&run), Err(RecordError::Unusable { .. })));
    }

    #[test]
    fn results_of_a_student_are_marked_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let backbone = backbone(1);
        let tensors = esvit_nn::weights::entries("student.backbone.", &backbone.params);
        let mut bytes = Vec::new();
        esvit_weights::write_safetensors(&mut bytes, &tensors, &Default::default()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let shape = backbone.config.clone();
        let student = esvit_model::OpenOptions::default()
            .key(Some("student"))
            .shape(Some(shape))
            .open(&path)
            .unwrap();
        let record = EvalRecord::new("knn", "task", &student, &path, &1).unwrap();
        assert_eq!(
            (record.network.as_str(), record.checkpoint.as_str()),
            ("student", "x.safetensors")
        );
    }
}
