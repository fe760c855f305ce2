//! Pairs of student and teacher rows, and their split into independent parts.

use std::ops::Range;

/// Teacher rows and weights that make up the target of each student row, in CSR form.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    starts: Vec<u32>,
    teachers: Vec<u32>,
    weights: Vec<f32>,
}

impl Pairs {
    /// No student rows.
    pub fn new() -> Self {
        Self { starts: vec![0], teachers: Vec::new(), weights: Vec::new() }
    }

    /// Appends a student row with its teacher rows and their weights.
    pub fn push(&mut self, pairs: impl IntoIterator<Item = (usize, f32)>) {
        for (teacher, weight) in pairs {
            self.teachers.push(teacher as u32);
            self.weights.push(weight);
        }
        self.starts.push(self.teachers.len() as u32);
    }

    /// Number of student rows.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of pairs of all student rows.
    pub(super) fn len(&self) -> usize {
        self.teachers.len()
    }

    /// Teacher rows and weights of a student row.
    pub fn of(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        self.range(row).map(|pair| self.get(pair))
    }

    /// Range of the pairs of a student row.
    pub(super) fn range(&self, row: usize) -> Range<usize> {
        self.starts[row] as usize..self.starts[row + 1] as usize
    }

    /// Teacher row and weight of a pair.
    pub(super) fn get(&self, pair: usize) -> (usize, f32) {
        (self.teachers[pair] as usize, self.weights[pair])
    }

    /// Sum of the weights of a student row.
    pub(super) fn weight_sum(&self, row: usize) -> f32 {
        self.weights[self.range(row)].iter().sum()
    }

    /// Splits the rows into parts that share no row, by union-find: each of at most `max_rows` rows
    /// of both sides, unless one connected component has more. Rows without a pair are in no part.
    ///
    /// # Panics
    /// When a pair names a row beyond the `teachers` ones.
    pub(super) fn parts(&self, teachers: usize, max_rows: usize) -> Vec<Part> {
        let mut sets = Sets::new(teachers);
        for row in 0..self.rows() {
            let mut paired = self.of(row).map(|(teacher, _)| teacher);
            if let Some(first) = paired.next() {
                paired.for_each(|teacher| sets.join(first, teacher));
            }
        }
        let mut sizes = vec![0; teachers];
        let mut seen = vec![false; teachers];
        for row in 0..self.rows() {
            for (at, (teacher, _)) in self.of(row).enumerate() {
                let fresh = !std::mem::replace(&mut seen[teacher], true);
                sizes[sets.find(teacher)] += usize::from(at == 0) + usize::from(fresh);
            }
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut size = 0;
        let mut part_of = vec![None; teachers];
        let mut place = vec![None; teachers];
        for row in 0..self.rows() {
            let Some((first, _)) = self.of(row).next() else { continue };
            let set = sets.find(first);
            let at = *part_of[set].get_or_insert_with(|| {
                if parts.is_empty() || size + sizes[set] > max_rows {
                    parts.push(Part::default());
                    size = 0;
                }
                size += sizes[set];
                parts.len() - 1
            });
            let Part { rows, teachers, pairs } = &mut parts[at];
            rows.push(row);
            pairs.push(self.of(row).map(|(teacher, weight)| {
                let place = place[teacher].get_or_insert_with(|| {
                    teachers.push(teacher);
                    teachers.len() - 1
                });
                (*place, weight)
            }));
        }
        parts
    }
}

/// Some student rows and all teacher rows that they are paired with.
#[derive(Debug)]
pub(super) struct Part {
    /// Student rows.
    pub rows: Vec<usize>,
    /// Teacher rows.
    pub teachers: Vec<usize>,
    /// Their pairs, by index into the two lists.
    pub pairs: Pairs,
}

impl Part {
    /// Rows of both sides.
    pub(super) fn size(&self) -> usize {
        self.rows.len() + self.teachers.len()
    }
}

impl Default for Part {
    fn default() -> Self {
        Self { rows: Vec::new(), teachers: Vec::new(), pairs: Pairs::new() }
    }
}

/// Union-find.
struct Sets {
    parents: Vec<usize>,
}

impl Sets {
    fn new(count: usize) -> Self {
        Self { parents: (0..count).collect() }
    }

    fn find(&mut self, mut member: usize) -> usize {
        while self.parents[member] != member {
            self.parents[member] = self.parents[self.parents[member]];
            member = self.parents[member];
        }
        member
    }

    fn join(&mut self, a: usize, b: usize) {
        let [a, b] = [a, b].map(|member| self.find(member));
        self.parents[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_no_row_in_common() {
        let mut pairs = Pairs::new();
        // Rows 0 and 3 depend on each other through row 4; nothing pairs row 2 or teacher 5.
        for of in [&[0][..], &[2, 3], &[], &[1], &[1, 0], &[4]] {
            pairs.push(of.iter().map(|&teacher| (teacher, 0.5)));
        }
        let found = |max_rows| -> Vec<[Vec<usize>; 2]> {
            pairs.parts(6, max_rows).into_iter().map(|part| [part.rows, part.teachers]).collect()
        };
        let [a, b, c] = [[vec![0, 3, 4], vec![0, 1]], [vec![1], vec![2, 3]], [vec![5], vec![4]]];
        assert_eq!(found(1), [a.clone(), b.clone(), c.clone()]);
        assert_eq!(found(5), [a, [vec![1, 5], vec![2, 3, 4]]]);
        assert_eq!(found(8), [[vec![0, 1, 3, 4], vec![0, 2, 3, 1]], c]);
        assert_eq!(found(10), [[vec![0, 1, 3, 4, 5], vec![0, 2, 3, 1, 4]]]);
        let all = &pairs.parts(6, 10)[0];
        for (place, &row) in all.rows.iter().enumerate() {
            let of = all.pairs.of(place).map(|(teacher, weight)| (all.teachers[teacher], weight));
            assert!(of.eq(pairs.of(row)));
        }
    }

    #[test]
    fn nothing_is_no_part() {
        assert!(Pairs::new().parts(3, 4).is_empty());
    }
}
