//! Pictures and masks on the host, as diffusers' `VaeImageProcessor` prepares them.

use crate::error::Result;
use crate::image::{Image, ResizeFilter};

/// `picture` at this size, untouched where it has it already.
pub(super) fn sized(picture: &Image, width: usize, height: usize) -> Result<Image> {
    if (picture.width(), picture.height()) == (width, height) {
        return Ok(picture.clone());
    }
    // Pillow resizes 8-bit pixels along one direction after the other.
    let in_8_bits = |picture: Image| Image::from_rgb8(picture.width(), picture.height(), &picture.to_rgb8());
    let rows = in_8_bits(picture.resize(width, picture.height(), ResizeFilter::Lanczos3)?)?;
    in_8_bits(rows.resize(width, height, ResizeFilter::Lanczos3)?)
}

/// Per pixel whether it may change: the mask's grey value (ITU-R 601 luma, as Pillow's) is half or more.
pub(super) fn binary(mask: &Image, width: usize, height: usize) -> Result<Vec<bool>> {
    let mask = sized(mask, width, height)?;
    let grey = |p: &[f32]| ((0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]) * 0.5 + 0.5) * 255.0;
    // Pillow's greys are whole numbers.
    Ok(mask.data().chunks_exact(3).map(|p| grey(p).round() / 255.0 >= 0.5).collect())
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
