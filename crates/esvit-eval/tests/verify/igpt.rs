//! Cases of iGPT, made of its network by the definition in f64, with gradients by differences; and of color
//! quantization.

use esvit_testing::hash;
use esvit_testing::losses::gradient;

use super::*;

const BATCH: usize = 2;
const SIDE: usize = 2;
const TOKENS: usize = SIDE * SIDE;
const COLORS: usize = 3;
const WIDTH: usize = 4;
const HEADS: usize = 2;
const CLASSES: usize = 2;
const LABELS: [usize; BATCH] = [1, 0];
const COLORS_OF_IMAGES: [[usize; TOKENS]; BATCH] = [[0, 2, 1, 1], [2, 0, 0, 1]];
const MASKED: [[bool; TOKENS]; BATCH] = [[false, true, true, false], [false, false, false, true]];

/// Official names and shapes.
fn parameters(is_bert: bool) -> Vec<(&'static str, Vec<usize>)> {
    let projection = vec![HEADS, WIDTH / HEADS, WIDTH];
    let mut all = vec![
        ("model/wte", vec![COLORS, WIDTH]),
        ("model/wpe", vec![TOKENS, WIDTH]),
        ("model/h0/ln_1/g", vec![WIDTH]),
        ("model/h0/ln_2/g", vec![WIDTH]),
        ("model/h0/attn/q_proj", projection.clone()),
        ("model/h0/attn/k_proj", projection.clone()),
        ("model/h0/attn/v_proj", projection.clone()),
        ("model/h0/attn/c_proj", projection),
        ("model/h0/mlp/c_fc/w", vec![WIDTH, 4 * WIDTH]),
        ("model/h0/mlp/c_proj/w", vec![4 * WIDTH, WIDTH]),
        ("model/ln_f/g", vec![WIDTH]),
        ("model/wtet", vec![COLORS, WIDTH]),
        ("model/clf/wclf", vec![CLASSES, WIDTH]),
    ];
    if !is_bert {
        all.push(("model/sos", vec![WIDTH]));
    }
    all
}

fn normed(x: &[f64], gain: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(gain).map(|(x, gain)| x / (mean + 1e-5).sqrt() * gain).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x w`, for `w [in, out]`.
fn times(x: &[f64], w: &[f64]) -> Vec<f64> {
    let outputs = w.len() / x.len();
    (0..outputs).map(|to| (0..x.len()).map(|from| x[from] * w[from * outputs + to]).sum()).collect()
}

fn add(to: &mut [f64], values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

fn negative_log_likelihood(logits: &[f64], at: usize) -> f64 {
    logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[at]
}

/// Logits of all tokens, and the losses of colors and of classes.
fn defined(values: &BTreeMap<&str, &[f64]>, is_bert: bool) -> (Vec<f64>, [f64; 2]) {
    let value = |name: &str| values[format!("model/{name}").as_str()];
    let (mut all, mut of_colors, mut of_classes) = (Vec::new(), 0.0, 0.0);
    for image in 0..BATCH {
        let embedded = |at: usize| match is_bert && MASKED[image][at] {
            true => vec![0.0; WIDTH],
            false => value("wte")[COLORS_OF_IMAGES[image][at] * WIDTH..][..WIDTH].to_vec(),
        };
        let mut rows: Vec<Vec<f64>> = (0..TOKENS)
            .map(|at| match (is_bert, at) {
                (true, _) => embedded(at),
                (false, 0) => value("sos").to_vec(),
                (false, _) => embedded(at - 1),
            })
            .collect();
        for (at, row) in rows.iter_mut().enumerate() {
            add(row, &value("wpe")[at * WIDTH..][..WIDTH]);
        }
        let inputs: Vec<Vec<f64>> =
            rows.iter().map(|row| normed(row, value("h0/ln_1/g"))).collect();
        let depth = WIDTH / HEADS;
        // `[heads, depth, C]` of a token.
        let projected = |name: &str, at: usize| -> Vec<f64> {
            value(&format!("h0/attn/{name}")).chunks(WIDTH).map(|w| dot(w, &inputs[at])).collect()
        };
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"]
            .map(|name| (0..TOKENS).map(|at| projected(name, at)).collect::<Vec<_>>());
        for (at, row) in rows.iter_mut().enumerate() {
            let mut context = vec![0.0; WIDTH];
            for head in 0..HEADS {
                let own = head * depth..(head + 1) * depth;
                let seen = if is_bert { TOKENS } else { at + 1 };
                let logits = (0..seen).map(|key| dot(&q[at][own.clone()], &k[key][own.clone()]));
                let exps: Vec<f64> =
                    logits.map(|logit| (logit / (depth as f64).sqrt()).exp()).collect();
                let sum: f64 = exps.iter().sum();
                for (key, exp) in exps.iter().enumerate() {
                    for i in own.clone() {
                        context[i] += exp / sum * v[key][i];
                    }
                }
            }
            add(row, &times(&context, value("h0/attn/c_proj")));
            let hidden = times(&normed(row, value("h0/ln_2/g")), value("h0/mlp/c_fc/w"));
            let hidden: Vec<f64> = hidden.iter().map(|x| x / (1.0 + (-1.702 * x).exp())).collect();
            add(row, &times(&hidden, value("h0/mlp/c_proj/w")));
        }
        let last: Vec<Vec<f64>> = rows.iter().map(|row| normed(row, value("ln_f/g"))).collect();
        let count = if is_bert { MASKED[image].iter().filter(|&&m| m).count() } else { TOKENS };
        let mut mean = vec![0.0; WIDTH];
        for (at, row) in last.iter().enumerate() {
            let logits: Vec<f64> = value("wtet").chunks(WIDTH).map(|w| dot(w, row)).collect();
            if !is_bert || MASKED[image][at] {
                let loss = negative_log_likelihood(&logits, COLORS_OF_IMAGES[image][at]);
                of_colors += loss / (count * BATCH) as f64;
            }
            all.extend(logits);
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / TOKENS as f64);
        }
        let logits: Vec<f64> = value("clf/wclf").chunks(WIDTH).map(|w| dot(w, &mean)).collect();
        of_classes += negative_log_likelihood(&logits, LABELS[image]) / BATCH as f64;
    }
    (all, [of_colors, of_classes])
}

/// The share of images whose class has the largest logit, in percent, is what `known` says.
fn made(is_bert: bool, known: f64) -> Case {
    let parameters = parameters(is_bert);
    let len = |shape: &[usize]| shape.iter().product::<usize>();
    let mut flat = Vec::new();
    for (stream, (name, shape)) in parameters.iter().enumerate() {
        let center = if name.ends_with("/g") { 1.0 } else { 0.0 };
        let values = (0..len(shape)).map(|i| 0.5 * hash(stream as u32, i) + center);
        // As the file has them.
        flat.extend(values.map(|value| f64::from(value as f32)));
    }
    let split = |values: &[f64]| -> Vec<Vec<f64>> {
        let mut rest = values;
        let parts = parameters.iter().map(|(_, shape)| {
            let (part, others) = rest.split_at(len(shape));
            rest = others;
            part.to_vec()
        });
        parts.collect()
    };
    let run = |values: &[f64]| {
        let parts = split(values);
        let named = parameters.iter().zip(&parts).map(|((name, _), part)| (*name, &part[..]));
        defined(&named.collect(), is_bert)
    };
    let (logits, [of_colors, of_classes]) = run(&flat);
    let gradients = gradient(&flat, |values| run(values).1.iter().sum());
    let mut tensors = BTreeMap::new();
    let narrow = |values: &[f64]| -> Values<'static> {
        Values::F32(values.iter().map(|&value| value as f32).collect::<Vec<_>>().into())
    };
    for ((name, shape), (values, gradient)) in
        parameters.iter().zip(split(&flat).iter().zip(&split(&gradients)))
    {
        tensors.insert(format!("param.{name}"), (shape.clone(), narrow(values)));
        tensors.insert(format!("grad.param.{name}"), (shape.clone(), narrow(gradient)));
    }
    tensors.insert("out.logits".into(), (vec![BATCH, TOKENS, COLORS], narrow(&logits)));
    let tokens = COLORS_OF_IMAGES.as_flattened().iter().map(|&token| token as i64);
    let tokens = Values::I64(tokens.collect::<Vec<_>>().into());
    tensors.insert("tokens".into(), (vec![BATCH, TOKENS], tokens));
    let labels = Values::I64(LABELS.map(|label| label as i64).to_vec().into());
    tensors.insert("labels".into(), (vec![BATCH], labels));
    if is_bert {
        let masked: Vec<u8> = MASKED.as_flattened().iter().map(|&masked| masked.into()).collect();
        tensors.insert("masked".into(), (vec![BATCH, TOKENS], Values::U8(masked.into())));
    }
    let settings = json!({
        "kind": "objective-igpt", "mode": if is_bert { "bert" } else { "autoregressive" },
        "batch": BATCH, "pixels_per_side": SIDE, "vocabulary": COLORS, "embed_dim": WIDTH,
        "heads": HEADS, "layers": 1, "classes": CLASSES, "loss_generative": of_colors,
        "loss_classifier": of_classes, "loss": of_colors + of_classes,
        "classifier_accuracy": known,
    });
    Case { settings, tensors, files: Vec::new() }
}

/// With whichever accuracy it has, of two images.
fn case(is_bert: bool) -> Case {
    let right = [0.0, 50.0, 100.0].into_iter().find(|&known| {
        let failing = made(is_bert, known).failing();
        failing != own(&["classifier_accuracy"])
    });
    made(is_bert, right.unwrap())
}

#[test]
fn networks_losses_and_gradients_are_compared() {
    for is_bert in [false, true] {
        let whole = case(is_bert);
        assert_eq!(whole.failing(), [""; 0]);
        let again = || Case {
            tensors: whole.tensors.clone(),
            settings: whole.settings.clone(),
            files: Vec::new(),
        };
        let gradients =
            parameters(is_bert).into_iter().map(|(name, _)| format!("grad.param.{name}"));
        let tensors = gradients.map(|name| (name, 1e-4)).chain([("out.logits".to_owned(), 1e-5)]);
        for (name, tolerance) in tensors {
            for (factor, expected) in [(0.5, vec![]), (2.0, vec![name.clone()])] {
                let mut off = again();
                let values = off.f32(&name);
                let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let place =
                    values.iter().position(|value| value.abs() < 0.9 * largest).unwrap_or(0);
                values[place] += (factor * tolerance * f64::from(largest)) as f32;
                assert_eq!(off.failing(), expected, "{name} {factor}");
            }
        }
        for name in ["loss_generative", "loss_classifier", "loss"] {
            let mut off = again();
            let number = off.settings[name].as_f64().unwrap();
            off.settings[name] = json!(number * (1.0 + 2e-5));
            assert_eq!(off.failing(), own(&[name]));
        }
        let mut off = again();
        off.settings["classifier_accuracy"] = json!(25.0);
        assert_eq!(off.failing(), own(&["classifier_accuracy"]));
        // What is no case of a network.
        for (key, value, expected) in [
            ("heads", json!(3), "`num_heads` is 3"),
            ("classes", json!(0), "`classes` is 0"),
            ("classes", json!(10_u64.pow(18)), "`classes`"),
            ("vocabulary", json!(2), "no numbers below 2"),
            ("pixels_per_side", json!(3), "tensor `tokens` is [2, 4], not [2, 9]"),
            ("embed_dim", json!(6), "tensor `param.model/wte` is [3, 4]"),
            ("layers", json!(2), "`param.model/h1/ln_1/g` is missing"),
        ] {
            let mut wrong = again();
            wrong.settings[key] = value;
            let Outcome::Failed(error) = wrong.report().outcome else { panic!("{key}") };
            assert!(error.to_string().contains(expected), "{key}: {error}");
        }
    }
    let mut without = case(true);
    without.tensors.remove("masked");
    assert!(without.report().failed());
}

/// Pixels and centers whose nearest is found in plain loops.
fn quantization() -> Case {
    let (count, clusters) = (11, 5);
    let pixels: Vec<u8> = (0..3 * count).map(|i| (127.5 + 127.0 * hash(1, i)) as u8).collect();
    let centers: Vec<f32> = (0..3 * clusters).map(|i| hash(2, i) as f32).collect();
    let scaled: Vec<f32> = pixels.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
    let (mut ids, mut bytes) = (Vec::new(), Vec::new());
    for pixel in scaled.chunks(3) {
        let square = |center: &[f32]| -> f64 {
            pixel.iter().zip(center).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let nearer = |a: &(usize, &[f32]), b: &(usize, &[f32])| square(a.1).total_cmp(&square(b.1));
        let (id, center) = centers.chunks(3).enumerate().min_by(nearer).unwrap();
        ids.push(id as i64);
        bytes.extend(center.iter().map(|&channel| (127.5 * (channel + 1.0)).round() as u8));
    }
    let tensors = [
        ("clusters", vec![clusters, 3], Values::F32(centers.into())),
        ("pixels", vec![count, 3], Values::U8(pixels.into())),
        ("scaled", vec![count, 3], Values::F32(scaled.into())),
        ("ids", vec![count], Values::I64(ids.into())),
        ("dequantized", vec![count, 3], Values::U8(bytes.into())),
    ];
    let tensors = tensors.into_iter().map(|(name, shape, values)| (name.into(), (shape, values)));
    let settings = json!({ "kind": "quantize-igpt", "clusters": clusters, "pixels": count });
    Case { settings, tensors: tensors.collect(), files: Vec::new() }
}

#[test]
fn colors_are_compared() {
    assert_eq!(quantization().failing(), [""; 0]);
    let mut off = quantization();
    off.f32("scaled")[4] += 1e-3;
    assert_eq!(off.failing(), own(&["scaled"]));
    let mut off = quantization();
    let Values::I64(ids) = &mut off.tensors.get_mut("ids").unwrap().1 else { panic!() };
    ids.to_mut()[3] += 1;
    assert_eq!(off.failing(), own(&["ids"]));
    let mut off = quantization();
    let bytes = off.u8("dequantized");
    bytes[5] = bytes[5].wrapping_add(1);
    assert_eq!(off.failing(), own(&["dequantized"]));
    let mut few = quantization();
    few.settings["pixels"] = json!(10);
    assert!(few.report().failed());
}
