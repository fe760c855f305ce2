//! A pool of reusable buffers.
//!
//! A training step allocates the same buffers as the step before. Fresh memory costs a page fault
//! per 4 KiB and a pass of zeros, together a fifth of a step, so freed buffers go to a pool and are
//! handed out with their old contents: [`uninit`] memory must be written before it is read.
//!
//! One pool serves all element types, so gradients reuse the memory of the activations that they
//! are computed from.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::element::{Element, padded_row_len};

/// Smaller buffers come from the allocator.
const POOLED_WORDS: usize = 4 << 10;

/// Scratch buffers below this size take a tight fit too: many are in use at a time.
const LARGE_WORDS: usize = 256 << 10;

/// An idle buffer is freed after this many other takes.
const IDLE_TAKES: u64 = 1 << 17;

/// Words by which used and idle buffers together may exceed the high-water mark of used ones.
/// Beyond that a new allocation first frees the buffers idle for longest: those that a backward
/// pass returns first are those that the next forward pass takes last.
const SLACK_WORDS: usize = 16 << 20;

/// `len` values in an allocation that may be larger; returned to the pool on drop.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    words: Vec<f32>,
    len: usize,
    element: PhantomData<T>,
}

/// How long a buffer will be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    /// Held until backward, or for an unknown time: take the tightest fit, at most a quarter
    /// larger.
    Saved,
    /// Within one backward operation or until the update: any large enough buffer will do, since
    /// those idle at that time are not needed before the next step.
    Scratch,
}

impl<T: Element> Buffer<T> {
    fn take(len: usize, lifetime: Lifetime) -> Self {
        let words = (len * size_of::<T>()).div_ceil(size_of::<f32>());
        let words =
            if words < POOLED_WORDS { vec![0.0; words] } else { POOL.take(words, lifetime) };
        Self { words, len, element: PhantomData }
    }

    /// `len` values of arbitrary content.
    pub(crate) fn uninit(len: usize) -> Self {
        Self::take(len, Lifetime::Saved)
    }

    /// The same with [`Lifetime::Scratch`].
    pub(crate) fn scratch(len: usize) -> Self {
        Self::take(len, Lifetime::Scratch)
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::uninit(len);
        buffer.fill(T::default());
        buffer
    }

    /// `rows` rows of `width` values of arbitrary content, each of [`padded_row_len`]; the padding
    /// is zero.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        Self::take(rows * padded_row_len::<T>(width), Lifetime::Saved).zero_padding(width)
    }

    /// [`Buffer::rows`] with [`Lifetime::Scratch`].
    pub(crate) fn scratch_rows(rows: usize, width: usize) -> Self {
        Self::take(rows * padded_row_len::<T>(width), Lifetime::Scratch).zero_padding(width)
    }

    fn zero_padding(mut self, width: usize) -> Self {
        if padded_row_len::<T>(width) > width {
            self.fill(T::default());
        }
        self
    }

    /// [`Buffer::rows`] for the `kept` of `total` rows that stochastic depth leaves. Allocates for
    /// all of them, so that the next step, which drops others, finds a buffer that fits.
    pub(crate) fn kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::rows(total.max(kept), width).cut(kept * padded_row_len::<T>(width))
    }

    /// [`Buffer::kept_rows`] with [`Lifetime::Scratch`].
    pub(crate) fn scratch_kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::scratch_rows(total.max(kept), width).cut(kept * padded_row_len::<T>(width))
    }

    fn cut(mut self, len: usize) -> Self {
        self.len = len;
        self
    }
}

impl Buffer<f32> {
    /// Takes the values out of the pool's care.
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

/// `len` values of arbitrary content, from the pool: to be written before they are read. Give them
/// back with [`recycle`].
pub fn uninit(len: usize) -> Vec<f32> {
    Buffer::<f32>::uninit(len).into_vec()
}

/// Returns memory to the pool.
pub fn recycle(mut values: Vec<f32>) {
    // A truncated vector still has its capacity.
    if values.capacity() >= POOLED_WORDS {
        values.resize(values.capacity(), 0.0);
        POOL.put(values);
    }
}

/// Ends a step: buffers not returned are written off, or the high-water mark would grow for ever.
/// To be called after every training step, when no kernel runs.
pub fn end_step() {
    POOL.state().used_words = 0;
}

static POOL: Pool = Pool { state: Mutex::new(State::new()) };

/// Idle buffers.
#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Each with the number of takes when it was returned.
    idle: Vec<(u64, Vec<f32>)>,
    takes: u64,
    /// Words of idle buffers, of used ones, and the high-water mark of used ones.
    idle_words: usize,
    used_words: usize,
    most_used: usize,
}

impl State {
    const fn new() -> Self {
        Self { idle: Vec::new(), takes: 0, idle_words: 0, used_words: 0, most_used: 0 }
    }

    /// Removes the smallest idle buffer of at least `words` words that suits the lifetime, of equal
    /// ones the last returned.
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

    /// Removes the buffers that nobody took for [`IDLE_TAKES`].
    fn take_expired(&mut self) -> Vec<Vec<f32>> {
        let oldest = self.takes.saturating_sub(IDLE_TAKES);
        let mut freed = Vec::new();
        while let Some(at) = self.idle.iter().position(|&(put, _)| put < oldest) {
            freed.push(self.remove(at));
        }
        freed
    }

    /// Removes buffers beyond [`SLACK_WORDS`], the longest idle first.
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
        // Free and allocate without the lock.
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
