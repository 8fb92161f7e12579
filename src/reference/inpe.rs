//! Points on the unit sphere and their Fourier features (InfGen, arXiv:2509.10441, implicit neural positional embedding).

use super::{Bounded, ULP};

/// `(cos lat sin lon, sin lat, cos lat cos lon)` of the centre of cell (`row`, `column`) of a `grid` of (rows, columns),
/// `lon = lon_span (x - 1/2)`, `lat = lat_span (y - 1/2)`.
pub fn sphere_point((row, column): (usize, usize), grid: (usize, usize), lon_span: f64, lat_span: f64) -> [f64; 3] {
    let lon = lon_span * ((column as f64 + 0.5) / grid.1 as f64 - 0.5);
    let lat = lat_span * ((row as f64 + 0.5) / grid.0 as f64 - 0.5);
    [lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()]
}

/// `[cos(B p), sin(B p)]` with `b` `[m, 3]`. In f32 the point is good to a few ulp of 1, which `|B|` magnifies.
pub fn fourier_features(b: &[f64], point: [f64; 3]) -> Vec<Bounded> {
    let angle = |row: &[f64]| row.iter().zip(point).map(|(b, p)| b * p).sum::<f64>();
    let slack = |row: &[f64]| 4e-7 + 5.0 * ULP * row.iter().map(|b| b.abs()).sum::<f64>();
    let rows = || b.chunks_exact(3);
    let cosines = rows().map(|row| Bounded { value: angle(row).cos(), bound: slack(row) });
    let sines = rows().map(|row| Bounded { value: angle(row).sin(), bound: slack(row) });
    cosines.chain(sines).collect()
}
