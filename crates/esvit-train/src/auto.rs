//! The recipes `auto` and `adapt`: settings that suit the images, this machine and the time there is.
//!
//! The largest network is chosen that sees enough images in the time, or the one to go on from is given;
//! all else follows from the network, the number of images and the number of steps. Where the numbers come
//! from is in docs/recipes.md.

use std::sync::Arc;
use std::time::Duration;

use esvit_data::{Source, Survey, counted};
use esvit_nn::{Collective, Solo};
use toml::{Table, Value};

use crate::Config;
use crate::config::ConfigError;
use crate::config_text::{Layer, Origin, merge, parse_override};
use crate::memory;
use crate::objective::{Chunking, ObjectiveConfig};
use crate::run::{FEWEST, FOR_STEPS, RunError, macs, settled, step_time, too_short, worth_timing};
use crate::span::Time;

/// Its name on the command line.
pub const NAME: &str = "auto";

/// What it is for.
pub const SUMMARY: &str = "Settings that suit the images, this machine and the time (`--time`): the default for a folder.";

/// A recipe whose settings are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chooser {
    name: &'static str,
    /// Peak of the learning rate for a step of 16 images; it grows with the square root of that number.
    rate: f64,
    goes_on: bool,
    /// Whether the run begins with the weights of a network, whatever the recipe.
    has_weights: bool,
}

/// From nothing.
const AUTO: Chooser = Chooser { name: NAME, rate: 7.5e-4, goes_on: false, has_weights: false };

/// From a network that is good already, and is to be led and not to be led away: a fifth of the rate. The
/// settings that do not depend on the images are in the recipe's file.
const ADAPT: Chooser = Chooser { name: "adapt", rate: 1.5e-4, goes_on: true, has_weights: true };

/// The recipe of this name, if its settings are chosen.
pub fn named(name: &str) -> Option<&'static Chooser> {
    [&AUTO, &ADAPT].into_iter().find(|chooser| chooser.name == name)
}

/// The time of a run that does not say how long it may take.
const TIME: Duration = Duration::from_secs(3600);

/// How long the smallest network is timed at most, or the one that is given.
const TIMED: Duration = Duration::from_millis(1500);

/// A network that can be chosen.
struct Network {
    /// What it is called in messages.
    name: &'static str,
    settings: &'static [&'static str],
    /// Sides of its global and local views, in pixels.
    sides: [u32; 2],
    /// Images, each with all its views, that it must see before it is better than a smaller one.
    images: f64,
}

/// The smallest first.
const NETWORKS: [Network; 3] = [
    Network {
        name: "a Swin of two stages",
        settings: &["model.arch=swin_micro"],
        sides: [32, 16],
        images: 0.0,
    },
    Network {
        name: "a Swin of three stages",
        settings: &[
            "model.arch=custom",
            "model.img_size=64",
            "model.patch_size=4",
            "model.embed_dim=64",
            "model.depths=[2, 2, 2]",
            "model.num_heads=[2, 4, 8]",
            "model.window_size=4",
            "model.mlp_ratio=2.0",
            "model.drop_path=0.0",
        ],
        sides: [64, 32],
        images: 100_000.0,
    },
    Network {
        name: "Swin-Tiny",
        settings: &["model.arch=swin_tiny_w7"],
        sides: [224, 96],
        images: 2_000_000.0,
    },
];

/// Images of a step, and widths of the heads' hidden layers and bottleneck, for features of at least
/// such a width.
const SIZES: [(usize, (usize, [u32; 2])); 3] =
    [(384, (64, [2048, 256])), (192, (32, [512, 128])), (0, (16, [256, 64]))];

/// Images of a step at least where they are compared with each other or normalized together, if there are as
/// many: of fewer, chance says more than they do.
const TOGETHER: usize = 8;

/// Side of the last map, in tokens, from which on both tasks count alike, as published.
const MAP: usize = 7;

/// Largest global views of a network to go on from, in pixels: those of published runs. DINOv2's, made for
/// 518 pixels, was trained on such views most of the time.
const LARGEST: u32 = 224;

/// Images are shrunk to so many times the side of a global view: crops of a tenth of their area still
/// have the pixels of a local view.
const SHRUNK: u32 = 4;

/// Below so many images it is said that a published network may be better.
const FEW: usize = 1000;

/// Below so many steps it is said that the run is short.
const SHORT: u64 = 1000;

/// Prototypes for sets of at least so many images.
const PROTOTYPES: [(usize, u32); 4] =
    [(500_000, 65_536), (100_000, 16_384), (20_000, 4096), (0, 1024)];

/// Momentum of the teacher for runs of at least so many steps: it forgets in a small part of a run.
const MOMENTUM: [(u64, f64); 3] = [(50_000, 0.996), (10_000, 0.99), (0, 0.98)];

/// The settings that were chosen.
#[derive(Debug)]
pub struct Choice {
    /// They come under those that are given.
    pub layer: Layer,
    /// What was chosen and why, a line each.
    pub reasons: Vec<String>,
}

/// The choice in the making.
struct Choosing<'a> {
    recipe: &'a Chooser,
    given: &'a [Layer],
    table: Table,
    reasons: Vec<String>,
}

impl Choosing<'_> {
    /// Chooses some settings.
    fn set(&mut self, settings: &[impl AsRef<str>]) {
        for setting in settings {
            let layer = parse_override(setting.as_ref()).expect("a key and a value");
            merge(&mut self.table, &layer.table);
        }
    }

    /// Says what was chosen and why. What is given is not chosen.
    fn say(&mut self, key: &str, what: &str, value: String, reason: &str) {
        let is_given = |layer: &Layer| {
            let table = Value::Table(layer.table.clone());
            key.split('.').try_fold(&table, |value, key| value.get(key)).is_some()
        };
        if !self.given.iter().any(is_given) {
            self.reasons.push(format!("{what:<11} {value}: {reason}"));
        }
    }

    fn layer(&self) -> Layer {
        Layer { origin: Origin::Recipe(self.recipe.name.into()), table: self.table.clone() }
    }

    /// The settings so far, under those that are given. Whether they go together is seen when all that they
    /// depend on is chosen.
    fn config(&self) -> Result<Config, RunError> {
        let layers = [self.layer()].into_iter().chain(self.given.iter().cloned());
        Ok(Config::resolve_alone(layers.collect())?)
    }
}

impl Chooser {
    /// The name of the recipe.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether a run goes on from a network that there is: its shape is to be among the settings that are
    /// given.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// The same for a run that begins with the weights of a network.
    #[must_use]
    pub fn with_weights(self) -> Self {
        Self { has_weights: true, ..self }
    }

    /// Chooses settings for the images of `source`. `given` are the settings that go over them: what
    /// they say is not chosen, and is taken into account. Where something depends on it, the smallest network is
    /// timed on some images, or the one that is given; before that, `say` is called with a word about it.
    ///
    /// # Errors
    /// When the settings that are given are not valid, the images cannot be loaded, or hardly a step fits the
    /// time.
    pub fn choose(
        &self,
        source: &Arc<dyn Source>,
        survey: &Survey,
        given: &[Layer],
        say: &dyn Fn(&str),
    ) -> Result<Choice, RunError> {
        let (name, table) = (self.name, Table::new());
        let mut choosing = Choosing { recipe: self, given, table, reasons: Vec::new() };
        let images = source.len();
        choosing.set(&[format!("train.time={}", Time(TIME))]);
        let config = choosing.config()?;
        if let ObjectiveConfig::Distill(_) = config.objective {
            return Err(ConfigError::Conflict(format!(
                "recipe `{name}` chooses settings of a network that teaches itself, and not those of distillation\n\
                 hint: take `--recipe distill`"
            ))
            .into());
        }
        let time = config.train.time.map_or(TIME, |time| time.0);
        choosing.set(&[
            "optim.warmup=10%",
            "optim.weight_decay_end=0.1",
            "objective.freeze_last_layer=0",
            "objective.head.norm_last_layer=true",
            "checkpoint.every=10%",
            "knn.every=10%",
            "knn.k=10",
            "views.local_counts=[4]",
            "views.local_scale=[0.15, 0.5]",
            "views.jitter.p=1.0",
            "views.jitter.saturation=0.4",
            "views.solarize.p=0.0",
        ]);
        if survey.is_gray {
            choosing.set(&[
                "views.grayscale=0.0",
                "views.jitter.saturation=0.0",
                "views.jitter.hue=0.0",
            ]);
            choosing.say("views.grayscale", "colors", "not changed".into(), "the images are gray");
        }
        let prototypes = at_least(&PROTOTYPES, images);
        choosing.set(&[format!("objective.head.out_dim={prototypes}")]);
        let pace = network(&mut choosing, source, survey, time, say)?;

        weights(&mut choosing)?;
        let config = choosing.config()?;
        let batch = config.train.batch_size;
        let rate = self.rate * (batch as f64 / 16.0).sqrt();
        choosing.set(&[format!("optim.lr={:?}", rate * crate::config::LR_BATCH / batch as f64)]);
        let reason = match images / 8 {
            eighth if eighth.max(1) < batch && config.sees_all_at_once() => {
                "batch normalization has their statistics"
            }
            eighth if eighth.max(1) < batch => "they are compared with each other",
            0 => "there are few images",
            eighth if eighth == batch => "an eighth of the images",
            _ => "a small batch makes more steps",
        };
        choosing.say(
            "train.batch_size",
            "batch",
            format!("{} a step", counted(batch, "image")),
            reason,
        );
        let config = choosing.config()?;
        if survey.side > config.data.max_side {
            choosing.say(
                "data.max_side",
                "images",
                format!("shrunk to {} pixels as they are read", config.data.max_side),
                &format!("they have about {}, and views {}", survey.side, config.views.global_size),
            );
        }
        let steps = match given_steps(&config, images) {
            Some(steps) => steps,
            None => {
                let step = pace.unwrap_or(0.0) * macs(&config) * batch as f64;
                let steps = (FOR_STEPS * time.as_secs_f64() / step) as u64;
                if steps < FEWEST {
                    let step = Duration::from_secs_f64(step);
                    return Err(too_short(time, step, (Duration::ZERO, Duration::ZERO)));
                }
                steps
            }
        };
        let momentum = at_least(&MOMENTUM, steps);
        choosing.set(&[format!("objective.momentum_teacher={momentum}")]);
        if let Some(time) = config.train.time {
            let what = format!("length      {time}, about {}", counted(steps as usize, "step"));
            choosing.reasons.push(format!("{what}: `--time`, `--steps` and `--epochs` change it"));
        }
        // Another objective passes over what is chosen for this one.
        if let ObjectiveConfig::Esvit(_) = config.objective {
            choosing.say(
                "objective.head.out_dim",
                "prototypes",
                prototypes.to_string(),
                &format!("for {}", counted(images, "image")),
            );
            choosing.say(
                "objective.momentum_teacher",
                "teacher",
                format!("momentum {momentum}"),
                &format!("for about {}", counted(steps as usize, "step")),
            );
        }
        if self.has_weights && !self.goes_on {
            choosing.say(
                "optim.lr",
                "weights",
                format!("the rate of `{name}` leads away from good ones"),
                &format!("`--recipe {}` goes on at a fifth of it, new heads first", ADAPT.name),
            );
        }
        if !self.has_weights {
            choosing.reasons.extend(cautions(images, steps));
        }
        if survey.has_no_up {
            choosing.reasons.push(
                "the images look the same after a quarter turn: if they have no up and down, \
                 `views.flip_vertical=0.5 views.rotate90=0.75` makes more of them"
                    .into(),
            );
        }
        Ok(Choice { layer: choosing.layer(), reasons: choosing.reasons })
    }
}

/// What to keep in mind of a run from nothing on so many images, of so many steps.
pub fn cautions(images: usize, steps: u64) -> Vec<String> {
    let mut cautions = Vec::new();
    if steps < SHORT {
        cautions.push(format!(
            "a short run ({}): in its first thousand a network learns little",
            counted(steps as usize, "step")
        ));
    }
    if images < FEW {
        cautions.push(format!(
            "few images ({images}): a published network, such as those of huggingface.co/timm, will serve \
             most purposes better than one that is trained on them from nothing (`esvit embed --checkpoint \
             FILE`, or `--recipe {} --init-from FILE` to go on from it)",
            ADAPT.name
        ));
    }
    cautions
}

/// Chooses how much both tasks count: on small maps a region has few others to be told from, and at
/// equal weights its task gets in the way of the view's.
fn weights(choosing: &mut Choosing<'_>) -> Result<(), RunError> {
    let config = choosing.config()?;
    let map = config.model.backbone.last_map(config.views.global_size as usize);
    let has_region =
        matches!(&config.objective, ObjectiveConfig::Esvit(esvit) if esvit.region.enabled);
    if has_region && map < MAP {
        choosing.set(&["objective.weights={view=0.8, region=0.2}"]);
        choosing.say(
            "objective.weights",
            "tasks",
            "0.8 for views, 0.2 for regions".into(),
            &format!("maps of {map} x {map} tokens are small"),
        );
    }
    Ok(())
}

/// Chooses the network, and what depends on it alone; returns the seconds that a multiply-accumulate
/// takes, unless nothing depends on them.
fn network(
    choosing: &mut Choosing<'_>,
    source: &Arc<dyn Source>,
    survey: &Survey,
    time: Duration,
    say: &dyn Fn(&str),
) -> Result<Option<f64>, RunError> {
    let is_given = choosing.given.iter().any(|layer| layer.table.contains_key("model"));
    if is_given {
        let backbone = choosing.config()?.model.backbone;
        let (side, least) = (backbone.img_size() as u32, backbone.least_side() as u32);
        let side = match choosing.recipe.goes_on {
            true => (side.min(LARGEST) / least * least).max(least),
            false => side,
        };
        // As 96 to 224, in whole patches of usual networks, and no less than the network takes.
        let local = (side * 3 / 7 / 16 * 16).max(side.min(16)).max(least).min(side);
        let config = configure(choosing, &[], [side, local], source.len(), survey)?;
        config.check_together()?;
        if given_steps(&config, source.len()).is_some() {
            return Ok(None);
        }
        say("timing a step of the network on some of the images");
        return Ok(Some(pace(&config, source)?));
    }
    let all = NETWORKS.iter().map(|network| {
        let config = configure(choosing, network.settings, network.sides, source.len(), survey)?;
        Ok((network, config))
    });
    let all = that_go_together(all.collect::<Result<Vec<_>, RunError>>()?)?;
    let seen_in_steps = |config: &Config| {
        let steps = given_steps(config, source.len());
        steps.map(|steps| steps as f64 * config.train.batch_size as f64)
    };
    let suits = |network: &Network, config: &Config| {
        2 * network.sides[0] <= 3 * survey.side && network.sides[0] <= config.views.global_size
    };
    // Too few steps are too few however fast the machine is.
    let depends = all[1..].iter().any(|(network, config)| {
        suits(network, config) && seen_in_steps(config).is_some_and(|seen| seen >= network.images)
    });
    let pace = match depends || seen_in_steps(&all[0].1).is_none() {
        true => {
            say("timing a step of a small network on some of the images");
            Some(pace(&all[0].1, source)?)
        }
        false => None,
    };
    let seen = |config: &Config| {
        let in_time = |pace: f64| FOR_STEPS * time.as_secs_f64() / (pace * macs(config));
        let in_time = pace.map_or(f64::INFINITY, in_time);
        seen_in_steps(config).map_or(in_time, |seen| in_time.min(seen))
    };
    let is_fit = |&(network, ref config): &(&Network, Config)| {
        let config = settled(config, &**source, 1);
        let need = memory::estimate(&config, config.train.micro_batch());
        suits(network, &config)
            && seen(&config) >= network.images
            && memory::available().is_none_or(|free| need <= 0.8 * free)
    };
    let place = all.iter().rposition(is_fit).unwrap_or(0);
    let (network, config) = &all[place];
    configure(choosing, network.settings, network.sides, source.len(), survey)?;
    let sees = |config| rounded(seen(config));
    let length = config.train.length();
    let has_steps = given_steps(config, source.len()).is_some();
    let reason = match all.get(place + 1) {
        _ if place > 0 => format!(
            "it sees about {} images in {}, and is better than a smaller one from {} on",
            sees(config),
            length,
            rounded(network.images)
        ),
        Some((next, larger)) if next.sides[0] > larger.views.global_size => {
            format!("a larger one is for views of {} pixels", next.sides[0])
        }
        Some((next, larger)) if !suits(next, larger) => {
            format!("the images have about {} pixels", survey.side)
        }
        // What a larger one would see in as many steps is no less, but takes longer.
        Some((next, _)) if has_steps => format!(
            "it sees about {} images in {length}; a larger one needs {}",
            sees(config),
            rounded(next.images)
        ),
        Some((next, larger)) => format!(
            "it sees about {} images in {length}; a larger one would see {} and needs {}",
            sees(config),
            sees(larger),
            rounded(next.images)
        ),
        None => String::new(),
    };
    let value = format!("{}, views of {} pixels", network.name, config.views.global_size);
    choosing.say("model.arch", "network", value, &reason);
    Ok(pace)
}

/// The networks that go with the settings that are given.
///
/// # Errors
/// What the smallest one does not go with, if there is none.
fn that_go_together(
    all: Vec<(&'static Network, Config)>,
) -> Result<Vec<(&'static Network, Config)>, ConfigError> {
    let refused = all[0].1.check_together();
    let fit: Vec<_> =
        all.into_iter().filter(|(_, config)| config.check_together().is_ok()).collect();
    match fit.is_empty() {
        true => Err(refused.expect_err("the smallest one does not go together")),
        false => Ok(fit),
    }
}

/// The steps of a run whose length is not given as a time.
fn given_steps(config: &Config, images: usize) -> Option<u64> {
    config.train.total_steps((images / config.train.batch_size.max(1)).max(1) as u64)
}

/// A number of images, from a thousand on rounded to thousands.
fn rounded(images: f64) -> String {
    match images {
        few if few < 1000.0 => format!("{few:.0}"),
        many => format!("{:.0},000", many / 1000.0),
    }
}

/// Chooses settings of a network, and what follows from its size; returns all settings.
fn configure(
    choosing: &mut Choosing<'_>,
    network: &[&str],
    [side, local]: [u32; 2],
    images: usize,
    survey: &Survey,
) -> Result<Config, RunError> {
    if !network.is_empty() {
        choosing.table.remove("model");
    }
    choosing.set(network);
    let config = choosing.config()?;
    let (width, least) = (config.model.backbone.output_width(), least_batch(&config));
    let (batch, [hidden, bottleneck]) = at_least(&SIZES, width);
    choosing.set(&[
        format!("views.global_size={side}"),
        format!("views.local_sizes=[{local}]"),
        // The published radius suits 224 pixels. At 32 it would wipe out the texture.
        format!("views.blur.radius=[0.1, {:?}]", (2.0 * f64::from(side) / 224.0).max(0.4)),
        format!("knn.crop={side}"),
        // That of a smaller network would be too small for these views.
        "data.max_side=0".into(),
        format!("objective.head.hidden_dim={hidden}"),
        format!("objective.head.bottleneck_dim={bottleneck}"),
        format!("train.batch_size={}", batch.min(images / 8).max(least.min(images)).max(1)),
    ]);
    let shrunk = SHRUNK * choosing.config()?.views.global_size;
    choosing.set(&[
        format!("data.max_side={shrunk}"),
        format!("data.cache_mb={}", cache_mb(survey.side.min(shrunk), survey.aspect, images)),
    ]);
    choosing.config()
}

/// The fewest images of a step that are chosen.
fn least_batch(config: &Config) -> usize {
    let compares = config.objective.settings().chunking() == Chunking::ByImage;
    if compares || config.sees_all_at_once() { TOGETHER } else { 1 }
}

/// A cache for so many images of a shorter side, and of a longer one that is `aspect` times that, in MiB: a
/// quarter of the free memory at most.
fn cache_mb(side: u32, aspect: f64, images: usize) -> usize {
    // Red, green and blue, and a quarter more where some are larger than the median.
    let image = 1.25 * 3.0 * aspect * f64::from(side).powi(2);
    let need = images as f64 * image / f64::from(1 << 20);
    let most = memory::available().map_or(512.0, |bytes| bytes / 4.0 / f64::from(1 << 20));
    need.min(most).ceil() as usize
}

/// Seconds that a multiply-accumulate takes in training.
fn pace(config: &Config, source: &Arc<dyn Source>) -> Result<f64, RunError> {
    let alone: Arc<dyn Collective> = Solo::shared();
    let steps = given_steps(config, source.len()).unwrap_or(0);
    let timed = worth_timing(config, steps).min(TIMED);
    let step = step_time(config, source, &alone, timed)?;
    Ok(step.later.as_secs_f64() / (macs(config) * config.train.batch_size as f64))
}

/// The value of the first row whose bound is reached.
fn at_least<B: PartialOrd + Copy, T: Copy>(rows: &[(B, T)], count: B) -> T {
    let row = rows.iter().find(|row| count >= row.0).or(rows.last());
    row.expect("a row").1
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use esvit_data::{Conversion, Image, InMemory};

    /// `count` images of `side` pixels.
    fn set(count: usize, side: u32, pixel: [u8; 3]) -> Arc<dyn Source> {
        let mut source = InMemory::new(Vec::new());
        for index in 0..count {
            let pixels = pixel.repeat((side * side) as usize);
            source.push(index.to_string(), None, Image::new(side, side, pixels).unwrap());
        }
        Arc::new(source)
    }

    /// The settings of a run, and the lines about them.
    fn chosen(source: &Arc<dyn Source>, given: &[&str]) -> (Config, Vec<String>) {
        let given: Vec<Layer> = given.iter().map(|text| parse_override(text).unwrap()).collect();
        let survey = Survey::of(&**source, &Conversion::default());
        let Choice { layer, reasons } =
            named(NAME).unwrap().choose(source, &survey, &given, &|_| ()).unwrap();
        let layers = [layer].into_iter().chain(given);
        (Config::resolve(layers.collect()).unwrap(), reasons)
    }

    #[test]
    fn settings_follow_from_the_images() {
        let (config, reasons) = chosen(&set(40, 40, [10, 20, 30]), &["train.time=1m"]);
        let (views, train) = (&config.views, &config.train);
        assert_eq!((views.global_size, &views.local_sizes[..]), (32, &[16][..]));
        assert_eq!((train.batch_size, train.epochs, train.steps), (5, None, None));
        assert_eq!(train.time, Some(Time(Duration::from_secs(60))));
        let rate = config.optim.lr * 5.0 / 256.0;
        assert!((rate - 7.5e-4 * (5.0_f64 / 16.0).sqrt()).abs() < 1e-9, "{rate}");
        let lines =
            ["network", "tasks", "batch       5", "length      1m", "prototypes  1024", "teacher"];
        for (line, found) in lines.iter().zip(&reasons) {
            assert!(found.starts_with(line), "{found}");
        }
        let few = |line: &String| line.starts_with("few images (40)");
        assert!(reasons.iter().any(few), "{reasons:?}");

        let factors = |config: &Config| match &config.objective {
            ObjectiveConfig::Esvit(esvit) => esvit.weights.factors(true),
            other => panic!("{other:?}"),
        };
        assert_eq!(factors(&config), (0.8, 0.2));
        let (large, _) = chosen(&set(40, 40, [7; 3]), &["train.steps=5", "views.global_size=56"]);
        assert_eq!(factors(&large), (0.5, 0.5), "a map of 7 x 7");
        let alone = &["train.steps=5", "objective.region=false"];
        let (alone, reasons) = chosen(&set(40, 40, [7; 3]), alone);
        assert_eq!(factors(&alone), (0.5, 0.5));
        assert!(!reasons.iter().any(|line| line.starts_with("tasks")), "{reasons:?}");

        // However fast the machine is, so few steps see too few images for a larger network.
        let (config, reasons) = chosen(&set(200, 300, [7; 3]), &["train.steps=3000"]);
        assert_eq!((config.train.batch_size, config.data.max_side), (16, 128));
        assert_eq!((config.train.steps, config.train.time), (Some(3000), None));
        assert_eq!((config.views.grayscale, config.views.global_size), (0.0, 32));
        let says = |text: &str| reasons.iter().any(|line| line.contains(text));
        assert!(says("the images are gray") && says("shrunk to 128 pixels") && says("0.98"));
        assert!(says("images in 3000 steps; a larger one needs 100,000"), "{reasons:?}");
        assert!(!says("length"), "it is given");

        let (config, reasons) = chosen(&set(200, 40, [7; 3]), &["train.steps=12000"]);
        assert_eq!(config.data.max_side, 128);
        let says = |text: &str| reasons.iter().any(|line| line.contains(text));
        assert!(says("the images have about 40 pixels") && says("momentum 0.99:"), "{reasons:?}");
        assert!(!says("a short run"), "{reasons:?}");

        // Larger views than the network's need larger images.
        let (config, reasons) =
            chosen(&set(200, 300, [7; 3]), &["train.steps=900", "views.global_size=48"]);
        assert_eq!((config.views.global_size, config.data.max_side), (48, 192));
        assert!(
            reasons.iter().any(|line| line.starts_with("a short run (900 steps)")),
            "{reasons:?}"
        );
    }

    /// Where images are compared with each other or normalized together, a step has several.
    #[test]
    fn steps_of_images_that_go_together() {
        let least = |texts: &[&str]| {
            let layers = texts.iter().map(|text| parse_override(text).unwrap());
            least_batch(&Config::resolve(layers.collect()).unwrap())
        };
        for name in ["mocov3", "moby", "simclr", "byol", "swav", "dinov2"] {
            let name = format!("objective.name={name}");
            assert_eq!(least(&[&name, "model.arch=vit_micro"]), 8, "{name}");
        }
        assert_eq!(least(&["model.arch=resnet_micro"]), 8);
        assert_eq!(least(&["objective.head.use_bn_in_head=true"]), 8);
        assert_eq!(least(&["objective.name=mocov2"]), 1);
        assert_eq!(least(&[]), 1);
        let given = ["model.arch=resnet_micro", "train.steps=5"];
        for (images, batch) in [(40, 8), (5, 5)] {
            let (config, reasons) = chosen(&set(images, 40, [10, 20, 30]), &given);
            assert_eq!(config.train.batch_size, batch);
            let line = format!(
                "batch       {batch} images a step: batch normalization has their statistics"
            );
            assert!(reasons.contains(&line), "{reasons:?}");
        }
    }

    /// Another objective keeps its own settings, and nothing else is said.
    #[test]
    fn settings_that_are_not_taken_are_not_said() {
        let given = ["objective.name=mocov2", "objective.queue_length=64", "train.steps=5"];
        let (config, reasons) = chosen(&set(40, 40, [10, 20, 30]), &given);
        let ObjectiveConfig::MocoV2(objective) = &config.objective else { panic!("MoCo-v2") };
        assert_eq!((objective.momentum_teacher, config.views.global_size), (0.999, 32));
        let says = |what: &str| reasons.iter().any(|line| line.starts_with(what));
        assert!(says("network ") && says("batch "), "{reasons:?}");
        for what in ["prototypes ", "teacher ", "tasks "] {
            assert!(!says(what), "{reasons:?}");
        }
    }

    /// What is given is judged beside what is chosen, and not beside defaults.
    #[test]
    fn settings_go_with_those_that_are_chosen() {
        let source = set(40, 40, [10, 20, 30]);
        let given = ["train.micro_batch=5", "data.max_side=100", "train.steps=5"];
        let (config, _) = chosen(&source, &given);
        assert_eq!((config.train.batch_size, config.train.micro_batch), (5, Some(5)));
        assert_eq!(config.data.max_side, 100, "below the default of views");
        let survey = Survey::of(&*source, &Conversion::default());
        let refused = |text: &str| {
            let given = ["train.steps=5", text].map(|text| parse_override(text).unwrap());
            let choice = named(NAME).unwrap().choose(&source, &survey, &given, &|_| ());
            choice.unwrap_err().to_string()
        };
        let error = refused("train.micro_batch=7");
        let expected = "`train.micro_batch` is 7: it must divide `train.batch_size`, which is 5";
        assert_eq!(error, expected);
        assert!(refused("data.max_side=20").contains("views have 32 pixels"));
        // Views that are given are those that are told, and are no reason for a network of larger ones.
        let given = ["views.global_size=30", "train.time=1000h"];
        let (config, reasons) = chosen(&set(40, 300, [10, 20, 30]), &given);
        assert_eq!((config.model.arch.as_str(), config.views.global_size), ("swin_micro", 30));
        let expected = "network     a Swin of two stages, views of 30 pixels: a larger one is for \
                        views of 64 pixels";
        assert_eq!(reasons[0], expected);
    }

    /// A batch of 16 has no such part, one of 32 has.
    #[test]
    fn networks_that_go_with_what_is_given() {
        let of = |batch: usize| {
            let texts = ["train.micro_batch=32".into(), format!("train.batch_size={batch}")];
            let layers = texts.map(|text: String| parse_override(&text).unwrap());
            Config::resolve_alone(layers.into()).unwrap()
        };
        let all = |batches: &[usize]| {
            let configs = batches.iter().map(|&batch| of(batch));
            that_go_together(NETWORKS.iter().zip(configs).collect())
        };
        let fit = all(&[16, 32, 37]).unwrap();
        assert_eq!((fit.len(), fit[0].0.sides[0]), (1, 64));
        let error = all(&[16, 24]).err().unwrap().to_string();
        assert!(error.ends_with("it must divide `train.batch_size`, which is 16"), "{error}");
    }

    #[test]
    fn what_is_given_is_not_chosen() {
        let given = [
            "train.batch_size=4",
            "train.steps=5",
            "objective.head.out_dim=64",
            "objective.momentum_teacher=0.9",
            "model.arch=custom",
            "model.img_size=48",
            "model.patch_size=4",
            "model.embed_dim=32",
            "model.depths=[1]",
            "model.num_heads=[2]",
            "model.window_size=4",
        ];
        let (config, reasons) = chosen(&set(2000, 20, [1, 2, 3]), &given);
        assert_eq!((config.train.batch_size, config.train.steps), (4, Some(5)));
        assert_eq!((config.views.global_size, config.views.local_sizes[0]), (48, 16));
        assert_eq!(config.model.backbone.output_width(), 32);
        let expected: [&str; 1] =
            ["the images look the same after a quarter turn: if they have no up and down, \
              `views.flip_vertical=0.5 views.rotate90=0.75` makes more of them"];
        assert!(reasons[0].starts_with("a short run (5 steps)"), "{reasons:?}");
        assert_eq!(reasons[1..], expected);
    }

    /// A step is timed where the length is a time, or where so many steps may be enough for a larger network.
    #[test]
    fn nothing_is_timed_that_nothing_depends_on() {
        let network = [
            "model.arch=custom",
            "model.img_size=16",
            "model.embed_dim=8",
            "model.depths=[1]",
            "model.num_heads=[1]",
        ];
        for (side, own, length, expected) in [
            (300, &[][..], "train.steps=5", 0),
            (300, &[][..], "train.steps=1000000", 1),
            // Their images are too small for a larger one.
            (40, &[][..], "train.steps=1000000", 0),
            (40, &[][..], "train.epochs=3", 0),
            (40, &[][..], "train.time=10s", 1),
            (300, &network[..], "train.steps=1000000", 0),
            (300, &network[..], "train.time=10s", 1),
        ] {
            let given = own.iter().chain([&length]).map(|text| parse_override(text).unwrap());
            let given: Vec<Layer> = given.collect();
            let source = set(40, side, [10, 20, 30]);
            let survey = Survey::of(&*source, &Conversion::default());
            let said = Cell::new(0);
            let say = |word: &str| {
                assert!(word.starts_with("timing a step"), "{word}");
                said.set(said.get() + 1);
            };
            named(NAME).unwrap().choose(&source, &survey, &given, &say).unwrap();
            assert_eq!(said.get(), expected, "{side} {own:?} {length}");
        }
    }

    #[test]
    fn a_time_for_hardly_a_step_is_refused() {
        let source = set(40, 40, [10, 20, 30]);
        let survey = Survey::of(&*source, &Conversion::default());
        let given = [parse_override("train.time=1us").unwrap()];
        let error = named(NAME).unwrap().choose(&source, &survey, &given, &|_| ()).unwrap_err();
        assert!(matches!(error, RunError::TooShort { .. }), "{error}");
        assert!(error.to_string().contains("`train.time` is 1us"), "{error}");
    }

    /// At a fifth of the rate, and without a word about beginning.
    #[test]
    fn going_on_is_slower() {
        let given = |objective: &str| -> Vec<Layer> {
            let texts = ["model.arch=swin_micro", "train.steps=50", objective];
            texts.map(|text| parse_override(text).unwrap()).into()
        };
        let source = set(40, 40, [10, 20, 30]);
        let survey = Survey::of(&*source, &Conversion::default());
        let of_esvit = given("objective.name=esvit");
        let [auto, adapt] = ["auto", "adapt"]
            .map(|name| named(name).unwrap().choose(&source, &survey, &of_esvit, &|_| ()).unwrap());
        let rate = |choice: &Choice| {
            let layers = [choice.layer.clone()].into_iter().chain(of_esvit.iter().cloned());
            Config::resolve(layers.collect()).unwrap().optim.lr
        };
        assert!((rate(&auto) / rate(&adapt) - 5.0).abs() < 1e-9);
        let warns = |choice: &Choice| {
            let is_warning = |line: &String| line.starts_with("few") || line.starts_with("a short");
            choice.reasons.iter().filter(|line| is_warning(line)).count()
        };
        assert_eq!([warns(&auto), warns(&adapt)], [2, 0]);
        // Weights to begin with are a published network, and another recipe goes on from them.
        let advises = |choice: &Choice| {
            choice.reasons.iter().filter(|line| line.starts_with("weights     the rate of")).count()
        };
        let begun = named("auto").unwrap().with_weights();
        let begun = begun.choose(&source, &survey, &of_esvit, &|_| ()).unwrap();
        assert_eq!((warns(&begun), rate(&begun)), (0, rate(&auto)));
        assert_eq!([&auto, &adapt, &begun].map(advises), [0, 0, 1]);
        assert_eq!(["auto", "adapt"].map(|name| named(name).unwrap().goes_on()), [false, true]);
        assert_eq!(adapt.layer.origin, Origin::Recipe("adapt".into()));
        assert!(named("esvit").is_none());

        // Views are no larger than those of published runs, in whole patches.
        let sides = ["auto", "adapt"].map(|name| {
            let texts = [
                "model.arch=custom",
                "model.family=vit",
                "model.img_size=266",
                "model.patch_size=14",
                "model.embed_dim=16",
                "model.depth=1",
                "model.num_heads=1",
                "train.steps=1",
            ];
            let given = texts.map(|text| parse_override(text).unwrap());
            let choose = named(name).unwrap();
            let choice = choose.choose(&source, &survey, &given, &|_| ()).unwrap();
            let layers = [choice.layer].into_iter().chain(given);
            Config::resolve(layers.collect()).unwrap().views.global_size
        });
        assert_eq!(sides, [266, 224]);

        let distill = given("objective.name=distill");
        let error = named("auto").unwrap().choose(&source, &survey, &distill, &|_| ());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("hint: take `--recipe distill`"), "{error}");
    }

    #[test]
    fn bounds_are_the_first_of_their_row() {
        let prototypes = |images| at_least(&PROTOTYPES, images);
        assert_eq!([0, 19_999, 20_000, 99_999].map(prototypes), [1024, 1024, 4096, 4096]);
        assert_eq!([100_000, 499_999, 500_000].map(prototypes), [16_384, 16_384, 65_536]);
        let momentum = |steps| at_least(&MOMENTUM, steps);
        assert_eq!([9_999, 10_000, 49_999, 50_000].map(momentum), [0.98, 0.99, 0.99, 0.996]);
        // 36 MiB for 600 images as they are shrunk for the smallest network.
        assert_eq!(
            [cache_mb(10, 1.0, 100), cache_mb(128, 1.0, 600), cache_mb(0, 1.0, 9)],
            [1, 36, 0]
        );
        assert_eq!((cache_mb(256, 1.5, 800), cache_mb(256, 3.0, 800)), (282, 563));
        let most = memory::available().unwrap() / 4.0 / f64::from(1 << 20);
        assert!(cache_mb(4000, 1.0, 1_000_000) as f64 <= most * 1.1);
    }
}
