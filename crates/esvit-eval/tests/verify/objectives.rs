//! Cases of kinds `objective-*` and `head-*`, made of losses by their definitions in f64: right ones pass,
//! and each number and tensor that is off by twice its tolerance fails.

use esvit_testing::losses::{self, Rows, flat, gradient, rows, unit};
use esvit_testing::{hash, hashed};

use super::*;

const BATCH: usize = 4;
const WIDTH: usize = 5;
const TEMPERATURE: f64 = 0.3;

/// A case with tensors of rows `[BATCH, WIDTH]` from streams of numbers.
struct Made {
    settings: Value,
    tensors: BTreeMap<String, (Vec<usize>, Values<'static>)>,
}

impl Made {
    fn new(settings: Value) -> Self {
        Self { settings, tensors: BTreeMap::new() }
    }

    fn add(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.into(), (shape.to_vec(), Values::F32(values.into())));
    }

    fn integers(&mut self, name: &str, values: Vec<i64>) {
        let shape = vec![values.len()];
        self.tensors.insert(name.into(), (shape, Values::I64(values.into())));
    }

    /// Rows of a stream, and their values in f64.
    fn rows(&mut self, name: &str, stream: u32, count: usize) -> Rows {
        self.add(name, &[count, WIDTH], hashed(stream, count * WIDTH));
        rows_of(stream, count)
    }

    /// The gradient of a loss of rows.
    fn gradient(&mut self, name: &str, at: &Rows, loss: impl Fn(&Rows) -> f64) {
        let values = gradient(&flat(at), |values| loss(&rows(values, WIDTH)));
        self.add(name, &[at.len(), WIDTH], narrow(&values));
    }

    fn case(self) -> Case {
        Case { settings: self.settings, tensors: self.tensors, files: Vec::new() }
    }
}

fn rows_of(stream: u32, count: usize) -> Rows {
    let values = (0..count * WIDTH).map(|i| f64::from(hash(stream, i) as f32));
    rows(&values.collect::<Vec<_>>(), WIDTH)
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// Keys as columns, `[WIDTH, keys]`.
fn columns(rows: &Rows) -> Vec<f32> {
    (0..WIDTH).flat_map(|i| rows.iter().map(move |row| row[i] as f32)).collect()
}

/// The case passes; with each of these tensors off by twice its tolerance, a share of its largest entry,
/// that comparison fails, and with half of it none; and so for numbers of the settings.
fn is_compared(case: &dyn Fn() -> Case, tensors: &[(&str, f64)], numbers: &[(&str, f64, &str)]) {
    assert_eq!(case().failing(), [""; 0]);
    for (name, tolerance) in tensors {
        for (factor, expected) in [(0.5, vec![]), (2.0, own(&[*name]))] {
            let mut off = case();
            let values = off.f32(name);
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let place = values.iter().position(|value| value.abs() < 0.9 * largest).unwrap_or(0);
            values[place] += (factor * tolerance * f64::from(largest)) as f32;
            assert_eq!(off.failing(), expected, "{name} {factor}");
        }
        let mut missing = case();
        missing.tensors.remove(*name);
        assert!(missing.report().failed(), "without {name}");
    }
    for (place, change, what) in numbers {
        let mut off = case();
        let value = off.settings.pointer_mut(place).unwrap();
        *value = match value.as_i64() {
            Some(number) => json!(number + *change as i64),
            None => json!(value.as_f64().unwrap() + change),
        };
        assert_eq!(off.failing(), own(&[*what]), "{place}");
    }
}

const GRADIENT: f64 = 1e-4;
const VALUE: f64 = 1e-5;

/// Two steps with a queue of six keys, which four keys and then four more replace.
fn moco2() -> Case {
    let mut made = Made::new(json!({
        "kind": "objective-moco2", "batch": BATCH, "dim": WIDTH, "queue_length": 6,
        "temperature": TEMPERATURE, "steps": [],
    }));
    let mut queue = unit(&rows_of(9, 6));
    made.add("queue", &[WIDTH, 6], columns(&queue));
    made.integers("queue_ptr", vec![1]);
    let (mut next, mut steps) = (1, Vec::new());
    for step in 0..2 {
        let queries = made.rows(&format!("step.{step}.q"), 10 + step, BATCH);
        let keys = made.rows(&format!("step.{step}.k"), 20 + step, BATCH);
        let loss = |queries: &Rows| losses::with_queue(queries, &keys, &queue, TEMPERATURE);
        made.gradient(&format!("step.{step}.grad_q"), &queries, loss);
        let (queries_unit, keys_unit) = (unit(&queries), unit(&keys));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut logits, mut hits) = (Vec::new(), 0);
        for (query, key) in queries_unit.iter().zip(&keys_unit) {
            let all = std::iter::once(key).chain(&queue);
            let products: Vec<f64> = all.map(|key| dot(query, key) / TEMPERATURE).collect();
            hits += usize::from(products.iter().all(|&product| product <= products[0]));
            logits.extend(products);
        }
        made.add(&format!("step.{step}.logits"), &[BATCH, 7], narrow(&logits));
        let loss = loss(&queries);
        for key in keys_unit {
            queue[next] = key;
            next = (next + 1) % 6;
        }
        let accuracy = 100.0 * hits as f64 / BATCH as f64;
        steps.push(json!({ "loss": loss, "accuracy_top1": accuracy, "queue_ptr_after": next }));
    }
    made.settings["steps"] = json!(steps);
    made.add("queue_after", &[WIDTH, 6], columns(&queue));
    made.integers("queue_ptr_after", vec![next as i64]);
    made.case()
}

#[test]
fn a_queue_and_its_contrast() {
    is_compared(
        &moco2,
        &[
            ("step.0.logits", VALUE),
            ("step.1.logits", VALUE),
            ("step.0.grad_q", GRADIENT),
            ("step.1.grad_q", GRADIENT),
            ("queue_after", VALUE),
        ],
        &[
            ("/steps/1/accuracy_top1", 25.0, "accuracy of step 1"),
            ("/steps/0/queue_ptr_after", 1.0, "place after step 0"),
            ("/steps/0/loss", 1e-3, "loss of step 0"),
        ],
    );
    let mut other = moco2();
    other.settings["dim"] = json!(WIDTH + 1);
    let Outcome::Failed(error) = other.report().outcome else { panic!("another width") };
    assert!(error.to_string().contains("tensor `queue` is [5, 6], not [6, 6]"), "{error}");
    let mut other = moco2();
    other.settings["kind"] = json!("objective-lamb");
    let Outcome::Failed(error) = other.report().outcome else { panic!("another kind") };
    assert_eq!(error.to_string(), "unknown kind `objective-lamb`");
}

/// Two queues with one place, one step.
fn moby() -> Case {
    let mut made = Made::new(json!({
        "kind": "objective-moby", "batch": BATCH, "dim": WIDTH, "queue_length": 6,
        "temperature": TEMPERATURE, "steps": [{ "queue_ptr_after": 0 }],
    }));
    let mut queues = [unit(&rows_of(8, 6)), unit(&rows_of(9, 6))];
    for (name, queue) in ["queue1", "queue2"].into_iter().zip(&queues) {
        made.add(name, &[WIDTH, 6], columns(queue));
    }
    made.integers("queue_ptr", vec![2]);
    let predictions = [made.rows("step.0.pred1", 1, BATCH), made.rows("step.0.pred2", 2, BATCH)];
    let keys = [made.rows("step.0.proj1_k", 3, BATCH), made.rows("step.0.proj2_k", 4, BATCH)];
    let side = |view: usize, rows: &Rows| {
        losses::with_queue(rows, &keys[1 - view], &queues[1 - view], TEMPERATURE)
    };
    for (view, name) in ["step.0.grad_pred1", "step.0.grad_pred2"].into_iter().enumerate() {
        made.gradient(name, &predictions[view], |rows| side(view, rows));
    }
    let loss = side(0, &predictions[0]) + side(1, &predictions[1]);
    made.settings["steps"][0]["loss"] = json!(loss);
    for (queue, keys) in queues.iter_mut().zip(&keys) {
        for (at, key) in unit(keys).into_iter().enumerate() {
            queue[(2 + at) % 6] = key;
        }
    }
    for (name, queue) in ["queue1_after", "queue2_after"].into_iter().zip(&queues) {
        made.add(name, &[WIDTH, 6], columns(queue));
    }
    made.integers("queue_ptr_after", vec![0]);
    made.case()
}

fn mocov3() -> Case {
    let mut made = Made::new(json!({
        "kind": "objective-mocov3", "batch": BATCH, "dim": WIDTH, "temperature": TEMPERATURE,
    }));
    let queries = [made.rows("q1", 1, BATCH), made.rows("q2", 2, BATCH)];
    let keys = [made.rows("k1", 3, BATCH), made.rows("k2", 4, BATCH)];
    let side = |view: usize, rows: &Rows| losses::among(rows, &keys[1 - view], TEMPERATURE);
    for (view, name) in ["grad_q1", "grad_q2"].into_iter().enumerate() {
        made.gradient(name, &queries[view], |rows| side(view, rows));
    }
    made.settings["loss"] = json!(side(0, &queries[0]) + side(1, &queries[1]));
    made.case()
}

fn byol() -> Case {
    let mut made = Made::new(json!({ "kind": "objective-byol", "batch": BATCH, "dim": WIDTH }));
    let predictions = [made.rows("prediction1", 1, BATCH), made.rows("prediction2", 2, BATCH)];
    let targets = ["projection1_target", "projection2_target"];
    let targets = [made.rows(targets[0], 3, BATCH), made.rows(targets[1], 4, BATCH)];
    let side = |view: usize, rows: &Rows| losses::distance(rows, &targets[1 - view]);
    for (view, name) in ["grad_prediction1", "grad_prediction2"].into_iter().enumerate() {
        made.gradient(name, &predictions[view], |rows| side(view, rows));
    }
    made.settings["loss"] = json!(side(0, &predictions[0]) + side(1, &predictions[1]));
    made.case()
}

fn simclr() -> Case {
    let mut made = Made::new(json!({
        "kind": "objective-simclr", "batch": BATCH, "dim": WIDTH, "temperature": TEMPERATURE,
    }));
    let hidden = made.rows("hidden", 1, 2 * BATCH);
    let loss = |rows: &Rows| {
        let (first, second) = rows.split_at(BATCH);
        losses::nt_xent(&first.to_vec(), &second.to_vec(), TEMPERATURE)
    };
    made.gradient("grad_hidden", &hidden, loss);
    let rows = unit(&hidden);
    let (mut logits, mut hits, mut entropy) = (Vec::new(), 0, 0.0);
    for (anchor, row) in rows[..BATCH].iter().enumerate() {
        let products: Vec<f64> = rows[BATCH..]
            .iter()
            .map(|other| row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>() / TEMPERATURE)
            .collect();
        hits += usize::from(products.iter().all(|&product| product <= products[anchor]));
        let sum: f64 = products.iter().map(|product| product.exp()).sum();
        let shares = products.iter().map(|product| product.exp() / sum);
        entropy -= shares.map(|share| share * share.ln()).sum::<f64>() / BATCH as f64;
        logits.extend(products);
    }
    made.add("logits_ab", &[BATCH, BATCH], narrow(&logits));
    made.settings["loss"] = json!(loss(&hidden));
    made.settings["contrast_accuracy"] = json!(hits as f64 / BATCH as f64);
    made.settings["contrast_entropy"] = json!(entropy);
    made.case()
}

#[test]
fn losses_among_a_batch() {
    is_compared(
        &moby,
        &[
            ("step.0.grad_pred1", GRADIENT),
            ("step.0.grad_pred2", GRADIENT),
            ("queue1_after", VALUE),
            ("queue2_after", VALUE),
        ],
        &[("/steps/0/loss", 1e-3, "loss of step 0")],
    );
    let gradients = [("grad_q1", GRADIENT), ("grad_q2", GRADIENT)];
    is_compared(&mocov3, &gradients, &[("/loss", 1e-3, "loss")]);
    let gradients = [("grad_prediction1", GRADIENT), ("grad_prediction2", GRADIENT)];
    is_compared(&byol, &gradients, &[("/loss", 1e-3, "loss")]);
    is_compared(
        &simclr,
        &[("grad_hidden", GRADIENT), ("logits_ab", VALUE)],
        &[
            ("/loss", 1e-3, "loss"),
            ("/contrast_accuracy", 0.25, "contrast_accuracy"),
            ("/contrast_entropy", 1e-3, "contrast_entropy"),
        ],
    );
}

const PROTOTYPES: usize = 6;

/// Three views, a queue of eight embeddings, three steps: the queue is full in the third.
fn swav() -> Case {
    let mut made = Made::new(json!({
        "kind": "objective-swav", "batch": BATCH, "dim": WIDTH, "prototypes": PROTOTYPES,
        "crops": 3, "crops_for_assign": [0, 1], "temperature": TEMPERATURE, "epsilon": 0.1,
        "sinkhorn_iterations": 3, "queue_length": 8, "steps": [],
    }));
    let prototypes = unit(&made.rows("prototypes", 50, PROTOTYPES));
    let (mut queues, mut steps) = ([Rows::new(), Rows::new()], Vec::new());
    for step in 0..3 {
        let all = made.rows(&format!("step.{step}.z"), 10 + step, 3 * BATCH);
        let by_view = |all: &Rows| -> Vec<Rows> { all.chunks(BATCH).map(<[_]>::to_vec).collect() };
        let views = by_view(&all);
        let is_used = queues[0].len() == 8;
        let targets = [0, 1].map(|view: usize| {
            let queued = if is_used { queues[view].clone() } else { Rows::new() };
            let samples = [queued, views[view].clone()].concat();
            let shares = losses::sinkhorn(&losses::scores(&samples, &prototypes), 0.1, 3);
            shares[samples.len() - BATCH..].to_vec()
        });
        for (view, shares) in targets.iter().enumerate() {
            let name = format!("step.{step}.assignment.{view}");
            made.add(&name, &[BATCH, PROTOTYPES], narrow(&flat(shares)));
        }
        let loss = |all: &Rows, prototypes: &Rows| {
            losses::swapped(&by_view(all), prototypes, &targets, TEMPERATURE)
        };
        made.gradient(&format!("step.{step}.grad_z"), &all, |all| loss(all, &prototypes));
        let name = format!("step.{step}.grad_prototypes");
        made.gradient(&name, &prototypes, |prototypes| loss(&all, prototypes));
        let value = loss(&all, &prototypes);
        let mut values = Vec::new();
        for (view, queue) in queues.iter_mut().enumerate() {
            *queue = [unit(&views[view]), queue.clone()].concat();
            queue.truncate(8);
            values.extend(narrow(&flat(queue)));
            values.resize((view + 1) * 8 * WIDTH, 0.0);
        }
        made.add(&format!("step.{step}.queue_after"), &[2, 8, WIDTH], values);
        steps.push(json!({ "loss": value, "queue_used": is_used }));
    }
    made.settings["steps"] = json!(steps);
    made.add("prototypes_after", &[PROTOTYPES, WIDTH], narrow(&flat(&prototypes)));
    made.case()
}

#[test]
fn assignments_and_their_prediction() {
    is_compared(
        &swav,
        &[
            ("step.0.assignment.0", VALUE),
            ("step.2.assignment.1", VALUE),
            ("step.1.grad_z", GRADIENT),
            ("step.2.grad_prototypes", GRADIENT),
            ("step.2.queue_after", VALUE),
            ("prototypes_after", VALUE),
        ],
        &[("/steps/2/loss", 1e-3, "loss of step 2")],
    );
    let mut other = swav();
    other.settings["steps"][1]["queue_used"] = json!(true);
    assert_eq!(other.failing(), ["queue_used in step 1"]);
    other.settings["crops_for_assign"] = json!([0]);
    assert!(other.report().failed(), "other crops are assigned");
}

/// Two images of a box of two rows and a column.
fn cutmix(mode: &str) -> Case {
    let (classes, height, width) = (3, 4, 2);
    let mut made = Made::new(json!({
        "kind": "objective-supervised", "mode": mode, "batch": 2, "classes": classes,
        "smoothing": 0.1,
    }));
    let logits = hashed(1, 2 * classes);
    made.add("logits", &[2, classes], logits.clone());
    made.integers("labels", vec![2, 0]);
    let images = hashed(2, 2 * 3 * height * width);
    made.add("images", &[2, 3, height, width], images.clone());
    let share = if mode == "cutmix" { 0.75 } else { 0.3 };
    made.settings["drawn_lambda"] = json!(0.3);
    made.settings["lambda"] = json!(share);
    made.settings["box_y0_y1_x0_x1"] = json!([1, 3, 0, 1]);
    let half = images.len() / 2;
    let mixed = images.iter().enumerate().map(|(i, &own)| {
        let other = images[(i + half) % images.len()];
        let (row, column) = (i / width % height, i % width);
        let is_inside = (1..3).contains(&row) && column == 0;
        match mode {
            "cutmix" if is_inside => other,
            "cutmix" => own,
            _ => (0.3 * f64::from(own) + 0.7 * f64::from(other)) as f32,
        }
    });
    made.add("mixed", &[2, 3, height, width], mixed.collect());
    let of_label = |label: usize, class: usize| {
        (if label == class { 0.9 } else { 0.0 }) + 0.1 / classes as f64
    };
    let is_mixed = mode != "label_smoothing";
    let target = |image: usize, class: usize| {
        let [own, other] = [[2, 0], [0, 2]][image].map(|label| of_label(label, class));
        if is_mixed { share * own + (1.0 - share) * other } else { own }
    };
    let targets: Vec<f64> = (0..2 * classes).map(|i| target(i / classes, i % classes)).collect();
    made.add("target", &[2, classes], narrow(&targets));
    let wide: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
    let loss = |logits: &[f64]| {
        let sum = |row: usize| {
            logits[row * classes..][..classes].iter().map(|l| l.exp()).sum::<f64>().ln()
        };
        let terms = logits.iter().enumerate();
        terms.map(|(i, logit)| targets[i] * (sum(i / classes) - logit)).sum::<f64>() / 2.0
    };
    made.add("grad_logits", &[2, classes], narrow(&gradient(&wide, loss)));
    made.settings["loss"] = json!(loss(&wide));
    made.case()
}

#[test]
fn labels_are_smoothed_and_mixed() {
    for mode in ["cutmix", "mixup"] {
        is_compared(
            &|| cutmix(mode),
            &[("mixed", VALUE), ("target", VALUE), ("grad_logits", GRADIENT)],
            &[("/loss", 1e-3, "loss"), ("/lambda", 0.01, "lambda")],
        );
    }
    let smoothed = || cutmix("label_smoothing");
    is_compared(&smoothed, &[("grad_logits", GRADIENT)], &[("/loss", 1e-3, "loss")]);
    let mut outside = cutmix("cutmix");
    outside.settings["box_y0_y1_x0_x1"] = json!([1, 5, 0, 1]);
    let Outcome::Failed(error) = outside.report().outcome else { panic!("beyond the image") };
    assert!(error.to_string().contains("no box of the images"), "{error}");
    let mut beyond = smoothed();
    beyond.settings["classes"] = json!(2);
    assert!(beyond.report().failed(), "a label beyond the classes");
}

/// MoCo-v2's head, by hand: two linear layers with a ReLU between.
fn head() -> Case {
    let out = 3;
    let settings = json!({ "kind": "head-moco2", "batch": BATCH, "in": WIDTH, "out": out });
    let mut made = Made::new(settings);
    let sizes = [
        ("input", vec![BATCH, WIDTH]),
        ("fc.0.weight", vec![WIDTH, WIDTH]),
        ("fc.0.bias", vec![WIDTH]),
        ("fc.2.weight", vec![out, WIDTH]),
        ("fc.2.bias", vec![out]),
    ];
    let upstream = hashed(9, BATCH * out);
    let mut all: Vec<Vec<f64>> = Vec::new();
    for (stream, (name, shape)) in (1..).zip(&sizes) {
        let values = hashed(stream, shape.iter().product());
        all.push(values.iter().map(|&value| value.into()).collect());
        let name = if *name == "input" { (*name).to_owned() } else { format!("param.{name}") };
        made.add(&name, shape, values);
    }
    let linear = |x: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
        let row = |x: &[f64]| -> Vec<f64> {
            let of = |(weight, bias): (&[f64], &f64)| {
                weight.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias
            };
            weight.chunks_exact(WIDTH).zip(bias).map(of).collect()
        };
        x.chunks_exact(WIDTH).flat_map(row).collect()
    };
    let forward = |all: &[Vec<f64>]| {
        let hidden = linear(&all[0], &all[1], &all[2]);
        let active: Vec<f64> = hidden.iter().map(|value| value.max(0.0)).collect();
        linear(&active, &all[3], &all[4])
    };
    made.add("out.projection", &[BATCH, out], narrow(&forward(&all)));
    made.add("grad_out.projection", &[BATCH, out], upstream.clone());
    for (index, (name, shape)) in sizes.iter().enumerate() {
        let slopes = gradient(&all[index], |values| {
            let mut all = all.clone();
            all[index] = values.to_vec();
            let products = forward(&all).into_iter().zip(&upstream);
            products.map(|(value, &slope)| value * f64::from(slope)).sum()
        });
        let is_input = *name == "input";
        let name = if is_input { "grad.input".into() } else { format!("grad.param.{name}") };
        made.add(&name, shape, narrow(&slopes));
    }
    made.case()
}

#[test]
fn heads_are_compared() {
    is_compared(
        &head,
        &[
            ("out.projection", VALUE),
            ("grad.input", GRADIENT),
            ("grad.param.fc.0.weight", GRADIENT),
            ("grad.param.fc.2.bias", GRADIENT),
        ],
        &[],
    );
    let mut other = head();
    other.settings["out"] = json!(4);
    let Outcome::Failed(error) = other.report().outcome else { panic!("another width") };
    assert!(error.to_string().contains("the head has [4, 5]"), "{error}");
    other.settings["kind"] = json!("head-lamb");
    assert!(matches!(other.report().outcome, Outcome::Failed(_)));
}
