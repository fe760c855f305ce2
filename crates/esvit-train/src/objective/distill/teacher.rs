//! The teacher: a backbone of any family with what it was made to see.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use esvit_data::ViewsConfig;
use esvit_nn::ops::Precision;
use esvit_nn::{BackboneConfig, ForwardCtx, Network, Params, Tensor, resize};
use esvit_settings::SettingError;
use serde::{Deserialize, Serialize};

use crate::objective::FrozenTeacher;

/// A backbone that teaches and does not learn.
#[derive(Debug)]
pub struct TeacherNetwork {
    /// Network and parameters.
    pub frozen: Arc<FrozenTeacher>,
    /// Its shape.
    pub config: BackboneConfig,
    /// Side in pixels of the images that it is shown in evaluations.
    pub size: usize,
    /// Mean of the channels, for values in 0..=1, that its images are normalized with.
    pub mean: [f64; 3],
    /// Standard deviation of the channels.
    pub std: [f64; 3],
    /// The file of its weights.
    pub path: PathBuf,
    hash: u64,
}

/// What a run records of its teacher: which file it was, and what was in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherRecord {
    /// The file, as it was named.
    pub path: String,
    /// Hash of parameters and normalization, in hexadecimal digits.
    pub tensors: String,
}

impl PartialEq for TeacherNetwork {
    fn eq(&self, other: &Self) -> bool {
        self.record() == other.record()
    }
}

impl TeacherNetwork {
    /// The backbone of a file: its shape, and its parameters in the order of that shape's list.
    ///
    /// # Panics
    /// When the parameters are not those of the shape.
    pub fn new(
        path: PathBuf,
        config: BackboneConfig,
        params: Params,
        size: usize,
        [mean, std]: [[f64; 3]; 2],
    ) -> Self {
        let (network, ()) = Network::new(&config, 0.0, |_, _| ());
        assert_eq!(**network.specs(), **params.specs(), "the parameters of `{}`", path.display());
        let hash = hash(&params, [mean, std]);
        let frozen = Arc::new(FrozenTeacher { network, params });
        Self { frozen, config, size, mean, std, path, hash }
    }

    /// Dimension of its view and region features.
    pub fn width(&self) -> usize {
        self.config.output_width()
    }

    /// What tells it from another one.
    pub fn record(&self) -> TeacherRecord {
        TeacherRecord {
            path: self.path.display().to_string(),
            tensors: format!("{:016x}", self.hash),
        }
    }
}

/// A hash (FNV-1a over words of 32 bits) of all values that the features depend on.
fn hash(params: &Params, normalization: [[f64; 3]; 2]) -> u64 {
    let add = |hash: u64, word: u32| (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
    let mut sum = 0xcbf2_9ce4_8422_2325;
    for value in params.values() {
        sum = value.to_vec::<f32>().into_iter().map(f32::to_bits).fold(sum, add);
    }
    let normalization = normalization.into_iter().flatten().map(f64::to_bits);
    normalization.flat_map(|bits| [bits as u32, (bits >> 32) as u32]).fold(sum, add)
}

/// A teacher with what becomes of the student's views before it sees them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attached {
    pub(super) network: Arc<TeacherNetwork>,
    /// Side of the student's global views, in pixels, and that at which the teacher sees them.
    sides: [usize; 2],
    /// The same as `sides[1]`, in whole patches.
    pub(super) side: usize,
    /// Factor and summand of each channel, from the student's normalization to the teacher's; None where
    /// they are alike.
    normalization: Option<[[f64; 3]; 2]>,
    /// Whether an image has one view, the same in every epoch.
    pub(super) is_deterministic: bool,
}

impl Attached {
    pub(super) fn new(
        network: Arc<TeacherNetwork>,
        views: &ViewsConfig,
        size: Option<usize>,
    ) -> Result<Self, SettingError> {
        let scale = std::array::from_fn(|c| views.std[c] / network.std[c]);
        let shift = std::array::from_fn(|c| (views.mean[c] - network.mean[c]) / network.std[c]);
        let is_other = [views.mean, views.std] != [network.mean, network.std];
        let sides = [views.global_size as usize, size.unwrap_or(network.size)];
        let mut attached = Self {
            network,
            sides,
            side: 0,
            normalization: is_other.then_some([scale, shift]),
            is_deterministic: views.is_deterministic(),
        };
        for view in views.sizes() {
            let side = attached.side_of(view as usize);
            attached.network.config.check_image("objective.teacher_size", [side; 2])?;
        }
        attached.side = attached.side_of(sides[0]);
        Ok(attached)
    }

    /// Side at which the teacher sees a view of this side: in proportion, in whole patches, one at least.
    pub(super) fn side_of(&self, view: usize) -> usize {
        let [student, teacher] = self.sides.map(|side| side as f64);
        let least = self.network.config.least_side();
        let patches = (view as f64 * teacher / student / least as f64).round() as usize;
        patches.max(1) * least
    }

    /// Views `[B, 3, H, W]` as the teacher sees them.
    pub(super) fn see(&self, views: &[Tensor]) -> Vec<Tensor> {
        let see = |view: &Tensor| {
            let device = view.device();
            let view = match &self.normalization {
                None => view.clone(),
                Some(factors) => {
                    let [scale, shift] = factors.map(|values| {
                        let values = values.map(|value| value as f32).to_vec();
                        Tensor::new(values, [1, 3, 1, 1], &device)
                    });
                    view.clone() * scale + shift
                }
            };
            let [_, _, height, width] = view.dims();
            resize::images(view, [height, width].map(|side| self.side_of(side)))
        };
        views.iter().map(see).collect()
    }

    /// Bytes of the teacher's pass over a student's view of this side: its largest map, with what a block
    /// makes of it.
    pub(super) fn bytes(&self, side: usize, precision: Precision) -> f64 {
        let size = precision.bytes() as f64;
        let side = self.side_of(side);
        let ctx = ForwardCtx::eval().with_precision(precision);
        let largest = self.network.config.cost([side; 2], 0.0, &ctx).largest;
        largest * (6.0 * size + 8.0) + (3 * side * side * size_of::<f32>()) as f64
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TeacherNetwork { config, path, .. } = &*self.network;
        let (family, shape) = (config.family(), config.describe());
        let hash = self.network.record().tensors;
        write!(f, "the teacher is `{}`: {family} ({shape}), tensors {hash}", path.display())?;
        let [student, _] = self.sides;
        if self.side != student {
            write!(f, "; it sees views of {student} pixels at {}", self.side)?;
        }
        if self.normalization.is_some() {
            write!(f, "; views are normalized anew for it")?;
        }
        Ok(())
    }
}
