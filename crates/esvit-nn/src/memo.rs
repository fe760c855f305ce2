//! Values that are made once, such as the index tables of a map.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Values by what they depend on, each made on first use and kept.
#[derive(Debug)]
pub(crate) struct Memo<K, V> {
    made: Mutex<HashMap<K, Arc<V>>>,
}

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self { made: Mutex::default() }
    }
}

impl<K: Eq + Hash, V> Memo<K, V> {
    /// The value of `key`, by `make` unless it is there. `make` does not use the same memo.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(key).or_insert_with(|| Arc::new(make())).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_once() {
        let memo = Memo::default();
        let first = memo.get([1, 2], || "first");
        assert!(Arc::ptr_eq(&first, &memo.get([1, 2], || "again")));
        assert_eq!((*first, *memo.get([2, 1], || "other")), ("first", "other"));
    }
}
