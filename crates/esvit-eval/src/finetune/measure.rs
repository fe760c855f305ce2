//! Accuracy of a classifier.

use esvit_kernels::pool;
use esvit_nn::{Backbone, ForwardCtx, Params, Tensor};
use esvit_train::objective::supervised::ClassifierHead;
use rayon::prelude::*;

use crate::labeled::LabeledSet;
use crate::probe::{ClassAccuracy, rank};
use esvit_data::Preprocess;
use esvit_model::features::{NotFinite, SkippedImage, view_forward};

/// Rows whose logits are computed at a time.
const ROWS: usize = 512;

/// Accuracy on a set, preprocessed as in evaluations. Images of classes without an output count as
/// wrong. `None` if no image can be read.
///
/// # Errors
/// [`NotFinite`] if the features of an image are not finite.
pub fn evaluate(
    network: &dyn Backbone,
    head: &ClassifierHead,
    params: &Params,
    preprocess: &Preprocess,
    set: &LabeledSet,
) -> Result<(Option<ClassAccuracy>, Vec<SkippedImage>), NotFinite> {
    let forward = view_forward(network, params, preprocess);
    let features = set.features(preprocess, forward, |_| ())?;
    let (rows, width) = (&features.rows, features.rows.width.max(1));
    let device = params.device();
    let mut ranks = Vec::with_capacity(rows.labels.len());
    for (values, labels) in rows.values.chunks(ROWS * width).zip(rows.labels.chunks(ROWS)) {
        let values = Tensor::new(values.to_vec(), [labels.len(), width], &device);
        let scores =
            pool::run(|| head.forward(params, values, &ForwardCtx::eval()).to_vec::<f32>());
        let classes = scores.len() / labels.len();
        let rank = |(scores, &label): (&[f32], &u32)| rank(scores, label as usize);
        ranks.par_extend(scores.par_chunks(classes).zip(labels).map(rank));
    }
    let accuracy = (!ranks.is_empty()).then(|| ClassAccuracy::of_ranks(&ranks));
    Ok((accuracy, features.left_out))
}
