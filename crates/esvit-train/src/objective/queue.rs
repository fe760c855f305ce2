//! Queues of keys from earlier steps: negatives beyond those of a batch.
//!
//! Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (CVPR 2020),
//! section 3.2.

use std::sync::OnceLock;

use esvit_kernels::rng::{Rng, fnv1a};
use esvit_nn::{Collective, Device, Tensor};

use super::StateTensor;

/// RNG purpose of the noise that queues start with.
const QUEUE_PURPOSE: u64 = 0x9E0E;

/// The last `length` keys of unit length, first in, first out. It starts with noise.
#[derive(Debug)]
pub struct KeyQueue {
    name: &'static str,
    width: usize,
    length: usize,
    seed: u64,
    device: Device,
    /// `[length, D]`, made when they are asked for first: an estimate of memory needs none.
    keys: OnceLock<Tensor>,
    /// The row that is replaced next.
    next: usize,
    /// Keys of this step, which come in at its end.
    noted: Vec<Tensor>,
}

impl KeyQueue {
    /// A queue of noise, which depends on the seed and on `name`, that of the state tensor.
    pub fn new(
        name: &'static str,
        [length, width]: [usize; 2],
        seed: u64,
        device: &Device,
    ) -> Self {
        let (keys, device) = (OnceLock::new(), *device);
        Self { name, width, length, seed, device, keys, next: 0, noted: Vec::new() }
    }

    /// The keys, `[length, D]`, oldest and newest in no order.
    pub fn keys(&self) -> &Tensor {
        self.keys.get_or_init(|| self.noise())
    }

    /// Normal noise scaled to unit length.
    fn noise(&self) -> Tensor {
        let name = fnv1a(self.name.bytes());
        let mut values = Vec::with_capacity(self.length * self.width);
        for row in 0..self.length {
            let mut rng = Rng::for_purpose(self.seed, QUEUE_PURPOSE, [name, row as u64, 0]);
            let key: Vec<f64> = (0..self.width).map(|_| rng.normal()).collect();
            let norm = key.iter().map(|value| value * value).sum::<f64>().sqrt();
            values.extend(key.iter().map(|value| (value / norm.max(1e-12)) as f32));
        }
        Tensor::new(values, [self.length, self.width], &self.device)
    }

    /// Notes keys `[B, D]` of unit length of a micro-batch: they come in with [`KeyQueue::commit`].
    pub fn note(&mut self, keys: Tensor) {
        self.noted.push(keys.detach());
    }

    /// Forgets the keys of a step that was not ended.
    pub fn forget(&mut self) {
        self.noted.clear();
    }

    /// Replaces the oldest keys by those that were noted, of all processes in order of their ranks. Of
    /// more keys than the queue holds, the last ones stay.
    pub fn commit(&mut self, collective: &dyn Collective) {
        if self.noted.is_empty() {
            return;
        }
        let mut new = collective.all_gather(Tensor::cat(std::mem::take(&mut self.noted), 0));
        let count = new.shape()[0];
        if count > self.length {
            self.next = (self.next + count - self.length) % self.length;
            new = new.narrow(0, count - self.length, self.length);
        }
        let count = new.shape()[0];
        let until_end = count.min(self.length - self.next);
        let (at_end, at_start) =
            (new.clone().narrow(0, 0, until_end), new.narrow(0, until_end, count - until_end));
        let keys = replaced(self.keys(), self.next, at_end);
        let keys = if until_end < count { replaced(&keys, 0, at_start) } else { keys };
        self.keys = OnceLock::from(keys);
        self.next = (self.next + count) % self.length;
    }

    /// Keys and place as checkpoints store them: `[D, length]`, as in the official code, and the number
    /// of the column that is replaced next.
    pub fn state(&self, pointer: &'static str) -> [StateTensor; 2] {
        let shape = vec![self.width, self.length];
        let value = self.keys().clone().transpose();
        let keys = StateTensor { name: self.name, shape, value };
        let next = Tensor::full(self.next as f32, [1], &self.device);
        [keys, StateTensor { name: pointer, shape: vec![1], value: next }]
    }

    /// Restores what a checkpoint has under `name`: the keys, or the place if that is called so, `pointer`.
    pub fn restore(&mut self, pointer: &str, name: &str, value: &Tensor) {
        if name == self.name {
            self.set_keys(value.clone());
        } else if name == pointer {
            self.set_next(value);
        }
    }

    /// Restores the keys, `[D, length]`.
    pub fn set_keys(&mut self, value: Tensor) {
        let keys = value.reshape([self.width, self.length]).transpose();
        self.keys = OnceLock::from(keys);
    }

    /// Restores the place, a single number.
    pub fn set_next(&mut self, value: &Tensor) {
        self.next = value.item() as usize % self.length;
    }
}

/// `rows [K, D]` with `new [n, D]` in place of those from `first` on.
fn replaced(rows: &Tensor, first: usize, new: Tensor) -> Tensor {
    let (length, count) = (rows.shape()[0], new.shape()[0]);
    let part = |start: usize, end: usize| rows.clone().narrow(0, start, end - start);
    let parts = [part(0, first), new, part(first + count, length)];
    Tensor::cat(parts.into_iter().filter(|part| part.shape()[0] > 0).collect(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Solo;

    fn queue() -> KeyQueue {
        KeyQueue::new("queue", [6, 2], 3, &Device::Cpu)
    }

    /// Keys `first`, `first + 1`, ... in both columns.
    fn keys(first: usize, count: usize) -> Tensor {
        let values = (0..2 * count).map(|i| (first + i / 2) as f32).collect();
        Tensor::new(values, [count, 2], &Device::Cpu)
    }

    /// The first column.
    fn numbers(queue: &KeyQueue) -> Vec<f32> {
        queue.keys().to_vec::<f32>().iter().copied().step_by(2).collect()
    }

    #[test]
    fn it_starts_with_noise_of_unit_length() {
        let found = queue().keys().to_vec::<f32>();
        assert_eq!(found, queue().keys().to_vec::<f32>());
        for other in [
            KeyQueue::new("queue2", [6, 2], 3, &Device::Cpu),
            KeyQueue::new("queue", [6, 2], 4, &Device::Cpu),
        ] {
            assert_ne!(found, other.keys().to_vec::<f32>());
        }
        for key in found.chunks_exact(2) {
            assert!((key[0].hypot(key[1]) - 1.0).abs() < 1e-6, "{key:?}");
        }
        assert!(found.iter().any(|value| *value < 0.0) && found.iter().any(|value| *value > 0.0));
    }

    /// After as many keys as it holds no noise is left, and the place is that of the start; then the
    /// oldest ones go.
    #[test]
    fn keys_go_round() {
        let mut queue = queue();
        for (first, next) in [(1, 4), (5, 2), (9, 0)] {
            queue.note(keys(first, 4));
            queue.commit(&Solo);
            assert_eq!(queue.next, next);
        }
        assert_eq!(numbers(&queue), [7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
        // More than it holds: the last ones, where they would be.
        queue.note(keys(20, 8));
        queue.commit(&Solo);
        assert_eq!((numbers(&queue), queue.next), (vec![26.0, 27.0, 22.0, 23.0, 24.0, 25.0], 2));
    }

    /// What was noted comes in once, in order; nothing of a step that was forgotten does.
    #[test]
    fn micro_batches_are_one_batch() {
        let [mut whole, mut halves] = [queue(), queue()];
        whole.note(keys(1, 4));
        whole.commit(&Solo);
        halves.note(keys(30, 2));
        halves.forget();
        halves.note(keys(1, 2));
        halves.note(keys(3, 2));
        halves.commit(&Solo);
        assert_eq!(numbers(&whole)[..4], [1.0, 2.0, 3.0, 4.0]);
        for _ in 0..2 {
            assert_eq!((numbers(&whole), whole.next), (numbers(&halves), halves.next));
            // Nothing new.
            halves.commit(&Solo);
        }
    }

    #[test]
    fn its_state_is_restored() {
        let mut queue = queue();
        queue.note(keys(1, 4));
        queue.commit(&Solo);
        let [stored, pointer] = queue.state("queue_ptr");
        assert_eq!((stored.name, stored.shape), ("queue", vec![2, 6]));
        assert_eq!((pointer.name, pointer.shape), ("queue_ptr", vec![1]));
        assert_eq!(stored.value.to_vec::<f32>()[..4], [1.0, 2.0, 3.0, 4.0], "keys are columns");
        let mut other = KeyQueue::new("queue", [6, 2], 9, &Device::Cpu);
        for (name, value) in [("queue2", &pointer.value), (stored.name, &stored.value)] {
            other.restore("queue_ptr", name, value);
        }
        assert_eq!((numbers(&other), other.next), (numbers(&queue), 0));
        other.restore("queue_ptr", pointer.name, &pointer.value);
        assert_eq!((numbers(&other), other.next), (numbers(&queue), 4));
    }
}
