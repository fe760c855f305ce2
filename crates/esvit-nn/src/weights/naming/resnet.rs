//! Names of a ResNet's parameters in the files of other programs: torchvision's are the official
//! ones, which timm, DINO, SwAV and OpenMMLab share.

use super::Naming;

/// What the official EsViT code puts before the names of torchvision: it wraps the network twice.
pub const ESVIT_WRAPPER: &str = "backbone.backbone.";

/// Names of the tensors that hold the parameter with this official name.
pub(super) fn names(naming: Naming, official: &str) -> Vec<String> {
    let name = match naming {
        Naming::Esvit if is_backbone(official) => Some(format!("{ESVIT_WRAPPER}{official}")),
        Naming::Transformers | Naming::Transformers5 => transformers(official),
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
}
