//! An objective: every view tells its image from the others by a momentum encoder's keys (InfoNCE, as in
//! MoCo-v3), from which a running mean is taken.

use esvit_nn::Collective;
use esvit_nn::layers::Linear;
use esvit_nn::ops::{self, Activation};
use esvit_nn::params::Scope;
use esvit_train::objective::{EmaTiming, Loss, Pass, StateTensor, Teacher};

use super::*;

const TEMPERATURE: f64 = 0.2;
const WIDTH: usize = 8;

#[derive(Debug)]
struct Contrast {
    head: Linear,
    /// Only the student has it.
    predictor: Linear,
    mean: Tensor,
    /// Keys of the micro-batch at hand, `[2 B, WIDTH]`, and their mean.
    keys: Option<[Tensor; 2]>,
}

impl Contrast {
    fn new(scope: &mut Scope<'_>, width: usize) -> Self {
        let head = Linear::new(&mut scope.head("projector"), width, WIDTH);
        let predictor = Linear::new(&mut scope.student_head("predictor"), WIDTH, WIDTH);
        Self { head, predictor, mean: Tensor::zeros([WIDTH], &Device::Cpu), keys: None }
    }

    fn embed(&self, Pass { params, features, ctx, .. }: Pass<'_>) -> Tensor {
        self.head.forward(params, features.view, Activation::None, ctx)
    }
}

impl Objective for Contrast {
    fn chance_loss(&self) -> f64 {
        (IMAGES as f64).ln()
    }

    fn teacher(&self, _at: &StepInfo) -> Teacher {
        Teacher::Ema { timing: EmaTiming::BeforeForward, momentum: 0.9 }
    }

    fn targets(
        &mut self,
        _batch: &MicroBatch,
        teacher: Option<Pass<'_>>,
        _at: &StepInfo,
        _collective: &dyn Collective,
    ) {
        let keys = self.embed(teacher.unwrap());
        let mean = keys.clone().mean_dim(0).reshape([WIDTH]);
        let keys = ops::l2_normalize(keys - self.mean.clone().reshape([1, WIDTH]));
        self.keys = Some([keys, mean]);
    }

    fn loss(&mut self, student: Pass<'_>, _at: &StepInfo, _collective: &dyn Collective) -> Loss {
        let batch = student.batch;
        let (params, ctx) = (student.params, student.ctx);
        let queries = self.embed(student);
        let step = self.predictor.forward(params, queries.clone(), Activation::None, ctx);
        let queries = queries + step;
        let queries = ops::l2_normalize(queries - self.mean.clone().reshape([1, WIDTH]));
        let [keys, _] = self.keys.as_ref().unwrap();
        let of = |rows: &Tensor, view: usize| rows.clone().narrow(0, view * batch, batch);
        let own: Vec<i32> = (0..batch as i32).collect();
        let losses = [0, 1].map(|view| {
            let logits = of(&queries, view).matmul(of(keys, 1 - view).transpose()) / TEMPERATURE;
            -logits.log_softmax(1).pick(&own).mean()
        });
        let [first, second] = losses;
        Loss::single("contrast", (first + second) * 0.5)
    }

    fn commit(&mut self, _at: &StepInfo, collective: &dyn Collective) {
        let [_, mean] = self.keys.take().unwrap();
        let share = 0.1 / collective.world() as f64;
        self.mean = self.mean.clone() * 0.9 + collective.all_reduce(mean) * share;
    }

    fn state(&self) -> Vec<StateTensor> {
        vec![StateTensor { name: "mean_key", shape: vec![WIDTH], value: self.mean.clone() }]
    }

    fn set_state(&mut self, _name: &str, value: Tensor) {
        self.mean = value;
    }
}

/// It learns, and its state is in the checkpoint: without it a resumed run would differ. What only
/// the student has is stored once.
#[test]
fn an_objective_of_ones_own() {
    let new = || {
        let backbone = esvit_nn::BackboneConfig::Swin(esvit_testing::tiny_swin());
        let (network, objective) = Network::new(&backbone, 0.0, Contrast::new);
        learner(network, Box::new(objective))
    };
    let (learner, [first, last]) = trained(new, &[32, 32]);
    let chance = learner.objective.chance_loss() as f32;
    assert!(last < first && last < 0.8 * chance, "{first} {last} {chance}");
    let [state] = &learner.objective.state()[..] else { panic!("one tensor") };
    assert!(state.value.to_vec::<f32>().iter().any(|&value| value != 0.0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.safetensors");
    checkpoint::save(&path, &learner, Metadata::new(STEPS, 1, &Config::default(), None)).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let tensors = file.file().tensors().iter().map(|tensor| tensor.name.as_str());
    let with_predictor = tensors.filter(|name| name.contains("predictor.weight"));
    assert_eq!(
        with_predictor.collect::<Vec<_>>(),
        [
            "optimizer.exp_avg.predictor.weight",
            "optimizer.exp_avg_sq.predictor.weight",
            "student.predictor.weight"
        ]
    );
    let initialize = |file: &Checkpoint, next: &mut Learner| file.initialize(next, None);
    for load in [initialize, Checkpoint::continue_from] {
        let mut next = new();
        let loaded = load(&file, &mut next).unwrap();
        assert_eq!(
            (loaded.found, loaded.new),
            (["backbone", "projector", "predictor"].map(String::from).into(), vec![])
        );
        assert!(next.student.flat().to_vec::<f32>() == learner.student.flat().to_vec::<f32>());
    }
}
