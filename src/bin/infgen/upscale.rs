//! `infgen upscale`: the paper's training-free extrapolation, L_n = E(I_{n-1}), I_n = D(L_n, size_n).

use infgen::engine::MAX_SIDE;
use infgen::{Error, Image, Result};
use serde_json::json;

use crate::args::UpscaleArgs;
use crate::decode::{Writer, check_output};
use crate::encode::sized;
use crate::run::{Run, weights};

/// Largest growth of a side in one round.
const MAX_STEP: f64 = 2.0;

pub fn upscale(run: &Run, args: &UpscaleArgs) -> Result<()> {
    let mut picture = run.stage("read", |_| Image::open(&args.image))?;
    let own = (picture.width(), picture.height());
    let target = match (args.size, args.scale) {
        (Some(size), _) => (size.width, size.height),
        (None, scale) => {
            let scale = scale.unwrap_or(1.0);
            let side = |length: usize| ((length as f64 * scale).round() as usize).max(1);
            (side(own.0), side(own.1))
        }
    };
    if target.0 > MAX_SIDE || target.1 > MAX_SIDE {
        return Err(Error::Invalid { what: "size", detail: format!("{}x{}: each side must be at most {MAX_SIDE}", target.0, target.1) });
    }
    check_output(&args.output, target.0, target.1)?;
    let engine = run.engine()?;
    let decoder = run.stage("load", |_| engine.load_decoder(weights(args.weights.as_deref())))?;
    let encoder = run.stage("load", |_| engine.load_encoder(weights(args.encoder.as_deref())))?;
    if !decoder.facts().any_size {
        let detail = format!("a {} has one output size only; upscaling needs an InfGen decoder", decoder.facts().model);
        return Err(Error::Invalid { what: "weights", detail });
    }
    if let (Some(from), Some(to)) = (encoder.facts().latent_space, decoder.facts().latent_space)
        && from != to
    {
        let detail = format!("encodes to the space `{}`, the decoder reads `{}`", from.name(), to.name());
        return Err(Error::Invalid { what: "encoder", detail });
    }
    let sizes = rounds(own, target);
    let settings = json!({ "image": args.image.file_name().map(|n| n.to_string_lossy()), "rounds": sizes });
    for (n, &size) in sizes.iter().enumerate() {
        run.say(&format!("round {} of {}: {}x{} to {}x{}", n + 1, sizes.len(), picture.width(), picture.height(), size.0, size.1));
        // The decoder's positions are relative, so the small stretch to the encoder's step is undone by decoding to `size`.
        let step = encoder.facts().scale;
        let (w, h) = (picture.width().next_multiple_of(step), picture.height().next_multiple_of(step));
        let padded = sized(&picture, w, h)?;
        let latent = run.stage("encode", |observer| encoder.encode(&padded, None, observer))?;
        let writer = Writer {
            decoder: &decoder,
            size,
            region: None,
            metadata: vec![("Software", format!("infgen {}", env!("CARGO_PKG_VERSION"))), ("infgen", settings.to_string())],
        };
        if n + 1 == sizes.len() {
            run.stage("decode", |observer| writer.run(&latent, &args.output, observer))?;
        } else {
            let float = run.stage("decode", |observer| pollster::block_on(decoder.decode_async(&latent, size.0, size.1, observer)))?;
            let clamped = float.into_data().into_iter().map(|v| v.clamp(-1.0, 1.0)).collect();
            picture = Image::new(size.0, size.1, clamped)?;
        }
    }
    let summary = json!({ "command": "upscale", "width": target.0, "height": target.1, "rounds": sizes });
    run.finish(&engine, &[&args.output], summary);
    Ok(())
}

/// Sizes of the rounds from `own` to `target`: as few as grow no side by more than [`MAX_STEP`], evenly spaced.
fn rounds(own: (usize, usize), target: (usize, usize)) -> Vec<(usize, usize)> {
    let growth = (target.0 as f64 / own.0 as f64).max(target.1 as f64 / own.1 as f64);
    let count = (growth.ln() / MAX_STEP.ln() - 1e-9).ceil().max(1.0) as usize;
    let side = |own: usize, target: usize, n: usize| match n == count {
        true => target,
        false => (own as f64 * (target as f64 / own as f64).powf(n as f64 / count as f64)).round() as usize,
    };
    (1..=count).map(|n| (side(own.0, target.0, n), side(own.1, target.1, n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_round_grows_a_side_by_more_than_two_and_the_last_is_exact() {
        assert_eq!(rounds((512, 512), (1024, 1024)), [(1024, 1024)]);
        assert_eq!(rounds((512, 512), (4096, 4096)), [(1024, 1024), (2048, 2048), (4096, 4096)]);
        assert_eq!(rounds((500, 300), (100, 60)), [(100, 60)]);
        for (own, target) in [((512, 512), (1025, 700)), ((37, 91), (3000, 100)), ((1, 1), (777, 3))] {
            let sizes = rounds(own, target);
            assert_eq!(sizes.last(), Some(&target));
            let mut from = own;
            for size in sizes {
                // Rounding to whole pixels may pass the factor by half a pixel.
                assert!(size.0 as f64 <= 2.0 * from.0 as f64 + 1.0 && size.1 as f64 <= 2.0 * from.1 as f64 + 1.0, "{from:?} {size:?}");
                from = size;
            }
        }
    }
}
