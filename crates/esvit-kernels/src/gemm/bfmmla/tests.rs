use super::super::check;
use super::emulation::Emulation;
use super::*;
use crate::testing::normal;

fn values(n: usize, stream: u64) -> Vec<Bf16> {
    normal(n, stream).into_iter().map(Bf16::from_f32).collect()
}

/// A GEMM on checked operands.
fn checked<U: BlockUnit>(
    lhs: Lhs<'_, Bf16>,
    panel: RhsPanel<'_, Bf16>,
    dims: Dims,
    mut out: Output<'_>,
    add: bool,
) {
    check(&lhs, &panel, dims, &out);
    // SAFETY: tests take instructions where the machine has them alone.
    unsafe { gemm::<U>(&lhs, &panel, dims, &mut out, add) };
}

/// A GEMM with a panel among others against its definition, within the roundings of its sums. Between the
/// rows of the output nothing is written.
fn is_the_definition([m, k_steps, width]: [usize; 3], transposed: bool) {
    let k = k_steps * PAIR;
    let row_stride = if transposed { k } else { k + PAIR };
    let lhs_values = values((m - 1) * row_stride + k, 1);
    let lhs = match transposed {
        true => Lhs::from_transposed(&lhs_values, m),
        false => Lhs::from_rows(&lhs_values, row_stride),
    };
    let k_stride = (width + 16) * PAIR;
    let (rhs, bias) = (values(k_steps * k_stride, 2), normal(width, 3));
    let rhs = &rhs[16 * PAIR..];
    let out_row = width + 5;
    for (has_bias, add) in [(false, false), (true, false), (false, true), (true, true)] {
        let bias = has_bias.then_some(&bias[..]);
        let panel = RhsPanel { values: rhs, k_stride, width, bias };
        let mut out = vec![0.25; (m - 1) * out_row + width];
        let output = Output { values: &mut out, row_stride: out_row };
        checked::<Emulation>(lhs, panel, Dims { m, k_steps }, output, add);
        for (i, row) in out.chunks(out_row).enumerate() {
            for (j, &found) in row.iter().enumerate() {
                if j >= width {
                    assert_eq!(found, 0.25, "beside row {i}");
                    continue;
                }
                let product = |at: usize| {
                    let (step, of_pair) = (at / PAIR, at % PAIR);
                    let x = lhs.values[i * lhs.row_stride + step * lhs.k_stride + of_pair];
                    let w = rhs[step * k_stride + j * PAIR + of_pair];
                    f64::from(x.to_f32()) * f64::from(w.to_f32())
                };
                let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
                let before = if add { 0.25 } else { 0.0 };
                let (sum, size) = (0..k)
                    .map(product)
                    .chain([bias, before])
                    .fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                // Rounding to odd is off by less than one in the last place.
                let bound = (k + 8) as f64 * 2f64.powi(-23) * size;
                let error = (f64::from(found) - sum).abs();
                // Not `error > bound`, which NaN passes.
                assert!(error <= bound, "{m} x {k} x {width}, {i} {j}: {found} {sum}");
            }
        }
    }
}

/// Sizes around those of a tile, an instruction and a cache block.
#[test]
fn blocks_of_any_shape() {
    for shape in [
        [1, 1, 16],
        [2, 2, 32],
        [3, 3, 16],
        [5, 4, 48],
        [6, 9, 16],
        [7, 31, 64],
        [8, 32, 16],
        [9, 127, 16],
        [17, 128, 32],
        [12, 129, 16],
        [11, 257, 48],
    ] {
        for transposed in [false, true] {
            is_the_definition(shape, transposed);
        }
    }
}

/// To the bit: what else is computed does not change a row or a column.
#[test]
fn a_row_alone() {
    let (m, k_steps, width) = (13, 150, 32);
    let (lhs, rhs) = (values(m * k_steps * PAIR, 1), values(k_steps * width * PAIR, 2));
    let product = |rows: Range<usize>, first: usize, columns: usize| {
        let mut out = vec![f32::NAN; rows.len() * columns];
        let (values, k_stride) = (&rhs[first * PAIR..], width * PAIR);
        let panel = RhsPanel { values, k_stride, width: columns, bias: None };
        let dims = Dims { m: rows.len(), k_steps };
        let lhs = Lhs::from_rows(&lhs[rows.start * k_steps * PAIR..], k_steps * PAIR);
        let output = Output { values: &mut out, row_stride: columns };
        checked::<Emulation>(lhs, panel, dims, output, false);
        out
    };
    let all = product(0..m, 0, width);
    for row in 0..m {
        let alone = product(row..row + 1, 16, 16);
        assert_eq!(alone, all[row * width + 16..][..16], "{row}");
    }
}

#[test]
fn nothing_to_multiply() {
    let bias: [f32; 16] = std::array::from_fn(|column| column as f32);
    let panel = RhsPanel { values: &[], k_stride: 32, width: 16, bias: Some(&bias) };
    let lhs = Lhs::from_rows(&[], 0);
    let mut out = [f32::NAN; 16];
    let output = Output { values: &mut out, row_stride: 16 };
    checked::<Emulation>(lhs, panel, Dims { m: 1, k_steps: 0 }, output, false);
    assert_eq!(out, bias);
    let output = Output { values: &mut [], row_stride: 16 };
    checked::<Emulation>(lhs, panel, Dims { m: 0, k_steps: 3 }, output, false);
}

/// What pairs of a row add up to, for a panel of ones.
fn sum_of<U: BlockUnit>(pairs: &[[f32; PAIR]]) -> f32 {
    let lhs: Vec<Bf16> = pairs.iter().flatten().copied().map(Bf16::from_f32).collect();
    let k_steps = pairs.len();
    let rhs = vec![Bf16::from_f32(1.0); k_steps * 16 * PAIR];
    let panel = RhsPanel { values: &rhs[..], k_stride: 16 * PAIR, width: 16, bias: None };
    let mut out = [f32::NAN; 16];
    let output = Output { values: &mut out, row_stride: 16 };
    checked::<U>(Lhs::from_rows(&lhs, lhs.len()), panel, Dims { m: 1, k_steps }, output, false);
    assert_eq!(out, [out[0]; 16]);
    out[0]
}

/// Of what lies between two neighbors, that whose last bit is set.
fn sums_round_to_odd<U: BlockUnit>() {
    let large = 16_777_216.0;
    // Rounded to nearest, with ties to even, all three are 2^24 or its negative.
    assert_eq!(sum_of::<U>(&[[large, 0.0], [1.0, 0.0]]), large + 2.0);
    assert_eq!(sum_of::<U>(&[[large, 0.0], [0.0, 0.0], [0.0, 0.5]]), large + 2.0);
    assert_eq!(sum_of::<U>(&[[-large, 0.0], [-1.0, 0.0]]), -large - 2.0);
    // So would these be 2^24 + 4 and 2^24.
    assert_eq!(sum_of::<U>(&[[large, 2.0], [1.0, 0.0]]), large + 2.0);
    assert_eq!(sum_of::<U>(&[[large, 2.0], [-1.0, 0.0]]), large + 2.0);
    // What is added lies beyond an f64 that begins with the other.
    let (larger, small) = (2f32.powi(48), 2f32.powi(-20));
    assert_eq!(sum_of::<U>(&[[larger, 0.0], [small, 0.0]]), larger + 2f32.powi(25));
    assert_eq!(sum_of::<U>(&[[larger, 0.0], [-small, 0.0]]), larger - 2f32.powi(24));
    // A pair is summed before it is added.
    assert_eq!(sum_of::<U>(&[[1.0, 0.0], [large, -large]]), 1.0);
    assert_eq!(sum_of::<U>(&[[large, 1.0], [-large, 0.0]]), 2.0);
}

fn denormals_count_as_zero<U: BlockUnit>() {
    let (tiny, smallest) = (f32::MIN_POSITIVE / 2.0, f32::MIN_POSITIVE);
    // Of an operand, of a sum of two products, and of a sum of pairs.
    assert_eq!(sum_of::<U>(&[[tiny, tiny], [tiny, tiny]]), 0.0);
    assert_eq!(sum_of::<U>(&[[1.5 * smallest, -smallest], [0.0, 0.0]]), 0.0);
    assert_eq!(sum_of::<U>(&[[1.5 * smallest, 0.0], [-smallest, 0.0]]), 0.0);
    assert_eq!(sum_of::<U>(&[[3.0 * smallest, 0.0], [-smallest, 0.0]]), 2.0 * smallest);
}

#[test]
fn emulated_sums() {
    sums_round_to_odd::<Emulation>();
    denormals_count_as_zero::<Emulation>();
}

#[cfg(target_arch = "aarch64")]
mod by_instructions {
    use super::*;
    use crate::isa::Isa;
    use crate::isa::tests::under_each;
    use crate::rng::Rng;

    /// Values of every size whose sums stay finite, denormal ones among them.
    fn blocks(count: usize, rng: &mut Rng) -> Vec<Block> {
        let mut value = |_: usize| {
            let exponent = [0, 1, 100, 120, 127, 130, 140][rng.below(7) as usize];
            Bf16((rng.below(2) << 15 | exponent << 7 | rng.below(128)) as u16)
        };
        let mut line = |_: usize| std::array::from_fn(&mut value);
        (0..count).map(|_| Block(std::array::from_fn(&mut line))).collect()
    }

    /// The instructions and the emulation, to the bit.
    #[test]
    fn bfmmla_is_what_is_emulated() {
        under_each(|isa| {
            if isa != Isa::NeonBf16 {
                return;
            }
            sums_round_to_odd::<Instructions>();
            denormals_count_as_zero::<Instructions>();
            let mut rng = Rng::new(1, [0; 3]);
            for (count, row_pairs) in (0..200).map(|turn| (1 + turn % 50, 1 + turn % 4)) {
                let (lhs, rhs) = (blocks(count, &mut rng), blocks(count, &mut rng));
                // SAFETY: the machine has the instructions.
                let [found, expected] = unsafe {
                    [
                        Instructions::multiply(&lhs, &rhs, row_pairs),
                        Emulation::multiply(&lhs, &rhs, row_pairs),
                    ]
                };
                let bits = |sums: Sums| sums.map(|row| row.map(f32::to_bits));
                let rows = ..2 * row_pairs;
                assert_eq!(bits(found)[rows], bits(expected)[rows], "{count} {row_pairs}");
            }
        });
    }
}
