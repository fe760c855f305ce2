//! Named settings built into the program.

/// A named set of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its settings as TOML.
    pub text: &'static str,
    /// Settings as TOML that go over these. May be empty.
    pub over: &'static str,
}

macro_rules! recipe {
    ($name:literal) => {
        recipe!($name, $name, "")
    };
    ($name:literal, $of:literal, $over:expr) => {
        Recipe {
            name: $name,
            text: include_str!(concat!("../recipes/", $of, ".toml")),
            over: $over,
        }
    };
}

/// All recipes.
pub const RECIPES: &[Recipe] = &[
    recipe!("materials"),
    recipe!("esvit"),
    recipe!(
        "esvit_ablation",
        "esvit",
        "# The paper's comparison of architectures: the same with 1024 images a step; give it `--arch`.\n\
         train.batch_size = 1024"
    ),
    // The epochs of other sets show about as many images. Warm-ups have the same shares of the run.
    recipe!(
        "esvit_webvision",
        "esvit",
        "# The same on WebVision-v1: 150 epochs.\n\
         train.epochs = 150\n\
         optim.warmup = '5 epochs'\n\
         objective.teacher_temp_warmup = '15 epochs'"
    ),
    recipe!(
        "esvit_openimages",
        "esvit",
        "# The same on OpenImages-v4: 50 epochs.\n\
         train.epochs = 50\n\
         optim.warmup = '2 epochs'\n\
         objective.teacher_temp_warmup = '5 epochs'"
    ),
    recipe!(
        "esvit_imagenet22k",
        "esvit",
        "# The same on ImageNet-22K: 30 epochs.\n\
         train.epochs = 30\n\
         optim.warmup = '1 epoch'\n\
         objective.teacher_temp_warmup = '3 epochs'"
    ),
    recipe!("supervised"),
    recipe!("distill"),
    recipe!("adapt"),
];

/// Recipes of earlier versions.
const FORMER: [Recipe; 6] = [
    recipe!("swin_tiny_w7", "esvit", "model.arch = 'swin_tiny_w7'"),
    recipe!("swin_tiny_w14", "esvit", "model.arch = 'swin_tiny_w14'"),
    recipe!("swin_small_w7", "esvit", "model.arch = 'swin_small_w7'"),
    recipe!("swin_small_w14", "esvit", "model.arch = 'swin_small_w14'"),
    recipe!("swin_base_w7", "esvit", "model.arch = 'swin_base_w7'"),
    recipe!(
        "swin_base_w14",
        "esvit",
        "model.arch = 'swin_base_w14'\nobjective.head.norm_last_layer = true"
    ),
];

/// The recipe of this name.
pub fn find(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().chain(&FORMER).find(|recipe| recipe.name == name)
}

impl Recipe {
    /// Its purpose: the first line.
    pub fn summary(&self) -> &'static str {
        let text = if self.over.is_empty() { self.text } else { self.over };
        text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}
