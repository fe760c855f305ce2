//! Measurements that can be stopped.
//!
//! A measurement is one long call, of many images and passes of a network. Where it is asked to stop, it unwinds as
//! from a panic, but without a message: before the next image that it would read, or after the block at hand.

use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use esvit_data::{Conversion, FileStamp, Image, SampleType, Source, SourceError};
use esvit_nn::backbone::{AttentionMap, BlockOutput, Input, NoAttention, Stage, TokenMaps};
use esvit_nn::{Backbone, ForwardCtx, Params, Tensor};

use crate::labeled::LabeledTask;

/// What a stopped measurement unwinds with.
struct Stopped;

/// Unwinds if `stop` is set.
fn ask(stop: &AtomicBool) {
    if stop.load(Ordering::Relaxed) {
        resume_unwind(Box::new(Stopped));
    }
}

/// Runs a measurement; None if a network or a source of this file has stopped it. What it was making is gone.
pub fn unless_stopped<R>(measure: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(measure)) {
        Ok(result) => Some(result),
        Err(payload) if payload.is::<Stopped>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

/// A network that stops after the block at hand. It is to be run within [`unless_stopped`].
#[derive(Debug)]
pub struct StoppableNetwork<'a> {
    network: &'a dyn Backbone,
    stop: &'a AtomicBool,
}

impl<'a> StoppableNetwork<'a> {
    /// The network, which stops once `stop` is set.
    pub fn new(network: &'a dyn Backbone, stop: &'a AtomicBool) -> Self {
        Self { network, stop }
    }
}

impl Backbone for StoppableNetwork<'_> {
    fn family(&self) -> &'static str {
        self.network.family()
    }

    fn stages(&self) -> Vec<Stage> {
        self.network.stages()
    }

    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        self.network.run(params, input, ctx, &mut |block| {
            ask(self.stop);
            tap(block)
        })
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        self.network.normalize(params, maps, ctx)
    }

    fn view(&self, maps: &TokenMaps) -> Tensor {
        self.network.view(maps)
    }

    fn block_feature(&self, params: &Params, block: &BlockOutput<'_>, ctx: &ForwardCtx) -> Tensor {
        self.network.block_feature(params, block, ctx)
    }

    fn probed_blocks(&self, n: usize) -> usize {
        self.network.probed_blocks(n)
    }

    fn feature_block(&self) -> usize {
        self.network.feature_block()
    }

    fn attention(
        &self,
        params: &Params,
        images: Tensor,
        blocks: Range<usize>,
        observe: &mut dyn FnMut(usize, AttentionMap),
    ) -> Result<(), NoAttention> {
        self.network.attention(params, images, blocks, &mut |block, map| {
            ask(self.stop);
            observe(block, map);
        })
    }
}

/// Images that are read no more once it is asked to stop. They are to be read within [`unless_stopped`].
pub struct StoppableSource {
    source: Arc<dyn Source>,
    stop: Arc<AtomicBool>,
}

impl StoppableSource {
    /// The images of `source`, until `stop` is set.
    pub fn new(source: Arc<dyn Source>, stop: Arc<AtomicBool>) -> Self {
        Self { source, stop }
    }
}

impl Source for StoppableSource {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(index)
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn stamp(&self, index: usize) -> Option<FileStamp> {
        self.source.stamp(index)
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        ask(&self.stop);
        self.source.load(index)
    }

    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        ask(&self.stop);
        self.source.load_as(index, conversion)
    }

    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        ask(&self.stop);
        self.source.deep_values(index, most)
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }
}

/// A task whose images are read no more once it is asked to stop.
pub fn stoppable_task(task: &LabeledTask, stop: &Arc<AtomicBool>) -> LabeledTask {
    let mut task = task.clone();
    for set in [&mut task.train, &mut task.queries] {
        set.source = Arc::new(StoppableSource::new(set.source.clone(), stop.clone()));
    }
    task
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use esvit_model::PretrainedBackbone;

    use super::*;
    use crate::knn;
    use crate::retrieval::{IMAGES, RetrievalTask};
    use crate::testing::{Images, backbone, noise};

    /// Counts images, and sets a flag at one of them.
    struct Counted {
        images: Images,
        read: AtomicUsize,
        stop: (usize, Arc<AtomicBool>),
    }

    impl Source for Counted {
        fn len(&self) -> usize {
            self.images.len()
        }

        fn name(&self, index: usize) -> String {
            self.images.name(index)
        }

        fn label(&self, index: usize) -> Option<u32> {
            self.images.label(index)
        }

        fn classes(&self) -> &[String] {
            self.images.classes()
        }

        fn load(&self, index: usize) -> Result<Image, SourceError> {
            if self.read.fetch_add(1, Ordering::SeqCst) + 1 == self.stop.0 {
                self.stop.1.store(true, Ordering::SeqCst);
            }
            self.images.load(index)
        }
    }

    /// 200 images, at one of which `stop` is set.
    fn counted(at: usize, stop: &Arc<AtomicBool>) -> Arc<Counted> {
        let images = Images::labeled((0..200).map(|i| (i % 2, noise(20, 20, i.into()))).collect());
        Arc::new(Counted { images, read: AtomicUsize::new(0), stop: (at, stop.clone()) })
    }

    #[test]
    fn images_are_read_no_more() {
        let backbone = backbone(1);
        let network = (&*backbone.network, &backbone.params);
        for at in [3, usize::MAX] {
            let stop = Arc::new(AtomicBool::new(false));
            let source = counted(at, &stop);
            let stoppable = Arc::new(StoppableSource::new(source.clone(), stop.clone()));
            let task = RetrievalTask::new(stoppable, IMAGES);
            let found = unless_stopped(|| task.measure(network, &backbone.preprocess));
            let read = source.read.load(Ordering::SeqCst);
            match at {
                // Those that are at hand on other threads are ended.
                3 => assert!(found.is_none() && read <= 64, "{read} images were read"),
                _ => assert_eq!((found.unwrap().unwrap().0.images, read), (200, 400)),
            }
        }
    }

    /// A network that counts its blocks, and sets a flag at one of them.
    #[derive(Debug)]
    struct Blocks {
        backbone: Arc<dyn Backbone>,
        run: AtomicUsize,
        stop: (usize, Arc<AtomicBool>),
    }

    impl Backbone for Blocks {
        fn family(&self) -> &'static str {
            self.backbone.family()
        }

        fn stages(&self) -> Vec<Stage> {
            self.backbone.stages()
        }

        fn run(
            &self,
            params: &Params,
            input: Input<'_>,
            ctx: &ForwardCtx,
            tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
        ) -> Option<TokenMaps> {
            self.backbone.run(params, input, ctx, &mut |block| {
                if self.run.fetch_add(1, Ordering::SeqCst) + 1 == self.stop.0 {
                    self.stop.1.store(true, Ordering::SeqCst);
                }
                tap(block)
            })
        }

        fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
            self.backbone.normalize(params, maps, ctx)
        }
    }

    #[test]
    fn a_pass_ends_with_the_block_at_hand() {
        let backbone = backbone(1);
        let PretrainedBackbone { network, params, preprocess, .. } = &backbone;
        let set = |count: u64| {
            Images::labeled((0..count).map(|i| (i as u32 % 2, noise(20, 20, i))).collect()).set()
        };
        let task = LabeledTask {
            train: set(70),
            queries: set(4),
            classes: vec!["a".into(), "b".into()],
            description: String::new(),
            remarks: Default::default(),
        };
        let expected = knn::accuracy(&task, (&**network, params), preprocess, &[1], 0.07, |_| ());
        let blocks = network.blocks();
        for at in [1, blocks + 1, usize::MAX] {
            let stop = Arc::new(AtomicBool::new(false));
            let run = AtomicUsize::new(0);
            let counted = Blocks { backbone: network.clone(), run, stop: (at, stop.clone()) };
            let stoppable = StoppableNetwork::new(&counted, &stop);
            let stoppable: &dyn Backbone = &stoppable;
            let task = stoppable_task(&task, &stop);
            let found = unless_stopped(|| {
                knn::accuracy(&task, (stoppable, params), preprocess, &[1], 0.07, |_| ())
            });
            let run = counted.run.load(Ordering::SeqCst);
            match at {
                usize::MAX => {
                    // Two passes of the training images, one of the others.
                    assert_eq!(run, 3 * blocks);
                    let found = found.unwrap().unwrap().accuracies;
                    assert_eq!(found, expected.as_ref().unwrap().accuracies);
                }
                at => assert!(found.is_none() && run == at, "{run} blocks were run, not {at}"),
            }
        }
    }

    #[test]
    #[should_panic(expected = "a mistake")]
    fn other_panics_go_on() {
        unless_stopped::<()>(|| panic!("a mistake"));
    }
}
