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
    recipe!("dinov2"),
    recipe!(
        "dinov2_imagenet22k",
        "dinov2",
        "# DINOv2's published configuration for ImageNet-22K: 625,000 steps of ViT-L/14, with Sinkhorn and two heads.\n\
         model.arch = 'custom'\n\
         model.family = 'vit'\n\
         model.drop_path = 0.4\n\
         model.img_size = 224\n\
         model.patch_size = 14\n\
         model.embed_dim = 1024\n\
         model.depth = 24\n\
         model.num_heads = 16\n\
         model.layer_scale = true\n\
         model.mlp = 'swiglu'\n\
         model.position_resize = 'dino'\n\
         objective.momentum_teacher = 0.994\n\
         objective.centering = 'sinkhorn'\n\
         objective.patches.separate_head = true\n\
         objective.head.out_dim = 131072\n\
         objective.head.bottleneck_dim = 384\n\
         optim.lr = 1e-4\n\
         optim.warmup = '100000 steps'\n\
         optim.weight_decay_end = 0.2\n\
         optim.layer_decay = 1.0\n\
         views.local_sizes = [98]\n\
         train.steps = 625000\n\
         train.batch_size = 3072"
    ),
    recipe!(
        "dinov2_materials",
        "materials",
        "# DINOv2's terms on the built-in images on a laptop: a small ViT, with Sinkhorn.\n\
         model.arch = 'vit_micro'\n\
         objective.name = 'dinov2'\n\
         objective.teacher_temp = 0.04\n\
         objective.teacher_temp_warmup = 0\n\
         objective.momentum_teacher = 0.98\n\
         objective.centering = 'sinkhorn'\n\
         objective.freeze_last_layer = 0\n\
         objective.patch_embed_lr = 1.0\n\
         objective.head.out_dim = 1024\n\
         objective.head.hidden_dim = 256\n\
         objective.head.bottleneck_dim = 64\n\
         objective.head.norm_last_layer = true"
    ),
    recipe!("mocov2"),
    recipe!("mocov3"),
    recipe!(
        "mocov3_resnet50",
        "mocov3",
        "# MoCo-v3 as published for ResNet-50: 300 epochs on ImageNet-1K, heads of two layers.\n\
         model.arch = 'resnet50'\n\
         objective.temperature = 1.0\n\
         objective.projector_layers = 2\n\
         objective.predictor_norm = false\n\
         objective.freeze_patch_embed = false\n\
         optim.name = 'lars'\n\
         optim.lr = 0.3\n\
         optim.warmup = '10 epochs'\n\
         optim.decay = 'matrices'\n\
         optim.weight_decay = 1e-6\n\
         optim.weight_decay_end = 1e-6\n\
         views.global_scale = [0.2, 1.0]"
    ),
    recipe!("moby"),
    recipe!("simclr"),
    recipe!(
        "simclr_v2",
        "simclr",
        "# SimCLR-v2 as published: a head of three layers, weight decay of 1e-4, 800 epochs.\n\
         objective.head_layers = 3\n\
         optim.weight_decay = 1e-4\n\
         optim.weight_decay_end = 1e-4\n\
         train.epochs = 800"
    ),
    recipe!("byol"),
    recipe!("swav"),
    recipe!(
        "swav_256",
        "swav",
        "# SwAV as published for 256 images a step: a queue of 3840 embeddings, 400 epochs.\n\
         objective.queue_length = 3840\n\
         objective.queue_start = '15 epochs'\n\
         optim.lr = 0.6\n\
         optim.min_lr = 6e-4\n\
         optim.warmup = 0\n\
         optim.warmup_lr = 0.0\n\
         train.epochs = 400\n\
         train.batch_size = 256"
    ),
    recipe!("densecl"),
    recipe!("igpt"),
    recipe!(
        "igpt_materials",
        "materials",
        "# iGPT on the built-in images on a laptop: 16 x 16 of 64 colors, the next one of each.\n\
         model.arch = 'igpt_micro'\n\
         objective.name = 'igpt'\n\
         views.policy = 'basic'\n\
         views.global_count = 1\n\
         views.local_sizes = []\n\
         views.local_counts = []\n\
         views.jitter.p = 0.0\n\
         views.mean = [0.5, 0.5, 0.5]\n\
         views.std = [0.5, 0.5, 0.5]\n\
         optim.lr = 32e-3\n\
         optim.weight_decay = 0.0\n\
         optim.weight_decay_end = 0.0\n\
         optim.clip_scope = 'global'\n\
         optim.clip_grad = 1.0\n\
         train.epochs = 8\n\
         knn.every = '2 epochs'"
    ),
    recipe!("masked_patch"),
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
