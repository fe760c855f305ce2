//! Names of a vision transformer's parameters in the files of other programs.

use super::{Naming, Renamed, renamed};

const TORCHVISION: &Renamed = &[
    ("cls_token", "class_token"),
    ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj.", "conv_proj."),
    ("norm.", "encoder.ln."),
];
const TORCHVISION_BLOCK: &Renamed = &[
    ("norm1.", "ln_1."),
    ("attn.qkv.", "self_attention.in_proj_"),
    ("attn.proj.", "self_attention.out_proj."),
    ("norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.3."),
];
const TRANSFORMERS: &Renamed = &[
    ("cls_token", "embeddings.cls_token"),
    ("dist_token", "embeddings.distillation_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("reg_token", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("norm.", "layernorm."),
];
const TRANSFORMERS_BLOCK: &Renamed = &[
    ("norm1.", "layernorm_before."),
    ("attn.proj.", "attention.output.dense."),
    ("norm2.", "layernorm_after."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
];

/// timm has the names of an MLP for both kinds.
const TIMM_BLOCK: &Renamed = &[("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2.")];
const DINOV2_BLOCK: &Renamed = &[
    ("attn.proj.", "attention.output.dense."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("mlp.w12.", "mlp.weights_in."),
    ("mlp.w3.", "mlp.weights_out."),
    ("ls2.gamma", "layer_scale2.lambda1"),
];
const DINOV3: &Renamed = &[
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("patch_embed.proj.", "embeddings.patch_embeddings."),
];
const DINOV3_BLOCK: &Renamed = &[
    ("attn.q_bias", "attention.q_proj.bias"),
    ("attn.v_bias", "attention.v_proj.bias"),
    ("attn.proj.", "attention.o_proj."),
    ("gamma_1", "layer_scale1.lambda1"),
    ("mlp.fc1.", "mlp.up_proj."),
    ("mlp.fc2.", "mlp.down_proj."),
    ("gamma_2", "layer_scale2.lambda1"),
];

/// Names of the tensors that hold the parameter with this official name: that of DINOv2's code, or with
/// rotary positions timm's.
pub(super) fn names(naming: Naming, official: &str) -> Vec<String> {
    let block = official.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    match (naming, block) {
        (Naming::Torchvision, None) => vec![renamed(official, TORCHVISION)],
        (Naming::Torchvision, Some((index, rest))) => {
            let rest = renamed(rest, TORCHVISION_BLOCK);
            vec![format!("encoder.layers.encoder_layer_{index}.{rest}")]
        }
        (Naming::Transformers | Naming::Transformers5 | Naming::TransformersDinov2, None) => {
            vec![renamed(official, TRANSFORMERS)]
        }
        (
            Naming::Transformers | Naming::Transformers5 | Naming::TransformersDinov2,
            Some((index, rest)),
        ) => {
            let layers =
                ["query", "key", "value"].map(|layer| format!("attention.attention.{layer}"));
            let table = match naming {
                Naming::TransformersDinov2 => DINOV2_BLOCK,
                _ => TRANSFORMERS_BLOCK,
            };
            in_layers(&format!("encoder.layer.{index}"), rest, layers, table)
        }
        (Naming::TransformersDinov3, None) => vec![renamed(official, DINOV3)],
        (Naming::TransformersDinov3, Some((index, rest))) => {
            let layers = ["q", "k", "v"].map(|layer| format!("attention.{layer}_proj"));
            in_layers(&format!("layer.{index}"), rest, layers, DINOV3_BLOCK)
        }
        (Naming::Timm, Some((index, rest))) => {
            vec![format!("blocks.{index}.{}", renamed(rest, TIMM_BLOCK))]
        }
        (Naming::Dinov2 { chunk: chunk @ 1.. }, Some((index, rest))) => {
            // Blocks are numbered through all chunks.
            let number: usize = index.parse().unwrap_or(0);
            vec![format!("blocks.{}.{index}.{rest}", number / chunk)]
        }
        // DINO, DeiT, DINOv2, and timm with rotary positions.
        _ => vec![official.into()],
    }
}

/// Names in a block of `transformers`, which has `layers` for queries, keys and values.
fn in_layers(block: &str, rest: &str, layers: [String; 3], table: &Renamed) -> Vec<String> {
    match rest.strip_prefix("attn.qkv.") {
        Some(kind) => layers.map(|layer| format!("{block}.{layer}.{kind}")).into(),
        None => vec![format!("{block}.{}", renamed(rest, table))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_every_layout() {
        for (official, torchvision, transformers) in [
            ("cls_token", "class_token", "embeddings.cls_token"),
            ("pos_embed", "encoder.pos_embedding", "embeddings.position_embeddings"),
            (
                "patch_embed.proj.bias",
                "conv_proj.bias",
                "embeddings.patch_embeddings.projection.bias",
            ),
            (
                "blocks.3.norm1.weight",
                "encoder.layers.encoder_layer_3.ln_1.weight",
                "encoder.layer.3.layernorm_before.weight",
            ),
            (
                "blocks.3.attn.proj.bias",
                "encoder.layers.encoder_layer_3.self_attention.out_proj.bias",
                "encoder.layer.3.attention.output.dense.bias",
            ),
            (
                "blocks.11.mlp.fc2.weight",
                "encoder.layers.encoder_layer_11.mlp.3.weight",
                "encoder.layer.11.output.dense.weight",
            ),
            ("norm.weight", "encoder.ln.weight", "layernorm.weight"),
        ] {
            assert_eq!(names(Naming::Timm, official), [official]);
            assert_eq!(names(Naming::Torchvision, official), [torchvision]);
            assert_eq!(names(Naming::Transformers, official), [transformers]);
        }
        for (official, dinov2, timm) in [
            ("register_tokens", "embeddings.register_tokens", "register_tokens"),
            ("mask_token", "embeddings.mask_token", "mask_token"),
            ("pos_embed", "embeddings.position_embeddings", "pos_embed"),
            ("norm.bias", "layernorm.bias", "norm.bias"),
            ("blocks.3.norm2.bias", "encoder.layer.3.norm2.bias", "blocks.3.norm2.bias"),
            (
                "blocks.3.attn.proj.bias",
                "encoder.layer.3.attention.output.dense.bias",
                "blocks.3.attn.proj.bias",
            ),
            ("blocks.3.ls1.gamma", "encoder.layer.3.layer_scale1.lambda1", "blocks.3.ls1.gamma"),
            (
                "blocks.3.mlp.w12.weight",
                "encoder.layer.3.mlp.weights_in.weight",
                "blocks.3.mlp.fc1.weight",
            ),
            (
                "blocks.3.mlp.w3.bias",
                "encoder.layer.3.mlp.weights_out.bias",
                "blocks.3.mlp.fc2.bias",
            ),
            ("blocks.3.mlp.fc1.bias", "encoder.layer.3.mlp.fc1.bias", "blocks.3.mlp.fc1.bias"),
        ] {
            assert_eq!(names(Naming::TransformersDinov2, official), [dinov2]);
            assert_eq!(names(Naming::Timm, official), [timm]);
            assert_eq!(names(Naming::Dinov2 { chunk: 0 }, official), [official]);
        }
        for (official, dinov3) in [
            ("reg_token", "embeddings.register_tokens"),
            ("mask_token", "embeddings.mask_token"),
            ("patch_embed.proj.weight", "embeddings.patch_embeddings.weight"),
            ("norm.weight", "norm.weight"),
            ("blocks.3.norm1.weight", "layer.3.norm1.weight"),
            ("blocks.3.attn.q_bias", "layer.3.attention.q_proj.bias"),
            ("blocks.3.attn.v_bias", "layer.3.attention.v_proj.bias"),
            ("blocks.3.attn.proj.weight", "layer.3.attention.o_proj.weight"),
            ("blocks.3.gamma_1", "layer.3.layer_scale1.lambda1"),
            ("blocks.3.mlp.fc1.weight", "layer.3.mlp.up_proj.weight"),
            ("blocks.3.mlp.fc2.bias", "layer.3.mlp.down_proj.bias"),
            ("blocks.3.gamma_2", "layer.3.layer_scale2.lambda1"),
        ] {
            assert_eq!(names(Naming::TransformersDinov3, official), [dinov3]);
            assert_eq!(names(Naming::TimmEva, official), [official]);
        }
        let qkv = names(Naming::TransformersDinov3, "blocks.1.attn.qkv.weight");
        assert_eq!(qkv[2], "layer.1.attention.v_proj.weight");
        let chunks = Naming::Dinov2 { chunk: 4 };
        assert_eq!(names(chunks, "blocks.11.norm1.bias"), ["blocks.2.11.norm1.bias"]);
        assert_eq!(names(chunks, "cls_token"), ["cls_token"]);
        let qkv = names(Naming::TransformersDinov2, "blocks.1.attn.qkv.weight");
        assert_eq!(qkv[1], "encoder.layer.1.attention.attention.key.weight");
        let qkv = names(Naming::Transformers, "blocks.1.attn.qkv.weight");
        assert_eq!(qkv[1], "encoder.layer.1.attention.attention.key.weight");
        assert_eq!(
            names(Naming::Torchvision, "blocks.1.attn.qkv.bias"),
            ["encoder.layers.encoder_layer_1.self_attention.in_proj_bias"]
        );
    }
}
