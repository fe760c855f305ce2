//! Probes of features made up for it.

use esvit_kernels::rng::Rng;

use super::*;

/// Rows around one center a class, `spread` away from it; the last column of every row is noise.
pub(super) fn clusters(
    rows: usize,
    width: usize,
    classes: u32,
    spread: f64,
    stream: u64,
) -> Examples {
    let mut rng = Rng::new(17, [stream, 0, 0]);
    let mut centers = Rng::new(18, [0; 3]);
    let centers: Vec<f64> = (0..classes as usize * width).map(|_| centers.normal()).collect();
    let of: Vec<u32> = (0..rows as u32).map(|row| row % classes).collect();
    let values = of
        .iter()
        .flat_map(|&class| {
            let center = &centers[class as usize * width..(class as usize + 1) * width];
            center.iter().map(|c| (c + spread * rng.normal()) as f32).collect::<Vec<f32>>()
        })
        .collect();
    Examples { values, width, targets: Targets::Classes { of, count: classes as usize } }
}

/// The head of a setting.
fn head(first: usize, lr: f64, l2: f64) -> Setting {
    Setting { blocks: LastBlocks { n: 1, first }, lr: Some(lr), l2: Some(l2) }
}

fn halves(width: usize) -> Vec<LastBlocks> {
    vec![LastBlocks { n: 1, first: width / 2 }, LastBlocks { n: 4, first: 0 }]
}

fn solvers() -> [Solver; 3] {
    let sgd = Sgd { epochs: 30, batch: 32, ..Sgd::default() };
    let tuning = Sgd { epochs: 10, batch: 8, ..sgd };
    [
        Solver::Sgd { lrs: vec![0.1, 1.0], sgd },
        Solver::Logistic(Logistic { l2s: vec![1e-3, 1e-1], max_iterations: 200 }),
        Solver::Elevater(Elevater { tuning, ..Elevater::default() }),
    ]
}

fn probe(solver: Solver, width: usize) -> Probe {
    Probe { solver, blocks: halves(width), standardize: false, refit: true, metric: None }
}

#[test]
fn separable_classes_are_told_apart_without_a_mistake() {
    let (train, queries) = (clusters(400, 16, 5, 0.1, 1), clusters(100, 16, 5, 0.1, 2));
    for solver in solvers() {
        for standardize in [false, true] {
            let probe = Probe { standardize, ..probe(solver.clone(), 16) };
            let result = probe.run(&train, &queries, None).unwrap();
            let name = solver.name();
            let Metrics::Classes(ClassMetrics { accuracy, .. }) = result.best.metrics else {
                panic!()
            };
            let ClassAccuracy { top1, interval, .. } = accuracy;
            assert_eq!(top1, 100.0, "{name}");
            assert!(interval[0] > 96.0 && interval[1] == 100.0, "{name} {interval:?}");
            assert_eq!((result.fitted_to, result.chosen_on), (400, 80));
            let again = probe.run(&train, &queries, None).unwrap();
            assert_eq!(result, again, "{name}");
        }
    }
}

#[test]
fn heads_become_the_same_alone_and_together() {
    let train = clusters(90, 24, 7, 1.0, 3);
    let subset = Subset::all(&train);
    let sgd = Sgd { epochs: 3, batch: 32, ..Sgd::default() };
    let heads: Vec<Setting> = [(0, 0.1, 0.0), (8, 1.0, 0.0), (0, 3.0, 1e-2), (8, 0.01, 1e-3)]
        .map(|(first, lr, l2)| head(first, lr, l2))
        .to_vec();
    let together = train_heads(&subset, &heads, &sgd).unwrap();
    for (head, together) in heads.iter().zip(&together) {
        let alone = train_heads(&subset, &[*head], &sgd).unwrap();
        assert_eq!(&alone[0], together, "{head:?}");
    }
}

/// Two steps on two rows of one feature, worked out in f64.
#[test]
fn steps_are_those_of_momentum_and_a_cosine() {
    let targets = Targets::Classes { of: vec![0, 1], count: 2 };
    let train = Examples { values: vec![1.0, -2.0], width: 1, targets };
    let sgd = Sgd { epochs: 2, batch: 256, momentum: 0.9, seed: 4 };
    let start = train_heads(&Subset::all(&train), &[head(0, 0.0, 0.0)], &sgd).unwrap();
    let (lr, l2) = (0.5, 0.01);
    let found = train_heads(&Subset::all(&train), &[head(0, lr, l2)], &sgd).unwrap();
    let mut w: Vec<f64> = start[0].weight.iter().map(|&w| f64::from(w)).collect();
    let (mut b, mut vw, mut vb) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    for epoch in 0..2 {
        let lr = lr * 0.5 * (1.0 + (std::f64::consts::PI * f64::from(epoch) / 2.0).cos());
        let (mut gw, mut gb) = ([0.0; 2], [0.0; 2]);
        for (x, class) in [(1.0, 0), (-2.0, 1)] {
            let e = [0, 1].map(|k| (w[k] * x + b[k]).exp());
            for k in 0..2 {
                let g = (e[k] / (e[0] + e[1]) - f64::from(u8::from(k == class))) / 2.0;
                gw[k] += g * x;
                gb[k] += g;
            }
        }
        for k in 0..2 {
            vw[k] = 0.9 * vw[k] + gw[k] + l2 * w[k];
            vb[k] = 0.9 * vb[k] + gb[k];
            w[k] -= lr * vw[k];
            b[k] -= lr * vb[k];
        }
    }
    for k in 0..2 {
        assert!((f64::from(found[0].weight[k]) - w[k]).abs() < 1e-6);
        assert!((f64::from(found[0].bias[k]) - b[k]).abs() < 1e-6);
    }
}

#[test]
fn labels_are_learnt_one_by_one() {
    let make = |stream| {
        let examples = clusters(200, 12, 4, 0.1, stream);
        let Targets::Classes { of, .. } = examples.targets else { panic!() };
        // Class 0 holds nothing, class 3 holds two labels, a fourth label nobody holds.
        let positives = [vec![], vec![0], vec![1], vec![0, 2]];
        let of = of.into_iter().map(|class| positives[class as usize].clone()).collect();
        Examples { targets: Targets::Labels { of, count: 4 }, ..examples }
    };
    for solver in solvers() {
        let name = solver.name();
        let result = probe(solver, 12).run(&make(1), &make(2), None).unwrap();
        let Metrics::Labels { map, map_11_point, roc_auc } = result.best.metrics else { panic!() };
        assert!(map > 99.9 && map_11_point > 99.9, "{name} {map} {map_11_point}");
        assert!(roc_auc.is_some_and(|area| area > 99.9), "{name} {roc_auc:?}");
    }
}

#[test]
fn a_single_setting_needs_no_choice() {
    let (train, queries) = (clusters(3, 4, 3, 0.1, 1), clusters(1, 4, 3, 0.1, 2));
    let solver = Solver::Logistic(Logistic { l2s: vec![1e-3], max_iterations: 100 });
    let probe = Probe { blocks: vec![LastBlocks { n: 1, first: 0 }], ..probe(solver, 4) };
    let result = probe.run(&train, &queries, None).unwrap();
    assert_eq!((result.fitted_to, result.chosen_on), (3, 0));
    assert_eq!(result.best.metrics.value(), 100.0);
}

#[test]
fn odd_sets_work_or_are_refused() {
    let solver = || solvers().into_iter().next().unwrap();
    let queries = clusters(6, 4, 3, 0.1, 2);
    let run = |train: &Examples| probe(solver(), 4).run(train, &queries, None);
    assert_eq!(run(&clusters(0, 4, 3, 0.1, 1)), Err(KnnError::Empty("training").into()));
    assert_eq!(run(&clusters(1, 4, 3, 0.1, 1)), Err(ProbeError::OneClass));
    assert_eq!(run(&clusters(9, 4, 1, 0.1, 1)), Err(ProbeError::OneClass));
    assert!(run(&clusters(2, 4, 3, 0.1, 1)).is_ok());
    let wide = clusters(6, 5, 3, 0.1, 1);
    assert_eq!(run(&wide), Err(KnnError::Width { train: 5, queries: 4 }.into()));
    // Classes that no training image has are counted wrong, also among the first five.
    let mut unknown = queries.clone();
    unknown.targets = Targets::Classes { of: vec![3; 6], count: 3 };
    let result = probe(solver(), 4).run(&clusters(30, 4, 3, 0.1, 1), &unknown, None).unwrap();
    let Metrics::Classes(of) = result.best.metrics else { panic!() };
    assert_eq!((of.accuracy.top1, of.accuracy.top5, of.mean_per_class), (0.0, 0.0, 0.0));
    // More than 1,000 classes with one image each.
    let many = clusters(1200, 4, 1200, 0.0, 1);
    let sgd = Sgd { epochs: 2, ..Sgd::default() };
    let many_probe = probe(Solver::Sgd { lrs: vec![1.0, 10.0], sgd }, 4);
    assert!(many_probe.run(&many, &many, None).is_ok());
    // Nothing but infinities comes out.
    let mut broken = clusters(30, 4, 3, 0.1, 1);
    broken.values.fill(f32::INFINITY);
    assert_eq!(run(&broken), Err(ProbeError::Diverged));
}

#[test]
fn epochs_can_have_their_own_features() {
    let (train, queries) = (clusters(60, 8, 3, 0.2, 1), clusters(60, 8, 3, 0.2, 2));
    let epochs = std::sync::Mutex::new(Vec::new());
    let augmented = |epoch: usize, rows: &[usize]| {
        epochs.lock().unwrap().push((epoch, rows.len()));
        Ok(rows.iter().flat_map(|&row| train.values[row * 8..row * 8 + 8].to_vec()).collect())
    };
    let sgd = Sgd { epochs: 4, batch: 16, ..Sgd::default() };
    let probe = probe(Solver::Sgd { lrs: vec![0.1, 1.0], sgd }, 8);
    let plain = probe.run(&train, &queries, None).unwrap();
    let augmented_values = probe.run(&train, &queries, Some(&augmented)).unwrap();
    assert_eq!(plain, augmented_values);
    let expected: Vec<_> = (0..4).map(|e| (e, 48)).chain((0..4).map(|e| (e, 60))).collect();
    assert_eq!(*epochs.lock().unwrap(), expected);
}

#[test]
fn few_shots_are_spread_over_draws() {
    let (train, queries) = (clusters(100, 8, 5, 0.3, 1), clusters(50, 8, 5, 0.3, 2));
    let options = FewShot { shots: 2, draws: 3, seed: 0 };
    let solver = solvers().into_iter().nth(1).unwrap();
    let spread = few_shot(&probe(solver, 8), &train, &queries, None, &options).unwrap();
    assert_eq!(spread.draws.len(), 3);
    assert!(spread.draws.iter().all(|draw| (draw.fitted_to, draw.chosen_on) == (10, 10)));
    assert!(spread.top1.mean > 80.0 && spread.top1.std.is_some(), "{spread:?}");
}

/// Two epochs of two steps with a penalty and a batch that is not 256, worked out in f64. Which rows
/// make a batch is found by trying all: it must be other ones in the second epoch.
#[test]
fn steps_of_several_batches_with_a_penalty() {
    let rows = [(1.0, 0), (-2.0, 0), (0.5, 0), (3.0, 1)];
    let of = rows.iter().map(|row| row.1 as u32).collect();
    let values = rows.iter().map(|row| row.0 as f32).collect();
    let train = Examples { values, width: 1, targets: Targets::Classes { of, count: 2 } };
    let sgd = Sgd { epochs: 2, batch: 2, momentum: 0.9, seed: 1 };
    let trained_head = |lr, l2| {
        train_heads(&Subset::all(&train), &[head(0, lr, l2)], &sgd).unwrap().swap_remove(0)
    };
    let (lr, l2) = (40.0, 0.5);
    let (start, found) = (trained_head(0.0, 0.0), trained_head(lr, l2));
    let wide = |values: &[f32]| [f64::from(values[0]), f64::from(values[1])];
    let trained = |batches: [[usize; 2]; 4]| {
        let (mut w, mut b) = (wide(&start.weight), [0.0; 2]);
        let (mut vw, mut vb) = ([0.0; 2], [0.0; 2]);
        for (step, batch) in batches.into_iter().enumerate() {
            let lr = lr * 2.0 / 256.0 * if step < 2 { 1.0 } else { 0.5 };
            let (mut gw, mut gb) = ([0.0; 2], [0.0; 2]);
            for (x, class) in batch.map(|row| rows[row]) {
                let e = [0, 1].map(|k| (w[k] * x + b[k]).exp());
                for k in 0..2 {
                    let g = (e[k] / (e[0] + e[1]) - f64::from(u8::from(k == class))) / 2.0;
                    (gw[k], gb[k]) = (gw[k] + g * x, gb[k] + g);
                }
            }
            for k in 0..2 {
                vw[k] = 0.9 * vw[k] + gw[k] + l2 * w[k];
                vb[k] = 0.9 * vb[k] + gb[k];
                (w[k], b[k]) = (w[k] - lr * vw[k], b[k] - lr * vb[k]);
            }
        }
        [w, b].concat()
    };
    let found = [wide(&found.weight), wide(&found.bias)].concat();
    let splits = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let rest = |batch: [usize; 2]| splits[5 - splits.iter().position(|b| *b == batch).unwrap()];
    let mut best = (f64::INFINITY, [0, 0]);
    for first in 0..6 {
        for second in 0..6 {
            let epochs = [splits[first], splits[second]].map(|batch| [batch, rest(batch)]);
            let values = trained([epochs[0][0], epochs[0][1], epochs[1][0], epochs[1][1]]);
            let off = values.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            if off < best.0 {
                best = (off, [first, second]);
            }
        }
    }
    assert!(best.0 < 2e-6 && best.1[0] != best.1[1], "{best:?}");
}

#[test]
fn heads_see_the_rows_of_a_subset_and_start_by_the_seed() {
    let train = clusters(40, 6, 3, 1.0, 3);
    let rows: Vec<usize> = (0..20).map(|row| 39 - 2 * row).collect();
    let Targets::Classes { of, count } = &train.targets else { panic!() };
    let picked = Examples {
        values: rows.iter().flat_map(|&row| train.values[row * 6..][..6].to_vec()).collect(),
        width: 6,
        targets: Targets::Classes { of: rows.iter().map(|&row| of[row]).collect(), count: *count },
    };
    let sgd = Sgd { epochs: 2, batch: 8, ..Sgd::default() };
    let head = head(2, 1.0, 1e-3);
    let some = train_heads(&Subset::new(&train, rows, None), &[head], &sgd).unwrap();
    assert_eq!(some, train_heads(&Subset::all(&picked), &[head], &sgd).unwrap());
    let still = Setting { lr: Some(0.0), ..head };
    let start = |seed| {
        train_heads(&Subset::all(&picked), &[still], &Sgd { seed, ..sgd }).unwrap().swap_remove(0)
    };
    assert_eq!(start(1), start(1));
    assert_ne!(start(1).weight, start(2).weight);
}

/// Far from the origin and with large values a probe sees nothing without standardization.
#[test]
fn all_sides_are_standardized() {
    let shifted = |rows, stream| {
        let mut examples = clusters(rows, 8, 4, 0.1, stream);
        examples.values.iter_mut().for_each(|value| *value = 30.0 * *value + 2000.0);
        examples
    };
    let [sgd, ..] = solvers();
    let probe = Probe { standardize: true, ..probe(sgd, 8) };
    let result = probe.run(&shifted(200, 1), &shifted(100, 2), None).unwrap();
    assert_eq!(result.best.metrics.value(), 100.0);
    for trial in &result.sweep {
        assert_eq!(trial.validation, Some(100.0), "{trial:?}");
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let queries = clusters(6, 4, 3, 0.1, 2);
    let fails =
        |solver: Solver| probe(solver, 4).run(&queries, &queries, None).unwrap_err().to_string();
    let sgd = |sgd: Sgd, lr: f64| Solver::Sgd { lrs: vec![0.1, lr], sgd };
    let usual = Sgd::default();
    for (solver, message) in [
        (sgd(Sgd { epochs: 0, ..usual }, 0.1), "the number of epochs is 0"),
        (sgd(Sgd { batch: 0, ..usual }, 0.1), "the batch is 0"),
        (sgd(usual, 0.0), "a learning rate is 0, it must be above 0"),
        (sgd(usual, 1e30), "it must be above 0 and at most 1000000"),
        (sgd(usual, f64::INFINITY), "it must be above 0 and at most 1000000"),
        (sgd(Sgd { epochs: usize::MAX, ..usual }, 0.1), "at least 1 and at most 1000000"),
        (sgd(Sgd { batch: usize::MAX, ..usual }, 0.1), "at least 1 and at most 1000000"),
        (sgd(usual, f64::NAN), "a learning rate is NaN"),
        (Solver::Logistic(Logistic { l2s: vec![1.0, -1.0], max_iterations: 5 }), "penalty is -1"),
        (Solver::Elevater(Elevater { final_epochs: 0, ..Elevater::default() }), "epochs is 0"),
    ] {
        let error = fails(solver);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn strengths_are_tried_from_the_strongest_down() {
    let train = clusters(60, 4, 3, 0.3, 1);
    let logistic = Logistic { l2s: vec![1e-3, 10.0, 1e-1], max_iterations: 50 };
    let result = probe(Solver::Logistic(logistic), 4).run(&train, &train, None).unwrap();
    let tried: Vec<f64> = result.sweep.iter().filter_map(|trial| trial.setting.l2).collect();
    assert_eq!(tried, [10.0, 1e-1, 1e-3, 10.0, 1e-1, 1e-3]);
}

#[test]
fn of_equal_settings_the_first_is_best() {
    let train = clusters(30, 2, 3, 0.3, 1);
    let subset = Subset::all(&train);
    let classifier = LinearClassifier { first: 0, weight: vec![0.5; 6], bias: vec![0.0; 3] };
    let blocks = LastBlocks { n: 1, first: 0 };
    let setting = |lr| Setting { blocks, lr: Some(lr), l2: None };
    let mut sweep = Sweep::by(Metric::Top1);
    sweep.add(setting(1.0), &classifier, &subset);
    sweep.add(setting(2.0), &classifier, &subset);
    let broken = LinearClassifier { bias: vec![f32::NAN; 3], ..classifier.clone() };
    assert!(sweep.add(setting(3.0), &broken, &subset).is_none());
    let best = sweep.best.map(|(setting, _)| setting);
    assert_eq!((best, sweep.trials.len()), (Some(setting(1.0)), 3));
    assert_eq!(Metrics::of(&broken, &subset), Err(ProbeError::Diverged));
}

/// Of ten images eight are of class 0: a classifier that knows no other class tells most of them
/// right, another one more of each class.
#[test]
fn the_best_setting_is_that_of_the_metric() {
    let targets = Targets::Classes { of: vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 1], count: 2 };
    let values = vec![-1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let examples = Examples { values, width: 1, targets };
    let subset = Subset::all(&examples);
    let constant = LinearClassifier { first: 0, weight: vec![0.0; 2], bias: vec![1.0, 0.0] };
    let both = LinearClassifier { first: 0, weight: vec![-1.0, 1.0], bias: vec![0.0; 2] };
    let best_by = |metric: Metric| {
        let mut sweep = Sweep::by(metric);
        sweep.add(head(0, 1.0, 0.0), &constant, &subset);
        sweep.add(head(0, 2.0, 0.0), &both, &subset);
        let values: Vec<Option<f64>> = sweep.trials.iter().map(|trial| trial.validation).collect();
        (sweep.best.unwrap().0.lr, values)
    };
    assert_eq!(best_by(Metric::Top1), (Some(1.0), vec![Some(80.0), Some(70.0)]));
    assert_eq!(best_by(Metric::MeanPerClass), (Some(2.0), vec![Some(50.0), Some(81.25)]));
    assert_eq!(best_by(Metric::RocAuc), (Some(2.0), vec![Some(50.0), Some(81.25)]));
}

#[test]
fn metrics_that_are_not_defined_are_refused_before_anything_is_fitted() {
    let train = clusters(30, 4, 3, 0.1, 1);
    let solver = solvers().into_iter().nth(1).unwrap();
    let by = |metric| Probe { metric: Some(metric), ..probe(solver.clone(), 4) };
    for metric in [Metric::Map, Metric::RocAuc] {
        let error = by(metric).run(&train, &train, None).unwrap_err();
        assert!(matches!(error, ProbeError::Metric { metric: of, .. } if of == metric), "{error}");
    }
    assert_eq!(
        by(Metric::MeanPerClass).run(&train, &train, None).unwrap().best.metrics.value(),
        100.0
    );
    // None of the images that settings are chosen on is of class 1.
    let two = clusters(30, 4, 2, 0.1, 1);
    let Targets::Classes { of, .. } = &two.targets else { panic!() };
    let (fit, choice): (Vec<usize>, Vec<usize>) = (0..30).partition(|&row| of[row] == 1 || row > 9);
    let error = by(Metric::RocAuc).run_on(&two, &two, None, fit, choice).unwrap_err();
    assert!(error.to_string().contains("all validation images are of one class"), "{error}");
}

/// Each round tries the neighbors of the best point so far.
#[test]
fn the_search_closes_in_on_the_best_point() {
    let (fit, validation) = (clusters(60, 6, 4, 1.0, 1), clusters(60, 6, 4, 1.0, 2));
    let tuning = Sgd { epochs: 3, batch: 16, ..Sgd::default() };
    let elevater = Elevater { lrs: vec![0.5], tuning, final_epochs: 7 };
    let blocks = [LastBlocks { n: 1, first: 0 }];
    let [all, held_out] = [&fit, &validation].map(Subset::all);
    let sweep = elevater.sweep(&all, &held_out, &blocks, Sweep::by(Metric::Top1)).unwrap();
    let point = |trial: &Trial| ((trial.setting.l2.unwrap().log10() + 6.0) * 8.0).round() as i64;
    let points: Vec<i64> = sweep.trials.iter().map(point).collect();
    assert_eq!(points[..7], [0, 16, 32, 48, 64, 80, 96]);
    let mut seen = 7;
    for distance in [8, 4, 2, 1] {
        let better = |a: &Trial, b: &Trial| {
            // Diverged ones come last.
            let score = |t: &Trial| Some((t.validation?, -t.validation_loss?));
            score(b) > score(a)
        };
        let best = (1..seen).fold(0, |best, other| {
            if better(&sweep.trials[best], &sweep.trials[other]) { other } else { best }
        });
        let around = [points[best] - distance, points[best] + distance];
        let around: Vec<i64> = around.into_iter().filter(|p| (0..97).contains(p)).collect();
        assert_eq!(points[seen..seen + around.len()], around, "{distance}");
        seen += around.len();
    }
    assert_eq!(seen, points.len());
    let (setting, _) = sweep.best.unwrap();
    let last = elevater.fit(&setting, &Subset::all(&fit)).unwrap();
    let head = head(0, 0.5, setting.l2.unwrap());
    let long = Sgd { epochs: 7, ..tuning };
    assert_eq!(last, train_heads(&Subset::all(&fit), &[head], &long).unwrap()[0]);
}

#[test]
fn classes_with_fewer_images_than_shots_are_counted() {
    let mut train = clusters(30, 4, 5, 0.3, 1);
    // Two of class 0, one of class 1, nothing of class 2, the others of 3 and 4.
    let of = (0..30).map(|row| [0, 0, 1].get(row).copied().unwrap_or(3 + row as u32 % 2)).collect();
    train.targets = Targets::Classes { of, count: 5 };
    let solver = solvers().into_iter().nth(1).unwrap();
    let options = FewShot { shots: 2, draws: 1, seed: 0 };
    let spread = few_shot(&probe(solver, 4), &train, &train, None, &options).unwrap();
    assert_eq!((spread.smaller_classes, spread.draws[0].fitted_to), (1, 2 + 1 + 2 + 2));
}

#[test]
fn labels_without_a_contrast_are_refused() {
    let make = |positives: &[&[u32]]| {
        let of: Vec<Vec<u32>> =
            (0..10).map(|row| positives[row % positives.len()].to_vec()).collect();
        let values = (0..20).map(|value| value as f32).collect();
        Examples { values, width: 2, targets: Targets::Labels { of, count: 3 } }
    };
    let solver = || solvers().into_iter().nth(1).unwrap();
    let run = |train: &Examples| probe(solver(), 2).run(train, &make(&[&[0], &[1]]), None);
    assert_eq!(run(&make(&[&[1, 2]])), Err(ProbeError::NoContrast));
    assert_eq!(run(&make(&[&[]])), Err(ProbeError::NoContrast));
    assert!(run(&make(&[&[0, 1], &[1]])).is_ok());
}
