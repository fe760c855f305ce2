//! What each choice of instruction set and precision reaches on this machine: products alone, training
//! steps, forward passes.

use std::time::{Duration, Instant};

use esvit_kernels::isa::{self, Isa};
use esvit_nn::ops::Precision;
use serde::Serialize;

use super::forward::Forward;
use super::train_step::Step;
use super::{Bench, BenchError, gemm_gflops, median, register_gflops};

/// What training steps may take together, and what forward passes may: with the rest, about two
/// minutes. Each choice is timed once at least.
const STEPS: Duration = Duration::from_secs(70);
const FORWARD: Duration = Duration::from_secs(20);

/// Images of a forward pass for each of a step.
const FORWARD_IMAGES: usize = 2;

/// A choice is better than that of `auto` if this times its step takes less time.
const MARGIN: f64 = 1.03;

/// What an instruction set reaches in a precision.
#[derive(Debug, Clone, Serialize)]
pub struct ChoiceSpeed {
    /// The instruction set.
    pub isa: &'static str,
    /// The precision of GEMM operands.
    pub precision: &'static str,
    /// Whether `auto` takes it.
    pub is_auto: bool,
    /// Peak GEMM throughput in GFLOP/s: products alone.
    pub peak_gflops: f64,
    /// The machine's own limit in GFLOP/s: registers alone.
    pub limit_gflops: f64,
    /// Median time of a training step in seconds; None where a run would not be computed like that.
    pub step_s: Option<f64>,
    /// The same of a forward pass.
    pub forward_s: Option<f64>,
}

/// What all choices of a machine reach.
#[derive(Debug, Clone, Serialize)]
pub struct ChoicesReport {
    /// Name of the architecture.
    pub model: String,
    /// Images of a step.
    pub batch: usize,
    /// Images of a forward pass.
    pub forward_batch: usize,
    /// Number of prototypes of each head.
    pub prototypes: usize,
    /// Number of threads.
    pub threads: usize,
    /// Timed rounds of steps and of forward passes, in which choices take turns.
    pub rounds: [usize; 2],
    /// The choices, from the least capable instruction set on.
    pub choices: Vec<ChoiceSpeed>,
}

impl ChoicesReport {
    /// What `auto` takes.
    ///
    /// # Panics
    /// If the report was not made by [`choices`], of which one is that of `auto`.
    pub fn auto(&self) -> &ChoiceSpeed {
        self.choices.iter().find(|choice| choice.is_auto).expect("`auto` is a choice")
    }

    /// What a run in a precision is computed by: the most capable of its choices.
    pub fn of(&self, precision: Precision) -> Option<&ChoiceSpeed> {
        let is_taken = |c: &&ChoiceSpeed| c.precision == precision.name() && c.step_s.is_some();
        self.choices.iter().rfind(is_taken)
    }

    /// The fastest choice, if its step takes over 3 % less time than that of `auto`, and how many times
    /// the time of that `auto` takes.
    pub fn faster(&self) -> Option<(&ChoiceSpeed, f64)> {
        let auto = self.auto().step_s?;
        let times = self.choices.iter().filter_map(|choice| Some((choice, auto / choice.step_s?)));
        times.filter(|(_, times)| *times > MARGIN).max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// An instruction set in a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    isa: Isa,
    precision: Precision,
    /// Whether it may be the best one, so that networks are run.
    is_timed: bool,
}

/// Measures all choices within the instruction set in use, which stays in use afterwards. `bench` is
/// the training step, whose precision does not count; a forward pass has twice as many images. `say`
/// is told what comes next.
///
/// # Errors
/// [`BenchError`] for invalid settings.
pub fn choices(bench: &Bench, mut say: impl FnMut(&str)) -> Result<ChoicesReport, BenchError> {
    let best = isa::current();
    let report = measure(bench, best, &mut say);
    isa::limit(best);
    report
}

fn measure(
    bench: &Bench,
    best: Isa,
    say: &mut dyn FnMut(&str),
) -> Result<ChoicesReport, BenchError> {
    let auto = Precision::auto();
    let all = choices_within(best);
    say("products alone");
    let products = all.iter().map(|choice| {
        isa::limit(choice.isa);
        let Choice { precision, .. } = *choice;
        let rounds = 4 * bench.iterations;
        [gemm_gflops(precision, rounds), register_gflops(precision, rounds)]
    });
    let products: Vec<[f64; 2]> = products.collect();
    let timed: Vec<Choice> = all.iter().copied().filter(|choice| choice.is_timed).collect();
    say("training steps");
    let mut step = Step::new(bench)?;
    let steps = in_turns(&timed, bench.iterations, STEPS, |precision, round| {
        step.set_precision(bench, precision);
        let began = Instant::now();
        step.take(round)?;
        Ok(began.elapsed())
    })?;
    drop(step);
    say("forward passes");
    let forward_batch = FORWARD_IMAGES * bench.batch;
    let pass = Forward::new(&Bench { batch: forward_batch, ..bench.clone() })?;
    let passes = in_turns(&timed, bench.iterations, FORWARD, |precision, _| {
        let began = Instant::now();
        pass.run(precision);
        Ok(began.elapsed())
    })?;
    let speed = |(choice, [peak_gflops, limit_gflops]): (&Choice, [f64; 2])| {
        let place = timed.iter().position(|other| other == choice);
        let of = |times: &[Vec<f64>]| place.map(|place| median(&times[place]));
        ChoiceSpeed {
            isa: choice.isa.name(),
            precision: choice.precision.name(),
            is_auto: choice.precision == auto && choice.isa == kernels_of(best, auto),
            peak_gflops,
            limit_gflops,
            step_s: of(&steps),
            forward_s: of(&passes),
        }
    };
    Ok(ChoicesReport {
        model: bench.model.clone(),
        batch: bench.batch,
        forward_batch,
        prototypes: bench.prototypes,
        threads: rayon::current_num_threads(),
        rounds: [&steps, &passes].map(|times| times.first().map_or(0, Vec::len)),
        choices: all.iter().zip(products).map(speed).collect(),
    })
}

/// The instruction set whose kernels compute in a precision where `best` is in use: f32 is multiplied
/// alike by all that have AVX-512, and by NEON with and without BF16.
fn kernels_of(best: Isa, precision: Precision) -> Isa {
    match precision {
        Precision::F32 if best == Isa::NeonBf16 => Isa::Baseline,
        Precision::F32 if best >= Isa::Avx512 => Isa::Avx512,
        Precision::F32 | Precision::Bf16 | Precision::Bf16x3 => best,
    }
}

/// The choices that have kernels of their own where `best` is in use. The baseline is one where f32 is
/// computed by it.
fn choices_within(best: Isa) -> Vec<Choice> {
    let mut found = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|&isa| isa <= best) {
        if isa == Isa::Baseline && kernels_of(best, Precision::F32) != isa {
            continue;
        }
        let multiplies_bf16 = isa.multiplies_bf16();
        if !multiplies_bf16 {
            found.push(Choice { isa, precision: Precision::F32, is_timed: true });
        }
        // Where something multiplies it, what widens it is of no use.
        let is_timed = isa == best || multiplies_bf16;
        found.push(Choice { isa, precision: Precision::Bf16, is_timed });
        if isa.has_tiles() {
            found.push(Choice { isa, precision: Precision::Bf16x3, is_timed });
        }
    }
    found
}

/// Seconds of `call`, which takes a precision and the number of the round and returns its time, for
/// each choice: up to `rounds` rounds after one that is not counted, and none that would probably end
/// after `budget`, but for the first.
fn in_turns(
    choices: &[Choice],
    rounds: usize,
    budget: Duration,
    mut call: impl FnMut(Precision, usize) -> Result<Duration, BenchError>,
) -> Result<Vec<Vec<f64>>, BenchError> {
    let began = Instant::now();
    let mut seconds = vec![Vec::new(); choices.len()];
    for round in 0..=rounds.max(1) {
        let past = began.elapsed();
        if round > 1 && past + past / round as u32 > budget {
            break;
        }
        for (choice, seconds) in choices.iter().zip(&mut seconds) {
            isa::limit(choice.isa);
            let time = call(choice.precision, round)?;
            if round > 0 {
                seconds.push(time.as_secs_f64());
            }
        }
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(best: Isa) -> Vec<(Isa, Precision)> {
        let timed = choices_within(best).into_iter().filter(|choice| choice.is_timed);
        timed.map(|choice| (choice.isa, choice.precision)).collect()
    }

    #[test]
    fn choices_have_kernels_of_their_own() {
        use Isa::{Amx, Avx2, Avx512, Avx512Bf16, Baseline, NeonBf16};
        use Precision::{Bf16, Bf16x3, F32};
        assert_eq!(timed(Baseline), [(Baseline, F32), (Baseline, Bf16)]);
        assert_eq!(timed(Avx2), [(Avx2, F32), (Avx2, Bf16)]);
        assert_eq!(timed(Avx512), [(Avx2, F32), (Avx512, F32), (Avx512, Bf16)]);
        assert_eq!(timed(Avx512Bf16), [(Avx2, F32), (Avx512, F32), (Avx512Bf16, Bf16)]);
        let amx = [(Avx2, F32), (Avx512, F32), (Avx512Bf16, Bf16), (Amx, Bf16), (Amx, Bf16x3)];
        assert_eq!(timed(Amx), amx);
        let arm = [(Baseline, F32), (NeonBf16, Bf16)];
        assert_eq!(timed(NeonBf16), arm);
        // Products alone are measured of what is widened, too, and of `bf16x3`.
        assert_eq!(choices_within(Amx).len(), 7);
        for best in Isa::ALL {
            for precision in [F32, Bf16] {
                let taken = (kernels_of(best, precision), precision);
                assert!(timed(best).contains(&taken), "{taken:?} of {best:?}");
            }
        }
    }

    fn report(auto: usize, steps: [Option<f64>; 4]) -> ChoicesReport {
        let choice = |(place, step_s): (usize, Option<f64>)| ChoiceSpeed {
            isa: Isa::ALL[place].name(),
            precision: if place < 3 { "f32" } else { "bf16" },
            is_auto: place == auto,
            peak_gflops: 1.0,
            limit_gflops: 1.0,
            step_s,
            forward_s: step_s,
        };
        ChoicesReport {
            model: String::new(),
            batch: 4,
            forward_batch: 8,
            prototypes: 1,
            threads: 1,
            rounds: [1, 1],
            choices: steps.into_iter().enumerate().map(choice).collect(),
        }
    }

    #[test]
    fn what_is_faster_by_more_than_noise() {
        let found = |auto, steps| report(auto, steps).faster().map(|(choice, _)| choice.isa);
        assert_eq!(found(2, [None, Some(1.0), Some(1.02), Some(1.0)]), None);
        assert_eq!(found(2, [None, Some(1.0), Some(1.04), Some(1.02)]), Some("avx2"));
        assert_eq!(found(2, [None, Some(1.0), Some(1.04), Some(0.98)]), Some("avx512-bf16"));
        assert_eq!(found(3, [None, Some(1.0), Some(1.04), Some(0.98)]), None);
        let (_, times) =
            report(1, [None, Some(3.0), Some(2.0), None]).faster().map(|f| (f.0.isa, f.1)).unwrap();
        assert_eq!(times, 1.5);
    }

    #[test]
    fn a_precision_is_computed_by_the_best_there_is() {
        let report = report(1, [Some(9.0), Some(3.0), None, Some(2.0)]);
        let isa = |precision| report.of(precision).map(|choice| choice.isa);
        assert_eq!([Precision::F32, Precision::Bf16].map(isa), [Some("avx2"), Some("avx512-bf16")]);
        assert_eq!(report.auto().isa, "avx2");
    }
}
