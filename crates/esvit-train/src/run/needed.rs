//! What a run is made from is not deleted to make room for it.

use std::path::Path;

use super::Start;
use super::folder::FolderError;
use crate::config::Config;
use crate::objective::ObjectiveConfig;

/// Tells whether a folder may be deleted for a new run with these settings: it may not if there is something in
/// it that the run begins with or learns from, by whatever path (weights, the state of a run, a frozen
/// teacher, a palette).
///
/// # Errors
/// [`FolderError::Needed`], with what is needed.
pub fn check_overwrite(out: &Path, config: &Config, start: &Start) -> Result<(), FolderError> {
    let begins = match start {
        Start::InitFrom { path, .. } | Start::ContinueFrom(path) => Some(path),
        Start::New | Start::Resume => None,
    };
    let learns = match &config.objective {
        ObjectiveConfig::Distill(distill) => distill.settings.teacher.as_ref(),
        ObjectiveConfig::Igpt(igpt) => igpt.palette.as_ref(),
        _ => None,
    };
    // Without a folder there is nothing to delete, and what is not there is missed when it is opened.
    let Ok(folder) = out.canonicalize() else { return Ok(()) };
    let is_within = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(&folder));
    match begins.into_iter().chain(learns).find(|path| is_within(path)) {
        Some(file) => Err(FolderError::Needed { path: out.into(), file: file.clone() }),
        None => Ok(()),
    }
}
