//! Folders as they are found in the wild.

use crate::images::{good, unusable, usable};
use crate::place::{Place, TINY};

#[test]
fn a_folder_of_odd_files_trains_to_the_end_and_names_what_it_leaves_out() {
    let place = Place::new();
    good(&place, "set", 12);
    for (name, bytes) in usable().into_iter().chain(unusable()) {
        place.write(&format!("set/{name}"), bytes);
    }
    let ended = place
        .well(&format!("pretrain --data set --out run {TINY}"))
        .says(&["26 images in `set`", "6 images left out, `run/train.log` names them"]);
    let log = place.folder("run").text("train.log");
    for told in [&ended.stderr, &log] {
        for (name, _) in unusable() {
            let line = format!("left out `set/{name}`:");
            assert_eq!(told.matches(&line).count(), 1, "{line}\n{ended}\n-- train.log\n{log}");
        }
        for (name, _) in usable() {
            assert!(!told.contains(name), "{name} is named\n{ended}\n-- train.log\n{log}");
        }
        assert!(!told.contains("good-"), "{ended}\n-- train.log\n{log}");
    }
    ended.says(&[
        "50000x50000 is 2500000000 pixels, more than `max_pixels`",
        "the JPEG file is truncated",
        "the file is empty",
        "it begins with the text `<!DOCTYPE html>",
    ]);
    assert_eq!(place.folder("run").newest(), place.folder("run").checkpoint(18));
}
