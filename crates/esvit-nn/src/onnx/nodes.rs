//! The nodes of one operation, with what operations share.

use std::collections::HashMap;

use esvit_weights::Float;

use super::graph::{Attribute, Graph};
use crate::params::ParamSpec;
use crate::tensor::{Shape, Tensor};

/// Where an operation adds its nodes. Rows of all images are one dimension, of dynamic length.
pub struct Nodes<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) params: &'a HashMap<&'a str, (&'a ParamSpec, Tensor)>,
    pub(super) float: Float,
    /// Names of the inputs.
    pub(super) inputs: Vec<String>,
    pub(super) shapes: Vec<Shape>,
}

impl Nodes<'_> {
    /// Name of input `index`, computed by other nodes or a constant.
    pub(crate) fn input(&self, index: usize) -> &str {
        &self.inputs[index]
    }

    /// Shape of input `index` for one image.
    pub(crate) fn shape(&self, index: usize) -> Shape {
        self.shapes[index]
    }

    /// Adds a node with one output and returns the output's name.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> String {
        self.graph.node(operator, inputs, attributes)
    }

    /// The parameter at input `index` in f32: all but matrices are small.
    pub(crate) fn parameter(&mut self, index: usize) -> String {
        let (spec, value) = &self.params[self.inputs[index].as_str()];
        self.graph.floats(&spec.name, &spec.shape, &value.to_vec::<f32>(), Float::F32)
    }

    /// The weight `[out, in]` of a linear layer at input `index`, transposed.
    pub(crate) fn matrix(&mut self, index: usize) -> String {
        let [outputs, inputs] = self.shape(index).dims();
        let (spec, value) = &self.params[self.inputs[index].as_str()];
        let transposed = value.clone().reshape([outputs, inputs]).transpose().to_vec::<f32>();
        self.graph.floats(&spec.name, &[inputs, outputs], &transposed, self.float)
    }

    /// A constant of i64 values, once per name.
    pub(crate) fn integers(&mut self, name: &str, values: &[i32]) -> String {
        let values: Vec<i64> = values.iter().map(|&value| value.into()).collect();
        self.graph.integers(name, &values)
    }

    /// A constant of f32 values, once per name.
    pub(crate) fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        self.graph.constant(name, shape, values)
    }

    /// Part `index` of the first axis, which is dropped.
    pub(crate) fn part(&mut self, x: &str, index: i64) -> String {
        let index = self.graph.index(&format!("index_{index}"), index);
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

    pub(crate) fn softmax(&mut self, x: &str) -> String {
        self.node("Softmax", &[x], &[("axis", Attribute::Integer(-1))])
    }

    /// Appends a zero row to the second of three axes.
    pub(crate) fn with_zero_row(&mut self, x: &str) -> String {
        let pads = self.graph.integers("one_row", &[0, 0, 0, 0, 1, 0]);
        self.node("Pad", &[x, &pads], &[])
    }

    pub(crate) fn gather(&mut self, x: &str, indices: &str, axis: i64) -> String {
        self.node("Gather", &[x, indices], &[("axis", Attribute::Integer(axis))])
    }

    /// In a shape whose first dimension is dynamic: `rest` are the others.
    pub(crate) fn reshape(&mut self, x: &str, rest: &[usize]) -> String {
        self.graph.reshape(x, rest)
    }

    pub(crate) fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node("Transpose", &[x], &[("perm", Attribute::Integers(order))])
    }
}
