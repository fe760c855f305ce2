//! Projectors and predictors of contrastive and clustering objectives: linear layers, batch
//! normalization and ReLU, one after the other, listed as the papers do.
//!
//! ```
//! use esvit_nn::layers::Affine;
//! use esvit_nn::params::Registry;
//! use esvit_nn::projection::{Projection, Start};
//!
//! let mut registry = Registry::default();
//! let mut scope = registry.root();
//! // BYOL's projector of features of 32 values.
//! let projector = Projection::new(32, Start::Scaled(1.0))
//!     .linear(&mut scope.at("0"), 4096)
//!     .norm(&mut scope.at("1"), Affine::Full)
//!     .relu()
//!     .linear_without_bias(&mut scope.at("3"), 256);
//! assert_eq!(projector.width(), 256);
//! let names: Vec<_> = registry.finish().iter().map(|spec| spec.name.clone()).collect();
//! assert_eq!(names[..3], ["0.weight", "0.bias", "1.weight"]);
//! ```

use crate::forward_ctx::ForwardCtx;
use crate::layers::{Affine, BATCH_NORM_EPS, BatchNorm};
use crate::ops::{self, Activation};
use crate::params::{Init, ParamId, Params, Scope};
use crate::tensor::Tensor;

/// How the weights of linear layers start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// PyTorch's default for linear layers and convolutions, biases too: uniform within
    /// `1 / sqrt(inputs)` on both sides of 0.
    Uniform,
    /// Normal with this standard deviation; biases are 0.
    Normal(f64),
    /// Normal with this number over `sqrt(inputs)` as its standard deviation; biases are 0.
    Scaled(f64),
}

impl Start {
    /// Of weights and of biases.
    fn init(self, inputs: usize) -> [Init; 2] {
        let root = (inputs as f64).sqrt();
        match self {
            Self::Uniform => [Init::Uniform(1.0 / root); 2],
            Self::Normal(std) => [Init::TruncatedNormal(std), Init::Zeros],
            Self::Scaled(gain) => [Init::TruncatedNormal(gain / root), Init::Zeros],
        }
    }
}

/// A sequence of layers over [`Params`].
#[derive(Debug, Clone)]
pub struct Projection {
    layers: Vec<Layer>,
    /// Of its result so far.
    width: usize,
    start: Start,
}

#[derive(Debug, Clone)]
enum Layer {
    Linear {
        weight: ParamId,
        bias: Option<ParamId>,
        /// Outputs and inputs.
        size: [usize; 2],
    },
    Norm(BatchNorm),
    Relu,
}

impl Projection {
    /// No layers yet, on rows of `inputs` values.
    pub fn new(inputs: usize, start: Start) -> Self {
        Self { layers: Vec::new(), width: inputs, start }
    }

    /// The number of values of a row of the result.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Appends a linear layer, `weight [outputs, inputs]` and `bias [outputs]`.
    #[must_use]
    pub fn linear(self, scope: &mut Scope<'_>, outputs: usize) -> Self {
        let shape = [outputs, self.width];
        self.layer(scope, &shape, true)
    }

    /// Appends a linear layer, `weight [outputs, inputs]`.
    #[must_use]
    pub fn linear_without_bias(self, scope: &mut Scope<'_>, outputs: usize) -> Self {
        let shape = [outputs, self.width];
        self.layer(scope, &shape, false)
    }

    /// Appends a convolution of 1 x 1, a linear layer whose weight is `[outputs, inputs, 1, 1]` in
    /// files, and which starts with PyTorch's default.
    #[must_use]
    pub fn pointwise(self, scope: &mut Scope<'_>, outputs: usize) -> Self {
        let (shape, start) = ([outputs, self.width, 1, 1], self.start);
        let appended = Self { start: Start::Uniform, ..self }.layer(scope, &shape, true);
        Self { start, ..appended }
    }

    fn layer(mut self, scope: &mut Scope<'_>, shape: &[usize], has_bias: bool) -> Self {
        let [of_weight, of_bias] = self.start.init(shape[1]);
        let weight = scope.param("weight", shape, of_weight);
        let bias = has_bias.then(|| scope.param("bias", &shape[..1], of_bias));
        self.layers.push(Layer::Linear { weight, bias, size: [shape[0], shape[1]] });
        self.width = shape[0];
        self
    }

    /// Appends batch normalization, with PyTorch's `eps` of 1e-5.
    #[must_use]
    pub fn norm(mut self, scope: &mut Scope<'_>, affine: Affine) -> Self {
        let norm = BatchNorm::with_affine(scope, self.width, BATCH_NORM_EPS, affine);
        self.layers.push(Layer::Norm(norm));
        self
    }

    /// Appends a ReLU.
    #[must_use]
    pub fn relu(mut self) -> Self {
        self.layers.push(Layer::Relu);
        self
    }

    /// `[rows, inputs]` to `[rows, width]`. In training batch normalization has the statistics of each
    /// of `runs`, numbers of rows one after the other: one run for all of them, or one a view.
    pub fn forward(&self, params: &Params, x: Tensor, runs: &[usize], ctx: &ForwardCtx) -> Tensor {
        self.layers.iter().fold(x, |x, layer| match layer {
            Layer::Linear { weight, bias, size } => {
                let bias = match bias {
                    Some(bias) => params.vector(*bias),
                    None => Tensor::zeros([size[0]], &params.device()),
                };
                let weight = params.vector(*weight).reshape(*size);
                ops::linear(x, weight, bias, Activation::None, ctx.precision)
            }
            Layer::Norm(norm) => norm.forward_runs(params, x, runs, ctx),
            Layer::Relu => x.relu(),
        })
    }

    /// Values of all rows that the layers save for the backward pass, for a row: an estimate.
    pub fn saved_values(&self) -> usize {
        let saved = self.layers.iter().map(|layer| match layer {
            // Its input; a norm saves its own, a ReLU its result, both as wide as the layer before.
            Layer::Linear { size, .. } => size[0] + size[1],
            Layer::Norm(_) | Layer::Relu => 0,
        });
        saved.sum::<usize>() + self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::params::Registry;

    /// Layers start as their kind says, and are called as files have them.
    #[test]
    fn layers_and_their_starts() {
        for (start, spread, of_bias) in [
            // A uniform distribution within 0.5.
            (Start::Uniform, 0.5 / 3f64.sqrt(), 0.5 / 3f64.sqrt()),
            (Start::Normal(0.01), 0.01, 0.0),
            (Start::Scaled(2.0), 1.0, 0.0),
        ] {
            let mut registry = Registry::default();
            let mut root = registry.root();
            let layers = Projection::new(4, start)
                .linear(&mut root.at("0"), 4000)
                .norm(&mut root.at("1"), Affine::Full)
                .relu()
                .linear_without_bias(&mut root.at("3"), 5)
                .pointwise(&mut root.at("4"), 6);
            assert_eq!((layers.width(), layers.start), (6, start));
            let list = registry.finish();
            let found: Vec<(&str, &[usize])> =
                list.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
            let expected: [(&str, &[usize]); 9] = [
                ("0.weight", &[4000, 4]),
                ("0.bias", &[4000]),
                ("1.weight", &[4000]),
                ("1.bias", &[4000]),
                ("1.running_mean", &[4000]),
                ("1.running_var", &[4000]),
                ("3.weight", &[5, 4000]),
                ("4.weight", &[6, 5, 1, 1]),
                ("4.bias", &[6]),
            ];
            assert_eq!(found, expected);
            let deviation = |index: usize| {
                let values = list[index].initial_values(1);
                let squares = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
                (squares / values.len() as f64).sqrt()
            };
            let close = |found: f64, expected: f64| (found - expected).abs() <= 0.05 * expected;
            // Truncation at 2 cuts what is as wide as 1 a little.
            let cut = if start == Start::Scaled(2.0) { 0.88 } else { 1.0 };
            assert!(close(deviation(0), spread * cut), "{start:?}: {}", deviation(0));
            assert!(close(deviation(1), of_bias), "{start:?}: {}", deviation(1));
            assert!(list[7].init == Init::Uniform(1.0 / 5f64.sqrt()), "as convolutions start");
        }
    }

    /// Two runs are two passes; a row that is alone in a layer's eyes is what linear algebra says.
    #[test]
    fn runs_are_passes_of_their_own() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        let layers = Projection::new(3, Start::Uniform)
            .linear(&mut root.at("0"), 4)
            .norm(&mut root.at("1"), Affine::Full)
            .relu()
            .linear(&mut root.at("3"), 2);
        let params = Params::init(&registry.finish(), 1, &Device::Cpu);
        let rows = |first: usize, count: usize| {
            let values = (0..3 * count).map(|i| ((first + i * i) % 11) as f32 * 0.3 - 1.0);
            Tensor::new(values.collect(), [count, 3], &Device::Cpu)
        };
        let forward = |x: Tensor, runs: &[usize]| {
            layers.forward(&params, x, runs, &ForwardCtx::teacher()).to_vec::<f32>()
        };
        let both = Tensor::cat(vec![rows(1, 5), rows(4, 3)], 0);
        let apart = [forward(rows(1, 5), &[5]), forward(rows(4, 3), &[3])].concat();
        assert_eq!(forward(both.clone(), &[5, 3]), apart);
        assert_ne!(forward(both, &[8]), apart);
        assert_eq!(layers.saved_values(), 3 + 4 + 4 + 2 + 2);
    }
}
