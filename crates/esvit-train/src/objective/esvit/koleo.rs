//! KoLeo: the features of a view's images are to spread evenly, each far from its nearest neighbor.
//!
//! Source: Sablayrolles et al., "Spreading vectors for similarity search" (ICLR 2019), equation 2; as in
//! DINOv2, over the images of a view, so that both views of an image may be near.

use esvit_nn::{Collective, Tensor};

use crate::objective::infonce::normalized;

/// Keeps the logarithm of a distance finite.
const EPS: f64 = 1e-8;

/// `-mean_b ln |x_b - x_n(b)|` `[1]` of features `[B, C]` scaled to unit length, `x_n(b)` being the
/// nearest one of another image, of all processes. 0 where there is no other image.
///
/// The choice of the neighbor has no gradient; both ends of a distance have.
pub fn koleo(features: Tensor, collective: &dyn Collective) -> Tensor {
    let own = normalized(features);
    let [images, _] = own.dims();
    let all = collective.all_gather_grad(own.clone());
    if all.shape()[0] < 2 {
        return Tensor::zeros([1], &own.device());
    }
    let nearest = nearest(&own, &all, collective.rank() * images);
    let difference = own - all.index_select(0, nearest) + EPS;
    let distances = difference.square().sum_dim(1).sqrt();
    -(distances + EPS).log().mean()
}

/// Of each of `own` rows `[B, C]`, which are those from `first` on of `all` `[N, C]`, the most similar other
/// row. All have unit length.
fn nearest(own: &Tensor, all: &Tensor, first: usize) -> Vec<i32> {
    let similarity = own.clone().detach().matmul(all.clone().detach().transpose());
    let [images, count] = similarity.dims();
    // Below every cosine.
    let mut itself = vec![0.0f32; images * count];
    for image in 0..images {
        itself[image * count + first + image] = -4.0;
    }
    let itself = Tensor::new(itself, [images, count], &own.device());
    (similarity + itself).argmax(1).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_nn::{Device, Solo, Tape};
    use esvit_testing::losses::{self, gradient, rows};
    use esvit_testing::{Pair, assert_close, hashed, hashed_tensor};

    const IMAGES: usize = 6;
    const WIDTH: usize = 3;

    #[test]
    fn by_its_definition_with_its_gradient() {
        let values: Vec<f64> = hashed(1, IMAGES * WIDTH).into_iter().map(f64::from).collect();
        let of = |values: &[f64]| losses::koleo(&rows(values, WIDTH));
        let tape = Tape::new();
        let leaf = tape.watch(hashed_tensor(1, [IMAGES, WIDTH]));
        let loss = koleo(leaf.clone(), &Solo);
        assert_close("loss", &[loss.item()], &[of(&values)], 3e-6);
        let found = tape.backward(&loss).of(&leaf).unwrap().to_vec::<f32>();
        assert_close("gradient", &found, &gradient(&values, of), 3e-5);
    }

    /// Four directions at right angles are a distance of the root of 2 apart, and longer ones as well; of equal
    /// rows the loss is large and finite; an image alone has none.
    #[test]
    fn known_distances() {
        let of = |values: Vec<f32>, width: usize| {
            let rows = values.len() / width;
            koleo(Tensor::new(values, [rows, width], &Device::Cpu), &Solo).item()
        };
        let axes = [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.1]].concat();
        assert!((of(axes, 3) + 0.5 * 2f32.ln()).abs() < 1e-6);
        let equal = of(vec![1.0, 2.0, 1.0, 2.0], 2);
        assert!(equal.is_finite() && equal > 15.0, "{equal}");
        assert_eq!(of(vec![1.0, 2.0], 2), 0.0);
    }

    /// Two processes have the loss of all images, and each the gradient of its own.
    #[test]
    fn processes_are_one() {
        let all = hashed_tensor(1, [IMAGES, WIDTH]);
        let run = |features: Tensor, collective: &dyn Collective| {
            let tape = Tape::new();
            let leaf = tape.watch(features);
            let loss = koleo(leaf.clone(), collective);
            (loss.item(), tape.backward(&loss).of(&leaf).unwrap().to_vec::<f32>())
        };
        let (loss, expected) = run(all.clone(), &Solo);
        let half = IMAGES / 2;
        let found = Pair::run(|collective| {
            run(all.clone().narrow(0, collective.rank() * half, half), &*collective)
        });
        assert!(((found[0].0 + found[1].0) / 2.0 - loss).abs() < 1e-6);
        // The loop halves what both have added.
        let found: Vec<f32> = found.iter().flat_map(|(_, g)| g.iter().map(|g| g / 2.0)).collect();
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_close("gradient", &found, &expected, 1e-6);
    }
}
