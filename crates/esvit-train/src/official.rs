//! Exports a run as a checkpoint of the official EsViT code.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use esvit_files::{FileError, write_atomically};
use esvit_nn::Device;
use esvit_nn::weights::{
    MASK_TOKEN, METADATA_KEY, Naming, StoredNetwork, WeightsError, exported, write_error,
};
use esvit_weights::{Float, Tensor, Tree, Values, write_torch};
use serde_json::json;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::ConfigError;
use crate::objective::ObjectiveConfig;

/// Why a run was not exported.
#[derive(Debug, thiserror::Error)]
pub enum OfficialError {
    /// Not the name of a PyTorch file.
    #[error(
        "`{path}` is not the name of a PyTorch file\nhint: let it end in `.pth`",
        path = path.display()
    )]
    Ending {
        /// The file.
        path: PathBuf,
    },
    /// The run has another objective.
    #[error(
        "`{path}` was trained with the objective `{objective}`, which EsViT's code does not have\n\
         hint: `--format esvit` without `--full` exports its backbone",
        path = path.display()
    )]
    Objective {
        /// The checkpoint.
        path: PathBuf,
        /// Its objective.
        objective: &'static str,
    },
    /// The file is not a checkpoint of a run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its tensors cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its settings cannot be read.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes student, teacher, heads and centers of the run in `checkpoint` to a `.pth` file; the
/// optimizer's state is left out.
///
/// # Errors
/// When `checkpoint` is not that of a run or `out` cannot be written.
pub fn write(checkpoint: &Path, out: &Path, float: Float) -> Result<(), OfficialError> {
    let ending = out.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    if !["pth", "pt", "bin"].contains(&ending.as_str()) {
        return Err(OfficialError::Ending { path: out.into() });
    }
    let file = Checkpoint::open(checkpoint)?;
    let run = file.run()?;
    let config = run.config(checkpoint)?;
    let ObjectiveConfig::Esvit(esvit) = &config.objective else {
        return Err(OfficialError::Objective {
            path: checkpoint.into(),
            objective: config.objective.name(),
        });
    };
    let model = config.model.backbone.clone();
    let (network, _) = config.network(&Device::Cpu, 0);
    let mut entries = Vec::new();
    // A teacher with batch normalization is a distributed module as well, and files without its prefix
    // would be passed over in silence.
    let has_batch_norm = model.has_batch_norm() || esvit.head.use_bn_in_head;
    let of_teacher = if has_batch_norm { "module." } else { "" };
    for (name, prefix) in [("student", "module."), ("teacher", of_teacher)] {
        let stored = StoredNetwork::at(file.file(), &format!("{name}."));
        let (params, _) = stored.load(network.specs(), &Device::Cpu, |_| None)?;
        let tensors = exported(&params, model.family(), Naming::Esvit, float).into_iter();
        // What masked patches need has no place there.
        let is_known = |name: &str| name != MASK_TOKEN && !name.starts_with("ibot_head.");
        let tensors = tensors.filter(|(name, _)| is_known(name));
        let tensors =
            tensors.map(|(name, tensor)| (format!("{prefix}{name}"), Tree::Tensor(tensor)));
        entries.push((name.to_owned(), Tree::Dict(tensors.collect())));
    }
    let mut centers = Vec::new();
    for name in ["center", "center_grid"] {
        if let Some(tensor) = file.file().find("", name) {
            let values = file.file().read_f32(tensor).map_err(WeightsError::from)?;
            let values = move || Ok(Values::F32(Cow::Owned(values.clone())));
            let center = Tensor::new(&tensor.shape, Float::F32.dtype(), values);
            centers.push((name.to_owned(), Tree::Tensor(center)));
        }
    }
    entries.push(("dino_loss".into(), Tree::Dict(centers)));
    entries.push(("epoch".into(), Tree::Int(run.epoch as i64)));
    // What `esvit_model::ModelMetadata` reads.
    let about = json!({ "model": model, "preprocess": config.preprocess(), "steps": run.step });
    entries.push((METADATA_KEY.into(), Tree::Str(about.to_string())));
    write_atomically(out, |file| write_torch(file, &Tree::Dict(entries)).map_err(write_error))?;
    Ok(())
}
