//! The line between our decode and what it is compared with.

/// What is on the right of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compare {
    /// Nothing: no line.
    Off,
    /// The decode at native size, enlarged with Lanczos (three lobes).
    Lanczos,
    /// The same, enlarged with the bicubic kernel (Catmull-Rom).
    Bicubic,
    /// The other decoder's.
    Decoder,
    /// The picture that the latent was encoded from.
    Original,
}

impl Compare {
    /// What menus and labels call it.
    pub fn name(self) -> &'static str {
        match self {
            Compare::Off => "Nothing",
            Compare::Lanczos => "Lanczos",
            Compare::Bicubic => "Bicubic",
            Compare::Decoder => "Other decoder",
            Compare::Original => "Original picture",
        }
    }

    /// The next one that is `possible`, in the order of the menu.
    pub fn next(self, possible: impl Fn(Compare) -> bool) -> Compare {
        const ALL: [Compare; 5] = [Compare::Off, Compare::Lanczos, Compare::Bicubic, Compare::Decoder, Compare::Original];
        let at = ALL.iter().position(|&c| c == self).unwrap_or(0);
        (1..=ALL.len()).map(|step| ALL[(at + step) % ALL.len()]).find(|&c| c == Compare::Off || possible(c)).unwrap_or(Compare::Off)
    }
}

/// How near to the line the pointer grabs it, in points.
const GRAB: f64 = 7.0;

/// Where the line is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// Share of the canvas on its left, 0 to 1.
    at: f64,
}

impl Default for Split {
    fn default() -> Self {
        Split { at: 0.5 }
    }
}

impl Split {
    /// The line's column on a canvas `width` pixels wide, 0 to `width`: left of it is A.
    pub fn column(&self, width: usize) -> usize {
        ((width as f64 * self.at).round() as usize).min(width)
    }

    /// Whether the pointer at `x` is on the line; all in pixels, `points` pixels a point.
    pub fn is_near(&self, x: f64, width: usize, points: f64) -> bool {
        (x - self.column(width) as f64).abs() <= GRAB * points
    }

    /// Moves it to the pixel column `x`.
    pub fn drag(&mut self, x: f64, width: usize) {
        if width > 0 && x.is_finite() {
            self.at = (x / width as f64).clamp(0.0, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_follows_the_pointer_stays_on_the_canvas_and_keeps_its_share() {
        let mut split = Split::default();
        assert_eq!(split.column(640), 320);
        assert!(split.is_near(326.0, 640, 1.0) && !split.is_near(330.0, 640, 1.0) && split.is_near(330.0, 640, 2.0));
        split.drag(160.0, 640);
        assert_eq!((split.column(640), split.column(1000)), (160, 250));
        split.drag(-5.0, 640);
        assert_eq!(split.column(640), 0);
        split.drag(9999.0, 640);
        assert_eq!(split.column(640), 640);
        split.drag(f64::NAN, 640);
        split.drag(5.0, 0);
        assert_eq!(split.column(640), 640);
    }

    #[test]
    fn cycling_skips_what_is_not_there() {
        let possible = |c| !matches!(c, Compare::Decoder | Compare::Original);
        let mut seen = vec![Compare::Off];
        for _ in 0..3 {
            seen.push(seen.last().unwrap().next(possible));
        }
        assert_eq!(seen, [Compare::Off, Compare::Lanczos, Compare::Bicubic, Compare::Off]);
        assert_eq!(Compare::Bicubic.next(|_| true), Compare::Decoder);
        assert_eq!(Compare::Original.next(|_| true), Compare::Off);
    }
}
