//! What `config.json` beside a file of weights says of its network: that of timm or `transformers`.

use std::path::Path;

use esvit_data::Preprocess;
use esvit_nn::BackboneConfig;
use esvit_nn::backbone::Stage;
use serde_json::{Value, json};

/// The largest file to read, in bytes.
const LARGEST: u64 = 1 << 20;

/// Families in `transformers`.
const MODEL_TYPES: [&str; 7] =
    ["swin", "vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "resnet"];

/// What is said of images and norms.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Card {
    /// Side of the images in pixels.
    pub(crate) img_size: Option<usize>,
    /// `eps` of LayerNorm.
    pub(crate) norm_eps: Option<f64>,
    /// Number of attention heads, where all blocks have the same.
    pub(crate) num_heads: Option<usize>,
    /// Widths and depths, for comparison.
    shape: Vec<(&'static str, Value)>,
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    /// The crop as a share of the shorter side.
    crop_share: Option<f64>,
}

impl Card {
    /// The card in the folder of `weights`, if there is one of a family that is read.
    pub(crate) fn beside(weights: &Path) -> Option<Self> {
        let mut card = Self::parse(&json(weights, "config.json")?)?;
        // `transformers` describes images in a file of their own.
        if let Some(images) = json(weights, "preprocessor_config.json") {
            card.mean = card.mean.or_else(|| three(&images["image_mean"]));
            card.std = card.std.or_else(|| three(&images["image_std"]));
        }
        Some(card)
    }

    fn parse(card: &Value) -> Option<Self> {
        let is_timm = card.get("pretrained_cfg").is_some();
        let name = &card[if is_timm { "architecture" } else { "model_type" }];
        let name = name.as_str()?;
        let known = match is_timm {
            true => ["swin_", "vit_", "deit", "resnet"].iter().any(|start| name.starts_with(start)),
            false => MODEL_TYPES.contains(&name),
        };
        if !known {
            return None;
        }
        let shape = |keys: &[&'static str]| {
            let known = |key: &&'static str| Some((*key, card.get(*key)?.clone()));
            keys.iter().filter_map(known).collect()
        };
        if is_timm {
            let images = &card["pretrained_cfg"];
            let size = images["input_size"].get(1).or(card["model_args"].get("img_size"));
            return Some(Self {
                img_size: side(size.unwrap_or(&Value::Null)),
                norm_eps: None,
                num_heads: None,
                shape: shape(&["num_features"]),
                mean: three(&images["mean"]),
                std: three(&images["std"]),
                crop_share: images["crop_pct"].as_f64().filter(|share| (0.1..=1.0).contains(share)),
            });
        }
        Some(Self {
            img_size: side(&card["image_size"]),
            norm_eps: card["layer_norm_eps"].as_f64(),
            num_heads: side(&card["num_attention_heads"]),
            shape: shape(&[
                "embed_dim",
                "depths",
                "num_heads",
                "hidden_size",
                "hidden_sizes",
                "num_hidden_layers",
            ]),
            ..Self::default()
        })
    }

    /// Whether it describes a network of this shape: it may be that of other weights.
    pub(crate) fn is_of(&self, config: &BackboneConfig) -> bool {
        let stages = config.stages();
        let each = |of: fn(&Stage) -> usize| json!(stages.iter().map(of).collect::<Vec<_>>());
        self.shape.iter().all(|(key, value)| match *key {
            "num_features" | "hidden_size" => *value == config.output_width(),
            "num_hidden_layers" => *value == config.blocks(),
            "embed_dim" => *value == stages[0].width,
            "depths" => *value == each(|stage| stage.blocks),
            "hidden_sizes" => *value == each(|stage| stage.width),
            "num_heads" => *value == each(|stage| stage.heads),
            _ => true,
        })
    }

    /// How images of this size are prepared.
    pub(crate) fn preprocess(&self, size: u32) -> Preprocess {
        let mut preprocess = Preprocess::published(size);
        if let Some(share) = self.crop_share {
            preprocess.transform.resize = (f64::from(size) / share).floor() as u32;
        }
        let (mean, std) = (self.mean, self.std);
        let stated = Preprocess {
            mean: mean.unwrap_or(preprocess.mean),
            std: std.unwrap_or(preprocess.std),
            ..preprocess.clone()
        };
        if stated.validate().is_ok() { stated } else { preprocess }
    }
}

fn json(weights: &Path, name: &str) -> Option<Value> {
    let path = weights.with_file_name(name);
    let about = path.metadata().ok().filter(|about| about.is_file())?;
    let text = (about.len() <= LARGEST).then(|| std::fs::read(&path).ok()).flatten()?;
    serde_json::from_slice(&text).ok()
}

/// A side, or two that are equal.
fn side(value: &Value) -> Option<usize> {
    let number = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
    match value.as_array().map(Vec::as_slice) {
        Some([height, width]) if height == width => number(height),
        Some(_) => None,
        None => number(value),
    }
}

fn three(value: &Value) -> Option<[f64; 3]> {
    serde_json::from_value(value.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
    use esvit_nn::backbone::swin::SwinConfig;

    fn swin() -> BackboneConfig {
        BackboneConfig::Swin(SwinConfig {
            img_size: 256,
            patch_size: 4,
            embed_dim: 24,
            depths: vec![2, 2],
            num_heads: vec![3, 6],
            window_size: 8,
            mlp_ratio: 4.0,
            norm_eps: 1e-5,
        })
    }

    #[test]
    fn transformers_says_size_and_eps() {
        let card = json!({ "model_type": "swin", "image_size": 256, "layer_norm_eps": 1e-6,
            "embed_dim": 24, "depths": [2, 2], "num_heads": [3, 6] });
        let found = Card::parse(&card).unwrap();
        assert_eq!((found.img_size, found.norm_eps), (Some(256), Some(1e-6)));
        assert!(found.is_of(&swin()));
        for (key, value) in
            [("depths", json!([2, 6])), ("embed_dim", json!(96)), ("num_heads", json!([1, 2]))]
        {
            let mut card = card.clone();
            card[key] = value;
            assert!(!Card::parse(&card).unwrap().is_of(&swin()), "{key}");
        }
        for (size, expected) in
            [(json!([192, 192]), Some(192)), (json!([192, 256]), None), (json!("x"), None)]
        {
            let mut card = card.clone();
            card["image_size"] = size;
            assert_eq!(Card::parse(&card).unwrap().img_size, expected);
        }
        assert!(Card::parse(&json!({ "model_type": "convnext", "image_size": 256 })).is_none());
        assert!(Card::parse(&json!([1])).is_none());
    }

    #[test]
    fn timm_says_how_images_are_prepared() {
        let card = json!({ "architecture": "swin_tiny_patch4_window7_224", "num_features": 48,
            "pretrained_cfg": { "input_size": [3, 256, 256], "crop_pct": 0.9,
                "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25] } });
        let found = Card::parse(&card).unwrap();
        assert_eq!((found.img_size, found.norm_eps), (Some(256), None));
        assert!(found.is_of(&swin()));
        let preprocess = found.preprocess(256);
        // 256 / 0.9 = 284.4, which timm rounds down.
        assert_eq!((preprocess.transform.resize, preprocess.transform.crop), (284, 256));
        assert_eq!((preprocess.mean, preprocess.std), ([0.5; 3], [0.25; 3]));
        // Nonsense is as good as nothing.
        let mut card = card;
        card["pretrained_cfg"]["std"] = json!([0, 0, 0]);
        card["pretrained_cfg"]["crop_pct"] = json!(0);
        assert_eq!(Card::parse(&card).unwrap().preprocess(256), Preprocess::published(256));
        card["num_features"] = json!(768);
        assert!(!Card::parse(&card).unwrap().is_of(&swin()));
        card["architecture"] = json!("convnext_tiny");
        assert!(Card::parse(&card).is_none());
    }

    #[test]
    fn widths_and_depths_of_a_resnet() {
        let config = BackboneConfig::ResNet(ResNetConfig {
            img_size: 224,
            block: BlockKind::Bottleneck,
            stem_width: 8,
            widths: vec![8, 16],
            layers: vec![2, 3],
            selective_kernels: false,
            norm_eps: 1e-5,
        });
        let card = json!({ "model_type": "resnet", "hidden_sizes": [32, 64], "depths": [2, 3] });
        assert!(Card::parse(&card).unwrap().is_of(&config));
        let card = json!({ "model_type": "resnet", "hidden_sizes": [32, 128], "depths": [2, 3] });
        assert!(!Card::parse(&card).unwrap().is_of(&config));
        let card = json!({ "architecture": "resnet50", "num_features": 64, "pretrained_cfg": {} });
        assert!(Card::parse(&card).unwrap().is_of(&config));
    }
}
