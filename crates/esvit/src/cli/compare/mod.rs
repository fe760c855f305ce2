//! `esvit compare`.

mod asked;
mod dry_run;
mod failed;
mod folder;
mod labels;
mod measured;
mod memory;
mod resolve;
mod same;
mod seeds;
mod session;
mod summary;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use esvit_data::counted;
use esvit_train::variants::{self, Comparison};

use self::asked::{Request, WeightsArgs};
use self::folder::Folder;
use self::seeds::Seeds;
use self::session::Session;
use super::exit::Usage;
use super::settings::Settings;
use super::shell::{program, quoted};
use super::{Exit, Output};

/// Options of `esvit compare`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "VARIANT takes the options of `esvit pretrain` that say what a run is, such as `--recipe`, `--arch` and \
                  `--init-from`, settings `table.key=value`, and `--continue-from NAME --continue-at 50%`. \
                  The same command goes on with a comparison that was stopped."
)]
pub(super) struct Compare {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    weights: WeightsArgs,
    /// A variant, `NAME: OPTIONS`: its name and what it changes, such as `view: objective.region=false`
    #[arg(long = "run", value_name = "VARIANT", help_heading = WHICH)]
    runs: Vec<String>,
    /// TOML file of variants, each a table `[[variant]]` with its `name` and settings.
    #[arg(long, value_name = "FILE", help_heading = WHICH)]
    variants: Option<PathBuf>,
    /// Number of seeds, from `--seed` on, or a list such as `0,5,7` [default: 1]
    #[arg(long, value_name = "N", help_heading = WHICH)]
    seeds: Option<Seeds>,
    /// Folder of the comparison; each variant and seed is a run folder in it.
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Go on with the comparison in the folder, without its variants being named again.
    #[arg(long)]
    resume: bool,
    /// List the runs with the time that they would take, instead of starting them.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

const WHICH: &str = "What is compared";

impl Compare {
    pub(super) fn run(mut self, output: &Output) -> Result<Exit> {
        let folder = Folder::at(self.out.clone());
        let comparison = self.comparison(&folder, output)?;
        same::check(&comparison, &folder)?;
        if self.dry_run {
            dry_run::show(&comparison, &folder, self.json, output)?;
            return Ok(Exit::Success);
        }
        let _lock = folder.begin(&comparison)?;
        let mut session = Session::open(&comparison, &folder, output)?;
        let resume = format!("{} compare --resume --out {}", program(), quoted(&self.out));
        if !session.finish()? {
            output.note(format!("to resume: {resume}"));
            return Ok(Exit::Stopped);
        }
        let failed = session.failures.list();
        summary::write(&comparison, &session.measured, &failed, &folder)?
            .show(self.json, output)?;
        if failed.is_empty() {
            return Ok(Exit::Success);
        }
        output.warning(format!(
            "{} of {} failed, the table is without what they would have shown\n\
             hint: `{resume}` tries again",
            failed.len(),
            counted(comparison.runs().count(), "run"),
        ));
        Ok(Exit::CheckFailed)
    }

    /// What is compared: by the folder, if it holds a comparison, and else by the command.
    fn comparison(&mut self, folder: &Folder, output: &Output) -> Result<Comparison> {
        let stored = folder.read()?;
        if self.resume && self.runs.is_empty() && self.variants.is_none() {
            return self.stored(stored, folder);
        }
        let variants = asked::variants(&self.runs, self.variants.as_deref())?;
        variants::check(&variants)?;
        let weights = std::mem::take(&mut self.weights);
        let request = Request::new(&self.settings, weights, variants, self.seeds.as_ref())?;
        match stored {
            Some(stored) => folder.go_on(stored, &request.seeds, &request.asked()),
            None => {
                folder.check_free()?;
                resolve::resolve(&request, folder, output)
            }
        }
    }

    /// The comparison in the folder, perhaps with more seeds.
    fn stored(&self, stored: Option<Comparison>, folder: &Folder) -> Result<Comparison> {
        if !asked::is_silent(&self.settings)? || !self.weights.is_empty() {
            return Err(Usage(
                "`--resume` goes on with the settings that the comparison has\n\
                 hint: leave out the other settings, or give the whole command with its variants"
                    .into(),
            )
            .into());
        }
        let stored = stored.ok_or_else(|| folder.nothing_there())?;
        let first = stored.seeds.first().copied();
        let seeds = match &self.seeds {
            Some(seeds @ Seeds::Count(_)) => seeds.list(first)?,
            Some(seeds @ Seeds::List(_)) => seeds.list(None)?,
            None => stored.seeds.clone(),
        };
        let asked: Vec<_> = stored.variants.iter().map(|variant| variant.asked.clone()).collect();
        folder.go_on(stored, &seeds, &asked)
    }
}
