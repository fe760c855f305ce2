//! Input images and output drawings.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use esvit_data::{DecodeLimits, Folder, Image, InMemory, Source, decode};
use esvit_draw::Drawing;
use esvit_files::write_atomically;

use super::{Output, check_writable};

/// Pixels of a PNG file per pixel of the drawing, for high-DPI screens and print.
const PNG_SCALE: f64 = 2.0;

/// Reads an image file.
pub(super) fn read(path: &Path) -> Result<Image> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    decode(&bytes, &DecodeLimits::default())
        .with_context(|| format!("`{}` is not a usable image", path.display()))
}

/// Opens one folder, or image files. Files that cannot be decoded are left out with a warning.
pub(super) fn open(paths: &[PathBuf], output: &Output) -> Result<Arc<dyn Source>> {
    let limits = DecodeLimits::default();
    if let [folder] = paths
        && folder.is_dir()
    {
        return Ok(Arc::new(Folder::open(folder, &limits)?));
    }
    let mut images = InMemory::new(Vec::new());
    for path in paths {
        let name = path.display();
        if path.is_dir() {
            bail!("`{name}` is a folder\nhint: give one folder alone, or image files");
        }
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{name}`"))?;
        match decode(&bytes, &limits) {
            Ok(image) => images.push(name.to_string(), None, image),
            Err(error) => output.warning(format!("left out `{name}`: {error}")),
        }
    }
    Ok(Arc::new(images))
}

/// Options for the files that a drawing is written to.
#[derive(Debug, clap::Args)]
pub(super) struct DrawingFiles {
    /// PNG file to write [default: one named after the command in the current folder, overwritten]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the drawing as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
}

impl DrawingFiles {
    /// The PNG file of a command. Call it before long computations: it fails if a file would be
    /// overwritten without `--overwrite`.
    pub(super) fn check(&self, command: &str) -> Result<PathBuf> {
        for file in [&self.out, &self.svg].into_iter().flatten() {
            self.check_writable(file)?;
        }
        Ok(self.out.clone().unwrap_or_else(|| format!("{command}.png").into()))
    }

    /// The same check for another output file of the command.
    pub(super) fn check_writable(&self, file: &Path) -> Result<()> {
        check_writable(file, self.overwrite)
    }

    /// Writes the drawing as PNG and, if requested, as SVG.
    pub(super) fn write(&self, drawing: &Drawing, png: &Path, output: &Output) -> Result<()> {
        write(drawing, Some(png), self.svg.as_deref(), output)
    }
}

/// Writes a drawing as PNG, SVG or both.
pub(super) fn write(
    drawing: &Drawing,
    png: Option<&Path>,
    svg: Option<&Path>,
    output: &Output,
) -> Result<()> {
    if let Some(png) = png {
        let bytes = drawing.png(PNG_SCALE)?;
        write_atomically(png, |file| file.write_all(&bytes))?;
        output.note(format!("wrote `{}`", png.display()));
    }
    if let Some(svg) = svg {
        write_atomically(svg, |file| file.write_all(drawing.svg().as_bytes()))?;
        output.note(format!("wrote `{}`", svg.display()));
    }
    Ok(())
}
