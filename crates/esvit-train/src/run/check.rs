//! What can be known of a run before it begins, so that nobody waits for it in vain.

use std::path::Path;

use esvit_data::Source;
use esvit_nn::Solo;

use super::settle::settled;
use super::{RunError, Start, plan, start};
use crate::Learner;
use crate::checkpoint::{self, Metadata};
use crate::config::Config;
use crate::objective::ObjectiveConfig;
use crate::objective::igpt::palette;

/// Checks that a run can begin: that its images are what it learns from, and the weights or the state that it begins
/// with fit its network. What resumes a run is not looked at.
///
/// # Errors
/// As the run's start.
pub fn check_start(config: &Config, source: &dyn Source, start: &Start) -> Result<(), RunError> {
    check_images(config, source)?;
    match start {
        Start::InitFrom { path, key } => check_weights(config, source, (path, key.as_deref())),
        Start::ContinueFrom(path) => {
            let mut learner = learner(config, source)?;
            start::from_file(path, |file| file.continue_from(&mut learner))?;
            Ok(())
        }
        Start::New | Start::Resume => Ok(()),
    }
}

/// Checks that the images have the labels that a run learns from, and that its palette can be read.
///
/// # Errors
/// As the run's start.
pub fn check_images(config: &Config, source: &dyn Source) -> Result<(), RunError> {
    start::classes(config, source)?;
    if let ObjectiveConfig::Igpt(igpt) = &config.objective
        && igpt.palette.is_some()
    {
        palette::of_run(config, source)?;
    }
    Ok(())
}

/// Checks that the weights of a file fit the network of a run that is to begin with them, those of `key` or as
/// [`Checkpoint::initialize`](crate::checkpoint::Checkpoint::initialize) chooses.
///
/// # Errors
/// As the run's start.
pub fn check_weights(
    config: &Config,
    source: &dyn Source,
    (path, key): (&Path, Option<&str>),
) -> Result<(), RunError> {
    let mut learner = learner(config, source)?;
    start::from_file(path, |file| file.initialize(&mut learner, key))?;
    Ok(())
}

/// Checks that a run can go on from the state of another one, as [`Start::ContinueFrom`](super::Start) does. Both
/// are given by their settings and images, and `path` is what that state would be called.
///
/// # Errors
/// As the run's start.
pub fn check_continued(
    (config, source): (&Config, &dyn Source),
    (base, base_source): (&Config, &dyn Source),
    path: &Path,
) -> Result<(), RunError> {
    let fail = |source| RunError::Start { path: path.into(), source };
    // Shapes are all that counts.
    let state = {
        let metadata = Metadata::new(0, 0, base, None);
        checkpoint::in_memory(path, &learner(base, base_source)?, metadata).map_err(fail)?
    };
    state.continue_from(&mut learner(config, source)?).map_err(fail)?;
    Ok(())
}

/// The learner of a run that begins.
fn learner(config: &Config, source: &dyn Source) -> Result<Learner, RunError> {
    let config = settled(config, source, 1);
    let device = config.train.device.parse()?;
    Ok(plan::learner(&config, &device, source.classes().len(), Solo::shared()))
}
