//! A fresh folder, the program run in it, and what it left there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use esvit_train::Config;
use esvit_train::config_text::Origin;
use esvit_weights::{TensorInfo, WeightsFile};
use serde_json::Value;
use tempfile::TempDir;

/// The built-in images and a network so small that a step takes milliseconds: 25 steps an epoch. In f32, so that
/// it is the same on every processor.
pub(crate) const TINY: &str = "--recipe materials seed=1 train.epochs=3 train.batch_size=4 train.precision=f32 \
    data.repeat=1 model.depths=[1,1] model.embed_dim=16 model.num_heads=[1,2] model.mlp_ratio=4.0 \
    objective.head.out_dim=32 objective.head.hidden_dim=16 objective.head.bottleneck_dim=8 views.local_counts=[1] optim.warmup=1 \
    knn.every=0";

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A fresh folder in which the program is run.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A place with a finished run `run` of one epoch: the same for all tests, made once.
    pub(crate) fn with_a_run() -> Self {
        static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
        let files = FILES.get_or_init(|| {
            let place = Self::new();
            place.well(&format!("pretrain --out run {TINY} train.epochs=1"));
            let name = |path: &Path| path.strip_prefix(place.path("")).unwrap().to_owned();
            let files = place.files("").into_iter();
            files.map(|(path, bytes)| (name(&path).to_str().unwrap().into(), bytes)).collect()
        });
        let place = Self::new();
        files.iter().for_each(|(name, bytes)| place.write(name, bytes));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Starts the program with a command line of words without spaces.
    pub(crate) fn start(&self, line: &str) -> Running {
        self.start_in("", line, &[])
    }

    /// Starts it in a folder of the place, with arguments that need not be text after the line.
    fn start_in(&self, folder: &str, line: &str, more: &[&OsStr]) -> Running {
        let outputs = tempfile::tempdir().unwrap();
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| File::create(outputs.path().join(name)).unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_esvit"))
            .args(line.split_whitespace())
            .args(more)
            // Which is set where this runs under cargo.
            .env_remove("CARGO")
            .current_dir(self.path(folder))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Running { child, outputs, line: line.into(), began: Instant::now() }
    }

    pub(crate) fn run(&self, line: &str) -> Ended {
        self.start(line).wait()
    }

    /// Runs it in a folder of the place.
    pub(crate) fn run_in(&self, folder: &str, line: &str) -> Ended {
        self.start_in(folder, line, &[]).wait()
    }

    /// Runs it with arguments that need not be text after the line.
    pub(crate) fn run_with(&self, line: &str, more: &[&OsStr]) -> Ended {
        self.start_in("", line, more).wait()
    }

    /// Runs a command that must succeed.
    pub(crate) fn well(&self, line: &str) -> Ended {
        self.run(line).expect(0)
    }

    /// The settings that a command for a run resolves to.
    pub(crate) fn settings(&self, line: &str) -> Config {
        let text = self.well(&format!("{line} --quiet --dry-run")).stdout;
        Config::parse(&text, Origin::File("settings".into())).unwrap()
    }

    /// What lies in the folder of a run.
    pub(crate) fn folder(&self, name: &str) -> Folder {
        Folder(self.path(name))
    }

    /// Every file below the place with its bytes, apart from those below `ignored`.
    pub(crate) fn files(&self, ignored: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.0.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path == self.path(ignored) {
                } else if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap();
                    files.insert(path, bytes);
                }
            }
        }
        files
    }
}

/// The program at work; it is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    outputs: TempDir,
    line: String,
    began: Instant,
}

impl Running {
    pub(crate) fn wait(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.began.elapsed() > PATIENCE {
                panic!("still running after {PATIENCE:?}\n{}", self.ended(None));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.ended(status.code())
    }

    /// Sends signals by their names, one after the other.
    #[cfg(unix)]
    pub(crate) fn signal(&mut self, names: &[&str]) {
        assert!(self.is_running(), "ended before the signal\n{}", self.ended(None));
        let id = self.child.id();
        let kill = names.iter().map(|name| format!("kill -{name} {id}")).collect::<Vec<_>>();
        let kill = kill.join(" && ");
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Bytes that it has read so far, from files and elsewhere.
    #[cfg(target_os = "linux")]
    pub(crate) fn bytes_read(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/io", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        line.unwrap().parse().unwrap()
    }

    /// Ends it as the system does when memory runs out: at once.
    #[cfg(unix)]
    pub(crate) fn kill(mut self) {
        assert!(self.is_running(), "ended before it was killed\n{}", self.ended(None));
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until `done` is true; what it did up to then is shown if that never comes.
    pub(crate) fn wait_until(&mut self, mut done: impl FnMut() -> bool) {
        while !done() {
            let in_time = self.began.elapsed() < PATIENCE;
            assert!(in_time && self.is_running(), "waited in vain\n{}", self.ended(None));
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until it has said something to people.
    #[cfg(unix)]
    pub(crate) fn wait_until_said(&mut self, part: &str) {
        let path = self.outputs.path().join("stderr");
        self.wait_until(|| fs::read_to_string(&path).is_ok_and(|text| text.contains(part)));
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn ended(&self, code: Option<i32>) -> Ended {
        let read = |name| {
            let mut text = String::new();
            File::open(self.outputs.path().join(name)).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let (stdout, stderr) = (read("stdout"), read("stderr"));
        Ended { line: self.line.clone(), code, stdout, stderr, took: self.began.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a command.
pub(crate) struct Ended {
    line: String,
    code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, code, stdout, stderr, took } = self;
        let code = code.map_or("no exit code".into(), |code| format!("exit code {code}"));
        write!(f, "$ esvit {line}\n{code} after {took:?}\n-- stdout\n{stdout}-- stderr\n{stderr}")
    }
}

impl Ended {
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "another exit code was expected\n{self}");
        self
    }

    /// All of `parts` stand in what was said to people.
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` was not said\n{self}");
        }
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }
}

/// The folder of a run.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.0)
    }

    /// Names of the files in `checkpoints`; empty while there is no such folder.
    pub(crate) fn checkpoint_names(&self) -> Vec<String> {
        names(&self.file("checkpoints"))
    }

    /// Steps of the numbered checkpoints.
    pub(crate) fn steps(&self) -> Vec<u64> {
        let names = self.checkpoint_names();
        let step = |name: &String| {
            name.strip_suffix(".safetensors")?.rsplit_once("-step=")?.1.parse().ok()
        };
        let mut steps: Vec<u64> = names.iter().filter_map(step).collect();
        steps.sort_unstable();
        steps
    }

    /// The checkpoint after a step.
    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        let end = format!("-step={step:08}.safetensors");
        let names = self.checkpoint_names();
        let name = names.iter().find(|name| name.ends_with(&end));
        self.file("checkpoints").join(name.unwrap_or_else(|| panic!("no {end} in {names:?}")))
    }

    pub(crate) fn newest(&self) -> PathBuf {
        self.checkpoint(*self.steps().last().expect("a checkpoint"))
    }

    /// The lines of a file of JSON objects.
    pub(crate) fn lines(&self, name: &str) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.text(name).lines().map(line).collect()
    }

    /// Steps recorded in `metrics.jsonl` by now.
    pub(crate) fn losses_so_far(&self) -> usize {
        fs::read_to_string(self.file("metrics.jsonl"))
            .map_or(0, |text| text.matches("train_loss").count())
    }

    /// Step and loss of every line of `metrics.jsonl` that has a loss.
    pub(crate) fn losses(&self) -> Vec<(u64, f64)> {
        let lines = self.lines("metrics.jsonl");
        let loss = |line: &Value| Some((line["step"].as_u64()?, line["train_loss"].as_f64()?));
        lines.iter().filter_map(loss).collect()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort_unstable();
    names
}

/// Names and bits of all tensors of a file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Vec<u32>> {
    let file = WeightsFile::open(path).unwrap();
    let bits = |tensor: &TensorInfo| {
        let values = file.read_f32(tensor).unwrap();
        (tensor.name.clone(), values.iter().map(|value| value.to_bits()).collect())
    };
    file.tensors().iter().map(bits).collect()
}

/// What a checkpoint says beside its tensors.
pub(crate) fn metadata(path: &Path) -> Value {
    let file = WeightsFile::open(path).unwrap();
    serde_json::from_str(file.metadata().get("esvit").unwrap().as_str().unwrap()).unwrap()
}
