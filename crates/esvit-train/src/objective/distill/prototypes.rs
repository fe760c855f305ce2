//! Prototypes: recent features of the teacher, which soft targets are similarities to.
//!
//! They are a queue, as the anchor points of CompRess and SEED: no clustering comes before the run, and no
//! network is needed besides the teacher. At the start they are random directions, as MoCo's code, which both
//! go back to, begins its queue.

use std::sync::OnceLock;

use esvit_kernels::rng::Rng;
use esvit_nn::{Collective, Device, Tensor, ops};

/// RNG purpose of the first prototypes.
const START: u64 = u64::from_be_bytes(*b"anchors ");
/// RNG purpose of the token of an image that becomes a prototype.
const TOKEN: u64 = u64::from_be_bytes(*b"anchored");

/// The latest features of a teacher as unit rows, newest first.
#[derive(Debug, Clone)]
pub(super) struct Prototypes {
    shape: [usize; 2],
    seed: u64,
    task: u64,
    device: Device,
    /// `[K, C]`; made when they are asked for, as an objective is built for its shapes alone, too.
    rows: OnceLock<Tensor>,
    /// Features of the step at hand.
    seen: Vec<Tensor>,
}

impl Prototypes {
    /// `shape[0]` random directions of `shape[1]` dimensions; `task` tells those of views from those of
    /// regions.
    pub(super) fn new(shape: [usize; 2], seed: u64, task: u64, device: &Device) -> Self {
        let (device, rows, seen) = (*device, OnceLock::new(), Vec::new());
        Self { shape, seed, task, device, rows, seen }
    }

    /// The prototypes, unit rows `[K, C]`.
    pub(super) fn rows(&self) -> &Tensor {
        self.rows.get_or_init(|| {
            let mut rng = Rng::for_purpose(self.seed, START, [self.task, 0, 0]);
            let values = (0..self.shape[0] * self.shape[1]).map(|_| rng.normal() as f32).collect();
            ops::l2_normalize(Tensor::new::<f32>(values, self.shape, &self.device))
        })
    }

    /// Sets the prototypes.
    pub(super) fn set_rows(&mut self, rows: Tensor) {
        self.rows = rows.into();
    }

    /// Notes features `[B, C]` of a micro-batch.
    pub(super) fn observe(&mut self, features: Tensor) {
        self.seen.push(ops::l2_normalize(features.detach()));
    }

    /// Drops what was noted since the last update.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// What was noted by all processes takes the place of the oldest.
    pub(super) fn update(&mut self, collective: &dyn Collective) {
        let seen = std::mem::take(&mut self.seen);
        if seen.is_empty() {
            return;
        }
        let seen = collective.all_gather(Tensor::cat(seen, 0));
        let [count, _] = self.shape;
        let new = seen.shape()[0].min(count);
        let latest = seen.narrow(0, 0, new);
        self.set_rows(if new == count {
            latest
        } else {
            Tensor::cat(vec![latest, self.rows().clone().narrow(0, 0, count - new)], 0)
        });
    }
}

/// The row of one token of every image, drawn by the image's place in the step: `images` are those of
/// micro-batch `micro_batch` of `step`, each of `tokens` rows.
pub(super) fn one_token(
    seed: u64,
    [step, micro_batch]: [u64; 2],
    images: usize,
    tokens: usize,
) -> Vec<i32> {
    let token = |image: usize| {
        let place = micro_batch * images as u64 + image as u64;
        let token = Rng::for_purpose(seed, TOKEN, [step, place, 0]).below(tokens as u64);
        (image * tokens + token as usize) as i32
    };
    (0..images).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Solo;

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::new(values.as_flattened().to_vec(), [values.len(), 2], &Device::Cpu)
    }

    #[test]
    fn the_oldest_make_room() {
        let mut prototypes = Prototypes::new([5, 2], 1, 0, &Device::Cpu);
        let start = prototypes.rows().to_vec::<f32>();
        assert!(start.chunks(2).all(|row| (row[0].hypot(row[1]) - 1.0).abs() < 1e-6));
        let other = Prototypes::new([5, 2], 1, 1, &Device::Cpu).rows().to_vec::<f32>();
        assert_ne!(start, other);
        prototypes.observe(rows(&[[3.0, 0.0], [0.0, 2.0]]));
        prototypes.forget();
        prototypes.update(&Solo);
        assert_eq!(prototypes.rows().to_vec::<f32>(), start);
        prototypes.observe(rows(&[[3.0, 0.0], [0.0, 2.0]]));
        prototypes.observe(rows(&[[-1.0, 0.0]]));
        prototypes.update(&Solo);
        let found = prototypes.rows().to_vec::<f32>();
        assert_eq!(found[..6], [1.0, 0.0, 0.0, 1.0, -1.0, 0.0]);
        assert_eq!(found[6..], start[..4]);
        // More than there is room for.
        prototypes.observe(rows(&[[0.0, -4.0]; 7]));
        prototypes.update(&Solo);
        assert_eq!(prototypes.rows().to_vec::<f32>(), [0.0, -1.0].repeat(5));
    }

    /// By the place of an image in its step, however that is cut.
    #[test]
    fn tokens_by_place() {
        let whole = one_token(3, [7, 0], 6, 9);
        assert!(whole.iter().enumerate().all(|(image, row)| *row / 9 == image as i32));
        let parts: Vec<i32> = (0..2).flat_map(|part| one_token(3, [7, part], 3, 9)).collect();
        let within = |rows: &[i32]| rows.iter().map(|row| row % 9).collect::<Vec<_>>();
        assert_eq!(within(&whole), within(&parts));
        assert_ne!(within(&whole), within(&one_token(3, [8, 0], 6, 9)));
        assert_ne!(within(&whole), within(&one_token(4, [7, 0], 6, 9)));
    }
}
