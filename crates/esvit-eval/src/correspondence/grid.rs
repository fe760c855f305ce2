//! The grid of cells of a token map.

use esvit_nn::BackboneConfig;
use esvit_nn::backbone::Stage;
use serde::Serialize;

use super::CorrespondenceError;

/// Grid of a token map over its view, cells counted row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Grid {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Cell size in pixels of the view.
    pub cell: usize,
}

impl Grid {
    /// The grid of a stage (from 0) for a view of `[width, height]` pixels.
    ///
    /// # Errors
    /// [`CorrespondenceError`] if there is no such stage, or the view is not a whole number of
    /// cells.
    pub fn new(
        config: &BackboneConfig,
        stage: usize,
        [width, height]: [usize; 2],
    ) -> Result<Self, CorrespondenceError> {
        let stages = config.stages();
        let Some(&Stage { stride: cell, .. }) = stages.get(stage) else {
            return Err(CorrespondenceError::Stage { stage: stage + 1, stages: stages.len() });
        };
        for size in [width, height] {
            if size == 0 || !size.is_multiple_of(cell) {
                return Err(CorrespondenceError::Size { size, cell });
            }
        }
        config.check_image("size", [height, width])?;
        let [rows, columns] = [height, width].map(|side| side / cell);
        let map = config.map(stage, [height, width]);
        if map != [rows, columns] {
            return Err(CorrespondenceError::Map { map, view: [height, width], cell });
        }
        Ok(Self { rows, columns, cell })
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.rows * self.columns
    }

    /// Width and height of the view in pixels.
    pub fn size(&self) -> [f64; 2] {
        [self.columns, self.rows].map(|cells| (cells * self.cell) as f64)
    }

    /// Center of a cell, `[x, y]` in pixels of the view.
    pub fn center(&self, cell: usize) -> [f64; 2] {
        [cell % self.columns, cell / self.columns].map(|at| (at as f64 + 0.5) * self.cell as f64)
    }

    /// The cell that contains a point of the view; `None` outside.
    pub fn cell_at(&self, [x, y]: [f64; 2]) -> Option<usize> {
        let [column, row] = [x, y].map(|at| (at / self.cell as f64).floor());
        let inside =
            (0.0..self.columns as f64).contains(&column) && (0.0..self.rows as f64).contains(&row);
        inside.then_some(row as usize * self.columns + column as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centers_lie_in_their_cells() {
        let grid = Grid { rows: 2, columns: 3, cell: 32 };
        assert_eq!((grid.center(5), grid.size()), ([80.0, 48.0], [96.0, 64.0]));
        assert!((0..6).all(|cell| grid.cell_at(grid.center(cell)) == Some(cell)));
        for outside in [[-0.1, 5.0], [96.0, 5.0], [5.0, 64.0], [5.0, -1.0], [f64::NAN, 5.0]] {
            assert_eq!(grid.cell_at(outside), None);
        }
    }

    #[test]
    fn views_need_not_be_square() {
        let config = esvit_nn::zoo::find("swin_tiny_w7").map(|arch| arch.config()).unwrap();
        let grid = Grid::new(&config, 3, [96, 224]).unwrap();
        assert_eq!(grid, Grid { rows: 7, columns: 3, cell: 32 });
        assert_eq!(
            (grid.cells(), grid.center(4), grid.cell_at([95.0, 33.0])),
            (21, [48.0, 48.0], Some(5))
        );
        assert!(
            Grid::new(&config, 3, [100, 224]).is_err() && Grid::new(&config, 4, [96, 96]).is_err()
        );
    }
}
