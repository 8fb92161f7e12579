//! torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False).

use super::{Bounded, TINY, ULP};

/// `x` (`[h, w, c]`) at the centres of the cells of a `rows x columns` grid over the same area; edges are clamped.
pub fn resample_bilinear(x: &[f64], (h, w, c): (usize, usize, usize), rows: usize, columns: usize) -> Vec<Bounded> {
    let mut y = Vec::with_capacity(rows * columns * c);
    for i in 0..rows {
        for j in 0..columns {
            let v = ((i as f64 + 0.5) * h as f64 / rows as f64 - 0.5).clamp(0.0, (h - 1) as f64);
            let u = ((j as f64 + 0.5) * w as f64 / columns as f64 - 0.5).clamp(0.0, (w - 1) as f64);
            let (i0, j0) = (v as usize, u as usize);
            let (i1, j1) = ((i0 + 1).min(h - 1), (j0 + 1).min(w - 1));
            let (fv, fu) = (v - i0 as f64, u - j0 as f64);
            for channel in 0..c {
                let at = |i: usize, j: usize| x[(i * w + j) * c + channel];
                let corners = [at(i0, j0), at(i0, j1), at(i1, j0), at(i1, j1)];
                let top = corners[0] * (1.0 - fu) + corners[1] * fu;
                let bottom = corners[2] * (1.0 - fu) + corners[3] * fu;
                // A coordinate near a pixel may fall on its other side: the neighbours there count as well.
                let near = |p: usize, n: usize| p.saturating_sub(1)..(p + 3).min(n);
                let mut largest = 0.0f64;
                for ii in near(i0, h) {
                    for jj in near(j0, w) {
                        largest = largest.max(at(ii, jj).abs());
                    }
                }
                let coordinate = 4.0 * ULP * (v + u + 2.0);
                let bound = 2.0 * largest * coordinate + 8.0 * largest * ULP + TINY;
                y.push(Bounded { value: top * (1.0 - fv) + bottom * fv, bound });
            }
        }
    }
    y
}
