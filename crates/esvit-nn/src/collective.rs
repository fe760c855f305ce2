//! Communication among the processes of a run.

use std::fmt::Debug;
use std::sync::Arc;

use crate::device::Device;
use crate::tensor::Tensor;

/// Collective operations among `world` processes, each of which calls the same ones in the same
/// order with tensors of the same shapes, on the device of its parameters.
///
/// An implementation that loses a process ends its own with a message: no process can go on alone.
pub trait Collective: Debug + Send + Sync {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// The sum of the tensors of all processes, the same bits everywhere.
    fn all_reduce(&self, tensor: Tensor) -> Tensor;

    /// The tensors of all processes, concatenated along the first axis in order of rank.
    fn all_gather(&self, tensor: Tensor) -> Tensor;

    /// [`Collective::all_gather`] of a recorded tensor. The gradient of a process's own part is the
    /// sum of what all processes have for it.
    fn all_gather_grad(&self, tensor: Tensor) -> Tensor;

    /// The tensor of process `root`.
    fn broadcast(&self, tensor: Tensor, root: usize) -> Tensor;

    /// Returns when all processes have called it.
    fn barrier(&self) {
        self.all_reduce(Tensor::zeros([1], &Device::Cpu));
    }

    /// Whether `flag` is set in any process.
    fn any(&self, flag: bool) -> bool {
        let count = Tensor::full(f32::from(flag), [1], &Device::Cpu);
        self.world() > 1 && self.all_reduce(count).item() > 0.0 || flag
    }
}

/// A process alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Solo;

impl Solo {
    /// A process alone, behind a pointer.
    pub fn shared() -> Arc<dyn Collective> {
        Arc::new(Self)
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&self, tensor: Tensor) -> Tensor {
        tensor
    }

    fn all_gather(&self, tensor: Tensor) -> Tensor {
        tensor
    }

    fn all_gather_grad(&self, tensor: Tensor) -> Tensor {
        tensor
    }

    fn broadcast(&self, tensor: Tensor, _root: usize) -> Tensor {
        tensor
    }
}
