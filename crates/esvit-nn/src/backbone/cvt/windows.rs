//! Windows of maps that are padded to whole ones.

use std::sync::Arc;

use crate::backbone::maps::with_zero_token;
use crate::memo::Memo;
use crate::ops::{AttentionGroups, GroupTable, ImageRows, WindowMap};
use crate::tensor::{Dtype, Tensor};

/// The windows of a map.
#[derive(Debug)]
pub(super) struct Windows {
    /// Of the map itself.
    pub(super) of_map: Arc<WindowMap>,
    /// Of the map after padding.
    pub(super) of_padded: WindowMap,
    /// Tokens of a window attend to all of it, padding included.
    pub(super) groups: Arc<AttentionGroups>,
}

impl Windows {
    /// Those of side `window`, or of the map's shorter side.
    fn new(map: [usize; 2], window: usize) -> Self {
        let window = window.min(map[0]).min(map[1]);
        let of_map = WindowMap::new(map, window, 0);
        let of_padded = WindowMap::new(of_map.grid.map(|count| count * window), window, 0);
        let table = GroupTable {
            queries: of_map.window_tokens(),
            keys: of_map.window_tokens(),
            query_row: of_padded.slot_token.clone(),
            context_row: of_map.slot_token.clone(),
            key_row: of_padded.slot_token.clone(),
            hidden: Vec::new(),
        };
        let (tokens, padded) = (of_map.tokens(), of_padded.tokens());
        let rows = ImageRows { queries: padded, keys: padded, context: tokens };
        let groups = Arc::new(AttentionGroups::new(rows, vec![table]));
        Self { of_map: Arc::new(of_map), of_padded, groups }
    }

    /// Tokens `[images, height * width, C]` with zeros at the bottom and at the right.
    pub(super) fn pad(&self, tokens: Tensor) -> Tensor {
        let Self { of_map, of_padded, .. } = self;
        if !of_map.is_padded() {
            return tokens;
        }
        let token = |&slot: &i32| of_map.slot_token[slot as usize];
        let places: Vec<i32> = of_padded.token_slot.iter().map(token).collect();
        with_zero_token(tokens.to_dtype(Dtype::F32)).index_select(1, places)
    }
}

/// Size of a map, and side of the windows of large ones.
type Sizes = ([usize; 2], usize);

/// The windows of every map size used so far.
#[derive(Debug, Default)]
pub(super) struct PaddedWindows {
    made: Memo<Sizes, Windows>,
}

impl PaddedWindows {
    /// Those of this map, made on first use.
    pub(super) fn get(&self, map: [usize; 2], window: usize) -> Arc<Windows> {
        self.made.get((map, window), || Windows::new(map, window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of 3 x 5 tokens in windows of two: padded to 4 x 6.
    #[test]
    fn padding_is_seen() {
        let windows = PaddedWindows::default();
        let found = windows.get([3, 5], 2);
        assert_eq!((found.of_map.windows(), found.of_padded.map), (6, [4, 6]));
        let rows = ImageRows { queries: 24, keys: 24, context: 15 };
        assert_eq!(found.groups.rows(), rows);
        // The last window has one token, at 2, 4; all four are keys.
        let [table] = found.groups.tables() else { panic!("one table") };
        assert_eq!(table.query_row[20..], [16, 17, 22, 23]);
        assert_eq!(table.key_row[20..], [16, 17, 22, 23]);
        assert_eq!(table.context_row[20..], [14, 15, 15, 15]);
        assert_eq!((found.groups.pairs(), found.groups.table_pairs()), (15 * 4, 24 * 4));
        assert!(Arc::ptr_eq(&found, &windows.get([3, 5], 2)));
        // No side of a window is longer than the map's.
        assert_eq!(windows.get([3, 5], 7).of_map.window, 3);
    }
}
