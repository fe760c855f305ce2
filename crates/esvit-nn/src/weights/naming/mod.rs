//! Names of parameters in the files of other programs, and the order of their values.

mod merge_order;
mod resnet;
mod swin;
mod vil;
mod vit;

use crate::backbone::Family;

pub use resnet::ESVIT_WRAPPER;
pub(super) use vil::second_name;

/// How a file names the parameters of a backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The official EsViT code, and ours.
    Esvit,
    /// Microsoft's Swin code, and timm before 0.9.
    Microsoft,
    /// timm since 0.9: patch merging is the first layer of a stage, not the last of the one before.
    Timm,
    /// torchvision.
    Torchvision,
    /// Hugging Face `transformers`, as stored on disk.
    Transformers,
    /// `transformers` 5, as named in memory.
    Transformers5,
    /// OpenMMLab: mmpretrain, mmdetection, mmsegmentation.
    OpenMmLab,
    /// DINOv2's code.
    Dinov2 {
        /// Blocks in each of the chunks that it trains large networks in; 0 without chunks.
        chunk: usize,
    },
    /// timm's vision transformers with rotary positions, such as DINOv3.
    TimmEva,
    /// `transformers`, DINOv2.
    TransformersDinov2,
    /// `transformers`, DINOv3.
    TransformersDinov3,
    /// SimCLRv2-Pytorch, which converts the ResNets of SimCLR v2 from TensorFlow.
    SimClr {
        /// Whether they have selective kernels, after which layers are counted otherwise.
        selective: bool,
    },
}

impl Naming {
    /// The namings of Swin transformers, in the order in which files are searched for them.
    pub const OF_SWIN: [Self; 7] = [
        Self::Esvit,
        Self::Microsoft,
        Self::Timm,
        Self::Torchvision,
        Self::Transformers,
        Self::Transformers5,
        Self::OpenMmLab,
    ];

    /// Name in reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Esvit => "EsViT",
            Self::Microsoft => "Microsoft's Swin",
            Self::Timm | Self::TimmEva => "timm",
            Self::Torchvision => "torchvision",
            Self::Transformers
            | Self::Transformers5
            | Self::TransformersDinov2
            | Self::TransformersDinov3 => "transformers",
            Self::OpenMmLab => "OpenMMLab",
            Self::Dinov2 { .. } => "DINOv2",
            Self::SimClr { .. } => "SimCLRv2-Pytorch",
        }
    }

    /// `eps` of the norms in the program of this naming; weights do not store it.
    pub fn norm_eps(self, family: Family) -> f64 {
        match (family, self) {
            (Family::Swin, Self::Esvit) | (Family::Pvt | Family::Vil, _) => 1e-6,
            (Family::Swin | Family::ResNet | Family::Cvt | Family::Igpt, _) => 1e-5,
            (Family::Vit, Self::Transformers | Self::Transformers5) => 1e-12,
            (Family::Vit, Self::TimmEva | Self::TransformersDinov3) => 1e-5,
            (Family::Vit, _) => 1e-6,
        }
    }

    /// Names of the tensors that hold the parameter with this official name: several hold equal
    /// parts of its rows, in order.
    pub fn names(self, family: Family, official: &str) -> Vec<String> {
        match family {
            Family::Swin => swin::names(self, official),
            Family::Vit => vit::names(self, official),
            Family::ResNet => resnet::names(self, official),
            // No other program has their layout.
            Family::Pvt | Family::Cvt | Family::Vil | Family::Igpt => vec![official.into()],
        }
    }

    /// Values of a parameter in the official order, given those of a file in rows of `row`.
    pub(super) fn official_order(
        self,
        family: Family,
        official: &str,
        values: Vec<f32>,
        row: usize,
    ) -> Vec<f32> {
        match self.unfolds(family, official) {
            true => merge_order::concatenated(&values, row),
            false => values,
        }
    }

    /// The inverse of [`Self::official_order`].
    pub(super) fn order_in_file(
        self,
        family: Family,
        official: &str,
        values: Vec<f32>,
        row: usize,
    ) -> Vec<f32> {
        match self.unfolds(family, official) {
            true => merge_order::unfolded(&values, row),
            false => values,
        }
    }

    fn unfolds(self, family: Family, official: &str) -> bool {
        family == Family::Swin && swin::unfolds(self, official)
    }
}

/// Beginnings of official names, and what another program has for them.
type Renamed = [(&'static str, &'static str)];

/// The name by the first entry that begins like it, or else as it is.
fn renamed(rest: &str, table: &Renamed) -> String {
    known(rest, table).unwrap_or_else(|| rest.into())
}

/// The name by the first entry that begins like it, if there is one.
fn known(rest: &str, table: &Renamed) -> Option<String> {
    table.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)))
}
