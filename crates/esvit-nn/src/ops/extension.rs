//! How kernels become operations of the tensor framework: an [`Operation`] computes on slices and
//! knows its gradient; this file makes it a node in the graph of gradients.
//!
//! Kernels exist for the CPU. On other devices the functions of [`crate::ops`] do the same by
//! composition, and never come here.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{Bytes, DType, Device, Shape};

/// What an operation keeps for its backward pass.
pub(super) type Kept = Box<dyn Any + Send>;

/// An operation with kernels. Input 0 is what passes through the network and may be changed in
/// place; the others are parameters and constants.
#[expect(unreachable_pub, reason = "the extension's macro repeats it in a public signature")]
pub trait Operation: Debug + Send + Sync {
    /// The result, and with `keep` what [`Operation::backward`] needs besides the parameters.
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>);

    /// Gradients of the inputs from that of the result; `parameters` are all inputs but the first.
    /// Those that are not wanted may be left out.
    ///
    /// The default is for operations that are only called on tensors without a graph.
    fn backward(
        &self,
        _kept: Kept,
        _parameters: &[FlexTensor],
        _gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        unreachable!("{self:?} is only called on tensors without a graph")
    }
}

/// Operations by the number of their inputs.
#[backend_extension(Flex, Autodiff)]
#[expect(unreachable_pub, reason = "the macro wants a visibility that its output can repeat")]
#[expect(clippy::too_many_arguments, reason = "the macro knows no list of tensors")]
pub trait Fused: Backend {
    /// An operation of one input.
    fn fused1(operation: Arc<dyn Operation>, a: FloatTensor<Self>) -> FloatTensor<Self>;
    /// An operation of two inputs.
    fn fused2(
        operation: Arc<dyn Operation>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// An operation of three inputs.
    fn fused3(
        operation: Arc<dyn Operation>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// An operation of four inputs.
    fn fused4(
        operation: Arc<dyn Operation>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// An operation of seven inputs.
    fn fused7(
        operation: Arc<dyn Operation>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// An operation of eight inputs.
    fn fused8(
        operation: Arc<dyn Operation>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        e: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
        h: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// The extension's entry point for tensors whose device is known when the program runs.
pub(super) type Entry = Dispatch;

/// Whether a device's operations are kernels.
pub fn has_kernels(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Backends on which an [`Operation`] can run.
#[expect(unreachable_pub, reason = "a bound of an implementation of `Fused`")]
pub trait Kernels: Backend {
    /// See [`Operation::forward`].
    fn run(
        operation: &dyn Operation,
        inputs: Vec<FloatTensor<Self>>,
        keep: bool,
    ) -> (FloatTensor<Self>, Option<Kept>);
    /// See [`Operation::backward`].
    fn run_backward(
        operation: &dyn Operation,
        kept: Kept,
        parameters: &[FloatTensor<Self>],
        gradient: FloatTensor<Self>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Self>>>;
}

impl Kernels for Flex {
    fn run(
        operation: &dyn Operation,
        inputs: Vec<FlexTensor>,
        keep: bool,
    ) -> (FlexTensor, Option<Kept>) {
        operation.forward(inputs.into_iter().map(contiguous).collect(), keep)
    }

    fn run_backward(
        operation: &dyn Operation,
        kept: Kept,
        parameters: &[FlexTensor],
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        operation.backward(kept, parameters, contiguous(gradient), wanted)
    }
}

/// Implements the methods of [`Fused`] by a function over an array of inputs.
macro_rules! by_count {
    ($run:expr; $($name:ident($($input:ident),*)),*) => {
        $(
            fn $name(
                operation: Arc<dyn Operation>,
                $($input: FloatTensor<Self>),*
            ) -> FloatTensor<Self> {
                $run(operation, [$($input),*])
            }
        )*
    };
}

impl Fused for Flex {
    by_count!(
        |operation: Arc<dyn Operation>, inputs| Self::run(&*operation, Vec::from(inputs), false).0;
        fused1(a), fused2(a, b), fused3(a, b, c), fused4(a, b, c, d), fused7(a, b, c, d, e, f, g),
        fused8(a, b, c, d, e, f, g, h)
    );
}

impl<B: Fused + Kernels, C: CheckpointStrategy> Fused for Autodiff<B, C> {
    by_count!(
        tracked::<B, C, _>;
        fused1(a), fused2(a, b), fused3(a, b, c), fused4(a, b, c, d), fused7(a, b, c, d, e, f, g),
        fused8(a, b, c, d, e, f, g, h)
    );
}

/// The state of a node: it can be cloned, but what was kept is used up by the first backward pass.
#[derive(Debug)]
struct State<B: Backend> {
    operation: Arc<dyn Operation>,
    parameters: Vec<FloatTensor<B>>,
    kept: Arc<Mutex<Option<Kept>>>,
}

impl<B: Backend> Clone for State<B> {
    fn clone(&self) -> Self {
        Self {
            operation: self.operation.clone(),
            parameters: self.parameters.clone(),
            kept: self.kept.clone(),
        }
    }
}

#[derive(Debug)]
struct Node;

impl<B: Kernels, const N: usize> Backward<B, N> for Node {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let State { operation, parameters, kept } = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = kept.expect("a graph is gone through backward once");
        let gradients = B::run_backward(&*operation, kept, &parameters, gradient, &wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Runs an operation and notes it in the graph.
fn tracked<B: Kernels, C: CheckpointStrategy, const N: usize>(
    operation: Arc<dyn Operation>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    // The first input must have no second owner, so that it can be changed in place.
    let inputs: Vec<FloatTensor<B>> =
        inputs.into_iter().map(|input| input.into_primitive()).collect();
    match Node.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(preparation) => {
            let parameters = inputs[1..].to_vec();
            let (result, kept) = B::run(&*operation, inputs, true);
            let kept = Arc::new(Mutex::new(kept));
            preparation.finish(State { operation, parameters, kept }, result)
        }
        OpsKind::UnTracked(preparation) => preparation.finish(B::run(&*operation, inputs, false).0),
    }
}

/// A tensor whose values lie one after the other.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of an operation's input.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("made contiguous, and f32 is the only type in use")
}

/// The values, to be changed; a copy of them if the tensor has another owner.
pub(super) fn values_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("made contiguous");
    &mut tensor.storage_mut::<f32>()[start..end]
}

/// A tensor of these values.
pub(super) fn made(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// A tensor of these values in the shape of another.
pub(super) fn made_like(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    made(values, like.shape())
}

/// Gives the memory of a tensor that nobody else has back to the kernels.
pub(super) fn reclaim(tensor: FlexTensor) {
    if tensor.is_unique()
        && let Ok(values) = tensor.into_data().try_into_vec::<f32>()
    {
        esvit_kernels::buffer::recycle(values);
    }
}

/// An input that the backward pass needs, or its memory given back.
pub(super) fn keep_or_reclaim(tensor: FlexTensor, keep: bool) -> Option<Kept> {
    if keep {
        return Some(Box::new(tensor));
    }
    reclaim(tensor);
    None
}

/// What an operation kept, in its own type.
pub(super) fn own<T: 'static>(kept: Kept) -> T {
    *kept.downcast::<T>().expect("an operation gets back what it kept")
}
