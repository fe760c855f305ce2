//! Tensors: contiguous, row-major values of one type, and their place on a tape.
//!
//! A clone shares the values. An operation may overwrite values that nobody else holds.

mod buffer;
mod shape;

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;

pub use buffer::{Dtype, Element};
pub use shape::{MAX_RANK, Shape};

use crate::device::Device;
use crate::tape::{Tape, ValueId};
use buffer::Memory;

/// A tensor.
#[derive(Debug, Clone)]
pub struct Tensor {
    storage: Storage,
    shape: Shape,
    dtype: Dtype,
    node: Option<(Tape, ValueId)>,
}

thread_local! {
    static HOST_READS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has read values of tensors back to the host. On a device each read waits for
/// all work before it.
pub fn host_reads() -> u64 {
    HOST_READS.get()
}

fn count_read() {
    HOST_READS.set(HOST_READS.get() + 1);
}

/// Where the values are.
#[derive(Debug, Clone)]
enum Storage {
    /// In the CPU's memory, [`Memory`] from an offset on.
    Cpu(Arc<dyn Any + Send + Sync>, usize),
    /// Nowhere: in a pass over shapes alone.
    Symbolic,
}

impl Tensor {
    /// A tensor of these values, row-major.
    ///
    /// # Panics
    /// When their number is not that of the shape.
    pub fn new<T: Element>(values: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Self {
        let Device::Cpu = device;
        Self::of_memory::<T>(T::Memory::of(values), shape)
    }

    /// The same of values in their memory.
    pub(crate) fn of_memory<T: Element>(memory: T::Memory, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(memory.len(), shape.numel(), "number of values of {shape:?}");
        let storage = Storage::Cpu(Arc::new(memory), 0);
        Self { storage, shape, dtype: T::DTYPE, node: None }
    }

    /// A vector of these values.
    pub fn from_vec<T: Element>(values: Vec<T>, device: &Device) -> Self {
        let len = values.len();
        Self::new(values, [len], device)
    }

    /// A tensor whose values are all alike.
    pub fn full<T: Element>(value: T, shape: impl Into<Shape>, device: &Device) -> Self {
        let shape = shape.into();
        Self::new(vec![value; shape.numel()], shape, device)
    }

    /// A tensor of zeros, f32.
    pub fn zeros(shape: impl Into<Shape>, device: &Device) -> Self {
        Self::full(0f32, shape, device)
    }

    /// A tensor of ones, f32.
    pub fn ones(shape: impl Into<Shape>, device: &Device) -> Self {
        Self::full(1f32, shape, device)
    }

    /// A shape without values, for a pass over shapes alone.
    pub(crate) fn symbolic(shape: Shape, dtype: Dtype) -> Self {
        Self { storage: Storage::Symbolic, shape, dtype, node: None }
    }

    /// Whether it is a shape without values.
    pub(crate) fn is_symbolic(&self) -> bool {
        matches!(self.storage, Storage::Symbolic)
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The sizes of its `D` dimensions.
    ///
    /// # Panics
    /// With another number of dimensions.
    pub fn dims<const D: usize>(&self) -> [usize; D] {
        self.shape.dims()
    }

    /// Number of values.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        Device::Cpu
    }

    /// The same values in another shape of equal size.
    ///
    /// # Panics
    /// When the number of values differs.
    #[must_use]
    pub fn reshape(mut self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(self.numel(), shape.numel(), "{:?} in the shape {shape:?}", self.shape);
        self.shape = shape;
        self
    }

    /// `len` values from `start` on, as a vector that shares them. Without gradient.
    ///
    /// # Panics
    /// When the tensor has fewer.
    pub fn view(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.numel(), "values {start}..{} of {:?}", start + len, self.shape);
        let storage = match &self.storage {
            Storage::Cpu(buffer, offset) => Storage::Cpu(buffer.clone(), offset + start),
            Storage::Symbolic => Storage::Symbolic,
        };
        Self { storage, shape: [len].into(), dtype: self.dtype, node: None }
    }

    /// The same values apart from the tape: no gradient flows through them.
    #[must_use]
    pub fn detach(mut self) -> Self {
        self.node = None;
        self
    }

    /// Whether another tensor holds the same values, so that writing would copy them.
    pub fn is_shared(&self) -> bool {
        matches!(&self.storage, Storage::Cpu(buffer, _) if Arc::strong_count(buffer) > 1)
    }

    /// Whether operations on it are recorded.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn node(&self) -> Option<&(Tape, ValueId)> {
        self.node.as_ref()
    }

    pub(crate) fn take_node(&mut self) -> Option<(Tape, ValueId)> {
        self.node.take()
    }

    pub(crate) fn with_node(mut self, tape: Tape, value: ValueId) -> Self {
        self.node = Some((tape, value));
        self
    }

    /// The values, in the CPU's memory.
    ///
    /// # Panics
    /// When the elements have another type.
    pub(crate) fn values<T: Element>(&self) -> &[T] {
        let Storage::Cpu(buffer, offset) = &self.storage else {
            panic!("a pass over shapes has no values")
        };
        let memory = buffer.downcast_ref::<T::Memory>();
        let values = memory.unwrap_or_else(|| panic!("{:?}, not {:?}", self.dtype, T::DTYPE));
        &values[*offset..offset + self.numel()]
    }

    /// The values, mutable; copied first if the tensor has another owner.
    ///
    /// # Panics
    /// When the elements have another type.
    pub(crate) fn values_mut<T: Element>(&mut self) -> &mut [T] {
        if self.owned::<T>().is_none() {
            *self = Self::of_memory::<T>(T::Memory::copied(self.values()), self.shape);
        }
        let len = self.numel();
        let (values, offset) = self.owned::<T>().expect("the only owner");
        &mut values[offset..offset + len]
    }

    /// The memory and the offset in it, if nobody else holds it.
    fn owned<T: Element>(&mut self) -> Option<(&mut T::Memory, usize)> {
        let Storage::Cpu(buffer, offset) = &mut self.storage else { return None };
        Some((Arc::get_mut(buffer)?.downcast_mut()?, *offset))
    }

    /// Overwrites the values from `start` on; copied first if the tensor has another owner.
    ///
    /// # Panics
    /// When the elements have another type, or the tensor has fewer.
    pub fn write<T: Element>(&mut self, start: usize, values: &[T]) {
        self.values_mut()[start..start + values.len()].copy_from_slice(values);
    }

    /// The values on the host, copied unless this is their only owner.
    ///
    /// # Panics
    /// When the elements have another type.
    pub fn into_vec<T: Element>(mut self) -> Vec<T> {
        count_read();
        let len = self.numel();
        match self.owned::<T>() {
            Some((memory, 0)) if memory.len() == len => memory.take(),
            _ => self.values().to_vec(),
        }
    }

    /// A copy of the values on the host.
    ///
    /// # Panics
    /// When the elements have another type.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        count_read();
        self.values().to_vec()
    }

    /// The value of an f32 tensor that has one, on the host.
    ///
    /// # Panics
    /// With more values or another type.
    pub fn item(&self) -> f32 {
        count_read();
        let [value] = self.values() else { panic!("one value expected, not {:?}", self.shape) };
        *value
    }
}
