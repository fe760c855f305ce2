//! k-NN on stored features, which need not fit into memory.

use std::path::{Path, PathBuf};

use esvit_kernels::nearest::Search;
use esvit_kernels::pool;

use esvit_model::features::normalize;

use super::{Accuracy, KnnError, accuracies};
use esvit_model::npy::{self, NpyError, NpyReader};

/// Rows read at a time.
const ROWS: usize = 8192;

/// File names in a folder of features: training features and labels, query features and labels.
pub const STORED_FILES: [&str; 4] =
    ["train_features.npy", "train_labels.npy", "query_features.npy", "query_labels.npy"];

/// Stored features cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// A file cannot be read.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// A set is empty, or the dimensions differ.
    #[error(transparent)]
    Knn(#[from] KnnError),
    /// Features are not a matrix, or have a different number of rows than labels.
    #[error(
        "`{features}` has the shape {shape:?}, `{labels}` has {count} labels\n\
             hint: features are `[rows, width]`, with one label per row"
    )]
    Shape {
        /// The file of features.
        features: PathBuf,
        /// Its shape.
        shape: Vec<usize>,
        /// The file of labels.
        labels: PathBuf,
        /// Number of labels.
        count: usize,
    },
    /// A label is negative or too large.
    #[error("`{labels}` holds the label {label}, which is not a class index")]
    Label {
        /// The file.
        labels: PathBuf,
        /// The label.
        label: i64,
    },
}

/// Number of training rows in a folder of features.
///
/// # Errors
/// [`StoredError`] if the file cannot be read.
pub fn stored_rows(folder: &Path) -> Result<usize, StoredError> {
    let file = NpyReader::<f32>::open(&folder.join(STORED_FILES[0]))?;
    Ok(file.shape().first().copied().unwrap_or(0))
}

/// k-NN accuracy of a folder of features. Only query features and their current neighbors are held
/// in memory. `done` is called with the number of training rows of each chunk.
///
/// # Errors
/// [`StoredError`] if a file cannot be read or the files do not fit together.
pub fn stored_accuracy(
    folder: &Path,
    ks: &[usize],
    temperature: f64,
    mut done: impl FnMut(usize),
) -> Result<StoredResults, StoredError> {
    let [train, train_labels, queries, query_labels] = STORED_FILES.map(|name| folder.join(name));
    let (mut train, train_labels) = open(&train, &train_labels)?;
    let (mut queries, query_labels) = open(&queries, &query_labels)?;
    let [width, query_width] = [&train, &queries].map(|file| file.shape()[1]);
    // A file without columns has no values either.
    let rows = |labels: &[u32]| if width == 0 { 0 } else { labels.len() };
    KnnError::check((rows(&train_labels), width), (rows(&query_labels), query_width))?;
    let read = |file: &mut NpyReader<f32>, rows: usize| -> Result<Vec<f32>, NpyError> {
        let mut values = file.rows(rows)?;
        normalize(&mut values, width);
        Ok(values)
    };
    let queries = read(&mut queries, query_labels.len())?;
    let mut search = Search::new(&queries, width, ks.iter().copied().max().unwrap_or(0));
    loop {
        let rows = read(&mut train, ROWS)?;
        if rows.is_empty() {
            break;
        }
        pool::run(|| search.add(&rows));
        done(rows.len() / width);
    }
    let neighbors = search.finish();
    let accuracies = accuracies(&neighbors, &train_labels, &query_labels, ks, temperature);
    Ok(StoredResults { accuracies, images: (train_labels.len(), query_labels.len()) })
}

/// Accuracies of stored features.
#[derive(Debug)]
pub struct StoredResults {
    /// One per number of neighbors.
    pub accuracies: Vec<Accuracy>,
    /// Number of training and of query images.
    pub images: (usize, usize),
}

/// Features, still to be read, and their labels.
fn open(features: &Path, labels: &Path) -> Result<(NpyReader<f32>, Vec<u32>), StoredError> {
    let file = NpyReader::open(features)?;
    let numbers = npy::read::<i64>(labels)?.values;
    if file.shape().len() != 2 || file.shape()[0] != numbers.len() {
        return Err(StoredError::Shape {
            features: features.into(),
            shape: file.shape().to_vec(),
            labels: labels.into(),
            count: numbers.len(),
        });
    }
    let class = |label: i64| {
        u32::try_from(label).map_err(|_| StoredError::Label { labels: labels.into(), label })
    };
    Ok((file, numbers.into_iter().map(class).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::{TEMPERATURE, classify};
    use esvit_kernels::rng::Rng;
    use esvit_model::features::LabeledFeatures;
    use esvit_model::npy::NpyWriter;

    fn store(folder: &Path, names: [&str; 2], features: &LabeledFeatures) {
        let mut rows = NpyWriter::create(&folder.join(names[0]), features.width).unwrap();
        rows.append(&features.values).unwrap();
        rows.finish().unwrap();
        let mut labels = NpyWriter::create_vector(&folder.join(names[1])).unwrap();
        let numbers: Vec<i64> = features.labels.iter().map(|&label| label.into()).collect();
        labels.append(&numbers).unwrap();
        labels.finish().unwrap();
    }

    fn features(rows: usize, stream: u64) -> LabeledFeatures {
        let mut rng = Rng::new(stream, [0; 3]);
        let values = (0..rows * 6).map(|_| rng.normal() as f32).collect();
        LabeledFeatures { values, width: 6, labels: (0..rows as u32).map(|i| i % 7).collect() }
    }

    #[test]
    fn files_give_what_memory_gives() {
        let folder = tempfile::tempdir().unwrap();
        let (mut train, mut queries) = (features(ROWS + 50, 1), features(30, 2));
        store(folder.path(), [STORED_FILES[0], STORED_FILES[1]], &train);
        store(folder.path(), [STORED_FILES[2], STORED_FILES[3]], &queries);
        let mut seen = 0;
        let stored =
            stored_accuracy(folder.path(), &[5, 20], TEMPERATURE, |rows| seen += rows).unwrap();
        train.normalize();
        queries.normalize();
        assert_eq!(stored.accuracies, classify(&train, &queries, &[5, 20], TEMPERATURE).unwrap());
        assert_eq!((stored.images, seen), ((ROWS + 50, 30), ROWS + 50));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let set = features(4, 1);
        store(folder.path(), [STORED_FILES[0], STORED_FILES[1]], &set);
        let error = || stored_accuracy(folder.path(), &[1], 1.0, |_| ()).unwrap_err().to_string();
        assert!(error().contains("query_features.npy"));
        store(folder.path(), [STORED_FILES[2], STORED_FILES[3]], &set);
        store(folder.path(), ["other.npy", STORED_FILES[3]], &features(3, 1));
        assert!(error().contains("query_labels.npy` has 3 labels"), "{}", error());
    }

    #[test]
    fn labels_and_widths_that_make_no_sense_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let set = features(4, 1);
        store(folder.path(), [STORED_FILES[0], STORED_FILES[1]], &set);
        store(folder.path(), [STORED_FILES[2], STORED_FILES[3]], &set);
        let accuracy = || stored_accuracy(folder.path(), &[1], 1.0, |_| ());
        assert_eq!((stored_rows(folder.path()).unwrap(), accuracy().is_ok()), (4, true));
        let error = || accuracy().unwrap_err().to_string();

        let mut labels = NpyWriter::create_vector(&folder.path().join(STORED_FILES[1])).unwrap();
        labels.append(&[0i64, -3, 1, 2]).unwrap();
        labels.finish().unwrap();
        assert!(error().contains("label -3"), "{}", error());
        store(folder.path(), [STORED_FILES[0], STORED_FILES[1]], &set);
        let mut narrow = set.clone();
        (narrow.width, narrow.values) = (5, set.values[..20].to_vec());
        store(folder.path(), [STORED_FILES[2], STORED_FILES[3]], &narrow);
        assert_eq!(error(), "training features have 6 values and query features 5");
    }
}
