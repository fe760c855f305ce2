//! Whether the runs that lie in the folder are those of the comparison.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use esvit_data::{Folders, Source};
use esvit_eval::preview;
use esvit_train::Config;
use esvit_train::config::PrecisionChoice;
use esvit_train::config_text::parse_file;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::run::{RunFolder, settled};
use esvit_train::variants::{Comparison, Run};

use super::folder::Folder;
use super::measured;

/// Checks that the runs that are there have the settings of the comparison, also those that are measured: the
/// table is not to show a run that somebody has changed since.
pub(super) fn check(comparison: &Comparison, folder: &Folder) -> Result<()> {
    let is_measured: Vec<String> =
        measured::read(folder)?.into_iter().map(|result| result.run).collect();
    for variant in &comparison.variants {
        // Opened once for all seeds. Images that are gone are told of where they are needed.
        let mut source: Option<Option<Arc<dyn Source>>> = None;
        for &seed in &comparison.seeds {
            let run = Run { variant, seed };
            let path = folder.file(&run.name());
            let stored = RunFolder::at(path.clone());
            if !stored.config().is_file() {
                continue;
            }
            let mut found = Config::resolve(vec![parse_file(&stored.config())?])?;
            stored.find_images(&mut found);
            let mut planned = run.config();
            folder.find_images(&mut planned);
            let source = source.get_or_insert_with(|| preview::source(&planned).ok());
            let changes = changes(found, planned, source.as_deref());
            if changes.is_empty() {
                continue;
            }
            let again = match is_measured.contains(&run.name()) {
                true => {
                    format!("the folder and its line in `{}`", measured::file(folder).display())
                }
                false => "the folder".to_owned(),
            };
            bail!(
                "the run `{}` has other settings than the comparison: {}\n\
                 hint: delete {again}, and the run is trained again; a run with other settings is begun in \
                 a folder of its own",
                path.display(),
                changes.join(", ")
            );
        }
    }
    Ok(())
}

/// What a run was given that is not planned, apart from what is left to its start and how its steps are cut.
fn changes(found: Config, mut planned: Config, source: Option<&dyn Source>) -> Vec<String> {
    if planned.train.precision == PrecisionChoice::Auto {
        planned.train.precision = found.train.precision;
    }
    let [mut planned, found] = [planned, found].map(|config| {
        let mut config = match source {
            Some(source) => settled(&config, source, 1),
            None => config,
        };
        make_real(&mut config);
        config
    });
    planned.data.range = found.data.range;
    planned.data.background = found.data.background;
    planned.train.micro_batch = found.train.micro_batch;
    planned.train.activation_checkpointing = found.train.activation_checkpointing;
    if source.is_none() {
        // Fewer images than a batch have made a smaller one.
        planned.train.batch_size = found.train.batch_size;
    }
    if planned.train.time.is_some() {
        (planned.train.epochs, planned.train.steps, planned.train.time) =
            (found.train.epochs, found.train.steps, found.train.time);
        // Checks come less often where they would take too much of the time.
        planned.knn.every = found.knn.every;
    }
    found.differences(&planned)
}

/// Paths that lead to the same place are no other settings.
fn make_real(config: &mut Config) {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    if let Some(folders) = &config.data.path {
        config.data.path = Folders::of(&folders.paths().iter().map(real).collect::<Vec<_>>());
    }
    let teacher = match &mut config.objective {
        ObjectiveConfig::Distill(distill) => &mut distill.settings.teacher,
        _ => &mut None,
    };
    for path in [&mut config.knn.train, &mut config.knn.val, teacher].into_iter().flatten() {
        *path = real(path);
    }
}
