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

use esvit_eval::probe::{LastBlocks, Logistic, Probe, Sgd, Solver, read_dump};

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
    let [train, queries] = read_dump(Path::new(folder))?;
    let blocks = vec![LastBlocks { n: 1, first: 0 }];
    let probe = Probe { solver, blocks, standardize: false, refit: true };
    let outcome = probe.run(&train, &queries, None)?;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?)
}
