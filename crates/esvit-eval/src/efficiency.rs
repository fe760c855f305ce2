//! Cost of multi-stage and single-scale backbones with and without the region loss: the efficiency
//! table of the EsViT paper, on this machine.

use std::fmt::Write;

use esvit_nn::BackboneConfig;
use serde::Serialize;

/// Cost of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Median seconds per step.
    pub seconds: f64,
    /// Peak resident memory of the process that ran it, in MiB.
    pub memory_mb: f64,
}

/// Training steps of one batch size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepCosts {
    /// Batch size.
    pub batch: usize,
    /// With the view loss only.
    pub view: Cost,
    /// With the view and the region loss.
    pub both: Cost,
    /// Time with the region loss divided by time without.
    pub time_ratio: f64,
    /// The same ratio of memory.
    pub memory_ratio: f64,
}

impl StepCosts {
    /// Computes the ratios.
    pub fn new(batch: usize, view: Cost, both: Cost) -> Self {
        Self {
            batch,
            view,
            both,
            time_ratio: both.seconds / view.seconds,
            memory_ratio: both.memory_mb / view.memory_mb,
        }
    }
}

/// Cost of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackboneCost {
    /// Name of the architecture.
    pub model: String,
    /// Number of stages.
    pub stages: usize,
    /// Number of parameters, without heads.
    pub parameters: usize,
    /// Multiply-accumulates per image at the size of a global crop.
    pub macs: u64,
    /// Images per second of the forward pass at that size.
    pub forward_images_per_s: f64,
    /// Steps of growing batch size, as far as they succeeded.
    pub steps: Vec<StepCosts>,
    /// Why a larger batch failed.
    pub stopped: Option<String>,
}

/// Number of parameters of a backbone, without heads.
pub fn parameters(config: &BackboneConfig) -> usize {
    config.build(0.0).1.parameters()
}

/// The results as text.
pub fn table(backbones: &[BackboneCost]) -> String {
    let mut text = String::new();
    for backbone in backbones {
        let BackboneCost { model, stages, parameters, macs, forward_images_per_s, .. } = backbone;
        let stages = if *stages == 1 { "one stage".into() } else { format!("{stages} stages") };
        let _ = writeln!(
            text,
            "{model}: {stages}, {:.1} M parameters, {:.2} G multiply-accumulates, \
             {forward_images_per_s:.1} images per second forward",
            *parameters as f64 / 1e6,
            *macs as f64 / 1e9
        );
        let _ = writeln!(
            text,
            "  {:>5} {:>19} {:>19} {:>7} {:>7}",
            "batch", "L_V", "L_V + L_R", "time", "memory"
        );
        for steps in &backbone.steps {
            let cost = |cost: &Cost| format!("{:.2} s {:>6.0} MB", cost.seconds, cost.memory_mb);
            let _ = writeln!(
                text,
                "  {:>5} {:>19} {:>19} {:>6.2}x {:>6.2}x",
                steps.batch,
                cost(&steps.view),
                cost(&steps.both),
                steps.time_ratio,
                steps.memory_ratio
            );
        }
        if let Some(reason) = &backbone.stopped {
            let _ = writeln!(text, "  failed: {reason}");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_figure() {
        let cost = |seconds, memory_mb| Cost { seconds, memory_mb };
        let steps = StepCosts::new(4, cost(2.0, 1000.0), cost(2.5, 1100.0));
        assert_eq!((steps.time_ratio, steps.memory_ratio), (1.25, 1.1));
        let backbone = BackboneCost {
            model: "swin".into(),
            stages: 4,
            parameters: 27_500_000,
            macs: 4_494_000_000,
            forward_images_per_s: 18.26,
            steps: vec![steps],
            stopped: Some("no memory".into()),
        };
        let table = table(&[backbone]);
        for part in ["27.5 M", "4.49 G", "18.3 images", "2.50 s   1100 MB", "1.25x", "no memory"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    /// The published number of Swin-T without its classifier.
    #[test]
    fn parameters_are_counted() {
        let config = esvit_nn::zoo::find("swin_tiny_w7").map(|arch| arch.config()).unwrap();
        assert_eq!(parameters(&config), 27_519_354);
    }
}
