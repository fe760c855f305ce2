//! Huge pages for buffers. A forward pass reads each weight once for some hundred rows, so that with pages of
//! 4 KiB it waits for the page table at every 64th cache line: for up to a tenth of its time in a virtual
//! machine, whose tables have twice as many levels.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a huge page.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// Smaller buffers are not worth filling up a huge page.
#[cfg(target_os = "linux")]
const LEAST: usize = 256 << 10;

static WANTED: AtomicBool = AtomicBool::new(false);

/// Buffers that are allocated from now on lie on huge pages, where the system has them (Linux): for processes
/// that run forward passes alone, which take 3 to 10 % less time and 10 to 20 MB more. Training takes as long
/// with them, and more memory.
pub fn enable() {
    WANTED.store(true, Ordering::Relaxed);
}

/// Asks for huge pages under memory that was not written yet, if they are wanted.
pub(crate) fn advise<T>(memory: &mut [MaybeUninit<T>]) {
    if WANTED.load(Ordering::Relaxed) {
        ask(memory);
    }
}

/// The system is free to decline, and all works without huge pages, too.
#[cfg(target_os = "linux")]
fn ask<T>(memory: &mut [MaybeUninit<T>]) {
    use rustix::mm::{Advice, madvise};

    let range = memory.as_mut_ptr_range();
    if size_of_val(memory) < LEAST {
        return;
    }
    let first = range.start.addr() / HUGE_PAGE * HUGE_PAGE;
    let end = range.end.addr().next_multiple_of(HUGE_PAGE);
    let start = range.start.with_addr(first).cast();
    // SAFETY: this advice changes no contents, neither of the buffer nor of what else lies on its pages.
    _ = unsafe { madvise(start, end - first, Advice::LinuxHugepage) };
}

/// Other systems choose the sizes of pages by themselves.
#[cfg(not(target_os = "linux"))]
fn ask<T>(_: &mut [MaybeUninit<T>]) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// Whether the system says of the mapping with this address that huge pages are advised ("hg").
    fn is_advised(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut within = false;
        for line in maps.lines() {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let range =
                range.map(|(first, end)| [first, end].map(|at| usize::from_str_radix(at, 16)));
            if let Some([Ok(first), Ok(end)]) = range {
                within = (first..end).contains(&address);
            }
            if within && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().any(|flag| flag == "hg");
            }
        }
        false
    }

    #[test]
    fn buffers_lie_on_huge_pages_where_they_are_wanted() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let mut memory = Vec::<f32>::with_capacity(8 * HUGE_PAGE / size_of::<f32>());
        let middle = memory.as_ptr().addr() + 4 * HUGE_PAGE;
        advise(memory.spare_capacity_mut());
        assert!(!is_advised(middle), "not wanted");
        ask(&mut memory.spare_capacity_mut()[..16]);
        assert!(!is_advised(memory.as_ptr().addr()), "small");
        ask(memory.spare_capacity_mut());
        assert!(is_advised(middle));
    }
}
