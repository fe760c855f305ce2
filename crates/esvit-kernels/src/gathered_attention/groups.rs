//! Which tokens of an image attend to which: tables of groups, and the same as lists.

use std::ops::Range;

use crate::window_attention::QUERIES;

/// Groups of one shape. The queries of a group attend to its keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupTable {
    /// Queries of a group.
    pub queries: usize,
    /// Keys of a group.
    pub keys: usize,
    /// Row of every query, `[groups, queries]`.
    pub query_row: Vec<i32>,
    /// Row of what every query gets, `[groups, queries]`; one past the last row for padding, for which
    /// nothing is computed.
    pub context_row: Vec<i32>,
    /// Row of every key, `[groups, keys]`; one past the last row for a key and a value of zeros.
    pub key_row: Vec<i32>,
    /// Whether a key is hidden, `[groups, rows, keys]` with one row for all queries of a group or one
    /// for each; empty if none is.
    pub hidden: Vec<bool>,
}

impl GroupTable {
    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.query_row.len() / self.queries.max(1)
    }

    /// Rows of a group in the table of hidden keys; 0 without one.
    pub fn hidden_rows(&self) -> usize {
        self.hidden.len() / self.key_row.len().max(1)
    }

    fn is_hidden(&self, group: usize, query: usize, key: usize) -> bool {
        match self.hidden_rows() {
            0 => false,
            // All queries of a group see the same, if it has one row.
            rows => self.hidden[(group * rows + query % rows) * self.keys + key],
        }
    }

    /// # Panics
    /// When lengths do not match.
    fn check(&self) {
        let groups = self.groups();
        assert!(self.queries > 0 && self.keys > 0, "groups without queries or keys");
        assert_eq!(self.query_row.len(), groups * self.queries, "rows of queries");
        assert_eq!(self.context_row.len(), groups * self.queries, "rows of the result");
        assert_eq!(self.key_row.len(), groups * self.keys, "rows of keys");
        let rows = self.hidden_rows();
        assert!([0, 1, self.queries].contains(&rows), "rows of hidden keys");
        assert_eq!(self.hidden.len(), groups * rows * self.keys, "hidden keys");
    }
}

/// Numbers of rows of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRows {
    /// Rows of queries.
    pub queries: usize,
    /// Rows of keys and values.
    pub keys: usize,
    /// Rows of the result.
    pub context: usize,
}

/// The groups of an image. Every row of the result belongs to one query, and a row of queries to at
/// most one.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionGroups {
    rows: ImageRows,
    tables: Vec<GroupTable>,
    /// Those with queries, table by table.
    groups: Vec<Group>,
    owners: Owners,
}

/// A group: queries without padding, and the keys that any of them sees.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// Its table.
    pub(super) table: usize,
    /// Places of its queries in the table, and their rows.
    pub(super) slots: Vec<usize>,
    pub(super) query_rows: Vec<u32>,
    pub(super) context_rows: Vec<u32>,
    /// Rows of its keys, and their places in the table as runs.
    pub(super) key_rows: Vec<u32>,
    pub(super) columns: Vec<Range<usize>>,
    /// Whether these are all keys of the table.
    pub(super) has_all_keys: bool,
    /// Whether a key is hidden, `[queries, keys]`; empty if none is.
    pub(super) hidden: Vec<bool>,
}

/// Group of every row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Owners {
    pub(super) queries: Vec<u32>,
    pub(super) context: Vec<u32>,
    /// None if groups share keys.
    pub(super) keys: Option<Vec<u32>>,
}

/// The owner of a row without a group.
const NO_GROUP: u32 = u32::MAX;

impl AttentionGroups {
    /// The groups of all tables.
    ///
    /// # Panics
    /// When lengths do not match, a row of the result has no query or several, a row of queries has
    /// several groups, or a query sees no key.
    pub fn new(rows: ImageRows, tables: Vec<GroupTable>) -> Self {
        let mut groups = Vec::new();
        for (at, table) in tables.iter().enumerate() {
            table.check();
            groups.extend((0..table.groups()).map(|number| Group::new(&rows, at, table, number)));
        }
        groups.retain(|group| !group.slots.is_empty());
        let owners = Owners::new(&rows, &groups);
        Self { rows, tables, groups, owners }
    }

    /// All `tokens` of an image attend to each other.
    pub fn whole(tokens: usize) -> Self {
        let all: Vec<i32> = (0..tokens as i32).collect();
        let table = GroupTable {
            queries: tokens,
            keys: tokens,
            query_row: all.clone(),
            context_row: all.clone(),
            key_row: all,
            hidden: Vec::new(),
        };
        Self::new(ImageRows { queries: tokens, keys: tokens, context: tokens }, vec![table])
    }

    /// Numbers of rows of an image.
    pub fn rows(&self) -> ImageRows {
        self.rows
    }

    /// The tables.
    pub fn tables(&self) -> &[GroupTable] {
        &self.tables
    }

    /// Pairs of a query and a key that are computed for an image.
    pub fn pairs(&self) -> usize {
        self.groups.iter().map(|group| group.slots.len() * group.key_rows.len()).sum()
    }

    /// Pairs of a query and a key in the tables, with padding and hidden ones.
    pub fn table_pairs(&self) -> usize {
        self.tables.iter().map(|table| table.groups() * table.queries * table.keys).sum()
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn owners(&self) -> &Owners {
        &self.owners
    }
}

impl Group {
    fn new(rows: &ImageRows, at: usize, table: &GroupTable, number: usize) -> Self {
        let row = |row: i32| u32::try_from(row).expect("a row of the image");
        let of_queries = number * table.queries..(number + 1) * table.queries;
        let query_row = &table.query_row[of_queries.clone()];
        let context_row = &table.context_row[of_queries];
        let key_row = &table.key_row[number * table.keys..][..table.keys];
        let is_padding = |slot: usize| row(context_row[slot]) as usize >= rows.context;
        let slots: Vec<usize> = (0..table.queries).filter(|&slot| !is_padding(slot)).collect();
        let is_seen = |key: usize| slots.iter().any(|&slot| !table.is_hidden(number, slot, key));
        let places: Vec<usize> = (0..table.keys).filter(|&key| is_seen(key)).collect();

        let mut hidden = Vec::new();
        // What one row hides from all queries is left out already.
        let by_query = slots.iter().filter(|_| table.hidden_rows() > 1 || places.is_empty());
        for &slot in by_query {
            let of_query = places.iter().map(|&key| table.is_hidden(number, slot, key));
            hidden.extend(of_query);
            let seen = &hidden[hidden.len() - places.len()..];
            assert!(seen.contains(&false), "query {slot} of group {number} sees no key");
        }
        if !hidden.contains(&true) {
            hidden.clear();
        }
        let key_rows: Vec<u32> = places.iter().map(|&key| row(key_row[key])).collect();
        assert!(key_rows.iter().all(|&row| row as usize <= rows.keys), "rows of keys");
        let query_rows: Vec<u32> = slots.iter().map(|&slot| row(query_row[slot])).collect();
        assert!(query_rows.iter().all(|&row| (row as usize) < rows.queries), "rows of queries");
        let runs = places.chunk_by(|a, b| a + 1 == *b);
        Self {
            table: at,
            context_rows: slots.iter().map(|&slot| row(context_row[slot])).collect(),
            query_rows,
            columns: runs.map(|run| run[0]..run[0] + run.len()).collect(),
            has_all_keys: places.len() == table.keys,
            key_rows,
            hidden,
            slots,
        }
    }

    /// Nearly equal blocks of queries, at most [`QUERIES`] each.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let m = self.slots.len();
        let size = m.div_ceil(m.div_ceil(QUERIES));
        (0..m).step_by(size).map(move |start| start..(start + size).min(m))
    }
}

impl Owners {
    fn new(rows: &ImageRows, groups: &[Group]) -> Self {
        let only = |count: usize, of: fn(&Group) -> &[u32]| {
            let owners = owners(count, groups.iter().map(of));
            let listed: usize = groups.iter().map(|group| of(group).len()).sum();
            let owners = owners.expect("a row of queries has one group");
            let owned = owners.iter().filter(|&&owner| owner != NO_GROUP).count();
            assert_eq!(owned, listed, "a row has one query");
            owners
        };
        let context = only(rows.context, |group| &group.context_rows);
        assert!(!context.contains(&NO_GROUP), "every row of the result has a query");
        let queries = only(rows.queries, |group| &group.query_rows);
        let keys = owners(rows.keys, groups.iter().map(|group| &group.key_rows[..]));
        Self { queries, context, keys }
    }
}

/// The list that has each of `rows`; None where two lists have one.
fn owners<'g>(rows: usize, lists: impl Iterator<Item = &'g [u32]>) -> Option<Vec<u32>> {
    let mut owners = vec![NO_GROUP; rows];
    for (number, list) in lists.enumerate() {
        for &row in list {
            // Behind the last row there are zeros, which anyone may see.
            let Some(owner) = owners.get_mut(row as usize) else { continue };
            if *owner != NO_GROUP && *owner != number as u32 {
                return None;
            }
            *owner = number as u32;
        }
    }
    Some(owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of two on a row of three tokens, the second of them padded; the first key is hidden from
    /// the second window, the third key from the first query alone.
    fn table() -> GroupTable {
        GroupTable {
            queries: 2,
            keys: 3,
            query_row: vec![0, 1, 2, 3],
            context_row: vec![0, 1, 2, 3],
            key_row: vec![0, 1, 3, 1, 2, 3],
            hidden: [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
                .as_flattened()
                .iter()
                .map(|&hidden| hidden == 1)
                .collect(),
        }
    }

    const ROWS: ImageRows = ImageRows { queries: 3, keys: 3, context: 3 };

    #[test]
    fn lists_by_hand() {
        let groups = AttentionGroups::new(ROWS, vec![table()]);
        let [first, second] = groups.groups() else { panic!("two groups") };
        assert_eq!((&first.slots[..], &second.slots[..]), (&[0, 1][..], &[0][..]));
        assert_eq!((&first.key_rows[..], &second.key_rows[..]), (&[0, 1, 3][..], &[2, 3][..]));
        assert_eq!(first.hidden, [false, false, true, false, false, false]);
        assert!(first.has_all_keys && !second.has_all_keys && second.hidden.is_empty());
        assert_eq!([&first.columns, &second.columns], [&vec![0..3; 1], &vec![1..3; 1]]);
        assert_eq!(second.context_rows, [2]);
        assert_eq!((groups.pairs(), groups.table_pairs()), (6 + 2, 12));
        // Both see zeros, but no row.
        assert_eq!(groups.owners().keys, Some(vec![0, 0, 1]));
        assert_eq!(groups.owners().queries, [0, 0, 1]);
        let shared = GroupTable { hidden: Vec::new(), ..table() };
        assert_eq!(AttentionGroups::new(ROWS, vec![shared]).owners().keys, None);
    }

    #[test]
    fn whole_images() {
        let groups = AttentionGroups::whole(150);
        let [group] = groups.groups() else { panic!("one group") };
        assert_eq!((groups.pairs(), groups.table_pairs()), (150 * 150, 150 * 150));
        assert_eq!(group.blocks().collect::<Vec<_>>(), [0..50, 50..100, 100..150]);
        assert_eq!(group.columns, vec![0..150; 1]);
    }

    fn fails(rows: ImageRows, table: GroupTable) -> String {
        let made = std::panic::catch_unwind(|| AttentionGroups::new(rows, vec![table]));
        let reason = made.expect_err("a table that does not fit");
        match reason.downcast::<String>() {
            Ok(reason) => *reason,
            Err(reason) => (*reason.downcast::<&str>().expect("a text")).to_owned(),
        }
    }

    #[test]
    fn tables_that_do_not_fit() {
        let more = ImageRows { context: 4, queries: 4, ..ROWS };
        let twice = GroupTable { query_row: vec![0, 1, 1, 3], ..table() };
        assert!(fails(ROWS, twice).contains("one group"));
        let again = GroupTable { query_row: vec![0, 0, 2, 3], ..table() };
        assert!(fails(ROWS, again).contains("one query"));
        let missing = GroupTable { context_row: vec![0, 1, 2, 4], ..table() };
        assert!(fails(more, missing).contains("every row of the result"));
        let unseen = GroupTable { hidden: vec![true; 12], ..table() };
        assert!(fails(ROWS, unseen).contains("query 0 of group 0 sees no key"));
        let short = GroupTable { key_row: vec![0, 1, 3, 1, 2], ..table() };
        assert!(fails(ROWS, short).contains("rows of keys"));
        let beyond = GroupTable { key_row: vec![0, 1, 3, 1, 2, 4], ..table() };
        assert!(fails(ROWS, beyond).contains("rows of keys"));
    }
}
