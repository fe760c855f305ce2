//! Exported graphs compute what the network computes.

#![allow(clippy::unwrap_used)]

#[path = "onnx/interpreter.rs"]
mod interpreter;
#[path = "onnx/plain.rs"]
mod plain;

use std::sync::Arc;

use esvit_nn::backbone::cvt::CvtConfig;
use esvit_nn::backbone::igpt::{IgptConfig, Variant};
use esvit_nn::backbone::resnet::ResNetConfig;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::backbone::vil::{BiasResize, VilConfig};
use esvit_nn::backbone::vit::{
    MlpKind, MlpNorm, PatchEmbedding, PositionTable, QkvBias, VitConfig,
};
use esvit_nn::params::{ParamList, Role};
use esvit_nn::{Backbone, BackboneConfig, Device, ForwardCtx, Params, Tensor, onnx};
use esvit_testing::{
    assert_alike, fill, hashed_tensor, hashed_times, tiny_cvt, tiny_igpt, tiny_pvt, tiny_resnet,
    tiny_vit,
};
use esvit_weights::Float;
use interpreter::{Model, Value};

/// Shifted and padded windows, odd maps in patch merging, pixels cut off, and norms whose `eps` is
/// seen in the result.
fn network() -> (BackboneConfig, Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Swin(SwinConfig {
        img_size: 16,
        patch_size: 2,
        embed_dim: 6,
        depths: vec![2, 1, 1],
        num_heads: vec![1, 2, 3],
        window_size: 4,
        mlp_ratio: 1.5,
        norm_eps: 0.01,
    });
    config.validate().unwrap();
    let (backbone, list) = config.build(0.0);
    let params = fill(&list, 0);
    (config, backbone, params)
}

fn written(backbone: &dyn Backbone, params: &Params, size: [usize; 2], float: Float) -> Model {
    let mut bytes = Vec::new();
    let facts = [("mean", "0.5"), ("std", "0.25")];
    onnx::write(&mut bytes, backbone, params, size, float, &facts).unwrap();
    Model::read(&bytes)
}

#[test]
fn the_graph_computes_the_network() {
    let (_, backbone, params) = network();
    let sizes = [([11, 14], [2, 2]), ([16, 16], [2, 2]), ([8, 30], [1, 4])];
    graphs_compute(&*backbone, &params, 24, &sizes);
}

/// Class, distillation and register tokens, LayerScale, and positions of other maps; SwiGLU, rotary
/// positions, biases of queries and values, batch normalization, and the stem.
#[test]
fn the_graph_computes_a_vision_transformer() {
    let config = |position_table| VitConfig {
        img_size: 16,
        patch_size: 4,
        embed_dim: 8,
        norm_eps: 0.01,
        register_tokens: 3,
        distillation_token: true,
        layer_scale: true,
        position_table,
        ..tiny_vit()
    };
    let bias = QkvBias::QueriesAndValues;
    let norm = MlpNorm::BatchNorm;
    let stem = VitConfig {
        img_size: 32,
        patch_size: 16,
        patch_embedding: PatchEmbedding::ConvStem,
        ..config(PositionTable::Patches)
    };
    for config in [
        config(PositionTable::ClassAndPatches),
        config(PositionTable::Patches),
        VitConfig { mlp: MlpKind::SwiGlu, ..config(PositionTable::Patches) },
        VitConfig { qkv_bias: bias, ..config(PositionTable::Rotary) },
        VitConfig { qkv_bias: QkvBias::None, ..config(PositionTable::Rotary) },
        VitConfig { mlp_norm: norm, ..config(PositionTable::SineCosine) },
        stem,
    ] {
        let patch = config.patch_size;
        let (backbone, list) = BackboneConfig::Vit(config).build(0.0);
        let params = fill_all(&list);
        let sizes = [([4 * patch; 2], [4, 4]), ([9 * patch / 4, 22 * patch / 4], [2, 5])];
        graphs_compute(&*backbone, &params, 8, &sizes);
    }
}

/// Parameters with running statistics that are not all alike.
fn fill_all(list: &Arc<ParamList>) -> Params {
    let mut params = fill(list, 0);
    for (index, spec) in list.iter().enumerate() {
        if spec.role == Role::Buffer {
            let value = params.value(index) + hashed_tensor(5, [spec.len()]) * 0.3;
            params.set(index, &value.to_vec());
        }
    }
    params
}

/// Overlapping patches, padded windows, the stem, and running statistics that are not all alike.
#[test]
fn the_graph_computes_a_convolutional_transformer() {
    for res_stem in [false, true] {
        let config = BackboneConfig::Cvt(CvtConfig { norm_eps: 0.01, res_stem, ..tiny_cvt() });
        let (backbone, list) = config.build(0.0);
        let params = fill_all(&list);
        let sizes = [([22, 31], [3, 4]), ([32, 32], [4, 4]), ([13, 9], [2, 1])];
        graphs_compute(&*backbone, &params, 12, &sizes[..if res_stem { 2 } else { 3 }]);
    }
}

/// Windows with their neighbors, also drawn, cyclic and sliding ones; full attention with biases of other maps;
/// global tokens in the last stage and none; absolute positions.
#[test]
fn the_graph_computes_a_vision_longformer() {
    let relative = "l1,h2,d8,n1,s1,g2,p2,f3,a0_l2,h2,d12,n1,s0,g1,p2,a0_l3,h2,d8,n1,g0,p2,a0";
    let absolute = "l1,h2,d8,n1,s1,g1,p2,f2,a1_l2,h2,d12,n1,s1,g0,p2,f2,a0_l3,h2,d8,n1,g2,p2,a1";
    for (stages, mode, exact, bias_resize) in [
        (relative, 0, 0, BiasResize::Pairs),
        (relative, 0, -1, BiasResize::Table),
        (absolute, 0, 1, BiasResize::Pairs),
        (absolute, 3, 0, BiasResize::Pairs),
    ] {
        let config = BackboneConfig::Vil(VilConfig {
            img_size: 16,
            stages: stages.parse().unwrap(),
            mode,
            fixed_neighbor: true,
            exact,
            bias_resize,
            norm_eps: 0.01,
        });
        config.validate().unwrap();
        let (backbone, list) = config.build(0.0);
        let params = fill(&list, 0);
        let sizes = [([16, 16], [2, 2]), ([9, 25], [1, 3])];
        graphs_compute(&*backbone, &params, 8, &sizes);
    }
}

/// Nearest colors, shifted sequences and causal attention; positions of other maps.
#[test]
fn the_graph_computes_an_image_gpt() {
    for (variant, patch_size, img_size) in
        [(Variant::Autoregressive, 2, 8), (Variant::Bert, 2, 8), (Variant::Autoregressive, 1, 4)]
    {
        let (depth, feature_block, norm_eps) = (2, 1, 0.01);
        let shape = IgptConfig { depth, feature_block, norm_eps, ..tiny_igpt() };
        let config = IgptConfig { variant, patch_size, img_size, ..shape };
        let (backbone, list) = BackboneConfig::Igpt(config).build(0.0);
        let params = fill(&list, 0);
        let sizes = [([img_size; 2], [4, 4]), ([3 * patch_size, 5 * patch_size], [3, 5])];
        graphs_compute(&*backbone, &params, 8, &sizes);
    }
}

/// That the graphs for images of some sizes, with maps of others, compute the network.
fn graphs_compute(
    backbone: &dyn Backbone,
    params: &Params,
    features: usize,
    sizes: &[([usize; 2], [usize; 2])],
) {
    for &(size, map) in sizes {
        let [height, width] = size;
        let pixels = hashed_times(1000, 2 * 3 * height * width, 3f64.sqrt());
        let images = Tensor::new(pixels.clone(), [2, 3, height, width], &Device::Cpu);
        let expected = backbone.forward(params, images, &ForwardCtx::eval());
        assert_eq!(expected.map, map);
        for (float, tolerance) in [(Float::F32, 2e-6), (Float::Bf16, 0.05)] {
            let model = written(backbone, params, size, float);
            let input = pixels.iter().map(|&value| value.into()).collect();
            let values = model.run("images", Value::new(&[2, 3, height, width], input));
            let shape = [2, map[0] * map[1], features];
            for (name, shape, expected) in [
                ("view", &[2, features][..], expected.view.to_vec::<f32>()),
                ("region", &shape[..], expected.region.to_vec::<f32>()),
            ] {
                assert_eq!(values[name].shape, shape, "{name}");
                let found: Vec<f32> = values[name].data.iter().map(|&value| value as f32).collect();
                assert_alike(
                    &format!("{name} of {size:?}, {float:?}"),
                    &found,
                    &expected,
                    tolerance,
                );
            }
        }
    }
}

/// Reduced maps, resized tables and a class token; convolutions, pooling and running statistics; both
/// for one image and for two, which the graph has to tell apart from each other.
#[test]
fn the_graph_computes_other_families() {
    let selective = ResNetConfig { selective_kernels: true, ..tiny_resnet() };
    for (config, size, map) in [
        (BackboneConfig::Pvt(tiny_pvt()), [32, 32], [2, 2]),
        (BackboneConfig::Pvt(tiny_pvt()), [17, 50], [1, 3]),
        (BackboneConfig::ResNet(tiny_resnet()), [19, 32], [3, 4]),
        (BackboneConfig::ResNet(tiny_resnet()), [8, 8], [1, 1]),
        (BackboneConfig::ResNet(selective), [19, 27], [3, 4]),
    ] {
        let [height, width] = size;
        let (backbone, list) = config.build(0.0);
        let params = fill(&list, 0);
        for batch in [1, 2] {
            let pixels = hashed_times(1000, batch * 3 * height * width, 3f64.sqrt());
            let shape = [batch, 3, height, width];
            let images = Tensor::new(pixels.clone(), shape, &Device::Cpu);
            let expected = backbone.forward(&params, images, &ForwardCtx::eval());
            assert_eq!(expected.map, map);
            let model = written(&*backbone, &params, size, Float::F32);
            let input = pixels.iter().map(|&value| value.into()).collect();
            let values = model.run("images", Value::new(&shape, input));
            for (name, expected) in [("view", expected.view), ("region", expected.region)] {
                assert_eq!(values[name].shape, *expected.shape(), "{name}");
                let found: Vec<f32> = values[name].data.iter().map(|&value| value as f32).collect();
                let what = format!("{name} of {size:?}, {config:?}");
                assert_alike(&what, &found, &expected.to_vec::<f32>(), 1e-5);
            }
        }
    }
}

#[test]
fn the_model_says_what_it_takes_and_gives() {
    let (_, backbone, params) = network();
    let model = written(&*backbone, &params, [11, 14], Float::Bf16);
    let name = |name: &str| name.to_owned();
    assert_eq!(model.facts, [(name("mean"), name("0.5")), (name("std"), name("0.25"))]);
    assert_eq!(model.operator_set, [17]);
    assert_eq!(model.inputs, [(name("images"), 1, vec![-1, 3, 11, 14])]);
    let outputs = [(name("view"), 1, vec![-1, 24]), (name("region"), 1, vec![-1, 4, 24])];
    assert_eq!(model.outputs, outputs);
    // Matrices in 16 bits, all else in 32; every parameter under its name.
    for (spec, _) in params.iter() {
        let is_matrix = spec.shape.len() >= 2 && !spec.name.ends_with("bias_table");
        let stored = if is_matrix { format!("{}.stored", spec.name) } else { spec.name.clone() };
        assert_eq!(model.types[&stored], if is_matrix { 16 } else { 1 }, "{stored}");
    }
    let model = written(&*backbone, &params, [11, 14], Float::F32);
    assert!(params.iter().all(|(spec, _)| model.types[&spec.name] == 1));
}
