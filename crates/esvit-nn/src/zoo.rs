//! Named architectures, with the settings of the official configuration files, and one small one a
//! family for images of 32 pixels.

mod micro;

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

/// The architecture whose shape is given by its settings.
pub const CUSTOM: &str = "custom";

/// A named architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Architecture {
    /// Its name on the command line.
    pub name: &'static str,
    /// The published drop-path rate.
    pub drop_path: f64,
    shape: Shape,
}

/// What tells the architectures of a family apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Swin { embed_dim: usize, depths: [usize; 4], window_size: usize },
    Vit { embed_dim: usize, depth: usize, num_heads: usize, patch_size: usize, kind: Vit },
    Pvt { depths: [usize; 4] },
    ResNet { block: BlockKind, layers: [usize; 4], times: usize, selective_kernels: bool },
    Cvt { size: Cvt, window_sizes: [usize; 4], res_stem: bool },
    Vil { stages: &'static str, mode: i32 },
    Igpt { embed_dim: usize, depth: usize, num_heads: usize },
    Micro(Family),
}

/// Forms of vision transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Vit {
    /// DeiT and DINO.
    Plain,
    /// DeiT with a distillation token.
    Distilled,
    /// DINOv2 with four registers, in timm's form.
    Registers,
    /// DINOv2's giant, with SwiGLU.
    Gated,
    /// The same with four registers, in timm's form.
    GatedRegisters,
    /// MoCo v3.
    Moco,
    /// MoCo v3 with a convolutional stem.
    MocoStem,
    /// MoCo v3 with batch normalization before MLPs.
    MocoBatchNorm,
    /// DINOv3, in timm's form.
    Dinov3,
}

impl Vit {
    fn has_registers(self) -> bool {
        matches!(self, Self::Registers | Self::GatedRegisters | Self::Dinov3)
    }

    fn is_gated(self) -> bool {
        matches!(self, Self::Gated | Self::GatedRegisters)
    }

    fn position_table(self) -> PositionTable {
        match self {
            Self::Plain | Self::Distilled | Self::Gated => PositionTable::ClassAndPatches,
            Self::Registers | Self::GatedRegisters => PositionTable::Patches,
            Self::Moco | Self::MocoStem | Self::MocoBatchNorm => PositionTable::SineCosine,
            Self::Dinov3 => PositionTable::Rotary,
        }
    }

    fn position_resize(self) -> PositionResize {
        match self {
            Self::Plain => PositionResize::Esvit,
            Self::Gated => PositionResize::Dino,
            _ => PositionResize::Timm,
        }
    }

    fn patch_embedding(self) -> PatchEmbedding {
        match self {
            Self::Moco | Self::MocoBatchNorm => PatchEmbedding::Frozen,
            Self::MocoStem => PatchEmbedding::ConvStem,
            _ => PatchEmbedding::Linear,
        }
    }
}

/// Sizes of convolutional vision transformers, as in the official configuration files.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cvt {
    S1,
    S3,
}

const fn swin(
    name: &'static str,
    embed_dim: usize,
    depths: [usize; 4],
    window_size: usize,
    drop_path: f64,
) -> Architecture {
    Architecture { name, drop_path, shape: Shape::Swin { embed_dim, depths, window_size } }
}

const fn vit(
    name: &'static str,
    [embed_dim, depth, num_heads, patch_size]: [usize; 4],
    kind: Vit,
) -> Architecture {
    let shape = Shape::Vit { embed_dim, depth, num_heads, patch_size, kind };
    Architecture { name, drop_path: 0.1, shape }
}

const fn pvt(name: &'static str, depths: [usize; 4], drop_path: f64) -> Architecture {
    Architecture { name, drop_path, shape: Shape::Pvt { depths } }
}

/// All widths are `times` the usual ones. Nobody has published ResNets with stochastic depth here.
const fn resnet(
    name: &'static str,
    block: BlockKind,
    layers: [usize; 4],
    times: usize,
    selective_kernels: bool,
) -> Architecture {
    let shape = Shape::ResNet { block, layers, times, selective_kernels };
    Architecture { name, drop_path: 0.0, shape }
}

const BASIC: BlockKind = BlockKind::Basic;
const BOTTLENECK: BlockKind = BlockKind::Bottleneck;

const fn cvt(
    name: &'static str,
    size: Cvt,
    window_sizes: [usize; 4],
    res_stem: bool,
) -> Architecture {
    let drop_path = match size {
        Cvt::S1 => 0.1,
        Cvt::S3 => 0.2,
    };
    Architecture { name, drop_path, shape: Shape::Cvt { size, window_sizes, res_stem } }
}

const fn vil(name: &'static str, stages: &'static str, mode: i32) -> Architecture {
    Architecture { name, drop_path: 0.1, shape: Shape::Vil { stages, mode } }
}

/// Image GPTs see an image of 224 pixels as 32 x 32 colors.
const fn igpt(name: &'static str, [embed_dim, depth, num_heads]: [usize; 3]) -> Architecture {
    Architecture { name, drop_path: 0.0, shape: Shape::Igpt { embed_dim, depth, num_heads } }
}

/// A network for images of 32 pixels, such as the built-in ones, and two cores. Nobody has published it.
const fn micro(name: &'static str, family: Family) -> Architecture {
    Architecture { name, drop_path: 0.0, shape: Shape::Micro(family) }
}

/// Every named architecture.
pub const ARCHITECTURES: &[Architecture] = &[
    swin("swin_tiny_w7", 96, [2, 2, 6, 2], 7, 0.1),
    swin("swin_tiny_w14", 96, [2, 2, 6, 2], 14, 0.1),
    swin("swin_small_w7", 96, [2, 2, 18, 2], 7, 0.2),
    swin("swin_small_w14", 96, [2, 2, 18, 2], 14, 0.2),
    swin("swin_base_w7", 128, [2, 2, 18, 2], 7, 0.2),
    swin("swin_base_w14", 128, [2, 2, 18, 2], 14, 0.2),
    swin("swin_large_w7", 192, [2, 2, 18, 2], 7, 0.2),
    swin("swin_large_w14", 192, [2, 2, 18, 2], 14, 0.2),
    vit("vit_tiny16", [192, 12, 3, 16], Vit::Plain),
    vit("vit_small16", [384, 12, 6, 16], Vit::Plain),
    vit("vit_small8", [384, 12, 6, 8], Vit::Plain),
    vit("vit_base16", [768, 12, 12, 16], Vit::Plain),
    vit("vit_base8", [768, 12, 12, 8], Vit::Plain),
    vit("vit_large16", [1024, 24, 16, 16], Vit::Plain),
    vit("vit_huge14", [1280, 32, 16, 14], Vit::Plain),
    vit("deit_tiny16_distilled", [192, 12, 3, 16], Vit::Distilled),
    vit("deit_small16_distilled", [384, 12, 6, 16], Vit::Distilled),
    vit("deit_base16_distilled", [768, 12, 12, 16], Vit::Distilled),
    vit("vit_small14_reg4", [384, 12, 6, 14], Vit::Registers),
    vit("vit_base14_reg4", [768, 12, 12, 14], Vit::Registers),
    vit("vit_large14_reg4", [1024, 24, 16, 14], Vit::Registers),
    vit("vit_giant14", [1536, 40, 24, 14], Vit::Gated),
    vit("vit_giant14_reg4", [1536, 40, 24, 14], Vit::GatedRegisters),
    vit("vit_small16_moco", [384, 12, 12, 16], Vit::Moco),
    vit("vit_base16_moco", [768, 12, 12, 16], Vit::Moco),
    // A block less, which costs about as much as the stem.
    vit("vit_small16_moco_conv", [384, 11, 12, 16], Vit::MocoStem),
    vit("vit_base16_moco_conv", [768, 11, 12, 16], Vit::MocoStem),
    vit("vit_base16_moco_bn", [768, 12, 12, 16], Vit::MocoBatchNorm),
    vit("vit_large7_moco_bn", [1024, 24, 16, 7], Vit::MocoBatchNorm),
    vit("vit_small16_dinov3", [384, 12, 6, 16], Vit::Dinov3),
    vit("vit_base16_dinov3", [768, 12, 12, 16], Vit::Dinov3),
    vit("vit_large16_dinov3", [1024, 24, 16, 16], Vit::Dinov3),
    pvt("pvt_tiny", [2, 2, 2, 2], 0.1),
    pvt("pvt_small", [3, 4, 6, 3], 0.1),
    pvt("pvt_medium", [3, 4, 18, 3], 0.3),
    pvt("pvt_large", [3, 8, 27, 3], 0.3),
    // The depths that EsViT's paper names.
    pvt("pvt_2262", [2, 2, 6, 2], 0.1),
    resnet("resnet18", BASIC, [2, 2, 2, 2], 1, false),
    resnet("resnet34", BASIC, [3, 4, 6, 3], 1, false),
    resnet("resnet50", BOTTLENECK, [3, 4, 6, 3], 1, false),
    resnet("resnet50_w2", BOTTLENECK, [3, 4, 6, 3], 2, false),
    resnet("resnet50_w4", BOTTLENECK, [3, 4, 6, 3], 4, false),
    resnet("resnet50_w5", BOTTLENECK, [3, 4, 6, 3], 5, false),
    resnet("resnet50_sk", BOTTLENECK, [3, 4, 6, 3], 1, true),
    resnet("resnet101", BOTTLENECK, [3, 4, 23, 3], 1, false),
    resnet("resnet152", BOTTLENECK, [3, 8, 36, 3], 1, false),
    resnet("resnet152_w3_sk", BOTTLENECK, [3, 8, 36, 3], 3, true),
    resnet("resnet200", BOTTLENECK, [3, 24, 36, 3], 1, false),
    resnet("resnet200_w2", BOTTLENECK, [3, 24, 36, 3], 2, false),
    cvt("cvt_tiny", Cvt::S1, [7; 4], false),
    cvt("cvt_tiny_w14", Cvt::S1, [14, 14, 14, 7], false),
    cvt("cvt_tiny_stem_w14", Cvt::S1, [14, 14, 14, 7], true),
    cvt("cvt_s3", Cvt::S3, [7; 4], false),
    cvt("cvt_s3_w14", Cvt::S3, [14, 14, 14, 7], false),
    cvt("cvt_s3_stem_w14", Cvt::S3, [14, 14, 14, 7], true),
    // That of EsViT's experiments; the other two are the files' own, with absolute positions.
    vil(
        "vil_2262",
        "l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,h6,d192,n2,s1,g1,p2,f7,a0_\
         l3,h12,d384,n6,s0,g1,p2,f7,a0_l4,h24,d768,n2,s0,g0,p2,f7,a0",
        1,
    ),
    vil(
        "vil_small",
        "l1,h3,d96,n1,s1,g1,p4,f7_l2,h3,d192,n2,s1,g1,p2,f7_\
         l3,h6,d384,n8,s0,g1,p2,f7_l4,h12,d768,n1,s0,g0,p2,f7",
        0,
    ),
    vil(
        "vil_tiny",
        "l1,h1,d48,n1,s1,g1,p4,f7_l2,h3,d96,n1,s1,g1,p2,f7_\
         l3,h3,d192,n9,s0,g1,p2,f7_l4,h6,d384,n1,s0,g0,p2,f7",
        0,
    ),
    igpt("igpt_s", [512, 24, 8]),
    igpt("igpt_m", [1024, 36, 8]),
    igpt("igpt_l", [1536, 48, 16]),
    micro("swin_micro", Family::Swin),
    micro("vit_micro", Family::Vit),
    micro("pvt_micro", Family::Pvt),
    micro("resnet_micro", Family::ResNet),
    micro("cvt_micro", Family::Cvt),
    micro("vil_micro", Family::Vil),
    micro("igpt_micro", Family::Igpt),
];

/// The architecture of this name; `swin_tiny` without a window means window 7.
pub fn find(name: &str) -> Option<&'static Architecture> {
    let full = format!("{name}_w7");
    ARCHITECTURES.iter().find(|arch| arch.name == name || arch.name == full)
}

/// The architecture of this shape, `norm_eps` ignored.
pub fn of_shape(shape: &BackboneConfig) -> Option<&'static Architecture> {
    let eps = shape.norm_eps();
    ARCHITECTURES.iter().find(|arch| arch.config().with_norm_eps(eps) == *shape)
}

/// A single stage like DeiT-S/16: 12 blocks of width 384 over patches of 16 pixels, with attention
/// over the whole map of an image of 224 pixels.
pub fn single_stage() -> BackboneConfig {
    BackboneConfig::Swin(SwinConfig {
        img_size: 224,
        patch_size: 16,
        embed_dim: 384,
        depths: vec![12],
        num_heads: vec![6],
        window_size: 14,
        mlp_ratio: 4.0,
        norm_eps: swin::NORM_EPS,
    })
}

impl Architecture {
    /// The shape of the network.
    pub fn config(&self) -> BackboneConfig {
        match self.shape {
            Shape::Swin { embed_dim, depths, window_size } => BackboneConfig::Swin(SwinConfig {
                img_size: 224,
                patch_size: 4,
                embed_dim,
                depths: depths.to_vec(),
                // Every head is 32 values wide.
                num_heads: (0..4).map(|stage| (embed_dim << stage) / 32).collect(),
                window_size,
                mlp_ratio: 4.0,
                norm_eps: swin::NORM_EPS,
            }),
            Shape::Vit { embed_dim, depth, num_heads, patch_size, kind } => {
                BackboneConfig::Vit(VitConfig {
                    img_size: 224,
                    patch_size,
                    embed_dim,
                    depth,
                    num_heads,
                    mlp_ratio: 4.0,
                    norm_eps: if kind == Vit::Dinov3 { 1e-5 } else { vit::NORM_EPS },
                    register_tokens: if kind.has_registers() { 4 } else { 0 },
                    distillation_token: kind == Vit::Distilled,
                    layer_scale: kind.has_registers() || kind.is_gated(),
                    position_table: kind.position_table(),
                    position_resize: kind.position_resize(),
                    patch_embedding: kind.patch_embedding(),
                    qkv_bias: if kind == Vit::Dinov3 { QkvBias::None } else { QkvBias::All },
                    mlp: if kind.is_gated() { MlpKind::SwiGlu } else { MlpKind::Gelu },
                    mlp_norm: match kind {
                        Vit::MocoBatchNorm => MlpNorm::BatchNorm,
                        _ => MlpNorm::LayerNorm,
                    },
                })
            }
            Shape::Pvt { depths } => BackboneConfig::Pvt(PvtConfig {
                img_size: 224,
                patch_size: 4,
                embed_dims: vec![64, 128, 320, 512],
                depths: depths.to_vec(),
                num_heads: vec![1, 2, 5, 8],
                mlp_ratios: vec![8.0, 8.0, 4.0, 4.0],
                sr_ratios: vec![8, 4, 2, 1],
                norm_eps: pvt::NORM_EPS,
            }),
            Shape::ResNet { block, layers, times, selective_kernels } => {
                BackboneConfig::ResNet(ResNetConfig {
                    img_size: 224,
                    block,
                    stem_width: 64 * times,
                    widths: [64, 128, 256, 512].map(|width| width * times).to_vec(),
                    layers: layers.to_vec(),
                    selective_kernels,
                    norm_eps: BATCH_NORM_EPS,
                })
            }
            Shape::Cvt { size, window_sizes, res_stem } => {
                let [embed_dims, num_heads, depths] = match size {
                    Cvt::S1 => [[64, 192, 384, 768], [1, 3, 6, 12], [2, 2, 6, 2]],
                    Cvt::S3 => [[64, 128, 256, 512], [2, 4, 8, 16], [2, 2, 10, 4]],
                };
                BackboneConfig::Cvt(CvtConfig {
                    img_size: 224,
                    embed_dims: embed_dims.into(),
                    depths: depths.into(),
                    num_heads: num_heads.into(),
                    patch_sizes: vec![7, 3, 3, 3],
                    patch_strides: vec![4, 2, 2, 2],
                    patch_paddings: vec![2, 1, 1, 1],
                    window_sizes: window_sizes.into(),
                    mlp_ratios: vec![4.0; 4],
                    res_stem,
                    norm_eps: cvt::NORM_EPS,
                })
            }
            Shape::Vil { stages, mode } => BackboneConfig::Vil(VilConfig {
                img_size: 224,
                stages: stages.parse().expect("a table of valid stages"),
                mode,
                fixed_neighbor: false,
                exact: 0,
                bias_resize: BiasResize::Pairs,
                norm_eps: vil::NORM_EPS,
            }),
            Shape::Igpt { embed_dim, depth, num_heads } => BackboneConfig::Igpt(IgptConfig {
                img_size: 224,
                patch_size: 7,
                colors: 512,
                variant: Variant::Autoregressive,
                embed_dim,
                depth,
                num_heads,
                feature_block: depth / 2,
                norm_eps: igpt::NORM_EPS,
            }),
            Shape::Micro(family) => micro::config(family),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward_ctx::ForwardCtx;

    /// Parameters of the backbone, without heads, as the official code counts them.
    #[test]
    fn parameter_counts() {
        for (name, expected) in [
            ("swin_tiny", 27_519_354),
            ("swin_tiny_w14", 27_569_754),
            ("swin_small_w7", 48_837_258),
            ("swin_small_w14", 48_968_298),
            ("swin_base_w7", 86_743_224),
            ("swin_base_w14", 86_917_944),
            ("swin_large_w7", 194_995_476),
            ("vit_tiny16", 5_524_416),
            ("vit_small16", 21_665_664),
            ("vit_small8", 21_670_272),
            ("vit_base16", 85_798_656),
            ("vit_base8", 85_807_872),
            ("vit_large16", 303_301_632),
            ("deit_tiny16_distilled", 5_524_800),
            ("deit_small16_distilled", 21_666_432),
            ("deit_base16_distilled", 85_800_192),
            // timm's count of its two giants, whose tables have 1113 rows more.
            ("vit_giant14", 1_136_479_232 - 1113 * 1536),
            ("vit_giant14_reg4", 1_136_483_840 - 1113 * 1536),
            ("vit_small16_moco", 21_665_664),
            ("vit_base16_moco", 85_798_656),
            ("vit_small16_moco_conv", 20_617_392),
            ("vit_base16_moco_conv", 82_199_904),
            ("vit_base16_moco_bn", 85_798_656),
            ("vit_large7_moco_bn", 303_513_600),
            ("vit_small16_dinov3", 21_586_944),
            ("vit_base16_dinov3", 85_641_216),
            ("vit_large16_dinov3", 303_079_424),
            ("pvt_tiny", 12_716_288),
            ("pvt_small", 23_972_864),
            ("pvt_medium", 43_695_104),
            ("pvt_large", 60_856_320),
            ("pvt_2262", 19_290_368),
            ("resnet18", 11_176_512),
            ("resnet34", 21_284_672),
            ("resnet50", 23_508_032),
            ("resnet101", 42_500_160),
            ("resnet152", 58_143_808),
            // Published as 94, 375, 586, 35, 795 and 250 million.
            ("resnet50_w2", 93_907_072),
            ("resnet50_w4", 375_378_176),
            ("resnet50_w5", 586_450_240),
            ("resnet50_sk", 35_215_584),
            ("resnet152_w3_sk", 794_704_160),
            ("resnet200_w2", 250_128_512),
            ("cvt_tiny", 29_303_616),
            ("cvt_tiny_w14", 29_303_616),
            ("cvt_tiny_stem_w14", 29_369_856),
            ("cvt_s3", 22_620_160),
            ("cvt_s3_stem_w14", 22_686_400),
            ("vil_2262", 27_569_352),
            ("vil_small", 23_866_752),
            ("vil_tiny", 6_322_080),
            // Published as 76, 455 and 1362 million, with the output table of 512 rows.
            ("igpt_s", 76_311_040),
            ("igpt_m", 454_635_008),
            ("igpt_l", 1_361_465_856),
        ] {
            let (_, list) = find(name).unwrap().config().build(0.0);
            assert_eq!(list.parameters(), expected, "{name}");
        }
    }

    /// Tensors of the official files, without heads and tables of indices: those of batch norm with
    /// two statistics and a number of batches.
    #[test]
    fn tensor_counts() {
        for (name, expected) in [
            ("swin_tiny_w7", 171),
            ("vit_giant14", 566),
            ("vit_giant14_reg4", 567),
            ("vit_small16_moco_conv", 162),
            ("vit_small16_dinov3", 162),
            ("vit_large16_dinov3", 318),
            ("pvt_tiny", 159),
            ("pvt_small", 299),
            ("pvt_medium", 515),
            ("pvt_large", 749),
            ("pvt_2262", 231),
            ("resnet50", 318),
            ("cvt_tiny", 234),
            ("cvt_tiny_stem_w14", 248),
            ("cvt_s3", 342),
        ] {
            let (_, list) = find(name).unwrap().config().build(0.0);
            let norms = list.iter().filter(|spec| spec.name.ends_with("running_mean")).count();
            assert_eq!(list.len() + norms, expected, "{name}");
        }
    }

    /// The official classes' own counters: 4.494 G, 4.892 G, 8.746 G and 15.437 G at 224 pixels.
    #[test]
    fn multiply_accumulates() {
        for (name, expected) in [
            ("swin_tiny_w7", 4.494e9),
            ("swin_tiny_w14", 4.892e9),
            ("swin_small_w7", 8.746e9),
            ("swin_base_w7", 15.437e9),
            ("vit_tiny16", 1.254e9),
            ("vit_small16", 4.599e9),
            ("vit_small8", 22.405e9),
            ("vit_base16", 17.563e9),
            ("vit_large16", 61.554e9),
            ("deit_small16_distilled", 4.623e9),
            ("vit_giant14", 299.39e9),
            ("vit_small16_moco_conv", 4.598e9),
            ("vit_small16_dinov3", 4.698e9),
            ("pvt_tiny", 1.932e9),
            ("pvt_small", 3.815e9),
            ("pvt_medium", 6.659e9),
            ("pvt_large", 9.813e9),
            ("pvt_2262", 2.88e9),
            ("resnet50", 4.087e9),
        ] {
            let config = find(name).unwrap().config();
            let cost = config.cost([224; 2], 0.0, &ForwardCtx::eval());
            let macs = cost.official_macs() as f64;
            assert!((macs / expected - 1.0).abs() < 0.005, "{name}: {macs}");
        }
    }

    /// Every form of vision transformers is valid, and found by its shape.
    #[test]
    fn vision_transformers() {
        let shape = |name: &str| match find(name).unwrap().config() {
            BackboneConfig::Vit(shape) => shape,
            other => panic!("{other:?}"),
        };
        let is_vit = |arch: &&Architecture| matches!(arch.shape, Shape::Vit { .. });
        for arch in ARCHITECTURES.iter().filter(is_vit) {
            let config = arch.config();
            config.validate().unwrap();
            assert_eq!(of_shape(&config), Some(arch));
        }
        let dinov3 = shape("vit_base16_dinov3");
        assert_eq!((dinov3.norm_eps, dinov3.prefix(), dinov3.layer_scale), (1e-5, 5, true));
        let [giant, registers] = ["vit_giant14", "vit_giant14_reg4"].map(shape);
        assert_eq!((giant.hidden_width(), giant.prefix(), giant.layer_scale), (4096, 1, true));
        assert_eq!((registers.hidden_width(), registers.prefix()), (4096, 5));
        let forms = ["vit_small16", "vit_small16_moco", "vit_small16_moco_conv"].map(|name| {
            let shape = shape(name);
            (shape.depth, shape.num_heads, shape.patch_embedding)
        });
        let expected = [
            (12, 6, PatchEmbedding::Linear),
            (12, 12, PatchEmbedding::Frozen),
            (11, 12, PatchEmbedding::ConvStem),
        ];
        assert_eq!(forms, expected);
    }

    /// Those of EsViT's code, whatever its files leave out; `mode` is that of its recipe and of its files.
    #[test]
    fn vision_longformers() {
        for (name, mode, last) in [
            ("vil_2262", 1, "l4,h24,d768,n2,s0,g0,p2,f7,a0"),
            ("vil_small", 0, "l4,h12,d768,n1,s0,g0,p2,f7,a1"),
            ("vil_tiny", 0, "l4,h6,d384,n1,s0,g0,p2,f7,a1"),
        ] {
            let arch = find(name).unwrap();
            let config = arch.config();
            config.validate().unwrap();
            let BackboneConfig::Vil(shape) = &config else { panic!("a ViL") };
            assert!(shape.stages.to_string().ends_with(last), "{}", shape.stages);
            assert_eq!((shape.mode, shape.img_size, shape.norm_eps), (mode, 224, 1e-6));
            assert_eq!((arch.drop_path, of_shape(&config)), (0.1, Some(arch)));
        }
    }

    /// 32 x 32 tokens of an image, features from the middle.
    #[test]
    fn image_gpts() {
        for (name, width, depth) in
            [("igpt_s", 512, 24), ("igpt_m", 1024, 36), ("igpt_l", 1536, 48)]
        {
            let arch = find(name).unwrap();
            let config = arch.config();
            config.validate().unwrap();
            assert_eq!((config.output_width(), config.blocks()), (width, depth));
            assert_eq!((config.last_map(224), config.feature_block()), (32, depth / 2));
            assert_eq!((arch.drop_path, of_shape(&config)), (0.0, Some(arch)));
        }
    }

    /// The published settings as numbers, and every name to find them by.
    #[test]
    fn shapes_of_all_architectures() {
        let [tiny, deep] = [[2, 2, 6, 2], [2, 2, 18, 2]];
        let shapes = [
            ("swin_tiny", 96, tiny, [3, 6, 12, 24], 0.1),
            ("swin_small", 96, deep, [3, 6, 12, 24], 0.2),
            ("swin_base", 128, deep, [4, 8, 16, 32], 0.2),
            ("swin_large", 192, deep, [6, 12, 24, 48], 0.2),
        ];
        let mut names = Vec::new();
        for (name, embed_dim, depths, heads, drop_path) in shapes {
            for window_size in [7, 14] {
                let full = format!("{name}_w{window_size}");
                let arch = find(&full).unwrap();
                let expected = SwinConfig {
                    img_size: 224,
                    patch_size: 4,
                    embed_dim,
                    depths: depths.to_vec(),
                    num_heads: heads.to_vec(),
                    window_size,
                    mlp_ratio: 4.0,
                    norm_eps: 1e-6,
                };
                let larger = SwinConfig { img_size: 256, ..expected.clone() };
                let [expected, larger] = [expected, larger].map(BackboneConfig::Swin);
                assert_eq!(arch.config(), expected, "{full}");
                assert_eq!(arch.drop_path, drop_path, "{full}");
                assert_eq!(of_shape(&expected.with_norm_eps(1e-5)), Some(arch));
                assert_eq!(of_shape(&larger), None);
                names.push(full);
            }
            assert_eq!(find(name).unwrap().name, format!("{name}_w7"));
        }
        names.push("swin_micro".into());
        let listed = ARCHITECTURES.iter().map(|arch| arch.name);
        let listed: Vec<&str> = listed.filter(|name| name.starts_with("swin")).collect();
        assert_eq!(listed, names);
        assert_eq!(["swin", "swin_tiny_w", "swin_tiny_w7_w7", ""].map(find), [None; 4]);
    }
}
