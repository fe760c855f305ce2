//! Configuration files that timm and `transformers` expect beside the weights.

use esvit_data::Preprocess;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::{BackboneConfig, zoo};
use esvit_weights::Float;
use serde_json::{Value, json};

use super::{Options, Target};
use crate::PretrainedBackbone;

/// `PIL.Image.BICUBIC`.
const PIL_BICUBIC: u32 = 3;

/// Files beside the weights: name and JSON contents.
pub(super) fn config_files(
    options: &Options,
    backbone: &PretrainedBackbone,
) -> Vec<(&'static str, Value)> {
    let BackboneConfig::Swin(model) = &backbone.config;
    match options.target {
        Target::Timm => vec![("config.json", timm(model, &backbone.preprocess))],
        Target::Transformers => vec![
            ("config.json", transformers(model, options.float)),
            ("preprocessor_config.json", processor(&backbone.preprocess)),
        ],
        _ => Vec::new(),
    }
}

/// timm's model name for this width and depth, and the keyword arguments by which the network
/// differs from that model.
pub(super) fn timm_name(model: &SwinConfig) -> (&'static str, Value) {
    let depths = model.depths.as_slice();
    let name = match (model.embed_dim, depths) {
        (96, [2, 2, 18, 2]) => "swin_small_patch4_window7_224",
        (128, [2, 2, 18, 2]) => "swin_base_patch4_window7_224",
        (192, [2, 2, 18, 2]) => "swin_large_patch4_window7_224",
        _ => "swin_tiny_patch4_window7_224",
    };
    let mut arguments = serde_json::Map::new();
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
    (name, arguments.into())
}

fn timm(model: &SwinConfig, preprocess: &Preprocess) -> Value {
    let (name, arguments) = timm_name(model);
    let size = preprocess.size();
    let map = model.last_map(size);
    json!({
        "architecture": name,
        "num_classes": 0,
        "num_features": model.output_width(),
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": true,
            "pool_size": [map, map],
            "crop_pct": f64::from(preprocess.transform.crop) / f64::from(preprocess.transform.resize),
            "crop_mode": "center",
            "interpolation": preprocess.transform.interpolation,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    })
}

fn transformers(model: &SwinConfig, float: Float) -> Value {
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
        "dtype": float.torch_name(),
    })
}

fn processor(preprocess: &Preprocess) -> Value {
    let crop = preprocess.transform.crop;
    json!({
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": { "shortest_edge": preprocess.transform.resize },
        "resample": PIL_BICUBIC,
        "do_center_crop": true,
        "crop_size": { "height": crop, "width": crop },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    })
}
