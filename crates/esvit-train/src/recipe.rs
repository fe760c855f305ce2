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
pub const RECIPES: &[Recipe] = recipes!["materials", "esvit", "supervised"];

/// Recipes of earlier versions: that of EsViT with these settings.
const FORMER: [(&str, &str); 6] = [
    ("swin_tiny_w7", "model.arch = 'swin_tiny_w7'"),
    ("swin_tiny_w14", "model.arch = 'swin_tiny_w14'"),
    ("swin_small_w7", "model.arch = 'swin_small_w7'"),
    ("swin_small_w14", "model.arch = 'swin_small_w14'"),
    ("swin_base_w7", "model.arch = 'swin_base_w7'"),
    ("swin_base_w14", "model.arch = 'swin_base_w14'\nobjective.head.norm_last_layer = true"),
];

/// The recipe of this name, and settings as TOML that go over it.
pub fn find(name: &str) -> Option<(&'static Recipe, &'static str)> {
    let recipe = |name: &str| RECIPES.iter().find(|recipe| recipe.name == name);
    let former = || FORMER.iter().find(|former| former.0 == name);
    recipe(name).map(|recipe| (recipe, "")).or_else(|| Some((recipe("esvit")?, former()?.1)))
}

impl Recipe {
    /// Its purpose: the first line.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}
