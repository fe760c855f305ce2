use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::testing::{
    add_outer, assert_gradient, assert_near, dot, normal, times, times_transposed, wide, xhat,
    xhat_backward,
};

const EPS: f64 = 0.05;

/// Input and parameters in one vector: x, gamma, beta, weight.
struct Case {
    width: usize,
    outputs: usize,
    inputs: usize,
    indices: Vec<[u32; 4]>,
    values: Vec<f32>,
}

impl Case {
    /// Every input row has one place, in an order of its own; some places are outside the map.
    fn new(rows: usize, width: usize, outputs: usize) -> Self {
        let mut places: Vec<u32> = (0..4 * rows as u32).collect();
        crate::rng::Rng::new(7, [0; 3]).shuffle(&mut places);
        let inputs = 4 * rows - rows.div_ceil(2);
        let place = |at: u32| if at < inputs as u32 { at } else { OUTSIDE };
        let indices = places.as_chunks::<4>().0.iter().map(|four| four.map(place)).collect();
        let mut case = Self { width, outputs, inputs, indices, values: vec![] };
        let lens = case.lens();
        case.values = lens.into_iter().zip(1..).flat_map(|(n, stream)| normal(n, stream)).collect();
        case
    }

    fn lens(&self) -> [usize; 4] {
        let wide = 4 * self.width;
        [self.inputs * self.width, wide, wide, self.outputs * wide]
    }

    fn split<'a, T>(&self, values: &'a [T]) -> [&'a [T]; 4] {
        let mut rest = values;
        self.lens().map(|n| {
            let (piece, tail) = rest.split_at(n);
            rest = tail;
            piece
        })
    }

    /// Four rows one after the other.
    fn gathered(&self, x: &[f64], indices: &[u32; 4]) -> Vec<f64> {
        let row = |&index: &u32| match index {
            OUTSIDE => vec![0.0; self.width],
            index => x[index as usize * self.width..][..self.width].to_vec(),
        };
        indices.iter().flat_map(row).collect()
    }

    fn normed(&self, row: &[f64], [gamma, beta]: [&[f64]; 2]) -> Vec<f64> {
        let affine = xhat(row, EPS).into_iter().zip(gamma).zip(beta);
        affine.map(|((xhat, gamma), beta)| xhat * gamma + beta).collect()
    }

    fn forward(&self, values: &[f64]) -> Vec<f64> {
        let [x, gamma, beta, weight] = self.split(values);
        let rows = self.indices.iter().flat_map(|indices| {
            times(weight, &self.normed(&self.gathered(x, indices), [gamma, beta]))
        });
        rows.collect()
    }

    fn backward(&self, values: &[f64], dy: &[f64]) -> Vec<f64> {
        let [x, gamma, beta, weight] = self.split(values);
        let [mut dx, mut dgamma, mut dbeta, mut dweight] =
            self.split(values).map(|values| vec![0.0; values.len()]);
        for (indices, dy) in self.indices.iter().zip(dy.chunks_exact(self.outputs)) {
            let row = self.gathered(x, indices);
            add_outer(&mut dweight, dy, &self.normed(&row, [gamma, beta]), 4 * self.width);
            let (dnormed, xhat) = (times_transposed(weight, dy), xhat(&row, EPS));
            for (i, d) in dnormed.iter().enumerate() {
                dgamma[i] += d * xhat[i];
                dbeta[i] += d;
            }
            let dxhat: Vec<f64> = dnormed.iter().zip(gamma).map(|(d, gamma)| d * gamma).collect();
            let drow = xhat_backward(&row, EPS, &dxhat);
            for (&index, from) in indices.iter().zip(drow.chunks_exact(self.width)) {
                if index != OUTSIDE {
                    dx[index as usize * self.width..][..self.width].copy_from_slice(from);
                }
            }
        }
        [dx, dgamma, dbeta, dweight].concat()
    }

    fn check<T: Element>(&self, within: f64) {
        let name = |name| format!("{name}: {} {} rows", T::NAME, self.indices.len());
        let [x, gamma, beta, weight] = self.split(&self.values);
        let merge = Merge { gamma, beta, eps: EPS as f32, weight };
        let (y, saved) = forward::<T>(x, &merge, &self.indices, true);
        let (again, none) = forward::<T>(x, &merge, &self.indices, false);
        assert!(y == again && none.is_none());
        let values = wide(&self.values);
        assert_near(&name("y"), &y, &self.forward(&values), within);
        let dy = normal(y.len(), 9);
        let gradients = backward(saved.unwrap(), &merge, &self.indices, &dy, self.inputs);
        let Gradients { x, gamma, beta, weight } = gradients;
        let expected = self.backward(&values, &wide(&dy));
        let found = ["x", "gamma", "beta", "weight"].into_iter().zip([x, gamma, beta, weight]);
        for ((what, found), expected) in found.zip(self.split(&expected)) {
            assert_near(&name(what), &found, expected, within);
        }
    }
}

#[test]
fn gradients_of_the_definition() {
    let case = Case::new(5, 2, 3);
    let (values, dy) = (wide(&case.values), wide(&normal(5 * 3, 9)));
    let loss = |values: &[f64]| dot(&case.forward(values), &dy);
    assert_gradient(loss, &values, &case.backward(&values, &dy));
}

/// One row, sizes that are no multiple of anything, and several blocks.
#[test]
fn against_the_definition() {
    for (rows, width, outputs) in [(1, 1, 1), (7, 3, 5), (230, 5, 33)] {
        let case = Case::new(rows, width, outputs);
        under_each(|_| {
            case.check::<f32>(1e-5);
            case.check::<Bf16>(0.02);
        });
    }
}
