//! Index tables of (shifted) windows, made once per map size.
//!
//! Padding, rolling and partitioning are one gather by these tables, forward and backward.

use std::sync::Arc;

use crate::memo::Memo;

/// Added to the attention logit of two tokens that only the cyclic shift makes neighbors.
const MASKED: f32 = -100.0;

/// The windows of one map: its size, the window's side and the cyclic shift.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowMap {
    /// Height and width of the map in tokens.
    pub map: [usize; 2],
    /// Side of a window in tokens.
    pub window: usize,
    /// Cyclic shift towards the top left, in tokens.
    pub shift: usize,
    /// Number of windows down and across.
    pub grid: [usize; 2],
    /// Token of every window slot, `[windows * window^2]`; `height * width`, one past the last
    /// token, for padding.
    pub slot_token: Vec<i32>,
    /// Slot of every token, `[height * width]`.
    pub token_slot: Vec<i32>,
    /// Row in the relative position bias table of every (query, key) of a window, `[window^4]`.
    pub bias_row: Vec<i32>,
    /// Added to the attention logits, `[windows, window^2, window^2]`; None without a shift.
    pub mask: Option<Vec<f32>>,
}

impl WindowMap {
    /// Tables of a map `[height, width]` in windows of side `window`, shifted by `shift`.
    pub fn new(map: [usize; 2], window: usize, shift: usize) -> Self {
        let [height, width] = map;
        let grid = [height.div_ceil(window), width.div_ceil(window)];
        let padded = [grid[0] * window, grid[1] * window];
        let side = window * window;
        let slots = grid[0] * grid[1] * side;

        let mut slot_token = vec![(height * width) as i32; slots];
        let mut token_slot = vec![0; height * width];
        let mut side_label = vec![0u8; slots];
        for row in 0..padded[0] {
            for column in 0..padded[1] {
                let in_window = (row % window) * window + column % window;
                let slot = ((row / window) * grid[1] + column / window) * side + in_window;
                let [y, x] = [(row + shift) % padded[0], (column + shift) % padded[1]];
                if y < height && x < width {
                    slot_token[slot] = (y * width + x) as i32;
                    token_slot[y * width + x] = slot as i32;
                }
                side_label[slot] = 3 * edge_side(row, padded[0], window, shift)
                    + edge_side(column, padded[1], window, shift);
            }
        }

        let mask = (shift > 0).then(|| {
            let pairs = side_label.chunks_exact(side).flat_map(|labels| {
                labels.iter().flat_map(|query| {
                    labels.iter().map(move |key| if query == key { 0.0 } else { MASKED })
                })
            });
            pairs.collect()
        });
        Self { map, window, shift, grid, slot_token, token_slot, bias_row: bias_rows(window), mask }
    }

    /// Number of windows in one map.
    pub fn windows(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Number of tokens in a window, `window^2`.
    pub fn window_tokens(&self) -> usize {
        self.window * self.window
    }

    /// Number of tokens in the map, padding not counted.
    pub fn tokens(&self) -> usize {
        self.map[0] * self.map[1]
    }

    /// Whether any slot is padding.
    pub fn is_padded(&self) -> bool {
        self.slot_token.len() > self.tokens()
    }
}

/// Part of the padded, rolled map in which a row or column is: 0 before the last window, 1 in it,
/// 2 in it and wrapped around.
fn edge_side(position: usize, size: usize, window: usize, shift: usize) -> u8 {
    u8::from(position + window >= size) + u8::from(shift > 0 && position + shift >= size)
}

/// Row in a table of `(2 window - 1)^2` relative positions for every (query, key) of a window.
fn bias_rows(window: usize) -> Vec<i32> {
    let side = 2 * window - 1;
    let positions = || (0..window).flat_map(|y| (0..window).map(move |x| (y, x)));
    let rows = positions().flat_map(|(query_y, query_x)| {
        positions().map(move |(key_y, key_x)| {
            ((query_y + window - 1 - key_y) * side + query_x + window - 1 - key_x) as i32
        })
    });
    rows.collect()
}

/// Size of a map, side of its windows and shift.
type MapSizes = ([usize; 2], usize, usize);

/// The tables of every map size used so far.
#[derive(Debug, Default)]
pub struct WindowMaps {
    made: Memo<MapSizes, WindowMap>,
}

impl WindowMaps {
    /// The tables of this map, made on first use.
    pub fn get(&self, map: [usize; 2], window: usize, shift: usize) -> Arc<WindowMap> {
        self.made.get((map, window, shift), || WindowMap::new(map, window, shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every token has one slot, slots and tokens point at each other, and padding fills the rest.
        #[test]
        fn slots_and_tokens_are_inverse(
            height in 1usize..20, width in 1usize..20, window in 1usize..8, shift in 0usize..4,
        ) {
            let shift = shift.min(window / 2);
            let tables = WindowMap::new([height, width], window, shift);
            for (token, &slot) in tables.token_slot.iter().enumerate() {
                prop_assert_eq!(tables.slot_token[slot as usize], token as i32);
            }
            let padding = tables.slot_token.iter().filter(|&&t| t as usize == height * width);
            prop_assert_eq!(padding.count() + height * width, tables.slot_token.len());
        }
    }

    /// A 4x4 map in windows of 2 shifted by 1: the first window holds the four tokens around
    /// (1.5, 1.5), and the last one the four corners, none of which may see another.
    #[test]
    fn shift_and_mask() {
        let tables = WindowMap::new([4, 4], 2, 1);
        assert_eq!(tables.slot_token[..4], [5, 6, 9, 10]);
        assert_eq!(tables.slot_token[12..], [15, 12, 3, 0]);
        let mask = tables.mask.unwrap();
        assert!(mask[..16].iter().all(|&m| m == 0.0));
        for query in 0..4 {
            for key in 0..4 {
                let expected = if query == key { 0.0 } else { MASKED };
                assert_eq!(mask[48 + query * 4 + key], expected);
            }
        }
    }

    #[test]
    fn relative_positions() {
        // Query above key: a negative row difference, so a small table row.
        assert_eq!(bias_rows(2)[..4], [4, 3, 1, 0]);
        assert_eq!(bias_rows(2)[12..], [8, 7, 5, 4]);
    }
}
