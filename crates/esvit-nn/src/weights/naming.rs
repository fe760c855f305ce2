//! Names of a Swin's parameters in the files of other programs, and the order of their values.

use super::merge_order;

/// How a file names the parameters of a Swin transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The official EsViT code, and ours.
    Esvit,
    /// Microsoft's Swin code, and timm before 0.9.
    Microsoft,
    /// timm since 0.9: patch merging is the first layer of a stage, not the last of the one before.
    Timm,
    /// torchvision.
    Torchvision,
    /// Hugging Face `transformers`, as stored on disk.
    Transformers,
    /// `transformers` 5, as named in memory.
    Transformers5,
    /// OpenMMLab: mmpretrain, mmdetection, mmsegmentation.
    OpenMmLab,
}

/// A parameter's place in the network, with the official name within it.
enum Place<'a> {
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

impl Naming {
    /// All namings, in the order in which files are searched for them.
    pub const ALL: [Self; 7] = [
        Self::Esvit,
        Self::Microsoft,
        Self::Timm,
        Self::Torchvision,
        Self::Transformers,
        Self::Transformers5,
        Self::OpenMmLab,
    ];

    /// Name in reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Esvit => "EsViT",
            Self::Microsoft => "Microsoft's Swin",
            Self::Timm => "timm",
            Self::Torchvision => "torchvision",
            Self::Transformers | Self::Transformers5 => "transformers",
            Self::OpenMmLab => "OpenMMLab",
        }
    }

    /// `eps` of every LayerNorm in the program of this naming; weights do not store it.
    pub fn norm_eps(self) -> f64 {
        match self {
            Self::Esvit => 1e-6,
            _ => 1e-5,
        }
    }

    /// Names of the tensors that hold the parameter with this official name: several hold equal
    /// parts of its rows, in order.
    pub fn names(self, official: &str) -> Vec<String> {
        let place = Place::of(official);
        match self {
            Self::Esvit | Self::Microsoft => vec![official.into()],
            Self::Timm => match place {
                Place::Merge(stage, rest) => {
                    vec![format!("layers.{}.downsample.{rest}", stage + 1)]
                }
                _ => vec![official.into()],
            },
            Self::Torchvision => vec![torchvision(place).unwrap_or_else(|| official.into())],
            Self::Transformers => {
                let qkv = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
                transformers(place, official, qkv, TRANSFORMERS)
            }
            Self::Transformers5 => {
                let qkv = ["q", "k", "v"].map(|part| format!("attention.{part}_proj"));
                transformers(place, official, qkv, TRANSFORMERS_5)
            }
            Self::OpenMmLab => vec![openmmlab(place, official)],
        }
    }

    /// Values of a parameter in the official order, given those of a file in rows of `row`.
    pub(super) fn official_order(self, official: &str, values: Vec<f32>, row: usize) -> Vec<f32> {
        match self.unfolds(official) {
            true => merge_order::concatenated(&values, row),
            false => values,
        }
    }

    /// The inverse of [`Self::official_order`].
    pub(super) fn order_in_file(self, official: &str, values: Vec<f32>, row: usize) -> Vec<f32> {
        match self.unfolds(official) {
            true => merge_order::unfolded(&values, row),
            false => values,
        }
    }

    /// Whether the parameter is one of patch merging, and has its channels as `nn.Unfold` does.
    fn unfolds(self, official: &str) -> bool {
        self == Self::OpenMmLab && matches!(Place::of(official), Place::Merge(..))
    }
}

/// Beginnings of official names within a place, and what another program has for them.
type Renamed = [(&'static str, &'static str)];

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

/// The name by the first entry that begins like it.
fn renamed(rest: &str, table: &Renamed) -> String {
    let name =
        table.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)));
    name.unwrap_or_else(|| rest.into())
}

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
                assert_eq!(naming.names(official), [expected], "{naming:?}");
            }
            assert_eq!(Naming::Esvit.names(official), [official]);
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
            assert_eq!(Naming::OpenMmLab.names(official), [expected]);
        }
        let queries = Naming::Transformers.names("layers.0.blocks.1.attn.qkv.bias");
        assert_eq!(queries[2], "encoder.layers.0.blocks.1.attention.self.value.bias");
        let queries = Naming::Transformers5.names("layers.0.blocks.1.attn.qkv.weight");
        assert_eq!(queries[0], "encoder.layers.0.blocks.1.attention.q_proj.weight");
    }
}
