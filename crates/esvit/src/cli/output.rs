//! Output: results to stdout, messages to stderr, colors and progress bars only on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::bail;
use esvit_model::features::SkippedImage;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The output streams of the program.
#[derive(Debug)]
pub(super) struct Output {
    /// Whether notes and progress bars are off.
    quiet: bool,
    terminal: bool,
    color: bool,
    /// Progress bars; messages are written above them.
    pub(super) bars: MultiProgress,
}

const RED: &str = "31";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Output {
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { quiet, terminal, color, bars: MultiProgress::new() }
    }

    /// Whether progress bars are drawn.
    pub(super) fn shows_progress(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// Writes a result to stdout.
    pub(super) fn result(&self, text: impl Display) -> io::Result<()> {
        self.bars.suspend(|| writeln!(io::stdout().lock(), "{text}"))
    }

    /// Writes results to stdout, as JSON or as text.
    pub(super) fn print(
        &self,
        json: bool,
        value: &impl serde::Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        Ok(self.result(if json { serde_json::to_string_pretty(value)? } else { text() })?)
    }

    /// Writes a note to stderr, unless quiet.
    pub(super) fn note(&self, text: impl Display) {
        if !self.quiet {
            self.eprint(&text.to_string());
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
        let template = "{bar:24} {pos}/{len} steps  {elapsed_precise} left {eta_precise}  {msg}";
        let style = ProgressStyle::with_template(template);
        let bar = self.bar(steps as usize);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    }

    /// Warns of images that could not be read.
    pub(super) fn warn_skipped(&self, left_out: &[SkippedImage]) {
        for SkippedImage { name, reason, .. } in left_out {
            self.warning(format!("left out `{name}`: {reason}"));
        }
    }

    /// Writes a warning to stderr, also when quiet.
    pub(super) fn warning(&self, text: impl Display) {
        let text = self.hints(&text.to_string());
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
        self.eprint(&format!("{} {}", self.paint(RED, "error:"), self.hints(&text)));
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

/// Whether the error is a broken pipe.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Checks before a long computation that its result can be written: the file must not exist (unless
/// `overwrite` is set), and its folder must.
pub(super) fn check_writable(file: &Path, overwrite: bool) -> anyhow::Result<()> {
    if file.exists() && !overwrite {
        bail!("`{}` already exists\nhint: add `--overwrite`", file.display());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("there is no folder `{}` to write `{}` into", folder.display(), file.display());
    }
    Ok(())
}
