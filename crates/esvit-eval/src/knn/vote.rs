//! Weighted voting of neighbors.

use rayon::prelude::*;

use super::{Accuracy, Neighbor};
use crate::probe::ClassAccuracy;

/// Accuracy for each k in `ks`, from the neighbors of each query in descending order of similarity.
/// Classes are ranked by their votes, equal ones by class index. A class without votes has no rank:
/// a query of it counts as wrong, also among the first five.
pub fn accuracies(
    neighbors: &[Vec<Neighbor>],
    train_labels: &[u32],
    query_labels: &[u32],
    ks: &[usize],
    temperature: f64,
) -> Vec<Accuracy> {
    let accuracy = |&k: &usize| {
        let rank = |(found, &label): (&Vec<Neighbor>, &u32)| {
            let votes = votes(&found[..k.min(found.len())], train_labels, temperature);
            rank(&votes, label).unwrap_or(usize::MAX)
        };
        let ranks: Vec<usize> = neighbors.par_iter().zip(query_labels).map(rank).collect();
        let ClassAccuracy { top1, top5, .. } = ClassAccuracy::of_ranks(&ranks);
        Accuracy { k, neighbors: k.min(train_labels.len()), top1, top5 }
    };
    ks.iter().map(accuracy).collect()
}

/// Sums of votes `(class, sum)`, for classes with any. All are divided by the vote of the nearest
/// neighbor, which keeps them finite at any temperature.
fn votes(neighbors: &[Neighbor], labels: &[u32], temperature: f64) -> Vec<(u32, f64)> {
    let mut votes: Vec<(u32, f64)> = Vec::new();
    let nearest = neighbors.first().map_or(0.0, |nearest| f64::from(nearest.similarity));
    for neighbor in neighbors {
        let class = labels[neighbor.row];
        let vote = ((f64::from(neighbor.similarity) - nearest) / temperature).exp();
        match votes.iter_mut().find(|(known, _)| *known == class) {
            Some((_, sum)) => *sum += vote,
            None => votes.push((class, vote)),
        }
    }
    votes
}

/// Rank of `label`, from 0, among the classes with votes; `None` if it has none.
fn rank(votes: &[(u32, f64)], label: u32) -> Option<usize> {
    let &(_, own) = votes.iter().find(|(class, _)| *class == label)?;
    let before = |&&(class, sum): &&(u32, f64)| sum > own || (sum == own && class < label);
    Some(votes.iter().filter(before).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_classes_with_and_without_votes() {
        let neighbor = |row| Neighbor { row, similarity: 1.0 };
        let labels = [4, 2, 2, 9, 7];
        let votes = votes(&[0, 1, 2].map(neighbor), &labels, 1.0);
        // 2 has two votes, 4 has one; 7 and 9 have none, 3 and 10 are of no training image.
        assert_eq!([2, 4].map(|label| rank(&votes, label)), [Some(0), Some(1)]);
        assert_eq!([7, 9, 3, 10].map(|label| rank(&votes, label)), [None; 4]);
    }

    /// Two classes at hand and five places: neither a class of the gallery that no neighbor has nor
    /// one of no training image is among the first five.
    #[test]
    fn a_class_without_a_vote_is_never_right() {
        let neighbors = [0, 1].map(|row| Neighbor { row, similarity: 0.9 - 0.1 * row as f32 });
        let found = |label, k| {
            let of = accuracies(&[neighbors.to_vec()], &[3, 4, 5], &[label], &[k], 0.07);
            [of[0].top1, of[0].top5]
        };
        assert_eq!([found(3, 2), found(4, 2)], [[100.0, 100.0], [0.0, 100.0]]);
        assert_eq!([5, 0, 1000].map(|label| found(label, 2)), [[0.0, 0.0]; 3]);
        // Of one vote there is one class.
        assert_eq!([found(3, 1), found(4, 1)], [[100.0, 100.0], [0.0, 0.0]]);
    }

    #[test]
    fn more_neighbors_than_there_are_is_all_of_them() {
        let neighbors = [0, 1].map(|row| Neighbor { row, similarity: 0.9 });
        let found = accuracies(&[neighbors.to_vec()], &[3, 4], &[3], &[1, 2, usize::MAX], 0.07);
        let used: Vec<_> = found.iter().map(|of| (of.k, of.neighbors)).collect();
        assert_eq!(used, [(1, 1), (2, 2), (usize::MAX, 2)]);
    }

    /// exp(0.9 / 1e-3) is beyond f64; as an infinite vote it would be tied with any other.
    #[test]
    fn votes_stay_finite_at_a_low_temperature() {
        let neighbors = [(0, 0.9), (1, 0.85)].map(|(row, similarity)| Neighbor { row, similarity });
        for temperature in [1e-3, 1e-100, f64::MIN_POSITIVE] {
            let top1 = |label| {
                accuracies(&[neighbors.to_vec()], &[7, 3], &[label], &[2], temperature)[0].top1
            };
            assert_eq!((top1(7), top1(3)), (100.0, 0.0), "{temperature}");
        }
    }

    #[test]
    fn equal_votes_count_in_the_order_of_the_classes() {
        let neighbor = |row| Neighbor { row, similarity: 0.5 };
        let votes = votes(&[0, 1].map(neighbor), &[7, 3], 1.0);
        assert_eq!([3, 7].map(|label| rank(&votes, label)), [Some(0), Some(1)]);
    }

    /// One neighbor that is nearer by 0.1 outweighs exp(0.1 / 0.07) = 4.17 others, of those asked.
    #[test]
    fn the_nearest_of_k_vote_by_the_temperature() {
        let neighbors = |others: usize| {
            let similarity = |row| if row == 0 { 0.9 } else { 0.8 };
            vec![(0..=others).map(|row| Neighbor { row, similarity: similarity(row) }).collect()]
        };
        let top1 = |others, k, temperature| {
            let labels: Vec<u32> = (0..=others as u32).map(|row| row.min(1)).collect();
            accuracies(&neighbors(others), &labels, &[0], &[k], temperature)[0].top1
        };
        assert_eq!([top1(4, 5, 0.07), top1(5, 6, 0.07)], [100.0, 0.0]);
        assert_eq!([top1(2, 3, 0.14), top1(3, 4, 0.14)], [100.0, 0.0]);
        assert_eq!([top1(9, 4, 0.07), top1(9, 100, 0.07)], [100.0, 0.0]);
    }

    #[test]
    fn a_class_in_the_fifth_place_is_among_the_first_five() {
        let neighbors: Vec<Neighbor> =
            (0..6).map(|row| Neighbor { row, similarity: 1.0 - 0.1 * row as f32 }).collect();
        let top5 = |label| {
            accuracies(std::slice::from_ref(&neighbors), &[0, 1, 2, 3, 4, 5], &[label], &[6], 0.07)
                [0]
            .top5
        };
        assert_eq!((top5(4), top5(5)), (100.0, 0.0));
    }
}
