//! How well cells of one view are found again in another (Section 4.4 of the EsViT paper).

/// Pairs whose prediction is measured.
pub const MEASURED_PAIRS: usize = 10;

/// What was found for two views of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Correspondence {
    /// For every cell of the first view the most similar cell of the second; the first of equals.
    pub best_match: Vec<usize>,
    /// Cosine similarity of every cell to its match.
    pub similarity: Vec<f32>,
    /// Cells of the first view, most similar match first.
    pub order: Vec<usize>,
}

/// Matches the cells of two views, `[cells, width]` each, by cosine similarity.
pub fn correspond(first: &[f32], second: &[f32], width: usize) -> Correspondence {
    let unit = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks_exact(width).flat_map(|row| {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            row.iter().map(move |v| v / norm)
        });
        rows.collect()
    };
    let (first, second) = (unit(first), unit(second));
    let best = first.chunks_exact(width).map(|cell| {
        let mut best = (0, f32::NEG_INFINITY);
        for (index, other) in second.chunks_exact(width).enumerate() {
            let similarity = cell.iter().zip(other).map(|(a, b)| a * b).sum();
            if similarity > best.1 {
                best = (index, similarity);
            }
        }
        best
    });
    let (best_match, similarity): (Vec<usize>, Vec<f32>) = best.unzip();
    let mut order: Vec<usize> = (0..best_match.len()).collect();
    order.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]));
    Correspondence { best_match, similarity, order }
}

impl Correspondence {
    /// Share of the `pairs` most similar cells whose match is exactly the mirrored cell, and their
    /// mean distance in pixels from it, for a second view that is the mirror image of the first.
    /// `grid` cells lie `stride` pixels apart.
    pub fn against_mirror(&self, grid: usize, stride: usize, pairs: usize) -> (f64, f64) {
        let centre = |cell: usize| {
            [cell % grid, cell / grid].map(|i| (i * stride) as f64 + stride as f64 / 2.0)
        };
        let distances: Vec<f64> = self
            .order
            .iter()
            .take(pairs)
            .map(|&cell| {
                let [x, y] = centre(cell);
                let [found_x, found_y] = centre(self.best_match[cell]);
                ((grid * stride) as f64 - x - found_x).hypot(y - found_y)
            })
            .collect();
        let count = distances.len().max(1) as f64;
        let exact = distances.iter().filter(|&&distance| distance == 0.0).count();
        (exact as f64 / count, distances.iter().sum::<f64>() / count)
    }
}
