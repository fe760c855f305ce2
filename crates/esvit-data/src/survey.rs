//! What a sample of a set says of its images: their size, whether they are gray, whether they have an
//! up and a down.

use esvit_kernels::pool;
use esvit_kernels::rng::Rng;

use crate::augment::{CropBox, rotate90};
use crate::pixels::CHANNELS;
use crate::{Conversion, Image, Interpolation, Source, evenly_spaced, resized_crop};

/// Most images that are looked at.
const IMAGES: usize = 128;
/// Fewest images that say whether there is an up.
const FEWEST: usize = 32;
/// Random turns of the sample that it is compared with.
const TURNED: usize = 99;
/// Purpose of their random numbers.
const PURPOSE: u64 = u64::from_be_bytes(*b"  upward");
/// Side of the images that are compared, in pixels.
const SIDE: usize = 8;

/// What a sample of a set says of all of its images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survey {
    /// Images that could be read.
    pub images: usize,
    /// Median of their shorter sides, in pixels.
    pub side: u32,
    /// Mean ratio of their longer to their shorter side.
    pub aspect: f64,
    /// Whether red, green and blue are equal everywhere.
    pub is_gray: bool,
    /// Whether they look the same after any number of quarter turns: satellite images, sections under
    /// a microscope, surfaces. `false` too if too few could be read.
    pub has_no_up: bool,
}

impl Survey {
    /// Looks at up to 128 images, evenly spaced. Those that cannot be read do not count.
    pub fn of(source: &dyn Source, conversion: &Conversion) -> Self {
        let places: Vec<usize> = evenly_spaced(source.len(), IMAGES).collect();
        let threads = pool::threads();
        let look = &|indices: &[usize]| -> Vec<Seen> {
            let load = |&index: &usize| source.load_as(index, conversion).ok();
            indices.iter().filter_map(load).map(|image| Seen::of(&image)).collect()
        };
        let seen: Vec<Seen> = std::thread::scope(|scope| {
            let parts = places.chunks(places.len().div_ceil(threads).max(1));
            let parts: Vec<_> = parts.map(|part| scope.spawn(move || look(part))).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        });
        let is_gray = !seen.is_empty() && seen.iter().all(|image| image.is_gray);
        let mut sides: Vec<u32> = seen.iter().map(|image| image.side).collect();
        let aspect = seen.iter().map(|image| image.aspect).sum::<f64>() / sides.len().max(1) as f64;
        let shapes: Vec<_> = seen.into_iter().filter_map(|image| image.turns).collect();
        sides.sort_unstable();
        Self {
            images: sides.len(),
            side: sides.get(sides.len() / 2).copied().unwrap_or(0),
            aspect: aspect.max(1.0),
            is_gray,
            has_no_up: has_no_up(&shapes),
        }
    }
}

/// What is looked at in an image.
struct Seen {
    /// Its shorter side.
    side: u32,
    /// Its longer side, in shorter ones.
    aspect: f64,
    is_gray: bool,
    /// The shapes of the center square after 0, 1, 2 and 3 quarter turns.
    turns: Option<[Shape; 4]>,
}

impl Seen {
    fn of(image: &Image) -> Self {
        let pixels = image.pixels().as_chunks::<CHANNELS>().0;
        let (width, height) = (image.width(), image.height());
        Self {
            side: width.min(height),
            aspect: f64::from(width.max(height)) / f64::from(width.min(height)),
            is_gray: pixels.iter().all(|[r, g, b]| r == g && g == b),
            turns: turns(image),
        }
    }
}

/// What of an image is compared: a small gray image of mean 0, and how much it changes along rows and
/// along columns.
type Shape = Vec<f64>;

fn turns(image: &Image) -> Option<[Shape; 4]> {
    let side = image.width().min(image.height());
    let (left, top) = ((image.width() - side) / 2, (image.height() - side) / 2);
    let square = CropBox { left, top, width: side, height: side };
    let small = resized_crop(image, square, SIDE as u32, Interpolation::Bilinear).ok()?;
    Some([0, 1, 2, 3].map(|quarters| {
        let mut turned = small.clone();
        rotate90(&mut turned, quarters);
        shape(&turned)
    }))
}

fn shape(image: &Image) -> Shape {
    let pixels = image.pixels().as_chunks::<CHANNELS>().0;
    let mut gray: Shape =
        pixels.iter().map(|pixel| pixel.iter().map(|&v| f64::from(v)).sum::<f64>()).collect();
    let mean = gray.iter().sum::<f64>() / gray.len() as f64;
    gray.iter_mut().for_each(|value| *value -= mean);
    // Contrast says nothing of what is up.
    let norm = gray.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-9);
    gray.iter_mut().for_each(|value| *value /= norm);
    let at = |x: usize, y: usize| gray[y * SIDE + x];
    let places = || (0..SIDE - 1).flat_map(|y| (0..SIDE - 1).map(move |x| (x, y)));
    let along_rows: f64 = places().map(|(x, y)| (at(x + 1, y) - at(x, y)).powi(2)).sum();
    let along_columns: f64 = places().map(|(x, y)| (at(x, y + 1) - at(x, y)).powi(2)).sum();
    gray.extend([along_rows, along_columns]);
    gray
}

/// A permutation test: if images have no up, the sample differs from its turned self by no more than
/// samples whose images were each turned at random do.
fn has_no_up(shapes: &[[Shape; 4]]) -> bool {
    if shapes.len() < FEWEST {
        return false;
    }
    let mut rng = Rng::for_purpose(0, PURPOSE, [0; 3]);
    let found = asymmetry(shapes, |_| 0);
    let larger = (0..TURNED).filter(|_| {
        let quarters: Vec<usize> = shapes.iter().map(|_| rng.below(4) as usize).collect();
        asymmetry(shapes, |image| quarters[image]) >= found
    });
    // One in twenty sets without an up is taken for one that has it.
    (1 + larger.count()) as f64 / (1 + TURNED) as f64 > 0.05
}

/// How much the mean shape changes by turning all images, which were turned before by `quarters`.
fn asymmetry(shapes: &[[Shape; 4]], quarters: impl Fn(usize) -> usize) -> f64 {
    let mean = |turn: usize| -> Shape {
        let mut sum = vec![0.0; shapes[0][0].len()];
        for (image, turned) in shapes.iter().enumerate() {
            let shape = &turned[(quarters(image) + turn) % 4];
            sum.iter_mut().zip(shape).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    let upright = mean(0);
    let distance =
        |turn| -> f64 { mean(turn).iter().zip(&upright).map(|(a, b)| (a - b).powi(2)).sum() };
    (1..4).map(distance).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemory;

    /// `count` images whose brightness is that of noise and, times `slope`, of the row.
    fn set(count: u64, slope: f64, turned: bool) -> InMemory {
        let mut source = InMemory::new(Vec::new());
        for index in 0..count {
            let mut rng = Rng::new(7, [index, 0, 0]);
            let (width, height) = (30 + index as u32 % 3, 24);
            let pixels = (0..width * height).flat_map(|place| {
                let row = f64::from(place / width) / f64::from(height);
                let value = 255.0 * (slope * row + (1.0 - slope) * rng.uniform());
                [value as u8; 3]
            });
            let mut image = Image::new(width, height, pixels.collect()).unwrap();
            if turned {
                image = image.crop(0, 0, 24, 24).unwrap();
                rotate90(&mut image, index as u32 % 4);
            }
            source.push(index.to_string(), None, image);
        }
        source
    }

    #[test]
    fn size_and_color_are_those_of_the_sample() {
        let survey = Survey::of(&set(9, 0.3, false), &Conversion::default());
        assert_eq!((survey.images, survey.side, survey.is_gray), (9, 24, true));
        let mut colored = set(300, 0.3, false);
        colored.push("red", None, Image::new(5, 5, [9, 9, 8].repeat(25)).unwrap());
        // The last of 301 images is not in the sample.
        assert!(Survey::of(&colored, &Conversion::default()).is_gray);
        let mut few = InMemory::new(Vec::new());
        few.push("red", None, Image::new(5, 7, [9, 9, 8].repeat(35)).unwrap());
        let survey = Survey::of(&few, &Conversion::default());
        assert_eq!((survey.images, survey.side, survey.is_gray), (1, 5, false));
        few.push("wide", None, Image::new(15, 5, [9, 9, 8].repeat(75)).unwrap());
        let survey_of_two = Survey::of(&few, &Conversion::default());
        assert_eq!((survey.aspect, survey_of_two.aspect), (1.4, 2.2));
        let nothing = Survey::of(&InMemory::new(Vec::new()), &Conversion::default());
        assert_eq!((nothing.images, nothing.side, nothing.is_gray), (0, 0, false));
        assert_eq!(nothing.aspect, 1.0);
    }

    #[test]
    fn an_up_is_found_where_there_is_one() {
        let has_no_up = |set| Survey::of(&set, &Conversion::default()).has_no_up;
        assert!(has_no_up(set(64, 0.0, false)), "noise");
        assert!(!has_no_up(set(64, 0.3, false)), "darker above");
        assert!(has_no_up(set(64, 0.3, true)), "darker above, turned");
        assert!(!has_no_up(set(31, 0.0, false)), "too few to tell");
    }
}
