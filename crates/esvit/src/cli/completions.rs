//! `esvit completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, Output};

/// Options of `esvit completions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "bash: `esvit completions bash > ~/.local/share/bash-completion/completions/esvit`
zsh: `esvit completions zsh > _esvit`, in a folder of `$fpath`
fish: `esvit completions fish > ~/.config/fish/completions/esvit.fish`"
)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "esvit", &mut script);
        output.result(String::from_utf8_lossy(&script).trim_end())?;
        Ok(Exit::Success)
    }
}
