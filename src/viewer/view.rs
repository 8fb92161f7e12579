//! Where the picture lies on the canvas: zoom, pan, and which decode is shown. In physical pixels; knows no window.

use crate::engine::{MAX_SIDE, Rect};

/// The size of one decode of the whole picture, in pixels. At rest a pixel of it is a pixel of the screen, unless
/// [`Placement::magnified`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Level {
    /// Width.
    pub w: usize,
    /// Height.
    pub h: usize,
}

impl Level {
    /// Pixels.
    pub fn pixels(self) -> usize {
        self.w * self.h
    }
}

/// What decides the zoom when the canvas changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The whole picture, as large as it fits, in its own shape.
    Fit,
    /// The whole picture in the shape of the canvas: a decode of exactly its size.
    Fill,
    /// What the user zoomed to.
    Free,
}

/// Rungs of the zoom ladder in one doubling. Wheel and keys stop at these, so that a zoom level that is come back to is
/// a decode that is cached.
const RUNGS: f64 = 4.0;

/// Largest side of a screen pixel's picture pixel.
const MAX_MAGNIFICATION: f64 = 64.0;

/// Smallest long side of the shown picture, in pixels.
const MIN_SHOWN: f64 = 16.0;

/// Zoom and pan.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Size at 100 %: the latent's size times the decoder's scale.
    native: Level,
    /// Size of the canvas.
    canvas: (f64, f64),
    mode: Mode,
    /// Screen pixels a native pixel.
    scale: (f64, f64),
    /// Point of the picture, 0 to 1, in the middle of the canvas.
    centre: (f64, f64),
}

/// A view on the canvas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The decode to show.
    pub level: Level,
    /// Screen position of the picture's corner, from the canvas' corner: whole pixels.
    pub x: f64,
    /// See `x`.
    pub y: f64,
    /// Size on the screen: the level's own unless it is magnified.
    pub w: f64,
    /// See `w`.
    pub h: f64,
    /// The rectangle of the level that the canvas shows; empty (0 wide or high) if none.
    pub visible: Rect,
}

impl Placement {
    /// Whether the zoom went beyond the largest decode: its pixels are then enlarged, nearest.
    pub fn magnified(&self) -> bool {
        self.w > self.level.w as f64 + 0.5 || self.h > self.level.h as f64 + 0.5
    }

    /// The pixel of the level under a position on the canvas.
    pub fn pixel(&self, x: f64, y: f64) -> Option<(usize, usize)> {
        let u = (x - self.x) / self.w * self.level.w as f64;
        let v = (y - self.y) / self.h * self.level.h as f64;
        let inside = u >= 0.0 && v >= 0.0 && u < self.level.w as f64 && v < self.level.h as f64;
        inside.then_some((u as usize, v as usize))
    }
}

impl View {
    /// A picture of `native` size, fitted.
    pub fn new(native: Level, canvas: (usize, usize)) -> View {
        let canvas = (canvas.0 as f64, canvas.1 as f64);
        let mut view = View { native, canvas, mode: Mode::Fit, scale: (1.0, 1.0), centre: (0.5, 0.5) };
        view.refit();
        view
    }

    /// Size at 100 %.
    pub fn native(&self) -> Level {
        self.native
    }

    /// The same place in a picture of another native size.
    pub fn set_native(&mut self, native: Level) {
        self.scale.0 *= self.native.w as f64 / native.w as f64;
        self.scale.1 *= self.native.h as f64 / native.h as f64;
        self.native = native;
        self.refit();
    }

    /// What the zoom follows.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Screen pixels a native pixel, across.
    pub fn scale(&self) -> f64 {
        self.scale.0
    }

    /// The window was resized.
    pub fn set_canvas(&mut self, w: usize, h: usize) {
        self.canvas = (w as f64, h as f64);
        self.refit();
    }

    /// Shows the whole picture.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.refit();
    }

    /// Sets the zoom, keeping the middle.
    pub fn set_scale(&mut self, scale: f64) {
        self.mode = Mode::Free;
        self.scale = (scale, scale);
        self.limit();
    }

    /// Zooms by `factor`, keeping what is at `at` on the canvas.
    pub fn zoom(&mut self, factor: f64, at: (f64, f64)) {
        if !factor.is_finite() || factor <= 0.0 {
            return;
        }
        let (w, h) = self.shown();
        let from_middle = (at.0 - self.canvas.0 / 2.0, at.1 - self.canvas.1 / 2.0);
        let point = (self.centre.0 + from_middle.0 / w, self.centre.1 + from_middle.1 / h);
        self.mode = Mode::Free;
        self.scale = (self.scale.0 * factor, self.scale.1 * factor);
        self.limit_scale();
        let (w, h) = self.shown();
        self.centre = (point.0 - from_middle.0 / w, point.1 - from_middle.1 / h);
        self.limit();
    }

    /// Zooms to the rung of the ladder `steps` away: up if positive.
    pub fn step(&mut self, steps: i32, at: (f64, f64)) {
        if steps == 0 {
            return;
        }
        let rung = self.scale.0.log2() * RUNGS;
        let start = if steps > 0 { (rung + 1e-6).floor() } else { (rung - 1e-6).ceil() };
        let target = ((start + f64::from(steps)) / RUNGS).exp2();
        self.zoom(target / self.scale.0, at);
    }

    /// Moves the picture by so many screen pixels.
    pub fn pan(&mut self, dx: f64, dy: f64) {
        let (w, h) = self.shown();
        self.centre = (self.centre.0 - dx / w, self.centre.1 - dy / h);
        self.limit();
    }

    /// Where everything is. `any_size`: the decoder follows the zoom; else there is the native size only.
    /// `max_side`: longest side that can be decoded.
    pub fn place(&self, any_size: bool, max_side: usize) -> Placement {
        let (mut w, mut h) = self.shown();
        let level = if any_size { level_of((w, h), max_side) } else { self.native };
        if any_size && w.max(h).round() <= max_side.min(MAX_SIDE) as f64 {
            (w, h) = (level.w as f64, level.h as f64);
        }
        let x = (self.canvas.0 / 2.0 - self.centre.0 * w).round();
        let y = (self.canvas.1 / 2.0 - self.centre.1 * h).round();
        let span = |start: f64, length: f64, canvas: f64, level: usize| {
            let unit = level as f64 / length;
            let from = ((-start) * unit).floor().clamp(0.0, level as f64);
            let to = ((canvas - start) * unit).ceil().clamp(from, level as f64);
            (from as usize, (to - from) as usize)
        };
        let (left, wide) = span(x, w, self.canvas.0, level.w);
        let (top, high) = span(y, h, self.canvas.1, level.h);
        Placement { level, x, y, w, h, visible: Rect { x: left, y: top, w: wide, h: high } }
    }

    /// The level that shows the whole picture on this canvas.
    pub fn fitted(&self) -> Level {
        let mut view = self.clone();
        if view.mode != Mode::Fill {
            view.set_mode(Mode::Fit);
        }
        level_of(view.shown(), MAX_SIDE)
    }

    fn shown(&self) -> (f64, f64) {
        ((self.native.w as f64 * self.scale.0).max(1.0), (self.native.h as f64 * self.scale.1).max(1.0))
    }

    fn refit(&mut self) {
        let across = self.canvas.0.max(1.0) / self.native.w as f64;
        let down = self.canvas.1.max(1.0) / self.native.h as f64;
        match self.mode {
            Mode::Fit => self.scale = (across.min(down), across.min(down)),
            Mode::Fill => self.scale = (across, down),
            Mode::Free => return self.limit(),
        }
        self.centre = (0.5, 0.5);
    }

    fn limit_scale(&mut self) {
        let longest = (self.native.w as f64 * self.scale.0).max(self.native.h as f64 * self.scale.1);
        let most = (MAX_SIDE as f64).max(self.native.w.max(self.native.h) as f64) * MAX_MAGNIFICATION;
        let factor = longest.clamp(MIN_SHOWN, most) / longest;
        self.scale = (self.scale.0 * factor, self.scale.1 * factor);
    }

    fn limit(&mut self) {
        self.limit_scale();
        let (w, h) = self.shown();
        let axis = |centre: f64, shown: f64, canvas: f64| {
            let margin = canvas / 2.0 / shown;
            if margin >= 0.5 { 0.5 } else { centre.clamp(margin, 1.0 - margin) }
        };
        self.centre = (axis(self.centre.0, w, self.canvas.0), axis(self.centre.1, h, self.canvas.1));
    }
}

/// The decode that shows a picture this large, each side at least 1 and at most `max_side`, in the same shape.
fn level_of((w, h): (f64, f64), max_side: usize) -> Level {
    let most = max_side.min(MAX_SIDE) as f64;
    let factor = (most / w.max(h).round()).min(1.0);
    let side = |length: f64| ((length * factor).round() as usize).clamp(1, most as usize);
    Level { w: side(w), h: side(h) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: Level = Level { w: 512, h: 288 };

    #[test]
    fn a_fitted_picture_is_decoded_at_exactly_the_pixels_it_covers() {
        let view = View::new(SAMPLE, (1280, 800));
        let place = view.place(true, MAX_SIDE);
        assert_eq!(place.level, Level { w: 1280, h: 720 });
        assert_eq!((place.x, place.y, place.w, place.h), (0.0, 40.0, 1280.0, 720.0));
        assert_eq!(place.visible, Rect { x: 0, y: 0, w: 1280, h: 720 });
        let mut view = View::new(SAMPLE, (321, 173));
        assert_eq!(view.place(true, MAX_SIDE).level, Level { w: 308, h: 173 });
        view.set_mode(Mode::Fill);
        assert_eq!(view.place(true, MAX_SIDE).level, Level { w: 321, h: 173 });
        view.set_canvas(77, 400);
        assert_eq!(view.place(true, MAX_SIDE).level, Level { w: 77, h: 400 });
    }

    #[test]
    fn the_ladder_returns_to_the_same_levels() {
        let mut view = View::new(SAMPLE, (320, 200));
        view.set_scale(1.0);
        let start = view.place(true, MAX_SIDE).level;
        assert_eq!(start, SAMPLE);
        for steps in [1, 1, 2, -3, 1, -2] {
            view.step(steps, (100.0, 50.0));
        }
        assert_eq!(view.place(true, MAX_SIDE).level, start);
        view.step(4, (0.0, 0.0));
        assert_eq!(view.place(true, MAX_SIDE).level, Level { w: 1024, h: 576 });
        // from between two rungs, one step goes to the next one
        view.set_scale(1.1);
        view.step(1, (0.0, 0.0));
        assert!((view.scale() - 2f64.powf(0.25)).abs() < 1e-9);
        view.set_scale(1.1);
        view.step(-1, (0.0, 0.0));
        assert!((view.scale() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn beyond_the_largest_decode_pixels_grow() {
        let mut view = View::new(SAMPLE, (320, 200));
        view.set_scale(64.0);
        let place = view.place(true, MAX_SIDE);
        assert_eq!(place.level, Level { w: 16384, h: 9216 });
        assert!(place.magnified() && (place.w - 32768.0).abs() < 1e-6);
        assert!(place.visible.w <= 161 && place.visible.h <= 101, "{place:?}");
        view.set_scale(32.0);
        assert!(!view.place(true, MAX_SIDE).magnified());
        // a ceiling that the device sets works the same
        let place = view.place(true, 2048);
        assert_eq!(place.level, Level { w: 2048, h: 1152 });
        assert!(place.magnified());
    }

    #[test]
    fn a_decoder_of_one_size_is_shown_enlarged_or_reduced() {
        let mut view = View::new(SAMPLE, (320, 200));
        let place = view.place(false, MAX_SIDE);
        assert_eq!(place.level, SAMPLE);
        assert!(!place.magnified() && place.w == 320.0);
        view.set_scale(4.0);
        assert!(view.place(false, MAX_SIDE).magnified());
    }

    #[test]
    fn pixels_under_the_cursor() {
        let view = View::new(SAMPLE, (640, 400));
        let place = view.place(true, MAX_SIDE);
        assert_eq!(place.pixel(0.5, 20.5), Some((0, 0)));
        assert_eq!(place.pixel(639.9, 379.9), Some((639, 359)));
        assert_eq!(place.pixel(5.0, 19.9), None);
        assert_eq!(place.pixel(5.0, 380.0), None);
    }

    proptest! {
        #[test]
        fn zoom_keeps_the_point_under_the_cursor(
            factor in 1.01f64..40.0, x in 0.0f64..1280.0, y in 0.0f64..720.0, before in 1.0f64..4.0
        ) {
            let mut view = View::new(Level { w: 640, h: 360 }, (1280, 720));
            view.zoom(before, (300.0, 200.0));
            let old = view.place(true, MAX_SIDE);
            let point = ((x - old.x) / old.w, (y - old.y) / old.h);
            view.zoom(factor, (x, y));
            let new = view.place(true, MAX_SIDE);
            let moved = ((point.0 * new.w + new.x - x).abs(), (point.1 * new.h + new.y - y).abs());
            // half a pixel of rounding before, enlarged, and one after
            let room = 1.0 + factor;
            prop_assert!(moved.0 <= room && moved.1 <= room, "{moved:?}");
        }

        #[test]
        fn any_view_is_within_its_bounds(
            nw in 1usize..3000, nh in 1usize..3000, cw in 1usize..4000, ch in 1usize..4000,
            acts in proptest::collection::vec((0u8..6, -50.0f64..50.0, 0.0f64..1.0, 0.0f64..1.0), 0..12), any_size: bool
        ) {
            let mut view = View::new(Level { w: nw, h: nh }, (cw, ch));
            for (act, amount, u, v) in acts {
                let at = (u * cw as f64, v * ch as f64);
                match act {
                    0 => view.zoom(amount.exp(), at),
                    1 => view.step(amount as i32, at),
                    2 => view.pan(amount * 100.0, -amount * 37.0),
                    3 => view.set_mode(if amount > 0.0 { Mode::Fit } else { Mode::Fill }),
                    4 => view.set_scale(amount.abs() + 0.01),
                    _ => view.set_canvas((u * 3000.0) as usize, (v * 3000.0) as usize),
                }
                let place = view.place(any_size, MAX_SIDE);
                let Placement { level, x, y, w, h, visible } = place;
                prop_assert!(level.w >= 1 && level.h >= 1 && level.w <= MAX_SIDE && level.h <= MAX_SIDE);
                prop_assert!(x.is_finite() && y.is_finite() && w >= 1.0 && h >= 1.0, "{place:?}");
                prop_assert!(x.fract() == 0.0 && y.fract() == 0.0);
                prop_assert!(visible.x + visible.w <= level.w && visible.y + visible.h <= level.h);
                if any_size && !place.magnified() {
                    prop_assert_eq!((w, h), (level.w as f64, level.h as f64));
                }
            }
        }
    }
}
