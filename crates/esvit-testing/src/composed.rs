//! The fused operations composed of plain ones, in the type of their first argument: with f64 a
//! reference for results and gradients.

use std::ops::Range;
use std::sync::Arc;

use esvit_nn::Tensor;
use esvit_nn::ops::{
    Activation, AttentionGroups, AttentionValues, GroupTable, LinearValues, NormValues, Pairs,
    PrototypeLogits, RotaryAngles, Scales, Segment, WindowMap, tokens_per_image,
};

/// A constant in the type of another tensor.
fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D], like: &Tensor) -> Tensor {
    Tensor::new(values, shape, &like.device()).to_dtype(like.dtype())
}

/// `act(x) weight^T + bias`.
pub fn linear(x: Tensor, layer: LinearValues, activation: Activation) -> Tensor {
    let x = match activation {
        Activation::None => x,
        Activation::Gelu => x.gelu(),
        Activation::QuickGelu => x.clone() * (x * 1.702).sigmoid(),
    };
    x.matmul(layer.weight.transpose()) + layer.bias
}

/// Layer normalization of rows.
pub fn layer_norm(x: Tensor, norm: NormValues) -> Tensor {
    let centered = x.clone() - x.mean_dim(1);
    let variance = centered.clone().square().mean_dim(1);
    centered / (variance + norm.eps).sqrt() * norm.gamma + norm.beta
}

/// Batch normalization of rows; also their mean and biased variance.
pub fn batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: f64) -> (Tensor, [Tensor; 2]) {
    let mean = x.clone().mean_dim(0);
    let centered = x - mean.clone();
    let variance = centered.clone().square().mean_dim(0);
    let y = centered / (variance.clone() + eps).sqrt() * gamma + beta;
    (y, [mean, variance].map(Tensor::detach))
}

/// Depthwise convolution of the maps of a segment with `weight [k, k, C]`.
pub fn depthwise(x: Tensor, segment: Segment, weight: Tensor) -> Tensor {
    let [side, _, channels] = weight.dims();
    let Segment { images, map: [height, width], .. } = segment;
    let maps = x.reshape([images, height, width, channels]).permute(&[0, 3, 1, 2]);
    let weight = weight.permute(&[2, 0, 1]).reshape([channels, 1, side, side]);
    let maps = maps.conv2d(weight, None, 1, side / 2, channels);
    maps.permute(&[0, 2, 3, 1]).reshape([images * height * width, channels])
}

/// Batch normalization of runs of rows, each with its own statistics.
pub fn batch_norm_of_runs(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
    runs: &[usize],
) -> Tensor {
    let mut first = 0;
    let parts = runs.iter().map(|&rows| {
        let own = x.clone().narrow(0, first, rows);
        first += rows;
        batch_norm(own, gamma.clone(), beta.clone(), eps).0
    });
    Tensor::cat(parts.collect(), 0)
}

/// Batch normalization with a given mean and variance.
pub fn fixed_batch_norm(
    x: Tensor,
    [gamma, beta]: [Tensor; 2],
    [mean, variance]: [Tensor; 2],
    eps: f64,
) -> Tensor {
    (x - mean) / (variance + eps).sqrt() * gamma + beta
}

/// The maps of every segment of rows as images `[n, C, height, width]`.
fn images(x: &Tensor, segments: &[Segment]) -> Vec<Tensor> {
    let ([_, channels], mut first) = (x.dims(), 0);
    let images = segments.iter().map(|segment| {
        let Segment { images, map: [height, width], .. } = *segment;
        let rows = images * height * width;
        let maps = x.clone().narrow(0, first, rows).reshape([images, height, width, channels]);
        first += rows;
        maps.permute(&[0, 3, 1, 2])
    });
    images.collect()
}

/// Images as rows.
fn rows(images: Vec<Tensor>) -> Tensor {
    let rows = images.into_iter().map(|images| {
        let [count, channels, height, width] = images.dims();
        images.permute(&[0, 2, 3, 1]).reshape([count * height * width, channels])
    });
    Tensor::cat(rows.collect(), 0)
}

/// Convolution of the maps of segments.
pub fn convolution(
    x: Tensor,
    segments: &[Segment],
    weight: Tensor,
    bias: Option<Tensor>,
    [stride, padding]: [usize; 2],
) -> Tensor {
    let maps = images(&x, segments).into_iter();
    let maps = maps.map(|maps| maps.conv2d(weight.clone(), bias.clone(), stride, padding, 1));
    rows(maps.collect())
}

/// The largest values of the maps of segments under a moving window. What is beyond a border counts
/// as what is at it, which is under the window too.
pub fn max_pool(x: Tensor, segments: &[Segment], [side, stride, padding]: [usize; 3]) -> Tensor {
    let [_, channels] = x.dims();
    let (mut places, mut first) = (Vec::new(), 0);
    for &Segment { images, map: [height, width], .. } in segments {
        let positions = |side_of_map: usize| (side_of_map + 2 * padding - side) / stride + 1;
        for _ in 0..images {
            for position in 0..positions(height) * positions(width) {
                let corner = [position / positions(width), position % positions(width)];
                for tap in 0..side * side {
                    let inside = |at: usize, tap: usize, length: usize| {
                        (at * stride + tap).saturating_sub(padding).min(length - 1)
                    };
                    let row = inside(corner[0], tap / side, height);
                    let column = inside(corner[1], tap % side, width);
                    places.push((first + row * width + column) as i32);
                }
            }
            first += height * width;
        }
    }
    let count = places.len() / (side * side);
    let under = x.index_select(0, places).reshape([count, side * side, channels]);
    under.max_dim(1).reshape([count, channels])
}

/// Attention of `q [queries, C]` to `kv [keys, 2 C]` within images.
pub fn cross_attention(q: Tensor, kv: Tensor, images: &[[usize; 2]], heads: usize) -> Tensor {
    let [_, width] = q.dims();
    let depth = width / heads;
    let mut first = [0, 0];
    let context = images.iter().map(|&[queries, keys]| {
        let q = q.clone().narrow(0, first[0], queries).reshape([1, queries, heads, depth]);
        let kv = kv.clone().narrow(0, first[1], keys).reshape([1, keys, 2, heads, depth]);
        first = [first[0] + queries, first[1] + keys];
        let [keys, values] = [0, 1].map(|part| {
            let part = kv.clone().narrow(2, part, 1);
            part.reshape([1, keys, heads, depth]).swap_dims(1, 2)
        });
        let context = weights(q.swap_dims(1, 2), keys, None).matmul(values).swap_dims(1, 2);
        context.reshape([queries, width])
    });
    Tensor::cat(context.collect(), 0)
}

/// Attention of `q [tokens, C]` to `kv [tokens, 2 C]` within images, in which no token sees a later one.
pub fn causal_attention(q: Tensor, kv: Tensor, images: &[usize], heads: usize) -> Tensor {
    let [_, width] = q.dims();
    let (depth, mut first) = (width / heads, 0);
    let context = images.iter().map(|&tokens| {
        let own = q.clone().narrow(0, first, tokens).reshape([1, tokens, heads, depth]);
        let kv = kv.clone().narrow(0, first, tokens).reshape([1, tokens, 2, heads, depth]);
        first += tokens;
        let [keys, values] = [0, 1].map(|part| {
            let part = kv.clone().narrow(2, part, 1);
            part.reshape([1, tokens, heads, depth]).swap_dims(1, 2)
        });
        let is_later = |pair: usize| pair % tokens > pair / tokens;
        let hidden = (0..tokens * tokens).map(|pair| if is_later(pair) { -1e30 } else { 0.0 });
        let hidden = constant(hidden.collect(), [1, 1, tokens, tokens], &q);
        let weights = weights(own.swap_dims(1, 2), keys, Some(hidden));
        weights.matmul(values).swap_dims(1, 2).reshape([tokens, width])
    });
    Tensor::cat(context.collect(), 0)
}

/// Queries and keys of rows `[tokens of all images, 3 C]` turned: `(x, y)` of the two halves of a head's
/// channels to `(x cos - y sin, y cos + x sin)`.
pub fn rotary(qkv: Tensor, segments: &[Segment], angles: &[Arc<RotaryAngles>]) -> Tensor {
    let ([_, width], mut first) = (qkv.dims(), 0);
    let turned = segments.iter().zip(angles).map(|(segment, angles)| {
        let (images, tokens) = (segment.images, angles.tokens);
        let half = angles.cosines.len() / tokens;
        let heads = width / 3 * 2 / (2 * half);
        let own = qkv.clone().narrow(0, first, images * tokens);
        first += images * tokens;
        let values = own.clone().narrow(1, width / 3 * 2, width / 3);
        let points = own.narrow(1, 0, width / 3 * 2).reshape([images, tokens, heads, 2, half]);
        let [x, y] = [0, 1].map(|part| points.clone().narrow(3, part, 1));
        let [cosines, sines] = [&angles.cosines, &angles.sines]
            .map(|table| constant(table.clone(), [1, tokens, 1, 1, half], &qkv));
        let left = x.clone() * &cosines - y.clone() * &sines;
        let right = y * &cosines + x * &sines;
        let points = Tensor::cat(vec![left, right], 3);
        Tensor::cat(vec![points.reshape([images * tokens, width / 3 * 2]), values], 1)
    });
    Tensor::cat(turned.collect(), 0)
}

/// `silu(a) b` of rows `[a, b]`.
pub fn swiglu(rows: Tensor) -> Tensor {
    let half = rows.shape()[1] / 2;
    let [a, b] = [0, half].map(|start| rows.clone().narrow(1, start, half));
    a.clone() * a.sigmoid() * b
}

/// Attention of `q [queries, C]` to `kv [keys, 2 C]` in the groups of every image; `biases` has
/// `[heads, queries, keys]` for each table of each segment, or none.
pub fn gathered_attention(
    q: Tensor,
    kv: Tensor,
    segments: &[(usize, Arc<AttentionGroups>)],
    biases: &[Tensor],
    heads: usize,
    scale: f64,
) -> Tensor {
    let ([_, width], mut first, mut biases) = (q.dims(), [0, 0], biases.iter());
    let mut contexts = Vec::new();
    for (images, groups) in segments {
        let (images, rows) = (*images, groups.rows());
        let counts = [rows.queries, rows.keys].map(|rows| images * rows);
        let q = q.clone().narrow(0, first[0], counts[0]).reshape([images, rows.queries, width]);
        let kv = kv.clone().narrow(0, first[1], counts[1]).reshape([images, rows.keys, 2 * width]);
        first = [first[0] + counts[0], first[1] + counts[1]];
        let [q, kv] = [q, kv].map(with_zero_token);
        let (mut of_slots, mut slot, mut slots) = (Vec::new(), 0, vec![0; rows.context]);
        for table in groups.tables() {
            let bias = biases.next().cloned();
            of_slots.push(of_table(&q, &kv, bias, table, heads, scale));
            for &row in &table.context_row {
                if let Some(of_row) = slots.get_mut(row as usize) {
                    *of_row = slot;
                }
                slot += 1;
            }
        }
        let context = Tensor::cat(of_slots, 1).index_select(1, slots);
        contexts.push(context.reshape([images * rows.context, width]));
    }
    Tensor::cat(contexts, 0)
}

/// What the queries of a table get, `[images, queries of all groups, C]`; the last row of `q [images,
/// rows + 1, C]` and `kv` is zero.
fn of_table(
    q: &Tensor,
    kv: &Tensor,
    bias: Option<Tensor>,
    table: &GroupTable,
    heads: usize,
    scale: f64,
) -> Tensor {
    let ([images, rows, width], groups) = (q.dims(), table.groups());
    let depth = width / heads;
    let last = rows as i32 - 1;
    let places: Vec<i32> = table.query_row.iter().map(|&row| row.min(last)).collect();
    let queries = q.clone().index_select(1, places);
    let queries = queries.reshape([images * groups, table.queries, heads, depth]).swap_dims(1, 2);
    let kv = kv.clone().index_select(1, table.key_row.clone());
    let kv = kv.reshape([images * groups, table.keys, 2, heads, depth]);
    let [keys, values] = [0, 1].map(|part| {
        let part = kv.clone().narrow(2, part, 1);
        part.reshape([images * groups, table.keys, heads, depth]).swap_dims(1, 2)
    });
    let mut logits = (queries * scale).matmul(keys.transpose());
    if let Some(bias) = bias {
        logits = logits + bias.reshape([1, heads, table.queries, table.keys]);
    }
    if !table.hidden.is_empty() {
        let added = table.hidden.iter().map(|&hidden| if hidden { -1e30 } else { 0.0 });
        let shape = [1, groups, 1, table.hidden_rows(), table.keys];
        let added = constant(added.collect(), shape, q);
        let shape = logits.shape();
        let by_image = logits.reshape([images, groups, heads, table.queries, table.keys]);
        logits = (by_image + added).reshape(shape);
    }
    let context = logits.softmax(3).matmul(values).swap_dims(1, 2);
    context.reshape([images, groups * table.queries, width])
}

/// Tokens `[images, n, C]` with a token of zeros after those of each image.
fn with_zero_token(tokens: Tensor) -> Tensor {
    let [images, _, width] = tokens.dims();
    let zeros = constant(vec![0.0; images * width], [images, 1, width], &tokens);
    Tensor::cat(vec![tokens, zeros], 1)
}

/// Multiplies rows by the scale of their image; `images` lists the rows of every image.
fn scaled(branch: Tensor, images: &[usize], scales: Scales) -> Tensor {
    let Some(scales) = scales else { return branch };
    let rows: Vec<f32> =
        images.iter().zip(&*scales).flat_map(|(&n, &s)| std::iter::repeat_n(s, n)).collect();
    let scales = constant(rows.clone(), [rows.len(), 1], &branch);
    branch * scales
}

/// `x + scale * fc2(act(fc1(norm(x))))`.
pub fn mlp_branch(
    x: Tensor,
    segments: &[Segment],
    norm: NormValues,
    [fc1, fc2]: [LinearValues; 2],
    activation: Activation,
    scales: Scales,
) -> Tensor {
    let hidden = linear(layer_norm(x.clone(), norm), fc1, Activation::None);
    x + scaled(linear(hidden, fc2, activation), &tokens_per_image(segments), scales)
}

/// Softmax of scaled products of `queries` and `keys`, plus `bias`.
fn weights(queries: Tensor, keys: Tensor, bias: Option<Tensor>) -> Tensor {
    let scale = (queries.shape()[3] as f64).powf(-0.5);
    let logits = (queries * scale).matmul(keys.transpose());
    bias.map_or(logits.clone(), |bias| logits + bias).softmax(3)
}

/// Queries, keys and values `[B, heads, tokens, d]` of `qkv [B, tokens, 3 C]`.
fn split(qkv: Tensor, heads: usize) -> [Tensor; 3] {
    let [batch, tokens, width] = qkv.dims();
    let depth = width / 3 / heads;
    let qkv = qkv.reshape([batch, tokens, 3, heads, depth]).permute(&[2, 0, 3, 1, 4]);
    [0, 1, 2].map(|part| qkv.clone().narrow(0, part, 1).reshape([batch, heads, tokens, depth]))
}

/// `x + scale * proj(attention(qkv(norm(x))))` in windows.
pub fn attention_branch(
    x: Tensor,
    segments: &[Segment],
    windows: &[Arc<WindowMap>],
    layers: AttentionValues,
    scales: Scales,
) -> Tensor {
    let AttentionValues { norm, qkv, proj, table } = layers;
    let ([_, width], heads) = (x.dims(), table.shape()[1]);
    // The bias is added after padding: the official code pads with zeros before the layer.
    let projected = layer_norm(x.clone(), norm).matmul(qkv.weight.transpose());
    let mut first = 0;
    let context = segments.iter().zip(windows).map(|(&Segment { images, .. }, windows)| {
        let (count, side) = (windows.windows(), windows.window_tokens());
        let rows = images * windows.tokens();
        let projected = projected.clone().narrow(0, first, rows);
        first += rows;
        let projected = projected.reshape([images, windows.tokens(), 3 * width]);
        let padding = constant(vec![0.0; images * 3 * width], [images, 1, 3 * width], &x);
        let padded = Tensor::cat(vec![projected, padding], 1);
        let slots = padded.index_select(1, windows.slot_token.clone()) + &qkv.bias;
        let [queries, keys, values] =
            split(slots.reshape([images * count, side, 3 * width]), heads);
        let position = table.clone().index_select(0, windows.bias_row.clone());
        let mut bias = position.reshape([1, side, side, heads]).permute(&[0, 3, 1, 2]);
        if let Some(mask) = &windows.mask {
            let mask = constant(mask.clone(), [count, 1, side, side], &x);
            let of_all = Tensor::cat(vec![mask; images], 0);
            bias = bias + of_all;
        }
        let context = weights(queries, keys, Some(bias)).matmul(values).swap_dims(1, 2);
        let context = context.reshape([images, count * side, width]);
        context.index_select(1, windows.token_slot.clone()).reshape([rows, width])
    });
    let context = Tensor::cat(context.collect(), 0);
    x + scaled(linear(context, proj, Activation::None), &tokens_per_image(segments), scales)
}

/// The same within each image, without a position bias.
pub fn plain_attention_branch(
    x: Tensor,
    images: &[usize],
    heads: usize,
    norm: NormValues,
    [qkv, proj]: [LinearValues; 2],
    scales: Scales,
) -> Tensor {
    let [_, width] = x.dims();
    let qkv = linear(layer_norm(x.clone(), norm), qkv, Activation::None);
    let mut first = 0;
    let context = images.iter().map(|&tokens| {
        let qkv = qkv.clone().narrow(0, first, tokens).reshape([1, tokens, 3 * width]);
        first += tokens;
        let [queries, keys, values] = split(qkv, heads);
        let context = weights(queries, keys, None).matmul(values).swap_dims(1, 2);
        context.reshape([tokens, width])
    });
    let context = Tensor::cat(context.collect(), 0);
    x + scaled(linear(context, proj, Activation::None), images, scales)
}

/// Patch merging, with the rows of [`esvit_nn::ops::merging_indices`]; those beyond the maps are
/// zero.
pub fn merge(x: Tensor, neighbors: &[[u32; 4]], norm: NormValues, weight: Tensor) -> Tensor {
    let [rows, width] = x.dims();
    let zero = constant(vec![0.0; width], [1, width], &x);
    let places = neighbors.as_flattened().iter().map(|&row| (row as usize).min(rows) as i32);
    let joined = Tensor::cat(vec![x, zero], 0).index_select(0, places.collect::<Vec<_>>());
    layer_norm(joined.reshape([neighbors.len(), 4 * width]), norm).matmul(weight.transpose())
}

/// Non-overlapping patches as rows.
pub fn patchify(images: Tensor, patch: usize) -> Tensor {
    let [batch, channels, height, width] = images.dims();
    let [h, w] = [height / patch, width / patch];
    images
        .narrow(2, 0, h * patch)
        .narrow(3, 0, w * patch)
        .reshape([batch, channels, h, patch, w, patch])
        .permute(&[0, 2, 4, 1, 3, 5])
        .reshape([batch * h * w, channels * patch * patch])
}

/// Cross-entropy of the student to the teacher's distributions over prototypes.
pub fn cross_entropy(
    student: PrototypeLogits,
    teacher: PrototypeLogits,
    center: Tensor,
    pairs: &Pairs,
    [student_temp, teacher_temp]: [f64; 2],
) -> Tensor {
    let (rows, teachers) = (student.rows(), teacher.rows());
    let like = student.z.clone();
    let targets = ((teacher.matrix() - center) / teacher_temp).softmax(1).detach();
    let mut shares = vec![0.0; rows * teachers];
    for row in 0..rows {
        for (teacher, weight) in pairs.of(row) {
            shares[row * teachers + teacher] += weight;
        }
    }
    let targets = constant(shares, [rows, teachers], &like).matmul(targets);
    -((student.matrix() / student_temp).log_softmax(1) * targets).sum()
}

/// InfoNCE of queries with a positive each and negatives that all share.
pub fn info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: f64) -> Tensor {
    let rows = queries.shape()[0];
    let own = (queries.clone() * positives).sum_dim(1);
    let others = queries.matmul(negatives.transpose());
    let logits = Tensor::cat(vec![own, others], 1) / temperature;
    -logits.log_softmax(1).pick(&vec![0; rows]).mean()
}

/// For every query row of every group, the row of `keys` with the largest cosine similarity among
/// the group's keys.
pub fn best_matches(
    queries: Tensor,
    keys: Tensor,
    groups: &[(Range<usize>, Range<usize>)],
) -> Vec<u32> {
    let unit = |x: Tensor| x.clone() / x.square().sum_dim(1).sqrt();
    let (queries, keys) = (unit(queries), unit(keys));
    let matched = groups.iter().flat_map(|(of, among)| {
        let queries = queries.clone().narrow(0, of.start, of.len());
        let keys = keys.clone().narrow(0, among.start, among.len());
        let best = queries.matmul(keys.transpose()).argmax(1).to_vec::<i32>();
        best.into_iter().map(|row| row as u32 + among.start as u32)
    });
    matched.collect()
}
