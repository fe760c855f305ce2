//! The view task L_V: every crop predicts the teacher's distribution for the other global crop.

use std::ops::Range;

use esvit_nn::ops::Pairs;

use super::GLOBAL_VIEWS;

/// Pairs the student's view rows `[crops * B]` with teacher rows `[2 B]`: the same image in each
/// global crop other than its own, with weight `weight`.
///
/// With mixing matrices `T`, the target of row `j` is `sum_i T[i, j] q[i]`: images count by their
/// share in the student's image `j`.
pub(super) fn pairs(
    batch: usize,
    crops: Range<usize>,
    mixing: Option<&[Vec<f32>]>,
    weight: f32,
) -> Pairs {
    let mut pairs = Pairs::new();
    for crop in crops {
        let shares = mixing.and_then(|mixing| mixing.get(crop));
        for image in 0..batch {
            let others = (0..GLOBAL_VIEWS).filter(|&other| other != crop);
            pairs.push(others.flat_map(|other| {
                let sources = match shares {
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
