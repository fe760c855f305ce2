//! Datasets of a transfer evaluation: their folders, and the metric by which each is compared.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use esvit_data::DecodeLimits;

use super::known::{self, SETS};
use crate::labeled::{LabeledTask, TaskError};
use crate::probe::{Metric, ProbeTask, multi_label_task};

/// Names of the folder of query images in a dataset, in order of preference.
const QUERY_FOLDERS: [&str; 2] = ["test", "val"];
/// Name of the file of labels in a dataset whose images have several.
const LABELS_FILE: &str = "labels.csv";

/// A dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its folder.
    pub folder: PathBuf,
    /// Its metric; `None` for top-1, or mAP where images have several labels.
    pub metric: Option<Metric>,
}

impl Dataset {
    /// A folder, whose name may be that of a known set, or `NAME=FOLDER`, where `NAME` is a known set
    /// or a metric.
    ///
    /// # Errors
    /// A message if `NAME` is neither.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let folder = PathBuf::from(text);
        let metric_of = |name: &str| known::find(name).map(|set| set.metric);
        let Some((name, rest)) = text.to_str().and_then(|text| text.split_once('=')) else {
            let name = folder.file_name().and_then(OsStr::to_str);
            return Ok(Self { metric: name.and_then(metric_of), folder });
        };
        if folder.exists() {
            return Ok(Self { folder, metric: None });
        }
        let metric = Metric::of_name(name).or_else(|| metric_of(name)).ok_or_else(|| {
            let metrics = Metric::ALL.map(Metric::name).join("`, `");
            let sets = SETS.map(|set| set.name).join("`, `");
            format!(
                "`{name}` is neither a metric (`{metrics}`) nor a set that has one (`{sets}`), and \
                 there is no folder `{}`",
                folder.display()
            )
        })?;
        Ok(Self { folder: rest.into(), metric: Some(metric) })
    }

    /// Opens it: a folder with `train` and `test` or `val`, or a folder of classes of which every
    /// fifth image is held out. A file `labels.csv` in it has the labels of images that have several.
    ///
    /// # Errors
    /// [`TaskError`] if a folder or the file cannot be read, there are no labels, or the two parts
    /// share no class.
    pub fn open(&self, limits: &DecodeLimits) -> Result<ProbeTask, TaskError> {
        let (train, queries) = parts(&self.folder);
        let (queries, file) = (queries.as_deref(), self.folder.join(LABELS_FILE));
        if file.is_file() {
            return multi_label_task(&file, &train, queries, limits);
        }
        Ok(LabeledTask::folders(&train, queries, limits, usize::MAX)?.into())
    }
}

/// The folders of training and of query images.
fn parts(folder: &Path) -> (PathBuf, Option<PathBuf>) {
    let train = folder.join("train");
    let queries =
        QUERY_FOLDERS.map(|name| folder.join(name)).into_iter().find(|path| path.is_dir());
    if queries.is_some() && train.is_dir() { (train, queries) } else { (folder.into(), None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    fn parse(text: impl AsRef<OsStr>) -> Result<(String, Option<Metric>), String> {
        let Dataset { folder, metric } = Dataset::parse(text.as_ref())?;
        Ok((folder.display().to_string(), metric))
    }

    #[test]
    fn metrics_follow_from_names() {
        for (text, folder, metric) in [
            ("my/photos", "my/photos", None),
            ("sets/VOC2007/", "sets/VOC2007/", Some(Metric::Map11Point)),
            ("voc2007=my/photos", "my/photos", Some(Metric::Map11Point)),
            ("mean_per_class=sets/voc2007", "sets/voc2007", Some(Metric::MeanPerClass)),
            ("top1=a=b", "a=b", Some(Metric::Top1)),
            (".", ".", None),
        ] {
            assert_eq!(parse(text), Ok((folder.to_owned(), metric)), "{text}");
        }
        let error = parse("accuracy=photos").unwrap_err();
        assert!(error.starts_with("`accuracy` is neither a metric (`top1`, "), "{error}");
        assert!(error.contains("`hateful_memes`), and there is no folder `accuracy=photos`"));
        // A folder with such a name is one.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lr=0.1");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(parse(&path), Ok((path.display().to_string(), None)));
    }

    #[test]
    fn folders_of_a_set_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let add = |part: &str, class: &str, count: u64| {
            let path = folder.path().join(part).join(class);
            std::fs::create_dir_all(&path).unwrap();
            for i in 0..count {
                let png = esvit_data::encode_png(&noise(8, 8, i)).unwrap();
                std::fs::write(path.join(format!("{i}.png")), png).unwrap();
            }
        };
        let open = |part: &str| {
            let path =
                if part.is_empty() { folder.path().into() } else { folder.path().join(part) };
            Dataset { folder: path, metric: None }.open(&DecodeLimits::default())
        };
        let images = |part: &str| open(part).map(|task| task.task.images());
        ["a", "b"].into_iter().for_each(|class| add("train", class, 5));
        // Without a second part every fifth image is set aside.
        assert_eq!(images("train").unwrap(), (8, 2));
        add("val", "a", 3);
        assert_eq!(images("").unwrap(), (10, 3));
        add("test", "b", 1);
        assert_eq!(images("").unwrap(), (10, 1));
        assert!(!open("").unwrap().is_multi_label());

        // A file of labels beside the two parts.
        let lines = ["image,labels", "train/a/0.png,x;y", "train/b/1.png,", "test/b/0.png,y"];
        std::fs::write(folder.path().join("labels.csv"), lines.join("\n")).unwrap();
        let task = open("").unwrap();
        assert_eq!((task.is_multi_label(), task.task.images()), (true, (2, 1)));
        assert_eq!(task.task.classes, ["x", "y"]);
        assert!(task.check_metric(Metric::Map11Point).is_ok());
        assert!(task.check_metric(Metric::Top1).is_err());
        // One query image tells no label apart.
        assert!(task.check_metric(Metric::RocAuc).is_err());
    }
}
