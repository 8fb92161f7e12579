//! The grid of tiles over a level, and the order in which they are decoded.

use super::view::Level;
use crate::engine::Rect;

/// A tile's place in the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Counted from the left.
    pub col: u32,
    /// Counted from the top.
    pub row: u32,
}

impl Tile {
    /// Its pixels in the level; the last ones of a row or column are smaller.
    pub fn rect(self, level: Level, side: usize) -> Rect {
        let (x, y) = (self.col as usize * side, self.row as usize * side);
        Rect { x, y, w: side.min(level.w - x), h: side.min(level.h - y) }
    }
}

/// The tiles that `visible` touches, nearest to `focus` (a point of the level) first.
pub fn touched(visible: Rect, side: usize, focus: (f64, f64)) -> Vec<Tile> {
    if visible.w == 0 || visible.h == 0 {
        return Vec::new();
    }
    let range = |start: usize, length: usize| (start / side) as u32..=((start + length - 1) / side) as u32;
    let rows = range(visible.y, visible.h);
    let mut tiles: Vec<Tile> = rows.flat_map(|row| range(visible.x, visible.w).map(move |col| Tile { col, row })).collect();
    let distance = |tile: &Tile| {
        let middle = |index: u32| (f64::from(index) + 0.5) * side as f64;
        (middle(tile.col) - focus.0).powi(2) + (middle(tile.row) - focus.1).powi(2)
    };
    tiles.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then((a.row, a.col).cmp(&(b.row, b.col))));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_visible_rectangle_without_overlap_and_stay_inside() {
        let level = Level { w: 1000, h: 700 };
        let visible = Rect { x: 250, y: 10, w: 750, h: 690 };
        let tiles = touched(visible, 256, (600.0, 300.0));
        let mut covered = vec![0u8; level.w * level.h];
        for tile in &tiles {
            let rect = tile.rect(level, 256);
            assert!(rect.w > 0 && rect.h > 0 && rect.x + rect.w <= level.w && rect.y + rect.h <= level.h);
            for y in rect.y..rect.y + rect.h {
                covered[y * level.w + rect.x..][..rect.w].iter_mut().for_each(|c| *c += 1);
            }
        }
        assert!(covered.iter().all(|&c| c <= 1));
        for y in visible.y..visible.y + visible.h {
            assert!(covered[y * level.w + visible.x..][..visible.w].iter().all(|&c| c == 1));
        }
        assert_eq!(tiles.len(), 12, "no tile more than needed");
    }

    #[test]
    fn the_tile_under_the_focus_comes_first_and_the_order_is_by_distance() {
        let tiles = touched(Rect { x: 0, y: 0, w: 1024, h: 1024 }, 256, (700.0, 300.0));
        assert_eq!(tiles[0], Tile { col: 2, row: 1 });
        assert_eq!(*tiles.last().unwrap(), Tile { col: 0, row: 3 });
        assert_eq!(touched(Rect { x: 255, y: 0, w: 1, h: 1 }, 256, (0.0, 0.0)), [Tile { col: 0, row: 0 }]);
        assert!(touched(Rect { x: 5, y: 5, w: 0, h: 9 }, 256, (0.0, 0.0)).is_empty());
    }
}
