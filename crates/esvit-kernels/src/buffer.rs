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

use rayon::prelude::*;

use crate::TASK_VALUES;
use crate::element::{Element, padded_row_len};
use crate::huge_pages;

/// Smaller buffers come from the allocator.
const POOLED_WORDS: usize = 4 << 10;

/// Scratch buffers below this size take a tight fit too: many are in use at a time.
const LARGE_WORDS: usize = 256 << 10;

/// An idle buffer is freed after this many other takes.
const IDLE_TAKES: u64 = 1 << 17;

/// Words by which used and idle buffers together may exceed the high-water mark of used ones.
/// Beyond that a new allocation first frees the buffers idle for longest: those that a backward
/// pass returns first are those that the next forward pass takes last. With much less, every step
/// frees buffers and allocates them again.
const SLACK_WORDS: usize = 32 << 20;

/// How many times as large as needed a buffer may be that is taken so that none is freed.
const MOST_WASTE: usize = 4;

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

    /// `len` values of arbitrary content, from the pool: to be written before they are read.
    pub fn uninit(len: usize) -> Self {
        Self::take(len, Lifetime::Saved)
    }

    /// The same for a short time: within a backward pass, or until it ends.
    pub fn scratch(len: usize) -> Self {
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
        Self::take_rows(rows, rows, width, Lifetime::Saved)
    }

    /// [`Buffer::rows`] with [`Lifetime::Scratch`].
    pub(crate) fn scratch_rows(rows: usize, width: usize) -> Self {
        Self::take_rows(rows, rows, width, Lifetime::Scratch)
    }

    /// [`Buffer::rows`] for the `kept` of `total` rows that stochastic depth leaves. Allocates for
    /// all of them, so that the next step, which drops others, finds a buffer that fits.
    pub(crate) fn kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::take_rows(kept, total, width, Lifetime::Saved)
    }

    /// [`Buffer::kept_rows`] with [`Lifetime::Scratch`].
    pub(crate) fn scratch_kept_rows(kept: usize, total: usize, width: usize) -> Self {
        Self::take_rows(kept, total, width, Lifetime::Scratch)
    }

    fn take_rows(kept: usize, total: usize, width: usize, lifetime: Lifetime) -> Self {
        let row = padded_row_len::<T>(width);
        let mut buffer = Self::take(total.max(kept) * row, lifetime);
        if row > width {
            buffer.fill(T::default());
        }
        buffer.len = kept * row;
        buffer
    }
}

impl<T: Element> Buffer<T> {
    /// A copy of values, in memory from the pool.
    pub fn copied(values: &[T]) -> Self {
        let mut copy = Self::uninit(values.len());
        let tasks = copy.par_chunks_mut(TASK_VALUES).zip(values.par_chunks(TASK_VALUES));
        tasks.for_each(|(to, from)| to.copy_from_slice(from));
        copy
    }
}

impl From<Vec<f32>> for Buffer<f32> {
    fn from(words: Vec<f32>) -> Self {
        Self { len: words.len(), words, element: PhantomData }
    }
}

impl Buffer<f32> {
    /// Takes the values out of the pool's care.
    pub fn into_vec(mut self) -> Vec<f32> {
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
        Self::copied(self)
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

/// `len` zeros, from the pool.
pub fn zeroed(len: usize) -> Vec<f32> {
    Buffer::<f32>::zeroed(len).into_vec()
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
    POOL.end_step();
}

/// Frees the idle buffers and forgets how much was ever used: what comes next has other sizes. To be
/// called between runs, when no kernel runs.
pub fn release() {
    POOL.release();
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

    /// Removes the smallest idle buffer of up to [`MOST_WASTE`] times `words` words, if its use does not
    /// raise the high-water mark: better than to free others and allocate.
    fn larger_fit(&mut self, words: usize) -> Option<Vec<f32>> {
        let most = (words * MOST_WASTE).min(self.most_used.saturating_sub(self.used_words));
        let idle = self.idle.iter().enumerate();
        let fitting = idle.filter(|(_, (_, buffer))| (words..=most).contains(&buffer.len()));
        let (at, _) = fitting.min_by_key(|(_, (_, buffer))| buffer.len())?;
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
        let limit = state.most_used + SLACK_WORDS;
        if state.used_words + state.idle_words + words > limit
            && let Some(buffer) = state.larger_fit(words)
        {
            state.use_words(buffer.len());
            return buffer;
        }
        state.use_words(words);
        freed.append(&mut state.take_excess());
        // Free and allocate without the lock.
        drop(state);
        drop(freed);
        let mut memory = Vec::with_capacity(words);
        huge_pages::advise(memory.spare_capacity_mut());
        memory.resize(words, 0.0);
        memory
    }

    fn end_step(&self) {
        self.state().used_words = 0;
    }

    fn release(&self) {
        let mut state = self.state();
        let freed = std::mem::take(&mut state.idle);
        (state.idle_words, state.most_used) = (0, state.used_words);
        // Free without the lock.
        drop(state);
        drop(freed);
    }

    fn put(&self, values: Vec<f32>) {
        let mut state = self.state();
        state.used_words = state.used_words.saturating_sub(values.len());
        state.idle_words += values.len();
        let now = state.takes;
        state.idle.push((now, values));
        // Memory may come that was not taken here, and more of it in every step.
        let freed = state.take_excess();
        // Free without the lock.
        drop(state);
        drop(freed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Bf16;

    fn pool() -> Pool {
        Pool { state: Mutex::new(State::new()) }
    }

    fn idle(pool: &Pool) -> Vec<usize> {
        pool.state().idle.iter().map(|(_, buffer)| buffer.len()).collect()
    }

    #[test]
    fn new_buffers_take_the_place_of_old_ones() {
        let pool = pool();
        let words = 3 * SLACK_WORDS;
        let [a, b] = [words, words + 1].map(|words| pool.take(words, Lifetime::Saved));
        pool.put(a);
        pool.put(b);
        // Neither is large enough, and both and the new one would be too much.
        let both = pool.take(2 * words, Lifetime::Saved);
        assert_eq!((both.len(), idle(&pool)), (2 * words, vec![]));
        pool.put(both);
        // There may be a little more than there ever was.
        let small = pool.take(POOLED_WORDS, Lifetime::Saved);
        assert_eq!((small.len(), idle(&pool)), (POOLED_WORDS, vec![2 * words]));
    }

    /// Rather than free one, a new buffer takes a larger one, unless that raises the high-water mark
    /// or wastes too much.
    #[test]
    fn larger_ones_are_taken_before_any_is_freed() {
        let words = SLACK_WORDS;
        let taken = |used: usize, wanted: usize| {
            let pool = pool();
            let large = pool.take(5 * words, Lifetime::Saved);
            pool.put(large);
            let used = pool.take(used, Lifetime::Saved);
            let found = pool.take(wanted, Lifetime::Saved).len();
            drop(used);
            found
        };
        // Neither fits a quarter over; 5 were used at most, so there may be 6.
        assert_eq!(taken(0, 2 * words), 5 * words);
        assert_eq!(taken(0, 2 * words + 1), 5 * words);
        // There is room for another one.
        assert_eq!(taken(0, words - 8), words - 8);
        // With a sixth in use the large one would be too much.
        assert_eq!(taken(words / 2, 2 * words), 2 * words);
        // More than four times as large.
        assert_eq!(taken(0, words + 8), words + 8);
    }

    /// The longest idle ones go first, and no more than need be.
    #[test]
    fn the_longest_idle_goes_first() {
        let pool = pool();
        let words = SLACK_WORDS;
        let taken = [0, 1, 2].map(|more| pool.take(words + more, Lifetime::Saved));
        for buffer in taken {
            pool.put(buffer);
            // Time is counted in takes.
            let small = pool.take(1, Lifetime::Saved);
            pool.put(small);
        }
        // 3 were used at most, there may be 4; 3 are idle, and 2 more are needed.
        pool.take(2 * words - 1000, Lifetime::Saved);
        let left = idle(&pool).into_iter().filter(|&words| words > 1).collect::<Vec<_>>();
        assert_eq!(left, [words + 1, words + 2]);
    }

    /// Memory that was allocated elsewhere comes in every step, and nobody takes it.
    #[test]
    fn memory_from_elsewhere_is_freed() {
        let pool = pool();
        let own = pool.take(POOLED_WORDS, Lifetime::Saved);
        for _ in 0..9 {
            pool.put(vec![0.0; SLACK_WORDS / 4]);
        }
        let most = pool.state().most_used + SLACK_WORDS;
        assert!(idle(&pool).len() >= 3 && pool.state().idle_words <= most);
        drop(own);
    }

    #[test]
    fn the_smallest_that_fits() {
        let pool = pool();
        let sizes = [1000, 1300, 1200, 1251, 999];
        let taken = sizes.map(|words| pool.take(words, Lifetime::Saved));
        taken.into_iter().for_each(|buffer| pool.put(buffer));
        let take = |words, lifetime| pool.take(words, lifetime).len();
        assert_eq!(take(1000, Lifetime::Saved), 1000);
        assert_eq!(take(1000, Lifetime::Saved), 1200);
        // 1251 is more than a quarter larger.
        assert_eq!(take(1000, Lifetime::Saved), 1000);
        assert_eq!(take(1000, Lifetime::Scratch), 1000);
        assert_eq!(take(1001, Lifetime::Saved), 1251);
        // Large scratch takes any that is large enough.
        let large = pool.take(3 * LARGE_WORDS, Lifetime::Saved);
        pool.put(large);
        assert_eq!(pool.take(LARGE_WORDS, Lifetime::Saved).len(), LARGE_WORDS);
        assert_eq!(pool.take(LARGE_WORDS, Lifetime::Scratch).len(), 3 * LARGE_WORDS);
    }

    #[test]
    fn buffers_that_nobody_takes_are_freed() {
        let pool = pool();
        let (old, new) = (pool.take(5000, Lifetime::Saved), pool.take(6000, Lifetime::Saved));
        pool.put(old);
        let pass = |takes: u64| {
            for _ in 0..takes {
                let buffer = pool.take(1, Lifetime::Saved);
                pool.put(buffer);
            }
        };
        pass(IDLE_TAKES / 2);
        pool.put(new);
        assert_eq!(idle(&pool).len(), 3);
        pass(IDLE_TAKES * 3 / 4);
        assert_eq!(idle(&pool).iter().filter(|&&words| words > 1).collect::<Vec<_>>(), [&6000]);
        pass(IDLE_TAKES / 2);
        assert_eq!(idle(&pool), [1]);
    }

    /// Lost buffers do not raise the high-water mark once a step has ended.
    #[test]
    fn what_is_used_is_counted() {
        let pool = pool();
        let [a, b] = [100, 200].map(|words| pool.take(words, Lifetime::Saved));
        let counts = || {
            let state = pool.state();
            [state.used_words, state.idle_words, state.most_used]
        };
        assert_eq!(counts(), [300, 0, 300]);
        pool.put(a);
        assert_eq!(counts(), [200, 100, 300]);
        drop(b);
        pool.end_step();
        assert_eq!(counts(), [0, 100, 300]);
        let again = pool.take(90, Lifetime::Saved);
        assert_eq!((again.len(), counts()), (100, [100, 0, 300]));
    }

    #[test]
    fn released_buffers_are_gone_and_used_ones_are_kept() {
        let pool = pool();
        let [idle_one, used] = [100, 200].map(|words| pool.take(words, Lifetime::Saved));
        pool.put(idle_one);
        pool.release();
        assert!(idle(&pool).is_empty());
        let state = pool.state();
        assert_eq!([state.used_words, state.idle_words, state.most_used], [200, 0, 200]);
        drop(state);
        pool.put(used);
        assert_eq!(idle(&pool), [200]);
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
        let copy = fourth.clone();
        assert!(copy[..] == fourth[..] && copy.as_ptr() != at);
        recycle(fourth.into_vec());
        assert_eq!(Buffer::<f32>::uninit(len).as_ptr(), at);
    }

    /// Rows of bf16 of odd width end with a zero, whatever the memory held before.
    #[test]
    fn padding_is_zero() {
        for rows in [Buffer::<Bf16>::rows, Buffer::<Bf16>::scratch_rows] {
            // A size that no other test takes.
            let mut dirty = Buffer::<Bf16>::uninit(2 * 5003 * 8);
            dirty.fill(Bf16::from_f32(f32::NAN));
            let at = dirty.as_ptr();
            drop(dirty);
            let clean = rows(2 * 5003, 7);
            assert_eq!((clean.as_ptr(), clean.len()), (at, 2 * 5003 * 8));
            assert!(clean.chunks(8).all(|row| row[7] == Bf16::default()));
        }
    }

    /// Memory for all rows, length of those that are kept.
    #[test]
    fn kept_rows_take_the_memory_of_all() {
        for rows in [Buffer::<Bf16>::kept_rows, Buffer::<Bf16>::scratch_kept_rows] {
            let buffer = rows(3, 20_000, 5);
            assert_eq!(buffer.len(), 3 * 6);
            assert!(buffer.words.len() >= 20_000 * 6 / 2);
        }
        assert_eq!(Buffer::<f32>::kept_rows(9, 4, 2).len(), 18);
    }
}
