//! Settings of augmentation.

use esvit_settings::{Overlay, SettingError, check, settings, whole, words};
use serde::{Deserialize, Serialize};

use super::color::ColorJitter;
use super::erase::Erase;
use super::randaugment::RandAugment;
use crate::Interpolation;

whole!(Interpolation, Policy);

words! {
    Interpolation: "bilinear", "bicubic";
    Policy: "dino", "deit", "moco_v2", "moco_v3", "byol", "simclr", "swav", "basic";
}

/// A published set of augmentations, which gives the defaults of [`ViewsConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// DINO's multi-crop, which all published EsViT networks were trained with.
    #[default]
    #[serde(alias = "dino_aug")]
    Dino,
    /// DeiT's: RandAugment and random erasing.
    #[serde(alias = "deit_aug")]
    Deit,
    /// MoCo v2's: color jitter, grayscale and blur, the same for all views.
    #[serde(alias = "mocov2", alias = "mocov2_aug")]
    MocoV2,
    /// MoCo v3's and MoBY's: DINO's colors, blur and solarization on two large crops.
    #[serde(alias = "mocov3", alias = "moby")]
    MocoV3,
    /// BYOL's: the same, with brightness that is added.
    Byol,
    /// SimCLR's (v2's code): twice the color jitter, the same for both views, and no normalization.
    Simclr,
    /// SwAV's multi-crop: SimCLR's colors, normalized by its code's numbers.
    Swav,
    /// Random crop and horizontal flip only.
    #[serde(alias = "basic_aug")]
    Basic,
}

settings! {
    /// How an image is augmented into views: global ones, then local ones.
    ///
    /// Settings that a file lacks have the policy's values. All are written.
    ///
    /// ```
    /// # use esvit_data::ViewsConfig;
    /// let config: ViewsConfig =
    ///     serde_json::from_str(r#"{"policy": "moco_v2", "jitter": {"p": 0.5}}"#)?;
    /// assert_eq!(config.jitter.p, 0.5);
    /// assert_eq!(config.jitter.saturation, 0.4);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[derive(Deserialize)]
    #[serde(from = "PartialViews")]
    pub struct ViewsConfig / PartialViews {
        /// Gives the defaults of the other settings.
        pub policy: Policy = Policy::Dino,
        /// Side of the global views, in pixels.
        pub global_size: u32 = 224,
        /// Number of global views: 1 or 2.
        pub global_count: u32 = 2,
        /// Range of a global crop's area, as a share of the image's.
        pub global_scale: [f64; 2] = [0.4, 1.0],
        /// Sides of the local views, in pixels.
        pub local_sizes: Vec<u32> = vec![96],
        /// Number of local views of each size; may be 0.
        pub local_counts: Vec<u32> = vec![8],
        /// Range of a local crop's area, as a share of the image's.
        pub local_scale: [f64; 2] = [0.05, 0.4],
        /// Range of a crop's width : height, before it is resized to a square.
        pub ratio: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0],
        /// Interpolation of crops.
        pub interpolation: Interpolation = Interpolation::Bicubic,
        /// Probability of a horizontal flip.
        pub flip: f64 = 0.5,
        /// Probability of a vertical flip, for images without an up and a down.
        pub flip_vertical: f64 = 0.0,
        /// Probability of a turn by 90, 180 or 270 degrees, each as likely as the others.
        pub rotate90: f64 = 0.0,
        /// Color jitter.
        pub jitter: ColorJitter = ColorJitter::default(),
        /// Probability of grayscale.
        pub grayscale: f64 = 0.2,
        /// Gaussian blur.
        pub blur: Blur = Blur::default(),
        /// Solarization of the second global view.
        pub solarize: Solarize = Solarize::default(),
        /// RandAugment.
        pub randaugment: RandAugment = RandAugment::default(),
        /// Random erasing.
        pub erase: Erase = Erase::default(),
        /// Mean of red, green and blue in 0..=1, for normalization.
        pub mean: [f64; 3] = [0.485, 0.456, 0.406],
        /// Standard deviation of red, green and blue.
        pub std: [f64; 3] = [0.229, 0.224, 0.225],
    }
}

settings! {
    /// Gaussian blur: probabilities and range.
    pub struct Blur / PartialBlur {
        /// Probability for the first global view.
        pub p_global1: f64 = 1.0,
        /// Probability for the second global view.
        pub p_global2: f64 = 0.1,
        /// Probability for a local view.
        pub p_local: f64 = 0.5,
        /// Range of the standard deviation, in pixels of the view.
        pub radius: [f64; 2] = [0.1, 2.0],
    }
}

settings! {
    /// Solarization of the second global view.
    pub struct Solarize / PartialSolarize {
        /// Probability; 0 turns it off.
        pub p: f64 = 0.2,
        /// Values of at least this are inverted.
        pub threshold: u32 = 128,
    }
}

impl From<PartialViews> for ViewsConfig {
    fn from(given: PartialViews) -> Self {
        let mut config = Self::for_policy(given.policy.unwrap_or_default());
        config.overlay(given);
        config
    }
}

impl ViewsConfig {
    /// The settings of a policy.
    pub fn for_policy(policy: Policy) -> Self {
        let plain = Self {
            policy,
            jitter: ColorJitter { p: 0.0, ..ColorJitter::default() },
            grayscale: 0.0,
            blur: Blur { p_global1: 0.0, p_global2: 0.0, p_local: 0.0, ..Blur::default() },
            solarize: Solarize { p: 0.0, ..Solarize::default() },
            ..Self::default()
        };
        // What SimCLR and SwAV do with all views alike.
        let jitter = ColorJitter {
            brightness: 0.8,
            contrast: 0.8,
            saturation: 0.8,
            hue: 0.2,
            ..ColorJitter::default()
        };
        let blur = Blur { p_global1: 0.5, p_global2: 0.5, p_local: 0.5, ..Blur::default() };
        match policy {
            Policy::Dino => Self::default(),
            // One transform for all crops, so local crops have the same range of areas.
            Policy::Deit => Self {
                global_scale: [0.08, 1.0],
                local_scale: [0.08, 1.0],
                randaugment: RandAugment { ops: 2, ..RandAugment::default() },
                erase: Erase { p: 0.25, ..Erase::default() },
                ..plain
            },
            Policy::MocoV2 => Self {
                global_scale: [0.2, 1.0],
                jitter: ColorJitter { saturation: 0.4, ..ColorJitter::default() },
                grayscale: 0.2,
                blur,
                ..plain
            },
            Policy::MocoV3 => Self {
                policy,
                global_scale: [0.08, 1.0],
                local_sizes: Vec::new(),
                local_counts: Vec::new(),
                interpolation: Interpolation::Bilinear,
                ..Self::default()
            },
            Policy::Byol => Self {
                policy,
                interpolation: Interpolation::Bicubic,
                jitter: ColorJitter { additive_brightness: true, ..ColorJitter::default() },
                ..Self::for_policy(Policy::MocoV3)
            },
            Policy::Simclr => Self {
                global_scale: [0.08, 1.0],
                local_sizes: Vec::new(),
                local_counts: Vec::new(),
                jitter,
                grayscale: 0.2,
                blur,
                mean: [0.0; 3],
                std: [1.0; 3],
                ..plain
            },
            Policy::Swav => Self {
                global_scale: [0.14, 1.0],
                local_counts: vec![6],
                local_scale: [0.05, 0.14],
                interpolation: Interpolation::Bilinear,
                jitter,
                grayscale: 0.2,
                blur,
                // 0.229 everywhere else.
                std: [0.228, 0.224, 0.225],
                ..plain
            },
            Policy::Basic => plain,
        }
    }

    /// Side of every view in order: the global ones, then the local ones grouped by size.
    pub fn sizes(&self) -> Vec<u32> {
        let locals = self.local_sizes.iter().zip(&self.local_counts);
        std::iter::repeat_n(self.global_size, self.global_count as usize)
            .chain(locals.flat_map(|(&size, &count)| std::iter::repeat_n(size, count as usize)))
            .collect()
    }

    /// Whether an image has one view, the same in every epoch: nothing of it is drawn.
    pub fn is_deterministic(&self) -> bool {
        let is_sure = |p: f64| p == 0.0 || p == 1.0;
        let random = &self.randaugment;
        self.sizes().len() == 1
            && self.global_scale == [1.0; 2]
            && [self.flip, self.flip_vertical, self.grayscale].into_iter().all(is_sure)
            && self.rotate90 == 0.0
            && self.jitter.p == 0.0
            && self.blur.p_global1 == 0.0
            && (random.ops == 0 || random.p == 0.0)
            && self.erase.p == 0.0
    }

    /// Checks all settings; the error names the first invalid one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let check = |good: bool, key: &str, value: &dyn std::fmt::Debug, need: &str| {
            check(good, key, format_args!("{value:?}"), need)
        };
        let probability = |field, p: f64| {
            check((0.0..=1.0).contains(&p), field, &p, "a probability is between 0 and 1")
        };
        // The upper bound keeps a typo from taking all memory.
        let side = |size: u32| (1..=4096).contains(&size);
        let share = |[low, high]: [f64; 2]| 1e-4 <= low && low <= high && high <= 1.0;
        let aspect = |[low, high]: [f64; 2]| 0.01 <= low && low <= high && high <= 100.0;
        const SIDE: &str = "a view's side is between 1 and 4096 pixels";
        const SHARE: &str = "give `[low, high]` with 0.0001 <= low <= high <= 1";
        const ASPECT: &str = "give `[low, high]` with 0.01 <= low <= high <= 100";

        check(side(self.global_size), "global_size", &self.global_size, SIDE)?;
        let (count, need) = (self.global_count, "there are 1 or 2 global views");
        check((1..=2).contains(&count), "global_count", &count, need)?;
        check(share(self.global_scale), "global_scale", &self.global_scale, SHARE)?;
        check(self.local_sizes.iter().all(|&s| side(s)), "local_sizes", &self.local_sizes, SIDE)?;
        check(
            self.local_sizes.len() == self.local_counts.len(),
            "local_counts",
            &self.local_counts,
            "give one count for every entry of `views.local_sizes`",
        )?;
        check(
            self.local_counts.iter().map(|&count| u64::from(count)).sum::<u64>() <= 1024,
            "local_counts",
            &self.local_counts,
            "at most 1024 local views can be made",
        )?;
        check(share(self.local_scale), "local_scale", &self.local_scale, SHARE)?;
        check(aspect(self.ratio), "ratio", &self.ratio, ASPECT)?;
        probability("flip", self.flip)?;
        probability("flip_vertical", self.flip_vertical)?;
        probability("rotate90", self.rotate90)?;
        probability("jitter.p", self.jitter.p)?;
        let strengths = [
            ("jitter.brightness", self.jitter.brightness),
            ("jitter.contrast", self.jitter.contrast),
            ("jitter.saturation", self.jitter.saturation),
        ];
        for (field, x) in strengths {
            check((0.0..=100.0).contains(&x), field, &x, "a strength is from 0 to 100")?;
        }
        let hue = self.jitter.hue;
        check((0.0..=0.5).contains(&hue), "jitter.hue", &hue, "give 0 to 0.5 (half a turn)")?;
        probability("grayscale", self.grayscale)?;
        probability("blur.p_global1", self.blur.p_global1)?;
        probability("blur.p_global2", self.blur.p_global2)?;
        probability("blur.p_local", self.blur.p_local)?;
        let [low, high] = self.blur.radius;
        check(
            0.0 <= low && low <= high && high <= 1000.0,
            "blur.radius",
            &self.blur.radius,
            "give `[low, high]` with 0 <= low <= high <= 1000",
        )?;
        probability("solarize.p", self.solarize.p)?;
        let threshold = self.solarize.threshold;
        check(threshold <= 256, "solarize.threshold", &threshold, "give 0 to 256 (256: never)")?;
        let random = &self.randaugment;
        check(random.ops <= 15, "randaugment.ops", &random.ops, "give 0 (off) to 15")?;
        probability("randaugment.p", random.p)?;
        let levels = [
            ("randaugment.magnitude", random.magnitude),
            ("randaugment.magnitude_std", random.magnitude_std),
        ];
        for (field, x) in levels {
            check((0.0..=10.0).contains(&x), field, &x, "give 0 to 10")?;
        }
        probability("erase.p", self.erase.p)?;
        check(share(self.erase.area), "erase.area", &self.erase.area, SHARE)?;
        check(aspect(self.erase.aspect), "erase.aspect", &self.erase.aspect, ASPECT)?;
        let is_mean = self.mean.iter().all(|mean| mean.abs() <= 1e6);
        check(is_mean, "mean", &self.mean, "give three numbers up to 1e6")?;
        let is_std = self.std.iter().all(|std| (1e-6..=1e6).contains(std));
        check(is_std, "std", &self.std, "give three numbers from 1e-6 to 1e6")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// EsViT's settings (DINO's, with crops of its own), every other policy's as the difference.
    #[test]
    fn policies_have_the_published_values() {
        let dino = json!({
            "policy": "dino",
            "global_count": 2,
            "global_size": 224,
            "global_scale": [0.4, 1.0],
            "local_sizes": [96],
            "local_counts": [8],
            "local_scale": [0.05, 0.4],
            "ratio": [0.75, 4.0 / 3.0],
            "interpolation": "bicubic",
            "flip": 0.5,
            "flip_vertical": 0.0,
            "rotate90": 0.0,
            "jitter": {
                "p": 0.8, "brightness": 0.4, "additive_brightness": false, "contrast": 0.4,
                "saturation": 0.2, "hue": 0.1,
            },
            "grayscale": 0.2,
            "blur": {"p_global1": 1.0, "p_global2": 0.1, "p_local": 0.5, "radius": [0.1, 2.0]},
            "solarize": {"p": 0.2, "threshold": 128},
            "randaugment": {"ops": 0, "p": 0.5, "magnitude": 9.0, "magnitude_std": 0.5},
            "erase": {"p": 0.0, "area": [0.02, 1.0 / 3.0], "aspect": [0.3, 1.0 / 0.3]},
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        });
        let off = json!({
            "jitter.p": 0.0, "grayscale": 0.0, "solarize.p": 0.0,
            "blur.p_global1": 0.0, "blur.p_global2": 0.0, "blur.p_local": 0.0,
        });
        let deit = json!({
            "policy": "deit", "global_scale": [0.08, 1.0], "local_scale": [0.08, 1.0],
            "randaugment.ops": 2, "erase.p": 0.25,
        });
        let moco = json!({
            "policy": "moco_v2", "global_scale": [0.2, 1.0], "jitter.p": 0.8,
            "jitter.saturation": 0.4, "grayscale": 0.2,
            "blur.p_global1": 0.5, "blur.p_global2": 0.5, "blur.p_local": 0.5,
        });
        let large = json!({
            "policy": "moco_v3", "global_scale": [0.08, 1.0], "local_sizes": [],
            "local_counts": [], "interpolation": "bilinear",
        });
        let byol = json!({
            "policy": "byol", "interpolation": "bicubic", "jitter.additive_brightness": true,
        });
        let strong = json!({
            "jitter.brightness": 0.8, "jitter.contrast": 0.8, "jitter.saturation": 0.8,
            "jitter.hue": 0.2, "solarize.p": 0.0,
            "blur.p_global1": 0.5, "blur.p_global2": 0.5, "blur.p_local": 0.5,
        });
        let simclr = json!({
            "policy": "simclr", "interpolation": "bicubic",
            "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
        });
        let swav = json!({
            "policy": "swav", "global_scale": [0.14, 1.0], "local_counts": [6],
            "local_scale": [0.05, 0.14], "interpolation": "bilinear",
            "std": [0.228, 0.224, 0.225],
        });
        for (policy, differences) in [
            (Policy::Dino, vec![]),
            (Policy::Deit, vec![&off, &deit]),
            (Policy::MocoV2, vec![&off, &moco]),
            (Policy::MocoV3, vec![&large]),
            (Policy::Byol, vec![&large, &byol]),
            (Policy::Simclr, vec![&large, &strong, &simclr]),
            (Policy::Swav, vec![&strong, &swav]),
            (Policy::Basic, vec![&off, &json!({"policy": "basic"})]),
        ] {
            let mut expected = dino.clone();
            for (key, value) in differences.into_iter().flat_map(|keys| keys.as_object().unwrap()) {
                *expected.pointer_mut(&format!("/{}", key.replace('.', "/"))).unwrap() =
                    value.clone();
            }
            let config: Value = serde_json::to_value(ViewsConfig::for_policy(policy)).unwrap();
            assert_eq!(config, expected);
        }
        assert_eq!(ViewsConfig::default(), ViewsConfig::for_policy(Policy::Dino));
    }

    fn read(json: &str) -> ViewsConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_given_is_the_policys() {
        assert_eq!(read("{}"), ViewsConfig::default());
        let config = read(r#"{"policy": "deit_aug", "erase": {"area": [0.1, 0.2]}, "flip": 0}"#);
        let expected = ViewsConfig {
            erase: Erase { p: 0.25, area: [0.1, 0.2], ..Erase::default() },
            flip: 0.0,
            ..ViewsConfig::for_policy(Policy::Deit)
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_policy_is_valid_has_its_names_and_survives_a_round_trip() {
        for (policy, names) in [
            (Policy::Dino, ["dino", "dino_aug"].as_slice()),
            (Policy::Deit, &["deit", "deit_aug"]),
            (Policy::MocoV2, &["moco_v2", "mocov2", "mocov2_aug"]),
            (Policy::MocoV3, &["moco_v3", "mocov3", "moby"]),
            (Policy::Byol, &["byol"]),
            (Policy::Simclr, &["simclr"]),
            (Policy::Swav, &["swav"]),
            (Policy::Basic, &["basic", "basic_aug"]),
        ] {
            let config = ViewsConfig::for_policy(policy);
            config.validate().unwrap();
            for name in names {
                assert_eq!(read(&format!(r#"{{"policy": "{name}"}}"#)), config);
            }
            assert_eq!(read(&serde_json::to_string(&config).unwrap()), config);
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        for json in [r#"{"size": 3}"#, r#"{"blur": {"sigma": 1}}"#, r#"{"policy": "cutout"}"#] {
            assert!(serde_json::from_str::<ViewsConfig>(json).is_err(), "{json}");
        }
    }

    /// What is said to be the same in every epoch is, and each thing that is drawn makes it differ.
    #[test]
    fn views_without_anything_random() {
        let one =
            r#""policy": "basic", "global_count": 1, "local_counts": [0], "global_scale": [1, 1]"#;
        let still = read(&format!("{{{one}, \"flip\": 0}}"));
        assert!(still.is_deterministic());
        let image = crate::augment::test_images::noise(50, 41, 1);
        let view = |config: &ViewsConfig, epoch: u64| {
            config.first_view(&image, 1, epoch, 3).unwrap().image.pixels().to_vec()
        };
        assert!((1..30).all(|epoch| view(&still, epoch) == view(&still, 0)));
        for more in [r#""flip": 1"#, r#""flip": 0, "grayscale": 1, "flip_vertical": 1"#] {
            let sure = read(&format!("{{{one}, {more}}}"));
            assert!(sure.is_deterministic(), "{more}");
            assert!((1..30).all(|epoch| view(&sure, epoch) == view(&sure, 0)), "{more}");
        }
        for more in [
            r#""flip": 0.5"#,
            r#""flip": 0, "flip_vertical": 0.5"#,
            r#""flip": 0, "rotate90": 1"#,
            r#""flip": 0, "jitter": {"p": 1}"#,
            r#""flip": 0, "grayscale": 0.5"#,
            r#""flip": 0, "blur": {"p_global1": 1}"#,
            r#""flip": 0, "randaugment": {"ops": 1}"#,
            r#""flip": 0, "erase": {"p": 0.5}"#,
        ] {
            let drawn = read(&format!("{{{one}, {more}}}"));
            assert!(!drawn.is_deterministic(), "{more}");
        }
        let cropped = ViewsConfig { global_scale: [0.9, 1.0], ..still.clone() };
        let two = ViewsConfig { global_count: 2, ..still.clone() };
        assert!(!cropped.is_deterministic() && !two.is_deterministic());
    }

    #[test]
    fn sizes_are_grouped() {
        let config = read(r#"{"local_sizes": [96, 48], "local_counts": [1, 2]}"#);
        assert_eq!(config.sizes(), [224, 224, 96, 48, 48]);
        assert_eq!(read(r#"{"local_counts": [0]}"#).sizes(), [224, 224]);
        let none = read(r#"{"local_sizes": [], "local_counts": []}"#);
        none.validate().unwrap();
        assert_eq!(none.sizes(), [224, 224]);
        let one = read(r#"{"global_count": 1, "local_counts": [2]}"#);
        one.validate().unwrap();
        assert_eq!(one.sizes(), [224, 96, 96]);
        for count in [0, 3] {
            let error = ViewsConfig { global_count: count, ..one.clone() }.validate().unwrap_err();
            assert_eq!(error.key, "global_count");
        }
    }

    /// The ends of every range are allowed.
    #[test]
    fn extreme_settings_are_accepted() {
        for json in [
            r#"{"global_size": 1, "local_sizes": [4096], "local_counts": [1024]}"#,
            r#"{"global_scale": [1, 1], "local_scale": [1e-4, 1e-4], "ratio": [0.01, 100]}"#,
            r#"{"flip": 0, "grayscale": 1, "jitter": {"p": 1, "brightness": 100, "hue": 0.5}}"#,
            r#"{"blur": {"radius": [0, 1000]}, "solarize": {"threshold": 256}}"#,
            r#"{"randaugment": {"ops": 15, "magnitude": 10, "magnitude_std": 0}}"#,
            r#"{"erase": {"p": 1, "area": [1, 1], "aspect": [0.01, 100]}}"#,
        ] {
            read(json).validate().expect(json);
        }
    }

    #[test]
    fn senseless_settings_are_named() {
        for (json, field) in [
            (r#"{"global_size": 0}"#, "global_size"),
            (r#"{"global_size": 4097}"#, "global_size"),
            (r#"{"global_scale": [0, 1]}"#, "global_scale"),
            (r#"{"global_scale": [0.5, 1.01]}"#, "global_scale"),
            (r#"{"global_scale": [0.5, 0.4]}"#, "global_scale"),
            (r#"{"local_sizes": [96, 0], "local_counts": [1, 1]}"#, "local_sizes"),
            (r#"{"local_sizes": [96, 64]}"#, "local_counts"),
            (r#"{"local_counts": [4294967295]}"#, "local_counts"),
            (r#"{"local_sizes": [8, 8], "local_counts": [1, 1024]}"#, "local_counts"),
            (r#"{"local_scale": [9e-5, 1]}"#, "local_scale"),
            (r#"{"ratio": [2, 1]}"#, "ratio"),
            (r#"{"ratio": [9e-3, 1]}"#, "ratio"),
            (r#"{"ratio": [1, 101]}"#, "ratio"),
            (r#"{"flip": 1.5}"#, "flip"),
            (r#"{"flip_vertical": -0.5}"#, "flip_vertical"),
            (r#"{"rotate90": 1.5}"#, "rotate90"),
            (r#"{"jitter": {"p": -1}}"#, "jitter.p"),
            (r#"{"jitter": {"brightness": -1}}"#, "jitter.brightness"),
            (r#"{"jitter": {"brightness": 101}}"#, "jitter.brightness"),
            (r#"{"jitter": {"contrast": -1}}"#, "jitter.contrast"),
            (r#"{"jitter": {"saturation": -1}}"#, "jitter.saturation"),
            (r#"{"jitter": {"hue": 0.6}}"#, "jitter.hue"),
            (r#"{"grayscale": 1.1}"#, "grayscale"),
            (r#"{"blur": {"p_global1": 2}}"#, "blur.p_global1"),
            (r#"{"blur": {"p_global2": 2}}"#, "blur.p_global2"),
            (r#"{"blur": {"p_local": 2}}"#, "blur.p_local"),
            (r#"{"blur": {"radius": [2, 1]}}"#, "blur.radius"),
            (r#"{"blur": {"radius": [-1, 1]}}"#, "blur.radius"),
            (r#"{"blur": {"radius": [1, 1001]}}"#, "blur.radius"),
            (r#"{"solarize": {"p": 2}}"#, "solarize.p"),
            (r#"{"solarize": {"threshold": 257}}"#, "solarize.threshold"),
            (r#"{"solarize": {"threshold": 300}}"#, "solarize.threshold"),
            (r#"{"randaugment": {"ops": 16}}"#, "randaugment.ops"),
            (r#"{"randaugment": {"p": 2}}"#, "randaugment.p"),
            (r#"{"randaugment": {"magnitude": 11}}"#, "randaugment.magnitude"),
            (r#"{"randaugment": {"magnitude_std": -1}}"#, "randaugment.magnitude_std"),
            (r#"{"erase": {"p": 2}}"#, "erase.p"),
            (r#"{"erase": {"area": [0.5, 0.1]}}"#, "erase.area"),
            (r#"{"erase": {"aspect": [0, 1]}}"#, "erase.aspect"),
            (r#"{"mean": [0, 0, 1.1e6]}"#, "mean"),
            (r#"{"std": [1, 1, 9e-7]}"#, "std"),
            (r#"{"std": [1, 1, 1.1e6]}"#, "std"),
        ] {
            let error = read(json).validate().expect_err(json);
            assert_eq!(error.key, field);
        }
        let error = read(r#"{"flip": 1.5}"#).validate().unwrap_err();
        assert_eq!(error.to_string(), "`flip` is 1.5: a probability is between 0 and 1");
    }
}
