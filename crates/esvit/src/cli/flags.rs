//! The options of DINO's and EsViT's scripts, so that published command lines can be pasted.
//!
//! `--batch_size_per_gpu 32` is the setting `train.batch_size=32`, and so on. Booleans may be given as
//! a value or as a bare flag, as there; what a script needs and this program does not is noted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use esvit_nn::zoo;

/// What an option means here.
enum Meaning {
    /// A setting that takes the value.
    Setting(&'static str),
    /// A boolean setting.
    Bool(&'static str),
    /// A list setting that takes all values that follow.
    List(&'static str),
    /// The folder of images.
    Data,
    /// The folder of the run.
    Out,
    /// The file of the architecture, whose name says which one it is.
    Architecture,
    /// The run to go on from.
    ContinueFrom,
    /// Nothing, and why.
    Ignored(&'static str),
}

use Meaning::{Architecture, Bool, ContinueFrom, Data, Ignored, List, Out, Setting};

const ONE_PROCESS: &str = "this run is one process";

/// The scripts' options. What is called the same here (`--arch`, `--epochs`, `--lr`, `--seed`) is
/// not among them.
const OPTIONS: &[(&str, Meaning)] = &[
    ("data_path", Data),
    ("output_dir", Out),
    ("cfg", Architecture),
    ("pretrained_weights_ckpt", ContinueFrom),
    ("batch_size_per_gpu", Setting("train.batch_size")),
    ("min_lr", Setting("optim.min_lr")),
    ("optimizer", Setting("optim.name")),
    ("warmup_epochs", Setting("optim.warmup")),
    ("weight_decay", Setting("optim.weight_decay")),
    ("weight_decay_end", Setting("optim.weight_decay_end")),
    ("clip_grad", Setting("optim.clip_grad")),
    ("freeze_last_layer", Setting("objective.freeze_last_layer")),
    ("momentum_teacher", Setting("objective.momentum_teacher")),
    ("teacher_temp", Setting("objective.teacher_temp")),
    ("warmup_teacher_temp", Setting("objective.warmup_teacher_temp")),
    ("warmup_teacher_temp_epochs", Setting("objective.teacher_temp_warmup")),
    ("use_dense_prediction", Bool("objective.region")),
    ("use_mixup", Bool("objective.mixup.enabled")),
    ("num_mixup_views", Setting("objective.mixup.views")),
    ("out_dim", Setting("objective.head.out_dim")),
    ("norm_last_layer", Bool("objective.head.norm_last_layer")),
    ("use_bn_in_head", Bool("objective.head.use_bn_in_head")),
    ("patch_size", Setting("model.patch_size")),
    ("drop_path_rate", Setting("model.drop_path")),
    ("aug_opt", Setting("views.policy")),
    ("global_crops_scale", List("views.global_scale")),
    ("local_crops_scale", List("views.local_scale")),
    ("local_crops_number", List("views.local_counts")),
    ("local_crops_size", List("views.local_sizes")),
    ("saveckp_freq", Setting("checkpoint.every")),
    ("num_workers", Setting("data.workers")),
    ("use_fp16", Ignored("`--precision` chooses f32 or bf16, which needs no scaling of the loss")),
    ("zip_mode", Ignored("images are read from a folder: unpack the archive")),
    ("tsv_mode", Ignored("images are read from a folder")),
    ("dataset", Ignored("images are read from `--data`, whatever they are called")),
    ("sampler", Ignored("every epoch shows all images in random order")),
    ("dist_url", Ignored(ONE_PROCESS)),
    ("local_rank", Ignored(ONE_PROCESS)),
    ("nproc_per_node", Ignored(ONE_PROCESS)),
    ("nnodes", Ignored(ONE_PROCESS)),
    ("node_rank", Ignored(ONE_PROCESS)),
    ("master_addr", Ignored(ONE_PROCESS)),
    ("master_port", Ignored(ONE_PROCESS)),
    ("num_nodes", Ignored(ONE_PROCESS)),
    ("ngpus", Ignored(ONE_PROCESS)),
];

/// A command line without the launcher of a script that was pasted with it, such as
/// `python -m torch.distributed.launch --nproc_per_node=8 main_esvit.py`.
pub(super) fn without_launcher(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    let is_launcher =
        |word: String| word.starts_with("python") || word == "torchrun" || word == "-m";
    if arguments.get(2).map(text).is_some_and(is_launcher) {
        let script = arguments.iter().position(|argument| text(argument).ends_with(".py"));
        if let Some(script) = script {
            arguments.drain(2..=script);
        }
    }
    arguments
}

/// What the options of a script say.
#[derive(Debug, Clone, Default)]
pub(super) struct ScriptOptions {
    /// `KEY=VALUE`.
    pub(super) settings: Vec<String>,
    /// The folder of images.
    pub(super) data: Option<PathBuf>,
    /// The folder of the run.
    pub(super) out: Option<PathBuf>,
    /// The run to go on from.
    pub(super) continue_from: Option<PathBuf>,
    /// The file of the architecture.
    pub(super) architecture: Option<PathBuf>,
    /// Lines about what was ignored.
    pub(super) notes: Vec<String>,
}

impl ScriptOptions {
    /// Whether this is a command line of such a script, whose defaults hold.
    pub(super) fn is_script(&self) -> bool {
        self.data.is_some() || self.architecture.is_some()
    }

    fn take(&mut self, name: &str, meaning: &Meaning, mut values: Vec<String>) {
        // A bare flag takes no value, and a list ends where settings begin.
        let is_value = |text: &String| match meaning {
            Bool(_) => parse_bool(text).is_some() || !text.contains('='),
            List(_) => text.parse::<f64>().is_ok() || !text.contains('='),
            _ => true,
        };
        let end = values.iter().position(|text| !is_value(text)).unwrap_or(values.len());
        self.settings.extend(values.split_off(end));
        let first = || values.first().cloned().unwrap_or_default();
        match meaning {
            Setting(key) => self.settings.push(format!("{key}={}", first())),
            Bool(key) => {
                let value = values.first().map_or(Some(true), |text| parse_bool(text));
                let value = value.map_or_else(first, |value| value.to_string());
                self.settings.push(format!("{key}={value}"));
            }
            List(key) => self.settings.push(format!("{key}=[{}]", values.join(", "))),
            Data => self.data = Some(first().into()),
            Out => self.out = Some(first().into()),
            ContinueFrom => self.continue_from = Some(first().into()),
            Architecture => self.architecture = Some(first().into()),
            Ignored(why) => self.notes.push(format!("`--{name}` has no effect: {why}")),
        }
    }
}

impl FromArgMatches for ScriptOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (name, meaning) in OPTIONS {
            if matches.value_source(name) == Some(ValueSource::CommandLine) {
                let values = matches.get_many::<String>(name).into_iter().flatten();
                self.take(name, meaning, values.cloned().collect());
            }
        }
        Ok(())
    }
}

impl Args for ScriptOptions {
    fn augment_args(command: Command) -> Command {
        OPTIONS.iter().fold(command, |command, (name, meaning)| {
            let values = match meaning {
                Bool(_) | Ignored(_) => 0..=1,
                List(_) => 1..=usize::MAX,
                _ => 1..=1,
            };
            let dashed = name.replace('_', "-");
            let option = Arg::new(*name).long(*name).num_args(values).hide(true);
            let option = option.overrides_with(*name);
            command.arg(if dashed == *name { option } else { option.alias(dashed) })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The option that stands for a setting of an objective, if there is one.
pub(super) fn option_of(key: &str) -> Option<&'static str> {
    let gives = |meaning: &Meaning| match meaning {
        Setting(of) | Bool(of) | List(of) => *of == key,
        _ => false,
    };
    let of_script = OPTIONS.iter().find(|(_, meaning)| gives(meaning)).map(|(name, _)| *name);
    of_script.or((key == "objective.teacher").then_some("teacher"))
}

/// The architecture that a script's `--arch` and the name of its file (`--cfg`) stand for: the window
/// is in the latter alone, as in `swin_tiny_patch4_window14_224.yaml` and `cvt_v4/res_stem/s1_w14.yaml`.
pub(super) fn architecture(arch: Option<&str>, file: &Path) -> Option<String> {
    let stem = file.file_stem()?.to_str()?;
    let folders: Vec<&str> = file.iter().filter_map(|folder| folder.to_str()).collect();
    if folders.contains(&"cvt_v4") {
        let size = if stem.starts_with("s1") { "cvt_tiny" } else { "cvt_s3" };
        let of_stem = if folders.contains(&"res_stem") { "_stem" } else { "" };
        let window = if stem.ends_with("_w14") { "_w14" } else { "" };
        return Some(format!("{size}{of_stem}{window}")).filter(|name| zoo::find(name).is_some());
    }
    let (family, rest) = stem.split_once("_patch")?;
    let window = rest.split_once("_window")?.1.split('_').next()?;
    Some(format!("{}_w{window}", arch.unwrap_or(family)))
}

/// The vision transformer that a script's `--arch` and `--patch_size` stand for, if they do: `vit_small`
/// or `deit_small`, with patches of 16 pixels unless the settings say otherwise.
pub(super) fn vision_transformer(arch: &str, settings: &[String]) -> Option<String> {
    let (_, size) = arch.split_once('_').filter(|(family, _)| ["vit", "deit"].contains(family))?;
    let given = settings.iter().rev().find_map(|text| text.strip_prefix("model.patch_size="));
    let name = format!("vit_{size}{}", given.unwrap_or("16"));
    ["tiny", "small", "base"].contains(&size).then_some(name)
}

/// Parses the booleans that the scripts accept.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "on" | "true" | "1" => Some(true),
        "off" | "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        script: ScriptOptions,
        #[arg(long)]
        epochs: Option<u64>,
        settings: Vec<String>,
    }

    fn settings(line: &str) -> Vec<String> {
        let line = Line::try_parse_from(format!("esvit {line}").split_whitespace()).unwrap();
        [line.script.settings, line.settings].concat()
    }

    #[test]
    fn the_published_command_line() {
        let line = "esvit --data_path imagenet/train --output_dir runs/tiny --epochs 300 \
                    --batch_size_per_gpu 32 --teacher_temp 0.07 --warmup_epochs 10 \
                    --warmup_teacher_temp_epochs 30 --norm_last_layer false \
                    --use_dense_prediction True --dist_url env:// --use_fp16 false \
                    --cfg experiments/imagenet/swin/swin_tiny_patch4_window14_224.yaml";
        let line = Line::try_parse_from(line.split_whitespace()).unwrap();
        let mut found = line.script.settings.clone();
        found.sort();
        assert_eq!(
            found,
            [
                "objective.head.norm_last_layer=false",
                "objective.region=true",
                "objective.teacher_temp=0.07",
                "objective.teacher_temp_warmup=30",
                "optim.warmup=10",
                "train.batch_size=32",
            ]
        );
        assert_eq!(line.epochs, Some(300));
        assert!(line.script.is_script());
        assert_eq!(line.script.data.as_deref(), Some(Path::new("imagenet/train")));
        assert_eq!(line.script.out.as_deref(), Some(Path::new("runs/tiny")));
        assert_eq!(line.script.notes.len(), 2);
        let file = line.script.architecture.unwrap();
        assert_eq!(architecture(None, &file).as_deref(), Some("swin_tiny_w14"));
        assert_eq!(architecture(Some("swin_base"), &file).as_deref(), Some("swin_base_w14"));
        assert_eq!(architecture(None, Path::new("cvt_v4_s1.yaml")), None);
        for (file, expected) in [
            ("experiments/cvt_v4/s1.yaml", "cvt_tiny"),
            ("cvt_v4/s3.yaml", "cvt_s3"),
            ("cvt_v4/win_size/s3_w14.yaml", "cvt_s3_w14"),
            ("cvt_v4/res_stem/s1_w14.yaml", "cvt_tiny_stem_w14"),
        ] {
            assert_eq!(architecture(None, Path::new(file)).as_deref(), Some(expected));
        }
        assert_eq!(architecture(None, Path::new("cvt_v4/res_stem/s1.yaml")), None);
    }

    #[test]
    fn settings_have_their_options() {
        for (key, expected) in [
            ("objective.head.out_dim", Some("out_dim")),
            ("objective.region", Some("use_dense_prediction")),
            ("objective.mixup.enabled", Some("use_mixup")),
            ("objective.teacher", Some("teacher")),
            ("objective.koleo", None),
        ] {
            assert_eq!(option_of(key), expected, "{key}");
        }
    }

    #[test]
    fn vision_transformers_of_the_scripts() {
        let found = |arch, settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|text| (*text).into()).collect();
            vision_transformer(arch, &settings)
        };
        assert_eq!(found("deit_small", &[]).as_deref(), Some("vit_small16"));
        let eight = ["optim.lr=1", "model.patch_size=8"];
        assert_eq!(found("vit_base", &eight).as_deref(), Some("vit_base8"));
        assert_eq!(found("vit_small16", &eight), None);
        assert_eq!(found("swin_small", &[]), None);
    }

    #[test]
    fn lists_bare_flags_dashes_and_attached_values() {
        let found = settings(
            "--local_crops_size 96 64 --local-crops-number=8 --use_mixup --weight-decay=1e-3 \
             data.workers=2",
        );
        let expected = [
            "optim.weight_decay=1e-3",
            "objective.mixup.enabled=true",
            "views.local_counts=[8]",
            "views.local_sizes=[96, 64]",
            "data.workers=2",
        ];
        assert_eq!(
            found.iter().collect::<std::collections::BTreeSet<_>>(),
            expected.map(str::to_owned).iter().collect()
        );
    }

    #[test]
    fn a_bare_flag_or_a_list_leaves_the_next_word_alone() {
        let mut found = settings(
            "--use_mixup train.epochs=3 --norm_last_layer 0 --local_crops_number 6 2 seed=1 \
             --teacher_temp 0.05 --teacher_temp 0.06",
        );
        found.sort();
        assert_eq!(
            found,
            [
                "objective.head.norm_last_layer=false",
                "objective.mixup.enabled=true",
                "objective.teacher_temp=0.06",
                "seed=1",
                "train.epochs=3",
                "views.local_counts=[6, 2]",
            ]
        );
        // A value that is none is left to the settings to refuse.
        assert_eq!(settings("--use_bn_in_head maybe"), ["objective.head.use_bn_in_head=maybe"]);
    }
}
