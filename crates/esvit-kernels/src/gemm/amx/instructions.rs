//! Tiles in the registers of the processor.
//!
//! The compiler uses no tile registers, since no type lives in them, so what one operation leaves
//! there is what the next one finds: like the configuration of the tiles, it is the thread's own, and
//! the operating system keeps both when it changes threads. Nothing else in the process may configure
//! or release tiles on a thread that computes here.

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use super::tiles::{OPERANDS, ROW_BYTES, SIDE, TILES, TileUnit};

/// AMX with BF16, configured for the current thread.
#[derive(Debug)]
pub(in crate::gemm) struct Instructions {
    /// Not to be sent to a thread whose tiles are not configured.
    of_thread: PhantomData<*const ()>,
}

/// What `ldtilecfg` reads: the palette (byte 0), bytes a row (from byte 16 on, two for each tile) and
/// rows (from byte 48 on).
#[repr(C, align(64))]
struct TileConfig([u8; 64]);

/// All tiles of palette 1 at their full size.
static CONFIG: TileConfig = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < TILES {
        bytes[16 + 2 * tile] = ROW_BYTES as u8;
        bytes[48 + tile] = SIDE as u8;
        tile += 1;
    }
    TileConfig(bytes)
};

thread_local! {
    static IS_CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// An instruction on tiles. All tiles are declared as overwritten, so that none is ever taken to
/// hold something of the compiler's.
macro_rules! tile_instruction {
    ([$($option:ident),*] $($argument:tt)*) => {
        asm!(
            $($argument)*,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags $(, $option)*)
        )
    };
}

impl TileUnit for Instructions {
    unsafe fn new(_: [Range<usize>; OPERANDS]) -> Self {
        if !IS_CONFIGURED.get() {
            // SAFETY: the caller says that the process may use AMX; 64 bytes are read, which are a
            // valid configuration.
            unsafe { tile_instruction!([readonly] "ldtilecfg [{}]", in(reg) CONFIG.0.as_ptr()) };
            IS_CONFIGURED.set(true);
        }
        Self { of_thread: PhantomData }
    }

    #[inline(always)]
    fn zero<const TILE: usize>(&mut self) {
        // SAFETY: a unit exists, so the process may use AMX and the thread's tiles are configured.
        unsafe { tile_instruction!([nomem] "tilezero tmm{tile}", tile = const TILE) };
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize) {
        // SAFETY: as above; the caller says that the rows may be read.
        unsafe {
            tile_instruction!(
                [readonly] "tileloadd tmm{tile}, [{first} + {stride}]",
                tile = const TILE,
                first = in(reg) first,
                stride = in(reg) stride
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize) {
        // SAFETY: as above; the caller says that the rows may be written.
        unsafe {
            tile_instruction!(
                [] "tilestored [{first} + {stride}], tmm{tile}",
                tile = const TILE,
                first = in(reg) first,
                stride = in(reg) stride
            );
        }
    }

    #[inline(always)]
    fn multiply<const SUMS: usize, const LHS: usize, const RHS: usize>(&mut self) {
        // SAFETY: as above.
        unsafe {
            tile_instruction!(
                [nomem] "tdpbf16ps tmm{sums}, tmm{lhs}, tmm{rhs}",
                sums = const SUMS,
                lhs = const LHS,
                rhs = const RHS
            );
        }
    }
}
