//! Vision transformers in timm and `transformers`.

use esvit_nn::backbone::vit::{MlpKind, PositionTable, QkvBias, VitConfig};
use serde_json::{Map, Value, json};

/// What LayerScale starts with in DINOv2 and timm.
const LAYER_SCALE: f64 = 1e-5;

/// timm's model name for this width and patch, and the keyword arguments by which the network differs
/// from that model.
pub(super) fn timm_name(model: &VitConfig) -> (&'static str, Map<String, Value>) {
    let (width, patch) = (model.embed_dim, model.patch_size);
    let is_rotary = model.position_table == PositionTable::Rotary;
    let name = match (model.distillation_token, width, patch) {
        _ if is_rotary => match width {
            768 => "vit_base_patch16_dinov3",
            1024 => "vit_large_patch16_dinov3",
            _ => "vit_small_patch16_dinov3",
        },
        // The only one with SwiGLU.
        _ if model.mlp == MlpKind::SwiGlu => "vit_giant_patch14_dinov2",
        (true, 192, _) => "deit_tiny_distilled_patch16_224",
        (true, 768, _) => "deit_base_distilled_patch16_224",
        (true, ..) => "deit_small_distilled_patch16_224",
        (_, 192, _) => "vit_tiny_patch16_224",
        (_, 384, 8) => "vit_small_patch8_224",
        (_, 768, 8) => "vit_base_patch8_224",
        (_, 768, _) => "vit_base_patch16_224",
        (_, 1024, _) => "vit_large_patch16_224",
        (_, 1280, _) => "vit_huge_patch14_224",
        _ => "vit_small_patch16_224",
    };
    let mlp_ratio = match model.mlp {
        MlpKind::Gelu => model.mlp_ratio,
        // Both halves count, and a product that is rounded down must not lose a channel.
        MlpKind::SwiGlu => (2.0 * model.hidden_width() as f64 + 0.5) / width as f64,
    };
    let mut arguments = json!({
        "img_size": model.img_size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": mlp_ratio,
        "dynamic_img_size": true,
    });
    if is_rotary {
        arguments["num_reg_tokens"] = model.register_tokens.into();
        arguments["qkv_bias"] = (model.qkv_bias == QkvBias::QueriesAndValues).into();
        return (name, arguments.as_object().cloned().unwrap_or_default());
    }
    if model.qkv_bias == QkvBias::None {
        arguments["qkv_bias"] = false.into();
    }
    if model.register_tokens > 0 {
        arguments["reg_tokens"] = model.register_tokens.into();
    }
    if model.position_table == PositionTable::Patches {
        arguments["no_embed_class"] = true.into();
    }
    if model.layer_scale {
        arguments["init_values"] = LAYER_SCALE.into();
    }
    (name, arguments.as_object().cloned().unwrap_or_default())
}

/// The configuration of `transformers`.
pub(super) fn transformers(model: &VitConfig) -> Value {
    let mut card = json!({
        "image_size": model.img_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_eps,
        "initializer_range": 0.02,
    });
    let (architecture, model_type, own) = if model.position_table == PositionTable::Rotary {
        ("DINOv3ViTModel", "dinov3_vit", dinov3(model))
    } else if !model.layer_scale {
        match model.distillation_token {
            true => ("DeiTModel", "deit", vit(model)),
            false => ("ViTModel", "vit", vit(model)),
        }
    } else {
        match model.register_tokens {
            0 => ("Dinov2Model", "dinov2", dinov2(model)),
            _ => ("Dinov2WithRegistersModel", "dinov2_with_registers", dinov2(model)),
        }
    };
    card["architectures"] = json!([architecture]);
    card["model_type"] = model_type.into();
    if let (Some(card), Value::Object(own)) = (card.as_object_mut(), own) {
        card.extend(own);
    }
    card
}

/// What ViT and DeiT have of their own.
fn vit(model: &VitConfig) -> Value {
    json!({
        "intermediate_size": model.hidden_width(),
        "qkv_bias": model.qkv_bias == QkvBias::All,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    })
}

/// What DINOv2 has of its own.
fn dinov2(model: &VitConfig) -> Value {
    // As published, where it is a whole number.
    let ratio = match model.mlp_ratio {
        whole if whole.fract() == 0.0 => json!(whole as u64),
        ratio => json!(ratio),
    };
    let mut own = json!({
        "mlp_ratio": ratio,
        "qkv_bias": model.qkv_bias == QkvBias::All,
        "use_swiglu_ffn": model.mlp == MlpKind::SwiGlu,
        "layerscale_value": LAYER_SCALE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    });
    if model.register_tokens > 0 {
        own["num_register_tokens"] = model.register_tokens.into();
    }
    own
}

/// What DINOv3 has of its own.
fn dinov3(model: &VitConfig) -> Value {
    json!({
        "intermediate_size": model.hidden_width(),
        "num_register_tokens": model.register_tokens,
        "query_bias": model.qkv_bias != QkvBias::None,
        "key_bias": model.qkv_bias == QkvBias::All,
        "value_bias": model.qkv_bias != QkvBias::None,
        "proj_bias": true,
        "mlp_bias": true,
        "use_gated_mlp": false,
        "layerscale_value": LAYER_SCALE,
        "rope_theta": 100.0,
        "pos_embed_rescale": null,
        "attention_dropout": 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::{BackboneConfig, zoo};

    fn shape(name: &str) -> VitConfig {
        match zoo::find(name).unwrap().config() {
            BackboneConfig::Vit(shape) => shape,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_and_arguments_of_timm() {
        let (name, arguments) = timm_name(&shape("vit_giant14"));
        assert_eq!(name, "vit_giant_patch14_dinov2");
        let ratio = arguments["mlp_ratio"].as_f64().unwrap();
        assert_eq!(((1536.0 * ratio) as usize, &arguments["init_values"]), (8192, &json!(1e-5)));
        assert!(!arguments.contains_key("no_embed_class"));
        let (name, arguments) = timm_name(&shape("vit_giant14_reg4"));
        assert_eq!(name, "vit_giant_patch14_dinov2");
        assert_eq!(
            (&arguments["reg_tokens"], &arguments["no_embed_class"]),
            (&json!(4), &json!(true))
        );
        let (name, arguments) = timm_name(&shape("vit_base16_dinov3"));
        assert_eq!(name, "vit_base_patch16_dinov3");
        assert_eq!(
            (&arguments["num_reg_tokens"], &arguments["qkv_bias"]),
            (&json!(4), &json!(false))
        );
        assert!(!arguments.contains_key("init_values"), "it is that of the model");
    }

    #[test]
    fn configurations_of_transformers() {
        for (name, model_type, key, value) in [
            ("vit_small16", "vit", "intermediate_size", json!(1536)),
            ("deit_tiny16_distilled", "deit", "intermediate_size", json!(768)),
            ("vit_giant14", "dinov2", "use_swiglu_ffn", json!(true)),
            ("vit_giant14", "dinov2", "mlp_ratio", json!(4)),
            ("vit_small16_dinov3", "dinov3_vit", "num_register_tokens", json!(4)),
            ("vit_small16_dinov3", "dinov3_vit", "query_bias", json!(false)),
            ("vit_small16_dinov3", "dinov3_vit", "layer_norm_eps", json!(1e-5)),
        ] {
            let card = transformers(&shape(name));
            assert_eq!((&card["model_type"], &card[key]), (&json!(model_type), &value), "{name}");
        }
        let registers = VitConfig {
            position_table: PositionTable::ClassAndPatches,
            ..shape("vit_small14_reg4")
        };
        let card = transformers(&registers);
        assert_eq!(card["architectures"], json!(["Dinov2WithRegistersModel"]));
        assert_eq!(card["num_register_tokens"], json!(4));
    }
}
