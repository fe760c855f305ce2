//! Colors shared by all drawings, and a color ramp for weights in 0 to 1.

/// A pair of matching regions.
pub const PAIR: &str = "#ffd21f";
/// The query region or pixel.
pub const QUERY: &str = "#56c1ff";
/// The region most similar to another view's feature.
pub const FOUND: &str = "#ff3b30";
/// Text and axes on white.
pub const INK: &str = "#1b1f24";
/// Secondary text and lines.
pub const FAINT: &str = "#7a828c";

/// Color ramp from 0 (nearly white) to 1 (dark blue), perceptually uniform: lightness falls at
/// constant hue in OKLab (Ottosson, 2020).
pub fn blue(value: f64) -> [u8; 3] {
    const HUE: f64 = 254.0;
    let value = value.clamp(0.0, 1.0);
    let lightness = 0.985 - 0.665 * value;
    let chroma = 0.006 + 0.35 * value * (1.0 - value) + 0.09 * value;
    let (sin, cos) = HUE.to_radians().sin_cos();
    srgb(lightness, chroma * cos, chroma * sin)
}

/// OKLab to 8-bit sRGB, clipped to the gamut.
fn srgb(lightness: f64, a: f64, b: f64) -> [u8; 3] {
    let l = (lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let m = (lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let s = (lightness - 0.089_484_177_5 * a - 1.291_485_548_0 * b).powi(3);
    let linear = [
        4.076_741_662_1 * l - 3.307_711_591_3 * m + 0.230_969_929_2 * s,
        -1.268_438_004_6 * l + 2.609_757_401_1 * m - 0.341_319_396_5 * s,
        -0.004_196_086_3 * l - 0.703_418_614_7 * m + 1.707_614_701_0 * s,
    ];
    linear.map(|value| {
        let curved = match value.clamp(0.0, 1.0) {
            small if small <= 0.003_130_8 => 12.92 * small,
            value => 1.055 * value.powf(1.0 / 2.4) - 0.055,
        };
        (255.0 * curved).round() as u8
    })
}

/// `#rrggbb`.
pub fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_and_red_of_the_space_are_those_of_the_screen() {
        assert_eq!(srgb(1.0, 0.0, 0.0), [255; 3]);
        assert_eq!(hex([0, 10, 255]), "#000aff");
        assert_eq!(srgb(0.627_955, 0.224_863, 0.125_846), [255, 0, 0]);
    }

    #[test]
    fn more_is_darker_and_blue() {
        let luminance =
            |[r, g, b]: [u8; 3]| 2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b);
        let steps: Vec<u32> = (0..=100).map(|i| luminance(blue(f64::from(i) / 100.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[1] <= pair[0]), "{steps:?}");
        assert!(steps[0] > 2_400_000 && steps[100] < 600_000, "{steps:?}");
        let [r, g, b] = blue(0.6);
        assert!(b > g && g > r);
        assert_eq!((blue(-1.0), blue(f64::INFINITY)), (blue(0.0), blue(1.0)));
    }
}
