//! The sets of the paper's transfer table, and the metric by which each is compared.

use crate::probe::Metric;

/// A set with a metric of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSet {
    /// Name.
    pub name: &'static str,
    /// Other names, as of the folders that published archives unpack to.
    pub aliases: &'static [&'static str],
    /// Its metric.
    pub metric: Metric,
}

const fn set(name: &'static str, aliases: &'static [&'static str], metric: Metric) -> KnownSet {
    KnownSet { name, aliases, metric }
}

/// The 18 sets of EsViT's transfer table, with the metrics of CLIP's evaluation suite (Radford et al.
/// 2021, table 9), which they are taken from.
pub static SETS: [KnownSet; 18] = [
    set("food101", &[], Metric::Top1),
    set("cifar10", &[], Metric::Top1),
    set("cifar100", &[], Metric::Top1),
    set("sun397", &[], Metric::Top1),
    set("stanford_cars", &[], Metric::Top1),
    set("fgvc_aircraft", &["fgvc_aircraft_2013b"], Metric::MeanPerClass),
    set("voc2007", &["voc2007_classification", "pascal_voc2007"], Metric::Map11Point),
    set("dtd", &["describable_textures"], Metric::Top1),
    set("oxford_pets", &["oxford_iiit_pet", "oxford_iiit_pets"], Metric::MeanPerClass),
    set("caltech101", &["101_object_categories"], Metric::MeanPerClass),
    set("flowers102", &["oxford_flowers102", "oxford_flower102"], Metric::MeanPerClass),
    set("mnist", &[], Metric::Top1),
    set("fer2013", &["facial_emotion_recognition2013"], Metric::Top1),
    set("stl10", &[], Metric::Top1),
    set("gtsrb", &[], Metric::Top1),
    set("patch_camelyon", &["pcam"], Metric::Top1),
    set("ucf101", &[], Metric::Top1),
    set("hateful_memes", &[], Metric::RocAuc),
];

/// The set of this name; only letters, of either case, and digits count.
pub(super) fn find(name: &str) -> Option<&'static KnownSet> {
    let plain = |name: &str| -> String {
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
    };
    let name = plain(name);
    SETS.iter().find(|set| {
        let mut names = set.aliases.iter().copied().chain([set.name]);
        names.any(|known| plain(known) == name)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_set_is_found_by_all_its_names() {
        let mut names = HashSet::new();
        for set in &SETS {
            for name in set.aliases.iter().chain([&set.name]) {
                assert_eq!(find(name), Some(set), "{name}");
                assert!(names.insert(name.to_string()), "{name} is there twice");
            }
        }
        assert!(["", "pets", "food", "cifar", "voc2012"].iter().all(|name| find(name).is_none()));
    }

    #[test]
    fn sets_are_compared_by_their_own_metrics() {
        for (name, metric) in [
            ("CIFAR-10", Metric::Top1),
            ("food-101", Metric::Top1),
            ("Oxford-IIIT-Pet", Metric::MeanPerClass),
            ("fgvc-aircraft-2013b", Metric::MeanPerClass),
            ("Caltech 101", Metric::MeanPerClass),
            ("flowers-102", Metric::MeanPerClass),
            ("VOC2007", Metric::Map11Point),
            ("hateful_memes", Metric::RocAuc),
        ] {
            assert_eq!(find(name).map(|set| set.metric), Some(metric), "{name}");
        }
        let by = |metric: Metric| SETS.iter().filter(|set| set.metric == metric).count();
        assert_eq!(Metric::ALL.map(by), [12, 4, 0, 1, 1]);
    }
}
