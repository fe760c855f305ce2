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
    /// Of every parameter its bucket and where it is there; None for those that are not trained.
    places: Vec<Option<(usize, Range<usize>)>>,
    is_set: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Bucket {
    len: usize,
    /// Arbitrary where nothing was added.
    values: Option<Tensor>,
}

impl ParamGradients {
    /// No gradients yet.
    pub fn new(list: &Arc<ParamList>, device: &Device) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        let places = list.iter().map(|spec| {
            if spec.role != Role::Trained {
                return None;
            }
            let len = spec.len();
            if buckets.last().is_none_or(|last| last.len.max(len) >= BUCKET_VALUES) {
                buckets.push(Bucket { len: 0, values: None });
            }
            let bucket = buckets.len() - 1;
            let start = buckets[bucket].len;
            buckets[bucket].len += len;
            Some((bucket, start..start + len))
        });
        let places = places.collect();
        let is_set = vec![false; list.len()];
        Self { list: list.clone(), device: *device, buckets, places, is_set }
    }

    /// Runs the backward pass of a loss that was computed with `params`, leaves of `tape`, and adds
    /// the gradients.
    ///
    /// # Panics
    /// As [`Tape::backward_into`].
    pub fn add_backward(&mut self, tape: &Tape, params: &Params, loss: &Tensor) {
        self.add_backward_and(tape, params, loss, &mut |_, _| ());
    }

    /// The same; gradients of other leaves go to `others`, each with its [`Tape::number`].
    ///
    /// # Panics
    /// As [`Tape::backward_into`].
    pub fn add_backward_and(
        &mut self,
        tape: &Tape,
        params: &Params,
        loss: &Tensor,
        others: &mut dyn FnMut(usize, Tensor),
    ) {
        let values = params.values().into_iter().enumerate();
        let indices: HashMap<usize, usize> =
            values.filter_map(|(index, value)| Some((tape.number(&value)?, index))).collect();
        tape.backward_into(loss, &mut |leaf, gradient| match indices.get(&leaf) {
            Some(&index) => self.add(index, gradient),
            None => others(leaf, gradient),
        });
    }

    /// Adds a gradient of the parameter of this index.
    ///
    /// # Panics
    /// When the parameter is not trained or the gradient has another size.
    pub fn add(&mut self, index: usize, gradient: Tensor) {
        let (bucket, place) = self.places[index].clone().expect("the parameter is trained");
        assert_eq!(gradient.numel(), place.len(), "gradient of `{}`", self.list[index].name);
        let Bucket { len, values } = &mut self.buckets[bucket];
        let is_set = std::mem::replace(&mut self.is_set[index], true);
        if values.is_none() && *len == place.len() {
            *values = Some(gradient.reshape([*len]));
            return;
        }
        let values =
            values.get_or_insert_with(|| Tensor::from_vec(buffer::uninit(*len), &self.device));
        let sum = &mut values.values_mut::<f32>()[place];
        if is_set {
            optimizer::add(sum, gradient.values());
        } else {
            sum.copy_from_slice(gradient.values());
        }
    }

    /// Changes the values of parameters that have a gradient, or that have none, in all buckets that
    /// are made.
    fn change_values(&mut self, is_set: bool, change: impl Fn(&mut [f32])) {
        for (place, _) in self.places.iter().zip(&self.is_set).filter(|(_, set)| **set == is_set) {
            let Some((bucket, range)) = place.clone() else { continue };
            if let Some(values) = &mut self.buckets[bucket].values {
                change(&mut values.values_mut()[range]);
            }
        }
    }

    /// The gradient `[len]` of the parameter of this index, if it has one.
    pub fn get(&self, index: usize) -> Option<Tensor> {
        let (bucket, place) = self.places[index].as_ref().filter(|_| self.is_set[index])?;
        Some(self.buckets[*bucket].values.as_ref()?.view(place.start, place.len()))
    }

    /// Forgets the gradient of a parameter: an optimizer leaves the parameter as it is.
    pub fn clear(&mut self, index: usize) {
        self.is_set[index] = false;
    }

    /// Sums over all processes, a bucket at a time.
    pub fn all_reduce(&mut self, collective: &dyn Collective) {
        // What was not added to is arbitrary.
        self.change_values(false, |values| values.fill(0.0));
        for Bucket { values, .. } in &mut self.buckets {
            *values = values.take().map(|values| collective.all_reduce(values));
        }
    }

    /// Multiplies all gradients.
    pub fn scale(&mut self, factor: f32) {
        self.change_values(true, |values| optimizer::scale(values, factor));
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
        let numbers = [0, 1, 2].map(|index| tape.number(&params.value(index)));
        assert_eq!(numbers, [Some(0), None, Some(1)]);
    }
}
