//! Working memory that is used again.
//!
//! A training step takes the same buffers as the step before. Fresh memory would cost a page fault
//! for every 4 KiB and a pass of zeros over all of it, together a fifth of a step, so buffers that
//! are no longer needed wait in a pool. They keep their old contents: whoever takes one writes it
//! before reading it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::element::{Element, row_len};

/// Smaller buffers are left to the allocator.
const POOLED_BYTES: usize = 16 << 10;

/// A buffer that nobody took while this many others were taken is freed.
const IDLE_TAKES: u64 = 1 << 17;

/// Values in a buffer that may be larger. Returns to the pool when dropped.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    values: Vec<T>,
    len: usize,
}

impl<T: Element> Buffer<T> {
    /// `len` values, whatever they are.
    pub(crate) fn stale(len: usize) -> Self {
        if len * size_of::<T>() < POOLED_BYTES {
            return Self { values: vec![T::default(); len], len };
        }
        let values = T::pool().take(len).unwrap_or_else(|| vec![T::default(); len]);
        Self { values, len }
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::stale(len);
        buffer.fill(T::default());
        buffer
    }

    /// Whatever values for `rows` rows of `width`, each stored at the length of [`row_len`]; what
    /// fills up the rows is zero.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        let row = row_len::<T>(width);
        let mut buffer = Self::stale(rows * row);
        if row > width {
            buffer.fill(T::default());
        }
        buffer
    }

    /// The same for the `kept` ones of `total` rows. Takes as much memory whatever is kept, so that
    /// a step in which other rows are dropped finds it in the pool.
    pub(crate) fn kept_rows(kept: usize, total: usize, width: usize) -> Self {
        let mut buffer = Self::rows(total.max(kept), width);
        buffer.len = kept * row_len::<T>(width);
        buffer
    }

    /// The values as a vector.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        let mut values = std::mem::take(&mut self.values);
        values.truncate(self.len);
        values
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::stale(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        recycle(std::mem::take(&mut self.values));
    }
}

/// `len` values of memory that may have been used before, whatever they are, to be written before
/// they are read.
pub fn stale(len: usize) -> Vec<f32> {
    Buffer::<f32>::stale(len).into_vec()
}

/// Puts memory that is no longer needed into the pool that kernels take theirs from.
pub fn recycle<T: Element>(values: Vec<T>) {
    if values.len() * size_of::<T>() >= POOLED_BYTES {
        T::pool().put(values);
    }
}

/// Buffers that wait to be taken.
#[derive(Debug)]
pub struct Pool<T> {
    idle: Mutex<Idle<T>>,
}

#[derive(Debug)]
struct Idle<T> {
    /// With the time, in takes, at which each was put.
    buffers: Vec<(u64, Vec<T>)>,
    takes: u64,
}

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self { idle: Mutex::new(Idle { buffers: Vec::new(), takes: 0 }) }
    }

    /// The smallest buffer of at least `len` values, if one is not much larger.
    fn take(&self, len: usize) -> Option<Vec<T>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.takes += 1;
        let now = idle.takes;
        if now.is_multiple_of(IDLE_TAKES / 8) {
            idle.buffers.retain(|(put, _)| now - put < IDLE_TAKES);
        }
        let fits = |buffer: &Vec<T>| (len..=len + len / 4).contains(&buffer.len());
        let best = idle.buffers.iter().enumerate().filter(|(_, (_, buffer))| fits(buffer));
        let (at, _) = best.min_by_key(|(_, (put, buffer))| (buffer.len(), u64::MAX - put))?;
        Some(idle.buffers.swap_remove(at).1)
    }

    fn put(&self, values: Vec<T>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = idle.takes;
        idle.buffers.push((now, values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again() {
        // A length that no other test takes.
        let len = 123_457;
        let mut first = Buffer::<f32>::stale(len);
        first.fill(7.0);
        let at = first.as_ptr();
        drop(first);
        let second = Buffer::<f32>::stale(len - 10);
        assert_eq!((second.as_ptr(), second.len(), second[5]), (at, len - 10, 7.0));
        drop(second);
        let third = Buffer::<f32>::stale(len * 3 / 4 - 10);
        assert_ne!(third.as_ptr(), at);
        let fourth = Buffer::<f32>::zeroed(len);
        assert!(fourth.as_ptr() == at && fourth.iter().all(|&v| v == 0.0));
        recycle(fourth.into_vec());
        assert_eq!(Buffer::<f32>::stale(len).as_ptr(), at);
    }
}
