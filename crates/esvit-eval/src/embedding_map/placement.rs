//! Which images of a map have room for a thumbnail.

use std::collections::HashMap;

use esvit_kernels::rng::Rng;

/// Purpose word of the order in which images are asked.
const ORDER_PURPOSE: u64 = 0x7B13;

/// Indices of places around which a square of `side` fits without touching another's. Places are
/// asked in an order that looks random and is always the same, so that no class goes first.
pub(super) fn with_room(places: &[[f64; 2]], side: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    Rng::for_purpose(0, ORDER_PURPOSE, [0; 3]).shuffle(&mut order);
    // Squares that touch have their centers in neighboring cells of this size.
    let mut taken: HashMap<[i64; 2], Vec<[f64; 2]>> = HashMap::new();
    let cell = |place: [f64; 2]| place.map(|value| (value / side).floor() as i64);
    let mut chosen = Vec::new();
    for index in order {
        let place = places[index];
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
        let places: Vec<[f64; 2]> =
            (0..500).map(|_| [rng.uniform_in(-90.0, 90.0), rng.uniform_in(0.0, 90.0)]).collect();
        let chosen = with_room(&places, 10.0);
        let apart = |a: usize, b: usize| {
            let [x, y] = [0, 1].map(|axis| (places[a][axis] - places[b][axis]).abs());
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
        assert_eq!(with_room(&[[3.0, 3.0]; 9], 5.0).len(), 1);
        assert!(with_room(&[], 5.0).is_empty());
    }
}
