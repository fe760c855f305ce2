//! Paths: relative ones seen from elsewhere, folders that stand for weights, names that are no text, and
//! files that are not written over.

use std::path::Path;

use esvit_train::checkpoint::Checkpoint;

use crate::images::good;
use crate::place::{Place, TINY, tensors};

#[test]
fn a_run_finds_its_images_from_elsewhere() {
    let place = Place::new();
    good(&place, "here/photos", 8);
    std::fs::create_dir_all(place.path("there")).unwrap();
    let line = format!("pretrain -d photos --out ../run {TINY} train.epochs=1");
    place.run_in("here", &line).expect(0);
    let there = |line: &str| place.run_in("there", line);
    let ended = there("resume ../run train.epochs=2").expect(0).says(&["8 images in", "step 4/4"]);
    assert!(!ended.stderr.contains("the images are not those"), "{ended}");
    // The same folder by another path is no other setting.
    ended.says(&["settings other than before: train.epochs = 2 (it was 1)\n"]);
    let ended = there("resume ../run -d ../here/photos").expect(0).says(&["nothing to do"]);
    assert!(!ended.stderr.contains("settings other than before"), "{ended}");
    good(&place, "here/others", 8);
    there("resume ../run -d ../here/others").expect(0).says(&["other than before: data.path = "]);
    let report = there("report ../run --json").expect(0).json();
    assert_eq!(report["not_in_the_report"], serde_json::json!([]), "{report}");
    // What is not found is said.
    std::fs::rename(place.path("here/photos"), place.path("here/moved")).unwrap();
    let ended = there("report ../run").expect(0);
    ended.says(&["not in the report: the training images: there is no folder"]);
    there("resume ../run train.epochs=3").expect(1).says(&["there is no folder"]);
    there("resume ../run train.epochs=3 -d ../here/moved").expect(0);
}

#[test]
fn a_folder_of_weights_stands_for_them() {
    let place = Place::with_a_run();
    good(&place, "set", 4);
    place.well("export -c run --format timm --out exported");
    place.well("embed -c exported -d set --out f.npy");
    place.well("info exported");
    place.well("diff exported run");
    place.well("eval attention -c run --against exported -d set --images 2 --json");
    place.well(&format!("pretrain -d set --out next {TINY} train.epochs=1 --init-from exported"));
}

#[test]
fn a_continued_run_has_the_newest_state() {
    let place = Place::new();
    let line = "checkpoint.every=10steps knn.every=10steps";
    place.well(&format!("pretrain --out run {TINY} train.epochs=2 {line}"));
    // As if the first check had been the best one.
    let checkpoints = place.path("run/checkpoints");
    let first = checkpoints.join("epoch=0001-step=00000030.safetensors");
    std::fs::copy(first, checkpoints.join("best.safetensors")).unwrap();
    let ended = place.well("pretrain --continue-from run --out next train.epochs=3");
    ended.says(&["step=00000050.safetensors", "step 75/75"]);
    assert_eq!(place.folder("next").losses()[0].0, 60);
}

#[test]
fn weights_decide_the_network() {
    let place = Place::with_a_run();
    good(&place, "set", 20);
    let ended = place.well("pretrain -d set --init-from run --out next --steps 2");
    let ended = ended.says(&[
        "the network is that of `run/",
        "`head`, `head_dense` start anew",
        "the rate of `auto` leads away from good ones: `--recipe adapt` goes on at a fifth of it",
    ]);
    assert!(!ended.stderr.contains("few images"), "it has a network to go on from\n{ended}");
    let next = Checkpoint::open(&place.folder("next").newest()).unwrap();
    let config = next.run().unwrap().config.clone();
    assert!(config.contains("embed_dim = 16") && config.contains("out_dim = 1024"), "{config}");
    let [run, next] = ["run", "next"].map(|name| {
        let folder = place.folder(name);
        tensors(if name == "run" { folder.newest() } else { folder.checkpoint(0) }.as_path())
    });
    let name = "student.patch_embed.proj.weight";
    assert!(run[name] == next[name] && !run[name].is_empty());
    // Another network is asked for, and the weights do not fit it.
    let line = "pretrain -d set --init-from run --out other --steps 2 model.arch=custom \
        model.embed_dim=32 model.num_heads=[1,2,4,8]";
    let ended = place.run(line).expect(1).says(&["does not fit this network"]);
    assert!(!ended.stderr.contains("the network is that of"), "{ended}");
}

#[test]
fn what_is_read_and_what_a_run_wrote_stays() {
    let place = Place::with_a_run();
    good(&place, "set", 4);
    std::fs::copy(place.folder("run").newest(), place.path("own.safetensors")).unwrap();
    place.well("export -c run --format timm --out exported");
    let before = place.files("none");
    let newest = place.folder("run").newest();
    let newest = newest.strip_prefix(place.path("")).unwrap().display().to_string();
    for (line, said) in [
        ("export -c own.safetensors --format timm --out own.safetensors", "is what is read"),
        ("export -c exported --format timm --out exported", "what is read lies in `exported`"),
        (
            &*format!("export -c own.safetensors --format timm --out {newest}"),
            "belongs to the run `run`",
        ),
        ("map -c run -d set -o m.svg --csv run/config.toml", "belongs to the run `run`"),
        ("embed -c own.safetensors -d set --out run/eval/results.csv", "there is no folder"),
    ] {
        place.run(&format!("{line} --overwrite")).expect(1).says(&[said]);
    }
    assert!(place.files("none") == before);
    // Files beside those of a run are one's own.
    place.well("embed -c run -d set --out run/features.npy");
    place.well("embed -c run -d set --out run/features.npy --overwrite");
}

/// What is at a path, and what to do about it.
#[test]
fn a_wrong_path_is_told_for_what_it_is() {
    let place = Place::with_a_run();
    good(&place, "photos", 2);
    let photo = "photos/good-00.jpg";
    let is_file =
        |what: &str| format!("`{photo}` is a file, and a {what} needs a folder\nhint: name");
    let around = |command: &str| format!("esvit {command} run`");
    for (line, code, said) in [
        ("attend photos -c run", 1, "`photos`: it is a folder\nhint: name an image file in it"),
        ("match photos -c run", 1, "`photos`: it is a folder\nhint: name an image file in it"),
        ("attend none.png -c run", 1, "(os error 2)\nhint: check the path"),
        ("pca none.png -c run", 1, "cannot read `none.png`"),
        (&*format!("pretrain --out {photo} {TINY}"), 1, &*is_file("run")),
        (&*format!("pretrain --out {photo}/run {TINY}"), 1, "a part of this path is a file"),
        (
            &*format!("compare --out {photo} --recipe materials --steps 1 --run a"),
            1,
            &*is_file("comparison"),
        ),
        ("pretrain --config photos --out new", 2, "hint: it is a folder: name the file"),
        ("info none.safetensors", 1, "hint: check the path"),
        ("embed -c photos --out f.npy", 1, "it is a folder\nhint: name the file of weights"),
        (&*format!("embed -c run --out {photo}/f.npy"), 1, "is a file, and `photos/good-00.jpg/f"),
        ("embed -c run --out nowhere/f.npy", 1, "hint: make it, or choose another name"),
        ("resume run/checkpoints", 1, &*around("resume")),
        ("report run/checkpoints", 1, &*around("report")),
        (&*format!("man --out {photo}"), 1, "is a file\nhint: give the name of a folder"),
        (&*format!("eval linear -c run --dump {photo}"), 1, "`--dump` takes the name of a folder"),
        ("eval transfer -c run --sets photos --out photos", 1, "`photos` is a folder\nhint: "),
        ("eval knn --features nowhere", 1, "there is no folder `nowhere`\nhint: name one that"),
        ("verify nowhere", 1, "hint: name a case, or a folder of cases"),
    ] {
        place.run(line).expect(code).says(&[said]);
    }
    assert!(!place.path("f.npy").exists() && !place.path("new").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_end_nothing() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let odd = OsStr::from_bytes(b"odd\xe8");
    let place = Place::with_a_run();
    good(&place, "set", 4);
    std::fs::rename(place.path("set"), place.path("").join(odd)).unwrap();
    for line in ["pretrain --out o -d", "config -d", "config --json -d", "resume run -d"] {
        let ended = place.run_with(line, &[odd]).expect(2);
        ended.says(&["`odd\\xe8` is not UTF-8", "hint: rename the folder"]);
    }
    assert!(!place.path("o").exists());
    let written =
        |name: &str| Path::new("").join(OsStr::from_bytes(&[b"w\xe8", name.as_bytes()].concat()));
    for (line, name) in [
        ("report run --json --out", ".html"),
        ("export -c run --format timm --json --out", ""),
        ("export -c run --format onnx --json --out", ".onnx"),
        ("data preview --recipe materials --images 1 --json --out", ".png"),
        ("man --out", "man"),
    ] {
        let ended = place.run_with(line, &[written(name).as_os_str()]).expect(0);
        assert!(ended.stdout.contains("\\xe8") || ended.stdout.contains("\u{fffd}"), "{ended}");
    }
    let image = Path::new("").join(odd).join("good-01.png");
    place.run_with("match -c run --json", &[image.as_os_str()]).expect(0);
}

#[cfg(unix)]
#[test]
fn messages_show_names_and_do_not_obey_them() {
    let place = Place::with_a_run();
    let name = "red\u{1b}[31m";
    std::fs::rename(place.path("run"), place.path(name)).unwrap();
    let ended = place.well(&format!("resume {name} train.epochs=1"));
    let ended = ended.says(&["nothing to do", "run folder `red\\x1b[31m`"]);
    assert!(!ended.stderr.contains('\u{1b}'), "{ended}");
    let missing = place.run(&format!("info {name}/none")).expect(1).says(&["`red\\x1b[31m/none`"]);
    assert!(!missing.stderr.contains('\u{1b}'), "{missing}");
}

#[test]
fn a_folder_called_none_is_a_folder() {
    let place = Place::new();
    good(&place, "none", 4);
    place.well(&format!("pretrain -d none --out run {TINY} train.epochs=1")).says(&["4 images in"]);
    let ended = place.well("resume run train.epochs=2");
    assert!(!ended.stderr.contains("the images are not those"), "{ended}");
    let twice = place.run("pretrain -d none data.path=other --out twice").expect(2);
    twice.says(&["`data.path` is given twice", "keep one of them"]);
    place.run("pretrain --time 5 --out t").expect(2).says(&["`5` is no time: write `45m`"]);
}
