//! Comparison of a plane with bounded values, naming the worst element.

use infgen::reference::Bounded;

/// Checks `got` (`[h, w, c]`, row-major) against `want`, element by element.
///
/// Returns the largest share of a bound that was used, or a description of the worst element.
pub fn compare(got: &[f32], want: &[Bounded], (h, w, c): (usize, usize, usize)) -> Result<f64, String> {
    if got.len() != want.len() || got.len() != h * w * c {
        return Err(format!("{} values, expected {} as [{h}, {w}, {c}]", got.len(), want.len()));
    }
    let mut worst = (0.0, 0);
    let mut outside = 0;
    for (i, (&g, v)) in got.iter().zip(want).enumerate() {
        let distance = (g as f64 - v.value).abs();
        // A NaN anywhere counts as infinitely wrong.
        let used = if distance <= v.bound {
            if v.bound == 0.0 { 0.0 } else { distance / v.bound }
        } else if distance.is_finite() && v.bound > 0.0 {
            distance / v.bound
        } else {
            f64::INFINITY
        };
        if used > 1.0 {
            outside += 1;
        }
        if used > worst.0 {
            worst = (used, i);
        }
    }
    let (used, i) = worst;
    if outside == 0 {
        return Ok(used);
    }
    let (row, column, channel) = (i / (w * c), i / c % w, i % c);
    Err(format!(
        "{outside} of {} elements outside their bound; worst is row {row}, column {column}, channel {channel} of [{h}, {w}, {c}]: \
         got {}, expected {} +- {:.3e} ({used:.1} times the bound)",
        got.len(),
        got[i],
        want[i].value,
        want[i].bound
    ))
}

/// Bit-exact equality, naming the first difference.
pub fn same_bits(a: &[f32], b: &[f32], c: usize) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{} values against {}", a.len(), b.len()));
    }
    match a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(i) => Err(format!("pixel {}, channel {}: {} against {}", i / c, i % c, a[i], b[i])),
    }
}
