//! Floating-point types for writing.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::dtype::Dtype;

/// The type as which floating-point values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Float {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Float {
    /// The element type.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// PyTorch's name.
    pub fn torch_name(self) -> &'static str {
        self.dtype().torch_name()
    }

    /// The values in little-endian bytes, rounded to nearest even.
    pub fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

impl FromStr for Float {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err("choose f32, f16 or bf16"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_to_the_type_that_is_named() {
        let values = [1.0 + 1.0 / 256.0, -65520.0, 1e-3];
        let bytes = |float: Float| float.to_bytes(&values);
        let halves = |halves: [u16; 3]| halves.map(u16::to_le_bytes).concat();
        assert_eq!(bytes(Float::F32), values.map(f32::to_le_bytes).concat());
        // Between two neighbors the even one is taken; 65,520 is beyond the largest number.
        assert_eq!(bytes(Float::F16), halves([0x3c04, 0xfc00, 0x1419]));
        assert_eq!(bytes(Float::Bf16), halves([0x3f80, 0xc780, 0x3a83]));
        let names = [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")];
        for (float, (name, torch)) in [Float::F32, Float::F16, Float::Bf16].into_iter().zip(names) {
            assert_eq!((float.to_string().as_str(), float.torch_name()), (name, torch));
            assert_eq!(name.parse(), Ok(float));
        }
        assert!("float32".parse::<Float>().is_err());
    }
}
