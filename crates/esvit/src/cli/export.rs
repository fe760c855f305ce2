//! `esvit export`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use esvit_data::printable;
use esvit_model::export::{self, Options, Target};
use esvit_train::official;
use esvit_weights::Float;
use serde_json::json;

use super::args::run_or_file;
use super::{Exit, NetworkArgs, Output, check_writable};

/// Options of `esvit export`.
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Run (its best checkpoint, or else its newest), checkpoint or weights file.
    #[arg(long, short, value_name = "PATH", value_parser = run_or_file())]
    checkpoint: PathBuf,
    #[command(flatten)]
    network: NetworkArgs,
    /// Target: timm, torchvision, transformers, esvit (the official code) or onnx.
    #[arg(long, value_name = "NAME")]
    format: Target,
    /// Output file (`.safetensors`, `.pth` or `.onnx`) or folder.
    #[arg(long, short, value_name = "PATH")]
    out: PathBuf,
    /// Export student and teacher with heads and centers, as a checkpoint of the official code.
    #[arg(long)]
    full: bool,
    /// Storage type of matrices: f32, f16 or bf16.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    precision: Float,
    /// Input size of an ONNX graph: a side in pixels, or HEIGHTxWIDTH [default: as in evaluations]
    #[arg(long, value_name = "PIXELS", value_parser = size)]
    size: Option<[usize; 2]>,
    /// Overwrite existing files.
    #[arg(long)]
    overwrite: bool,
    /// Print JSON instead of the names of the files.
    #[arg(long)]
    json: bool,
}

/// Parses height and width in pixels.
fn size(text: &str) -> Result<[usize; 2], String> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    let side = |text: &str| text.parse().ok().filter(|&side| (1..=1 << 14).contains(&side));
    match (side(height), side(width)) {
        (Some(height), Some(width)) => Ok([height, width]),
        _ => Err("give a number of pixels, or two as in `192x256`".into()),
    }
}

impl Export {
    pub(super) fn run(self, output: &Output) -> Result<Exit> {
        let out = &self.out;
        match out.read_dir() {
            Ok(mut entries) => {
                if entries.next().is_some() && !self.overwrite {
                    bail!("`{}` already exists\nhint: add `--overwrite`", out.display());
                }
                let [out, read] = [out, &self.checkpoint].map(|path| path.canonicalize().ok());
                if out.is_some() && out.as_deref() == read.as_deref().and_then(Path::parent) {
                    bail!(
                        "what is read lies in `{}`, it is not written over\n\
                         hint: choose another folder",
                        self.out.display()
                    );
                }
            }
            Err(_) => check_writable(out, self.overwrite, &[&self.checkpoint])?,
        }
        if self.size.is_some() && self.format != Target::Onnx {
            bail!("`--size` is for `--format onnx`: weights do not depend on the image size");
        }
        if self.full {
            if self.format != Target::Esvit {
                bail!("`--full` is for `--format esvit`: other programs have no student");
            }
            official::write(&self.checkpoint, out, self.precision)?;
            self.print(std::slice::from_ref(out), output)?;
            output.note(format!("to load it:\n{}", export::full_snippet(out)));
            return Ok(Exit::Success);
        }
        let backbone = self.network.open(&self.checkpoint, output)?;
        let size = self.size.unwrap_or([backbone.preprocess.size(); 2]);
        let options = Options { target: self.format, float: self.precision, size };
        self.print(&export::write(&backbone, out, &options)?, output)?;
        output.note(format!("to load it:\n{}", export::load_snippet(&backbone, out, &options)));
        Ok(Exit::Success)
    }

    fn print(&self, files: &[PathBuf], output: &Output) -> Result<()> {
        let names: Vec<String> = files.iter().map(printable).collect();
        let written = json!({ "format": self.format.to_string(), "files": names });
        output.print(self.json, &written, || names.join("\n"))
    }
}
