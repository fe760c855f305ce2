use super::tiles::OPERANDS;
use super::*;

type Sums = [[f32; SIDE]; SIDE];
type Operand = [[Bf16; TILE_K]; SIDE];

/// `sums + lhs * rhs` by one instruction.
fn product<U: TileUnit>(mut sums: Sums, lhs: &Operand, rhs: &Operand) -> Sums {
    let mut operands: [Range<usize>; OPERANDS] = std::array::from_fn(|_| 0..0);
    operands[0] = addresses(&sums);
    operands[1] = addresses(lhs);
    operands[2] = addresses(rhs);
    // SAFETY: tests take instructions where there is AMX alone; the tiles are whole.
    unsafe {
        let mut unit = U::new(operands);
        unit.load::<3>(sums.as_ptr().cast(), ROW_BYTES);
        unit.load::<5>(lhs.as_ptr().cast(), ROW_BYTES);
        unit.load::<6>(rhs.as_ptr().cast(), ROW_BYTES);
        unit.multiply::<3, 5, 6>();
        unit.store::<3>(sums.as_mut_ptr().cast(), ROW_BYTES);
    }
    sums
}

/// What one row of pairs adds to a sum, for an RHS of ones.
fn sum_of<U: TileUnit>(before: f32, pairs: &[[f32; 2]]) -> f32 {
    let (mut sums, mut lhs) = ([[0.0; SIDE]; SIDE], [[Bf16(0); TILE_K]; SIDE]);
    sums[2][7] = before;
    for (to, pair) in lhs[2].chunks_exact_mut(PAIR).zip(pairs) {
        to.copy_from_slice(&pair.map(Bf16::from_f32));
    }
    let rhs = [[Bf16::from_f32(1.0); TILE_K]; SIDE];
    product::<U>(sums, &lhs, &rhs)[2][7]
}

/// Where the order matters: 2^24 + 1 is no f32.
fn sums_in_their_order<U: TileUnit>() {
    let large = 16_777_216.0;
    // First values of the pairs for themselves, along K: the 1 beside 2^24 is lost, that of the
    // second values is not.
    assert_eq!(sum_of::<U>(0.5, &[[large, 1.0], [1.0, 0.0], [-large, 0.0]]), 1.5);
    assert_eq!(sum_of::<U>(0.0, &[[1.0, large], [0.0, 1.0], [0.0, -large]]), 1.0);
    // Both together before they are added to what is there.
    assert_eq!(sum_of::<U>(large, &[[1.0, 1.0]]), large + 2.0);
    assert_eq!(sum_of::<U>(large, &[[1.0, 0.0], [0.0, 0.0]]), large);
}

fn denormals_count_as_zero<U: TileUnit>() {
    let (tiny, smallest) = (f32::MIN_POSITIVE / 2.0, f32::MIN_POSITIVE);
    // Of an operand, a product, a sum of both kinds, what is there and what comes out.
    assert_eq!(sum_of::<U>(0.0, &[[tiny, tiny], [tiny, tiny]]), 0.0);
    assert_eq!(sum_of::<U>(tiny, &[[0.0, 0.0]]), 0.0);
    assert_eq!(sum_of::<U>(tiny, &[[smallest, 0.0]]), smallest);
    assert_eq!(sum_of::<U>(0.0, &[[1.5 * smallest, 0.0], [-smallest, 0.0]]), 0.0);
    assert_eq!(sum_of::<U>(0.0, &[[1.5 * smallest, -smallest]]), 0.0);
    assert_eq!(sum_of::<U>(-smallest, &[[1.5 * smallest, 0.0]]), 0.0);
    assert_eq!(sum_of::<U>(-smallest, &[[2.5 * smallest, 0.0]]), 1.5 * smallest);
}

#[test]
fn emulated_sums() {
    sums_in_their_order::<Emulation>();
    denormals_count_as_zero::<Emulation>();
}

/// Every row, column and K step has its place.
#[test]
fn emulated_places() {
    for (row, column, step, value) in [(0, 0, 0, 0), (15, 3, 9, 1), (4, 15, 15, 0), (7, 8, 1, 1)] {
        let (mut lhs, mut rhs) = ([[Bf16(0); TILE_K]; SIDE], [[Bf16(0); TILE_K]; SIDE]);
        lhs[row][step * PAIR + value] = Bf16::from_f32(3.0);
        rhs[step][column * PAIR + value] = Bf16::from_f32(-2.0);
        let found = product::<Emulation>([[1.0; SIDE]; SIDE], &lhs, &rhs);
        let mut expected = [[1.0; SIDE]; SIDE];
        expected[row][column] = -5.0;
        assert_eq!(found, expected);
    }
}

#[test]
#[should_panic(expected = "outside of all operands")]
fn emulated_tiles_end_with_the_operand() {
    let rows = [[0.0f32; SIDE]; SIDE - 1];
    let mut operands: [Range<usize>; OPERANDS] = std::array::from_fn(|_| 0..0);
    operands[4] = addresses(&rows);
    // SAFETY: nothing is read, since the emulation refuses it.
    unsafe {
        let mut unit = Emulation::new(operands);
        unit.load::<0>(rows.as_ptr().cast(), ROW_BYTES);
    }
}

#[cfg(target_arch = "x86_64")]
mod by_instructions {
    use super::*;
    use crate::isa::{Amx, amx};
    use crate::rng::Rng;
    use proptest::prelude::*;

    /// Values of every size whose sums stay finite, denormal ones among them.
    fn operand(rng: &mut Rng) -> Operand {
        std::array::from_fn(|_| {
            std::array::from_fn(|_| {
                let exponent = [0, 1, 100, 120, 127, 130, 140][rng.below(7) as usize];
                Bf16((rng.below(2) << 15 | exponent << 7 | rng.below(128)) as u16)
            })
        })
    }

    /// The instructions and the emulation, to the bit.
    #[test]
    #[ignore = "needs a processor with AMX"]
    fn amx_is_what_is_emulated() {
        if matches!(amx(), Amx::Refused { .. }) {
            return;
        }
        assert_eq!(amx(), Amx::Permitted, "this test is for processors with AMX");
        sums_in_their_order::<Instructions>();
        denormals_count_as_zero::<Instructions>();
        let mut rng = Rng::new(1, [0; 3]);
        for _ in 0..200 {
            let (lhs, rhs) = (operand(&mut rng), operand(&mut rng));
            let sums: Sums = std::array::from_fn(|_| std::array::from_fn(|_| rng.normal() as f32));
            let bits = |sums: Sums| sums.map(|row| row.map(f32::to_bits));
            let found = product::<Instructions>(sums, &lhs, &rhs);
            assert_eq!(bits(found), bits(product::<Emulation>(sums, &lhs, &rhs)));
        }
        proptest!(ProptestConfig::with_cases(200), |(
            m in 1usize..420, k_steps in 1usize..600, registers in 1usize..5, bias in any::<bool>(),
            add in any::<bool>(), transposed in any::<bool>(),
        )| {
            let width = 16 * registers;
            let mut rng = Rng::new(2, [m as u64, k_steps as u64, width as u64]);
            let mut values = |n: usize| -> Vec<Bf16> {
                (0..n).map(|_| Bf16::from_f32(rng.normal() as f32)).collect()
            };
            let (lhs, rhs) = (values(m * k_steps * PAIR), values(k_steps * width * PAIR));
            let bias_values: Vec<f32> = values(width).into_iter().map(Bf16::to_f32).collect();
            let lhs = match transposed {
                true => Lhs::from_transposed(&lhs, m),
                false => Lhs::from_rows(&lhs, k_steps * PAIR),
            };
            let bias = bias.then_some(&bias_values[..]);
            let panel = RhsPanel { values: &rhs[..], k_stride: width * PAIR, width, bias };
            let dims = Dims { m, k_steps };
            let [mut found, mut expected] = [(); 2].map(|()| vec![0.5f32; m * width]);
            // SAFETY: there is AMX, and the operands are whole.
            unsafe {
                let mut out = Output { values: &mut found, row_stride: width };
                gemm::<Instructions>(&lhs, &panel, dims, &mut out, add);
                let mut out = Output { values: &mut expected, row_stride: width };
                gemm::<Emulation>(&lhs, &panel, dims, &mut out, add);
            }
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            prop_assert_eq!(bits(&found), bits(&expected));
        });
    }
}
