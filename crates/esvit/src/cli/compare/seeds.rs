//! The seeds of a comparison.

use std::str::FromStr;

use anyhow::Result;

use super::Usage;

/// Most seeds of a comparison.
const MOST: u64 = 1000;

/// How many seeds, or which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seeds {
    /// So many, one after the other.
    Count(u64),
    /// These.
    List(Vec<u64>),
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Settings hold no larger ones.
        let number = |text: &str| match text.trim().parse::<i64>() {
            Ok(number) if number >= 0 => Ok(number as u64),
            _ => Err("give a number, or a list such as `0,5,7`".to_owned()),
        };
        if !text.contains(',') {
            return match number(text)? {
                count @ 1..=MOST => Ok(Self::Count(count)),
                _ => Err(format!("it must be 1 to {MOST}, or a list such as `0,5,7`")),
            };
        }
        let words = text.strip_suffix(',').unwrap_or(text).split(',');
        let seeds = words.map(number).collect::<Result<Vec<u64>, _>>()?;
        match (1..seeds.len()).find(|&i| seeds[..i].contains(&seeds[i])) {
            Some(twice) => Err(format!("{} is given twice", seeds[twice])),
            None => Ok(Self::List(seeds)),
        }
    }
}

impl Seeds {
    /// The seeds themselves; `first` is the one that the settings give.
    pub(super) fn list(&self, first: Option<u64>) -> Result<Vec<u64>> {
        match (self, first) {
            (&Self::Count(count), first) => {
                let first = first.unwrap_or(0);
                Ok((first..first.saturating_add(count)).collect())
            }
            (Self::List(seeds), None) => Ok(seeds.clone()),
            (Self::List(_), Some(first)) => Err(Usage(format!(
                "`seed` is {first}, and `--seeds` is a list of seeds\nhint: keep one of them"
            ))
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str, first: Option<u64>) -> Vec<u64> {
        text.parse::<Seeds>().unwrap().list(first).unwrap()
    }

    #[test]
    fn a_number_counts_and_a_list_names() {
        assert_eq!(list("3", None), [0, 1, 2]);
        assert_eq!(list("2", Some(7)), [7, 8]);
        assert_eq!(list("4, 0,9", None), [4, 0, 9]);
        assert_eq!(list("5,", None), [5]);
        for text in ["", "0", "-1", "1001", "a", "1,", "1,1", "1,,2", "1.5"] {
            assert_eq!(text.parse::<Seeds>().is_ok(), text == "1,", "{text}");
        }
        assert!("0,1".parse::<Seeds>().unwrap().list(Some(0)).is_err());
    }
}
