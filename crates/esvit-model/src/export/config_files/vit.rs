//! Vision transformers in timm and `transformers`.

use esvit_nn::backbone::vit::{PositionTable, VitConfig};
use serde_json::{Map, Value, json};

/// timm's model name for this width and patch, and the keyword arguments by which the network differs
/// from that model.
pub(super) fn timm_name(model: &VitConfig) -> (&'static str, Map<String, Value>) {
    let (width, patch) = (model.embed_dim, model.patch_size);
    let name = match (model.distillation_token, width, patch) {
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
    let mut arguments = json!({
        "img_size": model.img_size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "dynamic_img_size": true,
    });
    if model.register_tokens > 0 {
        arguments["reg_tokens"] = model.register_tokens.into();
    }
    if model.position_table == PositionTable::Patches {
        arguments["no_embed_class"] = true.into();
    }
    if model.layer_scale {
        arguments["init_values"] = 1e-5.into();
    }
    (name, arguments.as_object().cloned().unwrap_or_default())
}

/// The configuration of `transformers`.
pub(super) fn transformers(model: &VitConfig) -> Value {
    let (architecture, model_type) = match model.distillation_token {
        true => ("DeiTModel", "deit"),
        false => ("ViTModel", "vit"),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "image_size": model.img_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": (model.embed_dim as f64 * model.mlp_ratio) as usize,
        "qkv_bias": true,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
    })
}
