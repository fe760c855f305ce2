//! Deterministic reduction of per-task partial sums.

use std::ops::Deref;

use rayon::prelude::*;

/// Adds `N` vectors of partial sums of every task, of lengths `lens`, in task order: the result does
/// not depend on the number of threads.
pub(crate) fn sum_in_order<P: Deref<Target = [f32]> + Send, const N: usize>(
    parts: impl IntoParallelIterator<Item = [P; N], Iter: IndexedParallelIterator>,
    lens: [usize; N],
) -> [Vec<f32>; N] {
    let parts: Vec<[P; N]> = parts.into_par_iter().collect();
    let mut totals = lens.map(|len| vec![0.0; len]);
    for part in parts {
        for (total, part) in totals.iter_mut().zip(part) {
            total.iter_mut().zip(part.iter()).for_each(|(total, part)| *total += part);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::sum_in_order;

    #[test]
    fn parts_are_added_one_by_one() {
        let parts = vec![
            [vec![1e8, 1.0], vec![1.0]],
            [vec![1.0, 2.0], vec![2.0]],
            [vec![-1e8, 3.0], vec![4.0]],
        ];
        // 1e8 + 1 is 1e8 in f32: another order would give 1.
        assert_eq!(sum_in_order(parts, [2, 1]), [vec![0.0, 6.0], vec![7.0]]);
        assert_eq!(sum_in_order(Vec::<[Vec<f32>; 1]>::new(), [2]), [vec![0.0; 2]]);
    }
}
