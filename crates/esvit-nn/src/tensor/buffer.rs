//! Element types, and memory on the CPU.

use std::fmt::Debug;

use esvit_kernels::buffer::recycle;
use esvit_kernels::element::Bf16;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub enum Dtype {
    F32,
    /// For references in tests.
    F64,
    Bf16,
    U8,
    I32,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F64 => 8,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// Values in the CPU's memory. Those of f32 go back to the kernels' buffer pool.
#[derive(Debug)]
pub enum Buffer {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bf16(Vec<Bf16>),
    U8(Vec<u8>),
    I32(Vec<i32>),
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Self::F32(values) = self {
            recycle(std::mem::take(values));
        }
    }
}

/// A type of elements.
pub trait Element: Copy + Debug + Default + PartialEq + Send + Sync + 'static {
    /// Its name.
    const DTYPE: Dtype;

    #[doc(hidden)]
    fn wrap(values: Vec<Self>) -> Buffer;
    #[doc(hidden)]
    fn values(buffer: &Buffer) -> Option<&[Self]>;
    #[doc(hidden)]
    fn values_mut(buffer: &mut Buffer) -> Option<&mut Vec<Self>>;
}

macro_rules! elements {
    ($($variant:ident $element:ty),*) => {$(
        impl Element for $element {
            const DTYPE: Dtype = Dtype::$variant;

            fn wrap(values: Vec<Self>) -> Buffer {
                Buffer::$variant(values)
            }

            fn values(buffer: &Buffer) -> Option<&[Self]> {
                match buffer {
                    Buffer::$variant(values) => Some(values),
                    _ => None,
                }
            }

            fn values_mut(buffer: &mut Buffer) -> Option<&mut Vec<Self>> {
                match buffer {
                    Buffer::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    )*};
}

elements!(F32 f32, F64 f64, Bf16 Bf16, U8 u8, I32 i32);
