//! GEMM loops and register tiles (microkernels), shared by all instruction sets. A tile of MR rows
//! by some registers of columns is accumulated in registers: each RHS load serves all MR rows, each
//! LHS broadcast all columns.

/// Operand pointers and strides of one tile.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub(super) lhs: *const T,
    pub(super) lhs_row_stride: usize,
    pub(super) lhs_k_stride: usize,
    pub(super) rhs: *const T,
    pub(super) rhs_k_stride: usize,
    /// Initial accumulators; null for zero.
    pub(super) bias: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_row_stride: usize,
    pub(super) k_steps: usize,
}

/// Defines a GEMM function: the loops over K blocks, tiles of rows and groups of columns around one
/// microkernel, `tile::<MR, VECTORS>`.
///
/// `$vector` is a module of the register type: how many `LANES` it has, and its `zero`, `load`,
/// `add` and `store`. `$block` is KC. `($vectors, $rows, [..])` lists tile widths in registers,
/// widest first, each with its MR and the row counts of partial tiles. A panel is one group of
/// columns, or all its groups have the same MR. `$rhs` loads a register of the panel, `$lhs`
/// broadcasts an LHS value, `$fma(a, b, sum)` multiplies and adds.
macro_rules! gemm {
    (
        $name:ident, $feature:literal, $element:ty, $vector:ident, $block:expr,
        [$(($vectors:literal, $rows:literal, [$($rest:literal),*])),+],
        $rhs:expr, $lhs:expr, $fma:expr
    ) => {
        /// # Safety
        /// The machine has the features, and the operands reach as far as `check` demands.
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn $name(
            lhs: &Lhs<'_, $element>,
            panel: &RhsPanel<'_, $element>,
            dims: Dims,
            out: &mut Output<'_>,
            add: bool,
        ) {
            /// # Safety
            /// The machine has the features; `MR` rows and `VECTORS` registers of columns at the
            /// tile's pointers lie within the operands for all of its steps.
            #[target_feature(enable = $feature)]
            #[inline]
            unsafe fn tile<const MR: usize, const VECTORS: usize>(
                tile: Tile<$element>,
                add: bool,
            ) {
                let mut sums = [[$vector::zero(); VECTORS]; MR];
                if !tile.bias.is_null() {
                    for sums in &mut sums {
                        for (vector, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: there is a bias for every column.
                            *sum = unsafe { $vector::load(tile.bias.add(vector * $vector::LANES)) };
                        }
                    }
                }
                let (mut lhs, mut rhs) = (tile.lhs, tile.rhs);
                for _ in 0..tile.k_steps {
                    let mut columns = [$rhs(rhs); VECTORS];
                    for (vector, column) in columns.iter_mut().enumerate().skip(1) {
                        // SAFETY: the panel has `VECTORS` registers of columns at this step.
                        *column = $rhs(unsafe { rhs.add(vector * $vector::LANES * K_PACK) });
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: the LHS has `MR` rows at this step.
                        let value = $lhs(unsafe { lhs.add(row * tile.lhs_row_stride) });
                        for (sum, column) in sums.iter_mut().zip(&columns) {
                            *sum = $fma(value, *column, *sum);
                        }
                    }
                    lhs = lhs.wrapping_add(tile.lhs_k_stride);
                    rhs = rhs.wrapping_add(tile.rhs_k_stride);
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (vector, sum) in sums.iter().enumerate() {
                        // SAFETY: the output has these rows and columns.
                        unsafe {
                            let at = row * tile.out_row_stride + vector * $vector::LANES;
                            let to = tile.out.add(at);
                            let sum = if add { $vector::add($vector::load(to), *sum) } else { *sum };
                            $vector::store(to, sum);
                        }
                    }
                }
            }

            const K_PACK: usize = <$element as Element>::K_PACK;
            if dims.k_steps == 0 {
                bias_only(panel, dims.m, out, add);
            }
            // All groups of columns of a panel have the same MR.
            let registers = panel.width / $vector::LANES;
            let rows_of_tile = 'rows: {
                $( if registers >= $vectors { break 'rows $rows; } )+
                unreachable!("a panel is a whole number of registers wide");
            };
            for block in k_blocks(dims.k_steps, $block) {
                let add = add || block.start > 0;
                let bias = panel.bias.filter(|_| block.start == 0);
                let mut row = 0;
                while row < dims.m {
                    let rows = rows_of_tile.min(dims.m - row);
                    // The tile's LHS rows stay in L1 for all columns of the panel, and the K block
                    // of the panel for all rows.
                    let mut column = 0;
                    while column < panel.width {
                        // SAFETY: the tile starts at row `row`, step `block.start` and column
                        // `column`, all within what `check` has checked.
                        let at = unsafe {
                            Tile {
                                lhs: lhs
                                    .values
                                    .as_ptr()
                                    .add(row * lhs.row_stride + block.start * lhs.k_stride),
                                lhs_row_stride: lhs.row_stride,
                                lhs_k_stride: lhs.k_stride,
                                rhs: panel
                                    .values
                                    .as_ptr()
                                    .add(block.start * panel.k_stride + column * K_PACK),
                                rhs_k_stride: panel.k_stride,
                                bias: bias.map_or(std::ptr::null(), |bias| {
                                    bias.as_ptr().add(column)
                                }),
                                out: out.values.as_mut_ptr().add(row * out.row_stride + column),
                                out_row_stride: out.row_stride,
                                k_steps: block.len(),
                            }
                        };
                        $(
                            if registers - column / $vector::LANES >= $vectors {
                                // SAFETY: `rows` rows and `$vectors` registers of columns lie
                                // within the operands.
                                unsafe {
                                    match rows {
                                        $($rest => tile::<$rest, $vectors>(at, add),)*
                                        _ => tile::<$rows, $vectors>(at, add),
                                    }
                                }
                                column += $vectors * $vector::LANES;
                                continue;
                            }
                        )+
                        unreachable!("a panel is a whole number of registers wide");
                    }
                    row += rows;
                }
            }
        }
    };
}
pub(super) use gemm;
