//! A backbone as an ONNX graph.
//!
//! The graph maps `images [batch, 3, H, W]`, normalized pixels, to `view [batch, C]` and
//! `region [batch, T, C]`. Height and width are fixed, since window tables depend on them; the
//! batch is dynamic. Parameters have their official names; weights of linear layers are stored
//! transposed for `MatMul`.

mod graph;

use std::collections::HashMap;
use std::io::{self, Write};

use burn::tensor::Tensor;
use esvit_weights::Float;

use crate::ops::WindowMap;
use crate::params::ParamSpec;
use crate::weights::to_vec;
use crate::{Params, SwinConfig};
use graph::{Attribute, Dimension, Graph};

/// Writes a Swin transformer for images of `[height, width]` pixels. Weights of linear layers are
/// stored as `float` and used as f32; `metadata` is stored in the file.
///
/// # Errors
/// When writing fails.
pub fn write(
    writer: &mut impl Write,
    config: &SwinConfig,
    params: &Params,
    [height, width]: [usize; 2],
    float: Float,
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let values = params.iter().map(|(spec, value)| (spec.name.as_str(), (spec, value))).collect();
    let mut network = Network { config, values, float, graph: Graph::new() };
    let side = |pixels| Dimension::Fixed(pixels);
    network.graph.input("images", &[Dimension::Batch, side(3), side(height), side(width)]);
    let patch = config.patch_size;
    let map = network.stages([height / patch, width / patch]);
    let channels = config.output_width();
    network.graph.output("view", &[Dimension::Batch, side(channels)]);
    network.graph.output("region", &[Dimension::Batch, side(map[0] * map[1]), side(channels)]);
    network.graph.write(writer, metadata)
}

struct Network<'a> {
    config: &'a SwinConfig,
    values: HashMap<&'a str, (&'a ParamSpec, &'a Tensor<1>)>,
    float: Float,
    graph: Graph,
}

/// Name and geometry of a block.
struct BlockPlace {
    name: String,
    map: [usize; 2],
    width: usize,
    heads: usize,
    window: usize,
    shift: usize,
}

impl Network<'_> {
    /// All layers, for a first map of this size. Returns the size of the last map.
    fn stages(&mut self, mut map: [usize; 2]) -> [usize; 2] {
        let config = self.config;
        let mut x = self.patchify();
        for stage in 0..config.stages() {
            for block in 0..config.depths[stage] {
                let (window, shift) = config.window_and_shift(stage, block);
                let place = BlockPlace {
                    name: format!("layers.{stage}.blocks.{block}"),
                    map,
                    width: config.width(stage),
                    heads: config.num_heads[stage],
                    window,
                    shift,
                };
                x = self.attention(&x, &place);
                x = self.mlp(&x, &place.name);
            }
            if stage + 1 < config.stages() {
                x = self.merge(&x, stage, map);
                map = map.map(|side| side.div_ceil(2));
            }
        }
        let region = self.norm(&x, "norm");
        self.graph.named_node("Identity", &[&region], &[], "region");
        let over = [("axes", Attribute::Integers(&[1])), ("keepdims", Attribute::Integer(0))];
        self.graph.named_node("ReduceMean", &[&region], &over, "view");
        map
    }

    fn patchify(&mut self) -> String {
        let side = self.config.patch_size as i64;
        let weight = self.parameter("patch_embed.proj.weight");
        let bias = self.parameter("patch_embed.proj.bias");
        let sides = [side, side];
        let attributes = [
            ("kernel_shape", Attribute::Integers(&sides)),
            ("strides", Attribute::Integers(&sides)),
        ];
        let maps = self.graph.node("Conv", &["images", &weight, &bias], &attributes);
        let rows = self.reshape(&maps, &[0, self.config.embed_dim as i64, -1]);
        let rows = self.transpose(&rows, &[0, 2, 1]);
        self.norm(&rows, "patch_embed.norm")
    }

    /// `x + proj(attention(norm1(x)))`, in windows.
    fn attention(&mut self, x: &str, place: &BlockPlace) -> String {
        let BlockPlace { name, map, width, heads, window, shift } = place;
        let tables = WindowMap::new(*map, *window, *shift);
        let layout = format!("map_{}x{}_window_{window}_shift_{shift}", map[0], map[1]);
        let [tokens, depth] = [tables.window_tokens(), width / heads];
        let as_i64 = |values: &[i32]| values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>();

        let normed = self.norm(x, &format!("{name}.norm1"));
        let weight = self.matrix(&format!("{name}.attn.qkv.weight"));
        let mut qkv = self.graph.node("MatMul", &[&normed, &weight], &[]);
        // Padding has only the bias: it gathers a zero row past the last token.
        if tables.is_padded() {
            qkv = self.with_zero_row(&qkv);
        }
        let slots = self.graph.integers(&format!("{layout}_slots"), &as_i64(&tables.slot_token));
        let qkv = self.gather(&qkv, &slots, 1);
        let bias = self.parameter(&format!("{name}.attn.qkv.bias"));
        let qkv = self.graph.node("Add", &[&qkv, &bias], &[]);
        let shape = [-1, tokens as i64, 3, *heads as i64, depth as i64];
        let qkv = self.reshape(&qkv, &shape);
        let qkv = self.transpose(&qkv, &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|part| {
            let part = self.scalar_index(part);
            self.gather(&qkv, &part, 0)
        });

        let scale = (depth as f32).powf(-0.5);
        let scale = self.graph.constant(&format!("scale_{depth}"), &[], &[scale]);
        let q = self.graph.node("Mul", &[&q, &scale], &[]);
        let k = self.transpose(&k, &[0, 1, 3, 2]);
        let logits = self.graph.node("MatMul", &[&q, &k], &[]);
        let bias = self.position_bias(name, *heads, &tables);
        let mut logits = self.graph.node("Add", &[&logits, &bias], &[]);
        if let Some(mask) = &tables.mask {
            let windows = tables.windows();
            let shape = [windows, 1, tokens, tokens];
            let mask = self.graph.constant(&format!("{layout}_mask"), &shape, mask);
            let [t, h] = [tokens as i64, *heads as i64];
            logits = self.reshape(&logits, &[-1, windows as i64, h, t, t]);
            logits = self.graph.node("Add", &[&logits, &mask], &[]);
            logits = self.reshape(&logits, &[-1, h, t, t]);
        }
        let attention = self.graph.node("Softmax", &[&logits], &[("axis", Attribute::Integer(-1))]);
        let context = self.graph.node("MatMul", &[&attention, &v], &[]);
        let context = self.transpose(&context, &[0, 2, 1, 3]);
        let context = self.reshape(&context, &[-1, tables.slot_token.len() as i64, *width as i64]);
        let slots = self.graph.integers(&format!("{layout}_tokens"), &as_i64(&tables.token_slot));
        let context = self.gather(&context, &slots, 1);
        let projected = self.linear(&context, &format!("{name}.attn.proj"));
        self.graph.node("Add", &[x, &projected], &[])
    }

    /// The relative position bias, `[heads, tokens, tokens]`.
    fn position_bias(&mut self, block: &str, heads: usize, tables: &WindowMap) -> String {
        let table = self.parameter(&format!("{block}.attn.relative_position_bias_table"));
        let rows: Vec<i64> = tables.bias_row.iter().map(|&row| i64::from(row)).collect();
        let rows = self.graph.integers(&format!("positions_{}", tables.window), &rows);
        let bias = self.gather(&table, &rows, 0);
        let tokens = tables.window_tokens() as i64;
        let bias = self.reshape(&bias, &[tokens, tokens, heads as i64]);
        self.transpose(&bias, &[2, 0, 1])
    }

    /// `x + fc2(gelu(fc1(norm2(x))))`, with the exact GELU.
    fn mlp(&mut self, x: &str, block: &str) -> String {
        let normed = self.norm(x, &format!("{block}.norm2"));
        let hidden = self.linear(&normed, &format!("{block}.mlp.fc1"));
        let root = self.graph.constant("root_2", &[], &[std::f32::consts::SQRT_2]);
        let one = self.graph.constant("one", &[], &[1.0]);
        let half = self.graph.constant("half", &[], &[0.5]);
        let scaled = self.graph.node("Div", &[&hidden, &root], &[]);
        let error = self.graph.node("Erf", &[&scaled], &[]);
        let cumulative = self.graph.node("Add", &[&error, &one], &[]);
        let twice = self.graph.node("Mul", &[&hidden, &cumulative], &[]);
        let hidden = self.graph.node("Mul", &[&twice, &half], &[]);
        let y = self.linear(&hidden, &format!("{block}.mlp.fc2"));
        self.graph.node("Add", &[x, &y], &[])
    }

    /// Patch merging of 2 x 2 tokens, (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    fn merge(&mut self, x: &str, stage: usize, [height, width]: [usize; 2]) -> String {
        let is_odd = height % 2 == 1 || width % 2 == 1;
        let x = if is_odd { self.with_zero_row(x) } else { x.to_owned() };
        let outside = (height * width) as i64;
        let mut tokens = Vec::new();
        for row in 0..height.div_ceil(2) {
            for column in 0..width.div_ceil(2) {
                for (down, right) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let [y, x] = [2 * row + down, 2 * column + right];
                    let inside = y < height && x < width;
                    tokens.push(if inside { (y * width + x) as i64 } else { outside });
                }
            }
        }
        let merged = tokens.len() as i64 / 4;
        let tokens = self.graph.integers(&format!("merge_{height}x{width}"), &tokens);
        let quads = self.gather(&x, &tokens, 1);
        let quads = self.reshape(&quads, &[-1, merged, 4 * self.config.width(stage) as i64]);
        let name = format!("layers.{stage}.downsample");
        let normed = self.norm(&quads, &format!("{name}.norm"));
        let weight = self.matrix(&format!("{name}.reduction.weight"));
        self.graph.node("MatMul", &[&normed, &weight], &[])
    }

    fn linear(&mut self, x: &str, name: &str) -> String {
        let weight = self.matrix(&format!("{name}.weight"));
        let bias = self.parameter(&format!("{name}.bias"));
        let y = self.graph.node("MatMul", &[x, &weight], &[]);
        self.graph.node("Add", &[&y, &bias], &[])
    }

    fn norm(&mut self, x: &str, name: &str) -> String {
        let weight = self.parameter(&format!("{name}.weight"));
        let bias = self.parameter(&format!("{name}.bias"));
        let attributes = [
            ("axis", Attribute::Integer(-1)),
            ("epsilon", Attribute::Float(self.config.norm_eps as f32)),
        ];
        self.graph.node("LayerNormalization", &[x, &weight, &bias], &attributes)
    }

    /// A parameter in f32: all but the matrices are small.
    fn parameter(&mut self, name: &str) -> String {
        let (spec, value) = self.values[name];
        self.graph.floats(name, &spec.shape, &to_vec(value), Float::F32)
    }

    /// The weight of a linear layer, transposed.
    fn matrix(&mut self, name: &str) -> String {
        let (spec, value) = self.values[name];
        let [rows, columns] = [spec.shape[0], spec.shape[1]];
        let transposed = value.clone().reshape([rows, columns]).transpose();
        self.graph.floats(name, &[columns, rows], &to_vec(&transposed), self.float)
    }

    /// Appends a zero row after the last token.
    fn with_zero_row(&mut self, x: &str) -> String {
        let pads = self.graph.integers("one_row", &[0, 0, 0, 0, 1, 0]);
        self.graph.node("Pad", &[x, &pads], &[])
    }

    fn scalar_index(&mut self, index: i64) -> String {
        self.graph.index(&format!("index_{index}"), index)
    }

    fn gather(&mut self, x: &str, indices: &str, axis: i64) -> String {
        self.graph.node("Gather", &[x, indices], &[("axis", Attribute::Integer(axis))])
    }

    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let words: Vec<String> = shape.iter().map(i64::to_string).collect();
        let shape = self.graph.integers(&format!("shape_{}", words.join("_")), shape);
        self.graph.node("Reshape", &[x, &shape], &[])
    }

    fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.graph.node("Transpose", &[x], &[("perm", Attribute::Integers(order))])
    }
}
