//! `esvit config`.

use anyhow::Result;
use esvit_train::config::listing;

use super::settings::Settings;
use super::{Exit, Output};

/// Options of `esvit config`.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigCommand {
    #[command(flatten)]
    settings: Settings,
    /// Print the JSON schema of a file of settings instead, which editors complete and check.
    #[arg(long)]
    schema: bool,
    /// Print the resolved settings as JSON, without what they are and where they come from.
    #[arg(long, conflicts_with = "schema")]
    json: bool,
}

impl ConfigCommand {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if self.schema {
            output.json(&listing::schema())?;
            return Ok(Exit::Success);
        }
        let (config, layers) = self.settings.resolve_with_layers(output)?;
        let text = match self.json {
            true => serde_json::to_string_pretty(&config)?,
            false => config.annotated(&layers),
        };
        output.result(text.trim_end())?;
        Ok(Exit::Success)
    }
}
