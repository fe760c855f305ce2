//! Operations on pixels of 8-bit RGB images, bit for bit those of Pillow.

use crate::simd::dispatch;

/// Red, green and blue.
pub type Pixel = [u8; 3];

/// Pixels that are computed together.
const BLOCK: usize = 64;

/// Red, green and blue of a block: whole numbers of 0 to 255.
type Planes = [[f32; BLOCK]; 3];

/// The luminance of ITU-R 601-2 in 16-bit fixed point.
#[inline(always)]
fn luminance([r, g, b]: Pixel) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// `from + factor * (to - from)` in f32, clamped to 0..=255 and truncated.
#[inline(always)]
pub fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // The cast truncates and saturates.
    (f32::from(from) + factor * (f32::from(to) - f32::from(from))) as u8
}

dispatch! {
    /// Sum of the luminance of all pixels.
    pub fn luminance_sum(pixels: &[Pixel]) -> u64 {
        // A block of 2^16 sums less than 2^24.
        pixels.chunks(1 << 16).map(|block| {
            let sum: u32 = block.iter().map(|pixel| u32::from(luminance(*pixel))).sum();
            u64::from(sum)
        }).sum()
    }

    /// Replaces every pixel by its luminance.
    pub fn grayscale(pixels: &mut [Pixel]) {
        for pixel in pixels {
            *pixel = [luminance(*pixel); 3];
        }
    }

    /// Blends every pixel with its luminance: 0 is a gray image, 1 the identity.
    pub fn saturation(pixels: &mut [Pixel], factor: f32) {
        for block in pixels.chunks_mut(BLOCK) {
            let mut planes = planes_of(block);
            for i in 0..BLOCK {
                let [r, g, b] = [planes[0][i], planes[1][i], planes[2][i]];
                // As `luminance`: all sums are below 2^24 and so exact.
                let sum = r * 19_595.0 + g * 38_470.0 + b * 7_471.0 + 32_768.0;
                let gray = truncated(sum * (1.0 / 65_536.0)) as f32;
                // As `blend`.
                for plane in &mut planes {
                    plane[i] = gray + factor * (plane[i] - gray);
                }
            }
            store(&planes, block);
        }
    }

    /// Shifts the hue by so many 255ths of a turn, with wrap-around: RGB to HSV and back, in 8 bits.
    pub fn shift_hue(pixels: &mut [Pixel], shift: u8) {
        for block in pixels.chunks_mut(BLOCK) {
            let mut planes = planes_of(block);
            shift_hues(&mut planes, shift);
            store(&planes, block);
        }
    }

    /// A row of a box blur: `to = whole * sums + part * (before + after)`, in units of 2^-24, for the
    /// sums over rows of a box. `rows` are the first of these rows, that before it and the one
    /// that follows the last; `weights` whole and part. The sums become those of a box one row further on.
    ///
    /// # Panics
    /// When a row is shorter than the sums.
    pub fn box_blur_row(
        rows: [&[u8]; 3],
        weights: [u32; 2],
        sums: &mut [u32],
        to: &mut [u8],
    ) {
        let len = sums.len();
        let ([first, before, after], [whole, part]) = (rows, weights);
        let (first, before, after) = (&first[..len], &before[..len], &after[..len]);
        let to = &mut to[..len];
        for i in 0..len {
            let edges = u32::from(before[i]) + u32::from(after[i]);
            let total = sums[i] * whole + edges * part;
            to[i] = ((total + (1 << 23)) >> 24) as u8;
            sums[i] = sums[i] + u32::from(after[i]) - u32::from(first[i]);
        }
    }
}

/// The planes of up to a block of pixels.
#[inline(always)]
fn planes_of(pixels: &[Pixel]) -> Planes {
    let mut planes = [[0.0; BLOCK]; 3];
    for (i, pixel) in pixels.iter().enumerate().take(BLOCK) {
        for (plane, &value) in planes.iter_mut().zip(pixel) {
            plane[i] = f32::from(value);
        }
    }
    planes
}

/// Stores planes in up to a block of pixels, truncated.
#[inline(always)]
fn store([red, green, blue]: &Planes, pixels: &mut [Pixel]) {
    for (i, pixel) in pixels.iter_mut().enumerate().take(BLOCK) {
        *pixel = [truncated(red[i]) as u8, truncated(green[i]) as u8, truncated(blue[i]) as u8];
    }
}

/// A value of 0 to 255 without its fraction; what is beyond becomes the nearest of these, NaN 0. Unlike
/// the cast of the language it is an instruction that loops vectorize with.
#[inline(always)]
fn truncated(value: f32) -> i32 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    // SAFETY: a number that an `i32` can hold.
    unsafe { value.to_int_unchecked() }
}

/// The same for f64.
#[inline(always)]
fn truncated_f64(value: f64) -> i32 {
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    // SAFETY: a number that an `i32` can hold.
    unsafe { value.to_int_unchecked() }
}

/// Hue and saturation are truncated to 8 bits, so rounding matters: as in Pillow, some steps are in f32
/// and some in f64. The loops are free of branches and short, so that they vectorize.
#[inline(always)]
fn shift_hues(planes: &mut Planes, shift: u8) {
    let [red, green, blue] = planes;
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let less = |a: f32, b: f32| if a < b { a } else { b };
    // The brightest channel, and how far it is above the darkest one.
    let [mut value, mut spread] = [[0.0; BLOCK]; 2];
    // Sixths of a turn: those of the brightest channel, what is added and what is taken off.
    let [mut start, mut plus, mut minus] = [[0.0; BLOCK]; 3];
    for i in 0..BLOCK {
        let (r, g, b) = (red[i], green[i], blue[i]);
        let brightest = larger(larger(r, g), b);
        let range = brightest - less(less(r, g), b);
        let (is_red, is_green) = (r == brightest, g == brightest);
        let select = |of_red, of_green, of_blue| {
            let of_others = if is_green { of_green } else { of_blue };
            if is_red { of_red } else { of_others }
        };
        start[i] = select(0.0, 2.0, 4.0);
        plus[i] = (brightest - select(b, r, g)) / larger(range, 1.0);
        minus[i] = (brightest - select(g, b, r)) / larger(range, 1.0);
        (value[i], spread[i]) = (brightest, range);
    }
    let [mut hue, mut saturation] = [[0; BLOCK]; 2];
    for i in 0..BLOCK {
        let sixths = (f64::from(start[i]) + f64::from(plus[i]) - f64::from(minus[i])) as f32;
        let turns = f64::from(sixths) / 6.0 + 1.0;
        let turn = (if turns >= 1.0 { turns - 1.0 } else { turns }) as f32;
        hue[i] = truncated_f64(f64::from(turn) * 255.0);
        saturation[i] = truncated_f64(f64::from(spread[i] / larger(value[i], 1.0)) * 255.0);
    }
    for i in 0..BLOCK {
        // 255 is a turn.
        let sixths = ((hue[i] + i32::from(shift)) & 255) as f32 * 6.0 / 255.0;
        let sector = truncated(sixths);
        let falling = sixths - sector as f32;
        let rising = 1.0 - falling;
        let select = |[whole, next]: [i32; 2], [at_falling, at_rising]: [i32; 2]| {
            let absent = if sector == whole || sector == next { 1.0 } else { 0.0 };
            let absent = if sector == at_falling { falling } else { absent };
            if sector == at_rising { rising } else { absent }
        };
        // 1 - color for the fully saturated color of the hue.
        let sector_6 = sector == 6;
        let absent_red = select([2, 3], [1, 4]);
        let absent_green = if sector_6 { rising } else { select([4, 5], [3, 0]) };
        let absent_blue = if sector_6 { 1.0 } else { select([0, 1], [5, 2]) };
        let saturation = saturation[i] as f32 / 255.0;
        let color = |absent: f32| value[i] * (1.0 - saturation * absent) + 0.5;
        (red[i], green[i], blue[i]) = (color(absent_red), color(absent_green), color(absent_blue));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;

    fn noise(pixels: usize) -> Vec<Pixel> {
        let mut rng = Rng::new(1, [0; 3]);
        (0..pixels).map(|_| std::array::from_fn(|_| (rng.uniform() * 256.0) as u8)).collect()
    }

    /// `Convert.c` of Pillow: to HSV, a shift of H, and back.
    fn by_pillow([r, g, b]: Pixel, shift: u8) -> Pixel {
        let (largest, least) = (r.max(g).max(b), r.min(g).min(b));
        let (mut hue, mut saturation) = (0, 0);
        if largest != least {
            let spread = f32::from(largest - least);
            saturation = (f64::from(spread / f32::from(largest)) * 255.0).clamp(0.0, 255.0) as u8;
            let [rc, gc, bc] = [r, g, b].map(|c| f64::from(f32::from(largest - c) / spread));
            let sixths = if r == largest {
                bc - gc
            } else if g == largest {
                2.0 + rc - bc
            } else {
                4.0 + gc - rc
            } as f32;
            let turn = (f64::from(sixths) / 6.0 + 1.0).rem_euclid(1.0) as f32;
            hue = (f64::from(turn) * 255.0).clamp(0.0, 255.0) as u8;
        }
        let hue = hue.wrapping_add(shift);
        if saturation == 0 {
            return [largest; 3];
        }
        let (sixths, saturation) = (f32::from(hue) * 6.0 / 255.0, f32::from(saturation) / 255.0);
        let (sector, fraction) = (sixths.floor(), sixths - sixths.floor());
        let value = f32::from(largest);
        let rounded = |value: f32| value.round().clamp(0.0, 255.0) as u8;
        let p = rounded(value * (1.0 - saturation));
        let q = rounded(value * (1.0 - saturation * fraction));
        let t = rounded(value * (1.0 - saturation * (1.0 - fraction)));
        match sector as u8 % 6 {
            0 => [largest, t, p],
            1 => [q, largest, p],
            2 => [p, largest, t],
            3 => [p, q, largest],
            4 => [t, p, largest],
            _ => [largest, p, q],
        }
    }

    /// All kinds of colors, gray and single channels among them; whole blocks and a rest.
    #[test]
    fn hues_are_shifted_as_by_pillow() {
        let levels = [0, 1, 2, 50, 51, 127, 128, 200, 254, 255];
        let mut pixels = noise(20_001);
        for r in levels {
            pixels.extend(levels.iter().flat_map(|&g| levels.map(|b| [r, g, b])));
        }
        for shift in [0, 1, 25, 128, 229, 255] {
            let expected: Vec<Pixel> = pixels.iter().map(|&p| by_pillow(p, shift)).collect();
            under_each(|isa| {
                let mut found = pixels.clone();
                shift_hue(&mut found, shift);
                for ((from, found), expected) in pixels.iter().zip(&found).zip(&expected) {
                    assert_eq!(found, expected, "{isa:?}: {from:?} by {shift}");
                }
            });
        }
    }

    #[test]
    fn colors_fade_to_gray() {
        let pixels = noise(133);
        under_each(|_| {
            let sum: u64 = pixels.iter().map(|&p| u64::from(luminance(p))).sum();
            assert_eq!(luminance_sum(&pixels), sum);
            let (mut gray, mut faded, mut same) = (pixels.clone(), pixels.clone(), pixels.clone());
            grayscale(&mut gray);
            saturation(&mut faded, 0.0);
            saturation(&mut same, 1.0);
            assert!(gray == faded && same == pixels);
            assert!(gray.iter().zip(&pixels).all(|(gray, &pixel)| *gray == [luminance(pixel); 3]));
        });
        assert_eq!(luminance([255, 0, 0]), 76);
        assert_eq!(luminance_sum(&vec![[255; 3]; 70_000]), 255 * 70_000);
    }

    #[test]
    fn a_row_of_a_box() {
        let (first, before, after) = ([1, 2, 3], [40, 50, 60], [70, 80, 90]);
        under_each(|_| {
            let (mut sums, mut to) = ([100, 200, 300], [0; 3]);
            // Halves and quarters.
            let weights = [1 << 23, 1 << 22];
            box_blur_row([&first, &before, &after], weights, &mut sums, &mut to);
            assert_eq!(to, [78, 133, 188], "50 + 27.5, 100 + 32.5, 150 + 37.5, rounded up");
            assert_eq!(sums, [169, 278, 387]);
        });
    }
}
