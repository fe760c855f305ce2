//! Index tables of windows whose tokens see windows around them, made once per map size.
//!
//! Source: Zhang et al., "Multi-Scale Vision Longformer" (ICCV 2021), the sliding chunk.

use std::sync::Arc;

use super::{AttentionGroups, GroupTable, ImageRows, WindowMap};
use crate::memo::Memo;

/// Added to the attention logit of a key that a query cannot see. Finite, so that a query which sees
/// nothing has weights, too: those of padding are dropped later.
pub(super) const HIDDEN: f32 = -1e30;

/// Windows whose tokens the tokens of a window see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Neighbors {
    /// Their own.
    Own,
    /// Their own, in the middle of the eight around it, row by row.
    All,
    /// Their own, then one of the eight around it: these are numbered from 1, row by row.
    One(u8),
}

/// What lies beyond the border of a map, and how far a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Border {
    /// Nothing.
    Closed,
    /// The opposite border. Padding there has zeros for keys and values.
    Cyclic,
    /// Nothing, and a token sees those at most a window's side away along both axes.
    Sliding,
}

/// The windows of one map and what each sees.
#[derive(Debug, Clone, PartialEq)]
pub struct NeighborMap {
    /// Height and width of the map in tokens.
    pub map: [usize; 2],
    /// Side of a window in tokens.
    pub window: usize,
    /// Number of windows down and across.
    pub grid: [usize; 2],
    /// Token of every window slot, `[windows * window^2]`; `height * width`, one past the last token,
    /// for padding.
    pub slot_token: Vec<i32>,
    /// Slot of every token, `[height * width]`.
    pub token_slot: Vec<i32>,
    /// Token of every key of every window, `[windows * keys]`; `height * width` for padding.
    pub key_token: Vec<i32>,
    /// Row in a table of `(4 window - 1)^2` relative positions for every (query, key) of a window,
    /// `[window^2 * keys]`.
    pub bias_row: Vec<i32>,
    /// Whether each key is hidden, `[windows, rows, keys]`; with one row for all queries of a window, or
    /// `window^2` of them.
    hidden: Vec<bool>,
}

impl Neighbors {
    /// Steps to the windows, down and across, in the order of keys.
    fn steps(self) -> Vec<[isize; 2]> {
        let around = |number: isize| [number / 3 - 1, number % 3 - 1];
        match self {
            Self::Own => vec![[0, 0]],
            Self::All => (0..9).map(around).collect(),
            // The middle one is left out.
            Self::One(number) => {
                let number = isize::from(number);
                vec![[0, 0], around(if number > 4 { number } else { number - 1 })]
            }
        }
    }
}

impl NeighborMap {
    /// Tables of a map `[height, width]` in windows of side `window`.
    pub fn new(map: [usize; 2], window: usize, neighbors: Neighbors, border: Border) -> Self {
        let WindowMap { grid, slot_token, token_slot, .. } = WindowMap::new(map, window, 0);
        let (steps, side) = (neighbors.steps(), window * window);
        let (mut key_token, mut hidden) = (Vec::new(), Vec::new());
        for number in 0..grid[0] * grid[1] {
            let at = [number / grid[1], number % grid[1]].map(|place| place as isize);
            let mut keys = Vec::with_capacity(steps.len() * side);
            for [down, across] in &steps {
                for slot in 0..side {
                    keys.push(Key::new(map, window, border, [at[0] + down, at[1] + across], slot));
                }
            }
            key_token.extend(keys.iter().map(|key| key.token));
            // Only the sliding window depends on the query.
            if border == Border::Sliding {
                for slot in 0..side {
                    let query = places(at, slot, window);
                    hidden
                        .extend(keys.iter().map(|key| key.is_hidden || key.is_far(query, window)));
                }
            } else {
                hidden.extend(keys.iter().map(|key| key.is_hidden));
            }
        }
        let bias_row = bias_rows(window, &steps);
        Self { map, window, grid, slot_token, token_slot, key_token, bias_row, hidden }
    }

    /// Number of windows in one map.
    pub fn windows(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Number of tokens in a window, `window^2`.
    pub fn window_tokens(&self) -> usize {
        self.window * self.window
    }

    /// Number of keys of a window.
    pub fn keys(&self) -> usize {
        self.key_token.len() / self.windows()
    }

    /// Number of tokens in the map, padding not counted.
    pub fn tokens(&self) -> usize {
        self.map[0] * self.map[1]
    }

    /// Whether each key of a query is hidden, by the numbers of window and query.
    pub fn hidden(&self, window: usize, query: usize) -> &[bool] {
        let (rows, keys) = (self.mask_rows(), self.keys());
        // All queries of a window see the same, if it has one row.
        &self.hidden[(window * rows + query % rows) * keys..][..keys]
    }

    /// Rows of a window's mask.
    pub fn mask_rows(&self) -> usize {
        self.hidden.len() / self.key_token.len()
    }

    /// What is added to the attention logits, `[windows, rows, prefix + keys]`: all see the first
    /// `prefix` keys. None if nothing is hidden.
    pub fn mask(&self, prefix: usize) -> Option<Vec<f32>> {
        if !self.hidden.contains(&true) {
            return None;
        }
        let added = |hidden| if hidden { HIDDEN } else { 0.0 };
        Some(self.hidden_after(prefix).into_iter().map(added).collect())
    }

    /// Whether each key is hidden, `[windows, rows, prefix + keys]`: all see the first `prefix` keys.
    fn hidden_after(&self, prefix: usize) -> Vec<bool> {
        let rows = self.hidden.chunks_exact(self.keys());
        rows.flat_map(|row| [&vec![false; prefix][..], row].concat()).collect()
    }

    /// What attends to what in images with `prefix` tokens before the map: tokens of a window to those
    /// before the map, then to its keys; and in a second table those before the map to all.
    pub fn groups(&self, prefix: usize) -> AttentionGroups {
        let after_prefix = |tokens: &[i32]| -> Vec<i32> {
            tokens.iter().map(|token| token + prefix as i32).collect()
        };
        let of_windows = after_prefix(&self.slot_token);
        let first: Vec<i32> = (0..prefix as i32).collect();
        let keys = self.key_token.chunks_exact(self.keys());
        let hidden = self.hidden.contains(&true).then(|| self.hidden_after(prefix));
        let mut tables = vec![GroupTable {
            queries: self.window_tokens(),
            keys: prefix + self.keys(),
            query_row: of_windows.clone(),
            context_row: of_windows,
            key_row: keys.flat_map(|keys| [first.clone(), after_prefix(keys)].concat()).collect(),
            hidden: hidden.unwrap_or_default(),
        }];
        let tokens = prefix + self.tokens();
        tables.extend((prefix > 0).then(|| GroupTable {
            queries: prefix,
            keys: tokens,
            query_row: first.clone(),
            context_row: first,
            key_row: (0..tokens as i32).collect(),
            hidden: Vec::new(),
        }));
        AttentionGroups::new(ImageRows { queries: tokens, keys: tokens, context: tokens }, tables)
    }
}

/// Row and column of a slot of a window, which may lie beyond the map.
fn places([down, across]: [isize; 2], slot: usize, window: usize) -> [isize; 2] {
    let side = window as isize;
    let (row, column) = ((slot / window) as isize, (slot % window) as isize);
    [down * side + row, across * side + column]
}

/// A key of a window.
struct Key {
    /// Its place as if the map went on beyond the border.
    place: [isize; 2],
    token: i32,
    is_hidden: bool,
}

impl Key {
    /// The key in a slot of the window that is `at` some place of the grid, or beyond it.
    fn new(map: [usize; 2], window: usize, border: Border, at: [isize; 2], slot: usize) -> Self {
        let place = places(at, slot, window);
        let grid = map.map(|side| side.div_ceil(window) as isize);
        let found = match border {
            Border::Closed | Border::Sliding => place,
            Border::Cyclic => {
                places([0, 1].map(|axis| at[axis].rem_euclid(grid[axis])), slot, window)
            }
        };
        let inside = |axis: usize| (0..map[axis] as isize).contains(&found[axis]);
        let is_inside = inside(0) && inside(1);
        let token = if is_inside {
            found[0] as usize * map[1] + found[1] as usize
        } else {
            map[0] * map[1]
        };
        let is_hidden = match border {
            Border::Closed | Border::Sliding => !is_inside,
            // The official code hides the padding of the last window where the border is not crossed.
            Border::Cyclic => {
                [0, 1].iter().any(|&axis| at[axis] + 1 == grid[axis] && !inside(axis))
            }
        };
        Self { place, token: token as i32, is_hidden }
    }

    /// Whether it is more than a window's side away from a query along an axis.
    fn is_far(&self, query: [isize; 2], window: usize) -> bool {
        (0..2).any(|axis| self.place[axis].abs_diff(query[axis]) > window)
    }
}

/// See [`NeighborMap::bias_row`].
fn bias_rows(window: usize, steps: &[[isize; 2]]) -> Vec<i32> {
    let (side, last) = (4 * window as isize - 1, 2 * window as isize - 1);
    let slots = window * window;
    let mut rows = Vec::with_capacity(slots * slots * steps.len());
    for query in 0..slots {
        let query = places([0, 0], query, window);
        for &step in steps {
            for key in 0..slots {
                let key = places(step, key, window);
                let [down, across] = [0, 1].map(|axis| query[axis] - key[axis] + last);
                rows.push((down * side + across) as i32);
            }
        }
    }
    rows
}

/// Size of a map, side of its windows, and what these see.
type Sizes = ([usize; 2], usize, Neighbors, Border);

/// The tables of every map size used so far.
#[derive(Debug, Default)]
pub struct NeighborMaps {
    made: Memo<Sizes, NeighborMap>,
    /// By the number of tokens before the map, too.
    groups: Memo<(Sizes, usize), AttentionGroups>,
}

impl NeighborMaps {
    /// The tables of this map, made on first use.
    pub fn get(
        &self,
        map: [usize; 2],
        window: usize,
        neighbors: Neighbors,
        border: Border,
    ) -> Arc<NeighborMap> {
        let sizes = (map, window, neighbors, border);
        self.made.get(sizes, || NeighborMap::new(map, window, neighbors, border))
    }

    /// [`NeighborMap::groups`] of this map, made on first use.
    pub fn groups(
        &self,
        map: [usize; 2],
        window: usize,
        neighbors: Neighbors,
        border: Border,
        prefix: usize,
    ) -> Arc<AttentionGroups> {
        let sizes = (map, window, neighbors, border);
        self.groups.get((sizes, prefix), || self.get(map, window, neighbors, border).groups(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens that a token sees.
    fn seen(tables: &NeighborMap, token: usize) -> Vec<usize> {
        let slot = tables.token_slot[token] as usize;
        let (window, query) = (slot / tables.window_tokens(), slot % tables.window_tokens());
        let keys = &tables.key_token[window * tables.keys()..][..tables.keys()];
        let pairs = keys.iter().zip(tables.hidden(window, query));
        let mut seen: Vec<usize> =
            pairs.filter(|(_, hidden)| !**hidden).map(|(&key, _)| key as usize).collect();
        seen.sort_unstable();
        seen
    }

    proptest! {
        /// Tokens of the map, each once: those in windows whose row and column differ by at most one,
        /// or of all within the side of a window.
        #[test]
        fn what_a_token_sees(height in 1usize..12, width in 1usize..12, window in 1usize..5) {
            for border in [Border::Closed, Border::Sliding] {
                let tables = NeighborMap::new([height, width], window, Neighbors::All, border);
                for token in 0..height * width {
                    let is_seen = |&other: &usize| {
                        let pairs = [(token / width, other / width), (token % width, other % width)];
                        pairs.iter().all(|&(a, b)| match border {
                            Border::Sliding => a.abs_diff(b) <= window,
                            _ => (a / window).abs_diff(b / window) <= 1,
                        })
                    };
                    let expected: Vec<usize> = (0..height * width).filter(is_seen).collect();
                    prop_assert_eq!(seen(&tables, token), expected);
                }
            }
        }
    }

    /// Of windows of one token, the middle one sees its own, then the neighbor of the number.
    #[test]
    fn neighbors_are_numbered_row_by_row() {
        let of = |neighbors| {
            let tables = NeighborMap::new([3, 3], 1, neighbors, Border::Closed);
            tables.key_token[4 * tables.keys()..][..tables.keys()].to_vec()
        };
        assert_eq!(of(Neighbors::Own), [4]);
        assert_eq!(of(Neighbors::All), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let neighbors: Vec<i32> = (1..=8).map(|number| of(Neighbors::One(number))[1]).collect();
        assert_eq!(neighbors, [0, 1, 2, 3, 5, 6, 7, 8]);
        // Beyond the border there is nothing.
        let tables = NeighborMap::new([3, 3], 1, Neighbors::One(1), Border::Closed);
        assert_eq!(tables.key_token[..2], [0, 9]);
        assert_eq!(tables.hidden(0, 0), [false, true]);
        assert_eq!(tables.mask(2).unwrap()[..4], [0.0, 0.0, 0.0, HIDDEN]);
        assert!(NeighborMap::new([3, 3], 1, Neighbors::Own, Border::Closed).mask(0).is_none());
    }

    /// Three tokens in windows of two: behind the last one is padding, which is seen from the first
    /// window, around the border, and not from the last.
    #[test]
    fn maps_may_be_cyclic() {
        let tables = NeighborMap::new([1, 3], 2, Neighbors::All, Border::Cyclic);
        assert_eq!((tables.windows(), tables.keys(), tables.tokens()), (2, 36, 3));
        // The middle row of neighbors: left, own, right; each a row of the map and one of padding.
        let middle = |window: usize| {
            let keys = &tables.key_token[window * 36 + 12..][..12];
            let hidden = &tables.hidden(window, 0)[12..24];
            (keys.to_vec(), hidden.to_vec())
        };
        let (keys, hidden) = middle(0);
        assert_eq!(keys, [2, 3, 3, 3, 0, 1, 3, 3, 2, 3, 3, 3]);
        let (no, yes) = (false, true);
        // The only row of windows is the last one: its padding is hidden. That of the last column is
        // seen on the left, beyond the border.
        assert_eq!(hidden, [no, no, yes, yes, no, no, yes, yes, no, yes, yes, yes]);
        let (keys, hidden) = middle(1);
        assert_eq!(keys, [0, 1, 3, 3, 2, 3, 3, 3, 0, 1, 3, 3]);
        assert_eq!(hidden, [no, no, yes, yes, no, yes, yes, yes, no, no, yes, yes]);
    }

    /// The same token is in the middle of the table; one row and column further there is less.
    #[test]
    fn relative_positions() {
        let tables = NeighborMap::new([4, 4], 2, Neighbors::All, Border::Closed);
        assert_eq!(tables.bias_row.len(), 4 * 36);
        // Keys of the query's own window follow those of the four before it.
        assert_eq!(tables.bias_row[16..20], [24, 23, 17, 16]);
        // Its first key is two rows and two columns before the window.
        assert_eq!(tables.bias_row[0], (2 + 3) * 7 + 2 + 3);
        // From the last query to the first key: three of each.
        assert_eq!(tables.bias_row[3 * 36], 48);
        let own = NeighborMap::new([4, 4], 2, Neighbors::Own, Border::Closed);
        assert_eq!(own.bias_row[..4], [24, 23, 17, 16]);
    }

    #[test]
    fn tables_are_made_once() {
        let maps = NeighborMaps::default();
        let get = |neighbors| maps.get([3, 4], 2, neighbors, Border::Closed);
        assert!(Arc::ptr_eq(&get(Neighbors::All), &get(Neighbors::All)));
        assert_ne!(get(Neighbors::One(2)), get(Neighbors::One(3)));
        let groups = |prefix| maps.groups([3, 4], 2, Neighbors::All, Border::Closed, prefix);
        assert!(Arc::ptr_eq(&groups(1), &groups(1)));
        assert_ne!(groups(1), groups(2));
    }

    /// Two tokens, then a row of three in windows of two, of which the second has one.
    #[test]
    fn tokens_before_the_map_see_all() {
        let windows = NeighborMap::new([1, 3], 2, Neighbors::Own, Border::Closed);
        let groups = windows.groups(2);
        let rows = ImageRows { queries: 5, keys: 5, context: 5 };
        assert_eq!((groups.rows(), groups.tables().len()), (rows, 2));
        let [of_windows, of_prefix] = groups.tables() else { panic!("two tables") };
        assert_eq!((of_windows.queries, of_windows.keys), (4, 6));
        assert_eq!(of_windows.query_row, [2, 3, 5, 5, 4, 5, 5, 5]);
        assert_eq!(of_windows.key_row, [0, 1, 2, 3, 5, 5, 0, 1, 4, 5, 5, 5]);
        let hidden = of_windows.hidden.iter().map(|&hidden| u8::from(hidden)).collect::<Vec<_>>();
        assert_eq!(hidden, [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1]);
        assert_eq!((of_prefix.queries, of_prefix.keys), (2, 5));
        // Hidden keys and padding are no pairs.
        assert_eq!((groups.pairs(), groups.table_pairs()), (2 * 4 + 3 + 2 * 5, 2 * 4 * 6 + 10));
        assert_eq!(windows.groups(0).tables().len(), 1);
    }
}
