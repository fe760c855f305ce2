//! Named parameters, stored apart from the network that uses them.
//!
//! A network is a description (shapes, names, geometry); student and teacher are two [`Params`]
//! for it. All values are in one buffer, so that optimizer, EMA, all-reduce and checkpoint are passes
//! over it.

use std::ops::{Deref, Range};
use std::sync::Arc;

use esvit_kernels::rng::{Rng, fnv1a};

use crate::device::Device;
use crate::ops::{PackedWeights, Packing};
use crate::sine_cosine;
use crate::tape::Tape;
use crate::tensor::Tensor;

/// RNG purpose of initialization.
const INIT_PURPOSE: u64 = 0x1417;

/// How a parameter is initialized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// All this number.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation, truncated to `[-2, 2]`.
    TruncatedNormal(f64),
    /// Uniform in `[-bound, bound)`.
    Uniform(f64),
    /// Sines and cosines of the rows and columns of a square map, `[1, tokens, width]`.
    SineCosine,
}

/// How training treats a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Updated by the optimizer, and by EMA in the teacher.
    Trained,
    /// Not updated by the optimizer, but by EMA (`weight_g` under `norm_last_layer`, MoCo v3's patch
    /// embedding).
    Frozen,
    /// A running statistic: student and teacher have their own.
    Buffer,
}

/// The part of a network that a parameter belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// What makes tokens of pixels.
    Embedding,
    /// A block, counted over all stages; what lies between two stages belongs to the block before.
    Block(usize),
    /// What follows the last block.
    FinalNorm,
    /// The head of this name, such as `head`, `head_dense` or `classifier`.
    Head(Arc<str>),
    /// A head of the student alone, such as BYOL's predictor.
    StudentHead(Arc<str>),
}

impl Part {
    /// Whether it is a part of the backbone.
    pub fn is_backbone(&self) -> bool {
        self.head().is_none()
    }

    /// The name of the head, if it is one.
    pub fn head(&self) -> Option<&str> {
        match self {
            Self::Head(name) | Self::StudentHead(name) => Some(name),
            _ => None,
        }
    }

    /// Whether a teacher has no use for it.
    pub fn is_student_only(&self) -> bool {
        matches!(self, Self::StudentHead(_))
    }
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
    /// Where it belongs.
    pub part: Part,
    /// Whether weight decay applies: to tensors of two or more dimensions that are not biases.
    pub is_decayed: bool,
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

    /// Initial values under `seed`. They depend on the name, not on the position in the list, so
    /// that a backbone starts alike whichever heads it has.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut rng = Rng::for_purpose(seed, INIT_PURPOSE, [fnv1a(self.name.bytes()), 0, 0]);
        let mut draw = |at: usize| match self.init {
            Init::Zeros => 0.0,
            Init::Ones => 1.0,
            Init::Constant(value) => value,
            Init::Uniform(bound) => rng.uniform_in(-bound, bound),
            Init::TruncatedNormal(std) => loop {
                let value = rng.normal() * std;
                if value.abs() <= 2.0 {
                    break value;
                }
            },
            Init::SineCosine => sine_cosine::value([self.shape[1], self.shape[2]], at),
        };
        (0..self.len()).map(|at| draw(at) as f32).collect()
    }
}

/// Index of a parameter in its network's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

impl ParamId {
    /// The index.
    pub fn index(self) -> usize {
        self.0
    }
}

/// The parameters of a network, in order of registration; derefs to a slice of [`ParamSpec`].
///
/// Their values are in one buffer: first those of trained parameters, then frozen ones, then running
/// statistics.
#[derive(Debug, PartialEq)]
pub struct ParamList {
    specs: Vec<ParamSpec>,
    offsets: Vec<usize>,
    trained: usize,
    total: usize,
}

impl ParamList {
    fn new(specs: Vec<ParamSpec>) -> Self {
        let len_of = |role| specs.iter().filter(|s| s.role == role).map(ParamSpec::len).sum();
        let [trained, frozen, buffers]: [usize; 3] =
            [Role::Trained, Role::Frozen, Role::Buffer].map(len_of);
        let mut next = [0, trained, trained + frozen];
        let offset = |spec: &ParamSpec| {
            let next = &mut next[spec.role as usize];
            *next += spec.len();
            *next - spec.len()
        };
        let offsets = specs.iter().map(offset).collect();
        Self { specs, offsets, trained, total: trained + frozen + buffers }
    }

    /// Where the values of parameter `index` are in the buffer.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index] + self.specs[index].len()
    }

    /// Number of values of all parameters, running statistics not counted.
    pub fn parameters(&self) -> usize {
        let specs = self.specs.iter().filter(|spec| spec.role != Role::Buffer);
        specs.map(ParamSpec::len).sum()
    }

    /// Number of values of all trained parameters: the length of a buffer of gradients.
    pub fn trained_len(&self) -> usize {
        self.trained
    }
}

impl Deref for ParamList {
    type Target = [ParamSpec];

    fn deref(&self) -> &[ParamSpec] {
        &self.specs
    }
}

/// Collects the parameters of a network while it is built; a [`Scope`] gives dotted names and says
/// which part of the network they are.
#[derive(Debug, Default)]
pub struct Registry {
    specs: Vec<ParamSpec>,
}

impl Registry {
    /// The top-level scope, of the embedding until [`Scope::part`] says otherwise.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { registry: self, prefix: String::new(), part: Part::Embedding }
    }

    /// The parameters, in order of registration.
    pub fn finish(self) -> Arc<ParamList> {
        Arc::new(ParamList::new(self.specs))
    }
}

/// A dotted prefix under which parameters of a part are registered.
#[derive(Debug)]
pub struct Scope<'a> {
    registry: &'a mut Registry,
    prefix: String,
    part: Part,
}

impl Scope<'_> {
    /// The scope `name` below this one, of the same part.
    pub fn at(&mut self, name: impl std::fmt::Display) -> Scope<'_> {
        let (prefix, part) = (format!("{}{name}.", self.prefix), self.part.clone());
        Scope { registry: self.registry, prefix, part }
    }

    /// This scope, until something else is registered.
    pub fn reborrow(&mut self) -> Scope<'_> {
        let (prefix, part) = (self.prefix.clone(), self.part.clone());
        Scope { registry: self.registry, prefix, part }
    }

    /// The same scope for another part.
    #[must_use]
    pub fn part(self, part: Part) -> Self {
        Self { part, ..self }
    }

    /// The scope of the head `name` below this one.
    pub fn head(&mut self, name: &str) -> Scope<'_> {
        self.at(name).part(Part::Head(name.into()))
    }

    /// The scope of the head `name` below this one, which a teacher does not have.
    pub fn student_head(&mut self, name: &str) -> Scope<'_> {
        self.at(name).part(Part::StudentHead(name.into()))
    }

    /// Registers a trained parameter.
    pub fn param(&mut self, name: &str, shape: &[usize], init: Init) -> ParamId {
        self.register(name, shape, init, Role::Trained)
    }

    /// Registers a parameter with a given role.
    pub fn register(&mut self, name: &str, shape: &[usize], init: Init, role: Role) -> ParamId {
        let (name, part) = (format!("{}{name}", self.prefix), self.part.clone());
        let is_decayed = shape.len() >= 2 && !name.ends_with(".bias");
        let shape = shape.to_vec();
        let spec = ParamSpec { name, shape, init, role, part, is_decayed };
        self.registry.specs.push(spec);
        ParamId(self.registry.specs.len() - 1)
    }
}

/// Values of all parameters of a network.
#[derive(Debug, Clone)]
pub struct Params {
    list: Arc<ParamList>,
    /// `[total]`.
    flat: Tensor,
    /// Views of trained parameters that are leaves of a tape.
    leaves: Vec<Option<Tensor>>,
    /// Packed weights, dropped when a value changes.
    packed: Option<Arc<PackedWeights>>,
}

impl Params {
    /// Initial values under `seed`.
    pub fn init(list: &Arc<ParamList>, seed: u64, device: &Device) -> Self {
        Self::from_fn(list, device, |spec| spec.initial_values(seed))
    }

    /// Values made by `make`; panics unless it returns [`ParamSpec::len`] of them.
    pub fn from_fn(
        list: &Arc<ParamList>,
        device: &Device,
        mut make: impl FnMut(&ParamSpec) -> Vec<f32>,
    ) -> Self {
        let mut flat = vec![0.0; list.total];
        for (index, spec) in list.iter().enumerate() {
            let values = make(spec);
            assert_eq!(values.len(), spec.len(), "number of values of `{}`", spec.name);
            flat[list.range(index)].copy_from_slice(&values);
        }
        let flat = Tensor::new(flat, [list.total], device);
        Self { list: list.clone(), flat, leaves: Vec::new(), packed: None }
    }

    /// Shapes without values, for a pass over shapes alone: symbols of `tape` by their names.
    pub(crate) fn symbolic(list: &Arc<ParamList>, tape: &Tape) -> Self {
        let leaves = list.iter().map(|spec| Some(tape.symbol(&spec.name, [spec.len()])));
        let flat = Tensor::zeros([0], &Device::Cpu);
        Self { list: list.clone(), flat, leaves: leaves.collect(), packed: None }
    }

    /// The network's list of parameters.
    pub fn specs(&self) -> &Arc<ParamList> {
        &self.list
    }

    /// Name, shape and flat value `[len]` of every parameter.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ParamSpec, Tensor)> {
        self.list.iter().enumerate().map(|(index, spec)| (spec, self.value(index)))
    }

    /// The flat value `[len]` of the parameter of this index.
    pub fn value(&self, index: usize) -> Tensor {
        if let Some(Some(leaf)) = self.leaves.get(index) {
            return leaf.clone();
        }
        let range = self.list.range(index);
        self.flat.view(range.start, range.len())
    }

    /// The flat value `[len]` of every parameter, in the order of the list.
    pub fn values(&self) -> Vec<Tensor> {
        (0..self.list.len()).map(|index| self.value(index)).collect()
    }

    /// Whether all values are finite numbers.
    pub fn is_finite(&self) -> bool {
        self.flat.values::<f32>().iter().all(|value| value.is_finite())
    }

    /// The device that holds them.
    pub fn device(&self) -> Device {
        self.flat.device()
    }

    /// The buffer with the values of all parameters, [`ParamList::range`] by range.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The buffer, mutable. Packed weights are dropped.
    pub fn flat_mut(&mut self) -> &mut Tensor {
        self.packed = None;
        &mut self.flat
    }

    /// A parameter as a flat vector, `[len]`.
    pub fn vector(&self, id: ParamId) -> Tensor {
        self.value(id.0)
    }

    /// A parameter in its own shape.
    pub fn tensor(&self, id: ParamId) -> Tensor {
        self.value(id.0).reshape(&*self.list[id.0].shape)
    }

    /// Sets the values of the parameter of this index.
    ///
    /// # Panics
    /// When their number is not [`ParamSpec::len`].
    pub fn set(&mut self, index: usize, values: &[f32]) {
        assert_eq!(values.len(), self.list[index].len(), "`{}`", self.list[index].name);
        let start = self.list.range(index).start;
        self.flat_mut().write(start, values);
    }

    /// Sets running statistics, as [`crate::ForwardCtx::into_statistics`] returns them.
    pub fn set_buffers(&mut self, buffers: Vec<(ParamId, Tensor)>) {
        for (id, value) in buffers {
            self.set(id.0, value.values());
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

    /// The same with other tensors, as leaves of a tape, in place of the trained parameters.
    #[must_use]
    pub fn with_trained(&self, values: Vec<Tensor>) -> Self {
        let mut values = values.into_iter();
        let leaf = |spec: &ParamSpec| (spec.role == Role::Trained).then(|| values.next()).flatten();
        let leaves = self.list.iter().map(leaf).collect();
        Self { leaves, packed: None, ..self.clone() }
    }

    /// The same values, those of trained parameters as leaves of `tape`, in order of the list.
    #[must_use]
    pub fn tracked(&self, tape: &Tape) -> Self {
        self.tracked_where(tape, |_| true)
    }

    /// The same with some of the trained parameters alone as leaves: the others are constants, of which no
    /// gradient is computed.
    #[must_use]
    pub fn tracked_where(&self, tape: &Tape, learns: impl Fn(&ParamSpec) -> bool) -> Self {
        let leaves = self.iter().map(|(spec, value)| {
            let is_leaf = spec.role == Role::Trained && learns(spec);
            is_leaf.then(|| tape.watch(value.detach()))
        });
        Self { leaves: leaves.collect(), packed: None, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[usize], init: Init) -> ParamSpec {
        let mut registry = Registry::default();
        registry.root().param(name, shape, init);
        registry.specs.remove(0)
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
        let positions = spec("pos_embed", &[1, 5, 4], Init::SineCosine).initial_values(1);
        assert_eq!(positions[..8], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
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

    /// What the optimizer does not update keeps its place.
    #[test]
    fn other_tensors_in_place_of_those_that_learn() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        root.param("a", &[1], Init::Zeros);
        root.register("fixed", &[1], Init::Ones, Role::Frozen);
        root.register("running", &[1], Init::Ones, Role::Buffer);
        root.param("b", &[1], Init::Zeros);
        let params = Params::init(&registry.finish(), 0, &Device::Cpu);
        let others = [5f32, 7.0].map(|value| Tensor::full(value, [1], &Device::Cpu));
        let found = params.with_trained(others.into());
        let found: Vec<f32> = found.iter().map(|(_, value)| value.item()).collect();
        assert_eq!(found, [5.0, 1.0, 1.0, 7.0]);
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
        assert_eq!(fnv1a("".bytes()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar".bytes()), 0x8594_4171_f739_67e8);
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
            assert_eq!(spec.is_decayed, decayed, "{name}");
            assert_eq!((spec.len(), spec.is_empty()), (shape.iter().product(), false));
        }
        assert!(spec("none", &[2, 0], Init::Zeros).is_empty());
    }

    #[test]
    fn parts_are_inherited() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        root.at("embed").param("a", &[1], Init::Ones);
        let mut block = root.at("blocks.3").part(Part::Block(3));
        block.at("mlp").at("fc").param("a", &[1], Init::Ones);
        root.at("norm").part(Part::FinalNorm).param("a", &[1], Init::Ones);
        let last = root.head("head").at("last").param("a", &[1], Init::Ones);
        assert_eq!(last.index(), 3);
        let list = registry.finish();
        let found: Vec<_> = list.iter().map(|spec| (&*spec.name, spec.part.clone())).collect();
        let expected = [
            ("embed.a", Part::Embedding),
            ("blocks.3.mlp.fc.a", Part::Block(3)),
            ("norm.a", Part::FinalNorm),
            ("head.last.a", Part::Head("head".into())),
        ];
        assert_eq!(found, expected);
        assert_eq!(expected.map(|(_, part)| part.is_backbone()), [true, true, true, false]);
    }

    #[test]
    fn only_trained_values_are_tracked() {
        let mut registry = Registry::default();
        let mut root = registry.root();
        let trained = root.at("a").at(3).param("weight", &[1, 2], Init::Ones);
        let frozen = root.register("g", &[2], Init::Ones, Role::Frozen);
        let buffer = root.register("mean", &[2], Init::Ones, Role::Buffer);
        let params = Params::init(&registry.finish(), 0, &Device::Cpu);
        let names: Vec<&str> = params.iter().map(|(spec, _)| spec.name.as_str()).collect();
        assert_eq!(names, ["a.3.weight", "g", "mean"]);
        let tape = Tape::new();
        let tracked = params.tracked(&tape);
        let sum = tracked.tensor(trained).sum()
            + tracked.vector(frozen).sum() * 2.0
            + tracked.vector(buffer).sum();
        let gradients = tape.backward(&sum);
        let found: Vec<bool> =
            tracked.iter().map(|(_, value)| gradients.of(&value).is_some()).collect();
        assert_eq!(found, [true, false, false]);
        let mut params = params;
        params.set_buffers(vec![(buffer, Tensor::new(vec![5.0f32, 6.0], [2], &Device::Cpu))]);
        let values: Vec<Vec<f32>> = params.iter().map(|(_, value)| value.to_vec()).collect();
        assert_eq!(values, [[1.0, 1.0], [1.0, 1.0], [5.0, 6.0]]);
    }
}
