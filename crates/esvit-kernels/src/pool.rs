//! The thread pool of the kernels.

/// Runs `work` on a thread of the pool. Kernels called from there split their work without the
/// handover from an outside thread, which costs more than a small kernel takes.
pub fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Threads of the pool: one per core, unless the program has chosen another number.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_runs_in_the_pool() {
        assert_eq!(super::run(|| rayon::current_thread_index().map(|_| 7)), Some(7));
    }
}
