//! Image GPTs against the definition in plain loops, and what a position can tell of.

use esvit_nn::backbone::igpt::{self, IgptConfig, Variant};
use esvit_nn::backbone::{AttentionLayout, Input, TokenMask};
use esvit_testing::tiny_igpt;

use super::*;

fn config(variant: Variant) -> IgptConfig {
    IgptConfig { variant, norm_eps: 1e-2, ..tiny_igpt() }
}

fn network(config: IgptConfig) -> (Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Igpt(config);
    config.validate().unwrap();
    let (backbone, list) = config.build(DROP_PATH);
    (backbone, fill(&list, 0))
}

const VARIANTS: [Variant; 2] = [Variant::Autoregressive, Variant::Bert];

fn wide(values: &Tensor) -> Vec<f64> {
    values.to_vec::<f32>().into_iter().map(f64::from).collect()
}

fn normed(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, weight)| x / (mean + eps).sqrt() * weight).collect()
}

/// `weight x`, for `weight [out, in]`.
fn times(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn add(to: &mut [f64], values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

/// The tokens of an image `[3, 8, 8]` of patches of 2 pixels, by the definition.
fn colors(pixels: &[f64], palette: &[f64]) -> Vec<usize> {
    let token = |at: usize| {
        let mean: Vec<f64> = (0..3)
            .map(|channel| {
                let place = |i: usize| (2 * (at / 4) + i / 2) * 8 + 2 * (at % 4) + i % 2;
                (0..4).map(|i| pixels[channel * 64 + place(i)]).sum::<f64>() / 4.0
            })
            .collect();
        let distances = palette
            .chunks_exact(3)
            .map(|color| -> f64 { color.iter().zip(&mean).map(|(a, b)| (a - b).powi(2)).sum() });
        distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
    };
    (0..16).map(token).collect()
}

/// The view feature and the region features of an image, by the definition; `hidden` tokens have no embedding.
fn defined(
    config: &IgptConfig,
    params: &Params,
    pixels: &[f64],
    hidden: &[usize],
) -> [Vec<f64>; 2] {
    let value = |name: &str| wide(&Named(params).vector(name));
    let (width, heads) = (config.embed_dim, config.num_heads);
    let depth = width / heads;
    let table = value("wte.weight");
    let tokens = colors(pixels, &value("palette"));
    let embedded = |at: usize| match hidden.contains(&at) {
        true => vec![0.0; width],
        false => table[tokens[at] * width..][..width].to_vec(),
    };
    let is_causal = config.variant == Variant::Autoregressive;
    let mut rows: Vec<Vec<f64>> = (0..16)
        .map(|at| match (is_causal, at) {
            (true, 0) => value("sos"),
            (true, _) => embedded(at - 1),
            (false, _) => embedded(at),
        })
        .collect();
    for (row, position) in rows.iter_mut().zip(value("wpe.weight").chunks_exact(width)) {
        add(row, position);
    }
    let mut view = vec![0.0; width];
    for block in 0..=config.depth {
        let name = |part: &str| format!("h.{block}.{part}.weight");
        let first = if block < config.depth { value(&name("ln_1")) } else { value("ln_f.weight") };
        let inputs: Vec<Vec<f64>> =
            rows.iter().map(|row| normed(row, &first, config.norm_eps)).collect();
        if block == config.feature_block {
            inputs.iter().for_each(|row| add(&mut view, row));
            view.iter_mut().for_each(|value| *value /= 16.0);
        }
        if block == config.depth {
            return [view, inputs.concat()];
        }
        let qkv: Vec<Vec<f64>> =
            inputs.iter().map(|row| times(&value(&name("attn.c_attn")), row)).collect();
        for (at, row) in rows.iter_mut().enumerate() {
            let mut context = vec![0.0; width];
            for head in 0..heads {
                let part =
                    |of: usize, which: usize| &qkv[of][which * width + head * depth..][..depth];
                let seen = if is_causal { at + 1 } else { 16 };
                let exps = (0..seen).map(|key| {
                    let product: f64 =
                        part(at, 0).iter().zip(part(key, 1)).map(|(q, k)| q * k).sum();
                    (product / (depth as f64).sqrt()).exp()
                });
                let exps: Vec<f64> = exps.collect();
                let sum: f64 = exps.iter().sum();
                for (key, exp) in exps.iter().enumerate() {
                    for (i, v) in part(key, 2).iter().enumerate() {
                        context[head * depth + i] += exp / sum * v;
                    }
                }
            }
            add(row, &times(&value(&name("attn.c_proj")), &context));
        }
        for row in &mut rows {
            let input = normed(row, &value(&name("ln_2")), config.norm_eps);
            let hidden = times(&value(&name("mlp.c_fc")), &input);
            let hidden: Vec<f64> = hidden.iter().map(|x| x / (1.0 + (-1.702 * x).exp())).collect();
            add(row, &times(&value(&name("mlp.c_proj")), &hidden));
        }
    }
    unreachable!("the last block returns")
}

#[test]
fn by_the_definition() {
    for variant in VARIANTS {
        for feature_block in [1, 2, 3] {
            let config = IgptConfig { feature_block, ..config(variant) };
            let (igpt, params) = network(config.clone());
            let input = images(1000, [2, 3, 8, 8]);
            let features = igpt.forward(&params, input.clone(), &ForwardCtx::eval());
            assert_eq!(features.map, [4, 4]);
            let pixels = wide(&input);
            let images = pixels.chunks_exact(192);
            let expected = images.map(|image| defined(&config, &params, image, &[]));
            let (views, regions): (Vec<_>, Vec<_>) = expected.map(|[v, r]| (v, r)).unzip();
            let what = format!("{variant:?}, features of block {feature_block}");
            assert_close(&what, &features.view.to_vec::<f32>(), &views.concat(), 3e-5);
            assert_close(&what, &features.region.to_vec::<f32>(), &regions.concat(), 3e-5);
        }
    }
}

/// An embedding of zero stands for a hidden color.
#[test]
fn hidden_colors() {
    for variant in VARIANTS {
        let config = config(variant);
        let (igpt, params) = network(config.clone());
        let input = images(1000, [1, 3, 8, 8]);
        let hidden = [0, 5, 6, 15];
        let rows = (0..16).map(|token| f32::from(u8::from(hidden.contains(&token)))).collect();
        let mask = TokenMask {
            rows: Tensor::from_vec(rows, &Device::Cpu),
            token: Tensor::zeros([config.embed_dim], &Device::Cpu),
        };
        let with = Input { images: vec![input.clone()], mask: Some(&mask) };
        let found = igpt.features(&params, with, &ForwardCtx::eval());
        let [view, region] = defined(&config, &params, &wide(&input), &hidden);
        assert_close("view", &found.view.to_vec::<f32>(), &view, 3e-5);
        assert_close("region", &found.region.to_vec::<f32>(), &region, 3e-5);
    }
}

/// Where the next color is predicted, a position tells of the colors before it and of no other; else of all.
#[test]
fn what_positions_tell_of() {
    for variant in VARIANTS {
        let (igpt, params) = network(config(variant));
        let rows = |pixels: &Tensor| {
            let features = igpt.forward(&params, pixels.clone(), &ForwardCtx::eval());
            features.region.to_vec::<f32>()
        };
        let input = images(1000, [1, 3, 8, 8]);
        let before = rows(&input);
        let width = before.len() / 16;
        // Token 6 is another color.
        let mut pixels = input.to_vec::<f32>();
        for channel in 0..3 {
            for i in 0..4 {
                pixels[channel * 64 + (2 + i / 2) * 8 + 4 + i % 2] *= -3.0;
            }
        }
        let after = rows(&Tensor::new(pixels, [1, 3, 8, 8], &Device::Cpu));
        let changed: Vec<usize> = (0..16)
            .filter(|at| before[at * width..][..width] != after[at * width..][..width])
            .collect();
        let expected = match variant {
            Variant::Autoregressive => 7..16,
            Variant::Bert => 0..16,
        };
        assert_eq!(changed, expected.collect::<Vec<_>>(), "{variant:?}");
    }
}

/// Features of the blocks up to the one in the middle; later blocks are not run for them.
#[test]
fn features_of_the_last_blocks() {
    let (igpt, params) = network(config(Variant::Autoregressive));
    let (input, ctx) = (images(1000, [2, 3, 8, 8]), ForwardCtx::eval());
    let width = igpt.output_width();
    let [one, two] = [1, 2].map(|n| igpt.last_blocks(&params, input.clone(), n, &ctx));
    assert_eq!((one.dims(), two.dims()), ([2, width], [2, 2 * width]));
    let view = igpt.forward(&params, input.clone(), &ctx).view.to_vec::<f32>();
    assert_eq!(one.to_vec::<f32>(), view);
    assert_eq!(two.clone().narrow(1, width, width).to_vec::<f32>(), view);
    let first = IgptConfig { feature_block: 1, ..config(Variant::Autoregressive) };
    let of_first = network(first).0.forward(&params, input, &ctx).view;
    assert_eq!(two.narrow(1, 0, width).to_vec::<f32>(), of_first.to_vec::<f32>());
}

/// Images of other sizes, with pixels beyond the last patch, in one pass and alone; positions are resized.
#[test]
fn several_sizes() {
    for variant in VARIANTS {
        let (igpt, params) = network(config(variant));
        let ctx = ForwardCtx::eval();
        let inputs = [images(1, [2, 3, 8, 8]), images(2, [1, 3, 5, 13]), images(3, [1, 3, 2, 3])];
        let together = igpt.features(&params, inputs.to_vec(), &ctx);
        let maps: Vec<[usize; 2]> = together.segments.iter().map(|segment| segment.map).collect();
        assert_eq!(maps, [[4, 4], [2, 6], [1, 1]]);
        let alone = inputs.map(|input| igpt.forward(&params, input, &ctx));
        let view: Vec<f32> = alone.iter().flat_map(|part| part.view.to_vec::<f32>()).collect();
        let region: Vec<f32> = alone.iter().flat_map(|part| part.region.to_vec::<f32>()).collect();
        assert_alike("view", &together.view.to_vec::<f32>(), &view, 1e-5);
        assert_alike("region", &together.region.to_vec::<f32>(), &region, 1e-5);
        assert!(region.iter().all(|value| value.is_finite()));
    }
}

/// Rows of the weights add up to 1, by what is seen.
#[test]
fn attention_of_blocks() {
    for variant in VARIANTS {
        let (igpt, params) = network(config(variant));
        let input = images(1000, [2, 3, 8, 8]);
        let map = igpt.block_attention(&params, input, 1).unwrap().unwrap();
        let weights = map.weights();
        assert_eq!(weights.dims(), [2, 2, 16, 16]);
        assert!(matches!(map.layout, AttentionLayout::Whole { map: [4, 4], prefix: 0 }));
        let weights = weights.to_vec::<f32>();
        for (row, weights) in weights.chunks_exact(16).enumerate() {
            let seen = if variant == Variant::Bert { 16 } else { row % 16 + 1 };
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(weights[..seen].iter().all(|&weight| weight > 0.0));
            assert!(weights[seen..].iter().all(|&weight| weight == 0.0));
        }
    }
}

/// As the official code initializes; the palette does not learn.
#[test]
fn parameters() {
    let config = config(Variant::Autoregressive);
    let (width, depth) = (config.embed_dim as f64, config.depth as f64);
    let (igpt, list) = BackboneConfig::Igpt(config).build(0.0);
    assert_eq!(igpt.family(), "iGPT");
    for spec in list.iter() {
        let name = spec.name.as_str();
        let expected = match name {
            "palette" => Init::Uniform(1.0),
            "wpe.weight" => Init::TruncatedNormal(0.01),
            _ if name.contains("ln_") => Init::Ones,
            _ if name.contains("c_attn") => Init::TruncatedNormal(width.powf(-0.5)),
            _ if name.contains("attn.c_proj") => Init::TruncatedNormal((width * depth).powf(-0.5)),
            _ => Init::TruncatedNormal(0.02),
        };
        assert_eq!(spec.init, expected, "{name}");
        let role = if name == "palette" { Role::Frozen } else { Role::Trained };
        assert_eq!(spec.role, role, "{name}");
    }
    let names: Vec<&str> = list.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names[..5], ["palette", "wte.weight", "wpe.weight", "sos", "h.0.ln_1.weight"]);
    let (_, bert) = BackboneConfig::Igpt(self::config(Variant::Bert)).build(0.0);
    assert_eq!(bert.len(), list.len() - 1);
}

/// The palette of a network is a parameter; what tokens stand for is its color.
#[test]
fn palettes() {
    let (_, mut params) = network(config(Variant::Bert));
    let colors = hashed(5, 3 * tiny_igpt().colors);
    igpt::set_palette(&mut params, &colors);
    assert_eq!(igpt::palette(&params), Some(colors.clone()));
    let (_, others) = swin();
    assert_eq!(igpt::palette(&others), None);
    // Patches of 2 pixels of the colors 3 and 1.
    let pixels = |channel: usize| [3, 1].map(|color: usize| colors[3 * color + channel]);
    let image = (0..3).flat_map(|channel| {
        let [left, right] = pixels(channel);
        [left, left, right, right].repeat(2)
    });
    let image = Tensor::new(image.collect(), [1, 3, 2, 4], &Device::Cpu);
    assert_eq!(igpt::tokens(image, 2, &colors), [3, 1]);
    let bytes = [-1.0, 1.0, 0.0, -0.5, 2.0, -3.0].map(igpt::to_byte);
    assert_eq!(bytes, [0, 255, 128, 64, 255, 0]);
}
