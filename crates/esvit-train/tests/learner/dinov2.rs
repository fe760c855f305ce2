//! DINOv2's terms in the loop: against their definitions in plain loops, however a step is cut, and what
//! learns of them.

use esvit_nn::backbone::vit::VitConfig;
use esvit_nn::forward_ctx::StepPart;
use esvit_testing::losses::{self, Rows, rows};
use esvit_testing::tiny_vit;
use esvit_train::Config;
use esvit_train::checkpoint::{self, Checkpoint, Metadata};
use esvit_train::objective::dinov2::Dinov2Config;
use esvit_train::objective::esvit::{Centering, Masks, PatchesConfig, RegionConfig, RegionLoss};
use esvit_train::objective::regions::Matching;
use esvit_train::objective::{Chunking, GLOBAL_VIEWS, ObjectiveConfig};

use super::collective::{apart, together};
use super::compared::{alike, halves, of};
use super::*;

/// A map of 4 x 4 patches of a global view, and of 2 x 2 of a local one.
fn vit() -> BackboneConfig {
    BackboneConfig::Vit(VitConfig { img_size: 16, patch_size: 4, embed_dim: 8, ..tiny_vit() })
}

const PATCHES: PatchesConfig = PatchesConfig {
    weight: 0.7,
    mask_probability: 0.8,
    mask_ratio: [0.2, 0.6],
    separate_head: false,
};

/// All terms.
fn dinov2() -> Dinov2Config {
    Dinov2Config {
        teacher_temp: 0.1,
        teacher_temp_warmup: Span::NONE,
        momentum_teacher: MOMENTUM,
        patches: PATCHES,
        freeze_last_layer: Span::NONE,
        head: head(true, false),
        ..Dinov2Config::default()
    }
}

fn centered() -> Learner {
    of(&ObjectiveConfig::Dinov2(dinov2()), &vit())
}

fn balanced() -> Learner {
    let patches = PatchesConfig { separate_head: true, ..PATCHES };
    let config = Dinov2Config { centering: Centering::Sinkhorn, patches, ..dinov2() };
    of(&ObjectiveConfig::Dinov2(config), &vit())
}

/// Both of EsViT's tasks, whose stages halve the map.
fn esvit_with(change: impl Fn(&mut EsvitConfig)) -> Learner {
    let mut config = EsvitConfig {
        teacher_temp: 0.1,
        momentum_teacher: MOMENTUM,
        freeze_last_layer: Span::NONE,
        head: head(false, false),
        ..EsvitConfig::default()
    };
    change(&mut config);
    of(&ObjectiveConfig::Esvit(config), &tiny_backbone())
}

fn with_regions() -> Learner {
    esvit_with(|config| {
        (config.koleo, config.centering, config.patches) = (0.3, Centering::Sinkhorn, PATCHES);
    })
}

/// Half of the tokens of a global view take part in the region task.
fn some_tokens() -> RegionConfig {
    RegionConfig { tokens: 2, ..RegionConfig::default() }
}

/// Distances by a transport.
fn transport() -> RegionConfig {
    let (r#match, loss) = (Matching::Sinkhorn, RegionLoss::Mse);
    RegionConfig { r#match, loss, ..RegionConfig::default() }
}

fn with_some_regions() -> Learner {
    esvit_with(|config| {
        (config.koleo, config.centering, config.patches) = (0.3, Centering::Sinkhorn, PATCHES);
        config.region = RegionConfig { tokens: 2, ..transport() };
    })
}

fn patches_beside_some_regions() -> Learner {
    esvit_with(|config| (config.region, config.patches) = (some_tokens(), PATCHES))
}

fn patches_alone() -> Learner {
    esvit_with(|config| config.patches = PATCHES)
}

fn koleo_alone() -> Learner {
    esvit_with(|config| (config.region, config.koleo) = (false.into(), 0.3))
}

type Named = (&'static str, fn() -> Learner);

const ALL: [Named; 6] = [
    ("centered", centered),
    ("balanced", balanced),
    ("with regions", with_regions),
    ("with some regions", with_some_regions),
    ("patches alone", patches_alone),
    ("KoLeo alone", koleo_alone),
];

/// Masks, centers and neighbors are those of the whole step.
#[test]
fn micro_batches_are_one_batch() {
    for (name, new) in ALL {
        let (halves, whole) = halves();
        let [by_half, at_once] =
            [&halves[..], &whole[..]].map(|batches| new().gradients(batches.to_vec(), &STEP));
        for (index, spec) in new().network.specs().iter().enumerate() {
            let [found, expected] =
                [&by_half, &at_once].map(|gradients| gradients.values.get(index));
            let what = format!("{name}, {}", spec.name);
            assert_eq!(found.is_some(), expected.is_some(), "{what}");
            let Some((found, expected)) = found.zip(expected) else { continue };
            alike(&what, &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 2e-4);
        }
        let [mut by_half, mut at_once] = [new(), new()];
        for step in 0..3 {
            let at = StepInfo { step, ..STEP };
            let found = by_half.step(halves.clone(), &at).unwrap();
            let expected = at_once.step(whole.clone(), &at).unwrap();
            let numbers = |result: &StepResult| {
                let parts = result.parts.iter().map(|part| part.1);
                parts.chain([result.loss, result.grad_norm]).collect::<Vec<f32>>()
            };
            alike(name, &numbers(&found), &numbers(&expected), 2e-4);
        }
        let values = |learner: &Learner| -> Vec<Vec<f32>> {
            let networks = [&learner.student, teacher_of(learner)].map(|params| params.values());
            let state = learner.objective.state().into_iter().map(|state| state.value);
            networks.concat().into_iter().chain(state).map(|value| value.to_vec()).collect()
        };
        for (found, expected) in values(&by_half).iter().zip(&values(&at_once)) {
            alike(name, found, expected, 5e-4);
        }
    }
}

/// Two learners, each with a micro-batch, are one with both.
#[test]
fn processes_are_one_run() {
    for (name, new) in ALL {
        let (halves, _) = halves();
        let steps = vec![halves.to_vec(); 2];
        let expected = together(new, &steps);
        let [first, second] = apart(new, &steps);
        assert!(first.state == second.state, "{name}: both have the same bits");
        let values =
            |bits: &[u32]| -> Vec<f32> { bits.iter().map(|&bits| f32::from_bits(bits)).collect() };
        for (found, expected) in first.state.iter().zip(&expected.state) {
            alike(name, &values(found), &values(expected), 5e-4);
        }
        let [found, expected] = [first.result, expected.result].map(Result::unwrap);
        alike(name, &[found.loss, found.grad_norm], &[expected.loss, expected.grad_norm], 2e-4);
    }
}

/// Masked patches alone may go through in passes of some views.
#[test]
fn passes_of_some_views() {
    let (_, whole) = halves();
    let chunks = [CropChunks::Crops(1), CropChunks::Crops(2)];
    let learners: [fn() -> Learner; 2] = [patches_alone, patches_beside_some_regions];
    for (new, crop_chunks) in learners.into_iter().flat_map(|new| chunks.map(|cut| (new, cut))) {
        let expected = new().gradients(whole.clone(), &STEP).values;
        let mut learner = new();
        learner.settings.crop_chunks = crop_chunks;
        let found = learner.gradients(whole.clone(), &STEP).values;
        for (index, spec) in learner.network.specs().iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|gradients| gradients.get(index));
            let Some((found, expected)) = found.zip(expected) else { continue };
            alike(&spec.name, &found.to_vec::<f32>(), &expected.to_vec::<f32>(), 1e-4);
        }
    }
}

/// Patches are predicted whether or not they take part in the region task, whose variants change no other
/// term; and regions have their running mean, or distances, also where views and patches are balanced.
#[test]
fn variants_of_regions_leave_other_terms_alone() {
    let (_, whole) = halves();
    let result = |centering: Centering, region: &RegionConfig| {
        let mut learner = esvit_with(|config| {
            (config.koleo, config.patches) = (0.3, PATCHES);
            (config.centering, config.region) = (centering, region.clone());
        });
        learner.step(whole.clone(), &STEP).unwrap()
    };
    let same = |name: &str, results: [&StepResult; 2]| {
        let [a, b] = results.map(|result| super::part(result, name));
        assert!(a.is_finite());
        a == b
    };
    let both = [Centering::Softmax, Centering::Sinkhorn];
    let published = both.map(|centering| result(centering, &RegionConfig::default()));
    assert!(same("region", [&published[0], &published[1]]));
    for variant in [some_tokens(), transport()] {
        let found = both.map(|centering| result(centering, &variant));
        for (found, published) in found.iter().zip(&published) {
            for name in ["view", "patch", "koleo"] {
                assert!(same(name, [found, published]), "{name}, {variant:?}");
            }
            assert!(!same("region", [found, published]), "{variant:?}");
        }
        assert!(same("region", [&found[0], &found[1]]), "{variant:?}");
        for name in ["view", "patch"] {
            assert!(!same(name, [&found[0], &found[1]]), "{name}, {variant:?}");
        }
    }
}

/// How each goes through the loop.
#[test]
fn what_is_compared() {
    for ((name, new), (images, regions)) in ALL.into_iter().zip([
        (true, true),
        (true, true),
        (true, true),
        (true, true),
        (false, false),
        (true, false),
    ]) {
        let objective = new().objective;
        let found = (objective.compares_images(), objective.compares_regions());
        assert_eq!(found, (images, regions), "{name}");
    }
    let chunking = ObjectiveConfig::Dinov2(dinov2()).settings().chunking();
    assert_eq!(chunking, Chunking::ByImage);
}

fn matrix(tensor: &Tensor) -> Rows {
    let values: Vec<f64> = tensor.to_vec::<f32>().into_iter().map(f64::from).collect();
    rows(&values, tensor.shape()[1])
}

/// A learner without stochastic depth whose running means are not zero.
fn without_drop_path(objective: &ObjectiveConfig) -> Learner {
    let (network, objective) = Network::new(&vit(), 0.0, |scope, width| {
        let (blocks, masking) = (vit().blocks(), vit().masking());
        let setup = Setup { width, blocks, masking, seed: 3, ..Setup::default() };
        objective.settings().build(scope, &setup)
    });
    let specs = network.specs().clone();
    let kind = OptimizerKind::Sgd;
    let mut learner = Learner::new(network, objective, kind, SETTINGS, &Device::Cpu);
    (learner.student, learner.teacher) = (fill(&specs, 100), Some(fill(&specs, 200)));
    let objective = esvit_mut(&mut learner);
    objective.centers.view = hashed_tensor(300, [6]) * 0.1;
    if let Some(patches) = &mut objective.patches {
        patches.center = hashed_tensor(301, [6]) * 0.1;
    }
    learner
}

/// The parameters with those of the head of patches in place of the views', if there is one.
fn with_head_of_patches(params: &Params) -> Params {
    let find = |name: &str| {
        let found = params.iter().find(|(spec, _)| spec.name == name);
        found.map(|(_, value)| value.to_vec::<f32>())
    };
    Params::from_fn(params.specs(), &Device::Cpu, |spec| {
        find(&format!("ibot_{}", spec.name)).or_else(|| find(&spec.name)).unwrap()
    })
}

/// A center, but for a constant, by which a softmax gives what Sinkhorn's iteration does of these logits.
fn balancing(logits: &Rows, temperature: f64) -> Vec<f64> {
    let balanced = losses::sinkhorn(logits, temperature, 3);
    let (row, shares) = (&logits[0], &balanced[0]);
    row.iter().zip(shares).map(|(logit, share)| logit - temperature * share.ln()).collect()
}

/// Every part of a step's loss from the features of both networks, in plain loops.
#[test]
fn losses_by_their_definitions() {
    const IMAGES: usize = 4;
    const MAP: usize = 16;
    for (centering, separate_head) in [(Centering::Softmax, true), (Centering::Sinkhorn, false)] {
        let patches = PatchesConfig { separate_head, ..PATCHES };
        let config = Dinov2Config { centering, patches: patches.clone(), ..dinov2() };
        let mut learner = without_drop_path(&ObjectiveConfig::Dinov2(config));
        let views = crops(IMAGES);
        let batch = MicroBatch::unlabeled(views.clone());
        let at = StepInfo { step: 5, ..STEP };
        let part = StepPart { first_view: 0, images: 0..IMAGES, step_images: IMAGES };
        let masks = Masks::draw(&patches, [3, 5], &part, [4, 4]);

        // The student sees masked views.
        learner.objective.begin_micro_batch(&batch, &at, &part);
        let mask = learner.objective.token_mask(&learner.student, 0..4, 0..IMAGES).unwrap();
        let mut expected = Vec::new();
        for view in 0..4 {
            let tokens = if view < GLOBAL_VIEWS { MAP } else { 4 };
            for image in 0..IMAGES {
                let regions = masks.of(view, image).map_or(vec![false; tokens], <[bool]>::to_vec);
                expected.extend(regions.into_iter().map(|masked| f32::from(u8::from(masked))));
            }
        }
        assert_eq!(mask.rows.to_vec::<f32>(), expected);
        let ctx = ForwardCtx::teacher();
        let student = learner.network.masked_features(&learner.student, &views, Some(&mask), &ctx);
        let teacher = learner.network.features(teacher_of(&learner), &views[..2], &ctx);
        learner.objective.end_micro_batch();

        let heads = &esvit(&learner).heads;
        let logits = |params: &Params, features: &Tensor| -> Rows {
            matrix(&heads.view_head().forward(params, features.clone(), &ctx).matrix())
        };
        let of_patches = |params: &Params, features: &Tensor| -> Rows {
            logits(&with_head_of_patches(params), features)
        };
        let temperatures = [0.1, 0.1];
        let of_views = logits(&learner.student, &student.view);
        let targets = logits(teacher_of(&learner), &teacher.view);
        let center = match centering {
            Centering::Softmax => flat(&esvit(&learner).centers.view),
            Centering::Sinkhorn => balancing(&targets, 0.1),
        };
        let mut view_loss = 0.0;
        for (view, other) in (0..4).flat_map(|view| [(view, 0), (view, 1)]) {
            for image in (0..IMAGES).filter(|_| view != other) {
                let (own, target) =
                    (&of_views[view * IMAGES + image], &targets[other * IMAGES + image]);
                view_loss += losses::distillation(own, target, &center, temperatures) / 24.0;
            }
        }

        let predicted = of_patches(&learner.student, &student.region);
        let all_targets = of_patches(teacher_of(&learner), &teacher.region);
        let places = (0..GLOBAL_VIEWS).flat_map(|view| (0..IMAGES).map(move |image| (view, image)));
        let masked = |view: usize, image: usize| -> Vec<usize> {
            let mask = masks.of(view, image).unwrap_or_default();
            let first = (view * IMAGES + image) * MAP;
            (0..mask.len()).filter(|&place| mask[place]).map(|place| first + place).collect()
        };
        let own = places.clone().flat_map(|(view, image)| masked(view, image));
        let own: Rows = own.map(|row| all_targets[row].clone()).collect();
        let center = match centering {
            Centering::Softmax => flat(&esvit(&learner).patches.as_ref().unwrap().center),
            Centering::Sinkhorn => balancing(&own, 0.1),
        };
        let mut patch_loss = 0.0;
        for (view, image) in places {
            let rows = masked(view, image);
            for &row in &rows {
                let (own, target) = (&predicted[row], &all_targets[row]);
                let share = 1.0 / (8 * rows.len()) as f64;
                patch_loss += share * losses::distillation(own, target, &center, temperatures);
            }
        }
        let features = matrix(&student.view);
        let koleo = features[..2 * IMAGES].chunks(IMAGES).map(|view| losses::koleo(&view.to_vec()));
        let koleo: f64 = koleo.sum();

        let result = learner.step([batch], &at).unwrap();
        let names: Vec<&str> = result.parts.iter().map(|part| part.0).collect();
        assert_eq!(names, ["view", "patch", "koleo"]);
        let found = ["view", "patch", "koleo"].map(|name| super::part(&result, name));
        assert_close("parts", &found, &[view_loss, patch_loss, koleo], 2e-4);
        let total = view_loss + 0.7 * patch_loss + 0.1 * koleo;
        assert_close("total", &[result.loss], &[total], 4e-4);

        // The running mean moves by a tenth towards that of the masked patches.
        let count = own.len() as f64;
        let mean = (0..6).map(|k| own.iter().map(|row| row[k]).sum::<f64>() / count);
        let before = flat(&(hashed_tensor(301, [6]) * 0.1));
        let expected: Vec<f64> =
            before.iter().zip(mean).map(|(before, mean)| 0.9 * before + 0.1 * mean).collect();
        let center = esvit(&learner).patches.as_ref().unwrap().center.to_vec::<f32>();
        assert_close("center", &center, &expected, 1e-5);
    }
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_vec::<f32>().into_iter().map(f64::from).collect()
}

/// The place of a parameter by its name.
fn index_of(learner: &Learner, name: &str) -> usize {
    learner.network.specs().iter().position(|spec| spec.name == name).unwrap()
}

/// The token in place of masked patches learns, the teacher's follows, and a frozen backbone leaves it as it
/// is; without the term there is none.
#[test]
fn the_token_learns() {
    let (halves, whole) = halves();
    for batches in [&halves[..], &whole[..]] {
        for is_frozen in [false, true] {
            let mut learner = centered();
            learner.settings.freeze_backbone = if is_frozen { Span::Steps(5) } else { Span::NONE };
            let index = index_of(&learner, "mask_token");
            let values = |learner: &Learner| {
                [&learner.student, teacher_of(learner)].map(|p| p.value(index).to_vec::<f32>())
            };
            let before = values(&learner);
            learner.step(batches.to_vec(), &STEP).unwrap();
            let [student, teacher] = values(&learner);
            assert_eq!(student != before[0], !is_frozen);
            let mean = |old: &[f32], new: &[f32]| -> Vec<f32> {
                old.iter().zip(new).map(|(old, new)| 0.5 * old + 0.5 * new).collect()
            };
            assert_alike("teacher", &teacher, &mean(&before[1], &student), 1e-5);
        }
    }
    let without = koleo_alone();
    let has = |name: &str| without.network.specs().iter().any(|spec| spec.name.contains(name));
    assert!(!has("mask_token") && !has("ibot_head"));
    assert!(without.objective.token_mask(&without.student, 0..4, 0..2).is_none());
}

/// Prototypes of both heads are frozen at first, and the patch embedding learns at a rate of its own.
#[test]
fn what_learns_slower() {
    let patches = PatchesConfig { separate_head: true, ..PATCHES };
    let config = Dinov2Config { freeze_last_layer: Span::Steps(1), patches, ..dinov2() };
    let learner = of(&ObjectiveConfig::Dinov2(config), &vit());
    let frozen = learner.objective.frozen(&STEP);
    let names: Vec<&str> =
        frozen.iter().map(|id| learner.network.specs()[id.index()].name.as_str()).collect();
    let expected = ["head", "ibot_head"]
        .map(|head| ["weight_g", "weight_v"].map(|part| format!("{head}.last_layer.{part}")));
    assert_eq!(names, expected.concat());
    assert!(learner.objective.frozen(&StepInfo { step: 1, ..STEP }).is_empty());
    for spec in learner.network.specs().iter() {
        let expected = if spec.name.starts_with("patch_embed.") { 0.2 } else { 1.0 };
        assert_eq!(learner.objective.lr_scale(spec), expected, "{}", spec.name);
    }
    let plain = patches_alone();
    assert!(plain.network.specs().iter().all(|spec| plain.objective.lr_scale(spec) == 1.0));
}

/// Signals of a step, and the loss of chance: a logarithm for views and, by its weight, for patches.
#[test]
fn figures_of_a_step() {
    for new in [centered, balanced] {
        let mut learner = new();
        let chance = learner.objective.chance_loss();
        assert!((chance - 1.7 * 6f64.ln()).abs() < 1e-12, "{chance}");
        let (_, whole) = halves();
        let at = StepInfo { health: true, ..STEP };
        let health = learner.step(whole, &at).unwrap().health.unwrap();
        let signal = |name: &str| health.signal(name).unwrap();
        let share = signal("masked_patches");
        assert!((20.0..50.0).contains(&share), "{share}");
        let [own, mean] = ["patch_entropy", "patch_marginal_entropy"].map(signal);
        assert!(0.0 < own && own < mean && mean <= 6f64.ln() + 1e-6, "{own} {mean}");
        assert!(signal("teacher_entropy") < signal("marginal_entropy") + 1e-6);
    }
    // Balanced over the batch, all prototypes have as many.
    let mut learner = balanced();
    let config = &mut esvit_mut(&mut learner).config;
    (config.sinkhorn_iterations, config.teacher_temp) = (100, 1.0);
    let (_, whole) = halves();
    let health = learner.step(whole, &StepInfo { health: true, ..STEP }).unwrap().health.unwrap();
    for name in ["marginal_entropy", "patch_marginal_entropy"] {
        let entropy = health.signal(name).unwrap();
        assert!((entropy - 6f64.ln()).abs() < 1e-3, "{name}: {entropy}");
    }
}

/// A step that is stopped, and one that is not finite, leave all as it was.
#[test]
fn a_step_that_is_not_ended_changes_nothing() {
    for (name, new) in ALL {
        let mut learner = new();
        let (halves, _) = halves();
        learner.step(halves.clone(), &STEP).unwrap();
        let before = state(&learner);
        let mut bad = halves.clone();
        for view in &mut bad[1].views {
            view.write(0, &[f32::NAN]);
        }
        let at = StepInfo { step: 1, ..STEP };
        learner.step(bad, &at).unwrap_err();
        assert!(state(&learner) == before, "{name}");
        let mut gradients = learner.begin(2, &at);
        learner.add(&mut gradients, &halves[0], &at, &|| false);
        assert!(!learner.add(&mut gradients, &halves[1], &at, &|| true), "{name}");
        learner.abandon(gradients);
        assert!(state(&learner) == before, "{name}");
        let mut other = new();
        other.step(halves.clone(), &STEP).unwrap();
        for learner in [&mut learner, &mut other] {
            learner.step(halves.clone(), &at).unwrap();
        }
        assert!(state(&learner) == state(&other), "{name}");
    }
}

/// What a file has goes on, and what it lacks starts anew: the token and the head of patches.
#[test]
fn parts_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |name: &str, learner: &Learner| {
        let path = folder.path().join(name);
        let metadata = Metadata::new(1, 0, &Config::default(), None);
        checkpoint::save(&path, learner, metadata).unwrap();
        Checkpoint::open(&path).unwrap()
    };
    let trained = |new: fn() -> Learner| {
        let mut learner = new();
        learner.step(halves().1, &STEP).unwrap();
        learner
    };
    let learner = trained(balanced);
    let file = saved("all.safetensors", &learner);
    let mut restored = balanced();
    file.restore(&mut restored).unwrap();
    assert!(state(&restored) == state(&learner));
    let mut begun = balanced();
    let loaded = file.initialize(&mut begun, None).unwrap();
    assert_eq!(loaded.found, ["backbone", "head", "ibot_head", "mask_token"]);
    assert_eq!(loaded.new, [""; 0]);
    let index = index_of(&learner, "mask_token");
    let token = |learner: &Learner| learner.student.value(index).to_vec::<f32>();
    assert_eq!(token(&begun), token(&learner));

    // Without masked patches both are passed over, and the other way round they are new.
    let loaded = file.initialize(&mut plain(), None).unwrap();
    assert_eq!((loaded.found.len(), loaded.new.len()), (2, 0), "{loaded:?}");
    let file = saved("plain.safetensors", &trained(plain));
    let loaded = file.initialize(&mut begun, None).unwrap();
    assert_eq!(loaded.new, ["ibot_head", "mask_token"]);
    assert_eq!(token(&begun), token(&learner), "as it was");
}

/// A ViT with KoLeo alone.
fn plain() -> Learner {
    let patches = PatchesConfig { weight: 0.0, ..PATCHES };
    of(&ObjectiveConfig::Dinov2(Dinov2Config { patches, ..dinov2() }), &vit())
}
