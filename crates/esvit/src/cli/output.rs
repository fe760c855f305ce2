//! Where words go: results to stdout, talk to stderr, colors and bars only on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::bail;
use esvit_model::features::LeftOut;
use indicatif::{MultiProgress, ProgressBar};

/// Whether talk is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    Yes,
    No,
}

/// The two streams of the program.
#[derive(Debug)]
pub(super) struct Output {
    quiet: Quiet,
    terminal: bool,
    color: bool,
    /// Bars on the terminal: talk is written above them.
    pub(super) bars: MultiProgress,
}

const RED: &str = "31";
const YELLOW: &str = "33";
const CYAN: &str = "36";

impl Output {
    pub(super) fn new(quiet: Quiet) -> Self {
        let terminal = io::stderr().is_terminal();
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { quiet, terminal, color, bars: MultiProgress::new() }
    }

    /// Whether bars can be drawn.
    pub(super) fn draws_bars(&self) -> bool {
        self.terminal && self.quiet == Quiet::No
    }

    /// A result, to stdout.
    pub(super) fn result(&self, text: impl Display) -> io::Result<()> {
        self.bars.suspend(|| writeln!(io::stdout().lock(), "{text}"))
    }

    /// A structure as one JSON object, to stdout.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        Ok(self.result(serde_json::to_string_pretty(value)?)?)
    }

    /// Talk, to stderr.
    pub(super) fn note(&self, text: impl Display) {
        if self.quiet == Quiet::No {
            self.talk(&text.to_string());
        }
    }

    /// A bar for `len` steps, drawn only where bars can be.
    pub(super) fn bar(&self, len: usize) -> ProgressBar {
        match self.draws_bars() {
            true => self.bars.add(ProgressBar::new(len as u64)),
            false => ProgressBar::hidden(),
        }
    }

    /// Warns of images that could not be read.
    pub(super) fn left_out(&self, left_out: &[LeftOut]) {
        for LeftOut { name, reason, .. } in left_out {
            self.warning(format!("left out `{name}`: {reason}"));
        }
    }

    /// A warning, to stderr, also when quiet.
    pub(super) fn warning(&self, text: impl Display) {
        self.talk(&format!("{} {}", self.paint(YELLOW, "warning:"), self.hints(&text.to_string())));
    }

    /// What went wrong and why, to stderr.
    pub(super) fn error(&self, error: &anyhow::Error) {
        let mut text = error.to_string();
        for cause in error.chain().skip(1) {
            let cause = cause.to_string();
            // Many messages already end in their cause.
            if !text.contains(&cause) {
                text.push_str(&format!("\ncause: {cause}"));
            }
        }
        self.talk(&format!("{} {}", self.paint(RED, "error:"), self.hints(&text)));
    }

    fn talk(&self, text: &str) {
        // Nobody is left to be told that stderr cannot be written to.
        let _ = self.bars.suspend(|| writeln!(io::stderr().lock(), "{text}"));
    }

    fn hints(&self, text: &str) -> String {
        text.replace("\nhint:", &format!("\n{}", self.paint(CYAN, "hint:")))
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[1;{color}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Whether an error is that of writing to a reader that has gone.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Finds out before the work what would be in the way of its result: a file that is there already, or
/// no folder to write it into.
pub(super) fn may_write(file: &Path, overwrite: bool) -> anyhow::Result<()> {
    if file.exists() && !overwrite {
        bail!("`{}` is there already\nhint: add `--overwrite`", file.display());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        bail!("there is no folder `{}` to write `{}` into", folder.display(), file.display());
    }
    Ok(())
}
