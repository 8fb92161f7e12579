//! torch.nn.functional.interpolate, align_corners=False: "bilinear" without antialias, "bicubic" with.

use super::{Bounded, TINY, ULP, gamma};

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

/// `x` (`[h, w, c]`) at `rows x columns`, bicubic (a = -1/2): the kernel is stretched where the picture is reduced, and weights of pixels inside sum to 1.
pub fn resample_bicubic(x: &[f64], (h, w, c): (usize, usize, usize), rows: usize, columns: usize) -> Vec<Bounded> {
    let weights = |i: usize, from: usize, to: usize| -> Vec<(usize, f64)> {
        let scale = from as f64 / to as f64;
        let (centre, stretch) = ((i as f64 + 0.5) * scale, scale.max(1.0));
        let near = (0..from).map(|j| (j, (j as f64 + 0.5 - centre).abs() / stretch)).filter(|(_, d)| *d < 2.0);
        let cubic = |d: f64| if d < 1.0 { (1.5 * d - 2.5) * d * d + 1.0 } else { ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0 };
        let all: Vec<_> = near.map(|(j, d)| (j, cubic(d))).collect();
        let total: f64 = all.iter().map(|(_, weight)| weight).sum();
        all.into_iter().map(|(j, weight)| (j, weight / total)).collect()
    };
    let mut y = Vec::with_capacity(rows * columns * c);
    for i in 0..rows {
        let down = weights(i, h, rows);
        for j in 0..columns {
            let across = weights(j, w, columns);
            for channel in 0..c {
                let taps = || down.iter().flat_map(|&(ii, a)| across.iter().map(move |&(jj, b)| (x[(ii * w + jj) * c + channel], a * b)));
                let centre = |k: usize, from: usize, to: usize| (k as f64 + 0.5) * from as f64 / to as f64;
                // What the position is off by moves the weights of an axis by less than 3 times that in all, and as much what they are divided by.
                let position = 4.0 * ULP * (centre(i, h, rows) + centre(j, w, columns) + 2.0);
                let largest = taps().map(|(value, _)| value.abs()).fold(0.0, f64::max);
                let bound = largest * (8.0 * position + 2.0 * gamma(down.len() * across.len() + 16)) + TINY;
                y.push(Bounded { value: taps().map(|(value, weight)| value * weight).sum(), bound });
            }
        }
    }
    y
}
