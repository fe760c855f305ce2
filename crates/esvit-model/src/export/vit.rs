//! Which vision transformers other programs have.

use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::weights::Naming;

use super::Target;

/// The naming of the class of `transformers` that has the network: DINOv3's, DINOv2's with LayerScale, or
/// that of ViT and DeiT.
pub(super) fn transformers_naming(model: &VitConfig) -> Naming {
    if model.position_table == PositionTable::Rotary {
        Naming::TransformersDinov3
    } else if model.layer_scale {
        Naming::TransformersDinov2
    } else {
        Naming::Transformers
    }
}

/// What a target's vision transformers do not have, if the network has it.
pub(super) fn missing(model: &VitConfig, target: Target) -> Option<&'static str> {
    let is_rotary = model.position_table == PositionTable::Rotary;
    let is_unplaced = model.position_table == PositionTable::Patches;
    let (is_gated, is_scaled) = (model.mlp == MlpKind::SwiGlu, model.layer_scale);
    let (is_distilled, has_registers) = (model.distillation_token, model.register_tokens > 0);
    let bias = model.qkv_bias;
    let of_all = [
        (model.mlp_norm == MlpNorm::BatchNorm, "batch normalization before MLPs"),
        (model.patch_embedding == PatchEmbedding::ConvStem, "a convolutional stem"),
    ];
    let of_target: Vec<(bool, &'static str)> = match target {
        Target::Esvit | Target::Onnx => return None,
        Target::Torchvision => vec![
            (is_rotary, "rotary positions"),
            (is_gated, "SwiGLU"),
            (is_unplaced, "no position of the class token"),
            (bias != QkvBias::All, "no biases of queries, keys and values"),
        ],
        Target::Timm if is_rotary => vec![
            (is_gated, "rotary positions and one layer before SwiGLU"),
            (!is_scaled, "rotary positions and no LayerScale"),
            (is_distilled, "rotary positions and a distillation token"),
            (bias == QkvBias::All, "rotary positions and a bias of keys"),
        ],
        Target::Timm => vec![
            (is_gated && !is_scaled, "SwiGLU and no LayerScale"),
            (is_gated && is_distilled, "SwiGLU and a distillation token"),
            (bias == QkvBias::QueriesAndValues, "biases of queries and values alone"),
        ],
        Target::Transformers if is_rotary => vec![
            (is_gated, "rotary positions and one layer before SwiGLU"),
            (!is_scaled, "rotary positions and no LayerScale"),
            (is_distilled, "rotary positions and a distillation token"),
        ],
        Target::Transformers => vec![
            (is_unplaced, "no position of the class token"),
            (is_scaled && is_distilled, "LayerScale and a distillation token"),
            (has_registers && !is_scaled, "registers and no LayerScale"),
            (is_gated && !is_scaled, "SwiGLU and no LayerScale"),
            (bias == QkvBias::QueriesAndValues, "biases of queries and values alone"),
        ],
    };
    of_all.into_iter().chain(of_target).find_map(|(has, what)| has.then_some(what))
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

    /// Targets that have a named architecture: timm, torchvision, `transformers`.
    #[test]
    fn who_has_which_form() {
        let targets = [Target::Timm, Target::Torchvision, Target::Transformers];
        for (name, expected) in [
            ("vit_small16", [true, true, true]),
            ("vit_giant14", [true, false, true]),
            ("vit_giant14_reg4", [true, false, false]),
            ("vit_small16_moco", [true, true, true]),
            ("vit_small16_moco_conv", [false; 3]),
            ("vit_base16_moco_bn", [false; 3]),
            ("vit_small16_dinov3", [true, false, true]),
        ] {
            let shape = shape(name);
            let found = targets.map(|target| missing(&shape, target).is_none());
            assert_eq!(found, expected, "{name}");
            let own = [Target::Esvit, Target::Onnx].map(|target| missing(&shape, target));
            assert_eq!(own, [None; 2], "{name}");
        }
        let biased = VitConfig { qkv_bias: QkvBias::All, ..shape("vit_small16_dinov3") };
        let found = targets.map(|target| missing(&biased, target));
        let expected =
            [Some("rotary positions and a bias of keys"), Some("rotary positions"), None];
        assert_eq!(found, expected);
        for (name, naming) in [
            ("vit_small16", Naming::Transformers),
            ("vit_giant14", Naming::TransformersDinov2),
            ("vit_small16_dinov3", Naming::TransformersDinov3),
        ] {
            assert_eq!(transformers_naming(&shape(name)), naming, "{name}");
        }
    }
}
