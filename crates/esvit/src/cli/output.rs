//! Output: results to stdout, messages to stderr, colors and progress bars only on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use esvit_data::{counted, printable};
use esvit_model::features::SkippedImage;
use esvit_train::run::RunFolder;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How much the program says, and in what form.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct OutputArgs {
    /// No progress and no notes, only results, warnings and errors.
    #[arg(long, short, global = true, help_heading = GENERAL)]
    quiet: bool,
    /// More lines about what is going on.
    #[arg(long, short, global = true, conflicts_with = "quiet", help_heading = GENERAL)]
    verbose: bool,
    /// No live progress, also on a terminal.
    #[arg(long, global = true, help_heading = GENERAL)]
    no_progress: bool,
    /// When to use colors.
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto", help_heading = GENERAL)]
    color: Color,
}

/// Heading of options that all commands have.
pub(super) const GENERAL: &str = "General";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// The output streams of the program.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// Whether notes and progress bars are off.
    quiet: bool,
    verbose: bool,
    /// Whether progress bars are drawn.
    progress: bool,
    color: bool,
    /// Progress bars; messages are written above them.
    pub(super) bars: MultiProgress,
    /// Number of images that were left out.
    left_out: Arc<AtomicUsize>,
}

/// Images that were left out are named up to this many, and then counted.
const MOST_NAMED: usize = 10;

const RED: &str = "31";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Drop for Output {
    fn drop(&mut self) {
        self.count_left_out();
    }
}

impl Output {
    pub(super) fn new(args: &OutputArgs) -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = io::stderr().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        let color = match args.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !is_dumb && !is_set("NO_COLOR"),
        };
        let progress = terminal && !is_dumb && !args.quiet && !args.no_progress;
        let OutputArgs { quiet, verbose, .. } = *args;
        Self {
            quiet,
            verbose,
            progress,
            color,
            bars: MultiProgress::new(),
            left_out: Arc::default(),
        }
    }

    /// Whether progress bars are drawn.
    pub(super) fn shows_progress(&self) -> bool {
        self.progress
    }

    /// Whether notes are shown.
    pub(super) fn shows_notes(&self) -> bool {
        !self.quiet
    }

    /// Whether more was asked for.
    pub(super) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Writes a result to stdout.
    pub(super) fn result(&self, text: impl Display) -> anyhow::Result<()> {
        let written = self.bars.suspend(|| writeln!(io::stdout().lock(), "{text}"));
        written.context("cannot write to the standard output")
    }

    /// Writes results to stdout, as JSON or as text.
    pub(super) fn print(
        &self,
        json: bool,
        value: &impl serde::Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        if json { self.json(value) } else { self.result(text()) }
    }

    /// Writes a result to stdout as JSON.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.result(serde_json::to_string_pretty(value)?)
    }

    /// Writes a note to stderr, unless quiet.
    pub(super) fn note(&self, text: impl Display) {
        if !self.quiet {
            self.eprint(&shown(&text.to_string()));
        }
    }

    /// A progress bar of `len` steps, hidden if bars are not drawn.
    pub(super) fn bar(&self, len: usize) -> ProgressBar {
        match self.shows_progress() {
            true => self.bars.add(ProgressBar::new(len as u64)),
            false => ProgressBar::hidden(),
        }
    }

    /// Shows a progress bar of `len` steps during `work`, which calls its argument with the number
    /// of steps done.
    pub(super) fn with_bar<T>(
        &self,
        len: usize,
        work: impl FnOnce(&mut (dyn FnMut(usize) + Send)) -> T,
    ) -> T {
        let bar = self.bar(len);
        let result = work(&mut |steps| bar.inc(steps as u64));
        bar.finish_and_clear();
        result
    }

    /// A progress bar of `steps` training steps with their time and a message, likewise.
    pub(super) fn steps_bar(&self, steps: u64) -> ProgressBar {
        let template = "{bar:16} {pos}/{len} steps  {elapsed_precise}  {wide_msg}";
        let style = ProgressStyle::with_template(template);
        let bar = self.bar(steps as usize);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if self.shows_progress() {
            // The clock goes on during a check, too.
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        bar
    }

    /// Warns of images that could not be read.
    pub(super) fn warn_skipped(&self, left_out: &[SkippedImage]) {
        for SkippedImage { name, reason, .. } in left_out {
            self.warn_left_out(name, reason);
        }
    }

    /// Warns of an image that could not be read: the first ten are named, the others counted when
    /// the command ends.
    pub(super) fn warn_left_out(&self, name: &str, reason: &str) {
        if self.left_out.fetch_add(1, Ordering::Relaxed) < MOST_NAMED {
            self.warning(format!("left out `{}`: {reason}", printable(name)));
        }
    }

    /// Says how many images were left out besides those that were named.
    pub(super) fn count_left_out(&self) {
        let more = self.left_out.swap(0, Ordering::Relaxed).saturating_sub(MOST_NAMED);
        if more > 0 {
            self.warning(format!("left out {} more", counted(more, "image")));
        }
    }

    /// Writes a warning to stderr, also when quiet.
    pub(super) fn warning(&self, text: impl Display) {
        let text = self.hints(&shown(&text.to_string()));
        self.eprint(&format!("{} {text}", self.paint(YELLOW, "warning:")));
    }

    /// Writes an error and its causes to stderr.
    pub(super) fn error(&self, error: &anyhow::Error) {
        let mut text = error.to_string();
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            // Many messages already end in their cause.
            if !text.contains(&cause) {
                text.push_str(&format!("\ncause: {cause}"));
            }
        }
        self.eprint(&format!("{} {}", self.paint(RED, "error:"), self.hints(&shown(&text))));
    }

    fn eprint(&self, text: &str) {
        // A failed write to stderr cannot be reported.
        let _ = self.bars.suspend(|| writeln!(io::stderr().lock(), "{text}"));
    }

    fn hints(&self, text: &str) -> String {
        text.replace("\nhint:", &format!("\n{}", self.paint(CYAN, "hint:")))
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[1;{color}m{text}\x1b[0m") } else { text.into() }
    }
}

/// A text without control characters but its line breaks: names of files may hold any.
fn shown(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Whether the error is a broken pipe.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Checks before a long computation that its result can be written: the file must not exist (unless
/// `overwrite` is set or it is a device), must not be one of the `inputs`, and its folder must exist.
pub(super) fn check_writable(file: &Path, overwrite: bool, inputs: &[&Path]) -> anyhow::Result<()> {
    if file.is_dir() {
        bail!("`{}` is a folder\nhint: give the name of a file in it", file.display());
    }
    // A link that leads nowhere is something, too.
    let exists = file.symlink_metadata().is_ok() && !esvit_files::is_device(file);
    if exists && !overwrite {
        bail!("`{}` already exists\nhint: add `--overwrite`", file.display());
    }
    let real = file.canonicalize().ok();
    if real.is_some() && inputs.iter().any(|input| input.canonicalize().ok() == real) {
        bail!(
            "`{}` is what is read, it is not written over\nhint: choose another name",
            file.display()
        );
    }
    if let Some(run) = RunFolder::of_file(file).filter(|_| exists) {
        bail!(
            "`{}` belongs to the run `{}`, it is not written over\nhint: choose another name",
            file.display(),
            run.display()
        );
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("there is no folder `{}` to write `{}` into", folder.display(), file.display());
    }
    Ok(())
}
