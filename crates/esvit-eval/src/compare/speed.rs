//! How fast a backbone is.

use esvit_data::Preprocess;
use esvit_kernels::pool;
use esvit_nn::backbone::{Backbone, BackboneConfig};
use esvit_nn::params::Params;
use esvit_nn::{Device, ForwardCtx, Tensor};

use super::RunResult;
use super::rows::groups;
use crate::bench::{median, time};

/// Pixels of a batch, and the fewest and most images that it has.
const PIXELS: usize = 1 << 20;
const BATCH: [usize; 2] = [8, 64];
const ITERATIONS: usize = 5;

/// Images per second of the forward pass of each network, by the shape and the preprocessing of its runs.
#[derive(Debug, Default)]
pub struct Speeds(Vec<Speed>);

#[derive(Debug)]
struct Speed {
    shape: String,
    preprocess: String,
    images_per_s: f64,
}

impl Speeds {
    /// Measures the networks of all runs, with initial values, one after the other: when each run ends, the
    /// machine may be busy with other things.
    ///
    /// # Errors
    /// When a run has the shape or the preprocessing of no network.
    pub fn measure(results: &[RunResult], device: &Device) -> Result<Self, serde_json::Error> {
        let networks = groups(results, |run| (&run.shape, &run.preprocess));
        let speed = |runs: &Vec<&RunResult>| {
            let RunResult { shape, preprocess, .. } = runs[0];
            let config: BackboneConfig = serde_json::from_str(shape)?;
            let size = serde_json::from_str::<Preprocess>(preprocess)?.size();
            let (network, specs) = config.build(0.0);
            let params = Params::init(&specs, 0, device).for_inference();
            let images_per_s = forward_images_per_s(&*network, &params, size);
            Ok(Speed { shape: shape.clone(), preprocess: preprocess.clone(), images_per_s })
        };
        networks.iter().map(speed).collect::<Result<_, _>>().map(Self)
    }

    /// That of a run's network, if it was measured.
    pub fn of(&self, run: &RunResult) -> Option<f64> {
        let is_it = |speed: &&Speed| speed.shape == run.shape && speed.preprocess == run.preprocess;
        self.0.iter().find(is_it).map(|speed| speed.images_per_s)
    }

    /// The same for the networks of all runs, for tests.
    #[cfg(test)]
    pub(super) fn alike(results: &[RunResult], images_per_s: f64) -> Self {
        let speed = |run: &RunResult| {
            let (shape, preprocess) = (run.shape.clone(), run.preprocess.clone());
            Speed { shape, preprocess, images_per_s }
        };
        Self(results.iter().map(speed).collect())
    }
}

/// Images of `size` pixels per second, in f32, as evaluations compute them: the median of five batches.
fn forward_images_per_s(network: &dyn Backbone, params: &Params, size: usize) -> f64 {
    let [least, most] = BATCH;
    let batch = (PIXELS / (size * size).max(1)).clamp(least, most);
    let shape = [batch, 3, size, size];
    // Values between -1 and 1 that are not all alike.
    let pixels: Vec<f32> =
        (0..batch * 3 * size * size).map(|i| (i % 255) as f32 / 127.0 - 1.0).collect();
    let images = Tensor::new(pixels, shape, &params.device());
    let seconds = time(ITERATIONS, |_| {
        let view = pool::run(|| {
            network.forward(params, images.clone(), &ForwardCtx::eval()).view.to_vec::<f32>()
        });
        std::hint::black_box(view);
    });
    batch as f64 / median(&seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::result::example;
    use crate::testing::backbone;

    #[test]
    fn each_network_has_a_speed() {
        let network = backbone(1);
        let of_network = |size: u32| RunResult {
            shape: serde_json::to_string(&network.config).unwrap(),
            preprocess: serde_json::to_string(&Preprocess::published(size)).unwrap(),
            ..example("view", 0, 30.0)
        };
        let runs = [of_network(16), of_network(32), of_network(16)];
        let speeds = Speeds::measure(&runs, &Device::Cpu).unwrap();
        let [first, second, third] = runs.each_ref().map(|run| speeds.of(run).unwrap());
        assert!(first.is_finite() && first > 0.0 && second > 0.0, "{first} {second}");
        assert_eq!((first, speeds.0.len()), (third, 2));
        assert_eq!(speeds.of(&of_network(64)), None);
        assert!(Speeds::measure(&[example("view", 0, 30.0)], &Device::Cpu).is_err());
    }
}
