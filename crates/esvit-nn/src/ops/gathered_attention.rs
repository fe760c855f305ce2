//! Attention of groups of tokens to listed keys, such as tokens of a window to those of the windows
//! around it.

use std::sync::Arc;

use esvit_kernels::element::Bf16;
use esvit_kernels::gathered_attention::{self, Gradients};

use super::cpu::{made_like, values};
use super::neighbors::HIDDEN;
use super::prelude::*;
use crate::tensor::{Dtype, Element};

pub use esvit_kernels::gathered_attention::{AttentionGroups, GroupTable, ImageRows};

/// Queries, keys and values of C columns each.
#[derive(Debug, Clone)]
pub enum Projections {
    /// Of a token in one row, `[tokens, 3 C]`.
    Joint(Tensor),
    /// Keys before values in a row.
    Separate {
        /// `[queries, C]`.
        q: Tensor,
        /// `[keys, 2 C]`.
        kv: Tensor,
    },
}

/// `softmax(scale Q K^T + B) V` for every head, in the groups of every image: `[rows of the result, C]`, in the
/// type of the projections, which may be bf16 where nothing learns.
///
/// `segments` lists numbers of images and their groups. `biases` has one `[heads, queries, keys]` for
/// each table of each segment, or none.
pub fn gathered_attention(
    projections: Projections,
    segments: Vec<(usize, Arc<AttentionGroups>)>,
    biases: Vec<Tensor>,
    heads: usize,
    scale: f64,
    precision: Precision,
) -> Tensor {
    let (is_joint, has_biases) = (matches!(projections, Projections::Joint(_)), !biases.is_empty());
    let mut inputs = match projections {
        Projections::Joint(qkv) => vec![qkv],
        Projections::Separate { q, kv } => vec![q, kv],
    };
    inputs.extend(biases);
    let attention = GatheredAttention { segments, is_joint, has_biases, heads, scale, precision };
    apply(attention, in_f32_to_learn(inputs))
}

/// Inputs: the projections, one or two, and the biases.
#[derive(Debug)]
struct GatheredAttention {
    segments: Vec<(usize, Arc<AttentionGroups>)>,
    is_joint: bool,
    has_biases: bool,
    heads: usize,
    scale: f64,
    precision: Precision,
}

impl GatheredAttention {
    /// Number of projections.
    fn projections(&self) -> usize {
        if self.is_joint { 1 } else { 2 }
    }

    /// C, by the columns of the first projection.
    fn width(&self, columns: usize) -> usize {
        if self.is_joint { columns / 3 } else { columns }
    }

    /// The sum of a number of every image.
    fn total(&self, of: impl Fn(&AttentionGroups) -> usize) -> usize {
        self.segments.iter().map(|(images, groups)| images * of(groups)).sum()
    }

    /// Calls `run` with all arguments of the kernel, given the first input and the others.
    fn with_kernel<S: Element, R>(
        &self,
        first: &Tensor,
        others: &[Tensor],
        run: impl FnOnce(
            gathered_attention::Projections<'_, S>,
            &gathered_attention::GatheredAttention<'_>,
        ) -> R,
    ) -> R {
        let (projections, biases) = match self.is_joint {
            true => (gathered_attention::Projections::Joint(first.values()), others),
            false => {
                let (q, kv) = (first.values(), others[0].values());
                (gathered_attention::Projections::Separate { q, kv }, &others[1..])
            }
        };
        let mut biases = biases.iter().map(values);
        let segments = self.segments.iter().map(|(images, groups)| {
            let count = if self.has_biases { groups.tables().len() } else { 0 };
            let biases = biases.by_ref().take(count).collect();
            gathered_attention::Segment { images: *images, groups, biases }
        });
        let segments: Vec<_> = segments.collect();
        let (width, scale) = (self.width(first.shape()[1]), self.scale as f32);
        let (segments, heads) = (&segments[..], self.heads);
        run(projections, &gathered_attention::GatheredAttention { segments, width, heads, scale })
    }
}

impl Operation for GatheredAttention {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let [rows, columns] = inputs[0].dims();
        assert_eq!(rows, self.total(|groups| groups.rows().queries), "rows of queries");
        let width = self.width(columns);
        if self.is_joint {
            assert_eq!(columns, 3 * width, "queries, keys and values");
        } else {
            let keys = self.total(|groups| groups.rows().keys);
            assert_eq!(inputs[1].dims(), [keys, 2 * width], "keys and values");
        }
        if self.has_biases {
            let tables = self.segments.iter().flat_map(|(_, groups)| groups.tables());
            let expected: Vec<Shape> =
                tables.map(|table| Shape::from([self.heads, table.queries, table.keys])).collect();
            assert_eq!(&inputs[self.projections()..], expected, "biases");
        }
        [self.total(|groups| groups.rows().context), width].into()
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [_, columns] = inputs[0].dims();
        let macs = |pairs: usize| 2 * pairs * self.width(columns);
        let [own, all] = [AttentionGroups::pairs, AttentionGroups::table_pairs]
            .map(|pairs| macs(self.total(pairs)));
        let cost = Cost { padding_macs: (all - own) as f64, ..Cost::products(own) };
        cost.saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let [(_, groups)] = &self.segments[..] else { return None };
        let (mut rows, width) = (groups.rows(), self.width(nodes.shape(0)[1]));
        let q = nodes.input(0);
        let [q, mut kv] = if self.is_joint {
            let qkv = nodes.reshape(&q, &[rows.queries, 3 * width]);
            let end = width as i64;
            [[0, end, 1], [end, 3 * end, 1]].map(|part| nodes.slice(&qkv, 2, part))
        } else {
            let kv = nodes.input(1);
            let kv = nodes.reshape(&kv, &[rows.keys, 2 * width]);
            [nodes.reshape(&q, &[rows.queries, width]), kv]
        };
        let is_zero = |&row: &i32| row as usize == rows.keys;
        if groups.tables().iter().any(|table| table.key_row.iter().any(is_zero)) {
            kv = nodes.with_zero_row(&kv);
            rows.keys += 1;
        }
        let (mut contexts, mut slot, mut slots) = (Vec::new(), 0, vec![0; rows.context]);
        for (number, table) in groups.tables().iter().enumerate() {
            let bias = self.has_biases.then(|| nodes.input(self.projections() + number));
            contexts.push(self.table_nodes(nodes, [&q, &kv], bias, table, rows));
            for &row in &table.context_row {
                if let Some(of_row) = slots.get_mut(row as usize) {
                    *of_row = slot;
                }
                slot += 1;
            }
        }
        let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
        let context = match contexts[..] {
            [context] => context.to_owned(),
            _ => nodes.node("Concat", &contexts, &[("axis", Attribute::Integer(1))]),
        };
        // Padding is left out.
        let context = gathered(nodes, &context, &slots, slot as usize);
        Some(nodes.reshape(&context, &[width]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let shapes: Vec<Shape> = inputs.iter().map(Tensor::shape).collect();
        let shape = self.output(&shapes);
        let (first, others) = (&inputs[0], &inputs[1..]);
        let context = match first.dtype() {
            Dtype::Bf16 => Tensor::of_memory::<Bf16>(
                self.with_kernel(first, others, gathered_attention::forward::<Bf16, Bf16>),
                shape,
            ),
            _ => with_element!(self.precision, T => Tensor::of_memory::<f32>(
                self.with_kernel(first, others, gathered_attention::forward::<T, f32>),
                shape,
            )),
        };
        (context, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let first: Tensor = pass.saved.take();
        let dcontext = values(&pass.gradient);
        let Gradients { projections, biases } =
            self.with_kernel(&first, pass.parameters, |projections, attention| {
                with_element!(self.precision, T => {
                    gathered_attention::backward::<T>(projections, attention, dcontext)
                })
            });
        let inputs = std::iter::once(&first).chain(pass.parameters);
        let gradients = projections.into_iter().chain(biases);
        gradients.zip(inputs).map(|(gradient, of)| Some(made_like(gradient, of))).collect()
    }
}

impl GatheredAttention {
    /// What the queries of a table get, padding too, `[images, queries of all groups, C]`. `q [images,
    /// rows, C]`, and `kv [images, rows, 2 C]`, with a row of zeros if a table has one.
    fn table_nodes(
        &self,
        nodes: &mut Nodes<'_>,
        [q, kv]: [&str; 2],
        bias: Option<String>,
        table: &GroupTable,
        rows: ImageRows,
    ) -> String {
        let (groups, heads) = (table.groups(), self.heads);
        let width = self.width(nodes.shape(0)[1]);
        let depth = width / heads;
        // What padding gets is left out in the end.
        let last = rows.queries as i64 - 1;
        let places: Vec<i64> = table.query_row.iter().map(|&row| last.min(row.into())).collect();
        let queries = gathered(nodes, q, &places, rows.queries);
        let queries = nodes.reshape(&queries, &[table.queries, heads, depth]);
        let queries = nodes.transpose(&queries, &[0, 2, 1, 3]);
        let scale = nodes.number(self.scale);
        let queries = nodes.node("Mul", &[&queries, &scale], &[]);
        let places: Vec<i64> = table.key_row.iter().map(|&row| row.into()).collect();
        let kv = gathered(nodes, kv, &places, rows.keys);
        let kv = nodes.reshape(&kv, &[table.keys, 2, heads, depth]);
        let kv = nodes.transpose(&kv, &[2, 0, 3, 1, 4]);
        let [keys, values] = [0, 1].map(|part| nodes.part(&kv, part));
        let keys = nodes.transpose(&keys, &[0, 1, 3, 2]);
        let mut logits = nodes.node("MatMul", &[&queries, &keys], &[]);
        if let Some(bias) = bias {
            logits = nodes.node("Add", &[&logits, &bias], &[]);
        }
        if table.hidden.contains(&true) {
            let added = table.hidden.iter().map(|&hidden| if hidden { HIDDEN } else { 0.0 });
            let shape = [groups, 1, table.hidden_rows(), table.keys];
            let name = format!("hidden_of_{}", nodes.table(&places));
            let added = nodes.constant(&name, &shape, &added.collect::<Vec<f32>>());
            logits = nodes.reshape(&logits, &[groups, heads, table.queries, table.keys]);
            logits = nodes.node("Add", &[&logits, &added], &[]);
            logits = nodes.reshape(&logits, &[heads, table.queries, table.keys]);
        }
        let weights = nodes.softmax(&logits);
        let context = nodes.node("MatMul", &[&weights, &values], &[]);
        let context = nodes.transpose(&context, &[0, 2, 1, 3]);
        nodes.reshape(&context, &[groups * table.queries, width])
    }
}

/// Rows at `places` of `x [images, rows, width]`.
fn gathered(nodes: &mut Nodes<'_>, x: &str, places: &[i64], rows: usize) -> String {
    if places.len() == rows && places.iter().zip(0..).all(|(&place, row)| place == row) {
        return x.to_owned();
    }
    let table = nodes.table(places);
    nodes.gather(x, &table, 1)
}
