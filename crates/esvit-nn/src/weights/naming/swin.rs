//! Names of a Swin transformer's parameters in the files of other programs, and the order of their
//! values.

use super::{Naming, Renamed, renamed};

/// A parameter's place in the network, with the official name within it.
pub(super) enum Place<'a> {
    Embed(&'a str),
    /// Of a stage and a block.
    Block(usize, usize, &'a str),
    /// After a stage.
    Merge(usize, &'a str),
    Norm(&'a str),
    /// A head, which only the official naming has.
    Other,
}

impl<'a> Place<'a> {
    fn of(name: &'a str) -> Self {
        if let Some(rest) = name.strip_prefix("patch_embed.") {
            return Self::Embed(rest);
        }
        if let Some(rest) = name.strip_prefix("norm.") {
            return Self::Norm(rest);
        }
        Self::in_stage(name).unwrap_or(Self::Other)
    }

    fn in_stage(name: &'a str) -> Option<Self> {
        let (stage, rest) = name.strip_prefix("layers.")?.split_once('.')?;
        let stage = stage.parse().ok()?;
        if let Some(rest) = rest.strip_prefix("downsample.") {
            return Some(Self::Merge(stage, rest));
        }
        let (block, rest) = rest.strip_prefix("blocks.")?.split_once('.')?;
        Some(Self::Block(stage, block.parse().ok()?, rest))
    }
}

/// Names of the tensors that hold the parameter with this official name.
pub(super) fn names(naming: Naming, official: &str) -> Vec<String> {
    let place = Place::of(official);
    match naming {
        Naming::Esvit | Naming::Microsoft => vec![official.into()],
        Naming::Timm => match place {
            Place::Merge(stage, rest) => {
                vec![format!("layers.{}.downsample.{rest}", stage + 1)]
            }
            _ => vec![official.into()],
        },
        Naming::Torchvision => vec![torchvision(place).unwrap_or_else(|| official.into())],
        Naming::Transformers => {
            let qkv = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
            transformers(place, official, qkv, TRANSFORMERS)
        }
        Naming::Transformers5 => {
            let qkv = ["q", "k", "v"].map(|part| format!("attention.{part}_proj"));
            transformers(place, official, qkv, TRANSFORMERS_5)
        }
        Naming::OpenMmLab => vec![openmmlab(place, official)],
        // They name no Swin transformers.
        Naming::Dinov2 { .. }
        | Naming::TimmEva
        | Naming::TransformersDinov2
        | Naming::TransformersDinov3
        | Naming::SimClr { .. } => vec![official.into()],
    }
}

/// Whether the parameter is one of patch merging, and has its channels as `nn.Unfold` does.
pub(super) fn unfolds(naming: Naming, official: &str) -> bool {
    naming == Naming::OpenMmLab && matches!(Place::of(official), Place::Merge(..))
}

const TORCHVISION: &Renamed =
    &[("proj.", "0."), ("norm.", "2."), ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.3.")];
const TRANSFORMERS: &Renamed = &[
    ("proj.", "patch_embeddings.projection."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.output.dense."),
    ("attn.", "attention.self."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
];
const TRANSFORMERS_5: &Renamed = &[
    ("proj.", "patch_embeddings.projection."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj.", "attention.o_proj."),
    ("attn.relative", "attention.relative_position_bias.relative"),
];

const OPENMMLAB: &Renamed = &[
    ("proj.", "projection."),
    ("attn.", "attn.w_msa."),
    ("mlp.fc1.", "ffn.layers.0.0."),
    ("mlp.fc2.", "ffn.layers.1."),
];

fn torchvision(place: Place<'_>) -> Option<String> {
    Some(match place {
        Place::Embed(rest) => format!("features.0.{}", renamed(rest, TORCHVISION)),
        Place::Block(stage, block, rest) => {
            format!("features.{}.{block}.{}", 2 * stage + 1, renamed(rest, TORCHVISION))
        }
        Place::Merge(stage, rest) => format!("features.{}.{rest}", 2 * stage + 2),
        Place::Norm(_) | Place::Other => return None,
    })
}

/// Every stage has a norm of its own there: the last one is that of the whole network, here of the
/// four stages that published networks have.
fn openmmlab(place: Place<'_>, official: &str) -> String {
    match place {
        Place::Embed(rest) => format!("patch_embed.{}", renamed(rest, OPENMMLAB)),
        Place::Block(stage, block, rest) => {
            format!("stages.{stage}.blocks.{block}.{}", renamed(rest, OPENMMLAB))
        }
        Place::Merge(stage, rest) => format!("stages.{stage}.downsample.{rest}"),
        Place::Norm(rest) => format!("norm3.{rest}"),
        Place::Other => official.into(),
    }
}

/// `qkv` are the names of the query's, the key's and the value's layer.
fn transformers(
    place: Place<'_>,
    official: &str,
    qkv: [String; 3],
    table: &Renamed,
) -> Vec<String> {
    vec![match place {
        Place::Embed(rest) => format!("embeddings.{}", renamed(rest, table)),
        Place::Block(stage, block, rest) => {
            let block = format!("encoder.layers.{stage}.blocks.{block}");
            if let Some(kind) = rest.strip_prefix("attn.qkv.") {
                return qkv.map(|layer| format!("{block}.{layer}.{kind}")).into();
            }
            format!("{block}.{}", renamed(rest, table))
        }
        Place::Merge(stage, rest) => format!("encoder.layers.{stage}.downsample.{rest}"),
        Place::Norm(rest) => format!("layernorm.{rest}"),
        Place::Other => official.into(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Family;

    #[test]
    fn every_place_in_every_layout() {
        let cases = [
            (
                "patch_embed.proj.weight",
                [
                    "patch_embed.proj.weight",
                    "features.0.0.weight",
                    "embeddings.patch_embeddings.projection.weight",
                    "embeddings.patch_embeddings.projection.weight",
                ],
            ),
            (
                "patch_embed.norm.bias",
                [
                    "patch_embed.norm.bias",
                    "features.0.2.bias",
                    "embeddings.norm.bias",
                    "embeddings.norm.bias",
                ],
            ),
            (
                "layers.1.blocks.3.norm2.weight",
                [
                    "layers.1.blocks.3.norm2.weight",
                    "features.3.3.norm2.weight",
                    "encoder.layers.1.blocks.3.layernorm_after.weight",
                    "encoder.layers.1.blocks.3.layernorm_after.weight",
                ],
            ),
            (
                "layers.0.blocks.0.attn.relative_position_bias_table",
                [
                    "layers.0.blocks.0.attn.relative_position_bias_table",
                    "features.1.0.attn.relative_position_bias_table",
                    "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table",
                    "encoder.layers.0.blocks.0.attention.relative_position_bias.\
                     relative_position_bias_table",
                ],
            ),
            (
                "layers.0.blocks.0.mlp.fc2.bias",
                [
                    "layers.0.blocks.0.mlp.fc2.bias",
                    "features.1.0.mlp.3.bias",
                    "encoder.layers.0.blocks.0.output.dense.bias",
                    "encoder.layers.0.blocks.0.mlp.fc2.bias",
                ],
            ),
            (
                "layers.2.downsample.norm.weight",
                [
                    "layers.3.downsample.norm.weight",
                    "features.6.norm.weight",
                    "encoder.layers.2.downsample.norm.weight",
                    "encoder.layers.2.downsample.norm.weight",
                ],
            ),
            ("norm.bias", ["norm.bias", "norm.bias", "layernorm.bias", "layernorm.bias"]),
        ];
        for (official, expected) in cases {
            let layouts =
                [Naming::Timm, Naming::Torchvision, Naming::Transformers, Naming::Transformers5];
            for (naming, expected) in layouts.into_iter().zip(expected) {
                assert_eq!(naming.names(Family::Swin, official), [expected], "{naming:?}");
            }
            assert_eq!(Naming::Esvit.names(Family::Swin, official), [official]);
        }
        for (official, expected) in [
            ("patch_embed.proj.bias", "patch_embed.projection.bias"),
            ("patch_embed.norm.bias", "patch_embed.norm.bias"),
            ("layers.1.blocks.3.attn.qkv.weight", "stages.1.blocks.3.attn.w_msa.qkv.weight"),
            ("layers.1.blocks.3.attn.proj.bias", "stages.1.blocks.3.attn.w_msa.proj.bias"),
            ("layers.1.blocks.3.norm2.bias", "stages.1.blocks.3.norm2.bias"),
            ("layers.0.blocks.1.mlp.fc1.weight", "stages.0.blocks.1.ffn.layers.0.0.weight"),
            ("layers.0.blocks.1.mlp.fc2.bias", "stages.0.blocks.1.ffn.layers.1.bias"),
            ("layers.2.downsample.reduction.weight", "stages.2.downsample.reduction.weight"),
            ("norm.weight", "norm3.weight"),
        ] {
            assert_eq!(Naming::OpenMmLab.names(Family::Swin, official), [expected]);
        }
        let queries = Naming::Transformers.names(Family::Swin, "layers.0.blocks.1.attn.qkv.bias");
        assert_eq!(queries[2], "encoder.layers.0.blocks.1.attention.self.value.bias");
        let queries =
            Naming::Transformers5.names(Family::Swin, "layers.0.blocks.1.attn.qkv.weight");
        assert_eq!(queries[0], "encoder.layers.0.blocks.1.attention.q_proj.weight");
    }
}
