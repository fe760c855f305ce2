//! Named settings built into the program.

/// A named set of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its settings as TOML.
    pub text: &'static str,
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(Recipe { name: $name, text: include_str!(concat!("../recipes/", $name, ".toml")) }),*]
    };
}

/// All recipes.
pub const RECIPES: &[Recipe] = recipes![
    "materials",
    "swin_tiny_w7",
    "swin_tiny_w14",
    "swin_small_w7",
    "swin_small_w14",
    "swin_base_w7",
    "swin_base_w14",
];

/// The recipe of this name.
pub fn find(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

impl Recipe {
    /// Its purpose: the first line.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}
