//! The pool of threads that kernels share.

/// Runs `work` on a thread of the pool. Kernels that it calls then split their work without first
/// handing it over to the pool and waiting for it, which costs more than many a small kernel.
pub fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
