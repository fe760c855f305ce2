//! Swin transformers in timm and `transformers`.

use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::{BackboneConfig, zoo};
use serde_json::{Map, Value, json};

/// timm's model name for this width and depth, and the keyword arguments by which the network
/// differs from that model.
pub(super) fn timm_name(model: &SwinConfig) -> (&'static str, Map<String, Value>) {
    let depths = model.depths.as_slice();
    let name = match (model.embed_dim, depths) {
        (96, [2, 2, 18, 2]) => "swin_small_patch4_window7_224",
        (128, [2, 2, 18, 2]) => "swin_base_patch4_window7_224",
        (192, [2, 2, 18, 2]) => "swin_large_patch4_window7_224",
        _ => "swin_tiny_patch4_window7_224",
    };
    let mut arguments = Map::new();
    let of_window_7 = BackboneConfig::Swin(SwinConfig { window_size: 7, ..model.clone() });
    if zoo::of_shape(&of_window_7).is_none() {
        let shape = json!({
            "img_size": model.img_size,
            "patch_size": model.patch_size,
            "embed_dim": model.embed_dim,
            "depths": model.depths,
            "num_heads": model.num_heads,
            "mlp_ratio": model.mlp_ratio,
        });
        arguments.extend(shape.as_object().cloned().unwrap_or_default());
    }
    if model.window_size != 7 {
        arguments.insert("window_size".into(), model.window_size.into());
    }
    (name, arguments)
}

/// The configuration of `transformers`.
pub(super) fn transformers(model: &SwinConfig) -> Value {
    let stages = model.stages();
    let names: Vec<String> = (1..=stages).map(|stage| format!("stage{stage}")).collect();
    let all = std::iter::once("stem".to_owned()).chain(names.iter().cloned());
    json!({
        "architectures": ["SwinModel"],
        "model_type": "swin",
        "image_size": model.img_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "embed_dim": model.embed_dim,
        "depths": model.depths,
        "num_heads": model.num_heads,
        "num_layers": stages,
        "hidden_size": model.output_width(),
        "window_size": model.window_size,
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": true,
        "hidden_act": "gelu",
        "use_absolute_embeddings": false,
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "encoder_stride": model.patch_size << (stages - 1),
        "stage_names": all.collect::<Vec<_>>(),
        "out_features": names.last().map(|name| vec![name]),
        "out_indices": [stages],
    })
}
