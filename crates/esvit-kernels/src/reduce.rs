//! Deterministic reduction of per-task partial sums.

use std::ops::Deref;

/// Adds `N` vectors of partial sums, of lengths `lens`, in task order: the result does not depend on
/// the number of threads.
pub(crate) fn sum_in_order<P: Deref<Target = [f32]>, const N: usize>(
    parts: Vec<[P; N]>,
    lens: [usize; N],
) -> [Vec<f32>; N] {
    let mut totals = lens.map(|len| vec![0.0; len]);
    for part in parts {
        for (total, part) in totals.iter_mut().zip(part) {
            total.iter_mut().zip(part.iter()).for_each(|(total, part)| *total += part);
        }
    }
    totals
}
