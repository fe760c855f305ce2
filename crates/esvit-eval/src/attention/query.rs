//! Attention of one query as maps over the tokens of a block.

use esvit_kernels::pool;
use esvit_nn::backbone::{AttentionLayout, AttentionMap, Key, Stage};
use esvit_nn::{Backbone, Params, Tensor};

use super::measure::{entropy, threshold_mask};
use super::{AttentionError, BlockPosition, InputImage, MOST_WEIGHTS};

/// Attention of one query.
#[derive(Debug, Clone, Default)]
pub struct QueryAttention {
    /// The block.
    pub position: BlockPosition,
    /// Height and width of the block's token map; its tokens are called cells.
    pub map: [usize; 2],
    /// Cell size in input pixels. The last row and column may extend beyond the image.
    pub cell: usize,
    /// Size of the first stage's cells.
    pub patch: usize,
    /// Row and column of the query cell.
    pub query: [usize; 2],
    /// Side and cyclic shift of the windows in tokens; `None` where all tokens see each other.
    pub window: Option<[usize; 2]>,
    /// Whether the query can attend to each cell, row-major.
    pub visible: Vec<bool>,
    /// Number of keys on the map that it can attend to: cells, or squares of them.
    pub map_keys: usize,
    /// Number of padding tokens that the query can attend to.
    pub padding_keys: usize,
    /// Number of tokens before those of the map (class token, registers) that it can attend to.
    pub prefix_keys: usize,
    /// Share of the attention that masks keep.
    pub mass: f64,
    /// One entry per head, in descending order of entropy; a single one for rollout.
    pub heads: Vec<HeadAttention>,
}

/// Attention of one head, or of a rollout.
#[derive(Debug, Clone)]
pub struct HeadAttention {
    /// Index of the head; `None` for rollout.
    pub head: Option<usize>,
    /// Weight of each cell, row-major; 0 outside the query's window. Where keys stand for squares of
    /// cells, each has an equal share of its square's.
    pub weights: Vec<f32>,
    /// Attention to padding; adds up to 1 with the weights and `prefix_mass`.
    pub padding_mass: f64,
    /// Attention to tokens before those of the map.
    pub prefix_mass: f64,
    /// Entropy over all keys, in bits.
    pub entropy: f64,
    /// The smallest set of cells with the share `mass` of the attention on the image.
    pub mask: Vec<usize>,
}

impl HeadAttention {
    /// From the weights of `keys`, for cells of the layout, with a mask of the share `mass`.
    pub(super) fn new(
        head: Option<usize>,
        keys: &[Key],
        row: &[f32],
        layout: &AttentionLayout,
        mass: f64,
    ) -> Self {
        let mut weights = vec![0.0; layout.tokens()];
        let (mut padding_mass, mut prefix_mass) = (0.0, 0.0);
        for (&key, &weight) in keys.iter().zip(row) {
            match key {
                // A cell may be several keys, where windows go on at the opposite border.
                Key::Cell(cell) => weights[cell] += weight,
                Key::Square(_) => {
                    let cells = layout.cells(key);
                    cells.iter().for_each(|&cell| weights[cell] = weight / cells.len() as f32);
                }
                Key::Padding => padding_mass += f64::from(weight),
                Key::Prefix(_) => prefix_mass += f64::from(weight),
            }
        }
        let mask = threshold_mask(&weights, mass);
        Self { head, weights, padding_mass, prefix_mass, entropy: entropy(row), mask }
    }

    /// Largest weight of a cell.
    pub fn largest(&self) -> f32 {
        self.weights.iter().copied().fold(0.0, f32::max)
    }
}

impl QueryAttention {
    /// Number of cells that the query can attend to.
    pub fn visible_cells(&self) -> usize {
        self.visible.iter().filter(|&&visible| visible).count()
    }

    /// Entropy of uniform attention to all visible keys, in bits.
    pub fn largest_entropy(&self) -> f64 {
        ((self.map_keys + self.padding_keys + self.prefix_keys) as f64).log2()
    }

    /// Keeps only these heads, in the existing order.
    ///
    /// # Errors
    /// [`AttentionError::Head`] if there is no such head.
    pub fn keep_heads(&mut self, heads: &[usize]) -> Result<(), AttentionError> {
        let last = self.heads.len() - 1;
        if let Some(&head) = heads.iter().find(|&&head| head > last) {
            return Err(AttentionError::Head { head, last });
        }
        self.heads.retain(|row| row.head.is_some_and(|head| heads.contains(&head)));
        Ok(())
    }
}

/// Attention of the cell at `query` (`[x, y]` in input pixels) in `block`, an index over all
/// stages; masks keep the share `mass`.
///
/// # Errors
/// [`AttentionError`] if there is no such block, `mass` is out of range, or a weight is not finite.
pub fn query_attention(
    network: &dyn Backbone,
    params: &Params,
    input: &InputImage,
    query: [f64; 2],
    block: usize,
    mass: f64,
) -> Result<QueryAttention, AttentionError> {
    let stages = network.stages();
    let position = BlockPosition::of(&stages, block)?;
    check_mass(mass)?;
    let images = images(input, params);
    let found = pool::run(|| network.block_attention(params, images, block))?;
    let map = found.expect("a block that exists");
    let layout = &map.layout;
    let (token, attention) = without_weights(&stages, position, layout.map(), query, mass);
    let mut attention = QueryAttention { window: layout.window(), ..attention };
    let place @ [group, _] = layout.query(token);
    let rows = pool::run(|| query_rows(&map, place, MOST_WEIGHTS))?;
    let keys = layout.group_keys(group);
    for (key, _) in keys.iter().zip(layout.visible(place)).filter(|(_, visible)| *visible) {
        match *key {
            Key::Cell(_) | Key::Square(_) => {
                attention.map_keys += 1;
                layout.cells(*key).into_iter().for_each(|cell| attention.visible[cell] = true);
            }
            Key::Padding => attention.padding_keys += 1,
            Key::Prefix(_) => attention.prefix_keys += 1,
        }
    }
    for (head, row) in rows.iter().enumerate() {
        attention.heads.push(HeadAttention::new(Some(head), &keys, row, layout, mass));
    }
    attention.heads.sort_by(|a, b| b.entropy.total_cmp(&a.entropy));
    Ok(attention)
}

/// The weights of a query by its group and its number in that, for every head. Those of the whole block
/// are checked, at most `most` at a time.
fn query_rows(
    map: &AttentionMap,
    [group, query]: [usize; 2],
    most: usize,
) -> Result<Vec<Vec<f32>>, AttentionError> {
    let (heads, keys) = (map.heads(), map.layout.keys());
    let mut rows = Vec::new();
    for queries in map.slices(heads, most) {
        let weights = map.part(0..heads, queries.clone()).to_vec::<f32>();
        check_finite(&weights)?;
        if queries.contains(&query) {
            let row = |head: usize| {
                let row = (group * heads + head) * queries.len() + query - queries.start;
                weights[row * keys..][..keys].to_vec()
            };
            rows = (0..heads).map(row).collect();
        }
    }
    Ok(rows)
}

/// Checks the weights of a block.
pub(super) fn check_finite(weights: &[f32]) -> Result<(), AttentionError> {
    let wrong = weights.iter().find(|weight| !weight.is_finite());
    wrong.map_or(Ok(()), |&weight| Err(AttentionError::Weights(weight)))
}

pub(super) fn check_mass(mass: f64) -> Result<(), AttentionError> {
    let is_share = mass > 0.0 && mass <= 1.0;
    is_share.then_some(()).ok_or(AttentionError::Mass(mass))
}

/// The input as a batch of one, `[1, 3, height, width]`.
pub(super) fn images(input: &InputImage, params: &Params) -> Tensor {
    let [height, width] = input.size();
    let device = params.device();
    Tensor::new(input.pixels.clone(), [1, 3, height, width], &device)
}

/// The query's token index, and a [`QueryAttention`] without any weights yet.
pub(super) fn without_weights(
    stages: &[Stage],
    position: BlockPosition,
    map: [usize; 2],
    [x, y]: [f64; 2],
    mass: f64,
) -> (usize, QueryAttention) {
    let [patch, cell] = [0, position.stage - 1].map(|stage| stages[stage].stride);
    let at = |position: f64, cells: usize| ((position / cell as f64) as usize).min(cells - 1);
    let query = [at(y, map[0]), at(x, map[1])];
    let visible = vec![false; map[0] * map[1]];
    let attention =
        QueryAttention { position, map, cell, patch, query, visible, mass, ..Default::default() };
    (query[0] * map[1] + query[1], attention)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::{Framing, MASS};
    use super::*;
    use esvit_data::Preprocess;
    use esvit_data::{Image, ViewsConfig};
    use esvit_nn::BackboneConfig;
    use esvit_nn::Device;
    use esvit_nn::backbone::swin::SwinConfig;
    use esvit_testing::{tiny_pvt, tiny_swin, tiny_vil};

    /// Two stages of two blocks for images of 32 pixels: maps of 8 and 4 in windows of 4.
    fn untrained() -> (Arc<dyn Backbone>, Params) {
        let config =
            SwinConfig { embed_dim: 16, depths: vec![2, 2], num_heads: vec![2, 4], ..tiny_swin() };
        let (network, specs) = BackboneConfig::Swin(config).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        (network, params)
    }

    /// The whole of an image of 44 x 26 pixels, as 44 x 28: a map of 7 x 11 cells.
    fn oblong() -> InputImage {
        let pixels = (0..44u32 * 26 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8);
        let image = Image::new(44, 26, pixels.collect()).unwrap();
        let preprocess = Preprocess::new(32, 0, &ViewsConfig::default());
        InputImage::new(&image, &preprocess, Framing::Whole, 26, 4).unwrap()
    }

    fn attention(query: [f64; 2], block: usize) -> QueryAttention {
        let (network, params) = untrained();
        query_attention(&*network, &params, &oblong(), query, block, MASS).unwrap()
    }

    #[test]
    fn weights_that_are_not_finite_are_refused() {
        let (network, params) = untrained();
        let broken = Params::from_fn(params.specs(), &Device::Cpu, |spec| {
            vec![if spec.name.ends_with("qkv.bias") { f32::NAN } else { 0.1 }; spec.len()]
        });
        let error = query_attention(&*network, &broken, &oblong(), [0.0; 2], 0, MASS).unwrap_err();
        assert!(matches!(error, AttentionError::Weights(value) if value.is_nan()), "{error}");
    }

    /// Rows and columns of the visible cells.
    fn visible(attention: &QueryAttention) -> [BTreeSet<usize>; 2] {
        let width = attention.map[1];
        let cells = || (0..attention.visible.len()).filter(|&cell| attention.visible[cell]);
        [cells().map(|cell| cell / width).collect(), cells().map(|cell| cell % width).collect()]
    }

    #[test]
    fn every_query_of_a_padded_oblong_map_spends_all_its_attention() {
        for (block, heads) in [(0, 2), (1, 2), (2, 4), (3, 4)] {
            for query in [[0.0, 0.0], [43.0, 0.0], [20.0, 14.0], [43.0, 27.0]] {
                let attention = attention(query, block);
                assert_eq!(attention.heads.len(), heads);
                let [row, column] = attention.query;
                assert!(attention.visible[row * attention.map[1] + column]);
                for head in &attention.heads {
                    let on_cells: f32 = head.weights.iter().sum();
                    let all = f64::from(on_cells) + head.padding_mass;
                    assert!((all - 1.0).abs() < 1e-5, "{all}");
                    // A masked key keeps a share of about 1e-44.
                    assert_eq!(head.padding_mass > 1e-12, attention.padding_keys > 0);
                    for (&weight, &visible) in head.weights.iter().zip(&attention.visible) {
                        assert_eq!(weight > 1e-12, visible);
                    }
                    assert!(head.entropy <= attention.largest_entropy() + 1e-4);
                }
                let entropies: Vec<f64> = attention.heads.iter().map(|h| h.entropy).collect();
                assert!(entropies.is_sorted_by(|a, b| a >= b), "{entropies:?}");
            }
        }
    }

    #[test]
    fn a_query_sees_its_window_without_what_a_shift_brought_there() {
        let range = |from: usize, to: usize| (from..to).collect::<BTreeSet<_>>();
        // Without a shift: the second window across, whose last row is padding.
        let plain = attention([20.0, 2.0], 0);
        assert_eq!((plain.map, plain.cell, plain.window), ([7, 11], 4, Some([4, 0])));
        assert_eq!(plain.query, [0, 5]);
        assert_eq!(visible(&plain), [range(0, 4), range(4, 8)]);
        assert_eq!(plain.padding_keys, 0);
        let corner = attention([43.0, 27.0], 0);
        assert_eq!(visible(&corner), [range(4, 7), range(8, 11)]);
        assert_eq!(corner.padding_keys, 16 - 9);
        // Shifted by 2: the first two rows see each other only, and columns 2 to 5.
        let shifted = attention([20.0, 2.0], 1);
        assert_eq!(shifted.window, Some([4, 2]));
        assert_eq!(visible(&shifted), [range(0, 2), range(2, 6)]);
        assert_eq!((shifted.visible_cells(), shifted.padding_keys), (8, 0));
    }

    /// Two keys for squares of 4 x 4 cells, which leave three rows and columns of the map without.
    #[test]
    fn keys_that_stand_for_squares_share_their_weight() {
        let (network, specs) = BackboneConfig::Pvt(tiny_pvt()).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        let query = [20.0, 2.0];
        let attention = query_attention(&*network, &params, &oblong(), query, 0, MASS).unwrap();
        assert_eq!((attention.map, attention.map_keys), ([7, 11], 2));
        let squares = [(0..4).collect::<BTreeSet<_>>(), (0..8).collect()];
        assert_eq!((visible(&attention), attention.visible_cells()), (squares, 32));
        assert_eq!((attention.window, attention.largest_entropy()), (None, 1.0));
        let HeadAttention { weights, entropy, .. } = &attention.heads[0];
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!((weights[0], weights[4]), (weights[3 * 11 + 3], weights[3 * 11 + 7]));
        let [first, second] = [weights[0], weights[4]].map(|weight| 16.0 * f64::from(weight));
        let expected = -first * first.log2() - second * second.log2();
        assert!((entropy - expected).abs() < 1e-5, "{entropy} {expected}");
        // In the last stage the class token is a key.
        let last = query_attention(&*network, &params, &oblong(), query, 3, MASS).unwrap();
        assert_eq!((last.map, last.map_keys, last.prefix_keys), ([1, 2], 2, 1));
    }

    #[test]
    fn later_maps_have_larger_cells() {
        let last = attention([43.0, 27.0], 3);
        // 7 x 11 merged by two, in pixels 32 x 48: it sticks out of the image.
        assert_eq!((last.map, last.cell, last.query), ([4, 6], 8, [3, 5]));
        let position = BlockPosition { block: 3, stage: 2, block_in_stage: 1 };
        assert_eq!(last.position, position);
    }

    /// Windows of three and those around them, after a token before the map.
    #[test]
    fn windows_may_see_their_neighbors() {
        let (network, specs) = BackboneConfig::Vil(tiny_vil()).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        // A map of 14 x 22 tokens of 2 pixels; the query is in the last row of windows.
        let of = |block| {
            query_attention(&*network, &params, &oblong(), [43.0, 27.0], block, MASS).unwrap()
        };
        let range = |from: usize, to: usize| (from..to).collect::<BTreeSet<_>>();
        let sparse = of(0);
        assert_eq!((sparse.map, sparse.query, sparse.window), ([14, 22], [13, 21], Some([3, 0])));
        assert_eq!(visible(&sparse), [range(9, 14), range(18, 22)]);
        assert_eq!((sparse.padding_keys, sparse.prefix_keys), (0, 1));
        let full = of(1);
        assert_eq!((full.visible_cells(), full.prefix_keys, full.window), (7 * 11, 1, None));
        for head in sparse.heads.iter().chain(&full.heads) {
            let all = f64::from(head.weights.iter().sum::<f32>()) + head.prefix_mass;
            assert!((all - 1.0).abs() < 1e-5 && head.prefix_mass > 0.0, "{all}");
        }
        for (&weight, &visible) in sparse.heads[0].weights.iter().zip(&sparse.visible) {
            assert_eq!(weight > 1e-12, visible);
        }
    }

    /// However many weights are held at a time, in windows and over a whole image.
    #[test]
    fn queries_of_many_weights() {
        let (network, specs) = BackboneConfig::Vil(tiny_vil()).build(0.0);
        let params = Params::init(&specs, 3, &Device::Cpu);
        for (block, place) in [(0, [3, 5]), (1, [0, 0]), (1, [0, 40]), (1, [0, 77])] {
            let images = images(&oblong(), &params);
            let map = network.block_attention(&params, images, block).unwrap().unwrap();
            let [group, query] = place;
            let weights = map.weights().narrow(0, group, 1).narrow(2, query, 1);
            let expected = weights.to_vec::<f32>();
            for most in [1, 1000, usize::MAX] {
                let found = query_rows(&map, place, most).unwrap();
                assert_eq!(found.concat(), expected, "block {block}, {most} at a time");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let (network, params) = untrained();
        let of =
            |block, mass| query_attention(&*network, &params, &oblong(), [1.0, 1.0], block, mass);
        assert_eq!(
            of(4, 0.6).unwrap_err().to_string(),
            "there is no block 4: the network's blocks are 0 to 3"
        );
        for mass in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(matches!(of(0, mass), Err(AttentionError::Mass { .. })));
        }
        let mut attention = of(3, 0.6).unwrap();
        assert!(matches!(attention.keep_heads(&[0, 4]), Err(AttentionError::Head { last: 3, .. })));
        attention.keep_heads(&[3, 1]).unwrap();
        assert_eq!(attention.heads.len(), 2);
    }
}
