//! The cases inside of the program.

/// A case of `goldens/`.
pub(super) struct BuiltIn {
    /// Name of its folder.
    pub(super) name: &'static str,
    /// `case.json`.
    pub(super) settings: &'static str,
    /// `tensors.safetensors`.
    pub(super) tensors: &'static [u8],
}

macro_rules! cases {
    ($($name:literal,)+) => {
        &[$(BuiltIn {
            name: $name,
            settings: include_str!(concat!("../../goldens/", $name, "/case.json")),
            tensors: include_bytes!(concat!("../../goldens/", $name, "/tensors.safetensors")),
        }),+]
    };
}

/// All of them, by name.
pub(super) const CASES: &[BuiltIn] = cases![
    "augment",
    "backbone-cvt",
    "backbone-igpt",
    "backbone-pvt",
    "backbone-resnet",
    "backbone-swin-non-square",
    "backbone-swin-timm",
    "backbone-swin-w14",
    "backbone-swin-w7",
    "backbone-vil",
    "backbone-vit",
    "backbone-vit-registers",
    "correspondence-12x12",
    "correspondence-7x7",
    "head-byol",
    "head-densecl",
    "head-moby",
    "head-moco2",
    "head-mocov3",
    "head-simclr",
    "head-swav",
    "knn-few-classes",
    "knn-many-classes",
    "knn-small-train",
    "knn-ten-classes",
    "objective-byol",
    "objective-densecl",
    "objective-dinov2-sinkhorn",
    "objective-dinov2-softmax",
    "objective-distill",
    "objective-igpt-autoregressive",
    "objective-igpt-bert",
    "objective-masked-patch",
    "objective-moby",
    "objective-moco2",
    "objective-mocov3",
    "objective-region-no-locals",
    "objective-region-two-sizes",
    "objective-region-weights",
    "objective-simclr",
    "objective-supervised-cutmix",
    "objective-supervised-mixup",
    "objective-supervised-smoothing",
    "objective-swav",
    "objective-view",
    "objective-view-mixup",
    "objective-view-region",
    "pretrain-adamw-region",
    "pretrain-adamw-view-frozen",
    "pretrain-lars-region",
    "pretrain-sgd-batchnorm",
    "pretrain-sgd-region",
    "quantize-igpt",
    "schedule",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_built_in() {
        let folders = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/goldens")).unwrap();
        let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let names = folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(CASES.iter().map(|case| case.name).collect::<Vec<_>>(), names);
    }
}
