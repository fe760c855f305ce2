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

/// Names of the tensors that hold the parameter with this official name.
pub(super) fn names(naming: Naming, official: &str) -> Vec<String> {
    let block = official.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    match (naming, block) {
        (Naming::Torchvision, None) => vec![renamed(official, TORCHVISION)],
        (Naming::Torchvision, Some((index, rest))) => {
            let rest = renamed(rest, TORCHVISION_BLOCK);
            vec![format!("encoder.layers.encoder_layer_{index}.{rest}")]
        }
        (Naming::Transformers | Naming::Transformers5, None) => {
            vec![renamed(official, TRANSFORMERS)]
        }
        (Naming::Transformers | Naming::Transformers5, Some((index, rest))) => {
            let block = format!("encoder.layer.{index}");
            match rest.strip_prefix("attn.qkv.") {
                Some(kind) => ["query", "key", "value"]
                    .map(|layer| format!("{block}.attention.attention.{layer}.{kind}"))
                    .into(),
                None => vec![format!("{block}.{}", renamed(rest, TRANSFORMERS_BLOCK))],
            }
        }
        // timm, DINO, DeiT and DINOv2 have the same.
        _ => vec![official.into()],
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
        let qkv = names(Naming::Transformers, "blocks.1.attn.qkv.weight");
        assert_eq!(qkv[1], "encoder.layer.1.attention.attention.key.weight");
        assert_eq!(
            names(Naming::Torchvision, "blocks.1.attn.qkv.bias"),
            ["encoder.layers.encoder_layer_1.self_attention.in_proj_bias"]
        );
    }
}
