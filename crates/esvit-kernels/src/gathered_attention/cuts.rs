//! How the groups and heads of an image are cut into tasks, and its rows with them.

use std::ops::Range;

/// Runs of groups and of heads; every pair of them is a task.
#[derive(Debug)]
pub(super) struct Cuts {
    groups: Vec<Range<usize>>,
    heads: Vec<Range<usize>>,
}

/// The groups and heads of a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cut {
    pub(super) groups: Range<usize>,
    pub(super) heads: Range<usize>,
}

/// The rows of an image by number, each with the columns of a task's heads; None where another task
/// has the row.
pub(super) type TaskRows<'v, S = f32> = Vec<Option<&'v mut [S]>>;

impl Cuts {
    /// About `tasks` of them, by groups as far as possible, unless these have to be in one task
    /// (`by_group`).
    pub(super) fn new([groups, heads]: [usize; 2], tasks: usize, by_group: bool) -> Self {
        let groups = runs(groups, if by_group { tasks } else { 1 });
        let heads = runs(heads, tasks.div_ceil(groups.len()));
        Self { groups, heads }
    }

    /// All tasks, groups before heads.
    pub(super) fn tasks(&self) -> Vec<Cut> {
        let of = |groups: &Range<usize>| {
            let groups = groups.clone();
            self.heads.iter().map(move |heads| Cut { groups: groups.clone(), heads: heads.clone() })
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// The rows of every task, in the order of [`Cuts::tasks`]. A row has `d` columns for each head, and
    /// goes to the tasks of its owner, a group; without owners there is one run of groups.
    pub(super) fn deal<'v, S>(
        &self,
        rows: impl Iterator<Item = &'v mut [S]>,
        owners: Option<&[u32]>,
        d: usize,
    ) -> Vec<TaskRows<'v, S>> {
        assert!(owners.is_some() || self.groups.len() == 1, "groups in several tasks share rows");
        let mut dealt: Vec<TaskRows<'v, S>> =
            self.groups.iter().flat_map(|_| self.heads.iter().map(|_| Vec::new())).collect();
        for (number, mut row) in rows.enumerate() {
            let owner = owners.map_or(0, |owners| owners[number] as usize);
            for (at, heads) in self.heads.iter().enumerate() {
                let mut own = row.split_off_mut(..heads.len() * d);
                for (groups, tasks) in self.groups.iter().zip(dealt.chunks_mut(self.heads.len())) {
                    let is_owner = groups.contains(&owner);
                    tasks[at].push(if is_owner { own.take() } else { None });
                }
            }
        }
        dealt
    }
}

/// `count` things in at most `parts` runs, nearly equal; one if there are none.
fn runs(count: usize, parts: usize) -> Vec<Range<usize>> {
    let size = count.div_ceil(parts.max(1)).max(1);
    (0..count.max(1)).step_by(size).map(|start| start..(start + size).min(count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_by_hand() {
        let tasks = |sizes, tasks, by_group| {
            let found = Cuts::new(sizes, tasks, by_group).tasks();
            found.into_iter().map(|Cut { groups, heads }| (groups, heads)).collect::<Vec<_>>()
        };
        assert_eq!(tasks([5, 3], 1, true), [(0..5, 0..3)]);
        assert_eq!(tasks([5, 3], 2, true), [(0..3, 0..3), (3..5, 0..3)]);
        assert_eq!(tasks([5, 3], 2, false), [(0..5, 0..2), (0..5, 2..3)]);
        // As many as there are.
        assert_eq!(tasks([2, 2], 9, true).len(), 4);
        assert_eq!(tasks([2, 2], 9, false), [(0..2, 0..1), (0..2, 1..2)]);
        assert_eq!(tasks([0, 2], 1, true), [(0..0, 0..2)]);
    }

    #[test]
    fn rows_by_hand() {
        let mut values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let cuts = Cuts::new([2, 2], 4, true);
        // The second row is nobody's.
        let owners = [1, u32::MAX, 0];
        let dealt = cuts.deal(values.chunks_exact_mut(4), Some(&owners), 2);
        let found: Vec<Vec<Option<Vec<f32>>>> = dealt
            .into_iter()
            .map(|rows| rows.into_iter().map(|row| row.map(|row| row.to_vec())).collect())
            .collect();
        let some = |first: f32| Some(vec![first, first + 1.0]);
        assert_eq!(found[0], [None, None, some(8.0)]);
        assert_eq!(found[1], [None, None, some(10.0)]);
        assert_eq!(found[2], [some(0.0), None, None]);
        assert_eq!(found[3], [some(2.0), None, None]);
        let cuts = Cuts::new([2, 2], 2, false);
        let dealt = cuts.deal(values.chunks_exact_mut(4), None, 2);
        assert!(dealt.iter().flatten().all(Option::is_some));
    }
}
