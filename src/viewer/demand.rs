//! What must be decoded to show a view, most urgent first.

use super::split::Compare;
use super::tiles::{self, Tile};
use super::view::{Level, Placement};
use super::work::{Key, Side};

/// A decoder's part of the view.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    /// Which decoder.
    pub side: Side,
    /// Where its picture lies.
    pub place: Placement,
}

/// Everything that decides what is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// What the view shows of the main decoder.
    pub main: Shown,
    /// What it shows of the other one, if it is compared with one.
    pub other: Option<Shown>,
    /// What is compared with.
    pub compare: Compare,
    /// Size of the decode that enlargements start from.
    pub native: Level,
    /// The level that shows the whole picture.
    pub fitted: Level,
    /// Side of a tile in pixels.
    pub tile_side: usize,
    /// Longest side that one texture can have.
    pub max_texture: usize,
    /// The point of the canvas that matters most, as a share of the main picture's visible part.
    pub focus: (f64, f64),
}

/// The pieces that together show one decoder's part of the view at full resolution.
#[derive(Debug, Clone, PartialEq)]
pub enum Pieces {
    /// One texture.
    Whole(Key),
    /// Tiles, in the order in which they are wanted.
    Tiles(Vec<Key>),
}

impl Pieces {
    /// The keys.
    pub fn keys(&self) -> &[Key] {
        match self {
            Pieces::Whole(key) => std::slice::from_ref(key),
            Pieces::Tiles(keys) => keys,
        }
    }
}

impl Demand {
    /// What shows `shown`: the whole level where half of it or more is visible or where it is there anyway, tiles
    /// otherwise. (A decode in tiles first passes over the whole level for what is global, so tiles pay where little of it
    /// is seen, or where the whole is `refused`.)
    pub fn pieces(&self, shown: Shown, have: impl Fn(&Key) -> bool, refused: impl Fn(&Key) -> bool) -> Pieces {
        let Shown { side, place } = shown;
        let (level, visible) = (place.level, place.visible);
        let whole = Key::Whole(side, level);
        let mostly_visible = visible.w * visible.h * 2 >= level.pixels();
        let fits = level.w <= self.max_texture && level.h <= self.max_texture && !refused(&whole);
        if have(&whole) || (mostly_visible && fits) || level == self.fitted && fits {
            return Pieces::Whole(whole);
        }
        let point = |start: usize, length: usize, share: f64| start as f64 + length as f64 * share;
        let focus = (point(visible.x, visible.w, self.focus.0), point(visible.y, visible.h, self.focus.1));
        let key = |tile: Tile| Key::Tile(side, level, tile);
        Pieces::Tiles(tiles::touched(visible, self.tile_side, focus).into_iter().map(key).collect())
    }

    /// What is still missing. `have`: what is cached or prepared. `refused`: what failed.
    pub fn wanted(&self, have: impl Fn(&Key) -> bool, refused: impl Fn(&Key) -> bool) -> Vec<Key> {
        let mut wanted = Vec::new();
        for shown in [Some(self.main), self.other].into_iter().flatten() {
            let pieces = self.pieces(shown, &have, &refused);
            if let Pieces::Tiles(_) = pieces {
                // Something to look at while the tiles come.
                wanted.push(Key::Whole(shown.side, self.fitted));
                if pieces.keys().iter().any(|key| !have(key)) {
                    wanted.push(Key::Prepare(shown.side, shown.place.level));
                }
            }
            wanted.extend(pieces.keys());
            if shown.side == Side::A && matches!(self.compare, Compare::Lanczos | Compare::Bicubic) {
                wanted.push(Key::Whole(Side::A, self.native));
            }
        }
        wanted.retain(|key| !have(key) && !refused(key));
        // A tile without what it is cut from waits.
        let unprepared = |key: &Key| matches!(*key, Key::Tile(side, level, _) if refused(&Key::Prepare(side, level)));
        wanted.retain(|key| !unprepared(key));
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::MAX_SIDE;
    use crate::viewer::view::View;

    const NATIVE: Level = Level { w: 512, h: 288 };

    fn demand(view: &View, compare: Compare, other_any_size: Option<bool>) -> Demand {
        let shown = |side, any_size| Shown { side, place: view.place(any_size, MAX_SIDE) };
        Demand {
            main: shown(Side::A, true),
            other: other_any_size.map(|any_size| shown(Side::B, any_size)),
            compare,
            native: NATIVE,
            fitted: view.fitted(),
            tile_side: 256,
            max_texture: 8192,
            focus: (0.5, 0.5),
        }
    }

    const NOTHING: fn(&Key) -> bool = |_| false;

    #[test]
    fn a_fitted_picture_is_one_decode() {
        let view = View::new(NATIVE, (640, 400));
        let level = Level { w: 640, h: 360 };
        assert_eq!(demand(&view, Compare::Off, None).wanted(NOTHING, NOTHING), [Key::Whole(Side::A, level)]);
        assert!(demand(&view, Compare::Off, None).wanted(|_| true, NOTHING).is_empty());
    }

    #[test]
    fn deep_zoom_asks_for_an_overview_then_what_is_global_then_the_visible_tiles() {
        let mut view = View::new(NATIVE, (640, 400));
        view.set_scale(16.0);
        let demand = demand(&view, Compare::Off, None);
        let level = Level { w: 8192, h: 4608 };
        let wanted = demand.wanted(NOTHING, NOTHING);
        assert_eq!(wanted[..2], [Key::Whole(Side::A, Level { w: 640, h: 360 }), Key::Prepare(Side::A, level)]);
        let visible = demand.main.place.visible;
        assert_eq!((visible.w, visible.h), (640, 400));
        for key in &wanted[2..] {
            let Key::Tile(Side::A, of, tile) = *key else { panic!("{key:?}") };
            let rect = tile.rect(of, 256);
            assert!(of == level && rect.x < visible.x + visible.w && visible.x < rect.x + rect.w);
        }
        assert!((6..=12).contains(&(wanted.len() - 2)), "{}", wanted.len());
        // prepared, and all tiles but one there
        let (last, whole) = (*wanted.last().unwrap(), Key::Whole(Side::A, level));
        assert_eq!(demand.wanted(|key| ![last, whole].contains(key), NOTHING), [last]);
        // all tiles there: nothing has to be prepared again
        let prepare = wanted[1];
        assert!(demand.wanted(|key| ![prepare, whole].contains(key), NOTHING).is_empty());
        // and no tiles where the whole is there anyway
        assert!(demand.wanted(|key| *key == whole, NOTHING).is_empty());
        // a level that cannot be prepared asks for no tiles of it
        assert_eq!(demand.wanted(NOTHING, |key| *key == prepare), wanted[..1]);
    }

    #[test]
    fn a_whole_level_that_was_refused_comes_in_tiles() {
        let view = View::new(NATIVE, (640, 400));
        let whole = Key::Whole(Side::A, Level { w: 640, h: 360 });
        let wanted = demand(&view, Compare::Off, None).wanted(NOTHING, |key| *key == whole);
        assert_eq!(wanted[0], Key::Prepare(Side::A, whole.level()));
        assert_eq!(wanted.len(), 1 + 3 * 2);
        let mut large = demand(&view, Compare::Off, None);
        large.max_texture = 600;
        assert!(matches!(large.pieces(large.main, NOTHING, NOTHING), Pieces::Tiles(_)));
    }

    #[test]
    fn comparing_asks_for_the_base_or_for_the_other_decoder() {
        let view = View::new(NATIVE, (640, 400));
        let level = Level { w: 640, h: 360 };
        let wanted = demand(&view, Compare::Lanczos, None).wanted(NOTHING, NOTHING);
        assert_eq!(wanted, [Key::Whole(Side::A, level), Key::Whole(Side::A, NATIVE)]);
        let wanted = demand(&view, Compare::Decoder, Some(true)).wanted(NOTHING, NOTHING);
        assert_eq!(wanted, [Key::Whole(Side::A, level), Key::Whole(Side::B, level)]);
        // a decoder of one size is asked for that
        let wanted = demand(&view, Compare::Decoder, Some(false)).wanted(NOTHING, NOTHING);
        assert_eq!(wanted, [Key::Whole(Side::A, level), Key::Whole(Side::B, NATIVE)]);
    }
}
