//! Weights packed for GEMM, cached over many forward passes.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Precision;
use crate::params::ParamId;

/// Packed weights of a network, by the first parameter of the operation that uses them.
#[derive(Debug, Default)]
pub struct PackedWeights {
    layouts: Mutex<HashMap<(ParamId, Precision), Arc<dyn Any + Send + Sync>>>,
}

/// The cache entry of an operation's packed weights; the default caches nothing.
#[derive(Debug, Clone, Default)]
pub struct Packing(Option<(Arc<PackedWeights>, ParamId)>);

impl Packing {
    /// An entry in `weights` for the operation whose first parameter is `operation`.
    pub(crate) fn within(weights: Arc<PackedWeights>, operation: ParamId) -> Self {
        Self(Some((weights, operation)))
    }

    /// The cached packed weights, or else those that `make` returns.
    pub(super) fn get<L: Any + Send + Sync>(
        &self,
        precision: Precision,
        make: impl FnOnce() -> L,
    ) -> Arc<L> {
        let Some((weights, operation)) = &self.0 else { return Arc::new(make()) };
        let key = (*operation, precision);
        let layouts = || weights.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let found = layouts().get(&key).cloned();
        // `make` runs without the lock: while it waits for the thread pool, its thread may start
        // another forward pass, which locks too.
        let layout = found.unwrap_or_else(|| {
            let made = Arc::new(make());
            layouts().entry(key).or_insert(made).clone()
        });
        layout.downcast().expect("an operation packs its weights in one way per precision")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Init, Registry};

    #[test]
    fn a_layout_is_made_once_and_may_need_others() {
        let mut registry = Registry::default();
        let [first, second] = ["a", "b"].map(|name| registry.root().param(name, &[1], Init::Zeros));
        let weights = Arc::new(PackedWeights::default());
        let [first, second] = [first, second].map(|id| Packing::within(weights.clone(), id));
        let nested = first.get(Precision::F32, || 1 + *second.get(Precision::F32, || 2));
        assert_eq!((*nested, *first.get(Precision::F32, || 7)), (3, 3));
        assert_eq!((*second.get(Precision::F32, || 7), *first.get(Precision::Bf16, || 9)), (2, 9));
        assert_eq!((*Packing::default().get(Precision::F32, || 5)), 5);
    }
}
