//! A network that learns the features of another one.

use std::fs;

use crate::images::good;
use crate::place::{Place, metadata, tensors};

/// A student of another family than the run `run`, on a few images.
const STUDENT: &str = "pretrain -d set --arch vit_micro views.global_size=32 train.batch_size=4 \
    train.precision=f32 train.log_every=1 knn.every=0";

fn place() -> Place {
    let place = Place::with_a_run();
    good(&place, "set", 12);
    place
}

#[test]
fn a_run_teaches_another_network() {
    let place = place();
    let ended = place.well(&format!("{STUDENT} --teacher run --out student --steps 4"));
    let ended = ended.says(&[
        "the teacher is `run/checkpoints/epoch=0001-step=00000025.safetensors`: Swin (",
        "distillation from `run/checkpoints/",
        "(cosine of views and regions), ViT `vit_micro`",
        "a loss of 1.00 is that of chance",
        "step 4/4",
    ]);
    assert!(!ended.stderr.contains("are cached"), "{ended}");
    let student = place.folder("student");
    let newest = student.newest();
    let recorded = metadata(&newest)["teacher"].clone();
    assert_eq!(recorded["tensors"].as_str().unwrap().len(), 16, "{recorded}");
    assert!(student.text("config.toml").contains("name = \"distill\""));
    let lines = student.lines("metrics.jsonl");
    let both =
        |line: &&serde_json::Value| line["view_loss"].is_f64() && line["region_loss"].is_f64();
    assert_eq!(lines.iter().filter(both).count(), 4);

    // What is written and exported is the student alone.
    let stored = tensors(&newest);
    assert!(stored.contains_key("student.head.mlp.weight"));
    assert!(stored.keys().all(|name| !name.starts_with("teacher.")), "{:?}", stored.keys());
    place.well("export -c student --format timm --out exported");
    let exported = tensors(&place.path("exported/model.safetensors"));
    assert!(exported.keys().all(|name| !name.starts_with("head")), "{:?}", exported.keys());
    assert!(exported.contains_key("patch_embed.proj.weight"));
    place.well("embed -c student -d set --out f.npy");
    let info = place.well("info student/checkpoints/epoch=0001-step=00000004.safetensors");
    assert!(info.stdout.contains("distillation from `run/"), "{info}");
    place.well("report student");
    let page = student.text("report.html");
    // From 96 values to the 32 of the teacher, for views and for regions: 6208 parameters.
    for part in [
        "heads 0.01 M, not counted",
        "trained with distillation from <code>run/checkpoints/epoch=0001-step=00000025.safetensors</code>",
        ": the global crop, which goes to student and teacher.",
    ] {
        assert!(page.contains(part), "`{part}` is not in the page");
    }

    // It goes on with its teacher, by the name that it has now.
    place.well("resume student --steps 5").says(&["going on after step 4", "step 5/5"]);
    fs::rename(place.path("run"), place.path("moved")).unwrap();
    let gone = place.run("resume student --steps 6").expect(1);
    gone.says(&[
        "there is no teacher `run/checkpoints/",
        "hint: name its file of weights, or its run",
    ]);
    place
        .well("resume student --steps 6 --teacher moved")
        .says(&["step 6/6", "objective.teacher = "]);
}

/// A run goes on, so that it is recorded as the checkpoint that it was, whichever way it was named.
#[test]
fn the_checkpoint_of_a_teacher_is_recorded() {
    let place = place();
    let settings = "--objective distill objective.teacher=run";
    place.well(&format!("{STUDENT} {settings} --out student --steps 1"));
    let config = place.folder("student").text("config.toml");
    assert!(config.contains("/epoch=0001-step=00000025.safetensors\""), "{config}");
}

#[test]
fn a_teacher_that_has_changed_is_refused() {
    let place = place();
    fs::copy(place.folder("run").newest(), place.path("teacher.safetensors")).unwrap();
    place.well(&format!("{STUDENT} --teacher teacher.safetensors --out student --steps 2"));
    fs::copy(place.folder("run").checkpoint(0), place.path("teacher.safetensors")).unwrap();
    let refused = place.run("resume student --steps 3").expect(1);
    refused.says(&["`teacher.safetensors` is not the teacher that this run learned from"]);
    assert_eq!(place.folder("student").steps().last(), Some(&2));
    place.well("resume student --steps 3 --teacher run").says(&["step 3/3"]);
}

#[test]
fn a_teacher_that_moved_with_its_student_is_found() {
    let place = place();
    fs::create_dir_all(place.path("here")).unwrap();
    fs::copy(place.folder("run").newest(), place.path("here/teacher.safetensors")).unwrap();
    let line = STUDENT.replace("-d set", "-d ../set");
    let line = format!("{line} --teacher teacher.safetensors --out student --steps 2");
    place.run_in("here", &line).expect(0);
    fs::rename(place.path("here"), place.path("there")).unwrap();
    place.well("resume there/student --steps 3 -d set").says(&["step 3/3"]);
}

#[test]
fn features_of_views_that_stay_are_cached() {
    let place = place();
    let line = format!(
        "{STUDENT} --teacher run --steps 6 objective.loss=mse views.policy=basic views.flip=0.0 \
         views.global_scale=[1.0,1.0] views.ratio=[1.0,1.0]"
    );
    let said = "every image has one view, the same in all epochs: the teacher's features of 12 images are \
                cached, in 1 MiB";
    place.well(&format!("{line} --out cached")).says(&[said]);
    let computed = place.well(&format!("{line} --out computed objective.cache_mb=0"));
    computed.says(&["computed every time"]);
    let [cached, computed] = ["cached", "computed"].map(|run| tensors(&place.folder(run).newest()));
    assert!(cached == computed, "the same weights");
}

#[test]
fn what_is_missing_is_said() {
    let place = place();
    let none = place.run(&format!("{STUDENT} --objective distill --out x")).expect(2);
    none.says(&["`objective.teacher` is none", "`--teacher PATH`"]);
    let gone = place.run(&format!("{STUDENT} --teacher gone.pth --out x")).expect(1);
    gone.says(&["there is no teacher `gone.pth`"]);
    place.write("odd.safetensors", "no weights");
    let odd = place.run(&format!("{STUDENT} --teacher odd.safetensors --out x")).expect(1);
    odd.says(&["cannot take `odd.safetensors` for a teacher"]);
    let auto = place.run(&format!("{STUDENT} --recipe auto --teacher run --out x")).expect(2);
    auto.says(&["recipe `auto` chooses settings of a network that teaches itself"]);
    assert!(!place.path("x").exists());
    let config = place.well("config --objective distill");
    assert!(config.stdout.contains("teacher = \"none\""), "{config}");
}
