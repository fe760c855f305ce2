//! Folders as they are found in the wild.

use image::{ImageBuffer, ImageFormat, Luma, Rgba, RgbaImage};

use crate::images::{encoded, good, labeled, textured, unusable, usable};
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

#[test]
fn what_a_run_and_its_evaluation_leave_out_is_told_once() {
    let place = Place::new();
    labeled(&place, "set", 6);
    let names: Vec<String> = (0..12).map(|number| format!("set/red/cut-{number:02}.jpg")).collect();
    for (name, seed) in names.iter().zip(0..) {
        let bytes = encoded(textured(64, 64, seed), ImageFormat::Jpeg);
        place.write(name, &bytes[..bytes.len() / 2]);
    }
    // Every image is seen: the steps of five are a whole epoch of the thirty.
    let settings = "train.epochs=1 train.batch_size=5 knn.every=1";
    let ended = place.well(&format!("pretrain --data set --out run {TINY} {settings}"));
    // The table at the end, of a check that leaves out the same images.
    assert!(ended.stdout.contains("k-NN on"), "{ended}");
    // Ten are named, and the other two counted.
    assert_eq!(ended.stderr.matches("left out `set/red/cut-").count(), 10, "{ended}");
    assert_eq!(ended.stderr.matches("left out 2 images more").count(), 1, "{ended}");
    for name in &names {
        assert!(ended.stderr.matches(name).count() <= 1, "{name}\n{ended}");
    }
    // Both networks of an evaluation read the same images.
    let networks = "--checkpoint run --key student --against run/checkpoints/best.safetensors";
    let line = format!("eval transfer --sets set --solver logistic --l2 0.01 --n 1 {networks}");
    let ended = place.well(&line);
    assert_eq!(ended.stderr.matches("left out `set/red/cut-").count(), 10, "{ended}");
    assert_eq!(ended.stderr.matches("left out 2 images more").count(), 1, "{ended}");
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
    // And they are drawn so. With the whole range they are black: half of the one drawing, and a tenth of
    // the other.
    for (line, name, share) in [("neighbors --k 2", "n.png", 20), ("map", "m.png", 100)] {
        place.well(&format!("{line} --data scans --checkpoint own --out {name}"));
        let drawing = drawn(&place, name);
        let black = drawing.pixels().filter(|pixel| pixel.0.iter().all(|&value| value < 20));
        let (black, all) = (black.count(), drawing.pixels().count());
        assert!(black * share < all, "{name}: {black} of {all} pixels are black");
    }
}

/// Dark corners of several sizes on transparency.
fn icons(place: &Place, folder: &str, count: u32) {
    for number in 0..count {
        let icon = RgbaImage::from_fn(40, 40, |x, y| {
            let is_inside = x.max(y) < 10 + 4 * number;
            Rgba([20, 30, 20, if is_inside { 255 } else { 0 }])
        });
        place.write(&format!("{folder}/{number}.png"), encoded(icon, ImageFormat::Png));
    }
}

#[test]
fn icons_of_one_color_are_put_on_another() {
    let place = Place::with_a_run();
    icons(&place, "icons", 6);
    // A network that is shown their mean color behind them sees nothing of them.
    let hidden = "of 6 images with transparency that were looked at 6 show nearly one color";
    let neighbors = "neighbors --data icons --k 1 --overwrite --out neighbors.png --checkpoint";
    place.well(&format!("{neighbors} run")).says(&[hidden, "their mean color behind", "hint: "]);
    let dark = |drawing: image::RgbImage| {
        drawing.pixels().filter(|pixel| pixel.0.iter().all(|&value| value < 60)).count()
    };
    let plain = dark(drawn(&place, "neighbors.png"));

    place
        .well(&format!("pretrain --data icons --out own {TINY} train.epochs=1"))
        .says(&["white is behind their visible pixels, since 6 of the 6", "`data.background`"]);
    let settings = place.folder("own").text("config.toml");
    assert!(settings.contains("background = [255, 255, 255]"), "{settings}");
    let ended = place.well(&format!("{neighbors} own"));
    assert!(!ended.stderr.contains("one color"), "{}", ended.stderr);
    // Of 40 x 40 pixels the largest corner has 30 x 30.
    let seen = dark(drawn(&place, "neighbors.png"));
    assert!(seen > 0 && seen < plain * 2 / 3, "{seen} of {plain} pixels are dark");
    place.well("resume own train.epochs=2");
    assert!(place.folder("own").text("config.toml").contains("background = [255, 255, 255]"));
    // What is asked for is done, and is not chosen anew in the midst of a run.
    let asked = format!("pretrain --data icons --out asked {TINY} train.epochs=1");
    let ended = place.well(&format!("{asked} data.background=mean"));
    assert!(!ended.stderr.contains("white is behind"), "{}", ended.stderr);
    place.well("resume asked train.epochs=2 data.background=auto");
    assert!(place.folder("asked").text("config.toml").contains("background = \"mean\""));
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
