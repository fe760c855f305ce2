//! Trains the runs of a comparison, one after the other.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow, bail};
use esvit_data::{BackgroundSetting, RangeSetting};
use esvit_train::Config;
use esvit_train::checkpoint::Checkpoint;
use esvit_train::config::PrecisionChoice;
use esvit_train::config_text::parse_file;
use esvit_train::run::{End, Event, Observer, Outcome, RunFolder, Start};
use esvit_train::variants::{Comparison, Run, Weights, run_name};

use super::folder::Folder;
use super::memory::forget_peak;
use crate::cli::pretrain::{Prepared, newest};
use crate::cli::progress::Progress;
use crate::cli::signals::Signals;
use crate::cli::{Output, teacher};

/// What is said when a signal comes while no run is at work.
const BETWEEN: &str = "stopped between runs: `esvit compare --resume --out FOLDER` goes on";

/// Asks to stop: the run at hand alone, or with it all that come after it.
pub(super) struct Stop {
    all: Signals,
    run: Arc<AtomicBool>,
}

impl Stop {
    /// Listens for signals, which ask to stop all.
    pub(super) fn listen(output: &Output) -> Result<Self> {
        let run = Arc::default();
        // All are asked first: a run that was asked to stop alone begins again only if they are not.
        Ok(Self { all: Signals::listen(std::slice::from_ref(&run), BETWEEN, output)?, run })
    }

    /// Whether all are to stop.
    fn is_asked(&self) -> bool {
        self.all.is_asked()
    }

    /// What asks the next run to stop.
    fn of_run(&self) -> Arc<AtomicBool> {
        self.run.store(false, Ordering::SeqCst);
        if self.is_asked() {
            self.run.store(true, Ordering::SeqCst);
        }
        self.run.clone()
    }
}

/// Shows the progress of a run, and asks it to stop after a step.
struct Until<'a> {
    progress: Progress<'a>,
    step: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl Observer for Until<'_> {
    fn notice(&mut self, event: &Event<'_>) {
        self.progress.notice(event);
        if let Event::Step { step, .. } = event
            && Some(*step) == self.step
        {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
}

/// A run that is done.
pub(super) struct Finished {
    /// Its settings, with all that was decided on the way.
    pub(super) prepared: Prepared,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// The state after its last step.
    pub(super) checkpoint: PathBuf,
    /// Its steps, those before its start included.
    pub(super) steps: u64,
    /// Whether the largest memory in its log is its own.
    pub(super) is_peak_own: bool,
}

/// Trains the runs of a comparison.
pub(super) struct Runs<'a> {
    comparison: &'a Comparison,
    folder: &'a Folder,
    stop: Stop,
    /// Runs that this process has begun.
    begun: Cell<usize>,
    output: &'a Output,
}

impl<'a> Runs<'a> {
    pub(super) fn new(
        comparison: &'a Comparison,
        folder: &'a Folder,
        stop: Stop,
        output: &'a Output,
    ) -> Self {
        Self { comparison, folder, stop, begun: Cell::new(0), output }
    }

    /// Whether a signal has asked to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_asked()
    }

    /// Trains a run to its end, from where it is; `None` if it was asked to stop. The states from which
    /// others go on are kept on the way.
    pub(super) fn finish(&self, run: &Run<'_>) -> Result<Option<Finished>> {
        if self.is_stopped() {
            return Ok(None);
        }
        let folder = self.folder.file(&run.name());
        self.say_which(run);
        let is_peak_own = self.forget_peak();
        let (mut config, start) = self.beginning(run, &folder)?;
        teacher::attach(&mut config, self.output)?;
        let mut prepared = Prepared::new(&config, &folder, &start, None, self.output)?;
        prepared.announce(&folder, &start, true, self.output)?;
        // A folder without checkpoints holds nothing that would be lost.
        let overwrite = matches!(start, Start::ContinueFrom(_) | Start::InitFrom { .. });
        let mut next = (overwrite, start);
        let variant = &run.variant.asked.name;
        for step in self.comparison.starts_from(variant) {
            let kept = self.folder.start(variant, run.seed, step);
            if kept.is_file() {
                continue;
            }
            if newest(&folder).is_none_or(|(newest, _)| newest < step) {
                let outcome = self.train(&prepared, &folder, next, Some(step))?;
                next = (false, Start::Resume);
                if outcome.step < step || self.is_stopped() {
                    return Ok(None);
                }
            }
            keep(&folder, step, &kept)?;
        }
        let outcome = self.train(&prepared, &folder, next, None)?;
        if outcome.end == End::Stopped {
            return Ok(None);
        }
        let (checkpoint, steps) = (outcome.checkpoint, outcome.step);
        Ok(Some(Finished { prepared, folder, checkpoint, steps, is_peak_own }))
    }

    fn say_which(&self, run: &Run<'_>) {
        let names: Vec<String> = self.comparison.runs().map(|run| run.name()).collect();
        let place = names.iter().position(|name| *name == run.name()).unwrap_or(0);
        self.output.note(format!("run {} of {}: `{}`", place + 1, names.len(), run.name()));
    }

    /// Lets the record of the largest memory start anew; whether it is that of this run then.
    fn forget_peak(&self) -> bool {
        let begun = self.begun.replace(self.begun.get() + 1);
        let is_own = forget_peak() || begun == 0;
        if !is_own && begun == 1 {
            self.output.warning(
                "this system tells the largest memory of the process alone, not that of each run: the \
                 table leaves it out\nhint: `esvit bench train-step` measures a network's",
            );
        }
        is_own
    }

    /// The settings of a run, and how it starts.
    fn beginning(&self, run: &Run<'_>, folder: &Path) -> Result<(Config, Start)> {
        let mut config = run.config();
        self.folder.find_images(&mut config);
        if newest(folder).is_some() {
            let stored = RunFolder::at(folder.into());
            let mut config = Config::resolve(vec![parse_file(&stored.config())?])?;
            stored.find_images(&mut config);
            return Ok((config, Start::Resume));
        }
        if let Some(Weights { path, key }) = &run.variant.asked.weights {
            let path = self.folder.find_file(path);
            return Ok((config, Start::InitFrom { path, key: key.clone() }));
        }
        let (Some(continues), Some(step)) = (&run.variant.asked.continues, run.variant.start)
        else {
            // One that was killed before its first checkpoint has left a folder.
            let is_new = RunFolder::check_free(folder, false).is_ok();
            return Ok((config, if is_new { Start::New } else { Start::Resume }));
        };
        let file = self.folder.start(&continues.from, run.seed, step);
        if !file.is_file() {
            bail!(
                "the state of `{}` after step {step} is gone, from which `{}` goes on: there is no `{}`\n\
                 hint: bring the file back, or begin again in another folder",
                run_name(&continues.from, run.seed),
                run.name(),
                file.display()
            );
        }
        let stored = Checkpoint::open(&file)?.run()?.config(&file)?;
        if config.data.range == RangeSetting::Auto {
            // What the other run was shown as black and white.
            config.data.range = stored.data.range;
        }
        if config.data.background == BackgroundSetting::Auto {
            config.data.background = stored.data.background;
        }
        if config.train.precision == PrecisionChoice::Auto {
            config.train.precision = stored.train.precision;
        }
        Ok((config, Start::ContinueFrom(file)))
    }

    fn train(
        &self,
        prepared: &Prepared,
        folder: &Path,
        (overwrite, start): (bool, Start),
        until: Option<u64>,
    ) -> Result<Outcome> {
        let stop = self.stop.of_run();
        let progress = Progress::new(self.output);
        let mut observer = Until { progress, step: until, stop: stop.clone() };
        let signals = &self.stop.all;
        let outcome = prepared.train(folder, start, overwrite, stop, signals, &mut observer);
        signals.end_at_once(BETWEEN);
        Ok(outcome?)
    }
}

/// Keeps the checkpoint of a step for the runs that go on from it.
fn keep(folder: &Path, step: u64, kept: &Path) -> Result<()> {
    let run = RunFolder::at(folder.into());
    let found = run.list()?.into_iter().find(|(at, _)| *at == step);
    let Some((_, checkpoint)) = found else {
        return Err(anyhow!(
            "`{}` is past step {step}, from which another run goes on, and has no checkpoint of it\n\
             hint: delete the folder, and the run is trained again",
            folder.display()
        ));
    };
    Ok(run.keep(&checkpoint, kept)?)
}
