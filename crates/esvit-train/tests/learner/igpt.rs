//! iGPT: its loss by hand, what it hides, and that it learns.

use esvit_nn::backbone::TokenMask;
use esvit_nn::backbone::igpt::{Variant, palette, set_palette, tokens};
use esvit_nn::{Collective, Solo};
use esvit_testing::tiny_igpt;
use esvit_train::objective::igpt::IgptConfig;
use esvit_train::objective::{Chunking, ObjectiveSettings, Teacher};

use super::*;

const VARIANTS: [Variant; 2] = [Variant::Autoregressive, Variant::Bert];

fn igpt(variant: Variant, mask_rate: f64, kind: OptimizerKind) -> Learner {
    let shape = esvit_nn::backbone::igpt::IgptConfig { variant, ..tiny_igpt() };
    let backbone = BackboneConfig::Igpt(shape);
    let config = IgptConfig { mask_rate, ..IgptConfig::default() };
    let (network, objective) = Network::new(&backbone, 0.0, |scope, width| {
        let (blocks, color_tokens) = (backbone.blocks(), backbone.color_tokens());
        let setup = Setup { width, blocks, color_tokens, images: 4, seed: 3, ..Setup::default() };
        config.build(scope, &setup)
    });
    Learner::new(network, objective, kind, SETTINGS, &Device::Cpu)
}

/// With parameters that are not those of the start.
fn filled(variant: Variant, mask_rate: f64) -> Learner {
    let mut learner = igpt(variant, mask_rate, OptimizerKind::Sgd);
    learner.student = fill(&learner.network.specs().clone(), 100);
    learner
}

/// Views of 4 x 4 and of 2 x 2 tokens.
fn views(images: usize) -> Vec<Tensor> {
    let sizes = [8, 4].into_iter().zip(400..);
    sizes.map(|(size, stream)| hashed_tensor(stream, [images, 3, size, size]) * 1.7).collect()
}

/// The mean over views of the mean negative log-likelihood of all colors, hidden or not.
fn by_hand(learner: &Learner, views: &[Tensor], is_hidden: bool) -> f64 {
    let value = |name: &str| -> Vec<f32> {
        let mut parameters = learner.student.iter();
        parameters.find(|(spec, _)| spec.name == name).unwrap().1.to_vec()
    };
    let (table, colors) = (value("lm_head.weight"), value("palette"));
    let width = table.len() / tiny_igpt().colors;
    let losses = views.iter().map(|view| {
        let expected = tokens(view.clone(), 2, &colors);
        let (rows, device) = (expected.len(), Device::Cpu);
        let mask = TokenMask {
            rows: Tensor::ones([rows], &device),
            token: Tensor::zeros([width], &device),
        };
        let features = learner.network.masked_features(
            &learner.student,
            std::slice::from_ref(view),
            is_hidden.then_some(&mask),
            &ForwardCtx::eval(),
        );
        let features = features.region.to_vec::<f32>();
        let losses = features.chunks_exact(width).zip(&expected).map(|(row, &token)| {
            let logits: Vec<f64> = table
                .chunks_exact(width)
                .map(|color| {
                    color.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                })
                .collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            sum.ln() - logits[token as usize]
        });
        losses.sum::<f64>() / rows as f64
    });
    losses.sum::<f64>() / views.len() as f64
}

/// Where all are hidden, too; and all of it in one pass or by view.
#[test]
fn loss_of_colors() {
    for (variant, mask_rate) in [(Variant::Autoregressive, 0.15), (Variant::Bert, 1.0)] {
        for crop_chunks in [CropChunks::All, CropChunks::Crops(1)] {
            let mut learner = filled(variant, mask_rate);
            learner.settings.crop_chunks = crop_chunks;
            let expected = by_hand(&learner, &views(3), variant == Variant::Bert);
            let result = learner.step([MicroBatch::unlabeled(views(3))], &STEP).unwrap();
            let found = [result.loss, part(&result, "color")];
            assert_close(&format!("{variant:?}"), &found, &[expected; 2], 1e-5);
            assert_eq!((result.parts.len(), result.health), (1, None));
        }
    }
}

/// ln 7 at the start, whatever the images; there is no teacher and no state.
#[test]
fn the_start_is_chance() {
    for variant in VARIANTS {
        let mut learner = igpt(variant, 0.15, OptimizerKind::AdamW);
        assert!(learner.teacher.is_none() && learner.objective.state().is_empty());
        assert!(matches!(learner.objective.teacher(&STEP), Teacher::None));
        assert_eq!(IgptConfig::default().chunking(), Chunking::ByView);
        let chance = learner.objective.chance_loss();
        assert!((chance - 7f64.ln()).abs() < 1e-12);
        let result = learner.step([MicroBatch::unlabeled(views(3))], &STEP).unwrap();
        assert_close("chance", &[result.loss], &[chance], 1e-6);
    }
}

/// Halves of a batch are the batch, with the same hidden colors.
#[test]
fn micro_batches_are_one_batch() {
    for variant in VARIANTS {
        let half = |first: usize| {
            let views = views(4).into_iter().map(|view| view.narrow(0, first, 2));
            MicroBatch::unlabeled(views.collect())
        };
        let (mut whole, mut halves) = (filled(variant, 0.3), filled(variant, 0.3));
        let expected = whole.step([MicroBatch::unlabeled(views(4))], &STEP).unwrap();
        let found = halves.step([half(0), half(2)], &STEP).unwrap();
        assert_close("loss", &[found.loss], &[expected.loss.into()], 1e-5);
        for ((spec, found), (_, expected)) in halves.student.iter().zip(whole.student.iter()) {
            let [found, expected] = [found, expected].map(|value| value.to_vec::<f32>());
            assert_alike(&format!("{variant:?}, {}", spec.name), &found, &expected, 1e-5);
        }
    }
}

/// Which of the first view's tokens are hidden.
fn hidden(learner: &mut Learner, batch: &MicroBatch, place: [u64; 2]) -> Vec<bool> {
    let solo = Solo::shared();
    learner.objective.begin_step(&mut learner.student, &STEP);
    let collective: &dyn Collective = &*solo;
    learner.objective.targets(batch, None, &STEP, collective);
    let seen = learner.objective.student_views(batch, place);
    assert_eq!(seen.len(), batch.views.len());
    let mask = learner.objective.token_mask(&learner.student, 0..1, 0..batch.images()).unwrap();
    assert!(mask.token.to_vec::<f32>().iter().all(|&value| value == 0.0));
    mask.rows.to_vec::<f32>().iter().map(|&row| row == 1.0).collect()
}

#[test]
fn colors_are_hidden_by_chance() {
    let one_view = |images| MicroBatch::unlabeled(views(images)[..1].to_vec());
    let mut learner = filled(Variant::Bert, 0.15);
    let many = hidden(&mut learner, &one_view(200), [0, 0]);
    let share = many.iter().filter(|&&hidden| hidden).count() as f64 / many.len() as f64;
    assert!((share - 0.15).abs() < 0.03, "{share}");
    assert!(many.chunks(16).all(|image| image.contains(&true)), "an image without a loss");
    // By step and place of the image, however the step is cut.
    assert_ne!(hidden(&mut learner, &one_view(200), [1, 0]), many);
    assert_eq!(hidden(&mut learner, &one_view(4), [0, 0]), many[..64]);
    assert_eq!(hidden(&mut learner, &one_view(2), [0, 1]), many[32..64]);
    // A part of the images, and another view.
    let batch = MicroBatch::unlabeled(views(4));
    let all = hidden(&mut learner, &batch, [0, 0]);
    assert_eq!(all, many[..64]);
    let of_second = |learner: &Learner, images| -> Vec<f32> {
        learner.objective.token_mask(&learner.student, 1..2, images).unwrap().rows.to_vec()
    };
    assert_eq!(of_second(&learner, 1..3), of_second(&learner, 0..4)[4..12]);
    hidden(&mut learner, &MicroBatch::unlabeled(views(200)), [0, 0]);
    let second = of_second(&learner, 0..200);
    let mut both = second.chunks(4).zip(many.chunks(16).map(|image| &image[..4]));
    let differ = both.any(|(second, first)| {
        first.contains(&true) && second.iter().zip(first).any(|(a, &b)| (*a == 1.0) != b)
    });
    assert!(differ, "views hide alike");
    // Also views of one size.
    let twins = MicroBatch::unlabeled(vec![views(200)[0].clone(); 2]);
    let first = hidden(&mut learner, &twins, [0, 0]);
    let second: Vec<bool> = of_second(&learner, 0..200).iter().map(|&row| row == 1.0).collect();
    assert!(first == many && second.len() == first.len() && second != first);
    // One at least.
    let mut learner = filled(Variant::Bert, 1e-9);
    let few = hidden(&mut learner, &one_view(50), [0, 0]);
    assert!(few.chunks(16).all(|image| image.iter().filter(|&&hidden| hidden).count() == 1));
    let mut places: Vec<usize> =
        few.chunks(16).map(|image| image.iter().position(|&hidden| hidden).unwrap()).collect();
    places.sort_unstable();
    places.dedup();
    assert!(places.len() > 8, "{places:?}");
    // Where the next color is predicted, none is hidden.
    let mut learner = filled(Variant::Autoregressive, 0.15);
    learner.objective.begin_step(&mut learner.student, &STEP);
    learner.objective.targets(&one_view(2), None, &STEP, &*Solo::shared());
    assert!(learner.objective.token_mask(&learner.student, 0..1, 0..2).is_none());
}

/// Images of one color each: after the first, or with some hidden, all are known. The palette stays.
#[test]
fn it_learns_what_images_are_made_of() {
    for variant in VARIANTS {
        let mut learner = igpt(variant, 0.3, OptimizerKind::AdamW);
        let colors: Vec<f32> =
            (0..21).map(|value| (value % 5) as f32 - (value % 4) as f32).collect();
        set_palette(&mut learner.student, &colors);
        let images = (0..8).flat_map(|image| {
            let color: [f32; 3] = colors[3 * (image % 4)..][..3].try_into().unwrap();
            color.map(|value| vec![value; 64]).concat()
        });
        let images = Tensor::new(images.collect(), [8, 3, 8, 8], &Device::Cpu);
        let mut last = None;
        for step in 0..150 {
            let at = StepInfo { step, lr: 0.01, weight_decay: 0.0, health: true, ..STEP };
            last = Some(learner.step([MicroBatch::unlabeled(vec![images.clone()])], &at).unwrap());
        }
        let last = last.unwrap();
        let health = last.health.unwrap();
        let entropy = health.signal("color_entropy").unwrap();
        assert!((entropy - 4f64.ln()).abs() < 1e-9, "{entropy}");
        assert_eq!(health.signal("colors_used"), Some(4.0));
        assert!(f64::from(last.loss) < 0.5 * entropy, "{variant:?}: {}", last.loss);
        assert!(health.signal("color_accuracy").unwrap() > 60.0, "{}", health.summary);
        assert_eq!(palette(&learner.student), Some(colors));
    }
}
