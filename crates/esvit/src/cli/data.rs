//! `esvit data`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use esvit_data::{contact_sheet, counted, printable};
use esvit_eval::preview;
use esvit_files::write_atomically;
use serde_json::json;

use super::images::free_name;
use super::settings::Settings;
use super::{Exit, Output, check_writable};

/// Subcommands of `esvit data`.
#[derive(Debug, Subcommand)]
pub(super) enum Data {
    /// Write a contact sheet of training crops: one row per image, the global crops first.
    Preview(Preview),
}

/// Options of `esvit data preview`.
#[derive(Debug, clap::Args)]
pub(super) struct Preview {
    #[command(flatten)]
    settings: Settings,
    /// PNG file to write [default: preview.png]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    overwrite: bool,
    /// Number of images, evenly spaced over the dataset.
    #[arg(long, default_value_t = 8, alias = "pictures")]
    images: usize,
    /// Epoch whose augmentations are shown.
    #[arg(long, default_value_t = 0)]
    epoch: u64,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

impl Preview {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        if let Some(out) = &self.out {
            check_writable(out, self.overwrite, &[])?;
            if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
                let hint = "let its name end in `.png`";
                bail!("the preview is a PNG file, and `{}` is none\nhint: {hint}", out.display());
            }
        }
        let out = self.out.unwrap_or_else(|| free_name("preview"));
        let mut config = self.settings.resolve(output)?;
        let source = preview::source(&config)?;
        source.notes().iter().for_each(|note| output.note(note));
        let chosen = preview::choose_conversion(&mut config, &*source);
        chosen.iter().for_each(|line| output.note(line));
        let crops = preview::crops(&config, source.as_ref(), self.images, self.epoch)?;
        output.warn_skipped(&crops.left_out);
        let png = contact_sheet(&crops.rows)?;
        write_atomically(&out, |file| file.write_all(&png))?;
        let (images, views) = (crops.rows.len(), config.views.sizes().len());
        if self.json {
            output.json(
                &json!({ "out": printable(&out), "images": images, "crops_per_image": views }),
            )?;
        }
        let [images, views] =
            [(images, "image"), (views, "crop")].map(|(n, noun)| counted(n, noun));
        output.note(format!("{images}, {views} each, in `{}`", out.display()));
        Ok(Exit::Success)
    }
}
