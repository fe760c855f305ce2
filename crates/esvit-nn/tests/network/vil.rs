//! Vision longformers: windows and global tokens, modes, sizes in one pass, layers written out.

use std::ops::ControlFlow;

use esvit_nn::backbone::vil::{BiasResize, VilConfig};
use esvit_nn::backbone::{AttentionLayout, Input, TokenMaps, TokenMask};

use super::*;

/// Every form of a stage: windows with relative and with absolute positions, full attention with a global
/// token and without; norms whose `eps` is seen in the result. Maps of 16, 8, 4 and 2 tokens a side.
fn config() -> VilConfig {
    VilConfig {
        img_size: 32,
        stages: "l1,h2,d8,n2,s1,g2,p2,f3,a0_l2,h2,d12,n1,s1,g1,p2,f3,a1_\
                 l3,h3,d12,n2,s0,g1,p2,a0_l4,h2,d8,n1,g0,p2,a0"
            .parse()
            .unwrap(),
        mode: 0,
        fixed_neighbor: false,
        exact: 0,
        bias_resize: BiasResize::Pairs,
        norm_eps: 1e-2,
    }
}

fn vil(config: VilConfig) -> (Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Vil(config);
    config.validate().unwrap();
    let (vil, list) = config.build(DROP_PATH);
    (vil, fill(&list, 0))
}

/// The maps that some blocks give, by index.
fn maps(
    vil: &dyn Backbone,
    params: &Params,
    images: Tensor,
    ctx: &ForwardCtx,
    blocks: usize,
) -> Vec<TokenMaps> {
    let mut found = Vec::new();
    vil.run(params, vec![images].into(), ctx, &mut |block| {
        found.push(block.maps.clone());
        if found.len() == blocks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

#[test]
fn sizes_in_one_pass_are_as_each_alone() {
    for bias_resize in [BiasResize::Pairs, BiasResize::Table] {
        let (vil, params) = vil(VilConfig { bias_resize, ..config() });
        let inputs = [[2, 3, 32, 32], [3, 3, 16, 37], [1, 3, 48, 32]];
        let inputs: Vec<Tensor> = (1000..).zip(inputs).map(|(i, shape)| images(i, shape)).collect();
        let together = vil.features(&params, inputs.clone(), &ForwardCtx::eval());
        let (mut view, mut region) = (Vec::new(), Vec::new());
        for input in inputs {
            let alone = vil.forward(&params, input, &ForwardCtx::eval());
            view.extend(alone.view.to_vec::<f32>());
            region.extend(alone.region.to_vec::<f32>());
        }
        assert_alike("view", &together.view.to_vec::<f32>(), &view, 1e-5);
        assert_alike("region", &together.region.to_vec::<f32>(), &region, 1e-5);
        let maps: Vec<[usize; 2]> = together.segments.iter().map(|segment| segment.map).collect();
        assert_eq!(maps, [[2, 2], [1, 2], [3, 2]]);
    }
}

/// Side of the first stage's windows, and size of a map that they do not fill.
const WINDOW: usize = 3;
const MAP: [usize; 2] = [8, 11];

/// The first block by plain attention over all tokens of an image, where a token of the map that does
/// not see another one by `sees` is masked; both are rows and columns.
fn masked_block(
    params: &Params,
    images: Tensor,
    sees: &dyn Fn([i32; 2], [i32; 2]) -> bool,
) -> Tensor {
    let named = Named(params);
    let none = Activation::None;
    let patches = composed::patchify(images, 2);
    let patches = composed::linear(patches, named.linear("layer1.0.proj", 12), none);
    let patches = composed::layer_norm(patches, named.norm("layer1.0.norm_embed"));
    let rows = Tensor::cat(vec![named.matrix("layer1.0.cls_token", 8), patches], 0);
    let tokens = 2 + MAP[0] * MAP[1];

    let normed = composed::layer_norm(rows.clone(), named.norm("layer1.1.norm"));
    let layer = |x: Tensor, name: &str| {
        composed::linear(x, named.linear(&format!("layer1.1.attn.{name}"), 8), none)
    };
    let heads = |x: Tensor| x.reshape([tokens, 2, 4]).permute(&[1, 0, 2]);
    let queries = heads(layer(normed.clone(), "query") * 0.5);
    let kv = layer(normed, "kv");
    let [keys, values] = [0, 8].map(|first| heads(kv.clone().narrow(1, first, 8)));

    let values_of = |name: &str| named.vector(&format!("layer1.1.attn.{name}")).to_vec::<f32>();
    let table = values_of("local_relative_position_bias_table");
    let between = values_of("g2l_relative_position_bias");
    let among = values_of("g2g_relative_position_bias");
    let place = |token: usize| {
        let cell = token - 2;
        [cell / MAP[1], cell % MAP[1]].map(|place| place as i32)
    };
    let mut bias = Vec::new();
    for head in 0..2 {
        for query in 0..tokens {
            bias.extend((0..tokens).map(|key| match (query < 2, key < 2) {
                (true, true) => among[(head * 2 + query) * 2 + key],
                (true, false) => between[head * 2 + query],
                (false, true) => between[(2 + head) * 2 + key],
                (false, false) => {
                    let (query, key) = (place(query), place(key));
                    let [down, across] = [0, 1].map(|axis| query[axis] - key[axis] + 5);
                    if sees(query, key) {
                        table[(down * 11 + across) as usize * 2 + head]
                    } else {
                        f32::NEG_INFINITY
                    }
                }
            }));
        }
    }
    let bias = Tensor::new(bias, [2, tokens, tokens], &Device::Cpu);
    let weights = (queries.matmul(keys.transpose()) + bias).softmax(2);
    let context = weights.matmul(values).permute(&[1, 0, 2]).reshape([tokens, 8]);
    let rows = rows + layer(context, "proj");
    let segments = [Segment { prefix: 2, ..Segment::new(1, MAP) }];
    let layers = [("fc1", 8), ("fc2", 32)];
    let layers = layers.map(|(name, n)| named.linear(&format!("layer1.2.mlp.{name}"), n));
    composed::mlp_branch(
        rows,
        &segments,
        named.norm("layer1.2.norm"),
        layers,
        Activation::Gelu,
        None,
    )
}

/// Attention of windows is that of all tokens with a mask, in every mode.
#[test]
fn windows_are_a_mask() {
    let window = |place: [i32; 2]| place.map(|place| place / WINDOW as i32);
    let step = |query: [i32; 2], key: [i32; 2]| {
        let (query, key) = (window(query), window(key));
        [key[0] - query[0], key[1] - query[1]]
    };
    let is_near = |a: i32, b: i32| a.abs_diff(b) <= WINDOW as u32;
    type Sees<'a> = &'a dyn Fn([i32; 2], [i32; 2]) -> bool;
    let cases: [(i32, i32, Sees<'_>); 6] = [
        (0, 0, &|query, key| step(query, key).iter().all(|step| step.abs() <= 1)),
        (-1, 0, &|query, key| step(query, key) == [0, 0]),
        (1, 0, &|query, key| matches!(step(query, key), [0, 0] | [-1, -1])),
        (5, 0, &|query, key| matches!(step(query, key), [0, 0 | 1])),
        (7, 0, &|query, key| matches!(step(query, key), [0 | 1, 0])),
        (0, 1, &|query, key| is_near(query[0], key[0]) && is_near(query[1], key[1])),
    ];
    for (mode, exact, sees) in cases {
        let (vil, params) = vil(VilConfig { mode, exact, fixed_neighbor: true, ..config() });
        let images = images(1000, [1, 3, 2 * MAP[0], 2 * MAP[1] + 1]);
        let found = maps(&*vil, &params, images.clone(), &ForwardCtx::eval(), 1).remove(0);
        let expected = masked_block(&params, whole_patches(images), sees).to_vec::<f32>();
        let what = format!("mode {mode}, exact {exact}");
        assert_alike(&what, &found.rows.to_vec::<f32>(), &expected, 1e-5);
        assert_eq!(found.segments, [Segment { prefix: 2, ..Segment::new(1, MAP) }]);
    }
}

/// Without the last column, which is no whole patch.
fn whole_patches(images: Tensor) -> Tensor {
    images.narrow(3, 0, 2 * MAP[1])
}

/// With padding at the last row and column: the first window sees zeros beyond the border, where the
/// last ones are.
#[test]
fn cyclic_windows_see_the_opposite_border() {
    let images = || images(1000, [1, 3, 16, 22]);
    let rows = |exact: i32| {
        let (vil, params) = vil(VilConfig { exact, ..config() });
        let found = maps(&*vil, &params, images(), &ForwardCtx::eval(), 1).remove(0);
        found.rows.to_vec::<f32>()
    };
    let (closed, cyclic) = (rows(0), rows(-1));
    // Token 4, 5 is in a window whose neighbors are all within the border.
    let token = |rows: &[f32], row: usize, column: usize| {
        rows[(2 + row * MAP[1] + column) * 8..][..8].to_vec()
    };
    assert_eq!(token(&closed, 4, 5), token(&cyclic, 4, 5));
    for (row, column) in [(0, 0), (0, 5), (4, 0), (7, 10)] {
        assert_ne!(token(&closed, row, column), token(&cyclic, row, column), "{row} {column}");
    }
}

/// In training the student's layers draw a neighbor by step and block; teacher and evaluation see all.
#[test]
fn layers_draw_a_neighbor() {
    let with = |mode, fixed_neighbor| vil(VilConfig { mode, fixed_neighbor, ..config() });
    let images = || images(1000, [1, 3, 32, 32]);
    let first = |(vil, params): (Arc<dyn Backbone>, Params), ctx: ForwardCtx| {
        maps(&*vil, &params, images(), &ctx, 1).remove(0).rows.to_vec::<f32>()
    };
    let all = first(with(0, false), ForwardCtx::eval());
    for mode in [1, 8] {
        assert_eq!(first(with(mode, false), ForwardCtx::eval()), all);
        assert_eq!(first(with(mode, false), ForwardCtx::teacher()), all);
        let mut seen = Vec::new();
        for step in 5..8 {
            let student = || ForwardCtx::student(DropPathKey { step, ..KEY });
            let drawn = student().choice(0, 8).unwrap() as i32 + 1;
            let found = first(with(mode, false), student());
            assert_eq!(found, first(with(drawn, true), ForwardCtx::eval()), "{drawn}");
            seen.push(drawn);
        }
        assert_eq!(seen, [2, 3, 7]);
    }
    // The two blocks of a stage draw one each.
    let student = ForwardCtx::student(KEY);
    assert_eq!([0, 1, 2].map(|block| student.choice(block, 8)), [1, 1, 4].map(Some));
}

/// An image whose branches are both dropped passes a block as it is.
#[test]
fn branches_are_dropped_by_image() {
    const IMAGES: usize = 16;
    let (vil, params) = vil(config());
    let student = || ForwardCtx::student(KEY);
    let found = maps(&*vil, &params, images(1000, [IMAGES, 3, 16, 16]), &student(), 5);
    let [before, after] = [3, 4].map(|block: usize| found[block].rows.to_vec::<f32>());
    let row = before.len() / IMAGES;
    // Block 4 of six.
    let scales = [8, 9].map(|branch| student().drop_path(IMAGES, DROP_PATH * 0.8, branch).unwrap());
    let mut dropped = 0;
    for image in 0..IMAGES {
        let is_dropped = scales.iter().all(|scales| scales[image] == 0.0);
        let range = image * row..(image + 1) * row;
        assert_eq!(before[range.clone()] == after[range], is_dropped, "{image}");
        dropped += usize::from(is_dropped);
    }
    assert!((1..IMAGES).contains(&dropped), "{dropped}");
}

/// The probe's feature of a block: token 0 where the stage has global tokens, else the mean; under the final
/// norm in the last stage alone.
#[test]
fn features_of_the_last_blocks() {
    let (vil, params) = vil(config());
    let ctx = ForwardCtx::eval();
    let input = images(1000, [1, 3, 32, 48]);
    let blocks = maps(&*vil, &params, input.clone(), &ctx, 6);
    let mut expected = Vec::new();
    for (block, width) in [(2, 12), (3, 12), (4, 12)] {
        expected.extend(blocks[block].rows.to_vec::<f32>()[..width].to_vec());
    }
    let last = vil.normalize(&params, blocks[5].clone(), &ctx).means().to_vec::<f32>();
    expected.extend(&last);
    let found = vil.last_blocks(&params, input.clone(), 4, &ctx);
    assert_eq!(found.dims(), [1, 44]);
    assert_alike("last blocks", &found.to_vec::<f32>(), &expected, 1e-6);
    let features = vil.forward(&params, input.clone(), &ctx);
    assert_eq!((features.map, features.region.dims()), ([2, 3], [1, 6, 8]));
    assert_alike("view", &features.view.to_vec::<f32>(), &last, 1e-6);
    // An earlier stage's view is its token 0, its regions are without global ones.
    let stage = vil.stage_features(&params, input, 0, &ctx).unwrap();
    assert_eq!((stage.map, stage.region.dims()), ([16, 24], [1, 384, 8]));
    let rows = blocks[1].rows.to_vec::<f32>();
    assert_eq!(stage.view.to_vec::<f32>(), rows[..8]);
    assert_eq!(stage.region.to_vec::<f32>(), rows[16..]);
}

/// Rows of weights add up to one; sparse stages have those of windows, full ones those of the image.
#[test]
fn attention_of_every_block() {
    let (vil, params) = vil(config());
    let input = images(1000, [2, 3, 32, 48]);
    let mut seen = Vec::new();
    vil.attention(&params, input.clone(), 1..9, &mut |block, found| {
        let weights = found.weights();
        let [groups, heads, queries, keys] = weights.dims();
        assert_eq!([queries, keys], [found.layout.queries(), found.layout.keys()]);
        for row in weights.to_vec::<f32>().chunks(keys) {
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "{block}: {row:?}");
        }
        let kind = match found.layout {
            AttentionLayout::Neighbors { prefix, .. } => ("windows", prefix),
            AttentionLayout::Whole { prefix, .. } => ("whole", prefix),
            other => panic!("{other:?}"),
        };
        seen.push((block, kind, groups, heads));
    })
    .unwrap();
    // 16 x 24 and 8 x 12 tokens in windows of 3, of two images.
    let expected = [
        (1, ("windows", 2), 2 * 6 * 8, 2),
        (2, ("windows", 1), 2 * 3 * 4, 2),
        (3, ("whole", 1), 2, 3),
        (4, ("whole", 1), 2, 3),
        (5, ("whole", 0), 2, 2),
    ];
    assert_eq!(seen, expected);
    let mut seen = Vec::new();
    vil.attention(&params, input, 2..3, &mut |block, _| seen.push(block)).unwrap();
    assert_eq!(seen, [2]);
}

/// Biases are resized for other maps alone; as a table they stay those of relative positions.
#[test]
fn biases_of_other_maps() {
    let of = |bias_resize, side: usize| {
        let (vil, params) = vil(VilConfig { bias_resize, ..config() });
        vil.forward(&params, images(1000, [1, 3, side, side]), &ForwardCtx::eval()).view
    };
    for (side, is_same) in [(32, true), (48, false), (16, false)] {
        let [pairs, table] =
            [BiasResize::Pairs, BiasResize::Table].map(|kind| of(kind, side).to_vec::<f32>());
        assert_eq!(pairs == table, is_same, "{side}");
    }
}

/// Pixels of a masked patch are hidden from all tokens.
#[test]
fn masked_patches_are_not_seen() {
    let (vil, params) = vil(config());
    let rows = (0..64).map(|token| f32::from(u8::from(token == 3 * 8 + 5))).collect();
    let mask = TokenMask {
        rows: Tensor::from_vec(rows, &Device::Cpu),
        token: Tensor::from_vec(hashed(9, 8), &Device::Cpu),
    };
    let with_pixel = |y: usize, x: usize| {
        let mut pixels = images(1000, [1, 3, 16, 16]).to_vec::<f32>();
        pixels[y * 16 + x] += 1.0;
        let images = vec![Tensor::new(pixels, [1, 3, 16, 16], &Device::Cpu)];
        let input = Input { images, mask: Some(&mask) };
        vil.features(&params, input, &ForwardCtx::eval()).view.to_vec::<f32>()
    };
    assert_eq!(with_pixel(6, 10), with_pixel(7, 11));
    assert_ne!(with_pixel(6, 10), with_pixel(6, 9));
}

/// How every parameter starts, and what weight decay reaches, by its name.
#[test]
fn starts_of_all_parameters() {
    let (vil, _) = vil(config());
    assert_eq!(vil.family(), "ViL");
    let (_, list) = BackboneConfig::Vil(config()).build(0.0);
    for spec in list.iter() {
        let part = spec.name.rsplit('.').next().unwrap();
        let is_norm = spec.name.contains("norm");
        let inputs =
            |name: &str| [12.0f64, 32.0, 48.0, 48.0][usize::from(name.as_bytes()[5] - b'1')];
        let expected = match part {
            _ if spec.name.contains(".0.proj.") => Init::Uniform(inputs(&spec.name).powf(-0.5)),
            "weight" if is_norm => Init::Ones,
            "bias" => Init::Zeros,
            _ => Init::TruncatedNormal(0.02),
        };
        assert_eq!(spec.init, expected, "{}", spec.name);
        assert_eq!(spec.is_decayed, spec.shape.len() > 1, "{}", spec.name);
    }
    let embeddings = list.iter().filter(|spec| spec.name.starts_with("layer2.0."));
    let names: Vec<&str> = embeddings.map(|spec| &spec.name["layer2.0.".len()..]).collect();
    let expected = ["cls_token", "cls_pos_embed", "x_pos_embed", "y_pos_embed", "proj.weight"];
    assert_eq!(names[..5], expected);
    assert_eq!(names[5..], ["proj.bias", "norm_embed.weight", "norm_embed.bias"]);
}
