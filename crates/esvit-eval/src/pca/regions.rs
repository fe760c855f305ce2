//! Region features of an image of any shape.

use esvit_data::{EvalTransform, Image, ImageError, Interpolation, resize};
use esvit_kernels::pool;
use esvit_nn::{ForwardCtx, Tensor};
use esvit_settings::SettingError;

use esvit_model::PretrainedBackbone;

/// Maximum side of the network's input in pixels.
const MAX_SIDE: usize = 4096;

/// Framing of the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Side of the center crop, or shorter side of the whole image, in pixels.
    pub size: usize,
    /// Use the whole image with about its aspect ratio, instead of the center crop.
    pub whole: bool,
}

/// Region features of an image.
#[derive(Debug, Clone)]
pub struct RegionMap {
    /// The network's input.
    pub input: Image,
    /// `[height * width, channels]`, row-major.
    pub values: Vec<f32>,
    /// Height and width of the map in regions.
    pub map: [usize; 2],
    /// Region size in pixels of the input.
    pub stride: usize,
}

/// Region features cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum RegionsError {
    /// The image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The network does not take images of this size.
    #[error(transparent)]
    Input(#[from] SettingError),
    /// The stage does not exist.
    #[error("there is no stage {stage}: the network has {stages}, the first is 1")]
    Stage {
        /// The stage asked for, counted from 1.
        stage: usize,
        /// Number of stages.
        stages: usize,
    },
    /// The input size does not fit the network.
    #[error(
        "an image of {width} x {height} pixels cannot be sent through the network: its sides must \
         be multiples of the patch, {patch} pixels, and at most {MAX_SIDE}\n\
         hint: give another size, and for a very long image the center crop"
    )]
    Size {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Patch size.
        patch: usize,
    },
}

impl Framing {
    /// Default size for maps of a stage (from 1): 16 regions a side, and at least the size used in
    /// evaluations.
    pub fn default_size(backbone: &PretrainedBackbone, stage: usize) -> usize {
        let stages = backbone.config.stages();
        let patch = backbone.config.least_side();
        let evaluated = backbone.preprocess.size().next_multiple_of(patch);
        evaluated
            .max(16 * stages[stage.clamp(1, stages.len()) - 1].stride)
            .min(MAX_SIDE / patch * patch)
    }

    /// Width and height of the input.
    fn sides(&self, image: &Image, patch: usize) -> Result<[usize; 2], RegionsError> {
        let sides = [image.width(), image.height()].map(|side| side as usize);
        let [width, height] = if self.whole {
            let shorter = sides[0].min(sides[1]);
            // Round both sides to whole patches.
            sides.map(|side| {
                let side = (side * self.size) as f64 / shorter as f64;
                (side / patch as f64).round().max(1.0) as usize * patch
            })
        } else {
            [self.size; 2]
        };
        let fits = |side: usize| side > 0 && side <= MAX_SIDE && side.is_multiple_of(patch);
        // The size itself is checked too, since the sides of whole images are rounded.
        if fits(width) && fits(height) && fits(self.size) {
            Ok([width, height])
        } else {
            Err(RegionsError::Size { width, height, patch })
        }
    }
}

/// Region features of a stage (from 1) of a frozen backbone, after the final norm for the last
/// stage.
///
/// # Errors
/// [`RegionsError`] if there is no such stage, or the size does not fit the network.
pub fn region_map(
    backbone: &PretrainedBackbone,
    image: &Image,
    framing: Framing,
    stage: usize,
) -> Result<RegionMap, RegionsError> {
    let stages = backbone.config.stages();
    // Resize and crop keep the ratio used in evaluations.
    let usual = &backbone.preprocess.transform;
    let margin = f64::from(usual.resize) / f64::from(usual.crop.max(1));
    let shorter = (framing.size as f64 * margin).round() as u32;
    let sides @ [width, height] = framing.sides(image, backbone.config.least_side())?;
    let checked = backbone.config.check_image("size", [height, width]);
    checked.map_err(|error| match framing.whole {
        // The whole of a long image is a long one, too.
        true => SettingError { need: format!("{}, or leave out `--whole`", error.need), ..error },
        false => error,
    })?;
    let [shown_width, shown_height] = sides.map(|side| side as u32);
    let input = if framing.whole {
        resize(image, shown_width, shown_height, Interpolation::Bicubic)?
    } else {
        EvalTransform { resize: shorter, ..EvalTransform::new(shown_width) }.apply(image)?
    };

    let pixels = backbone.preprocess.normalize(&input);
    let device = backbone.params.device();
    let images = Tensor::new(pixels, [1, 3, height, width], &device);
    let forward = || {
        let index = stage.checked_sub(1)?;
        let pass = ForwardCtx::eval();
        let features = backbone.network.stage_features(&backbone.params, images, index, &pass)?;
        Some((features.region.to_vec::<f32>(), features.map))
    };
    let (values, map) =
        pool::run(forward).ok_or(RegionsError::Stage { stage, stages: stages.len() })?;
    Ok(RegionMap { input, values, map, stride: stages[stage - 1].stride })
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::augment::Normalization;
    use esvit_nn::Device;
    use esvit_testing::{tiny_swin, untrained};

    fn backbone() -> PretrainedBackbone {
        untrained(&tiny_swin(), 1, 0)
    }

    #[test]
    fn the_last_stage_is_that_of_the_region_task() {
        let backbone = backbone();
        let pixels = (0..48 * 32 * 3).map(|value| (value * value % 251) as u8).collect();
        let image = Image::new(48, 32, pixels).unwrap();
        let framing = Framing { size: 32, whole: true };
        let regions = region_map(&backbone, &image, framing, 2).unwrap();
        assert_eq!((regions.map, regions.stride, regions.values.len()), ([4, 6], 8, 24 * 16));
        assert_eq!(regions.input, image);
        let mut values = vec![0.0; 48 * 32 * 3];
        let esvit_data::Preprocess { mean, std, .. } = backbone.preprocess;
        Normalization::new(mean, std).write(&image, &mut values).unwrap();
        let images = Tensor::new(values, [1, 3, 32, 48], &Device::Cpu);
        let expected = backbone.network.forward(&backbone.params, images, &ForwardCtx::eval());
        assert_eq!(regions.values, expected.region.to_vec::<f32>());

        let first = region_map(&backbone, &image, framing, 1).unwrap();
        assert_eq!((first.map, first.stride, first.values.len()), ([8, 12], 4, 96 * 8));
        for stage in [0, 3] {
            let error = region_map(&backbone, &image, framing, stage).unwrap_err();
            assert!(matches!(error, RegionsError::Stage { stages: 2, .. }));
        }
        assert_eq!([1, 2].map(|stage| Framing::default_size(&backbone, stage)), [64, 128]);
    }

    fn image(width: u32, height: u32) -> Image {
        Image::new(width, height, vec![7; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn whole_images_keep_their_proportions_in_whole_patches() {
        let framing = Framing { size: 64, whole: true };
        assert_eq!(framing.sides(&image(40, 40), 4).unwrap(), [64, 64]);
        assert_eq!(framing.sides(&image(50, 40), 4).unwrap(), [80, 64]);
        assert_eq!(framing.sides(&image(40, 61), 4).unwrap(), [64, 96]);
        let error = framing.sides(&image(5000, 1), 4).unwrap_err();
        assert!(error.to_string().contains("320000 x 64"), "{error}");
    }

    #[test]
    fn sizes_that_leave_pixels_over_are_refused() {
        for size in [0, 2, 62, 5000] {
            for whole in [false, true] {
                assert!(Framing { size, whole }.sides(&image(40, 30), 4).is_err(), "{size}");
            }
        }
    }

    /// What evaluations cut off at the sides is cut off at every size.
    #[test]
    fn the_margin_of_the_center_stays_in_proportion() {
        let mut backbone = backbone();
        backbone.preprocess.transform.resize = 64;
        let ramp = (0..64 * 64).flat_map(|i| [4 * (i % 64) as u8, 4 * (i / 64) as u8, 0]);
        let image = Image::new(64, 64, ramp.collect()).unwrap();
        let shown = |size| {
            let framing = Framing { size, whole: false };
            region_map(&backbone, &image, framing, 2).unwrap().input
        };
        // The middle half of the image.
        let small = shown(32);
        assert_eq!((small.width(), small.pixel(0, 0)), (32, Some([64, 64, 0])));
        let large = shown(64).pixel(0, 0).unwrap();
        assert!(large[0].abs_diff(64) <= 3 && large[1].abs_diff(64) <= 3, "{large:?}");
    }
}
