//! Storage types of GEMM operands and saved activations.

use std::any::TypeId;
use std::fmt::Debug;

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::buffer::Buffer;
use crate::elementwise::update;
use crate::gemm::Gemm;

/// A storage type: f32, with products of its own or of bf16 parts, or bf16. Arithmetic and accumulation
/// are in f32.
pub trait Element: Gemm + bytemuck::Pod + Default + Debug + PartialEq + Send + Sync {
    /// Consecutive K values that one lane of a GEMM instruction multiplies and adds: 1 for f32, 2
    /// for bf16 (`vdpbf16ps`). Rows of operands are padded with zeros to a multiple of it.
    const K_PACK: usize;
    /// Name in options and reports.
    const NAME: &'static str;

    /// Rounds to the storage type.
    fn from_f32(value: f32) -> Self;
    /// Widens to f32.
    fn to_f32(self) -> f32;
    /// The same slice if the type is f32, so that GEMM can write there without conversion.
    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]>;
}

/// Whether backward passes compute again what one product gives, instead of reading what the forward
/// pass saved: with bf16 tiles (AMX) this takes hardly longer than to write and to read it.
pub(crate) fn recomputes<T: Element>() -> bool {
    size_of::<T>() < size_of::<f32>() && T::has_tiles()
}

impl Element for f32 {
    const K_PACK: usize = 1;
    const NAME: &'static str = "f32";

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn as_f32_mut(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }
}

/// bfloat16: the upper 16 bits of an f32.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: a wrapper of `u16` without padding, for which all bits are valid.
unsafe impl bytemuck::Zeroable for Bf16 {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Bf16 {}

impl Debug for Bf16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_f32().fmt(f)
    }
}

impl Element for Bf16 {
    const K_PACK: usize = 2;
    const NAME: &'static str = "bf16";

    /// Rounds to nearest, ties to even. NaN stays NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        Self(if value.is_nan() { quiet } else { rounded } as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

/// f32 whose products are those of bf16 parts (bf16x3), where the hardware multiplies tiles of these:
/// within 2^-16 of f32. Where it does not, products are those of f32.
#[derive(Clone, Copy, Default, PartialEq)]
#[repr(transparent)]
pub struct Bf16x3(pub f32);

// SAFETY: a wrapper of `f32` without padding, for which all bits are valid.
unsafe impl bytemuck::Zeroable for Bf16x3 {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Bf16x3 {}

impl Debug for Bf16x3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Element for Bf16x3 {
    const K_PACK: usize = 1;
    const NAME: &'static str = "bf16x3";

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self(value)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.0
    }

    #[inline(always)]
    fn as_f32_mut(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(bytemuck::cast_slice_mut(values))
    }
}

/// Length at which a row of `n` values is stored: the next multiple of [`Element::K_PACK`].
#[inline(always)]
pub fn padded_row_len<T: Element>(n: usize) -> usize {
    n.next_multiple_of(T::K_PACK)
}

/// The same values, if both types are one.
pub(crate) fn same<T: Element, U: Element>(values: &[T]) -> Option<&[U]> {
    (TypeId::of::<T>() == TypeId::of::<U>()).then(|| bytemuck::cast_slice(values))
}

/// Values in bf16, rounded.
pub fn rounded(values: &[f32]) -> Buffer<Bf16> {
    let mut rounded = Buffer::uninit(values.len());
    let tasks = rounded.par_chunks_mut(TASK_VALUES).zip(values.par_chunks(TASK_VALUES));
    tasks.for_each(|(to, from)| update(to, [from], |_, [value]| value));
    rounded
}

/// The values of bf16 in f32.
pub fn widened(values: &[Bf16]) -> Vec<f32> {
    let mut widened = Buffer::<f32>::scratch(values.len());
    let tasks = widened.par_chunks_mut(TASK_VALUES).zip(values.par_chunks(TASK_VALUES));
    tasks.for_each(|(to, from)| update(to, [from], |_, [value]| value));
    widened.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding() {
        for (value, bits) in [
            (1.0, 0x3f80),
            // Ties go to even.
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            // Just beside a tie.
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f81_7fff), 0x3f81),
            (-1.0, 0xbf80),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
        ] {
            assert_eq!(Bf16::from_f32(value).0, bits, "{value}");
        }
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        assert!(Bf16::from_f32(f32::from_bits(0x7fff_ffff)).to_f32().is_nan());
        assert!(Bf16::from_f32(f32::from_bits(0x7f80_0001)).to_f32().is_nan());
        assert_eq!(Bf16(0xc2f7).to_f32(), -123.5);
    }

    /// More values than one task has.
    #[test]
    fn rows_are_rounded_and_widened() {
        let values = crate::testing::normal(TASK_VALUES + 7, 1);
        let found = rounded(&values);
        let expected: Vec<Bf16> = values.iter().copied().map(Bf16::from_f32).collect();
        assert_eq!(found[..], expected);
        let wide: Vec<f32> = expected.iter().map(|value| value.to_f32()).collect();
        assert_eq!(widened(&found), wide);
    }

    #[test]
    fn padded_lengths() {
        assert_eq!([0, 1, 2, 7].map(padded_row_len::<f32>), [0, 1, 2, 7]);
        assert_eq!([0, 1, 2, 7].map(padded_row_len::<Bf16>), [0, 2, 2, 8]);
        assert!(
            f32::as_f32_mut(&mut [1.0]).is_some() && Bf16::as_f32_mut(&mut [Bf16(0)]).is_none()
        );
        let mut values = [Bf16x3(1.5), Bf16x3(-2.0)];
        assert_eq!(Bf16x3::as_f32_mut(&mut values), Some(&mut [1.5, -2.0][..]));
    }
}
