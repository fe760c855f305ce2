//! Colors as tokens: the nearest one of a palette stands for a pixel.

use esvit_kernels::{buffer, colors};
use rayon::prelude::*;

use super::cpu::{made, values};
use super::prelude::*;

/// Index into `palette [colors, 3]` of the color that is nearest to each of `pixels [n, 3]`, by the square of
/// the distance; of equally near ones the first. Not recorded.
pub fn nearest_colors(pixels: &Tensor, palette: &Tensor) -> Vec<i32> {
    colors::nearest(values(pixels), values(palette))
}

/// The rows of `table [colors, C]` that belong to the nearest colors of `pixels [n, 3]` in
/// `palette [colors, 3]`: `[n, C]`. Pixels and palette get no gradient.
pub fn embed_colors(pixels: Tensor, palette: Tensor, table: Tensor) -> Tensor {
    apply(EmbedColors, [pixels, palette, table])
}

/// Inputs: pixels, palette, table.
#[derive(Debug)]
struct EmbedColors;

impl Operation for EmbedColors {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let ([pixels, channels], [colors, width]) = (inputs[0].dims(), inputs[2].dims());
        assert_eq!((channels, inputs[1].dims()), (3, [colors, 3]), "colors of three channels");
        [pixels, width].into()
    }

    fn keeps(&self, _input: usize) -> bool {
        false
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let ([pixels, channels], [colors, _]) = (inputs[0].dims(), inputs[1].dims());
        // An index each.
        Cost::products(pixels * channels * colors).saving(pixels, Precision::F32)
    }

    /// Of `|pixel - color|^2` what depends on the color: `|color|^2 - 2 pixel color`.
    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (pixels, palette, table) = (nodes.input(0), nodes.parameter(1), nodes.input(2));
        let squares = nodes.node("Mul", &[&palette, &palette], &[]);
        let axes = nodes.table(&[1]);
        let squares = nodes.node("ReduceSum", &[&squares, &axes], &[]);
        let squares = nodes.transpose(&squares, &[1, 0]);
        let two = nodes.number(2.0);
        let twice = nodes.node("Mul", &[&palette, &two], &[]);
        let twice = nodes.transpose(&twice, &[1, 0]);
        let products = nodes.node("MatMul", &[&pixels, &twice], &[]);
        let distances = nodes.node("Sub", &[&squares, &products], &[]);
        let attributes = [("axis", Attribute::Integer(1)), ("keepdims", Attribute::Integer(0))];
        let nearest = nodes.node("ArgMin", &[&distances], &attributes);
        Some(nodes.gather(&table, &nearest, 0))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [_, width] = inputs[2].dims();
        let indices = nearest_colors(&inputs[0], &inputs[1]);
        let table = values(&inputs[2]);
        let mut rows = buffer::uninit(indices.len() * width);
        let places = rows.par_chunks_exact_mut(width).zip(&indices);
        places.for_each(|(row, &index)| {
            row.copy_from_slice(&table[index as usize * width..][..width]);
        });
        let embedded = made(rows, [indices.len(), width]);
        (embedded, save.then(|| Saved::new(indices)))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (indices, shape): (Vec<i32>, Shape) = (pass.saved.take(), pass.parameters[1].shape());
        let [_, width] = shape.dims();
        let mut dtable = vec![0.0; shape.numel()];
        for (&index, dy) in indices.iter().zip(values(&pass.gradient).chunks_exact(width)) {
            let sums = dtable[index as usize * width..][..width].iter_mut();
            sums.zip(dy).for_each(|(sum, dy)| *sum += dy);
        }
        vec![None, None, Some(made(dtable, shape))]
    }
}
