//! Patch merging: four neighbours become one row of `4 C`, which is normalised and projected.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::element::{Element, row_len};
use crate::layer_norm::{shifted_bias, through_linear};
use crate::product::{Columns, Left, Packed, transposed_product};
use crate::profile;
use crate::rows::{DropPath, Rows, add_input_gradients, each_strip, store};

/// A neighbour that lies outside the map: zeros.
pub const OUTSIDE: u32 = u32::MAX;

/// The parameters: a normalisation over `4 C` and `weight [out, 4 C]`.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Merge<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    pub weight: &'a [f32],
}

/// Gradients of the parameters, in the order of [`Merge`], and of the input.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the layers")]
pub struct Gradients {
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub weight: Vec<f32>,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct Kept<T: Element> {
    normalised: Buffer<T>,
    inverse: Vec<f32>,
}

impl Merge<'_> {
    fn rows<T: Element>(&self, neighbours: &[[u32; 4]]) -> (Rows, usize) {
        let wide = self.gamma.len();
        assert!(wide.is_multiple_of(4) && self.beta.len() == wide, "normalisation of four rows");
        assert!(self.weight.len().is_multiple_of(wide), "weight");
        let outputs = self.weight.len() / wide;
        (DropPath::NONE.rows::<T>(neighbours.len(), wide), outputs)
    }
}

/// Merges rows of `x [rows, C]`: `neighbours` lists the four rows of every row of the result, or
/// [`OUTSIDE`]. With `keep` also what [`backward`] needs.
///
/// # Panics
/// When the lengths do not fit.
pub fn forward<T: Element>(
    x: &[f32],
    merge: &Merge<'_>,
    neighbours: &[[u32; 4]],
    keep: bool,
) -> (Vec<f32>, Option<Kept<T>>) {
    let (rows, outputs) = merge.rows::<T>(neighbours);
    let wide = merge.gamma.len();
    let (width, row) = (wide / 4, row_len::<T>(wide));
    let weight = Packed::<T>::transposed(merge.weight, wide, Some(merge.gamma));
    let bias = shifted_bias(merge.weight, merge.beta, None);
    let mut y = Buffer::<f32>::stale(neighbours.len() * outputs);
    let count = if keep { neighbours.len() } else { 0 };
    let mut kept = Kept { normalised: Buffer::<T>::rows(count, wide), inverse: vec![0.0; count] };
    let slots: Vec<_> = if keep {
        let normalised = rows.split(&mut kept.normalised, row).into_iter();
        normalised.zip(rows.split(&mut kept.inverse, 1)).map(Some).collect()
    } else {
        rows.blocks.iter().map(|_| None).collect()
    };
    let tasks = rows.blocks.par_iter().zip(rows.split(&mut y, outputs)).zip(slots);
    let macs = neighbours.len() * wide * outputs;
    profile::time("merge forward", macs, || {
        tasks.for_each(|((block, y), slots)| {
            let count = block.rows.len();
            let mut own;
            let (normalised, inverse) = match slots {
                Some(slots) => slots,
                None => {
                    own = (Buffer::<T>::rows(count, wide), vec![0.0; count]);
                    (&mut own.0[..], &mut own.1[..])
                }
            };
            let mut gathered = Buffer::<f32>::stale(count * wide);
            let quarters = gathered.chunks_exact_mut(width);
            for (to, &from) in quarters.zip(neighbours[block.rows.clone()].as_flattened()) {
                match from {
                    OUTSIDE => to.fill(0.0),
                    from => to.copy_from_slice(&x[from as usize * width..][..width]),
                }
            }
            block.normalise(&gathered, merge.eps, normalised, inverse);
            each_strip(
                Left::rows(normalised, row),
                count,
                &weight,
                |first, columns, product, padded| {
                    let bias = &bias[first..first + columns];
                    store(product, padded, Some(bias), columns, &mut y[first..], outputs);
                },
            );
        })
    });
    (y.into_vec(), keep.then_some(kept))
}

/// Gradients from that of the result, `dy [rows, out]`, for an input of `inputs` rows; other
/// arguments as for the [`forward`] that made `kept`.
///
/// # Panics
/// When the lengths do not fit.
pub fn backward<T: Element>(
    kept: Kept<T>,
    merge: &Merge<'_>,
    neighbours: &[[u32; 4]],
    dy: &[f32],
    inputs: usize,
) -> Gradients {
    let (rows, outputs) = merge.rows::<T>(neighbours);
    let wide = merge.gamma.len();
    let (width, out_row) = (wide / 4, row_len::<T>(outputs));
    let Kept { normalised, inverse } = kept;
    assert_eq!(inverse.len(), neighbours.len(), "rows that were kept");
    let weight = Packed::<T>::straight(merge.weight, wide, Some(merge.gamma));
    let mut gradients = Buffer::<T>::brief_rows(neighbours.len(), outputs);
    let mut gathered = Buffer::<f32>::brief(neighbours.len() * wide);
    gathered.fill(0.0);
    let tasks = rows
        .blocks
        .par_iter()
        .zip(rows.split(&mut gradients, out_row))
        .zip(rows.split(&mut gathered, wide));
    let macs = neighbours.len() * wide * outputs;
    profile::time("merge backward, rows", macs, || {
        tasks.for_each(|((block, gradients), gathered)| {
            rows.scaled(block, &dy[block.rows.start * outputs..], outputs, gradients);
            let left = Left::rows(gradients, out_row);
            add_input_gradients(block, left, &weight, (&normalised, &inverse), gathered);
        })
    });
    // Every row has its place, since the maps are covered by their neighbourhoods.
    let mut x = Buffer::<f32>::brief(inputs * width);
    for (from, &to) in gathered.chunks_exact(width).zip(neighbours.as_flattened()) {
        if to != OUTSIDE {
            x[to as usize * width..][..width].copy_from_slice(from);
        }
    }
    let mut dweight = Buffer::<f32>::brief(merge.weight.len());
    let mut sums = vec![0.0; outputs];
    let (left, right) = (Columns::new(&gradients, outputs), Columns::new(&normalised, wide));
    profile::time("merge backward, weights", macs, || {
        transposed_product(left, right, &mut dweight, Some(&mut sums), false);
    });
    let (gamma, beta) = through_linear(&mut dweight, merge.weight, merge.gamma, merge.beta, &sums);
    Gradients { x: x.into_vec(), gamma, beta, weight: dweight.into_vec() }
}
