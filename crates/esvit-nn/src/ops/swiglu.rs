//! SwiGLU, the function of gated MLPs (Shazeer, 2020).

use esvit_kernels::swiglu;

use super::cpu::{made, made_like, values};
use super::prelude::*;

/// `silu(a) b`, `[rows, C]`, of rows `[a, b]`, `[rows, 2 C]`, with `silu(a) = a sigmoid(a)`.
pub fn swiglu(rows: Tensor) -> Tensor {
    apply(SwiGlu, [rows])
}

#[derive(Debug)]
struct SwiGlu;

impl Operation for SwiGlu {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [_, width] = inputs[0].dims();
        inputs[0].with(1, width / 2)
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [_, width] = nodes.shape(0).dims();
        let (x, half) = (nodes.input(0), (width / 2) as i64);
        let [a, b] = [0, half].map(|start| nodes.slice(&x, 1, [start, start + half, 1]));
        let gate = nodes.node("Sigmoid", &[&a], &[]);
        let silu = nodes.node("Mul", &[&a, &gate], &[]);
        Some(nodes.node("Mul", &[&silu, &b], &[]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let x = inputs.swap_remove(0);
        let [rows, width] = x.dims();
        let y = swiglu::forward(values(&x), width);
        (made(y, [rows, width / 2]), save.then(|| Saved::new(x)))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let x: Tensor = pass.saved.take();
        let dx = swiglu::backward(values(&x), x.shape()[1], values(&pass.gradient));
        vec![Some(made_like(dx, &x))]
    }
}
