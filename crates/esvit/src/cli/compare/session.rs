//! All runs of a comparison, one after the other, whatever becomes of some of them.

use std::cell::OnceCell;

use anyhow::{Result, anyhow};
use esvit_eval::compare::{Judge, RunResult};
use esvit_train::variants::{Comparison, Run};

use super::failed::{Failures, concerns_all, is_of_disk};
use super::folder::Folder;
use super::measured::{self, Measured};
use super::summary;
use super::train::{Runs, Stop};
use crate::cli::Output;
use crate::cli::output::in_words;
use crate::cli::shell::{program, quoted};

/// The work of a comparison.
pub(super) struct Session<'a> {
    comparison: &'a Comparison,
    folder: &'a Folder,
    runs: Runs<'a>,
    pub(super) measured: Measured<'a>,
    pub(super) failures: Failures,
    /// What all runs are measured on, once it is needed.
    judge: OnceCell<Judge>,
    output: &'a Output,
}

/// Whether to go on with the next run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Stop,
}

impl<'a> Session<'a> {
    pub(super) fn open(
        comparison: &'a Comparison,
        folder: &'a Folder,
        output: &'a Output,
    ) -> Result<Self> {
        Ok(Self {
            comparison,
            folder,
            runs: Runs::new(comparison, folder, Stop::listen(output)?, output),
            measured: Measured::open(folder)?,
            failures: Failures::open(folder)?,
            judge: OnceCell::new(),
            output,
        })
    }

    /// Trains and measures what is not done; whether that is all. It is not if a signal has asked to stop.
    /// Runs that failed before come last.
    pub(super) fn finish(&mut self) -> Result<bool> {
        self.runs_in_order().map_err(|error| with_hint(error, self.folder))
    }

    fn runs_in_order(&mut self) -> Result<bool> {
        let (first, again) = self.order();
        for run in &first {
            if self.run(run)? == Then::Stop {
                return Ok(false);
            }
        }
        if !again.is_empty() {
            // What there is, in case that one of them ends the process again.
            summary::write(self.comparison, &self.measured, &self.failures.list(), self.folder)?;
        }
        for run in &again {
            if self.run(run)? == Then::Stop {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The runs, and those that failed before with those that go on from them.
    fn order(&self) -> (Vec<Run<'a>>, Vec<Run<'a>>) {
        let (mut first, mut again): (Vec<Run<'a>>, Vec<Run<'a>>) = Default::default();
        for run in self.comparison.runs() {
            let base = run.base();
            let is_late = self.failures.has(&run.name())
                || again.iter().any(|other| base.as_ref() == Some(&other.name()));
            if is_late { again.push(run) } else { first.push(run) }
        }
        (first, again)
    }

    /// Trains and measures a run. If it fails, that is noted, and the next one may begin.
    fn run(&mut self, run: &Run<'_>) -> Result<Then> {
        let name = run.name();
        if self.measured.find(&name).is_some() {
            self.output.note(format!("`{name}` is finished"));
            self.failures.forget(&name)?;
            return Ok(Then::GoOn);
        }
        if let Some(base) = run.base().filter(|base| self.failures.has(base)) {
            return self.fail(run, format!("it goes on from `{base}`, which failed"));
        }
        // Before hours of training, since all of them need it.
        self.judge()?;
        self.failures.begin(run, self.folder)?;
        match self.result(run) {
            Ok(Some(result)) => {
                self.measured.keep(&result)?;
                self.failures.forget(&name)?;
                Ok(Then::GoOn)
            }
            Ok(None) => {
                self.failures.forget(&name)?;
                Ok(Then::Stop)
            }
            Err(error) if concerns_all(&error) => {
                // Where there is no room, the note may stay.
                let _ = self.failures.forget(&name);
                Err(error)
            }
            Err(error) => self.fail(run, in_words(&error)),
        }
    }

    /// What was measured of a run after its last step; `None` if it was stopped.
    fn result(&self, run: &Run<'_>) -> Result<Option<RunResult>> {
        let finished = self.runs.finish(run)?;
        let Some(finished) = finished.filter(|_| !self.runs.is_stopped()) else { return Ok(None) };
        Ok(Some(self.measured.measure(run, finished, self.judge()?, self.output)?))
    }

    fn judge(&self) -> Result<&Judge> {
        if self.judge.get().is_none() {
            let judge = measured::judge(self.comparison, self.folder, self.output)?;
            // It was empty.
            let _ = self.judge.set(judge);
        }
        Ok(self.judge.get().expect("it was just set"))
    }

    fn fail(&mut self, run: &Run<'_>, reason: String) -> Result<Then> {
        self.output.warning(format!("`{}` failed: {reason}", run.name()));
        self.failures.fail(run, reason)?;
        Ok(Then::GoOn)
    }
}

/// An error with how the comparison goes on, if it is that of a full disk.
fn with_hint(error: anyhow::Error, folder: &Folder) -> anyhow::Error {
    if !is_of_disk(&error) {
        return error;
    }
    let (program, folder) = (program(), quoted(folder.path()));
    anyhow!(
        "{}\nhint: with room on the disk, `{program} compare --resume --out {folder}` goes on",
        in_words(&error)
    )
}
