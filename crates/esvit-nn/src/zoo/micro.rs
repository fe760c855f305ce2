//! The small networks: patches of 4 pixels make a map of 8 x 8 of an image of 32, which the last
//! stage, if there are several, halves. An image GPT sees 16 x 16 colors.

use crate::backbone::cvt::{self, CvtConfig};
use crate::backbone::igpt::{self, IgptConfig, Variant};
use crate::backbone::pvt::{self, PvtConfig};
use crate::backbone::resnet::{BlockKind, ResNetConfig};
use crate::backbone::swin::{self, SwinConfig};
use crate::backbone::vil::{self, BiasResize, VilConfig};
use crate::backbone::vit::{
    self, MlpKind, MlpNorm, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};
use crate::backbone::{BackboneConfig, Family};
use crate::layers::BATCH_NORM_EPS;

const IMAGE: usize = 32;
const PATCH: usize = 4;
const WIDTHS: [usize; 2] = [64, 128];
const BLOCKS: [usize; 2] = [2, 2];
const HEADS: [usize; 2] = [2, 4];
const WINDOW: usize = 4;
const MLP_RATIO: f64 = 2.0;

/// The small network of a family.
pub(super) fn config(family: Family) -> BackboneConfig {
    match family {
        Family::Swin => BackboneConfig::Swin(SwinConfig {
            img_size: IMAGE,
            patch_size: PATCH,
            embed_dim: WIDTHS[0],
            depths: BLOCKS.into(),
            num_heads: HEADS.into(),
            window_size: WINDOW,
            mlp_ratio: MLP_RATIO,
            norm_eps: swin::NORM_EPS,
        }),
        Family::Vit => BackboneConfig::Vit(VitConfig {
            img_size: IMAGE,
            patch_size: PATCH,
            embed_dim: 96,
            depth: BLOCKS.iter().sum(),
            num_heads: 3,
            mlp_ratio: MLP_RATIO,
            norm_eps: vit::NORM_EPS,
            register_tokens: 0,
            distillation_token: false,
            layer_scale: false,
            position_table: PositionTable::ClassAndPatches,
            position_resize: PositionResize::Esvit,
            patch_embedding: PatchEmbedding::Linear,
            qkv_bias: QkvBias::All,
            mlp: MlpKind::Gelu,
            mlp_norm: MlpNorm::LayerNorm,
        }),
        Family::Pvt => BackboneConfig::Pvt(PvtConfig {
            img_size: IMAGE,
            patch_size: PATCH,
            embed_dims: WIDTHS.into(),
            depths: BLOCKS.into(),
            num_heads: HEADS.into(),
            mlp_ratios: vec![MLP_RATIO; BLOCKS.len()],
            sr_ratios: vec![2, 1],
            norm_eps: pvt::NORM_EPS,
        }),
        Family::ResNet => BackboneConfig::ResNet(ResNetConfig {
            img_size: IMAGE,
            block: BlockKind::Basic,
            stem_width: WIDTHS[0],
            widths: WIDTHS.into(),
            layers: BLOCKS.into(),
            selective_kernels: false,
            norm_eps: BATCH_NORM_EPS,
        }),
        Family::Cvt => BackboneConfig::Cvt(CvtConfig {
            img_size: IMAGE,
            embed_dims: WIDTHS.into(),
            depths: BLOCKS.into(),
            num_heads: HEADS.into(),
            patch_sizes: vec![7, 3],
            patch_strides: vec![PATCH, 2],
            patch_paddings: vec![2, 1],
            window_sizes: vec![WINDOW; BLOCKS.len()],
            mlp_ratios: vec![MLP_RATIO; BLOCKS.len()],
            res_stem: false,
            norm_eps: cvt::NORM_EPS,
        }),
        Family::Vil => BackboneConfig::Vil(VilConfig {
            img_size: IMAGE,
            // It has three stages or four: the second keeps the map.
            stages: "l1,h2,d64,n1,s1,g1,p4,f4,a0_l2,h2,d64,n1,s1,g1,p1,f4,a0_l3,h4,d128,n2,s0,g0,p2,f4,a0"
                .parse()
                .expect("a table of valid stages"),
            mode: 0,
            fixed_neighbor: false,
            exact: 0,
            bias_resize: BiasResize::Pairs,
            norm_eps: vil::NORM_EPS,
        }),
        Family::Igpt => BackboneConfig::Igpt(IgptConfig {
            img_size: IMAGE,
            patch_size: 2,
            colors: 64,
            variant: Variant::Autoregressive,
            embed_dim: 96,
            depth: BLOCKS.iter().sum(),
            num_heads: 3,
            feature_block: BLOCKS[0],
            norm_eps: igpt::NORM_EPS,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    /// Every family has one, which sees local crops of 16 pixels as well.
    #[test]
    fn one_for_each_family() {
        for family in Family::ALL {
            let config = config(family);
            config.validate().unwrap();
            config.check_image("crop", [16, 16]).unwrap();
            assert_eq!(config.family(), family);
            let name = format!("{}_micro", family.name());
            assert_eq!(zoo::find(&name).unwrap().config(), config);
            let last = match family {
                Family::Vit => 8,
                Family::Igpt => 16,
                _ => 4,
            };
            assert_eq!(config.last_map(32), last, "{name}");
            let (_, list) = config.build(0.0);
            assert!((200_000..700_000).contains(&list.parameters()), "{name}");
        }
    }
}
