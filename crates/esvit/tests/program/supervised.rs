//! Runs that learn labels are judged on images whose labels they have not seen.

use esvit_data::DecodeLimits;
use esvit_eval::labeled::LabeledTask;

use crate::images::labeled;
use crate::place::{Place, metadata};

/// A small network and one epoch of steps of three images.
const SMALL: &str = "model.arch=custom model.img_size=32 views.global_size=32 model.embed_dim=16 \
    model.depths=[1,1] model.num_heads=[1,2] model.window_size=4 train.batch_size=3 train.epochs=1 \
    train.precision=f32 optim.warmup=0";

/// Files of the images that `esvit eval` sets aside in a folder.
fn set_aside(place: &Place, folder: &str) -> Vec<String> {
    let path = place.path(folder);
    let limits = DecodeLimits::default();
    let queries = LabeledTask::folders(&path, None, &limits, usize::MAX).unwrap().queries;
    queries.images.iter().map(|&index| queries.source.name(index)).collect()
}

#[test]
fn what_judges_a_run_does_not_teach_it() {
    let place = Place::new();
    labeled(&place, "set", 5);
    // A run that learned from it would leave it out.
    std::fs::write(&set_aside(&place, "set")[0], "no image").unwrap();
    let line = format!("pretrain --data set --objective supervised {SMALL}");
    let checked = place.well(&format!("{line} --out run knn.every=1 knn.max_images=2 --json"));
    assert!(!checked.stderr.contains("do not teach it"), "{checked}");
    let checked = checked.says(&[
        "15 images in `set`",
        "k-NN check on `set`, every fifth image set aside",
        "its folders are the classes that it learns: 3 (`blue`, `green`, `red`); 3 images are set \
         aside to judge it and not trained on",
    ]);
    assert_eq!(checked.json()["left_out"], 0, "{checked}");
    let run = place.folder("run");
    let images = |run: &str| metadata(&place.folder(run).newest())["images"]["images"].clone();
    assert_eq!(images("run"), 12);
    // Whoever goes on does so on the same ones, as does the page of the run.
    let resumed = place.well("resume run train.epochs=2");
    assert!(!resumed.stderr.contains("images are not those"), "{resumed}");
    place.well("report run");
    assert!(run.text("report.html").contains("12 images of <code>set</code>"));
    let learned = "trained on with their labels";
    let again = place.well("eval knn --checkpoint run --train set --k 1");
    assert!(!again.stderr.contains(learned), "{again}");

    // Without checks nothing is set aside, and later evaluations say so.
    let ended = place.well(&format!("{line} --out all knn.every=0 --json"));
    assert_eq!((&ended.json()["left_out"], images("all")), (&1.into(), 15.into()), "{ended}");
    for evaluation in ["knn --k 1", "linear"] {
        let told = format!("3 of 3 query images were {learned}");
        place.well(&format!("eval {evaluation} --checkpoint all --train set")).says(&[&told]);
    }
}

#[test]
fn other_images_that_judge_leave_all_to_learn_from() {
    let place = Place::new();
    labeled(&place, "set/train", 4);
    labeled(&place, "set/val", 2);
    // What is checked is said before such a file is refused.
    let line = format!(
        "pretrain --out run --objective supervised {SMALL} knn.every=1 --init-from nowhere.safetensors"
    );
    for data in ["set", "set/train"] {
        place.run(&format!("{line} --data {data}")).expect(1).says(&[
            "k-NN check on `",
            "set/train` and `",
            "its folders are the classes that it learns: 3 (`blue`, `green`, `red`); other images judge it",
        ]);
    }
    place
        .run(&format!("{line} --data set/train knn.val=set/train"))
        .expect(1)
        .says(&["all 12 images are query images of the run's checks", "hint: "]);
}

#[test]
fn a_comparison_judges_on_images_that_no_variant_learns_labels_of() {
    let place = Place::new();
    labeled(&place, "set", 5);
    labeled(&place, "other", 2);
    let line = format!("compare --data set {SMALL} knn.k=1");
    // Also where no checks are asked for.
    let all = "--objective supervised knn.every=0 --run sup --out c --json";
    let ended = place.well(&format!("{line} {all}"));
    let ended = ended.says(&["variant `sup` learns labels and is checked after its last step"]);
    let report = ended.json();
    assert_eq!(report["judged_on"], "`set`, every fifth image set aside", "{ended}");
    assert_eq!(report["runs"][0]["data"], "`set` (12 images)", "{ended}");
    assert!(place.folder("c/sup-0").text("config.toml").contains("every = \"100%\""));
    place.well("compare --resume --out c").says(&["`sup-0` is finished"]);
    // One whose own checks are made elsewhere would learn from what judges all.
    place.write(
        "v.toml",
        "[[variant]]\nname = \"view\"\nrecipe = \"materials\"\n\
         [[variant]]\nname = \"sup\"\nrecipe = \"supervised\"\nknn.val = \"other\"\n",
    );
    let ended = place.run(&format!("{line} knn.every=1 --variants v.toml --out d")).expect(2);
    ended.says(&["variant `sup` would learn the labels of 3 images", "`knn.train` and `knn.val`"]);
    assert!(!place.path("d").exists());
}
