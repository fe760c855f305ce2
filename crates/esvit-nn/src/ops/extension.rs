//! Makes kernels operations of the tensor framework: an [`Operation`] has a forward and a backward
//! pass on slices; this file registers it as a node of the autodiff graph.
//!
//! Kernels exist for the CPU. On other devices the functions of [`crate::ops`] compose the
//! framework's operations and do not use this file.

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

/// The activations that an operation saves for its backward pass.
pub(super) type Kept = Box<dyn Any + Send>;

/// An operation with kernels. Input 0 is the activation and may be overwritten; the others are
/// parameters and constants.
#[expect(unreachable_pub, reason = "the extension's macro repeats it in a public signature")]
pub trait Operation: Debug + Send + Sync {
    /// The result and, with `keep`, what [`Operation::backward`] needs besides the parameters.
    fn forward(&self, inputs: Vec<FlexTensor>, keep: bool) -> (FlexTensor, Option<Kept>);

    /// Gradients of all inputs, given that of the result; `parameters` are the inputs but the
    /// first. Where `wanted` is false, the gradient may be None.
    ///
    /// The default is for operations that are never part of a graph.
    fn backward(
        &self,
        _kept: Kept,
        _parameters: &[FlexTensor],
        _gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        unreachable!("{self:?} is never part of a graph")
    }
}

/// Operations by the number of their inputs.
#[backend_extension(Flex, Autodiff)]
#[expect(unreachable_pub, reason = "the macro's output repeats the visibility")]
#[expect(clippy::too_many_arguments, reason = "the macro takes no list of tensors")]
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

/// Dispatches on the device of tensors at run time.
pub(super) type Entry = Dispatch;

/// Whether a device runs kernels (only the CPU does) or composed operations.
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

/// Implements the methods of [`Fused`] by one function over an array of inputs.
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

/// State of a node. Clones share the saved activations; the first backward pass takes them.
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
        let kept = kept.expect("a graph has one backward pass");
        let gradients = B::run_backward(&*operation, kept, &parameters, gradient, &wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Runs an operation and records it in the graph.
fn tracked<B: Kernels, C: CheckpointStrategy, const N: usize>(
    operation: Arc<dyn Operation>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    // Consumed, so that the first input has no second owner and can be overwritten.
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

/// The tensor, copied unless its values are contiguous.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of a contiguous tensor.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("inputs are contiguous f32")
}

/// The values, mutable; copied first if the tensor has another owner.
pub(super) fn values_mut(tensor: &mut FlexTensor) -> &mut [f32] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("inputs are contiguous");
    &mut tensor.storage_mut::<f32>()[start..end]
}

/// A contiguous tensor.
pub(super) fn made(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// A contiguous tensor in the shape of another.
pub(super) fn made_like(values: Vec<f32>, like: &FlexTensor) -> FlexTensor {
    made(values, like.shape())
}

/// Returns the memory of a tensor without other owners to the kernels' buffer pool.
pub(super) fn reclaim(tensor: FlexTensor) {
    if tensor.is_unique()
        && let Ok(values) = tensor.into_data().try_into_vec::<f32>()
    {
        esvit_kernels::buffer::recycle(values);
    }
}

/// Saves an input for the backward pass, or recycles its memory.
pub(super) fn keep_or_reclaim(tensor: FlexTensor, keep: bool) -> Option<Kept> {
    if keep {
        return Some(Box::new(tensor));
    }
    reclaim(tensor);
    None
}

/// Downcasts what an operation saved.
pub(super) fn own<T: 'static>(kept: Kept) -> T {
    *kept.downcast::<T>().expect("an operation gets what it saved")
}
