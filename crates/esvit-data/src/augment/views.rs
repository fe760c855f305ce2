//! Augments an image into its views.

use esvit_kernels::rng::Rng;

use super::color::{grayscale, jitter};
use super::config::{GLOBALS, ViewsConfig};
use super::normalize::SliceLength;
use super::{CropBox, Normalization, gaussian_blur, horizontal_flip, solarize};
use crate::pixels::CHANNELS;
use crate::{Image, ImageError, resized_crop};

/// An augmented square crop of an image.
#[derive(Debug, Clone)]
pub struct View {
    /// The pixels, `size` x `size`, before random erasing.
    pub image: Image,
    /// The erased rectangle, if any.
    pub erased: Option<Erasure>,
}

/// A rectangle of normal noise, which replaces normalized values.
#[derive(Debug, Clone)]
pub struct Erasure {
    /// The rectangle.
    pub place: CropBox,
    noise: Rng,
}

impl ViewsConfig {
    /// All views of `image`, in the order of [`sizes`](Self::sizes). View `v` depends only on the
    /// settings and on the random numbers of `seed` at `[epoch, sample, v]`.
    pub fn views(
        &self,
        image: &Image,
        seed: u64,
        epoch: u64,
        sample: u64,
    ) -> Result<Vec<View>, ImageError> {
        self.sizes()
            .into_iter()
            .enumerate()
            .map(|(v, size)| {
                self.view(image, v, size, &mut Rng::new(seed, [epoch, sample, v as u64]))
            })
            .collect()
    }

    /// Only the first of the [`views`](Self::views).
    pub fn first_view(
        &self,
        image: &Image,
        seed: u64,
        epoch: u64,
        sample: u64,
    ) -> Result<View, ImageError> {
        self.view(image, 0, self.global_size, &mut Rng::new(seed, [epoch, sample, 0]))
    }

    /// Normalization of the network's input.
    pub fn normalization(&self) -> Normalization {
        Normalization::new(self.mean, self.std)
    }

    fn view(&self, image: &Image, v: usize, size: u32, rng: &mut Rng) -> Result<View, ImageError> {
        let scale = if v < GLOBALS { self.global_scale } else { self.local_scale };
        let crop = CropBox::random(image.width(), image.height(), scale, self.ratio, rng);
        let mut view = resized_crop(image, crop, size, self.interpolation)?;
        if rng.chance(self.flip) {
            horizontal_flip(&mut view);
        }
        jitter(&mut view, &self.jitter, rng);
        if rng.chance(self.grayscale) {
            grayscale(&mut view);
        }
        let blur = match v {
            0 => self.blur.p_global1,
            1 => self.blur.p_global2,
            _ => self.blur.p_local,
        };
        if rng.chance(blur) {
            gaussian_blur(&mut view, rng.uniform_in(self.blur.radius[0], self.blur.radius[1]));
        }
        if v == 1 && rng.chance(self.solarize.p) {
            solarize(&mut view, self.solarize.threshold);
        }
        let fill = self.mean.map(|mean| (255.0 * mean).round() as u8);
        self.randaugment.apply(&mut view, fill, rng);
        let erased = self.erase.draw(size, rng).map(|place| Erasure { place, noise: rng.clone() });
        Ok(View { image: view, erased })
    }
}

impl View {
    /// Side in pixels.
    pub fn size(&self) -> u32 {
        self.image.width()
    }

    /// Writes the network's input `[3, size, size]` into `out`, which must have that length.
    pub fn write(&self, normalization: &Normalization, out: &mut [f32]) -> Result<(), SliceLength> {
        normalization.write(&self.image, out)?;
        let side = self.size() as usize;
        self.for_each_erased(|x, y, channel, value| out[(channel * side + y) * side + x] = value);
        Ok(())
    }

    /// The view as an image, noise included.
    pub fn shown(&self, normalization: &Normalization) -> Image {
        let mut image = self.image.clone();
        let side = self.size() as usize;
        self.for_each_erased(|x, y, channel, value| {
            image.pixels_mut()[(y * side + x) * CHANNELS + channel] =
                normalization.byte(value, channel);
        });
        image
    }

    /// Calls `set(x, y, channel, value)` for every value of the noise.
    fn for_each_erased(&self, mut set: impl FnMut(usize, usize, usize, f32)) {
        let Some(Erasure { place, noise }) = &self.erased else { return };
        let mut noise = noise.clone();
        for channel in 0..CHANNELS {
            for y in place.top..place.top + place.height {
                for x in place.left..place.left + place.width {
                    set(x as usize, y as usize, channel, noise.normal() as f32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::config::{Blur, Policy, Solarize};
    use crate::augment::erase::Erase;
    use crate::augment::test_images::noise;
    use proptest::prelude::*;

    fn small(policy: Policy) -> ViewsConfig {
        ViewsConfig {
            global_size: 32,
            local_sizes: vec![16, 12],
            local_counts: vec![2, 1],
            ..ViewsConfig::for_policy(policy)
        }
    }

    const POLICIES: [Policy; 4] = [Policy::Dino, Policy::Deit, Policy::MocoV2, Policy::Basic];

    fn pixels(views: &[View]) -> Vec<&[u8]> {
        views.iter().map(|view| view.image.pixels()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn views_of_any_image_have_their_sizes(
            w in prop::sample::select(vec![1u32, 2, 13, 97, 500]),
            h in prop::sample::select(vec![1u32, 3, 31, 101, 5000]),
            policy in prop::sample::select(POLICIES.to_vec()),
            seed: u64,
        ) {
            let config = small(policy);
            let views = config.views(&noise(w, h, 1), seed, 2, 3).unwrap();
            let sizes: Vec<u32> = views.iter().map(View::size).collect();
            prop_assert_eq!(sizes, config.sizes());
            for view in views {
                let mut values = vec![f32::NAN; 3 * (view.size() * view.size()) as usize];
                view.write(&config.normalization(), &mut values).unwrap();
                prop_assert!(values.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn views_depend_on_seed_epoch_sample_and_number_only() {
        let image = noise(60, 50, 1);
        for policy in POLICIES {
            let config = small(policy);
            let base = config.views(&image, 1, 2, 3).unwrap();
            assert_eq!(pixels(&base), pixels(&config.views(&image, 1, 2, 3).unwrap()));
            for (seed, epoch, sample) in [(2, 2, 3), (1, 3, 3), (1, 2, 4)] {
                let other = config.views(&image, seed, epoch, sample).unwrap();
                assert_ne!(pixels(&base), pixels(&other));
            }
            assert_ne!(base[0].image, base[1].image);
            // Fewer views leave the others as they were.
            let fewer = ViewsConfig { local_counts: vec![0, 0], ..config };
            assert_eq!(pixels(&fewer.views(&image, 1, 2, 3).unwrap()), pixels(&base)[..2]);
        }
    }

    /// With everything else off, solarization and blur show which views they belong to.
    #[test]
    fn only_the_second_global_view_is_solarized() {
        let config =
            ViewsConfig { solarize: Solarize { p: 1.0, threshold: 0 }, ..small(Policy::Basic) };
        let views = config.views(&Image::filled(9, 9, [10; 3]), 1, 0, 0).unwrap();
        let values: Vec<u8> = views.iter().map(|view| view.image.pixels()[0]).collect();
        assert_eq!(values, [10, 245, 10, 10, 10]);
    }

    #[test]
    fn blur_has_a_probability_for_each_kind_of_view() {
        let sharp = small(Policy::Basic);
        let blur = Blur { p_global1: 1.0, p_global2: 0.0, p_local: 1.0, radius: [2.0, 2.0] };
        let blurred = ViewsConfig { blur, ..sharp.clone() };
        let image = noise(80, 80, 1);
        let (a, b) = (sharp.views(&image, 1, 0, 0), blurred.views(&image, 1, 0, 0));
        let changed: Vec<bool> =
            a.unwrap().iter().zip(b.unwrap()).map(|(a, b)| a.image != b.image).collect();
        assert_eq!(changed, [true, false, true, true, true]);
    }

    #[test]
    fn erased_pixels_are_noise_in_values_and_in_the_shown_image() {
        let config =
            ViewsConfig { erase: Erase { p: 1.0, ..Erase::default() }, ..small(Policy::Basic) };
        let view = &config.views(&Image::filled(40, 40, [124, 116, 104]), 1, 0, 0).unwrap()[0];
        let place = view.erased.as_ref().unwrap().place;
        let mut values = vec![0.0; 3 * 32 * 32];
        view.write(&config.normalization(), &mut values).unwrap();
        // The color is the mean, so only noise is far from zero.
        let far = values.iter().filter(|value| value.abs() > 0.05).count();
        let erased = (3 * place.width * place.height) as usize;
        assert!(far <= erased && far > erased * 9 / 10, "{far} of {erased}");
        let shown = config.normalization().show(&values, 32, 32).unwrap();
        assert_eq!(shown, view.shown(&config.normalization()));
        assert!(view.write(&config.normalization(), &mut values[1..]).is_err());
    }
}
