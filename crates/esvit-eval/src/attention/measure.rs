//! Measures of attention distributions: entropy, divergence, and thresholded masks.

/// Shannon entropy in bits, with `0 log 0 = 0`.
pub fn entropy(weights: &[f32]) -> f64 {
    weights.iter().fold(0.0, |sum, &weight| sum + neg_p_log_p(f64::from(weight)))
}

/// `-p log2 p`.
fn neg_p_log_p(p: f64) -> f64 {
    if p > 0.0 { -p * p.log2() } else { 0.0 }
}

/// Jensen-Shannon divergence in bits, from 0 (equal) to 1 (disjoint support). `entropies` are the
/// [`entropy`] of both.
pub fn jensen_shannon([p, q]: [&[f32]; 2], entropies: [f64; 2]) -> f64 {
    let middle = |(&p, &q): (&f32, &f32)| neg_p_log_p(0.5 * (f64::from(p) + f64::from(q)));
    let mixed: f64 = p.iter().zip(q).map(middle).sum();
    (mixed - 0.5 * (entropies[0] + entropies[1])).max(0.0)
}

/// The smallest set of cells with at least the share `mass` of the total weight, in descending
/// order of weight, ties by index. This is DINO's attention mask.
pub fn threshold_mask(weights: &[f32], mass: f64) -> Vec<usize> {
    let mut cells: Vec<usize> = (0..weights.len()).collect();
    cells.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    // The total is summed in the order of the loop below, so that a share of 1 is reached exactly.
    let total: f64 = cells.iter().map(|&cell| f64::from(weights[cell])).sum();
    let mut held = 0.0;
    let more = |&cell: &usize| {
        let wanted = held < mass * total;
        held += f64::from(weights[cell]);
        wanted
    };
    let count = cells.iter().copied().take_while(more).count();
    cells.truncate(count);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers in -1..1 of which the reference's fixtures are made.
    fn hash(stream: u32, i: u32) -> f64 {
        let mut x = i.wrapping_mul(2_654_435_761);
        x = x.wrapping_add(stream.wrapping_mul(40_503)).wrapping_add(12_345);
        for _ in 0..2 {
            x = (x ^ x >> 16).wrapping_mul(0x045d_9f3b);
        }
        f64::from(x ^ x >> 16) / 4_294_967_296.0 * 2.0 - 1.0
    }

    /// Fixture F5: `softmax(3 T(41, [2, 16]))`.
    #[test]
    fn entropy_and_mask_of_the_reference() {
        let rows: Vec<Vec<f32>> = (0..2u32)
            .map(|row| {
                let exp = |i| (3.0 * hash(41, 16 * row + i)).exp();
                let sum: f64 = (0..16).map(exp).sum();
                (0..16).map(|i| (exp(i) / sum) as f32).collect()
            })
            .collect();
        let mut first = threshold_mask(&rows[0], 0.6);
        first.sort_unstable();
        assert_eq!(first, [2, 15]);
        assert_eq!(threshold_mask(&rows[1], 0.6).len(), 4);
        for (row, expected) in rows.iter().zip([2.78824, 3.194]) {
            assert!((entropy(row) - expected).abs() < 1e-5, "{}", entropy(row));
        }
    }

    #[test]
    fn zeros_are_no_trouble() {
        assert_eq!(entropy(&[0.5, 0.0, 0.5, 0.0]), 1.0);
        assert_eq!(entropy(&[1.0]), 0.0);
        assert!(threshold_mask(&[0.0, 0.0], 0.6).is_empty());
    }

    #[test]
    fn a_mask_holds_enough_and_no_cell_too_many() {
        let weights: Vec<f32> = (0..50).map(|i| hash(7, i).abs() as f32).collect();
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for mass in [0.01, 0.3, 0.6, 0.99] {
            let set = threshold_mask(&weights, mass);
            let held = |cells: &[usize]| cells.iter().map(|&c| f64::from(weights[c])).sum::<f64>();
            assert!(held(&set) >= mass * total);
            assert!(held(&set[..set.len() - 1]) < mass * total);
        }
        assert_eq!(threshold_mask(&weights, 1.0).len(), 50);
        assert_eq!(threshold_mask(&[0.25, 0.5, 0.25], 0.6), [1, 0]);
    }

    #[test]
    fn divergence_is_between_none_and_one_bit() {
        let of = |p: &[f32], q: &[f32]| jensen_shannon([p, q], [entropy(p), entropy(q)]);
        assert_eq!(of(&[0.3, 0.7], &[0.3, 0.7]), 0.0);
        assert_eq!(of(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        // H(3/4, 1/4) - H(1/2, 1/2) / 2.
        assert!((of(&[1.0, 0.0], &[0.5, 0.5]) - 0.311_278_1).abs() < 1e-6);
    }
}
