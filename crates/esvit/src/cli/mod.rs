//! The command line.

mod args;
mod attend;
mod bench;
mod data;
mod diff;
mod embed;
mod eval;
mod exit;
mod export;
mod flags;
mod images;
mod info;
mod map;
mod match_images;
mod neighbors;
mod output;
mod pca;
mod pretrain;
mod profile_table;
mod progress;
mod report;
mod settings;
mod verify;
mod weights_report;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{FAILED, USAGE};
use output::{Output, Quiet};

/// Pre-trains vision backbones on images without labels, and evaluates and uses them.
#[derive(Debug, Parser)]
#[command(name = "esvit", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Says less: no progress, no notes.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pre-trains a backbone on a folder of images, or on the built-in ones.
    #[command(visible_alias = "train")]
    Pretrain(pretrain::Pretrain),
    /// Goes on with a run where it stopped.
    Resume(pretrain::Resume),
    /// Measures what a backbone has learned.
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Draws where an image's pixel looks: the attention of every head of a block.
    Attend(attend::Attend),
    /// Writes one HTML page about a run: curves, crops, evaluations, settings.
    Report(report::Report),
    /// Writes the features of a folder of images to a file.
    Embed(embed::Embed),
    /// Draws which parts of two images, or of two views of one, are alike to a backbone.
    Match(match_images::Match),
    /// Draws region features of images by their principal components.
    Pca(pca::Pca),
    /// Draws images with those that a backbone finds most like them.
    #[command(alias = "neighbours")]
    Neighbors(neighbors::Neighbors),
    /// Draws a two-dimensional map of the features of a set of images.
    Map(map::Map),
    /// Writes a backbone for other programs: timm, torchvision, transformers, ONNX, EsViT.
    Export(export::Export),
    /// Compares the tensors of two files of weights.
    Diff(diff::Diff),
    /// Lists architectures and recipes, or tells what a file of weights is.
    Info(info::Info),
    /// Compares what this program computes with stored numeric cases.
    Verify(verify::Verify),
    /// Measures how fast this machine is at what the program does.
    Bench(bench::Bench),
    /// Looks at images before a run.
    #[command(subcommand)]
    Data(data::Data),
}

/// Runs the program.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = flags::translate(arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; both go where clap sends them.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let output = Output::new(if cli.quiet { Quiet::Yes } else { Quiet::No });
    let result = match cli.command {
        Command::Pretrain(command) => command.run(&output),
        Command::Resume(command) => command.run(&output),
        Command::Eval(command) => command.run(&output),
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
        Command::Data(command) => command.run(&output),
    };
    match result {
        Ok(exit) => exit.into(),
        // Whoever read our output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(FAILED)
        }
    }
}
