//! Pictures and masks on the host, as diffusers' `VaeImageProcessor` prepares them.

use std::f64::consts::PI;

use crate::error::Result;
use crate::image::Image;

/// `picture` at this size, untouched where it has it already: Pillow's Lanczos filter on 8 bits, along rows and then along columns, in its own arithmetic.
/// (Pillow 13 takes columns first in some cases; earlier versions never did.)
///
/// Source: Pillow `src/libImaging/Resample.c`.
pub(super) fn sized(picture: &Image, width: usize, height: usize) -> Result<Image> {
    let (from_w, from_h) = (picture.width(), picture.height());
    if (from_w, from_h) == (width, height) {
        return Ok(picture.clone());
    }
    let mut pixels = picture.to_rgb8();
    if from_w != width {
        let taps = taps(from_w, width);
        pixels = pixels.chunks_exact(3 * from_w).flat_map(|row| taps.iter().flat_map(|tap| tap.apply(row, 3))).collect();
    }
    if from_h != height {
        pixels = taps(from_h, height).iter().flat_map(|tap| (0..width).flat_map(|x| tap.apply(&pixels[3 * x..], 3 * width))).collect();
    }
    Image::from_rgb8(width, height, &pixels)
}

/// Bits behind the point of Pillow's weights.
const PRECISION: u32 = 22;

/// What one pixel of a resized line is summed from.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

impl Tap {
    /// Three channels, of pixels `pitch` apart in `line`.
    fn apply(&self, line: &[u8], pitch: usize) -> [u8; 3] {
        [0, 1, 2].map(|channel| {
            let pixel = |(i, weight): (usize, &i32)| line[(self.first + i) * pitch + channel] as i32 * weight;
            let sum = (1 << (PRECISION - 1)) + self.weights.iter().enumerate().map(pixel).sum::<i32>();
            (sum >> PRECISION).clamp(0, 255) as u8
        })
    }
}

/// Lanczos with three lobes, from a line of `from` pixels to one of `to`.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    let lanczos = |x: f64| if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 };
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let tap = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - 3.0 * stretch + 0.5).max(0.0) as usize;
        let end = ((center + 3.0 * stretch + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end).map(|x| lanczos((x as f64 - center + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: f64| (weight / sum * (1 << PRECISION) as f64 + 0.5f64.copysign(weight / sum)) as i32;
        Tap { first, weights: weights.into_iter().map(whole).collect() }
    };
    (0..to).map(tap).collect()
}

/// Per pixel whether it may change: the mask's grey value, a whole number as in Pillow, is half or more.
pub(super) fn binary(mask: &Image, width: usize, height: usize) -> Result<Vec<bool>> {
    let grey = |p: &[u8]| (19595 * p[0] as u32 + 38470 * p[1] as u32 + 7471 * p[2] as u32 + 0x8000) >> 16;
    Ok(sized(mask, width, height)?.to_rgb8().chunks_exact(3).map(|p| grey(p) >= 128).collect())
}

/// The picture with what may change set to grey (0 between -1 and 1).
pub(super) fn masked(picture: &Image, mask: &[bool]) -> Result<Image> {
    let pixels = picture.data().chunks_exact(3).zip(mask);
    let data = pixels.flat_map(|(p, &open)| p.iter().map(move |&v| if open { 0.0 } else { v })).collect();
    Image::new(picture.width(), picture.height(), data)
}

/// The mask at the latent's size: the nearest pixel to the upper left, as `torch.nn.functional.interpolate` takes it.
pub(super) fn at_latent(mask: &[bool], width: usize, height: usize, scale: usize) -> Vec<f32> {
    let rows = (0..height / scale).flat_map(|y| (0..width / scale).map(move |x| y * scale * width + x * scale));
    rows.map(|at| mask[at] as u8 as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PILLOW: [(usize, usize, &[u8]); 3] = [
        (
            8,
            16,
            &[
                23, 198, 169, 42, 107, 29, 93, 142, 132, 141, 68, 138, 100, 110, 70, 71, 162, 46, 131, 209, 51, 207, 94, 109, 113, 122,
                173, 50, 216, 177, 197, 114, 103, 134, 80, 72, 33, 121, 45, 32, 166, 46, 140, 232, 83, 193, 113, 104, 133, 131, 156, 119,
                237, 230, 226,
            ],
        ),
        (
            13,
            5,
            &[
                46, 44, 92, 91, 140, 103, 189, 245, 182, 89, 143, 52, 221, 123, 156, 163, 193, 46, 181, 66, 38, 172, 12, 93, 102, 171, 45,
                88,
            ],
        ),
        (6, 9, &[27, 76, 147, 92, 147, 128, 82, 120, 132, 65, 182, 155, 212, 126, 74, 133, 153, 33, 136, 97, 107, 119, 71, 42]),
    ];

    /// Made by Pillow 13.0.0: `Image.fromarray(a).resize(size, Image.LANCZOS)`, every seventh byte.
    #[test]
    fn pictures_are_resized_as_pillow_does() {
        let bytes: Vec<u8> = (0..13 * 9 * 3).map(|i| (i * i * 7 % 251) as u8).collect();
        let picture = Image::from_rgb8(13, 9, &bytes).unwrap();
        for (width, height, want) in PILLOW {
            let got = sized(&picture, width, height).unwrap().to_rgb8();
            assert_eq!(got.into_iter().step_by(7).collect::<Vec<_>>(), want, "{width}x{height}");
        }
    }

    #[test]
    fn masks_are_cut_at_half_and_sampled_at_the_corner() {
        let grey = |v: u8| [v; 3];
        let bytes: Vec<u8> = [grey(0), grey(127), grey(128), grey(255), grey(255), grey(0), grey(0), grey(0)].concat();
        let mask = Image::from_rgb8(4, 2, &bytes).unwrap();
        let open = binary(&mask, 4, 2).unwrap();
        assert_eq!(open, [false, false, true, true, true, false, false, false]);
        assert_eq!(at_latent(&open, 4, 2, 2), [0.0, 1.0]);
        let picture = Image::new(4, 2, (0..24).map(|i| i as f32).collect()).unwrap();
        assert_eq!(masked(&picture, &open).unwrap().data()[3..9], [3.0, 4.0, 5.0, 0.0, 0.0, 0.0]);
    }
}
