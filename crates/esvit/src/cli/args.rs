//! Options shared by several commands: the backbone, and labeled images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::builder::{OsStringValueParser, TypedValueParser};
use esvit_data::{
    Background, ChosenRange, Cutouts, DecodeLimits, Folders, InMemory, MaterialsTask, Source,
    counted,
};
use esvit_eval::labeled::{LabeledSet, LabeledTask};
use esvit_eval::record::{self, EvalRecord};
use esvit_model::{OpenOptions, PretrainedBackbone, SourceFile};
use esvit_nn::Device;
use esvit_train::Config;
use esvit_train::config_text::Origin;
use esvit_train::run::RunFolder;
use serde::Serialize;

use super::{Output, weights_report};

/// Selects a network in a weights file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct NetworkArgs {
    /// Network to load, such as `student` [default: the one that its method evaluates, or
    /// the only one]
    #[arg(long, value_name = "NAME", alias = "checkpoint_key")]
    key: Option<String>,
    /// Architecture to load the weights into; tables of positions are resized where window or image
    /// sizes differ [default: that of the file]
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Image size that the network was made for, from which windows and tables of positions follow, and
    /// to which images are cropped [default: what the file says, or else what fits its windows]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    img_size: Option<u32>,
    /// Device that runs the network.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: Device,
}

impl NetworkArgs {
    /// The network that is the default, on a device.
    pub(super) fn on(device: Device) -> Self {
        Self { device, ..Self::default() }
    }

    /// The same for another file, whose network is the one that `key` names.
    pub(super) fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }

    /// Whether a network is named.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Options to load the backbone with.
    pub(super) fn options(&self) -> Result<OpenOptions> {
        let size = self.img_size.map(|size| size as usize);
        let options = OpenOptions::default().key(self.key.as_deref()).img_size(size);
        let options = options.device(self.device);
        let Some(name) = &self.arch else { return Ok(options) };
        let layer = esvit_train::config_text::parse_override(&format!("model.arch={name}"))?;
        Ok(options.shape(Some(Config::resolve(vec![layer])?.model.backbone)))
    }

    /// Loads the backbone and reports how the tensors of its file were matched.
    pub(super) fn open(&self, path: &Path, output: &Output) -> Result<PretrainedBackbone> {
        let backbone = self.options()?.open(path)?;
        weights_report::print_load_report(path, &backbone, output);
        Ok(backbone)
    }
}

/// Parses the path of a file of weights, or of a folder that stands for one: that of a run for its best
/// checkpoint, or else its newest, and an exported one for its weights.
pub(super) fn run_or_file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| weights_of(PathBuf::from(text)))
}

/// The file of weights that a path stands for, as [`run_or_file`] has it.
pub(super) fn weights_of(path: PathBuf) -> Result<PathBuf, String> {
    if !path.join("config.toml").is_file() {
        return Ok(weights_in(&path).unwrap_or(path));
    }
    let run = RunFolder::at(path);
    if run.best().is_file() { Ok(run.best()) } else { newest(&run) }
}

/// Parses the path of a checkpoint, or of the folder of a run: it stands for its newest one.
pub(super) fn newest_or_file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        let path = PathBuf::from(text);
        if path.join("config.toml").is_file() { newest(&RunFolder::at(path)) } else { Ok(path) }
    })
}

/// The run that a path lies in.
pub(super) fn run_around(path: &Path) -> Option<&Path> {
    let run = path.ancestors().skip(1).find(|folder| folder.join("config.toml").is_file())?;
    Some(if run.as_os_str().is_empty() { Path::new(".") } else { run })
}

fn newest(run: &RunFolder) -> Result<PathBuf, String> {
    let newest = run.list().map_err(|error| error.to_string())?.into_iter().next();
    let none = || format!("the run `{}` has no checkpoint yet", run.path().display());
    newest.map(|(_, path)| path).ok_or_else(none)
}

/// The file of weights in a folder as `esvit export`, timm and `transformers` write it.
fn weights_in(folder: &Path) -> Option<PathBuf> {
    const NAMES: [&str; 4] = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// A backbone to load.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct BackboneArgs {
    /// Run (its best checkpoint, or else its newest), checkpoint or weights file.
    #[arg(long, short, value_name = "PATH", alias = "pretrained_weights", value_parser = run_or_file())]
    pub(super) checkpoint: PathBuf,
    #[command(flatten)]
    pub(super) network: NetworkArgs,
}

impl BackboneArgs {
    /// Loads the backbone and reports how the tensors of its file were matched.
    pub(super) fn open(&self, output: &Output) -> Result<PretrainedBackbone> {
        self.network.open(&self.checkpoint, output)
    }

    /// Appends results to the folder of the run that the checkpoint belongs to, if any, where
    /// `esvit report` reads them.
    pub(super) fn save_record(
        &self,
        backbone: &PretrainedBackbone,
        evaluation: &str,
        task: &str,
        results: &impl Serialize,
        output: &Output,
    ) -> Result<()> {
        let Some(run) = record::run_folder_of(&self.checkpoint) else { return Ok(()) };
        let record = EvalRecord::new(evaluation, task, backbone, &self.checkpoint, results)?;
        let kept = record::append(&run, &record)?;
        output.note(format!("saved in `{}`", kept.display()));
        Ok(())
    }
}

/// A labeled dataset.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TaskArgs {
    /// Labeled training images, `FOLDER/<class>/<image>` [default: the built-in task]
    #[arg(long, value_name = "FOLDER")]
    pub(super) train: Option<PathBuf>,
    /// Labeled test images, `FOLDER/<class>/<image>` [default: every fifth image of `--train`]
    #[arg(long, value_name = "FOLDER", requires = "train")]
    pub(super) val: Option<PathBuf>,
}

impl TaskArgs {
    /// Opens the dataset, to be shown to a backbone.
    pub(super) fn open(
        &self,
        backbone: &PretrainedBackbone,
        output: &Output,
    ) -> Result<LabeledTask> {
        let Some(train) = &self.train else { return Ok(LabeledTask::materials()?) };
        let limits = limits_of(backbone);
        let task = LabeledTask::folders(train, self.val.as_deref(), &limits, usize::MAX)?;
        let mut notes = task.train.source.notes();
        if !Arc::ptr_eq(&task.train.source, &task.queries.source) {
            notes.extend(task.queries.source.notes());
        }
        notes.iter().for_each(|note| output.note(note));
        warn_of_conversion(&*task.train.source, backbone, output);
        Ok(task)
    }
}

/// The images of folders, or the built-in ones that `built_in` selects, to be shown to a backbone;
/// with a description.
pub(super) fn image_set(
    data: &[PathBuf],
    backbone: &PretrainedBackbone,
    output: &Output,
    built_in: impl FnOnce(MaterialsTask) -> InMemory,
) -> Result<(LabeledSet, String)> {
    Ok(match Folders::of(data) {
        Some(folders) => {
            let source = folders.open(&limits_of(backbone))?;
            source.notes().iter().for_each(|note| output.note(note));
            warn_of_conversion(&*source, backbone, output);
            (LabeledSet::all(source), folders.to_string())
        }
        None => {
            let images = built_in(MaterialsTask::new()?);
            (LabeledSet::all(Arc::new(images)), "built-in materials".into())
        }
    })
}

/// The largest images that are read: those that the backbone's run reads, if it has one.
pub(super) fn limits_of(backbone: &PretrainedBackbone) -> DecodeLimits {
    let limits = DecodeLimits::default();
    let SourceFile { path, config, .. } = &backbone.source;
    let settings = config.as_ref().map(|text| Config::parse(text, Origin::File(path.clone())));
    match settings {
        Some(Ok(config)) => DecodeLimits { max_pixels: config.data.max_pixels, ..limits },
        _ => limits,
    }
}

/// Warns of images that use another range of values than the backbone is shown, and of those that
/// cannot be seen on the background that it is shown behind them.
pub(super) fn warn_of_conversion(
    images: &dyn Source,
    backbone: &PretrainedBackbone,
    output: &Output,
) {
    let used = ChosenRange::of(images);
    for &(kind, count) in &used.images {
        let ([low, high], [black, white]) = (used.levels.of(kind), kind.full());
        if backbone.preprocess.range.of(kind) == [black, white] {
            output.warning(format!(
                "{} of those looked at: their values are {low} to {high}, and this network is shown \
                 {black} as black and {white} as white\n\
                 hint: scale them to that range, or train on them, which chooses theirs \
                 (`data.range`)",
                counted(count, &format!("{} image", kind.name())),
            ));
        }
    }
    let cutouts = Cutouts::of(images, &backbone.preprocess.range);
    let background = backbone.preprocess.background;
    let hidden = cutouts.hidden_by(background);
    if hidden > 0 {
        let behind = match background {
            Background::Mean => "their mean color".to_owned(),
            Background::Color(color) => format!("the color {color:?}"),
        };
        output.warning(format!(
            "of {} with transparency that were looked at {hidden} show nearly one color, and this network is \
             shown {behind} behind it, so that nothing is seen of them\n\
             hint: save them on a background of another color, or train on them, which chooses one \
             (`data.background`)",
            counted(cutouts.images(), "image"),
        ));
    }
}
