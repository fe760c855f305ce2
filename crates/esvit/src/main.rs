//! tmp
#![allow(clippy::print_stdout, clippy::unwrap_used)]
fn main() {
    for d in std::env::args().skip(1) {
        esvit_eval::verify::run(std::path::Path::new(&d), |r| {
            let state = match &r.outcome {
                esvit_eval::verify::Outcome::Compared(c) => {
                    let worst = c.iter().max_by(|a, b| (a.difference / a.tolerance.max(1e-30)).total_cmp(&(b.difference / b.tolerance.max(1e-30)))).unwrap();
                    format!("{} {} {:.2e}/{:.0e}", r.passed(), worst.what, worst.difference, worst.tolerance)
                }
                o => format!("{o:?}"),
            };
            println!("{} {}", r.name, state);
        }).unwrap();
    }
}
