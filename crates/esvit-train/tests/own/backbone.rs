//! A backbone: patches, and blocks that mix the tokens of an image by their mean.

use std::ops::ControlFlow;
use std::sync::Arc;

use esvit_nn::backbone::{Backbone, BlockOutput, Input, Stage, TokenMaps};
use esvit_nn::layers::{LayerNorm, Linear};
use esvit_nn::ops::{self, Activation};
use esvit_nn::params::{Part, Scope};
use esvit_nn::{ForwardCtx, Network, Params, Tensor, onnx};
use esvit_train::objective::esvit::{Esvit, EsvitConfig};
use esvit_train::objective::{Objective, Setup};
use esvit_weights::Float;

use super::{batch, learner, trained};

const PATCH: usize = 4;
const WIDTH: usize = 16;

#[derive(Debug)]
struct Mixer {
    embed: Linear,
    blocks: Vec<(LayerNorm, Linear, Linear)>,
    norm: LayerNorm,
}

impl Mixer {
    fn new(scope: &mut Scope<'_>, depth: usize) -> Self {
        let embed = Linear::new(&mut scope.at("embed"), 3 * PATCH * PATCH, WIDTH);
        let block = |index: usize| {
            let mut scope = scope.at(format_args!("blocks.{index}")).part(Part::Block(index));
            let norm = LayerNorm::new(&mut scope.at("norm"), WIDTH, 1e-6);
            let own = Linear::new(&mut scope.at("own"), WIDTH, WIDTH);
            (norm, own, Linear::new(&mut scope.at("mean"), WIDTH, WIDTH))
        };
        let blocks = (0..depth).map(block).collect();
        let mut last = scope.at("norm").part(Part::FinalNorm);
        Self { embed, blocks, norm: LayerNorm::new(&mut last, WIDTH, 1e-6) }
    }
}

impl Backbone for Mixer {
    fn family(&self) -> &'static str {
        "Mixer"
    }

    fn stages(&self) -> Vec<Stage> {
        vec![Stage { blocks: self.blocks.len(), width: WIDTH, stride: PATCH, heads: 0 }]
    }

    fn run(
        &self,
        params: &Params,
        input: Input<'_>,
        ctx: &ForwardCtx,
        tap: &mut dyn FnMut(BlockOutput<'_>) -> ControlFlow<()>,
    ) -> Option<TokenMaps> {
        let (rows, segments): (Vec<_>, Vec<_>) =
            input.images.into_iter().map(|images| ops::patchify(images, PATCH)).unzip();
        let rows = self.embed.forward(params, Tensor::cat(rows, 0), Activation::None, ctx);
        let rows = match input.mask {
            Some(mask) => mask.apply(rows),
            None => rows,
        };
        let mut maps = TokenMaps { rows, segments };
        for (index, (norm, own, mean)) in self.blocks.iter().enumerate() {
            let normalized = norm.forward(params, maps.rows.clone(), ctx);
            let means = TokenMaps { rows: normalized.clone(), ..maps.clone() }.means();
            let means = mean.forward(params, means, Activation::None, ctx);
            // The image of every token.
            let tokens = ops::tokens_per_image(&maps.segments);
            let image = (0..).zip(tokens).flat_map(|(image, n)| std::iter::repeat_n(image, n));
            let mixed = means.index_select(0, image.collect::<Vec<i32>>());
            let own = own.forward(params, normalized, Activation::Gelu, ctx);
            maps.rows = maps.rows + own + mixed;
            let ends_stage = index + 1 == self.blocks.len();
            if tap(BlockOutput { index, stage: 0, ends_stage, maps: &maps }).is_break() {
                return None;
            }
        }
        Some(maps)
    }

    fn normalize(&self, params: &Params, maps: TokenMaps, ctx: &ForwardCtx) -> TokenMaps {
        TokenMaps { rows: self.norm.forward(params, maps.rows, ctx), ..maps }
    }
}

/// It learns both tasks of EsViT with views of two sizes, is checkpointed and resumed, its features tell
/// the images apart (the nearest of another view's is the same image's), and it has an ONNX graph.
#[test]
fn a_backbone_of_ones_own() {
    let mut config = EsvitConfig { momentum_teacher: 0.99, ..EsvitConfig::default() };
    (config.head.out_dim, config.head.hidden_dim, config.head.bottleneck_dim) = (32, 16, 8);
    let new = || {
        let (network, objective) = Network::with(
            |scope| Arc::new(Mixer::new(scope, 2)),
            |scope, width| {
                let setup = Setup { width, blocks: 2, ..Setup::default() };
                Box::new(Esvit::new(&config, scope, &setup)) as Box<dyn Objective>
            },
        );
        learner(network, objective)
    };
    let (learner, [_, last]) = trained(new, &[16, 16, 8]);
    assert!(f64::from(last) < learner.objective.chance_loss(), "{last}");
    let health = learner.objective.health().unwrap();
    let signal = |name| health.signal(name).unwrap();
    let information = signal("marginal_entropy") - signal("teacher_entropy");
    assert!(information > 0.5, "{health:?}");

    let ctx = ForwardCtx::eval();
    let backbone = learner.network.backbone();
    let [ours, theirs] = [100, 101].map(|step| {
        let view = batch(step, &[16]).views.swap_remove(0);
        ops::l2_normalize(backbone.forward(learner.evaluated(), view, &ctx).view)
    });
    let nearest = ours.matmul(theirs.transpose()).argmax(1).to_vec::<i32>();
    let right = (0..).zip(&nearest).filter(|(image, found)| image == *found).count();
    assert!(right >= 6, "{nearest:?}");

    let (mut graph, params) = (Vec::new(), learner.evaluated());
    onnx::write(&mut graph, backbone, params, [16, 16], Float::F32, &[]).unwrap();
    let values =
        params.specs().iter().filter(|spec| spec.part.is_backbone()).map(|spec| spec.len());
    assert!(graph.len() > 4 * values.sum::<usize>(), "{} bytes", graph.len());
}
