//! Changes of colour: brightness, contrast, saturation, hue, grey, and their random mixture.
//!
//! The arithmetic is Pillow's on 8-bit pixels (`ImageEnhance`, `convert("L")`,
//! `convert("HSV")`), since torchvision's `ColorJitter` works through it.

use esvit_kernels::rng::Rng;

use super::lookup::{apply, blend, table};
use super::overlay::overlay;
use crate::Picture;
use crate::picture::CHANNELS;

overlay! {
    /// How far colours are changed at random, and how often.
    pub struct ColorJitter / PartialColorJitter {
        /// Probability of changing the colours at all.
        pub p: f64 = 0.8,
        /// The factor of brightness is uniform in `1 - brightness ..= 1 + brightness`, at least 0.
        pub brightness: f64 = 0.4,
        /// Likewise for contrast.
        pub contrast: f64 = 0.4,
        /// Likewise for saturation.
        pub saturation: f64 = 0.2,
        /// The shift of the hue is uniform in `-hue ..= hue`; 0.5 is half the colour circle.
        pub hue: f64 = 0.1,
    }
}

/// With probability `p`, changes brightness, contrast, saturation and hue by random amounts and
/// in random order.
pub fn jitter(picture: &mut Picture, strength: &ColorJitter, rng: &mut Rng) {
    if !rng.chance(strength.p) {
        return;
    }
    let mut order = [0, 1, 2, 3];
    rng.shuffle(&mut order);
    let mut factor = |around: f64| rng.uniform_in((1.0 - around).max(0.0), 1.0 + around);
    let factors =
        [factor(strength.brightness), factor(strength.contrast), factor(strength.saturation)];
    let shift = rng.uniform_in(-strength.hue, strength.hue);
    for which in order {
        match which {
            0 => brightness(picture, factors[0]),
            1 => contrast(picture, factors[1]),
            2 => saturation(picture, factors[2]),
            _ => hue(picture, shift),
        }
    }
}

/// Multiplies every value by `factor`: 0 is black, 1 changes nothing.
pub fn brightness(picture: &mut Picture, factor: f64) {
    let factor = factor as f32;
    apply(picture, &table(|value| blend(0, value, factor)));
}

/// Moves every value away from the picture's mean luminance by `factor`: 0 is uniform grey.
pub fn contrast(picture: &mut Picture, factor: f64) {
    let factor = factor as f32;
    let count = u64::from(picture.width()) * u64::from(picture.height());
    let pixels = picture.pixels().as_chunks::<CHANNELS>().0;
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luminance(*pixel))).sum();
    // The rounded mean, as Pillow takes it.
    let mean = ((2 * sum + count) / (2 * count)) as u8;
    apply(picture, &table(|value| blend(mean, value, factor)));
}

/// Moves every pixel away from its own luminance by `factor`: 0 is a grey picture.
pub fn saturation(picture: &mut Picture, factor: f64) {
    let factor = factor as f32;
    for pixel in picture.pixels_mut().as_chunks_mut::<CHANNELS>().0 {
        let grey = luminance(*pixel);
        *pixel = pixel.map(|value| blend(grey, value, factor));
    }
}

/// Replaces every pixel by its luminance.
pub fn grayscale(picture: &mut Picture) {
    for pixel in picture.pixels_mut().as_chunks_mut::<CHANNELS>().0 {
        *pixel = [luminance(*pixel); 3];
    }
}

/// Turns the colour circle by `shift` (1 is a full turn), by way of an 8-bit hue that wraps.
pub fn hue(picture: &mut Picture, shift: f64) {
    let shift = (shift * 255.0) as i32 as u8;
    // Per hue: the sector of the colour circle and the place within it.
    let sectors: [(u8, f32); 256] = std::array::from_fn(|hue| {
        let turned = hue as f32 * 6.0 / 255.0;
        ((turned as u8) % 6, turned - turned.floor())
    });
    for pixel in picture.pixels_mut().as_chunks_mut::<CHANNELS>().0 {
        *pixel = turn(*pixel, shift, &sectors);
    }
}

/// The luminance of ITU-R 601-2 in 16-bit fixed point.
fn luminance([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// Pillow's 8-bit HSV there and back, with `shift` added to the hue in between.
#[inline]
fn turn(pixel: [u8; 3], shift: u8, sectors: &[(u8, f32); 256]) -> [u8; 3] {
    let [r, g, b] = pixel;
    let value = r.max(g).max(b);
    let spread = value - r.min(g).min(b);
    if spread == 0 {
        return pixel;
    }
    let saturation = (f32::from(spread) / f32::from(value) * 255.0) as u8;
    if saturation == 0 {
        return [value; 3];
    }
    let below = |channel: u8| f32::from(value - channel) / f32::from(spread);
    let (rc, gc, bc) = (below(r), below(g), below(b));
    let sixths = if r == value {
        bc - gc
    } else if g == value {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    // Truncated to 8 bits: the last digit decides, and Pillow takes it in double precision.
    let turns = f64::from(sixths) / 6.0 + 1.0;
    let hue = ((f64::from((turns - turns.trunc()) as f32) * 255.0) as u8).wrapping_add(shift);

    let (sector, along) = sectors[hue as usize];
    let (v, s) = (f32::from(value), f32::from(saturation) / 255.0);
    let round = |x: f32| (x + 0.5) as u8;
    let p = round(v * (1.0 - s));
    let q = round(v * (1.0 - s * along));
    let t = round(v * (1.0 - s * (1.0 - along)));
    match sector {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::test_pictures::{f7, f7_after, noise};

    #[test]
    fn as_pillow() {
        assert_eq!(f7_after(|p| brightness(p, 1.3)), [66, 255, 233]);
        assert_eq!(f7_after(|p| contrast(p, 0.7)), [74, 199, 164]);
        assert_eq!(f7_after(|p| saturation(p, 1.2)), [27, 241, 181]);
        assert_eq!(f7_after(|p| hue(p, 0.07)), [51, 211, 230]);
        assert_eq!(f7_after(grayscale), [171; 3]);
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        for op in [brightness, contrast, saturation] {
            let mut picture = f7();
            op(&mut picture, 1.0);
            assert_eq!(picture, f7());
        }
    }

    #[test]
    fn grey_has_no_hue() {
        let mut picture = noise(13, 7, 1);
        grayscale(&mut picture);
        let grey = picture.clone();
        hue(&mut picture, 0.3);
        assert_eq!(picture, grey);
        saturation(&mut picture, 1.7);
        assert_eq!(picture, grey);
    }

    #[test]
    fn a_full_turn_comes_back_but_for_rounding() {
        let mut picture = Picture::filled(2, 2, [200, 40, 90]);
        hue(&mut picture, 0.5);
        assert_ne!(picture.pixel(0, 0), Some([200, 40, 90]));
        hue(&mut picture, 0.5);
        // Two steps of the 8-bit hue short: 2 * 127 of 256.
        assert_eq!(picture.pixel(0, 0), Some([200, 40, 100]));
    }

    #[test]
    fn jitter_keeps_to_its_probability_and_strength() {
        let none =
            ColorJitter { p: 1.0, brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 };
        let mut picture = Picture::filled(3, 3, [250, 128, 7]);
        jitter(&mut picture, &ColorJitter { brightness: 0.4, ..none }, &mut Rng::new(1, [0; 3]));
        assert_ne!(picture.pixel(0, 0), Some([250, 128, 7]));
        let changed = (0..1000).filter(|&i| {
            let mut picture = Picture::filled(3, 3, [250, 128, 7]);
            jitter(&mut picture, &ColorJitter::default(), &mut Rng::new(2, [i, 0, 0]));
            picture.pixel(0, 0) != Some([250, 128, 7])
        });
        assert!((750..850).contains(&changed.count()));
    }
}
