//! Networks that are small enough for a test.

use esvit_data::Preprocess;
use esvit_model::{PretrainedBackbone, SourceFile};
use esvit_nn::backbone::cvt::CvtConfig;
use esvit_nn::backbone::igpt::{IgptConfig, Variant};
use esvit_nn::backbone::pvt::PvtConfig;
use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::backbone::vil::{BiasResize, VilConfig};
use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionResize, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::{BackboneConfig, Device, Params};

/// Two stages of one block each, for images of 32 pixels: maps of 8 and 4 tokens, windows of 4. A
/// test that needs more says what: `SwinConfig { depths: vec![2, 1], ..tiny_swin() }`.
pub fn tiny_swin() -> SwinConfig {
    SwinConfig {
        img_size: 32,
        patch_size: 4,
        embed_dim: 8,
        depths: vec![1, 1],
        num_heads: vec![1, 2],
        window_size: 4,
        mlp_ratio: 2.0,
        norm_eps: 1e-6,
    }
}

/// Two blocks for images of 32 pixels: a map of 4 tokens after the class token, with a row of the
/// table for each.
pub fn tiny_vit() -> VitConfig {
    VitConfig {
        img_size: 32,
        patch_size: 8,
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        mlp_ratio: 1.5,
        norm_eps: 1e-6,
        register_tokens: 0,
        distillation_token: false,
        layer_scale: false,
        position_table: PositionTable::ClassAndPatches,
        position_resize: PositionResize::Timm,
        patch_embedding: PatchEmbedding::Linear,
        qkv_bias: QkvBias::All,
        mlp: MlpKind::Gelu,
        mlp_norm: MlpNorm::LayerNorm,
    }
}

/// Three stages for images of 32 pixels: maps of 8, 4 and 2 tokens, attended to as maps of 2.
pub fn tiny_pvt() -> PvtConfig {
    PvtConfig {
        img_size: 32,
        patch_size: 4,
        embed_dims: vec![4, 6, 8],
        depths: vec![1, 2, 1],
        num_heads: vec![1, 2, 2],
        mlp_ratios: vec![2.0, 1.5, 1.0],
        sr_ratios: vec![4, 2, 1],
        norm_eps: 1e-6,
    }
}

/// Two stages of one and two blocks for images of 32 pixels: maps of 8 and 4 tokens.
pub fn tiny_resnet() -> ResNetConfig {
    ResNetConfig {
        img_size: 32,
        block: BlockKind::Bottleneck,
        stem_width: 6,
        widths: vec![3, 4],
        layers: vec![1, 2],
        selective_kernels: false,
        norm_eps: 1e-5,
    }
}

/// Two stages of one block each, for images of 32 pixels: maps of 8 tokens, which windows of 3 do not
/// divide, and of 4.
pub fn tiny_cvt() -> CvtConfig {
    CvtConfig {
        img_size: 32,
        embed_dims: vec![8, 12],
        depths: vec![1, 1],
        num_heads: vec![2, 3],
        patch_sizes: vec![7, 3],
        patch_strides: vec![4, 2],
        patch_paddings: vec![2, 1],
        window_sizes: vec![3, 4],
        mlp_ratios: vec![2.0, 1.5],
        res_stem: false,
        norm_eps: 1e-5,
    }
}

/// Three stages of one block each for images of 32 pixels: maps of 16 tokens in windows of 3, and of 8
/// tokens twice, after a global token but for the last.
pub fn tiny_vil() -> VilConfig {
    let stages = "l1,h2,d8,n1,s1,g1,p2,f3,a0_l2,h2,d8,n1,s0,g1,p2,a0_l3,h2,d8,n1,g0,p1,a0";
    VilConfig {
        img_size: 32,
        stages: stages.parse().expect("valid stages"),
        mode: 0,
        fixed_neighbor: false,
        exact: 0,
        bias_resize: BiasResize::Pairs,
        norm_eps: 1e-6,
    }
}

/// Three blocks for images of 8 pixels: a map of 4 x 4 colors, features after the second block.
pub fn tiny_igpt() -> IgptConfig {
    IgptConfig {
        img_size: 8,
        patch_size: 2,
        colors: 7,
        variant: Variant::Autoregressive,
        embed_dim: 8,
        depth: 3,
        num_heads: 2,
        feature_block: 2,
        norm_eps: 1e-5,
    }
}

/// An untrained backbone of this shape. `resize` is the length of an image's shorter side before
/// the center crop of the shape's size.
pub fn untrained(shape: &SwinConfig, seed: u64, resize: u32) -> PretrainedBackbone {
    let config = BackboneConfig::Swin(shape.clone());
    let (network, specs) = config.build(0.0);
    let params = Params::init(&specs, seed, &Device::Cpu);
    let preprocess = Preprocess::new(shape.img_size as u32, resize, &Default::default());
    PretrainedBackbone { config, network, params, preprocess, source: SourceFile::default() }
}
