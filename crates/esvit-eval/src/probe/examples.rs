//! Features with their targets.

use rayon::prelude::*;

use super::{ProbeError, Result, Standardization};

/// Classification targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Single-label: one class per row.
    Classes {
        /// Class of each row; one that is not below `count` is unknown to the task.
        of: Vec<u32>,
        /// Number of classes.
        count: usize,
    },
    /// Multi-label.
    Labels {
        /// Labels of each row.
        of: Vec<Vec<u32>>,
        /// Number of labels.
        count: usize,
    },
}

/// Features of images, row-major `[rows, width]`, with their targets.
#[derive(Debug, Clone)]
pub struct Examples {
    /// `rows * width` values.
    pub values: Vec<f32>,
    /// Number of values of a row.
    pub width: usize,
    /// One per row.
    pub targets: Targets,
}

/// Computes augmented features `[rows, width]` of some rows for an epoch.
pub type Augmented<'a> = dyn Fn(usize, &[usize]) -> Result<Vec<f32>> + Sync + 'a;

/// A subset of the rows of [`Examples`].
#[derive(Clone)]
pub struct Subset<'a> {
    pub(super) examples: &'a Examples,
    pub(super) rows: Vec<usize>,
    norm: Option<&'a Standardization>,
    augmented: Option<&'a Augmented<'a>>,
}

impl Targets {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Classes { of, .. } => of.len(),
            Self::Labels { of, .. } => of.len(),
        }
    }

    /// Number of classifier outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Classes { count, .. } | Self::Labels { count, .. } => *count,
        }
    }

    /// How many of some rows are of each class or hold each label; unknown classes do not count.
    pub(super) fn counts(&self, rows: &[usize]) -> Vec<usize> {
        let mut counts = vec![0; self.outputs()];
        let mut add = |index: u32| {
            if let Some(count) = counts.get_mut(index as usize) {
                *count += 1;
            }
        };
        match self {
            Self::Classes { of, .. } => rows.iter().for_each(|&row| add(of[row])),
            Self::Labels { of, .. } => {
                rows.iter().flat_map(|&row| &of[row]).for_each(|&label| add(label));
            }
        }
        counts
    }

    /// Returns an error unless the rows differ in their targets.
    pub(super) fn check_contrast(&self, rows: &[usize]) -> Result<()> {
        match self {
            Self::Classes { of, .. } => {
                let differ = rows.iter().any(|&row| of[row] != of[rows[0]]);
                differ.then_some(()).ok_or(ProbeError::OneClass)
            }
            Self::Labels { .. } => {
                let differ = |count: &usize| (1..rows.len()).contains(count);
                let contrast = self.counts(rows).iter().any(differ);
                contrast.then_some(()).ok_or(ProbeError::NoContrast)
            }
        }
    }
}

impl Examples {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.targets.len()
    }
}

impl<'a> Subset<'a> {
    /// The rows of `examples` with indices `rows`; with `augmented`, features are recomputed for
    /// each epoch.
    pub fn new(
        examples: &'a Examples,
        rows: Vec<usize>,
        augmented: Option<&'a Augmented<'a>>,
    ) -> Self {
        Self { examples, rows, norm: None, augmented }
    }

    /// All rows.
    pub fn all(examples: &'a Examples) -> Self {
        Self::new(examples, (0..examples.len()).collect(), None)
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Mean and variance of each column.
    pub fn standardization(&self) -> Standardization {
        Standardization::of(&self.examples.values, self.examples.width, &self.rows)
    }

    /// The same rows with standardized features.
    #[must_use]
    pub fn standardized(self, norm: Option<&'a Standardization>) -> Self {
        Self { norm, ..self }
    }

    /// Features of the rows in an epoch, if they are recomputed.
    pub(super) fn augmented(&self, epoch: usize) -> Result<Option<Vec<f32>>> {
        self.augmented.map(|augmented| augmented(epoch, &self.rows)).transpose()
    }

    /// Gathers the columns from `first` on of some rows of `values`.
    pub(super) fn gather(&self, values: &[f32], rows: &[usize], first: usize) -> Vec<f32> {
        let (width, norm) = (self.examples.width, self.norm);
        let mut gathered = vec![0.0; rows.len() * (width - first)];
        gathered.par_chunks_mut(width - first).zip(rows).for_each(|(to, &row)| {
            to.copy_from_slice(&values[row * width..][first..width]);
            if let Some(norm) = norm {
                norm.apply(to, first);
            }
        });
        gathered
    }
}
