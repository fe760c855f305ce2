//! Element types and their conversion.

use std::fmt;

use half::{bf16, f16};

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Floating point, 64 bits.
    F64,
    /// Floating point, 32 bits.
    F32,
    /// Floating point, 16 bits.
    F16,
    /// bfloat16: the upper half of an `F32`.
    Bf16,
    /// Integer, 64 bits.
    I64,
    /// Integer, 32 bits.
    I32,
    /// Integer, 16 bits.
    I16,
    /// Integer, 8 bits.
    I8,
    /// Unsigned integer, 8 bits.
    U8,
    /// A byte, true unless 0.
    Bool,
}

/// Each type with its size in bytes and its names: in safetensors (there in upper case), in PyTorch,
/// and as a storage of PyTorch. In the order of [`Dtype`].
const TYPES: [(Dtype, usize, &str, &str, &str); 10] = [
    (Dtype::F64, 8, "f64", "float64", "DoubleStorage"),
    (Dtype::F32, 4, "f32", "float32", "FloatStorage"),
    (Dtype::F16, 2, "f16", "float16", "HalfStorage"),
    (Dtype::Bf16, 2, "bf16", "bfloat16", "BFloat16Storage"),
    (Dtype::I64, 8, "i64", "int64", "LongStorage"),
    (Dtype::I32, 4, "i32", "int32", "IntStorage"),
    (Dtype::I16, 2, "i16", "int16", "ShortStorage"),
    (Dtype::I8, 1, "i8", "int8", "CharStorage"),
    (Dtype::U8, 1, "u8", "uint8", "ByteStorage"),
    (Dtype::Bool, 1, "bool", "bool", "BoolStorage"),
];

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        TYPES[self as usize].1
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    pub(crate) fn torch_name(self) -> &'static str {
        TYPES[self as usize].3
    }

    pub(crate) fn storage_class(self) -> &'static str {
        TYPES[self as usize].4
    }

    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    pub(crate) fn from_torch(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.3 == name).map(|row| row.0)
    }

    pub(crate) fn from_storage_class(class: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.4 == class).map(|row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TYPES[*self as usize].2)
    }
}

/// Appends floating-point elements to `out`; other types add nothing.
pub(crate) fn extend_f32(dtype: Dtype, data: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F64 => extend(data, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => extend(data, out, f32::from_le_bytes),
        Dtype::F16 => extend(data, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => extend(data, out, |b| bf16::from_le_bytes(b).to_f32()),
        _ => {}
    }
}

/// Appends integers and booleans to `out`; other types add nothing.
pub(crate) fn extend_i64(dtype: Dtype, data: &[u8], out: &mut Vec<i64>) {
    match dtype {
        Dtype::I64 => extend(data, out, i64::from_le_bytes),
        Dtype::I32 => extend(data, out, |b| i32::from_le_bytes(b).into()),
        Dtype::I16 => extend(data, out, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => extend(data, out, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 => extend(data, out, |[b]: [u8; 1]| b.into()),
        Dtype::Bool => extend(data, out, |[b]: [u8; 1]| (b != 0).into()),
        _ => {}
    }
}

fn extend<const N: usize, T>(data: &[u8], out: &mut Vec<T>, convert: impl Fn([u8; N]) -> T) {
    out.extend(data.as_chunks::<N>().0.iter().map(|&element| convert(element)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_widened_exactly() {
        let mut out = Vec::new();
        extend_f32(Dtype::F16, &f16::from_f32(1.5).to_le_bytes(), &mut out);
        extend_f32(Dtype::Bf16, &bf16::from_f32(-3.0).to_le_bytes(), &mut out);
        extend_f32(Dtype::F64, &1e300f64.to_le_bytes(), &mut out);
        extend_f32(Dtype::I64, &[0; 8], &mut out);
        assert_eq!(out, [1.5, -3.0, f32::INFINITY]);
    }

    #[test]
    fn integers_keep_their_sign() {
        let mut out = Vec::new();
        extend_i64(Dtype::I8, &[255], &mut out);
        extend_i64(Dtype::U8, &[255], &mut out);
        extend_i64(Dtype::I16, &(-300i16).to_le_bytes(), &mut out);
        extend_i64(Dtype::Bool, &[7], &mut out);
        assert_eq!(out, [-1, 255, -300, 1]);
    }
}
