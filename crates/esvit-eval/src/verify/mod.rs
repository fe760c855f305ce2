//! Checks this program's numbers against stored reference cases.
//!
//! A case is a folder with `case.json` (kind and settings) and `tensors.safetensors` (inputs and
//! expected outputs).

mod augment;
mod backbone;
mod built_in;
mod checkpoint;
mod checks;
mod evaluation;
mod heads;
mod objective;
mod objectives;
mod optimizer;
mod pretrain;
mod pretrain_ssl;
mod schedule;
mod schedule_ssl;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_nn::backbone::Family;
use esvit_nn::ops::Precision;
use esvit_nn::params::{ParamList, ParamSpec};
use esvit_nn::weights::{ESVIT_WRAPPER, Naming, StoredNetwork, WeightsError, WeightsFile};
use esvit_nn::{Device, ForwardCtx, Params, Tensor};
use esvit_weights::{TensorInfo, WeightsError as FileError};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::built_in::{BuiltIn, CASES};

/// What a case gives, or why it cannot be computed.
type Result<T, E = CaseError> = std::result::Result<T, E>;

/// One comparison of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was compared.
    pub what: String,
    /// The difference, in the unit of the tolerance.
    pub difference: f64,
    /// The largest allowed difference.
    pub tolerance: f64,
}

impl Check {
    fn new(what: impl Into<String>, difference: f64, tolerance: f64) -> Self {
        Self { what: what.into(), difference, tolerance }
    }

    /// Whether the difference is allowed; NaN is not.
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Outcome of a case.
#[derive(Debug)]
pub enum Outcome {
    /// All comparisons made.
    Compared(Vec<Check>),
    /// It needs an unsupported feature.
    NotSupported(String),
    /// It could not be computed.
    Failed(CaseError),
}

/// A case and its outcome.
#[derive(Debug)]
pub struct Report {
    /// Name of its folder.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Report {
    /// Whether there are comparisons and all of them hold.
    pub fn passed(&self) -> bool {
        matches!(&self.outcome, Outcome::Compared(checks)
            if !checks.is_empty() && checks.iter().all(Check::passed))
    }

    /// Whether the case counts as failed.
    pub fn failed(&self) -> bool {
        !self.passed() && !matches!(self.outcome, Outcome::NotSupported(_))
    }
}

/// A case cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A file or folder cannot be read.
    #[error("cannot read `{path}`: {reason}", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The settings are incomplete or invalid.
    #[error("`case.json`: {0}")]
    Settings(String),
    /// A tensor is missing.
    #[error("tensor `{0}` is missing")]
    Tensor(String),
    /// The tensors do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The kind is unknown.
    #[error("unknown kind `{0}`")]
    Kind(String),
    /// The computation failed.
    #[error("{0}")]
    Computation(String),
}

/// How cases are computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Where.
    pub device: Device,
    /// The precision of networks and losses. Tolerances are those of f32.
    pub precision: Precision,
}

/// Runs all cases under `folder` (subfolders with a `case.json`, by name), or the case in `folder`
/// itself, and calls `show` with each report.
///
/// # Errors
/// [`CaseError::Read`] if the folder cannot be read or holds no case.
pub fn run(folder: &Path, options: Options, mut show: impl FnMut(&Report)) -> Result<Vec<Report>> {
    let unreadable = |reason: String| CaseError::Read { path: folder.into(), reason };
    let is_case = |path: &PathBuf| path.join("case.json").is_file();
    let mut cases = vec![folder.to_path_buf()];
    if !is_case(&cases[0]) {
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let hint = "hint: name a case, or a folder of cases; each is a folder with a `case.json`";
        let entries = entries.map_err(|error| unreadable(format!("{error}\n{hint}")))?;
        cases = entries.iter().map(std::fs::DirEntry::path).filter(is_case).collect();
    }
    if cases.is_empty() {
        return Err(unreadable("no folder in it has a `case.json`".into()));
    }
    cases.sort();
    let report = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let report = report(name, Case::open(&path, options));
        show(&report);
        report
    };
    Ok(cases.into_iter().map(report).collect())
}

/// Runs the cases inside of the program, likewise.
pub fn run_built_in(options: Options, mut show: impl FnMut(&Report)) -> Vec<Report> {
    let report = |case: &BuiltIn| {
        let report = report(case.name.into(), Case::built_in(case, options));
        show(&report);
        report
    };
    CASES.iter().map(report).collect()
}

fn report(name: String, case: Result<Case>) -> Report {
    let case = match case {
        Ok(case) => case,
        Err(e) => return Report { name, kind: String::new(), outcome: Outcome::Failed(e) },
    };
    let result = match case.kind.as_str() {
        "backbone" | "pretrain" | "checkpoint" if !has_known_family(&case.settings) => {
            let family = case.settings["family"].as_str().unwrap_or("unknown");
            Ok(Outcome::NotSupported(format!("networks of family `{family}`")))
        }
        "backbone" => backbone::run(&case),
        "objective" => objective::run(&case),
        "pretrain" => pretrain::run(&case),
        "knn" => evaluation::knn(&case),
        "correspondence" => evaluation::correspondence(&case),
        "schedule" => schedule::run(&case),
        "schedule-ssl" => schedule_ssl::run(&case),
        "optimizer" => optimizer::run(&case),
        "augment" => augment::run(&case),
        "checkpoint" => checkpoint::run(&case),
        "quantize-igpt" => objectives::quantize(&case),
        kind => match kind.split_once('-') {
            Some(("objective", method)) => objectives::run(&case, method),
            Some(("head", method)) => heads::run(&case, method),
            Some(("pretrain", method)) => pretrain_ssl::run(&case, method),
            _ => Err(CaseError::Kind(kind.into())),
        },
    };
    let outcome = result.unwrap_or_else(Outcome::Failed);
    Report { name, kind: case.kind, outcome }
}

fn has_known_family(settings: &Value) -> bool {
    Family::ALL.iter().any(|family| settings["family"] == family.name())
}

/// Makes the shape of a case's network one of ours: with its family, how its positions are resized, and
/// without what says a thing twice.
fn complete_shape(settings: &mut Value) {
    let (family, resize) = (settings["family"].clone(), settings["position_resize"].clone());
    let Some(shape) = settings["config"].as_object_mut() else { return };
    if family == "vil" {
        shape.remove("depths_n");
        if let Some(stages) = shape.remove("arch") {
            shape.insert("stages".into(), stages);
        }
    }
    shape.insert("family".into(), family);
    match resize.as_str() {
        // They are resized as by timm.
        Some("dinov2-registers") => drop(shape.insert("position_resize".into(), "timm".into())),
        Some(_) => drop(shape.insert("position_resize".into(), resize)),
        None => {}
    }
    if let Some(Value::String(table)) = shape.get_mut("position_table") {
        *table = table.replace(' ', "_");
    }
}

/// A case that has been read.
struct Case {
    /// Where its further files are, if it has some.
    folder: PathBuf,
    kind: String,
    settings: Value,
    tensors: WeightsFile,
    device: Device,
    precision: Precision,
}

impl Case {
    fn open(folder: &Path, options: Options) -> Result<Self> {
        let path = folder.join("case.json");
        let text = esvit_files::read_text(&path)
            .map_err(|e| CaseError::Read { path: path.clone(), reason: e.to_string() })?;
        let tensors = WeightsFile::open(&folder.join("tensors.safetensors"));
        Self::new(folder, &text, tensors, options)
    }

    fn built_in(case: &BuiltIn, options: Options) -> Result<Self> {
        let folder = Path::new(case.name);
        let tensors =
            WeightsFile::from_bytes(&folder.join("tensors.safetensors"), case.tensors.into());
        Self::new(folder, case.settings, tensors, options)
    }

    fn new(
        folder: &Path,
        settings: &str,
        tensors: Result<WeightsFile, FileError>,
        options: Options,
    ) -> Result<Self> {
        let mut settings: Value =
            serde_json::from_str(settings).map_err(|e| CaseError::Settings(e.to_string()))?;
        complete_shape(&mut settings);
        let kind = settings["kind"]
            .as_str()
            .ok_or_else(|| CaseError::Settings("`kind` is missing".into()))?
            .to_owned();
        let tensors = tensors.map_err(WeightsError::from)?;
        let Options { device, precision } = options;
        Ok(Self { folder: folder.into(), kind, settings, tensors, device, precision })
    }

    /// A pass in evaluation.
    fn eval(&self) -> ForwardCtx {
        ForwardCtx::eval().with_precision(self.precision)
    }

    /// A pass in training without drop path.
    fn training(&self) -> ForwardCtx {
        ForwardCtx::teacher().with_precision(self.precision)
    }

    /// The settings, deserialized for a kind.
    fn settings<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.settings).map_err(|e| CaseError::Settings(e.to_string()))
    }

    fn find(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.find("", name).ok_or_else(|| CaseError::Tensor(name.into()))
    }

    /// Shape of a tensor.
    fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.find(name)?.shape)
    }

    /// Shape and values of a tensor.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.read(name, WeightsFile::read_f32)
    }

    /// Values of an integer tensor.
    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.read(name, WeightsFile::read_i64)?.1)
    }

    /// Shape and values of a tensor of bytes.
    fn bytes(&self, name: &str) -> Result<(Vec<usize>, Vec<u8>)> {
        self.read(name, WeightsFile::read_u8)
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&WeightsFile, &TensorInfo) -> Result<Vec<T>, FileError>,
    ) -> Result<(Vec<usize>, Vec<T>)> {
        let tensor = self.find(name)?;
        let values = read(&self.tensors, tensor).map_err(WeightsError::from)?;
        Ok((tensor.shape.clone(), values))
    }

    /// Compares values with a tensor, as [`absolute_error`] does.
    fn absolute_error(&self, name: &str, found: &Tensor, tolerance: f64) -> Result<Check> {
        let (_, expected) = self.tensor(name)?;
        Ok(absolute_error(name, &found.to_vec::<f32>(), &expected, tolerance))
    }

    /// Prefix of the names of the backbone's parameters, if the case has one.
    fn backbone_prefix(&self) -> Option<&str> {
        self.settings["backbone_prefix"].as_str()
    }

    /// The name that a parameter has in the case.
    fn name(&self, spec: &ParamSpec) -> String {
        let prefix = self.backbone_prefix().filter(|_| spec.part.is_backbone());
        format!("{}{}", prefix.unwrap_or_default(), spec.name)
    }

    /// Parameters stored under `prefix` + name.
    fn params(&self, prefix: &str, specs: &Arc<ParamList>) -> Result<Params> {
        let stored = match self.backbone_prefix() {
            None => StoredNetwork::at(&self.tensors, prefix),
            Some(ESVIT_WRAPPER) => {
                let (family, naming) = (Family::ResNet, Naming::Esvit);
                StoredNetwork::named(&self.tensors, family, naming, prefix)
            }
            Some(other) => {
                let reason = format!("`backbone_prefix` is `{other}`, not `{ESVIT_WRAPPER}`");
                return Err(CaseError::Settings(reason));
            }
        };
        Ok(stored.load(specs, &self.device, |_| None)?.0)
    }

    /// A tensor of `D` dimensions on the device.
    fn load<const D: usize>(&self, name: &str) -> Result<Tensor> {
        let (shape, values) = self.tensor(name)?;
        let shape: [usize; D] = shape.try_into().map_err(|shape| {
            CaseError::Settings(format!("tensor `{name}` has shape {shape:?}, not {D} dimensions"))
        })?;
        Ok(Tensor::new(values, shape, &self.device))
    }
}

/// Largest absolute difference; infinite if lengths differ or a difference is NaN.
fn max_abs_difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let differences = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, |largest, d| if d.is_nan() { f64::INFINITY } else { largest.max(d) })
}

fn max_abs(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |largest: f64, v| largest.max(f64::from(v.abs())))
}

/// Compares the largest absolute difference with a tolerance.
fn absolute_error(what: &str, found: &[f32], expected: &[f32], tolerance: f64) -> Check {
    Check::new(what, max_abs_difference(found, expected), tolerance)
}

/// Compares the largest absolute difference, divided by the largest expected entry, with a
/// tolerance.
fn relative_to_max(what: &str, found: &[f32], expected: &[f32], tolerance: f64) -> Check {
    let scale = max_abs(expected).max(f64::MIN_POSITIVE);
    Check::new(what, max_abs_difference(found, expected) / scale, tolerance)
}

/// Compares the relative difference of two numbers with a tolerance.
fn relative_error(what: &str, found: f64, expected: f64, tolerance: f64) -> Check {
    let difference = (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
    Check::new(what, difference, tolerance)
}
