//! Augments an image into its views.

use esvit_kernels::rng::Rng;

use super::color::{grayscale, jitter};
use super::config::ViewsConfig;
use super::{
    CropBox, Normalization, gaussian_blur, horizontal_flip, rotate90, solarize, vertical_flip,
};
use crate::pixels::CHANNELS;
use crate::{Image, ImageError, resized_crop};

/// RNG purpose of vertical flips and turns.
const TURNS: u64 = u64::from_be_bytes(*b"  turns ");

/// An augmented square crop of an image.
#[derive(Debug, Clone)]
pub struct View {
    /// The pixels, `size` x `size`, before random erasing.
    pub image: Image,
    /// The erased rectangle, if any.
    pub erased: Option<ErasedRect>,
}

/// A rectangle of normal noise, which replaces normalized values.
#[derive(Debug, Clone, PartialEq)]
pub struct ErasedRect {
    /// The rectangle.
    pub rect: CropBox,
    noise: Rng,
}

impl ErasedRect {
    /// The noise, row by row of every channel: `row(x, y, channel, values)` is called with the values
    /// from column `x` on.
    pub fn for_each_row(&self, mut row: impl FnMut(usize, usize, usize, &[f32])) {
        let Self { rect, noise } = self;
        let mut noise = noise.clone();
        let mut values = vec![0.0; rect.width as usize];
        for channel in 0..CHANNELS {
            for y in rect.top..rect.top + rect.height {
                values.fill_with(|| noise.normal() as f32);
                row(rect.left as usize, y as usize, channel, &values);
            }
        }
    }
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
            .map(|(v, size)| self.view(image, v, size, seed, [epoch, sample, v as u64]))
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
        self.view(image, 0, self.global_size, seed, [epoch, sample, 0])
    }

    /// Normalization of the network's input.
    pub fn normalization(&self) -> Normalization {
        Normalization::new(self.mean, self.std)
    }

    fn view(
        &self,
        image: &Image,
        v: usize,
        size: u32,
        seed: u64,
        at: [u64; 3],
    ) -> Result<View, ImageError> {
        let rng = &mut Rng::new(seed, at);
        let turns = &mut Rng::for_purpose(seed, TURNS, at);
        let is_global = v < self.global_count as usize;
        let scale = if is_global { self.global_scale } else { self.local_scale };
        let crop = CropBox::random(image.width(), image.height(), scale, self.ratio, rng);
        let mut view = resized_crop(image, crop, size, self.interpolation)?;
        if rng.chance(self.flip) {
            horizontal_flip(&mut view);
        }
        // Numbers of their own: the others are the same with and without.
        if turns.chance(self.flip_vertical) {
            vertical_flip(&mut view);
        }
        if turns.chance(self.rotate90) {
            rotate90(&mut view, 1 + turns.below(3) as u32);
        }
        jitter(&mut view, &self.jitter, rng);
        if rng.chance(self.grayscale) {
            grayscale(&mut view);
        }
        let blur = match v {
            0 => self.blur.p_global1,
            1 if is_global => self.blur.p_global2,
            _ => self.blur.p_local,
        };
        if rng.chance(blur) {
            gaussian_blur(&mut view, rng.uniform_in(self.blur.radius[0], self.blur.radius[1]));
        }
        if v == 1 && is_global && rng.chance(self.solarize.p) {
            solarize(&mut view, self.solarize.threshold);
        }
        let fill = self.mean.map(|mean| (255.0 * mean).round() as u8);
        self.randaugment.apply(&mut view, fill, rng);
        let erased =
            self.erase.sample(size, rng).map(|rect| ErasedRect { rect, noise: rng.clone() });
        Ok(View { image: view, erased })
    }
}

impl View {
    /// Side in pixels.
    pub fn size(&self) -> u32 {
        self.image.width()
    }

    /// The view as an image, noise included.
    pub fn to_image(&self, normalization: &Normalization) -> Image {
        let mut image = self.image.clone();
        let side = self.size() as usize;
        if let Some(erased) = &self.erased {
            erased.for_each_row(|x, y, channel, values| {
                let pixels = image.pixels_mut().as_chunks_mut::<CHANNELS>().0;
                for (pixel, &value) in pixels[y * side + x..].iter_mut().zip(values) {
                    pixel[channel] = normalization.byte(value, channel);
                }
            });
        }
        image
    }
}

#[cfg(test)]
mod tests {
    use esvit_kernels::rng::Rng;

    use super::*;
    use crate::Crops;
    use crate::augment::config::{Blur, Policy, Solarize};
    use crate::augment::erase::Erase;
    use crate::augment::randaugment::RandAugment;
    use crate::augment::test_draws::assert_share;
    use crate::augment::test_images::{noise, places};
    use proptest::prelude::*;

    fn small(policy: Policy) -> ViewsConfig {
        ViewsConfig {
            global_size: 32,
            local_sizes: vec![16, 12],
            local_counts: vec![2, 1],
            ..ViewsConfig::for_policy(policy)
        }
    }

    const POLICIES: [Policy; 8] = [
        Policy::Dino,
        Policy::Deit,
        Policy::MocoV2,
        Policy::MocoV3,
        Policy::Byol,
        Policy::Simclr,
        Policy::Swav,
        Policy::Basic,
    ];

    fn pixels(views: &[View]) -> Vec<&[u8]> {
        views.iter().map(|view| view.image.pixels()).collect()
    }

    /// The network's input of a view.
    fn input(view: &View, config: &ViewsConfig) -> Vec<f32> {
        let mut crops = Crops::new(1, view.size() as usize);
        crops.set(0, view);
        let mut values = vec![f32::NAN; crops.pixels.len()];
        config.normalization().write(&view.image, &mut values).unwrap();
        crops.for_each_erased(0..1, |at, row| values[at..at + row.len()].copy_from_slice(row));
        values
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
                let values = input(&view, &config);
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

    fn views(config: &ViewsConfig, image: &Image, sample: u64) -> Vec<Image> {
        let views = config.views(image, 1, 0, sample).unwrap();
        views.into_iter().map(|view| view.image).collect()
    }

    #[test]
    fn views_are_mirrored_as_often_as_asked() {
        let gradient = places(200, 100);
        for p in [0.0, 0.3, 1.0] {
            let config = ViewsConfig { flip: p, ..small(Policy::Basic) };
            let (mut mirrored, mut all) = (0, 0);
            for view in (0..100).flat_map(|sample| views(&config, &gradient, sample)) {
                all += 1;
                let [left, right] = [0, view.width() - 1].map(|x| view.pixel(x, 0).unwrap()[0]);
                mirrored += usize::from(left > right);
            }
            assert_share(mirrored, all, p);
        }
    }

    #[test]
    fn views_are_turned_as_often_as_asked_and_all_else_stays() {
        let gradient = places(100, 100);
        for p in [0.0, 0.3, 1.0] {
            let plain = ViewsConfig { flip: 0.0, ratio: [1.0, 1.0], ..small(Policy::Basic) };
            let flipped = ViewsConfig { flip_vertical: p, ..plain.clone() };
            let turned = ViewsConfig { rotate90: p, ..plain.clone() };
            let (mut flips, mut quarters, mut all) = (0, [0; 4], 0);
            for sample in 0..100 {
                let [plain, flipped, turned] =
                    [&plain, &flipped, &turned].map(|set| views(set, &gradient, sample));
                for ((plain, flipped), turned) in plain.iter().zip(&flipped).zip(&turned) {
                    // The crop is the same, and every pixel is where the turn puts it.
                    let mut upside_down = plain.clone();
                    vertical_flip(&mut upside_down);
                    flips += usize::from(*flipped == upside_down);
                    assert!(*flipped == upside_down || flipped == plain);
                    let quarter = (0..4).find(|&quarter| {
                        let mut view = plain.clone();
                        rotate90(&mut view, quarter);
                        view == *turned
                    });
                    quarters[quarter.unwrap() as usize] += 1;
                    all += 1;
                }
            }
            assert_share(flips, all, p);
            (1..4).for_each(|quarter| assert_share(quarters[quarter], all, p / 3.0));
        }
    }

    /// Colors are drawn as without turns.
    #[test]
    fn turns_come_before_colors_and_leave_them_alone() {
        let image = noise(60, 50, 1);
        let config = ViewsConfig { flip: 0.0, ..small(Policy::Dino) };
        let turned = ViewsConfig { flip_vertical: 1.0, ..config.clone() };
        let calm = |config: &ViewsConfig| ViewsConfig {
            // Blur sums in an order of its own.
            blur: Blur { p_global1: 0.0, p_global2: 0.0, p_local: 0.0, ..Blur::default() },
            ..config.clone()
        };
        for sample in 0..10 {
            let plain = views(&calm(&config), &image, sample);
            for (mut view, turned) in plain.into_iter().zip(views(&calm(&turned), &image, sample)) {
                vertical_flip(&mut view);
                let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
                assert!(view.pixels().iter().zip(turned.pixels()).all(near));
            }
        }
    }

    /// Colors tell the rect, so their range tells the size of the crop.
    #[test]
    fn global_and_local_crops_have_their_own_areas() {
        let config = ViewsConfig {
            global_scale: [0.8, 0.9],
            local_scale: [0.2, 0.3],
            ratio: [1.0, 1.0],
            interpolation: crate::Interpolation::Bilinear,
            ..small(Policy::Basic)
        };
        for sample in 0..20 {
            for (v, view) in views(&config, &places(250, 250), sample).iter().enumerate() {
                let [first, last] = [0, view.height() - 1].map(|y| view.pixel(0, y).unwrap()[1]);
                // From the middle of the first pixel to the middle of the last.
                let side = f64::from(view.height());
                let crop = f64::from(last - first) / 250.0 * side / (side - 1.0);
                let (low, high) = if v < 2 { (0.8, 0.9) } else { (0.2, 0.3) };
                let within = low - 0.04..high + 0.04;
                assert!(within.contains(&(crop * crop)), "view {v}: {}", crop * crop);
            }
        }
    }

    #[test]
    fn radii_of_blur_are_uniform() {
        // A bright line spreads the more the larger the radius, which its peak tells.
        let line = |x: u32| if x == 20 { [250; 3] } else { [0; 3] };
        let image = Image::new(41, 41, (0..41 * 41).flat_map(|i| line(i % 41)).collect());
        let whole = ViewsConfig {
            global_size: 41,
            global_scale: [1.0, 1.0],
            ratio: [1.0, 1.0],
            flip: 0.0,
            ..small(Policy::Basic)
        };
        let blur = |radius| Blur { p_global1: 1.0, radius, ..Blur::default() };
        let config = ViewsConfig { blur: blur([1.0, 3.0]), ..whole.clone() };
        let image = image.unwrap();
        let peak = |view: View| view.image.pixel(20, 20).unwrap()[0];
        let peaks: Vec<u8> = (0..2000)
            .map(|sample| peak(config.first_view(&image, 1, 0, sample).unwrap()))
            .collect();
        let sure = |radius| {
            let config = ViewsConfig { blur: blur([radius; 2]), ..whole.clone() };
            peak(config.first_view(&image, 1, 0, 0).unwrap())
        };
        for (radius, share) in [(1.5, 0.25), (2.0, 0.5), (2.5, 0.75)] {
            let peak = sure(radius);
            let [above, equal] = [
                peaks.iter().filter(|&&p| p > peak).count(),
                peaks.iter().filter(|&&p| p == peak).count(),
            ];
            assert_share(above + equal / 2, peaks.len(), share);
        }
        // The approximation by boxes is not quite monotone.
        assert!(peaks.iter().all(|peak| (sure(3.0) - 1..=sure(1.0)).contains(peak)));
    }

    #[test]
    fn views_turn_gray_and_are_solarized_as_often_as_asked() {
        let image = Image::filled(9, 9, [10, 20, 30]);
        let config = ViewsConfig {
            grayscale: 0.3,
            solarize: Solarize { p: 0.6, threshold: 0 },
            ..small(Policy::Basic)
        };
        let all: Vec<Vec<Image>> = (0..400).map(|i| views(&config, &image, i)).collect();
        for v in 0..5 {
            let colors: Vec<[u8; 3]> =
                all.iter().map(|views| views[v].pixel(0, 0).unwrap()).collect();
            let gray = colors.iter().filter(|[r, _, b]| r == b).count();
            assert_share(gray, colors.len(), 0.3);
            let inverted = colors.iter().filter(|[r, ..]| *r > 128).count();
            assert_share(inverted, colors.len(), if v == 1 { 0.6 } else { 0.0 });
        }
    }

    /// Crop, mirror, colors, gray, blur, solarization: they do not commute.
    #[test]
    fn operations_come_in_their_order() {
        let image = noise(60, 50, 1);
        let config = ViewsConfig {
            flip: 1.0,
            jitter: crate::augment::ColorJitter { p: 1.0, ..Default::default() },
            grayscale: 1.0,
            blur: Blur { p_global2: 1.0, radius: [1.0, 1.0], ..Blur::default() },
            solarize: Solarize { p: 1.0, threshold: 120 },
            interpolation: crate::Interpolation::Bilinear,
            ..small(Policy::Dino)
        };
        for sample in 0..10 {
            let rng = &mut Rng::new(1, [0, sample, 1]);
            let crop = CropBox::random(60, 50, config.global_scale, config.ratio, rng);
            let mut expected = resized_crop(&image, crop, 32, config.interpolation).unwrap();
            rng.chance(1.0);
            horizontal_flip(&mut expected);
            jitter(&mut expected, &config.jitter, rng);
            grayscale(&mut expected);
            gaussian_blur(&mut expected, 1.0);
            solarize(&mut expected, 120);
            assert_eq!(views(&config, &image, sample)[1], expected);
        }
    }

    /// MoCo flips last, MoBY and DINO first: the pixels are the same.
    #[test]
    fn a_flip_first_is_a_flip_last() {
        let image = noise(60, 50, 1);
        for policy in [Policy::Dino, Policy::MocoV2, Policy::Byol, Policy::Swav] {
            let [plain, flipped] = [0.0, 1.0].map(|flip| ViewsConfig { flip, ..small(policy) });
            for sample in 0..10 {
                let plain = views(&plain, &image, sample);
                for (mut view, flipped) in plain.into_iter().zip(views(&flipped, &image, sample)) {
                    horizontal_flip(&mut view);
                    assert_eq!(view, flipped, "{policy:?}");
                }
            }
        }
    }

    /// What sets the two views of an image apart, and what does not.
    #[test]
    fn views_of_published_policies() {
        let line = |x: u32| if x == 20 { [10; 3] } else { [200; 3] };
        let image = Image::new(41, 41, (0..41 * 41).flat_map(|i| line(i % 41)).collect()).unwrap();
        // Whole and without colors, so that blur and solarization alone are seen.
        let whole = |policy: Policy| {
            let config = ViewsConfig { global_size: 41, flip: 0.0, ..small(policy) };
            let jitter = crate::augment::ColorJitter { p: 0.0, ..config.jitter };
            ViewsConfig { jitter, global_scale: [1.0; 2], ratio: [1.0; 2], ..config }
        };
        for (policy, blurred, inverted) in [
            (Policy::MocoV3, [1.0, 0.1], [0.0, 0.2]),
            (Policy::Byol, [1.0, 0.1], [0.0, 0.2]),
            (Policy::MocoV2, [0.5, 0.5], [0.0, 0.0]),
            (Policy::Simclr, [0.5, 0.5], [0.0, 0.0]),
            (Policy::Swav, [0.5, 0.5], [0.0, 0.0]),
        ] {
            let mut config = whole(policy);
            config.blur.radius = [2.0; 2];
            let all: Vec<Vec<Image>> = (0..400).map(|i| views(&config, &image, i)).collect();
            for (v, (inverted, blurred)) in inverted.into_iter().zip(blurred).enumerate() {
                let of = |x: u32| all.iter().map(move |views| views[v].pixel(x, 20).unwrap()[0]);
                let count = |x: u32, is: fn(u8) -> bool| of(x).filter(|&value| is(value)).count();
                // Bright far from the line unless it is inverted, and beside it unless it is
                // blurred.
                assert_share(count(0, |value| value == 55), all.len(), inverted);
                let sharp = count(21, |value| value == 200 || value == 55);
                assert_share(all.len() - sharp, all.len(), blurred);
            }
        }
    }

    #[test]
    fn what_comes_from_outside_has_the_mean_color() {
        let config = ViewsConfig {
            mean: [0.2, 0.45, 0.6],
            randaugment: RandAugment { ops: 1, p: 1.0, ..RandAugment::default() },
            ..small(Policy::Basic)
        };
        let corners =
            (0..50).flat_map(|sample| views(&config, &Image::filled(9, 9, [255; 3]), sample));
        let colors: Vec<[u8; 3]> = corners
            .flat_map(|view| [view.pixel(0, 0).unwrap(), view.pixel(view.width() - 1, 0).unwrap()])
            .collect();
        // 0.45 of 255 is 114.75.
        assert!(colors.contains(&[51, 115, 153]));
    }

    #[test]
    fn the_first_view_alone_is_the_first() {
        let (image, config) = (noise(60, 50, 1), small(Policy::Deit));
        for sample in 0..10 {
            let (all, first) = (
                config.views(&image, 1, 2, sample).unwrap(),
                config.first_view(&image, 1, 2, sample).unwrap(),
            );
            assert_eq!(first.image, all[0].image);
            assert_eq!(first.erased.map(|e| e.rect), all[0].erased.as_ref().map(|e| e.rect));
        }
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
        let rect = view.erased.as_ref().unwrap().rect;
        let values = input(view, &config);
        // The color is the mean, so only noise is far from zero.
        let far = values.iter().filter(|value| value.abs() > 0.05).count();
        let erased = (3 * rect.width * rect.height) as usize;
        assert!(far <= erased && far > erased * 9 / 10, "{far} of {erased}");
        let shown = config.normalization().denormalize(&values, 32, 32).unwrap();
        assert_eq!(shown, view.to_image(&config.normalization()));
    }

    #[test]
    fn erased_noise_is_normal_and_other_pixels_stay() {
        let config = ViewsConfig {
            global_size: 100,
            erase: Erase { p: 1.0, area: [0.32; 2], aspect: [0.5; 2] },
            ..small(Policy::Basic)
        };
        let view = config.first_view(&Image::filled(40, 40, [200; 3]), 1, 0, 0).unwrap();
        let rect = view.erased.as_ref().unwrap().rect;
        assert_eq!((rect.width, rect.height), (80, 40));
        let (values, mut plain) = (input(&view, &config), vec![0.0; 30_000]);
        config.normalization().write(&view.image, &mut plain).unwrap();
        let mut noise = Vec::new();
        for (i, (value, plain)) in values.into_iter().zip(plain).enumerate() {
            let (x, y) = (i as u32 % 100, i as u32 / 100 % 100);
            let inside = (rect.left..rect.left + rect.width).contains(&x)
                && (rect.top..rect.top + rect.height).contains(&y);
            if inside { noise.push(value) } else { assert_eq!(value, plain) }
        }
        for (bound, share) in [(-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134), (2.0, 0.97725)] {
            let below = noise.iter().filter(|&&value| value < bound).count();
            assert_share(below, noise.len(), share);
        }
        assert!(noise[..100] != noise[3200..3300], "channels have noise of their own");
    }
}
