//! What every operation is written with.

pub(super) use super::Precision;
pub(super) use super::precision::{SavedRows, in_f32_to_learn, with_element, with_stored};
pub(super) use crate::cost::Cost;
pub(super) use crate::onnx::{Attribute, Nodes};
pub(super) use crate::tape::{Backward, InputGradients, Operation, Saved, apply};
pub(super) use crate::tensor::{Shape, Tensor};
