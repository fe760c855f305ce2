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
    "backbone-swin-non-square",
    "backbone-swin-timm",
    "backbone-swin-w14",
    "backbone-swin-w7",
    "correspondence-12x12",
    "correspondence-7x7",
    "knn-few-classes",
    "knn-many-classes",
    "knn-small-train",
    "knn-ten-classes",
    "objective-region-no-locals",
    "objective-region-two-sizes",
    "objective-region-weights",
    "objective-view",
    "objective-view-mixup",
    "objective-view-region",
    "pretrain-adamw-region",
    "pretrain-adamw-view-frozen",
    "pretrain-lars-region",
    "pretrain-sgd-batchnorm",
    "pretrain-sgd-region",
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
