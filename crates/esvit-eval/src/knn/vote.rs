//! Weighted voting of neighbors.

use rayon::prelude::*;

use super::{Accuracy, Neighbor};
use crate::probe::ClassAccuracy;

/// Accuracy for each k in `ks`, from the neighbors of each query in descending order of similarity.
/// Equal votes are ranked by class index.
pub fn accuracies(
    neighbors: &[Vec<Neighbor>],
    train_labels: &[u32],
    query_labels: &[u32],
    ks: &[usize],
    temperature: f64,
) -> Vec<Accuracy> {
    let mut classes = train_labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    let accuracy = |&k: &usize| {
        let rank = |(found, &label): (&Vec<Neighbor>, &u32)| {
            let votes = votes(&found[..k.min(found.len())], train_labels, temperature);
            rank(&votes, &classes, label)
        };
        let ranks: Vec<usize> = neighbors.par_iter().zip(query_labels).map(rank).collect();
        let ClassAccuracy { top1, top5, .. } = ClassAccuracy::of_ranks(&ranks);
        Accuracy { k, top1, top5 }
    };
    ks.iter().map(accuracy).collect()
}

/// Sums of votes `(class, sum)`, for classes with any.
fn votes(neighbors: &[Neighbor], labels: &[u32], temperature: f64) -> Vec<(u32, f64)> {
    let mut votes: Vec<(u32, f64)> = Vec::new();
    for neighbor in neighbors {
        let class = labels[neighbor.row];
        let vote = (f64::from(neighbor.similarity) / temperature).exp();
        match votes.iter_mut().find(|(known, _)| *known == class) {
            Some((_, sum)) => *sum += vote,
            None => votes.push((class, vote)),
        }
    }
    votes
}

/// Rank of `label` among the sorted `classes`, from 0.
fn rank(votes: &[(u32, f64)], classes: &[u32], label: u32) -> usize {
    match votes.iter().find(|(class, _)| *class == label) {
        Some(&(_, own)) => {
            votes.iter().filter(|&&(class, sum)| sum > own || (sum == own && class < label)).count()
        }
        None => {
            // A class without votes is tied with all others without votes.
            let before = classes.partition_point(|&class| class < label);
            let voted = votes.iter().filter(|(class, _)| *class < label).count();
            votes.len() + before - voted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_classes_with_and_without_votes() {
        let neighbor = |row| Neighbor { row, similarity: 1.0 };
        let labels = [4, 2, 2, 9, 7];
        let classes = [2, 4, 7, 9];
        let votes = votes(&[0, 1, 2].map(neighbor), &labels, 1.0);
        // 2 has two votes, 4 has one; of 7 and 9 the lower one comes first.
        assert_eq!([2, 4, 7, 9].map(|label| rank(&votes, &classes, label)), [0, 1, 2, 3]);
        // A class that no training image has comes after those of lower number.
        assert_eq!((rank(&votes, &classes, 3), rank(&votes, &classes, 10)), (2, 4));
    }

    #[test]
    fn equal_votes_count_in_the_order_of_the_classes() {
        let neighbor = |row| Neighbor { row, similarity: 0.5 };
        let votes = votes(&[0, 1].map(neighbor), &[7, 3], 1.0);
        assert_eq!([3, 7].map(|label| rank(&votes, &[3, 7], label)), [0, 1]);
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
