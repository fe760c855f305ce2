//! iGPT: its network, the losses of colors and of classes, and color quantization.

use esvit_data::augment::Normalization;
use esvit_nn::backbone::igpt::{IgptConfig, NORM_EPS, Variant, set_palette, to_byte};
use esvit_nn::backbone::{BackboneConfig, Input, TokenMask};
use esvit_nn::params::{Init, ParamId, ParamSpec};
use esvit_nn::{Network, Params, Tape, Tensor, ops};
use esvit_train::objective::igpt::{OutputTable, Predicted, color_loss};
use esvit_train::objective::supervised::{cross_entropy, one_hot};
use serde::Deserialize;

use super::super::checks::{Checks, LOSS};
use super::super::{Case, CaseError, Outcome, Result};

/// Most classes of a case.
const MOST_CLASSES: usize = 1 << 16;

#[derive(Deserialize)]
struct Settings {
    mode: Mode,
    batch: usize,
    pixels_per_side: usize,
    vocabulary: usize,
    embed_dim: usize,
    heads: usize,
    layers: usize,
    classes: usize,
    loss_generative: f64,
    loss_classifier: f64,
    loss: f64,
    classifier_accuracy: f64,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Autoregressive,
    Bert,
}

impl Settings {
    /// A network whose tokens are pixels.
    fn network(&self) -> Result<BackboneConfig> {
        if !(1..=MOST_CLASSES).contains(&self.classes) {
            let message = format!("`classes` is {}, not 1 to {MOST_CLASSES}", self.classes);
            return Err(CaseError::Settings(message));
        }
        let config = BackboneConfig::Igpt(IgptConfig {
            img_size: self.pixels_per_side,
            patch_size: 1,
            colors: self.vocabulary,
            variant: match self.mode {
                Mode::Autoregressive => Variant::Autoregressive,
                Mode::Bert => Variant::Bert,
            },
            embed_dim: self.embed_dim,
            depth: self.layers,
            num_heads: self.heads,
            feature_block: self.layers,
            norm_eps: NORM_EPS,
        });
        let wrong = |error: &dyn std::fmt::Display| CaseError::Settings(error.to_string());
        config.validate().map_err(|error| wrong(&error))?;
        let side = self.pixels_per_side;
        config.check_image("pixels_per_side", [side; 2]).map_err(|error| wrong(&error))?;
        Ok(config)
    }
}

pub(super) fn run(case: &Case) -> Result<Checks<'_>> {
    let settings: Settings = case.settings()?;
    let Settings { mode, batch, classes, vocabulary, .. } = settings;
    let config = settings.network()?;
    let side = settings.pixels_per_side;
    let count = side * side;
    let tokens = numbers(case, "tokens", &[batch, count], vocabulary)?;
    let labels = numbers(case, "labels", &[batch], classes)?;
    let hidden = match mode {
        Mode::Autoregressive => None,
        Mode::Bert => Some(hidden(case, &[batch, count])?),
    };

    let (network, (output, classifier)) = Network::new(&config, 0.0, |scope, width| {
        let classifier = scope.head("clf").param("weight", &[classes, width], Init::Zeros);
        (OutputTable::new(scope, [vocabulary, width]), classifier)
    });
    let params = parameters(case, &network, vocabulary)?;
    let tape = Tape::new();
    let tracked = params.tracked(&tape);
    let mask = hidden.as_ref().map(|hidden| TokenMask {
        rows: Tensor::from_vec(
            hidden.iter().map(|&h| f32::from(u8::from(h))).collect(),
            &case.device,
        ),
        token: Tensor::zeros([settings.embed_dim], &case.device),
    });
    let input = Input { images: vec![images(&tokens, [batch, side], case)], mask: mask.as_ref() };
    let ctx = case.eval();
    let rows = network.backbone().features(&tracked, input, &ctx).region;

    let mut checks = Checks::of(case);
    let logits = output.forward(&tracked, rows.clone(), &ctx);
    checks.value("out.logits", &logits.clone().detach())?;
    let mut predicted = Predicted::default();
    predicted.add(&tokens, hidden.as_deref(), batch, 1.0);
    let generative = color_loss(predicted.rows_of(logits), &predicted);
    checks.number("loss_generative", generative.item().into(), settings.loss_generative, LOSS);

    let (of_classes, accuracy) = classes_of(&tracked, classifier, rows, count, &labels);
    checks.number("loss_classifier", of_classes.item().into(), settings.loss_classifier, LOSS);
    checks.exact("classifier_accuracy", accuracy, settings.classifier_accuracy);
    let total = generative + of_classes;
    checks.number("loss", total.item().into(), settings.loss, LOSS);
    let gradients = tape.backward(&total);
    for (index, spec) in network.specs().iter().enumerate() {
        let Some(official) = Official::of(spec) else { continue };
        let gradient = gradients.of(&tracked.value(index));
        for (name, part) in official.parts(spec, gradient) {
            checks.gradient(&format!("grad.param.{name}"), part)?;
        }
    }
    Ok(checks)
}

/// The loss of a classifier without bias on the mean of an image's rows, and the share of images that it knows, in
/// percent.
fn classes_of(
    params: &Params,
    classifier: ParamId,
    rows: Tensor,
    count: usize,
    labels: &[i32],
) -> (Tensor, f64) {
    let means = ops::global_average_pool(rows, &vec![count; labels.len()]);
    let weight = params.tensor(classifier);
    let [classes, _] = weight.dims();
    let logits = means.matmul(weight.transpose());
    let best = logits.clone().detach().argmax(1).to_vec::<i32>();
    let known = best.iter().zip(labels).filter(|(best, label)| best == label).count();
    let classes_of_images: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
    let targets = one_hot(&classes_of_images, classes, 0.0, &logits.device());
    (cross_entropy(logits, targets), 100.0 * known as f64 / labels.len() as f64)
}

/// Integers of a shape, from 0 to below `end`.
fn numbers(case: &Case, name: &str, shape: &[usize], end: usize) -> Result<Vec<i32>> {
    let found = case.shape(name)?;
    if found != shape {
        return Err(CaseError::Settings(format!("tensor `{name}` is {found:?}, not {shape:?}")));
    }
    let number =
        |value: i64| i32::try_from(value).ok().filter(|&v| (0..end as i64).contains(&v.into()));
    let numbers: Option<Vec<i32>> = case.integers(name)?.into_iter().map(number).collect();
    let wrong = || CaseError::Settings(format!("`{name}` are no numbers below {end}"));
    numbers.ok_or_else(wrong)
}

/// Which tokens are hidden.
fn hidden(case: &Case, shape: &[usize]) -> Result<Vec<bool>> {
    let (found, values) = case.bytes("masked")?;
    if found != shape {
        return Err(CaseError::Settings(format!("tensor `masked` is {found:?}, not {shape:?}")));
    }
    Ok(values.into_iter().map(|value| value != 0).collect())
}

/// The color of a token, in images and in the palette: no two are alike.
fn color(token: i32) -> [f32; 3] {
    [token as f32, 0.0, 0.0]
}

/// Images `[B, 3, side, side]` of these tokens.
fn images(tokens: &[i32], [batch, side]: [usize; 2], case: &Case) -> Tensor {
    let pixels: Vec<f32> = tokens.iter().flat_map(|&token| color(token)).collect();
    let pixels = Tensor::new(pixels, [batch, side, side, 3], &case.device);
    pixels.permute(&[0, 3, 1, 2])
}

/// The parameters of a case, in our layout.
fn parameters(case: &Case, network: &Network, vocabulary: usize) -> Result<Params> {
    let mut found = Vec::with_capacity(network.specs().len());
    for spec in network.specs().iter() {
        found.push(match Official::of(spec) {
            Some(official) => official.values(case, spec)?,
            None => vec![0.0; spec.len()],
        });
    }
    let mut found = found.into_iter();
    let mut params =
        Params::from_fn(network.specs(), &case.device, |_| found.next().unwrap_or_default());
    let palette: Vec<f32> = (0..vocabulary as i32).flat_map(color).collect();
    set_palette(&mut params, &palette);
    Ok(params)
}

/// The tensors that hold a parameter in the official code.
struct Official {
    /// Their names: equal parts, in order.
    names: Vec<String>,
    /// Whether they are `[in, out]`.
    is_transposed: bool,
}

impl Official {
    /// Those of a parameter of ours; None for the palette.
    fn of(spec: &ParamSpec) -> Option<Self> {
        let one = |name: String, is_transposed| Some(Self { names: vec![name], is_transposed });
        let name = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let Some((block, part)) = name.strip_prefix("h.").and_then(|rest| rest.split_once('.'))
        else {
            return match name {
                "palette" => None,
                "ln_f" => one("model/ln_f/g".into(), false),
                "lm_head" => one("model/wtet".into(), false),
                "clf" => one("model/clf/wclf".into(), false),
                name => one(format!("model/{name}"), false),
            };
        };
        let name = |rest: &str| format!("model/h{block}/{rest}");
        match part {
            "attn.c_attn" => {
                let parts = ["q", "k", "v"].map(|part| name(&format!("attn/{part}_proj")));
                Some(Self { names: parts.into(), is_transposed: false })
            }
            // From heads and their channels to those of the token.
            "attn.c_proj" => one(name("attn/c_proj"), true),
            "mlp.c_fc" | "mlp.c_proj" => one(name(&format!("{}/w", part.replace('.', "/"))), true),
            norm => one(name(&format!("{norm}/g")), false),
        }
    }

    /// The values of a case in the layout of `spec`.
    fn values(&self, case: &Case, spec: &ParamSpec) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for name in &self.names {
            let (shape, values) = case.tensor(&format!("param.{name}"))?;
            if values.len() * self.names.len() != spec.len() {
                let (ours, len) = (&spec.shape, self.names.len());
                let message =
                    format!("tensor `param.{name}` is {shape:?}, one of {len} that make {ours:?}");
                return Err(CaseError::Settings(message));
            }
            all.extend(values);
        }
        if !self.is_transposed {
            return Ok(all);
        }
        let [outputs, inputs] = [spec.shape[0], spec.shape[1]];
        let turned = Tensor::new(all, [inputs, outputs], &case.device).transpose();
        Ok(turned.to_vec())
    }

    /// A gradient in the layout of `spec` as those of the official tensors, by name.
    fn parts(&self, spec: &ParamSpec, gradient: Option<Tensor>) -> Vec<(String, Option<Tensor>)> {
        let gradient = gradient.map(|gradient| match self.is_transposed {
            true => gradient.reshape([spec.shape[0], spec.shape[1]]).transpose(),
            false => gradient,
        });
        let len = spec.len() / self.names.len();
        let part = |number: usize| {
            let flat = gradient.clone()?.reshape([spec.len()]);
            Some(flat.narrow(0, number * len, len))
        };
        self.names.iter().enumerate().map(|(at, name)| (name.clone(), part(at))).collect()
    }
}

#[derive(Deserialize)]
struct Quantized {
    clusters: usize,
    pixels: usize,
}

/// A case of kind `quantize-igpt`: pixels from -1 to 1, the nearest centers, and their bytes.
pub(in crate::verify) fn quantize(case: &Case) -> Result<Outcome> {
    let Quantized { clusters, pixels: count } = case.settings()?;
    let centers = case.shaped("clusters", [clusters, 3])?;
    let (shape, pixels) = case.bytes("pixels")?;
    if shape != [count, 3] || clusters == 0 {
        let message = format!("tensor `pixels` is {shape:?}, with {clusters} clusters");
        return Err(CaseError::Settings(message));
    }
    let Normalization { scale, shift } = Normalization::new([0.5; 3], [0.5; 3]);
    let pixels = Tensor::new(pixels, [1, count, 1, 3], &case.device);
    let scaled = ops::normalize_images(&pixels, scale, shift);
    let scaled = scaled.reshape([3, count]).transpose();
    let mut checks = Checks::of(case);
    checks.value("scaled", &scaled)?;
    let found = ops::nearest_colors(&scaled, &centers);
    let expected = case.integers("ids")?;
    let differing = found.iter().zip(&expected).filter(|(a, b)| i64::from(**a) != **b).count();
    checks.exact("ids", (differing + found.len().abs_diff(expected.len())) as f64, 0.0);
    let centers = centers.to_vec::<f32>();
    let colors = found.iter().flat_map(|&id| &centers[3 * id as usize..][..3]);
    let bytes: Vec<u8> = colors.map(|&channel| to_byte(channel)).collect();
    let (_, expected) = case.bytes("dequantized")?;
    let differing = bytes.iter().zip(&expected).filter(|(a, b)| a != b).count();
    checks.exact("dequantized", (differing + bytes.len().abs_diff(expected.len())) as f64, 0.0);
    Ok(Outcome::Compared(checks.done()))
}
