//! Values in another order, some of them, or some repeatedly: permuting, flipping, narrowing and
//! broadcasting read the same values with other strides.

use super::{Real, made, with_real};
use crate::onnx::Sizes;
use crate::ops::prelude::*;
use crate::tensor::MAX_RANK;

impl Tensor {
    /// The dimensions in another order: dimension `i` of the result is `axes[i]` of this tensor.
    ///
    /// # Panics
    /// When `axes` is not a permutation of the dimensions.
    #[must_use]
    pub fn permute(self, axes: &[usize]) -> Self {
        let (shape, rank) = (self.shape(), self.shape().len());
        let is_permutation = axes.len() == rank && (0..rank).all(|axis| axes.contains(&axis));
        assert!(is_permutation, "a permutation of the dimensions of {shape:?}, not {axes:?}");
        let (whole, mut permuted, mut order) =
            (Strided::new(shape), Strided::new(shape), [0; MAX_RANK]);
        for (to, &from) in axes.iter().enumerate() {
            permuted.shape = permuted.shape.with(to, shape[from]);
            permuted.strides[to] = whole.strides[from];
            order[to] = from;
        }
        apply(Strided { kind: Kind::Permuted(order), ..permuted }, [self])
    }

    /// Two dimensions swapped.
    ///
    /// # Panics
    /// When there is no such dimension.
    #[must_use]
    pub fn swap_dims(self, a: usize, b: usize) -> Self {
        let mut axes: Vec<usize> = (0..self.shape().len()).collect();
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// The last two dimensions swapped.
    ///
    /// # Panics
    /// With less than two dimensions.
    #[must_use]
    pub fn transpose(self) -> Self {
        let rank = self.shape().len();
        assert!(rank >= 2, "a matrix expected, not {:?}", self.shape());
        self.swap_dims(rank - 2, rank - 1)
    }

    /// Indices `start..start + len` of a dimension.
    ///
    /// # Panics
    /// When the dimension is shorter.
    #[must_use]
    pub fn narrow(self, axis: usize, start: usize, len: usize) -> Self {
        let shape = self.shape();
        assert!(start + len <= shape[axis], "{start}..{} of axis {axis} of {shape:?}", start + len);
        let mut part = Strided::new(shape);
        part.start = start as isize * part.strides[axis];
        part.shape = shape.with(axis, len);
        part.kind = Kind::Narrowed { axis, start };
        apply(part, [self])
    }

    /// A dimension from its end to its beginning.
    ///
    /// # Panics
    /// When there is no such dimension.
    #[must_use]
    pub fn flip(self, axis: usize) -> Self {
        let mut flipped = Strided::new(self.shape());
        let last = self.shape()[axis].saturating_sub(1);
        flipped.start = last as isize * flipped.strides[axis];
        flipped.strides[axis] = -flipped.strides[axis];
        flipped.kind = Kind::Flipped(axis);
        apply(flipped, [self])
    }

    /// Repeats dimensions of size 1, and prepends dimensions (broadcasting).
    ///
    /// # Panics
    /// When another dimension would change.
    #[must_use]
    pub fn expand(self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        // In a pass over shapes, what repeats nothing for one image may do so for two.
        if shape == self.shape() && !self.is_symbolic() {
            self
        } else {
            apply(Strided::expand(self.shape(), shape), [self])
        }
    }

    /// The sum over what [`Tensor::expand`] repeated to make this shape of another: its derivative.
    /// Not recorded.
    pub(super) fn sum_to(self, shape: Shape) -> Self {
        if shape == self.shape() {
            self
        } else {
            Strided::expand(shape, self.shape()).transposed(&self)
        }
    }
}

/// The values at `start + sum of index[i] * strides[i]`, for all indices of `shape`.
#[derive(Debug, Clone, Copy)]
struct Strided {
    from: Shape,
    shape: Shape,
    start: isize,
    strides: [isize; MAX_RANK],
    kind: Kind,
}

/// What the strides came from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Expanded,
    /// The axis that each axis was.
    Permuted([usize; MAX_RANK]),
    Narrowed {
        axis: usize,
        start: usize,
    },
    Flipped(usize),
}

impl Strided {
    /// All values in order.
    fn new(shape: Shape) -> Self {
        let mut strides = [0; MAX_RANK];
        for (axis, stride) in strides[..shape.len()].iter_mut().enumerate() {
            *stride = shape.around(axis)[2] as isize;
        }
        Self { from: shape, shape, start: 0, strides, kind: Kind::Expanded }
    }

    fn expand(from: Shape, shape: Shape) -> Self {
        let whole = Self::new(from);
        let mut pairs = from.iter().rev().zip(shape.iter().rev());
        let fits = shape.len() >= from.len() && pairs.all(|(&from, &to)| from == to || from == 1);
        assert!(fits, "{from:?} cannot be broadcast to {shape:?}");
        let mut expanded = Self { shape, strides: [0; MAX_RANK], ..whole };
        for axis in (0..from.len()).filter(|&axis| from[axis] != 1) {
            expanded.strides[axis + shape.len() - from.len()] = whole.strides[axis];
        }
        expanded
    }

    /// Number of values along the last axis, and their distance.
    fn row(&self) -> (usize, isize) {
        match self.shape.len() {
            0 => (1, 0),
            rank => (self.shape[rank - 1], self.strides[rank - 1]),
        }
    }

    /// Places at which rows along the last axis begin, row-major.
    fn rows(self) -> impl Iterator<Item = isize> {
        let (width, _) = self.row();
        (0..self.shape.numel() / width.max(1)).map(move |row| {
            let (mut rest, mut first) = (row, self.start);
            for axis in (0..self.shape.len().saturating_sub(1)).rev() {
                first += (rest % self.shape[axis]) as isize * self.strides[axis];
                rest /= self.shape[axis];
            }
            first
        })
    }

    /// Places of the values, row-major.
    fn places(self) -> impl Iterator<Item = usize> {
        let (width, step) = self.row();
        self.rows().flat_map(move |first| {
            (0..width as isize).map(move |column| (first + column * step) as usize)
        })
    }

    /// Whether rows along the last axis are runs of the values in memory, of this length.
    fn runs(&self) -> Option<usize> {
        let (width, step) = self.row();
        (step == 1 && width > 1).then_some(width)
    }

    /// Whether the values are a run of those in memory.
    fn is_run(&self) -> bool {
        self.strides == Self::new(self.shape).strides
    }

    /// The transposed function, which adds every value at its place.
    fn transposed(self, y: &Tensor) -> Tensor {
        fn add<T: Real, A: Real>(strided: Strided, y: &[T]) -> Vec<A> {
            let mut sums = vec![A::zero(); strided.from.numel()];
            let Some(width) = strided.runs() else {
                for (place, value) in strided.places().zip(y) {
                    sums[place] += A::from_f64(value.into_f64());
                }
                return sums;
            };
            for (first, row) in strided.rows().zip(y.chunks_exact(width)) {
                for (sum, value) in sums[first as usize..][..width].iter_mut().zip(row) {
                    *sum += A::from_f64(value.into_f64());
                }
            }
            sums
        }
        let repeats =
            self.shape.iter().zip(&self.strides).any(|(&size, &step)| step == 0 && size > 1);
        with_real!(y, T => {
            let x = if repeats {
                add::<T, f64>(self, y.values()).into_iter().map(T::from_f64).collect()
            } else {
                add::<T, T>(self, y.values())
            };
            made(x, self.from, y)
        })
    }
}

impl Operation for Strided {
    fn output(&self, _: &[Shape]) -> Shape {
        self.shape
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (from, twin) = (nodes.sizes(0), nodes.twin::<Self>()?);
        let x = nodes.input(0);
        if twin.kind != self.kind {
            return None;
        }
        match self.kind {
            Kind::Expanded => {
                let to = Sizes::of(self.shape, twin.shape)?;
                Some(nodes.expand_sizes(&x, from, to))
            }
            Kind::Permuted(order) => {
                let order = order[..self.shape.len()].iter().map(|&axis| axis as i64);
                Some(nodes.transpose(&x, &order.collect::<Vec<_>>()))
            }
            Kind::Narrowed { axis, start } => {
                if [self, &*twin].iter().all(|part| part.shape == part.from) {
                    return Some(x);
                }
                let len = self.shape[axis];
                let is_fixed = twin.shape[axis] == len;
                let (start, end) = (start as i64, (start + len) as i64);
                is_fixed.then(|| nodes.slice(&x, axis, [start, end, 1]))
            }
            // To the very first one, whose place from the end is out of reach.
            Kind::Flipped(axis) => Some(nodes.slice(&x, axis, [-1, i64::MIN + 1, -1])),
        }
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        let x = &inputs[0];
        let y = if self.is_run() {
            x.view(self.start as usize, self.shape.numel()).reshape(self.shape)
        } else {
            with_real!(x, T => {
                let (x, mut y) = (x.values::<T>(), T::uninit(self.shape.numel()));
                match self.runs() {
                    Some(width) => {
                        let rows = y.chunks_exact_mut(width).zip(self.rows());
                        rows.for_each(|(y, first)| y.copy_from_slice(&x[first as usize..][..width]));
                    }
                    None => y.iter_mut().zip(self.places()).for_each(|(y, place)| *y = x[place]),
                }
                made(y, self.shape, &inputs[0])
            })
        };
        (y, None)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        vec![Some(self.transposed(&pass.gradient))]
    }
}
