//! The teacher of a distillation.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use esvit_data::printable;
use esvit_model::OpenOptions;
use esvit_train::Config;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::distill::TeacherNetwork;

use super::args::weights_of;
use super::{Output, weights_report};

/// Names the file of the teacher that the settings name, if their objective learns from one: a run is recorded
/// as the checkpoint that it stands for.
pub(super) fn locate(config: &mut Config) -> Result<Option<PathBuf>> {
    let ObjectiveConfig::Distill(distill) = &mut config.objective else { return Ok(None) };
    let Some(named) = distill.settings.teacher.clone() else {
        config.check_ready()?;
        return Ok(None);
    };
    let path = weights_of(named).map_err(|error| anyhow!(error))?;
    if !path.exists() {
        bail!(
            "there is no teacher `{}`\n\
             hint: name its file of weights, or its run, with `--teacher PATH`",
            printable(&path)
        );
    }
    distill.settings.teacher = Some(path.clone());
    Ok(Some(path))
}

/// Opens the teacher that the settings name, if their objective learns from one.
pub(super) fn attach(config: &mut Config, output: &Output) -> Result<()> {
    let Some(path) = locate(config)? else { return Ok(()) };
    let ObjectiveConfig::Distill(distill) = &config.objective else { return Ok(()) };
    let key = distill.settings.teacher_key.clone();
    let options = OpenOptions::default().key(key.as_deref()).device(config.train.device.parse()?);
    let backbone = options.open(&path).map_err(|error| {
        let reason = error.to_string().replace("`--key`", "`objective.teacher_key`");
        let reason = reason.replace("`--key ", "`objective.teacher_key=");
        anyhow!("cannot take `{}` for a teacher: {reason}", printable(&path))
    })?;
    weights_report::print_load_report(&path, &backbone, output);
    let (size, preprocess) = (backbone.preprocess.size(), &backbone.preprocess);
    let normalization = [preprocess.mean, preprocess.std];
    let teacher = TeacherNetwork::new(path, backbone.config, backbone.params, size, normalization);
    Ok(config.attach_teacher(Arc::new(teacher))?)
}
