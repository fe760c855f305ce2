//! Reverse-mode differentiation: a tape records operations, [`Tape::backward`] runs it backwards.
//!
//! A second kind of tape records shapes alone: nothing is computed, and the ONNX
//! graph ([`crate::onnx`]) is read off the recorded operations, which also know their [`crate::cost`].

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cost::Cost;
use crate::onnx::Nodes;
use crate::tensor::{Dtype, Shape, Tensor};

/// What an operation saves for its backward pass.
#[derive(Debug)]
pub struct Saved(Box<dyn Any + Send>);

impl Saved {
    /// Saves values of any type.
    pub fn new(values: impl Any + Send) -> Self {
        Self(Box::new(values))
    }

    /// The values.
    ///
    /// # Panics
    /// When they have another type.
    pub fn take<T: Any>(self) -> T {
        *self.0.downcast().expect("an operation gets what it saved")
    }
}

/// What the backward pass of an operation is given.
#[derive(Debug)]
pub struct Backward<'a> {
    /// What the forward pass saved.
    pub saved: Saved,
    /// The inputs but the first; of those that are not [kept](Operation::keeps) the shapes alone.
    pub parameters: &'a [Tensor],
    /// The gradient of the result.
    pub gradient: Tensor,
    /// Of every input, whether its gradient is used.
    pub wanted: &'a [bool],
    /// The sum of what other operations have given as the gradient of input 0, in f32, for one that
    /// [adds](Operation::adds_to_sum) its own to it.
    pub sum: Option<Tensor>,
}

/// The gradients of an operation's inputs; those of the last ones may be left out.
pub type InputGradients = Vec<Option<Tensor>>;

/// A function of tensors with its derivative. Input 0 is the activation and may be overwritten; the
/// others are parameters and constants.
pub trait Operation: Any + Debug + Send + Sync {
    /// Shape of the result, by default that of input 0.
    ///
    /// # Panics
    /// When the inputs do not fit together.
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0]
    }

    /// Element type of the result, by default that of input 0.
    fn dtype(&self, input: Dtype) -> Dtype {
        input
    }

    /// The result and, with `save`, what [`Operation::backward`] needs besides the parameters, if
    /// it needs anything.
    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>);

    /// Gradients of all inputs; None is allowed where none is wanted.
    ///
    /// The default is for operations without a derivative.
    fn backward(&self, _pass: Backward<'_>) -> InputGradients {
        panic!("{self:?} has no derivative")
    }

    /// Whether [`Operation::backward`] gives as the gradient of input 0 the sum with [`Backward::sum`], if there
    /// is one: that takes less memory than a gradient to be added, and less time.
    fn adds_to_sum(&self) -> bool {
        false
    }

    /// Whether [`Operation::backward`] reads the values of an input, from the second (1) on: else the
    /// tape keeps its shape alone.
    fn keeps(&self, _input: usize) -> bool {
        true
    }

    /// Multiply-accumulates, and bytes saved for the backward pass.
    fn cost(&self, _inputs: &[Shape]) -> Cost {
        Cost::default()
    }

    /// Adds its nodes to an ONNX graph and returns the name of the result. None, the default, for
    /// operations that a graph cannot express.
    fn onnx(&self, _nodes: &mut Nodes<'_>) -> Option<String> {
        None
    }
}

/// Index of a value on its tape.
pub(crate) type ValueId = usize;

/// A tape. Clones are the same tape.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    record: Arc<Mutex<Record>>,
}

#[derive(Debug, Default)]
struct Record {
    entries: Vec<Entry>,
    /// Whether the backward pass has been run.
    is_spent: bool,
}

/// How a value came about.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) shape: Shape,
    pub(crate) origin: Origin,
}

/// Where a value comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A leaf: its name in a pass over shapes.
    Leaf(String),
    /// A constant in a pass over shapes.
    Constant(Tensor),
    /// The result of an operation.
    Operation(Recorded),
}

/// An operation with its inputs.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) operation: Arc<dyn Operation>,
    /// Of every input, its value on the tape (None for constants) and its shape.
    pub(crate) inputs: Vec<(Option<ValueId>, Shape)>,
    parameters: Vec<Tensor>,
    saved: Option<Saved>,
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.record, &other.record)
    }

    /// Calls `look` with all values, in order.
    pub(crate) fn with_entries<R>(&self, look: impl FnOnce(&[Entry]) -> R) -> R {
        look(&self.record().entries)
    }

    fn push(&self, shape: Shape, origin: Origin) -> ValueId {
        let mut record = self.record();
        // Values of before would be taken for others.
        assert!(!record.is_spent, "a tape is run backwards once; record on a new one");
        record.entries.push(Entry { shape, origin });
        record.entries.len() - 1
    }

    /// The tensor as a leaf of this tape: operations on it are recorded, and it gets a gradient.
    #[must_use]
    pub fn watch(&self, tensor: Tensor) -> Tensor {
        self.leaf(tensor, "")
    }

    /// A leaf without values, for a pass over shapes alone.
    #[must_use]
    pub fn symbol(&self, name: &str, shape: impl Into<Shape>) -> Tensor {
        self.leaf(Tensor::symbolic(shape.into(), Dtype::F32), name)
    }

    fn leaf(&self, tensor: Tensor, name: &str) -> Tensor {
        let value = self.push(tensor.shape(), Origin::Leaf(name.to_owned()));
        tensor.detach().with_node(self.clone(), value)
    }

    /// The number of a value of this tape, in the order in which they were recorded.
    pub fn number(&self, value: &Tensor) -> Option<usize> {
        value.node().filter(|(tape, _)| tape.is(self)).map(|(_, number)| *number)
    }

    /// Runs the recorded operations backwards from `loss`, a single value, and forgets them. The
    /// gradients of leaves go to `sink`, each with its [`Tape::number`]: one call for every operation
    /// that used the leaf.
    ///
    /// # Panics
    /// When `loss` is not a value of this tape, or the tape has been run before.
    pub fn backward_into(&self, loss: &Tensor, sink: &mut dyn FnMut(usize, Tensor)) {
        let root = self.number(loss).expect("the loss is a value of this tape");
        assert_eq!(loss.numel(), 1, "a loss is a single value");
        let mut record = self.record();
        assert!(!record.is_spent, "a tape is run backwards once");
        record.is_spent = true;
        let mut entries = std::mem::take(&mut record.entries);
        drop(record);
        let mut gradients: Vec<Option<Tensor>> = entries.iter().map(|_| None).collect();
        gradients[root] = Some(loss.ones_like());
        while let Some(Entry { shape, origin }) = entries.pop() {
            let Some(gradient) = gradients.pop().flatten() else { continue };
            let Origin::Operation(recorded) = origin else {
                sink(entries.len(), gradient);
                continue;
            };
            let Recorded { operation, inputs, parameters, saved } = recorded;
            let wanted: Vec<bool> = inputs.iter().map(|(value, _)| value.is_some()).collect();
            let takes = |sum: &mut Tensor| operation.adds_to_sum() && sum.dtype() == Dtype::F32;
            let sum = inputs[0].0.and_then(|value| gradients[value].take_if(takes));
            let found = operation.backward(Backward {
                saved: saved.unwrap_or_else(|| Saved::new(())),
                parameters: &parameters,
                gradient: gradient.reshape(shape),
                wanted: &wanted,
                sum,
            });
            for ((value, _), gradient) in inputs.into_iter().zip(found) {
                let (Some(value), Some(gradient)) = (value, gradient) else { continue };
                match entries[value].origin {
                    Origin::Leaf(_) => sink(value, gradient),
                    _ => add(&mut gradients[value], gradient),
                }
            }
        }
    }

    /// [`Tape::backward_into`], with the gradients of leaves added up.
    ///
    /// # Panics
    /// As [`Tape::backward_into`].
    pub fn backward(&self, loss: &Tensor) -> Gradients {
        let mut sums = HashMap::new();
        self.backward_into(loss, &mut |leaf, gradient| {
            add(sums.entry(leaf).or_default(), gradient);
        });
        Gradients { tape: self.clone(), sums }
    }
}

/// Adds to a sum, which begins with None. Sums of bf16 are in f32.
fn add(sum: &mut Option<Tensor>, gradient: Tensor) {
    let in_f32 = |tensor: Tensor| match tensor.dtype() {
        Dtype::Bf16 => tensor.to_dtype(Dtype::F32),
        _ => tensor,
    };
    *sum = Some(match sum.take() {
        None => gradient,
        Some(sum) => {
            let mut sum = in_f32(sum);
            sum.add_assign(&in_f32(gradient));
            sum
        }
    });
}

/// The gradients of a tape's leaves.
#[derive(Debug)]
pub struct Gradients {
    tape: Tape,
    sums: HashMap<ValueId, Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a leaf, in the leaf's shape; None if the loss does not depend on it.
    pub fn of(&self, leaf: &Tensor) -> Option<Tensor> {
        let (tape, value) = leaf.node()?;
        assert!(tape.is(&self.tape), "a leaf of the same tape");
        Some(self.sums.get(value)?.clone()?.reshape(leaf.shape()))
    }
}

/// Applies an operation, and records it if an input is on a tape.
///
/// # Panics
/// When the inputs do not fit together or are on different tapes.
pub fn apply(operation: impl Operation, inputs: impl Into<Vec<Tensor>>) -> Tensor {
    run(Arc::new(operation), inputs.into())
}

fn run(operation: Arc<dyn Operation>, mut inputs: Vec<Tensor>) -> Tensor {
    let shapes: Vec<Shape> = inputs.iter().map(Tensor::shape).collect();
    let shape = operation.output(&shapes);
    let is_symbolic = inputs.iter().any(Tensor::is_symbolic);
    let dtype = operation.dtype(inputs[0].dtype());
    // Taken, so that the first input has no second owner and can be overwritten.
    let nodes: Vec<_> = inputs.iter_mut().map(Tensor::take_node).collect();
    let Some(tape) = nodes.iter().flatten().map(|(tape, _)| tape.clone()).next() else {
        if is_symbolic {
            return Tensor::symbolic(shape, dtype);
        }
        return operation.forward(inputs, false).0;
    };
    assert!(nodes.iter().flatten().all(|(other, _)| other.is(&tape)), "inputs of one tape");
    let values = nodes.iter().zip(&inputs).map(|(node, input)| match node {
        Some((_, value)) => Some(*value),
        None if is_symbolic => Some(tape.push(input.shape(), Origin::Constant(input.clone()))),
        None => None,
    });
    let values = values.zip(shapes).collect();
    let (result, parameters, saved) = if is_symbolic {
        (Tensor::symbolic(shape, dtype), Vec::new(), None)
    } else {
        let kept = inputs.iter().enumerate().skip(1).map(|(index, input)| {
            if operation.keeps(index) {
                input.clone()
            } else {
                Tensor::symbolic(input.shape(), input.dtype())
            }
        });
        let parameters = kept.collect();
        let (result, saved) = operation.forward(inputs, true);
        debug_assert_eq!(result.shape(), shape, "{operation:?}");
        (result, parameters, saved)
    };
    let recorded = Recorded { operation, inputs: values, parameters, saved };
    let value = tape.push(shape, Origin::Operation(recorded));
    result.with_node(tape, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    #[should_panic(expected = "run backwards once")]
    fn a_spent_tape_records_nothing() {
        let tape = Tape::new();
        let x = tape.watch(Tensor::ones([1], &Device::Cpu));
        let y = x.clone() * 2.0;
        tape.backward(&y);
        drop(x * 3.0);
    }

    #[test]
    #[should_panic(expected = "a single value")]
    fn a_loss_is_one_value() {
        let tape = Tape::new();
        let x = tape.watch(Tensor::ones([2], &Device::Cpu));
        tape.backward(&(x * 2.0));
    }

    #[test]
    #[should_panic(expected = "inputs of one tape")]
    fn tapes_do_not_mix() {
        let [a, b] = [(); 2].map(|()| Tape::new().watch(Tensor::ones([1], &Device::Cpu)));
        drop(a * b);
    }

    #[test]
    #[should_panic(expected = "a value of this tape")]
    fn a_loss_is_of_the_tape_that_runs() {
        let x = Tape::new().watch(Tensor::ones([1], &Device::Cpu));
        Tape::new().backward(&x);
    }
}
