//! The hot operations as an extension of the tensor framework: kernels on the CPU and gradients
//! written by hand.
//!
//! Each operation is three things: a method of [`Fused`], its body for the CPU backend on the
//! kernels of `esvit-kernels`, and its node in the graph of gradients. The functions of
//! [`crate::ops`] wrap them for tensors.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{Bytes, DType, Shape};
use esvit_kernels::window_attention::{self, Windows};
use esvit_kernels::{cross_entropy, gelu, layer_norm, matmul};

use super::WindowMap;

/// The hot operations of backbones and heads. Tensors are contiguous row-major f32.
#[backend_extension(Flex, Autodiff)]
#[expect(unreachable_pub, reason = "the macro wants a visibility that its output can repeat")]
pub trait Fused: Backend {
    /// `x [R, in]` times the transpose of `weight [out, in]`.
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The same plus `bias [out]`.
    fn fused_linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// Gradient of `x` from `dy [R, out]`.
    fn fused_linear_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradient of `weight`.
    fn fused_linear_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sums of columns, `[R, C]` to `[C]`: gradient of `bias`.
    fn fused_column_sums(dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Layer normalisation of rows `[R, C]`.
    fn fused_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
    /// Gradients of `x`, `gamma` and `beta`.
    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// The Gaussian error linear unit.
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Its gradient.
    fn fused_gelu_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Attention inside windows: see [`crate::ops::window_attention`].
    fn fused_window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        windows: Arc<WindowMap>,
    ) -> FloatTensor<Self>;
    /// Gradients of `qkv`, `bias` and `table`.
    fn fused_window_attention_backward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        windows: Arc<WindowMap>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// The loss `[1]` of [`crate::ops::soft_cross_entropy`] and the partitions `[R, 2]` that its
    /// gradient needs.
    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Gradient of `logits` from that of the loss, `dy [1]`.
    fn fused_cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        partitions: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> FloatTensor<Self>;
}

/// A contiguous tensor's values.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("made contiguous, and f32 is the only type in use")
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

fn made(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// Rows and columns of a matrix.
fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

/// What the attention kernel needs to know, for `qkv [B, T, 3 C]` and `table [rows, heads]`.
fn kernel_windows<'a>(map: &'a WindowMap, qkv: &FlexTensor, table: &FlexTensor) -> Windows<'a> {
    Windows {
        tokens: map.tokens(),
        slots: map.window_tokens(),
        width: qkv.shape()[2] / 3,
        heads: table.shape()[1],
        slot_token: &map.slot_token,
        bias_row: &map.bias_row,
        mask: map.mask.as_deref(),
    }
}

impl Fused for Flex {
    fn fused_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let ([rows, inputs], [outputs, _]) = (dims2(&x), dims2(&weight));
        let mut y = vec![0.0; rows * outputs];
        matmul::linear(values(&x), values(&weight), None, inputs, &mut y);
        made(y, [rows, outputs])
    }

    fn fused_linear_bias(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
        let ([rows, inputs], [outputs, _]) = (dims2(&x), dims2(&weight));
        let mut y = vec![0.0; rows * outputs];
        matmul::linear(values(&x), values(&weight), Some(values(&bias)), inputs, &mut y);
        made(y, [rows, outputs])
    }

    fn fused_linear_input(dy: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let (dy, weight) = (contiguous(dy), contiguous(weight));
        let ([rows, _], [_, inputs]) = (dims2(&dy), dims2(&weight));
        let mut dx = vec![0.0; rows * inputs];
        matmul::linear_input_gradient(values(&dy), values(&weight), inputs, &mut dx);
        made(dx, [rows, inputs])
    }

    fn fused_linear_weight(dy: FlexTensor, x: FlexTensor) -> FlexTensor {
        let (dy, x) = (contiguous(dy), contiguous(x));
        let ([_, outputs], [_, inputs]) = (dims2(&dy), dims2(&x));
        let mut dw = vec![0.0; outputs * inputs];
        matmul::linear_weight_gradient(values(&dy), values(&x), inputs, &mut dw);
        made(dw, [outputs, inputs])
    }

    fn fused_column_sums(dy: FlexTensor) -> FlexTensor {
        let dy = contiguous(dy);
        let [_, columns] = dims2(&dy);
        made(matmul::column_sums(values(&dy), columns), [columns])
    }

    fn fused_layer_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        eps: f32,
    ) -> FlexTensor {
        let (x, gamma, beta) = (contiguous(x), contiguous(gamma), contiguous(beta));
        let mut y = vec![0.0; x.shape().num_elements()];
        layer_norm::forward(values(&x), values(&gamma), values(&beta), eps, &mut y);
        made(y, x.shape())
    }

    fn fused_layer_norm_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        dy: FlexTensor,
        eps: f32,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, gamma, dy) = (contiguous(x), contiguous(gamma), contiguous(dy));
        let mut dx = vec![0.0; x.shape().num_elements()];
        let (dgamma, dbeta) =
            layer_norm::backward(values(&x), values(&gamma), values(&dy), eps, &mut dx);
        (made(dx, x.shape()), made(dgamma, gamma.shape()), made(dbeta, gamma.shape()))
    }

    fn fused_gelu(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let mut y = values(&x).to_vec();
        gelu::forward(&mut y);
        made(y, x.shape())
    }

    fn fused_gelu_backward(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
        let (x, dy) = (contiguous(x), contiguous(dy));
        let mut dx = values(&dy).to_vec();
        gelu::backward(values(&x), &mut dx);
        made(dx, x.shape())
    }

    fn fused_window_attention(
        qkv: FlexTensor,
        bias: FlexTensor,
        table: FlexTensor,
        windows: Arc<WindowMap>,
    ) -> FlexTensor {
        let (qkv, bias, table) = (contiguous(qkv), contiguous(bias), contiguous(table));
        let shape = qkv.shape();
        let (batch, windows) = (shape[0], kernel_windows(&windows, &qkv, &table));
        let mut mixed = vec![0.0; batch * windows.tokens * windows.width];
        window_attention::forward(
            values(&qkv),
            values(&bias),
            values(&table),
            &windows,
            &mut mixed,
        );
        made(mixed, [batch, windows.tokens, windows.width])
    }

    fn fused_window_attention_backward(
        qkv: FlexTensor,
        bias: FlexTensor,
        table: FlexTensor,
        dy: FlexTensor,
        windows: Arc<WindowMap>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (qkv, bias, table) = (contiguous(qkv), contiguous(bias), contiguous(table));
        let dy = contiguous(dy);
        let windows = kernel_windows(&windows, &qkv, &table);
        let mut dqkv = vec![0.0; qkv.shape().num_elements()];
        let (dbias, dtable) = window_attention::backward(
            values(&qkv),
            values(&bias),
            values(&table),
            &windows,
            values(&dy),
            &mut dqkv,
        );
        (made(dqkv, qkv.shape()), made(dbias, bias.shape()), made(dtable, table.shape()))
    }

    fn fused_cross_entropy(
        logits: FlexTensor,
        targets: FlexTensor,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> (FlexTensor, FlexTensor) {
        let (logits, targets) = (contiguous(logits), contiguous(targets));
        let (loss, partitions) =
            cross_entropy::forward(values(&logits), values(&targets), &weights, temperature);
        let rows = partitions.len();
        (made(vec![loss], [1]), made(partitions.into_flattened(), [rows, 2]))
    }

    fn fused_cross_entropy_backward(
        logits: FlexTensor,
        targets: FlexTensor,
        partitions: FlexTensor,
        dy: FlexTensor,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> FlexTensor {
        let (logits, targets) = (contiguous(logits), contiguous(targets));
        let (partitions, dy) = (contiguous(partitions), contiguous(dy));
        let mut gradients = vec![0.0; logits.shape().num_elements()];
        let (pairs, _) = values(&partitions).as_chunks::<2>();
        cross_entropy::backward(
            values(&logits),
            values(&targets),
            &weights,
            temperature,
            pairs,
            values(&dy)[0],
            &mut gradients,
        );
        made(gradients, logits.shape())
    }
}

/// Gives the gradient made by `$gradient` to a parent that wants one.
macro_rules! give {
    ($grads:ident, $backend:ident, $parent:expr, $gradient:expr) => {
        if let Some(parent) = $parent {
            let gradient = $gradient;
            $grads.register::<$backend>(parent.id, gradient);
        }
    };
}

impl<B: Fused, C: CheckpointStrategy> Fused for Autodiff<B, C> {
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Linear;
        impl<B: Fused> Backward<B, 2> for Linear {
            type State = (FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let ([to_x, to_weight], (x, weight)) = (ops.parents, ops.state);
                let dy = grads.consume::<B>(&ops.node);
                give!(grads, B, to_x, B::fused_linear_input(dy.clone(), weight));
                give!(grads, B, to_weight, B::fused_linear_weight(dy, x));
            }
        }
        let nodes = [x.node(), weight.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((x.clone(), weight.clone()), B::fused_linear(x, weight))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_linear(x, weight)),
        }
    }

    fn fused_linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LinearBias;
        impl<B: Fused> Backward<B, 3> for LinearBias {
            type State = (FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let ([to_x, to_weight, to_bias], (x, weight)) = (ops.parents, ops.state);
                let dy = grads.consume::<B>(&ops.node);
                give!(grads, B, to_x, B::fused_linear_input(dy.clone(), weight));
                give!(grads, B, to_weight, B::fused_linear_weight(dy.clone(), x));
                give!(grads, B, to_bias, B::fused_column_sums(dy));
            }
        }
        let nodes = [x.node(), weight.node(), bias.node()];
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let bias = bias.into_primitive();
        match LinearBias.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((x.clone(), weight.clone()), B::fused_linear_bias(x, weight, bias))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_linear_bias(x, weight, bias)),
        }
    }

    fn fused_linear_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        constant::<B>(B::fused_linear_input(dy.into_primitive(), weight.into_primitive()))
    }

    fn fused_linear_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        constant::<B>(B::fused_linear_weight(dy.into_primitive(), x.into_primitive()))
    }

    fn fused_column_sums(dy: FloatTensor<Self>) -> FloatTensor<Self> {
        constant::<B>(B::fused_column_sums(dy.into_primitive()))
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LayerNorm;
        impl<B: Fused> Backward<B, 3> for LayerNorm {
            type State = (FloatTensor<B>, FloatTensor<B>, f32);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let ([to_x, to_gamma, to_beta], (x, gamma, eps)) = (ops.parents, ops.state);
                let dy = grads.consume::<B>(&ops.node);
                let (dx, dgamma, dbeta) = B::fused_layer_norm_backward(x, gamma, dy, eps);
                give!(grads, B, to_x, dx);
                give!(grads, B, to_gamma, dgamma);
                give!(grads, B, to_beta, dbeta);
            }
        }
        let nodes = [x.node(), gamma.node(), beta.node()];
        let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
        let beta = beta.into_primitive();
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), gamma.clone(), eps);
                prep.finish(state, B::fused_layer_norm(x, gamma, beta, eps))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::fused_layer_norm(x, gamma, beta, eps)),
        }
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [x, gamma, dy] = [x, gamma, dy].map(|tensor| tensor.into_primitive());
        let (dx, dgamma, dbeta) = B::fused_layer_norm_backward(x, gamma, dy, eps);
        (constant::<B>(dx), constant::<B>(dgamma), constant::<B>(dbeta))
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;
        impl<B: Fused> Backward<B, 1> for Gelu {
            type State = FloatTensor<B>;
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [to_x] = ops.parents;
                let dy = grads.consume::<B>(&ops.node);
                give!(grads, B, to_x, B::fused_gelu_backward(ops.state, dy));
            }
        }
        let node = x.node();
        let x = x.into_primitive();
        match Gelu.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.clone(), B::fused_gelu(x)),
            OpsKind::UnTracked(prep) => prep.finish(B::fused_gelu(x)),
        }
    }

    fn fused_gelu_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        constant::<B>(B::fused_gelu_backward(x.into_primitive(), dy.into_primitive()))
    }

    fn fused_window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        windows: Arc<WindowMap>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct WindowAttention;
        impl<B: Fused> Backward<B, 3> for WindowAttention {
            type State = ([FloatTensor<B>; 3], Arc<WindowMap>);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let ([to_qkv, to_bias, to_table], ([qkv, bias, table], windows)) =
                    (ops.parents, ops.state);
                let dy = grads.consume::<B>(&ops.node);
                let (dqkv, dbias, dtable) =
                    B::fused_window_attention_backward(qkv, bias, table, dy, windows);
                give!(grads, B, to_qkv, dqkv);
                give!(grads, B, to_bias, dbias);
                give!(grads, B, to_table, dtable);
            }
        }
        let nodes = [qkv.node(), bias.node(), table.node()];
        let [qkv, bias, table] = [qkv, bias, table].map(|tensor| tensor.into_primitive());
        match WindowAttention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = ([qkv.clone(), bias.clone(), table.clone()], windows.clone());
                prep.finish(state, B::fused_window_attention(qkv, bias, table, windows))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::fused_window_attention(qkv, bias, table, windows))
            }
        }
    }

    fn fused_window_attention_backward(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        windows: Arc<WindowMap>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [qkv, bias, table, dy] = [qkv, bias, table, dy].map(|tensor| tensor.into_primitive());
        let (dqkv, dbias, dtable) =
            B::fused_window_attention_backward(qkv, bias, table, dy, windows);
        (constant::<B>(dqkv), constant::<B>(dbias), constant::<B>(dtable))
    }

    fn fused_cross_entropy(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        /// No gradient goes to the targets: they are the teacher's.
        #[derive(Debug)]
        struct CrossEntropy;
        impl<B: Fused> Backward<B, 1> for CrossEntropy {
            type State = ([FloatTensor<B>; 3], Arc<[f32]>, f32);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let ([to_logits], ([logits, targets, partitions], weights, temperature)) =
                    (ops.parents, ops.state);
                let dy = grads.consume::<B>(&ops.node);
                give!(
                    grads,
                    B,
                    to_logits,
                    B::fused_cross_entropy_backward(
                        logits,
                        targets,
                        partitions,
                        dy,
                        weights,
                        temperature
                    )
                );
            }
        }
        let node = logits.node();
        let (logits, targets) = (logits.into_primitive(), targets.into_primitive());
        let (loss, partitions) =
            B::fused_cross_entropy(logits.clone(), targets.clone(), weights.clone(), temperature);
        let loss = match CrossEntropy.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let tensors = [logits, targets, partitions.clone()];
                prep.finish((tensors, weights, temperature), loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(loss),
        };
        (loss, constant::<B>(partitions))
    }

    fn fused_cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        partitions: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weights: Arc<[f32]>,
        temperature: f32,
    ) -> FloatTensor<Self> {
        let [logits, targets, partitions, dy] =
            [logits, targets, partitions, dy].map(|tensor| tensor.into_primitive());
        constant::<B>(B::fused_cross_entropy_backward(
            logits,
            targets,
            partitions,
            dy,
            weights,
            temperature,
        ))
    }
}

/// A tensor of the graph that no gradient passes through.
fn constant<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<Autodiff<B>> {
    <Autodiff<B> as AutodiffBackend>::from_inner(tensor)
}

/// The extension's entry points for tensors whose device is known when the program runs.
pub(super) type Device = Dispatch;
