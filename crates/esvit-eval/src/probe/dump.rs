//! Features and labels of a probe as `.npy` files.

use std::path::{Path, PathBuf};

use super::{Examples, SplitFeatures, Targets};
use crate::knn::STORED_FILES;
use esvit_model::npy::{NpyError, NpyWriter};

/// Features cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A file cannot be written.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// The folder cannot be created.
    #[error("cannot create the folder `{path}`: {source}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

/// Writes the [`STORED_FILES`]: features `[rows, width]` f32, and class indices `[rows]` (i64), or
/// multi-hot labels `[rows, labels]` (f32).
///
/// # Errors
/// [`DumpError`] if the folder or a file cannot be written.
pub fn dump(folder: &Path, splits: &SplitFeatures) -> Result<(), DumpError> {
    std::fs::create_dir_all(folder)
        .map_err(|source| DumpError::Folder { path: folder.into(), source })?;
    let [train, train_labels, queries, query_labels] = STORED_FILES.map(|name| folder.join(name));
    write(&splits.train, &train, &train_labels)?;
    Ok(write(&splits.queries, &queries, &query_labels)?)
}

fn write(side: &Examples, features: &Path, labels: &Path) -> Result<(), NpyError> {
    let mut file = NpyWriter::create(features, side.width.max(1))?;
    file.append(&side.values)?;
    file.finish()?;
    match &side.targets {
        Targets::Classes { of, .. } => {
            let mut file = NpyWriter::create_vector(labels)?;
            file.append(&of.iter().map(|&class| i64::from(class)).collect::<Vec<_>>())?;
            file.finish()?;
        }
        Targets::Labels { of, count } => {
            let mut file = NpyWriter::create(labels, *count)?;
            for positives in of {
                let held = |label| f32::from(u8::from(positives.contains(&label)));
                file.append(&(0..*count as u32).map(held).collect::<Vec<f32>>())?;
            }
            file.finish()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(train: Targets, queries: Targets) -> SplitFeatures {
        let side = |targets: Targets, from: usize| {
            let values = (0..2 * targets.len()).map(|i| (from + i) as f32).collect();
            Examples { values, width: 2, targets }
        };
        let (train, queries) = (side(train, 0), side(queries, 100));
        SplitFeatures { train, queries, train_images: Vec::new(), left_out: Vec::new() }
    }

    #[test]
    fn classes_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        let classes = |of: &[u32]| Targets::Classes { of: of.to_vec(), count: 9 };
        dump(&path, &splits(classes(&[4, 0, 2]), classes(&[1]))).unwrap();
        let read = |name: &str| esvit_model::npy::read::<f32>(&path.join(name)).unwrap();
        let labels = |name: &str| esvit_model::npy::read::<i64>(&path.join(name)).unwrap().values;
        let train = read("train_features.npy");
        assert_eq!((train.values, train.shape), (vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], vec![3, 2]));
        assert_eq!(labels("train_labels.npy"), [4, 0, 2]);
        assert_eq!(read("query_features.npy").values, [100.0, 101.0]);
        assert_eq!(labels("query_labels.npy"), [1]);
    }

    #[test]
    fn labels_are_ones_and_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let labels = |of: &[&[u32]]| Targets::Labels {
            of: of.iter().map(|positives| positives.to_vec()).collect(),
            count: 3,
        };
        dump(folder.path(), &splits(labels(&[&[0, 2], &[]]), labels(&[&[1]]))).unwrap();
        let read = |name: &str| esvit_model::npy::read::<f32>(&folder.path().join(name)).unwrap();
        let train = read("train_labels.npy");
        assert_eq!((train.shape, train.values), (vec![2, 3], vec![1.0, 0.0, 1.0, 0.0, 0.0, 0.0]));
        assert_eq!(read("query_labels.npy").values, [0.0, 1.0, 0.0]);
    }
}
