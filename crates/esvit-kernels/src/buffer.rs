//! Working memory that is used again.
//!
//! A training step takes the same buffers as the step before. Fresh memory would cost a page fault
//! for every 4 KiB and a pass of zeros over all of it, together a fifth of a step, so buffers that
//! are no longer needed wait in a pool. They keep their old contents: whoever takes one writes it
//! before reading it.
//!
//! There is one pool for all types, so that gradients lie where the activations were that they were
//! made from.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::element::{Element, padded_row_len};

/// Smaller buffers are left to the allocator.
const POOLED_WORDS: usize = 4 << 10;

/// Smaller buffers are never taken much larger than they need be: there are many at a time.
const LARGE_WORDS: usize = 256 << 10;

/// A buffer that nobody took while this many others were taken is freed.
const IDLE_TAKES: u64 = 1 << 17;

/// By how many words buffers in use and idle ones together may exceed the most that were ever in use
/// at a time. Where no idle buffer fits and this is reached, a new one takes the place of those that
/// have been idle for longest: the first to come back from a network are the last that it takes.
const SLACK_WORDS: usize = 16 << 20;

/// Values in a buffer that may be larger. Returns to the pool when dropped.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    words: Vec<f32>,
    len: usize,
    element: PhantomData<T>,
}

/// How long a buffer is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    /// until backward, or for an unknown time: it should not be larger than it need be.
    Saved,
    /// Within an operation of the backward pass, or until the update: any that is large enough will do,
    /// since what waits in the pool then is not needed before the next step.
    Scratch,
}

impl<T: Element> Buffer<T> {
    fn take(len: usize, lifetime: Lifetime) -> Self {
        let words = (len * size_of::<T>()).div_ceil(size_of::<f32>());
        let words =
            if words < POOLED_WORDS { vec![0.0; words] } else { POOL.take(words, lifetime) };
        Self { words, len, element: PhantomData }
    }

    /// `len` values, whatever they are.
    pub(crate) fn uninit(len: usize) -> Self {
        Self::take(len, Lifetime::Saved)
    }

    /// The same, needed only briefly or until the update of the parameters.
    pub(crate) fn scratch(len: usize) -> Self {
        Self::take(len, Lifetime::Scratch)
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::uninit(len);
        buffer.fill(T::default());
        buffer
    }

    /// Whatever values for `rows` rows of `width`, each stored at the length of [`padded_row_len`]; what
    /// fills up the rows is zero.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        Self::take(rows * padded_row_len::<T>(width), Lifetime::Saved).zero_padding(width)
    }

    /// The same, needed only briefly.
    pub(crate) fn scratch_rows(rows: usize, width: usize) -> Self {
        Self::take(rows * padded_row_len::<T>(width), Lifetime::Scratch).zero_padding(width)
    }

    fn zero_padding(mut self, width: usize) -> Self {
        if padded_row_len::<T>(width) > width {
            self.fill(T::default());
        }
        self
    }

    /// The same for the `kept` ones of `total` rows. Takes as much memory whatever is kept, so that
    /// a step in which other rows are dropped finds it in the pool.
    pub(crate) fn kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::rows(total.max(kept), width).cut(kept * padded_row_len::<T>(width))
    }

    /// The same, needed only briefly.
    pub(crate) fn scratch_kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::scratch_rows(total.max(kept), width).cut(kept * padded_row_len::<T>(width))
    }

    fn cut(mut self, len: usize) -> Self {
        self.len = len;
        self
    }
}

impl Buffer<f32> {
    /// The values as a vector.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        let mut values = std::mem::take(&mut self.words);
        values.truncate(self.len);
        values
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::uninit(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        recycle(std::mem::take(&mut self.words));
    }
}

/// `len` values of memory that may have been used before, whatever they are, to be written before
/// they are read.
pub fn uninit(len: usize) -> Vec<f32> {
    Buffer::<f32>::uninit(len).into_vec()
}

/// Puts memory that is no longer needed into the pool that kernels take theirs from.
pub fn recycle(mut values: Vec<f32>) {
    // What a vector was cut down to is not all that it has.
    if values.capacity() >= POOLED_WORDS {
        values.resize(values.capacity(), 0.0);
        POOL.put(values);
    }
}

/// Says that no work goes on: what was taken from the pool and has not come back is not in use any
/// more but lost to it. To be called after every step, or the pool would believe that ever more
/// memory is needed.
pub fn end_step() {
    POOL.state().used_words = 0;
}

static POOL: Pool = Pool { state: Mutex::new(State::new()) };

/// Buffers that wait to be taken.
#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// With the time, in takes, at which each was put.
    idle: Vec<(u64, Vec<f32>)>,
    takes: u64,
    /// Words of idle buffers, of those in use, and the most of these so far.
    idle_words: usize,
    used_words: usize,
    most_used: usize,
}

impl State {
    const fn new() -> Self {
        Self { idle: Vec::new(), takes: 0, idle_words: 0, used_words: 0, most_used: 0 }
    }

    /// The smallest buffer of at least `words` words that suits the need.
    fn best_fit(&mut self, words: usize, lifetime: Lifetime) -> Option<Vec<f32>> {
        let most = match lifetime {
            Lifetime::Scratch if words >= LARGE_WORDS => usize::MAX,
            _ => words + words / 4,
        };
        let buffers = self.idle.iter().enumerate();
        let fitting = buffers.filter(|(_, (_, buffer))| (words..=most).contains(&buffer.len()));
        let (at, _) = fitting.min_by_key(|(_, (put, buffer))| (buffer.len(), u64::MAX - put))?;
        Some(self.remove(at))
    }

    fn remove(&mut self, at: usize) -> Vec<f32> {
        let (_, buffer) = self.idle.swap_remove(at);
        self.idle_words -= buffer.len();
        buffer
    }

    fn use_words(&mut self, words: usize) {
        self.used_words += words;
        self.most_used = self.most_used.max(self.used_words);
    }

    /// What nobody took for long.
    fn take_expired(&mut self) -> Vec<Vec<f32>> {
        let oldest = self.takes.saturating_sub(IDLE_TAKES);
        let mut freed = Vec::new();
        while let Some(at) = self.idle.iter().position(|&(put, _)| put < oldest) {
            freed.push(self.remove(at));
        }
        freed
    }

    /// What is too much, the longest idle first.
    fn take_excess(&mut self) -> Vec<Vec<f32>> {
        let mut freed = Vec::new();
        while self.used_words + self.idle_words > self.most_used + SLACK_WORDS {
            let idle = self.idle.iter().enumerate();
            let Some((at, _)) = idle.min_by_key(|&(_, &(put, _))| put) else { break };
            freed.push(self.remove(at));
        }
        freed
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of at least `words` words.
    fn take(&self, words: usize, lifetime: Lifetime) -> Vec<f32> {
        let mut state = self.state();
        state.takes += 1;
        let mut freed = Vec::new();
        if state.takes.is_multiple_of(IDLE_TAKES / 8) {
            freed = state.take_expired();
        }
        if let Some(buffer) = state.best_fit(words, lifetime) {
            state.use_words(buffer.len());
            return buffer;
        }
        state.use_words(words);
        freed.append(&mut state.take_excess());
        // Others need not wait until memory is given back and taken.
        drop(state);
        drop(freed);
        vec![0.0; words]
    }

    fn put(&self, values: Vec<f32>) {
        let mut state = self.state();
        state.used_words = state.used_words.saturating_sub(values.len());
        state.idle_words += values.len();
        let now = state.takes;
        state.idle.push((now, values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Bf16;

    #[test]
    fn new_buffers_take_the_place_of_old_ones() {
        let pool = Pool { state: Mutex::new(State::new()) };
        let idle = || pool.state().idle.iter().map(|(_, buffer)| buffer.len()).collect::<Vec<_>>();
        let words = 3 * SLACK_WORDS;
        let [a, b] = [words, words + 1].map(|words| pool.take(words, Lifetime::Saved));
        pool.put(a);
        pool.put(b);
        // Neither is large enough, and both and the new one would be too much.
        let both = pool.take(2 * words, Lifetime::Saved);
        assert_eq!((both.len(), idle()), (2 * words, vec![]));
        pool.put(both);
        // There may be a little more than there ever was.
        let small = pool.take(POOLED_WORDS, Lifetime::Saved);
        assert_eq!((small.len(), idle()), (POOLED_WORDS, vec![2 * words]));
    }

    #[test]
    fn buffers_are_used_again() {
        // A length that no other test takes.
        let len = 123_457;
        let mut first = Buffer::<f32>::uninit(len);
        first.fill(7.0);
        let at = first.as_ptr();
        drop(first);
        let second = Buffer::<f32>::uninit(len - 10);
        assert_eq!((second.as_ptr(), second.len(), second[5]), (at, len - 10, 7.0));
        drop(second);
        let third = Buffer::<f32>::uninit(len * 3 / 4);
        assert_ne!(third.as_ptr(), at);
        // Half as many words, at the same place.
        let pairs = Buffer::<Bf16>::uninit(2 * len);
        assert_eq!((pairs.as_ptr().cast(), pairs.len()), (at, 2 * len));
        drop(pairs);
        let fourth = Buffer::<f32>::zeroed(len);
        assert!(fourth.as_ptr() == at && fourth.iter().all(|&v| v == 0.0));
        recycle(fourth.into_vec());
        assert_eq!(Buffer::<f32>::uninit(len).as_ptr(), at);
    }
}
