//! Masked patch prediction: for every masked region of a global view the student, which sees the rest of
//! the view, predicts the distribution over prototypes that the teacher, which sees all of it, has for that
//! region.
//!
//! Source: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer" (ICLR 2022), equation 2; with
//! the weights of DINOv2's code, in which all global views count alike, also those without a masked region.

use std::ops::Range;

use esvit_nn::backbone::{Masking, TokenMask};
use esvit_nn::forward_ctx::StepPart;
use esvit_nn::head::Head;
use esvit_nn::ops::{self, Pairs, Precision, PrototypeLogits, TeacherRows};
use esvit_nn::params::{Init, ParamId, Params, Part, Scope};
use esvit_nn::weights::MASK_TOKEN;
use esvit_nn::{Collective, Device, ForwardCtx, Tensor};

use super::config::{EsvitConfig, PatchesConfig};
use super::health::mean_entropy;
use super::masks::Masks;
use crate::objective::sinkhorn::balancing_center;
use crate::objective::{GLOBAL_VIEWS, MicroBatch, Setup, Views};

/// The parameters of a network in a pass, and the head of the views.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadPass<'a> {
    pub(super) params: &'a Params,
    pub(super) view_head: &'a Head,
    pub(super) ctx: &'a ForwardCtx,
}

/// Masked patch prediction.
#[derive(Debug)]
pub struct Patches {
    config: PatchesConfig,
    masking: Masking,
    seed: u64,
    token: ParamId,
    /// Its head, unless that is the one of the views.
    head: Option<Head>,
    /// Running mean of the teacher's logits for masked regions, `[K]`.
    pub center: Tensor,
    /// Sums of these logits in the micro-batches of the step at hand, and their numbers: each `[K + 1]`.
    seen: Vec<Tensor>,
    at_hand: Option<AtHand>,
}

/// Of the micro-batch at hand.
#[derive(Debug)]
struct AtHand {
    masks: Masks,
    /// Height and width of every view in pixels.
    sides: Vec<[usize; 2]>,
    /// The teacher's logits for all masked regions, view-major, if there is one.
    teacher: Option<PrototypeLogits>,
    /// What balances them, if that is not the running mean.
    balance: Option<Tensor>,
}

impl Patches {
    /// Registers the token in place of masked patches and, if it is to be separate, the head.
    ///
    /// # Panics
    /// When the backbone's patches cannot be masked.
    pub(super) fn new(scope: &mut Scope<'_>, config: &EsvitConfig, setup: &Setup) -> Self {
        let masking = setup.masking.expect("a backbone whose patches can be masked");
        let head = config
            .patches
            .separate_head
            .then(|| Head::new(&mut scope.head("ibot_head"), setup.width, &config.head));
        let mut part = scope.reborrow().part(Part::Head(MASK_TOKEN.into()));
        let token = part.param(MASK_TOKEN, &[1, masking.width], Init::Zeros);
        Self {
            config: config.patches.clone(),
            masking,
            seed: setup.seed,
            token,
            head,
            center: Tensor::zeros([config.head.out_dim], &setup.device),
            seen: Vec::new(),
            at_hand: None,
        }
    }

    /// Its weight in the loss.
    pub(super) fn weight(&self) -> f64 {
        self.config.weight
    }

    /// The prototypes of its own head.
    pub(super) fn last_layer(&self) -> Vec<ParamId> {
        self.head.iter().flat_map(Head::last_layer).collect()
    }

    /// Draws the masks of a micro-batch.
    pub(super) fn begin(&mut self, batch: &MicroBatch, step: u64, part: &StepPart) {
        let sides = batch.views.iter().map(|view| {
            let [_, _, height, width] = view.dims();
            [height, width]
        });
        let sides: Vec<[usize; 2]> = sides.collect();
        let map = self.masking.regions(sides[0]);
        let masks = Masks::draw(&self.config, [self.seed, step], part, map);
        self.at_hand = Some(AtHand { masks, sides, teacher: None, balance: None });
    }

    /// Drops what is of the micro-batch.
    pub(super) fn end(&mut self) {
        self.at_hand = None;
    }

    /// Drops what was noted in a step.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    fn masked(&self) -> &AtHand {
        self.at_hand.as_ref().expect("a micro-batch begins with its masks")
    }

    /// Which tokens of some views of some images are masked.
    pub(super) fn token_mask(
        &self,
        params: &Params,
        views: Range<usize>,
        images: Range<usize>,
    ) -> Option<TokenMask> {
        let AtHand { masks, sides, .. } = self.masked();
        let is_masked = |view: usize| images.clone().any(|image| masks.of(view, image).is_some());
        if !views.clone().any(is_masked) {
            return None;
        }
        let mut rows = Vec::new();
        for view in views {
            let [height, width] = self.masking.tokens(sides[view]);
            for image in images.clone() {
                match masks.of(view, image) {
                    Some(regions) => rows.extend(self.masking.rows(sides[view], regions)),
                    None => rows.resize(rows.len() + height * width, 0.0),
                }
            }
        }
        let rows = Tensor::from_vec(rows, &params.device());
        Some(TokenMask { rows, token: params.vector(self.token) })
    }

    /// The logits of some of the regions' features, by their rows.
    fn logits(&self, pass: HeadPass<'_>, region: &Tensor, rows: Vec<i32>) -> PrototypeLogits {
        let HeadPass { params, view_head, ctx } = pass;
        let head = self.head.as_ref().unwrap_or(view_head);
        head.forward(params, region.clone().index_select(0, rows), ctx)
    }

    /// Notes the teacher's logits for masked regions, given the features of all regions of the global views,
    /// and balances them if `balanced` says how: by a temperature and a number of iterations.
    pub(super) fn observe(
        &mut self,
        pass: HeadPass<'_>,
        region: &Tensor,
        balanced: Option<(f64, usize)>,
        collective: &dyn Collective,
    ) {
        let (rows, _) = self.masked().masks.rows(0..GLOBAL_VIEWS);
        let (count, prototypes) = (rows.len(), self.center.numel());
        let device = pass.params.device();
        let teacher = (count > 0).then(|| self.logits(pass, region, rows).detach());
        if let Some(logits) = &teacher {
            let sum = logits.mean() * count as f64;
            let number = Tensor::full(count as f32, [1], &device);
            self.seen.push(Tensor::cat(vec![sum, number], 0));
        }
        let balance = balanced.map(|(temperature, iterations)| {
            let none = || Tensor::zeros([0, prototypes], &device);
            let scores = teacher.as_ref().map_or_else(none, PrototypeLogits::matrix);
            balancing_center(scores, temperature, iterations, collective)
        });
        if let Some(at_hand) = &mut self.at_hand {
            (at_hand.teacher, at_hand.balance) = (teacher, balance);
        }
    }

    /// The center of the targets of the micro-batch at hand, `[K]`.
    fn center_at_hand(&self) -> &Tensor {
        self.masked().balance.as_ref().unwrap_or(&self.center)
    }

    /// The mean over global views of the mean cross-entropy over their masked regions, of the views at hand;
    /// 0 for views without one. `temperatures` are those of student and teacher.
    pub(super) fn loss(
        &self,
        pass: HeadPass<'_>,
        region: &Tensor,
        views: &Views,
        temperatures: [f64; 2],
        precision: Precision,
    ) -> Tensor {
        let device = region.device();
        let AtHand { masks, teacher, .. } = self.masked();
        let (rows, weights) = masks.rows(views.at_hand.clone());
        let Some(teacher) = teacher.as_ref().filter(|_| !rows.is_empty()) else {
            return Tensor::zeros([1], &device);
        };
        // The teacher's rows are those of all global views.
        let first = masks.count(0..views.at_hand.start);
        let mut pairs = Pairs::new();
        for (place, weight) in weights.into_iter().enumerate() {
            pairs.push([(first + place, weight)]);
        }
        ops::prototype_cross_entropy(
            self.logits(pass, region, rows),
            teacher.clone(),
            self.center_at_hand().clone(),
            TeacherRows::new(&pairs, &device),
            temperatures,
            precision,
        )
    }

    /// EMA of the center with the mean of all masked regions of a step, of all processes; it stays where
    /// there is none.
    pub(super) fn commit(&mut self, momentum: f64, collective: &dyn Collective) {
        let prototypes = self.center.numel();
        let device: Device = self.center.device();
        let none = Tensor::zeros([prototypes + 1], &device);
        let sums = self.seen.drain(..).fold(none, |sum, own| sum + own);
        let sums = collective.all_reduce(sums);
        let number = sums.clone().narrow(0, prototypes, 1);
        let mean = sums.narrow(0, 0, prototypes) / number.clone().clamp_min(1.0);
        // 1, or 0 where there is none.
        let has_any = (number * -1.0).clamp_min(-1.0) * -1.0;
        let step = (mean - self.center.clone()) * has_any * (1.0 - momentum);
        self.center = self.center.clone() + step;
    }

    /// Signals of the micro-batch at hand: how many regions are masked, in per cent, and the entropy of the
    /// teacher's distributions for them and of their mean, in nats.
    pub(super) fn signals(&self, temperature: f64) -> Vec<(&'static str, f64)> {
        let AtHand { masks, sides, teacher, .. } = self.masked();
        let [height, width] = self.masking.regions(sides[0]);
        let regions = GLOBAL_VIEWS * masks.images() * height * width;
        let share = 100.0 * masks.count(0..GLOBAL_VIEWS) as f64 / regions as f64;
        let mut signals = vec![(MASKED_PATCHES, share)];
        if let Some(teacher) = teacher {
            let center = self.center_at_hand().clone();
            let centered = teacher.matrix() - center.reshape([1, teacher.prototypes()]);
            let distributions = (centered / temperature).softmax(1);
            let marginal = distributions.clone().mean_dim(0);
            signals.push((PATCH_ENTROPY, mean_entropy(distributions)));
            signals.push((PATCH_MARGINAL_ENTROPY, mean_entropy(marginal)));
        }
        signals
    }
}

/// Masked patches of the global views, in per cent.
const MASKED_PATCHES: &str = "masked_patches";
/// Mean entropy of the teacher's distributions for masked patches, in nats.
const PATCH_ENTROPY: &str = "patch_entropy";
/// Entropy of their mean.
const PATCH_MARGINAL_ENTROPY: &str = "patch_marginal_entropy";
