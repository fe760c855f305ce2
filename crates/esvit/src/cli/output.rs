//! Output: results to stdout, messages to stderr, colors and progress bars only on a terminal.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use esvit_data::{counted, printable};
use esvit_model::features::SkippedImage;
use esvit_train::run::RunFolder;
use indicatif::{FormattedDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::progress::{clock, speed};

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
    left_out: Arc<Mutex<LeftOut>>,
}

/// Images that were left out.
#[derive(Debug, Default)]
struct LeftOut {
    /// Their names: what is left out by a run and by its evaluation is told once.
    names: HashSet<String>,
    /// How many there are since they were last counted.
    uncounted: usize,
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

    /// The same without notes and progress.
    pub(super) fn silent(&self) -> Self {
        Self {
            quiet: true,
            verbose: false,
            progress: false,
            color: self.color,
            bars: self.bars.clone(),
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

    /// A progress bar of `len` steps with their speed and the time left, hidden if bars are not drawn.
    pub(super) fn bar(&self, len: usize) -> ProgressBar {
        let bar = match self.shows_progress() {
            true => self.bars.add(ProgressBar::new(len as u64)),
            false => ProgressBar::hidden(),
        };
        bar.set_style(paced());
        bar
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

    /// The first `parts` of a message beside a bar of steps that fit into its line, each of them whole.
    pub(super) fn set_parts(&self, bar: &ProgressBar, parts: &[String]) {
        let columns = console::Term::stderr().size().1;
        bar.set_message(fitting(parts, usize::from(columns).saturating_sub(width_of(bar))));
    }

    /// Warns of images that could not be read.
    pub(super) fn warn_skipped(&self, left_out: &[SkippedImage]) {
        for SkippedImage { name, reason, .. } in left_out {
            self.warn_left_out(name, reason);
        }
    }

    /// Warns of an image that could not be read, once: the first ten are named, the others counted
    /// when the command ends.
    pub(super) fn warn_left_out(&self, name: &str, reason: &str) {
        let mut left_out = self.left_out();
        if !left_out.names.insert(name.to_owned()) {
            return;
        }
        left_out.uncounted += 1;
        let is_named = left_out.uncounted <= MOST_NAMED;
        drop(left_out);
        if is_named {
            self.warning(format!("left out `{}`: {reason}", printable(name)));
        }
    }

    fn left_out(&self) -> MutexGuard<'_, LeftOut> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many images were left out besides those that were named.
    pub(super) fn count_left_out(&self) {
        let left_out = std::mem::take(&mut self.left_out().uncounted);
        let more = left_out.saturating_sub(MOST_NAMED);
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
        let text = self.hints(&shown(&in_words(error)));
        self.eprint(&format!("{} {text}", self.paint(RED, "error:")));
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

/// An error and its causes.
pub(super) fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Many messages already end in their cause.
        if !text.contains(&cause) {
            text.push_str(&format!("\ncause: {cause}"));
        }
    }
    text
}

/// Columns of a bar of steps without its message.
fn width_of(bar: &ProgressBar) -> usize {
    let (done, of) = (bar.position(), bar.length().unwrap_or(0));
    let elapsed = FormattedDuration(bar.elapsed());
    format!("{:16} {done}/{of} steps  {elapsed}  ", "").chars().count()
}

/// The first of some parts that fit into so many columns, with gaps.
fn fitting(parts: &[String], columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.chars().count() + gap.len() + part.chars().count() > columns {
            break;
        }
        line = line + gap + part;
    }
    line
}

/// How a bar shows what is done, how fast, and the time left.
fn paced() -> ProgressStyle {
    let template = "{bar:16} {pos}/{len}  {speed}  left {left}";
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("speed", |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = write!(text, "{}/s", speed(state.per_sec()));
    });
    style.with_key("left", |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = match state.per_sec() > 0.0 {
            true => text.write_str(&clock(state.eta())),
            false => text.write_str("?"),
        };
    })
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
        let (is_file, folder, file) = (folder.exists(), folder.display(), file.display());
        if is_file {
            bail!("`{folder}` is a file, and `{file}` cannot be in it\nhint: choose another name");
        }
        bail!(
            "there is no folder `{folder}` to write `{file}` into\n\
             hint: make it, or choose another name"
        );
    }
    Ok(())
}

/// Makes a folder that results are written into, unless it is there.
pub(super) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() && !folder.is_dir() {
        bail!("`{}` is a file\nhint: give the name of a folder", folder.display());
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At any width a line ends with a whole part.
    #[test]
    fn parts_of_a_line_are_whole() {
        let parts = ["left 1:35", "loss 3.123", "12 img/s", "teacher entropy 3.21, größe 1"];
        let parts = parts.map(str::to_owned);
        let all = parts.join("  ");
        let mut shown = 0;
        for columns in 0..all.chars().count() + 5 {
            let line = fitting(&parts, columns);
            assert!(line.chars().count() <= columns && all.starts_with(&line), "{line}");
            let count = parts.iter().filter(|part| line.contains(&**part)).count();
            assert_eq!(line, parts[..count].join("  "));
            assert!(count >= shown);
            shown = count;
        }
        assert_eq!(shown, 4);
        assert_eq!(fitting(&parts, 60 - 43), "left 1:35");
        assert_eq!(fitting(&parts, 80 - 43), "left 1:35  loss 3.123  12 img/s");
    }

    #[test]
    fn a_bar_has_its_width() {
        let bar = ProgressBar::hidden();
        bar.set_length(5400);
        bar.set_position(366);
        let shown = "################ 366/5400 steps  00:00:00  ";
        assert_eq!(width_of(&bar), shown.len());
    }
}
