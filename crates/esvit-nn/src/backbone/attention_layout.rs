//! The tokens that attention weights are between.

use std::sync::Arc;

use crate::ops::{NeighborMap, Segment, WindowMap};

/// Which tokens of an image attend to which.
#[derive(Debug, Clone)]
pub enum AttentionLayout {
    /// Those of a window to each other: a group is a window.
    Windows(Arc<WindowMap>),
    /// Those of a window to the tokens before the map, then to windows around it: a group is a window.
    Neighbors {
        /// The windows.
        windows: Arc<NeighborMap>,
        /// Tokens before those of the map.
        prefix: usize,
    },
    /// All to all, in one group: first the tokens before the map, then those of the map, row-major.
    Whole {
        /// Height and width of the map in tokens.
        map: [usize; 2],
        /// Tokens before those of the map.
        prefix: usize,
    },
    /// All to those of a coarser map, in one group: queries as in [`AttentionLayout::Whole`], keys
    /// the tokens before the map, then those of the coarser one, row-major.
    Reduced {
        /// Height and width of the map in tokens.
        map: [usize; 2],
        /// Tokens before those of the map.
        prefix: usize,
        /// Side of the square of cells that a key stands for. Cells beyond the last whole square
        /// have no key.
        ratio: usize,
    },
}

/// What a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A token of the map, by its number.
    Cell(usize),
    /// A token of a coarser map, by its number: [`AttentionLayout::cells`] are those that it stands
    /// for.
    Square(usize),
    /// A token before those of the map, by its number.
    Prefix(usize),
    /// Padding beside the map.
    Padding,
}

impl AttentionLayout {
    /// All tokens of an image to each other.
    pub(super) fn whole(segment: Segment) -> Self {
        let Segment { map, prefix, .. } = segment;
        Self::Whole { map, prefix }
    }

    /// All tokens of an image to squares of `ratio` x `ratio` cells.
    pub(super) fn reduced(segment: Segment, ratio: usize) -> Self {
        let Segment { map, prefix, .. } = segment;
        Self::Reduced { map, prefix, ratio }
    }

    /// What is added to the logits of an image's groups, `[groups, rows, keys]`, and the number of
    /// these rows: one for every query, or one for all of them.
    pub(super) fn mask(&self) -> Option<(Vec<f32>, usize)> {
        match self {
            Self::Windows(windows) => windows.mask.clone().map(|mask| (mask, self.queries())),
            Self::Neighbors { windows, prefix } => {
                windows.mask(*prefix).map(|mask| (mask, windows.mask_rows()))
            }
            Self::Whole { .. } | Self::Reduced { .. } => None,
        }
    }

    /// Height and width of the map in tokens.
    pub fn map(&self) -> [usize; 2] {
        match self {
            Self::Windows(windows) => windows.map,
            Self::Neighbors { windows, .. } => windows.map,
            Self::Whole { map, .. } | Self::Reduced { map, .. } => *map,
        }
    }

    /// Number of tokens in the map.
    pub fn tokens(&self) -> usize {
        self.map().iter().product()
    }

    /// Side and shift of the windows in tokens; None without windows.
    pub fn window(&self) -> Option<[usize; 2]> {
        match self {
            Self::Windows(windows) => Some([windows.window, windows.shift]),
            Self::Neighbors { windows, .. } => Some([windows.window, 0]),
            Self::Whole { .. } | Self::Reduced { .. } => None,
        }
    }

    /// Number of queries of a group.
    pub fn queries(&self) -> usize {
        match self {
            Self::Windows(windows) => windows.window_tokens(),
            Self::Neighbors { windows, .. } => windows.window_tokens(),
            Self::Whole { map, prefix } | Self::Reduced { map, prefix, .. } => {
                prefix + map[0] * map[1]
            }
        }
    }

    /// Number of keys of a query.
    pub fn keys(&self) -> usize {
        match self {
            Self::Windows(_) | Self::Whole { .. } => self.queries(),
            Self::Neighbors { windows, prefix } => prefix + windows.keys(),
            Self::Reduced { map, prefix, ratio } => prefix + (map[0] / ratio) * (map[1] / ratio),
        }
    }

    /// The tokens of the map that a key stands for: none of padding and of tokens before the map.
    pub fn cells(&self, key: Key) -> Vec<usize> {
        match (key, self) {
            (Key::Cell(cell), _) => vec![cell],
            (Key::Square(square), Self::Reduced { map: [_, width], ratio, .. }) => {
                let across = width / ratio;
                let [row, column] = [square / across * ratio, square % across * ratio];
                let cells = (row..row + ratio)
                    .flat_map(|row| (column..column + ratio).map(move |at| row * width + at));
                cells.collect()
            }
            (Key::Square(_) | Key::Prefix(_) | Key::Padding, _) => Vec::new(),
        }
    }

    /// The group of a token of the map, and its number among the group's queries.
    pub fn query(&self, token: usize) -> [usize; 2] {
        let in_group = |slot: i32| [slot as usize / self.queries(), slot as usize % self.queries()];
        match self {
            Self::Windows(windows) => in_group(windows.token_slot[token]),
            Self::Neighbors { windows, .. } => in_group(windows.token_slot[token]),
            Self::Whole { prefix, .. } | Self::Reduced { prefix, .. } => [0, prefix + token],
        }
    }

    /// What the keys of a group are.
    pub fn group_keys(&self, group: usize) -> Vec<Key> {
        match self {
            Self::Windows(windows) => {
                let side = windows.window_tokens();
                self.keys_of(&windows.slot_token[group * side..][..side]).collect()
            }
            Self::Neighbors { windows, prefix } => {
                let keys = windows.keys();
                let cells = self.keys_of(&windows.key_token[group * keys..][..keys]);
                (0..*prefix).map(Key::Prefix).chain(cells).collect()
            }
            Self::Whole { map, prefix } => {
                let cells = (0..map[0] * map[1]).map(Key::Cell);
                (0..*prefix).map(Key::Prefix).chain(cells).collect()
            }
            Self::Reduced { prefix, .. } => {
                let squares = (0..self.keys() - prefix).map(Key::Square);
                (0..*prefix).map(Key::Prefix).chain(squares).collect()
            }
        }
    }

    /// Tokens of the map as keys; beyond the last one there is padding.
    fn keys_of<'a>(&'a self, tokens: &'a [i32]) -> impl Iterator<Item = Key> + 'a {
        tokens.iter().map(|&token| match token as usize {
            token if token < self.tokens() => Key::Cell(token),
            _ => Key::Padding,
        })
    }

    /// Whether a query, by its group and its number in that, can attend to each key.
    pub fn visible(&self, [group, query]: [usize; 2]) -> Vec<bool> {
        let keys = self.keys();
        match self {
            Self::Windows(windows) => match &windows.mask {
                Some(mask) => {
                    let row = &mask[(group * keys + query) * keys..][..keys];
                    row.iter().map(|&added| added == 0.0).collect()
                }
                None => vec![true; keys],
            },
            Self::Neighbors { windows, prefix } => {
                let seen = windows.hidden(group, query).iter().map(|hidden| !hidden);
                std::iter::repeat_n(true, *prefix).chain(seen).collect()
            }
            Self::Whole { .. } | Self::Reduced { .. } => vec![true; keys],
        }
    }

    /// Whether some keys are padding.
    pub fn is_padded(&self) -> bool {
        match self {
            Self::Windows(windows) => windows.is_padded(),
            // Beyond the border there are keys that no token sees, or padding.
            Self::Neighbors { windows, .. } => {
                windows.key_token.iter().any(|&token| token as usize == windows.tokens())
            }
            Self::Whole { .. } | Self::Reduced { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Border, Neighbors};

    /// A map of 3 x 3 tokens in windows of 2, padded to 4 x 4 and shifted by 1.
    #[test]
    fn windows_are_groups() {
        let layout = AttentionLayout::Windows(Arc::new(WindowMap::new([3, 3], 2, 1)));
        assert_eq!((layout.map(), layout.tokens(), layout.keys()), ([3, 3], 9, 4));
        assert_eq!((layout.window(), layout.is_padded()), (Some([2, 1]), true));
        // The first window begins at the second row and column.
        assert_eq!(layout.group_keys(0), [4, 5, 7, 8].map(Key::Cell));
        assert_eq!(layout.query(8), [0, 3]);
        // The last one holds the first token, which came around, and padding.
        let [group, query] = layout.query(0);
        assert_eq!((group, layout.group_keys(group)[query]), (3, Key::Cell(0)));
        let visible = layout.visible([group, query]);
        assert_eq!(visible.iter().filter(|&&visible| visible).count(), 1);
    }

    /// A map of 3 x 3 tokens in windows of 2 after two other tokens: the last window has one token, and sees
    /// all four.
    #[test]
    fn windows_with_neighbors_are_groups() {
        let windows = NeighborMap::new([3, 3], 2, Neighbors::All, Border::Closed);
        let layout = AttentionLayout::Neighbors { windows: Arc::new(windows), prefix: 2 };
        assert_eq!((layout.map(), layout.tokens(), layout.window()), ([3, 3], 9, Some([2, 0])));
        assert_eq!((layout.queries(), layout.keys(), layout.is_padded()), (4, 38, true));
        assert_eq!([layout.query(4), layout.query(8)], [[0, 3], [3, 0]]);
        let keys = layout.group_keys(3);
        assert_eq!(
            keys[..6],
            [
                Key::Prefix(0),
                Key::Prefix(1),
                Key::Cell(0),
                Key::Cell(1),
                Key::Cell(3),
                Key::Cell(4),
            ]
        );
        let pairs = keys.iter().zip(layout.visible([3, 0]));
        let visible: Vec<Key> =
            pairs.filter(|(_, visible)| *visible).map(|(key, _)| *key).collect();
        let cells = [0, 1, 3, 4, 2, 5, 6, 7, 8].map(Key::Cell);
        assert_eq!(visible, [&[Key::Prefix(0), Key::Prefix(1)][..], &cells].concat());
    }

    #[test]
    fn whole_images_are_one_group() {
        let layout = AttentionLayout::Whole { map: [2, 3], prefix: 2 };
        assert_eq!((layout.tokens(), layout.keys(), layout.query(4)), (6, 8, [0, 6]));
        let keys = layout.group_keys(0);
        assert_eq!(keys[..3], [Key::Prefix(0), Key::Prefix(1), Key::Cell(0)]);
        assert_eq!((keys[7], layout.visible([0, 3])), (Key::Cell(5), vec![true; 8]));
        assert_eq!((layout.window(), layout.is_padded()), (None, false));
        assert_eq!((layout.queries(), layout.cells(keys[3])), (8, vec![1]));
        assert!(layout.cells(Key::Prefix(1)).is_empty() && layout.cells(Key::Padding).is_empty());
    }

    /// A map of 5 x 7 tokens after two others, in squares of 2: the last row and column have none.
    #[test]
    fn keys_of_a_coarser_map_stand_for_squares() {
        let layout = AttentionLayout::Reduced { map: [5, 7], prefix: 2, ratio: 2 };
        assert_eq!((layout.map(), layout.tokens()), ([5, 7], 35));
        assert_eq!((layout.queries(), layout.keys(), layout.query(4)), (37, 8, [0, 6]));
        let keys = layout.group_keys(0);
        assert_eq!(keys[..3], [Key::Prefix(0), Key::Prefix(1), Key::Square(0)]);
        assert_eq!((keys.len(), keys[7]), (8, Key::Square(5)));
        assert_eq!(layout.cells(keys[2]), [0, 1, 7, 8]);
        // The second row of squares, the third column.
        assert_eq!(layout.cells(keys[7]), [18, 19, 25, 26]);
        let all: Vec<usize> = keys.iter().flat_map(|&key| layout.cells(key)).collect();
        assert_eq!(all.len(), 24);
        assert_eq!(layout.visible([0, 36]), [true; 8]);
        assert_eq!((layout.window(), layout.is_padded()), (None, false));
    }
}
