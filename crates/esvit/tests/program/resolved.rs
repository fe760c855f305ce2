//! The settings that a command line stands for, seen by `--dry-run`.

use std::path::Path;

use esvit_data::Folders;
use esvit_train::objective::ObjectiveConfig;
use esvit_train::objective::esvit::EsvitConfig;

use serde_json::json;

use crate::images::good;
use crate::place::{Place, TINY};

fn esvit(objective: ObjectiveConfig) -> EsvitConfig {
    match objective {
        ObjectiveConfig::Esvit(config) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_recipe_follows_from_the_images() {
    let place = Place::new();
    let built_in = place.settings("pretrain");
    assert_eq!((built_in.data.path, built_in.model.backbone.stages()[0].width), (None, 64));
    let own = place.settings("pretrain --data photos --recipe esvit");
    let prototypes = esvit(own.objective).head.out_dim;
    assert_eq!((own.model.arch.as_str(), prototypes), ("swin_tiny_w7", 65_536));
    assert_eq!((own.train.batch_size, own.train.micro_batch), (512, None));
    let base = place.settings("train --data photos --recipe swin_base_w14");
    assert_eq!(base.model.arch, "swin_base_w14");
    assert!(esvit(base.objective).head.norm_last_layer, "as in the published run");
    let line = "pretrain --data photos --recipe esvit --objective esvit --arch swin_base_w14";
    let objective = place.settings(line);
    assert_eq!(objective.model, base.model);
    let supervised = place.settings("pretrain --data photos --objective supervised");
    assert_eq!((supervised.objective.name(), supervised.views.global_count), ("supervised", 1));
    let no_name = "pretrain --objective dino3 --dry-run";
    place.run(no_name).expect(2).says(&["no objective `dino3`", "`esvit`", "`supervised`"]);
    assert!(place.files("").is_empty(), "a dry run leaves nothing behind");
}

/// As docs/recipes.md says.
#[test]
fn every_other_objective_brings_its_recipe() {
    let place = Place::new();
    for name in ObjectiveConfig::NAMES.iter().filter(|name| **name != "esvit") {
        let [by_recipe, by_objective] = ["--recipe", "--objective"].map(|option| {
            place.well(&format!("config --data photos {option} {name} --json")).json()
        });
        assert_eq!(by_objective, by_recipe, "{name}");
        assert_eq!(by_objective["objective"]["name"], *name);
    }
}

#[test]
fn later_settings_win_over_earlier_ones() {
    let place = Place::new();
    place.write(
        "own.toml",
        "seed = 3\n[data]\npath = \"in-file\"\n[model]\narch = \"swin_small_w7\"\n[train]\nepochs = 7\n",
    );
    let file = place.settings("pretrain --config own.toml --recipe esvit");
    assert_eq!((file.seed, file.train.epochs), (3, Some(7)));
    assert_eq!(file.data.path.as_ref().and_then(Folders::one), Some(Path::new("in-file")));
    assert_eq!(file.model.arch, "swin_small_w7");
    let line = place.settings(
        "pretrain --recipe esvit --config own.toml --data photos --arch swin_base_w7 train.epochs=18 train.epochs=19 --device cpu",
    );
    assert_eq!(line.data.path.as_ref().and_then(Folders::one), Some(Path::new("photos")));
    assert_eq!((line.model.arch.as_str(), line.train.epochs), ("swin_base_w7", Some(19)));
    place
        .run("pretrain --device nowhere:0 --dry-run")
        .expect(2)
        .says(&["`train.device`", "nowhere"]);
}

#[test]
fn published_flags_are_settings() {
    let place = Place::new();
    let line = "pretrain --arch swin_tiny_w14 --data_path photos --batch_size_per_gpu 8 --lr 1e-3 --use_mixup \
        --use_dense_prediction False --local_crops_number 4 --local_crops_size 64 seed=5 --norm_last_layer train.epochs=12";
    let config = place.settings(line);
    assert_eq!(config.data.path.as_ref().and_then(Folders::one), Some(Path::new("photos")));
    assert_eq!((config.model.arch.as_str(), config.train.batch_size), ("swin_tiny_w14", 8));
    assert_eq!((config.optim.lr, config.seed, config.train.epochs), (1e-3, 5, Some(12)));
    let objective = esvit(config.objective);
    assert!(objective.mixup.enabled && !objective.region.enabled && objective.head.norm_last_layer);
    assert_eq!(config.views.sizes(), [224, 224, 64, 64, 64, 64]);
}

#[test]
fn memory_cuts_a_step_into_parts_that_fit() {
    let place = Place::new();
    good(&place, "photos", 4);
    let line = "pretrain --recipe esvit --data photos --arch swin_tiny_w7 train.precision=f32 \
        data.repeat=128";
    let fitted = |memory: &str| {
        let config = place.settings(&format!("{line} --memory {memory}")).train;
        assert_eq!(config.batch_size, 512, "{memory}");
        let micro_batch = config.micro_batch.unwrap();
        assert!(512 % micro_batch == 0, "{memory}: {micro_batch}");
        (micro_batch, config.activation_checkpointing)
    };
    let [small, more, all] = ["6G", "6GiB", "1T"].map(fitted);
    assert!(small.0 < 64 && more.0 >= small.0, "{small:?} {more:?}");
    assert_eq!(all, (512, false));
    let refused = place.run(&format!("{line} --memory 1M")).expect(1).says(&["hint:"]).stderr;
    // With what one image at a time takes, and not much more, blocks are computed again.
    let need = refused.split_once("one image at a time takes about ").unwrap().1;
    let need: f64 = need.split_once(' ').unwrap().0.parse().unwrap();
    let least = fitted(&format!("{}G", need + 0.1));
    assert!(least.1 && least.0 < small.0, "{least:?}");
    for wrong in ["0G", "-1G", "8X", "G", "infG", ""] {
        place.run(&format!("{line} --memory={wrong}")).expect(2).says(&["a size such as `8G`"]);
    }
    let alone = ["'--memory <SIZE>': a size has a unit: write `8G` or `8M`"];
    place.run(&format!("{line} --memory 8")).expect(2).says(&alone);
    // What is named is a setting of the objective.
    let of_moco = place.run("pretrain --objective mocov3 --arch vit_micro --memory 1K").expect(1);
    let of_moco = of_moco.says(&["and 1 kB were given", "`train.batch_size`"]).stderr;
    assert!(!of_moco.contains("prototypes"), "{of_moco}");
    // What is said is what the run has.
    let run = format!("pretrain --out run {TINY} train.epochs=1 --memory 8G train.batch_size=8");
    place.well(&run).says(&["within 8.0 GB: micro-batches of 8 of the 8 images of a step"]);
    let stored = place.settings("resume run").train;
    assert_eq!((stored.batch_size, stored.micro_batch, stored.epochs), (8, Some(8), Some(1)));
}

/// Where there are fewer images than a batch, a step has these, and takes the memory of these.
#[test]
fn memory_is_judged_by_the_images_there_are() {
    let place = Place::new();
    let line = "pretrain --objective mocov3 --arch vit_micro train.precision=f32 --memory 8G";
    let found = place.settings(line).train;
    let by_hand = place.settings(&format!("{line} --batch-size 101")).train;
    assert_eq!(found.batch_size, 101, "the built-in images");
    assert_eq!(found, by_hand);
    good(&place, "few", 3);
    place.well(&format!("pretrain --data few --out run {TINY} train.epochs=1 --memory 8G")).says(
        &[
            "a step has 3 images instead of 4",
            "within 8.0 GB: micro-batches of 3 of the 3 images of a step",
        ],
    );
    let stored = place.settings("resume run").train;
    assert_eq!((stored.batch_size, stored.micro_batch), (3, Some(3)));
    // A cache takes no more than the images fill.
    let line = format!("pretrain --data few {TINY} data.cache_mb=4000 --memory");
    let fitted = place.settings(&format!("{line} 400M"));
    assert_eq!((fitted.train.micro_batch, fitted.data.cache_mb), (Some(3), 4000));
    let refused = place.run(&format!("{line} 1M --out refused")).expect(1).stderr;
    let need = refused.split_once("one image at a time takes about ").unwrap().1;
    let need: f64 = need.split_once(" MB").unwrap().0.parse().unwrap();
    assert!(need < 300.0, "{refused}");
}

#[test]
fn a_run_without_a_folder_is_numbered_and_the_newest_goes_on() {
    let place = Place::with_a_run();
    // Without a run there is a new one.
    assert_eq!(place.settings("pretrain --resume").train.epochs, Some(25));
    let would = place.well("pretrain --resume --dry-run --json --quiet").json();
    assert_eq!(would["run"], "runs/materials-1", "{would}");
    for (path, bytes) in place.files("") {
        let name = path.strip_prefix(place.path("run")).unwrap().to_str().unwrap();
        place.write(&format!("runs/materials-1/{name}"), &bytes);
        place.write(&format!("runs/materials-2/{name}"), &bytes);
    }
    place.well("pretrain --resume train.epochs=2").says(&[
        "run folder `runs/materials-2`",
        "going on after step 25",
        "step 50/50",
    ]);
    let steps = [1, 2].map(|number| place.folder(&format!("runs/materials-{number}")).steps());
    assert_eq!(steps, [vec![0, 25], vec![0, 25, 50]]);
    // The settings of a run that goes on are its own.
    assert_eq!(place.settings("pretrain --resume").train.epochs, Some(2));
    let next = |line: &str| place.well(&format!("{line} --dry-run --json --quiet")).json();
    assert_eq!(next(&format!("pretrain {TINY}"))["run"], "runs/materials-3");
    assert_eq!(next("pretrain --recipe esvit --data nowhere")["run"], "runs/esvit-1");
    // A folder that is not made is not told of.
    good(&place, "unlabeled", 2);
    for (line, said) in [
        (&*format!("{TINY} --data nowhere"), "there is no folder `nowhere`"),
        (&*format!("{TINY} --data_path nowhere --output_dir X"), "there is no folder `nowhere`"),
        ("--data unlabeled --objective supervised --arch swin_micro", "needs labeled images"),
    ] {
        let ended = place.run(&format!("pretrain {line}")).expect(1).says(&[said]);
        assert!(!ended.stderr.contains("run folder"), "{ended}");
    }
    assert!(!place.path("X").exists() && !place.path("runs/materials-3").exists());
    place.run("pretrain --data nowhere").expect(1).says(&["there is no folder `nowhere`"]);
}

#[test]
fn the_launcher_of_a_pasted_line_is_left_out() {
    let place = Place::new();
    let script =
        "main_esvit.py --arch swin_tiny --data_path photos --epochs 3 --batch_size_per_gpu 8";
    for launcher in [
        "python -m torch.distributed.launch --nproc_per_node=8",
        "python3 -m torch.distributed.run --nnodes 2 --node_rank 0",
        "torchrun --nproc_per_node 4",
        "-m torch.distributed.launch --nproc_per_node=2",
        "python",
    ] {
        let config = place.settings(&format!("pretrain {launcher} {script}"));
        assert_eq!((config.train.epochs, config.train.batch_size), (Some(3), 8), "{launcher}");
    }
    let ended = place.well(&format!("pretrain --nproc_per_node=8 {} -q --dry-run", &script[14..]));
    ended.says(&[]);
}

#[test]
fn every_flag_of_the_scripts_has_its_setting() {
    let flags = [
        ("--min_lr 2e-6", "/optim/min_lr", json!(2e-6)),
        ("--optimizer sgd", "/optim/name", json!("sgd")),
        ("--warmup_epochs 3", "/optim/warmup", json!("3 epochs")),
        ("--weight_decay 0.03", "/optim/weight_decay", json!(0.03)),
        ("--weight_decay_end 0.3", "/optim/weight_decay_end", json!(0.3)),
        ("--clip_grad 1.5", "/optim/clip_grad", json!(1.5)),
        ("--freeze_last_layer 2", "/objective/freeze_last_layer", json!("2 epochs")),
        ("--momentum_teacher 0.97", "/objective/momentum_teacher", json!(0.97)),
        ("--teacher_temp 0.06", "/objective/teacher_temp", json!(0.06)),
        ("--warmup_teacher_temp 0.03", "/objective/warmup_teacher_temp", json!(0.03)),
        ("--warmup_teacher_temp_epochs 4", "/objective/teacher_temp_warmup", json!("4 epochs")),
        ("--use_dense_prediction false", "/objective/region/enabled", json!(false)),
        ("--use_mixup true", "/objective/mixup/enabled", json!(true)),
        ("--num_mixup_views 4", "/objective/mixup/views", json!(4)),
        ("--out_dim 77", "/objective/head/out_dim", json!(77)),
        ("--norm_last_layer false", "/objective/head/norm_last_layer", json!(false)),
        ("--use_bn_in_head true", "/objective/head/use_bn_in_head", json!(true)),
        ("--drop_path_rate 0.3", "/model/drop_path", json!(0.3)),
        ("--aug_opt deit_aug", "/views/policy", json!("deit")),
        ("--global_crops_scale 0.3 0.9", "/views/global_scale", json!([0.3, 0.9])),
        ("--local_crops_scale 0.1 0.2", "/views/local_scale", json!([0.1, 0.2])),
        ("--local_crops_number 3", "/views/local_counts", json!([3])),
        ("--local_crops_size 64", "/views/local_sizes", json!([64])),
        ("--saveckp_freq 7", "/checkpoint/every", json!("7 epochs")),
        ("--num_workers 3", "/data/workers", json!(3)),
        ("--batch_size_per_gpu 24", "/train/batch_size", json!(24)),
    ];
    let line: String = flags.iter().map(|(flag, ..)| format!(" {flag}")).collect();
    let line = format!("pretrain --arch swin_tiny --data_path photos --dry-run -q --json{line}");
    let settings = &Place::new().well(&line).json()["settings"];
    for (flag, key, expected) in flags {
        assert_eq!(settings.pointer(key), Some(&expected), "{flag}");
    }
}

/// Fewer images than a batch make a smaller one, also in what would be done.
#[test]
fn a_batch_that_the_images_do_not_fill_is_told() {
    let place = Place::new();
    good(&place, "set", 6);
    let line = format!("pretrain --data set --out run {TINY} train.batch_size=2000");
    let told = "a step has 6 images instead of 2000 (`train.batch_size`): there are no more";
    let would = place.well(&format!("{line} --dry-run --json"));
    assert_eq!(would.json()["plan"]["batch_size"], 6, "{would}");
    would.says(&[told]);
    place.well(&format!("{line} train.epochs=1")).says(&[told]);
    let fits = place.well(&format!("{line} train.batch_size=6 --dry-run"));
    assert!(!fits.stderr.contains("there are no more"), "{fits}");
}
