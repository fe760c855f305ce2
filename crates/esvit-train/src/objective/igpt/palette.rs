//! Where the palette of a run comes from: k-means of colors of its images, or a file.

use std::path::{Path, PathBuf};

use esvit_data::augment::Normalization;
use esvit_data::{Conversion, Crops, Source, ViewsConfig, counted, evenly_spaced};
use esvit_files::npy::{self, NpyError, NpyWriter};
use esvit_kernels::rng::Rng;
use esvit_kernels::{colors, pool};
use esvit_nn::Device;
use esvit_nn::backbone::igpt;

use crate::Config;
use crate::input::network_input;
use crate::objective::ObjectiveConfig;

/// Channels of a color.
const CHANNELS: usize = 3;
/// Most images whose colors are clustered.
const IMAGES: usize = 512;
/// Colors that are clustered, about.
const SAMPLES: usize = 1 << 16;
/// Most passes over them.
const ITERATIONS: usize = 20;
/// RNG purpose of the choice of colors.
const SAMPLE_PURPOSE: u64 = u64::from_be_bytes(*b"  sample");
/// RNG purpose of the choice of centers.
const CENTERS_PURPOSE: u64 = u64::from_be_bytes(*b" centers");

/// A palette that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PaletteError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] NpyError),
    /// It is no palette of the network.
    #[error(
        "`{path}` is {shape:?}{reason}, the network needs {colors} colors of 3 channels from -1 to 1\n\
         hint: save `[{colors}, 3]` with `numpy.save` as `float32`, or set `model.colors` to its rows",
        path = path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        shape: Vec<usize>,
        /// What else is wrong.
        reason: &'static str,
        /// Number of colors of the network.
        colors: usize,
    },
}

/// The palette `[colors, 3]` of a run that begins, in units of the network's input, and what it is made of; None
/// for a run whose objective has none, or images without a color that can be read.
///
/// # Errors
/// When the file that the settings name cannot be read or does not fit.
pub fn of_run(
    config: &Config,
    source: &dyn Source,
) -> Result<Option<(Vec<f32>, String)>, PaletteError> {
    let ObjectiveConfig::Igpt(settings) = &config.objective else { return Ok(None) };
    let Some(tokens) = config.model.backbone.color_tokens() else { return Ok(None) };
    if let Some(path) = &settings.palette {
        let palette = read(path, tokens.colors, &config.views.normalization())?;
        return Ok(Some((palette, format!("the palette of `{}`", path.display()))));
    }
    let colors = Colors {
        source,
        conversion: config.preprocess().conversion(),
        views: &config.views,
        seed: config.seed,
        patch_size: tokens.patch_size,
    };
    let (images, samples) = colors.of_images();
    if samples.is_empty() {
        return Ok(None);
    }
    let what = format!(
        "a palette of {}: k-means of {} in {}",
        counted(tokens.colors, "color"),
        counted(samples.len() / CHANNELS, "pixel"),
        counted(images, "image")
    );
    let palette = pool::run(|| k_means(&samples, tokens.colors, config.seed));
    Ok(Some((palette, what)))
}

/// What the colors of a run depend on.
struct Colors<'a> {
    source: &'a dyn Source,
    conversion: Conversion,
    views: &'a ViewsConfig,
    seed: u64,
    patch_size: usize,
}

impl Colors<'_> {
    /// The number of images that were looked at, and colors of them: images are evenly spaced among all, and those
    /// that cannot be read do not count.
    fn of_images(&self) -> (usize, Vec<f32>) {
        let places: Vec<usize> = evenly_spaced(self.source.len(), IMAGES).collect();
        let count = SAMPLES.div_ceil(places.len().max(1));
        let look = &|indices: &[usize]| -> Vec<Vec<f32>> {
            indices.iter().filter_map(|&index| self.of_image(index, count)).collect()
        };
        let found: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let parts = places.chunks(places.len().div_ceil(pool::threads()).max(1));
            let parts: Vec<_> = parts.map(|part| scope.spawn(move || look(part))).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        });
        (found.len(), found.concat())
    }

    /// `count` colors of the first view of an image, chosen at random.
    fn of_image(&self, index: usize, count: usize) -> Option<Vec<f32>> {
        let sample = index as u64;
        let image = self.source.load_as(index, &self.conversion).ok()?;
        let view = self.views.first_view(&image, self.seed, 0, sample).ok()?;
        let mut crops = Crops::new(1, view.size() as usize);
        crops.set(0, &view);
        let input = network_input(&crops, 0..1, &self.views.normalization(), &Device::Cpu);
        let (pixels, _) = igpt::patch_colors(input, self.patch_size);
        let pixels = pixels.to_vec::<f32>();
        let pixels = pixels.as_chunks::<CHANNELS>().0;
        let mut rng = Rng::for_purpose(self.seed, SAMPLE_PURPOSE, [sample, 0, 0]);
        let chosen = (0..count).filter_map(|_| pixels.get(rng.below(pixels.len() as u64) as usize));
        Some(chosen.flatten().copied().collect())
    }
}

/// Cluster centers `[count, 3]` of `samples [n, 3]`, n at least 1: k-means++ (Arthur and Vassilvitskii, 2007), then
/// Lloyd's iteration. Where there are fewer different colors than centers, some centers are alike, of which the
/// first is used.
///
/// # Panics
/// When samples are no whole colors.
pub fn k_means(samples: &[f32], count: usize, seed: u64) -> Vec<f32> {
    let (points, rest) = samples.as_chunks::<CHANNELS>();
    assert!(rest.is_empty() && !points.is_empty(), "colors of three channels");
    let mut centers = first_centers(points, count, seed);
    let mut nearest = Vec::new();
    for _ in 0..ITERATIONS {
        let found = colors::nearest(samples, centers.as_flattened());
        if found == nearest {
            break;
        }
        nearest = found;
        let mut sums = vec![([0f64; CHANNELS], 0usize); count];
        for (point, &center) in points.iter().zip(&nearest) {
            let (sum, size) = &mut sums[center as usize];
            sum.iter_mut().zip(point).for_each(|(sum, &value)| *sum += f64::from(value));
            *size += 1;
        }
        for (center, (sum, size)) in centers.iter_mut().zip(sums) {
            // A center without colors stays where it is.
            if size > 0 {
                *center = sum.map(|sum| (sum / size as f64) as f32);
            }
        }
    }
    centers.into_flattened()
}

/// Colors of the samples that are far from each other: each is drawn with a probability that grows with the square
/// of its distance to those before it.
fn first_centers(points: &[[f32; CHANNELS]], count: usize, seed: u64) -> Vec<[f32; CHANNELS]> {
    let mut rng = Rng::for_purpose(seed, CENTERS_PURPOSE, [0; 3]);
    let mut centers = vec![points[rng.below(points.len() as u64) as usize]];
    let mut distances = vec![f64::INFINITY; points.len()];
    while centers.len() < count {
        let last = centers[centers.len() - 1];
        for (distance, point) in distances.iter_mut().zip(points) {
            let square: f64 = point.iter().zip(&last).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            *distance = distance.min(square);
        }
        let mut left = rng.uniform() * distances.iter().sum::<f64>();
        let drawn = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // All colors are centers already, or rounding has passed the last one.
        centers.push(drawn.map_or(last, |at| points[at]));
    }
    centers
}

/// Reads a palette of values from -1 to 1 into units of the network's input.
fn read(
    path: &Path,
    colors: usize,
    normalization: &Normalization,
) -> Result<Vec<f32>, PaletteError> {
    let array = npy::read::<f32>(path)?;
    let wrong = |reason| PaletteError::Shape {
        path: path.into(),
        shape: array.shape.clone(),
        reason,
        colors,
    };
    if array.shape != [colors, CHANNELS] {
        return Err(wrong(""));
    }
    if !array.values.iter().all(|value| (-1.01..=1.01).contains(value)) {
        return Err(wrong(" with other values"));
    }
    let Normalization { scale, shift } = normalization;
    let input = |(at, value): (usize, &f32)| {
        let channel = at % CHANNELS;
        127.5 * (value + 1.0) * scale[channel] + shift[channel]
    };
    Ok(array.values.iter().enumerate().map(input).collect())
}

/// Writes a palette in units of the network's input as values from -1 to 1.
///
/// # Errors
/// When the file cannot be written.
pub fn write(
    path: &Path,
    palette: &[f32],
    normalization: &Normalization,
) -> Result<(), PaletteError> {
    let Normalization { scale, shift } = normalization;
    let shown = |(at, value): (usize, &f32)| {
        let channel = at % CHANNELS;
        (value - shift[channel]) / scale[channel] / 127.5 - 1.0
    };
    let mut file = NpyWriter::create(path, CHANNELS)?;
    file.append(&palette.iter().enumerate().map(shown).collect::<Vec<f32>>())?;
    file.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five points around each of four corners, in turn.
    fn corners() -> Vec<f32> {
        let corners = [[-1.0, -1.0, -1.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, -1.0f32]];
        let around = (0..5).flat_map(|step| {
            let moved = 0.002 * (step as f32 - 2.0);
            corners.iter().flatten().map(move |value| value + moved).collect::<Vec<f32>>()
        });
        around.collect()
    }

    /// The means of points that lie apart, whatever the seed, in any order.
    #[test]
    fn centers_are_means() {
        let expected = [[-1.0, -1.0, -1.0], [0.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -1.0f32]];
        for seed in 0..20 {
            let found = k_means(&corners(), 4, seed);
            let mut found: Vec<[f32; 3]> = found.as_chunks().0.to_vec();
            found.sort_by(|a, b| a.partial_cmp(b).unwrap());
            for (found, expected) in found.iter().zip(expected) {
                let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
                assert!(near, "seed {seed}: {found:?} instead of {expected:?}");
            }
            assert_eq!(k_means(&corners(), 4, seed), k_means(&corners(), 4, seed));
        }
    }

    /// No center could be moved to be nearer to its points, and no point has a nearer center: by plain loops.
    #[test]
    fn the_iteration_ends_where_it_stays() {
        let mut rng = Rng::new(3, [0; 3]);
        let samples: Vec<f32> = (0..3 * 30).map(|_| rng.normal() as f32).collect();
        let centers = k_means(&samples, 3, 1);
        let square = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let mut means = [[0.0f64; 4]; 3];
        for point in samples.chunks(3) {
            let distances: Vec<f64> = centers.chunks(3).map(|c| square(point, c)).collect();
            let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
            let own = &mut means[distances.iter().position(|&d| d == least).unwrap()];
            (0..3).for_each(|i| own[i] += f64::from(point[i]));
            own[3] += 1.0;
        }
        for (mean, center) in means.iter().zip(centers.chunks(3)) {
            assert!(mean[3] > 0.0);
            for i in 0..3 {
                assert!((mean[i] / mean[3] - f64::from(center[i])).abs() < 1e-5, "{center:?}");
            }
        }
    }

    /// More centers than colors: each color has one, and others stand where some of these are.
    #[test]
    fn fewer_colors_than_centers() {
        let samples = [0.5, 0.5, 0.5, -0.5, 0.0, 0.5, 0.5, 0.5, 0.5f32];
        let centers = k_means(&samples, 6, 0);
        assert!(centers.len() == 18 && centers.iter().all(|value| value.is_finite()));
        let nearest = colors::nearest(&samples, &centers);
        for (point, center) in samples.chunks(3).zip(nearest) {
            assert_eq!(&centers[3 * center as usize..][..3], point);
        }
    }

    /// What was written is read back, in other units too.
    #[test]
    fn files_of_palettes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("palette.npy");
        let normalization = Normalization::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let plain = Normalization::new([0.5; 3], [0.5; 3]);
        let palette = [-2.0f32, 0.25, 1.5, 0.0, 1.0, -1.25];
        write(&path, &palette, &normalization).unwrap();
        let found = read(&path, 2, &normalization).unwrap();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(&found, &palette), "{found:?}");
        // By the mean and the deviation, from 0 to 1, and then from -1 to 1.
        let expected = 2.0 * (1.0f32 * 0.224 + 0.456) - 1.0;
        assert!((read(&path, 2, &plain).unwrap()[4] - expected).abs() < 1e-5);
        for (colors, values, expected) in [
            (3, vec![0.0f32; 6], "is [2, 3], the network needs 3 colors"),
            (2, vec![0.0, 1.0, 2.0, 0.0, 0.0, 0.0], "is [2, 3] with other values"),
            (2, vec![0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0], "with other values"),
        ] {
            let mut file = NpyWriter::create(&path, 3).unwrap();
            file.append(&values).unwrap();
            file.finish().unwrap();
            let error = read(&path, colors, &plain).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("palette.npy"), "{error}");
        }
        let missing = read(&folder.path().join("none.npy"), 2, &plain).unwrap_err().to_string();
        assert!(missing.contains("none.npy"), "{missing}");
    }
}
