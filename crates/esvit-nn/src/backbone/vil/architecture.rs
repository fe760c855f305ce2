//! The official architecture string: stages joined by `_`, each a list of letters with numbers.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use esvit_settings::describe::{Describe, Value};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The letters of a stage with their defaults, and what they say.
const LETTERS: [(char, usize, &str); 10] = [
    ('l', 1, "the number of the stage"),
    ('h', 3, "the number of attention heads"),
    ('d', 192, "the width"),
    ('n', 1, "the number of blocks"),
    ('s', 1, "1 for sparse attention, 0 for full"),
    ('g', 1, "the number of global tokens"),
    ('p', 2, "the side of a patch"),
    ('f', 7, "the side of a window"),
    ('a', 1, "1 for absolute positions, 0 for relative ones"),
    ('r', 0, "1 for a branch of pooled windows, 0 for none"),
];

/// Numbers of stages that the official code makes.
const STAGES: [usize; 2] = [3, 4];

/// A stage of a vision longformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageShape {
    /// Attention heads, `h`.
    pub heads: usize,
    /// Width of its tokens, `d`.
    pub width: usize,
    /// Number of blocks, `n`: an attention branch and an MLP each.
    pub blocks: usize,
    /// Whether tokens see windows and global tokens alone, `s`.
    pub sparse: bool,
    /// Number of global tokens, `g`.
    pub globals: usize,
    /// Side of a patch in tokens of the stage before, or in pixels, `p`.
    pub patch: usize,
    /// Side of a window in tokens, `f`.
    pub window: usize,
    /// Whether positions are absolute, added to the tokens, and not relative biases, `a`.
    pub absolute: bool,
    /// Whether there is a branch of pooled windows, `r`.
    pub pooled: bool,
}

/// The stages of a vision longformer, as the official code writes them; derefs to a slice.
///
/// A stage that leaves letters out has their defaults: `l1,h3,d192,n1,s1,g1,p2,f7,a1,r0`. After a stage
/// with full attention all have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages(Vec<StageShape>);

/// What is wrong with an architecture string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StagesError(String);

impl Stages {
    /// Stages of these shapes.
    pub fn new(mut stages: Vec<StageShape>) -> Self {
        let mut sparse = true;
        for stage in &mut stages {
            sparse &= stage.sparse;
            stage.sparse = sparse;
        }
        Self(stages)
    }
}

impl Deref for Stages {
    type Target = [StageShape];

    fn deref(&self) -> &[StageShape] {
        &self.0
    }
}

impl FromStr for Stages {
    type Err = StagesError;

    /// # Errors
    /// Names the stage and the letter that make no sense, and what is expected.
    fn from_str(text: &str) -> Result<Self, StagesError> {
        let count = text.split('_').count();
        if !STAGES.contains(&count) {
            return Err(StagesError(format!(
                "{count} stages (joined by `_`): a network has {} or {}",
                STAGES[0], STAGES[1]
            )));
        }
        let stages =
            text.split('_').zip(1..).map(|(stage, number)| StageShape::parse(stage, number));
        Ok(Self::new(stages.collect::<Result<_, _>>()?))
    }
}

impl StageShape {
    /// Stage `number`, counted from 1.
    fn parse(text: &str, number: usize) -> Result<Self, StagesError> {
        let mut values = LETTERS.map(|(_, default, _)| default);
        let mut given = [false; LETTERS.len()];
        for attribute in text.split(',') {
            let wrong =
                |what: String| StagesError(format!("stage {number}, `{attribute}`: {what}"));
            let mut rest = attribute.chars();
            let place = rest
                .next()
                .and_then(|first| LETTERS.iter().position(|(letter, ..)| *letter == first))
                .ok_or_else(|| wrong(format!("an attribute is {}, and a number", known())))?;
            let (letter, _, about) = LETTERS[place];
            let value: usize = rest
                .as_str()
                .parse()
                .map_err(|_| wrong(format!("`{letter}` is followed by a whole number, {about}")))?;
            let is_switch = matches!(letter, 's' | 'a' | 'r');
            if is_switch && value > 1 {
                return Err(wrong(format!("`{letter}` is {about}")));
            }
            if letter == 'l' && value != number {
                return Err(wrong(format!("`l` is {about}, {number}")));
            }
            if std::mem::replace(&mut given[place], true) {
                return Err(wrong(format!("`{letter}` is given twice")));
            }
            values[place] = value;
        }
        let [_, heads, width, blocks, sparse, globals, patch, window, absolute, pooled] = values;
        let [sparse, absolute, pooled] = [sparse, absolute, pooled].map(|switch| switch == 1);
        Ok(Self { heads, width, blocks, sparse, globals, patch, window, absolute, pooled })
    }
}

/// All letters, as a list of words.
fn known() -> String {
    let letters = LETTERS.map(|(letter, ..)| format!("`{letter}`"));
    let [first @ .., last] = &letters;
    format!("{} or {last}", first.join(", "))
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, stage) in self.iter().enumerate() {
            let StageShape { heads, width, blocks, globals, patch, window, .. } = stage;
            let [sparse, absolute] = [stage.sparse, stage.absolute].map(u8::from);
            let between = if number > 0 { "_" } else { "" };
            write!(
                f,
                "{between}l{},h{heads},d{width},n{blocks},s{sparse},g{globals},p{patch},f{window},\
                 a{absolute}",
                number + 1
            )?;
            if stage.pooled {
                f.write_str(",r1")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Describe for Stages {
    fn schema() -> Value {
        String::schema()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_are_left_out_have_defaults() {
        let stages: Stages = "l1,h2,d8,n3,s1,g4,p5,f6,a0,r1_n7_l3".parse().unwrap();
        let first = StageShape {
            heads: 2,
            width: 8,
            blocks: 3,
            sparse: true,
            globals: 4,
            patch: 5,
            window: 6,
            absolute: false,
            pooled: true,
        };
        let default = StageShape {
            heads: 3,
            width: 192,
            blocks: 1,
            sparse: true,
            globals: 1,
            patch: 2,
            window: 7,
            absolute: true,
            pooled: false,
        };
        assert_eq!(stages[..], [first, StageShape { blocks: 7, ..default }, default]);
        let written = stages.to_string();
        assert_eq!(
            written,
            "l1,h2,d8,n3,s1,g4,p5,f6,a0,r1_l2,h3,d192,n7,s1,g1,p2,f7,a1_\
             l3,h3,d192,n1,s1,g1,p2,f7,a1"
        );
        assert_eq!(written.parse::<Stages>().unwrap(), stages);
    }

    #[test]
    fn full_attention_stays_full() {
        let stages: Stages = "l1_l2,s0_l3,s1_l4".parse().unwrap();
        let sparse: Vec<bool> = stages.iter().map(|stage| stage.sparse).collect();
        assert_eq!(sparse, [true, false, false, false]);
        assert_eq!("l1_l2,s0_l3,s0_l4,s0".parse::<Stages>().unwrap(), stages);
    }

    #[test]
    fn mistakes_are_named_by_stage_and_letter() {
        for (text, expected) in [
            ("l1_l2", "2 stages (joined by `_`): a network has 3 or 4"),
            ("l1_l2_l3_l4_l5", "5 stages (joined by `_`): a network has 3 or 4"),
            (
                "l1_l2,x3_l3",
                "stage 2, `x3`: an attribute is `l`, `h`, `d`, `n`, `s`, `g`, `p`, `f`, \
                             `a` or `r`, and a number",
            ),
            ("l1_l2,_l3", "stage 2, ``: an attribute is `l`, "),
            (
                "l1,h_l2_l3",
                "stage 1, `h`: `h` is followed by a whole number, the number of attention \
                            heads",
            ),
            ("l1_l2_l3,d-8", "stage 3, `d-8`: `d` is followed by a whole number, the width"),
            (
                "l1_l2,p2.5_l3",
                "stage 2, `p2.5`: `p` is followed by a whole number, the side of a \
                               patch",
            ),
            ("l1_l3_l3", "stage 2, `l3`: `l` is the number of the stage, 2"),
            ("l1_l1_l3", "stage 2, `l1`: `l` is the number of the stage, 2"),
            ("l1,s2_l2_l3", "stage 1, `s2`: `s` is 1 for sparse attention, 0 for full"),
            ("l1_l2,a7_l3", "stage 2, `a7`: `a` is 1 for absolute positions, 0 for relative ones"),
            ("l1,r2_l2_l3", "stage 1, `r2`: `r` is 1 for a branch of pooled windows, 0 for none"),
            ("l1,n1,n2_l2_l3", "stage 1, `n2`: `n` is given twice"),
        ] {
            let error = text.parse::<Stages>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    /// Files hold the string; an error names it.
    #[test]
    fn stages_are_stored_as_text() {
        let text = "\"l1,d16,a0_l2_l3,s0\"";
        let stages: Stages = serde_json::from_str(text).unwrap();
        let stored = serde_json::to_string(&stages).unwrap();
        assert_eq!(serde_json::from_str::<Stages>(&stored).unwrap(), stages);
        assert!(stored.starts_with("\"l1,h3,d16,n1,s1,g1,p2,f7,a0_l2,"), "{stored}");
        let error = serde_json::from_str::<Stages>("\"l1_l2\"").unwrap_err().to_string();
        assert!(error.starts_with("2 stages (joined by `_`)"), "{error}");
    }
}
