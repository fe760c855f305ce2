//! Names of a ResNet's parameters in the files of other programs: torchvision's are the official
//! ones, which timm, DINO, SwAV and OpenMMLab share.

use super::{Naming, Renamed, known};

/// What the official EsViT code puts before the names of torchvision: it wraps the network twice.
pub const ESVIT_WRAPPER: &str = "backbone.backbone.";

/// Names of the tensors that hold the parameter with this official name.
pub(super) fn names(naming: Naming, official: &str) -> Vec<String> {
    let name = match naming {
        Naming::Esvit if is_backbone(official) => Some(format!("{ESVIT_WRAPPER}{official}")),
        Naming::Transformers | Naming::Transformers5 => transformers(official),
        Naming::SimClr { selective } => simclr(official, selective),
        _ => None,
    };
    vec![name.unwrap_or_else(|| official.into())]
}

/// Whether a parameter is one of the backbone and not of a head.
fn is_backbone(official: &str) -> bool {
    let first = official.split('.').next().unwrap_or_default();
    matches!(first, "conv1" | "bn1") || stage(first).is_some()
}

/// The number of a stage, from 0: `layer1` is the first.
fn stage(layer: &str) -> Option<usize> {
    layer.strip_prefix("layer")?.parse::<usize>().ok()?.checked_sub(1)
}

/// None for what is no part of torchvision's ResNet.
fn transformers(official: &str) -> Option<String> {
    for (from, to) in [("conv1.", "convolution."), ("bn1.", "normalization.")] {
        if let Some(rest) = official.strip_prefix(from) {
            return Some(format!("embedder.embedder.{to}{rest}"));
        }
    }
    let (layer, rest) = official.split_once('.')?;
    let (block, rest) = rest.split_once('.')?;
    let block = format!("encoder.stages.{}.layers.{block}", stage(layer)?);
    for (from, to) in [("downsample.0.", "convolution."), ("downsample.1.", "normalization.")] {
        if let Some(rest) = rest.strip_prefix(from) {
            return Some(format!("{block}.shortcut.{to}{rest}"));
        }
    }
    let (layer, rest) = rest.split_once('.')?;
    let number = |kind: &str| layer.strip_prefix(kind)?.parse::<usize>().ok()?.checked_sub(1);
    match (number("conv"), number("bn")) {
        (Some(at), _) => Some(format!("{block}.layer.{at}.convolution.{rest}")),
        (_, Some(at)) => Some(format!("{block}.layer.{at}.normalization.{rest}")),
        _ => None,
    }
}

const SIMCLR_STEM: &Renamed = &[("conv1.", "0."), ("bn1.", "1.0.")];
const SIMCLR_BLOCK: &Renamed = &[
    ("conv1.", "net.0."),
    ("bn1.", "net.1.0."),
    ("conv2.", "net.2."),
    ("bn2.", "net.3.0."),
    ("conv3.", "net.4."),
    ("bn3.", "net.5.0."),
    ("downsample.0.", "projection.shortcut."),
    ("downsample.1.", "projection.bn.0."),
];

/// With selective kernels.
const SELECTIVE_STEM: &Renamed = &[
    ("conv1.0.", "0."),
    ("conv1.1.", "1.0."),
    ("conv1.3.", "2."),
    ("conv1.4.", "3.0."),
    ("conv1.6.", "4."),
    ("bn1.", "5.0."),
];
const SELECTIVE_BLOCK: &Renamed = &[
    ("conv1.", "net.0."),
    ("bn1.", "net.1.0."),
    ("conv2.conv.", "net.2.main_conv.0."),
    ("conv2.bn.", "net.2.main_conv.1.0."),
    ("conv2.attn.fc_reduce.", "net.2.mixing_conv.0."),
    ("conv2.attn.bn.", "net.2.mixing_conv.1.0."),
    ("conv2.attn.fc_select.", "net.2.mixing_conv.2."),
    ("conv3.", "net.3."),
    ("bn3.", "net.4.0."),
    ("downsample.1.", "projection.shortcut.2."),
    ("downsample.2.", "projection.bn.0."),
];

/// Layers of SimCLRv2-Pytorch have numbers, where a norm and its ReLU are one. None for what is no part
/// of a ResNet.
fn simclr(official: &str, selective: bool) -> Option<String> {
    let [stem, block] = match selective {
        true => [SELECTIVE_STEM, SELECTIVE_BLOCK],
        false => [SIMCLR_STEM, SIMCLR_BLOCK],
    };
    if let Some(name) = known(official, stem) {
        return Some(format!("net.0.{name}"));
    }
    let (layer, rest) = official.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    Some(format!("net.{}.blocks.{index}.{}", stage(layer)? + 1, known(rest, block)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_every_layout() {
        for (official, transformers) in [
            ("conv1.weight", "embedder.embedder.convolution.weight"),
            ("bn1.running_var", "embedder.embedder.normalization.running_var"),
            ("layer1.0.conv1.weight", "encoder.stages.0.layers.0.layer.0.convolution.weight"),
            ("layer3.12.bn3.bias", "encoder.stages.2.layers.12.layer.2.normalization.bias"),
            (
                "layer4.0.downsample.0.weight",
                "encoder.stages.3.layers.0.shortcut.convolution.weight",
            ),
            (
                "layer4.0.downsample.1.running_mean",
                "encoder.stages.3.layers.0.shortcut.normalization.running_mean",
            ),
        ] {
            assert_eq!(names(Naming::Transformers, official), [transformers]);
            assert_eq!(names(Naming::Torchvision, official), [official]);
            assert_eq!(names(Naming::Timm, official), [official]);
            let wrapped = format!("backbone.backbone.{official}");
            assert_eq!(names(Naming::Esvit, official), [wrapped]);
        }
        // Heads stand beside the wrapped network.
        for head in ["head.mlp.0.weight", "head_dense.last_layer.weight_v", "layer.weight"] {
            assert_eq!(names(Naming::Esvit, head), [head]);
        }
    }
    #[test]
    fn layers_of_simclr_have_numbers() {
        for (selective, official, expected) in [
            (false, "conv1.weight", "net.0.0.weight"),
            (false, "bn1.running_mean", "net.0.1.0.running_mean"),
            (false, "layer1.0.conv2.weight", "net.1.blocks.0.net.2.weight"),
            (false, "layer4.2.bn3.bias", "net.4.blocks.2.net.5.0.bias"),
            (false, "layer2.0.downsample.0.weight", "net.2.blocks.0.projection.shortcut.weight"),
            (false, "layer2.0.downsample.1.bias", "net.2.blocks.0.projection.bn.0.bias"),
            (true, "conv1.3.weight", "net.0.2.weight"),
            (true, "bn1.weight", "net.0.5.0.weight"),
            (true, "layer1.0.conv2.conv.weight", "net.1.blocks.0.net.2.main_conv.0.weight"),
            (true, "layer1.0.conv2.bn.bias", "net.1.blocks.0.net.2.main_conv.1.0.bias"),
            (
                true,
                "layer3.1.conv2.attn.fc_select.weight",
                "net.3.blocks.1.net.2.mixing_conv.2.weight",
            ),
            (true, "layer3.1.conv2.attn.bn.bias", "net.3.blocks.1.net.2.mixing_conv.1.0.bias"),
            (true, "layer3.1.bn3.weight", "net.3.blocks.1.net.4.0.weight"),
            (true, "layer2.0.downsample.1.weight", "net.2.blocks.0.projection.shortcut.2.weight"),
            (true, "head_contrastive.nl_0.dense.weight", "head_contrastive.nl_0.dense.weight"),
        ] {
            assert_eq!(names(Naming::SimClr { selective }, official), [expected]);
        }
    }
}
