//! The project's numeric cases.

use std::path::Path;

use esvit_eval::verify::{Options, Outcome, Report, run};
use esvit_kernels::isa::{self, Isa};

use crate::place::Place;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn reports(folder: &Path) -> Vec<Report> {
    run(folder, Options::default(), |_| ()).unwrap()
}

/// Cases for which `holds` is false, with the comparisons that do not hold.
fn others<'a>(reports: &'a [Report], holds: impl Fn(&Report) -> bool) -> Vec<String> {
    let describe = |report: &&'a Report| match &report.outcome {
        Outcome::Compared(checks) => {
            let bad: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
            format!("{}: {} comparisons, failed {bad:#?}", report.name, checks.len())
        }
        outcome => format!("{}: {outcome:?}", report.name),
    };
    reports.iter().filter(|report| !holds(report)).map(|report| describe(&report)).collect()
}

#[test]
fn own_cases_pass() {
    let reports = reports(&workspace().join("crates/esvit-eval/goldens"));
    let others = others(&reports, Report::passed);
    assert!(others.is_empty(), "{}", others.join("\n"));
}

/// A folder `cases` with the project's schedule case and one more, of another kind.
fn cases(kind: &str) -> Place {
    let place = Place::new();
    for file in ["case.json", "tensors.safetensors"] {
        let bytes =
            std::fs::read(workspace().join("crates/esvit-eval/goldens/schedule").join(file))
                .unwrap();
        place.write(&format!("cases/schedule/{file}"), &bytes);
        place.write(&format!("cases/other/{file}"), &bytes);
    }
    place.write("cases/other/case.json", kind);
    place
}

#[test]
fn the_program_counts_cases() {
    let last = |text: &str| text.lines().last().unwrap_or_default().to_owned();
    let place = Place::new();
    let goldens = workspace().join("crates/esvit-eval/goldens");
    // From anywhere, with the cases inside of the program.
    let ended = place.well("verify --strict");
    let count = std::fs::read_dir(&goldens)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().join("case.json").is_file())
        .count();
    assert_eq!(last(&ended.stdout), format!("{count} passed, 0 failed, 0 not supported"));

    let place = cases(r#"{"kind": "backbone", "family": "of tomorrow"}"#);
    let ended = place.well("verify cases");
    assert_eq!(last(&ended.stdout), "1 passed, 0 failed, 1 not supported", "{ended}");
    let ended = place.run("verify cases --strict").expect(1);
    assert_eq!(last(&ended.stdout), "1 passed, 0 failed, 1 not supported", "{ended}");

    let place = cases(r#"{"kind": "nonsense"}"#);
    let ended = place.run("verify cases").expect(1);
    assert_eq!(last(&ended.stdout), "1 passed, 1 failed, 0 not supported", "{ended}");
    assert!(ended.stdout.contains("unknown kind `nonsense`"), "{ended}");
    let json = place.run("verify cases --json").expect(1).json();
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &1.into()), "{json}");
    assert_eq!(json["cases"][0]["reason"], "unknown kind `nonsense`", "{json}");
    let comparison = &json["cases"][1]["comparisons"][0];
    assert!(comparison["passed"] == true && comparison["tolerance"].is_number(), "{json}");
    place.run("verify nowhere").expect(1).says(&["`nowhere`"]);
}

/// By each instruction set that the machine has; one that it has not is refused, since another one would
/// verify something else.
#[test]
fn cases_by_instruction_set() {
    let place = cases(r#"{"kind": "backbone", "family": "of tomorrow"}"#);
    let sets = Isa::ALL.into_iter().chain([Isa::AmxEmulated]);
    for isa in sets {
        let line = format!("verify cases --json --isa {}", isa.name());
        if isa <= isa::detected() || isa == Isa::AmxEmulated {
            let json = place.well(&line).json();
            assert_eq!((&json["isa"], &json["passed"]), (&isa.name().into(), &1.into()), "{json}");
        } else {
            let best = format!("`--isa {}`", isa::detected().name());
            place.run(&line).expect(1).says(&["this machine has not `", isa.name(), &best]);
        }
    }
    let json = place.well("verify cases --json --precision bf16x3").json();
    assert_eq!((&json["precision"], &json["passed"]), (&"bf16x3".into(), &1.into()), "{json}");
    place.run("verify cases --isa abacus").expect(2).says(&["abacus", "amx-emulated"]);
}
