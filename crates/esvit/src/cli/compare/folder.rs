//! The folder of a comparison.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use esvit_files::{is_temporary, write_atomically};
use esvit_train::Config;
use esvit_train::run::RunFolder;
use esvit_train::variants::{Asked, Comparison, run_name};

use super::Usage;
use crate::cli::pretrain::environment;

/// What is compared.
const COMPARISON: &str = "compare.toml";
/// The machine and the command, as in the folder of a run.
const ENVIRONMENT: &str = "env.json";
/// States from which runs of other variants go on.
const STARTS: &str = "starts";

/// The folder of a comparison: its settings and results, and a run folder for each variant and seed.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The state of a variant's run after a step, from which runs of others go on.
    pub(super) fn start(&self, variant: &str, seed: u64, step: u64) -> PathBuf {
        let name = run_name(variant, seed);
        self.file(STARTS).join(format!("{name}-step={step:08}.safetensors"))
    }

    /// The comparison in the folder, if it holds one.
    pub(super) fn read(&self) -> Result<Option<Comparison>> {
        let file = self.file(COMPARISON);
        match file.is_file() {
            true => Ok(Some(Comparison::read(&file)?)),
            false => Ok(None),
        }
    }

    /// Locks the folder while the result is held, and writes what is compared.
    pub(super) fn begin(&self, comparison: &Comparison) -> Result<RunFolder> {
        std::fs::create_dir_all(self.file(STARTS))
            .with_context(|| format!("cannot make the folder `{}`", self.0.display()))?;
        let lock = RunFolder::hold(&self.0)?;
        comparison.write(&self.file(COMPARISON))?;
        let file = self.file(ENVIRONMENT);
        if !file.is_file() {
            write_atomically(&file, |file| writeln!(file, "{:#}", environment()))?;
        }
        Ok(lock)
    }

    /// The comparison in the folder, with the seeds that are asked for now.
    pub(super) fn go_on(
        &self,
        stored: Comparison,
        seeds: &[u64],
        asked: &[Asked],
    ) -> Result<Comparison> {
        let changes = stored.changes(seeds, asked);
        if !changes.is_empty() {
            return Err(Usage(format!(
                "`{}` holds a comparison with other settings: {}\n\
                 hint: `--resume` without them goes on with that one; for these, choose another folder \
                 with `--out`",
                self.0.display(),
                changes.join(", ")
            ))
            .into());
        }
        Ok(Comparison { seeds: seeds.to_vec(), ..stored })
    }

    /// Tells whether a new comparison may have the folder: it is empty or not there.
    pub(super) fn check_free(&self) -> Result<()> {
        if self.0.exists() && !self.0.is_dir() {
            bail!(
                "`{}` is a file, and a comparison needs a folder\nhint: name a folder with `--out`",
                self.0.display()
            );
        }
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| format!("cannot use `{}`", self.0.display()))?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name != STARTS && !is_temporary(&name) && !RunFolder::is_lock(&name) {
                bail!(
                    "`{}` is not empty and holds no comparison\n\
                     hint: choose another folder with `--out`",
                    self.0.display()
                );
            }
        }
        Ok(())
    }

    pub(super) fn nothing_there(&self) -> anyhow::Error {
        anyhow!(
            "there is no comparison in `{}`, which would have a `{COMPARISON}`\n\
             hint: name the folder that `--out` named, or give variants with `--run`",
            self.0.display()
        )
    }

    /// Finds a file whose path is meant from where the comparison was started.
    pub(super) fn find_file(&self, path: &Path) -> PathBuf {
        RunFolder::at(self.0.clone()).find_file(path)
    }

    /// Finds images whose paths are meant from where the comparison was started.
    pub(super) fn find_images(&self, config: &mut Config) {
        RunFolder::at(self.0.clone()).find_images(config);
    }
}
