//! Folders as they are found in the wild.

use image::{ImageBuffer, ImageFormat, Luma};

use crate::images::{encoded, good, textured, unusable, usable};
use crate::maps::drawn;
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

/// Scans of 12 bits in files of 16.
fn scans(place: &Place, folder: &str, count: u32) {
    for number in 0..count {
        let deep: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_fn(40, 40, |x, y| {
            Luma([16 * u16::from(textured(40, 40, number).get_pixel(x, y)[0])])
        });
        place.write(&format!("{folder}/{number}.png"), encoded(deep, ImageFormat::Png));
    }
}

#[test]
fn scans_that_a_network_sees_as_black_are_pointed_out() {
    let place = Place::with_a_run();
    scans(&place, "scans", 6);
    let warning = "6 uint16 images of those looked at: their values are ";
    for line in [
        "embed --checkpoint run --data scans --out a.npy",
        "eval retrieval --checkpoint run --data scans",
        "map --checkpoint run --data scans",
        "neighbors --checkpoint run --data scans",
        "pca scans --checkpoint run",
    ] {
        place.well(line).says(&[warning, "65535 as white", "hint: scale them"]);
    }
    for line in ["attend scans/0.png --checkpoint run", "pca scans/0.png --checkpoint run"] {
        place.well(line).says(&["1 uint16 image of those looked at"]);
    }
    // One that was trained on them is shown their range; the built-in images are of 8 bits.
    place.well(&format!("pretrain --data scans --out own {TINY} train.epochs=1"));
    for line in
        ["embed --checkpoint own --data scans --out b.npy", "embed --checkpoint run --out c.npy"]
    {
        let ended = place.well(line);
        assert!(!ended.stderr.contains("uint16"), "{}", ended.stderr);
    }
    // And they are drawn so: with the whole range they are black.
    for (line, name) in [("neighbors --k 2", "neighbors.png"), ("map", "map.png")] {
        place.well(&format!("{line} --data scans --checkpoint own --overwrite --out {name}"));
        let drawing = drawn(&place, name);
        let black = drawing.pixels().filter(|pixel| pixel.0 == [0; 3]).count();
        assert!(black * 500 < drawing.pixels().count(), "{name}: {black} pixels are black");
    }
}

#[test]
fn a_run_says_how_large_images_may_be_for_what_is_done_with_it() {
    let place = Place::new();
    good(&place, "photos", 8);
    place.well(&format!(
        "pretrain --data photos --out run {TINY} train.epochs=1 data.max_pixels=2200"
    ));
    // 40x48 to 47x48: the last two have more.
    let embedded = place.well("embed --checkpoint run --data photos --out a.npy --json");
    let embedded = embedded.says(&["46x48 is 2208 pixels, more than `max_pixels` = 2200"]);
    assert_eq!(embedded.json()["features"], 6);
    place
        .run("attend photos/good-07.png --checkpoint run")
        .expect(1)
        .says(&["`max_pixels` = 2200"]);
}
