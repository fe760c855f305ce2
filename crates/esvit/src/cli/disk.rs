//! Room on the disk for the checkpoints of a run.

use std::path::{Path, PathBuf};

use esvit_data::counted;
use esvit_files::{format_bytes, free_bytes};
use esvit_train::run::RunFolder;
use esvit_train::span::RunLength;
use esvit_train::{Config, memory};

/// What the checkpoints of a run take.
pub(super) struct Checkpoints {
    /// Bytes of one that has the moments of the optimizer.
    pub(super) bytes: f64,
    /// The most files at a time that are numbered; one of them is being written.
    numbered: u64,
    /// Whether the best one has a file, which is its own once the numbered ones have gone on.
    has_best: bool,
    /// Bytes of those that are there, in whose place the others come.
    there: u64,
    /// Bytes that are free on the disk, if the system says.
    pub(super) free: Option<u64>,
}

impl Checkpoints {
    /// Those of a run of this length in its folder.
    pub(super) fn of(config: &Config, run: RunLength, out: &Path) -> Self {
        let folder = RunFolder::at(out.into());
        let every = config.checkpoint.every.interval(run).unwrap_or(run.total_steps).max(1);
        // One before the first step and one after the last; how many steps a time makes is not known yet.
        let written = match run.total_steps {
            0 => u64::MAX,
            steps => steps.div_ceil(every) + 1,
        };
        let numbered = folder.list().unwrap_or_default().into_iter().map(|(_, path)| path);
        let length = |path: PathBuf| path.metadata().map_or(0, |found| found.len());
        Self {
            bytes: memory::checkpoint_bytes(config),
            numbered: written.min((config.checkpoint.keep_last as u64).saturating_add(1)),
            has_best: !config.knn.every.is_none(),
            there: numbered.chain([folder.best()]).map(length).sum(),
            free: free_bytes(out),
        }
    }

    /// Files of checkpoints at most.
    pub(super) fn files(&self) -> u64 {
        self.numbered.saturating_add(self.has_best.into())
    }

    /// What they take, in words.
    pub(super) fn describe(&self, out: &Path) -> String {
        let best = if self.has_best { " and the best one" } else { "" };
        let free = self.free.map(|free| format!(", where {} are free", format_bytes(free)));
        format!(
            "disk: {}{best}, {} each, in `{}`{}",
            counted(self.numbered as usize, "checkpoint"),
            format_bytes(self.bytes as u64),
            out.display(),
            free.unwrap_or_default()
        )
    }

    /// What is said where there is no room for them.
    pub(super) fn warning(&self, out: &Path) -> Option<String> {
        let need = (self.bytes * self.files() as f64 - self.there as f64).max(0.0) as u64;
        let free = self.free.filter(|&free| need > free)?;
        Some(format!(
            "the checkpoints take up to {}, and `{}` has room for {}: the run stops when the disk is full\n\
             hint: make room, choose another `--out`, or lower `checkpoint.keep_last`",
            format_bytes(need),
            out.display(),
            format_bytes(free)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_train::config_text::parse_override;

    fn config(texts: &[&str]) -> Config {
        Config::resolve(texts.iter().map(|text| parse_override(text).unwrap()).collect()).unwrap()
    }

    fn files(texts: &[&str], total_steps: u64) -> (u64, bool) {
        let run = RunLength { total_steps, steps_per_epoch: 10 };
        let checkpoints = Checkpoints::of(&config(texts), run, Path::new("none/of/these"));
        (checkpoints.numbered, checkpoints.has_best)
    }

    /// Those that are kept and one that is being written, or all that there ever are.
    #[test]
    fn files_at_a_time() {
        assert_eq!(files(&["checkpoint.every=10 steps"], 100), (4, true));
        assert_eq!(files(&["checkpoint.every=10 steps", "checkpoint.keep_last=1"], 100), (2, true));
        assert_eq!(files(&["checkpoint.every=50%", "knn.every=0"], 100), (3, false));
        assert_eq!(files(&["checkpoint.every=99 steps"], 100), (3, true));
        assert_eq!(files(&["checkpoint.every=100 steps"], 100), (2, true));
        // The length is a time.
        assert_eq!(files(&["checkpoint.every=10%"], 0), (4, true));
    }

    #[test]
    fn a_disk_without_room_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunLength { total_steps: 100, steps_per_epoch: 10 };
        let out = folder.path();
        let config = config(&["model.arch=swin_micro", "objective.head.out_dim=64"]);
        let mut checkpoints = Checkpoints::of(&config, run, out);
        let bytes = memory::checkpoint_bytes(&config) as u64;
        checkpoints.free = Some(5 * bytes + 5);
        assert_eq!(checkpoints.warning(out), None);
        checkpoints.free = Some(4 * bytes);
        let warning = checkpoints.warning(out).unwrap();
        let amounts = [5, 4].map(|files| format_bytes(files * bytes));
        assert!(amounts.iter().all(|amount| warning.contains(amount)), "{warning}");
        assert!(warning.contains("\nhint: make room"), "{warning}");
        // A file that is there gives its place.
        std::fs::create_dir(out.join("checkpoints")).unwrap();
        let there = out.join("checkpoints/epoch=0001-step=00000010.safetensors");
        std::fs::File::create(there).unwrap().set_len(bytes).unwrap();
        let again = Checkpoints { free: Some(4 * bytes + 5), ..Checkpoints::of(&config, run, out) };
        assert_eq!(again.warning(out), None);
        checkpoints.free = None;
        assert_eq!(checkpoints.warning(out), None);
    }
}
