//! The training loop of a process.

mod check;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esvit_data::{Batch, Batches, Loader, Source, counted};
use esvit_kernels::pool;
use esvit_nn::Device;
use esvit_nn::backbone::igpt;
use esvit_nn::weights::entry;
use serde_json::Value;

use super::folder::RunFolder;
use super::images::ImageSet;
use super::means::{Sums, Times};
use super::metrics_log::{
    EpochMetrics, KnnMetrics, MetricsLog, RetrievalMetrics, StepMetrics, before_first_step,
    peak_memory,
};
use super::start::Started;
use super::{
    Check, CheckTime, Costs, End, Event, FOR_CHECKS, KnnAccuracy, Observer, Options, Outcome, Plan,
    Retrieval, RunError, checks,
};
use crate::Learner;
use crate::checkpoint::{self, Best, Measure, Metadata};
use crate::config::Config;
use crate::input::network_input;
use crate::learner::{NotFinite, StepResult};
use crate::objective::igpt::palette;
use crate::objective::{CollapseDetector, MicroBatch, ObjectiveConfig, StepInfo, collapse};
use crate::span::RunLength;
use esvit_files::write_atomically;

pub(super) struct Session<'a> {
    config: Config,
    folder: RunFolder,
    log: MetricsLog,
    observer: &'a mut dyn Observer,
    knn: Option<&'a mut Check<'a, KnnAccuracy>>,
    retrieval: Option<&'a mut Check<'a, Retrieval>>,
    stop: Arc<AtomicBool>,
    source: Arc<dyn Source>,
    learner: Learner,
    images: ImageSet,
    plan: Plan,
    collapse: CollapseDetector,
    best: Option<Best>,
    /// Whether the run began from weights, which are then measured as a checkpoint is.
    from_weights: bool,
    newest: PathBuf,
    /// The step whose state the newest checkpoint has.
    saved: Option<u64>,
    last_knn: Option<KnnMetrics>,
    /// The step whose check was stopped.
    unchecked: Option<u64>,
    /// Of the steps since the last line of the metrics, and of the epoch.
    sums: Sums,
    times: Times,
    /// That of weights which the run began with.
    first_knn: Option<KnnMetrics>,
    /// The first of the run, before its first step, and the last.
    found: [Option<RetrievalMetrics>; 2],
    /// How long checks take, as was measured before the run, and the last one in it.
    check_time: (Option<CheckTime>, Option<Duration>),
    began: Instant,
}

impl<'a> Session<'a> {
    /// `costs` are those of a step and of checks, for a run whose length is a time; it began at `began`.
    pub(super) fn open(
        mut config: Config,
        costs: Option<Costs>,
        began: Instant,
        options: Options<'a>,
        loader: &Loader,
    ) -> Result<Self, RunError> {
        let Options { out, overwrite, start, source, collective, stop, .. } = options;
        let Options { environment, observer, knn, retrieval, .. } = options;
        let images = ImageSet::of(&*source, loader.steps_per_epoch());
        let (started, folder) =
            Started::prepare(&mut config, &start, &out, overwrite, &*source, &images, &collective)?;
        let Started { learner, first_step, best, newest, moved, from_weights, .. } = started;
        let Started { is_unchecked, sums, mut notes, .. } = started;
        if learner.collective.rank() == 0 {
            observer.notice(&Event::Folder(folder.path()));
        }
        notes.extend(config.objective.settings().remarks(source.len()));
        if let Some(costs) = &costs {
            notes.extend(decide_length(&mut config, costs, began, first_step, loader)?);
        }
        let mut plan = Plan::new(&config, loader, source.len(), &learner, first_step);
        plan.time = costs.map(|costs| costs.time(first_step, plan.run(), config.knn.every));
        let is_unchecked = is_unchecked && plan.knn_every.is_some();
        // A run that has no step left is not one with other settings or other steps: its files stay as they are.
        let is_done = !is_unchecked && first_step >= plan.total_steps && folder.config().exists();
        let log = if learner.collective.rank() == 0 && !is_done {
            write_text(&folder.config(), &config.to_toml())?;
            let path = folder.file("env.json");
            write_text(&path, &format!("{:#}\n", with_earlier(&path, environment)))?;
            write_palette(&config, &learner, &folder)?;
            if let Some(moved) = moved {
                MetricsLog::renumber(&folder, &moved)?;
            }
            MetricsLog::open(&folder, first_step, plan.epochs_done(first_step))?
        } else {
            MetricsLog::closed()
        };
        let measure = if knn.is_some() { Measure::Knn } else { Measure::Retrieval };
        let (first_found, first_knn) = before_first_step(&folder);
        let mut session = Self {
            config,
            folder,
            log,
            observer,
            knn,
            retrieval,
            stop,
            source,
            learner,
            images,
            plan,
            collapse: CollapseDetector::default(),
            best: best.filter(|best| best.by == measure),
            from_weights,
            // A checkpoint of another numbering is not that of the step where the run goes on.
            saved: (moved.is_none() && !newest.as_os_str().is_empty()).then_some(first_step),
            newest,
            last_knn: None,
            unchecked: is_unchecked.then_some(first_step),
            sums,
            times: Times::default(),
            first_knn,
            found: [first_found, None],
            check_time: (costs.map(|costs| costs.checks), None),
            began: Instant::now(),
        };
        for note in notes {
            session.note(&note)?;
        }
        Ok(session)
    }

    pub(super) fn run(&mut self, loader: &Loader) -> Result<Outcome, RunError> {
        self.log.say(&self.plan.to_string())?;
        self.observer.notice(&Event::Begin(&self.plan));
        let Plan { first_step, total_steps, .. } = self.plan;
        if first_step >= total_steps && self.unchecked.is_none() {
            self.note(&format!("nothing to do: all {total_steps} steps of this run are done"))?;
            return Ok(self.outcome(End::NothingToDo, first_step, Duration::ZERO, loader));
        }
        let is_unknown =
            if self.from_weights { self.best.is_none() } else { self.found[0].is_none() };
        let is_measured = first_step == 0 && is_unknown && self.plan.knn_every.is_some();
        if is_measured && !self.from_weights {
            self.measure(first_step, false)?;
        }
        if self.saved.is_none() {
            // A run that fails before its first checkpoint can start again from this one.
            self.save(first_step)?;
            if self.is_first() {
                self.folder.keep_only(&self.newest)?;
            }
        }
        // Weights to begin with are measured when they are safe in a checkpoint, and are the best so far.
        if is_measured && self.from_weights && self.check(first_step)? {
            self.save(first_step)?;
            self.folder.mark_best(&self.newest)?;
        }
        if first_step > 0 && self.unchecked.is_some() {
            self.make_up_for_check(first_step)?;
        }
        let mut training = Duration::ZERO;
        let mut done = first_step;
        let mut batches = loader.batches(first_step..total_steps);
        while done < total_steps {
            let begin = Instant::now();
            let mut waited = Duration::ZERO;
            let at = self.plan.step(done);
            let Some(result) = self.step(&mut batches, loader, &at, &mut waited)? else {
                if self.saved != Some(done) {
                    self.save(done)?;
                }
                self.note(&format!("stopped after step {done} of {total_steps}, state saved"))?;
                return Ok(self.outcome(End::Stopped, done, training, loader));
            };
            done += 1;
            let spent = begin.elapsed();
            training += spent;
            self.sums.add(&result);
            self.times.add(spent, waited);
            self.observer.notice(&Event::Step { step: done, loss: result.loss });
            if self.plan.is_logged(done) {
                self.figures(&at, &result)?;
            }
            self.end_of_step(done, &at)?;
        }
        self.log.flush()?;
        if self.unchecked == Some(done) {
            self.note(&format!("stopped in the check after step {done}, the last, state saved"))?;
            return Ok(self.outcome(End::Stopped, done, training, loader));
        }
        Ok(self.outcome(End::Finished, done, training, loader))
    }

    /// One optimizer step; `None` if the run is to stop, which leaves the state as it was. If the
    /// loss is not finite, its inputs and the state are saved.
    fn step(
        &mut self,
        batches: &mut Batches<'_>,
        loader: &Loader,
        at: &StepInfo,
        waited: &mut Duration,
    ) -> Result<Option<StepResult>, RunError> {
        let parts = loader.parts();
        let mut gradients = self.learner.begin(parts, at);
        for part in 0..parts {
            let is_added = match self.next_micro_batch(batches, waited)? {
                None => false,
                Some(batch) => {
                    let stop = self.stop.clone();
                    let alone = self.learner.collective.world() == 1;
                    let asked = move || alone && stop.load(Ordering::Relaxed);
                    let (learner, gradients) = (&mut self.learner, &mut gradients);
                    pool::run(|| learner.add(gradients, &batch, at, &asked))
                }
            };
            if !is_added {
                self.learner.abandon(gradients);
                return Ok(None);
            }
            self.report_broken(loader)?;
            self.observer.notice(&Event::MicroBatch { step: at.step, done: part + 1, of: parts });
        }
        let learner = &mut self.learner;
        match pool::run(|| learner.update(gradients, at)) {
            Ok(result) => Ok(Some(result)),
            Err(error) => Err(self.not_finite(loader, at, error)?),
        }
    }

    /// The next micro-batch; `None` if a process of the run is to stop.
    fn next_micro_batch(
        &mut self,
        batches: &mut Batches<'_>,
        waited: &mut Duration,
    ) -> Result<Option<MicroBatch>, RunError> {
        if self.learner.collective.any(self.stop.load(Ordering::Relaxed)) {
            return Ok(None);
        }
        // Several processes stop together, between micro-batches.
        let alone = self.learner.collective.world() == 1;
        let should_stop = || alone && self.stop.load(Ordering::Relaxed);
        let Some(batch) = batches.next_unless(should_stop).transpose()? else { return Ok(None) };
        *waited += batch.wait_time;
        Ok(Some(micro_batch(&batch, &self.config, &*self.source, &self.learner.device())))
    }

    fn not_finite(
        &mut self,
        loader: &Loader,
        at: &StepInfo,
        source: NotFinite,
    ) -> Result<RunError, RunError> {
        let step = at.step;
        let folder = self.folder.file("failures");
        std::fs::create_dir_all(&folder).map_err(|source| {
            RunError::Folder(super::FolderError::Io { path: folder.clone(), source })
        })?;
        let mut entries = Vec::new();
        for batch in loader.batches(step..step + 1) {
            let batch = batch?;
            let part = batch.part;
            let views =
                micro_batch(&batch, &self.config, &*self.source, &self.learner.device()).views;
            for (view, crop) in views.iter().enumerate() {
                let name = format!("batch.{part}.view.{view}");
                entries.push(entry(name, &crop.shape(), crop));
            }
        }
        let process = match (self.learner.collective.world(), self.learner.collective.rank()) {
            (1, _) => String::new(),
            (_, rank) => format!("-process={rank}"),
        };
        let inputs = folder.join(format!("step={step:08}-inputs{process}.safetensors"));
        checkpoint::write(&inputs, &entries, &serde_json::json!({ "step": step }))?;
        if self.is_first() {
            let state = folder.join(format!("step={step:08}-state.safetensors"));
            checkpoint::save(&state, &self.learner, self.metadata(step))?;
        }
        Ok(RunError::NotFinite { step, source, saved: folder, checkpoint: self.newest.clone() })
    }

    /// Logs the metrics of the last steps and checks the health of the networks.
    fn figures(&mut self, at: &StepInfo, result: &StepResult) -> Result<(), RunError> {
        let (sums, times) = (self.sums.end_line(), std::mem::take(&mut self.times));
        let parts = sums.parts.iter().map(|(name, mean)| (format!("{name}_loss"), mean.mean()));
        let signals = result.health.iter().flat_map(|health| &health.signals).copied();
        let scheduled = self.learner.objective.schedule(at).into_iter().chain(signals);
        let scheduled = scheduled.map(|(name, value)| (name.to_owned(), value));
        let figures = StepMetrics {
            step: at.step + 1,
            epoch: at.epoch,
            train_loss: sums.loss.mean(),
            lr: at.lr,
            wd: at.weight_decay,
            grad_norm: sums.grad_norm.mean(),
            batch_time: times.of_step(),
            data_wait: times.share_waited(),
            img_per_s: times.images_per_second(self.plan.batch),
            max_mem: peak_memory(),
            objective: parts.chain(scheduled).filter(|(_, value)| value.is_finite()).collect(),
            summary: result.health.as_ref().map(|health| health.summary.clone()),
        };
        self.log.step(&figures)?;
        self.observer.notice(&Event::Figures(&figures));
        if let Some(health) = &result.health {
            let settings = self.config.objective.settings();
            let collapse = collapse(settings, &|name| health.signal(name));
            if let Some(collapse) = self.collapse.look(collapse) {
                let advice = collapse.advice_for(self.folder.path());
                self.warn(&format!("step {}: {advice}", figures.step))?;
            }
        }
        Ok(())
    }

    /// Ends an epoch, and runs check and checkpoint, when they are due.
    fn end_of_step(&mut self, done: u64, at: &StepInfo) -> Result<(), RunError> {
        if done.is_multiple_of(self.plan.steps_per_epoch) {
            let figures = EpochMetrics {
                train_loss: self.sums.end_epoch(),
                train_lr: at.lr,
                train_wd: at.weight_decay,
                epoch: at.epoch,
            };
            self.log.epoch(&figures)?;
        }
        let check = self.plan.knn_every.is_some_and(|every| self.plan.is_due(done, every));
        let improved = if check { self.check(done) } else { Ok(false) };
        // A check that fails ends the run, and not without what it has learned.
        if self.plan.is_due(done, self.plan.checkpoint_every) || !matches!(improved, Ok(false)) {
            self.save(done)?;
        }
        if improved? {
            self.folder.mark_best(&self.newest)?;
        }
        Ok(())
    }

    /// Whether this is the process that writes the folder.
    fn is_first(&self) -> bool {
        self.learner.collective.rank() == 0
    }

    fn metadata(&self, step: u64) -> Metadata {
        let epoch = self.plan.epochs_done(step);
        let metadata = Metadata::new(step, epoch, &self.config, self.best);
        let mut metadata = metadata.with_images(&self.images);
        metadata.from_weights = self.from_weights;
        metadata.is_unchecked = self.unchecked == Some(step);
        metadata.sums = self.sums.unless_empty();
        metadata
    }

    fn save(&mut self, step: u64) -> Result<(), RunError> {
        let path = self.folder.checkpoint(self.plan.epochs_done(step), step);
        if !self.learner.is_finite() {
            return Err(RunError::Weights { step, checkpoint: self.newest.clone() });
        }
        if self.is_first() {
            checkpoint::save(&path, &self.learner, self.metadata(step))?;
            self.log.flush()?;
            self.folder.prune(self.config.checkpoint.keep_last)?;
            self.observer.notice(&Event::Checkpoint(&path));
        }
        (self.newest, self.saved) = (path, Some(step));
        Ok(())
    }

    pub(super) fn report_broken(&mut self, loader: &Loader) -> Result<(), RunError> {
        for broken in loader.take_new_broken() {
            let name = esvit_data::printable(&broken.name);
            self.log.say(&format!("left out `{name}`: {}", broken.reason))?;
            self.observer.notice(&Event::Broken(&broken));
        }
        Ok(())
    }

    /// Logs why the run failed.
    pub(super) fn record_failure(&mut self, error: &RunError) {
        // The error is returned anyway; on a full disk it cannot be logged.
        let _ = self.log.say(&format!("error: {error}"));
    }

    pub(super) fn note(&mut self, note: &str) -> Result<(), RunError> {
        self.log.say(note)?;
        self.observer.notice(&Event::Note(note));
        Ok(())
    }

    pub(super) fn warn(&mut self, warning: &str) -> Result<(), RunError> {
        self.log.say(&format!("warning: {warning}"))?;
        self.observer.notice(&Event::Warning(warning));
        Ok(())
    }

    fn outcome(&self, end: End, step: u64, training: Duration, loader: &Loader) -> Outcome {
        Outcome {
            end,
            step,
            session_steps: step - self.plan.first_step,
            checkpoint: self.newest.clone(),
            knn: self.last_knn,
            knn_at_start: self.first_knn,
            retrieval: self.found[0].zip(self.found[1]).map(|(first, last)| [first, last]),
            best: self.best,
            training,
            elapsed: self.began.elapsed(),
            broken: loader.broken().len(),
        }
    }
}

/// Gives a run whose length is a time the steps and checks that fit; says so.
fn decide_length(
    config: &mut Config,
    costs: &Costs,
    began: Instant,
    first_step: u64,
    loader: &Loader,
) -> Result<Vec<String>, RunError> {
    let Some(time) = config.train.time else { return Ok(Vec::new()) };
    let (every, steps_per_epoch) = (config.knn.every, loader.steps_per_epoch());
    let given = (time.0, costs.spent + began.elapsed());
    let found = costs.within(given, first_step, steps_per_epoch, every)?;
    let total_steps = first_step + found.steps;
    (config.train.steps, config.train.time) = (Some(total_steps), None);
    config.knn.every = found.every;
    let count = checks(first_step, RunLength { total_steps, steps_per_epoch }, found.every);
    let checks = match costs.checks.each.is_zero() || count == 0 {
        true => String::new(),
        false => {
            let each = costs.checks.each.as_secs_f64();
            format!(" and {} of {each:.1} s", counted(count as usize, "check"))
        }
    };
    let (steps, step) = (found.steps, costs.step.later.as_secs_f64());
    let mut notes = vec![format!("{steps} steps of {step:.3} s{checks} fit {time}")];
    if found.every != every {
        notes.push(format!(
            "a check comes every {} of the run instead of {every} (`knn.every`): more would take over {:.0} % \
             of the time",
            found.every,
            100.0 * FOR_CHECKS
        ));
    }
    Ok(notes)
}

/// What goes through the networks of a batch of crops.
pub(super) fn micro_batch(
    batch: &Batch,
    config: &Config,
    source: &dyn Source,
    device: &Device,
) -> MicroBatch {
    let normalization = config.views.normalization();
    let images = 0..batch.samples.len();
    let input = |crops| network_input(crops, images.clone(), &normalization, device);
    let views = batch.views.iter().map(input).collect();
    let label = |&sample: &u64| source.label(sample as usize).unwrap_or(0);
    let needs_labels = config.objective.settings().needs_labels();
    let labels = if needs_labels { batch.samples.iter().map(label).collect() } else { Vec::new() };
    MicroBatch { views, labels, samples: batch.samples.clone() }
}

/// The machine and command of a run, and of those that went on with it.
fn with_earlier(path: &Path, environment: Value) -> Value {
    let earlier =
        esvit_files::read_regular(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let Some(Value::Object(mut first)) = earlier else { return environment };
    let resumed = first.entry("resumed").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(resumed) = resumed {
        resumed.push(environment);
    }
    Value::Object(first)
}

/// The palette of a network that learns from colors, for other runs and other programs.
fn write_palette(config: &Config, learner: &Learner, folder: &RunFolder) -> Result<(), RunError> {
    let is_of_colors = matches!(config.objective, ObjectiveConfig::Igpt(_));
    let Some(colors) = igpt::palette(&learner.student).filter(|_| is_of_colors) else {
        return Ok(());
    };
    palette::write(&folder.file("palette.npy"), &colors, &config.views.normalization())?;
    Ok(())
}

fn write_text(path: &Path, text: &str) -> Result<(), RunError> {
    write_atomically(path, |file| std::io::Write::write_all(file, text.as_bytes()))?;
    Ok(())
}
