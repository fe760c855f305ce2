//! Input images and output drawings.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{Folder, Image, ImageFiles, Source, SourceError, printable, read_image};
use esvit_draw::Drawing;
use esvit_files::write_atomically;
use esvit_model::PretrainedBackbone;

use super::args::{limits_of, warn_of_conversion};
use super::{Output, check_writable};

/// Pixels of a PNG file per pixel of the drawing, for high-DPI screens and print.
const PNG_SCALE: f64 = 2.0;

/// Reads an image file as a backbone is shown images.
pub(super) fn read(path: &Path, backbone: &PretrainedBackbone, output: &Output) -> Result<Image> {
    let limits = limits_of(backbone);
    warn_of_conversion(&ImageFiles::new(vec![path.into()], &limits), backbone, output);
    let conversion = backbone.preprocess.conversion();
    read_image(path, &limits, &conversion).map_err(|error| match error {
        SourceError::Decode { source, .. } => anyhow::Error::new(source)
            .context(format!("`{}` is not a usable image", printable(path))),
        error => error.into(),
    })
}

/// Opens one folder, or image files, to be shown to a backbone.
pub(super) fn open(
    paths: &[PathBuf],
    backbone: &PretrainedBackbone,
    output: &Output,
) -> Result<Arc<dyn Source>> {
    let limits = limits_of(backbone);
    if let [folder] = paths
        && folder.is_dir()
    {
        let folder = Folder::open(folder, &limits)?;
        folder.notes().iter().for_each(|note| output.note(note));
        warn_of_conversion(&folder, backbone, output);
        return Ok(Arc::new(folder));
    }
    if let Some(folder) = paths.iter().find(|path| path.is_dir()) {
        let name = printable(folder);
        bail!("`{name}` is a folder\nhint: give one folder alone, or image files");
    }
    for path in paths {
        let missing = |source| SourceError::Read { path: path.clone(), source };
        std::fs::metadata(path).map_err(missing)?;
    }
    let files = ImageFiles::new(paths.to_vec(), &limits);
    warn_of_conversion(&files, backbone, output);
    Ok(Arc::new(files))
}

/// Options for the files that a drawing is written to.
#[derive(Debug, clap::Args)]
pub(super) struct DrawingFiles {
    /// File to write, `.png` or `.svg` [default: a PNG file named after the command]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the drawing as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
}

impl DrawingFiles {
    /// The main file of a command that reads `inputs` and writes `others` too. Call it before long
    /// computations: it fails if a file would be overwritten without `--overwrite`.
    pub(super) fn check(
        &self,
        command: &str,
        inputs: &[&Path],
        others: &[&Path],
    ) -> Result<PathBuf> {
        let drawings = [self.out.as_deref(), self.svg.as_deref()];
        check_files(drawings, others, self.overwrite, inputs)?;
        Ok(self.out.clone().unwrap_or_else(|| free_name(command)))
    }

    /// Writes the drawing to the main file and, if requested, as SVG.
    pub(super) fn write(&self, drawing: &Drawing, main: &Path, output: &Output) -> Result<()> {
        write(drawing, [Some(main), self.svg.as_deref()], output)
    }
}

/// Checks the files of a drawing and other files that are written with it.
pub(super) fn check_files(
    drawings: [Option<&Path>; 2],
    others: &[&Path],
    overwrite: bool,
    inputs: &[&Path],
) -> Result<()> {
    let drawings: Vec<&Path> = drawings.into_iter().flatten().collect();
    let files = [&drawings[..], others].concat();
    for (index, file) in files.iter().enumerate() {
        check_writable(file, overwrite, inputs)?;
        if index < drawings.len() {
            kind(file)?;
        }
        if files[..index].contains(file) {
            bail!("`{}` is given twice\nhint: choose another name for one", file.display());
        }
    }
    Ok(())
}

/// The first of `map.png`, `map-2.png` and so on that does not exist: nobody's file is replaced
/// without being named.
pub(super) fn free_name(command: &str) -> PathBuf {
    let names = (2..).map(|number| format!("{command}-{number}.png"));
    let mut names = std::iter::once(format!("{command}.png")).chain(names).map(PathBuf::from);
    names.find(|name| name.symlink_metadata().is_err()).unwrap_or_default()
}

enum Kind {
    Png,
    Svg,
}

/// The kind of a drawing's file.
fn kind(file: &Path) -> Result<Kind> {
    let extension = file.extension().and_then(|text| text.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "png" => Ok(Kind::Png),
        "svg" => Ok(Kind::Svg),
        // As in `--out /dev/stdout`.
        _ if esvit_files::is_device(file) => Ok(Kind::Png),
        _ => bail!(
            "drawings are written as PNG or SVG, and `{}` is neither\n\
             hint: let its name end in `.png` or `.svg`",
            file.display()
        ),
    }
}

/// Writes a drawing to files of the kinds that their names say.
pub(super) fn write(drawing: &Drawing, files: [Option<&Path>; 2], output: &Output) -> Result<()> {
    for file in files.into_iter().flatten() {
        let bytes = match kind(file)? {
            Kind::Png => drawing.png(PNG_SCALE)?,
            Kind::Svg => drawing.svg().into_bytes(),
        };
        write_atomically(file, |file| file.write_all(&bytes))?;
        output.note(format!("wrote `{}`", file.display()));
    }
    Ok(())
}
