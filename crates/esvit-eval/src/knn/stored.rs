//! k-NN on stored features, which need not fit into memory.

use std::path::{Path, PathBuf};

use esvit_kernels::nearest::Search;
use esvit_kernels::pool;

use esvit_model::features::{first_not_finite, normalize, zero_rows};

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
    /// A row is not finite, or has no direction: says what it holds.
    #[error(
        "row {row} of `{features}`, counted from 0, {what}\n\
         hint: look for what is wrong with the image or the network that it is of, or leave the \
         row out"
    )]
    Row {
        /// The file of features.
        features: PathBuf,
        /// The first such row.
        row: usize,
        /// `holds NaN`, `holds inf`, `is all zeros, ...`.
        what: String,
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
    KnnError::check_settings(ks, temperature)?;
    let [train, train_labels, queries, query_labels] = STORED_FILES.map(|name| folder.join(name));
    let (mut train, train_labels) = open(&train, &train_labels)?;
    let (mut queries, query_labels) = open(&queries, &query_labels)?;
    let [width, query_width] = [&train, &queries].map(|file| file.shape()[1]);
    // A file without columns has no values either.
    let rows = |labels: &[u32]| if width == 0 { 0 } else { labels.len() };
    KnnError::check((rows(&train_labels), width), (rows(&query_labels), query_width))?;
    let [train_file, _, query_file, _] = STORED_FILES.map(|name| folder.join(name));
    let queries = unit_rows(&mut queries, query_labels.len(), 0, &query_file)?;
    let k = ks.iter().copied().max().unwrap_or(0).min(train_labels.len());
    let mut search = Search::new(&queries, width, k);
    let mut first = 0;
    loop {
        let rows = unit_rows(&mut train, ROWS, first, &train_file)?;
        if rows.is_empty() {
            break;
        }
        first += rows.len() / width;
        pool::run(|| search.add(&rows));
        done(rows.len() / width);
    }
    let neighbors = search.finish();
    let accuracies = accuracies(&neighbors, &train_labels, &query_labels, ks, temperature);
    Ok(StoredResults { accuracies, images: (train_labels.len(), query_labels.len()) })
}

/// Reads the next `count` rows of a file, of which the first has index `first`, and normalizes them.
fn unit_rows(
    file: &mut NpyReader<f32>,
    count: usize,
    first: usize,
    path: &Path,
) -> Result<Vec<f32>, StoredError> {
    let width = file.shape()[1];
    let mut values = file.rows(count)?;
    check_finite(&values, width, first, path)?;
    if let Some(row) = zero_rows(&values, width).next() {
        let what = "is all zeros, which is as similar to one row as to another".into();
        return Err(StoredError::Row { features: path.into(), row: first + row, what });
    }
    normalize(&mut values, width);
    Ok(values)
}

/// Checks rows of a file, of which the first has index `first`.
pub(crate) fn check_finite(
    values: &[f32],
    width: usize,
    first: usize,
    path: &Path,
) -> Result<(), StoredError> {
    let Some((row, value)) = first_not_finite(values, width) else { return Ok(()) };
    let what = format!("holds {value}");
    Err(StoredError::Row { features: path.into(), row: first + row, what })
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

    /// Also beyond the first rows that are read.
    #[test]
    fn rows_that_have_no_direction_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (train, queries) = (features(ROWS + 50, 1), features(30, 2));
        let error = |temperature| {
            stored_accuracy(folder.path(), &[5], temperature, |_| ()).unwrap_err().to_string()
        };
        let store_both = |train: &LabeledFeatures, queries: &LabeledFeatures| {
            store(folder.path(), [STORED_FILES[0], STORED_FILES[1]], train);
            store(folder.path(), [STORED_FILES[2], STORED_FILES[3]], queries);
        };
        for (value, what) in
            [(f32::NAN, "holds NaN"), (f32::INFINITY, "holds inf"), (0.0, "is all zeros")]
        {
            let broken = |set: &LabeledFeatures, row: usize| {
                let mut set = set.clone();
                set.values[row * 6..][..6].fill(value);
                set
            };
            store_both(&broken(&train, ROWS + 7), &queries);
            let found = error(TEMPERATURE);
            assert!(found.starts_with(&format!("row {} of ", ROWS + 7)), "{found}");
            assert!(found.contains("train_features.npy") && found.contains(what), "{found}");
            store_both(&train, &broken(&queries, 3));
            let found = error(TEMPERATURE);
            assert!(found.contains("query_features.npy") && found.contains(what), "{found}");
        }
        store_both(&train, &queries);
        for temperature in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            assert!(error(temperature).starts_with("the temperature is"), "{temperature}");
        }
        let found = stored_accuracy(folder.path(), &[100_000], TEMPERATURE, |_| ()).unwrap();
        assert_eq!(found.accuracies[0].neighbors, ROWS + 50);
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
