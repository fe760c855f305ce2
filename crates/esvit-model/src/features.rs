//! Features of many images by a frozen backbone.

use esvit_data::{Conversion, Image, ImageError, Preprocess, Source};
use esvit_kernels::pool;
use esvit_nn::{Backbone, ForwardCtx, Params, Tensor};
use rayon::prelude::*;

use crate::pretrained::BATCH;

/// Labeled features, row-major `[rows, width]`.
#[derive(Debug, Clone, Default)]
pub struct LabeledFeatures {
    /// `rows * width` values.
    pub values: Vec<f32>,
    /// Feature dimension.
    pub width: usize,
    /// Class index of each row.
    pub labels: Vec<u32>,
}

impl LabeledFeatures {
    /// L2-normalizes each row; zero rows stay zero.
    pub fn normalize(&mut self) {
        normalize(&mut self.values, self.width);
    }
}

/// L2-normalizes each row of `[rows, width]`; zero rows stay zero. Sums are f64, in which the square
/// of no f32 overflows or vanishes: the result does not depend on the scale of a row.
pub fn normalize(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
}

/// The first value of `[rows, width]` that is NaN or infinite: its row, from 0, and the value.
pub fn first_not_finite(values: &[f32], width: usize) -> Option<(usize, f32)> {
    let place = values.iter().position(|value| !value.is_finite())?;
    Some((place / width.max(1), values[place]))
}

/// Rows of `[rows, width]`, from 0, whose values are all zero: they have no direction, so that
/// their cosine similarity to any row is undefined.
pub fn zero_rows(values: &[f32], width: usize) -> impl Iterator<Item = usize> {
    let rows = values.chunks_exact(width.max(1)).enumerate();
    rows.filter(|(_, row)| row.iter().all(|&value| value == 0.0)).map(|(row, _)| row)
}

/// A network made features that are not finite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the features of `{image}` hold {value}: they are not finite\n\
     hint: the weights, or the mean and standard deviation of the images, are damaged; \
     `esvit info` shows what the file says of itself"
)]
pub struct NotFinite {
    /// The first such image.
    pub image: String,
    /// `NaN`, `inf` or `-inf`.
    pub value: String,
}

/// An image that could not be read.
#[derive(Debug)]
pub struct SkippedImage {
    /// Index in the source.
    pub index: usize,
    /// Name of the image.
    pub name: String,
    /// The error.
    pub reason: String,
}

/// Features of images of a source.
#[derive(Debug, Default)]
pub struct Features {
    /// One row per image, not normalized, with the source's labels (0 if it has none).
    pub rows: LabeledFeatures,
    /// Source index of each row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

/// A batch of features.
#[derive(Debug)]
pub struct FeatureBatch {
    /// Row-major `[images, width]`; empty if no image could be read.
    pub rows: Vec<f32>,
    /// Source index of each row's image.
    pub images: Vec<usize>,
    /// Images that could not be read.
    pub left_out: Vec<SkippedImage>,
}

impl FeatureBatch {
    /// Feature dimension; 0 if there are no rows.
    pub fn width(&self) -> usize {
        self.rows.len().checked_div(self.images.len()).unwrap_or(0)
    }
}

/// Streams the features of `images` (indices into `source`), with one batch in memory at a time.
/// `prepare` turns an image (with its index) into normalized pixels `[3, size, size]`; `forward`
/// maps pixels `[B, 3, size, size]` and B to B rows. Images are loaded as `conversion` says; those
/// that cannot be read are left out.
///
/// # Errors
/// [`NotFinite`] in place of a batch with values that are not finite.
pub fn stream<'a>(
    source: &'a dyn Source,
    images: impl IntoIterator<Item = usize> + 'a,
    conversion: Conversion,
    prepare: impl Fn(usize, &Image) -> Result<Vec<f32>, ImageError> + Sync + 'a,
    mut forward: impl FnMut(Vec<f32>, usize) -> Vec<f32> + 'a,
) -> impl Iterator<Item = Result<FeatureBatch, NotFinite>> + 'a {
    let mut images = images.into_iter();
    std::iter::from_fn(move || {
        let indices: Vec<usize> = images.by_ref().take(BATCH).collect();
        if indices.is_empty() {
            return None;
        }
        let prepared = |&index: &usize| {
            let image = source.load_as(index, &conversion).map_err(|e| e.reason())?;
            prepare(index, &image).map_err(|e| e.to_string())
        };
        let prepared: Vec<Result<Vec<f32>, String>> = indices.par_iter().map(prepared).collect();
        let (mut pixels, mut images, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (index, prepared) in indices.into_iter().zip(prepared) {
            match prepared {
                Ok(values) => {
                    pixels.extend(values);
                    images.push(index);
                }
                Err(reason) => {
                    left_out.push(SkippedImage { index, name: source.name(index), reason });
                }
            }
        }
        let count = images.len();
        let rows = if count > 0 { forward(pixels, count) } else { Vec::new() };
        let batch = FeatureBatch { rows, images, left_out };
        let wrong = first_not_finite(&batch.rows, batch.width());
        Some(match wrong.and_then(|(row, value)| Some((batch.images.get(row)?, value))) {
            Some((&index, value)) => {
                Err(NotFinite { image: source.name(index), value: value.to_string() })
            }
            None => Ok(batch),
        })
    })
}

/// All features of `images`, collected from [`stream`]; `done` is called with the number of images
/// processed in each batch.
///
/// # Errors
/// [`NotFinite`] if a value is not finite.
pub fn extract(
    source: &dyn Source,
    images: &[usize],
    preprocess: &Preprocess,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    done: impl FnMut(usize),
) -> Result<Features, NotFinite> {
    let prepare = |_, image: &Image| preprocess.apply(image);
    extract_with(source, images, preprocess.conversion(), prepare, forward, done)
}

/// Like [`extract`], with images prepared by `prepare`, which also gets their index.
///
/// # Errors
/// [`NotFinite`] if a value is not finite.
pub fn extract_with(
    source: &dyn Source,
    images: &[usize],
    conversion: Conversion,
    prepare: impl Fn(usize, &Image) -> Result<Vec<f32>, ImageError> + Sync,
    forward: impl FnMut(Vec<f32>, usize) -> Vec<f32>,
    mut done: impl FnMut(usize),
) -> Result<Features, NotFinite> {
    let mut features = Features::default();
    for batch in stream(source, images.iter().copied(), conversion, prepare, forward) {
        let batch = batch?;
        done(batch.images.len() + batch.left_out.len());
        if !batch.images.is_empty() {
            features.rows.width = batch.width();
        }
        features.rows.values.extend(batch.rows);
        let labels = batch.images.iter().map(|&index| source.label(index).unwrap_or(0));
        features.rows.labels.extend(labels);
        features.images.extend(batch.images);
        features.left_out.extend(batch.left_out);
    }
    Ok(features)
}

/// The `forward` of [`extract`] for view features `[B, C]`.
pub fn view_forward<'a>(
    network: &'a dyn Backbone,
    params: &'a Params,
    preprocess: &Preprocess,
) -> impl FnMut(Vec<f32>, usize) -> Vec<f32> + use<'a> {
    let size = preprocess.size();
    let device = params.device();
    move |pixels, count| {
        let images = Tensor::new(pixels, [count, 3, size, size], &device);
        pool::run(|| network.forward(params, images, &ForwardCtx::eval()).view.to_vec::<f32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::ViewsConfig;

    /// 70 images of two classes, of which 5 and 64 cannot be read.
    struct Shades(Vec<String>);

    impl Source for Shades {
        fn len(&self) -> usize {
            70
        }

        fn name(&self, index: usize) -> String {
            format!("shade {index}")
        }

        fn label(&self, index: usize) -> Option<u32> {
            (index < 60).then_some(index as u32 % 2)
        }

        fn classes(&self) -> &[String] {
            &self.0
        }

        fn load(&self, index: usize) -> Result<Image, esvit_data::SourceError> {
            if index == 5 || index == 64 {
                return Err(esvit_data::SourceError::NoSuchImage { index, len: 70 });
            }
            Ok(Image::new(4, 4, vec![index as u8; 48]).unwrap())
        }
    }

    #[test]
    fn rows_keep_their_images_and_labels() {
        let source = Shades(vec!["a".into(), "b".into()]);
        let images: Vec<usize> = (0..70).rev().collect();
        let (mut batches, mut done) = (Vec::new(), Vec::new());
        let preprocess = Preprocess {
            mean: [0.0; 3],
            std: [1.0; 3],
            ..Preprocess::new(2, 0, &ViewsConfig::default())
        };
        let forward = |pixels: Vec<f32>, count: usize| {
            batches.push(count);
            // Its shade and a constant.
            pixels.chunks(12).flat_map(|image| [(image[0] * 255.0).round(), 7.0]).collect()
        };
        let found =
            extract(&source, &images, &preprocess, forward, |count| done.push(count)).unwrap();
        let kept: Vec<usize> = images.iter().copied().filter(|i| ![5, 64].contains(i)).collect();
        assert_eq!((found.images, found.rows.width), (kept.clone(), 2));
        let expected: Vec<f32> = kept.iter().flat_map(|&index| [index as f32, 7.0]).collect();
        assert_eq!(found.rows.values, expected);
        let labels = kept.iter().map(|&index| if index < 60 { index as u32 % 2 } else { 0 });
        assert_eq!(found.rows.labels, labels.collect::<Vec<_>>());
        assert_eq!((batches, done), (vec![63, 5], vec![64, 6]));
        let left: Vec<(usize, &str)> =
            found.left_out.iter().map(|left| (left.index, left.name.as_str())).collect();
        assert_eq!(left, [(64, "shade 64"), (5, "shade 5")]);

        let none = extract(&source, &[5], &preprocess, |_, _| panic!("nothing to compute"), |_| {});
        let none = none.unwrap();
        assert_eq!((none.left_out.len(), none.images.len(), none.rows.width), (1, 0, 0));
    }

    /// The first image whose row is not finite is named, by its own name and not by its row: 5 and
    /// 64 cannot be read.
    #[test]
    fn features_that_are_not_finite_are_refused() {
        let source = Shades(vec!["a".into()]);
        let images: Vec<usize> = (0..70).collect();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let forward = |pixels: Vec<f32>, _| -> Vec<f32> {
                let shade = |image: &[f32]| image[0] * 255.0;
                let row = |image| [1.0, if shade(image) > 64.5 { value } else { 7.0 }];
                pixels.chunks(12).flat_map(row).collect()
            };
            let preprocess = Preprocess {
                mean: [0.0; 3],
                std: [1.0; 3],
                ..Preprocess::new(2, 0, &ViewsConfig::default())
            };
            let error = extract(&source, &images, &preprocess, forward, |_| ()).unwrap_err();
            assert_eq!(error, NotFinite { image: "shade 65".into(), value: value.to_string() });
            assert!(error.to_string().contains(&format!("`shade 65` hold {value}")), "{error}");
            assert!(extract(&source, &images[..64], &preprocess, forward, |_| ()).is_ok());
        }
    }

    #[test]
    fn rows_that_have_no_direction_are_found() {
        let values = [0.0, 1.0, 0.0, -0.0, f32::MIN_POSITIVE, 0.0, 0.0, 0.0];
        assert_eq!(zero_rows(&values, 2).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(first_not_finite(&values, 2), None);
        assert_eq!(first_not_finite(&[1.0, 2.0, f32::INFINITY, 3.0], 2), Some((1, f32::INFINITY)));
    }

    /// Powers of two scale f32 exactly, others up to rounding; a subnormal value is less precise.
    #[test]
    fn the_scale_of_a_row_does_not_matter() {
        let row = [0.75, -1.5, 0.125, 2.0];
        let unit = |scale: f32| {
            let mut scaled = row.map(|value| value * scale);
            normalize(&mut scaled, 4);
            scaled
        };
        for exponent in [-120, -66, -40, 0, 40, 66, 126] {
            assert_eq!(unit(2f32.powi(exponent)), unit(1.0), "{exponent}");
        }
        for scale in [1e-30, 1e-25, 1e20, 1e30] {
            for (found, expected) in unit(scale).iter().zip(unit(1.0)) {
                assert!((found - expected).abs() < 1e-6, "{scale}");
            }
        }
        assert!((unit(1e-44)[3] - 0.75).abs() < 0.1, "{:?}", unit(1e-44));
    }

    #[test]
    fn rows_of_zeros_stay_zero() {
        let (values, labels) = (vec![3.0, -4.0, 0.0, 0.0], vec![0, 1]);
        let mut rows = LabeledFeatures { values, width: 2, labels };
        rows.normalize();
        assert_eq!(rows.values, [0.6, -0.8, 0.0, 0.0]);
    }
}
