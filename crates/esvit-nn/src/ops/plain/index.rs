//! Selecting by index, and joining.

use super::{Real, made, with_real};
use crate::onnx::Sizes;
use crate::ops::prelude::*;

impl Tensor {
    /// The slices at `indices` of a dimension, in their order; an index may occur repeatedly.
    ///
    /// # Panics
    /// When an index is not one of the dimension.
    #[must_use]
    pub fn index_select(self, axis: usize, indices: impl Into<Vec<i32>>) -> Self {
        let size = self.shape()[axis];
        let indices = indices.into().into_iter().map(|index| {
            let valid = usize::try_from(index).ok().filter(|&index| index < size);
            valid.unwrap_or_else(|| panic!("index {index} of {size}"))
        });
        let indices = indices.collect();
        apply(IndexSelect { axis, indices }, [self])
    }

    /// One value of every row: `[rows, n]` with a column for each row to `[rows]`.
    ///
    /// # Panics
    /// When there are not as many columns as rows, or a column does not exist.
    #[must_use]
    pub fn pick(self, columns: &[i32]) -> Self {
        let [rows, n] = self.dims();
        assert_eq!(columns.len(), rows, "one column for each row of {:?}", self.shape());
        let indices = columns.iter().enumerate().map(|(row, &column)| {
            assert!((0..n as i64).contains(&column.into()), "column {column} of {n}");
            row * n + column as usize
        });
        let indices = indices.collect();
        apply(IndexSelect { axis: 0, indices }, [self.reshape([rows * n])])
    }

    /// Tensors one after another along a dimension.
    ///
    /// # Panics
    /// Without tensors, or when another dimension differs.
    pub fn cat(tensors: Vec<Self>, axis: usize) -> Self {
        assert!(!tensors.is_empty(), "at least one tensor to join");
        apply(Cat { axis }, tensors)
    }
}

#[derive(Debug)]
struct IndexSelect {
    axis: usize,
    indices: Vec<usize>,
}

impl IndexSelect {
    /// `visit(at of x, at of y)` for every selected run of `inner` values, given the shape of `x`.
    fn runs(&self, shape: &Shape, mut visit: impl FnMut(usize, usize)) {
        let [outer, size, inner] = shape.around(self.axis);
        for index in 0..outer {
            for (to, &from) in self.indices.iter().enumerate() {
                let x = (index * size + from) * inner;
                visit(x, (index * self.indices.len() + to) * inner);
            }
        }
    }
}

impl Operation for IndexSelect {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(self.axis, self.indices.len())
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let (axis, sizes, twin) = (self.axis, nodes.sizes(0), nodes.twin::<Self>()?);
        let size = sizes.image[axis];
        let twice: Vec<usize> = [0, size]
            .iter()
            .flat_map(|first| self.indices.iter().map(move |at| first + at))
            .collect();
        let indices: Vec<i64> = self.indices.iter().map(|&index| index as i64).collect();
        let (x, table) = (nodes.input(0), nodes.table(&indices));
        if sizes.batch_axis == Some(axis) && twin.indices == twice {
            // The same of every image.
            let images = nodes.reshape_to(&x, &sizes.split(axis));
            let selected = nodes.gather(&images, &table, axis as i64 + 1);
            let image = sizes.image.with(axis, indices.len());
            Some(nodes.reshape_to(&selected, &Sizes { image, ..sizes }.dims()))
        } else {
            (twin.indices == self.indices).then(|| nodes.gather(&x, &table, axis as i64))
        }
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let x = &inputs[0];
        let shape = x.shape().with(self.axis, self.indices.len());
        let inner = shape.around(self.axis)[2];
        let y = with_real!(x, T => {
            let (values, mut y) = (x.values::<T>(), T::uninit(shape.numel()));
            self.runs(&x.shape(), |from, to| {
                y[to..to + inner].copy_from_slice(&values[from..from + inner]);
            });
            made(y, shape, x)
        });
        (y, save.then(|| Saved::new(x.shape())))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let (shape, gradient): (Shape, _) = (pass.saved.take(), &pass.gradient);
        let inner = shape.around(self.axis)[2];
        vec![Some(with_real!(gradient, T => {
            let (dy, mut dx) = (gradient.values::<T>(), vec![T::default(); shape.numel()]);
            self.runs(&shape, |to, from| {
                let sums = dx[to..to + inner].iter_mut();
                sums.zip(&dy[from..from + inner]).for_each(|(sum, dy)| *sum += *dy);
            });
            made(dx, shape, gradient)
        }))]
    }
}

#[derive(Debug)]
struct Cat {
    axis: usize,
}

impl Operation for Cat {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let others_are_equal =
            inputs.iter().all(|s| s.with(self.axis, 0) == inputs[0].with(self.axis, 0));
        assert!(others_are_equal, "{inputs:?} cannot be joined along axis {}", self.axis);
        inputs[0].with(self.axis, inputs.iter().map(|shape| shape[self.axis]).sum())
    }

    fn keeps(&self, _part: usize) -> bool {
        false
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let inputs: Vec<String> = (0..nodes.count()).map(|index| nodes.input(index)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Some(nodes.node("Concat", &inputs, &[("axis", Attribute::Integer(self.axis as i64))]))
    }

    fn forward(&self, inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let shapes: Vec<Shape> = inputs.iter().map(Tensor::shape).collect();
        let shape = self.output(&shapes);
        let [outer, _, inner] = shape.around(self.axis);
        let y = with_real!(inputs[0], T => {
            let mut y = T::uninit(shape.numel());
            let mut rest = &mut y[..];
            for index in 0..outer {
                for x in &inputs {
                    let len = x.shape()[self.axis] * inner;
                    let (to, after) = rest.split_at_mut(len);
                    to.copy_from_slice(&x.values()[index * len..][..len]);
                    rest = after;
                }
            }
            made(y, shape, &inputs[0])
        });
        let sizes: Vec<usize> = shapes.iter().map(|shape| shape[self.axis]).collect();
        (y, save.then(|| Saved::new(sizes)))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let sizes: Vec<usize> = pass.saved.take();
        let mut end = 0;
        let parts = sizes.into_iter().zip(pass.wanted).map(|(size, wanted)| {
            end += size;
            wanted.then(|| pass.gradient.clone().narrow(self.axis, end - size, size))
        });
        parts.collect()
    }
}
