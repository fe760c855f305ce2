//! Tests of the settings as a whole.

use super::*;
use crate::config_text::{Origin, parse_override, parse_text};
use crate::mixup::MixupConfig;
use crate::objective::dinov2::Dinov2Config;
use crate::objective::distill::DistillSettings;
use crate::objective::esvit::{
    Centering, EsvitConfig, NamedWeights, PatchesConfig, RegionConfig, RegionLoss, Weights,
};
use crate::objective::masked_patch::{Cut, MaskedPatch};
use crate::objective::regions::Matching;
use crate::objective::supervised::SupervisedConfig;
use crate::optim::{ClipScope, Decayed, OptimizerKind};
use crate::schedule::{LrScaling, LrScheduleKind};
use crate::span::{RunLength, Span, Time};
use esvit_data::{Background, BackgroundSetting, RangeSetting};
use esvit_nn::BackboneConfig;
use esvit_nn::backbone::swin::SwinConfig;
use esvit_nn::head::HeadConfig;
use esvit_nn::ops::Precision;

fn resolve(overrides: &[&str]) -> Result<Config, ConfigError> {
    Config::resolve(overrides.iter().map(|text| parse_override(text).unwrap()).collect())
}

fn recipe(name: &str) -> Config {
    Config::resolve(recipe_layers(name).unwrap()).unwrap()
}

fn swin(model: &ModelConfig) -> &SwinConfig {
    let BackboneConfig::Swin(config) = &model.backbone else { panic!("a Swin") };
    config
}

fn esvit(config: &Config) -> &EsvitConfig {
    match &config.objective {
        ObjectiveConfig::Esvit(config) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stored_configuration_is_read_back() {
    let config = resolve(&["optim.clip_grad=none", "views.policy=deit", "seed=7"]).unwrap();
    let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
    assert_eq!(again, config);
    assert_eq!(config.optim.clip_grad, None);
}

#[test]
fn differences_by_key() {
    let before = resolve(&["optim.lr=0.2"]).unwrap();
    assert_eq!(before.differences(&before), [""; 0]);
    let now = resolve(&["optim.lr=0.1", "train.steps=7", "data.path=photos"]).unwrap();
    assert_eq!(
        now.differences(&before),
        [
            "data.path = \"photos\" (it was \"none\")",
            "optim.lr = 0.1 (it was 0.2)",
            "train.epochs = \"none\" (it was 100)",
            "train.steps = 7 (it was \"none\")",
        ]
    );
}

#[test]
fn evaluations_show_images_as_the_settings_say() {
    let mut config = Config::default();
    (config.views.global_size, config.knn.crop, config.knn.resize) = (160, 0, 0);
    assert_eq!(config.preprocess().size(), 160);
    (config.knn.crop, config.knn.resize) = (96, 100);
    let run = config.preprocess();
    assert_eq!((run.size(), run.transform.resize, run.mean), (96, 100, config.views.mean));
}

#[test]
fn settings_by_their_old_names_are_read() {
    let old = "data.queue=7 knn.max_pictures=9 train.crops_per_pass=3 \
               train.checkpoint_blocks=true";
    let config = resolve(&old.split(' ').collect::<Vec<_>>()).unwrap();
    assert_eq!((config.data.prefetch, config.knn.max_images), (7, 9));
    assert_eq!(config.train.crops_per_forward, 3);
    assert!(config.train.activation_checkpointing);
}

/// The batch was given as micro-batches and their number, lengths in epochs or steps alone.
#[test]
fn settings_with_their_old_meanings_are_read() {
    let old = "[train]\nepochs = 3\nbatch_size = 8\naccumulate = 4\n[optim]\nwarmup_epochs = 1.5\n\
               [checkpoint]\nevery_epochs = 2\nevery_steps = 0\n[knn]\nevery_epochs = 4\n\
               [objective]\nwarmup_teacher_temp_epochs = 30";
    let file = |text: &str| parse_text(text, Origin::File("old.toml".into())).unwrap();
    let Resolved { config, notes, .. } = Config::resolve_with_notes(vec![file(old)]).unwrap();
    let TrainConfig { epochs, batch_size, micro_batch, .. } = config.train;
    assert_eq!((epochs, batch_size, micro_batch), (Some(3), 32, Some(8)));
    assert_eq!(config.optim.warmup, Span::Epochs(1.5));
    assert_eq!((config.checkpoint.every, config.knn.every), (Span::Epochs(2.0), Span::Epochs(4.0)));
    assert_eq!(esvit(&config).teacher_temp_warmup, Span::Epochs(30.0));
    assert_eq!(notes.len(), 1);
    for part in [
        "settings of an earlier version in `old.toml`: `train.batch_size` 8 and `train.accumulate` 4 \
         are now `train.batch_size = 32` and `train.micro_batch = 8`",
        "`optim.warmup_epochs` is now `optim.warmup = \"1.5 epochs\"`",
        "`knn.every_epochs` is now `knn.every = \"4 epochs\"`",
    ] {
        assert!(notes[0].contains(part), "{}", notes[0]);
    }
    let steps = "[checkpoint]\nevery_epochs = 2\nevery_steps = 7";
    let Resolved { config, .. } = Config::resolve_with_notes(vec![file(steps)]).unwrap();
    assert_eq!(config.checkpoint.every, Span::Steps(7));
    let again = parse_text(&config.to_toml(), Origin::File("new.toml".into())).unwrap();
    let again = Config::resolve_with_notes(vec![again]).unwrap();
    assert_eq!((again.config, again.notes), (config, Vec::new()));
    // On the command line they are one as well, in any order.
    let found = resolve(&["train.accumulate=2", "seed=1", "train.batch_size=3"]).unwrap().train;
    assert_eq!((found.batch_size, found.micro_batch), (6, Some(3)));
    let error = resolve(&["train.accumulate=2"]).unwrap_err().to_string();
    assert!(error.contains("hint: give `train.batch_size`, the images of a step"), "{error}");
}

/// The last length counts, in whatever unit, and a new batch is cut anew.
#[test]
fn layers_decide_about_length_and_batch() {
    let file = "[train]\nepochs = 3\nbatch_size = 8\nmicro_batch = 4";
    let over = |texts: &[&str]| {
        let mut layers = vec![parse_text(file, Origin::File("run.toml".into())).unwrap()];
        layers.extend(texts.iter().map(|text| parse_override(text).unwrap()));
        Config::resolve(layers).unwrap().train
    };
    let length =
        |train: TrainConfig| (train.epochs, train.steps, train.time.map(|time| time.0.as_secs()));
    assert_eq!(length(over(&[])), (Some(3), None, None));
    assert_eq!(length(over(&["train.steps=70"])), (None, Some(70), None));
    assert_eq!(length(over(&["train.time=2m"])), (None, None, Some(120)));
    assert_eq!(length(over(&["train.epochs=5"])), (Some(5), None, None));
    let batch = |train: TrainConfig| (train.batch_size, train.micro_batch);
    assert_eq!(batch(over(&[])), (8, Some(4)));
    assert_eq!(batch(over(&["train.micro_batch=2"])), (8, Some(2)));
    assert_eq!(batch(over(&["train.batch_size=6"])), (6, None));
    assert_eq!(batch(over(&["train.batch_size=6", "train.micro_batch=3"])), (6, Some(3)));
    let error = resolve(&["train.epochs=none"]).unwrap_err().to_string();
    assert!(error.contains("the run has no length\nhint: give `train.epochs`"), "{error}");
    let time = |text: &str| text.parse::<Time>().unwrap();
    let lengths = [(Some(1), None, None), (None, Some(5), None), (None, None, Some(time("90m")))];
    let lengths = lengths.map(|(epochs, steps, time)| {
        let train = TrainConfig { epochs, steps, time, ..TrainConfig::default() };
        (train.length(), train.total_steps(10))
    });
    let expected = [("1 epoch", Some(10)), ("5 steps", Some(5)), ("1h 30m", None)];
    assert_eq!(lengths, expected.map(|(text, steps)| (text.to_owned(), steps)));
}

/// Teacher, frozen prototypes and heads were in tables of their own: each alone, all in a file,
/// below and above their new places.
#[test]
fn settings_in_their_old_tables_are_read() {
    for [old, new] in [
        ["optim.momentum_teacher=0.9", "objective.momentum_teacher=0.9"],
        ["optim.freeze_last_layer=3", "objective.freeze_last_layer=3"],
        ["objective.layer_decay=0.7", "optim.layer_decay=0.7"],
        ["head.out_dim=7", "objective.head.out_dim=7"],
        ["head.hidden_dim=7", "objective.head.hidden_dim=7"],
        ["head.bottleneck_dim=7", "objective.head.bottleneck_dim=7"],
        ["head.layers=2", "objective.head.layers=2"],
        ["head.use_bn_in_head=true", "objective.head.use_bn_in_head=true"],
        ["head.norm_last_layer=false", "objective.head.norm_last_layer=false"],
    ] {
        let found = resolve(&[old]).unwrap();
        assert_ne!(found, Config::default(), "{old}");
        assert_eq!(found, resolve(&[new]).unwrap(), "{old}");
    }
    let file = "[optim]\nlr = 0.1\nmomentum_teacher = 0.9\nfreeze_last_layer = 3\n\
                [head]\nout_dim = 7\nlayers = 2\n[objective]\nregion = false";
    let file = || parse_text(file, Origin::File("old.toml".into())).unwrap();
    let over = |text: &str| parse_override(text).unwrap();
    let found = Config::resolve(vec![file()]).unwrap();
    let expected = EsvitConfig {
        region: false.into(),
        momentum_teacher: 0.9,
        freeze_last_layer: Span::Epochs(3.0),
        head: HeadConfig { out_dim: 7, layers: 2, ..HeadConfig::default() },
        ..EsvitConfig::default()
    };
    assert_eq!((esvit(&found), found.optim.lr), (&expected, 0.1));
    // Layers count as ever, wherever their settings stand.
    let found =
        Config::resolve(vec![over("objective.head.out_dim=9"), file(), over("head.layers=4")]);
    let expected = HeadConfig { out_dim: 7, layers: 4, ..HeadConfig::default() };
    assert_eq!(esvit(&found.unwrap()).head, expected);
    let found = Config::resolve(vec![file(), over("objective.head.out_dim=9")]).unwrap();
    assert_eq!(esvit(&found).head.out_dim, 9);
    // They were EsViT's.
    let found = Config::resolve(vec![file(), over("objective.name=supervised")]).unwrap();
    assert_eq!(found.objective, ObjectiveConfig::Supervised(SupervisedConfig::default()));
    let error = resolve(&["head.outdim=7"]).unwrap_err().to_string();
    assert!(error.contains("`objective.head.outdim`"), "{error}");
}

/// The last name decides; what a file says of another objective does not count.
#[test]
fn layers_decide_about_the_objective() {
    let smoothing = "objective.label_smoothing=0.3";
    let file = |text: &str| parse_text(text, Origin::File("run.toml".into())).unwrap();
    let over = |texts: &[&str]| texts.iter().map(|text| parse_override(text).unwrap()).collect();
    let resolved = |text: &str, texts: &[&str]| {
        let mut layers: Vec<Layer> = over(texts);
        layers.insert(0, file(text));
        Config::resolve(layers)
    };
    let found = resolved("objective.region = false", &["objective.name=supervised", smoothing]);
    let expected = SupervisedConfig { label_smoothing: 0.3, ..SupervisedConfig::default() };
    assert_eq!(found.unwrap().objective, ObjectiveConfig::Supervised(expected));
    let text = "objective.name = 'supervised'\nobjective.label_smoothing = 0.3";
    assert_eq!(resolved(text, &["objective.name=esvit"]).unwrap(), Config::default());
    // On one command line both are meant.
    for of_another in ["objective.region=false", "head.out_dim=5"] {
        let error = resolve(&[of_another, "objective.name=supervised"]).unwrap_err().to_string();
        assert!(error.contains(", and not of `supervised`\nhint: choose "), "{error}");
    }
    let error = resolve(&["objective.name=dino"]).unwrap_err().to_string();
    let expected = "there is no objective `dino`, did you mean `dinov2`?\nhint: choose one of `esvit`, `dinov2`, `mocov2`, \
                    `mocov3`, `moby`, `simclr`, `byol`, `swav`, `densecl`, `igpt`, `supervised`, \
                    `distill`, `masked_patch`";
    assert_eq!(error, expected);
    for (text, expected) in [
        (smoothing, "`objective.label_smoothing`"),
        ("objective.name=3", "bad value for `objective.name` on the command line: 3 is not"),
    ] {
        let error = resolve(&[text]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let names = ["objective.name=supervised", "views.global_count=1"];
    let config = resolve(&names).unwrap();
    let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
    assert_eq!(again, config);
}

/// What others have is told, with those that have it and with what the chosen one has.
#[test]
fn settings_of_other_objectives() {
    let on_line = "on the command line is a setting of the";
    for (texts, expected) in [
        (
            ["objective.name=moby", "objective.teacher=x"],
            format!(
                "`objective.teacher` {on_line} objective `distill`, and not of `moby`\n\
                 hint: choose that with `objective.name=distill`, or leave it out"
            ),
        ),
        (
            ["objective.name=mocov2", "objective.head.out_dim=64"],
            format!(
                "`objective.head.out_dim` {on_line} objectives `esvit`, `dinov2`, and not of `mocov2`\n\
                 hint: choose one of them with `objective.name`, or give `objective.out_dim`, which \
                 `mocov2` has"
            ),
        ),
        (
            ["objective.name=simclr", "objective.region=true"],
            format!(
                "`objective.region` {on_line} objectives `esvit`, `byol`, `distill`, and not of \
                 `simclr`\nhint: choose one of them with `objective.name`, or leave it out"
            ),
        ),
        (
            ["objective.name=esvit", "objective.out_dim=9"],
            format!(
                "`objective.out_dim` {on_line} objectives `mocov2`, `mocov3`, `moby`, `simclr`, \
                 `byol`, `swav`, `densecl`, and not of `esvit`\nhint: choose one of them with \
                 `objective.name`, or give `objective.head.out_dim`, which `esvit` has"
            ),
        ),
        (
            ["objective.name=simclr", "objective.temprature=1"],
            "unknown key `objective.temprature` on the command line, did you mean \
             `objective.temperature`?"
                .into(),
        ),
    ] {
        assert_eq!(resolve(&texts).unwrap_err().to_string(), expected);
    }
    let file = "[objective]\nname = \"swav\"\n[objective.head]\nlayers = 2";
    let layers = vec![parse_text(file, Origin::File("run.toml".into())).unwrap()];
    let error = Config::resolve(layers).unwrap_err().to_string();
    assert!(error.starts_with("`objective.head.layers` in `run.toml` is a setting of"), "{error}");
}

/// What was misspelled, and all names where they are few or none is near.
#[test]
fn names_that_may_have_been_meant() {
    for (text, meant, listed) in [
        (
            "model.arch=swin_tny",
            ", did you mean `swin_tiny_w7`?\nhint: `esvit info` lists all",
            false,
        ),
        ("model.arch=swin_tiny_w71", ", did you mean `swin_tiny_w7`?", false),
        ("model.arch=resnet5", ", did you mean `resnet50`?", false),
        ("model.arch=convnext", "\nhint: choose one of `swin_tiny_w7`,", true),
        ("objective.name=smclr", ", did you mean `simclr`?\nhint: choose one of `esvit`,", true),
    ] {
        let error = resolve(&[text]).unwrap_err().to_string();
        let name = text.split('=').next_back().unwrap();
        assert!(error.contains(&format!(" `{name}`")), "{error}");
        assert!(error.contains(meant), "{error}");
        assert_eq!(error.contains("choose one of"), listed, "{error}");
    }
    let error = recipe_layers("esivt").unwrap_err().to_string();
    assert!(error.starts_with("there is no recipe `esivt`, did you mean `esvit`?"), "{error}");
}

#[test]
fn a_named_architecture_replaces_an_earlier_shape() {
    let recipe = "[model]\narch = 'custom'\nembed_dim = 48\ndepths = [2, 2]\nnum_heads = [2, 4]";
    let recipe = parse_text(recipe, Origin::Recipe("small".into())).unwrap();
    let custom = Config::resolve(vec![recipe.clone()]).unwrap();
    assert_eq!((swin(&custom.model).embed_dim, swin(&custom.model).depths.len()), (48, 2));
    let base = parse_override("model.arch=swin_base").unwrap();
    let named = Config::resolve(vec![recipe, base]).unwrap();
    assert_eq!(named.model.arch, "swin_base_w7");
    assert_eq!((swin(&named.model).embed_dim, named.model.drop_path), (128, 0.2));
}

#[test]
fn weights_by_name_and_by_number() {
    let factors = |text: &str| esvit(&resolve(&[text]).unwrap()).weights.factors(true);
    assert_eq!(factors("objective.weights=reference"), (0.5, 0.5));
    assert_eq!(factors("objective.weights=paper"), (1.0, 1.0));
    assert_eq!(factors("objective.weights={view=0.7,region=0.3}"), (0.7, 0.3));
    assert_eq!(factors("objective.weights={view=0.0,region=1.0}"), (0.0, 1.0));
    for nothing in ["view=0.0,region=0.0", "view=-0.1,region=1.0", "view=1.0,region=inf"] {
        let error =
            resolve(&[&format!("objective.weights={{{nothing}}}")]).unwrap_err().to_string();
        assert!(error.contains("`objective.weights"), "{nothing}: {error}");
    }
}

#[test]
fn senseless_settings_are_refused_by_name() {
    for (text, key) in [
        ("train.epochs=0", "train.epochs"),
        ("optim.warmup=soon", "optim.warmup"),
        ("objective.teacher_temp=0.0", "objective.teacher_temp"),
        ("model.num_heads=[5,6,12,24]", "num_heads"),
        ("model.arch=swin_huge", "swin_huge"),
        ("objective.mixup.enabled=true", "objective.mixup"),
        ("objective.mixup.mixup_alpha=0.0", "objective.mixup.mixup_alpha"),
        ("objective.mixup.cutmix_alpha=6.0", "objective.mixup.cutmix_alpha"),
        ("objective.mixup.cutmix_alpha=nan", "objective.mixup.cutmix_alpha"),
        ("objective.mixup.switch_prob=1.5", "objective.mixup.switch_prob"),
        ("optim.rl=1", "optim.rl"),
        ("model.drop_path=1.0", "model.drop_path"),
    ] {
        let error = resolve(&[text]).unwrap_err().to_string();
        assert!(error.contains(key), "{text}: {error}");
    }
}

/// An image alone has none to be compared with; queues and targets of a teacher do without.
#[test]
fn images_are_compared_with_others() {
    for name in ObjectiveConfig::NAMES {
        let objective = format!("objective.name={name}");
        let ready = |batch: &str| resolve(&[&objective, batch]).unwrap().check_batch();
        let compares = ["mocov3", "moby", "simclr", "byol", "swav", "dinov2"].contains(name);
        match ready("train.batch_size=1") {
            Ok(()) => assert!(!compares, "{name}"),
            Err(error) => {
                let text =
                    format!("`train.batch_size` is 1: `{name}` compares the images of a step");
                assert!(compares && error.to_string().starts_with(&text), "{error}");
            }
        }
        ready("train.batch_size=2").unwrap();
    }
    let koleo = resolve(&["objective.koleo=0.1", "train.batch_size=1"]).unwrap();
    assert!(koleo.check_ready().is_err());
}

#[test]
fn every_recipe_is_a_run() {
    for name in recipe::RECIPES.iter().map(|recipe| recipe.name).chain(FORMER) {
        recipe(name);
    }
}

/// One line for every setting that is checked, and the nearest value that is allowed.
#[test]
fn every_setting_has_its_bounds() {
    for (refused, allowed) in [
        ("train.epochs=0", "train.epochs=1"),
        ("train.epochs=1000000001", "train.epochs=1000000000"),
        ("train.steps=0", "train.steps=1"),
        ("train.steps=1000000001", "train.steps=1000000000"),
        ("train.batch_size=0", "train.batch_size=1"),
        ("train.micro_batch=0", "train.micro_batch=1"),
        ("train.micro_batch=24", "train.micro_batch=32"),
        ("train.log_every=0", "train.log_every=1"),
        ("data.repeat=0", "data.repeat=1"),
        ("data.max_pixels=0", "data.max_pixels=1"),
        ("data.workers=1025", "data.workers=1024"),
        ("data.max_broken=1.1", "data.max_broken=1"),
        ("data.max_broken=nan", "data.max_broken=0"),
        ("data.max_side=223", "data.max_side=224"),
        ("objective.head.out_dim=1", "objective.head.out_dim=2"),
        ("objective.head.hidden_dim=0", "objective.head.hidden_dim=1"),
        ("objective.head.bottleneck_dim=0", "objective.head.bottleneck_dim=1"),
        ("objective.head.layers=0", "objective.head.layers=1"),
        ("checkpoint.every=0", "checkpoint.every=1"),
        ("checkpoint.every=0%", "checkpoint.every=0.1%"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last=1"),
        ("knn.k=0", "knn.k=1"),
        ("knn.k=1000001", "knn.k=1000000"),
        ("data.prefetch=10001", "data.prefetch=10000"),
        ("objective.student_temp=1e-4", "objective.student_temp=1e-3"),
        ("objective.student_temp=nan", "objective.student_temp=1e3"),
        ("objective.teacher_temp=1001.0", "objective.teacher_temp=1e-3"),
        ("objective.warmup_teacher_temp=0.0", "objective.warmup_teacher_temp=1e-3"),
        ("knn.temperature=0.0", "knn.temperature=1e-3"),
        ("knn.temperature=inf", "knn.temperature=2.0"),
        ("objective.center_momentum=1.5", "objective.center_momentum=1.0"),
        ("objective.center_momentum=-0.1", "objective.center_momentum=0.0"),
        ("objective.momentum_teacher=1.5", "objective.momentum_teacher=1.0"),
        ("objective.momentum_teacher=-0.1", "objective.momentum_teacher=0.0"),
        ("model.drop_path=-0.1", "model.drop_path=0.0"),
        ("model.drop_path=1.0", "model.drop_path=0.99"),
        ("optim.lr=-1.0", "optim.lr=0.0"),
        ("optim.betas=[0.9,1.0]", "optim.betas=[0.0,0.99]"),
        ("optim.betas=[-0.1,0.5]", "optim.betas=[0.1,0.5]"),
        ("optim.lr=inf", "optim.lr=10.0"),
        ("optim.min_lr=-1.0", "optim.min_lr=0.0"),
        ("optim.warmup_lr=-1.0", "optim.warmup_lr=0.0"),
        ("optim.warmup_lr=nan", "optim.warmup_lr=1.0"),
        ("optim.lr_in_momentum=true", "optim.lr_in_momentum=false"),
        ("optim.schedule=linear", "optim.schedule=multi_step"),
        ("optim.lr_scaling=none", "optim.lr_scaling=sqrt"),
        ("optim.decay=none", "optim.decay=all"),
        ("optim.milestones=5", "optim.milestones=[5, '8 steps', '70%']"),
        ("optim.weight_decay=-0.1", "optim.weight_decay=0.0"),
        ("optim.weight_decay_end=-0.1", "optim.weight_decay_end=0.0"),
        ("optim.warmup=-1.0", "optim.warmup=0.0"),
        ("optim.warmup=101%", "optim.warmup=100%"),
        ("train.time=0s", "train.time=1s"),
        ("optim.clip_grad=1e-7", "optim.clip_grad=1e-6"),
        ("optim.clip_grad=-1.0", "optim.clip_grad=none"),
        ("optim.clip_grad=inf", "optim.clip_grad=1e6"),
        ("optim.layer_decay=0.0", "optim.layer_decay=1e-3"),
        ("optim.layer_decay=1.1", "optim.layer_decay=1.0"),
        ("optim.layer_decay=nan", "optim.layer_decay=0.75"),
        ("optim.freeze_backbone=-1.0", "optim.freeze_backbone=0.0"),
        ("optim.freeze_backbone=101%", "optim.freeze_backbone=100%"),
        ("train.device=gpu", "train.device=cpu"),
        ("train.device=cpu:1", "train.device=cpu:0"),
        ("views.global_count=1", "views.global_count=2"),
    ] {
        let key = refused.split('=').next().unwrap();
        let error = resolve(&[refused]).expect_err(refused).to_string();
        assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
        resolve(&[allowed]).expect(allowed);
    }
    for (refused, allowed) in [
        ("objective.label_smoothing=1.0", "objective.label_smoothing=0.99"),
        ("objective.label_smoothing=-0.1", "objective.label_smoothing=0.0"),
        ("objective.mixup.mixup_alpha=0.0", "objective.mixup.mixup_alpha=0.01"),
        ("views.global_count=0", "views.global_count=1"),
    ] {
        let name = "objective.name=supervised";
        let key = refused.split('=').next().unwrap();
        let error = resolve(&[name, refused]).expect_err(refused).to_string();
        assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
        resolve(&[name, allowed]).expect(allowed);
    }
    for (name, refused, allowed) in [
        ("mocov2", "queue_length=0", "queue_length=1"),
        ("mocov2", "queue_length=8388609", "queue_length=8388608"),
        ("mocov2", "out_dim=65537", "out_dim=16384"),
        ("mocov2", "temperature=1e-4", "temperature=1e-3"),
        ("mocov2", "momentum_teacher=1.1", "momentum_teacher=1.0"),
        ("mocov3", "projector_layers=0", "projector_layers=1"),
        ("mocov3", "projector_layers=17", "projector_layers=16"),
        ("mocov3", "hidden_dim=0", "hidden_dim=1"),
        ("mocov3", "temperature=nan", "temperature=1e3"),
        ("mocov3", "momentum_teacher=-0.1", "momentum_teacher=0.0"),
        ("moby", "queue_length=0", "queue_length=1"),
        ("moby", "temperature=1001.0", "temperature=1000.0"),
        ("moby", "out_dim=0", "out_dim=1"),
        ("moby", "momentum_teacher=inf", "momentum_teacher=0.5"),
        ("simclr", "head_layers=0", "head_layers=1"),
        ("simclr", "out_dim=0", "out_dim=1"),
        ("simclr", "temperature=0.0", "temperature=0.5"),
        ("byol", "hidden_dim=65537", "hidden_dim=65536"),
        ("byol", "momentum_teacher=2", "momentum_teacher=1"),
        ("byol", "region.head.out_dim=1", "region.head.out_dim=2"),
        ("byol", "region.head.layers=0", "region.head.layers=1"),
        ("byol", "region.loss=cross_entropy", "region.loss=softmax"),
        ("masked_patch", "corrupted=0.0", "corrupted=1.0"),
        ("masked_patch", "masked=-0.1", "masked=0.9"),
        ("masked_patch", "replaced=0.3", "replaced=0.2"),
        ("swav", "prototypes=1", "prototypes=2"),
        ("swav", "prototypes=4194305", "prototypes=4194304"),
        ("swav", "epsilon=0.0", "epsilon=0.03"),
        ("swav", "temperature=0.0", "temperature=0.1"),
        ("swav", "sinkhorn_iterations=1001", "sinkhorn_iterations=0"),
        ("swav", "queue_length=4194305", "queue_length=4194304"),
        ("densecl", "loss_lambda=1.1", "loss_lambda=1.0"),
        ("densecl", "queue_length=0", "queue_length=1"),
        ("densecl", "hidden_dim=0", "hidden_dim=1"),
        ("densecl", "momentum_teacher=1.5", "momentum_teacher=0.0"),
        ("densecl", "temperature=0.0", "temperature=0.2"),
        ("esvit", "koleo=-0.1", "koleo=0.1"),
        ("esvit", "koleo=inf", "koleo=0.0"),
        ("esvit", "sinkhorn_iterations=1001", "sinkhorn_iterations=0"),
        ("esvit", "centering=mean", "centering=sinkhorn"),
        ("esvit", "patches.weight=-1.0", "patches.weight=1.0"),
        ("esvit", "patches.weight=inf", "patches.weight=0.5"),
        ("esvit", "patches.mask_probability=0.0", "patches.mask_probability=1.0"),
        ("esvit", "patches.mask_probability=1.1", "patches.mask_probability=0.1"),
        ("esvit", "patches.mask_ratio=[0.5,0.4]", "patches.mask_ratio=[0.5,0.5]"),
        ("esvit", "patches.mask_ratio=[0.0,0.0]", "patches.mask_ratio=[0.0,0.1]"),
        ("esvit", "patches.mask_ratio=[0.1,1.1]", "patches.mask_ratio=[0.1,1.0]"),
        ("dinov2", "patches.mask_ratio=[-0.1,0.1]", "patches.mask_ratio=[0.1,0.1]"),
        ("dinov2", "patch_embed_lr=-0.1", "patch_embed_lr=0.0"),
        ("dinov2", "patch_embed_lr=1001.0", "patch_embed_lr=1000.0"),
        ("dinov2", "teacher_temp=0.0", "teacher_temp=0.04"),
        ("dinov2", "head.out_dim=1", "head.out_dim=2"),
        ("dinov2", "koleo=nan", "koleo=0"),
        ("igpt", "mask_rate=0.0", "mask_rate=0.01"),
        ("igpt", "mask_rate=1.1", "mask_rate=1.0"),
        ("igpt", "mask_rate=nan", "mask_rate=0.5"),
    ] {
        let name = format!("objective.name={name}");
        let [refused, allowed] = [refused, allowed].map(|text| format!("objective.{text}"));
        let key = refused.split('=').next().unwrap();
        let error = resolve(&[&name, &refused]).expect_err(&refused).to_string();
        assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
        resolve(&[&name, &allowed]).expect(&allowed);
    }
}

/// Objectives that compare images see all views at once; those with a queue alone do not.
#[test]
fn objectives_and_the_passes_of_their_views() {
    for (name, splits) in [
        ("mocov2", true),
        ("densecl", true),
        ("igpt", true),
        ("masked_patch", true),
        ("mocov3", false),
        ("moby", false),
        ("simclr", false),
        ("byol", false),
        ("swav", false),
        ("dinov2", false),
        ("esvit", true),
    ] {
        let name = format!("objective.name={name}");
        let found = resolve(&[&name]).unwrap().crop_chunks();
        assert_eq!(found != CropChunks::All, splits, "{name}");
        let given = resolve(&[&name, "train.crops_per_forward=1"]);
        assert_eq!(given.is_ok(), splits, "{name}");
    }
}

/// Each term that compares images sees all views at once, and masked patches alone do not.
#[test]
fn terms_of_dinov2_in_the_view_task() {
    for (term, splits, described) in [
        ("objective.koleo=0.1", false, "L_V + L_R + KoLeo to 65536 prototypes"),
        (
            "objective.centering=sinkhorn",
            false,
            "L_V + L_R to 65536 prototypes, balanced by Sinkhorn",
        ),
        ("objective.patches.weight=1", true, "L_V + L_R + masked patches to 65536 prototypes"),
    ] {
        let config = resolve(&[term]).unwrap();
        assert_eq!(config.crop_chunks() != CropChunks::All, splits, "{term}");
        assert_eq!(config.objective.settings().describe(), described);
        let again = Config::parse(&config.to_toml(), Origin::Defaults).unwrap();
        assert_eq!(again, config, "{term}");
    }
    // All of them, beside the variants of the region task.
    let all = [
        "objective.koleo=0.1",
        "objective.centering=sinkhorn",
        "objective.patches.weight=1",
        "objective.region.loss=mse",
        "objective.region.match=sinkhorn",
        "objective.region.tokens=9",
    ];
    let config = resolve(&all).unwrap();
    let described = "L_V + L_R + masked patches + KoLeo to 65536 prototypes, balanced by Sinkhorn";
    assert_eq!(config.objective.settings().describe(), described);
    assert_eq!(Config::parse(&config.to_toml(), Origin::Defaults).unwrap(), config);
    let error = resolve(&["objective.name=dinov2", "objective.region=true"]).unwrap_err();
    assert!(error.to_string().contains("`objective.region`"), "{error}");
    let dinov2 = resolve(&["objective.name=dinov2"]).unwrap().objective;
    let described = "DINOv2, L_V + masked patches + KoLeo to 65536 prototypes";
    assert_eq!(dinov2.settings().describe(), described);
}

/// DINOv2's default configuration, which is that of ViT-L/16 on ImageNet-1K, in the terms of its code: 125,000
/// steps in 100 epochs of 1,250, and a rate of 4e-3 at 1,024 images that grows with the root of the batch.
#[test]
fn the_recipe_of_dinov2_is_the_published_one() {
    let config = recipe("dinov2");
    let ObjectiveConfig::Dinov2(objective) = &config.objective else { panic!("{config:?}") };
    let head = HeadConfig { norm_last_layer: false, ..HeadConfig::default() };
    let patches = PatchesConfig { weight: 1.0, ..PatchesConfig::default() };
    let expected = Dinov2Config {
        student_temp: 0.1,
        teacher_temp: 0.07,
        warmup_teacher_temp: 0.04,
        teacher_temp_warmup: Span::Steps(37_500),
        momentum_teacher: 0.992,
        centering: Centering::Softmax,
        sinkhorn_iterations: 3,
        center_momentum: 0.9,
        koleo: 0.1,
        patches: patches.clone(),
        freeze_last_layer: Span::Steps(1250),
        patch_embed_lr: 0.2,
        head: head.clone(),
    };
    assert_eq!(objective, &expected);
    assert_eq!((config.model.arch.as_str(), config.model.drop_path), ("vit_large16", 0.3));
    let BackboneConfig::Vit(vit) = &config.model.backbone else { panic!("{config:?}") };
    assert!(vit.layer_scale);
    let Config { train, optim, views, .. } = &config;
    assert_eq!((train.batch_size, train.steps, train.epochs), (2048, Some(125_000), None));
    let rate = optim.lr_schedule(2048, RunLength { total_steps: 125_000, steps_per_epoch: 625 });
    let peak = rate.at(12_499);
    assert!((peak / (4e-3 * 2f64.sqrt()) - 1.0).abs() < 1e-9, "{peak}");
    assert_eq!((optim.warmup, optim.layer_decay), (Span::Steps(12_500), 0.9));
    assert_eq!([optim.weight_decay, optim.weight_decay_end, optim.min_lr], [0.04, 0.4, 1e-6]);
    assert_eq!((optim.clip_grad, optim.clip_scope), (Some(3.0), ClipScope::Global));
    assert_eq!(views.sizes(), [vec![224; 2], vec![96; 8]].concat());
    assert_eq!([views.global_scale, views.local_scale], [[0.32, 1.0], [0.05, 0.32]]);

    // ViT-L/14 on ImageNet-22K: 500 epochs of 1,250 steps, a rate of 2e-4 at 1,024 images.
    let config = recipe("dinov2_imagenet22k");
    let ObjectiveConfig::Dinov2(objective) = &config.objective else { panic!("{config:?}") };
    let head = HeadConfig { out_dim: 131_072, bottleneck_dim: 384, ..head };
    let expected = Dinov2Config {
        teacher_temp_warmup: Span::Steps(37_500),
        momentum_teacher: 0.994,
        centering: Centering::Sinkhorn,
        patches: PatchesConfig { separate_head: true, ..patches },
        head,
        ..expected
    };
    assert_eq!(objective, &expected);
    let BackboneConfig::Vit(vit) = &config.model.backbone else { panic!("{config:?}") };
    assert_eq!((vit.patch_size, vit.embed_dim, vit.hidden_width()), (14, 1024, 2736));
    assert_eq!((config.model.drop_path, vit.layer_scale), (0.4, true));
    assert_eq!((config.train.batch_size, config.train.steps), (3072, Some(625_000)));
    let OptimConfig { lr, layer_decay, weight_decay_end, warmup, .. } = config.optim;
    assert!((lr * 2.0 / 2e-4 - 1.0).abs() < 1e-12, "{lr}");
    assert_eq!((layer_decay, weight_decay_end, warmup), (1.0, 0.2, Span::Steps(100_000)));
    assert_eq!(config.views.sizes(), [vec![224; 2], vec![98; 8]].concat());
    // The small one has all of these terms.
    let config = recipe("dinov2_materials");
    let ObjectiveConfig::Dinov2(objective) = &config.objective else { panic!("{config:?}") };
    assert_eq!((objective.centering, objective.koleo), (Centering::Sinkhorn, 0.1));
    assert_eq!((objective.patches.weight, config.model.arch.as_str()), (1.0, "vit_micro"));
}

/// What the papers and their code say, in their own terms: the peak of the rate, and what belongs to the
/// objective alone.
#[test]
fn recipes_of_other_objectives_are_the_published_ones() {
    for (name, arch, batch_size, epochs, rate, weight_decay, views) in [
        ("mocov2", "resnet50", 256, 200, 0.03, 1e-4, vec![224; 2]),
        ("mocov3", "vit_small16_moco", 4096, 300, 2.4e-3, 0.1, vec![224; 2]),
        ("mocov3_resnet50", "resnet50", 4096, 300, 4.8, 1e-6, vec![224; 2]),
        ("moby", "swin_tiny_w7", 512, 300, 1e-3, 0.05, vec![224; 2]),
        ("simclr", "resnet50", 4096, 1000, 4.8, 1e-6, vec![224; 2]),
        ("simclr_v2", "resnet50", 4096, 800, 4.8, 1e-4, vec![224; 2]),
        ("byol", "resnet50", 4096, 1000, 3.2, 1.5e-6, vec![224; 2]),
        ("swav", "resnet50", 4096, 800, 4.8, 1e-6, [vec![224; 2], vec![96; 6]].concat()),
        ("swav_256", "resnet50", 256, 400, 0.6, 1e-6, [vec![224; 2], vec![96; 6]].concat()),
        ("densecl", "resnet50", 256, 200, 0.03, 1e-4, vec![224; 2]),
    ] {
        let config = recipe(name);
        let Config { train, optim, .. } = &config;
        assert_eq!(config.model.arch, arch, "{name}");
        assert_eq!((train.batch_size, train.epochs), (batch_size, Some(epochs)), "{name}");
        let found = optim.lr * batch_size as f64 / LR_BATCH;
        assert!((found / rate - 1.0).abs() < 1e-12, "{name}: {found}");
        assert_eq!([optim.weight_decay, optim.weight_decay_end], [weight_decay; 2], "{name}");
        assert_eq!(config.views.sizes(), views, "{name}");
        let objective = name.split('_').next().unwrap();
        assert_eq!(config.objective.name(), objective);
        // A recipe has the defaults of its objective but for what its name says.
        let is_default = config.objective == ObjectiveConfig::named(objective).unwrap();
        let has_own = ["mocov3_resnet50", "simclr", "byol", "swav_256"].contains(&name);
        assert_eq!(is_default, !has_own, "{name}");
    }
}

/// The published settings as far as they are known; and those of the built-in images, without augmentation of
/// colors.
#[test]
fn recipes_of_igpt() {
    let config = recipe("igpt");
    let shape = zoo::find("igpt_s").unwrap().config();
    assert_eq!((&config.model.backbone, config.model.drop_path), (&shape, 0.0));
    assert_eq!((config.train.batch_size, config.train.steps), (128, Some(1_000_000)));
    let rate = config.optim.lr * 128.0 / LR_BATCH;
    assert!((rate - 3e-3).abs() < 1e-12, "{rate}");
    assert_eq!((config.optim.weight_decay, config.optim.clip_grad), (0.0, None));
    assert_eq!(config.optim.betas, [0.9, 0.95]);
    let small = recipe("igpt_materials");
    assert_eq!(small.model.backbone, zoo::find("igpt_micro").unwrap().config());
    assert_eq!((small.views.sizes(), small.views.global_scale), (vec![32], [0.4, 1.0]));
    for config in [config, small] {
        assert_eq!(config.objective, ObjectiveConfig::named("igpt").unwrap());
        let ViewsConfig { jitter, grayscale, blur, mean, std, .. } = &config.views;
        assert_eq!((jitter.p, *grayscale, blur.p_global1), (0.0, 0.0, 0.0));
        assert_eq!([*mean, *std], [[0.5; 3]; 2]);
        config.check_ready().unwrap();
    }
}

/// It predicts colors, which other backbones do not see; these take other objectives.
#[test]
fn igpt_needs_an_image_gpt() {
    let named = |texts: &[&str]| resolve(texts).unwrap().check_ready();
    let error = named(&["objective.name=igpt"]).unwrap_err().to_string();
    let expected = "`objective.name` is igpt: it predicts colors, which a Swin network does not see \
                    one by one\nhint: choose an image GPT";
    assert!(error.starts_with(expected), "{error}");
    named(&["objective.name=igpt", "model.arch=igpt_micro", "model.variant=bert"]).unwrap();
    named(&["model.arch=igpt_micro"]).unwrap();
    let path = ["objective.name=igpt", "objective.palette=colors.npy"];
    let config = resolve(&path).unwrap();
    assert_eq!(Config::parse(&config.to_toml(), Origin::Defaults).unwrap(), config);
}

/// As in the paper: a rate of 2e-4 at 4096 images, after 10,000 steps of warm-up.
#[test]
fn the_recipe_of_masked_patches_is_the_papers() {
    let config = recipe("masked_patch");
    assert_eq!(Some(config.objective), ObjectiveConfig::named("masked_patch"));
    assert_eq!((config.train.batch_size, config.train.steps), (4096, Some(1_000_000)));
    assert!((config.optim.lr * 4096.0 / LR_BATCH - 2e-4).abs() < 1e-12);
    assert_eq!(config.optim.warmup, Span::Steps(10_000));
    assert_eq!((config.model.arch.as_str(), config.views.sizes()), ("vit_base16", vec![224]));
}

/// A patch is what a token of the last map stands for, with pixels as the run normalizes them.
#[test]
fn masked_patches_have_the_size_of_tokens() {
    for (arch, side) in [("swin_tiny", 32), ("vit_small16", 16), ("resnet50", 32), ("cvt_tiny", 32)]
    {
        let arch = format!("model.arch={arch}");
        let config = resolve(&["objective.name=masked_patch", "views.std=[0.3,0.3,0.3]", &arch]);
        let config = config.unwrap();
        let (_, objective) = config.network(&Device::Cpu, 0);
        let objective: &dyn std::any::Any = &*objective;
        let objective: &MaskedPatch = objective.downcast_ref().unwrap();
        assert_eq!(objective.cut, Cut { side, normalization: config.views.normalization() });
    }
}

#[test]
fn settings_of_distillation_have_their_bounds() {
    let name = "objective.name=distill";
    for (refused, allowed) in [
        ("objective.student_temp=1e-4", "objective.student_temp=1e-3"),
        ("objective.teacher_temp=1001.0", "objective.teacher_temp=1000.0"),
        ("objective.prototypes=1", "objective.prototypes=2"),
        ("objective.prototypes=4194305", "objective.prototypes=4194304"),
        ("objective.teacher_size=0", "objective.teacher_size=1"),
        ("objective.teacher_size=4097", "objective.teacher_size=auto"),
        ("objective.weights={view=0.0,region=0.0}", "objective.weights={view=0.0,region=1.0}"),
        ("objective.loss=l1", "objective.loss=mse"),
        ("views.global_count=0", "views.global_count=1"),
    ] {
        let key = refused.split('=').next().unwrap();
        let error = resolve(&[name, refused]).expect_err(refused).to_string();
        assert!(error.contains(&format!("`{key}`")), "{refused}: {error}");
        let config = resolve(&[name, allowed]).expect(allowed);
        assert_eq!(Config::parse(&config.to_toml(), Origin::Defaults).unwrap(), config);
    }
    let without = resolve(&[name]).unwrap();
    let error = without.check_ready().unwrap_err().to_string();
    assert!(error.starts_with("`objective.teacher` is none: "), "{error}");
    assert!(resolve(&[]).unwrap().check_ready().is_ok());
}

/// What docs/recipes.md says of the two.
#[test]
fn recipes_that_go_on_from_a_network() {
    let adapt = recipe("adapt");
    let optim = OptimConfig {
        layer_decay: 0.75,
        freeze_backbone: Span::Percent(10.0),
        warmup: Span::Percent(20.0),
        weight_decay: 0.04,
        weight_decay_end: 0.04,
        ..OptimConfig::default()
    };
    assert_eq!(adapt, Config { optim, ..Config::default() });

    let distill = recipe("distill");
    let ObjectiveConfig::Distill(objective) = &distill.objective else { panic!("{distill:?}") };
    assert_eq!(objective.settings, DistillSettings::default());
    assert_eq!((distill.views.sizes(), distill.views.policy), (vec![224], Policy::MocoV2));
    assert_eq!(distill.views.global_scale, [0.2, 1.0]);
    assert_eq!((distill.train.batch_size, distill.train.epochs), (256, Some(100)));
    assert_eq!(distill.optim.warmup, Span::Percent(5.0));
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    for (refused, allowed, needed) in [
        (
            ["views.local_sizes=[3]", "views.local_counts=[1]"],
            ["views.local_sizes=[4]", "views.local_counts=[1]"],
            "views of 3 pixels (`views.local_sizes`) hold no patch of 4 (`model.patch_size`)",
        ),
        (
            ["model.arch=resnet50", "train.crops_per_forward=2"],
            ["model.arch=resnet50", "train.crops_per_forward=0"],
            "`train.crops_per_forward` does not go with a ResNet backbone, whose batch \
             normalization sees all crops of a size at once",
        ),
        (
            ["views.local_sizes=[31]", "model.arch=vil_tiny"],
            ["views.local_sizes=[32]", "model.arch=vil_tiny"],
            "views of 31 pixels (`views.local_sizes`) leave a stage without tokens, they need at \
             least 32",
        ),
        (
            ["head.use_bn_in_head=true", "train.crops_per_forward=2"],
            ["head.use_bn_in_head=true", "train.crops_per_forward=0"],
            "`train.crops_per_forward` does not go with this objective, whose loss (or \
             `objective.head.use_bn_in_head`) sees all crops of a step at once",
        ),
        (
            ["model.arch=cvt_tiny", "train.crops_per_forward=2"],
            ["model.arch=cvt_tiny", "train.crops_per_forward=0"],
            "`train.crops_per_forward` does not go with a CvT backbone, whose batch normalization",
        ),
        (
            ["objective.mixup.enabled=true", "objective.patches.weight=1"],
            ["objective.region=false", "objective.patches.weight=1"],
            "hint: set `objective.patches.weight=0` to train with mixup",
        ),
        (
            ["objective.mixup.enabled=true", "objective.region=true"],
            ["objective.mixup.enabled=true", "objective.region=false"],
            "hint: set `objective.region=false`",
        ),
        (
            ["objective.patches.weight=1", "model.arch=pvt_tiny"],
            ["objective.patches.weight=1", "model.arch=vit_small16"],
            "a PVT backbone has no patches that can be masked (`objective.patches`)",
        ),
        (
            ["objective.name=dinov2", "model.arch=resnet50"],
            ["objective.name=dinov2", "model.arch=swin_tiny"],
            "hint: choose a ViT or a Swin, such as `model.arch=vit_small16`, or set \
             `objective.patches.weight=0`",
        ),
        (
            ["objective.patches.weight=1", "head.use_bn_in_head=true"],
            ["objective.patches.weight=0", "head.use_bn_in_head=true"],
            "batch normalization would mix views and masked patches",
        ),
        (
            ["objective.koleo=0.1", "train.crops_per_forward=2"],
            ["objective.koleo=0.0", "train.crops_per_forward=2"],
            "`train.crops_per_forward` does not go with this objective",
        ),
        (
            ["train.epochs=5", "train.steps=5"],
            ["train.epochs=none", "train.steps=5"],
            "`train.epochs` and `train.steps` are both given on the command line",
        ),
        (
            ["train.steps=5", "train.time=2h"],
            ["train.steps=none", "train.time=2h"],
            "`train.steps` and `train.time` are both given on the command line",
        ),
        (
            ["train.batch_size=12", "train.micro_batch=8"],
            ["train.batch_size=12", "train.micro_batch=6"],
            "it must divide `train.batch_size`, which is 12",
        ),
        (
            ["optim.warmup_epochs=5", "optim.warmup=5"],
            ["optim.lr=5", "optim.warmup=5"],
            "`optim.warmup_epochs` is the former name of `optim.warmup`",
        ),
        (
            ["optim.name=sgd", "optim.betas=[0.8,0.9]"],
            ["optim.name=adamw", "optim.betas=[0.8,0.9]"],
            "hint: leave it out, or choose `optim.name=adamw`",
        ),
        (
            ["optim.name=adamw", "optim.lr_in_momentum=true"],
            ["optim.name=larc", "optim.lr_in_momentum=true"],
            "hint: set `optim.lr_in_momentum=false`, or choose `optim.name=sgd`, `lars` or `larc`",
        ),
    ] {
        let error = resolve(&refused).expect_err(needed).to_string();
        assert!(error.contains(needed), "{error}");
        resolve(&allowed).expect(needed);
    }
}

/// The published settings, which are the defaults, as numbers.
#[test]
fn defaults_are_the_published_settings() {
    let config = resolve(&["model.arch=swin_small"]).unwrap();
    let model = ModelConfig {
        arch: "swin_small_w7".into(),
        drop_path: 0.2,
        backbone: BackboneConfig::Swin(SwinConfig {
            img_size: 224,
            patch_size: 4,
            embed_dim: 96,
            depths: vec![2, 2, 18, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
        }),
    };
    assert_eq!(config.model, model);
    assert_eq!(Config::default().model.arch, "swin_tiny_w7");
    let objective = EsvitConfig {
        region: RegionConfig {
            enabled: true,
            r#match: Matching::Argmax,
            loss: RegionLoss::CrossEntropy,
            tokens: 0,
        },
        weights: Weights::Named(NamedWeights::Reference),
        student_temp: 0.1,
        teacher_temp: 0.04,
        warmup_teacher_temp: 0.04,
        teacher_temp_warmup: Span::Epochs(0.0),
        center_momentum: 0.9,
        centering: Centering::Softmax,
        sinkhorn_iterations: 3,
        koleo: 0.0,
        patches: PatchesConfig {
            weight: 0.0,
            mask_probability: 0.5,
            mask_ratio: [0.1, 0.5],
            separate_head: false,
        },
        mixup: MixupConfig {
            enabled: false,
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            switch_prob: 0.5,
            views: 10,
        },
        freeze_last_layer: Span::Epochs(1.0),
        momentum_teacher: 0.996,
        head: HeadConfig {
            out_dim: 65_536,
            hidden_dim: 2048,
            bottleneck_dim: 256,
            layers: 3,
            use_bn_in_head: false,
            norm_last_layer: true,
        },
    };
    assert_eq!(config.objective, ObjectiveConfig::Esvit(objective));
    let optim = OptimConfig {
        name: OptimizerKind::AdamW,
        lr_in_momentum: false,
        betas: [0.9, 0.999],
        lr: 5e-4,
        lr_scaling: LrScaling::Linear,
        min_lr: 1e-6,
        schedule: LrScheduleKind::Cosine,
        warmup: Span::Epochs(10.0),
        warmup_lr: 0.0,
        milestones: vec![Span::Percent(60.0), Span::Percent(80.0)],
        decay: Decayed::Matrices,
        weight_decay: 0.04,
        weight_decay_end: 0.4,
        clip_grad: Some(3.0),
        clip_scope: ClipScope::Tensor,
        layer_decay: 1.0,
        freeze_backbone: Span::NONE,
    };
    assert_eq!(config.optim, optim);
    let train = TrainConfig {
        epochs: Some(100),
        steps: None,
        time: None,
        batch_size: 64,
        micro_batch: None,
        crops_per_forward: 0,
        activation_checkpointing: false,
        device: "cpu".into(),
        precision: PrecisionChoice::Auto,
        log_every: 10,
    };
    assert_eq!(config.train, train);
    let checkpoint = CheckpointConfig { every: Span::Epochs(1.0), keep_last: 3 };
    assert_eq!(config.checkpoint, checkpoint);
    let data = DataConfig {
        path: None,
        repeat: 1,
        workers: 0,
        prefetch: 2,
        max_broken: 0.5,
        // The limit of Pillow, above which it warns of a bomb.
        max_pixels: 178_956_970,
        range: RangeSetting::Auto,
        background: BackgroundSetting::Auto,
        max_side: 0,
        cache_mb: 512,
    };
    assert_eq!(config.data, data);
    let knn = KnnConfig {
        every: Span::Epochs(5.0),
        train: None,
        val: None,
        k: 20,
        temperature: 0.07,
        max_images: 10_000,
        crop: 0,
        resize: 0,
    };
    assert_eq!(config.knn, knn);
    assert_eq!((config.seed, LR_BATCH), (0, 256.0));
}

/// Recipes by their former names.
const FORMER: [&str; 6] = [
    "swin_tiny_w7",
    "swin_tiny_w14",
    "swin_small_w7",
    "swin_small_w14",
    "swin_base_w7",
    "swin_base_w14",
];

#[test]
fn published_recipes_are_the_papers() {
    for name in FORMER.into_iter().chain(["esvit"]) {
        let config = recipe(name);
        let arch = if name == "esvit" { "swin_tiny_w7" } else { name };
        let expected = Config {
            objective: ObjectiveConfig::Esvit(EsvitConfig {
                warmup_teacher_temp: 0.04,
                teacher_temp: 0.07,
                teacher_temp_warmup: Span::Epochs(30.0),
                // Only the largest model was trained with prototypes of unit length.
                head: HeadConfig {
                    norm_last_layer: name == "swin_base_w14",
                    ..HeadConfig::default()
                },
                ..EsvitConfig::default()
            }),
            train: TrainConfig { epochs: Some(300), batch_size: 512, ..TrainConfig::default() },
            // The architecture of that name.
            ..resolve(&[&format!("model.arch={arch}")]).unwrap()
        };
        assert_eq!(config, expected, "{name}");
    }
    let expected = "The published EsViT run on ImageNet-1K: L_V + L_R, 300 epochs, Swin-Tiny \
                    unless `--arch` says otherwise.";
    assert_eq!(recipe::find("esvit").unwrap().summary(), expected);
    assert_eq!(recipe::find("swin_base"), None);
}

/// As published for other sets: what differs from the run on ImageNet-1K, warm-ups as a share of it.
#[test]
fn other_sets_and_the_comparison_of_architectures() {
    for (name, batch_size, epochs, warmups) in [
        ("esvit_ablation", 1024, 300, [10.0, 30.0]),
        ("esvit_webvision", 512, 150, [5.0, 15.0]),
        ("esvit_openimages", 512, 50, [2.0, 5.0]),
        ("esvit_imagenet22k", 512, 30, [1.0, 3.0]),
    ] {
        let config = recipe(name);
        let [warmup, teacher_temp_warmup] = warmups.map(Span::Epochs);
        let mut expected = recipe("esvit");
        expected.train.batch_size = batch_size;
        expected.train.epochs = Some(epochs);
        expected.optim.warmup = warmup;
        let esvit = EsvitConfig { teacher_temp_warmup, ..esvit(&expected).clone() };
        expected.objective = ObjectiveConfig::Esvit(esvit);
        assert_eq!(config, expected, "{name}");
    }
    let find = |name| recipe::find(name).unwrap();
    assert_eq!(find("esvit_openimages").summary(), "The same on OpenImages-v4: 50 epochs.");
}

/// Swin's own training, in the terms of its code: a rate of 1e-3 at 1,024 images, RandAugment
/// of two operations, erasing of a quarter, one view an image.
#[test]
fn the_supervised_recipe_is_the_published_one() {
    let config = recipe("supervised");
    let objective = SupervisedConfig {
        label_smoothing: 0.1,
        mixup: MixupConfig {
            enabled: true,
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            switch_prob: 0.5,
            views: 10,
        },
    };
    assert_eq!(config.objective, ObjectiveConfig::Supervised(objective));
    assert_eq!((config.model.arch.as_str(), config.model.drop_path), ("swin_tiny_w7", 0.2));
    assert_eq!((config.train.batch_size, config.train.epochs), (1024, Some(300)));
    let rate = config.optim.lr * config.train.batch_size as f64 / LR_BATCH;
    assert!((rate - 1e-3).abs() < 1e-12, "{rate}");
    let optim = OptimConfig {
        name: OptimizerKind::AdamW,
        lr: 2.5e-4,
        min_lr: 1e-5,
        warmup: Span::Epochs(20.0),
        weight_decay: 0.05,
        weight_decay_end: 0.05,
        clip_grad: Some(5.0),
        clip_scope: ClipScope::Global,
        ..OptimConfig::default()
    };
    assert_eq!(config.optim, optim);
    assert_eq!(config.views.sizes(), [224]);
    assert_eq!((config.views.jitter.p, config.views.randaugment.ops), (0.0, 2));
    assert_eq!(config.views.erase.p, 0.25);
}

/// Peaks of the learning rate as the papers' codes have them for their batches; SwAV's starts at
/// 0.3.
#[test]
fn rates_of_published_runs() {
    for (rate, scaling, batch, peak) in [
        ("0.03", "linear", 256, 0.03),
        ("1.5e-4", "linear", 4096, 2.4e-3),
        ("0.6", "linear", 4096, 9.6),
        ("5e-4", "linear", 512, 1e-3),
        ("0.3", "linear", 4096, 4.8),
        ("1.2", "sqrt", 4096, 4.8),
        ("1.2", "sqrt", 256, 1.2),
    ] {
        let texts = [format!("optim.lr={rate}"), format!("optim.lr_scaling={scaling}")];
        let layers = texts.map(|text| parse_override(&text).unwrap());
        let optim = Config::resolve(layers.into()).unwrap().optim;
        let run = RunLength { total_steps: 100, steps_per_epoch: 10 };
        let found = optim.lr_schedule(batch, run).cosine.base;
        assert!((found / peak - 1.0).abs() < 1e-12, "{rate} {scaling} {batch}: {found}");
    }
    let texts = ["optim.warmup_lr=0.3", "optim.lr=0.3", "optim.min_lr=0.0048", "optim.warmup=2"];
    let optim = resolve(&texts).unwrap().optim;
    let schedule = optim.lr_schedule(4096, RunLength { total_steps: 30, steps_per_epoch: 5 });
    // The values of the code for 6 epochs of 5 steps, two of them the warm-up.
    for (step, expected) in [(0, 0.3), (1, 0.8), (9, 4.8), (10, 4.8), (11, 4.770_481_6)] {
        let found = schedule.at(step);
        assert!((found - expected).abs() < 1e-6, "{step}: {found}");
    }
}

#[test]
fn crops_that_go_through_at_a_time() {
    let crop_chunks = |texts: &[&str]| resolve(texts).unwrap().crop_chunks();
    assert_eq!(crop_chunks(&["train.crops_per_forward=3"]), CropChunks::Crops(3));
    assert_eq!(crop_chunks(&["head.use_bn_in_head=true"]), CropChunks::All);
    assert!(matches!(crop_chunks(&["model.arch=resnet50"]), CropChunks::Sizes(_)));
    assert!(matches!(crop_chunks(&["model.arch=cvt_tiny"]), CropChunks::Sizes(_)));
    let sees_all_at_once = |texts: &[&str]| resolve(texts).unwrap().sees_all_at_once();
    assert!(
        sees_all_at_once(&["model.arch=resnet50"]) && sees_all_at_once(&["model.arch=cvt_tiny"])
    );
    assert!(sees_all_at_once(&["head.use_bn_in_head=true"]));
    assert!(!sees_all_at_once(&["model.arch=vit_small16"]));
    let shape = Config::default().model.backbone;
    for named in Precision::ALL {
        let precision = named.name();
        for again in [false, true] {
            let texts = [
                format!("train.precision={precision}"),
                format!("train.activation_checkpointing={again}"),
            ];
            let found = crop_chunks(&texts.each_ref().map(String::as_str));
            assert_eq!(found, CropChunks::within_memory(&shape, named, again));
        }
    }
}

#[test]
fn layers_decide_about_architecture_and_policy() {
    // The last layer that names an architecture decides; later layers change it.
    let file = parse_text("model.window_size = 14", Origin::File("run.toml".into())).unwrap();
    let over = |text: &str| parse_override(text).unwrap();
    let layers = vec![file, over("model.arch=swin_base"), over("model.drop_path=0.3")];
    let model = Config::resolve(layers).unwrap().model;
    assert_eq!((model.arch.as_str(), swin(&model).window_size), ("swin_base_w7", 7));
    assert_eq!((swin(&model).embed_dim, model.drop_path), (128, 0.3));
    // `custom` keeps the shape of the default where nothing is said.
    let model = resolve(&["model.arch=custom", "model.embed_dim=48"]).unwrap().model;
    let SwinConfig { embed_dim, window_size, .. } = *swin(&model);
    assert_eq!((model.arch.as_str(), embed_dim, window_size), ("custom", 48, 7));
    // The last policy decides, and what is set beside it stays.
    let views = resolve(&["views.policy=deit", "views.flip=0.1", "views.policy=basic"]);
    let expected = ViewsConfig { flip: 0.1, ..ViewsConfig::for_policy(Policy::Basic) };
    assert_eq!(views.unwrap().views, expected);
    let error = resolve(&["views.policy=cutout"]).unwrap_err().to_string();
    assert!(error.contains("`views.policy`"), "{error}");
    let error = recipe_layers("swin_tiny").unwrap_err().to_string();
    assert!(
        error.starts_with("there is no recipe `swin_tiny`\nhint: choose one of `mat"),
        "{error}"
    );
}

#[test]
fn how_evaluations_show_images() {
    let preprocess = |texts: &[&str]| resolve(texts).unwrap().preprocess();
    let views = ViewsConfig::default();
    assert_eq!(preprocess(&[]), Preprocess::new(224, 0, &views));
    let found = preprocess(&["views.global_size=64", "knn.resize=70"]);
    assert_eq!(found, Preprocess::new(64, 70, &views));
    assert_eq!(preprocess(&["knn.crop=32"]), Preprocess::new(32, 0, &views));
    let found = preprocess(&["data.range=[3,300]", "data.background=[1,2,3]"]);
    assert_eq!(found.range, esvit_data::Levels::all([3.0, 300.0]));
    assert_eq!(found.background, Background::Color([1, 2, 3]));
    let other = ViewsConfig { mean: [0.1, 0.2, 0.3], ..views };
    assert_eq!(preprocess(&["views.mean=[0.1,0.2,0.3]"]), Preprocess::new(224, 0, &other));
}
