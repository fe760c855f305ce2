//! Saves fine-tuned networks.

use std::path::Path;

use esvit_files::{FileError, write_atomically};
use esvit_nn::weights::{self, entries};
use serde::Serialize;

use super::Finetuned;
use esvit_model::{ModelMetadata, PretrainedBackbone};

/// Metadata of the file.
#[derive(Serialize)]
struct ClassifierMetadata<'a> {
    #[serde(flatten)]
    about: ModelMetadata,
    /// Class names, in the order of the classifier's rows.
    classes: &'a [String],
}

/// Saves a network as safetensors: the backbone under its official names, `classifier.weight` and
/// `classifier.bias`, and the metadata for [`PretrainedBackbone::open`]. `start` is the backbone
/// that training started from; its preprocessing is stored too.
///
/// # Errors
/// [`FileError`] if the file cannot be written.
pub fn save(
    path: &Path,
    finetuned: &Finetuned,
    start: &PretrainedBackbone,
    from_scratch: bool,
    classes: &[String],
) -> Result<(), FileError> {
    let before = if from_scratch { Some(0) } else { start.source.steps };
    let steps = before.map(|before| before + finetuned.steps);
    let about = ClassifierMetadata { about: ModelMetadata { steps, ..start.metadata() }, classes };
    let metadata = serde_json::to_string(&about).expect("plain values");
    let tensors = entries("", &finetuned.params);
    write_atomically(path, |file| weights::save(file, &tensors, &metadata))
}
