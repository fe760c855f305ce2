//! The page about a run.

use std::fs;

use crate::images::{good, unusable};
use crate::place::{Place, TINY};

const ANCHORS: [&str; 10] = [
    "curves",
    "crops",
    "neighbors",
    "matches",
    "attention",
    "regions",
    "evaluations",
    "checkpoints",
    "settings",
    "environment",
];

/// A section of a page.
fn section<'a>(page: &'a str, anchor: &str) -> &'a str {
    let start = page.find(&format!("<section id=\"{anchor}\">")).unwrap();
    &page[start..start + page[start..].find("</section>").unwrap()]
}

fn page(place: &Place, name: &str) -> String {
    fs::read_to_string(place.path(name)).unwrap()
}

/// Every tag that is opened is closed, in order, and nothing is fetched from anywhere.
fn is_one_whole_file(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    // Neither the style nor text can hold `<`.
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("`{tag}` has no end"));
        let name = tag.split([' ', '/']).next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "in {open:?}");
        } else if !tag.ends_with('/') && !["!DOCTYPE", "meta", "br"].contains(&name) {
            open.push(name);
        }
        assert!(!["script", "link", "iframe", "object"].contains(&name), "{tag}");
        for attribute in ["src=\"", "href=\""] {
            for address in tag.split(attribute).skip(1) {
                assert!(address.starts_with('#') || address.starts_with("data:image/"), "{tag}");
            }
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    // Images are letters that can happen to be any word.
    let words = page
        .split("data:image/png;base64,")
        .enumerate()
        .map(|(place, part)| if place == 0 { part } else { part.split_once('"').unwrap().1 });
    let page = words.collect::<String>().replace("http://www.w3.org/2000/svg", "");
    // A part of the same page is no other file.
    let page = page.replace("url(#", "");
    for part in ["http:", "https:", "url(", "@import", "NaN"] {
        assert!(!page.contains(part), "`{part}` is in the page");
    }
    for anchor in ANCHORS {
        assert!(page.contains(&format!("<section id=\"{anchor}\">")), "no section `{anchor}`");
    }
}

#[test]
fn a_run_with_checks_and_an_evaluation() {
    let place = Place::new();
    place.well(&format!("pretrain --out run {TINY} train.epochs=2 knn.every=1"));
    place.well("eval knn --checkpoint run/checkpoints/best.safetensors --k 10");
    let ended = place.well("report run");
    assert_eq!(ended.stdout, "run/report.html\n");
    let page = page(&place, "run/report.html");
    is_one_whole_file(&page);

    let run = place.folder("run");
    let checks: Vec<f64> =
        run.lines("metrics.jsonl").iter().filter_map(|line| line["knn_top1"].as_f64()).collect();
    let best = checks.iter().copied().fold(0.0, f64::max);
    assert!(page.contains(&format!("<dt>Best k-NN top-1</dt><dd><b>{best:.1}</b> %")), "{best}");
    // The evaluation of the same checkpoint gives the same, and that of the network untrained.
    let rows = &run.lines("eval/results.jsonl")[0]["results"]["results"];
    let top1 = |row: usize| rows[row]["accuracies"][0]["top1"].as_f64().unwrap();
    assert!((top1(2) - best).abs() < 1e-9, "{rows}");
    assert!(page.contains(&format!("; untrained {:.1} %", top1(1))), "{rows}");
    assert!(page.contains(&format!("<td>trained</td><td class=\"number\">{best:.1}</td>")));

    // Loss, k-NN, the other crop, entropy, feature spread, gradients, speed and four schedules.
    assert_eq!(page.matches("<figure class=\"chart\">").count(), 11);
    assert_eq!(section(&page, "crops").matches("<image ").count(), 8 * 3);
    assert_eq!(section(&page, "neighbors").matches("<image ").count(), 5 * (1 + 6));
    for anchor in ["matches", "attention", "regions"] {
        let section = section(&page, anchor);
        assert!(section.contains("<image ") && !section.contains("Not shown"), "{anchor}");
    }
    assert!(page.contains("embed_dim = 16") && page.contains("best.safetensors"));
    assert!(!page.contains("Look at this first") && !page.contains("could not be read"));

    // The page is part of the run, so that the run can be made anew.
    place.well(&format!("pretrain --out run --overwrite {TINY} train.epochs=1"));
    assert!(!run.file("report.html").exists());
}

#[test]
fn a_run_that_was_stopped_and_whose_images_are_gone() {
    let place = Place::new();
    good(&place, "images", 8);
    place.well(&format!("pretrain --out run --data images {TINY} train.epochs=1 data.repeat=4"));
    fs::remove_dir_all(place.path("images")).unwrap();
    for name in ["env.json", "log.txt"] {
        fs::remove_file(place.path(&format!("run/{name}"))).unwrap();
    }
    let metrics = place.folder("run").text("metrics.jsonl");
    place.write("run/metrics.jsonl", format!("{metrics}no figures\n{{\"step\":"));
    place
        .well("report run --out page.html")
        .says(&["`env.json` is missing", "`log.txt` is missing", "1 line cannot be read"])
        .says(&["0 of 1 epochs are done", "hint: `esvit resume run`"]);
    let page = page(&place, "page.html");
    is_one_whole_file(&page);
    for part in ["What could not be read", "there is no folder <code>images</code>", "resume run"] {
        assert!(page.contains(part), "`{part}` is not in the page");
    }
    assert!(!place.path("run/report.html").exists());
}

#[test]
fn an_image_that_cannot_be_read_leaves_every_section() {
    let place = Place::new();
    good(&place, "images", 12);
    place.well(&format!("pretrain --out run --data images {TINY} train.epochs=1"));
    // Those that matches, attention and region features would show, and the first of the crops.
    let (_, cut) = unusable().swap_remove(1);
    for name in ["good-06.jpg", "good-03.tif", "good-00.jpg"] {
        place.write(&format!("images/{name}"), &cut);
    }
    place.well("report run");
    let page = page(&place, "run/report.html");
    is_one_whole_file(&page);
    for (anchor, left_out) in [
        ("crops", "good-00.jpg"),
        ("matches", "good-06.jpg"),
        ("attention", "good-06.jpg"),
        ("regions", "good-03.tif"),
    ] {
        let section = section(&page, anchor);
        assert!(section.contains("<image ") && !section.contains("Not shown"), "{anchor}");
        let line = format!("left out: <code>images/{left_out}</code>: the JPEG file is truncated");
        assert!(section.contains(&line), "{anchor}: `{line}`");
    }
    assert_eq!(section(&page, "regions").matches("<image ").count(), 2 * 6);
    assert!(!section(&page, "neighbors").contains("Not shown"));
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    let place = Place::new();
    place.write("empty/readme.txt", "nothing");
    for folder in ["empty", "missing", "empty/readme.txt"] {
        place.run(&format!("report {folder}")).expect(1).says(&["there is no run in", "hint:"]);
    }
    assert!(!place.path("empty/report.html").exists());
}
