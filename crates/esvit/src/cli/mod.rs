//! The command line.

mod args;
mod attend;
mod bench;
mod candidates;
mod compare;
mod completions;
mod config;
mod costs;
mod data;
mod diff;
mod disk;
mod embed;
mod ending;
mod eval;
mod exit;
mod export;
mod flags;
mod images;
mod info;
mod man;
mod map;
mod match_images;
mod neighbors;
mod output;
mod parse;
mod pca;
mod plan;
mod pretrain;
mod profile_table;
mod progress;
mod report;
mod settings;
mod shell;
mod signals;
mod teacher;
mod verify;
mod weights_report;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use esvit_kernels::huge_pages;
use esvit_kernels::isa::{self, Amx};
use esvit_train::config::ConfigError;

use args::{BackboneArgs, NetworkArgs, TaskArgs, image_set};
use data::Data;
use eval::Eval;
use exit::{Exit, USAGE};
use output::{GENERAL, Output, OutputArgs, check_writable};

/// Self-supervised pre-training of vision transformers (EsViT, DINO), with evaluation,
/// visualization and export.
#[derive(Debug, Parser)]
#[command(
    name = "esvit",
    version,
    max_term_width = 100,
    args_override_self = true,
    disable_help_flag = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print help; `esvit help COMMAND` says what each value means
    #[arg(long, short, global = true, action = ArgAction::HelpShort, help_heading = GENERAL)]
    help: (),
    #[command(flatten)]
    output: OutputArgs,
    /// CPU threads [default: one per core]
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = GENERAL)]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pre-train a backbone on a folder of unlabeled images, or on the built-in ones.
    #[command(visible_alias = "train")]
    Pretrain(Box<pretrain::Pretrain>),
    /// Resume a run from its newest checkpoint.
    Resume(pretrain::Resume),
    /// Train variants of a run with several seeds, and compare what they learn.
    Compare(Box<compare::Compare>),
    /// Print the settings that a run would have, each with what it is and where it comes from.
    Config(Box<config::ConfigCommand>),
    /// Evaluate a backbone: k-NN, linear probe, transfer, fine-tuning, retrieval, correspondence, ...
    #[command(subcommand)]
    Eval(Eval),
    /// Draw the attention of a query pixel, head by head.
    Attend(attend::Attend),
    /// Write an HTML report of a run: curves, crops, evaluations, settings.
    Report(report::Report),
    /// Extract the features of a folder of images.
    Embed(embed::Embed),
    /// Draw the best-matching regions of two images, or of two views of one image.
    Match(match_images::Match),
    /// Draw region features as colors, by principal components.
    Pca(pca::Pca),
    /// Draw the nearest neighbors of images in feature space.
    #[command(alias = "neighbours")]
    Neighbors(neighbors::Neighbors),
    /// Draw a two-dimensional map (t-SNE or PCA) of the features of many images.
    Map(map::Map),
    /// Export a backbone to timm, torchvision, transformers, ONNX or the official EsViT code.
    Export(export::Export),
    /// Compare the tensors of two weights files, whatever their naming.
    Diff(diff::Diff),
    /// List architectures, recipes and precisions, or describe a weights file.
    Info(info::Info),
    /// Check this program's numbers against stored reference cases.
    Verify(verify::Verify),
    /// Benchmark training steps, forward passes, kernels, k-NN and data loading.
    Bench(bench::Bench),
    /// Inspect training data.
    #[command(subcommand)]
    Data(Data),
    /// Print a script that completes commands and options in a shell.
    Completions(completions::Completions),
    /// Write man pages.
    Man(man::Man),
}

impl Command {
    /// Whether all that the command does with networks is to run them forward.
    fn runs_forward_alone(&self) -> bool {
        match self {
            Self::Eval(eval) => !matches!(eval, Eval::Finetune(_) | Eval::Efficiency(_)),
            Self::Bench(bench) => bench.is_of_forward_pass(),
            Self::Attend(_) | Self::Embed(_) | Self::Match(_) => true,
            Self::Pca(_) | Self::Neighbors(_) | Self::Map(_) => true,
            _ => false,
        }
    }
}

/// Says why kernels run without the processor's matrix unit, where time matters.
fn note_refused_amx(command: &Command, output: &Output) {
    let is_long = matches!(command, Command::Pretrain(_) | Command::Resume(_) | Command::Bench(_));
    if is_long && let Amx::Refused { error } = isa::amx() {
        output.note(format_args!(
            "this system does not let the program use the processor's matrix unit, AMX \
             (`arch_prctl` fails with error {error}): kernels take `{}`",
            isa::detected().name(),
        ));
    }
}

/// Parses the command line and runs the command.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let cli = match parse::parse::<Cli>(flags::without_launcher(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors; clap knows which stream each goes to.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    signals::survive_file_limits();
    let output = Output::new(&cli.output);
    if let Some(threads) = cli.threads {
        // Before anything runs on it: it cannot have been made already.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().expect("the pool is made once");
    }
    note_refused_amx(&cli.command, &output);
    if cli.command.runs_forward_alone() {
        huge_pages::enable();
    }
    let result = match cli.command {
        Command::Pretrain(command) => command.run(&output),
        Command::Resume(command) => command.run(&output),
        Command::Compare(command) => command.run(&output),
        Command::Config(command) => command.run(&output),
        Command::Eval(Eval::Knn(command)) => command.run(&output),
        Command::Eval(Eval::Linear(command)) => command.run(&output),
        Command::Eval(Eval::Transfer(command)) => command.run(&output),
        Command::Eval(Eval::Finetune(command)) => command.run(&output),
        Command::Eval(Eval::Correspondence(command)) => command.run(&output),
        Command::Eval(Eval::Retrieval(command)) => command.run(&output),
        Command::Eval(Eval::Attention(command)) => command.run(&output),
        Command::Eval(Eval::Efficiency(command)) => command.run(&output),
        Command::Attend(command) => command.run(&output),
        Command::Report(command) => command.run(&output),
        Command::Embed(command) => command.run(&output),
        Command::Match(command) => command.run(&output),
        Command::Pca(command) => command.run(&output),
        Command::Neighbors(command) => command.run(&output),
        Command::Map(command) => command.run(&output),
        Command::Export(command) => command.run(&output),
        Command::Diff(command) => command.run(&output),
        Command::Info(command) => command.run(&output),
        Command::Verify(command) => command.run(&output),
        Command::Bench(command) => command.run(&output),
        Command::Data(Data::Preview(command)) => command.run(&output),
        Command::Completions(command) => command.run(&output),
        Command::Man(command) => command.run(&output),
    };
    match result {
        Ok(exit) => exit.into(),
        // The reader of our output, such as `head`, has closed the pipe.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(mut error) => {
            // The word that was typed may be an option.
            if let Some(ConfigError::OtherObjective(other)) = error.downcast_mut() {
                other.option = flags::option_of(&other.key);
            }
            output.error(&error);
            ExitCode::from(exit::code_of(&error))
        }
    }
}
