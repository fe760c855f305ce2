//! Loads a network from a file: every tensor is matched, ignored for a stated reason, or an error.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::device::Device;
use esvit_weights::{TensorInfo, WeightsFile};

use super::location::{self, Location};
use super::method;
use super::naming::{self, Naming};
use super::recognize::{self, Known, networks};
use super::{NOT_FINITE, NOT_READ, WeightsError, resize};
use crate::backbone::{BackboneConfig, Family};
use crate::params::{ParamList, ParamSpec, Params};

/// A network in an opened file.
#[derive(Debug)]
pub struct StoredNetwork<'a> {
    file: &'a WeightsFile,
    location: Location,
}

/// What was done with a file's tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of parameters read from the file.
    pub matched: usize,
    /// One line per resized table.
    pub resized: Vec<String>,
    /// Ignored tensors, by reason.
    pub left_out: BTreeMap<&'static str, Vec<String>>,
}

/// Why tensors are ignored.
pub mod reason {
    /// Buffers that other programs store although they can be computed.
    pub const DERIVED: &str = "follows from the settings";
    /// A projection head, where only the backbone is loaded.
    pub const PROJECTION: &str = "projection head, no part of the backbone";
    /// A classification head.
    pub const CLASSES: &str = "class head: features are those before it";
    /// Parts of a larger network outside the backbone.
    pub const BESIDE: &str = "outside the backbone";
    /// What a masked image was filled with and reconstructed by.
    pub const PRETEXT: &str = "of masked image modeling: features of whole images do not use it";
    /// A norm of an earlier stage, in code for detection and segmentation.
    pub const STAGE_NORM: &str = "norm of an earlier stage: features are those of the last";
    /// A layer that the official code stores twice.
    pub const SECOND_NAME: &str = "the same layer under a second name";
    /// A tensor without values.
    pub const EMPTY: &str = "it holds no values";
    /// Optimizer state and centers.
    pub const STATE: &str = "state of a run";
}

impl<'a> StoredNetwork<'a> {
    /// The network that `key` names, by [its name](Location::network), its path or parts of that;
    /// without a key the teacher if there is one, else the only network.
    ///
    /// # Errors
    /// When there is no such network, or more than one.
    pub fn find(file: &'a WeightsFile, key: Option<&str>) -> Result<Self, WeightsError> {
        let all = networks(file);
        match location::chosen(&all, key)[..] {
            [location] => Ok(Self { file, location: location.clone() }),
            [] if all.is_empty() => Err(WeightsError::NoBackbone {
                path: file.path().into(),
                found: recognize::other_backbone(file),
                tensors: file.tensors().len(),
                unreadable: file.unsupported().iter().map(|(_, dtype)| dtype.clone()).collect(),
            }),
            _ => Err(WeightsError::Which {
                path: file.path().into(),
                key: key.map(str::to_owned),
                networks: all.iter().map(|at| at.network().to_owned()).collect(),
            }),
        }
    }

    /// The network with official names after `prefix`, whatever its family: these stay as they are.
    pub fn at(file: &'a WeightsFile, prefix: &str) -> Self {
        Self::named(file, Family::Swin, Naming::Esvit, prefix)
    }

    /// The network of a family whose parameters another program has named, after `prefix`.
    pub fn named(file: &'a WeightsFile, family: Family, naming: Naming, prefix: &str) -> Self {
        Self { file, location: Location::new(family, naming, "", prefix) }
    }

    /// Where it is in the file, and its naming.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its shape, inferred from the shapes of its tensors.
    ///
    /// # Errors
    /// When they are not those of its family.
    pub fn shape(&self) -> Result<BackboneConfig, WeightsError> {
        self.shape_given(&Known::default()).map(|(shape, _)| shape)
    }

    /// Its shape, given what is known from elsewhere; and a line for everything that was assumed,
    /// since neither the tensors nor anything else says it.
    ///
    /// # Errors
    /// As [`StoredNetwork::shape`].
    pub fn shape_given(
        &self,
        known: &Known,
    ) -> Result<(BackboneConfig, Vec<String>), WeightsError> {
        recognize::shape(self.file, &self.location, known).map_err(|reason| WeightsError::Shape {
            path: self.file.path().into(),
            family: self.location.family.label(),
            reason,
        })
    }

    /// Whether the file has the head `part`. One called `head` or `head_dense` is a projection head;
    /// in files of other programs a classifier may be called so. A head may be a single tensor, such as
    /// the token in place of masked patches.
    pub fn has_part(&self, part: &str) -> bool {
        let names = self.location.names(part);
        if names.iter().any(|name| self.location.find(self.file, name).is_some()) {
            return true;
        }
        let starts = self.location.head_prefixes().map(|prefix| format!("{prefix}{part}."));
        let is_either = matches!(part, "head" | "head_dense");
        let is_classifier = |name: &str| is_either && !is_projection(name);
        let is_in = |name: &str, start: &str| {
            name.strip_prefix(start).is_some_and(|name| !is_classifier(name))
        };
        let elsewhere = || {
            let (group, start) = method::head_start(&self.location, part)?;
            self.in_group(&group).find(|tensor| is_in(&tensor.name, &start))
        };
        self.tensors().any(|tensor| starts.iter().any(|start| is_in(&tensor.name, start)))
            || elsewhere().is_some()
    }

    /// The tensors of its dictionary.
    fn tensors(&self) -> impl Iterator<Item = &'a TensorInfo> {
        self.in_group(&self.location.group)
    }

    /// The tensors of a dictionary.
    fn in_group(&self, group: &str) -> impl Iterator<Item = &'a TensorInfo> {
        self.file.tensors().iter().filter(move |tensor| tensor.group == group)
    }

    /// Values of all of `specs`. Relative position biases are resized to the network's windows;
    /// `other` may supply parameters that the file lacks, and those of heads in place of the file's.
    ///
    /// # Errors
    /// Lists all parameters that are missing, misshapen or not finite, and all tensors of the
    /// network that are neither in `specs` nor to be ignored.
    pub fn load(
        &self,
        specs: &Arc<ParamList>,
        device: &Device,
        mut other: impl FnMut(&ParamSpec) -> Option<Vec<f32>>,
    ) -> Result<(Params, Report), WeightsError> {
        let mut report = Report::default();
        let mut used = HashSet::new();
        let mut differences = Vec::new();
        let mut found = Vec::with_capacity(specs.len());
        for spec in specs.iter() {
            let instead = if spec.part.is_backbone() { None } else { other(spec) };
            if let Some(values) = instead {
                used.extend(self.names(spec).1);
                found.push(values);
                continue;
            }
            match self.values(spec, &mut used, &mut report) {
                Ok(values) => match values.or_else(|| other(spec)) {
                    Some(values) => found.push(values),
                    None => differences.push(self.missing(spec)),
                },
                Err(WeightsError::Mismatch { differences: found, .. }) => differences.extend(found),
                Err(error) => return Err(error),
            }
        }
        differences.extend(self.rest(&used, &mut report));
        differences.extend(self.check_copy(&mut report)?);
        if !differences.is_empty() {
            return Err(self.mismatch(differences));
        }
        let mut found = found.into_iter();
        let params = Params::from_fn(specs, device, |_| found.next().unwrap_or_default());
        Ok((params, report))
    }

    /// The values of one parameter.
    ///
    /// # Errors
    /// When the file lacks it or holds it in another shape.
    pub fn parameter(&self, spec: &ParamSpec) -> Result<Vec<f32>, WeightsError> {
        self.values(spec, &mut HashSet::new(), &mut Report::default())?
            .ok_or_else(|| self.mismatch(vec![format!("`{}` is missing", spec.name)]))
    }

    /// The token `[width]` in place of masked patches, if the file has one of this width.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn mask_token(&self, width: usize) -> Result<Option<Vec<f32>>, WeightsError> {
        let names = self.location.names(MASK_TOKEN);
        let found = names.iter().find_map(|name| self.location.find(self.file, name));
        let fits = |shape: &[usize]| {
            shape
                .split_last()
                .is_some_and(|(&last, rest)| last == width && rest.iter().all(|&n| n == 1))
        };
        let fitting = found.filter(|tensor| fits(&tensor.shape));
        Ok(fitting.map(|tensor| self.file.read_f32(tensor)).transpose()?)
    }

    /// Whether the file has a parameter of a head in its shape.
    pub fn has_shape(&self, spec: &ParamSpec) -> bool {
        let (group, names) = self.names(spec);
        names.iter().all(|name| {
            let found = self.file.find(&group, name);
            found.is_some_and(|tensor| tensor.shape == spec.shape)
        })
    }

    /// The line about a parameter that the file lacks.
    fn missing(&self, spec: &ParamSpec) -> String {
        let (group, names) = self.names(spec);
        let path = |name: &String| match group.as_str() {
            "" => name.clone(),
            group => format!("{group}/{name}"),
        };
        let paths: Vec<String> = names.iter().map(path).collect();
        let mut unreadable = self.file.unsupported().iter();
        match unreadable.find(|(found, _)| paths.contains(found)) {
            Some((_, dtype)) => {
                format!("`{}` is stored as `{dtype}`, {NOT_READ}", names.join("`, `"))
            }
            None => format!("`{}` {:?} is missing", names.join("`, `"), spec.shape),
        }
    }

    fn mismatch(&self, differences: Vec<String>) -> WeightsError {
        WeightsError::Mismatch { path: self.file.path().into(), differences }
    }

    /// The dictionary and the names of the tensors in the file that hold a parameter.
    fn names(&self, spec: &ParamSpec) -> (String, Vec<String>) {
        let usual = self.usual_names(spec);
        if spec.part.is_backbone() || usual.iter().all(|name| self.has_name(name)) {
            return (self.location.group.clone(), usual);
        }
        // Where the head is at neither place, the usual name is the one that is missing.
        let part = spec.name.split('.').next().unwrap_or_default();
        let is_there = |start: &(String, String)| {
            self.in_group(&start.0).any(|tensor| tensor.name.starts_with(&start.1))
        };
        let start = method::head_start(&self.location, part).filter(is_there);
        match start.and_then(|_| method::head_name(&self.location, &spec.name)) {
            Some((group, name)) => (group, vec![name]),
            None => (self.location.group.clone(), usual),
        }
    }

    /// Whether its dictionary has a tensor of this name.
    fn has_name(&self, name: &str) -> bool {
        self.file.find(&self.location.group, name).is_some()
    }

    /// The names of a parameter within its network, or of a head's above it.
    fn usual_names(&self, spec: &ParamSpec) -> Vec<String> {
        let official = spec.name.as_str();
        let prefix = &self.location.prefix;
        let names = self.location.names(official);
        let names: Vec<String> = names.into_iter().map(|name| format!("{prefix}{name}")).collect();
        // Only heads have alternative prefixes and names.
        let [_, above] = self.location.head_prefixes();
        let new = parametrized(official);
        let others = [prefix, above].into_iter().flat_map(|prefix| {
            let names = [Some(official), new.as_deref()].into_iter().flatten();
            names.map(move |name| format!("{prefix}{name}"))
        });
        let exists = |name: &String| self.has_name(name);
        if spec.part.is_backbone()
            && !names.iter().all(exists)
            && let Some(rest) = official.strip_prefix("norm.")
            && let Some(norm) = recognize::last_norm(self.file, &self.location)
        {
            return vec![format!("{prefix}{norm}.{rest}")];
        }
        if !spec.part.is_backbone() && !names.iter().all(exists) {
            others.into_iter().find(exists).map_or(names, |name| vec![name])
        } else {
            names
        }
    }

    /// Values of a parameter; None if the file does not have it.
    fn values(
        &self,
        spec: &ParamSpec,
        used: &mut HashSet<String>,
        report: &mut Report,
    ) -> Result<Option<Vec<f32>>, WeightsError> {
        let (group, names) = self.names(spec);
        let found = names.iter().map(|name| self.file.find(&group, name));
        let Some(tensors) = found.collect::<Option<Vec<_>>>() else { return Ok(None) };
        used.extend(names.iter().cloned());
        let shown = names.join("`, `");
        let differs = |how: String| self.mismatch(vec![format!("`{shown}` {how}")]);
        let mut shape = tensors[0].shape.clone();
        if tensors.len() > 1 {
            // Parts of one parameter must have equal shapes.
            if tensors.iter().any(|tensor| tensor.shape != shape) {
                let shapes: Vec<_> = tensors.iter().map(|tensor| &tensor.shape).collect();
                return Err(differs(format!("are {shapes:?}, not alike")));
            }
            if let Some(rows) = shape.first_mut() {
                *rows *= tensors.len();
            }
        }
        let heads = spec.shape.last().copied().unwrap_or(0);
        let is_table = spec.name.ends_with("relative_position_bias_table") && shape.len() == 2;
        let is_positions = spec.name.starts_with("pos_embed") && shape.len() == 3 && shape[0] == 1;
        let is_axis = ["x_pos_embed", "y_pos_embed"].iter().any(|name| spec.name.ends_with(name))
            && shape.len() == 3
            && shape[0] == 1;
        let is_resizable = is_table || is_positions || is_axis;
        let can_resize = is_resizable && shape.last() == spec.shape.last();
        if shape != spec.shape && !can_resize {
            return Err(differs(format!("is {shape:?}, the network has {:?}", spec.shape)));
        }
        let mut values = Vec::with_capacity(if tensors.len() > 1 { spec.len() } else { 0 });
        for tensor in &tensors {
            let part = self.file.read_f32(tensor)?;
            if values.is_empty() { values = part } else { values.extend(part) }
        }
        let row = shape.last().copied().unwrap_or(1);
        let Location { family, naming, .. } = self.location;
        let mut values = naming.official_order(family, &spec.name, values, row);
        let broken = values.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            return Err(differs(format!("holds {broken} {NOT_FINITE}")));
        }
        if shape != spec.shape {
            let resized = match spec.name.as_str() {
                "pos_embed" => resize::positions(&values, heads, spec.shape[1]),
                _ if is_positions => resize::bilinear_positions(&values, heads, spec.shape[1]),
                _ if is_axis => resize::axis_positions(&values, heads, spec.shape[1]),
                _ => resize::relative_positions(&values, heads, spec.shape[0]),
            };
            values =
                resized.ok_or_else(|| differs(format!("{shape:?} is no square of positions")))?;
            report.resized.push(format!("`{shown}` from {shape:?} to {:?}", spec.shape));
        }
        self.check_second_name(spec, &values, used, report)?;
        report.matched += 1;
        Ok(Some(values))
    }

    /// Checks that a parameter which the file has under a second name, too, has the same values there.
    fn check_second_name(
        &self,
        spec: &ParamSpec,
        values: &[f32],
        used: &mut HashSet<String>,
        report: &mut Report,
    ) -> Result<(), WeightsError> {
        let Some(second) = naming::second_name(&spec.name) else { return Ok(()) };
        let Some(tensor) = self.location.find(self.file, &second) else { return Ok(()) };
        used.insert(tensor.name.clone());
        if tensor.shape != spec.shape || self.file.read_f32(tensor)? != values {
            let line = format!(
                "`{}` differs from `{}`, which is one layer for all tokens here",
                tensor.name, spec.name
            );
            return Err(self.mismatch(vec![line]));
        }
        report.left_out.entry(reason::SECOND_NAME).or_default().push(tensor.name.clone());
        Ok(())
    }

    /// Checks that a backbone which the file has under a second prefix, too, has the same values there;
    /// returns a line for each that differs.
    fn check_copy(&self, report: &mut Report) -> Result<Vec<String>, WeightsError> {
        let Some(copy) = method::copy_prefix(&self.location) else { return Ok(Vec::new()) };
        let mut differences = Vec::new();
        for tensor in self.tensors() {
            let Some(rest) = tensor.name.strip_prefix(&copy) else { continue };
            if rest.ends_with("num_batches_tracked") {
                report.left_out.entry(reason::DERIVED).or_default().push(tensor.name.clone());
                continue;
            }
            let is_same = match self.location.find(self.file, rest) {
                Some(own) => {
                    own.shape == tensor.shape
                        && self.file.read_f32(own)? == self.file.read_f32(tensor)?
                }
                None => false,
            };
            if is_same {
                report.left_out.entry(reason::SECOND_NAME).or_default().push(tensor.name.clone());
            } else {
                let own = &self.location.prefix;
                let line =
                    format!("`{}` differs from `{own}{rest}`, of which it is a copy", tensor.name);
                differences.push(line);
            }
        }
        Ok(differences)
    }

    /// Adds unused tensors to the report; returns those that there is no reason to ignore.
    fn rest(&self, used: &HashSet<String>, report: &mut Report) -> Vec<String> {
        let [prefix, above] = self.location.head_prefixes();
        let mut unknown = Vec::new();
        for tensor in self.tensors() {
            let inside = tensor.name.strip_prefix(prefix);
            let below = inside.or_else(|| tensor.name.strip_prefix(above));
            // What a masked image was reconstructed with stands beside the network.
            let is_decoder = below.is_none() && tensor.name.starts_with(DECODER);
            let Some(below) = below.or(is_decoder.then_some(DECODER)) else { continue };
            if used.contains(&tensor.name) {
                continue;
            }
            let empty = tensor.shape.contains(&0).then_some(reason::EMPTY);
            match empty.or_else(|| ignore_reason(below, inside.is_some())) {
                Some(reason) => {
                    report.left_out.entry(reason).or_default().push(tensor.name.clone());
                }
                None => unknown.push(format!("`{}` has no place in the network", tensor.name)),
            }
        }
        unknown
    }
}

/// Why a tensor that belongs to no parameter may be ignored. `name` is relative to the backbone
/// or, outside of it, to the whole network.
fn ignore_reason(name: &str, is_backbone: bool) -> Option<&'static str> {
    let derived = ["relative_position_index", "attn_mask", "num_batches_tracked"];
    let head = name.strip_prefix("head.").or_else(|| name.strip_prefix("head_dense."));
    if derived.iter().any(|end| name.ends_with(end)) {
        Some(reason::DERIVED)
    } else if head.is_some_and(is_projection) || is_backbone && is_projector(name) {
        Some(reason::PROJECTION)
    } else if head.is_some() || CLASS_HEADS.iter().any(|start| name.starts_with(start)) {
        Some(reason::CLASSES)
    } else if name == "center" || name == "center_grid" || name.starts_with("optimizer.") {
        Some(reason::STATE)
    } else if is_pretext(name, is_backbone) {
        Some(reason::PRETEXT)
    } else if is_backbone && is_stage_norm(name) {
        Some(reason::STAGE_NORM)
    } else {
        (!is_backbone).then_some(reason::BESIDE)
    }
}

/// Beginnings of the names of class heads, and of what stands between features and them.
const CLASS_HEADS: [&str; 5] = ["classifier.", "fc.", "heads.", "head_dist.", "pooler."];

/// Beginnings of the names of what objectives add to a backbone, beside its own names: MoBY and BYOL,
/// MoCo-v3, SwAV, SimCLR, iBOT, iGPT, and our own of BYOL's regions and of masked patches.
const PROJECTORS: [&str; 10] = [
    "projector.",
    "projector_dense.",
    "predictor.",
    "predictor_dense.",
    "color.",
    "projection_head.",
    "prototypes.",
    "head_contrastive.",
    "ibot_head.",
    "lm_head.",
];

/// The same for sequences of layers with numbers: MoCo-v2, DenseCL.
const SEQUENCES: [&str; 3] = ["fc.", "mlp.", "mlp2."];

/// Whether a tensor that is called like those of the backbone belongs to a projector or predictor.
fn is_projector(name: &str) -> bool {
    let is_sequence = |start: &&str| name.strip_prefix(*start).is_some_and(is_projection);
    PROJECTORS.iter().any(|start| name.starts_with(start)) || SEQUENCES.iter().any(is_sequence)
}

/// The official name of the token in place of masked patches.
pub const MASK_TOKEN: &str = "mask_token";

/// Beginning of the decoder's names in SimMIM.
const DECODER: &str = "decoder.";

/// Whether a tensor serves masked image modeling alone: SimMIM's and iBOT's tokens in place of hidden
/// patches, and the decoder beside the network.
fn is_pretext(name: &str, is_backbone: bool) -> bool {
    let token = name.rsplit('.').next().unwrap_or_default();
    matches!(token, MASK_TOKEN | "masked_embed") || !is_backbone && name.starts_with(DECODER)
}

/// Whether a tensor belongs to the norm of one stage: `norm0.weight`.
fn is_stage_norm(name: &str) -> bool {
    let stage = name.strip_prefix("norm").and_then(|rest| rest.split_once('.'));
    stage.is_some_and(|(stage, _)| stage.parse::<usize>().is_ok())
}

/// Whether a parameter, named relative to its head, belongs to a projection head: DINO's and EsViT's,
/// or MoCo-v3's, whose layers have numbers.
fn is_projection(name: &str) -> bool {
    let layer = name.split_once('.').map_or("", |(layer, _)| layer);
    matches!(layer, "mlp" | "last_layer") || layer.parse::<usize>().is_ok()
}

/// The name of a head's parameter in PyTorch's `parametrizations.weight_norm`.
fn parametrized(official: &str) -> Option<String> {
    let new = |old, new| official.strip_suffix(old).map(|head| format!("{head}{new}"));
    new("last_layer.weight_g", "last_layer.parametrizations.weight.original0")
        .or_else(|| new("last_layer.weight_v", "last_layer.parametrizations.weight.original1"))
}
