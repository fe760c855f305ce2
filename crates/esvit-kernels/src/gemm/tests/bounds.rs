//! Operands between pages that may not be accessed: a kernel that reads or writes beyond one of them
//! ends the process.

use std::arch::asm;
use std::ops::{Deref, DerefMut};

use super::*;

const PAGE: usize = 4096;

/// Linux's system calls and their flags.
const MMAP: isize = 9;
const MPROTECT: isize = 10;
const MUNMAP: isize = 11;
const READ_AND_WRITE: usize = 3;
const PRIVATE_AND_ANONYMOUS: usize = 0x22;

/// # Safety
/// That of the system call.
unsafe fn system_call(number: isize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let mut answer = number;
    // SAFETY: the caller's; `syscall` itself overwrites RCX and R11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    answer
}

/// Values that begin right behind one such page, or end right before another.
struct Guarded<T> {
    first_page: usize,
    bytes: usize,
    values: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    fn new(values: &[T], ends: bool) -> Self {
        let size = size_of_val(values);
        let pages = size.next_multiple_of(PAGE).max(PAGE);
        let bytes = pages + 2 * PAGE;
        // SAFETY: new memory, of which only pages between the first and the last may be accessed.
        let first_page = unsafe {
            let mapped = system_call(MMAP, [0, bytes, 0, PRIVATE_AND_ANONYMOUS, usize::MAX, 0]);
            assert!(mapped > 0, "new memory");
            let inner = mapped as usize + PAGE;
            assert_eq!(system_call(MPROTECT, [inner, pages, READ_AND_WRITE, 0, 0, 0]), 0);
            mapped as usize
        };
        let at = first_page + PAGE + if ends { pages - size } else { 0 };
        let to = std::ptr::with_exposed_provenance_mut::<T>(at);
        // SAFETY: room for as many values between the pages, aligned as a page or as its end less a
        // whole number of values.
        unsafe { to.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Self { first_page, bytes, values: to, len: values.len() }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: as many values lie there, for as long as this does.
        unsafe { std::slice::from_raw_parts(self.values, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and they are this one's own.
        unsafe { std::slice::from_raw_parts_mut(self.values, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the memory that `new` has mapped.
        unsafe { system_call(MUNMAP, [self.first_page, self.bytes, 0, 0, 0, 0]) };
    }
}

/// A GEMM with operands between such pages, against its definition. Between the rows of the output
/// nothing is written.
fn within_bounds<T: Element>([m, k_steps, width]: [usize; 3], transposed: bool, ends: bool) {
    let k = k_steps * T::K_PACK;
    let guarded = |n: usize, stream: u64| {
        let stored: Vec<T> = values(n, stream).into_iter().map(T::from_f32).collect();
        Guarded::new(&stored, ends)
    };
    let row_stride = if transposed { k } else { k + 2 * T::K_PACK };
    let lhs_values = guarded((m - 1) * row_stride + k, 1);
    let lhs = match transposed {
        true => Lhs::from_transposed(&lhs_values, m),
        false => Lhs::from_rows(&lhs_values, row_stride),
    };
    let rhs = guarded(k * width, 2);
    let bias = Guarded::new(&values(width, 3), ends);
    let dims = Dims { m, k_steps };
    let out_row = width + 5;
    for (bias, add) in [(None, false), (Some(&bias[..]), false), (None, true), (Some(&bias), true)]
    {
        let panel = RhsPanel { values: &rhs[..], k_stride: width * T::K_PACK, width, bias };
        let mut out = Guarded::new(&vec![0.25; (m - 1) * out_row + width], ends);
        T::gemm(lhs, panel, dims, &mut Output { values: &mut out, row_stride: out_row }, add);
        for (i, row) in out.chunks(out_row).enumerate() {
            for (j, &found) in row.iter().enumerate() {
                let term = |l: usize| {
                    let (step, of_pair) = (l / T::K_PACK, l % T::K_PACK);
                    let x = lhs.values[i * lhs.row_stride + step * lhs.k_stride + of_pair];
                    let w = rhs[(step * width + j) * T::K_PACK + of_pair];
                    f64::from(x.to_f32()) * f64::from(w.to_f32())
                };
                let mut expected = 0.25;
                if j < width {
                    let before = if add { 0.25 } else { 0.0 };
                    let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
                    expected = before + bias + (0..k).map(term).sum::<f64>();
                }
                let near = (f64::from(found) - expected).abs() < 1e-4 * expected.abs().max(1.0);
                assert!(near, "{} {m} x {k} x {width}, {i} {j}: {found} {expected}", T::NAME);
            }
        }
    }
}

#[test]
fn nothing_beyond_the_operands() {
    under_each(|_| {
        for shape in [
            [1, 1, 16],
            [15, 15, 48],
            [16, 16, 64],
            [17, 17, 16],
            [31, 33, 32],
            [33, 32, 64],
            [49, 25, 32],
            [193, 7, 48],
            [50, 270, 64],
        ] {
            for (transposed, ends) in [(false, true), (true, true), (false, false), (true, false)] {
                within_bounds::<f32>(shape, transposed, ends);
                within_bounds::<Bf16>(shape, transposed, ends);
                within_bounds::<Bf16x3>(shape, transposed, ends);
            }
        }
    });
}
