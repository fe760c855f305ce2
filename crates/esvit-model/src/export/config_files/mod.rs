//! Configuration files that timm and `transformers` expect beside the weights.

pub(super) mod resnet;
mod swin;
mod vit;

use esvit_data::Preprocess;
use esvit_nn::BackboneConfig;
use serde_json::{Map, Value, json};

use super::{Options, Target};
use crate::PretrainedBackbone;

/// `PIL.Image.BICUBIC`.
const PIL_BICUBIC: u32 = 3;

/// Why another program's words for a network are not asked for.
pub(super) const REFUSED: &str = "networks that a target does not have are refused before";

/// Files beside the weights: name and JSON contents.
pub(super) fn config_files(
    options: &Options,
    backbone: &PretrainedBackbone,
) -> Vec<(&'static str, Value)> {
    let PretrainedBackbone { config, preprocess, .. } = backbone;
    match options.target {
        Target::Timm => vec![("config.json", timm(config, preprocess))],
        Target::Transformers => {
            let mut card = match config {
                BackboneConfig::Swin(model) => swin::transformers(model),
                BackboneConfig::Vit(model) => vit::transformers(model),
                BackboneConfig::ResNet(model) => resnet::transformers(model),
                BackboneConfig::Pvt(_)
                | BackboneConfig::Cvt(_)
                | BackboneConfig::Vil(_)
                | BackboneConfig::Igpt(_) => {
                    unreachable!("{REFUSED}")
                }
            };
            card["dtype"] = options.float.torch_name().into();
            vec![("config.json", card), ("preprocessor_config.json", processor(preprocess))]
        }
        _ => Vec::new(),
    }
}

/// timm's name of the nearest model, and the keyword arguments by which the network differs from it.
pub(super) fn timm_name(config: &BackboneConfig) -> (&'static str, Map<String, Value>) {
    match config {
        BackboneConfig::Swin(model) => swin::timm_name(model),
        BackboneConfig::Vit(model) => vit::timm_name(model),
        BackboneConfig::ResNet(model) => resnet::timm_name(model),
        BackboneConfig::Pvt(_)
        | BackboneConfig::Cvt(_)
        | BackboneConfig::Vil(_)
        | BackboneConfig::Igpt(_) => {
            unreachable!("{REFUSED}")
        }
    }
}

fn timm(config: &BackboneConfig, preprocess: &Preprocess) -> Value {
    let (name, arguments) = timm_name(config);
    let size = preprocess.size();
    let (pool, classifier, first_conv) = match config {
        BackboneConfig::Swin(_) => ("avg", "head.fc", "patch_embed.proj"),
        BackboneConfig::Vit(_) => ("token", "head", "patch_embed.proj"),
        BackboneConfig::ResNet(_) => ("avg", "fc", "conv1"),
        BackboneConfig::Pvt(_)
        | BackboneConfig::Cvt(_)
        | BackboneConfig::Vil(_)
        | BackboneConfig::Igpt(_) => {
            unreachable!("{REFUSED}")
        }
    };
    let pool_size = (pool == "avg").then(|| [config.last_map(size); 2]);
    // A ResNet has nothing that is made for a size.
    let is_fixed = !matches!(config, BackboneConfig::ResNet(_));
    json!({
        "architecture": name,
        "num_classes": 0,
        "num_features": config.output_width(),
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": is_fixed,
            "pool_size": pool_size,
            "crop_pct": f64::from(preprocess.transform.crop) / f64::from(preprocess.transform.resize),
            "crop_mode": "center",
            "interpolation": preprocess.transform.interpolation,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "num_classes": 0,
            "first_conv": first_conv,
            "classifier": classifier,
        },
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
