//! Writes feature files batch by batch.

use std::fs;
use std::path::{Path, PathBuf};

use esvit_data::Source;
use esvit_files::{GrowingFile, LineLog, read_text};
use serde::{Deserialize, Serialize};

use super::layout::escape;
use super::{EmbeddingError, Format, Job, is_feature_file};
use crate::features::FeatureBatch;

/// Progress of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Images processed, including unreadable ones.
    pub images: usize,
    /// Rows written: images that could be read.
    pub rows: usize,
    /// Feature dimension; 0 before the first row.
    pub width: usize,
    /// Bytes of the feature file and of the file of names.
    bytes: [u64; 2],
}

/// Writes a feature file batch by batch. Completed batches survive a kill: a writer of the same
/// [`Job`] continues after them.
#[derive(Debug)]
pub struct EmbeddingWriter {
    format: Format,
    file: GrowingFile,
    names: Option<GrowingFile>,
    /// Whether there was a file of names that no feature file of this name and format has made.
    shares_names: bool,
    log: LineLog,
    log_path: PathBuf,
    progress: Progress,
}

impl EmbeddingWriter {
    /// Starts the file at `path`, or continues an unfinished one of the same job. An unfinished
    /// file of another job is dropped.
    ///
    /// # Errors
    /// [`EmbeddingError::OtherNames`] if there is a file of names that would not be the same;
    /// [`EmbeddingError::File`] if a file cannot be written.
    pub fn open(path: &Path, job: &Job, source: &dyn Source) -> Result<Self, EmbeddingError> {
        let format = job.format;
        let names_path = format.names_file(path);
        let existing = names_path.as_ref().filter(|names| names.exists());
        let shared = existing.filter(|_| !is_feature_file(path, format));
        if let Some(names) = shared.filter(|names| !lists_images(names, source)) {
            return Err(EmbeddingError::OtherNames { path: names.clone() });
        }
        let shares_names = shared.is_some();
        let log_path = progress_log_path(path);
        let text = read_text(&log_path).unwrap_or_default();
        let progress = last_progress(&text, job).filter(|progress| {
            let lengths =
                [Some(path), names_path.as_deref()].map(|path| path.and_then(GrowingFile::length));
            progress.bytes.iter().zip(lengths).all(|(&bytes, length)| length.unwrap_or(0) >= bytes)
        });
        let progress = progress.unwrap_or_default();
        let file = GrowingFile::open(path, progress.bytes[0])?;
        let names =
            names_path.map(|names| GrowingFile::open(&names, progress.bytes[1])).transpose()?;
        if progress.images == 0 {
            // The lock on the file is held, so nobody else uses the log.
            let _ = fs::remove_file(&log_path);
        }
        let mut log = LineLog::open(&log_path)?;
        if progress.images == 0 {
            log.append_line(&serde_json::to_string(job).expect("plain values"))?;
        }
        Ok(Self { format, file, names, shares_names, log, log_path, progress })
    }

    /// Progress so far: the next batch starts at image `images` of the source.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Where the features are until they are complete.
    pub fn part(&self) -> &Path {
        self.file.part()
    }

    /// Appends the features of the next images of `source`, and flushes them.
    ///
    /// # Errors
    /// [`EmbeddingError::File`] if they cannot be written.
    pub fn append(
        &mut self,
        source: &dyn Source,
        batch: &FeatureBatch,
    ) -> Result<(), EmbeddingError> {
        let width = batch.width();
        let (mut rows, mut names) = (Vec::new(), String::new());
        if self.progress.rows == 0 && width > 0 {
            rows = self.format.header(0, width);
            self.progress.width = width;
        }
        for (&image, row) in batch.images.iter().zip(batch.rows.chunks(width.max(1))) {
            rows.extend(self.format.row(source, image, row));
            names.push_str(&escape(&source.name(image)));
            names.push('\n');
        }
        // As much for each image that is left.
        let of_batch = batch.images.len() + batch.left_out.len();
        let left = source.len().saturating_sub(self.progress.images);
        let rest = rows.len() as u64 * left as u64 / of_batch.max(1) as u64;
        self.file.append(&rows).map_err(|error| error.needing(rest))?;
        self.progress.bytes[0] = self.file.sync()?;
        if let Some(file) = &mut self.names {
            file.append(names.as_bytes())?;
            self.progress.bytes[1] = file.sync()?;
        }
        self.progress.images += batch.images.len() + batch.left_out.len();
        self.progress.rows += batch.images.len();
        Ok(self.log.append_line(&serde_json::to_string(&self.progress).expect("plain values"))?)
    }

    /// Completes the file: names and features appear under their final names, in this order.
    ///
    /// # Errors
    /// [`EmbeddingError::OtherNames`] if the list of names that was there is another one, and
    /// [`EmbeddingError::File`]; all rows are then kept for another attempt.
    pub fn finish(self) -> Result<Progress, EmbeddingError> {
        if let Some(names) = self.names {
            if self.shares_names && !names.equals_destination() {
                return Err(EmbeddingError::OtherNames { path: names.destination().into() });
            }
            names.commit(&[])?;
        }
        self.file.commit(&self.format.header(self.progress.rows, self.progress.width))?;
        // The next writer would remove a leftover.
        let _ = fs::remove_file(self.log_path);
        Ok(self.progress)
    }

    /// Deletes the unfinished file.
    pub fn discard(self) {
        self.file.discard();
        if let Some(names) = self.names {
            names.discard();
        }
        let _ = fs::remove_file(self.log_path);
    }
}

/// Whether every line of a file is the name of an image of `source`, in its order: then it may be
/// the list of names of the same features in another format.
fn lists_images(file: &Path, source: &dyn Source) -> bool {
    let Ok(text) = read_text(file) else { return false };
    let mut names = (0..source.len()).map(|image| escape(&source.name(image)));
    !text.is_empty() && text.lines().all(|line| names.any(|name| name == line))
}

/// The last summary of a log, if the log belongs to `job`.
fn last_progress(log: &str, job: &Job) -> Option<Progress> {
    let mut lines = log.lines();
    let of: Job = serde_json::from_str(lines.next()?).ok()?;
    let summaries = lines.map_while(|line| serde_json::from_str(line).ok());
    if of == *job { summaries.last() } else { None }
}

fn progress_log_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".esvit-log");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::features::SkippedImage;
    use esvit_data::{Image, InMemory};

    fn source(images: usize) -> InMemory {
        let mut source = InMemory::new(vec!["a, b".into()]);
        for index in 0..images {
            let name = if index == 1 { "two\nlines".into() } else { format!("{index}.png") };
            let label = (index % 2 == 0).then_some(0);
            source.push(name, label, Image::new(1, 1, vec![0; 3]).unwrap());
        }
        source
    }

    fn batch(images: std::ops::Range<usize>) -> FeatureBatch {
        let row = |index: usize| [index as f32 + 0.25, -1e-7, f32::MAX];
        FeatureBatch {
            rows: images.clone().flat_map(row).collect(),
            images: images.collect(),
            left_out: Vec::new(),
        }
    }

    fn job(format: Format) -> Job {
        Job { format, backbone: 1, images: 2, normalize: false }
    }

    #[test]
    fn a_file_that_was_interrupted_is_as_one_that_was_not() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(7);
        for (name, format) in
            [("f.npy", Format::Npy), ("f.safetensors", Format::Safetensors), ("f.csv", Format::Csv)]
        {
            let job = job(format);
            let path = folder.path().join(name);
            let mut writer = EmbeddingWriter::open(&path, &job, &source).unwrap();
            writer.append(&source, &batch(0..3)).unwrap();
            writer.append(&source, &batch(3..7)).unwrap();
            writer.finish().unwrap();
            let whole = std::fs::read(&path).unwrap();
            let found = read(&path).unwrap();
            assert_eq!((found.width, found.names.len(), &*found.names[1]), (3, 7, "two\nlines"));
            assert_eq!(found.values, batch(0..7).rows);
            if format == Format::Csv {
                assert_eq!(found.labels[..2], ["a, b", ""]);
            }
            std::fs::remove_file(&path).unwrap();
            if let Some(names) = format.names_file(&path) {
                std::fs::remove_file(names).unwrap();
            }

            let mut writer = EmbeddingWriter::open(&path, &job, &source).unwrap();
            writer.append(&source, &batch(0..3)).unwrap();
            // Killed in the middle of a batch.
            writer.file.append(b"half a row").unwrap();
            drop(writer);
            let other = Job { normalize: true, ..job.clone() };
            let mut writer = EmbeddingWriter::open(&path, &job, &source).unwrap();
            assert_eq!((writer.progress().images, writer.progress().rows), (3, 3));
            writer.append(&source, &batch(3..7)).unwrap();
            assert_eq!(writer.finish().unwrap().rows, 7);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{format:?}");
            assert_eq!(read(&path).unwrap(), found);

            // Another job begins anew.
            drop(
                EmbeddingWriter::open(&path, &job, &source).unwrap().append(&source, &batch(0..3)),
            );
            assert_eq!(EmbeddingWriter::open(&path, &other, &source).unwrap().progress().images, 0);
        }
    }

    #[test]
    fn images_that_cannot_be_read_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (source(7), folder.path().join("f.npy"));
        let none = |index| FeatureBatch {
            left_out: vec![SkippedImage { index, name: String::new(), reason: String::new() }],
            ..batch(0..0)
        };
        let mut writer = EmbeddingWriter::open(&path, &job(Format::Npy), &source).unwrap();
        writer.append(&source, &none(0)).unwrap();
        writer
            .append(&source, &FeatureBatch { left_out: none(3).left_out, ..batch(1..3) })
            .unwrap();
        let progress = writer.progress();
        assert_eq!((progress.images, progress.rows, progress.width), (4, 2, 3));
        writer.finish().unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.width, found.values), (3, batch(1..3).rows));
    }

    #[test]
    fn a_log_without_its_features_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (source(7), folder.path().join("f.csv"));
        let open = || EmbeddingWriter::open(&path, &job(Format::Csv), &source).unwrap();
        open().append(&source, &batch(0..3)).unwrap();
        GrowingFile::open(&path, 5).unwrap();
        assert_eq!(open().progress(), Progress::default());
    }

    #[test]
    fn names_of_somebody_else_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.npy");
        std::fs::write(folder.path().join("notes.txt"), "my notes").unwrap();
        let error =
            EmbeddingWriter::open(&path, &job(Format::Npy), &source(3)).unwrap_err().to_string();
        assert!(error.contains("notes.txt") && error.contains("not replaced"), "{error}");
        std::fs::write(&path, "not a matrix").unwrap();
        assert!(EmbeddingWriter::open(&path, &job(Format::Npy), &source(3)).is_err());
    }

    /// A list of some of the images may be that of the same features in another format, or
    /// somebody's choice: only the same list is written over it, and no row is lost.
    #[test]
    fn a_list_of_names_is_shared_or_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, list) = (folder.path().join("f.npy"), folder.path().join("f.txt"));
        let source = source(4);
        let open = || EmbeddingWriter::open(&path, &job(Format::Npy), &source);
        let names = |images: &[usize]| -> String {
            images.iter().map(|&image| escape(&source.name(image)) + "\n").collect()
        };
        std::fs::write(&list, names(&[0, 2])).unwrap();
        let mut writer = open().unwrap();
        writer.append(&source, &batch(0..4)).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(&error, EmbeddingError::OtherNames { path } if *path == list), "{error}");
        assert_eq!(std::fs::read_to_string(&list).unwrap(), names(&[0, 2]));
        std::fs::remove_file(&list).unwrap();
        let writer = open().unwrap();
        assert_eq!(writer.progress().rows, 4);
        writer.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&list).unwrap(), names(&[0, 1, 2, 3]));
        // The same features in another format, whose last image could not be read then either.
        let other = folder.path().join("f.safetensors");
        for (images, is_shared) in [(&[0, 1, 2][..], true), (&[0, 1, 2, 3], false)] {
            std::fs::write(&list, names(images)).unwrap();
            let job = job(Format::Safetensors);
            let mut writer = EmbeddingWriter::open(&other, &job, &source).unwrap();
            writer.append(&source, &batch(0..3)).unwrap();
            assert_eq!(writer.finish().is_ok(), is_shared);
            std::fs::remove_file(&other).unwrap_or_default();
        }
    }
}
