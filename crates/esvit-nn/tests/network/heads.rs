//! Backbone and heads together, and the heads by themselves.

use super::*;

pub(super) fn network(region: bool) -> (Network, EsvitHeads, Params) {
    let head = HeadConfig {
        out_dim: 7,
        hidden_dim: 6,
        bottleneck_dim: 5,
        layers: 2,
        use_bn_in_head: false,
        norm_last_layer: false,
    };
    let heads = |scope: &mut Scope<'_>, width| EsvitHeads::new(scope, width, &head, region);
    let (network, heads) = Network::new(&config(), 0.0, heads);
    let params = fill(network.specs(), 0);
    (network, heads, params)
}

/// Predictions for crops of equal batch size.
pub(super) fn predict(
    (network, heads, params): &(Network, EsvitHeads, Params),
    crops: &[Tensor],
    ctx: &ForwardCtx,
) -> Predictions {
    let features = network.features(params, crops, ctx);
    heads.forward(params, features, crops[0].shape()[0], ctx)
}

/// Crops of two sizes at once and each alone; the region head has parameters of its own.
#[test]
fn crops_at_once_and_alone() {
    let whole = network(true);
    let params = &whole.2;
    let crops: Vec<Tensor> = (0..4)
        .map(|i| images(1000 + i, [2, 3, [16, 8][i as usize / 2], [16, 12][i as usize / 2]]))
        .collect();
    let pass = ForwardCtx::eval();
    let together = predict(&whole, &crops, &pass);
    let region = together.region.unwrap();
    assert_eq!(region.tokens, [16, 16, 6, 6]);
    let (mut rows, mut region_rows) = (0, 0);
    let part =
        |whole: Tensor, first: usize, rows: usize| whole.narrow(0, first, rows).to_vec::<f32>();
    for (crop, tokens) in crops.iter().zip([16, 16, 6, 6]) {
        let alone = predict(&whole, std::slice::from_ref(crop), &pass);
        let of_region = alone.region.unwrap();
        assert_eq!(of_region.tokens, [tokens]);
        for (what, found, expected, at) in [
            ("features", &together.view_features, &alone.view_features, [rows, 2]),
            ("logits", &together.view_logits.matrix(), &alone.view_logits.matrix(), [rows, 2]),
            ("tokens", &region.features, &of_region.features, [region_rows, 2 * tokens]),
            (
                "region logits",
                &region.logits.matrix(),
                &of_region.logits.matrix(),
                [region_rows, 2 * tokens],
            ),
        ] {
            let found = part(found.clone(), at[0], at[1]);
            assert_alike(what, &found, &expected.to_vec::<f32>(), 1e-5);
        }
        (rows, region_rows) = (rows + 2, region_rows + 2 * tokens);
        // The dense head on the tokens, the other on their mean.
        let mut registry = Registry::default();
        let config = HeadConfig {
            out_dim: 7,
            hidden_dim: 6,
            bottleneck_dim: 5,
            layers: 2,
            use_bn_in_head: false,
            norm_last_layer: false,
        };
        let head = Head::new(&mut registry.root(), 16, &config);
        let specs = registry.finish();
        for (name, features, expected) in [
            ("head", &alone.view_features, &alone.view_logits),
            ("head_dense", &of_region.features, &of_region.logits),
        ] {
            let named = Named(params);
            let own = Params::from_fn(&specs, &Device::Cpu, |spec| {
                named.vector(&format!("{name}.{}", spec.name)).to_vec::<f32>()
            });
            let found = head.forward(&own, features.clone(), &pass);
            assert_eq!(found.matrix().to_vec::<f32>(), expected.matrix().to_vec::<f32>(), "{name}");
        }
    }
    let last = whole.1.last_layers().into_iter().map(|id| &whole.0.specs()[id.index()]);
    let names: Vec<&str> = last.map(|spec| spec.name.as_str()).collect();
    let expected = ["weight_g", "weight_v"].map(|name| format!("last_layer.{name}"));
    let expected =
        ["head", "head_dense"].map(|head| expected.clone().map(|p| format!("{head}.{p}")));
    assert_eq!(names, expected.as_flattened());
    assert!(whole.1.has_region() && whole.1.prototypes() == 7);
    let whole = self::network(false);
    assert!(!whole.1.has_region());
    assert!(predict(&whole, &crops[..1], &pass).region.is_none());
}

/// PrototypeLogits of prototypes of any length, their mean, and a matrix of logits as it is.
#[test]
fn logits_by_their_definition() {
    let [rows, prototypes, width] = [3, 4, 5];
    let logits = PrototypeLogits {
        z: hashed_tensor(1, [rows, width]),
        v: hashed_tensor(2, [prototypes, width]),
        g: hashed_tensor(3, [prototypes]) + 2.0,
    };
    let [z, v] = [hashed(1, rows * width), hashed(2, prototypes * width)];
    let expected: Vec<f64> = (0..rows * prototypes)
        .map(|i| {
            let (row, k) = (&z[i / prototypes * width..][..width], i % prototypes);
            let v: Vec<f64> = v[k * width..][..width].iter().map(|&v| v.into()).collect();
            let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let product: f64 = row.iter().zip(&v).map(|(&a, b)| f64::from(a) * b).sum();
            product / norm * f64::from(hashed(3, prototypes)[k] + 2.0)
        })
        .collect();
    assert_close("matrix", &logits.matrix().to_vec::<f32>(), &expected, 1e-6);
    let mean: Vec<f64> = (0..prototypes)
        .map(|k| expected.iter().skip(k).step_by(prototypes).sum::<f64>() / rows as f64)
        .collect();
    assert_close("mean", &logits.mean().to_vec::<f32>(), &mean, 1e-6);
    assert_eq!((logits.rows(), logits.prototypes()), (rows, prototypes));
    let matrix = hashed_tensor(4, [3, 4]);
    let same = PrototypeLogits::from_matrix(matrix.clone());
    assert_alike("same", &same.matrix().to_vec::<f32>(), &matrix.to_vec::<f32>(), 1e-6);
    let mean = matrix.mean_dim(0).to_vec::<f32>();
    assert_alike("its mean", &same.mean().to_vec::<f32>(), &mean, 1e-6);
}

/// Means and unbiased variances of the batch, a tenth of which goes into the running ones; these
/// are what evaluation uses.
#[test]
fn running_statistics_of_the_head() {
    const ROWS: usize = 5;
    let config = HeadConfig {
        out_dim: 4,
        hidden_dim: 3,
        bottleneck_dim: 2,
        layers: 2,
        use_bn_in_head: true,
        norm_last_layer: true,
    };
    let mut registry = Registry::default();
    let head = Head::new(&mut registry.root(), 2, &config);
    let mut params = fill(&registry.finish(), 10);
    let specs = params.specs().clone();
    for (index, _) in specs.iter().enumerate().filter(|(_, spec)| spec.role == Role::Buffer) {
        params.set(index, &(params.value(index) + 0.5).to_vec());
    }
    let x = hashed_tensor(1, [ROWS, 2]) * 2.0;
    let named = Named(&params);
    let hidden = composed::linear(x.clone(), named.linear("mlp.0", 2), Activation::None);
    let hidden = hidden.to_vec::<f32>();
    let column = |k: usize| hidden[k..].iter().step_by(3).map(|&v| f64::from(v));
    let mean: Vec<f64> = (0..3).map(|k| column(k).sum::<f64>() / ROWS as f64).collect();
    let squares: Vec<f64> =
        (0..3).map(|k| column(k).map(|v| (v - mean[k]).powi(2)).sum::<f64>()).collect();

    let [gamma, beta] =
        ["weight", "bias"].map(|part| named.vector(&format!("mlp.1.{part}")).to_vec::<f32>());
    let embedded = |mean: &[f64], variance: &[f64]| -> Vec<f64> {
        let normed: Vec<f32> = hidden
            .iter()
            .enumerate()
            .map(|(i, &value)| {
                let k = i % 3;
                let unit = (f64::from(value) - mean[k]) / (variance[k] + 1e-5).sqrt();
                (unit * f64::from(gamma[k]) + f64::from(beta[k])) as f32
            })
            .collect();
        let normed = Tensor::new(normed, [ROWS, 3], &Device::Cpu);
        let z = composed::linear(normed, named.linear("mlp.3", 3), Activation::Gelu);
        let z = z.to_vec::<f32>();
        z.chunks_exact(2)
            .flat_map(|row| {
                let length = f64::from(row[0]).hypot(f64::from(row[1]));
                [f64::from(row[0]) / length, f64::from(row[1]) / length]
            })
            .collect()
    };
    let variance: Vec<f64> = squares.iter().map(|sum| sum / ROWS as f64).collect();
    for pass in [ForwardCtx::teacher(), ForwardCtx::student(KEY)] {
        let found = head.embed(&params, x.clone(), &pass).to_vec::<f32>();
        assert_close("training", &found, &embedded(&mean, &variance), 2e-5);
        let mut after = params.clone();
        after.set_buffers(pass.into_statistics());
        let after = Named(&after);
        let running = |old: f64, new: f64| 0.9 * old + 0.1 * new;
        let expected: Vec<f64> = mean.iter().map(|&mean| running(0.5, mean)).collect();
        assert_close("mean", &after.vector("mlp.1.running_mean").to_vec::<f32>(), &expected, 1e-6);
        let expected: Vec<f64> =
            squares.iter().map(|sum| running(1.5, sum / (ROWS - 1) as f64)).collect();
        assert_close(
            "variance",
            &after.vector("mlp.1.running_var").to_vec::<f32>(),
            &expected,
            1e-6,
        );
    }
    let pass = ForwardCtx::eval();
    let found = head.embed(&params, x.clone(), &pass).to_vec::<f32>();
    assert_close("evaluation", &found, &embedded(&[0.5; 3], &[1.5; 3]), 2e-5);
    assert!(pass.into_statistics().is_empty());
    let one = ForwardCtx::teacher();
    head.embed(&params, x.narrow(0, 0, 1), &one);
    let finite = |(_, value): (_, Tensor)| value.to_vec::<f32>().iter().all(|v| v.is_finite());
    assert!(one.into_statistics().into_iter().all(finite), "of one row");
}
