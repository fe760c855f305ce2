//! Commands that a signal may end at any time: what they have written is whole, and the same command line goes
//! on with it.

use anyhow::{Context, Result};

use super::Output;
use super::exit::STOPPED;
use super::signals::listen;

/// Says `last_words` at the first signal that asks to stop, and ends the program as one that was stopped.
pub(super) fn end_on_signal(
    last_words: impl Fn() -> String + Send + 'static,
    output: &Output,
) -> Result<()> {
    let output = output.clone();
    listen(move |_| end(&last_words(), &output)).context("cannot listen for signals")
}

#[expect(clippy::exit, reason = "there is nothing to save")]
fn end(last_words: &str, output: &Output) {
    output.count_left_out();
    output.note(last_words);
    // The line of a bar, if it can be cleared.
    let _ = output.bars.clear();
    std::process::exit(STOPPED.into());
}
