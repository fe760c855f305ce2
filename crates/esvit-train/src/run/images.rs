//! What a checkpoint says of the images of its run, to notice when a run goes on with others.

use esvit_data::{Source, counted};
use esvit_kernels::rng::fnv1a;
use serde::{Deserialize, Serialize};

/// The images of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    /// Number of images.
    pub images: usize,
    /// Optimizer steps per epoch.
    pub steps_per_epoch: u64,
    /// Number of classes, 0 without labels.
    pub classes: usize,
    /// Hash of the names below the folder that all images are in, and of the names of classes.
    names: u64,
    /// Hash of the lengths of files; 0 for images that are not in files.
    lengths: u64,
}

impl ImageSet {
    /// Describes the images of a source.
    pub fn of(source: &dyn Source, steps_per_epoch: u64) -> Self {
        let common = common_folder(source);
        let images = 0..source.len();
        let name = |index| source.name(index).into_bytes().split_off(common);
        let classes = source.classes().iter().map(|class| class.clone().into_bytes());
        let names = images.clone().map(name).chain(classes);
        let lengths: Vec<u64> = images.filter_map(|index| Some(source.stamp(index)?.len)).collect();
        let of_files = fnv1a(lengths.iter().flat_map(|length| length.to_le_bytes()));
        Self {
            images: source.len(),
            steps_per_epoch,
            classes: source.classes().len(),
            names: fnv1a(names.flat_map(|name| name.into_iter().chain([0]))),
            lengths: if lengths.is_empty() { 0 } else { of_files },
        }
    }

    /// What differs from the images that a run had before, in words; `None` for nothing.
    pub fn differences(&self, before: &Self) -> Option<String> {
        let mut parts = Vec::new();
        if self.images != before.images {
            let images = counted(self.images, "image");
            parts.push(format!("{images} instead of {}", before.images));
        } else if self.names != before.names && self.classes == before.classes {
            parts.push("images or classes have other names".into());
        } else if self.lengths != before.lengths {
            parts.push("files of the same names have other contents".into());
        }
        if self.classes != before.classes {
            let noun = if self.classes == 1 { "class" } else { "classes" };
            parts.push(format!("{} {noun} instead of {}", self.classes, before.classes));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Length of the path of the folder that all images are in.
fn common_folder(source: &dyn Source) -> usize {
    let first = source.name(0);
    let mut common = first.rfind('/').map_or(0, |at| at + 1);
    for index in 1..source.len() {
        let name = source.name(index);
        while !name.as_bytes().starts_with(&first.as_bytes()[..common]) {
            common = first[..common - 1].rfind('/').map_or(0, |at| at + 1);
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;
    use esvit_data::{Image, InMemory};

    fn set(names: &[&str], classes: &[&str]) -> ImageSet {
        let mut source = InMemory::new(classes.iter().map(|&class| class.into()).collect());
        for name in names {
            source.push(*name, None, Image::new(1, 1, vec![0; 3]).unwrap());
        }
        ImageSet::of(&source, 3)
    }

    #[test]
    fn differences_are_told() {
        let before = set(&["a/x.png", "a/b/y.png"], &["p", "q"]);
        assert_eq!(set(&["a/x.png", "a/b/y.png"], &["p", "q"]).differences(&before), None);
        // In a folder that was moved.
        assert_eq!(set(&["/new/x.png", "/new/b/y.png"], &["p", "q"]).differences(&before), None);
        let longer = ImageSet { lengths: 1, ..before.clone() };
        for (now, expected) in [
            (set(&["a/x.png"], &["p", "q"]), "1 image instead of 2"),
            (set(&["a/x.png", "a/b/z.png"], &["p", "q"]), "images or classes have other names"),
            (set(&["a/x.png", "a/b/y.png"], &["p", "r"]), "images or classes have other names"),
            (set(&["a/x.png", "a/b/y.png"], &[]), "0 classes instead of 2"),
            (set(&["a/x.png"], &["p"]), "1 image instead of 2, 1 class instead of 2"),
            (longer, "files of the same names have other contents"),
        ] {
            assert_eq!(now.differences(&before).as_deref(), Some(expected));
        }
    }

    #[test]
    fn lengths_of_files_count() {
        let folder = tempfile::tempdir().unwrap();
        let write = |bytes: &[u8]| std::fs::write(folder.path().join("a.png"), bytes).unwrap();
        let open = || {
            let source = esvit_data::Folder::open(folder.path(), &Default::default()).unwrap();
            ImageSet::of(&source, 1)
        };
        write(b"one");
        let before = open();
        assert_eq!(open(), before);
        write(b"three");
        let expected = Some("files of the same names have other contents".to_owned());
        assert_eq!(open().differences(&before), expected);
    }
}
