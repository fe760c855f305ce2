//! The runs that failed: `failed.json` in the folder, while there are any.
//!
//! A comparison does not end with one of its runs. One that failed is noted, and tried again after all others when
//! the comparison goes on: training is reproducible, but images, memory or a folder may be there by then. A run that
//! ends the process, as a lack of memory does, has left a note before it began.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use esvit_eval::compare::FailedRun;
use esvit_files::{read_text, write_atomically};
use esvit_train::run::{FolderError, RunError};
use esvit_train::variants::Run;
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use crate::cli::pretrain::newest;

const FILE: &str = "failed.json";

/// What is noted of a run that has begun.
const ENDED: &str =
    "the process ended while it was trained or measured, as it does when memory runs out";

#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    run: FailedRun,
    /// The step of its newest checkpoint when it was begun.
    step: u64,
    /// Whether it has begun and not ended.
    is_under_way: bool,
}

/// The runs that failed, and the one that is under way.
pub(super) struct Failures {
    path: PathBuf,
    notes: Vec<Note>,
}

impl Failures {
    /// Those of a folder. A run in which the process ended has failed, unless it got further than it was: then it
    /// goes on as any other.
    pub(super) fn open(folder: &Folder) -> Result<Self> {
        let path = folder.file(FILE);
        let text = match read_text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => "[]".to_owned(),
            text => text.with_context(|| format!("cannot read `{}`", path.display()))?,
        };
        let mut notes: Vec<Note> = serde_json::from_str(&text).map_err(|error| {
            anyhow!(
                "`{}` is no list of failed runs: {error}\n\
                 hint: delete it, and they are tried again",
                path.display()
            )
        })?;
        notes.retain(|note| !note.is_under_way || step_of(folder, &note.run.run) <= note.step);
        notes.iter_mut().for_each(|note| note.is_under_way = false);
        Ok(Self { path, notes })
    }

    /// Whether a run has failed.
    pub(super) fn has(&self, run: &str) -> bool {
        self.notes.iter().any(|note| note.run.run == run && !note.is_under_way)
    }

    /// Those that failed, in the order in which they did.
    pub(super) fn list(&self) -> Vec<FailedRun> {
        let failed = self.notes.iter().filter(|note| !note.is_under_way);
        failed.map(|note| note.run.clone()).collect()
    }

    /// Notes that a run begins.
    pub(super) fn begin(&mut self, run: &Run<'_>, folder: &Folder) -> Result<()> {
        self.note(run, ENDED.into(), step_of(folder, &run.name()), true)
    }

    /// Notes that a run failed.
    pub(super) fn fail(&mut self, run: &Run<'_>, reason: String) -> Result<()> {
        self.note(run, reason, 0, false)
    }

    /// Forgets a run, which has ended as it should.
    pub(super) fn forget(&mut self, run: &str) -> Result<()> {
        let count = self.notes.len();
        self.notes.retain(|note| note.run.run != run);
        if self.notes.len() < count { self.write() } else { Ok(()) }
    }

    fn note(&mut self, run: &Run<'_>, reason: String, step: u64, is_under_way: bool) -> Result<()> {
        let variant = run.variant.asked.name.clone();
        let run = FailedRun { run: run.name(), variant, seed: run.seed, reason };
        self.notes.retain(|note| note.run.run != run.run);
        self.notes.push(Note { run, step, is_under_way });
        self.write()
    }

    fn write(&self) -> Result<()> {
        if !self.notes.is_empty() {
            let text = serde_json::to_string_pretty(&self.notes)?;
            return Ok(write_atomically(&self.path, |file| writeln!(file, "{text}"))?);
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot delete `{}`", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The step of a run's newest checkpoint, 0 without one.
fn step_of(folder: &Folder, run: &str) -> u64 {
    newest(&folder.file(run)).map_or(0, |(step, _)| step)
}

/// Whether an error is that of a disk without room, on which no run could be trained.
pub(super) fn is_of_disk(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let mut kinds =
        error.chain().filter_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
    kinds.any(|kind| matches!(kind, StorageFull | QuotaExceeded | ReadOnlyFilesystem))
}

/// Whether an error is none of the run's in which it came up: the others would meet it too.
pub(super) fn concerns_all(error: &anyhow::Error) -> bool {
    let in_use = matches!(
        error.downcast_ref::<RunError>(),
        Some(RunError::Folder(FolderError::InUse { .. }))
    );
    in_use || is_of_disk(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_train::Config;
    use esvit_train::variants::{Asked, Planned};

    fn planned(name: &str) -> Planned {
        let asked = Asked {
            name: name.into(),
            recipe: "materials".into(),
            weights: None,
            continues: None,
            given: Default::default(),
        };
        Planned { asked, start: None, config: Config::default() }
    }

    fn names(failures: &Failures) -> Vec<String> {
        failures.list().into_iter().map(|failed| failed.run).collect()
    }

    /// A checkpoint of a run after so many steps, by its name alone.
    fn checkpoint(place: &std::path::Path, run: &str, step: u64) {
        let folder = place.join(run).join("checkpoints");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("epoch=0000-step={step:08}.safetensors")), "").unwrap();
    }

    #[test]
    fn a_run_that_ended_the_process_has_failed_unless_it_got_further() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::at(place.path().into());
        let (a, b) = (planned("a"), planned("b"));
        let [a, b] = [Run { variant: &a, seed: 3 }, Run { variant: &b, seed: 3 }];
        let mut failures = Failures::open(&folder).unwrap();
        failures.fail(&a, "the loss is NaN".into()).unwrap();
        failures.begin(&b, &folder).unwrap();
        assert_eq!((names(&failures), failures.has("b-3")), (vec!["a-3".to_owned()], false));
        // As if the process had been killed here.
        let mut failures = Failures::open(&folder).unwrap();
        assert_eq!(names(&failures), ["a-3", "b-3"]);
        assert_eq!(failures.list()[0].reason, "the loss is NaN");
        assert_eq!((&*failures.list()[1].variant, failures.list()[1].seed), ("b", 3));
        // With its first checkpoint alone it is where it was.
        failures.begin(&b, &folder).unwrap();
        checkpoint(place.path(), "b-3", 0);
        assert!(Failures::open(&folder).unwrap().has("b-3"));
        checkpoint(place.path(), "b-3", 7);
        assert!(!Failures::open(&folder).unwrap().has("b-3"));
        // Begun at that step it has got no further.
        failures.begin(&b, &folder).unwrap();
        assert!(Failures::open(&folder).unwrap().has("b-3"));
        failures.forget("b-3").unwrap();
        failures.forget("a-3").unwrap();
        assert!(!folder.file(FILE).exists() && names(&Failures::open(&folder).unwrap()).is_empty());
        std::fs::write(folder.file(FILE), "{}").unwrap();
        let error = Failures::open(&folder).err().unwrap().to_string();
        assert!(
            error.contains("is no list of failed runs") && error.contains("\nhint: "),
            "{error}"
        );
    }

    #[test]
    fn a_full_disk_and_a_folder_in_use_concern_all_runs() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let path = PathBuf::from("c/a-0");
        let of_folder = |source| RunError::from(FolderError::Io { path: path.clone(), source });
        let in_use = FolderError::InUse { path: path.clone(), holder: "process 7".into() };
        assert!(concerns_all(&of_folder(full()).into()));
        assert!(concerns_all(&RunError::from(in_use).into()));
        assert!(concerns_all(&anyhow::Error::from(full()).context("cannot write")));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(!concerns_all(&of_folder(denied).into()));
        assert!(!concerns_all(&anyhow!("the disk is full, in words")));
    }
}
