//! The folder of a run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::Folders;
use esvit_files::{FileError, read_text};

use crate::Config;
use crate::objective::ObjectiveConfig;

use super::lock::{LOCK, LockError, RunLock};

/// A folder that cannot be used for a run.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not empty.
    #[error(
        "`{path}` is not empty\n\
         hint: add `--resume` to go on with the run in it, `--overwrite` to delete that run, or \
         choose another folder with `--out`",
        path = path.display()
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// It is a file.
    #[error(
        "`{path}` is a file, and a run needs a folder\nhint: name a folder with `--out`",
        path = path.display()
    )]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// It is to be overwritten but holds a file that no run writes.
    #[error(
        "`{path}` holds `{file}`, which no run has written, so nothing is written or deleted there\n\
         hint: choose another folder with `--out`",
        path = path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// A file in it.
        file: String,
    },
    /// It is to be overwritten, and the run that would take its place needs something in it.
    #[error(
        "`{path}` is to be overwritten by a run that needs `{file}`, which is in it, so nothing is \
         written or deleted there\n\
         hint: choose another folder with `--out`",
        path = path.display(), file = file.display()
    )]
    Needed {
        /// The folder.
        path: PathBuf,
        /// A file in it, or the folder by another name.
        file: PathBuf,
    },
    /// Another process uses it.
    #[error(
        "`{path}` is in use: {holder} is training in it\n\
         hint: wait until that run has ended, or take another folder",
        path = path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process.
        holder: String,
    },
    /// Its logs are of later steps than any of its checkpoints.
    #[error(
        "`{path}` has metrics up to step {step} and no checkpoint\n\
         hint: bring its checkpoints back, or start again with `--overwrite`",
        path = path.display()
    )]
    CheckpointsGone {
        /// The folder.
        path: PathBuf,
        /// The last step of its metrics.
        step: u64,
    },
    /// The system reports an error.
    #[error(
        "cannot use `{path}` as the run's folder: {source}\nhint: {hint}",
        path = path.display(), hint = hint(source)
    )]
    Io {
        /// The folder or a file in it.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file in it cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What to do about a folder that cannot be made or written.
fn hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a part of this path is a file: take another folder"
        }
        ErrorKind::PermissionDenied => {
            "give yourself the right to write there, or take another folder"
        }
        ErrorKind::StorageFull => "make room there, or take a folder on another disk",
        _ => "take another folder",
    }
}

/// Files that a run and its report write at the top of the folder, event files excepted.
const OWN_FILES: [&str; 7] = [
    "config.toml",
    "env.json",
    "train.log",
    "metrics.jsonl",
    "log.txt",
    "palette.npy",
    "report.html",
];
const EVENT_PREFIX: &str = "events.out.tfevents.";
const BEST: &str = "best.safetensors";

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    /// Held by a run that writes the folder.
    lock: Option<Arc<RunLock>>,
}

impl RunFolder {
    /// Tells whether a new run may have the folder, without making it: it is empty or not there, or
    /// holds an earlier run alone and is to be overwritten.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn check_free(path: &Path, overwrite: bool) -> Result<(), FolderError> {
        let folder = Self::at(path.into());
        folder.check_folder()?;
        let is_used = path.exists() && folder.names(path)?.iter().any(|name| name != LOCK);
        match is_used {
            true => match folder.foreign()? {
                Some(file) => Err(FolderError::Foreign { path: path.into(), file }),
                None if overwrite => Ok(()),
                None => Err(FolderError::NotEmpty { path: path.into() }),
            },
            false => Ok(()),
        }
    }

    /// Creates the folder of a new run. If it is not empty, it is refused, or with `overwrite`
    /// deleted, provided that everything in it comes from a run.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, FolderError> {
        let mut folder = Self::at(path.into());
        Self::check_free(path, overwrite)?;
        let mut names = folder.names(path)?;
        names.retain(|name| name != LOCK);
        folder.io(std::fs::create_dir_all(path))?;
        folder.lock()?;
        if let Some(file) = folder.foreign()? {
            return Err(FolderError::Foreign { path: path.into(), file });
        }
        for name in names {
            let path = path.join(name);
            let is_folder = folder.io(std::fs::symlink_metadata(&path))?.is_dir();
            let remove = if is_folder { std::fs::remove_dir_all } else { std::fs::remove_file };
            folder.io(remove(&path))?;
        }
        folder.io(std::fs::create_dir_all(folder.checkpoints()))?;
        Ok(folder)
    }

    /// Locks a folder that exists, such as that of several runs: no other process does while the result is held.
    ///
    /// # Errors
    /// When another process has locked it, or it cannot be used.
    pub fn hold(path: &Path) -> Result<Self, FolderError> {
        let mut folder = Self::at(path.into());
        folder.lock()?;
        Ok(folder)
    }

    /// Whether a file of this name is the lock of its folder.
    pub fn is_lock(name: &str) -> bool {
        name == LOCK
    }

    /// The run that a file belongs to: one of its settings, logs, checkpoints or results.
    pub fn of_file(file: &Path) -> Option<PathBuf> {
        let name = file.file_name()?.to_str()?;
        let folder = file.parent()?;
        let is_run =
            |path: &Path| path.join("config.toml").is_file() && path.join("checkpoints").is_dir();
        if OWN_FILES.contains(&name) || name.starts_with(EVENT_PREFIX) {
            return is_run(folder).then(|| folder.into());
        }
        let within = ["checkpoints", "eval", "failures"].map(OsStr::new);
        let run = folder.parent().filter(|run| is_run(run))?;
        folder.file_name().is_some_and(|name| within.contains(&name)).then(|| run.into())
    }

    /// Finds images, and a teacher, whose relative paths are meant from where the run was started, and are not
    /// there from here. A teacher is also looked for beside the run, where both may have moved.
    pub fn find_images(&self, config: &mut Config) {
        let environment = self.environment();
        let start = environment["folder"].as_str().map(Path::new);
        if let ObjectiveConfig::Distill(config) = &mut config.objective
            && let Some(teacher) = &mut config.settings.teacher
            && teacher.is_relative()
            && !teacher.exists()
        {
            let run = self.path.canonicalize().unwrap_or_default();
            let mut places = start.into_iter().chain(run.ancestors().skip(1));
            if let Some(found) = places.find(|place| place.join(&*teacher).exists()) {
                *teacher = found.join(&*teacher);
            }
        }
        let Some(start) = start else { return };
        let found = |path: &PathBuf| {
            let from_start = start.join(path);
            let is_moved = path.is_relative() && !path.exists() && from_start.exists();
            is_moved.then_some(from_start)
        };
        if let Some(folders) = &config.data.path {
            let paths = folders.paths().iter();
            let paths: Vec<PathBuf> =
                paths.map(|path| found(path).unwrap_or_else(|| path.clone())).collect();
            config.data.path = Folders::of(&paths);
        }
        for path in [&mut config.knn.train, &mut config.knn.val] {
            if let Some(found) = path.as_ref().and_then(found) {
                *path = Some(found);
            }
        }
    }

    /// A file whose relative path is meant from where the run was started, where it is not there from here.
    pub fn find_file(&self, path: &Path) -> PathBuf {
        let environment = self.environment();
        let from_start = environment["folder"].as_str().map(|start| Path::new(start).join(path));
        match from_start.filter(|found| path.is_relative() && !path.exists() && found.exists()) {
            Some(found) => found,
            None => path.into(),
        }
    }

    /// The instruction set of the kernels when the run last went on, as `env.json` says.
    pub(super) fn isa(&self) -> Option<String> {
        let environment = self.environment();
        let newest = environment["resumed"].as_array().and_then(|all| all.last());
        newest.unwrap_or(&environment)["isa"].as_str().map(str::to_owned)
    }

    /// What `env.json` says, null where it cannot be read.
    fn environment(&self) -> serde_json::Value {
        let text = read_text(&self.file("env.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Refuses a path at which a file is.
    fn check_folder(&self) -> Result<(), FolderError> {
        match self.path.exists() && !self.path.is_dir() {
            true => Err(FolderError::NotAFolder { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    /// A file below the folder that no run writes.
    fn foreign(&self) -> Result<Option<String>, FolderError> {
        for name in self.names(&self.path)? {
            let is_own: fn(&str) -> bool = match name.as_str() {
                "checkpoints" => |name| name == BEST || step_of(name).is_some(),
                "eval" => |name| name == "results.jsonl",
                "failures" => |name| name.starts_with("step=") && name.ends_with(".safetensors"),
                name => {
                    let is_own = OWN_FILES.contains(&name)
                        || name == LOCK
                        || name.starts_with(EVENT_PREFIX)
                        || esvit_files::is_temporary(name);
                    if !is_own {
                        return Ok(Some(name.into()));
                    }
                    continue;
                }
            };
            let within = self.path.join(&name);
            if !within.is_dir() {
                return Ok(Some(name));
            }
            let is_foreign = |name: &String| !is_own(name) && !esvit_files::is_temporary(name);
            if let Some(file) = self.names(&within)?.into_iter().find(is_foreign) {
                return Ok(Some(format!("{name}/{file}")));
            }
        }
        Ok(None)
    }

    fn lock(&mut self) -> Result<(), FolderError> {
        let path = self.path.clone();
        self.lock = Some(Arc::new(RunLock::acquire(&path).map_err(|error| match error {
            LockError::Held(holder) => FolderError::InUse { path, holder: holder.to_string() },
            LockError::Io(source) => FolderError::Io { path, source },
        })?));
        Ok(())
    }

    /// The folder of an existing run. Temporary files of a killed process are deleted.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn reopen(path: &Path) -> Result<Self, FolderError> {
        let mut folder = Self::at(path.into());
        folder.check_folder()?;
        folder.io(std::fs::create_dir_all(folder.checkpoints()))?;
        folder.lock()?;
        esvit_files::remove_stale_temporaries(path)?;
        esvit_files::remove_stale_temporaries(&folder.checkpoints())?;
        Ok(folder)
    }

    /// A folder that has been created or opened before.
    pub fn at(path: PathBuf) -> Self {
        Self { path, lock: None }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file at the top of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The stored settings.
    pub fn config(&self) -> PathBuf {
        self.file("config.toml")
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The checkpoint after a step.
    pub fn checkpoint(&self, epoch: u64, step: u64) -> PathBuf {
        self.checkpoints().join(format!("epoch={epoch:04}-step={step:08}.safetensors"))
    }

    /// The checkpoint with the best k-NN accuracy.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join(BEST)
    }

    /// All numbered checkpoints, newest first, with their steps.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, FolderError> {
        let mut found = Vec::new();
        for entry in self.io(std::fs::read_dir(self.checkpoints()))? {
            let path = self.io(entry)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(step) = step_of(&name) {
                found.push((step, path));
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Makes `checkpoint` the best one.
    ///
    /// # Errors
    /// When it can be neither linked nor copied.
    pub fn mark_best(&self, checkpoint: &Path) -> Result<(), FolderError> {
        self.keep(checkpoint, &self.best())
    }

    /// Gives `checkpoint` a second name, under which it stays when it is pruned.
    ///
    /// # Errors
    /// When it can be neither linked nor copied.
    pub fn keep(&self, checkpoint: &Path, name: &Path) -> Result<(), FolderError> {
        let fresh = self.io(esvit_files::temporary_path(name))?;
        // A hard link, or a copy where the file system has none.
        if std::fs::hard_link(checkpoint, &fresh).is_err() {
            self.io(std::fs::copy(checkpoint, &fresh))?;
        }
        self.io(std::fs::rename(&fresh, name))?;
        // Where both names are of one file already, renaming does nothing and leaves the first.
        let _ = std::fs::remove_file(&fresh);
        Ok(())
    }

    /// Deletes all numbered checkpoints but one.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub fn keep_only(&self, kept: &Path) -> Result<(), FolderError> {
        for (_, path) in self.list()?.into_iter().filter(|(_, path)| path != kept) {
            self.io(std::fs::remove_file(path))?;
        }
        Ok(())
    }

    /// Deletes all but the newest `keep` checkpoints.
    ///
    /// # Errors
    /// When one cannot be deleted.
    pub fn prune(&self, keep: usize) -> Result<(), FolderError> {
        for (_, path) in self.list()?.into_iter().skip(keep) {
            self.io(std::fs::remove_file(path))?;
        }
        Ok(())
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>, FolderError> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => self.io(entries)?,
        };
        entries
            .map(|entry| Ok(self.io(entry)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn io<T>(&self, result: std::io::Result<T>) -> Result<T, FolderError> {
        result.map_err(|source| FolderError::Io { path: self.path.clone(), source })
    }
}

/// The step of a checkpoint called `epoch=E-step=N.safetensors`.
fn step_of(name: &str) -> Option<u64> {
    let (epoch, step) = name.strip_prefix("epoch=")?.split_once("-step=")?;
    epoch.parse::<u64>().ok()?;
    step.strip_suffix(".safetensors")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.retain(|name| name != LOCK);
        names.sort();
        names
    }

    /// Everything that a run and its report write may be deleted, and nothing else.
    #[test]
    fn only_a_run_is_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("runs/first");
        RunFolder::create(&path, false).unwrap();
        assert_eq!(names(&path), ["checkpoints"]);
        for own in [
            "config.toml",
            "env.json",
            "train.log",
            "metrics.jsonl",
            "log.txt",
            "palette.npy",
            "report.html",
            "failures/step=00000003-inputs.safetensors",
            "eval/results.jsonl",
            "events.out.tfevents.1.host.2.0",
            ".metrics.jsonl.1-0.esvit-tmp",
        ] {
            std::fs::create_dir_all(path.join(own).parent().unwrap()).unwrap();
            std::fs::write(path.join(own), "old").unwrap();
        }
        std::fs::write(path.join("checkpoints/best.safetensors"), "old").unwrap();
        std::fs::write(path.join("checkpoints/epoch=0000-step=00000000.safetensors"), "").unwrap();
        let error = RunFolder::create(&path, false).unwrap_err();
        assert!(matches!(error, FolderError::NotEmpty { .. }), "{error}");
        assert_eq!(names(&path).len(), 12);
        for foreign in [
            "thesis.tex",
            "config.toml.orig",
            "best.safetensors",
            "checkpoints/keep.safetensors",
            "checkpoints/mine-step=1.safetensors",
            "eval/notes.md",
            "failures/f.txt",
        ] {
            std::fs::write(path.join(foreign), "mine").unwrap();
            let error = RunFolder::create(&path, true).unwrap_err();
            assert!(
                matches!(&error, FolderError::Foreign { file, .. } if file == foreign),
                "{error}"
            );
            assert!(path.join("config.toml").exists());
            std::fs::remove_file(path.join(foreign)).unwrap();
        }
        let folder = RunFolder::create(&path, true).unwrap();
        assert_eq!(names(&path), ["checkpoints"]);
        assert_eq!(folder.list().unwrap(), []);
        // A folder that is empty is as good as none.
        let empty = place.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        RunFolder::create(&empty, false).unwrap();
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = RunFolder::create(&file, false).unwrap_err();
        assert!(matches!(error, FolderError::NotAFolder { .. }), "{error}");
    }

    #[test]
    fn checkpoints_by_step() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(place.path(), false).unwrap();
        assert_eq!(folder.config(), place.path().join("config.toml"));
        // More steps than have a place in the name, which then sorts wrongly.
        let paths = [(0, 0), (1, 99_999_999), (2, 100_000_000)]
            .map(|(epoch, step)| (step, folder.checkpoint(epoch, step)));
        let text = paths[1].1.file_name().unwrap().to_str().unwrap();
        assert_eq!(text, "epoch=0001-step=99999999.safetensors");
        for (step, path) in &paths {
            std::fs::write(path, step.to_string()).unwrap();
        }
        let others = [
            "best.safetensors",
            "step=7.safetensors",
            "epoch=0001-step=x.safetensors",
            "mine-step=7.safetensors",
        ];
        for other in others {
            std::fs::write(folder.checkpoints().join(other), "").unwrap();
        }
        let [first, second, third] = paths;
        assert_eq!(folder.list().unwrap(), [third.clone(), second.clone(), first]);

        // Twice, as a run does that goes on after its best check.
        folder.mark_best(&second.1).unwrap();
        folder.mark_best(&second.1).unwrap();
        assert_eq!(names(&folder.checkpoints()).len(), 7, "nothing temporary is left");
        assert_eq!(folder.best(), folder.checkpoints().join("best.safetensors"));
        folder.prune(1).unwrap();
        assert_eq!(folder.list().unwrap(), std::slice::from_ref(&third));
        assert_eq!(std::fs::read_to_string(folder.best()).unwrap(), "99999999", "outlives it");
        folder.mark_best(&third.1).unwrap();
        assert_eq!(std::fs::read_to_string(folder.best()).unwrap(), "100000000");
        assert_eq!(names(&folder.checkpoints()).len(), 5);
    }

    #[test]
    fn what_a_killed_run_left_half_written_is_deleted() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run");
        let folder = RunFolder::reopen(&path).unwrap();
        let checkpoints = folder.checkpoints();
        drop(folder);
        let half = ".config.toml.1-0.esvit-tmp";
        for place in [path.join(half), checkpoints.join(half), path.join("config.toml")] {
            std::fs::write(place, "").unwrap();
        }
        RunFolder::reopen(&path).unwrap();
        assert_eq!(names(&path), ["checkpoints", "config.toml"]);
        assert_eq!(names(&checkpoints), Vec::<String>::new());
    }
}
