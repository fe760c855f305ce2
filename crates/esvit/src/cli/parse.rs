//! Command lines, whose mistakes are told in plain words.

use std::error::Error as _;
use std::ffi::OsString;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error, FromArgMatches};

/// Parses the words of a command line, the name of the program first.
///
/// # Errors
/// Those of clap, and the texts of help and version.
pub(super) fn parse<T: CommandFactory + FromArgMatches>(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<T, Error> {
    let mut command = with_negative_numbers(T::command());
    let mut matches = command.try_get_matches_from_mut(words).map_err(in_words)?;
    T::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Takes `-1` after an option as its value, which may refuse it: no option is called like a number.
fn with_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    });
    command.mut_subcommands(with_negative_numbers)
}

/// The same error, without what only a programmer understands.
fn in_words(error: Error) -> Error {
    match message(&error) {
        Some(message) => Error::raw(ErrorKind::ValueValidation, message),
        None => error,
    }
}

/// A message about a value that is no number, or not one that is allowed.
fn message(error: &Error) -> Option<String> {
    let text = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    };
    let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let reason = reason(error.source()?, value)?;
    Some(format!(
        "invalid value '{value}' for '{option}': {reason}\n\nFor more information, try '--help'.\n"
    ))
}

/// What is wrong with a value.
fn reason(source: &(dyn std::error::Error + 'static), value: &str) -> Option<String> {
    let is_negative = value.parse::<i128>().is_ok_and(|number| number < 0);
    if let Some(error) = source.downcast_ref::<ParseIntError>() {
        return Some(match error.kind() {
            _ if is_negative => "it must not be negative".into(),
            IntErrorKind::PosOverflow => "it is too large".into(),
            _ => "it is not a whole number".into(),
        });
    }
    if source.is::<ParseFloatError>() {
        return Some("it is not a number".into());
    }
    // As clap shows the bounds of a range.
    let text = source.to_string();
    let (_, bounds) = text.split_once(" is not in ")?;
    let (least, most) = bounds.split_once("..=")?;
    Some(format!("it must be from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Sub,
        #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=9))]
        threads: Option<u16>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Sub {
        Run {
            #[arg(long)]
            lr: Option<String>,
            #[arg(long)]
            count: Option<usize>,
            #[arg(long)]
            rate: Option<f64>,
            settings: Vec<String>,
        },
    }

    fn line(words: &str) -> Result<Line, String> {
        let line = parse(format!("esvit run {words}").split_whitespace());
        line.map_err(|error| error.to_string())
    }

    #[test]
    fn negative_numbers_are_values() {
        let Line { command, threads } =
            line("--lr -1 --rate -0.5 --count 2 -5 --threads 3").unwrap();
        let Sub::Run { lr, count, rate, settings } = command;
        assert_eq!((lr.as_deref(), rate, count), (Some("-1"), Some(-0.5), Some(2)));
        assert_eq!((settings, threads), (vec!["-5".to_owned()], Some(3)));
        let error = line("--lr --rate").unwrap_err();
        assert!(error.contains("a value is required for '--lr <LR>'"), "{error}");
    }

    #[test]
    fn numbers_are_refused_in_words() {
        for (words, expected) in [
            (
                "--count -1",
                "error: invalid value '-1' for '--count <COUNT>': it must not be negative",
            ),
            ("--count x", "'x' for '--count <COUNT>': it is not a whole number\n\nFor more"),
            ("--count 1.5", "it is not a whole number"),
            ("--count 99999999999999999999999", "it is too large"),
            ("--rate fast", "'fast' for '--rate <RATE>': it is not a number"),
            ("--threads 0", "'0' for '--threads <THREADS>': it must be from 1 to 9"),
            ("--threads -3", "it must be from 1 to 9"),
            ("--threads x", "it is not a whole number"),
        ] {
            let error = line(words).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        }
        let other = line("--nonsense").unwrap_err();
        assert!(other.contains("unexpected argument '--nonsense'"), "{other}");
    }
}
