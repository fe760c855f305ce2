//! Mixup and CutMix of a student's images, for the view task.
//!
//! Image `i` of a batch is mixed with image `B - 1 - i`, with one share or one box per crop. Only
//! the student sees mixed images.

use std::ops::Range;

use esvit_kernels::rng::Rng;
use esvit_nn::Tensor;
use esvit_settings::{SettingError, check, settings};

/// RNG purpose of mixup.
const MIXUP_PURPOSE: u64 = 0x313C;

/// Range of the alphas; beyond it, mixing is practically off or always one half.
pub const ALPHA_RANGE: [f64; 2] = [0.01, 5.0];

settings! {
    /// Settings of mixup and CutMix.
    #[derive(Copy)]
    pub struct MixupConfig {
        /// Mixes the student's images (view task only).
        pub enabled: bool = false,
        /// Both parameters of the Beta distribution of mixup's share.
        pub mixup_alpha: f64 = 0.8,
        /// Both parameters of the Beta distribution of CutMix's share.
        pub cutmix_alpha: f64 = 1.0,
        /// Probability of CutMix instead of mixup.
        pub switch_prob: f64 = 0.5,
        /// Number of crops to mix, from the first.
        pub views: usize = 10,
    }
}

impl MixupConfig {
    /// Checks the settings, which stand below `prefix`.
    ///
    /// # Errors
    /// Names the first invalid one.
    pub fn validate(&self, prefix: &str) -> Result<(), SettingError> {
        let [low, high] = ALPHA_RANGE;
        for (name, alpha) in
            [("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)]
        {
            let need = format!("give {low} to {high}");
            check((low..=high).contains(&alpha), &format!("{prefix}.{name}"), alpha, need)?;
        }
        let key = format!("{prefix}.switch_prob");
        let is_probability = (0.0..=1.0).contains(&self.switch_prob);
        check(is_probability, &key, self.switch_prob, "it is a probability, from 0 to 1")
    }
}

/// Mixes `crops`, each `[B, 3, H, W]`, and returns for every crop the `[B, B]` matrix, row-major,
/// whose column `j` has the shares of images in mixed image `j`. `place` is step and micro-batch, for
/// the RNG.
pub fn mix(
    crops: &[Tensor],
    config: &MixupConfig,
    seed: u64,
    place: [u64; 2],
) -> (Vec<Tensor>, Vec<Vec<f32>>) {
    let mixed = crops.iter().enumerate().map(|(crop, images)| {
        let [batch, _, height, width] = images.dims();
        if crop >= config.views {
            return (images.clone(), matrix(batch, 1.0));
        }
        let [step, micro_batch] = place;
        let mut rng = Rng::for_purpose(seed, MIXUP_PURPOSE, [step, micro_batch, crop as u64]);
        let (images, share) = if rng.chance(config.switch_prob) {
            let share = beta(&mut rng, config.cutmix_alpha);
            pasted(images, cut(&mut rng, [height, width], share))
        } else {
            let share = beta(&mut rng, config.mixup_alpha);
            (blended(images, share), share)
        };
        (images, matrix(batch, share))
    });
    mixed.unzip()
}

/// Mixup: images `[B, 3, H, W]` of which each has a `share`, and the rest is of the image that it is
/// mixed with.
pub fn blended(images: &Tensor, share: f64) -> Tensor {
    let reversed = images.clone().flip(0);
    images.clone() * share + reversed * (1.0 - share)
}

/// CutMix: images `[B, 3, H, W]` with a box, rows and columns, of the image that each is mixed with; and
/// the share of pixels outside.
pub fn pasted(images: &Tensor, [rows, columns]: [Range<usize>; 2]) -> (Tensor, f64) {
    let [_, _, height, width] = images.dims();
    let area = rows.len() * columns.len();
    let mask = (0..height * width)
        .map(|i| f32::from(rows.contains(&(i / width)) && columns.contains(&(i % width))))
        .collect();
    let mask = Tensor::new::<f32>(mask, [1, 1, height, width], &images.device());
    let reversed = images.clone().flip(0);
    let mixed = images.clone() * (-mask.clone() + 1.0) + reversed * mask;
    (mixed, 1.0 - area as f64 / (height * width) as f64)
}

/// `share` of each image and the rest of the one that it is mixed with, `[B, B]`.
pub fn matrix(batch: usize, share: f64) -> Vec<f32> {
    let [own, other] = [share as f32, (1.0 - share) as f32];
    let entry = |i: usize| {
        let (row, column) = (i / batch, i % batch);
        let own = if row == column { own } else { 0.0 };
        own + if row + column + 1 == batch { other } else { 0.0 }
    };
    (0..batch * batch).map(entry).collect()
}

/// The rows and columns of a CutMix box, cut off at the edges.
fn cut(rng: &mut Rng, [height, width]: [usize; 2], share: f64) -> [Range<usize>; 2] {
    let side = (1.0 - share).sqrt();
    let mut range = |size: usize| {
        let half = (size as f64 * side) as usize / 2;
        let center = rng.below(size as u64) as usize;
        center.saturating_sub(half)..(center + half).min(size)
    };
    [range(height), range(width)]
}

/// A sample of Beta(alpha, alpha), by Jöhnk's method.
fn beta(rng: &mut Rng, alpha: f64) -> f64 {
    loop {
        let x = rng.uniform().powf(1.0 / alpha);
        let y = rng.uniform().powf(1.0 / alpha);
        if x + y > 0.0 && x + y <= 1.0 {
            return x / (x + y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::Device;

    /// With images that are constant, an image's mean is what its row of the matrix says.
    #[test]
    fn matrices_tell_what_the_images_are_made_of() {
        let device = Device::Cpu;
        let levels: Vec<f32> = (0..4).flat_map(|i| vec![i as f32; 3 * 8 * 6]).collect();
        let crops = vec![Tensor::new(levels, [4, 3, 8, 6], &device); 12];
        let (images, matrices) = mix(&crops, &MixupConfig::default(), 3, [5, 0]);
        for (crop, (images, matrix)) in images.iter().zip(&matrices).enumerate() {
            let means: Vec<f32> = images
                .to_vec::<f32>()
                .chunks_exact(144)
                .map(|c| c.iter().sum::<f32>() / 144.0)
                .collect();
            for (row, mean) in matrix.chunks_exact(4).zip(means) {
                let expected: f32 = row.iter().enumerate().map(|(i, share)| i as f32 * share).sum();
                assert!((mean - expected).abs() < 1e-5, "crop {crop}: {mean} {expected}");
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
        assert_eq!(
            images[11].to_vec::<f32>(),
            crops[11].to_vec::<f32>(),
            "crops beyond `views` are untouched"
        );
    }

    #[test]
    fn beta_has_its_mean_and_variance() {
        let mut rng = Rng::new(1, [0; 3]);
        let draws: Vec<f64> = (0..20_000).map(|_| beta(&mut rng, 0.8)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        // Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((variance - 1.0 / 10.4).abs() < 0.003, "{variance}");
    }

    /// Two images, black and white, and the white share of the first one's mix.
    fn black_and_white(
        config: &MixupConfig,
        seed: u64,
        place: [u64; 2],
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let device = Device::Cpu;
        let levels = [[0f32; 3 * 12 * 12], [1.0; 3 * 12 * 12]].concat();
        let crops = vec![Tensor::new(levels, [2, 3, 12, 12], &device); 2];
        let (images, matrices) = mix(&crops, config, seed, place);
        let both = images.iter().zip(&matrices);
        both.map(|(images, matrix)| (images.to_vec::<f32>(), matrix.clone())).collect()
    }

    fn is_cut(image: &[f32]) -> bool {
        image.iter().all(|&value| value == 0.0 || value == 1.0)
    }

    /// Of 2,000 crops the share of `switch_prob` is cut, and each way has its own distribution:
    /// one that is narrow around a half, one that is often nearly 1.
    #[test]
    fn cutmix_has_its_share_and_its_distribution() {
        for alphas in [[4.0, 0.3], [0.3, 4.0]] {
            let [mixup_alpha, cutmix_alpha] = alphas;
            let config = MixupConfig {
                enabled: true,
                mixup_alpha,
                cutmix_alpha,
                switch_prob: 0.2,
                views: 2,
            };
            let [mut nearly_all, mut total] = [[0; 2]; 2];
            for step in 0..1000 {
                for (image, matrix) in black_and_white(&config, 1, [step, 0]) {
                    let way = usize::from(is_cut(&image));
                    nearly_all[way] += u32::from(matrix[0] > 0.95);
                    total[way] += 1;
                }
            }
            assert!((f64::from(total[1]) / 2000.0 - 0.2).abs() < 0.04, "{total:?}");
            for way in 0..2 {
                let share = f64::from(nearly_all[way]) / f64::from(total[way]);
                let expected = if alphas[way] > 1.0 { share < 0.05 } else { share > 0.15 };
                assert!(expected, "{way}: {share} of {total:?} for {alphas:?}");
            }
        }
    }

    /// A box of 0.6 of both sides around a uniformly drawn center, cut off at the edges, holds
    /// `(r - r^2 / 4)^2` of the area on average.
    #[test]
    fn area_of_the_cut() {
        let device = Device::Cpu;
        let mut rng = Rng::new(3, [0; 3]);
        let [height, width, draws] = [60, 90, 3000];
        // A black image and a white one: what is white in the first is the box.
        let levels = [vec![0f32; height * width], vec![1.0; height * width]].concat();
        let images = Tensor::new(levels, [2, 1, height, width], &device);
        let (mut area, mut rows_hit, mut columns_hit) = (0.0, [0; 60], [0; 90]);
        for _ in 0..draws {
            let pasted = pasted(&images, cut(&mut rng, [height, width], 1.0 - 0.36));
            let (mask, share) = (pasted.0.narrow(0, 0, 1).to_vec::<f32>(), pasted.1);
            let filled = mask.iter().filter(|&&value| value == 1.0).count();
            assert!(mask.iter().all(|&value| value == 0.0 || value == 1.0));
            assert!((share - (1.0 - filled as f64 / 5400.0)).abs() < 1e-12);
            area += filled as f64 / 5400.0;
            for (row, hits) in mask.chunks_exact(width).zip(&mut rows_hit) {
                *hits += usize::from(row.contains(&1.0));
            }
            for (column, hits) in columns_hit.iter_mut().enumerate() {
                *hits += usize::from(mask[column..].iter().step_by(width).any(|&v| v == 1.0));
            }
        }
        let expected = (0.6f64 - 0.09).powi(2);
        assert!((area / draws as f64 - expected).abs() < 0.005, "{area} of {draws}");
        // The middle is in the box where the center is within 0.3 of it, the edge within 0.3.
        let share = |hits: usize| hits as f64 / draws as f64;
        for (hits, expected) in [
            (rows_hit[0], 0.3),
            (rows_hit[30], 0.6),
            (rows_hit[59], 0.3),
            (columns_hit[0], 0.3),
            (columns_hit[45], 0.6),
            (columns_hit[89], 0.3),
        ] {
            assert!((share(hits) - expected).abs() < 0.05, "{} instead of {expected}", share(hits));
        }
    }

    /// Seed, step, micro-batch and crop each have draws of their own, and the same place has the
    /// same ones.
    #[test]
    fn draws_by_place() {
        let config = MixupConfig { switch_prob: 0.0, ..MixupConfig::default() };
        let share = |seed, place, crop: usize| black_and_white(&config, seed, place)[crop].1[0];
        let of_first = share(1, [2, 3], 0);
        assert_eq!(share(1, [2, 3], 0), of_first);
        for (what, other) in [
            ("seed", share(2, [2, 3], 0)),
            ("step", share(1, [3, 3], 0)),
            ("micro-batch", share(1, [2, 4], 0)),
            ("crop", share(1, [2, 3], 1)),
        ] {
            assert_ne!(other, of_first, "{what}");
        }
    }
}
