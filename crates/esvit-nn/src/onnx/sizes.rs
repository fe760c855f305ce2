//! Which dimension of a value grows with the batch.

use crate::tensor::Shape;

/// A shape for one image, and the axis along which images follow each other, if there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) image: Shape,
    pub(crate) batch_axis: Option<usize>,
}

impl Sizes {
    /// From the shapes for one image and for two. None unless one axis at most differs, which is
    /// twice as long for two images.
    pub(crate) fn of(one: Shape, two: Shape) -> Option<Self> {
        if one.len() != two.len() {
            return None;
        }
        let mut differing = (0..one.len()).filter(|&axis| one[axis] != two[axis]);
        let batch_axis = differing.next();
        let fits = batch_axis.is_none_or(|axis| two[axis] == 2 * one[axis]);
        (fits && differing.next().is_none()).then_some(Self { image: one, batch_axis })
    }

    /// As `Reshape` takes it: -1 for the dynamic dimension.
    pub(crate) fn dims(&self) -> Vec<i64> {
        let size = |(axis, &size)| if self.batch_axis == Some(axis) { -1 } else { size as i64 };
        self.image.iter().enumerate().map(size).collect()
    }

    /// The same with the images as an axis of their own: `[.., -1, size, ..]`.
    pub(crate) fn split(&self, axis: usize) -> Vec<i64> {
        let mut dims: Vec<i64> = self.image.iter().map(|&size| size as i64).collect();
        dims.insert(axis, -1);
        dims
    }
}
