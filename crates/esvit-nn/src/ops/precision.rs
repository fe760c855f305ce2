//! The type of GEMM operands and saved activations.

use std::any::Any;

use esvit_kernels::buffer::{recycle, uninit};
use esvit_kernels::element::{Bf16, rounded};
use esvit_kernels::isa;
use serde::{Deserialize, Serialize};

use super::cpu::{values, values_mut};
use super::{AutoChoice, Packing};
use crate::tape::Saved;
use crate::tensor::{Dtype, Tensor};

/// The type of GEMM operands and saved activations. Parameters, reductions, softmax, losses and
/// everything between operations are f32, but for the maps of a ResNet within a branch and their gradients,
/// and where nothing learns for what lies between some others, such as queries, keys and values: those are
/// stored as operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16, accumulated in f32.
    Bf16,
    /// 32 bits, multiplied as products of two parts in bf16, accumulated in f32: within some 2^-16 of
    /// f32. Where no hardware multiplies tiles of bf16, this is f32.
    Bf16x3,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Bf16x3];

    /// What was measured to be faster on processors like this one: see [`AutoChoice`].
    pub fn auto() -> Self {
        AutoChoice::here().precision
    }

    /// Keeps rows for the backward pass.
    pub(super) fn save(self, x: Tensor) -> SavedRows {
        match (self, x.dtype()) {
            (Self::Bf16, Dtype::F32) => {
                let rows = Tensor::of_memory::<Bf16>(rounded(values(&x)), x.shape());
                SavedRows { rows, dtype: Dtype::F32 }
            }
            (_, dtype) => SavedRows { rows: x, dtype },
        }
    }

    /// Its name in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16x3 => "bf16x3",
        }
    }

    /// The type in which evaluation may store what lies between operations.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 | Self::Bf16x3 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The type of an operation's results that are stored in the precision where nothing learns.
    pub(super) fn dtype_of(self, inputs: &[Tensor]) -> Dtype {
        if inputs.iter().any(Tensor::is_tracked) { Dtype::F32 } else { self.dtype() }
    }

    /// Bytes of a GEMM operand or a saved activation.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Bf16x3 => 4,
            Self::Bf16 => 2,
        }
    }

    /// What is to be said of it on this machine.
    pub fn remark(self) -> Option<&'static str> {
        let is_other = self == Self::Bf16x3 && !isa::current().has_tiles();
        is_other
            .then_some("`bf16x3` is computed as f32: it needs a unit that multiplies tiles (AMX)")
    }
}

/// Rows that are saved for the backward pass.
#[derive(Debug)]
pub(super) struct SavedRows {
    rows: Tensor,
    /// Their type before they were saved.
    dtype: Dtype,
}

impl SavedRows {
    /// The rows in f32.
    pub(super) fn restored(self) -> Tensor {
        self.rows.to_dtype(Dtype::F32)
    }

    /// The rows as they are saved: see [`with_stored`].
    pub(super) fn stored(self) -> Tensor {
        self.rows
    }

    /// Whether they were in bf16 before they were saved: then their gradient may be, too, which a norm
    /// gives to the convolution before it.
    pub(super) fn came_stored(&self) -> bool {
        self.dtype == Dtype::Bf16
    }
}

/// The inputs of an operation that takes some in bf16 where nothing learns: in f32 if one is on a tape.
pub(super) fn in_f32_to_learn(inputs: Vec<Tensor>) -> Vec<Tensor> {
    if !inputs.iter().any(Tensor::is_tracked) {
        return inputs;
    }
    inputs.into_iter().map(|input| input.to_dtype(Dtype::F32)).collect()
}

/// How a branch of a block is computed.
#[derive(Debug, Clone, Default)]
pub struct Compute {
    /// The type of GEMM operands and of saved activations.
    pub precision: Precision,
    /// Saves only a branch's input and recomputes the rest in the backward pass: about a quarter
    /// more time for a fraction of the memory.
    pub activation_checkpointing: bool,
    /// The cache entry of packed weights.
    pub packing: Packing,
}

impl From<Precision> for Compute {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl Compute {
    /// Runs a branch on `x` in place. What `branch`, told whether to, saves is saved, or with
    /// checkpointing a copy of `x`.
    pub(super) fn forward<S: Any + Send>(
        &self,
        mut x: Tensor,
        save: bool,
        branch: impl FnOnce(&mut [f32], bool) -> Option<S>,
    ) -> (Tensor, Option<Saved>) {
        if save && self.activation_checkpointing {
            let mut input = uninit(x.numel());
            input.copy_from_slice(values(&x));
            branch(values_mut(&mut x), false);
            return (x, Some(Saved::new(input)));
        }
        let saved = branch(values_mut(&mut x), save).map(Saved::new);
        (x, saved)
    }

    /// What `branch` saves, which with checkpointing runs again.
    pub(super) fn saved<S: Any + Send>(
        &self,
        saved: Saved,
        branch: impl FnOnce(&mut [f32]) -> Option<S>,
    ) -> S {
        if !self.activation_checkpointing {
            return saved.take();
        }
        let mut x: Vec<f32> = saved.take();
        let saved = branch(&mut x);
        recycle(x);
        saved.expect("the branch was asked to save")
    }
}

/// Evaluates an expression with the values of a tensor in f32 or in bf16, and their type.
macro_rules! with_stored {
    ($tensor:expr, $values:ident: $element:ident => $call:expr) => {
        match $tensor.dtype() {
            $crate::tensor::Dtype::Bf16 => {
                type $element = esvit_kernels::element::Bf16;
                let $values: &[$element] = $tensor.values();
                $call
            }
            _ => {
                type $element = f32;
                let $values: &[$element] = $tensor.values();
                $call
            }
        }
    };
}
pub(super) use with_stored;

/// Evaluates an expression with the element type of a precision.
macro_rules! with_element {
    ($precision:expr, $element:ident => $call:expr) => {
        match $precision {
            $crate::ops::Precision::F32 => {
                type $element = f32;
                $call
            }
            $crate::ops::Precision::Bf16 => {
                type $element = esvit_kernels::element::Bf16;
                $call
            }
            $crate::ops::Precision::Bf16x3 => {
                type $element = esvit_kernels::element::Bf16x3;
                $call
            }
        }
    };
}
pub(super) use with_element;
