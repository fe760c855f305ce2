//! A fine-tuned network in a file.

use std::path::Path;

use esvit_files::{FileError, write_atomically};
use esvit_nn::weights::{self, entries};
use serde::Serialize;

use super::Finetuned;
use esvit_model::{About, PretrainedBackbone};

/// What travels with the weights.
#[derive(Serialize)]
struct Labeled<'a> {
    #[serde(flatten)]
    about: About,
    /// Names of the classes, in the order of the classifier's rows.
    classes: &'a [String],
}

/// Writes a network as a safetensors file: the backbone under its official names, the classifier as
/// `classifier.weight` and `classifier.bias`, and what [`PretrainedBackbone::open`] needs to read it. `start`
/// is the backbone that it was made of, and tells how images are shown to it.
///
/// # Errors
/// When the file cannot be written.
pub fn save(
    path: &Path,
    finetuned: &Finetuned,
    start: &PretrainedBackbone,
    from_scratch: bool,
    classes: &[String],
) -> Result<(), FileError> {
    let before = if from_scratch { Some(0) } else { start.source.steps };
    let steps = before.map(|before| before + finetuned.steps);
    let about = Labeled { about: About { steps, ..start.about() }, classes };
    let metadata = serde_json::to_string(&about).expect("plain values");
    let tensors = entries("", &finetuned.params);
    write_atomically(path, |file| weights::save(file, &tensors, &metadata))
}
