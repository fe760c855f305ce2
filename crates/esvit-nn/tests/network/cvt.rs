//! Convolutional vision transformers: layers written out, sizes in one pass, running statistics.

use esvit_nn::backbone::cvt::CvtConfig;
use esvit_nn::backbone::{AttentionLayout, Input, TokenMask};
use esvit_nn::tensor::Dtype;
use esvit_testing::tiny_cvt;

use super::*;

/// Three blocks whose windows divide no map, and norms whose `eps` is seen in the result.
fn config(res_stem: bool) -> CvtConfig {
    CvtConfig { depths: vec![2, 1], norm_eps: 1e-2, res_stem, ..tiny_cvt() }
}

/// With running statistics that are not all alike.
fn cvt(res_stem: bool) -> (Arc<dyn Backbone>, Params) {
    let config = BackboneConfig::Cvt(config(res_stem));
    config.validate().unwrap();
    let (cvt, list) = config.build(DROP_PATH);
    let mut params = fill(&list, 0);
    for (index, spec) in list.iter().enumerate().filter(|(_, spec)| spec.role == Role::Buffer) {
        let value = params.value(index) + hashed_tensor(index as u32, [spec.len()]) * 0.3;
        params.set(index, &value.to_vec());
    }
    (cvt, params)
}

/// Maps of 5 x 8 tokens (6 x 8 after the stem) and of 3 x 4.
fn input() -> Tensor {
    images(1001, [2, 3, 22, 31])
}

/// The network written out on maps `[B, C, h, w]`, in f64.
struct ByHand<'a> {
    named: Named<'a>,
    pass: &'a ForwardCtx,
    /// Of every block, what it gives and its attention weights `[B, windows, heads, n, n]`.
    blocks: Vec<[Tensor; 2]>,
}

impl<'a> ByHand<'a> {
    fn new(params: &'a Params, pass: &'a ForwardCtx) -> Self {
        Self { named: Named(params), pass, blocks: Vec::new() }
    }

    fn vector(&self, name: &str) -> Tensor {
        self.named.vector(name).to_dtype(Dtype::F64)
    }

    /// A convolution, whose channels follow from its weight.
    fn convolution(
        &self,
        x: Tensor,
        name: &str,
        side: usize,
        [stride, padding]: [usize; 2],
        has_bias: bool,
    ) -> Tensor {
        let (weight, inputs) = (self.vector(&format!("{name}.weight")), x.shape()[1]);
        let outputs = weight.numel() / inputs / side / side;
        let bias = has_bias.then(|| self.vector(&format!("{name}.bias")));
        x.conv2d(weight.reshape([outputs, inputs, side, side]), bias, stride, padding, 1)
    }

    /// A function of rows `[B * h * w, C]`.
    fn on_rows(x: Tensor, function: impl Fn(Tensor) -> Tensor) -> Tensor {
        let [batch, width, height, across] = x.dims();
        let rows = x.permute(&[0, 2, 3, 1]).reshape([batch * height * across, width]);
        function(rows).reshape([batch, height, across, width]).permute(&[0, 3, 1, 2])
    }

    fn layer_norm(&self, x: Tensor, name: &str) -> Tensor {
        Self::on_rows(x, |rows| {
            let [gamma, beta] =
                ["weight", "bias"].map(|part| self.vector(&format!("{name}.{part}")));
            composed::layer_norm(rows, NormValues { gamma, beta, eps: 1e-2 })
        })
    }

    fn batch_norm(&self, x: Tensor, name: &str) -> Tensor {
        Self::on_rows(x, |rows| {
            let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
                .map(|part| self.vector(&format!("{name}.{part}")));
            match self.pass.is_training() {
                true => composed::batch_norm(rows, gamma, beta, 1e-5).0,
                false => (rows - mean) / (variance + 1e-5).sqrt() * gamma + beta,
            }
        })
    }

    /// Block `index` of 3, whose branches are dropped by the numbers `2 index` and `2 index + 1`.
    fn block(&mut self, x: Tensor, name: &str, index: u64, window: usize, heads: usize) -> Tensor {
        let [batch, width, height, across] = x.dims();
        let window = window.min(height).min(across);
        let mut padded = self.layer_norm(x.clone(), &format!("{name}.0.norm"));
        for axis in [2, 3] {
            let more = padded.shape()[axis].next_multiple_of(window) - padded.shape()[axis];
            if more > 0 {
                let zeros = Tensor::zeros(padded.shape().with(axis, more), &Device::Cpu);
                padded = Tensor::cat(vec![padded, zeros.to_dtype(Dtype::F64)], axis);
            }
        }
        let filters = self.vector(&format!("{name}.0.fn.qkv.dw.weight"));
        let qkv = padded.conv2d(filters.reshape([width, 1, 3, 3]), None, 1, 1, width);
        let qkv = self.batch_norm(qkv, &format!("{name}.0.fn.qkv.bn"));
        let qkv = self.convolution(qkv, &format!("{name}.0.fn.qkv.pw"), 1, [1, 0], true);

        let [_, _, rows, columns] = qkv.dims();
        let (n, depth) = (window * window, width / heads);
        let mut all_weights = Vec::new();
        let in_row = |row: usize| {
            let context = (0..columns / window).map(|column| {
                let qkv = qkv.clone().narrow(2, row * window, window);
                let qkv = qkv.narrow(3, column * window, window);
                let qkv = qkv.reshape([batch, 3, heads, depth, n]);
                let [queries, keys, values] = [0, 1, 2]
                    .map(|part| qkv.clone().narrow(1, part, 1).reshape([batch, heads, depth, n]));
                let logits = queries.transpose().matmul(keys) * (width as f64).powf(-0.5);
                let weights = logits.softmax(3);
                all_weights.push(weights.clone().reshape([batch, 1, heads, n, n]));
                let context = weights.matmul(values.transpose()).transpose();
                context.reshape([batch, width, window, window])
            });
            Tensor::cat(context.collect(), 3)
        };
        let context = Tensor::cat((0..rows / window).map(in_row).collect(), 2);
        let context = context.narrow(2, 0, height).narrow(3, 0, across);
        let branch = self.convolution(context, &format!("{name}.0.fn.proj_out"), 1, [1, 0], true);
        let x = x + self.dropped(branch, index, 2 * index);

        let hidden = self.layer_norm(x.clone(), &format!("{name}.1.norm"));
        let hidden = self.convolution(hidden, &format!("{name}.1.fn.net.0"), 1, [1, 0], true);
        let hidden = hidden.clone() * (hidden * 1.702).sigmoid();
        let branch = self.convolution(hidden, &format!("{name}.1.fn.net.2"), 1, [1, 0], true);
        let x = x + self.dropped(branch, index, 2 * index + 1);
        self.blocks.push([x.clone(), Tensor::cat(all_weights, 1)]);
        x
    }

    fn dropped(&self, branch: Tensor, index: u64, number: u64) -> Tensor {
        let batch = branch.shape()[0];
        let rate = DROP_PATH * index as f64 / 2.0;
        let Some(scales) = self.pass.drop_path(batch, rate, number) else { return branch };
        let scales = Tensor::new(scales.to_vec(), [batch, 1, 1, 1], &Device::Cpu);
        branch * scales.to_dtype(Dtype::F64)
    }

    /// The last map under the final norm, `[B, C, h, w]`.
    fn run(&mut self, images: Tensor, res_stem: bool) -> Tensor {
        let mut x = images.to_dtype(Dtype::F64);
        if res_stem {
            for (index, stride) in [(0, 2), (3, 1), (6, 2)] {
                let name = |index: usize| format!("stage0.0.stem.{index}");
                x = self.convolution(x, &name(index), 3, [stride, 1], false);
                x = self.batch_norm(x, &name(index + 1)).relu();
            }
        } else {
            x = self.convolution(x, "stage0.0.proj", 7, [4, 2], true);
            x = self.layer_norm(x, "stage0.0.norm");
        }
        x = self.block(x, "stage0.1.layers.0", 0, 3, 2);
        x = self.block(x, "stage0.1.layers.1", 1, 3, 2);
        x = self.convolution(x, "stage1.0.proj", 3, [2, 1], true);
        x = self.layer_norm(x, "stage1.0.norm");
        x = self.block(x, "stage1.1.layers.0", 2, 4, 3);
        self.layer_norm(x, "norm")
    }
}

/// Tokens of maps `[B, C, h, w]`, row-major, in f32.
fn tokens(maps: Tensor) -> Tensor {
    let [batch, width, height, across] = maps.dims();
    let rows = maps.permute(&[0, 2, 3, 1]).reshape([batch, height * across, width]);
    rows.to_dtype(Dtype::F32)
}

/// The mean token of every image.
fn mean(maps: Tensor) -> Vec<f32> {
    tokens(maps).mean_dim(1).to_vec()
}

/// Results and gradients in evaluation and in training, with images that are dropped.
#[test]
fn a_network_is_its_layers() {
    for res_stem in [false, true] {
        let (cvt, params) = cvt(res_stem);
        for pass in [ForwardCtx::eval, || ForwardCtx::student(KEY)] {
            let run = |by_hand: bool| -> (Vec<f32>, Vec<Vec<f32>>) {
                let (tape, pass) = (Tape::new(), pass());
                let tracked = params.tracked(&tape);
                let region = match by_hand {
                    true => tokens(ByHand::new(&tracked, &pass).run(input(), res_stem)),
                    false => {
                        let features = cvt.forward(&tracked, input(), &pass);
                        assert_eq!(features.map, [3, 4]);
                        features.region
                    }
                };
                assert_eq!(region.dims(), [2, 12, 12]);
                let values = region.clone().detach().to_vec::<f32>();
                let projection = hashed_tensor::<3>(40, region.dims());
                let gradients = tape.backward(&(region * projection).sum());
                let trained = tracked.iter().filter(|(spec, _)| spec.role == Role::Trained);
                let gradient = |(_, value): (_, Tensor)| gradients.of(&value).unwrap().to_vec();
                (values, trained.map(gradient).collect())
            };
            let (found, expected) = (run(false), run(true));
            let what = format!("stem {res_stem}, training {}", pass().is_training());
            assert_alike(&what, &found.0, &expected.0, 1e-5);
            let trained = params.specs().iter().filter(|spec| spec.role == Role::Trained);
            for ((spec, found), expected) in trained.zip(&found.1).zip(&expected.1) {
                // A gradient that is zero but for rounding has no scale of its own.
                let largest = expected.iter().fold(0f32, |largest, g| g.abs().max(largest));
                let tolerance = 1e-4 * (f64::from(largest) + 0.1) / f64::from(largest.max(1e-30));
                assert_alike(&format!("{what}: {}", spec.name), found, expected, tolerance);
            }
        }
    }
}

#[test]
fn features_and_attention_of_every_block() {
    let (cvt, params) = cvt(false);
    let pass = ForwardCtx::eval();
    let mut by_hand = ByHand::new(&params, &pass);
    let last = by_hand.run(input(), false);
    let [first, second, third] = <[_; 3]>::try_from(by_hand.blocks).unwrap();

    let found = cvt.forward(&params, input(), &pass);
    assert_alike("view", &found.view.to_vec::<f32>(), &mean(last.clone()), 1e-5);
    // Of the last two blocks, that of the last stage under the final norm.
    let found = cvt.last_blocks(&params, input(), 2, &pass);
    let [of_second, of_last] = [mean(second[0].clone()), mean(last)];
    let joined: Vec<f32> = (0..2)
        .flat_map(|image| [&of_second[8 * image..][..8], &of_last[12 * image..][..12]].concat())
        .collect();
    assert_alike("last blocks", &found.to_vec::<f32>(), &joined, 1e-5);
    let found = cvt.stage_features(&params, input(), 0, &pass).unwrap();
    assert_eq!(found.map, [5, 8]);
    let expected = tokens(second[0].clone()).to_vec::<f32>();
    assert_alike("stage", &found.region.to_vec::<f32>(), &expected, 1e-5);

    let mut seen = Vec::new();
    let mut observe = |block: usize, map: AttentionMap| seen.push((block, map));
    cvt.attention(&params, input(), 0..9, &mut observe).unwrap();
    let layouts = [([5, 8], 3, 6), ([5, 8], 3, 6), ([3, 4], 3, 2)];
    assert_eq!(seen.len(), layouts.len());
    for ((block, found), (map, window, count)) in seen.into_iter().zip(layouts) {
        let weights = found.weights();
        let AttentionLayout::Windows(windows) = found.layout else { panic!("windows") };
        assert_eq!((windows.map, windows.window, windows.windows()), (map, window, count));
        let [_, expected] = [&first, &second, &third][block].clone();
        let [batch, count, heads, n, _] = expected.dims();
        assert_eq!(weights.dims(), [batch * count, heads, n, n]);
        let expected = expected.to_dtype(Dtype::F32).to_vec::<f32>();
        assert_alike(&format!("weights of {block}"), &weights.to_vec::<f32>(), &expected, 1e-5);
        let alone = cvt.block_attention(&params, input(), block).unwrap().unwrap();
        assert_eq!(alone.weights().to_vec::<f32>(), weights.to_vec::<f32>());
    }
    assert!(cvt.block_attention(&params, input(), 3).unwrap().is_none());
}

/// In training, too: each size has the statistics of its own images, and the running ones follow
/// them in order.
#[test]
fn sizes_in_one_pass_are_as_each_alone() {
    for res_stem in [false, true] {
        let (cvt, params) = cvt(res_stem);
        let inputs = [[2, 3, 22, 31], [3, 3, 12, 12], [1, 3, 32, 9]];
        let inputs: Vec<Tensor> = (1000..).zip(inputs).map(|(i, shape)| images(i, shape)).collect();
        for pass in [ForwardCtx::eval, ForwardCtx::teacher] {
            let ctx = pass();
            let together = cvt.features(&params, inputs.clone(), &ctx);
            let mut after = params.clone();
            after.set_buffers(ctx.into_statistics());
            let (mut view, mut region, mut expected) = (Vec::new(), Vec::new(), params.clone());
            for input in &inputs {
                let ctx = pass();
                let alone = cvt.forward(&expected, input.clone(), &ctx);
                expected.set_buffers(ctx.into_statistics());
                view.extend(alone.view.to_vec::<f32>());
                region.extend(alone.region.to_vec::<f32>());
            }
            assert_alike("view", &together.view.to_vec::<f32>(), &view, 1e-5);
            assert_alike("region", &together.region.to_vec::<f32>(), &region, 1e-5);
            let [found, expected] = [&after, &expected].map(|p| p.flat().to_vec::<f32>());
            assert_alike("running statistics", &found, &expected, 1e-6);
            let has_changed = found != params.flat().to_vec::<f32>();
            assert_eq!(has_changed, pass().is_training());
        }
    }
}

/// The pixel at row 9 and column 13 is in one patch alone, the one below it in two.
#[test]
fn masked_patches_are_not_seen() {
    let (cvt, params) = cvt(false);
    let rows = (0..64).map(|token| f32::from(u8::from(token == 2 * 8 + 3))).collect();
    let mask = TokenMask {
        rows: Tensor::from_vec(rows, &Device::Cpu),
        token: Tensor::from_vec(hashed(9, 8), &Device::Cpu),
    };
    let with_pixel = |y: usize, more: f32| {
        let mut pixels = images(1000, [1, 3, 32, 32]).to_vec::<f32>();
        pixels[y * 32 + 13] += more;
        let images = vec![Tensor::new(pixels, [1, 3, 32, 32], &Device::Cpu)];
        let input = Input { images, mask: Some(&mask) };
        cvt.features(&params, input, &ForwardCtx::eval()).view.to_vec::<f32>()
    };
    assert_eq!(with_pixel(9, 1.0), with_pixel(9, 0.0));
    assert_ne!(with_pixel(10, 1.0), with_pixel(9, 0.0));
}

/// How every parameter starts: convolutions are no exception in the official code.
#[test]
fn starts_of_all_parameters() {
    let (_, list) = BackboneConfig::Cvt(config(true)).build(0.0);
    for spec in list.iter() {
        let expected = match spec.name.rsplit('.').next().unwrap() {
            "running_mean" | "bias" => Init::Zeros,
            "running_var" => Init::Ones,
            _ if spec.shape.len() == 1 => Init::Ones,
            _ => Init::TruncatedNormal(0.02),
        };
        assert_eq!(spec.init, expected, "{}", spec.name);
        let is_statistic = spec.name.contains("running");
        assert_eq!(spec.role == Role::Buffer, is_statistic, "{}", spec.name);
    }
}
