//! Finds the networks in a file of weights and infers their shapes.

mod cvt;
mod igpt;
mod pvt;
mod resnet;
mod swin;
mod vil;
mod vit;

use std::collections::HashSet;

use esvit_weights::{TensorInfo, WeightsFile};

use super::location::{self, Location};
use super::method;
use super::naming::Naming;
use crate::backbone::{BackboneConfig, Family};

/// More stages than any network has.
const MAX_STAGES: usize = 8;

/// All networks in a file, optimizer states under the same names excluded.
pub fn networks(file: &WeightsFile) -> Vec<Location> {
    let mut found = swin::networks(file);
    found.extend(vit::networks(file));
    found.extend(pvt::networks(file));
    found.extend(resnet::networks(file));
    found.extend(cvt::networks(file));
    found.extend(vil::networks(file));
    found.extend(igpt::networks(file));
    found.iter_mut().for_each(|network| method::note(file, network));
    // A backbone that is there twice is one network.
    let copy = |at: &Location| Some((at.group.clone(), method::copy_prefix(at)?));
    let copies: Vec<(String, String)> = found.iter().filter_map(copy).collect();
    found.retain(|at| !copies.iter().any(|copy| *copy == (at.group.clone(), at.prefix.clone())));
    location::name(&mut found);
    found
}

/// The networks that have a parameter which all of a family have, under the names of a program.
fn marked(file: &WeightsFile, family: Family, naming: Naming, mark: &str) -> Vec<Location> {
    let mark = naming.names(family, mark).swap_remove(0);
    let is_state = |path: &str| path.starts_with("optimizer");
    let place = |tensor: &TensorInfo| {
        let prefix = tensor.name.strip_suffix(&mark)?;
        let is_whole = prefix.is_empty() || prefix.ends_with('.');
        let is_network = is_whole && !is_state(prefix) && !is_state(&tensor.group);
        is_network.then(|| Location::new(family, naming, &tensor.group, prefix))
    };
    file.tensors().iter().filter_map(place).collect()
}

/// The tensor that holds the parameter with this official name.
fn find<'a>(file: &'a WeightsFile, location: &Location, official: &str) -> Option<&'a TensorInfo> {
    location.find(file, &location.names(official).swap_remove(0))
}

/// The tensor that holds a parameter, which all have.
///
/// # Errors
/// Names it when it is missing.
fn tensor<'a>(
    file: &'a WeightsFile,
    location: &Location,
    official: &str,
) -> Result<&'a TensorInfo, String> {
    let name = location.names(official).swap_remove(0);
    location.find(file, &name).ok_or_else(|| format!("`{}{name}` is missing", location.prefix))
}

/// The sizes of the tensor that holds a parameter; `form` says what they are.
///
/// # Errors
/// Names the tensor that is missing or has another number of dimensions.
fn sizes<const D: usize>(
    file: &WeightsFile,
    location: &Location,
    official: &str,
    form: &str,
) -> Result<[usize; D], String> {
    let tensor = tensor(file, location, official)?;
    let shape = tensor.shape.as_slice();
    shape.try_into().map_err(|_| format!("`{}` is {shape:?}, not {form}", tensor.name))
}

/// The name of the last stage's norm, where each stage has its own, as in code for detection and
/// segmentation: `norm3`.
pub(super) fn last_norm(file: &WeightsFile, location: &Location) -> Option<String> {
    let name = |stage: usize| format!("norm{stage}");
    let exists = |name: &String| location.find(file, &format!("{name}.weight")).is_some();
    (0..MAX_STAGES).rev().map(name).find(exists)
}

/// What is known of a network from elsewhere than its tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Known {
    /// Side of the images, as the user says; windows are then made for it.
    pub asked_size: Option<usize>,
    /// Side of the images, as a file beside the weights says.
    pub stated_size: Option<usize>,
    /// `eps` of LayerNorm, as a file beside the weights says.
    pub stated_eps: Option<f64>,
    /// Number of attention heads, as a file beside the weights says.
    pub stated_heads: Option<usize>,
}

impl Known {
    /// `eps` of the network's norms, `norm`, with a line that it is that of `source` where nothing says it.
    fn norm_eps(
        &self,
        location: &Location,
        [norm, source]: [&str; 2],
        assumed: &mut Vec<String>,
    ) -> f64 {
        self.stated_eps.unwrap_or_else(|| {
            let eps = location.norm_eps();
            assumed.push(format!("`eps` of {norm} is {eps:e}, as in {source}"));
            eps
        })
    }
}

/// Infers a network's shape from its tensors; with a line for everything that was assumed, since
/// nothing says it.
///
/// # Errors
/// Names the tensor that is missing or has another shape.
pub(super) fn shape(
    file: &WeightsFile,
    location: &Location,
    known: &Known,
) -> Result<(BackboneConfig, Vec<String>), String> {
    fn of<S>(
        found: Result<(S, Vec<String>), String>,
        config: fn(S) -> BackboneConfig,
    ) -> Result<(BackboneConfig, Vec<String>), String> {
        found.map(|(shape, assumed)| (config(shape), assumed))
    }
    match location.family {
        Family::Swin => of(swin::shape(file, location, known), BackboneConfig::Swin),
        Family::Vit => of(vit::shape(file, location, known), BackboneConfig::Vit),
        Family::Pvt => of(pvt::shape(file, location, known), BackboneConfig::Pvt),
        Family::ResNet => of(resnet::shape(file, location, known), BackboneConfig::ResNet),
        Family::Cvt => of(cvt::shape(file, location, known), BackboneConfig::Cvt),
        Family::Vil => of(vil::shape(file, location, known), BackboneConfig::Vil),
        Family::Igpt => of(igpt::shape(file, location, known), BackboneConfig::Igpt),
    }
}

/// Unsupported backbones, by a suffix of names that only they have.
const OTHERS: [(&str, &str); 11] = [
    ("attn.w_msa.logit_scale", "a Swin transformer of version 2"),
    ("attn.logit_scale", "a Swin transformer of version 2"),
    ("attention.self.logit_scale", "a Swin transformer of version 2"),
    ("local_relative_position_bias_table", "a vision longformer (ViL) of another form"),
    ("fn.qkv.dw.weight", "a convolutional vision transformer (CvT) in another form than EsViT's"),
    ("patch_embed1.proj.weight", "a pyramid vision transformer of version 2 (PVTv2)"),
    ("dwconv.weight", "a ConvNeXt"),
    ("conv_dw.weight", "a ConvNeXt"),
    ("layer1.0.conv1.weight", "a residual network of another form"),
    ("cls_token", "a vision transformer (ViT) of another form"),
    ("class_token", "a vision transformer (ViT) of another form"),
];

/// The unsupported backbone that a file seems to hold.
pub(super) fn other_backbone(file: &WeightsFile) -> Option<&'static str> {
    let names: HashSet<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    OTHERS
        .into_iter()
        .find(|(end, _)| names.iter().any(|name| name.ends_with(end)))
        .map(|(_, backbone)| backbone)
}
