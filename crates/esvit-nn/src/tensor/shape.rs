//! Shapes.

use std::fmt;
use std::ops::Deref;

/// Most dimensions that a tensor can have.
pub const MAX_RANK: usize = 6;

/// The size of every dimension; derefs to a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// # Panics
    /// With more than [`MAX_RANK`] dimensions.
    pub fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= MAX_RANK, "{} dimensions, at most {MAX_RANK}", sizes.len());
        let mut dims = [0; MAX_RANK];
        dims[..sizes.len()].copy_from_slice(sizes);
        Self { dims, rank: sizes.len() }
    }

    /// Number of values.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// The sizes, of which there are `D`.
    ///
    /// # Panics
    /// With another number of dimensions.
    pub fn dims<const D: usize>(&self) -> [usize; D] {
        (**self).try_into().unwrap_or_else(|_| panic!("{D} dimensions expected, not {self:?}"))
    }

    /// The shape with another size of one dimension.
    #[must_use]
    pub fn with(mut self, axis: usize, size: usize) -> Self {
        self.dims[..self.rank][axis] = size;
        self
    }

    /// Products of the sizes before, at and after an axis: the values of one index of the axis are
    /// `outer` runs of `inner` values.
    pub(crate) fn around(&self, axis: usize) -> [usize; 3] {
        [self[..axis].iter().product(), self[axis], self[axis + 1..].iter().product()]
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Self::new(sizes)
    }
}

impl<const D: usize> From<[usize; D]> for Shape {
    fn from(sizes: [usize; D]) -> Self {
        Self::new(&sizes)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
