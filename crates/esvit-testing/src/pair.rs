//! Two processes of a run, as threads.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use esvit_nn::tape::{Backward, InputGradients, Operation, Saved, apply};
use esvit_nn::tensor::Shape;
use esvit_nn::{Collective, Tensor};

/// One of two, which sends the other its values.
#[derive(Debug, Clone)]
pub struct Pair {
    rank: usize,
    to: Sender<Vec<f32>>,
    from: Arc<Mutex<Receiver<Vec<f32>>>>,
}

impl Pair {
    /// What `run` returns as each of both, by rank. Each has a thread pool of its own: in one that they
    /// share, a thread that waits for the other process could be the one that has its work.
    pub fn run<R: Send>(run: impl Fn(Arc<dyn Collective>) -> R + Sync) -> [R; 2] {
        let run_apart = |pair| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            pool.unwrap().install(|| run(pair))
        };
        std::thread::scope(|scope| {
            let threads = Self::connected().map(|pair| scope.spawn(|| run_apart(pair)));
            threads.map(|thread| thread.join().unwrap())
        })
    }

    fn connected() -> [Arc<dyn Collective>; 2] {
        let ((to_first, of_first), (to_second, of_second)) = (channel(), channel());
        [(0, to_second, of_first), (1, to_first, of_second)].map(|(rank, to, from)| {
            let pair: Arc<dyn Collective> =
                Arc::new(Self { rank, to, from: Arc::new(Mutex::new(from)) });
            pair
        })
    }

    /// The values of both, by rank.
    fn both(&self, tensor: &Tensor) -> [Tensor; 2] {
        self.to.send(tensor.to_vec()).unwrap();
        let other = self.from.lock().unwrap().recv().unwrap();
        let other = Tensor::new(other, tensor.shape(), &tensor.device());
        if self.rank == 0 { [tensor.clone(), other] } else { [other, tensor.clone()] }
    }
}

impl Collective for Pair {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        2
    }

    fn all_reduce(&self, tensor: Tensor) -> Tensor {
        let [first, second] = self.both(&tensor);
        first + second
    }

    fn all_gather(&self, tensor: Tensor) -> Tensor {
        Tensor::cat(self.both(&tensor).to_vec(), 0)
    }

    fn all_gather_grad(&self, tensor: Tensor) -> Tensor {
        apply(Gather(self.clone()), [tensor])
    }

    fn broadcast(&self, tensor: Tensor, root: usize) -> Tensor {
        self.both(&tensor)[root].clone()
    }
}

/// [`Collective::all_gather`] with a gradient.
#[derive(Debug)]
struct Gather(Pair);

impl Operation for Gather {
    fn output(&self, inputs: &[Shape]) -> Shape {
        inputs[0].with(0, 2 * inputs[0][0])
    }

    fn forward(&self, inputs: Vec<Tensor>, _: bool) -> (Tensor, Option<Saved>) {
        (self.0.all_gather(inputs[0].clone()), None)
    }

    fn backward(&self, pass: Backward<'_>) -> InputGradients {
        let rows = pass.gradient.shape()[0] / 2;
        let of_both = self.0.all_reduce(pass.gradient);
        vec![Some(of_both.narrow(0, self.0.rank * rows, rows))]
    }
}
