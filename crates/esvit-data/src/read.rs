//! Reads image files: never waits for one, never reads without bound.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::decode::{HEAD, check_head};
use crate::{
    Conversion, DecodeError, DecodeLimits, Image, Levels, SampleType, Source, SourceError,
    VisibleColors, decode, decode_as, names,
};

/// Reads and decodes an image file.
///
/// Devices, pipes and folders are refused, and what does not begin like an image is not read
/// further, nor are files of more than [`DecodeLimits::max_file_bytes`].
///
/// # Errors
/// [`SourceError`], which names the file.
pub fn read_image(
    path: &Path,
    limits: &DecodeLimits,
    conversion: &Conversion,
) -> Result<Image, SourceError> {
    let bytes = read_file(path, limits)?;
    decode_as(&bytes, limits, conversion).map_err(|source| decode_error(path, source))
}

/// Image files by their paths, without labels.
#[derive(Debug)]
pub struct ImageFiles {
    paths: Vec<PathBuf>,
    limits: DecodeLimits,
}

impl ImageFiles {
    /// Files that are read when they are asked for.
    pub fn new(paths: Vec<PathBuf>, limits: &DecodeLimits) -> Self {
        Self { paths, limits: *limits }
    }

    fn path(&self, index: usize) -> Result<&Path, SourceError> {
        let missing = SourceError::NoSuchImage { index, len: self.paths.len() };
        self.paths.get(index).map(PathBuf::as_path).ok_or(missing)
    }
}

impl Source for ImageFiles {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(names::text_of).unwrap_or_default()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        self.load_as(index, &Conversion::default())
    }

    fn load_as(&self, index: usize, conversion: &Conversion) -> Result<Image, SourceError> {
        read_image(self.path(index)?, &self.limits, conversion)
    }

    fn deep_values(
        &self,
        index: usize,
        most: usize,
    ) -> Result<Option<(SampleType, Vec<f64>)>, SourceError> {
        let path = self.path(index)?;
        decode::deep_values(&read_file(path, &self.limits)?, &self.limits, most)
            .map_err(|error| decode_error(path, error))
    }

    fn visible_colors(
        &self,
        index: usize,
        levels: &Levels,
    ) -> Result<Option<VisibleColors>, SourceError> {
        let path = self.path(index)?;
        decode::visible_colors(&read_file(path, &self.limits)?, &self.limits, levels)
            .map_err(|error| decode_error(path, error))
    }
}

/// The bytes of a file that begins like an image.
pub(crate) fn read_file(path: &Path, limits: &DecodeLimits) -> Result<Vec<u8>, SourceError> {
    read_bounded(path, limits.max_file_bytes()).map_err(|error| match error {
        Error::Io(source) => SourceError::Read { path: path.into(), source },
        Error::Decode(source) => decode_error(path, source),
    })
}

fn decode_error(path: &Path, source: DecodeError) -> SourceError {
    SourceError::Decode { name: names::text_of(path), source }
}

enum Error {
    Io(io::Error),
    Decode(DecodeError),
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut file = open(path).map_err(Error::Io)?;
    let metadata = file.metadata().map_err(Error::Io)?;
    if !metadata.is_file() {
        let (kind, what) = match metadata.is_dir() {
            true => (ErrorKind::IsADirectory, "it is a folder"),
            false => (ErrorKind::InvalidInput, "it is a device, pipe or socket"),
        };
        return Err(Error::Io(io::Error::new(kind, what)));
    }
    let too_large = |bytes| Error::Decode(DecodeError::FileTooLarge { bytes, limit });
    let mut bytes = Vec::new();
    let mut read = |most: u64, bytes: &mut Vec<u8>| {
        (&mut file).take(most).read_to_end(bytes).map_err(Error::Io)
    };
    read(HEAD as u64, &mut bytes)?;
    check_head(&bytes).map_err(Error::Decode)?;
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    bytes.reserve_exact(metadata.len().saturating_sub(bytes.len() as u64) as usize + 1);
    // A file that grows meanwhile is bounded as well.
    read(limit + 1 - (bytes.len() as u64).min(limit), &mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a file without waiting for somebody to write into a pipe.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(path: &Path) -> Result<Image, SourceError> {
        read_image(path, &DecodeLimits::default(), &Conversion::default())
    }

    #[test]
    fn images_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let image = Image::filled(70, 90, [1, 2, 3]);
        fs::write(&path, crate::encode_png(&image).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), image);
        let missing = dir.path().join("b.png");
        let files = ImageFiles::new(vec![path.clone(), missing], &DecodeLimits::default());
        assert_eq!((files.len(), files.name(0)), (2, path.display().to_string()));
        assert_eq!(files.load(0).unwrap(), image);
        let error = files.load(1).unwrap_err();
        assert!(matches!(error, SourceError::Read { .. }), "{error}");
        assert!(error.reason().starts_with("cannot be read: "), "{}", error.reason());
        assert!(matches!(files.load(2), Err(SourceError::NoSuchImage { index: 2, len: 2 })));
    }

    /// A file of many gigabytes that takes no room on the disk.
    #[test]
    fn only_the_head_of_what_is_no_image_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("not an image: it begins with the bytes `00 00"), "{error}");
        fs::write(&path, b"\xff\xd8\xff\xe0").unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("1099511627776 bytes, more than the 2147483648"), "{error}");
        assert!(error.starts_with(&format!("`{}`: the file has ", path.display())), "{error}");
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jpg");
        fs::write(&path, [b"\xff\xd8\xff".as_slice(), &[7; 197]].concat()).unwrap();
        assert_eq!(read_bounded(&path, 200).ok().unwrap().len(), 200);
        assert!(matches!(
            read_bounded(&path, 199),
            Err(Error::Decode(DecodeError::FileTooLarge { bytes: 200, limit: 199 }))
        ));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe.jpg");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let zeros = dir.path().join("zeros.jpg");
        std::os::unix::fs::symlink("/dev/zero", &zeros).unwrap();
        for path in [&pipe, &zeros] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.ends_with("it is a device, pipe or socket\nhint: name an image file"));
        }
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("it is a folder\nhint: name an image file in it"), "{error}");
    }
}
