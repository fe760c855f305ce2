//! Named parameters, stored apart from the network that uses them.
//!
//! A network is a description (shapes, names, geometry); student and teacher are two [`Params`]
//! for it. Values are flat, so that optimizer, EMA and checkpoint are loops over one list.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use esvit_kernels::rng::Rng;

use crate::ops::{PackedWeights, Packing};

/// RNG purpose of initialization.
const INIT_PURPOSE: u64 = 0x1417;

/// How a parameter is initialized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean 0 and this standard deviation, truncated to `[-2, 2]`.
    TruncatedNormal(f64),
    /// Uniform in `[-bound, bound)`.
    Uniform(f64),
}

/// How training treats a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Updated by the optimizer, and by EMA in the teacher.
    Trained,
    /// Not updated by the optimizer, but by EMA (`weight_g` under `norm_last_layer`).
    Frozen,
    /// A running statistic: student and teacher have their own.
    Buffer,
}

/// Name, shape and initialization of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Name in official checkpoints, for instance `layers.0.blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape in the official layout (linear weights are `[out, in]`).
    pub shape: Vec<usize>,
    /// How it is initialized.
    pub init: Init,
    /// How training treats it.
    pub role: Role,
}

impl ParamSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether weight decay applies: to tensors of two or more dimensions that are not biases.
    pub fn is_decayed(&self) -> bool {
        self.shape.len() >= 2 && !self.name.ends_with(".bias")
    }

    /// Initial values under `seed`. They depend on the name, not on the position in the list, so
    /// that a backbone starts alike whichever heads it has.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut rng = Rng::for_purpose(seed, INIT_PURPOSE, [hash_name(&self.name), 0, 0]);
        let mut draw = || match self.init {
            Init::Zeros => 0.0,
            Init::Ones => 1.0,
            Init::Uniform(bound) => rng.uniform_in(-bound, bound),
            Init::TruncatedNormal(std) => loop {
                let value = rng.normal() * std;
                if value.abs() <= 2.0 {
                    break value;
                }
            },
        };
        (0..self.len()).map(|_| draw() as f32).collect()
    }
}

/// 64-bit FNV-1a, which unlike the standard library's hash never changes.
fn hash_name(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Index of a parameter in its network's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// Collects the parameters of a network while it is built; a [`Scope`] gives dotted names.
#[derive(Debug, Default)]
pub struct Registry {
    specs: Vec<ParamSpec>,
}

impl Registry {
    /// The top-level scope.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { registry: self, prefix: String::new() }
    }

    /// The parameters, in order of registration.
    pub fn finish(self) -> Arc<[ParamSpec]> {
        self.specs.into()
    }
}

/// A dotted prefix under which parameters are registered.
#[derive(Debug)]
pub struct Scope<'a> {
    registry: &'a mut Registry,
    prefix: String,
}

impl Scope<'_> {
    /// The scope `name` below this one.
    pub fn at(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        Scope { prefix: format!("{}{name}.", self.prefix), registry: self.registry }
    }

    /// Registers a trained parameter.
    pub fn param(&mut self, name: &str, shape: &[usize], init: Init) -> ParamId {
        self.register(name, shape, init, Role::Trained)
    }

    /// Registers a parameter with a given role.
    pub fn register(&mut self, name: &str, shape: &[usize], init: Init, role: Role) -> ParamId {
        let spec =
            ParamSpec { name: format!("{}{name}", self.prefix), shape: shape.to_vec(), init, role };
        self.registry.specs.push(spec);
        ParamId(self.registry.specs.len() - 1)
    }
}

/// Values of all parameters of a network, each flat (`[len]`).
#[derive(Debug, Clone)]
pub struct Params {
    specs: Arc<[ParamSpec]>,
    values: Vec<Tensor<1>>,
    /// Packed weights, dropped when a value changes.
    packed: Option<Arc<PackedWeights>>,
}

impl Params {
    /// Initial values under `seed`.
    pub fn init(specs: &Arc<[ParamSpec]>, seed: u64, device: &Device) -> Self {
        Self::from_fn(specs, device, |spec| spec.initial_values(seed))
    }

    /// Values made by `make`; panics unless it returns [`ParamSpec::len`] of them.
    pub fn from_fn(
        specs: &Arc<[ParamSpec]>,
        device: &Device,
        mut make: impl FnMut(&ParamSpec) -> Vec<f32>,
    ) -> Self {
        let values = specs
            .iter()
            .map(|spec| {
                let values = make(spec);
                assert_eq!(values.len(), spec.len(), "number of values of `{}`", spec.name);
                vector(values, device)
            })
            .collect();
        Self { specs: specs.clone(), values, packed: None }
    }

    /// The network's list of parameters.
    pub fn specs(&self) -> &Arc<[ParamSpec]> {
        &self.specs
    }

    /// Name, shape and value of every parameter.
    pub fn iter(&self) -> impl Iterator<Item = (&ParamSpec, &Tensor<1>)> {
        self.specs.iter().zip(&self.values)
    }

    /// The flat values, in the order of the list.
    pub fn values(&self) -> &[Tensor<1>] {
        &self.values
    }

    /// The flat values, mutable. Packed weights are dropped.
    pub fn values_mut(&mut self) -> &mut [Tensor<1>] {
        self.packed = None;
        &mut self.values
    }

    /// A parameter as a flat vector, `[len]`.
    pub fn vector(&self, id: ParamId) -> Tensor<1> {
        self.values[id.0].clone()
    }

    /// A parameter in its own shape.
    ///
    /// # Panics
    /// When the parameter does not have `D` dimensions: a bug in the network's description.
    pub fn tensor<const D: usize>(&self, id: ParamId) -> Tensor<D> {
        let shape: [usize; D] =
            self.specs[id.0].shape.as_slice().try_into().unwrap_or_else(|_| {
                panic!("`{}` does not have {D} dimensions", self.specs[id.0].name)
            });
        self.values[id.0].clone().reshape(shape)
    }

    /// Sets running statistics, as [`crate::ForwardCtx::into_statistics`] returns them.
    pub fn set_buffers(&mut self, buffers: Vec<(ParamId, Tensor<1>)>) {
        self.packed = None;
        for (id, value) in buffers {
            self.values[id.0] = value;
        }
    }

    /// For many forward passes with constant values: packed weights are cached. This doubles the
    /// memory of weights and saves packing them in every pass, which matters most for few images.
    #[must_use]
    pub fn for_inference(self) -> Self {
        Self { packed: Some(Arc::default()), ..self }
    }

    /// The cache entry of the operation whose first parameter is `id`.
    pub fn packing(&self, id: ParamId) -> Packing {
        let within = |packed: &Arc<PackedWeights>| Packing::within(packed.clone(), id);
        self.packed.as_ref().map(within).unwrap_or_default()
    }

    /// The same values as leaves of an autodiff graph; trained parameters require gradients.
    pub fn tracked(&self) -> Self {
        let values = self.iter().map(|(spec, value)| {
            let value = value.clone().inner().autodiff();
            if spec.role == Role::Trained { value.require_grad() } else { value }
        });
        Self { specs: self.specs.clone(), values: values.collect(), packed: None }
    }
}

/// A vector `[len]` on `device`.
pub fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The values of a vector, without a copy if it is the only owner and on the CPU.
pub fn into_values(vector: Tensor<1>) -> Vec<f32> {
    vector.inner().into_data().try_into_vec().expect("parameters are f32")
}

/// A tensor of `shape` on `device`.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Row indices on `device`.
pub fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::to_vec;

    fn spec(name: &str, shape: &[usize], init: Init) -> ParamSpec {
        ParamSpec { name: name.into(), shape: shape.into(), init, role: Role::Trained }
    }

    fn mean_and_deviation(values: &[f32]) -> [f64; 2] {
        let len = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / len;
        let square = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len;
        [mean, square.sqrt()]
    }

    #[test]
    fn starting_values_have_their_distributions() {
        let values = |init| spec("a", &[200, 100], init).initial_values(1);
        assert!(values(Init::Zeros).iter().all(|&value| value == 0.0));
        assert!(values(Init::Ones).iter().all(|&value| value == 1.0));
        let uniform = values(Init::Uniform(0.3));
        assert!(uniform.iter().all(|value| (-0.3..0.3).contains(value)));
        for (what, values, expected) in [
            ("uniform", &uniform, 0.3 / 3f64.sqrt()),
            ("normal", &values(Init::TruncatedNormal(0.02)), 0.02),
            // Cut at 2, which is one deviation: 0.54 of it is left.
            ("cut", &values(Init::TruncatedNormal(2.0)), 2.0 * 0.5396),
        ] {
            let [mean, deviation] = mean_and_deviation(values);
            assert!(mean.abs() < 0.03 * expected, "{what}: {mean}");
            assert!((deviation / expected - 1.0).abs() < 0.02, "{what}: {deviation}");
        }
        let cut = values(Init::TruncatedNormal(2.0));
        let largest = cut.iter().fold(0.0f32, |largest, value| value.abs().max(largest));
        assert!(largest <= 2.0 && largest > 1.99, "{largest}");
    }

    #[test]
    fn starting_values_depend_on_seed_and_name() {
        let init = Init::Uniform(1.0);
        let values = |name, seed| spec(name, &[4], init).initial_values(seed);
        let first = values("layers.0.weight", 1);
        assert_eq!(values("layers.0.weight", 1), first);
        assert_ne!(values("layers.0.weight", 2), first);
        assert_ne!(values("layers.1.weight", 1), first);
        // A longer list begins alike.
        assert_eq!(spec("layers.0.weight", &[8], init).initial_values(1)[..4], first);
        // The same in every release: FNV-1a of the name, and the numbers of the stream, by Philox
        // 4x64-10 written in another language.
        assert_eq!(hash_name(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash_name("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(first, [0.434_088_2, 0.017_845_701, -0.818_080_6, 0.443_900_7]);
        let normal = spec("layers.0.weight", &[3], Init::TruncatedNormal(0.02)).initial_values(1);
        for (found, expected) in normal.iter().zip([-0.031_730_116, -0.001_531_433, -0.028_349_97])
        {
            assert!((found - expected).abs() < 1e-8, "{normal:?}");
        }
    }

    #[test]
    fn matrices_are_decayed_unless_they_are_biases() {
        for (name, shape, decayed) in [
            ("proj.weight", &[2, 3, 4, 4][..], true),
            ("attn.relative_position_bias_table", &[9, 2], true),
            ("last_layer.weight_g", &[3, 1], true),
            ("norm.weight", &[3], false),
            ("norm.bias", &[3], false),
            ("a.bias", &[1, 2], false),
        ] {
            let spec = spec(name, shape, Init::Zeros);
            assert_eq!(spec.is_decayed(), decayed, "{name}");
            assert_eq!((spec.len(), spec.is_empty()), (shape.iter().product(), false));
        }
        assert!(spec("none", &[2, 0], Init::Zeros).is_empty());
    }

    #[test]
    fn only_trained_values_are_tracked() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        let trained = root.at("a").at(3).param("weight", &[1, 2], Init::Ones);
        let frozen = root.register("g", &[2], Init::Ones, Role::Frozen);
        let buffer = root.register("mean", &[2], Init::Ones, Role::Buffer);
        let params = Params::init(&registry.finish(), 0, &Device::flex());
        let names: Vec<&str> = params.iter().map(|(spec, _)| spec.name.as_str()).collect();
        assert_eq!(names, ["a.3.weight", "g", "mean"]);
        let tracked = params.tracked();
        let sum = tracked.tensor::<2>(trained).sum()
            + tracked.vector(frozen).sum() * 2.0
            + tracked.vector(buffer).sum();
        let gradients = sum.backward();
        let found: Vec<bool> =
            tracked.values().iter().map(|value| value.grad(&gradients).is_some()).collect();
        assert_eq!(found, [true, false, false]);
        let mut params = params;
        params.set_buffers(vec![(buffer, vector(vec![5.0, 6.0], &Device::flex()))]);
        let values: Vec<Vec<f32>> = params.values().iter().map(to_vec).collect();
        assert_eq!(values, [[1.0, 1.0], [1.0, 1.0], [5.0, 6.0]]);
    }
}
