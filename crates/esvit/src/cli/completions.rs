//! `esvit completions`.

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use esvit_nn::zoo::ARCHITECTURES;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::{auto, recipe};

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
        let mut command = with_values(Cli::command());
        clap_complete::generate(self.shell, &mut command, "esvit", &mut script);
        output.result(String::from_utf8_lossy(&script).trim_end())?;
        Ok(Exit::Success)
    }
}

/// The names that options take.
fn values(option: &str) -> Vec<&'static str> {
    match option {
        "arch" => ARCHITECTURES.iter().map(|arch| arch.name).collect(),
        "objective" => ObjectiveConfig::NAMES.to_vec(),
        "precision" => vec!["auto", "f32", "bf16", "bf16x3"],
        "recipe" => [auto::NAME]
            .into_iter()
            .chain(recipe::RECIPES.iter().map(|recipe| recipe.name))
            .collect(),
        _ => Vec::new(),
    }
}

/// The command with the names that its options take: they are parsed elsewhere, where the error says
/// more than a list.
fn with_values(command: Command) -> Command {
    let command = command.mut_args(|option| match values(option.get_id().as_str()) {
        names if names.is_empty() => option,
        names => option.value_parser(PossibleValuesParser::new(names)),
    });
    command.mut_subcommands(with_values)
}
