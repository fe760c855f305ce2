//! `--data` more than once.

use crate::images::{good, labeled};
use crate::place::{Place, TINY};

#[test]
fn a_run_on_several_folders() {
    let place = Place::new();
    good(&place, "left", 6);
    good(&place, "right", 5);
    let ended =
        place.well(&format!("pretrain --data left -d right --out run {TINY} train.epochs=2"));
    ended.says(&["11 images in `left`, `right`", " --data left --data right --out run.npy"]);
    let run = place.folder("run");
    assert!(run.text("config.toml").contains(r#"path = ["left", "right"]"#));
    // Later commands have both, from the settings of the run or named again.
    place.well("resume run train.epochs=3").says(&["11 images in `left`, `right`"]);
    place.well("report run");
    assert!(run.text("report.html").contains("11 images of <code>left</code>, <code>right</code>"));
    place.well("embed -c run -d right -d left --out f.npy");
    let names = String::from_utf8(std::fs::read(place.path("f.txt")).unwrap()).unwrap();
    let of = |folder: &str| names.lines().filter(|name| name.starts_with(folder)).count();
    assert_eq!((of("left/"), of("right/"), names.lines().count()), (6, 5, 11), "{names}");
    assert!(names.starts_with("right/"), "{names}");
    place.well("neighbors -c run --data left --data right -o n.svg --json");
    // As a setting, too.
    let settings = place.settings(r#"pretrain data.path=["left","right"]"#);
    assert_eq!(settings.data.path.unwrap().paths().len(), 2);
    place.well("config -d left -d right").says(&[]);

    place.run("pretrain -d left -d left/ --out twice").expect(1).says(&["would count twice"]);
    place.run("pretrain -d left -d nowhere --out no").expect(1).says(&["no folder `nowhere`"]);
    place.run("pretrain data.path=[] --out no").expect(1).says(&["a list of no folders"]);
    place.run("pretrain data.path=7 --out no").expect(2).says(&["a folder or a list of folders"]);
}

#[test]
fn labels_of_several_folders() {
    let place = Place::new();
    labeled(&place, "a", 5);
    labeled(&place, "b", 4);
    let line = format!("pretrain -d a -d b --out run {TINY} train.epochs=1 knn.every=1");
    let ended = place.well(&line);
    let ended = ended.says(&["k-NN check on `a`, `b`, every fifth image set aside", "step 0"]);
    assert!(ended.stdout.contains("trained"), "{ended}");
    assert!(!ended.stderr.contains("eval linear"), "which takes one folder: {ended}");
    let one = place.well(&format!("pretrain -d a --out one {TINY} train.epochs=1 knn.every=1"));
    one.says(&[
        "its folders are taken for classes: 3 (`blue`, `green`, `red`)",
        "eval linear --checkpoint one --train a",
        "embed --checkpoint one --data a --out one.npy",
        "weights: `one/checkpoints/best.safetensors`",
    ]);
    let ended = place.run(&format!("{line} knn.val=a --overwrite")).expect(1);
    ended.says(&["`knn.train`"]);
}
