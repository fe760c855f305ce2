//! Writes an ONNX graph node by node.
//!
//! Source of the format: `onnx.proto` of ONNX 1.12 (operator set 17).

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;

use esvit_files::protobuf::Message;
use esvit_weights::Float;

use super::sizes::Sizes;
use crate::params::{ParamSpec, Params};
use crate::tape::Operation;
use crate::tensor::Tensor;

const IR_VERSION: u64 = 8;
const OPERATOR_SET: u64 = 17;
const PRODUCER: &[u8] = b"esvit";

/// Name of the input.
pub(super) const IMAGES: &str = "images";

/// Defines a module of field numbers for each message.
macro_rules! messages {
    ($($message:ident { $($field:ident = $number:literal),* })*) => {$(
        mod $message {
            $(pub(super) const $field: u64 = $number;)*
        }
    )*};
}

// As in `onnx.proto`.
messages! {
    model {
        IR_VERSION = 1, PRODUCER = 2, PRODUCER_VERSION = 3, GRAPH = 7, OPERATOR_SET = 8,
        METADATA = 14
    }
    operator_set { VERSION = 2 }
    entry { KEY = 1, VALUE = 2 }
    graph { NODE = 1, NAME = 2, INITIALIZER = 5, INPUT = 11, OUTPUT = 12 }
    node { INPUT = 1, OUTPUT = 2, NAME = 3, OPERATOR = 4, ATTRIBUTE = 5 }
    attribute { NAME = 1, FLOAT = 2, INTEGER = 3, INTEGERS = 8, KIND = 20 }
    tensor { DIMENSION = 1, TYPE = 2, NAME = 8, BYTES = 9 }
    value_info { NAME = 1, TYPE = 2 }
    value_type { TENSOR = 1 }
    tensor_type { ELEMENT = 1, SHAPE = 2 }
    shape { DIMENSION = 1 }
    dimension { VALUE = 1, NAME = 2 }
}

const TYPE_F32: u64 = 1;
const TYPE_I64: u64 = 7;
const TYPE_F16: u64 = 10;
const TYPE_BF16: u64 = 16;

/// The type of stored values in ONNX's numbering.
fn type_of(float: Float) -> u64 {
    match float {
        Float::F32 => TYPE_F32,
        Float::F16 => TYPE_F16,
        Float::Bf16 => TYPE_BF16,
    }
}

/// An attribute of a node.
pub(crate) enum Attribute<'a> {
    Float(f32),
    Integer(i64),
    Integers(&'a [i64]),
}

impl Attribute<'_> {
    fn message(&self, name: &str) -> Message {
        let mut message = Message::default();
        message.bytes(attribute::NAME, name.as_bytes());
        let kind = match self {
            Self::Float(value) => {
                message.float(attribute::FLOAT, *value);
                1
            }
            Self::Integer(value) => {
                message.integer(attribute::INTEGER, *value as u64);
                2
            }
            Self::Integers(values) => {
                for &value in *values {
                    message.integer(attribute::INTEGERS, value as u64);
                }
                7
            }
        };
        message.integer(attribute::KIND, kind);
        message
    }
}

/// An ONNX graph under construction, and the operation that adds its nodes. Values are referred to
/// by name; rows of all images are one dimension, of dynamic length.
#[derive(Default)]
pub struct Nodes<'a> {
    body: Message,
    count: usize,
    pub(super) constants: HashSet<String>,
    /// Names of tables of integers by what they hold.
    tables: HashMap<Vec<i64>, String>,
    pub(super) params: HashMap<&'a str, (&'a ParamSpec, Tensor)>,
    /// Those that are stored transposed.
    pub(super) transposed: HashSet<&'a str>,
    pub(super) float: Float,
    /// Inputs of the operation.
    pub(super) inputs: Vec<Input>,
    /// The same operation in the pass over two images.
    pub(super) twin: Option<Arc<dyn Operation>>,
}

/// An input of an operation.
#[derive(Clone)]
pub(super) struct Input {
    /// That of a parameter is its own, and not stored yet.
    pub(super) name: String,
    pub(super) sizes: Sizes,
    /// Whether the operation takes it in another shape than it was made.
    pub(super) is_reshaped: bool,
}

impl<'a> Nodes<'a> {
    /// An empty graph; matrices of `params` will be stored as `float`.
    pub(super) fn new(params: &'a Params, float: Float) -> Self {
        let params = params.iter().map(|(spec, value)| (spec.name.as_str(), (spec, value)));
        let mut body = Message::default();
        body.bytes(graph::NAME, b"backbone");
        Self { body, params: params.collect(), float, ..Self::default() }
    }

    /// Adds a node with one output and returns the output's name.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) -> String {
        self.count += 1;
        let output = format!("{}_{}", operator.to_lowercase(), self.count);
        self.named_node(operator, inputs, attributes, &output);
        output
    }

    /// The same with a given output name.
    pub(super) fn named_node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
        output: &str,
    ) {
        let mut node = Message::default();
        for input in inputs {
            node.bytes(node::INPUT, input.as_bytes());
        }
        node.bytes(node::OUTPUT, output.as_bytes());
        node.bytes(node::NAME, output.as_bytes());
        node.bytes(node::OPERATOR, operator.as_bytes());
        for (name, attribute) in attributes {
            node.message(node::ATTRIBUTE, &attribute.message(name));
        }
        self.body.message(graph::NODE, &node);
    }

    /// A value in a shape whose first dimension is dynamic: `rest` are the others.
    pub(crate) fn reshape(&mut self, x: &str, rest: &[usize]) -> String {
        let sizes: Vec<i64> =
            std::iter::once(-1).chain(rest.iter().map(|&size| size as i64)).collect();
        let words: Vec<String> = rest.iter().map(usize::to_string).collect();
        let shape = self.integers(&format!("shape_{}", words.join("_")), &sizes);
        self.node("Reshape", &[x, &shape], &[])
    }

    /// A value in another shape; -1 stands for a dynamic dimension.
    pub(crate) fn reshape_to(&mut self, x: &str, sizes: &[i64]) -> String {
        let shape = self.table(sizes);
        self.node("Reshape", &[x, &shape], &[])
    }

    /// The number of images, `[1]`.
    fn batch(&mut self) -> String {
        let (sizes, batch) = ("sizes_of_images", "number_of_images");
        if self.constants.insert(batch.into()) {
            let first = self.table(&[0]);
            self.named_node("Shape", &[IMAGES], &[], sizes);
            let axis = [("axis", Attribute::Integer(0))];
            self.named_node("Gather", &[sizes, &first], &axis, batch);
        }
        batch.into()
    }

    /// Broadcasts a value to a shape (1 keeps a size of the value), whose size at `batch_axis` is
    /// multiplied by the number of images.
    pub(crate) fn expand(&mut self, x: &str, shape: &[i64], batch_axis: Option<usize>) -> String {
        let mut sizes = self.table(shape);
        if let Some(axis) = batch_axis {
            let factors: Vec<i64> = (0..shape.len()).map(|at| i64::from(at != axis)).collect();
            let others = self.table(&factors);
            let selector: Vec<i64> = factors.iter().map(|factor| 1 - factor).collect();
            let selector = self.table(&selector);
            let images = self.batch();
            let images = self.node("Mul", &[&images, &selector], &[]);
            let factors = self.node("Add", &[&images, &others], &[]);
            sizes = self.node("Mul", &[&sizes, &factors], &[]);
        }
        self.node("Expand", &[x, &sizes], &[])
    }

    /// Adds values stored as `float`, once per name, and returns the name of their f32 form: a `Cast`
    /// node converts 16-bit values.
    pub(super) fn floats(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[f32],
        float: Float,
    ) -> String {
        if float == Float::F32 {
            return self.constant(name, shape, values);
        }
        if self.constants.insert(name.into()) {
            let bytes = || float.to_bytes(values);
            let stored = self.once(&format!("{name}.stored"), shape, type_of(float), bytes);
            let to = Attribute::Integer(TYPE_F32 as i64);
            self.named_node("Cast", &[&stored], &[("to", to)], name);
        }
        name.into()
    }

    /// Adds a constant of i64 values, once per name.
    pub(crate) fn integers<I: Copy + Into<i64>>(&mut self, name: &str, values: &[I]) -> String {
        self.once(name, &[values.len()], TYPE_I64, || le_bytes(values))
    }

    /// Adds a table of integers, unless there is one like it.
    pub(crate) fn table(&mut self, values: &[i64]) -> String {
        let name = format!("table_{}", self.tables.len());
        let name = self.tables.entry(values.into()).or_insert(name).clone();
        self.integers(&name, values)
    }

    /// Adds a scalar i64, once per name: `Gather` by it drops the dimension.
    pub(super) fn index(&mut self, name: &str, value: i64) -> String {
        self.once(name, &[], TYPE_I64, || le_bytes(&[value]))
    }

    /// Adds a constant of f32 values, once per name.
    pub(crate) fn constant(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        self.once(name, shape, TYPE_F32, || Float::F32.to_bytes(values))
    }

    /// Adds an initializer, once per name.
    fn once(
        &mut self,
        name: &str,
        shape: &[usize],
        kind: u64,
        bytes: impl FnOnce() -> Vec<u8>,
    ) -> String {
        if self.constants.insert(name.into()) {
            let mut tensor = Message::default();
            for &dimension in shape {
                tensor.integer(tensor::DIMENSION, dimension as u64);
            }
            tensor.integer(tensor::TYPE, kind);
            tensor.bytes(tensor::NAME, name.as_bytes());
            tensor.bytes(tensor::BYTES, &bytes());
            self.body.message(graph::INITIALIZER, &tensor);
        }
        name.into()
    }

    /// Declares an input of the graph in a shape whose first dimension is dynamic: `rest` are the
    /// others.
    pub(super) fn graph_input(&mut self, name: &str, rest: &[usize]) {
        self.body.message(graph::INPUT, &value(name, rest));
    }

    /// Declares an output, likewise.
    pub(super) fn graph_output(&mut self, name: &str, rest: &[usize]) {
        self.body.message(graph::OUTPUT, &value(name, rest));
    }

    /// Writes the graph as a model with `metadata`.
    pub(super) fn write(
        self,
        writer: &mut impl Write,
        metadata: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut model = Message::default();
        model.integer(model::IR_VERSION, IR_VERSION);
        model.bytes(model::PRODUCER, PRODUCER);
        model.bytes(model::PRODUCER_VERSION, env!("CARGO_PKG_VERSION").as_bytes());
        let mut set = Message::default();
        set.integer(operator_set::VERSION, OPERATOR_SET);
        model.message(model::OPERATOR_SET, &set);
        for (key, value) in metadata {
            let mut entry = Message::default();
            entry.bytes(entry::KEY, key.as_bytes());
            entry.bytes(entry::VALUE, value.as_bytes());
            model.message(model::METADATA, &entry);
        }
        // The graph comes last, written from its own buffer instead of copied into the message.
        model.key_of_bytes(model::GRAPH, self.body.as_bytes().len());
        writer.write_all(model.as_bytes())?;
        writer.write_all(self.body.as_bytes())
    }
}

fn le_bytes<I: Copy + Into<i64>>(values: &[I]) -> Vec<u8> {
    values.iter().flat_map(|&value| value.into().to_le_bytes()).collect()
}

fn value(name: &str, rest: &[usize]) -> Message {
    let mut batch = Message::default();
    batch.bytes(dimension::NAME, b"batch");
    let mut dimensions = Message::default();
    dimensions.message(shape::DIMENSION, &batch);
    for &size in rest {
        let mut dimension = Message::default();
        dimension.integer(dimension::VALUE, size as u64);
        dimensions.message(shape::DIMENSION, &dimension);
    }
    let mut tensor = Message::default();
    tensor.integer(tensor_type::ELEMENT, TYPE_F32);
    tensor.message(tensor_type::SHAPE, &dimensions);
    let mut kind = Message::default();
    kind.message(value_type::TENSOR, &tensor);
    let mut value = Message::default();
    value.bytes(value_info::NAME, name.as_bytes());
    value.message(value_info::TYPE, &kind);
    value
}
