//! Comparisons within a tolerance.

/// Fails unless `found` is within `tolerance` of `expected`.
pub fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(difference <= tolerance, "{what}[{i}]: {found} instead of {expected}");
    }
}

/// Fails unless two lists differ by at most `tolerance` of the largest entry of the second.
pub fn assert_alike(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let expected: Vec<f64> = expected.iter().map(|&value| value.into()).collect();
    let largest = expected.iter().fold(1e-30, |largest, value| value.abs().max(largest));
    assert_close(what, found, &expected, tolerance * largest);
}
