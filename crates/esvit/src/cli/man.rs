//! `esvit man`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Command, CommandFactory};
use esvit_files::write_atomically;

use super::output::make_folder;
use super::{Cli, Exit, Output, check_writable};

/// Options of `esvit man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "`man -l FOLDER/esvit-pretrain.1` shows a page; \
                        those in `~/.local/share/man/man1` are found by name.")]
pub(super) struct Man {
    /// Folder to write the pages into: `esvit.1`, and one for each command.
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
}

impl Man {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let mut command = Cli::command();
        command.build();
        let mut pages = Vec::new();
        collect(&command, "esvit", &mut pages)?;
        make_folder(&self.out)?;
        let path = |name: &str| self.out.join(format!("{name}.1"));
        for (name, _) in &pages {
            check_writable(&path(name), self.overwrite, &[])?;
        }
        for (name, page) in &pages {
            let path: &Path = &path(name);
            write_atomically(path, |file| file.write_all(page))?;
        }
        for (name, _) in &pages {
            output.result(path(name).display())?;
        }
        Ok(Exit::Success)
    }
}

/// The pages of a command and of those below it, by name.
fn collect(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let mut page = Vec::new();
    let titled = command.clone().name(name.to_owned()).display_name(name.to_owned());
    clap_mangen::Man::new(titled).render(&mut page)?;
    pages.push((name.into(), page));
    let is_shown = |below: &&Command| !below.is_hide_set() && below.get_name() != "help";
    for below in command.get_subcommands().filter(is_shown) {
        collect(below, &format!("{name}-{}", below.get_name()), pages)?;
    }
    Ok(())
}
