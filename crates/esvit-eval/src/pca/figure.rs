//! Region features as colors: the first three principal components over all regions of several
//! images, as red, green and blue.

use esvit_data::{Image, PngError, encode_png};

use super::{PcaError, PrincipalComponents, RegionMap};
use crate::thumbnail::file_name;
use esvit_draw::{Anchor, Drawing, color, ellipsize, text_width};

/// Percentiles of a component that are mapped to 0 and 1.
const PERCENTILES: [f64; 2] = [0.01, 0.99];
const CHANNELS: [(&str, &str); 3] = [("red", "#d62728"), ("green", "#2ca02c"), ("blue", "#1f5fd6")];

/// Height of images in the drawing, and maximum width of a line of them.
const HEIGHT: f64 = 180.0;
const LINE_WIDTH: f64 = 1200.0;
const MARGIN: f64 = 24.0;
const PAIR_GAP: f64 = 6.0;
const GAP: f64 = 28.0;
const NAME: f64 = 12.0;
/// Resolution of maps in pixels per unit of the drawing.
const MAP_SCALE: f64 = 2.0;

/// Maps region features to colors.
#[derive(Debug, Clone)]
pub struct ColorMap {
    components: PrincipalComponents,
    /// Values of each component that are mapped to 0 and to 1.
    ranges: Vec<[f64; 2]>,
    /// Number of regions that the components are fitted to.
    pub regions: usize,
}

/// Interpolation of maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upsampling {
    /// Nearest neighbor: each region is a square of one color.
    Sharp,
    /// Bicubic, between region centers.
    Smooth,
}

/// An image with its region features.
#[derive(Debug, Clone)]
pub struct RegionImage {
    /// Name of the image.
    pub name: String,
    /// Its region features.
    pub regions: RegionMap,
}

impl ColorMap {
    /// Fits components to the regions of all images together; each component is scaled from its 1st
    /// to its 99th percentile.
    ///
    /// # Errors
    /// [`PcaError`] if all regions are equal or a feature is not finite.
    pub fn fit(images: &[RegionImage]) -> Result<Self, PcaError> {
        let values: Vec<f32> =
            images.iter().flat_map(|image| image.regions.values.iter().copied()).collect();
        let regions: usize =
            images.iter().map(|image| image.regions.map.iter().product::<usize>()).sum();
        let width = values.len() / regions.max(1);
        let components = PrincipalComponents::fit(&values, width, CHANNELS.len())?;
        let coordinates = components.project(&values);
        let count = components.count();
        let range = |component: usize| {
            let mut sorted: Vec<f64> =
                coordinates.iter().skip(component).step_by(count).copied().collect();
            sorted.sort_by(f64::total_cmp);
            PERCENTILES.map(|share| percentile(&sorted, share))
        };
        Ok(Self { ranges: (0..count).map(range).collect(), components, regions })
    }

    /// Explained variance of each component, 0 to 1.
    pub fn explained(&self) -> Vec<f64> {
        self.components.explained()
    }

    /// RGB color of each region, 0 to 1; missing components are 0.5.
    pub fn colors(&self, regions: &RegionMap) -> Vec<[f64; 3]> {
        let color = |row: &[f64]| {
            let mut color = [0.5; 3];
            for ((channel, &value), [low, high]) in color.iter_mut().zip(row).zip(&self.ranges) {
                if high > low {
                    *channel = ((value - low) / (high - low)).clamp(0.0, 1.0);
                }
            }
            color
        };
        let coordinates = self.components.project(&regions.values);
        coordinates.chunks_exact(self.components.count()).map(color).collect()
    }
}

/// Percentile of sorted values, linearly interpolated.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Draws each image with its map beside it, in lines. `about` is a subtitle.
///
/// # Errors
/// [`PngError`] if an image cannot be encoded.
pub fn draw(
    images: &[RegionImage],
    colors: &ColorMap,
    upsampling: Upsampling,
    about: &str,
) -> Result<Drawing, PngError> {
    let lines = lines(images);
    let line_width = |line: &[(&RegionImage, f64)]| {
        line.iter().map(|(_, width)| pair_width(*width) + GAP).sum::<f64>() - GAP
    };
    let title = "Principal components of region features";
    let heading = text_width(title, 18.0).max(text_width(about, 12.0)).max(430.0);
    let widest = lines.iter().map(|line| line_width(line)).fold(heading, f64::max);
    let top = MARGIN + 82.0;
    let line_height = HEIGHT + NAME + 24.0;
    let height = top + line_height * lines.len() as f64 - 10.0 + MARGIN - 8.0;
    let mut drawing = Drawing::new((widest + 2.0 * MARGIN).ceil(), height.ceil());

    drawing.text([MARGIN, MARGIN + 16.0], title, 18.0, color::INK, Anchor::Start);
    drawing.text([MARGIN, MARGIN + 38.0], about, 12.0, color::FAINT, Anchor::Start);
    legend(&mut drawing, [MARGIN, MARGIN + 60.0], &colors.explained());
    for (line, y) in lines.iter().zip((0..).map(|line| top + f64::from(line) * line_height)) {
        let mut x = MARGIN;
        for (image, width) in line {
            let shown = &image.regions.input;
            drawing.image(&encode_png(shown)?, [x, y, *width, HEIGHT], false);
            let map = upsample(&image.regions, &colors.colors(&image.regions), upsampling);
            drawing.image(&encode_png(&map)?, [x + width + PAIR_GAP, y, *width, HEIGHT], false);
            let name = ellipsize(file_name(&image.name), NAME, pair_width(*width));
            let baseline = y + HEIGHT + NAME + 5.0;
            drawing.text([x, baseline], &name, NAME, color::INK, Anchor::Start);
            x += pair_width(*width) + GAP;
        }
    }
    Ok(drawing)
}

/// Legend: colors of the components and their explained variance.
fn legend(drawing: &mut Drawing, [mut x, y]: [f64; 2], explained: &[f64]) {
    for ((name, shade), share) in CHANNELS.iter().zip(explained) {
        drawing.rect([x, y - 9.0, 11.0, 11.0], shade, 1.0);
        let words = format!("{name} {:.1} %", 100.0 * share);
        drawing.text([x + 17.0, y], &words, 12.0, color::INK, Anchor::Start);
        x += 17.0 + text_width(&words, 12.0) + 14.0;
    }
    drawing.text([x, y], "of the variance", 12.0, color::FAINT, Anchor::Start);
}

/// Breaks images, with their widths, into lines.
fn lines(images: &[RegionImage]) -> Vec<Vec<(&RegionImage, f64)>> {
    let mut lines: Vec<Vec<(&RegionImage, f64)>> = Vec::new();
    let mut used = f64::INFINITY;
    for image in images {
        let shown = &image.regions.input;
        let width = (HEIGHT * f64::from(shown.width()) / f64::from(shown.height())).max(16.0);
        if used + pair_width(width) > LINE_WIDTH {
            lines.push(Vec::new());
            used = 0.0;
        }
        used += pair_width(width) + GAP;
        if let Some(line) = lines.last_mut() {
            line.push((image, width));
        }
    }
    lines
}

/// Width of an image with its map.
fn pair_width(width: f64) -> f64 {
    2.0 * width + PAIR_GAP
}

/// Renders a map over the field of view of the input; regions that extend beyond it are cut.
fn upsample(regions: &RegionMap, colors: &[[f64; 3]], upsampling: Upsampling) -> Image {
    let shown = [regions.input.width(), regions.input.height()].map(f64::from);
    let scale = (MAP_SCALE * HEIGHT / shown[1]).max(1.0);
    let [width, height] = shown.map(|side| (side * scale).round() as u32);
    let regions_at = |pixel: u32| (f64::from(pixel) + 0.5) / scale / regions.stride as f64;
    let [high, wide] = regions.map;
    let taps = |pixel: u32, side: usize| match upsampling {
        Upsampling::Sharp => vec![((regions_at(pixel) as usize).min(side - 1), 1.0)],
        Upsampling::Smooth => cubic_taps(regions_at(pixel) - 0.5, side),
    };
    let columns: Vec<Vec<(usize, f64)>> = (0..width).map(|x| taps(x, wide)).collect();
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        let rows = taps(y, high);
        for column in &columns {
            let mut color = [0.0; 3];
            for &(row, a) in &rows {
                for &(column, b) in column {
                    let region = colors[row * wide + column];
                    color.iter_mut().zip(region).for_each(|(sum, value)| *sum += a * b * value);
                }
            }
            pixels.extend(color.map(|value| (value * 255.0).round().clamp(0.0, 255.0) as u8));
        }
    }
    Image::new(width, height, pixels).expect("as many bytes as the image has")
}

/// Indices and weights of bicubic interpolation (a = -0.5) at `place`, clamped at the ends.
fn cubic_taps(place: f64, len: usize) -> Vec<(usize, f64)> {
    let (first, t) = (place.floor(), place - place.floor());
    let weights = [
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ];
    let index = |offset: usize| {
        (first + offset as f64 - 1.0).clamp(0.0, len.saturating_sub(1) as f64) as usize
    };
    weights.iter().enumerate().map(|(offset, &weight)| (index(offset), weight)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two by one regions of 8 pixels over an image of 12 x 8: the second reaches beyond it.
    fn two_regions() -> RegionImage {
        let input = Image::new(12, 8, vec![0; 12 * 8 * 3]).unwrap();
        let regions = RegionMap { input, values: vec![0.0, 0.0, 1.0, 2.0], map: [1, 2], stride: 8 };
        RegionImage { name: "two".into(), regions }
    }

    #[test]
    fn regions_lie_where_they_look() {
        let image = two_regions();
        let colors = ColorMap::fit(std::slice::from_ref(&image)).unwrap();
        assert_eq!(colors.explained().len(), 1);
        let shades = colors.colors(&image.regions);
        assert_eq!(shades, [[0.0, 0.5, 0.5], [1.0, 0.5, 0.5]]);
        let map = upsample(&image.regions, &shades, Upsampling::Sharp);
        let (width, middle) = (map.width(), map.height() / 2);
        assert_eq!((width, map.height()), (540, 360));
        let red = |x: u32| map.pixel(x, middle).unwrap()[0];
        assert_eq!((red(0), red(width * 8 / 12 - 1)), (0, 0));
        assert_eq!((red(width * 8 / 12), red(width - 1)), (255, 255));
        let smooth = upsample(&image.regions, &shades, Upsampling::Smooth);
        let between = smooth.pixel(width * 8 / 12, middle).unwrap()[0];
        assert!((120..136).contains(&between), "{between}");
    }

    #[test]
    fn percentiles_lie_between_values() {
        let sorted = [0.0, 10.0, 20.0];
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|s| percentile(&sorted, s)), [0.0, 5.0, 10.0, 20.0]);
    }

    /// 101 regions of one value each: the lowest and the highest of a hundred are cut off.
    #[test]
    fn colors_reach_from_the_first_to_the_last_hundredth() {
        let input = Image::new(101, 1, vec![0; 303]).unwrap();
        let values = (0..=100).map(|value| value as f32).collect();
        let regions = RegionMap { input, values, map: [1, 101], stride: 1 };
        let image = RegionImage { name: "ramp".into(), regions };
        let colors = ColorMap::fit(std::slice::from_ref(&image)).unwrap();
        assert_eq!(colors.regions, 101);
        let shades = colors.colors(&image.regions);
        let red = |region: usize| shades[region][0];
        assert!(
            [0, 1, 99, 100]
                .map(red)
                .iter()
                .zip([0.0, 0.0, 1.0, 1.0])
                .all(|(a, b)| (a - b).abs() < 1e-9)
        );
        assert!((red(2) - 1.0 / 98.0).abs() < 1e-9 && (red(50) - 0.5).abs() < 1e-9);
    }

    /// Cubic interpolation gives a line back as it is.
    #[test]
    fn taps_lie_around_their_place() {
        for (place, expected) in [(2.25, [1, 2, 3, 4]), (0.25, [0, 0, 1, 2]), (5.5, [4, 5, 5, 5])] {
            let taps = cubic_taps(place, 6);
            assert_eq!(taps.iter().map(|tap| tap.0).collect::<Vec<_>>(), expected, "{place}");
            assert!((taps.iter().map(|tap| tap.1).sum::<f64>() - 1.0).abs() < 1e-12);
        }
        let line: f64 = cubic_taps(2.25, 6).iter().map(|&(at, weight)| at as f64 * weight).sum();
        assert!((line - 2.25).abs() < 1e-12);
    }
}
