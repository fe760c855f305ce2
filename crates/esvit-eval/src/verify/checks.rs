//! Comparisons of a case one after the other, by the tolerances of the objectives beside EsViT's.

use esvit_nn::Tensor;

use super::{
    Case, CaseError, Check, Result, absolute_error, max_abs, relative_error, relative_to_max,
};

/// Of losses, relative.
pub(super) const LOSS: f64 = 1e-5;
/// Of gradients, of the largest entry.
const GRADIENT: f64 = 1e-4;
/// Gradients whose largest entry is below this vanish in exact arithmetic.
const VANISHING: f64 = 1e-4;
/// Of these, absolute.
const ZERO_GRADIENT: f64 = 1e-5;
/// Of results and of values after a step, of the largest entry.
const VALUE: f64 = 1e-5;

/// The comparisons of a case so far.
pub(super) struct Checks<'a> {
    case: &'a Case,
    done: Vec<Check>,
}

impl<'a> Checks<'a> {
    pub(super) fn of(case: &'a Case) -> Self {
        Self { case, done: Vec::new() }
    }

    pub(super) fn done(self) -> Vec<Check> {
        self.done
    }

    pub(super) fn push(&mut self, check: Check) {
        self.done.push(check);
    }

    /// A loss or another number, relative.
    pub(super) fn number(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        self.push(relative_error(what, found, expected, tolerance));
    }

    /// Two numbers that are to be equal.
    pub(super) fn exact(&mut self, what: &str, found: f64, expected: f64) {
        self.push(Check::new(what, (found - expected).abs(), 0.0));
    }

    /// A gradient, which there must be.
    pub(super) fn gradient(&mut self, name: &str, found: Option<Tensor>) -> Result<()> {
        let (_, expected) = self.case.tensor(name)?;
        let missing = || CaseError::Computation(format!("there is no `{name}`"));
        let found = found.ok_or_else(missing)?.to_vec::<f32>();
        self.push(if max_abs(&expected) < VANISHING {
            absolute_error(name, &found, &expected, ZERO_GRADIENT)
        } else {
            relative_to_max(name, &found, &expected, GRADIENT)
        });
        Ok(())
    }

    /// A result, or a value after a step.
    pub(super) fn value(&mut self, name: &str, found: &Tensor) -> Result<()> {
        self.share_of_largest(name, &found.to_vec::<f32>(), VALUE)
    }

    /// Values, by a share of the largest expected one.
    pub(super) fn share_of_largest(
        &mut self,
        name: &str,
        found: &[f32],
        tolerance: f64,
    ) -> Result<()> {
        let (_, expected) = self.case.tensor(name)?;
        self.push(relative_to_max(name, found, &expected, tolerance));
        Ok(())
    }
}

impl Case {
    /// A tensor that must have this shape.
    pub(super) fn shaped<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor> {
        let found = self.shape(name)?;
        if found != shape {
            let message = format!("tensor `{name}` is {found:?}, not {shape:?}");
            return Err(CaseError::Settings(message));
        }
        self.load::<D>(name)
    }

    /// The only value of an integer tensor, such as the place in a queue.
    pub(super) fn pointer(&self, name: &str) -> Result<i64> {
        match self.integers(name)?[..] {
            [value] => Ok(value),
            ref values => {
                let message = format!("tensor `{name}` has {} values, not 1", values.len());
                Err(CaseError::Settings(message))
            }
        }
    }
}
