//! Chooses the images of a map that get a thumbnail.

use std::collections::HashMap;

use esvit_kernels::rng::Rng;

/// RNG purpose of the order in which images are tried.
const ORDER_PURPOSE: u64 = 0x7B13;

/// Greedily chooses places for non-overlapping squares of side `side`, and returns their indices.
/// They are tried in a fixed pseudo-random order, so that no class is preferred.
pub(super) fn select_non_overlapping(coords: &[[f64; 2]], side: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..coords.len()).collect();
    Rng::for_purpose(0, ORDER_PURPOSE, [0; 3]).shuffle(&mut order);
    // Hash grid: overlapping squares have their centers in the same or adjacent cells.
    let mut taken: HashMap<[i64; 2], Vec<[f64; 2]>> = HashMap::new();
    let cell = |place: [f64; 2]| place.map(|value| (value / side).floor() as i64);
    let mut chosen = Vec::new();
    for index in order {
        let place = coords[index];
        let [column, row] = cell(place);
        let touches = |other: &[f64; 2]| {
            (place[0] - other[0]).abs() < side && (place[1] - other[1]).abs() < side
        };
        let mut around = (-1..=1).flat_map(|x| (-1..=1).map(move |y| [column + x, row + y]));
        if !around.any(|cell| taken.get(&cell).is_some_and(|others| others.iter().any(touches))) {
            taken.entry([column, row]).or_default().push(place);
            chosen.push(index);
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_do_not_overlap_and_leave_no_room() {
        let mut rng = Rng::new(1, [0; 3]);
        let coords: Vec<[f64; 2]> =
            (0..500).map(|_| [rng.uniform_in(-90.0, 90.0), rng.uniform_in(0.0, 90.0)]).collect();
        let chosen = select_non_overlapping(&coords, 10.0);
        let apart = |a: usize, b: usize| {
            let [x, y] = [0, 1].map(|axis| (coords[a][axis] - coords[b][axis]).abs());
            x.max(y) >= 10.0
        };
        for (place, &index) in chosen.iter().enumerate() {
            assert!(chosen[..place].iter().all(|&other| apart(index, other)));
        }
        assert!((0..500).all(|i| chosen.contains(&i) || chosen.iter().any(|&c| !apart(i, c))));
        assert!(chosen.len() > 60, "{}", chosen.len());
    }

    #[test]
    fn one_place_has_room_for_one() {
        assert_eq!(select_non_overlapping(&[[3.0, 3.0]; 9], 5.0).len(), 1);
        assert!(select_non_overlapping(&[], 5.0).is_empty());
    }
}
