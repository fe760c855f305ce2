//! Residual networks in timm and `transformers`.

use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
use serde_json::{Map, Value, json};

/// Widths of the branches in published networks.
const WIDTHS: [usize; 4] = [64, 128, 256, 512];

/// Whether all widths are those of published networks.
pub(crate) fn has_usual_widths(model: &ResNetConfig) -> bool {
    model.stem_width == WIDTHS[0] && model.widths == WIDTHS
}

/// timm's model name for this kind and depth, and the keyword arguments by which the network differs
/// from that model.
pub(super) fn timm_name(model: &ResNetConfig) -> (&'static str, Map<String, Value>) {
    let layers = model.layers.as_slice();
    let known = match (model.block, layers) {
        (BlockKind::Basic, [2, 2, 2, 2]) => Some("resnet18"),
        (BlockKind::Basic, [3, 4, 6, 3]) => Some("resnet34"),
        (BlockKind::Bottleneck, [3, 4, 6, 3]) => Some("resnet50"),
        (BlockKind::Bottleneck, [3, 4, 23, 3]) => Some("resnet101"),
        (BlockKind::Bottleneck, [3, 8, 36, 3]) => Some("resnet152"),
        (BlockKind::Bottleneck, [3, 24, 36, 3]) => Some("resnet200"),
        _ => None,
    };
    let mut arguments = Map::new();
    if known.is_none() {
        arguments.insert("layers".into(), json!(layers));
    }
    if model.widths != WIDTHS {
        arguments.insert("channels".into(), json!(model.widths));
    }
    let nearest = match model.block {
        BlockKind::Basic => "resnet18",
        BlockKind::Bottleneck => "resnet50",
    };
    (known.unwrap_or(nearest), arguments)
}

/// The configuration of `transformers`.
pub(super) fn transformers(model: &ResNetConfig) -> Value {
    let stages = model.stages();
    let names: Vec<String> = (1..=stages).map(|stage| format!("stage{stage}")).collect();
    let all = std::iter::once("stem".to_owned()).chain(names.iter().cloned());
    let widths: Vec<usize> = (0..stages).map(|stage| model.width(stage)).collect();
    json!({
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": model.stem_width,
        "hidden_sizes": widths,
        "depths": model.layers,
        "layer_type": model.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": false,
        "downsample_in_bottleneck": false,
        "stage_names": all.collect::<Vec<_>>(),
        "out_features": names.last().map(|name| vec![name]),
        "out_indices": [stages],
    })
}
