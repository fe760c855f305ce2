//! ELEVATER's hyper-parameter tuning (Li et al. 2022): for each of six learning rates, the L2
//! penalty is searched on a grid of 97 points, first coarsely and then around the best point.
//!
//! Each refinement tries both neighbors of the best point. (The published code trains the left one
//! twice.)

use super::metrics::Score;
use super::sweep::Sweep;
use super::{LastBlocks, LinearClassifier, Result, Setting, Sgd, Subset, check_positive, sgd};

/// Learning rates of the protocol.
pub const ELEVATER_LRS: [f64; 6] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Number of grid points, L2 penalties from 1e-6 to 1e6.
const POINTS: usize = 97;
/// Stride of the coarse search.
const COARSE: usize = 16;
/// Distances of the neighbors tried in each refinement.
const REFINEMENTS: [usize; 4] = [8, 4, 2, 1];

/// The tuning protocol.
#[derive(Debug, Clone, PartialEq)]
pub struct Elevater {
    /// Learning rates for a batch size of 256.
    pub lrs: Vec<f64>,
    /// Training of heads during the search.
    pub tuning: Sgd,
    /// Epochs of the final fit.
    pub final_epochs: usize,
}

impl Default for Elevater {
    fn default() -> Self {
        let tuning = Sgd { epochs: 10, ..Sgd::default() };
        Self { lrs: ELEVATER_LRS.to_vec(), tuning, final_epochs: 50 }
    }
}

/// Search state for one number of blocks and one learning rate.
struct Search {
    blocks: LastBlocks,
    lr: f64,
    best: Option<(usize, Score)>,
}

impl Search {
    fn setting(&self, point: usize) -> Setting {
        Setting { blocks: self.blocks, lr: Some(self.lr), l2: Some(l2_penalty(point)) }
    }

    /// Neighbors of the best point at a distance.
    fn neighbors(&self, distance: usize) -> Vec<usize> {
        let Some((best, _)) = self.best else { return Vec::new() };
        let neighbors = [best.checked_sub(distance), best.checked_add(distance)];
        neighbors.into_iter().flatten().filter(|&point| point < POINTS).collect()
    }
}

/// L2 penalty of a grid point.
fn l2_penalty(point: usize) -> f64 {
    10f64.powf(-6.0 + 12.0 * point as f64 / (POINTS - 1) as f64)
}

impl Elevater {
    pub(super) fn check(&self) -> Result<()> {
        self.tuning.check()?;
        Sgd { epochs: self.final_epochs, ..self.tuning }.check()?;
        check_positive("a learning rate", &self.lrs)
    }

    pub(super) fn sweep(
        &self,
        fit: &Subset<'_>,
        validation: &Subset<'_>,
        blocks: &[LastBlocks],
        mut sweep: Sweep,
    ) -> Result<Sweep> {
        let mut searches: Vec<Search> = blocks
            .iter()
            .flat_map(|&blocks| self.lrs.iter().map(move |&lr| Search { blocks, lr, best: None }))
            .collect();
        for distance in [None].into_iter().chain(REFINEMENTS.map(Some)) {
            let points = |(index, search): (usize, &Search)| -> Vec<(usize, usize)> {
                let points = match distance {
                    None => (0..POINTS).step_by(COARSE).collect(),
                    Some(distance) => search.neighbors(distance),
                };
                points.into_iter().map(|point| (index, point)).collect()
            };
            let tried: Vec<(usize, usize)> = searches.iter().enumerate().flat_map(points).collect();
            let settings = tried.iter().map(|&(search, point)| searches[search].setting(point));
            let settings: Vec<Setting> = settings.collect();
            // Heads for the points of all searches, in one pass over the rows.
            let classifiers = sgd::train_heads(fit, &settings, &self.tuning)?;
            for (((search, point), setting), classifier) in
                tried.into_iter().zip(settings).zip(classifiers)
            {
                let best = &mut searches[search].best;
                if let Some(score) = sweep.add(setting, &classifier, validation)
                    && best.is_none_or(|(_, best)| score.is_better_than(&best))
                {
                    *best = Some((point, score));
                }
            }
        }
        Ok(sweep)
    }

    pub(super) fn fit(&self, setting: &Setting, data: &Subset<'_>) -> Result<LinearClassifier> {
        sgd::fit(&Sgd { epochs: self.final_epochs, ..self.tuning }, setting, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_neighbors_of_the_best_point_are_tried() {
        assert!((l2_penalty(0) - 1e-6).abs() < 1e-18 && (l2_penalty(48) - 1.0).abs() < 1e-12);
        let score = Score { value: 50.0, loss: 1.0 };
        let mut search =
            Search { blocks: LastBlocks { n: 1, first: 0 }, lr: 0.1, best: Some((16, score)) };
        assert_eq!(search.neighbors(8), [8, 24]);
        search.best = Some((96, score));
        assert_eq!(search.neighbors(4), [92]);
        search.best = Some((0, score));
        assert_eq!(search.neighbors(1), [1]);
    }
}
