//! Finds all files below a folder.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirEntry, FileType};
use std::io;
use std::path::{Path, PathBuf};

use super::listing::{Listing, Unlisted};
use super::{File, extension, is_image};

/// Folders of the system that have files without end.
const SYSTEM: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What tells a file or folder from others, under whatever path it is reached: device and inode, or
/// the path without links.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<Identity> {
    path.canonicalize()
}

/// The identity of a file in a folder, without asking for it.
#[cfg(unix)]
fn identity_in(folder: &Identity, entry: &DirEntry) -> Identity {
    use std::os::unix::fs::DirEntryExt;
    (folder.0, entry.ino())
}

#[cfg(not(unix))]
fn identity_in(folder: &Identity, entry: &DirEntry) -> Identity {
    folder.join(entry.file_name())
}

/// A walk over all folders. Those that are no links come first, so that what is reached twice has
/// the path without links; each folder is listed once, so that circles end.
pub(super) struct Walk {
    root: PathBuf,
    /// The root without links.
    real_root: PathBuf,
    /// Folders relative to the root.
    pub(super) folders: Vec<PathBuf>,
    pub(super) files: Vec<File>,
    pub(super) listing: Listing,
    /// Folders and files that were listed.
    seen: HashSet<Identity>,
    /// Links that were found and are still to be followed.
    links: Vec<Link>,
    /// Whether links are being followed.
    follows: bool,
}

/// A link in a folder that was listed.
struct Link {
    folder: u32,
    name: OsString,
    is_folder: bool,
}

/// What is still to be looked at in a folder.
struct Open {
    folder: u32,
    entries: std::vec::IntoIter<Entry>,
}

struct Entry {
    name: OsString,
    kind: FileType,
    identity: Identity,
}

impl Walk {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let mut walk = Self {
            root: root.to_path_buf(),
            real_root: root.canonicalize()?,
            folders: Vec::new(),
            files: Vec::new(),
            listing: Listing::default(),
            seen: HashSet::new(),
            links: Vec::new(),
            follows: false,
        };
        walk.visit(PathBuf::new())?;
        while !walk.links.is_empty() {
            walk.follows = true;
            let (to_folders, to_files): (Vec<_>, Vec<_>) =
                std::mem::take(&mut walk.links).into_iter().partition(|link| link.is_folder);
            // Files first: a folder behind a link may hold the same ones.
            to_files.into_iter().for_each(|link| walk.add_linked_file(link));
            to_folders.into_iter().for_each(|link| walk.follow(&link));
        }
        if walk.follows {
            walk.sort();
        }
        Ok(walk)
    }

    /// Adds the contents of a folder and of those in it. An error only if it cannot be listed
    /// itself.
    fn visit(&mut self, relative: PathBuf) -> io::Result<()> {
        // The folder and those in it that lead to where the walk is.
        let mut open: Vec<Open> = Vec::new();
        open.extend(self.list(relative)?);
        while let Some(Open { folder, entries }) = open.last_mut() {
            let Some(Entry { name, kind, identity }) = entries.next() else {
                open.pop();
                continue;
            };
            let folder = *folder;
            let path = || self.root.join(&self.folders[folder as usize]).join(&name);
            if kind.is_dir() {
                let relative = self.folders[folder as usize].join(&name);
                match self.list(relative) {
                    Ok(entries) => open.extend(entries),
                    Err(reason) => {
                        let path = self.root.join(&self.folders[folder as usize]).join(&name);
                        self.listing.unlisted.push(Unlisted { path, reason });
                    }
                }
            } else if kind.is_symlink() {
                let is_folder = path().is_dir();
                if is_folder || self.counts(&name) {
                    self.links.push(Link { folder, name, is_folder });
                }
            } else if kind.is_file() {
                // Hard links are files of their own, but for what links lead to.
                if self.follows && self.seen.contains(&identity) {
                    let path = path();
                    self.listing.twice.push(path);
                } else if self.counts(&name) {
                    self.seen.insert(identity);
                    self.files.push(File { folder, label: 0, name: name.into_boxed_os_str() });
                }
            }
        }
        Ok(())
    }

    /// The entries of a folder in their order; none if it was listed before.
    fn list(&mut self, relative: PathBuf) -> io::Result<Option<Open>> {
        let path = self.root.join(&relative);
        let identity = identity(&path)?;
        if self.seen.contains(&identity) {
            self.listing.twice.push(path);
            return Ok(None);
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.as_encoded_bytes().starts_with(b".") {
                let identity = identity_in(&identity, &entry);
                entries.push(Entry { name, kind: entry.file_type()?, identity });
            }
        }
        entries.sort_unstable_by(|a, b| a.name.as_encoded_bytes().cmp(b.name.as_encoded_bytes()));
        let folder = self.folders.len() as u32;
        self.seen.insert(identity);
        self.folders.push(relative);
        Ok(Some(Open { folder, entries: entries.into_iter() }))
    }

    /// Whether a file is listed by its name; else it is counted as left out.
    fn counts(&mut self, name: &OsString) -> bool {
        if is_image(name) {
            return true;
        }
        match extension(name) {
            Some(extension) => *self.listing.left_out.entry(extension).or_default() += 1,
            None => self.listing.without_extension += 1,
        }
        false
    }

    /// Lists the file that a link leads to, unless it is listed already. A link to nothing is
    /// listed too: loading it fails with a reason.
    fn add_linked_file(&mut self, Link { folder, name, .. }: Link) {
        let path = self.root.join(&self.folders[folder as usize]).join(&name);
        if identity(&path).is_ok_and(|identity| !self.seen.insert(identity)) {
            self.listing.twice.push(path);
        } else {
            self.files.push(File { folder, label: 0, name: name.into_boxed_os_str() });
        }
    }

    /// Lists what a link to a folder leads to.
    fn follow(&mut self, Link { folder, name, .. }: &Link) {
        let link = self.folders[*folder as usize].join(name);
        let path = self.root.join(&link);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(reason) => return self.listing.unlisted.push(Unlisted { path, reason }),
        };
        let around = self.real_root != real && self.real_root.starts_with(&real);
        if around || SYSTEM.iter().any(|system| real.starts_with(system)) {
            self.listing.not_followed.push(path);
        } else if let Err(reason) = self.visit(link) {
            self.listing.unlisted.push(Unlisted { path, reason });
        }
    }

    /// Brings files into the order of their paths.
    fn sort(&mut self) {
        let folders = &self.folders;
        let path = |file: &File| {
            let name: &Path = file.name.as_ref().as_ref();
            folders[file.folder as usize].join(name)
        };
        self.files.sort_by_cached_key(|file| {
            let bytes = |part: &std::ffi::OsStr| part.as_encoded_bytes().to_vec();
            path(file).iter().map(bytes).collect::<Vec<_>>()
        });
    }
}
