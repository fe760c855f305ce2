//! The labeled images that judge a run while it trains, of which it must not learn.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use esvit_data::{Folders, Source};
use esvit_train::Config;

use super::{HELD_OUT, LabeledSet, LabeledTask, Remarks, TaskError, open, remarks};
use crate::preview::decode_limits;

/// Where the images of a run's checks are.
enum Checked<'a> {
    /// In the program.
    BuiltIn,
    /// In folders of training and of query images, as [`LabeledTask::folders`] takes them.
    Folders(&'a Path, Option<PathBuf>),
    /// In the several folders of the run's own images.
    Own(&'a Folders),
}

impl<'a> Checked<'a> {
    /// `None` for a run without checks or without labels. `images` are all images of the run.
    fn of(config: &'a Config, images: &dyn Source) -> Result<Option<Self>, TaskError> {
        let knn = &config.knn;
        if knn.every.is_none() {
            return Ok(None);
        }
        let Some(folders) = &config.data.path else { return Ok(Some(Self::BuiltIn)) };
        let is_named = knn.train.is_some() || knn.val.is_some();
        if !is_named && images.classes().len() < 2 {
            return Ok(None);
        }
        match knn.train.as_deref().or_else(|| folders.one()) {
            Some(train) => {
                let queries = knn.val.clone().or_else(|| validation_folder(train));
                Ok(Some(Self::Folders(train, queries)))
            }
            None if knn.val.is_some() => Err(TaskError::NoGallery),
            None => Ok(Some(Self::Own(folders))),
        }
    }
}

/// The `val` folder beside a folder called `train`, as in ImageNet.
fn validation_folder(train: &Path) -> Option<PathBuf> {
    let val = train.parent()?.join("val");
    (train.file_name()? == "train" && val.is_dir()).then_some(val)
}

impl LabeledTask {
    /// What the checks of a run are made on, if it has checks and labels: at most `knn.max_images` images of
    /// each set. `images` are all images of the run, those that it does not learn from included.
    ///
    /// # Errors
    /// As [`folders`](Self::folders), and [`TaskError::NoGallery`].
    pub fn of_run(config: &Config, images: &Arc<dyn Source>) -> Result<Option<Self>, TaskError> {
        let most = config.knn.max_images;
        Ok(match Checked::of(config, &**images)? {
            None => None,
            Some(Checked::BuiltIn) => Some(Self::materials()?),
            Some(Checked::Folders(train, queries)) => {
                let limits = decode_limits(config);
                Some(Self::folders(train, queries.as_deref(), &limits, most)?)
            }
            Some(Checked::Own(folders)) => {
                Some(Self::held_out(images.clone(), &folders.to_string(), most))
            }
        })
    }
}

/// Which images of `among` judge a run: the query images of its checks, also those that
/// `knn.max_images` leaves out, since `esvit eval` measures on all of them. `images` are all images of the
/// run.
///
/// # Errors
/// When the folders of the checks cannot be read.
pub fn judging_images(
    config: &Config,
    images: &Arc<dyn Source>,
    among: &dyn Source,
) -> Result<Vec<usize>, TaskError> {
    let queries = match Checked::of(config, &**images)? {
        // The built-in queries are parts of the images that no run sees.
        None | Some(Checked::BuiltIn) => return Ok(Vec::new()),
        Some(Checked::Folders(train, queries)) => {
            let limits = decode_limits(config);
            match remarks::sides(train, queries.as_deref(), &mut Remarks::default()) {
                (_, Some(queries)) => LabeledSet::all(open(&queries, &limits)?),
                (train, None) => LabeledSet::all(open(&train, &limits)?).split(HELD_OUT).1,
            }
        }
        Some(Checked::Own(_)) => LabeledSet::all(images.clone()).split(HELD_OUT).1,
    };
    Ok(same_files(&queries, among))
}

/// Which images of `among` are files of a set, however the paths to them are spelled.
pub fn same_files(set: &LabeledSet, among: &dyn Source) -> Vec<usize> {
    let mut folders = HashMap::new();
    let mut real = |name: String| {
        let path = Path::new(&name);
        let folder = path.parent().unwrap_or(path);
        // There are far fewer folders than files.
        let found = folders.entry(folder.to_path_buf());
        let folder = found.or_insert_with_key(|folder| {
            folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf())
        });
        folder.join(path.file_name().unwrap_or_default())
    };
    let files: HashSet<PathBuf> =
        set.images.iter().map(|&index| real(set.source.name(index))).collect();
    (0..among.len()).filter(|&index| files.contains(&real(among.name(index)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preview::{self, PreviewError};
    use esvit_train::objective::ObjectiveConfig;
    use esvit_train::span::Span;
    use tempfile::TempDir;

    /// Files that are no images: only their places matter.
    fn place(folders: &[&str]) -> TempDir {
        let place = tempfile::tempdir().unwrap();
        for (count, folder) in folders.iter().enumerate() {
            let folder = place.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            for number in 0..5 {
                std::fs::write(folder.join(format!("{number}.png")), [count as u8, number])
                    .unwrap();
            }
        }
        place
    }

    /// A run with labels on some folders.
    fn config(place: &TempDir, data: &[&str]) -> Config {
        let mut config = Config::default();
        let paths: Vec<PathBuf> = data.iter().map(|name| place.path().join(name)).collect();
        config.data.path = Folders::of(&paths);
        config.objective = ObjectiveConfig::named("supervised").unwrap();
        config.knn.every = Span::Epochs(1.0);
        config
    }

    fn names(source: &dyn Source) -> Vec<String> {
        (0..source.len()).map(|index| source.name(index)).collect()
    }

    /// Numbers of images that are learned from and that judge.
    fn parts(config: &Config) -> (usize, usize) {
        let all = preview::all_images(config).unwrap();
        let learned = names(&*preview::source(config).unwrap());
        let Some(LabeledTask { queries, .. }) = LabeledTask::of_run(config, &all).unwrap() else {
            return (learned.len(), 0);
        };
        let judging = queries.images.iter().map(|&index| queries.source.name(index));
        let judging: Vec<String> = judging.collect();
        assert!(judging.iter().all(|name| !learned.contains(name)), "{judging:?} {learned:?}");
        (learned.len(), judging.len())
    }

    const CLASSES: [&str; 3] = ["set/a", "set/b", "set/c"];

    #[test]
    fn labels_of_images_that_judge_are_not_learned() {
        let place = place(&CLASSES);
        let run = config(&place, &["set"]);
        assert_eq!(parts(&run), (12, 3));
        // All that are set aside, however many of them a check looks at.
        let mut few = run.clone();
        few.knn.max_images = 1;
        assert_eq!(parts(&few), (12, 1));
        // The split is the one that evaluations make of the same folder.
        let limits = decode_limits(&run);
        let set = place.path().join("set");
        let task = LabeledTask::folders(&set, None, &limits, usize::MAX).unwrap();
        assert_eq!(same_files(&task.queries, &*preview::source(&run).unwrap()), [0; 0]);
        let all = preview::all_images(&run).unwrap();
        assert_eq!(same_files(&task.queries, &*all).len(), 3);
        // The folder by another name.
        let mut named = run.clone();
        named.knn.train = Some(place.path().join("set/../set"));
        let learned = preview::source(&named).unwrap();
        assert_eq!(names(&*learned), names(&*preview::source(&run).unwrap()));
        // Who asks for no checks learns from all, as does who does not learn labels.
        let mut unchecked = run.clone();
        unchecked.knn.every = Span::NONE;
        assert_eq!(parts(&unchecked), (15, 0));
        let mut unlabeled = run.clone();
        unlabeled.objective = ObjectiveConfig::default();
        assert_eq!(preview::source(&unlabeled).unwrap().len(), 15);
    }

    #[test]
    fn images_of_several_folders_judge_too() {
        let place = place(&["set/a", "set/b", "more/a", "more/c"]);
        assert_eq!(parts(&config(&place, &["set", "more"])), (16, 4));
        let mut named = config(&place, &["set", "more"]);
        named.knn.train = Some(place.path().join("more"));
        assert_eq!(parts(&named), (18, 2));
        named.knn.val = named.knn.train.take();
        let error = preview::source(&named).err().unwrap().to_string();
        assert!(error.contains("`knn.train`"), "{error}");
    }

    #[test]
    fn other_images_that_judge_leave_all_to_learn_from() {
        let place = place(&["x/train/a", "x/train/b", "x/val/a", "x/val/b"]);
        // A `val` beside it, or both in one folder.
        assert_eq!(parts(&config(&place, &["x/train"])), (10, 10));
        assert_eq!(parts(&config(&place, &["x"])), (10, 10));
        let mut same = config(&place, &["x/train"]);
        same.knn.val = same.data.path.as_ref().and_then(Folders::one).map(Path::to_path_buf);
        let error = preview::source(&same).err().unwrap();
        assert!(matches!(error, PreviewError::AllJudge { images: 10 }), "{error}");
    }
}
