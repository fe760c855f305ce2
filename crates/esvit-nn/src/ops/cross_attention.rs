//! Attention of the tokens of an image to other tokens, such as those of a coarser map.

use esvit_kernels::cross_attention::{self, CrossAttention};

use super::cpu::{made, made_like, values};
use super::prelude::*;

/// Attention of `q [queries, C]` to `kv [keys, 2 C]`, keys before values in a row: `[queries, C]`.
/// `images` lists the numbers of queries and of keys of every image.
pub fn cross_attention(
    q: Tensor,
    kv: Tensor,
    images: &[[usize; 2]],
    heads: usize,
    precision: Precision,
) -> Tensor {
    apply(Attention { images: images.to_vec(), heads, precision }, [q, kv])
}

/// Inputs: queries, and keys and values.
#[derive(Debug)]
struct Attention {
    images: Vec<[usize; 2]>,
    heads: usize,
    precision: Precision,
}

impl Attention {
    fn with_width(&self, width: usize) -> CrossAttention<'_> {
        CrossAttention { images: &self.images, width, heads: self.heads }
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
        let macs = self.images.iter().map(|[queries, keys]| 2 * queries * keys * width).sum();
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
        let logits = nodes.node("MatMul", &[&q, &k], &[]);
        let weights = nodes.softmax(&logits);
        let context = nodes.node("MatMul", &[&weights, &v], &[]);
        let context = nodes.transpose(&context, &[0, 2, 1, 3]);
        Some(nodes.reshape(&context, &[width]))
    }

    fn forward(&self, mut inputs: Vec<Tensor>, save: bool) -> (Tensor, Option<Saved>) {
        let attention = self.with_width(inputs[0].shape()[1]);
        let (q, kv) = (values(&inputs[0]), values(&inputs[1]));
        let context = with_element!(self.precision, T => {
            cross_attention::forward::<T>(q, kv, &attention)
        });
        let context = made_like(context, &inputs[0]);
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
