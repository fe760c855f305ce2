//! Residual networks against the same written out in plain operations on images.

use std::ops::ControlFlow;

use esvit_nn::backbone::resnet::{BlockKind, ResNetConfig};
use esvit_nn::backbone::{BlockOutput, Input, TokenMask};

use super::*;

/// Both kinds of blocks, and selective kernels.
fn kinds() -> [ResNetConfig; 3] {
    let selective = ResNetConfig { selective_kernels: true, ..tiny_resnet() };
    [tiny_resnet(), ResNetConfig { block: BlockKind::Basic, ..tiny_resnet() }, selective]
}

/// A network with running statistics that are not all alike.
fn network(config: &ResNetConfig) -> (Arc<dyn Backbone>, Params) {
    let (network, list) = BackboneConfig::ResNet(config.clone()).build(0.0);
    let mut params = fill(&list, 0);
    for (index, spec) in list.iter().enumerate().filter(|(_, spec)| spec.role == Role::Buffer) {
        let shift = hashed_tensor(900 + index as u32, [spec.len()]) * 0.5;
        params.set(index, &(params.value(index) + shift).to_vec());
    }
    (network, params)
}

/// A network in plain operations.
struct Written<'a> {
    params: &'a Params,
    config: &'a ResNetConfig,
    training: bool,
}

impl Written<'_> {
    fn tensor(&self, name: &str) -> Tensor {
        let (spec, value) = self.params.iter().find(|(spec, _)| spec.name == name).unwrap();
        value.reshape(&*spec.shape)
    }

    fn conv(&self, x: Tensor, name: &str, stride: usize) -> Tensor {
        let weight = self.tensor(&format!("{name}.weight"));
        let side = weight.shape()[2];
        x.conv2d(weight, None, stride, side / 2, 1)
    }

    fn norm(&self, x: Tensor, name: &str) -> Tensor {
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
            .map(|part| self.tensor(&format!("{name}.{part}")));
        let [count, channels, height, width] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([count * height * width, channels]);
        let eps = self.config.norm_eps;
        let rows = match self.training {
            true => composed::batch_norm(rows, gamma, beta, eps).0,
            false => composed::fixed_batch_norm(rows, [gamma, beta], [mean, variance], eps),
        };
        rows.reshape([count, height, width, channels]).permute(&[0, 3, 1, 2])
    }

    fn selective(&self, x: Tensor, name: &str, stride: usize) -> Tensor {
        let both = self.conv(x, &format!("{name}.conv"), stride);
        let both = self.norm(both, &format!("{name}.bn")).relu();
        let width = both.shape()[1] / 2;
        let [first, second] = [0, 1].map(|of| both.clone().narrow(1, of * width, width));
        let means = (first.clone() + second.clone()).mean_dim(3).mean_dim(2);
        let hidden = self.conv(means, &format!("{name}.attn.fc_reduce"), 1);
        let hidden = self.norm(hidden, &format!("{name}.attn.bn")).relu();
        let logits = self.conv(hidden, &format!("{name}.attn.fc_select"), 1);
        let [a, b] = [0, 1].map(|of| logits.clone().narrow(1, of * width, width).exp());
        let sum = a.clone() + b.clone();
        first * (a / sum.clone()) + second * (b / sum)
    }

    /// Means of 2 x 2 pixels, with zeros beyond the map, which count with stride 2 alone.
    fn means(x: Tensor, stride: usize) -> Tensor {
        let [count, channels, height, width] = x.dims();
        let sums = |x: Tensor| {
            let [count, channels, ..] = x.dims::<4>();
            let below = Tensor::zeros([count, channels, 1, width], &Device::Cpu);
            let beside = Tensor::zeros([count, channels, height + 1, 1], &Device::Cpu);
            let padded = Tensor::cat(vec![Tensor::cat(vec![x, below], 2), beside], 3);
            let ones = Tensor::ones([channels, 1, 2, 2], &Device::Cpu);
            padded.conv2d(ones, None, stride, 0, channels)
        };
        match stride {
            1 => sums(x) / sums(Tensor::ones([count, channels, height, width], &Device::Cpu)),
            _ => sums(x) / 4.0,
        }
    }

    fn block(&self, x: Tensor, name: &str, stride: usize) -> Tensor {
        let at = |part: &str| format!("{name}.{part}");
        let mut y = x.clone();
        let selective = self.config.selective_kernels;
        let strides = match self.config.block {
            BlockKind::Basic => vec![stride, 1],
            BlockKind::Bottleneck => vec![1, stride, 1],
        };
        let last = strides.len();
        for (number, stride) in (1..).zip(strides) {
            y = match (selective, number) {
                (true, 2) => self.selective(y, &at("conv2"), stride),
                _ => {
                    let y = self.conv(y, &at(&format!("conv{number}")), stride);
                    self.norm(y, &at(&format!("bn{number}")))
                }
            };
            if number < last {
                y = y.relu();
            }
        }
        let shortcut = match (x.shape() == y.shape(), selective) {
            (true, _) => x,
            (_, true) => {
                let x = self.conv(Self::means(x, stride), &at("downsample.1"), 1);
                self.norm(x, &at("downsample.2"))
            }
            (_, false) => {
                let x = self.conv(x, &at("downsample.0"), stride);
                self.norm(x, &at("downsample.1"))
            }
        };
        (y + shortcut).relu()
    }

    /// The last map, `[B, C, H, W]`.
    fn map(&self, images: Tensor) -> Tensor {
        let mut x = images;
        if self.config.selective_kernels {
            x = self.norm(self.conv(x, "conv1.0", 2), "conv1.1").relu();
            x = self.norm(self.conv(x, "conv1.3", 1), "conv1.4").relu();
            x = self.norm(self.conv(x, "conv1.6", 1), "bn1").relu();
        } else {
            x = self.norm(self.conv(x, "conv1", 2), "bn1").relu();
        }
        let [count, channels, height, width] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([count * height * width, channels]);
        let rows = composed::max_pool(rows, &[Segment::new(count, [height, width])], [3, 2, 1]);
        let sides = [height, width].map(|side| side.div_ceil(2));
        x = rows.reshape([count, sides[0], sides[1], channels]).permute(&[0, 3, 1, 2]);
        for (stage, &layers) in self.config.layers.iter().enumerate() {
            for block in 0..layers {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                x = self.block(x, &format!("layer{}.{block}", stage + 1), stride);
            }
        }
        x
    }
}

/// Features and gradients of all parameters, by running statistics and by those of the images; odd
/// maps in every stage.
#[test]
fn as_written_out() {
    for config in kinds() {
        let (network, params) = network(&config);
        for training in [false, true] {
            let what = format!("{config:?}, training {training}");
            let input = images(1000, [3, 3, 27, 22]);
            let loss = |map: &Tensor| {
                let projection = hashed_tensor(7, [map.numel()]);
                (map.clone().reshape([map.numel()]) * projection).sum()
            };
            let tape = Tape::new();
            let tracked = params.tracked(&tape);
            let ctx = if training { ForwardCtx::teacher() } else { ForwardCtx::eval() };
            let features = network.forward(&tracked, input.clone(), &ctx);
            let gradients = tape.backward(&loss(&features.region));

            let other = Tape::new();
            let written = params.tracked(&other);
            let map = Written { params: &written, config: &config, training }.map(input);
            let [count, channels, height, width] = map.dims();
            assert_eq!(features.map, [height, width], "{what}");
            let region = map.permute(&[0, 2, 3, 1]).reshape([count, height * width, channels]);
            let found = features.region.to_vec::<f32>();
            assert_alike(&what, &found, &region.to_vec::<f32>(), 1e-4);
            let view = region.clone().mean_dim(1).to_vec::<f32>();
            assert_alike(&what, &features.view.to_vec::<f32>(), &view, 1e-4);
            let expected = other.backward(&loss(&region));
            let pairs = tracked.iter().zip(written.iter());
            for ((spec, a), (_, b)) in pairs.filter(|((spec, _), _)| spec.role == Role::Trained) {
                let [a, b] =
                    [gradients.of(&a), expected.of(&b)].map(|g| g.unwrap().to_vec::<f32>());
                assert_alike(&format!("{what}: {}", spec.name), &a, &b, 2e-3);
            }
        }
    }
}

/// Images of two sizes in one pass are as alone: also by the statistics of their size.
#[test]
fn sizes_at_once_and_alone() {
    for config in kinds() {
        let (network, params) = network(&config);
        let batches = [images(1000, [2, 3, 32, 32]), images(1001, [3, 3, 20, 27])];
        for pass in [ForwardCtx::eval, ForwardCtx::teacher] {
            let together = network.features(&params, batches.to_vec(), &pass());
            let (mut views, mut regions) = (Vec::new(), Vec::new());
            for batch in &batches {
                let alone = network.features(&params, vec![batch.clone()], &pass());
                views.extend(alone.view.to_vec::<f32>());
                regions.extend(alone.region.to_vec::<f32>());
            }
            assert_alike("view", &together.view.to_vec::<f32>(), &views, 1e-5);
            assert_alike("region", &together.region.to_vec::<f32>(), &regions, 1e-5);
        }
    }
}

/// In evaluation maps are stored in bf16 from the stem to the last block: what is seen of a block, of a stage
/// and of masked images is in f32 all the same, and near to what f32 gives.
#[test]
fn evaluated_in_bf16() {
    for config in kinds() {
        let (network, params) = network(&config);
        let input = images(1000, [3, 3, 41, 38]);
        let [exact, rounded] =
            [Precision::F32, Precision::Bf16].map(|of| ForwardCtx::eval().with_precision(of));
        let near = |what: &str, of: &dyn Fn(&ForwardCtx) -> Tensor| {
            let [exact, rounded] = [&exact, &rounded].map(|ctx| of(ctx).to_vec::<f32>());
            assert_ne!(exact, rounded, "{what}: {config:?}");
            assert_alike(&format!("{what}: {config:?}"), &rounded, &exact, 0.03);
        };
        near("features", &|ctx| network.forward(&params, input.clone(), ctx).region);
        near("probe", &|ctx| network.last_blocks(&params, input.clone(), 2, ctx));
        let stage = |ctx: &ForwardCtx| network.stage_features(&params, input.clone(), 0, ctx);
        near("stage", &|ctx| stage(ctx).unwrap().region);
        let masked = |ctx: &ForwardCtx| {
            let rows = Tensor::zeros([3 * 110], &Device::Cpu);
            let mask = TokenMask { rows, token: hashed_tensor(9, [6]) };
            let input = Input { images: vec![input.clone()], mask: Some(&mask) };
            let go_on = &mut |_: BlockOutput<'_>| ControlFlow::Continue(());
            network.run(&params, input, ctx, go_on).unwrap().rows
        };
        near("masked", &masked);
        // Where parameters learn, maps stay in f32.
        let tape = Tape::new();
        let tracked = params.tracked(&tape);
        let learned = network.forward(&tracked, input.clone(), &rounded).region.detach();
        let found = network.forward(&params, input.clone(), &rounded).region;
        assert_alike("learned", &found.to_vec::<f32>(), &learned.to_vec::<f32>(), 0.03);
    }
}

/// In training maps are stored in bf16, too: features and the gradients of all parameters are near to those of
/// f32.
#[test]
fn trained_in_bf16() {
    for config in kinds() {
        let (network, params) = network(&config);
        let batches = [images(1000, [3, 3, 64, 64]), images(1001, [2, 3, 41, 52])];
        let learned = |precision: Precision| {
            let tape = Tape::new();
            let tracked = params.tracked(&tape);
            let pass = ForwardCtx::teacher().with_precision(precision);
            let found = network.features(&tracked, batches.to_vec(), &pass);
            let projection = hashed_tensor(7000, found.region.dims::<2>());
            let gradients = tape.backward(&(found.region.clone() * projection).sum());
            let of = |parameter: &Tensor| Some(gradients.of(parameter)?.to_vec::<f32>());
            let of_parameters: Vec<_> = tracked.iter().map(|(_, value)| of(&value)).collect();
            (found.region.to_vec::<f32>(), of_parameters)
        };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(learned);
        let share = |found: &[f32], expected: &[f32]| {
            let squares = |of: &mut dyn Iterator<Item = f32>| of.map(|v| v * v).sum::<f32>();
            let off = squares(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            (off / squares(&mut expected.iter().copied())).sqrt()
        };
        assert!(share(&rounded.0, &exact.0) < 0.1, "{}", share(&rounded.0, &exact.0));
        let flat = |of: &[Option<Vec<f32>>]| -> Vec<f32> {
            of.iter().flatten().flatten().copied().collect()
        };
        let off = share(&flat(&rounded.1), &flat(&exact.1));
        // ReLU and max pooling let other values through here and there, the more so in deeper networks.
        let most = if config.selective_kernels { 0.9 } else { 0.5 };
        assert!(off > 1e-4 && off < most, "{off}: {config:?}");
    }
}

/// A pass over two sizes moves running statistics twice, as a pass after another does.
#[test]
fn running_statistics_move_with_every_size() {
    let (network, params) = network(&tiny_resnet());
    let batches = [images(1000, [2, 3, 32, 32]), images(1001, [3, 3, 20, 27])];
    let after = |ctx: ForwardCtx| {
        let mut after = params.clone();
        after.set_buffers(ctx.into_statistics());
        let buffers = after.iter().filter(|(spec, _)| spec.role == Role::Buffer);
        buffers.flat_map(|(_, value)| value.to_vec::<f32>()).collect::<Vec<f32>>()
    };
    let together = ForwardCtx::teacher();
    network.features(&params, batches.to_vec(), &together);
    let first = ForwardCtx::teacher();
    network.features(&params, batches[..1].to_vec(), &first);
    let second = ForwardCtx::teacher().after(first.into_statistics());
    network.features(&params, batches[1..].to_vec(), &second);
    let expected = after(second);
    assert_alike("both", &after(together), &expected, 1e-6);
    let once = ForwardCtx::teacher();
    network.features(&params, batches[..1].to_vec(), &once);
    assert_ne!(after(once), expected);
    // By hand for the first norm: means of the two batches, a tenth of each.
    let mean = |images: &Tensor| {
        let written = Written { params: &params, config: &tiny_resnet(), training: true };
        let y = written.conv(images.clone(), "conv1", 2);
        let [count, channels, height, width] = y.dims();
        let rows = y.permute(&[0, 2, 3, 1]).reshape([count * height * width, channels]);
        rows.mean_dim(0).to_vec::<f32>()
    };
    let [a, b] = [&batches[0], &batches[1]].map(mean);
    let old = Named(&params).vector("bn1.running_mean").to_vec::<f32>();
    let by_hand: Vec<f32> =
        (0..6).map(|i| 0.9 * (0.9 * old[i] + 0.1 * a[i]) + 0.1 * b[i]).collect();
    assert_alike("by hand", &expected[..6], &by_hand, 1e-5);
    let evaluated = ForwardCtx::eval();
    network.features(&params, batches.to_vec(), &evaluated);
    assert!(evaluated.into_statistics().is_empty());
}

/// The linear probe's feature is the view feature, however many blocks are asked for.
#[test]
fn features_for_a_probe() {
    let (network, params) = network(&tiny_resnet());
    let input = images(1000, [2, 3, 32, 24]);
    let ctx = ForwardCtx::eval();
    let view = network.forward(&params, input.clone(), &ctx).view.to_vec::<f32>();
    for n in 1..=3 {
        let found = network.last_blocks(&params, input.clone(), n, &ctx);
        assert_eq!(found.to_vec::<f32>(), view);
    }
    let first = network.stage_features(&params, input.clone(), 0, &ctx).unwrap();
    assert_eq!((first.map, first.view.dims()), ([8, 6], [2, 12]));
    let error = network.block_attention(&params, input.clone(), 0).unwrap_err().to_string();
    assert_eq!(error, "a ResNet backbone has no attention");
    // A masked token hides its part of the map after the stem.
    let rows = (0..96).map(|at| f32::from(u8::from(at < 48))).collect();
    let rows = Tensor::from_vec(rows, &Device::Cpu);
    let mask = TokenMask { rows, token: hashed_tensor(9, [6]) };
    let masked = |images: Tensor| {
        let input = Input { images: vec![images], mask: Some(&mask) };
        let go_on = &mut |_: BlockOutput<'_>| ControlFlow::Continue(());
        network.run(&params, input, &ctx, go_on).unwrap().rows.to_vec::<f32>()
    };
    let [found, other] = [masked(input.clone()), masked(input * 2.0)];
    let half = found.len() / 2;
    assert_eq!(found[..half], other[..half]);
    assert_ne!(found[half..], other[half..]);
}
