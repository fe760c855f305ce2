//! Sums of gradients of all trained parameters of a network.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use esvit_kernels::{buffer, optimizer};

use crate::collective::Collective;
use crate::device::Device;
use crate::params::{ParamList, Params, Role};
use crate::tape::Tape;
use crate::tensor::Tensor;

/// Values of a bucket, at least; a larger parameter has one of its own.
const BUCKET_VALUES: usize = 2 << 20;

/// The gradients of a network's trained parameters.
///
/// They are in buckets of neighboring parameters, each made when its first gradient comes: by then
/// the backward pass has freed activations, so that gradients add little to the peak of memory.
#[derive(Debug, Clone)]
pub struct ParamGradients {
    list: Arc<ParamList>,
    device: Device,
    buckets: Vec<Bucket>,
    /// Number of the bucket of every parameter; None for those that are not trained.
    bucket_of: Vec<Option<usize>>,
    is_set: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Bucket {
    /// Where its parameters are among the values of the network.
    range: Range<usize>,
    /// Arbitrary where nothing was added.
    values: Option<Tensor>,
}

impl ParamGradients {
    /// No gradients yet.
    pub fn new(list: &Arc<ParamList>, device: &Device) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let bucket_of = list.iter().enumerate().map(|(index, spec)| {
            if spec.role != Role::Trained {
                return None;
            }
            let range = list.range(index);
            match buckets.last_mut() {
                Some(last) if last.range.len() < BUCKET_VALUES && range.len() < BUCKET_VALUES => {
                    last.range.end = range.end;
                }
                _ => buckets.push(Bucket { range, values: None }),
            }
            Some(buckets.len() - 1)
        });
        let bucket_of = bucket_of.collect();
        let is_set = vec![false; list.len()];
        Self { list: list.clone(), device: *device, buckets, bucket_of, is_set }
    }

    /// Runs the backward pass of a loss that was computed with `params`, leaves of `tape`, and adds
    /// the gradients.
    ///
    /// # Panics
    /// As [`Tape::backward_into`].
    pub fn add_backward(&mut self, tape: &Tape, params: &Params, loss: &Tensor) {
        let leaves = params.iter().enumerate().filter(|(_, (spec, _))| spec.role == Role::Trained);
        let indices: HashMap<usize, usize> = leaves
            .filter_map(|(index, (_, value))| Some((tape.leaf_number(&value)?, index)))
            .collect();
        tape.backward_into(loss, &mut |leaf, gradient| {
            if let Some(&index) = indices.get(&leaf) {
                self.add(index, gradient);
            }
        });
    }

    /// Adds a gradient of the parameter of this index.
    ///
    /// # Panics
    /// When the parameter is not trained or the gradient has another size.
    pub fn add(&mut self, index: usize, gradient: Tensor) {
        let range = self.list.range(index);
        assert_eq!(gradient.numel(), range.len(), "gradient of `{}`", self.list[index].name);
        let bucket = self.bucket_of[index].expect("the parameter is trained");
        let Bucket { range: of_bucket, values } = &mut self.buckets[bucket];
        let is_set = std::mem::replace(&mut self.is_set[index], true);
        if values.is_none() && *of_bucket == range {
            *values = Some(gradient.reshape([range.len()]));
            return;
        }
        let start = range.start - of_bucket.start;
        let len = of_bucket.len();
        let values = values
            .get_or_insert_with(|| Tensor::from_vec(buffer::uninit(len), &self.device))
            .values_mut::<f32>();
        let sum = &mut values[start..start + range.len()];
        if is_set {
            optimizer::add(sum, gradient.values());
        } else {
            sum.copy_from_slice(gradient.values());
        }
    }

    /// The gradient `[len]` of the parameter of this index, if it has one.
    pub fn get(&self, index: usize) -> Option<Tensor> {
        let bucket = &self.buckets[self.bucket_of[index].filter(|_| self.is_set[index])?];
        let range = self.list.range(index);
        Some(bucket.values.as_ref()?.view(range.start - bucket.range.start, range.len()))
    }

    /// Forgets the gradient of a parameter: an optimizer leaves the parameter as it is.
    pub fn clear(&mut self, index: usize) {
        self.is_set[index] = false;
    }

    /// Sums over all processes, a bucket at a time.
    pub fn all_reduce(&mut self, collective: &dyn Collective) {
        for (number, Bucket { range: of_bucket, values }) in self.buckets.iter_mut().enumerate() {
            let Some(bucket) = values.as_mut() else { continue };
            // What was not added to is arbitrary.
            let unset = (0..self.list.len())
                .filter(|&index| self.bucket_of[index] == Some(number) && !self.is_set[index]);
            for index in unset {
                let range = self.list.range(index);
                let start = range.start - of_bucket.start;
                bucket.values_mut::<f32>()[start..start + range.len()].fill(0.0);
            }
            *values = values.take().map(|values| collective.all_reduce(values));
        }
    }

    /// Multiplies all gradients.
    pub fn scale(&mut self, factor: f32) {
        let set = (0..self.list.len()).filter(|&index| self.is_set[index]);
        for index in set {
            let Some(bucket) = self.bucket_of[index] else { continue };
            let Bucket { range: of_bucket, values } = &mut self.buckets[bucket];
            let range = self.list.range(index);
            if let Some(values) = values {
                let start = range.start - of_bucket.start;
                optimizer::scale(&mut values.values_mut()[start..start + range.len()], factor);
            }
        }
    }

    /// The Euclidean norm of every parameter's gradient, 0 without one: f64 `[parameters]`.
    pub fn norms(&self) -> Tensor {
        let norm = |gradient: Tensor| f64::from(optimizer::norm(gradient.values()) as f32);
        let norms = (0..self.list.len()).map(|index| self.get(index).map_or(0.0, norm));
        Tensor::from_vec(norms.collect(), &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Init, Registry};

    /// Two trained parameters with a frozen one between them.
    fn list() -> Arc<ParamList> {
        let mut registry = Registry::default();
        let mut root = registry.root();
        root.param("a", &[2], Init::Ones);
        root.register("b", &[3], Init::Ones, Role::Frozen);
        root.param("c", &[2], Init::Ones);
        registry.finish()
    }

    #[test]
    fn gradients_of_one_bucket_are_kept_apart() {
        let mut gradients = ParamGradients::new(&list(), &Device::Cpu);
        let given = |values: [f32; 2]| Tensor::new(values.to_vec(), [2], &Device::Cpu);
        let found = |gradients: &ParamGradients| {
            [0, 2].map(|index| gradients.get(index).map(|gradient| gradient.to_vec::<f32>()))
        };
        gradients.add(2, given([1.0, 2.0]));
        assert_eq!(found(&gradients), [None, Some(vec![1.0, 2.0])]);
        gradients.add(0, given([3.0, 4.0]));
        gradients.add(2, given([10.0, 20.0]));
        gradients.scale(2.0);
        assert_eq!(found(&gradients), [Some(vec![6.0, 8.0]), Some(vec![22.0, 44.0])]);
        assert_eq!(gradients.norms().to_vec::<f64>()[..2], [10.0, 0.0]);
        gradients.clear(2);
        assert_eq!(found(&gradients)[1], None);
        gradients.add(2, given([5.0, 6.0]));
        assert_eq!(found(&gradients)[1], Some(vec![5.0, 6.0]));
    }

    #[test]
    fn leaves_are_the_trained_parameters() {
        let tape = Tape::new();
        let params = Params::init(&list(), 0, &Device::Cpu).tracked(&tape);
        let numbers = [0, 1, 2].map(|index| tape.leaf_number(&params.value(index)));
        assert_eq!(numbers, [Some(0), None, Some(1)]);
    }
}
