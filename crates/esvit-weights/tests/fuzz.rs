//! A short run of `examples/fuzz`.

#[path = "../examples/fuzz/mutate.rs"]
mod mutate;

#[test]
fn damaged_files_give_errors() {
    let fixtures = mutate::fixtures();
    let outcomes: Vec<_> =
        (0..5000).map(|seed| (seed, mutate::read(mutate::corrupt(&fixtures, seed)))).collect();
    for (seed, outcome) in &outcomes {
        assert!(!outcome.panicked, "seed {seed}");
        assert!(outcome.time.as_secs() < 10, "seed {seed} took {:?}", outcome.time);
    }
    // Some damage goes unseen, in the values of a tensor, but most does not.
    let opened = outcomes.iter().filter(|(_, outcome)| outcome.opened).count();
    assert!((100..4000).contains(&opened), "{opened}");
}
