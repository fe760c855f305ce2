//! Region features of an image of any shape.

use esvit_data::augment::Normalization;
use esvit_data::{EvalTransform, Image, ImageError, Interpolation, resized};
use esvit_kernels::pool;
use esvit_nn::ForwardCtx;
use esvit_nn::params::tensor;
use esvit_nn::weights::to_vec;

use esvit_model::PretrainedBackbone;

/// The longest side that is sent through a network, in pixels.
const MAX_SIDE: usize = 4096;

/// How an image is shown to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Side of the center crop, or the shorter side of the whole image, in pixels.
    pub size: usize,
    /// The whole image with about its proportions, instead of the center crop.
    pub whole: bool,
}

/// Region features of an image.
#[derive(Debug, Clone)]
pub struct RegionMap {
    /// What the network saw.
    pub shown: Image,
    /// `[height * width, channels]`, row-major over the map.
    pub values: Vec<f32>,
    /// Height and width of the map in regions.
    pub map: [usize; 2],
    /// Side of a region, in pixels of the shown image.
    pub stride: usize,
}

/// Why there are no region features.
#[derive(Debug, thiserror::Error)]
pub enum RegionsError {
    /// The image cannot be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no such stage.
    #[error("there is no stage {stage}: the network has {stages}, the first is 1")]
    Stage {
        /// The stage asked for, counted from 1.
        stage: usize,
        /// Number of stages.
        stages: usize,
    },
    /// The network cannot see this size.
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
        /// Side of a patch.
        patch: usize,
    },
}

impl Framing {
    /// The usual size for maps of a stage (counted from 1): 16 regions a side, and not below the
    /// size that the network is evaluated with.
    pub fn usual_size(backbone: &PretrainedBackbone, stage: usize) -> usize {
        let model = backbone.swin.config();
        let evaluated = backbone.preprocess.size().next_multiple_of(model.patch_size);
        evaluated
            .max(16 * model.stride(stage.clamp(1, model.stages()) - 1))
            .min(MAX_SIDE / model.patch_size * model.patch_size)
    }

    /// Width and height of what is shown of an image.
    fn sides(&self, image: &Image, patch: usize) -> Result<[usize; 2], RegionsError> {
        let sides = [image.width(), image.height()].map(|side| side as usize);
        let [width, height] = if self.whole {
            let shorter = sides[0].min(sides[1]);
            // Both sides to the nearest whole number of patches.
            sides.map(|side| {
                let side = (side * self.size) as f64 / shorter as f64;
                (side / patch as f64).round().max(1.0) as usize * patch
            })
        } else {
            [self.size; 2]
        };
        let fits = |side: usize| side > 0 && side <= MAX_SIDE && side.is_multiple_of(patch);
        // The size is checked too: the sides of whole images are rounded.
        if fits(width) && fits(height) && fits(self.size) {
            Ok([width, height])
        } else {
            Err(RegionsError::Size { width, height, patch })
        }
    }

    fn frame(&self, image: &Image, patch: usize, resize: u32) -> Result<Image, RegionsError> {
        let [width, height] = self.sides(image, patch)?.map(|side| side as u32);
        if self.whole {
            return Ok(resized(image, width, height, Interpolation::Bicubic)?);
        }
        Ok(EvalTransform { resize, ..EvalTransform::new(width) }.apply(image)?)
    }
}

/// Region features of a stage (counted from 1) of a frozen backbone, after the final norm for the
/// last stage.
///
/// # Errors
/// When there is no such stage or the network cannot see images of this size.
pub fn region_map(
    backbone: &PretrainedBackbone,
    image: &Image,
    framing: Framing,
    stage: usize,
) -> Result<RegionMap, RegionsError> {
    let model = backbone.swin.config();
    // The margin around the center crop stays in proportion.
    let usual = &backbone.preprocess.transform;
    let margin = f64::from(usual.resize) / f64::from(usual.crop.max(1));
    let resize = (framing.size as f64 * margin).round() as u32;
    let shown = framing.frame(image, model.patch_size, resize)?;
    let [width, height] = [shown.width(), shown.height()].map(|side| side as usize);

    let mut pixels = vec![0.0; 3 * width * height];
    let preprocess = &backbone.preprocess;
    Normalization::new(preprocess.mean, preprocess.std)
        .write(&shown, &mut pixels)
        .expect("as many values as the image has");
    let device = backbone.params.values()[0].device();
    let images = tensor(pixels, [1, 3, height, width], &device);
    let forward = || {
        let index = stage.checked_sub(1)?;
        let pass = ForwardCtx::eval();
        let features = backbone.swin.stage_features(&backbone.params, images, index, &pass)?;
        Some((to_vec(&features.region), features.map))
    };
    let (values, map) =
        pool::run(forward).ok_or(RegionsError::Stage { stage, stages: model.stages() })?;
    Ok(RegionMap { shown, values, map, stride: model.stride(stage - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
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
        assert_eq!(regions.shown, image);
        let mut values = vec![0.0; 48 * 32 * 3];
        let esvit_data::Preprocess { mean, std, .. } = backbone.preprocess;
        Normalization::new(mean, std).write(&image, &mut values).unwrap();
        let images = tensor(values, [1, 3, 32, 48], &Device::flex());
        let expected = backbone.swin.forward(&backbone.params, images, &ForwardCtx::eval());
        assert_eq!(regions.values, to_vec(&expected.region));

        let first = region_map(&backbone, &image, framing, 1).unwrap();
        assert_eq!((first.map, first.stride, first.values.len()), ([8, 12], 4, 96 * 8));
        for stage in [0, 3] {
            let error = region_map(&backbone, &image, framing, stage).unwrap_err();
            assert!(matches!(error, RegionsError::Stage { stages: 2, .. }));
        }
        assert_eq!([1, 2].map(|stage| Framing::usual_size(&backbone, stage)), [64, 128]);
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
}
