//! What goes to stdout and what to stderr.

use std::process::{Command, Stdio};

use crate::images::{labeled, unusable};
use crate::place::{Place, TINY};

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    for line in [&["info"][..], &["info", "--json"], &["pretrain", "-q", "--dry-run"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_esvit"));
        let ended = command.args(line).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.is_empty(), "{line:?}: {} {said}", ended.status);
    }
}

#[test]
fn quiet_leaves_results_warnings_and_errors() {
    let place = Place::new();
    labeled(&place, "set", 3);
    let line = format!("--data set --out run {TINY} train.epochs=1 knn.every=1 knn.k=1");
    let ended = place.well(&format!("--quiet pretrain {line}"));
    assert!(ended.stderr.is_empty() && ended.stdout.starts_with("k-NN on `set`"), "{ended}");
    place.write("set/red/broken.jpg", &unusable()[1].1);
    let checkpoint = "run/checkpoints/best.safetensors";
    let ended = place.well(&format!("embed --checkpoint {checkpoint} --data set --out f.npy -q"));
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(
        (1..=2).contains(&lines.len()) && lines[0].starts_with("warning: left out `set/red/"),
        "{ended}"
    );
    place.run(&format!("pretrain -q {line}")).expect(1).says(&["error: `run` is not empty"]);
}

#[test]
fn a_cause_is_told_once() {
    let place = Place::with_a_run();
    let checkpoint = "run/checkpoints/epoch=0001-step=00000025.safetensors";
    // One message ends in its cause, the other does not.
    for (line, code) in [
        (&*format!("attend none.png --checkpoint {checkpoint}"), 1),
        ("report run --out nowhere/page.html", 1),
    ] {
        let ended = place.run(line).expect(code);
        assert_eq!(ended.stderr.matches("No such file").count(), 1, "{ended}");
        assert_eq!(ended.stderr.matches("error:").count(), 1, "{ended}");
    }
}

#[test]
fn nothing_is_colored_where_no_terminal_is() {
    let ended = Place::new().run("resume nowhere").expect(1);
    assert!(!ended.stderr.contains('\x1b') && ended.stderr.contains("\nhint:"), "{ended}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_told_of_by_its_exit_code() {
    let place = Place::new();
    place.run("pretrain --resume --overwrite").expect(2).says(&["cannot be used with"]);
    place.run("nonsense").expect(2);
    let help = place.well("--help");
    assert!(help.stdout.contains("pretrain") && help.stderr.is_empty(), "{help}");
    assert!(place.well("--version").stdout.starts_with("esvit "));
}
