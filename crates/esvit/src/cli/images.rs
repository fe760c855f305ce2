//! Images named on the command line, and drawings written to files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use esvit_data::{DecodeLimits, Folder, Image, InMemory, Source, decode};
use esvit_draw::Drawing;
use esvit_files::write_atomically;

use super::output::{Output, may_write};

/// Pixels of a PNG file to one of the drawing: sharp on fine screens and in print.
const PNG_SCALE: f64 = 2.0;

/// One image.
pub(super) fn read(path: &Path) -> Result<Image> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    decode(&bytes, &DecodeLimits::default())
        .with_context(|| format!("`{}` is not an image that can be used", path.display()))
}

/// One folder, or image files. Files that are no images are left out with a warning.
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
            bail!("`{name}` is a folder among others\nhint: give one folder, or image files");
        }
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{name}`"))?;
        match decode(&bytes, &limits) {
            Ok(image) => images.push(name.to_string(), None, image),
            Err(error) => output.warning(format!("left out `{name}`: {error}")),
        }
    }
    Ok(Arc::new(images))
}

/// The files that a drawing is written to.
#[derive(Debug, clap::Args)]
pub(super) struct DrawingFiles {
    /// The PNG file to write; without it one with the command's name in the current folder, which
    /// is replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also writes the drawing as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replaces the named files where they are there.
    #[arg(long)]
    overwrite: bool,
}

impl DrawingFiles {
    /// The PNG file, for the command of this name. An error if a named file must not be replaced:
    /// to be asked for before the work that the drawing takes.
    pub(super) fn check(&self, command: &str) -> Result<PathBuf> {
        for file in [&self.out, &self.svg].into_iter().flatten() {
            self.may_write(file)?;
        }
        Ok(self.out.clone().unwrap_or_else(|| format!("{command}.png").into()))
    }

    /// An error if this file, another one that the command writes, must not be replaced.
    pub(super) fn may_write(&self, file: &Path) -> Result<()> {
        may_write(file, self.overwrite)
    }

    /// Writes the drawing to the PNG file and, if wanted, as SVG.
    pub(super) fn write(&self, drawing: &Drawing, png: &Path, output: &Output) -> Result<()> {
        write(drawing, Some(png), self.svg.as_deref(), output)
    }
}

/// Writes a drawing to a PNG and an SVG file, or to one of the two.
pub(super) fn write(
    drawing: &Drawing,
    png: Option<&Path>,
    svg: Option<&Path>,
    output: &Output,
) -> Result<()> {
    if let Some(png) = png {
        let bytes = drawing.png(PNG_SCALE)?;
        write_atomically(png, |file| file.write_all(&bytes))?;
        output.note(format!("written `{}`", png.display()));
    }
    if let Some(svg) = svg {
        write_atomically(svg, |file| file.write_all(drawing.svg().as_bytes()))?;
        output.note(format!("written `{}`", svg.display()));
    }
    Ok(())
}
