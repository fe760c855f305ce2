//! The region task L_R: every token of a crop predicts the teacher's distribution for the most
//! similar token of the other global crop.

use esvit_nn::Tensor;
use esvit_nn::esvit_heads::RegionPredictions;
use esvit_nn::ops::{self, MatchGroup, TeacherRows};

use super::GLOBAL_VIEWS;

/// Pairs each region row of the student with its best match in each global crop other than its
/// own. `first_crop` is the student's first crop; `pair_count` is the number of (teacher crop,
/// student crop) pairs. The match has no gradient.
pub(super) fn pairs(
    student: &RegionPredictions,
    teacher: &RegionPredictions,
    batch: usize,
    first_crop: usize,
    pair_count: f64,
) -> TeacherRows {
    let teacher_tokens = teacher.tokens[0];
    let mut groups = Vec::new();
    let mut weights = Vec::new();
    let mut start = 0;
    for (crop, &tokens) in (first_crop..).zip(&student.tokens) {
        let weight = (1.0 / (batch as f64 * tokens as f64 * pair_count)) as f32;
        weights.extend(std::iter::repeat_n(weight, batch * tokens * GLOBAL_VIEWS));
        let others = (0..GLOBAL_VIEWS).filter(|&other| other != crop);
        for (column, other) in others.enumerate() {
            for image in 0..batch {
                let of = start + image * tokens;
                let among = (other * batch + image) * teacher_tokens;
                let (queries, keys) = (of..of + tokens, among..among + teacher_tokens);
                groups.push(MatchGroup { queries, keys, column });
            }
        }
        start += batch * tokens;
    }
    let (queries, keys) = (&student.features, &teacher.features);
    let rows = ops::best_matches(queries, keys, &groups, GLOBAL_VIEWS);
    let weights = Tensor::new(weights, rows.shape(), &rows.device());
    TeacherRows { rows, weights }
}
