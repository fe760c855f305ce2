//! A folder of image files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{DecodeLimits, FileStamp, Image, Source, SourceError, decode};

/// Extensions of files to list, in lower case. Formats are recognized by content.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif"];

/// All images below a folder, at any depth.
///
/// Images are ordered by path, compared component by component and byte by byte, so that the order
/// is the same on every machine. Hidden files and folders are skipped. Symbolic links are followed,
/// except to a folder that contains them.
///
/// If all images are in subfolders, the first folder of an image's path is its class
/// (`root/<class>/...`). With images directly in the root there are no labels.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    limits: DecodeLimits,
    /// Folders relative to the root, stored once instead of with each of a million files.
    folders: Vec<PathBuf>,
    files: Vec<File>,
    classes: Vec<String>,
}

#[derive(Debug)]
struct File {
    folder: u32,
    label: u32,
    name: Box<OsStr>,
}

/// Why a folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is nothing at the path.
    #[error("there is no folder `{}`\nhint: check the path", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("`{}` is a file\nhint: give the folder that holds the images", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder could not be listed.
    #[error("cannot list `{}`: {source}\nhint: check its permissions", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No file with a known extension.
    #[error(
        "no images in `{}` or below\nhint: files named {} are looked for",
        path.display(),
        EXTENSIONS.map(|extension| format!("`.{extension}`")).join(" ")
    )]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
}

impl Folder {
    /// Lists the images below `path`, an error if there are none. No file is opened.
    pub fn open(path: impl AsRef<Path>, limits: &DecodeLimits) -> Result<Self, FolderError> {
        let root = path.as_ref().to_path_buf();
        match fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(FolderError::NotAFolder { path: root }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(FolderError::Missing { path: root });
            }
            Err(source) => return Err(FolderError::Read { path: root, source }),
        }
        let mut folder = Self {
            root: root.clone(),
            limits: *limits,
            folders: Vec::new(),
            files: Vec::new(),
            classes: Vec::new(),
        };
        let real = root
            .canonicalize()
            .map_err(|source| FolderError::Read { path: root.clone(), source })?;
        folder.walk(PathBuf::new(), &mut vec![real])?;
        if folder.files.is_empty() {
            return Err(FolderError::NoImages { path: root });
        }
        folder.assign_labels();
        Ok(folder)
    }

    /// Adds the contents of `relative`. `ancestors` has the real paths of the folders from the root
    /// to this one: following a link to one of them would never end.
    fn walk(&mut self, relative: PathBuf, ancestors: &mut Vec<PathBuf>) -> Result<(), FolderError> {
        let path = self.root.join(&relative);
        let failed = |source| FolderError::Read { path: path.clone(), source };
        let mut entries: Vec<(OsString, fs::FileType)> = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                entries.push((entry.file_name(), entry.file_type().map_err(failed)?));
            }
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.as_encoded_bytes().cmp(b.as_encoded_bytes()));

        let index = self.folders.len() as u32;
        self.folders.push(relative.clone());
        for (name, kind) in entries {
            let is_folder = kind.is_dir() || (kind.is_symlink() && path.join(&name).is_dir());
            if is_folder {
                let real = if kind.is_symlink() {
                    path.join(&name).canonicalize().map_err(failed)?
                } else {
                    ancestors.last().map(|parent| parent.join(&name)).unwrap_or_default()
                };
                if !ancestors.contains(&real) {
                    ancestors.push(real);
                    self.walk(relative.join(&name), ancestors)?;
                    ancestors.pop();
                }
            } else if (kind.is_file() || kind.is_symlink()) && is_image(&name) {
                // A dangling link is listed too: loading it fails with a reason.
                self.files.push(File { folder: index, label: 0, name: name.into_boxed_os_str() });
            }
        }
        Ok(())
    }

    /// Sets classes and labels if all images are in subfolders.
    fn assign_labels(&mut self) {
        let class_of =
            |folder: &Path| folder.iter().next().map(|class| class.to_string_lossy().into_owned());
        let classes: Vec<Option<String>> = self.folders.iter().map(|f| class_of(f)).collect();
        if self.files.iter().any(|file| classes[file.folder as usize].is_none()) {
            return;
        }
        for file in &mut self.files {
            // Files are in the order of their folders, so a new class is always the last.
            let class = classes[file.folder as usize].as_ref();
            if self.classes.last() != class {
                self.classes.extend(class.cloned());
            }
            file.label = self.classes.len() as u32 - 1;
        }
    }

    /// Path of image `index`, starting with the path that was opened.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let file = self.files.get(index)?;
        Some(self.root.join(&self.folders[file.folder as usize]).join(&*file.name))
    }
}

fn is_image(name: &OsStr) -> bool {
    Path::new(name).extension().and_then(OsStr::to_str).is_some_and(|extension| {
        EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
    })
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn name(&self, index: usize) -> String {
        self.path(index).map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn label(&self, index: usize) -> Option<u32> {
        if self.classes.is_empty() { None } else { Some(self.files.get(index)?.label) }
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn stamp(&self, index: usize) -> Option<FileStamp> {
        let metadata = fs::metadata(self.path(index)?).ok()?;
        Some(FileStamp { len: metadata.len(), modified: metadata.modified().ok()? })
    }

    fn load(&self, index: usize) -> Result<Image, SourceError> {
        let path =
            self.path(index).ok_or(SourceError::NoSuchImage { index, len: self.files.len() })?;
        let bytes = fs::read(&path).map_err(|source| SourceError::Read { path, source })?;
        decode(&bytes, &self.limits)
            .map_err(|source| SourceError::Decode { name: self.name(index), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    fn names(folder: &Folder) -> Vec<String> {
        (0..folder.len())
            .map(|i| {
                let path = folder.path(i).unwrap();
                path.strip_prefix(&folder.root).unwrap().display().to_string().replace('\\', "/")
            })
            .collect()
    }

    fn open(root: &Path) -> Folder {
        Folder::open(root, &DecodeLimits::default()).unwrap()
    }

    #[test]
    fn lists_in_path_order_and_skips_what_is_hidden_or_no_image() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["b.JPG", "a.png", "Z.webp", "a/c/d.Tiff", "a-b/x.gif", "notes.txt"]);
        touch(dir.path(), &[".hidden/a.png", ".b.png", "jpg", "x.jpg.part"]);
        let folder = open(dir.path());
        assert_eq!(names(&folder), ["Z.webp", "a/c/d.Tiff", "a-b/x.gif", "a.png", "b.JPG"]);
    }

    #[test]
    fn all_formats_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let all = ["a.bmp", "a.gif", "a.jpeg", "a.jpg", "a.png", "a.tif", "a.tiff", "a.webp"];
        touch(dir.path(), &all);
        assert_eq!(names(&open(dir.path())), all);
    }

    #[test]
    fn images_are_decoded_within_the_limits() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::filled(10, 10, [1, 2, 3]);
        let path = dir.path().join("a.png");
        fs::write(&path, crate::encode_png(&image).unwrap()).unwrap();
        let folder = open(dir.path());
        assert_eq!(folder.load(0).unwrap(), image);
        assert_eq!(folder.name(0), path.display().to_string());
        assert_eq!((folder.name(1), folder.path(1)), (String::new(), None));
        let limits = DecodeLimits { max_pixels: 99, ..DecodeLimits::default() };
        let error = Folder::open(dir.path(), &limits).unwrap().load(0).unwrap_err();
        assert!(error.to_string().starts_with(&format!("`{}`: 10x10", path.display())), "{error}");
    }

    #[test]
    fn subfolders_are_classes() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["dog/1.png", "cat/deep/er/2.png", "cat/1.png", "empty/readme.md"]);
        let folder = open(dir.path());
        assert_eq!(folder.classes(), ["cat", "dog"]);
        assert_eq!(names(&folder), ["cat/1.png", "cat/deep/er/2.png", "dog/1.png"]);
        assert_eq!(
            (0..3).map(|i| folder.label(i)).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1)]
        );
        assert_eq!(folder.label(3), None);
    }

    #[test]
    fn images_in_the_root_mean_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["1.png", "cat/1.png"]);
        let folder = open(dir.path());
        assert!(folder.classes().is_empty());
        assert!((0..2).all(|i| folder.label(i).is_none()));
    }

    #[test]
    fn wrong_paths_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.txt"]);
        let limits = DecodeLimits::default();
        let error = Folder::open(dir.path(), &limits).unwrap_err();
        assert!(matches!(error, FolderError::NoImages { .. }), "{error}");
        assert!(error.to_string().contains("`.jpeg`"), "{error}");
        let error = Folder::open(dir.path().join("no"), &limits).unwrap_err();
        assert!(matches!(error, FolderError::Missing { .. }), "{error}");
        let error = Folder::open(dir.path().join("a.txt"), &limits).unwrap_err();
        assert!(matches!(error, FolderError::NotAFolder { .. }), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["a.png", "b.png"]);
        let folder = open(dir.path());
        fs::remove_file(dir.path().join("b.png")).unwrap();
        assert!(matches!(folder.load(0), Err(SourceError::Decode { .. })));
        let error = folder.load(1).unwrap_err();
        assert!(matches!(error, SourceError::Read { .. }));
        assert!(error.to_string().contains("b.png"), "{error}");
        assert!(matches!(folder.load(2), Err(SourceError::NoSuchImage { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        touch(other.path(), &["o.png"]);
        touch(dir.path(), &["a/1.png", "b/2.png"]);
        symlink(dir.path().join("b"), dir.path().join("a/x")).unwrap();
        symlink(dir.path().join("a"), dir.path().join("b/y")).unwrap();
        symlink(dir.path(), dir.path().join("a/up")).unwrap();
        symlink(other.path(), dir.path().join("c")).unwrap();
        symlink(other.path().join("o.png"), dir.path().join("a/l.png")).unwrap();
        fs::hard_link(dir.path().join("a/1.png"), dir.path().join("a/h.png")).unwrap();
        let expected =
            ["a/1.png", "a/h.png", "a/l.png", "a/x/2.png", "b/2.png", "b/y/1.png", "b/y/h.png"];
        let folder = open(dir.path());
        assert_eq!(names(&folder)[..7], expected);
        assert_eq!(names(&folder)[7..], ["b/y/l.png", "c/o.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_fails_when_it_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere.png", dir.path().join("a.png")).unwrap();
        let folder = open(dir.path());
        let error = folder.load(0).unwrap_err();
        assert!(matches!(error, SourceError::Read { .. }), "{error}");
        assert!(
            error.to_string().ends_with("\nhint: check that it exists and may be read"),
            "{error}"
        );
    }
}
