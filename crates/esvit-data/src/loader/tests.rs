//! Tests of the loader as a whole.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::augment::test_draws::assert_equally_often;
use crate::augment::test_images::noise;
use crate::{Conversion, DecodeError, Image, Policy, SampleType, SourceError};

/// Images made when they are asked for, some of them broken.
#[derive(Default)]
struct Made {
    len: usize,
    broken: Vec<usize>,
    panics: Option<usize>,
    loads: AtomicUsize,
    /// Loading waits for it.
    gate: Mutex<()>,
}

impl Source for Made {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        format!("{index}.png")
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock().unwrap());
        assert!(self.panics != Some(index), "no image {index}");
        if self.broken.contains(&index) {
            return Err(SourceError::Decode { name: self.name(index), source: DecodeError::Empty });
        }
        Ok(noise(20, 16, index as u64))
    }
}

fn views() -> ViewsConfig {
    ViewsConfig {
        global_size: 8,
        local_sizes: vec![6, 4],
        local_counts: vec![1, 2],
        ..ViewsConfig::for_policy(Policy::Dino)
    }
}

fn config() -> LoaderConfig {
    LoaderConfig { batch: 4, workers: 2, seed: 7, ..LoaderConfig::default() }
}

fn loader(source: Made, config: LoaderConfig) -> Loader {
    Loader::new(Arc::new(source), views(), config).unwrap()
}

type Content = (u64, u64, Vec<u64>, Vec<Crops>);

fn contents(loader: &Loader, steps: Range<u64>) -> Vec<Content> {
    loader
        .batches(steps)
        .map(|batch| batch.unwrap())
        .map(|batch| (batch.epoch, batch.step, batch.samples, batch.views))
        .collect()
}

#[test]
fn batches_do_not_depend_on_threads_queue_or_cache() {
    let source = || Made { len: 14, broken: vec![3, 11], ..Made::default() };
    let expected = contents(&loader(source(), LoaderConfig { workers: 1, ..config() }), 0..9);
    assert_eq!(expected.len(), 9);
    for (workers, prefetch, cache_bytes) in [(1, 0, 0), (2, 1, 1 << 20), (4, 5, 2000), (3, 50, 0)] {
        let loader = loader(source(), LoaderConfig { workers, prefetch, cache_bytes, ..config() });
        assert!(contents(&loader, 0..9) == expected, "{workers} workers, prefetch {prefetch}");
    }
}

/// However a step is cut, it has the same images and views in the same order; each of two processes
/// has its half.
#[test]
fn micro_batches_make_up_the_step() {
    let source = || Made { len: 30, broken: vec![3, 11], ..Made::default() };
    let joined = |config: LoaderConfig| -> Vec<(u64, Vec<u64>, Vec<Vec<u8>>)> {
        let loader = loader(source(), config);
        let mut steps: Vec<(u64, Vec<u64>, Vec<Vec<u8>>)> = Vec::new();
        for (count, batch) in loader.batches(1..5).map(|batch| batch.unwrap()).enumerate() {
            assert_eq!(
                (batch.step, batch.part),
                (1 + (count / loader.parts()) as u64, count % loader.parts())
            );
            if batch.part == 0 {
                steps.push((batch.epoch, Vec::new(), vec![Vec::new(); batch.views.len()]));
            }
            let (_, samples, views) = steps.last_mut().unwrap();
            samples.extend(batch.samples);
            for (all, crops) in views.iter_mut().zip(&batch.views) {
                all.extend(&crops.pixels);
            }
        }
        steps
    };
    let whole = LoaderConfig { batch: 12, ..config() };
    let expected = joined(whole.clone());
    assert_eq!(expected.len(), 4);
    for micro_batch in [1, 2, 3, 4, 6, 12] {
        let found = joined(LoaderConfig { micro_batch, ..whole.clone() });
        assert!(found == expected, "{micro_batch}");
    }
    let halves =
        [0, 1].map(|rank| joined(LoaderConfig { world: 2, rank, micro_batch: 3, ..whole.clone() }));
    for (step, (_, samples, _)) in expected.iter().enumerate() {
        assert_eq!([&halves[0][step].1[..], &halves[1][step].1[..]].concat(), *samples);
    }
    for micro_batch in [5, 24] {
        let config = LoaderConfig { micro_batch, ..whole.clone() };
        let error = Loader::new(Arc::new(source()), views(), config).unwrap_err().to_string();
        assert!(error.contains("`micro_batch`") && error.contains("12 images"), "{error}");
    }
}

#[test]
fn a_run_can_begin_anywhere() {
    let source = || Made { len: 14, broken: vec![3, 11], ..Made::default() };
    let all = contents(&loader(source(), config()), 0..9);
    let later = loader(source(), config());
    assert!(contents(&later, 5..9) == all[5..]);
    assert!(contents(&later, 2..4) == all[2..4]);
    assert!(contents(&later, 4..4).is_empty());
}

#[test]
fn batches_hold_the_views_of_their_samples() {
    let loader = loader(Made { len: 9, ..Made::default() }, config());
    let views = views();
    for batch in loader.batches(0..4) {
        let batch = batch.unwrap();
        assert_eq!(batch.epoch, batch.step / 2);
        let first = (batch.step % 2) as usize * 4;
        let order = &loader.order(batch.epoch)[first..first + 4];
        assert!(order.iter().map(|&sample| sample as u64).eq(batch.samples.iter().copied()));
        for (slot, &sample) in batch.samples.iter().enumerate() {
            let image = noise(20, 16, sample);
            let made = views.views(&image, 7, batch.epoch, sample).unwrap();
            assert_eq!(made.len(), batch.views.len());
            for (view, crops) in made.iter().zip(&batch.views) {
                assert_eq!(crops.pixels.len(), 4 * view.image.pixels().len());
                assert_eq!(crops.pixels_of(slot..slot + 1), view.image.pixels());
            }
        }
    }
}

/// Processes share a batch: one after the other, they have what a process alone has.
#[test]
fn processes_share_batches() {
    let config = LoaderConfig { batch: 6, ..config() };
    let source = || Made { len: 20, broken: vec![3, 11], ..Made::default() };
    let alone = contents(&loader(source(), config.clone()), 0..7);
    let [first, second, third] = [0, 1, 2].map(|rank| {
        let loader = loader(source(), LoaderConfig { world: 3, rank, ..config.clone() });
        assert_eq!(loader.steps_per_epoch(), 3);
        contents(&loader, 0..7)
    });
    for (at, (epoch, step, samples, views)) in alone.into_iter().enumerate() {
        let parts = [&first[at], &second[at], &third[at]];
        assert!(parts.iter().all(|part| (part.0, part.1) == (epoch, step)));
        assert_eq!(parts.map(|part| part.2.clone()).concat(), samples);
        for (view, crops) in views.iter().enumerate() {
            let parts = parts.map(|part| part.3[view].pixels.clone());
            assert_eq!(parts.concat(), crops.pixels);
        }
    }
    for (world, rank) in [(4, 0), (0, 0), (2, 2)] {
        let config = LoaderConfig { world, rank, ..config.clone() };
        let error = Loader::new(Arc::new(source()), views(), config).unwrap_err();
        let text = format!("`batch` is 6: {world} processes share it equally");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn every_epoch_has_its_own_order_of_different_images() {
    let loader = loader(Made { len: 12, ..Made::default() }, config());
    assert_eq!(loader.steps_per_epoch(), 3);
    let epochs: Vec<Vec<u64>> = contents(&loader, 0..6)
        .chunks(3)
        .map(|steps| steps.iter().flat_map(|step| step.2.clone()).collect())
        .collect();
    assert_ne!(epochs[0], epochs[1]);
    for epoch in epochs {
        assert_eq!(epoch.into_iter().collect::<BTreeSet<_>>(), (0..12).collect());
    }
}

#[test]
fn a_small_set_comes_up_several_times_with_other_views() {
    let config = LoaderConfig { batch: 10, repeat: 4, ..config() };
    let loader = loader(Made { len: 5, ..Made::default() }, config);
    assert_eq!(loader.steps_per_epoch(), 2);
    let epoch: Vec<Batch> = loader.batches(0..2).map(|batch| batch.unwrap()).collect();
    let mut times = [0; 5];
    let mut globals = BTreeSet::new();
    for batch in &epoch {
        for (slot, &sample) in batch.samples.iter().enumerate() {
            times[sample as usize] += 1;
            globals.insert(batch.views[0].pixels_of(slot..slot + 1));
        }
    }
    assert_eq!(times, [4; 5]);
    assert_eq!(globals.len(), 20, "no visit has the views of another");
}

#[test]
fn broken_images_are_replaced_and_reported_once() {
    let loader = loader(Made { len: 12, broken: vec![2, 5], ..Made::default() }, config());
    for batch in contents(&loader, 0..9) {
        assert!(batch.2.iter().all(|sample| ![2, 5].contains(sample)));
    }
    let found = loader.broken();
    assert_eq!(found.iter().map(|b| b.sample).collect::<Vec<_>>(), [2, 5]);
    assert_eq!(found[0].name, "2.png");
    assert!(found[0].reason.contains("empty"), "{}", found[0].reason);
    assert_eq!(loader.take_new_broken().len(), 2);
    assert!(loader.take_new_broken().is_empty());
}

#[test]
fn too_many_broken_images_end_the_run() {
    let source = Made { len: 60, broken: (0..60).step_by(2).collect(), ..Made::default() };
    let loader = loader(source, LoaderConfig { max_broken: 0.4, ..config() });
    let mut batches = loader.batches(0..1000);
    let error = batches.find_map(Result::err).unwrap();
    let LoaderError::TooManyBroken { count, len: 60, limit: 24, first } = &error else {
        panic!("{error}")
    };
    assert!(*count >= 25 && first.len() == 10);
    assert!(error.to_string().contains("\n  `0.png`: "), "{error}");
    assert!(batches.next().is_none());
}

#[test]
fn without_a_usable_image_there_is_no_batch() {
    let source = Arc::new(Made { len: 5, broken: (0..5).collect(), ..Made::default() });
    let config = LoaderConfig { max_broken: 1.0, workers: 1, ..config() };
    let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, views(), config).unwrap();
    let error = loader.batches(0..1).next().unwrap().unwrap_err();
    assert!(matches!(error, LoaderError::TooManyBroken { count: 5, .. }), "{error}");
    assert_eq!(source.loads.load(Ordering::Relaxed), 5, "what is broken is not loaded again");
}

#[test]
fn a_panic_becomes_an_error() {
    let loader = loader(Made { len: 12, panics: Some(4), ..Made::default() }, config());
    let error = loader.batches(0..3).find_map(Result::err).unwrap();
    let text = error.to_string();
    assert!(text.contains("`4.png`") && text.contains("no image 4"), "{text}");
    // The workers are still there.
    let panicking = loader.batches(3..6).find_map(Result::err).unwrap();
    assert!(matches!(panicking, LoaderError::Panic { .. }));
}

#[test]
fn dropping_in_the_middle_does_not_wait_for_the_rest() {
    let source = Arc::new(Made { len: 1000, ..Made::default() });
    let config = LoaderConfig { batch: 100, prefetch: 50, ..config() };
    let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, views(), config).unwrap();
    let shut = source.gate.lock().unwrap();
    let batches = loader.batches(0..500);
    while source.loads.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    drop(batches);
    drop(shut);
    drop(loader);
    // Of 5,000 images that are queued, each of the two workers had begun one.
    assert_eq!(source.loads.load(Ordering::Relaxed), 2);
}

/// A drive that does not answer.
#[test]
fn a_wait_for_a_batch_can_be_given_up() {
    let source = Arc::new(Made { len: 8, ..Made::default() });
    let gate = source.gate.lock().unwrap();
    let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, views(), config()).unwrap();
    let mut batches = loader.batches(0..4);
    let asked = AtomicUsize::new(0);
    let stop = || asked.fetch_add(1, Ordering::Relaxed) == 2;
    assert!(batches.next_unless(stop).is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert!(batches.next().is_none(), "no batch follows");
    // Nor does the end of the loader wait for the drive.
    drop(batches);
    drop(loader);
    drop(gate);
    let loader = Loader::new(source, views(), config()).unwrap();
    assert!(loader.batches(0..1).next_unless(|| false).unwrap().is_ok());
}

/// An image of the value that white has.
#[derive(Default)]
struct Converted;

impl Source for Converted {
    fn len(&self) -> usize {
        4
    }

    fn name(&self, _: usize) -> String {
        String::new()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, _: usize) -> Result<Image, SourceError> {
        Ok(Image::filled(9, 9, [0; 3]))
    }

    fn load_as(&self, _: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        let white = conversion.levels.of(SampleType::Uint16)[1] as u8;
        let Background::Color([r, ..]) = conversion.background else { return self.load(0) };
        Ok(Image::filled(9, 9, [white, r, 0]))
    }
}

#[test]
fn images_are_converted_as_the_settings_say() {
    let config = LoaderConfig {
        levels: Levels::all([0.0, 99.0]),
        background: Background::Color([7; 3]),
        ..config()
    };
    let views = ViewsConfig { policy: Policy::Basic, ..ViewsConfig::for_policy(Policy::Basic) };
    let views = ViewsConfig { global_size: 8, local_sizes: vec![], local_counts: vec![], ..views };
    let loader = Loader::new(Arc::new(Converted), views, config).unwrap();
    let batch = loader.batches(0..1).next().unwrap().unwrap();
    assert_eq!(batch.views[0].pixels[..3], [99, 7, 0]);
}

#[test]
fn as_many_batches_are_prepared_as_asked() {
    for prefetch in [0, 1, 3] {
        let loader =
            loader(Made { len: 14, ..Made::default() }, LoaderConfig { prefetch, ..config() });
        let mut batches = loader.batches(0..5);
        assert_eq!(batches.in_flight.len(), prefetch);
        for left in [4, 3, 2, 1, 0] {
            batches.next().unwrap().unwrap();
            assert_eq!(batches.in_flight.len(), prefetch.min(left));
        }
        assert!(batches.next().is_none());
    }
}

#[test]
fn replacements_differ_by_place_and_epoch_and_all_good_images_serve() {
    let good: Vec<usize> = (0..40).step_by(4).collect();
    let source = Made {
        len: 40,
        broken: (0..40).filter(|sample| !good.contains(sample)).collect(),
        ..Made::default()
    };
    let loader = loader(source, LoaderConfig { max_broken: 0.8, ..config() });
    let epochs = 20;
    let mut counts = [0; 10];
    let mut replaced: Vec<Vec<Option<u64>>> = Vec::new();
    for epoch in 0..epochs {
        let samples = contents(&loader, epoch * 10..epoch * 10 + 10).into_iter().flat_map(|c| c.2);
        let samples = samples.zip(loader.order(epoch));
        let samples = samples.map(|(sample, planned)| (sample != planned as u64).then_some(sample));
        replaced.push(samples.collect());
    }
    for epoch in &replaced {
        let all: BTreeSet<u64> = epoch.iter().flatten().copied().collect();
        assert!(all.len() >= 7, "30 places have few replacements: {all:?}");
        epoch.iter().flatten().for_each(|&sample| counts[sample as usize / 4] += 1);
    }
    assert_equally_often(&counts);
    // One in ten is the same by chance, of some 22 places that are replaced in both epochs.
    let both = replaced[0].iter().zip(&replaced[1]).filter(|(a, b)| a.is_some() && b.is_some());
    let same = both.clone().filter(|(a, b)| a == b).count();
    assert!(same <= 8, "{same} of {}", both.count());
}

#[test]
fn a_replacement_has_its_own_views() {
    let source = Made { len: 8, broken: (1..8).collect(), ..Made::default() };
    let loader = loader(source, LoaderConfig { max_broken: 0.9, ..config() });
    let views = views();
    let made = views.views(&noise(20, 16, 0), 7, 0, 0).unwrap();
    for (_, _, samples, crops) in contents(&loader, 0..2) {
        assert_eq!(samples, [0; 4]);
        assert_eq!(crops[0].pixels, made[0].image.pixels().repeat(4));
    }
}

#[test]
fn the_seed_chooses_order_and_views() {
    let with = |seed| {
        let loader = loader(Made { len: 4, ..Made::default() }, LoaderConfig { seed, ..config() });
        (loader.order(0), contents(&loader, 0..1))
    };
    assert_ne!(with(1).0, with(2).0);
    let first_views = |seed| {
        let (_, mut content) = with(seed);
        let (_, _, samples, views) = content.remove(0);
        let slot = samples.iter().position(|&sample| sample == 0).unwrap();
        views[0].pixels_of(slot..slot + 1).to_vec()
    };
    assert_eq!(first_views(1), first_views(1));
    assert_ne!(first_views(1), first_views(2));
}

#[test]
fn there_are_as_many_workers_as_asked() {
    let source = || Made { len: 14, ..Made::default() };
    let text = format!("{:?}", loader(source(), LoaderConfig { workers: 3, ..config() }));
    assert_eq!(text, "Loader { images: 14, workers: 3, .. }");
    let all = std::thread::available_parallelism().unwrap().get();
    assert_eq!(loader(source(), LoaderConfig { workers: 0, ..config() }).workers.len(), all);
}

#[test]
fn defaults() {
    let LoaderConfig {
        batch,
        micro_batch,
        world,
        rank,
        repeat,
        workers,
        prefetch,
        seed,
        max_broken,
        max_side,
        cache_bytes,
        levels,
        background,
    } = LoaderConfig::default();
    assert!(levels.is_full() && background == Background::Mean);
    assert_eq!((micro_batch, world, rank), (0, 1, 0));
    assert_eq!((batch, repeat, workers, prefetch, seed), (64, 1, 0, 2, 0));
    assert_eq!((max_broken, max_side, cache_bytes), (0.5, 0, 512 * 1024 * 1024));
}

#[test]
fn kept_images_are_loaded_once() {
    for (cache_bytes, expected) in [(1 << 20, 12), (0, 48)] {
        let source = Arc::new(Made { len: 12, ..Made::default() });
        let config = LoaderConfig { cache_bytes, workers: 1, ..config() };
        let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, views(), config).unwrap();
        contents(&loader, 0..12);
        assert_eq!(source.loads.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn senseless_settings_are_refused() {
    let new = |len, views, config| {
        Loader::new(Arc::new(Made { len, ..Made::default() }), views, config).err().unwrap()
    };
    let error = new(3, views(), config());
    assert!(matches!(error, LoaderError::TooFewImages { len: 3, batch: 4 }));
    assert!(error.to_string().contains("lower `train.batch_size` to at most 3"), "{error}");
    let error = new(9, views(), LoaderConfig { batch: 0, ..config() });
    assert!(error.to_string().starts_with("`batch` is 0: "), "{error}");
    for max_broken in [f64::NAN, -0.1, 1.1] {
        let error = new(9, views(), LoaderConfig { max_broken, ..config() });
        assert!(error.to_string().starts_with("`max_broken`"), "{error}");
    }
    let error = new(9, views(), LoaderConfig { repeat: 0, ..config() });
    assert!(error.to_string().starts_with("`repeat` is 0: "), "{error}");
    let error = new(9, views(), LoaderConfig { workers: 1025, ..config() });
    assert!(error.to_string().starts_with("`workers` is 1025: "), "{error}");
    let error = new(2_000_000, views(), LoaderConfig { repeat: 2148, ..config() });
    assert!(error.to_string().starts_with("`repeat` is 2148: "), "{error}");
    let enough = LoaderConfig { repeat: 2, ..config() };
    assert!(Loader::new(Arc::new(Made { len: 2, ..Made::default() }), views(), enough).is_ok());
    let error = new(9, ViewsConfig { flip: 2.0, ..views() }, config());
    assert!(matches!(error, LoaderError::Config(_)), "{error}");
}
