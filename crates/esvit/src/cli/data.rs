//! `esvit data`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use esvit_data::contact_sheet;
use esvit_eval::preview;

use super::Done;
use super::output::Output;
use super::settings::Settings;

/// Looks at pictures.
#[derive(Debug, Subcommand)]
pub(super) enum Data {
    /// Writes a contact sheet of the crops as the network sees them: one row a picture, the two
    /// global crops first.
    Preview(Preview),
}

impl Data {
    pub(super) fn run(self, output: &Output) -> Result<Done> {
        match self {
            Self::Preview(command) => command.run(output),
        }
    }
}

/// A contact sheet of crops.
#[derive(Debug, clap::Args)]
pub(super) struct Preview {
    #[command(flatten)]
    settings: Settings,
    /// The PNG file to write.
    #[arg(long, value_name = "FILE", default_value = "preview.png")]
    out: PathBuf,
    /// Number of pictures, spread over the whole set.
    #[arg(long, default_value_t = 8)]
    pictures: usize,
    /// Epoch whose crops are shown.
    #[arg(long, default_value_t = 0)]
    epoch: u64,
}

impl Preview {
    fn run(self, output: &Output) -> Result<Done> {
        let config = self.settings.resolve()?;
        let source = preview::source(&config)?;
        let crops = preview::crops(&config, source.as_ref(), self.pictures, self.epoch)?;
        for error in &crops.left_out {
            output.warning(format!("left out: {error}"));
        }
        let png = contact_sheet(&crops.rows)?;
        std::fs::write(&self.out, png)
            .with_context(|| format!("cannot write `{}`", self.out.display()))?;
        output.note(format!(
            "{} pictures, {} crops each, in `{}`",
            crops.rows.len(),
            config.views.sizes().len(),
            self.out.display()
        ));
        Ok(Done::Well)
    }
}
