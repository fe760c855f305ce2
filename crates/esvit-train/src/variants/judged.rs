//! The same checks for runs of several variants.

use crate::Config;
use crate::config_text::{Layer, value_of};

/// Lets runs of `other` be judged as those of `first` are, as far as the settings that it was `given` do not say
/// otherwise: by as many neighbors, at the same temperature, and on images prepared in the same way. A network
/// that sees images of another size keeps its own.
pub fn share_checks(first: &Config, other: &mut Config, given: &[&Layer]) {
    let is_given = |key: &str| given.iter().any(|layer| value_of(&layer.table, key).is_some());
    if !is_given("knn.k") {
        other.knn.k = first.knn.k;
    }
    if !is_given("knn.temperature") {
        other.knn.temperature = first.knn.temperature;
    }
    let [shared, own] = [first, &*other].map(|config| config.preprocess().transform);
    let is_same_size =
        first.views.global_size == other.views.global_size || shared.crop == own.crop;
    let side = shared.crop as usize;
    if shared == own
        || !is_same_size
        || other.model.backbone.check_image("knn.crop", [side; 2]).is_err()
    {
        return;
    }
    if !is_given("knn.crop") {
        other.knn.crop = shared.crop;
    }
    if !is_given("knn.resize") && other.preprocess().transform.crop == shared.crop {
        other.knn.resize = shared.resize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_text::parse_override;

    /// Views and the crop of checks, the side before it, and the neighbors.
    fn config([size, crop, resize, k]: [u32; 4]) -> Config {
        let mut config = Config::default();
        config.views.global_size = size;
        (config.knn.crop, config.knn.resize, config.knn.k) = (crop, resize, k as usize);
        config
    }

    /// What is left of `other` beside `first`: crop, side before it, neighbors.
    fn shared(first: [u32; 4], other: [u32; 4], given: &[&str]) -> [u32; 3] {
        let given: Vec<Layer> = given.iter().map(|text| parse_override(text).unwrap()).collect();
        let mut other = config(other);
        share_checks(&config(first), &mut other, &given.iter().collect::<Vec<_>>());
        [other.knn.crop, other.knn.resize, other.knn.k as u32]
    }

    #[test]
    fn all_are_judged_as_the_first_is() {
        let first = [224, 224, 224, 10];
        // The second would see 224 pixels of images of 256.
        assert_eq!(shared(first, [224, 0, 0, 20], &[]), [224, 224, 10]);
        assert_eq!(shared([224, 0, 0, 20], first, &[]), [224, 256, 20]);
        // Where nothing differs, nothing is written down.
        assert_eq!(shared([224, 0, 0, 20], [224, 0, 0, 20], &[]), [0, 0, 20]);
        assert_eq!(shared([224, 128, 128, 20], [224, 0, 0, 20], &[]), [128, 128, 20]);
    }

    #[test]
    fn what_is_given_stays() {
        let (first, other) = ([224, 224, 224, 10], [224, 0, 300, 5]);
        assert_eq!(shared(first, other, &["knn.k=5"]), [224, 224, 5]);
        assert_eq!(shared(first, other, &["knn.resize=300"]), [224, 300, 10]);
        // A side of the first's crop says nothing of another crop.
        assert_eq!(shared(first, [224, 96, 100, 5], &["knn.crop=96"]), [96, 100, 10]);
    }

    #[test]
    fn networks_for_other_sizes_keep_theirs() {
        let first = [224, 224, 224, 10];
        assert_eq!(shared(first, [96, 0, 0, 20], &[]), [0, 0, 10]);
        assert_eq!(shared(first, [96, 224, 256, 20], &[]), [224, 224, 10]);
        // Less than a patch of 4 pixels.
        assert_eq!(shared([224, 3, 3, 10], [224, 0, 0, 10], &[]), [0, 0, 10]);
    }
}
