//! Element types, and memory on the CPU.

use std::fmt::Debug;
use std::ops::DerefMut;

use esvit_kernels::buffer::Buffer;
use esvit_kernels::element::Bf16;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point, for references in tests.
    F64,
    /// Brain floating point.
    Bf16,
    /// Bytes.
    U8,
    /// Signed integers.
    I32,
}

/// Values in the CPU's memory.
pub trait Memory<T>: DerefMut<Target = [T]> + Send + Sync + 'static {
    /// Memory with these values.
    fn of(values: Vec<T>) -> Self;
    /// A copy of values.
    fn copied(values: &[T]) -> Self;
    /// Takes the values out; none are left.
    fn take(&mut self) -> Vec<T>;
}

impl<T: Copy + Send + Sync + 'static> Memory<T> for Vec<T> {
    fn of(values: Vec<T>) -> Self {
        values
    }

    fn copied(values: &[T]) -> Self {
        values.to_vec()
    }

    fn take(&mut self) -> Vec<T> {
        std::mem::take(self)
    }
}

impl Memory<f32> for Buffer<f32> {
    fn of(values: Vec<f32>) -> Self {
        values.into()
    }

    fn copied(values: &[f32]) -> Self {
        Self::copied(values)
    }

    fn take(&mut self) -> Vec<f32> {
        std::mem::replace(self, Vec::new().into()).into_vec()
    }
}

impl Memory<Bf16> for Buffer<Bf16> {
    fn of(values: Vec<Bf16>) -> Self {
        Self::copied(&values)
    }

    fn copied(values: &[Bf16]) -> Self {
        Self::copied(values)
    }

    fn take(&mut self) -> Vec<Bf16> {
        std::mem::replace(self, Self::copied(&[])).to_vec()
    }
}

/// A type of elements.
pub trait Element: Copy + Debug + Default + PartialEq + Send + Sync + 'static {
    /// Its name.
    const DTYPE: Dtype;

    /// What holds values: those of f32 and bf16 go back to the kernels' buffer pool, and copies of them come
    /// from it.
    #[doc(hidden)]
    type Memory: Memory<Self>;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    type Memory = Buffer<Self>;
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
    type Memory = Vec<Self>;
}

impl Element for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    type Memory = Buffer<Self>;
}

impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;
    type Memory = Vec<Self>;
}

impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
    type Memory = Vec<Self>;
}
