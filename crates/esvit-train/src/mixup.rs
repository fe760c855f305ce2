//! Mixup and CutMix of a student's images, for the view task.
//!
//! Image `i` of a batch is mixed with image `B - 1 - i`, with one share or one box per crop. Only
//! the student sees mixed images.

use burn::tensor::{Device, Tensor};
use esvit_kernels::rng::Rng;
use esvit_nn::params::tensor;
use esvit_settings::settings;

/// RNG purpose of mixup.
const MIXUP_PURPOSE: u64 = 0x313C;

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

/// Mixes `crops`, each `[B, 3, H, W]`, and returns for every crop the `[B, B]` matrix whose column
/// `j` has the shares of images in mixed image `j`. `place` is step and micro-batch, for the RNG.
pub fn mix(
    crops: &[Tensor<4>],
    config: &MixupConfig,
    seed: u64,
    place: [u64; 2],
) -> (Vec<Tensor<4>>, Vec<Tensor<2>>) {
    let mixed = crops.iter().enumerate().map(|(crop, images)| {
        let [batch, _, height, width] = images.dims();
        let device = images.device();
        if crop >= config.views {
            return (images.clone(), Tensor::eye(batch, &device));
        }
        let [step, micro_batch] = place;
        let mut rng = Rng::for_purpose(seed, MIXUP_PURPOSE, [step, micro_batch, crop as u64]);
        let reversed = images.clone().flip([0]);
        let (images, share) = if rng.chance(config.switch_prob) {
            let share = beta(&mut rng, config.cutmix_alpha);
            let (mask, share) = cut(&mut rng, [height, width], share, &device);
            (images.clone() * (-mask.clone() + 1.0) + reversed * mask, share)
        } else {
            let share = beta(&mut rng, config.mixup_alpha);
            (images.clone() * share + reversed * (1.0 - share), share)
        };
        let identity = Tensor::<2>::eye(batch, &device);
        (images, identity.clone() * share + identity.flip([0]) * (1.0 - share))
    });
    mixed.unzip()
}

/// A CutMix box, cut off at the edges: its mask `[1, 1, H, W]`, 1 inside, and the share of pixels
/// outside.
fn cut(
    rng: &mut Rng,
    [height, width]: [usize; 2],
    share: f64,
    device: &Device,
) -> (Tensor<4>, f64) {
    let side = (1.0 - share).sqrt();
    let mut range = |size: usize| {
        let half = (size as f64 * side) as usize / 2;
        let center = rng.below(size as u64) as usize;
        center.saturating_sub(half)..(center + half).min(size)
    };
    let (rows, columns) = (range(height), range(width));
    let area = rows.len() * columns.len();
    let mask = (0..height * width)
        .map(|i| f32::from(rows.contains(&(i / width)) && columns.contains(&(i % width))))
        .collect();
    (tensor(mask, [1, 1, height, width], device), 1.0 - area as f64 / (height * width) as f64)
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
    use esvit_nn::weights::to_vec;

    /// With images that are constant, an image's mean is what its row of the matrix says.
    #[test]
    fn matrices_tell_what_the_images_are_made_of() {
        let device = Device::flex();
        let levels: Vec<f32> = (0..4).flat_map(|i| vec![i as f32; 3 * 8 * 6]).collect();
        let crops = vec![tensor::<4>(levels, [4, 3, 8, 6], &device); 12];
        let (images, matrices) = mix(&crops, &MixupConfig::default(), 3, [5, 0]);
        for (crop, (images, matrix)) in images.iter().zip(&matrices).enumerate() {
            let means: Vec<f32> =
                to_vec(images).chunks_exact(144).map(|c| c.iter().sum::<f32>() / 144.0).collect();
            for (row, mean) in to_vec(matrix).chunks_exact(4).zip(means) {
                let expected: f32 = row.iter().enumerate().map(|(i, share)| i as f32 * share).sum();
                assert!((mean - expected).abs() < 1e-5, "crop {crop}: {mean} {expected}");
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
        assert_eq!(to_vec(&images[11]), to_vec(&crops[11]), "crops beyond `views` are untouched");
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
}
