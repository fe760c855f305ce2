//! Attention of the tokens of an image to other tokens, such as those of a coarser map, or to themselves and
//! those before them.

use esvit_kernels::cross_attention::{self, CrossAttention};
use esvit_kernels::element::Bf16;

use super::cpu::{made, made_like, values};
use super::neighbors::HIDDEN;
use super::prelude::*;
use crate::tensor::Dtype;

/// Attention of `q [queries, C]` to `kv [keys, 2 C]`, keys before values in a row: `[queries, C]`, in the type
/// of these, which may be bf16 where nothing learns. `images` lists the numbers of queries and of keys of every image.
pub fn cross_attention(
    q: Tensor,
    kv: Tensor,
    images: &[[usize; 2]],
    heads: usize,
    precision: Precision,
) -> Tensor {
    let attention = Attention { images: images.to_vec(), heads, precision, is_causal: false };
    apply(attention, in_f32_to_learn(vec![q, kv]))
}

/// Causal attention: of every token of `q [tokens, C]` to itself and to those of its image before it, whose
/// keys and values are `kv [tokens, 2 C]`, keys before values in a row: `[tokens, C]`. `images` lists the
/// tokens of every image.
pub fn causal_attention(
    q: Tensor,
    kv: Tensor,
    images: &[usize],
    heads: usize,
    precision: Precision,
) -> Tensor {
    let images = images.iter().map(|&tokens| [tokens; 2]).collect();
    apply(Attention { images, heads, precision, is_causal: true }, [q, kv])
}

/// What is added to the logits of `[tokens, tokens]` so that none sees a later one.
pub(crate) fn later_keys(tokens: usize) -> Vec<f32> {
    let pairs = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (query, key)));
    pairs.map(|(query, key)| if key > query { HIDDEN } else { 0.0 }).collect()
}

/// Inputs: queries, and keys and values.
#[derive(Debug)]
struct Attention {
    images: Vec<[usize; 2]>,
    heads: usize,
    precision: Precision,
    is_causal: bool,
}

impl Attention {
    fn with_width(&self, width: usize) -> CrossAttention<'_> {
        let Self { images, heads, is_causal, .. } = self;
        CrossAttention { images, width, heads: *heads, is_causal: *is_causal }
    }
}

impl Operation for Attention {
    fn output(&self, inputs: &[Shape]) -> Shape {
        let ([queries, width], [keys, wide]) = (inputs[0].dims(), inputs[1].dims());
        let total = |of: usize| self.images.iter().map(|image| image[of]).sum::<usize>();
        assert_eq!([queries, keys, wide], [total(0), total(1), 2 * width], "rows of all images");
        inputs[0]
    }

    fn cost(&self, inputs: &[Shape]) -> Cost {
        let [_, width] = inputs[0].dims();
        let pairs = |&[queries, keys]: &[usize; 2]| match self.is_causal {
            true => queries * (keys + 1) / 2,
            false => queries * keys,
        };
        let macs = 2 * width * self.images.iter().map(pairs).sum::<usize>();
        Cost::products(macs).saving(inputs[0].numel(), Precision::F32)
    }

    fn onnx(&self, nodes: &mut Nodes<'_>) -> Option<String> {
        let &[queries, keys] = self.images.first()?;
        if self.images.iter().any(|&image| image != [queries, keys]) {
            return None;
        }
        let ([_, width], heads) = (nodes.shape(0).dims(), self.heads);
        let depth = width / heads;
        let (q, kv) = (nodes.input(0), nodes.input(1));
        let q = nodes.reshape(&q, &[queries, heads, depth]);
        let q = nodes.transpose(&q, &[0, 2, 1, 3]);
        let kv = nodes.reshape(&kv, &[keys, 2, heads, depth]);
        let kv = nodes.transpose(&kv, &[2, 0, 3, 1, 4]);
        let [k, v] = [0, 1].map(|part| nodes.part(&kv, part));
        let scale = nodes.constant(&format!("scale_{depth}"), &[], &[(depth as f32).powf(-0.5)]);
        let q = nodes.node("Mul", &[&q, &scale], &[]);
        let k = nodes.transpose(&k, &[0, 1, 3, 2]);
        let mut logits = nodes.node("MatMul", &[&q, &k], &[]);
        if self.is_causal {
            let (name, size) = (format!("later_than_{keys}"), [keys; 2]);
            let hidden = nodes.constant(&name, &size, &later_keys(keys));
            logits = nodes.node("Add", &[&logits, &hidden], &[]);
        }
        let weights = nodes.softmax(&logits);
        let context = nodes.node("MatMul", &[&weights, &v], &[]);
        let context = nodes.transpose(&context, &[0, 2, 1, 3]);
        Some(nodes.reshape(&context, &[width]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let attention = self.with_width(inputs[0].shape()[1]);
        let (q, kv) = (&inputs[0], &inputs[1]);
        let context = match q.dtype() {
            Dtype::Bf16 => Tensor::of_memory::<Bf16>(
                cross_attention::forward::<Bf16, Bf16>(q.values(), kv.values(), &attention),
                q.shape(),
            ),
            _ => with_element!(self.precision, T => Tensor::of_memory::<f32>(
                cross_attention::forward::<T, f32>(values(q), values(kv), &attention),
                q.shape(),
            )),
        };
        (context, save.then(|| Saved::new(inputs.swap_remove(0))))
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let q: Tensor = pass.saved.take();
        let (kv, attention) = (&pass.parameters[0], self.with_width(q.shape()[1]));
        let [dq, dkv] = with_element!(self.precision, T => {
            let dcontext = values(&pass.gradient);
            cross_attention::backward::<T>(values(&q), values(kv), &attention, dcontext)
        });
        vec![Some(made_like(dq, &q)), Some(made(dkv, kv.shape()))]
    }
}
