//! The lock on the folder of a run, so that two processes never write it at once.
//!
//! The system's lock on a file ends with its process. Where file systems of several machines do not
//! share locks, the time of the file tells: its holder renews it as long as it lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the file in the folder of a run.
pub(super) const LOCK: &str = ".lock";

/// How often the holder renews the time of the file.
const RENEWED: Duration = Duration::from_secs(20);

/// After this time without a sign the holder on another machine is gone.
const GONE: Duration = Duration::from_secs(120);

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    host: String,
    process: u32,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, process } = self;
        write!(f, "process {process}")?;
        if host.is_empty() { Ok(()) } else { write!(f, " on `{host}`") }
    }
}

impl Holder {
    fn this() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
        Self { host: host.trim().into(), process: std::process::id() }
    }
}

/// Why a folder is not locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process holds the lock.
    Held(Holder),
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A lock that is held.
#[derive(Debug)]
pub(super) struct RunLock {
    path: PathBuf,
    /// Dropping it ends the thread that renews.
    ends: Option<Sender<()>>,
    renewal: Option<JoinHandle<()>>,
}

impl RunLock {
    /// Locks a folder that exists.
    pub(super) fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let this = Holder::this();
        let stored = esvit_files::read_regular(&path)?;
        let holder: Option<Holder> = serde_json::from_slice(&stored).ok();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held(holder.unwrap_or(Holder { process: 0, ..this })));
            }
            // Without locks, the time of the file has to do.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let elsewhere = holder.filter(|holder| holder.host != this.host);
        if let Some(holder) = elsewhere
            && age(folder, &file)? < GONE
        {
            return Err(LockError::Held(holder));
        }
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(&this).map_err(io::Error::other)?)?;
        let (ends, end) = channel();
        let renewal = std::thread::Builder::new().name("run-lock".into()).spawn(move || {
            while end.recv_timeout(RENEWED) == Err(RecvTimeoutError::Timeout) {
                // A folder that is gone is noticed by the run.
                let _ = file.set_modified(std::time::SystemTime::now());
            }
        })?;
        Ok(Self { path, ends: Some(ends), renewal: Some(renewal) })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.ends = None;
        if let Some(renewal) = self.renewal.take() {
            let _ = renewal.join();
        }
    }
}

/// Time since the file was renewed, by the clock of its file system.
fn age(folder: &Path, file: &File) -> io::Result<Duration> {
    let path = esvit_files::temporary_path(&folder.join(LOCK))?;
    let now = File::create(&path).and_then(|file| file.metadata()?.modified());
    let _ = std::fs::remove_file(&path);
    let renewed = file.metadata()?.modified()?;
    Ok(now?.duration_since(renewed).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn held(folder: &Path) -> Option<Holder> {
        match RunLock::acquire(folder) {
            Ok(_) => None,
            Err(LockError::Held(holder)) => Some(holder),
            Err(LockError::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(folder.path()).unwrap();
        let holder = held(folder.path()).unwrap();
        assert_eq!(holder, Holder::this());
        assert!(holder.to_string().starts_with(&format!("process {}", std::process::id())));
        drop(lock);
        assert!(!folder.path().join(LOCK).exists());
        assert_eq!(held(folder.path()), None);
    }

    /// A process that was killed leaves a file that nobody holds; one of another machine, whose locks
    /// are not seen here, is believed as long as it is renewed.
    #[test]
    fn what_a_holder_leaves_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let leave = |holder: &Holder, age: Duration| {
            std::fs::write(&path, serde_json::to_string(holder).unwrap()).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        leave(&Holder::this(), Duration::ZERO);
        assert_eq!(held(folder.path()), None);
        let other = Holder { host: "another-machine".into(), process: 7 };
        leave(&other, Duration::from_secs(60));
        assert_eq!(held(folder.path()), Some(other.clone()));
        assert_eq!(other.to_string(), "process 7 on `another-machine`");
        leave(&other, Duration::from_secs(180));
        assert_eq!(held(folder.path()), None);
        std::fs::write(&path, "not ours").unwrap();
        assert_eq!(held(folder.path()), None);
    }
}
