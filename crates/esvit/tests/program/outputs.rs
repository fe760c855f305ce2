//! Where results go: never over what is read, never over what is there without a word.

use std::fs;

use crate::images::{encoded, textured};
use crate::place::Place;
use image::ImageFormat;

#[test]
fn what_is_read_is_not_written_over() {
    let place = Place::with_a_run();
    let photo = encoded(textured(40, 40, 1), ImageFormat::Png);
    place.write("photo.png", &photo);
    let checkpoint = "run/checkpoints/epoch=0001-step=00000025.safetensors";
    let bytes = fs::read(place.path(checkpoint)).unwrap();
    for line in [
        format!("embed --checkpoint {checkpoint} --out {checkpoint} --overwrite"),
        format!("embed --checkpoint run --out {checkpoint} --overwrite"),
        "attend photo.png --checkpoint run --out photo.png --overwrite".into(),
        "pca photo.png --checkpoint run --out photo.png --overwrite".into(),
        "match photo.png --checkpoint run --out ./photo.png --overwrite".into(),
    ] {
        place.run(&line).expect(1).says(&["is what is read, it is not written over", "hint:"]);
    }
    assert!(fs::read(place.path(checkpoint)).unwrap() == bytes);
    assert!(fs::read(place.path("photo.png")).unwrap() == photo);
}

#[test]
fn names_say_the_kind_of_a_drawing() {
    let place = Place::with_a_run();
    place.write("photo.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    let line = |rest: &str| format!("pca photo.png --checkpoint run {rest}");
    place.well(&line("--out a.svg"));
    assert!(fs::read_to_string(place.path("a.svg")).unwrap().starts_with("<svg"));
    place.well(&line("--out a.PNG"));
    assert!(fs::read(place.path("a.PNG")).unwrap().starts_with(b"\x89PNG"));
    for name in ["a.jpg", "a.pdf", "a"] {
        let refused = place.run(&line(&format!("--out {name}"))).expect(1);
        refused
            .says(&[&format!("`{name}` is neither"), "hint: let its name end in `.png` or `.svg`"]);
    }
    place.run(&line("--out b.svg --svg b.svg")).expect(1).says(&["`b.svg` is given twice"]);
    place.run("data preview --out a.jpg").expect(1).says(&["the preview is a PNG file"]);
}

/// A name that nobody gave is one that nobody has.
#[test]
fn default_names_replace_nothing() {
    let place = Place::with_a_run();
    place.write("map.png", "mine");
    place.well("map --checkpoint run --max 20").says(&["wrote `map-2.png`"]);
    place.well("map --checkpoint run --max 20").says(&["wrote `map-3.png`"]);
    assert_eq!(fs::read_to_string(place.path("map.png")).unwrap(), "mine");
    place.well("data preview").says(&["in `preview.png`"]);
    place.well("data preview").says(&["in `preview-2.png`"]);
}

#[cfg(unix)]
#[test]
fn links_and_devices_stay_what_they_are() {
    let place = Place::with_a_run();
    place.write("photo.png", encoded(textured(40, 40, 1), ImageFormat::Png));
    std::os::unix::fs::symlink("nowhere", place.path("link.svg")).unwrap();
    let refused = place.run("pca photo.png --checkpoint run --out link.svg").expect(1);
    refused.says(&["`link.svg` already exists"]);
    place.well("pca photo.png --checkpoint run --out /dev/null");
    place.well("report run --out /dev/null");
    let kind = fs::metadata("/dev/null").unwrap().file_type();
    assert!(!kind.is_file() && !kind.is_dir());
    place.run("pca photo.png --checkpoint run --out run").expect(1).says(&["`run` is a folder"]);
}

#[test]
fn the_folder_of_a_run_stands_for_its_weights() {
    let place = Place::with_a_run();
    place.well("embed --checkpoint run --out a.npy");
    place.well("embed -c run/checkpoints/epoch=0001-step=00000025.safetensors -o b.npy");
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("a.npy") == read("b.npy"));
    fs::copy(
        place.path("run/checkpoints/epoch=0000-step=00000000.safetensors"),
        place.path("run/checkpoints/best.safetensors"),
    )
    .unwrap();
    place.well("embed --checkpoint run --out c.npy");
    assert!(read("c.npy") != read("a.npy"), "the best one comes first");
    place.write("empty/config.toml", "");
    fs::create_dir(place.path("empty/checkpoints")).unwrap();
    place.run("embed --checkpoint empty --out d.npy").expect(2).says(&["has no checkpoint yet"]);
}
