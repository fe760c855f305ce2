//! What operations share: their inputs, and nodes that several of them need.

use std::any::Any;
use std::sync::Arc;

use esvit_weights::Float;

use super::graph::{Attribute, Input, Nodes};
use super::sizes::Sizes;
use crate::ops::Activation;
use crate::tape::Operation;
use crate::tensor::Shape;

impl Nodes<'_> {
    /// The same operation in the pass over two images: what differs depends on the batch.
    pub(crate) fn twin<T: Operation>(&self) -> Option<Arc<T>> {
        let twin: Arc<dyn Any + Send + Sync> = self.twin.clone()?;
        twin.downcast().ok()
    }

    /// Input `index` in its shape, be it computed, a constant or a parameter.
    pub(crate) fn input(&mut self, index: usize) -> String {
        let Input { name, sizes, mut is_reshaped } = self.inputs[index].clone();
        let x = match self.params.get(name.as_str()) {
            Some((spec, _)) => {
                is_reshaped = *spec.shape != *sizes.image;
                let is_matrix = spec.shape.iter().filter(|&&size| size > 1).count() >= 2;
                self.stored(index, if is_matrix { self.float } else { Float::F32 })
            }
            None => name,
        };
        if is_reshaped { self.reshape_to(&x, &sizes.dims()) } else { x }
    }

    /// Number of inputs.
    pub(crate) fn count(&self) -> usize {
        self.inputs.len()
    }

    /// Shape of input `index` for one image.
    pub(crate) fn shape(&self, index: usize) -> Shape {
        self.sizes(index).image
    }

    /// Sizes of input `index`.
    pub(crate) fn sizes(&self, index: usize) -> Sizes {
        self.inputs[index].sizes
    }

    /// The parameter at input `index` in its own shape.
    fn stored(&mut self, index: usize, float: Float) -> String {
        let (spec, value) = self.params[self.inputs[index].name.as_str()].clone();
        if self.transposed.contains(spec.name.as_str()) {
            let matrix = self.transpose(&spec.name, &[1, 0]);
            let shape: Vec<i64> = spec.shape.iter().map(|&size| size as i64).collect();
            return self.reshape_to(&matrix, &shape);
        }
        self.floats(&spec.name, &spec.shape, &value.to_vec::<f32>(), float)
    }

    /// The parameter at input `index` in f32: all but matrices are small.
    pub(crate) fn parameter(&mut self, index: usize) -> String {
        if self.params.contains_key(self.inputs[index].name.as_str()) {
            self.stored(index, Float::F32)
        } else {
            self.input(index)
        }
    }

    /// The weight `[out, in]` of a linear layer at input `index`, transposed.
    pub(crate) fn matrix(&mut self, index: usize) -> String {
        let [outputs, inputs] = self.shape(index).dims();
        let name = self.inputs[index].name.as_str();
        let is_free = !self.constants.contains(name) || self.transposed.contains(name);
        let Some((spec, value)) = self.params.get(name).filter(|_| is_free).cloned() else {
            let weight = self.input(index);
            return self.transpose(&weight, &[1, 0]);
        };
        self.transposed.insert(&spec.name);
        let transposed = value.reshape([outputs, inputs]).transpose().to_vec::<f32>();
        self.floats(&spec.name, &[inputs, outputs], &transposed, self.float)
    }

    /// A number, as a constant.
    pub(crate) fn number(&mut self, value: f64) -> String {
        let value = value as f32;
        self.constant(&format!("number_{value}"), &[], &[value])
    }

    /// Part `index` of the first axis, which is dropped.
    pub(crate) fn part(&mut self, x: &str, index: i64) -> String {
        let index = self.index(&format!("index_{index}"), index);
        self.gather(x, &index, 0)
    }

    /// `act(x) weight^T + bias` with weight and bias at inputs `layer` and `layer + 1`.
    pub(crate) fn linear(&mut self, x: &str, layer: usize) -> String {
        let (weight, bias) = (self.matrix(layer), self.parameter(layer + 1));
        let y = self.node("MatMul", &[x, &weight], &[]);
        self.node("Add", &[&y, &bias], &[])
    }

    /// Layer normalization with gamma and beta at inputs `norm` and `norm + 1`.
    pub(crate) fn layer_norm(&mut self, x: &str, norm: usize, eps: f32) -> String {
        let (weight, bias) = (self.parameter(norm), self.parameter(norm + 1));
        let attributes = [("axis", Attribute::Integer(-1)), ("epsilon", Attribute::Float(eps))];
        self.node("LayerNormalization", &[x, &weight, &bias], &attributes)
    }

    /// The function before a linear layer.
    pub(crate) fn activation(&mut self, x: &str, activation: Activation) -> String {
        match activation {
            Activation::None => x.into(),
            Activation::Gelu => self.gelu(x),
            Activation::QuickGelu => {
                let slope = self.number(1.702);
                let scaled = self.node("Mul", &[x, &slope], &[]);
                let gate = self.node("Sigmoid", &[&scaled], &[]);
                self.node("Mul", &[x, &gate], &[])
            }
        }
    }

    /// The exact GELU.
    pub(crate) fn gelu(&mut self, x: &str) -> String {
        let root = self.constant("root_2", &[], &[std::f32::consts::SQRT_2]);
        let one = self.constant("one", &[], &[1.0]);
        let half = self.constant("half", &[], &[0.5]);
        let scaled = self.node("Div", &[x, &root], &[]);
        let error = self.node("Erf", &[&scaled], &[]);
        let cumulative = self.node("Add", &[&error, &one], &[]);
        let twice = self.node("Mul", &[x, &cumulative], &[]);
        self.node("Mul", &[&twice, &half], &[])
    }

    /// A convolution of `[n, channels, height, width]` with filters of a size.
    pub(crate) fn conv(
        &mut self,
        x: &str,
        weight: &str,
        filter: [usize; 2],
        stride: usize,
        padding: usize,
        groups: usize,
    ) -> String {
        let attributes = [
            ("kernel_shape", Attribute::Integers(&filter.map(|side| side as i64))),
            ("strides", Attribute::Integers(&[stride as i64; 2])),
            ("pads", Attribute::Integers(&[padding as i64; 4])),
            ("group", Attribute::Integer(groups as i64)),
        ];
        self.node("Conv", &[x, weight], &attributes)
    }

    /// A reduction over one axis, which stays with size 1.
    pub(crate) fn reduce(&mut self, operator: &str, x: &str, axis: usize) -> String {
        let axes = [axis as i64];
        self.node(operator, &[x], &[("axes", Attribute::Integers(&axes))])
    }

    pub(crate) fn softmax(&mut self, x: &str) -> String {
        self.node("Softmax", &[x], &[("axis", Attribute::Integer(-1))])
    }

    /// Appends a zero row to the second of three axes.
    pub(crate) fn with_zero_row(&mut self, x: &str) -> String {
        let pads = self.integers("one_row", &[0, 0, 0, 0, 1, 0]);
        self.node("Pad", &[x, &pads], &[])
    }

    pub(crate) fn gather(&mut self, x: &str, indices: &str, axis: i64) -> String {
        self.node("Gather", &[x, indices], &[("axis", Attribute::Integer(axis))])
    }

    /// `Slice` of one axis.
    pub(crate) fn slice(&mut self, x: &str, axis: usize, [start, end, step]: [i64; 3]) -> String {
        let [start, end, axis, step] =
            [start, end, axis as i64, step].map(|value| self.table(&[value]));
        self.node("Slice", &[x, &start, &end, &axis, &step], &[])
    }

    /// Broadcasts a value of sizes `from` to sizes `to`.
    pub(crate) fn expand_sizes(&mut self, x: &str, from: Sizes, to: Sizes) -> String {
        let added = to.image.len() - from.image.len();
        let is_kept = |axis: usize| {
            axis >= added
                && to.image[axis] == from.image[axis - added]
                && (to.batch_axis != Some(axis) || from.batch_axis == Some(axis - added))
        };
        let size = |axis| if is_kept(axis) { 1 } else { to.image[axis] as i64 };
        let shape: Vec<i64> = (0..to.image.len()).map(size).collect();
        self.expand(x, &shape, to.batch_axis.filter(|&axis| !is_kept(axis)))
    }

    pub(crate) fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node("Transpose", &[x], &[("perm", Attribute::Integers(order))])
    }
}
