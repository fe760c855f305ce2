//! Marks that would cover each other.

/// Distance of two marks, in pixels, at which both are seen whole, and how far one is moved at a time.
const ROOM: f64 = 12.0;
const MOVE: f64 = 13.0;

/// Where marks are drawn: at their places, or beside them where others are, within `low..=high` along x. One after
/// the other goes to the nearest place that is free.
pub(super) fn apart(marks: &[[f64; 2]], [low, high]: [f64; 2]) -> Vec<[f64; 2]> {
    let mut placed: Vec<[f64; 2]> = Vec::new();
    for &[x, y] in marks {
        // Each of the others is in the way of two of them at most.
        let mut moves = (0..=4 * marks.len()).map(|number| {
            let side = if number % 2 == 0 { -1.0 } else { 1.0 };
            side * MOVE * number.div_ceil(2) as f64
        });
        let is_free = |&moved: &f64| {
            let at = x + moved;
            let covers =
                |other: &[f64; 2]| (other[0] - at).abs() < ROOM && (other[1] - y).abs() < ROOM;
            (low..=high).contains(&at) && !placed.iter().any(covers)
        };
        let moved = moves.find(is_free).unwrap_or(0.0);
        placed.push([x + moved, y]);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [f64; 2] = [0.0, 700.0];

    #[test]
    fn marks_stay_where_nothing_is_in_the_way() {
        let marks = [[10.0, 10.0], [10.0, 30.0], [30.0, 10.0], [700.0, 0.0]];
        assert_eq!(apart(&marks, FRAME), marks);
        assert!(apart(&[], FRAME).is_empty());
    }

    #[test]
    fn equal_marks_stand_side_by_side() {
        let found = apart(&[[100.0, 50.0]; 4], FRAME);
        assert_eq!(found, [[100.0, 50.0], [113.0, 50.0], [87.0, 50.0], [126.0, 50.0]]);
        // At the edge to the inside.
        assert_eq!(apart(&[[700.0, 5.0]; 3], FRAME), [[700.0, 5.0], [687.0, 5.0], [674.0, 5.0]]);
    }

    #[test]
    fn no_mark_covers_another() {
        let near = |index: u32| {
            let index = f64::from(index);
            [350.0 + 3.0 * index.sin(), 50.0 + 4.0 * (2.0 * index).cos()]
        };
        let marks: Vec<[f64; 2]> = (0..30).map(near).collect();
        let found = apart(&marks, FRAME);
        for (index, a) in found.iter().enumerate() {
            let covered = |b: &&[f64; 2]| (a[0] - b[0]).abs() < ROOM && (a[1] - b[1]).abs() < ROOM;
            assert_eq!(found[..index].iter().find(covered), None, "{found:?}");
            assert_eq!(a[1], marks[index][1]);
        }
    }
}
