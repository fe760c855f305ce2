//! `esvit data`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use esvit_data::{DecodeLimits, Folder, Source, contact_sheet, training_materials};

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
        let source = source(&config)?;
        let views = &config.views;
        let normalization = views.normalization();
        let mut rows = Vec::new();
        let wanted = self.pictures.clamp(1, source.len());
        for index in (0..wanted).map(|place| place * source.len() / wanted) {
            match source.load(index) {
                Ok(picture) => {
                    let views = views.views(&picture, config.seed, self.epoch, index as u64)?;
                    rows.push(views.iter().map(|view| view.shown(&normalization)).collect());
                }
                Err(error) => output.warning(format!("left out: {error}")),
            }
        }
        if rows.is_empty() {
            bail!("none of the {wanted} pictures that were tried can be read");
        }
        let png = contact_sheet(&rows)?;
        std::fs::write(&self.out, png)
            .with_context(|| format!("cannot write `{}`", self.out.display()))?;
        output.note(format!(
            "{} pictures, {} crops each, in `{}`",
            rows.len(),
            views.sizes().len(),
            self.out.display()
        ));
        Ok(Done::Well)
    }
}

/// The pictures that the settings name.
pub(super) fn source(config: &esvit_train::Config) -> Result<Arc<dyn Source>> {
    let limits = DecodeLimits { max_pixels: config.data.max_pixels, ..DecodeLimits::default() };
    Ok(match &config.data.path {
        Some(path) => Arc::new(Folder::open(path, &limits)?),
        None => Arc::new(training_materials()?),
    })
}
