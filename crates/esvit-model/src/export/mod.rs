//! Exports backbones to the file formats of other programs.

mod config_files;
mod snippet;
mod vit;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use esvit_files::{FileError, write_atomically};
use esvit_nn::backbone::Family;
use esvit_nn::backbone::resnet::ResNetConfig;
use esvit_nn::weights::{Entry, METADATA_KEY, Naming, exported_with_mask_token, write_error};
use esvit_nn::{BackboneConfig, onnx};
use esvit_settings::SettingError;
use esvit_weights::{Float, Tree, write_safetensors, write_torch_with};

use crate::PretrainedBackbone;

pub use snippet::full_snippet;
pub use snippet::load_snippet;

/// The program that the export is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// timm: a folder for `timm.create_model("local-dir:...")`, or a state dict.
    Timm,
    /// torchvision: a state dict.
    Torchvision,
    /// Hugging Face `transformers`: a folder for `from_pretrained`.
    Transformers,
    /// The official EsViT code: a `.pth` or `.safetensors` file.
    Esvit,
    /// An ONNX graph.
    Onnx,
}

impl Target {
    /// All targets by name.
    pub const ALL: [(&'static str, Self); 5] = [
        ("timm", Self::Timm),
        ("torchvision", Self::Torchvision),
        ("transformers", Self::Transformers),
        ("esvit", Self::Esvit),
        ("onnx", Self::Onnx),
    ];

    /// How it names the parameters of a network.
    fn naming(self, config: &BackboneConfig) -> Naming {
        match (self, config) {
            (Self::Timm, _) => Naming::Timm,
            (Self::Torchvision, _) => Naming::Torchvision,
            (Self::Transformers, BackboneConfig::Vit(model)) => vit::transformers_naming(model),
            (Self::Transformers, _) => Naming::Transformers,
            (Self::Esvit | Self::Onnx, _) => Naming::Esvit,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, target)| target == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, target)| target).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name).join(", ");
            format!("choose one of {names}")
        })
    }
}

/// What to export.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The program that the export is for.
    pub target: Target,
    /// Storage type of matrices.
    pub float: Float,
    /// Input height and width of an ONNX graph, in pixels.
    pub size: [usize; 2],
}

/// A backbone cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder cannot be created.
    #[error("cannot create the folder `{path}`: {source}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file extension does not fit the target.
    #[error("{target} {}\nhint: `--out` takes {fitting}", no(ending))]
    Ending {
        /// The target.
        target: Target,
        /// The extension; empty for a folder.
        ending: String,
        /// The extensions that fit.
        fitting: &'static str,
    },
    /// The target supports only one window size for all stages.
    #[error(
        "{target} has windows of one size in all stages, this backbone has {windows:?}\n\
         hint: {others} can take it"
    )]
    Windows {
        /// The target.
        target: Target,
        /// Window size of each stage.
        windows: Vec<usize>,
        /// The targets that have such networks.
        others: String,
    },
    /// The target has no such networks.
    #[error("{target} has no networks of this family with {lacks}\nhint: {others} can take it")]
    Lacks {
        /// The target.
        target: Target,
        /// What it lacks.
        lacks: &'static str,
        /// The targets that have such networks.
        others: String,
    },
    /// The target has no networks of the family, or none of this shape.
    #[error("{target} has no {what}\nhint: {others} can take it")]
    Family {
        /// The target.
        target: Target,
        /// What it has not.
        what: String,
        /// The targets that have such networks.
        others: String,
    },
    /// ONNX graphs are not stored in bf16.
    #[error(
        "an ONNX graph is not stored in bf16, which few runtimes read\n\
         hint: `--precision f16` is as small and ten times as close"
    )]
    Bf16Graph,
    /// The graph would be larger than ONNX files can be.
    #[error(
        "{:.1} GB of weights do not fit an ONNX file, which has at most 2 GiB\n\
         hint: `--precision f16` needs half of it, or export the weights in another format",
        (parameters * value) as f64 / 1e9
    )]
    LargeGraph {
        /// Number of parameters.
        parameters: usize,
        /// Bytes of each.
        value: usize,
    },
    /// The network cannot compute images of this size.
    #[error(transparent)]
    Image(#[from] SettingError),
    /// The input size is smaller than a patch, or than what a stage needs.
    #[error(
        "images of {height} x {width} pixels are smaller than what the network needs, {patch} pixels a side"
    )]
    Size {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Least side.
        patch: usize,
    },
}

/// Most bytes of weights in an ONNX file: protocol buffers end at 2 GiB, and a graph has more than weights.
const GRAPH_BYTES: usize = (1 << 31) - (16 << 20);

/// What a target is not.
fn no(ending: &str) -> String {
    match ending {
        "" => "is one file, and a name without an ending stands for a folder".into(),
        ending => format!("is no `{ending}` file"),
    }
}

/// Kinds of output, by file extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutputKind {
    Folder,
    Safetensors,
    Torch,
    Onnx,
}

impl OutputKind {
    fn of(target: Target, path: &Path) -> Result<Self, ExportError> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        let (kinds, fitting): (&[Self], _) = match target {
            Target::Timm => (
                &[Self::Folder, Self::Safetensors, Self::Torch],
                "`.safetensors`, `.pth` or a folder",
            ),
            Target::Transformers => (&[Self::Folder], "a folder"),
            Target::Torchvision => (&[Self::Safetensors, Self::Torch], "`.safetensors` or `.pth`"),
            Target::Esvit => (&[Self::Torch, Self::Safetensors], "`.pth` or `.safetensors`"),
            Target::Onnx => (&[Self::Onnx], "`.onnx`"),
        };
        let asked = match ending.as_str() {
            "" => Some(Self::Folder),
            "safetensors" => Some(Self::Safetensors),
            "pth" | "pt" | "bin" => Some(Self::Torch),
            "onnx" => Some(Self::Onnx),
            _ => None,
        };
        asked.filter(|form| kinds.contains(form)).ok_or(ExportError::Ending {
            target,
            ending,
            fitting,
        })
    }
}

/// Exports a backbone and returns the paths of the files written.
///
/// # Errors
/// [`ExportError`] if the extension or the network does not fit the target, or a file cannot be
/// written.
pub fn write(
    backbone: &PretrainedBackbone,
    out: &Path,
    options: &Options,
) -> Result<Vec<PathBuf>, ExportError> {
    let about = serde_json::to_string(&backbone.metadata()).expect("plain values");
    check_target(&backbone.config, options.target)?;
    let naming = options.target.naming(&backbone.config);
    let layout = (backbone.config.family(), naming);
    let token = backbone.source.mask_token.as_deref();
    let tensors = || exported_with_mask_token(&backbone.params, token, layout, options.float);
    match OutputKind::of(options.target, out)? {
        OutputKind::Folder => return folder(backbone, out, options, &tensors(), &about),
        OutputKind::Safetensors => safetensors(out, &tensors(), &about)?,
        OutputKind::Torch => {
            let tensors = tensors().into_iter();
            let state = tensors.map(|(name, tensor)| (name, Tree::Tensor(tensor))).collect();
            let state = Tree::Dict(state);
            let tree = match options.target {
                Target::Esvit => Tree::Dict(vec![
                    (backbone.network_name().into(), state),
                    (METADATA_KEY.into(), Tree::Str(about.clone())),
                ]),
                _ => state,
            };
            // Beside a state dict alone: `load_state_dict(strict=True)` refuses other entries.
            let beside = [(METADATA_KEY, about.as_str())];
            let beside = if options.target == Target::Esvit { &[][..] } else { &beside };
            write_atomically(out, |file| {
                write_torch_with(file, &tree, beside).map_err(write_error)
            })?;
        }
        OutputKind::Onnx => {
            if options.float == Float::Bf16 {
                return Err(ExportError::Bf16Graph);
            }
            let [height, width] = options.size;
            let patch = backbone.config.least_side();
            if height < patch || width < patch {
                return Err(ExportError::Size { height, width, patch });
            }
            backbone.config.check_image("size", options.size)?;
            let (parameters, value) =
                (backbone.params.flat().numel(), options.float.dtype().size());
            if parameters * value > GRAPH_BYTES {
                return Err(ExportError::LargeGraph { parameters, value });
            }
            let metadata = [(METADATA_KEY, about.as_str())];
            let (network, params) = (&*backbone.network, &backbone.params);
            write_atomically(out, |file| {
                onnx::write(file, network, params, options.size, options.float, &metadata)
            })?;
        }
    }
    Ok(vec![out.into()])
}

/// What a target does not have.
enum Lack {
    /// Windows of several sizes.
    Windows(Vec<usize>),
    /// A part of networks of the family.
    Part(&'static str),
    /// The family, or networks of it of some form.
    Form(String),
}

/// Checks that the target has networks of this shape.
fn check_target(config: &BackboneConfig, target: Target) -> Result<(), ExportError> {
    let Some(lack) = lack_of(target, config) else { return Ok(()) };
    let takes = |(_, target): &(&str, Target)| lack_of(*target, config).is_none();
    let others: Vec<&str> = Target::ALL.into_iter().filter(takes).map(|(name, _)| name).collect();
    let others = match others.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "nothing".into(),
    };
    Err(match lack {
        Lack::Windows(windows) => ExportError::Windows { target, windows, others },
        Lack::Part(lacks) => ExportError::Lacks { target, lacks, others },
        Lack::Form(what) => ExportError::Family { target, what, others },
    })
}

/// What a target lacks for networks of this shape.
fn lack_of(target: Target, config: &BackboneConfig) -> Option<Lack> {
    match config {
        BackboneConfig::Swin(model) => {
            let windows = model.windows();
            let is_uneven = windows.iter().any(|window| *window != windows[0]);
            let needs_even = matches!(target, Target::Torchvision | Target::Transformers);
            (is_uneven && needs_even).then_some(Lack::Windows(windows))
        }
        BackboneConfig::Vit(model) => {
            let is_plain = model.prefix() == 1 && !model.layer_scale;
            if !is_plain && target == Target::Torchvision {
                return Some(Lack::Part("registers, distillation token or LayerScale"));
            }
            let what = vit::missing(model, target);
            what.map(|what| Lack::Form(format!("vision transformers with {what}")))
        }
        BackboneConfig::ResNet(model) => {
            missing_resnet(model, target).map(|what| Lack::Form(what.into()))
        }
        BackboneConfig::Pvt(_)
        | BackboneConfig::Cvt(_)
        | BackboneConfig::Vil(_)
        | BackboneConfig::Igpt(_) => {
            if !matches!(target, Target::Esvit | Target::Onnx) {
                return Some(Lack::Form(match config.family() {
                    // timm has version 2.
                    Family::Pvt => "PVT of version 1".into(),
                    family => format!("{family} networks"),
                }));
            }
            None
        }
    }
}

/// What a target has not of a ResNet of this shape.
fn missing_resnet(model: &ResNetConfig, target: Target) -> Option<&'static str> {
    let is_usual = config_files::resnet::has_usual_widths(model);
    match target {
        Target::Esvit | Target::Onnx => None,
        _ if model.selective_kernels => Some("selective kernels like those of SimCLR v2"),
        Target::Torchvision if !is_usual => Some("ResNet of other widths than 64, 128, 256, 512"),
        Target::Timm if model.stem_width != 64 => Some("ResNet whose first convolution is wider"),
        Target::Transformers if model.norm_eps != 1e-5 => {
            Some("ResNet with another `eps` of BatchNorm than 1e-5")
        }
        _ => None,
    }
}

/// Writes weights and their configuration files into a folder.
fn folder(
    backbone: &PretrainedBackbone,
    out: &Path,
    options: &Options,
    tensors: &[Entry],
    about: &str,
) -> Result<Vec<PathBuf>, ExportError> {
    std::fs::create_dir_all(out)
        .map_err(|source| ExportError::Folder { path: out.into(), source })?;
    let weights = out.join("model.safetensors");
    safetensors(&weights, tensors, about)?;
    let mut files = vec![weights];
    for (name, card) in config_files::config_files(options, backbone) {
        let path = out.join(name);
        let text = serde_json::to_vec_pretty(&card).expect("plain values");
        write_atomically(&path, |file| std::io::Write::write_all(file, &text))?;
        files.push(path);
    }
    Ok(files)
}

/// Weights with their metadata. `transformers` requires the entry `format`.
fn safetensors(path: &Path, tensors: &[Entry], about: &str) -> Result<(), FileError> {
    let metadata = BTreeMap::from([
        (METADATA_KEY.to_owned(), about.to_owned()),
        ("format".to_owned(), "pt".to_owned()),
    ]);
    write_atomically(path, |file| write_safetensors(file, tensors, &metadata).map_err(write_error))
}
