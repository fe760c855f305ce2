//! Settings that must change nothing, and some that must.

use crate::place::{Place, TINY, tensors};

/// Tensors of the last checkpoint and losses of a run with some settings.
fn result(settings: &str) -> (impl PartialEq + use<>, Vec<(u64, f64)>) {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=2 train.log_every=1 {settings}"));
    let run = place.folder("run");
    (tensors(&run.newest()), run.losses())
}

#[test]
fn loader_threads_change_nothing_and_the_seed_changes_everything() {
    let (one, one_losses) = result("data.workers=1");
    let (two, two_losses) = result("data.workers=2 data.prefetch=5 data.cache_mb=0");
    assert_eq!(one_losses, two_losses);
    assert!(one == two, "other weights with two loader threads");
    let (other, other_losses) = result("data.workers=1 seed=2");
    assert!(other != one, "the same weights with another seed");
    assert!(one_losses.iter().zip(&other_losses).all(|(one, other)| one.1 != other.1));
}

#[test]
fn accumulated_batches_have_the_loss_of_one_large_batch() {
    let (_, whole) = result("train.batch_size=4");
    let (_, parts) = result("train.batch_size=2 train.accumulate=2");
    assert_eq!(whole.len(), parts.len());
    let (whole, parts) = (whole[0].1, parts[0].1);
    assert!((whole - parts).abs() < 1e-4 * whole, "{whole} in one batch, {parts} in two parts");
}
