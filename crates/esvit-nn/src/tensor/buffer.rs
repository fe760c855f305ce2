//! Element types, and memory on the CPU.

use std::fmt::Debug;

use esvit_kernels::buffer;
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

/// Values in the CPU's memory. Those of f32 go back to the kernels' buffer pool, and copies of
/// them come from it.
pub(super) struct Buffer<T: Element>(pub(super) Vec<T>);

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        T::recycle(std::mem::take(&mut self.0));
    }
}

/// A type of elements.
pub trait Element: Copy + Debug + Default + PartialEq + Send + Sync + 'static {
    /// Its name.
    const DTYPE: Dtype;

    #[doc(hidden)]
    fn copied(values: &[Self]) -> Vec<Self> {
        values.to_vec()
    }

    #[doc(hidden)]
    fn recycle(_values: Vec<Self>) {}
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    fn copied(values: &[Self]) -> Vec<Self> {
        buffer::copied(values)
    }

    fn recycle(values: Vec<Self>) {
        buffer::recycle(values);
    }
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
}

impl Element for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;
}

impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}
