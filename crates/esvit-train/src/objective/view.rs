//! The view task L_V: every crop predicts the teacher's distribution for the other global crop.

use std::ops::Range;

use burn::tensor::Tensor;
use esvit_nn::ops::Pairs;

use super::TEACHER_CROPS;

/// The teacher rows `[2 B]` that make up the target of each of the student's view rows
/// `[crops * B]`, for some of the crops: those of the global crops other than its own, each with weight `weight`.
///
/// With mixing, student image `j` of a crop is a mix of images: the target of row `j` is
/// `sum_i T[i, j] q[i]`, so that every image counts by its share.
pub(super) fn pairs(
    batch: usize,
    crops: Range<usize>,
    mixing: Option<&[Tensor<2>]>,
    weight: f32,
) -> Pairs {
    let mut pairs = Pairs::new();
    for crop in crops {
        let shares = mixing
            .and_then(|mixing| mixing.get(crop))
            .map(|mixing| mixing.clone().into_data().iter::<f32>().collect::<Vec<f32>>());
        for image in 0..batch {
            let others = (0..TEACHER_CROPS).filter(|&other| other != crop);
            pairs.push(others.flat_map(|other| {
                let sources = match &shares {
                    Some(shares) => (0..batch)
                        .map(|source| (source, shares[source * batch + image]))
                        .filter(|&(_, share)| share != 0.0)
                        .collect(),
                    None => vec![(image, 1.0)],
                };
                sources
                    .into_iter()
                    .map(move |(source, share)| (other * batch + source, share * weight))
            }));
        }
    }
    pairs
}
