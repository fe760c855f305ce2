//! Losses of contrastive and clustering objectives against their definitions in f64, with gradients
//! by differences; what holds of them whatever the numbers are; and what they are by chance.

#![allow(clippy::unwrap_used)]

#[path = "definitions/regions.rs"]
mod regions;

use esvit_nn::{Device, Solo, Tape, Tensor, ops};
use esvit_testing::losses::{self, Rows, flat, gradient, rows, unit};
use esvit_testing::{assert_close, hash, hashed_tensor};
use esvit_train::objective::densecl::{self, DenseClConfig, Keys};
use esvit_train::objective::infonce::normalized;
use esvit_train::objective::{Loss, Views, byol, moby, mocov3, simclr, swav};

const BATCH: usize = 4;
const WIDTH: usize = 5;
const TEMPERATURE: f64 = 0.4;
/// Largest difference of losses and gradients in f32.
const TOLERANCE: f64 = 3e-6;

/// Numbers of a stream, as [`hashed_tensor`] has them, rounded alike.
fn numbers(stream: u32, len: usize) -> Vec<f64> {
    (0..len).map(|i| f64::from(hash(stream, i) as f32)).collect()
}

fn rows_of(stream: u32, count: usize) -> Rows {
    rows(&numbers(stream, count * WIDTH), WIDTH)
}

fn tensor(rows: &Rows) -> Tensor {
    let values = flat(rows).iter().map(|&value| value as f32).collect();
    Tensor::new(values, [rows.len(), rows[0].len()], &Device::Cpu)
}

/// Compares a loss of leaf `[views * BATCH, WIDTH]` and its gradient with a definition on rows by view.
fn check(
    what: &str,
    stream: u32,
    views: usize,
    loss: impl Fn(&Tensor) -> Tensor,
    definition: impl Fn(&[Rows]) -> f64,
) {
    let by_view = |values: &[f64]| -> Vec<Rows> {
        values.chunks_exact(BATCH * WIDTH).map(|view| rows(view, WIDTH)).collect()
    };
    let values = numbers(stream, views * BATCH * WIDTH);
    let tape = Tape::new();
    let leaf = tape.watch(hashed_tensor(stream, [views * BATCH, WIDTH]));
    let found = loss(&leaf);
    assert_close(what, &[found.item()], &[definition(&by_view(&values))], TOLERANCE);
    let expected = gradient(&values, |values| definition(&by_view(values)));
    let found = tape.backward(&found).of(&leaf).unwrap();
    assert_close(&format!("{what}: gradient"), &found.to_vec::<f32>(), &expected, TOLERANCE);
    // It does not depend on the lengths of rows.
    let products = (found * hashed_tensor(stream, [views * BATCH, WIDTH])).sum_dim(1);
    for product in products.to_vec::<f32>() {
        assert!(product.abs() < 1e-6, "{what}: {product} along a row");
    }
    let longer = hashed_tensor(stream, [views * BATCH, WIDTH]) * 7.0;
    assert_close(what, &[loss(&longer).item()], &[definition(&by_view(&values))], TOLERANCE);
}

/// Pairs of a view and a global view other than it.
fn pairs(views: usize) -> Vec<(usize, usize)> {
    let pairs = (0..views).flat_map(|view| [0, 1].map(|other| (view, other)));
    pairs.filter(|(view, other)| view != other).collect()
}

/// Twice the mean over pairs.
fn over_pairs(views: usize, loss: impl Fn(usize, usize) -> f64) -> f64 {
    let pairs = pairs(views);
    2.0 * pairs.iter().map(|&(view, other)| loss(view, other)).sum::<f64>() / pairs.len() as f64
}

#[test]
fn queries_beside_a_queue() {
    let (keys, queue) = (rows_of(2, BATCH), rows_of(3, 9));
    let loss = |queries: &Tensor| {
        let [keys, queue] = [&keys, &queue].map(|rows| tensor(&unit(rows)));
        ops::info_nce(normalized(queries.clone()), keys, queue, TEMPERATURE)
    };
    check("MoCo-v2", 1, 1, loss, |views| losses::with_queue(&views[0], &keys, &queue, TEMPERATURE));
}

/// Two views, and two global ones with a local one.
#[test]
fn both_views_among_a_batch() {
    let keys = [rows_of(2, BATCH), rows_of(3, BATCH)];
    for views in [2, 3] {
        let loss = |queries: &Tensor| {
            let keys = keys.each_ref().map(|keys| tensor(&unit(keys)));
            let queries = normalized(queries.clone());
            mocov3::loss(&queries, &keys, 0, &Views::all(views), TEMPERATURE).total()
        };
        check("MoCo-v3", 1, views, loss, |rows| {
            over_pairs(views, |view, other| losses::among(&rows[view], &keys[other], TEMPERATURE))
        });
    }
}

#[test]
fn both_views_beside_queues() {
    let keys = [rows_of(2, BATCH), rows_of(3, BATCH)];
    let queues = [rows_of(4, 7), rows_of(5, 7)];
    for views in [2, 3] {
        let loss = |predictions: &Tensor| {
            let [keys, queues] =
                [&keys, &queues].map(|rows| rows.each_ref().map(|rows| tensor(&unit(rows))));
            let predictions = normalized(predictions.clone());
            moby::loss(&predictions, &keys, &queues, &Views::all(views), TEMPERATURE).total()
        };
        check("MoBY", 1, views, loss, |rows| {
            over_pairs(views, |view, other| {
                losses::with_queue(&rows[view], &keys[other], &queues[other], TEMPERATURE)
            })
        });
    }
}

#[test]
fn views_that_find_each_other() {
    let loss = |hidden: &Tensor| simclr::nt_xent(hidden, TEMPERATURE, &Solo).loss;
    check("SimCLR", 1, 2, loss, |views| losses::nt_xent(&views[0], &views[1], TEMPERATURE));
}

#[test]
fn predictions_of_a_slow_network() {
    let targets = [rows_of(2, BATCH), rows_of(3, BATCH)];
    for views in [2, 3] {
        let loss = |predictions: &Tensor| {
            let targets = targets.each_ref().map(tensor);
            byol::loss(predictions, &targets, &Views::all(views)).total()
        };
        check("BYOL", 1, views, loss, |rows| {
            over_pairs(views, |view, other| losses::distance(&rows[view], &targets[other]))
        });
    }
}

/// Parts of the views of a pass add up to all of them.
#[test]
fn chunks_of_views_add_up() {
    let all = normalized(hashed_tensor(1, [3 * BATCH, WIDTH]));
    let keys = [2, 3].map(|stream| normalized(hashed_tensor(stream, [BATCH, WIDTH])));
    let queues = [4, 5].map(|stream| normalized(hashed_tensor(stream, [7, WIDTH])));
    let losses = |rows: &Tensor, views: &Views| -> [f32; 3] {
        let total = |loss: Loss| loss.total().item();
        [
            total(mocov3::loss(rows, &keys, 0, views, TEMPERATURE)),
            total(moby::loss(rows, &keys, &queues, views, TEMPERATURE)),
            total(byol::loss(rows, &keys, views)),
        ]
    };
    let whole = losses(&all, &Views::all(3));
    let mut sums = [0.0; 3];
    for at_hand in [0..1, 1..3] {
        let rows = all.clone().narrow(0, at_hand.start * BATCH, at_hand.len() * BATCH);
        let found = losses(&rows, &Views { at_hand, total: 3 });
        sums.iter_mut().zip(found).for_each(|(sum, loss)| *sum += loss);
    }
    for (found, expected) in sums.iter().zip(whole) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

/// Swapped predictions of three views over six prototypes, with gradients of both.
#[test]
fn clusters_of_the_other_view() {
    const PROTOTYPES: usize = 6;
    let prototypes = unit(&rows_of(2, PROTOTYPES));
    let views = 3;
    let values = numbers(1, views * BATCH * WIDTH);
    let by_view: Vec<Rows> =
        values.chunks_exact(BATCH * WIDTH).map(|view| rows(view, WIDTH)).collect();
    let targets =
        [0, 1].map(|view| losses::sinkhorn(&losses::scores(&by_view[view], &prototypes), 0.05, 3));
    let shares = targets.each_ref().map(tensor);
    let loss = |embeddings: &Tensor| {
        let embeddings = normalized(embeddings.clone());
        swav::loss(&embeddings, &tensor(&prototypes), &shares, TEMPERATURE).total()
    };
    check("SwAV", 1, views, loss, |rows| losses::swapped(rows, &prototypes, &targets, TEMPERATURE));
    // The prototypes' own, which are not scaled on the way.
    let tape = Tape::new();
    let leaf = tape.watch(tensor(&prototypes));
    let embeddings = normalized(hashed_tensor(1, [views * BATCH, WIDTH]));
    let found = swav::loss(&embeddings, &leaf, &shares, TEMPERATURE).total();
    let found = tape.backward(&found).of(&leaf).unwrap().to_vec::<f32>();
    let expected = gradient(&flat(&prototypes), |values| {
        losses::swapped(&by_view, &rows(values, WIDTH), &targets, TEMPERATURE)
    });
    assert_close("SwAV: gradient of prototypes", &found, &expected, TOLERANCE);
}

/// Two images with four cells each: matches, and both losses.
#[test]
fn cells_and_their_matches() {
    const CELLS: usize = 4;
    let images = 2;
    let cells = |stream: u32| hashed_tensor(stream, [images * CELLS, WIDTH]);
    let keys = Keys {
        global: normalized(hashed_tensor(2, [images, WIDTH])),
        grid: normalized(cells(3)),
        cells: cells(4),
    };
    let matched = densecl::matches(&cells(5), &keys.cells, images);
    let (query, key) = (unit(&rows_of(5, images * CELLS)), unit(&rows_of(4, images * CELLS)));
    for (row, &found) in matched.iter().enumerate() {
        let product = |key: &[f64]| query[row].iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
        let own = row / CELLS * CELLS..(row / CELLS + 1) * CELLS;
        assert!(own.contains(&(found as usize)), "of the same image");
        let best = own.map(|other| product(&key[other])).fold(f64::NEG_INFINITY, f64::max);
        assert!((product(&key[found as usize]) - best).abs() < 1e-12);
    }
    assert_eq!(densecl::matches(&keys.cells, &keys.cells, images), [0, 1, 2, 3, 4, 5, 6, 7]);

    let config = DenseClConfig { temperature: TEMPERATURE, ..DenseClConfig::default() };
    let queues = [6, 7].map(|stream| normalized(hashed_tensor(stream, [9, WIDTH])));
    let [queue, queue2] = &queues;
    let global = normalized(hashed_tensor(8, [images, WIDTH]));
    let grid = normalized(cells(9));
    let of_keys = rows_of(3, images * CELLS);
    let own: Rows = matched.iter().map(|&row| of_keys[row as usize].clone()).collect();
    let found = densecl::losses(global, grid, &keys, matched, [queue, queue2], &config);
    let expected = [
        losses::with_queue(&rows_of(8, images), &rows_of(2, images), &rows_of(6, 9), TEMPERATURE),
        losses::with_queue(&rows_of(9, images * CELLS), &own, &rows_of(7, 9), TEMPERATURE),
    ];
    assert_close("losses", &found.map(|loss| loss.item()), &expected, TOLERANCE);
}

/// The order of images changes nothing but the order of the gradients.
#[test]
fn images_in_another_order() {
    let order = [2, 0, 3, 1];
    let by_image = |rows: &Tensor| {
        let both = [0, BATCH as i32].map(|first| order.map(|image| first + image));
        rows.clone().index_select(0, both.concat())
    };
    let keys = [2, 3].map(|stream| normalized(hashed_tensor(stream, [BATCH, WIDTH])));
    let hidden = hashed_tensor(1, [2 * BATCH, WIDTH]);
    for simclr in [true, false] {
        let run = |hidden: Tensor, keys: &[Tensor; 2]| {
            let tape = Tape::new();
            let leaf = tape.watch(hidden);
            let loss = if simclr {
                simclr::nt_xent(&leaf, TEMPERATURE, &Solo).loss
            } else {
                let queries = normalized(leaf.clone());
                mocov3::loss(&queries, keys, 0, &Views::all(2), TEMPERATURE).total()
            };
            (loss.item(), tape.backward(&loss).of(&leaf).unwrap())
        };
        let (loss, gradient) = run(hidden.clone(), &keys);
        let others = keys.each_ref().map(|keys| keys.clone().index_select(0, order.to_vec()));
        let (found, of_others) = run(by_image(&hidden), &others);
        assert!((loss - found).abs() < 1e-6, "{loss} {found}");
        let expected: Vec<f64> =
            by_image(&gradient).to_vec::<f32>().iter().map(|&value| value.into()).collect();
        assert_close("gradient", &of_others.to_vec::<f32>(), &expected, 1e-6);
    }
}

/// The distance is 0 where predictions point at their targets, however long they are, and 4 a direction
/// where they point away.
#[test]
fn bounds_of_the_distance() {
    let targets = [2, 3].map(|stream| hashed_tensor(stream, [BATCH, WIDTH]));
    let [first, second] = &targets;
    let views = Views::all(2);
    let loss = |factor: f64| {
        let predictions = Tensor::cat(vec![second.clone(), first.clone()], 0) * factor;
        byol::loss(&predictions, &targets, &views).total().item()
    };
    let [least, most] = [3.0, -0.5].map(loss);
    assert!(least.abs() < 1e-6 && (most - 8.0).abs() < 1e-5, "{least} {most}");
}

/// Embeddings in random directions of many values: every loss is that of chance, within a few per cent.
#[test]
fn losses_by_chance() {
    const IMAGES: usize = 48;
    const MANY: usize = 2048;
    let unit = |stream: u32, count: usize| normalized(hashed_tensor(stream, [count, MANY]));
    let views = Views::all(2);
    let (both, keys) = (unit(1, 2 * IMAGES), [unit(2, IMAGES), unit(3, IMAGES)]);
    let queues = [unit(4, 200), unit(5, 200)];
    let (batch, queue) = ((IMAGES as f64).ln(), 201f64.ln());
    for (what, found, chance) in [
        ("MoCo-v2", ops::info_nce(unit(6, IMAGES), keys[0].clone(), queues[0].clone(), 0.2), queue),
        ("MoCo-v3", mocov3::loss(&both, &keys, 0, &views, 0.2).total(), 4.0 * 0.2 * batch),
        ("MoCo-v3, T 1", mocov3::loss(&both, &keys, 0, &views, 1.0).total(), 4.0 * batch),
        ("MoBY", moby::loss(&both, &keys, &queues, &views, 0.2).total(), 2.0 * queue),
        ("BYOL", byol::loss(&both, &keys, &views).total(), 4.0),
        ("SimCLR", simclr::nt_xent(&both, 0.5, &Solo).loss, 2.0 * (2.0 * IMAGES as f64 - 1.0).ln()),
    ] {
        let found = f64::from(found.item());
        assert!((found / chance - 1.0).abs() < 0.03, "{what}: {found} instead of {chance}");
    }
}

/// One image over and over belongs to all clusters alike, and the best loss is that of chance.
#[test]
fn equal_images_have_no_cluster() {
    const PROTOTYPES: usize = 6;
    let prototypes = normalized(hashed_tensor(2, [PROTOTYPES, WIDTH]));
    let row = normalized(hashed_tensor(1, [1, WIDTH]));
    let embeddings = Tensor::cat(vec![row; 2 * BATCH], 0);
    let uniform = Tensor::full(1.0 / PROTOTYPES as f32, [BATCH, PROTOTYPES], &Device::Cpu);
    let targets = [uniform.clone(), uniform];
    let chance = (PROTOTYPES as f64).ln();
    for temperature in [0.1, 1.0, 100.0] {
        let loss = swav::loss(&embeddings, &prototypes, &targets, temperature).total().item();
        assert!(f64::from(loss) > chance - 1e-6, "{loss} below {chance}");
    }
}
