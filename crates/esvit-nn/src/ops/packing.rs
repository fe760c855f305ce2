//! Weights that stay in the layout of their products over many passes.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Precision;
use crate::params::ParamId;

/// The layouts of a network's weights, by the first parameter of the operation that uses them.
#[derive(Debug, Default)]
pub struct PackedWeights {
    layouts: Mutex<HashMap<(ParamId, Precision), Arc<dyn Any + Send + Sync>>>,
}

/// Where an operation's weights are kept; the default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Packing(Option<(Arc<PackedWeights>, ParamId)>);

impl Packing {
    /// In `weights`, under the operation's first parameter.
    pub(crate) fn within(weights: Arc<PackedWeights>, operation: ParamId) -> Self {
        Self(Some((weights, operation)))
    }

    /// The layout that is there, or one that `make` makes.
    pub(super) fn get<L: Any + Send + Sync>(
        &self,
        precision: Precision,
        make: impl FnOnce() -> L,
    ) -> Arc<L> {
        let Some((weights, operation)) = &self.0 else { return Arc::new(make()) };
        let mut layouts = weights.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let layout =
            layouts.entry((*operation, precision)).or_insert_with(|| Arc::new(make())).clone();
        layout.downcast().expect("an operation has one kind of layout in a precision")
    }
}
