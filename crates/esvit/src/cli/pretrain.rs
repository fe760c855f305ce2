//! `esvit pretrain` and `esvit resume`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use esvit_data::{
    BackgroundSetting, Folders, Preprocess, RangeSetting, Source, counted, printable,
};
use esvit_eval::bench::peak_gflops;
use esvit_eval::labeled::LabeledTask;
use esvit_eval::retrieval::{IMAGES, RetrievalTask};
use esvit_eval::stoppable::{StoppableNetwork, StoppableSource, stoppable_task, unless_stopped};
use esvit_eval::{knn, preview};
use esvit_files::FileError;
use esvit_kernels::{isa, pool, profile};
use esvit_nn::{Backbone, Network, Params, Solo};
use esvit_train::Config;
use esvit_train::auto;
use esvit_train::checkpoint::{Checkpoint, CheckpointError, Measure};
use esvit_train::objective::ObjectiveConfig;
use esvit_train::run::{
    Costs, End, Event, KnnAccuracy, Observer, Options, Outcome, Retrieval, RunError, RunFolder,
    Start, check_overwrite, check_start,
};
use serde_json::json;

use super::args::{newest_or_file, run_around, run_or_file};
use super::flags::ScriptOptions;
use super::plan::Upcoming;
use super::profile_table::profile_table;
use super::progress::{LONG_CHECK, Progress, clock};
use super::settings::{Given, Settings};
use super::shell::{program, quoted};
use super::signals::Signals;
use super::{BackboneArgs, Exit, NetworkArgs, Output, eval};
use super::{plan, teacher};

/// Options of `esvit pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The options of DINO's and EsViT's scripts are accepted too, with their \
                        underscores: --data_path, --batch_size_per_gpu, --teacher_temp and so on.")]
pub(super) struct Pretrain {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    script: ScriptOptions,
    /// Run folder [default: runs/<recipe>-<number>]
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Resume the run in the folder, if there is one.
    #[arg(long, conflicts_with_all = ["overwrite", "init_from", "continue_from"])]
    resume: bool,
    /// Delete an earlier run in the folder.
    #[arg(long)]
    overwrite: bool,
    /// Initialize from the weights in this file, or of this run; everything else starts afresh.
    #[arg(long, value_name = "PATH", conflicts_with = "continue_from", value_parser = run_or_file())]
    init_from: Option<PathBuf>,
    /// Network of `--init-from` to take, such as `student` [default: the one that its method evaluates, or
    /// the only one; student and teacher of a run each from their own]
    #[arg(long, value_name = "NAME", requires = "init_from")]
    key: Option<String>,
    /// Continue in a new folder from the full state of a checkpoint, or of the newest one of a run,
    /// with its settings and what is changed here, for instance to add the region loss.
    #[arg(long, value_name = "PATH", value_parser = newest_or_file())]
    continue_from: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// Options of new and of resumed runs.
#[derive(Debug, clap::Args)]
struct How {
    /// Memory limit, for instance `8G`: splits each step into micro-batches that fit, as large as
    /// possible.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<f64>,
    /// Print the time spent in each phase.
    #[arg(long)]
    profile: bool,
    /// Say what the run would do, and print its settings, instead of starting it. A step is timed;
    /// with `--quiet` only where settings depend on it, as for `--time`.
    #[arg(long)]
    dry_run: bool,
    /// Print what came of the run as JSON; with `--dry-run`, what it would do.
    #[arg(long)]
    json: bool,
}

/// Options of `esvit resume`.
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    /// Run folder.
    run: PathBuf,
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    how: How,
}

impl Pretrain {
    pub(super) fn run(mut self, output: &Output) -> Result<Exit> {
        self.settings.add(&self.script, output)?;
        let recipe = self.settings.recipe()?;
        let continue_from = self.continue_from.or(self.script.continue_from);
        let is_named = self.out.is_some() || self.script.out.is_some();
        let out = match self.out.or(self.script.out) {
            Some(out) => out,
            None => run_folder(Path::new("runs"), &recipe, self.resume),
        };
        if self.resume && RunFolder::at(out.clone()).config().is_file() {
            if self.settings.has_recipe() {
                output.note(
                    "`--recipe` is for new runs: this one goes on with the settings that it has",
                );
            }
            return resume(&out, &self.settings.given, &self.how, output);
        }
        if !self.resume && !self.how.dry_run {
            RunFolder::check_free(&out, self.overwrite)?;
        }
        self.settings.weights = self.init_from.clone().map(|path| (path, self.key.clone()));
        let config = match &continue_from {
            Some(checkpoint) => self.settings.resolve_continued(checkpoint, output)?,
            None => self.settings.resolve(output)?,
        };
        if self.resume {
            say_new(&out, is_named && !self.settings.has_recipe(), &config, output);
        }
        let start = match (self.init_from, continue_from) {
            (Some(path), _) => Start::InitFrom { path, key: self.key },
            (None, Some(path)) => Start::ContinueFrom(path),
            (None, None) if self.resume => Start::Resume,
            (None, None) => Start::New,
        };
        if self.overwrite {
            // Before anything is opened or timed, and by a dry run, too.
            check_overwrite(&out, &config, &start)?;
        }
        let is_chosen = !self.settings.is_script() && auto::named(&recipe).is_some();
        self.how.start(config, &out, start, self.overwrite, is_chosen, output)
    }
}

impl How {
    /// Does what a run with these settings is asked for.
    fn start(
        &self,
        mut config: Config,
        out: &Path,
        start: Start,
        overwrite: bool,
        is_chosen: bool,
        output: &Output,
    ) -> Result<Exit> {
        teacher::attach(&mut config, output)?;
        config.check_ready()?;
        if self.dry_run {
            let step = newest(out).filter(|_| start == Start::Resume).map_or(0, |(step, _)| step);
            if start == Start::Resume {
                output.note(match step {
                    0 => "the run begins anew: it has no steps yet".to_owned(),
                    step => format!("the run goes on after step {step}"),
                });
            }
            let found = match output.shows_notes() {
                true => Some(images(&config, output)?),
                false => None,
            };
            if let Some(memory) = self.memory {
                let source = match &found {
                    Some((source, _)) => source.clone(),
                    None => preview::source(&config)?,
                };
                plan::fit_memory(&mut config, &*source, memory, output)?;
            }
            let plan = match found {
                Some((source, task)) => {
                    let prepared = Prepared { config: config.clone(), source, task, costs: None };
                    check_start(&prepared.config, &*prepared.source, &start)?;
                    Some(prepared.upcoming(out, &start, is_chosen).show(output)?)
                }
                None => None,
            };
            let would = json!({
                "run": printable(out),
                "first_step": step,
                "plan": plan,
                "settings": config,
            });
            output.print(self.json, &would, || config.to_toml().trim_end().to_owned())?;
            return Ok(Exit::Success);
        }
        let done = self.train(&config, out, start, overwrite, is_chosen, output)?;
        if self.profile {
            let peak = peak_gflops(config.train.precision());
            output.note(profile_table(peak, None));
        }
        Ok(done)
    }
}

impl Resume {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if !self.run.join("config.toml").is_file() {
            let hint = match run_around(&self.run) {
                Some(run) => format!("name the run itself: `{} resume {}`", program(), quoted(run)),
                None => "name the folder that `--out` named; without it, runs are in `runs`".into(),
            };
            bail!(
                "there is no run in `{}`, which would have a `config.toml`\nhint: {hint}",
                self.run.display()
            );
        }
        resume(&self.run, &self.given, &self.how, output)
    }
}

/// Parses a size such as `8G`, `6.5GB` or `800MiB` into bytes. One without a unit is refused: `8` is seldom meant
/// to be bytes.
fn bytes(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_ascii_lowercase();
    match lower.parse::<f64>() {
        Ok(few) if (0.0..1e6).contains(&few) && few != 0.0 => {
            return Err(format!("a size has a unit: write `{lower}G` or `{lower}M`"));
        }
        Ok(bytes) if bytes.is_finite() && bytes >= 1e6 => {
            return Err(format!("a size has a unit: write `{lower}B`"));
        }
        _ => {}
    }
    let number = lower.trim_end_matches('b');
    let (number, base) = match number.strip_suffix('i') {
        Some(number) => (number, 1024.0_f64),
        None => (number, 1000.0),
    };
    let (number, factor) = match number.chars().last().and_then(|last| "kmgt".find(last)) {
        Some(power) => (&number[..number.len() - 1], base.powi(power as i32 + 1)),
        None => (number, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * factor),
        _ => Err("a size such as `8G` or `800M` is needed".to_owned()),
    }
}

/// Resumes the run in a folder.
fn resume(out: &Path, given: &Given, how: &How, output: &Output) -> Result<Exit> {
    let config = given.resolve_stored(&RunFolder::at(out.into()), output)?;
    how.start(config, out, Start::Resume, false, false, output)
}

/// Says that there is no run to resume, and on which images a new one begins. Where a folder `is_named` and no
/// images are, its name may be mistyped.
fn say_new(out: &Path, is_named: bool, config: &Config, output: &Output) {
    let new = format!("there is no run in `{}` to resume: a new one begins", out.display());
    match &config.data.path {
        Some(folders) => output.note(format!("{new}, on the images in {folders}")),
        None if is_named => output.warning(format!(
            "{new}, on the built-in images\n\
             hint: name the folder of the run with `--out`, or your own images with `--data FOLDER`"
        )),
        None => output.note(format!("{new}, on the built-in images")),
    }
}

/// The folder `name-N` in `parent`: the last existing one if `last` is set and there is one, else the
/// first free one.
fn run_folder(parent: &Path, name: &str, last: bool) -> PathBuf {
    let folder = |number: u32| parent.join(format!("{name}-{number}"));
    let free = (1..).find(|&number| !folder(number).exists()).unwrap_or(1);
    // Without a run there is nothing to resume, and one is started.
    folder(if last { (free - 1).max(1) } else { free })
}

impl How {
    fn train(
        &self,
        config: &Config,
        out: &Path,
        start: Start,
        overwrite: bool,
        is_chosen: bool,
        output: &Output,
    ) -> Result<Exit> {
        let signals = Signals::listen(&[], "stopped before the first step", output)?;
        let mut prepared = Prepared::new(config, out, &start, self.memory, output)?;
        prepared.announce(out, &start, is_chosen, output)?;
        profile::enable(self.profile);
        let mut progress = Progress::new(output);
        let stop = signals.asked().clone();
        let outcome = prepared.train(out, start, overwrite, stop, &signals, &mut progress);
        let outcome = outcome.map_err(|error| on_full(error, out))?;
        drop(progress);
        signals.end_at_once("stopped: the run is saved, its network was being measured");
        // A run that is asked to stop at its end is not measured any more.
        let task = prepared.task.as_ref().filter(|_| !signals.is_asked());
        if let Some(costs) = prepared.costs.filter(|costs| costs.checks.end >= LONG_CHECK)
            && task.is_some()
            && outcome.end == End::Finished
        {
            output.note(format!(
                "measuring the network beside raw pixels and the untrained one, about {}",
                clock(costs.checks.end)
            ));
        }
        report(&prepared.config, &outcome, task, out, self.json, output)
    }
}

/// A run whose images are at hand.
pub(super) struct Prepared {
    /// Its settings.
    pub(super) config: Config,
    /// Its images.
    pub(super) source: Arc<dyn Source>,
    /// What its checks of k-NN accuracy are made on.
    pub(super) task: Option<LabeledTask>,
    /// How long its parts take, if that was measured.
    pub(super) costs: Option<Costs>,
}

impl Prepared {
    /// Opens the images of a run. Its steps are cut to fit into an amount of memory, in bytes, if one is
    /// given; else settings that need more than there is are refused.
    pub(super) fn new(
        config: &Config,
        out: &Path,
        start: &Start,
        memory: Option<f64>,
        output: &Output,
    ) -> Result<Self> {
        let (source, task) = images(config, output)?;
        let mut config = config.clone();
        match memory {
            Some(memory) => plan::fit_memory(&mut config, &*source, memory, output)?,
            None => plan::check_memory(&config, &*source)?,
        }
        // What a run of an earlier version was shown had the whole range, and the mean color behind it.
        let is_resumed = *start == Start::Resume && out.join("config.toml").is_file();
        if is_resumed || matches!(start, Start::ContinueFrom(_)) {
            config.data.range = RangeSetting::Levels(config.data.range.levels());
            config.data.background = BackgroundSetting::Is(config.data.background.background());
        }
        let chosen = preview::choose_conversion(&mut config, &*source);
        chosen.iter().for_each(|line| output.note(line));
        Ok(Self { config, source, task, costs: None })
    }

    /// Says what the run takes, and notes how long its parts take: in a length that is a time, checks are to have
    /// room. `is_chosen` says that a recipe has chosen settings for its images, and has said what to keep in mind.
    pub(super) fn announce(
        &mut self,
        out: &Path,
        start: &Start,
        is_chosen: bool,
        output: &Output,
    ) -> Result<()> {
        // What would end it is not waited for.
        check_start(&self.config, &*self.source, start)?;
        self.costs = self.upcoming(out, start, is_chosen).announce(output)?;
        Ok(())
    }

    /// The run, before it begins.
    fn upcoming<'a>(&'a self, out: &'a Path, start: &Start, is_chosen: bool) -> Upcoming<'a> {
        let step_of = |path: &Path| Some(Checkpoint::open(path).ok()?.run().ok()?.step);
        let first = match start {
            Start::New | Start::InitFrom { .. } => None,
            Start::ContinueFrom(path) => step_of(path),
            Start::Resume => newest(out).map(|(step, _)| step),
        };
        let from_nothing = match start {
            Start::New => true,
            Start::Resume => first.is_none(),
            Start::InitFrom { .. } | Start::ContinueFrom(_) => false,
        };
        // The built-in images are for trying things out.
        let is_own = self.config.data.path.is_some();
        let has_teacher = matches!(self.config.objective, ObjectiveConfig::Distill(_));
        Upcoming {
            config: &self.config,
            source: &self.source,
            task: self.task.as_ref(),
            from_weights: matches!(start, Start::InitFrom { .. }),
            first: first.unwrap_or(0),
            out,
            is_cautious: from_nothing && is_own && !is_chosen && !has_teacher,
        }
    }

    /// Trains it in its folder until its end, or until `stop` is set. A signal stops its checks, too; before its
    /// first step it ends the program.
    pub(super) fn train(
        &self,
        out: &Path,
        start: Start,
        overwrite: bool,
        stop: Arc<AtomicBool>,
        signals: &Signals,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, RunError> {
        let Self { config, source, task, costs } = self;
        let (preprocess, asked) = (config.preprocess(), signals.asked());
        let mut check = task.as_ref().map(|task| knn_check(config, task, &preprocess, asked));
        let stoppable = StoppableSource::new(source.clone(), asked.clone());
        let crops = RetrievalTask::new(Arc::new(stoppable), IMAGES);
        let mut retrieval = retrieval_check(&crops, &preprocess, asked);
        let mut observer = FromBegin { observer, signals };
        let options = Options {
            out: out.into(),
            overwrite,
            start,
            source: source.clone(),
            collective: Solo::shared(),
            stop,
            environment: environment(),
            observer: &mut observer,
            knn: check.as_mut().map(|check| check as _),
            retrieval: (crops.len() > 1).then_some(&mut retrieval as _),
            costs: *costs,
        };
        esvit_train::pretrain(config, options)
    }
}

/// Lets signals wait for a run from its begin on: then there is a state to save.
struct FromBegin<'a> {
    observer: &'a mut dyn Observer,
    signals: &'a Signals,
}

impl Observer for FromBegin<'_> {
    fn notice(&mut self, event: &Event<'_>) {
        if let Event::Begin(_) = event {
            self.signals.save_first();
        }
        self.observer.notice(event);
    }
}

/// The newest checkpoint of a run and its step.
pub(super) fn newest(run: &Path) -> Option<(u64, PathBuf)> {
    RunFolder::at(run.into()).list().ok()?.into_iter().next()
}

/// An error, with how the run goes on if it is that of a full disk.
fn on_full(error: RunError, out: &Path) -> anyhow::Error {
    let is_full = matches!(
        error,
        RunError::File(FileError::DiskFull { .. })
            | RunError::Checkpoint(CheckpointError::File(FileError::DiskFull { .. }))
    );
    match newest(out).filter(|_| is_full) {
        Some((step, _)) => anyhow!(
            "{error}\nhint: with room on the disk, `{} resume {}` goes on after step {step}",
            program(),
            quoted(out)
        ),
        None => error.into(),
    }
}

/// The images that a run learns from, and its k-NN task if there are labels.
pub(super) fn images(
    config: &Config,
    output: &Output,
) -> Result<(Arc<dyn Source>, Option<LabeledTask>)> {
    let all = preview::all_images(config)?;
    let source = preview::learned(config, all.clone())?;
    let Some(folders) = &config.data.path else {
        let images = counted(all.len(), "built-in image");
        output.note(format!("{images} (`--data FOLDER` names your own)"));
        return Ok((source, LabeledTask::of_run(config, &all)?));
    };
    output.note(format!("{} in {folders}", counted(all.len(), "image")));
    all.notes().iter().for_each(|note| output.note(note));
    let task = LabeledTask::of_run(config, &all)?;
    if let Some(task) = &task {
        output.note(format!("k-NN check on {}", task.description));
        let aside = all.len() - source.len();
        labels_in_words(config, all.classes(), aside).iter().for_each(|line| output.note(line));
    }
    Ok((source, task))
}

/// What the labels of a run that is checked are for, unless the user has named them for its checks. `aside`
/// images are not trained on.
fn labels_in_words(config: &Config, classes: &[String], aside: usize) -> Option<String> {
    let is_learned = config.objective.settings().needs_labels();
    let is_asked = config.knn.train.is_some() || config.knn.val.is_some();
    let classes = list_some(classes);
    match (is_learned, aside) {
        (true, 0) => Some(format!(
            "its folders are the classes that it learns: {classes}; other images judge it (`knn.every=0` \
             for no checks)"
        )),
        (true, aside) => Some(format!(
            "its folders are the classes that it learns: {classes}; {} set aside to judge it and not \
             trained on (`knn.every=0` trains on all, without checks)",
            match aside {
                1 => "1 image is".to_owned(),
                several => format!("{several} images are"),
            }
        )),
        (false, _) if is_asked => None,
        (false, _) => Some(format!(
            "its folders are taken for classes: {classes}; they judge the run and do not teach it \
             (`knn.every=0` for no checks)"
        )),
    }
}

/// The first of some names, and how many there are.
fn list_some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let first: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{} ({}{more})", names.len(), first.join(", "))
}

/// What a check of a run gives: nothing if it was stopped.
type Checked<T> = Result<Option<T>, Box<dyn std::error::Error + Send + Sync>>;

fn knn_check<'a>(
    config: &'a Config,
    task: &LabeledTask,
    preprocess: &'a Preprocess,
    stop: &'a Arc<AtomicBool>,
) -> impl FnMut(&Network, &Params) -> Checked<KnnAccuracy> + use<'a> {
    let task = stoppable_task(task, stop);
    move |network, teacher| {
        let (k, temperature) = (config.knn.k, config.knn.temperature);
        let network = StoppableNetwork::new(network.backbone(), stop);
        let network: &dyn Backbone = &network;
        let measured = unless_stopped(|| {
            knn::accuracy(&task, (network, teacher), preprocess, &[k], temperature, |_| ())
        });
        let Some(measured) = measured.transpose()? else { return Ok(None) };
        let accuracy = measured.accuracies.first().ok_or("no accuracy")?;
        Ok(Some(KnnAccuracy { top1: accuracy.top1, top5: accuracy.top5 }))
    }
}

/// A check on the images of `task`, which are to be stoppable.
fn retrieval_check<'a>(
    task: &'a RetrievalTask,
    preprocess: &'a Preprocess,
    stop: &'a AtomicBool,
) -> impl FnMut(&Network, &Params) -> Checked<Retrieval> + use<'a> {
    move |network, teacher| {
        let network = StoppableNetwork::new(network.backbone(), stop);
        let network: &dyn Backbone = &network;
        let measured = unless_stopped(|| task.measure((network, teacher), preprocess));
        let found = measured.transpose()?;
        Ok(found.map(|(found, _)| Retrieval { images: found.images, top1: found.top1 }))
    }
}

/// Machine and program, stored with the run.
pub(super) fn environment() -> serde_json::Value {
    json!({
        "program": env!("CARGO_PKG_VERSION"),
        "command": std::env::args_os().map(printable).collect::<Vec<_>>(),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "threads": pool::threads(),
        "processor": processor(),
        "isa": isa::current().name(),
        "folder": std::env::current_dir().ok().as_deref().and_then(Path::to_str),
    })
}

/// The processor, as its system names it.
pub(super) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Prints the outcome of the run and the next commands.
fn report(
    config: &Config,
    outcome: &Outcome,
    task: Option<&LabeledTask>,
    out: &Path,
    json: bool,
    output: &Output,
) -> Result<Exit> {
    let mut result = json!({
        "run": printable(out),
        "end": outcome.end.name(),
        "steps": outcome.step,
        "session_steps": outcome.session_steps,
        "seconds": outcome.training.as_secs_f64(),
        "session_seconds": outcome.elapsed.as_secs_f64(),
        "checkpoint": printable(&outcome.checkpoint),
        "left_out": outcome.broken,
        "retrieval": outcome.retrieval,
        "best": outcome.best,
    });
    if outcome.broken > 0 {
        output.warning(format!(
            "{} left out, `{}` names them",
            counted(outcome.broken, "image"),
            out.join("train.log").display()
        ));
    }
    if outcome.end == End::Stopped {
        if json {
            output.json(&result)?;
        }
        output.note(format!("to resume: {} resume {}", program(), quoted(out)));
        return Ok(Exit::Stopped);
    }
    output.count_left_out();
    if outcome.training > Duration::ZERO {
        let steps = counted(outcome.session_steps as usize, "step");
        let rest = outcome.elapsed.saturating_sub(outcome.training);
        let rest = match rest < Duration::from_secs(1) {
            true => String::new(),
            false => format!(", checks and checkpoints in {}", clock(rest)),
        };
        output.note(format!("{steps} in {}{rest}", clock(outcome.training)));
    }
    let kept = outcome.best.and_then(|best| best.of_beginning());
    if let Some([first, last]) = outcome.retrieval {
        let (before, after) = (first.retrieval_top1, last.retrieval_top1);
        output.note(format!(
            "the other crop of an image is found among {} images: {before:.1} % before training, \
             {after:.1} % after it",
            last.retrieval_images
        ));
        // Among few images, chance alone moves it by more than training does. Labels judge better, and of
        // weights to begin with more is said below.
        let is_told = kept.is_some();
        if task.is_none() && after <= before && last.retrieval_images >= 100 && !is_told {
            output.warning(format!(
                "the network tells these images apart no better than before training\n\
                 hint: train longer, or look at what it sees with `{} data preview --config {}`",
                program(),
                quoted(RunFolder::at(out.into()).config())
            ));
        }
    }
    if let Some(kept) = kept {
        output.warning(kept);
    }
    if let Some(task) = task.filter(|_| outcome.end == End::Finished) {
        let (ks, temperature) = ([config.knn.k], config.knn.temperature);
        let checkpoint = outcome.checkpoint.clone();
        let network = NetworkArgs::on(config.train.device.parse()?);
        let choice = BackboneArgs { checkpoint, network };
        let backbone = choice.open(output)?;
        let mut measured =
            eval::knn::measure(&choice, &backbone, task, (&ks, temperature), output)?;
        outcome.knn_at_start.iter().for_each(|first| measured.add_start(first));
        let is_best = outcome.best.is_none_or(|best| best.step == Some(outcome.step));
        measured.weights = (!is_best).then_some("the weights of the last step");
        if json {
            result["knn"] = measured.report();
        } else {
            measured.print(false, output)?;
        }
    }
    if json {
        output.json(&result)?;
    }
    output.note(weights_in_words(outcome, &RunFolder::at(out.into()).best()));
    let (program, run) = (program(), quoted(out));
    let name = out.file_name().unwrap_or_else(|| "features".as_ref());
    let features = quoted(Path::new(name).with_added_extension("npy"));
    output.note("next steps:");
    output.note(format!("  {program} report {run}"));
    let folders = config.data.path.as_ref().map_or(&[][..], Folders::paths);
    let option = |name: &str| -> String {
        folders.iter().map(|path| format!(" {name} {}", quoted(path))).collect()
    };
    if folders.is_empty() || (task.is_some() && folders.len() == 1) {
        output.note(format!("  {program} eval linear --checkpoint {run}{}", option("--train")));
    }
    let data = option("--data");
    output.note(format!("  {program} embed --checkpoint {run}{data} --out {features}"));
    Ok(Exit::Success)
}

/// Which weights there are: those of the best check, in the file `best`, and those of the last step.
fn weights_in_words(outcome: &Outcome, best: &Path) -> String {
    if !best.is_file() {
        return format!("weights: `{}`", outcome.checkpoint.display());
    }
    let which = match outcome.best {
        Some(best) if best.step == Some(outcome.step) => " of the last step, the best ones".into(),
        Some(best) => {
            let top1 = match best.by {
                Measure::Knn => format!("k-NN top-1 {:.1} %", best.top1),
                Measure::Retrieval => format!("the other crop found in {:.1} %", best.top1),
            };
            let when =
                best.step.map_or(format!("epoch {}", best.epoch), |step| format!("step {step}"));
            format!(" of {when} ({top1}), and those of the last step")
        }
        None => ", and those of the last step".into(),
    };
    format!("weights: `{}`{which}", best.display())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [
            ("8G", 8e9),
            ("8gb", 8e9),
            ("8GiB", 8.0 * 1024.0 * 1024.0 * 1024.0),
            ("6.5 MB", 6.5e6),
            ("3Ki", 3072.0),
            ("3k", 3e3),
            ("2T", 2e12),
            ("1000B", 1e3),
            ("8e9b", 8e9),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "0", "0G", "-8G", "nanG", "infG", "8X", "8 G 1", "-8", "inf"] {
            let error = bytes(text).unwrap_err();
            assert_eq!(error, "a size such as `8G` or `800M` is needed", "{text}");
        }
        for (text, form) in [("8", "`8G` or `8M`"), (" 6.5", "`6.5G` or `6.5M`"), ("8e9", "`8e9B`")]
        {
            assert_eq!(bytes(text), Err(format!("a size has a unit: write {form}")));
        }
    }
}
