//! Squared distances of rows to those that they are paired with.

use esvit_kernels::{buffer, optimizer};
use rayon::prelude::*;

use super::TeacherRows;
use super::cpu::{made, values, values_mut};
use super::prelude::*;

/// `sum_r sum_j w_rj |z_r - y_j|^2`, a single value `[1]`: `pairs` lists for each row `r` of `student
/// [rows, D]` rows `j` of `teacher [.., D]` with weights. The teacher gets no gradient.
///
/// # Panics
/// When the widths differ, or `pairs` is not of the student's rows.
pub fn paired_distance(student: Tensor, teacher: Tensor, pairs: TeacherRows) -> Tensor {
    apply(PairedDistance { pairs }, [student, teacher.detach()])
}

#[derive(Debug)]
struct PairedDistance {
    pairs: TeacherRows,
}

impl Operation for PairedDistance {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let ([rows, width], [_, of_teacher]) = (inputs[0].dims(), inputs[1].dims());
        let [listed, most] = self.pairs.rows.dims();
        assert_eq!((listed, of_teacher), (rows, width), "rows and width of both sides");
        assert!(most > 0 && width > 0, "{most} rows of {width} values for each row");
        [1].into()
    }

    fn keeps(&self, _input: usize) -> bool {
        false
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        Cost::default().saving(inputs[0].numel(), Precision::F32)
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let [rows, width] = inputs[0].dims();
        let [student, teacher] = [0, 1].map(|input| values(&inputs[input]));
        let [_, most] = self.pairs.rows.dims();
        let (listed, weights) =
            (self.pairs.rows.values::<i32>(), self.pairs.weights.values::<f32>());
        // The loss is the root of the graph, so its gradient is computed in the forward pass.
        let mut gradient = buffer::zeroed(rows * width);
        let pairs = listed.par_chunks_exact(most).zip(weights.par_chunks_exact(most));
        let of_rows = gradient.par_chunks_exact_mut(width).zip(student.par_chunks_exact(width));
        let losses: Vec<f64> = of_rows
            .zip(pairs)
            .map(|((gradient, row), (listed, weights))| {
                let pairs = listed.iter().zip(weights).filter(|(index, _)| **index >= 0);
                let distances = pairs.map(|(&index, &weight)| {
                    let target = &teacher[index as usize * width..][..width];
                    let mut square = 0.0;
                    for ((gradient, z), y) in gradient.iter_mut().zip(row).zip(target) {
                        let difference = z - y;
                        *gradient += 2.0 * weight * difference;
                        square += f64::from(difference) * f64::from(difference);
                    }
                    f64::from(weight) * square
                });
                distances.sum()
            })
            .collect();
        let saved = save.then(|| Saved::new(made(gradient, [rows, width])));
        (made(vec![losses.iter().sum::<f64>() as f32], [1]), saved)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let upstream = values(&pass.gradient)[0];
        let mut gradient: Tensor = pass.saved.take();
        if upstream != 1.0 {
            optimizer::scale(values_mut(&mut gradient), upstream);
        }
        vec![Some(gradient)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tape::Tape;

    /// Rows with two partners, with one and with none, by hand.
    #[test]
    fn distances_by_hand() {
        let tensor = |values: &[f32], width: usize| {
            Tensor::new(values.to_vec(), [values.len() / width, width], &Device::Cpu)
        };
        let pairs = TeacherRows {
            rows: Tensor::new(vec![1, 0, -1, 1, -1, -1], [3, 2], &Device::Cpu),
            weights: tensor(&[0.5, 2.0, 9.0, 0.25, 9.0, 9.0], 2),
        };
        let tape = Tape::new();
        let student = tape.watch(tensor(&[1.0, 0.0, 0.0, 3.0, 5.0, 5.0], 2));
        let loss = paired_distance(student.clone(), tensor(&[1.0, 2.0, 0.0, -1.0], 2), pairs);
        // 0.5 (1 + 1) + 2 (0 + 4), and 0.25 (0 + 16).
        assert_eq!(loss.to_vec::<f32>(), [9.0 + 4.0]);
        let gradient = tape.backward(&(loss * 3.0)).of(&student).map(|g| g.to_vec::<f32>());
        let expected = [3.0, 3.0 * (1.0 - 8.0), 0.0, 3.0 * 2.0, 0.0, 0.0];
        assert_eq!(gradient.as_deref(), Some(&expected[..]));
    }
}
