//! The region task L_R: every token of a crop predicts the teacher's distribution for the most
//! similar token of the other global crop.

use esvit_nn::network::RegionPredictions;
use esvit_nn::ops::{self, Group, Pairs};

use super::TEACHER_CROPS;

/// Pairs each region row of the student with its best match in each global crop other than its
/// own. `first_crop` is the student's first crop; `pair_count` is the number of (teacher crop,
/// student crop) pairs. The match has no gradient.
pub(super) fn pairs(
    student: &RegionPredictions,
    teacher: &RegionPredictions,
    batch: usize,
    first_crop: usize,
    pair_count: f64,
) -> Pairs {
    let teacher_tokens = teacher.tokens[0];
    let mut groups: Vec<Group> = Vec::new();
    let mut start = 0;
    for (crop, &tokens) in (first_crop..).zip(&student.tokens) {
        for other in (0..TEACHER_CROPS).filter(|&other| other != crop) {
            for image in 0..batch {
                let of = start + image * tokens;
                let among = (other * batch + image) * teacher_tokens;
                groups.push((of..of + tokens, among..among + teacher_tokens));
            }
        }
        start += batch * tokens;
    }
    let matched = ops::best_matches(&student.features, &teacher.features, &groups);

    let mut pairs = Pairs::new();
    let mut place = 0;
    for (crop, &tokens) in (first_crop..).zip(&student.tokens) {
        let weight = (1.0 / (batch as f64 * tokens as f64 * pair_count)) as f32;
        let rows = batch * tokens;
        let others = (0..TEACHER_CROPS).filter(|&other| other != crop).count();
        for row in 0..rows {
            let of_row = (0..others).map(|other| matched[place + other * rows + row] as usize);
            pairs.push(of_row.map(|teacher| (teacher, weight)));
        }
        place += others * rows;
    }
    pairs
}
