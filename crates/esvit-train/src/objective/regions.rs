//! Regions of a view and those that they learn from: of every token the matches among the tokens of the
//! other global views.

use std::ops::Range;

use esvit_nn::Tensor;
use esvit_nn::ops::{self, MatchGroup, TeacherRows};
use esvit_settings::words;
use serde::{Deserialize, Serialize};

use super::GLOBAL_VIEWS;
use super::pairs::others;
use super::sinkhorn::assignments;

/// What a region learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// The most similar token, as EsViT does.
    #[default]
    Argmax,
    /// All tokens, by their shares in the optimal transport between both views, whose cost is one minus the
    /// cosine similarity.
    Sinkhorn,
}

words! {
    Matching: "argmax", "sinkhorn";
}

/// Backbone features of the tokens of some views, which are matched by cosine similarity.
#[derive(Debug, Clone)]
pub struct Regions {
    /// `[sum over views of B * T, C]`: view by view, image by image, token by token.
    pub features: Tensor,
    /// Tokens per image, T, of every view.
    pub tokens: Vec<usize>,
}

/// Entropic regularization of the transport: the temperature of cosine similarities.
pub const TRANSPORT_EPSILON: f64 = 0.05;
/// How often both sides of the transport are scaled.
pub const TRANSPORT_ITERATIONS: usize = 3;

/// The teacher's rows that each region of the student learns from, in the global views other than its own.
/// Their weights add up to `1 / (B T pair_count)` in each of these views, so that a loss is the mean over
/// regions, images and the `pair_count` pairs of views. `first_view` is the student's first view. No
/// gradient.
pub fn pairs(
    student: &Regions,
    teacher: &Regions,
    batch: usize,
    first_view: usize,
    pair_count: f64,
    matching: Matching,
) -> TeacherRows {
    let groups = groups(&student.tokens, teacher.tokens[0], batch, first_view);
    let weights = student.tokens.iter().flat_map(|&tokens| {
        let weight = (1.0 / (batch as f64 * tokens as f64 * pair_count)) as f32;
        std::iter::repeat_n(weight, batch * tokens)
    });
    let weights: Vec<f32> = weights.collect();
    let shape = [weights.len(), 1];
    let weights = Tensor::new(weights, shape, &student.features.device());
    match matching {
        Matching::Argmax => {
            let (queries, keys) = (&student.features, &teacher.features);
            let rows = ops::best_matches(queries, keys, &groups, GLOBAL_VIEWS);
            TeacherRows { weights: weights.expand(rows.shape()), rows }
        }
        Matching::Sinkhorn => {
            let found = transport(student, teacher, &groups);
            TeacherRows { weights: found.weights * weights, ..found }
        }
    }
}

/// For every image of every view of the student, the tokens of the same image in each global view other
/// than that one: one group a pair of views, in a column of its own.
fn groups(
    tokens: &[usize],
    teacher_tokens: usize,
    batch: usize,
    first_view: usize,
) -> Vec<MatchGroup> {
    let mut groups = Vec::new();
    let mut start = 0;
    for (view, &tokens) in (first_view..).zip(tokens) {
        for image in 0..batch {
            let queries = start + image * tokens..start + (image + 1) * tokens;
            for (column, other) in others(view).enumerate() {
                let among = (other * batch + image) * teacher_tokens;
                let (queries, keys) = (queries.clone(), among..among + teacher_tokens);
                groups.push(MatchGroup { queries, keys, column });
            }
        }
        start += batch * tokens;
    }
    groups
}

/// All rows of every group with their shares in the optimal transport of its queries to its keys, whose
/// cost is one minus the cosine similarity: of a query they add up to 1, and all keys have as much in sum
/// (with more iterations exactly). Entropically regularized, by Sinkhorn and Knopp's iteration; see
/// [`assignments`].
///
/// Source: Cuturi, "Sinkhorn Distances" (NeurIPS 2013). EsViT's authors tried a transport in place of the
/// argmax.
fn transport(student: &Regions, teacher: &Regions, groups: &[MatchGroup]) -> TeacherRows {
    let (keys, device) = (teacher.tokens[0], student.features.device());
    let [queries, all_keys] =
        [student, teacher].map(|regions| ops::l2_normalize(regions.features.clone().detach()));
    let part = |rows: &Tensor, of: &Range<usize>| rows.clone().narrow(0, of.start, of.len());
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for of_image in groups.chunk_by(|a, b| a.queries == b.queries) {
        let count = of_image[0].queries.len();
        let own = part(&queries, &of_image[0].queries);
        let mut columns: Vec<Tensor> = of_image
            .iter()
            .map(|group| {
                let scores = own.clone().matmul(part(&all_keys, &group.keys).transpose());
                assignments(scores, TRANSPORT_EPSILON, TRANSPORT_ITERATIONS)
            })
            .collect();
        columns.resize_with(GLOBAL_VIEWS, || Tensor::zeros([count, keys], &device));
        weights.push(Tensor::cat(columns, 1));
        let mut listed: Vec<i32> =
            of_image.iter().flat_map(|group| group.keys.clone().map(|key| key as i32)).collect();
        listed.resize(GLOBAL_VIEWS * keys, -1);
        rows.extend(listed.repeat(count));
    }
    let weights = Tensor::cat(weights, 0);
    TeacherRows { rows: Tensor::new(rows, weights.shape(), &device), weights }
}
