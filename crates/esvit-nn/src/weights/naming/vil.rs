//! Layers of a vision longformer that the official code stores twice, since both names are of one layer.

/// The second name of a parameter that global tokens share with those of the map, were it one of sparse
/// attention: `layer1.1.attn.query.weight` is `layer1.1.attn.query_global.weight`, too.
pub(in crate::weights) fn second_name(official: &str) -> Option<String> {
    if !official.starts_with("layer") {
        return None;
    }
    let (block, layer) = official.split_once(".attn.")?;
    let (layer, kind) = layer.split_once('.')?;
    matches!(layer, "query" | "kv" | "proj").then(|| format!("{block}.attn.{layer}_global.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_tokens_share_have_two_names() {
        for (official, expected) in [
            ("layer1.1.attn.query.weight", Some("layer1.1.attn.query_global.weight")),
            ("layer2.3.attn.kv.bias", Some("layer2.3.attn.kv_global.bias")),
            ("layer2.3.attn.proj.bias", Some("layer2.3.attn.proj_global.bias")),
            ("layer3.1.attn.qkv.weight", None),
            ("layer1.1.attn.g2g_relative_position_bias", None),
            ("layer1.2.mlp.fc1.weight", None),
            ("layer1.0.proj.weight", None),
            ("layers.0.blocks.0.norm1.weight", None),
            ("blocks.0.attn.proj.weight", None),
        ] {
            assert_eq!(second_name(official).as_deref(), expected, "{official}");
        }
    }
}
