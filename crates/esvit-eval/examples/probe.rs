//! Fits one linear classifier to stored features and prints its accuracy as JSON:
//!
//! ```sh
//! cargo run --release -p esvit-eval --example probe -- FOLDER sgd LR EPOCHS SEED
//! cargo run --release -p esvit-eval --example probe -- FOLDER logistic L2
//! ```
//!
//! `FOLDER` holds `train_features.npy`, `train_labels.npy`, `query_features.npy` and
//! `query_labels.npy`, as written by `esvit eval linear --dump FOLDER`. `conformance/probe.py` runs
//! this.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use esvit_eval::probe::{Examples, LastBlocks, Logistic, Probe, Sgd, Solver, Targets};
use esvit_model::npy;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (folder, solver) = match arguments[..] {
        [folder, "sgd", lr, epochs, seed] => {
            let sgd = Sgd { epochs: epochs.parse()?, seed: seed.parse()?, ..Sgd::default() };
            (folder, Solver::Sgd { lrs: vec![lr.parse()?], sgd })
        }
        [folder, "logistic", l2] => {
            (folder, Solver::Logistic(Logistic { l2s: vec![l2.parse()?], ..Logistic::default() }))
        }
        _ => return Err("FOLDER sgd LR EPOCHS SEED, or FOLDER logistic L2".into()),
    };
    let [train, queries] = [read(folder, "train")?, read(folder, "query")?];
    let blocks = vec![LastBlocks { n: 1, first: 0 }];
    let probe = Probe { solver, blocks, standardize: false, refit: true, metric: None };
    let outcome = probe.run(&train, &queries, None)?;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?)
}

/// The features and classes of one side.
fn read(folder: &str, side: &str) -> Result<Examples, Box<dyn Error>> {
    let file = |what: &str| Path::new(folder).join(format!("{side}_{what}.npy"));
    let features = npy::read::<f32>(&file("features"))?;
    let labels = npy::read::<i64>(&file("labels"))?.values;
    let of = labels.into_iter().map(u32::try_from).collect::<Result<Vec<_>, _>>()?;
    let count = of.iter().max().map_or(0, |&largest| largest as usize + 1);
    let width = *features.shape.get(1).ok_or("features are a matrix")?;
    Ok(Examples { values: features.values, width, targets: Targets::Classes { of, count } })
}
