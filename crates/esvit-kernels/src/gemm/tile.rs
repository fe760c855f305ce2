//! The loops that the products of all instruction sets are made of. A tile of rows and registers of
//! columns is summed in registers; the loads of the strip serve all rows of the tile, the broadcasts
//! of the left operand all columns.

/// Pointers into the operands at one tile.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub(super) left: *const T,
    pub(super) left_row: usize,
    pub(super) left_step: usize,
    pub(super) right: *const T,
    pub(super) right_step: usize,
    /// What sums begin with; null for zero.
    pub(super) bias: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    pub(super) steps: usize,
}

/// Defines `multiply` functions: the loops over blocks of steps, groups of columns and tiles of
/// rows around one tile function `tile::<ROWS, VECTORS>`.
///
/// `$lanes` are the columns of a register, `$block` the most steps of a block; `($vectors, $rows,
/// [..])` lists the groups of columns, widest first, with the rows of a full tile and of what may be
/// left over. A strip of up to four AVX-512 registers is one group, or its groups have tiles of equal
/// height.
macro_rules! gemm {
    (
        $name:ident, $feature:literal, $element:ty, $pair:literal, $lanes:literal, $block:expr,
        $tile:ident, [$(($vectors:literal, $rows:literal, [$($rest:literal),*])),+]
    ) => {
        /// # Safety
        /// The machine has the features, and the operands reach as far as `check` demands.
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn $name(
            left: Left<'_, $element>,
            strip: Strip<'_, $element>,
            extent: Extent,
            out: &mut Out<'_>,
            add: bool,
        ) {
            if extent.steps == 0 {
                without_steps(&strip, extent.rows, out, add);
            }
            // All groups of columns of a strip have tiles of as many rows.
            let registers = strip.width / $lanes;
            let rows_of_tile = 'rows: {
                $( if registers >= $vectors { break 'rows $rows; } )+
                unreachable!("a strip is a whole number of registers wide");
            };
            for block in blocks(extent.steps, $block) {
                let add = add || block.start > 0;
                let bias = strip.bias.filter(|_| block.start == 0);
                let mut row = 0;
                while row < extent.rows {
                    let rows = rows_of_tile.min(extent.rows - row);
                    // The tile's rows stay in the first-level cache for all columns of the strip,
                    // and the block of the strip for all rows.
                    let mut column = 0;
                    while column < strip.width {
                        // SAFETY: the tile starts at row `row`, step `block.start` and column
                        // `column`, all within what `check` has checked.
                        let tile = unsafe {
                            Tile {
                                left: left
                                    .values
                                    .as_ptr()
                                    .add(row * left.row + block.start * left.step),
                                left_row: left.row,
                                left_step: left.step,
                                right: strip
                                    .values
                                    .as_ptr()
                                    .add(block.start * strip.step + column * $pair),
                                right_step: strip.step,
                                bias: bias.map_or(std::ptr::null(), |bias| {
                                    bias.as_ptr().add(column)
                                }),
                                out: out.values.as_mut_ptr().add(row * out.row + column),
                                out_row: out.row,
                                steps: block.len(),
                            }
                        };
                        $(
                            if registers - column / $lanes >= $vectors {
                                // SAFETY: `rows` rows and `$vectors` registers of columns lie
                                // within the operands.
                                unsafe {
                                    match rows {
                                        $($rest => $tile::<$rest, $vectors>(tile, add),)*
                                        _ => $tile::<$rows, $vectors>(tile, add),
                                    }
                                }
                                column += $vectors * $lanes;
                                continue;
                            }
                        )+
                        unreachable!("a strip is a whole number of registers wide");
                    }
                    row += rows;
                }
            }
        }
    };
}

pub(super) use gemm;

/// Defines a tile function. `$zero`, `$load`, `$add`, `$store` work on sums, `$right` loads a
/// register of the strip, `$left` broadcasts a value, `$fma` multiplies and adds.
macro_rules! tile {
    (
        $name:ident, $feature:literal, $element:ty, $pair:literal, $lanes:literal,
        $zero:expr, $load:expr, $add:expr, $store:expr, $right:expr, $left:expr, $fma:expr
    ) => {
        /// # Safety
        /// The machine has the features; `ROWS` rows and `VECTORS` registers of columns at the
        /// tile's pointers lie within the operands for all of its steps.
        #[target_feature(enable = $feature)]
        #[inline]
        unsafe fn $name<const ROWS: usize, const VECTORS: usize>(tile: Tile<$element>, add: bool) {
            let mut sums = [[$zero; VECTORS]; ROWS];
            if !tile.bias.is_null() {
                for sums in &mut sums {
                    for (vector, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: there is a bias for every column.
                        *sum = unsafe { $load(tile.bias.add(vector * $lanes)) };
                    }
                }
            }
            let (mut left, mut right) = (tile.left, tile.right);
            for _ in 0..tile.steps {
                let mut columns = [$right(right); VECTORS];
                for (vector, column) in columns.iter_mut().enumerate().skip(1) {
                    // SAFETY: the strip has `VECTORS` registers of columns at this step.
                    *column = $right(unsafe { right.add(vector * $lanes * $pair) });
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the left operand has `ROWS` rows at this step.
                    let value = $left(unsafe { left.add(row * tile.left_row) });
                    for (sum, column) in sums.iter_mut().zip(&columns) {
                        *sum = $fma(value, *column, *sum);
                    }
                }
                left = left.wrapping_add(tile.left_step);
                right = right.wrapping_add(tile.right_step);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (vector, sum) in sums.iter().enumerate() {
                    // SAFETY: the output has these rows and columns.
                    unsafe {
                        let to = tile.out.add(row * tile.out_row + vector * $lanes);
                        $store(to, if add { $add($load(to), *sum) } else { *sum });
                    }
                }
            }
        }
    };
}
pub(super) use tile;
