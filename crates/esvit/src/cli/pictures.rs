//! Pictures named on the command line, and drawings written to files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use esvit_data::{DecodeLimits, Folder, InMemory, Source, decode};
use esvit_eval::draw::Drawing;
use esvit_train::files::write_atomically;

use super::output::Output;

/// Pixels of a PNG file to one of the drawing: sharp on fine screens and in print.
const PNG_SCALE: f64 = 2.0;

/// One folder, or picture files. Files that are no pictures are left out with a warning.
pub(super) fn open(paths: &[PathBuf], output: &Output) -> Result<Arc<dyn Source>> {
    let limits = DecodeLimits::default();
    if let [folder] = paths
        && folder.is_dir()
    {
        return Ok(Arc::new(Folder::open(folder, &limits)?));
    }
    let mut pictures = InMemory::new(Vec::new());
    for path in paths {
        let name = path.display();
        if path.is_dir() {
            bail!("`{name}` is a folder among others\nhint: give one folder, or picture files");
        }
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{name}`"))?;
        match decode(&bytes, &limits) {
            Ok(picture) => pictures.push(name.to_string(), None, picture),
            Err(error) => output.warning(format!("left out `{name}`: {error}")),
        }
    }
    Ok(Arc::new(pictures))
}

/// Writes a drawing as PNG and, if wanted, as SVG.
pub(super) fn write(
    drawing: &Drawing,
    png: &Path,
    svg: Option<&Path>,
    output: &Output,
) -> Result<()> {
    let bytes = drawing.png(PNG_SCALE)?;
    write_atomically(png, |file| std::io::Write::write_all(file, &bytes))?;
    output.note(format!("written `{}`", png.display()));
    if let Some(svg) = svg {
        let text = drawing.svg();
        write_atomically(svg, |file| std::io::Write::write_all(file, text.as_bytes()))?;
        output.note(format!("written `{}`", svg.display()));
    }
    Ok(())
}
