//! Host values to units and back.

use half::f16;

use super::tensor::Elem;

/// `data` (`[pixels, channels]` row-major) as units with channels padded to quads. f16 values beyond +-65504 saturate.
pub fn to_units(data: &[f32], channels: usize, elem: Elem) -> Vec<u8> {
    let padded = channels.div_ceil(4) * 4;
    let values =
        data.chunks_exact(channels.max(1)).flat_map(|pixel| pixel.iter().copied().chain(std::iter::repeat_n(0.0, padded - channels)));
    match elem {
        Elem::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Elem::Half => values.flat_map(|v| f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes()).collect(),
        Elem::Word => unreachable!("words are not converted"),
    }
}

/// The inverse of [`to_units`]: pad channels are dropped.
pub(crate) fn from_units(bytes: &[u8], channels: usize, elem: Elem) -> Vec<f32> {
    let padded = channels.div_ceil(4) * 4;
    let pixels = bytes.len() / (padded * if elem == Elem::F32 { 4 } else { 2 });
    let mut out = Vec::with_capacity(pixels * channels);
    match elem {
        Elem::F32 => {
            for pixel in bytes.chunks_exact(padded * 4) {
                out.extend(pixel.chunks_exact(4).take(channels).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        Elem::Half => {
            for pixel in bytes.chunks_exact(padded * 2) {
                out.extend(pixel.chunks_exact(2).take(channels).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()));
            }
        }
        Elem::Word => unreachable!("words are not converted"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_round_trip_and_pad_with_zero() {
        let data: Vec<f32> = (0..15).map(|i| i as f32 - 7.0).collect();
        for elem in [Elem::F32, Elem::Half] {
            let bytes = to_units(&data, 5, elem);
            assert_eq!(bytes.len() as u64, 3 * 2 * elem.bytes());
            assert_eq!(from_units(&bytes, 5, elem), data);
            let padded = from_units(&bytes, 8, elem);
            assert_eq!(&padded[5..8], [0.0; 3]);
        }
    }
}
