//! DINOv2's terms, from a run to an export.

use crate::place::{Place, tensors};

/// The recipe for the built-in images with a network so small that a step takes milliseconds.
const TINY: &str = "pretrain --recipe dinov2_materials --out run seed=1 train.epochs=1 train.batch_size=4 \
    train.precision=f32 data.repeat=1 model.depth=2 model.embed_dim=16 model.num_heads=2 model.layer_scale=true \
    objective.head.out_dim=32 objective.head.hidden_dim=16 objective.head.bottleneck_dim=8 views.local_counts=[1] \
    optim.warmup=1 knn.every=0";

#[test]
fn a_run_with_masked_patches() {
    let place = Place::new();
    place.well(TINY).says(&[
        "DINOv2, L_V + masked patches + KoLeo to 32 prototypes, balanced by Sinkhorn, ViT `vit_micro`",
        "a loss of 6.93 is that of chance",
    ]);
    let run = place.folder("run");
    let lines = run.lines("metrics.jsonl");
    let steps: Vec<_> = lines.iter().filter(|line| line["train_loss"].is_number()).collect();
    assert!(!steps.is_empty());
    for name in ["view_loss", "patch_loss", "koleo_loss", "masked_patches", "patch_entropy"] {
        assert!(steps.iter().all(|line| line[name].is_number()), "{name}");
    }
    place.well("report run");
    let info = place.well("info run").stdout;
    assert!(info.contains("DINOv2, L_V + masked patches"), "{info}");

    // The token goes to the layout that has one, of the teacher as all else.
    let newest = tensors(&run.newest());
    assert_ne!(newest["teacher.mask_token"], newest["student.mask_token"]);
    place.well("export -c run --format transformers --out out");
    let exported = tensors(&place.path("out/model.safetensors"));
    assert_eq!(exported["embeddings.mask_token"], newest["teacher.mask_token"]);
    place.well("export -c run --format timm --out timm.safetensors");
    let exported = tensors(&place.path("timm.safetensors"));
    assert!(exported.keys().all(|name| !name.contains("mask_token") && !name.contains("head")));
    place.well("resume run --epochs 2");
}

#[test]
fn terms_that_do_not_go_with_a_network() {
    let place = Place::new();
    place.run("pretrain --objective dinov2 --arch resnet_micro --dry-run").expect(2).says(&[
        "a ResNet backbone has no patches that can be masked (`objective.patches`)",
        "hint: choose a ViT or a Swin",
    ]);
    // The recipe of the objective, on a network that has stages.
    let config = place.settings("pretrain --objective dinov2 --arch swin_tiny");
    assert_eq!((config.train.steps, config.train.batch_size), (Some(125_000), 2048));
    place.run("pretrain objective.patches.weight=-1 --dry-run").expect(2);
}
