//! Counter-based random numbers: Philox 4x64 with ten rounds.
//!
//! A generator is a pure function of a key (the run's seed) and a counter that names what the
//! number is for (epoch, sample, view, purpose). No state is carried from one use to the next,
//! so numbers do not depend on threads, on the order of loading or on where a run was
//! interrupted. The known answers in the tests must never change: every run depends on them.
//!
//! Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];
const ROUNDS: usize = 10;

/// The Philox 4x64-10 bijection: 256 random bits for one `counter` under one `key`.
pub fn philox4x64(mut counter: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key[0] = key[0].wrapping_add(WEYL[0]);
            key[1] = key[1].wrapping_add(WEYL[1]);
        }
        let a = u128::from(MULTIPLIERS[0]) * u128::from(counter[0]);
        let b = u128::from(MULTIPLIERS[1]) * u128::from(counter[2]);
        counter = [
            (b >> 64) as u64 ^ counter[1] ^ key[0],
            b as u64,
            (a >> 64) as u64 ^ counter[3] ^ key[1],
            a as u64,
        ];
    }
    counter
}

/// 64-bit FNV-1a, which unlike the standard library's hash never changes: makes a word of a name.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A stream of random numbers for one place in a run.
///
/// ```
/// use esvit_kernels::rng::Rng;
/// let mut a = Rng::new(7, [3, 1042, 0]);
/// let mut b = Rng::new(7, [3, 1042, 0]);
/// assert_eq!(a.next_u64(), b.next_u64());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rng {
    key: [u64; 2],
    place: [u64; 3],
    block: u64,
    buffer: [u64; 4],
    used: usize,
}

impl Rng {
    /// The stream of `seed` for `place`, whose three words name what the numbers are for,
    /// for instance `[epoch, sample, view]`.
    pub fn new(seed: u64, place: [u64; 3]) -> Self {
        Self { key: [seed, 0], place, block: 0, buffer: [0; 4], used: 4 }
    }

    /// A stream for another purpose at the same place: streams of different purposes are
    /// independent of each other.
    pub fn for_purpose(seed: u64, purpose: u64, place: [u64; 3]) -> Self {
        Self { key: [seed, purpose], ..Self::new(seed, place) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        if self.used == self.buffer.len() {
            let [a, b, c] = self.place;
            self.buffer = philox4x64([a, b, c, self.block], self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// `true` with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Uniform in `0..n`; 0 when `n` is 0. The bias of at most `n / 2^64` is not removed.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal, by the Box-Muller transform (the second value of a pair is dropped).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles uniformly (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// `count` of the numbers below `n`, each set as likely as any other, in ascending order; all of them
    /// if there are no more.
    pub fn subset(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..n).collect();
        let count = count.min(n);
        // The first places of a shuffle.
        for place in 0..count {
            let other = place + self.below((n - place) as u64) as usize;
            numbers.swap(place, other);
        }
        numbers.truncate(count);
        numbers.sort_unstable();
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library (`kat_vectors`).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox4x64([0; 4], [0; 2]),
            [0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b]
        );
        assert_eq!(
            philox4x64([u64::MAX; 4], [u64::MAX; 2]),
            [0x87b092c3013fe90b, 0x438c3c67be8d0224, 0x9cc7d7c69cd777b6, 0xa09caebf594f0ba0]
        );
    }

    /// Every run depends on these numbers: they must never change.
    #[test]
    fn known_draws() {
        let mut rng = Rng::for_purpose(42, 7, [1, 2, 3]);
        assert_eq!([rng.next_u64(), rng.next_u64()], [0x33e352d4ece206bc, 0x21922cbb5f69685a]);
        assert_eq!(
            [rng.uniform(), rng.uniform_in(-3.0, 5.0)],
            [0.5933004521537016, 3.890727125036861]
        );
        // ln and cos are the system's.
        let errors = [rng.normal() + 0.6348137628734861, rng.normal() + 2.175150429193657];
        assert!(errors.iter().all(|error| error.abs() < 1e-14), "{errors:?}");
        assert_eq!([rng.below(10), rng.below(1000), rng.below(0)], [2, 246, 0]);
        assert_eq!([rng.chance(0.5), rng.chance(0.5), rng.chance(0.5)], [false, true, true]);
        let mut items = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        rng.shuffle(&mut items);
        assert_eq!(items, [3, 0, 1, 9, 4, 5, 6, 8, 2, 7]);
        assert_eq!(rng.next_u64(), 0x30436f83663a1295, "as many numbers as before were drawn");
        assert_eq!(Rng::new(42, [1, 2, 3]).next_u64(), 0xf3f3de17bab4e103);
    }

    /// `chance(p)` is `uniform() < p`: never for 0, always for 1.
    #[test]
    fn certain_chances() {
        let mut rng = Rng::new(1, [0; 3]);
        assert!((0..1000).all(|_| !rng.chance(0.0) && rng.chance(1.0)));
    }

    /// Every item, also the last one, comes to every place.
    #[test]
    fn shuffles_are_uniform() {
        let mut counts = [[0usize; 4]; 4];
        for seed in 0..4000 {
            let mut items = [0, 1, 2, 3];
            Rng::new(seed, [0; 3]).shuffle(&mut items);
            (0..4).for_each(|place| counts[place][items[place]] += 1);
        }
        assert!(counts.iter().flatten().all(|count| count.abs_diff(1000) < 120), "{counts:?}");
    }

    /// Each number is drawn as often as any other, the last one too, and at most once.
    #[test]
    fn subsets_are_uniform() {
        let mut counts = [0usize; 5];
        for seed in 0..5000 {
            let subset = Rng::new(seed, [0; 3]).subset(5, 2);
            assert!(subset.len() == 2 && subset[0] < subset[1], "{subset:?}");
            subset.into_iter().for_each(|number| counts[number] += 1);
        }
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 150), "{counts:?}");
        for count in [3, 4] {
            assert_eq!(Rng::new(1, [0; 3]).subset(3, count), [0, 1, 2]);
        }
        assert_eq!(Rng::new(1, [0; 3]).subset(0, 1), [0usize; 0]);
    }

    #[test]
    fn places_and_purposes_are_distinct_streams() {
        let base = Rng::new(1, [2, 3, 4]).next_u64();
        for mut other in [
            Rng::new(2, [2, 3, 4]),
            Rng::new(1, [3, 3, 4]),
            Rng::new(1, [2, 4, 4]),
            Rng::new(1, [2, 3, 5]),
            Rng::for_purpose(1, 1, [2, 3, 4]),
        ] {
            assert_ne!(base, other.next_u64());
        }
    }

    #[test]
    fn moments() {
        let mut rng = Rng::new(5, [0; 3]);
        let n = 100_000;
        let normals: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.03, "{variance}");
        let mut counts = [0usize; 7];
        (0..n).for_each(|_| counts[rng.below(7) as usize] += 1);
        assert!(counts.iter().all(|&c| c.abs_diff(n / 7) < 600), "{counts:?}");
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..1000).collect();
        Rng::new(9, [0; 3]).shuffle(&mut items);
        assert_ne!(items[..20], (0..20).collect::<Vec<_>>()[..]);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
