//! Splits the crops of a step into forward passes of the student.

use std::ops::Range;

use esvit_nn::ops::Precision;
use esvit_nn::{BackboneConfig, ForwardCtx};

use crate::objective::GLOBAL_VIEWS;

/// Budget of saved activations for a forward pass, in bytes: 1 GiB for the blocks of a Swin-T, which
/// save 57,200,640 of the 61,264,896 bytes of an image of 224 pixels in f32. Each further pass packs
/// all weights and adds up all gradients again, about 1 % of a step at this budget.
const SAVED_BYTES: f64 = (1u64 << 30) as f64 * 61_264_896.0 / 57_200_640.0;

/// With batch normalization crops of different sizes go through apart beyond this share of
/// [`SAVED_BYTES`]: they never share statistics, and it is one more pass for each size, not for each crop.
const SHARE_BEFORE_SIZES: f64 = 0.25;

/// How many crops of every image are in one forward pass of the student.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum CropChunks {
    /// All.
    #[default]
    All,
    /// A number of crops.
    Crops(usize),
    /// As many crops as have this many pixels over all images, and at least one.
    Pixels(f64),
    /// All crops of a size, which batch normalization sees together; those of all sizes, if they
    /// have no more than this many pixels over all images.
    Sizes(f64),
}

impl CropChunks {
    /// As many crops as fit the budget of saved activations, so that memory hardly depends on
    /// batch size and number of crops; with batch normalization those of a size together.
    pub fn within_memory(
        backbone: &BackboneConfig,
        precision: Precision,
        activation_checkpointing: bool,
    ) -> Self {
        // Saved values grow with the pixels, about.
        let side = backbone.least_side().max(224);
        let mut ctx = ForwardCtx::expected().with_precision(precision);
        ctx.activation_checkpointing = activation_checkpointing;
        let saved = backbone.cost([side; 2], 0.0, &ctx).saved_bytes;
        let most = SAVED_BYTES / saved * (side * side) as f64;
        if backbone.has_batch_norm() {
            Self::Sizes(SHARE_BEFORE_SIZES * most)
        } else {
            Self::Pixels(most)
        }
    }

    /// Splits crops with these sides, the two global ones first, of `images` each. Global and local
    /// crops are in separate passes unless one pass has all.
    pub(crate) fn cut(self, sides: &[usize], images: usize) -> Vec<Range<usize>> {
        let total = sides.len();
        let pixels = |side: usize| (images * side * side) as f64;
        let all_fit = match self {
            Self::All => true,
            Self::Crops(count) => count >= total,
            Self::Pixels(most) | Self::Sizes(most) => {
                sides.iter().map(|&side| pixels(side)).sum::<f64>() <= most
            }
        };
        if all_fit {
            return std::iter::once(0..total).collect();
        }
        if let Self::Sizes(_) = self {
            let runs = sides.chunk_by(|a, b| a == b).map(<[usize]>::len);
            let ends = runs.scan(0, |end, count| {
                *end += count;
                Some(*end - count..*end)
            });
            return ends.collect();
        }
        let at_a_time = |crops: &Range<usize>| match self {
            Self::All | Self::Sizes(_) => total,
            Self::Crops(count) => count.max(1),
            Self::Pixels(most) => {
                let largest = sides[crops.clone()].iter().max().copied().unwrap_or(1);
                ((most / pixels(largest)) as usize).max(1)
            }
        };
        let globals = GLOBAL_VIEWS.min(total);
        [0..globals, globals..total]
            .into_iter()
            .flat_map(|crops| {
                let (count, end) = (at_a_time(&crops), crops.end);
                crops.step_by(count).map(move |first| first..(first + count).min(end))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use esvit_kernels::isa;

    use super::*;

    const SIDES: [usize; 6] = [32, 32, 16, 16, 16, 16];

    #[test]
    fn all_at_once() {
        for crop_chunks in [CropChunks::All, CropChunks::Crops(6), CropChunks::Pixels(2.0 * 3072.0)]
        {
            assert_eq!(crop_chunks.cut(&SIDES, 2).len(), 1);
        }
    }

    #[test]
    fn global_and_local_crops_apart() {
        assert_eq!(CropChunks::Crops(1).cut(&SIDES, 2).len(), 6);
        assert_eq!(CropChunks::Crops(3).cut(&SIDES, 2), [0..2, 2..5, 5..6]);
        assert_eq!(CropChunks::Pixels(2.0 * 2048.0).cut(&SIDES, 2), [0..2, 2..6]);
        assert_eq!(CropChunks::Pixels(2.0 * 1024.0).cut(&SIDES, 2), [0..1, 1..2, 2..6]);
        assert_eq!(CropChunks::Pixels(1.0).cut(&SIDES, 2).len(), 6);
        assert_eq!(CropChunks::Crops(1).cut(&SIDES[..2], 2), [0..1, 1..2]);
    }

    /// Crops of a size stay together, globals and locals of one size too.
    #[test]
    fn sizes_apart() {
        let all = (0..6).map(|at| SIDES[at].pow(2)).sum::<usize>() as f64;
        assert_eq!(CropChunks::Sizes(2.0 * all).cut(&SIDES, 2).len(), 1);
        assert_eq!(CropChunks::Sizes(2.0 * all - 1.0).cut(&SIDES, 2), [0..2, 2..6]);
        assert_eq!(CropChunks::Sizes(1.0).cut(&[32, 32, 16, 24, 24], 2), [0..2, 2..3, 3..5]);
        assert_eq!(CropChunks::Sizes(1.0).cut(&[32; 4], 2).len(), 1);
        let of = |name: &str| {
            let backbone = esvit_nn::zoo::find(name).unwrap().config();
            CropChunks::within_memory(&backbone, Precision::F32, false)
        };
        assert!(matches!(of("resnet50"), CropChunks::Sizes(_)));
        assert!(matches!(of("vit_small16"), CropChunks::Pixels(_)));
    }

    /// Of a Swin-T, as many pixels as 1 GiB holds of what its blocks save: 1,430,016 values of 40
    /// bytes at 224 pixels.
    #[test]
    fn the_budget_of_the_published_recipe() {
        let backbone = esvit_nn::zoo::find("swin_tiny").unwrap().config();
        let expected = (1u64 << 30) as f64 / (40.0 * 1_430_016.0) * 224.0 * 224.0;
        let CropChunks::Pixels(found) = CropChunks::within_memory(&backbone, Precision::F32, false)
        else {
            panic!("pixels expected")
        };
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} instead of {expected}");
    }

    #[test]
    fn memory_decides() {
        let backbone = esvit_nn::zoo::find("swin_tiny").unwrap().config();
        let passes = |images: usize, precision: Precision| {
            let sides = [vec![224; 2], vec![96; 8]].concat();
            CropChunks::within_memory(&backbone, precision, false).cut(&sides, images).len()
        };
        assert_eq!([4, 16, 64].map(|images| passes(images, Precision::F32)), [1, 4, 10]);
        // Tiles of bf16 compute again more than half of what is saved otherwise.
        let of_bf16 = if isa::current().has_tiles() { [1, 2] } else { [2, 4] };
        assert_eq!([16, 32].map(|images| passes(images, Precision::Bf16)), of_bf16);
    }
}
