//! The whole branch against the definition in f64.

use super::*;
use crate::element::Bf16;
use crate::isa::tests::under_each;
use crate::rng::Rng;
use crate::testing::{
    add_outer, assert_gradient, assert_near, dot, normal, times, times_transposed, wide, xhat,
    xhat_backward,
};
use crate::window_attention::reference::Reference;

const EPS: f64 = 0.05;
const HEADS: usize = 3;
/// Rows of the bias table.
const BIASES: usize = 5;

/// Images of one size: the windows hold their tokens in any order, with padding in any slot.
struct Geometry {
    images: usize,
    tokens: usize,
    slots: usize,
    slot_token: Vec<i32>,
    bias_index: Vec<i32>,
    mask: Option<Vec<f32>>,
}

impl Geometry {
    fn new(images: usize, slots: usize, windows: usize, padding: usize, masked: bool) -> Self {
        let tokens = slots * windows - padding;
        let mut slot_token: Vec<i32> =
            (0..slots * windows).map(|slot| slot.min(tokens) as i32).collect();
        Rng::new(3, [slots as u64, 0, 0]).shuffle(&mut slot_token);
        let pairs = slots * slots;
        Self {
            images,
            tokens,
            slots,
            slot_token,
            bias_index: (0..pairs).map(|pair| (pair * 7 % BIASES) as i32).collect(),
            mask: masked.then(|| normal(windows * pairs, 12)),
        }
    }

    fn windows(&self, width: usize, biased: bool) -> Windows<'_> {
        Windows {
            tokens: self.tokens,
            slots: self.slots,
            width,
            heads: HEADS,
            slot_token: &self.slot_token,
            bias_index: if biased { &self.bias_index } else { &[] },
            mask: self.mask.as_deref(),
        }
    }
}

/// Input and parameters in one vector: x, gamma, beta, qkv weight and bias, bias table, proj weight and
/// bias.
struct Case {
    geometries: Vec<Geometry>,
    scales: Vec<f32>,
    rows: usize,
    width: usize,
    biases: usize,
    values: Vec<f32>,
}

impl Case {
    /// `scales` are used in turn.
    fn new(geometries: Vec<Geometry>, width: usize, scales: &[f32]) -> Self {
        let rows: usize = geometries.iter().map(|g| g.images * g.tokens).sum();
        let images: usize = geometries.iter().map(|g| g.images).sum();
        let scales = (0..images).map(|image| scales[image % scales.len()]).collect();
        let mut case = Self { geometries, scales, rows, width, biases: BIASES, values: vec![] };
        case.fill();
        case
    }

    fn fill(&mut self) {
        let lens = self.lens();
        let root = (self.width as f64).powf(-0.5);
        let sizes = [1.0, 0.3, 0.3, root, 0.3, 1.0, root, 0.3].map(|size| size as f32);
        self.values = lens
            .iter()
            .zip(sizes)
            .enumerate()
            .flat_map(|(at, (&len, size))| {
                let shift = if at == 1 { 1.0 } else { 0.0 };
                normal(len, 20 + at as u64).into_iter().map(move |value| value * size + shift)
            })
            .collect();
    }

    fn lens(&self) -> [usize; 8] {
        let (c, table) = (self.width, self.biases * HEADS);
        [self.rows * c, c, c, 3 * c * c, 3 * c, table, c * c, c]
    }

    fn split<'a, T>(&self, values: &'a [T]) -> [&'a [T]; 8] {
        let mut rest = values;
        self.lens().map(|n| {
            let (piece, tail) = rest.split_at(n);
            rest = tail;
            piece
        })
    }

    /// Every image: its geometry, its first row and its scale.
    fn images(&self) -> impl Iterator<Item = (&Geometry, usize, f64)> {
        let images = self.geometries.iter().flat_map(|g| std::iter::repeat_n(g, g.images));
        let mut first = 0;
        images.zip(&self.scales).map(move |(geometry, &scale)| {
            let start = first;
            first += geometry.tokens;
            (geometry, start, f64::from(scale))
        })
    }

    /// `norm(x)` and `qkv` of one image.
    fn qkv(&self, x: &[f64], [gamma, beta, w, b]: [&[f64]; 4]) -> [Vec<f64>; 2] {
        let (mut normed, mut qkv) = (Vec::new(), Vec::new());
        for row in x.chunks_exact(self.width) {
            let affine = xhat(row, EPS).into_iter().zip(gamma).zip(beta);
            let row: Vec<f64> = affine.map(|((xhat, gamma), beta)| xhat * gamma + beta).collect();
            qkv.extend(times(w, &row).iter().zip(b).map(|(value, b)| value + b));
            normed.extend(row);
        }
        [normed, qkv]
    }

    fn reference<'a>(
        &self,
        geometry: &'a Geometry,
        qkv: &'a [f64],
        padding: &'a [f64],
        bias_table: &'a [f64],
    ) -> Reference<'a> {
        let windows = geometry.windows(self.width, self.biases > 0);
        Reference { windows, qkv, padding, bias_table }
    }

    fn forward(&self, values: &[f64]) -> Vec<f64> {
        let c = self.width;
        let [x, gamma, beta, wqkv, bqkv, table, wproj, bproj] = self.split(values);
        let mut y = x.to_vec();
        for (geometry, first, scale) in self.images() {
            let of = first * c..(first + geometry.tokens) * c;
            let [_, qkv] = self.qkv(&x[of.clone()], [gamma, beta, wqkv, bqkv]);
            let context = self.reference(geometry, &qkv, bqkv, table).forward();
            for (y, context) in y[of].chunks_exact_mut(c).zip(context.chunks_exact(c)) {
                let branch = times(wproj, context);
                (0..c).for_each(|i| y[i] += scale * (branch[i] + bproj[i]));
            }
        }
        y
    }

    fn backward(&self, values: &[f64], dy: &[f64]) -> Vec<f64> {
        let c = self.width;
        let [x, gamma, beta, wqkv, bqkv, table, wproj, _] = self.split(values);
        let [
            mut dx,
            mut dgamma,
            mut dbeta,
            mut dwqkv,
            mut dbqkv,
            mut dtable,
            mut dwproj,
            mut dbproj,
        ] = self.split(values).map(|values| vec![0.0; values.len()]);
        dx.copy_from_slice(dy);
        let add = |to: &mut [f64], from: &[f64]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        };
        for (geometry, first, scale) in self.images() {
            let of = first * c..(first + geometry.tokens) * c;
            let [normed, qkv] = self.qkv(&x[of.clone()], [gamma, beta, wqkv, bqkv]);
            let reference = self.reference(geometry, &qkv, bqkv, table);
            let dbranch: Vec<f64> = dy[of.clone()].iter().map(|dy| dy * scale).collect();
            add_outer(&mut dwproj, &dbranch, &reference.forward(), c);
            dbranch.chunks_exact(c).for_each(|row| add(&mut dbproj, row));
            let dcontext = dbranch.chunks_exact(c).flat_map(|row| times_transposed(wproj, row));
            let [dqkv, dpadding, dbias] = reference.backward(&dcontext.collect::<Vec<f64>>());
            add(&mut dtable, &dbias);
            add(&mut dbqkv, &dpadding);
            dqkv.chunks_exact(3 * c).for_each(|row| add(&mut dbqkv, row));
            add_outer(&mut dwqkv, &dqkv, &normed, c);
            let rows = x[of.clone()].chunks_exact(c).zip(dx[of].chunks_exact_mut(c));
            for ((x, dx), dqkv) in rows.zip(dqkv.chunks_exact(3 * c)) {
                let dnormed = times_transposed(wqkv, dqkv);
                let xhat = xhat(x, EPS);
                let dxhat: Vec<f64> = (0..c).map(|i| dnormed[i] * gamma[i]).collect();
                (0..c).for_each(|i| dgamma[i] += dnormed[i] * xhat[i]);
                add(&mut dbeta, &dnormed);
                add(dx, &xhat_backward(x, EPS, &dxhat));
            }
        }
        [dx, dgamma, dbeta, dwqkv, dbqkv, dtable, dwproj, dbproj].concat()
    }

    fn check<T: Element>(&self, within: f64) {
        let name = |name| format!("{name}: {} {} rows", T::NAME, self.rows);
        let [x, gamma, beta, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias] =
            self.split(&self.values);
        let eps = EPS as f32;
        let attention = Attention {
            gamma,
            beta,
            eps,
            qkv_weight,
            qkv_bias,
            bias_table,
            proj_weight,
            proj_bias,
        };
        let segments = self.geometries.iter().map(|geometry| Segment {
            images: geometry.images,
            windows: geometry.windows(self.width, self.biases > 0),
        });
        let segments: Vec<Segment<'_>> = segments.collect();
        let seq_lens: Vec<usize> = self.images().map(|(geometry, ..)| geometry.tokens).collect();
        let scales = SampleScales { seq_lens: &seq_lens, scales: Some(&self.scales) };
        let packed = attention.pack_weights::<T>();
        let (mut y, mut again) = (x.to_vec(), x.to_vec());
        let saved = forward::<T>(&mut y, &attention, &packed, &segments, &scales, true);
        let none = forward::<T>(&mut again, &attention, &packed, &segments, &scales, false);
        assert!(y == again && none.is_none());
        let values = wide(&self.values);
        assert_near(&name("y"), &y, &self.forward(&values), within);

        let mut dx = normal(x.len(), 8);
        let expected = self.backward(&values, &wide(&dx));
        let gradients = backward(saved.unwrap(), &attention, &segments, &scales, &mut dx);
        let Gradients { gamma, beta, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias } =
            gradients;
        let found = [dx, gamma, beta, qkv_weight, qkv_bias, bias_table, proj_weight, proj_bias];
        let names = ["x", "gamma", "beta", "qkv w", "qkv b", "table", "proj w", "proj b"];
        for ((what, found), expected) in names.into_iter().zip(found).zip(self.split(&expected)) {
            assert_near(&name(what), &found, expected, within);
        }
    }

    fn check_all(&self) {
        under_each(|_| {
            self.check::<f32>(1e-5);
            self.check::<Bf16>(0.02);
        });
    }
}

#[test]
fn gradients_of_the_definition() {
    let geometries = vec![Geometry::new(2, 4, 2, 3, true), Geometry::new(1, 3, 1, 0, false)];
    let case = Case::new(geometries, 6, &[1.25, 0.0, 0.5]);
    let (values, dy) = (wide(&case.values), wide(&normal(case.rows * 6, 8)));
    let loss = |values: &[f64]| dot(&case.forward(values), &dy);
    assert_gradient(loss, &values, &case.backward(&values, &dy));
}

/// Several sizes of images, padding, masks and dropped images; a segment of few windows, whose rows and
/// heads are shared, and one of windows with several blocks of queries.
#[test]
fn several_segments() {
    let geometries = || {
        vec![
            Geometry::new(3, 9, 4, 4, true),
            Geometry::new(2, 16, 1, 0, false),
            Geometry::new(1, 70, 2, 5, true),
        ]
    };
    Case::new(geometries(), 12, &[1.25, 0.0, 0.5]).check_all();
    Case::new(geometries(), 9, &[1.0]).check_all();
    Case::new(geometries(), 15, &[0.0]).check_all();
}

/// Several windows a task, and more of them than make equal tasks.
#[test]
fn many_windows() {
    let case = Case::new(vec![Geometry::new(41, 9, 4, 2, true)], 6, &[1.0, 0.5, 0.0]);
    let kept = case.scales.iter().filter(|&&scale| scale != 0.0).count();
    assert!(kept * case.geometries[0].tokens > 2 * fitting_rows::<f32>(18));
    case.check_all();
}

/// The attention of a plain transformer: one window an image, without a bias.
#[test]
fn plain() {
    let mut case = Case::new(
        vec![Geometry::new(2, 21, 1, 0, false), Geometry::new(5, 7, 1, 0, false)],
        12,
        &[1.0],
    );
    case.biases = 0;
    case.fill();
    case.check_all();
}
