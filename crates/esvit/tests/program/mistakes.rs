//! What a person gets wrong: one clear message, a non-zero exit code, nothing lost.

use crate::images::{good, unusable};
use crate::place::{Place, TINY};

/// Runs `line` in `place`, where it must fail with one message that has all `parts`, and leave
/// everything outside the folder `new` as it was.
fn fails(place: &Place, line: &str, parts: &[&str]) {
    fails_with(1, place, line, parts);
}

/// The same of a command line that makes no sense.
fn refuses(place: &Place, line: &str, parts: &[&str]) {
    fails_with(2, place, line, parts);
}

fn fails_with(code: i32, place: &Place, line: &str, parts: &[&str]) {
    let before = place.files("new");
    let ended = place.run(line).expect(code).says(parts);
    assert_eq!(ended.stderr.matches("error:").count(), 1, "not one message\n{ended}");
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    let after = place.files("new");
    for path in before.keys() {
        assert!(after.get(path) == before.get(path), "{path:?} was changed\n{ended}");
    }
    let added: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(added.is_empty(), "{added:?} are new\n{ended}");
    let _ = std::fs::remove_dir_all(place.path("new"));
}

#[test]
fn folders_without_usable_images() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    place.write("letters/letter.txt", "no image");
    for (name, bytes) in unusable() {
        place.write(&format!("broken/{name}"), bytes);
    }
    let line = |data: &str| format!("pretrain --data {data} --out new {TINY}");
    fails(&place, &line("empty"), &["no images in `empty` or below"]);
    fails(&place, &line("letters"), &["no images in `letters` or below"]);
    fails(&place, &line("nowhere"), &["there is no folder `nowhere`"]);
    fails(&place, &line("letters/letter.txt"), &["`letters/letter.txt` is a file"]);
    let all = ["of 6 images are broken", "broken/cut.jpg", "broken/empty.jpg", "`max_broken`"];
    fails(&place, &format!("{} data.max_broken=1.0", line("broken")), &all);
    let some = ["of 6 images are broken, and at most 3 may be"];
    fails(&place, &line("broken"), &some);
    // Fewer than a batch are a smaller one.
    good(&place, "few", 3);
    let few = format!("pretrain --data few --out few-run {TINY} train.epochs=2");
    place.well(&few).says(&["a step has 3 images instead of 4", "2 steps of 3 images"]);
    assert_eq!(place.settings("resume few-run").train.batch_size, 3);
}

#[test]
fn settings_that_make_no_sense() {
    let place = Place::new();
    place.write("settings.toml", "[optim]\nlearning_rate = 1.0\n");
    place.write("typo.toml", "[optim\n");
    let line = |rest: &str| format!("pretrain --out new {TINY} {rest}");
    refuses(
        &place,
        &line("train.epoch=3"),
        &["unknown key `train.epoch` on the command line", "did you mean `train.epochs`"],
    );
    refuses(&place, &line("--config settings.toml"), &["`optim.learning_rate` in `settings.toml`"]);
    refuses(&place, &line("--config typo.toml"), &["invalid TOML in `typo.toml`"]);
    refuses(&place, &line("--config nothing.toml"), &["`nothing.toml`", "No such file"]);
    refuses(&place, &line("train.epochs=many"), &["bad value for `train.epochs`", "`many` is"]);
    refuses(&place, &line("train.epochs=0"), &["`train.epochs` is 0"]);
    // Options are settings, and refuse in the same words.
    let whole = "is not a whole number of at least 0";
    let seed = ["bad value for `seed` on the command line: `x`", whole];
    refuses(&place, "pretrain --out new --seed x", &seed);
    let sizes = ["`views.local_sizes`", "`95` is not a list of whole numbers, such as `[96]`"];
    refuses(&place, &line("views.local_sizes=95"), &sizes);
    let negative = ["`optim.lr` is -1: it must not be negative"];
    refuses(&place, "pretrain --out new --recipe materials --lr -1", &negative);
    // How many are too many depends on the images.
    let many = place.run(&line("data.repeat=1000000000")).expect(1);
    many.says(&["`data.repeat` is 1000000000: it times the number of images must be at most"]);
    refuses(&place, &line("knn.k=1000001"), &["`knn.k` is 1000001: it must be at most 1000000"]);
    let nan = ["`optim.lr` on the command line: `NaN` is not a finite number"];
    refuses(&place, "pretrain --out new --recipe materials --lr nan", &nan);
    refuses(&place, "pretrain --out new train.time=5", &["`5` is no time: write `45m`"]);
    refuses(&place, &line("--workers -1"), &["'--workers <N>': it must not be negative"]);
    refuses(&place, &line("--threads 0"), &["'--threads <N>': it must be from 1 to 1024"]);
    refuses(&place, &line("optim.name=adam"), &["`optim.name`", "did you mean `adamw`?"]);
    refuses(&place, "pretrain --out new --recipe nothing", &["no recipe `nothing`", "`materials`"]);
    refuses(&place, &line("--arch swin_huge"), &["no architecture `swin_huge`", "`swin_tiny_w7`"]);
    let tiny =
        ["no architecture `swin_tny`, did you mean `swin_tiny_w7`?\nhint: `esvit info` lists"];
    refuses(&place, &line("--arch swin_tny"), &tiny);
    let esvit = ["no recipe `esivt`, did you mean `esvit`?\nhint: choose one of"];
    refuses(&place, "pretrain --out new --recipe esivt", &esvit);
    refuses(&place, &line("model.num_heads=[3,3]"), &["num_heads"]);
    place.run("pretrain --nonsense").expect(2).says(&["--nonsense"]);
    // What was meant.
    good(&place, "photos", 1);
    refuses(&place, "pretrain photos --out new", &["`photos` is no setting", "`--data photos`?"]);
    refuses(&place, "pretrain --data photos --data_path photos", &["keep one of them"]);
    refuses(
        &place,
        "pretrain --epochs 3 --steps 5",
        &["`train.epochs` and `train.steps` are both"],
    );
    refuses(
        &place,
        "pretrain --data photos --cfg cvt_v4_s1.yaml",
        &["`--cfg cvt_v4_s1.yaml`", "and there is no such file"],
    );
    let twice = ["`train.epochs` is given twice: 2 by its option and 3 as a setting"];
    refuses(&place, &line("--epochs 2"), &twice);
    // The recipe has given the other one of two that do not go together.
    let adamw = ["hint: set `optim.lr_in_momentum=false`, or choose `optim.name=sgd`"];
    refuses(&place, "pretrain --out new --objective simclr optim.name=adamw", &adamw);
    place.well("config --objective simclr optim.name=adamw optim.lr_in_momentum=false");
    // What was typed is told, and whose it is.
    refuses(
        &place,
        "pretrain --out new --objective moby --teacher photos",
        &["`objective.teacher` (`--teacher`) on", "setting of the objective `distill`", "hint: "],
    );
    let of_moco = "pretrain --out new --objective mocov2";
    let out_dim = ["`objective.head.out_dim` (`--out_dim`) on", "give `objective.out_dim`, which"];
    refuses(&place, &format!("{of_moco} --out_dim 64"), &out_dim);
    let region = ["`objective.region` (`--use_dense_prediction`) on", "and not of `mocov2`"];
    refuses(&place, &format!("{of_moco} --use_dense_prediction True"), &region);
    let alone = ["`train.batch_size` is 1: `simclr` compares the images of a step", "hint: a step"];
    refuses(&place, "pretrain --out new --objective simclr --batch-size 1", &alone);
    refuses(&place, "pretrain --out new train.accumulate=2", &["hint: give `train.batch_size`"]);
}

#[test]
fn run_folders_that_cannot_be_used() {
    let place = Place::with_a_run();
    place.write("foreign/letter.txt", "dear reader");
    place.write("run-and-more/config.toml", "");
    place.write("run-and-more/thesis.tex", "years of work");
    let line = |rest: &str| format!("pretrain {TINY} {rest}");
    fails(&place, &line("--out foreign/letter.txt/run"), &["`foreign/letter.txt/run`"]);
    fails(&place, &line("--out foreign/letter.txt"), &["`foreign/letter.txt`"]);
    fails(&place, &line("--out run"), &["`run` is not empty", "--resume", "--overwrite"]);
    fails(&place, &line("--out foreign"), &["`foreign` holds `letter.txt`"]);
    fails(&place, &line("--out foreign --overwrite"), &["`foreign` holds `letter.txt`"]);
    fails(&place, &line("--out run-and-more --overwrite"), &["holds `thesis.tex`"]);
    fails(&place, "resume foreign", &["no run in `foreign`"]);
    fails(&place, "resume new", &["no run in `new`", "name the folder"]);
    // Nothing is deleted for a run that cannot begin.
    for rest in ["--data nowhere", "--memory 1M", "--init-from nowhere.safetensors"] {
        fails(&place, &line(&format!("--out run --overwrite {rest}")), &["error:"]);
    }
    place.well(&line("--out run --overwrite train.epochs=2 checkpoint.keep_last=1"));
    assert_eq!(place.folder("run").steps(), [50]);
}

#[test]
fn checkpoints_that_do_not_fit() {
    let place = Place::with_a_run();
    let checkpoint = "run/checkpoints/epoch=0001-step=00000025.safetensors";
    let bytes = std::fs::read(place.path(checkpoint)).unwrap();
    place.write("cut.safetensors", &bytes[..bytes.len() - 100]);
    place.write("text.safetensors", "not a checkpoint at all");
    let start = |rest: &str| format!("pretrain --out new {TINY} {rest}");
    let other =
        ["epoch=0001-step=00000025.safetensors` does not fit", "`student.patch_embed.proj.weight`"];
    for flag in ["--init-from", "--continue-from"] {
        fails(
            &place,
            &start(&format!("{flag} {checkpoint} train.epochs=2 model.embed_dim=32")),
            &other,
        );
        fails(
            &place,
            &start(&format!("{flag} cut.safetensors")),
            &["`cut.safetensors` is damaged"],
        );
        fails(&place, &start(&format!("{flag} text.safetensors")), &["`text.safetensors`"]);
        fails(&place, &start(&format!("{flag} nowhere.safetensors")), &["`nowhere.safetensors`"]);
    }
    fails(&place, "resume run model.embed_dim=32", &other);
    fails(
        &place,
        &start(&format!("--continue-from {checkpoint} train.epochs=1")),
        &[
            "nothing to do",
            "is at step 25 and the run would end at step 25",
            "hint: give the run more than 1 epoch",
        ],
    );
    for command in ["info", "eval knn --checkpoint", "embed --out new.npy --checkpoint"] {
        fails(&place, &format!("{command} cut.safetensors"), &["`cut.safetensors`"]);
        fails(&place, &format!("{command} nowhere.safetensors"), &["`nowhere.safetensors`"]);
    }
    place.write("there.npy", "something");
    let embed = format!("embed --checkpoint {checkpoint}");
    fails(&place, &format!("{embed} --out there.npy"), &["`there.npy` already exists"]);
    fails(&place, &format!("{embed} --out new.parquet"), &["`new.parquet`", "`.csv`"]);
    good(&place, "flat", 4);
    fails(&place, &format!("eval knn --checkpoint {checkpoint} --train flat"), &["no labels"]);
}
