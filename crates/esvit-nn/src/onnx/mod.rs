//! A backbone as an ONNX graph, read off a pass over shapes.
//!
//! The graph maps `images [batch, 3, H, W]`, normalized pixels, to `view [batch, C]` and
//! `region [batch, T, C]`. Height and width are fixed, since index tables depend on them; the
//! batch is dynamic: passes over one image and over two show which dimensions grow with it. All is
//! computed in f32. Parameters have their official names; weights of linear layers are stored
//! transposed for `MatMul`.

mod graph;
mod nodes;
mod sizes;

use std::io::{self, Write};

use esvit_weights::Float;

use crate::ForwardCtx;
use crate::backbone::Backbone;
use crate::params::Params;
use crate::tape::{Entry, Operation, Origin, Tape};
use crate::tensor::{Dtype, Tensor};
use graph::Input;

pub(crate) use graph::Attribute;
pub use graph::Nodes;
pub(crate) use sizes::Sizes;

/// Writes a backbone for images of `[height, width]` pixels. Weights of linear layers are stored as
/// `float` and used as f32; `metadata` is stored in the file.
///
/// # Errors
/// When writing fails, or an operation has no ONNX form.
pub fn write(
    writer: &mut impl Write,
    backbone: &dyn Backbone,
    params: &Params,
    [height, width]: [usize; 2],
    float: Float,
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let trace = |batch| {
        let tape = Tape::new();
        let images = tape.symbol(graph::IMAGES, [batch, 3, height, width]);
        let symbols = Params::symbolic(params.specs(), &tape);
        (backbone.forward(&symbols, images, &ForwardCtx::eval()), tape)
    };
    let ((features, one), (_, two)) = (trace(1), trace(2));
    let mut graph = Nodes::new(params, float);
    graph.graph_input(graph::IMAGES, &[3, height, width]);
    let names = one
        .with_entries(|one| two.with_entries(|two| operations(&mut graph, one, two)))
        .map_err(|reason| io::Error::other(Inexpressible { family: backbone.family(), reason }))?;
    for (output, tensor) in [("view", &features.view), ("region", &features.region)] {
        let (_, value) = tensor.node().expect("computed from images");
        let rest = &tensor.shape()[1..];
        let name = graph.reshape(&names[*value], rest);
        graph.named_node("Identity", &[&name], &[], output);
        graph.graph_output(output, rest);
    }
    graph.write(writer, metadata)
}

/// What has no ONNX form.
#[derive(Debug, thiserror::Error)]
#[error(
    "a {family} backbone has no ONNX form: {reason}\nhint: export its weights in another format"
)]
struct Inexpressible {
    family: &'static str,
    reason: String,
}

/// The name of an operation in messages: what stands before its fields.
fn name_of(operation: &dyn Operation) -> String {
    format!("{operation:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// Adds the nodes of all operations that are on the tapes for one image and for two; returns the
/// names of all values. What differs between the two tapes depends on the batch.
fn operations(
    graph: &mut Nodes<'_>,
    ones: &[Entry],
    twos: &[Entry],
) -> Result<Vec<String>, String> {
    let differ = || "it computes a batch of two otherwise than one image".to_owned();
    if ones.len() != twos.len() {
        return Err(differ());
    }
    let mut names: Vec<String> = Vec::new();
    for (number, (entry, other)) in ones.iter().zip(twos).enumerate() {
        names.push(match (&entry.origin, &other.origin) {
            (Origin::Leaf(name), Origin::Leaf(_)) => name.clone(),
            (Origin::Constant(one), Origin::Constant(two)) => constant(graph, number, one, two)?,
            (Origin::Operation(one), Origin::Operation(two)) => {
                let of_operation = || name_of(&*one.operation);
                if of_operation() != name_of(&*two.operation) {
                    return Err(differ());
                }
                let pairs = one.inputs.iter().zip(&two.inputs);
                let inputs = pairs.map(|((value, shape), (_, twice))| {
                    let value = value.ok_or_else(of_operation)?;
                    let is_reshaped = ones[value].shape != *shape || twos[value].shape != *twice;
                    let sizes = Sizes::of(*shape, *twice).ok_or_else(|| {
                        let name = of_operation();
                        format!("`{name}` takes {shape:?} for one image and {twice:?} for two")
                    })?;
                    Ok(Input { name: names[value].clone(), sizes, is_reshaped })
                });
                graph.inputs = inputs.collect::<Result<_, String>>()?;
                graph.twin = Some(two.operation.clone());
                one.operation.onnx(graph).ok_or_else(|| format!("`{}`", of_operation()))?
            }
            _ => return Err(differ()),
        });
    }
    Ok(names)
}

/// A constant, which is repeated for every image if that for two images is.
fn constant(
    graph: &mut Nodes<'_>,
    number: usize,
    one: &Tensor,
    two: &Tensor,
) -> Result<String, String> {
    if one.is_symbolic() {
        return Err("a value that was taken off the tape".into());
    }
    if !matches!(one.dtype(), Dtype::F32 | Dtype::F64) {
        return Err(format!("a constant of {:?}", one.dtype()));
    }
    let batch_axis = Sizes::of(one.shape(), two.shape())
        .ok_or_else(|| format!("a constant {:?}", one.shape()))?
        .batch_axis;
    let values = |tensor: &Tensor| tensor.clone().to_dtype(Dtype::F32).to_vec::<f32>();
    let repeated = match batch_axis {
        Some(axis) => Tensor::cat(vec![one.clone(); 2], axis),
        None => one.clone(),
    };
    if values(&repeated) != values(two) {
        return Err(format!("a constant {:?} that depends on the batch", one.shape()));
    }
    let (name, sizes) = (format!("constant_{number}"), Sizes { image: one.shape(), batch_axis });
    let Some(axis) = batch_axis else {
        return Ok(graph.constant(&name, &one.shape(), &values(one)));
    };
    // Images as an axis of their own, which is repeated and joined with the next.
    let mut shape = one.shape().to_vec();
    shape.insert(axis, 1);
    let stored = graph.constant(&name, &shape, &values(one));
    let images = graph.expand(&stored, &vec![1; shape.len()], Some(axis));
    Ok(graph.reshape_to(&images, &sizes.dims()))
}
