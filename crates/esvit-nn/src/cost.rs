//! What an operation costs.

use std::collections::HashSet;

use crate::ops::{Compute, Precision, Scales};
use crate::tape::{Origin, Tape};
use crate::tensor::Shape;

/// The cost of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Multiply-accumulates.
    pub macs: f64,
    /// Multiply-accumulates that windows spend on padding, which the official code computes too.
    pub padding_macs: f64,
    /// Bytes that are saved for the backward pass.
    pub saved_bytes: f64,
    /// Values of the largest result of an operation.
    pub largest: f64,
}

impl Tape {
    /// The cost of all recorded operations.
    pub fn cost(&self) -> Cost {
        self.with_entries(|entries| {
            let mut total = Cost::default();
            let mut operands = HashSet::new();
            for entry in entries {
                let Origin::Operation(recorded) = &entry.origin else { continue };
                let shapes: Vec<Shape> = recorded.inputs.iter().map(|(_, shape)| *shape).collect();
                let cost = recorded.operation.cost(&shapes);
                total.macs += cost.macs;
                total.padding_macs += cost.padding_macs;
                total.saved_bytes += cost.saved_bytes;
                // The tape keeps computed operands for the backward pass, like parameters.
                for (index, (value, shape)) in recorded.inputs.iter().enumerate().skip(1) {
                    let computed = value.filter(|&value| {
                        matches!(entries[value].origin, Origin::Operation(_))
                            && recorded.operation.keeps(index)
                    });
                    if computed.is_some_and(|value| operands.insert(value)) {
                        total = total.saving(shape.numel(), Precision::F32);
                    }
                }
                total.largest = total.largest.max(entry.shape.numel() as f64);
            }
            total
        })
    }
}

impl Cost {
    /// Multiply-accumulates as the official code counts them, those of padding included.
    pub fn official_macs(&self) -> u64 {
        (self.macs + self.padding_macs) as u64
    }

    /// Products alone.
    pub(crate) fn products(macs: usize) -> Self {
        Self { macs: macs as f64, ..Self::default() }
    }

    /// The same, with values that are saved in a precision.
    #[must_use]
    pub(crate) fn saving(self, values: usize, precision: Precision) -> Self {
        Self { saved_bytes: self.saved_bytes + (values * precision.bytes()) as f64, ..self }
    }

    /// The same for a residual branch: of images that stochastic depth drops nothing is computed,
    /// and with activation checkpointing only the branch's `input` values are saved instead of
    /// `saved` ones.
    #[must_use]
    pub(crate) fn of_branch(
        self,
        input: usize,
        saved: usize,
        scales: &Scales,
        compute: &Compute,
    ) -> Self {
        let kept = scales.as_ref().map_or(1.0, |scales| {
            let kept: f64 = scales.iter().map(|&scale| f64::from(scale.min(1.0))).sum();
            kept / scales.len().max(1) as f64
        });
        let cost = Self { macs: self.macs * kept, padding_macs: self.padding_macs * kept, ..self };
        if compute.activation_checkpointing {
            cost.saving(input, Precision::F32)
        } else {
            cost.saving(saved, compute.precision)
        }
    }
}
