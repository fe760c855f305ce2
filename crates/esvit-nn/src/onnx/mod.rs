//! A backbone as an ONNX graph, read off a pass over shapes.
//!
//! The graph maps `images [batch, 3, H, W]`, normalized pixels, to `view [batch, C]` and
//! `region [batch, T, C]`. Height and width are fixed, since index tables depend on them; the
//! batch is dynamic. Parameters have their official names; weights of linear layers are stored
//! transposed for `MatMul`.

mod graph;
mod nodes;

use std::collections::HashMap;
use std::io::{self, Write};

use esvit_weights::Float;

use crate::ForwardCtx;
use crate::backbone::Backbone;
use crate::params::Params;
use crate::tape::{Origin, Tape};
use crate::tensor::Tensor;
use graph::{Dimension, Graph};

pub(crate) use graph::Attribute;
pub use nodes::Nodes;

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
    let tape = Tape::new();
    let images = tape.symbol("images", [1, 3, height, width]);
    let symbols = Params::symbolic(params.specs(), &tape);
    let features = backbone.forward(&symbols, images, &ForwardCtx::eval());
    let mut graph = Graph::new();
    let side = |pixels| Dimension::Fixed(pixels);
    graph.input("images", &[Dimension::Batch, side(3), side(height), side(width)]);
    let names = operations(&mut graph, &tape, params, float)?;
    for (output, tensor) in [("view", &features.view), ("region", &features.region)] {
        let (_, value) = tensor.node().expect("computed from images");
        let shape = tensor.shape();
        let name = graph.reshape(&names[*value], &shape[1..]);
        graph.named_node("Identity", &[&name], &[], output);
        let rest = shape[1..].iter().map(|&size| side(size));
        let dimensions: Vec<Dimension> = std::iter::once(Dimension::Batch).chain(rest).collect();
        graph.output(output, &dimensions);
    }
    graph.write(writer, metadata)
}

/// Adds the nodes of all operations on the tape; returns the names of all its values.
fn operations(
    graph: &mut Graph,
    tape: &Tape,
    params: &Params,
    float: Float,
) -> io::Result<Vec<String>> {
    let params: HashMap<&str, _> =
        params.iter().map(|(spec, value)| (spec.name.as_str(), (spec, value))).collect();
    let mut names: Vec<String> = Vec::new();
    tape.with_entries(|entries| {
        for (number, entry) in entries.iter().enumerate() {
            let name = match &entry.origin {
                Origin::Leaf(_, name) => name.clone(),
                Origin::Constant(tensor) => constant(graph, number, tensor),
                Origin::Operation(recorded) => {
                    let inputs = recorded.inputs.iter().map(|(value, shape)| {
                        let value = value.expect("constants have values in a pass over shapes");
                        let name = &names[value];
                        let is_computed = matches!(entries[value].origin, Origin::Operation(_));
                        if is_computed && entries[value].shape != *shape {
                            graph.reshape(name, &shape[1..])
                        } else {
                            name.clone()
                        }
                    });
                    let inputs = inputs.collect();
                    let shapes = recorded.inputs.iter().map(|(_, shape)| *shape).collect();
                    let mut nodes = Nodes { graph, params: &params, float, inputs, shapes };
                    let operation = &recorded.operation;
                    operation.onnx(&mut nodes).ok_or_else(|| {
                        io::Error::other(format!("{operation:?} cannot be written as ONNX"))
                    })?
                }
            };
            names.push(name);
        }
        Ok(names)
    })
}

fn constant(graph: &mut Graph, number: usize, tensor: &Tensor) -> String {
    graph.constant(&format!("constant_{number}"), &tensor.shape(), tensor.values())
}
