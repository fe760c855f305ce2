//! The flags of DINO's and EsViT's scripts, so that published command lines can be pasted.
//!
//! `--batch_size_per_gpu 32` becomes the setting `train.batch_size=32`, and so on. Booleans may be
//! given as a value or as a bare flag, as there.

use std::ffi::OsString;

/// How a flag is translated.
enum Translation {
    /// An alias of one of our flags.
    Flag(&'static str),
    /// A setting that takes the value.
    Setting(&'static str),
    /// A boolean setting.
    Bool(&'static str),
    /// A list setting that takes all values that follow.
    List(&'static str),
}

use Translation::{Bool, Flag, List, Setting};

/// The scripts' flags, with underscores.
const FLAGS: &[(&str, Translation)] = &[
    ("arch", Flag("--arch")),
    ("data_path", Flag("--data")),
    ("output_dir", Flag("--out")),
    ("batch_size_per_gpu", Setting("train.batch_size")),
    ("batch_size", Setting("train.batch_size")),
    ("epochs", Setting("train.epochs")),
    ("lr", Setting("optim.lr")),
    ("min_lr", Setting("optim.min_lr")),
    ("optimizer", Setting("optim.name")),
    ("warmup_epochs", Setting("optim.warmup_epochs")),
    ("weight_decay", Setting("optim.weight_decay")),
    ("weight_decay_end", Setting("optim.weight_decay_end")),
    ("clip_grad", Setting("optim.clip_grad")),
    ("freeze_last_layer", Setting("objective.freeze_last_layer")),
    ("momentum_teacher", Setting("objective.momentum_teacher")),
    ("teacher_temp", Setting("objective.teacher_temp")),
    ("warmup_teacher_temp", Setting("objective.warmup_teacher_temp")),
    ("warmup_teacher_temp_epochs", Setting("objective.warmup_teacher_temp_epochs")),
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
    ("saveckp_freq", Setting("checkpoint.every_epochs")),
    ("num_workers", Setting("data.workers")),
    ("seed", Setting("seed")),
];

/// Commands whose flags are translated.
const COMMANDS: [&str; 2] = ["pretrain", "train"];

/// Translates the scripts' flags in a command line.
pub(super) fn translate(arguments: Vec<OsString>) -> Vec<OsString> {
    if !arguments.get(1).is_some_and(|name| COMMANDS.iter().any(|command| name == command)) {
        return arguments;
    }
    let mut translated: Vec<OsString> = arguments[..2].to_vec();
    let mut rest = arguments.into_iter().skip(2).peekable();
    while let Some(argument) = rest.next() {
        let Some((translation, inline_value)) = argument.to_str().and_then(find_flag) else {
            translated.push(argument);
            continue;
        };
        let mut values: Vec<OsString> = inline_value.map(Into::into).into_iter().collect();
        let wanted = match translation {
            List(_) => usize::MAX,
            _ => 1,
        };
        // A bare flag takes no value, and a list ends where settings begin.
        let is_value = |next: &OsString| {
            let next = next.to_string_lossy();
            let fits = match translation {
                Bool(_) => parse_bool(&next).is_some(),
                List(_) => next.parse::<f64>().is_ok(),
                _ => true,
            };
            fits && !next.starts_with("--")
        };
        while values.len() < wanted
            && let Some(value) = rest.next_if(is_value)
        {
            values.push(value);
        }
        let text: Vec<String> =
            values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
        match *translation {
            Flag(flag) => {
                translated.push(flag.into());
                translated.extend(values);
            }
            Setting(key) => translated.push(format!("{key}={}", text.join(" ")).into()),
            Bool(key) => {
                let value = text.first().map_or(Some(true), |text| parse_bool(text));
                let value = value.map_or_else(|| text.join(" "), |value| value.to_string());
                translated.push(format!("{key}={value}").into());
            }
            List(key) => translated.push(format!("{key}=[{}]", text.join(", ")).into()),
        }
    }
    translated
}

/// The translation of a flag, and the value after its `=`; `None` for other flags.
fn find_flag(argument: &str) -> Option<(&'static Translation, Option<String>)> {
    let name = argument.strip_prefix("--")?;
    let (name, value) = match name.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (name, None),
    };
    let name = name.replace('-', "_");
    FLAGS.iter().find(|(flag, _)| *flag == name).map(|(_, translation)| (translation, value))
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

    fn translated(line: &str) -> String {
        let words = line.split_whitespace().map(OsString::from).collect();
        let words = translate(words);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_published_command_line() {
        let found = translated(
            "esvit pretrain --arch swin_tiny --data_path imagenet/train --output_dir runs/tiny \
             --batch_size_per_gpu 32 --epochs 300 --teacher_temp 0.07 --warmup_epochs 10 \
             --warmup_teacher_temp_epochs 30 --norm_last_layer false --use_dense_prediction True",
        );
        assert_eq!(
            found,
            "esvit pretrain --arch swin_tiny --data imagenet/train --out runs/tiny \
             train.batch_size=32 train.epochs=300 objective.teacher_temp=0.07 \
             optim.warmup_epochs=10 objective.warmup_teacher_temp_epochs=30 \
             objective.head.norm_last_layer=false objective.region=true"
        );
    }

    #[test]
    fn lists_bare_flags_dashes_and_attached_values() {
        assert_eq!(
            translated(
                "esvit pretrain --local_crops_size 96 64 --local-crops-number=8 --use_mixup \
                 --resume --lr=1e-3 data.workers=2"
            ),
            "esvit pretrain views.local_sizes=[96, 64] views.local_counts=[8] \
             objective.mixup.enabled=true --resume optim.lr=1e-3 data.workers=2"
        );
    }

    #[test]
    fn a_bare_flag_or_a_list_leaves_the_next_word_alone() {
        assert_eq!(
            translated(
                "esvit train --use_mixup train.epochs=3 --norm_last_layer 0 --use_bn_in_head maybe \
                 --local_crops_number 6 2 seed=1 --global_crops_scale 0.4 1 --epochs"
            ),
            "esvit train objective.mixup.enabled=true train.epochs=3 objective.head.norm_last_layer=false \
             objective.head.use_bn_in_head=true maybe views.local_counts=[6, 2] seed=1 \
             views.global_scale=[0.4, 1] train.epochs="
        );
    }

    #[test]
    fn other_commands_are_left_alone() {
        let line = "esvit embed --batch_size 3";
        assert_eq!(translated(line), line);
    }
}
