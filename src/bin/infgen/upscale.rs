//! `infgen upscale`: the paper's training-free extrapolation, L_n = E(I_{n-1}), I_n = D(L_n, size_n).

use std::path::Path;

use infgen::engine::{DecoderFacts, EncoderFacts, Form, Rows};
use infgen::image::{OutputFormat, RowFile};
use infgen::{Error, Latent, Result};
use serde_json::json;

use crate::args::UpscaleArgs;
use crate::decode::{Writer, check_apart, check_output, check_size};
use crate::encode::{open, sized};
use crate::run::{Run, for_all, weights};

/// Largest growth of a side in one round.
const MAX_STEP: f64 = 2.0;

pub fn upscale(run: &Run, args: &UpscaleArgs) -> Result<()> {
    let mut picture = run.stage("read", |_| open(&args.image))?;
    let own = picture.size();
    let target = match (args.size, args.scale) {
        (Some(size), _) => (size.width, size.height),
        (None, scale) => {
            let scale = scale.unwrap_or(1.0);
            let side = |length: usize| ((length as f64 * scale).round() as usize).max(1);
            (side(own.0), side(own.1))
        }
    };
    check_size(target.0, target.1)?;
    check_output(&args.output, target.0, target.1)?;
    check_apart(&args.output, &[Some(&args.image), args.weights.as_deref(), args.encoder.as_deref()])?;
    let engine = run.engine()?;
    let form = if OutputFormat::from_path(&args.output)?.is_float() { Form::Float } else { Form::Rgba8 };
    let load = || {
        let decoder = run.load_decoder(&engine, weights(args.weights.as_deref()))?;
        Ok((decoder, run.load_encoder(&engine, weights(args.encoder.as_deref()))?))
    };
    let (decoder, encoder) = load().map_err(|error| {
        engine.forget_decoder();
        for_all(error, || {
            let decoder = engine.plan_decoder(weights(args.weights.as_deref()))?;
            let encoder = engine.plan_encoder(weights(args.encoder.as_deref()))?;
            let mut least = 0;
            for_rounds(own, target, (decoder.facts(), encoder.facts()), |(w, h), latent, size, last| {
                let form = if last { form } else { Form::Float };
                least = least.max(encoder.least_memory(w, h)? + decoder.weights_bytes());
                least = least.max(decoder.least_memory(latent, size.0, size.1, form, false)? + encoder.weights_bytes());
                Ok(())
            })?;
            Ok(least)
        })
    })?;
    if !decoder.facts().any_size {
        let detail = format!("a {} has one output size only; upscaling needs an InfGen decoder", decoder.facts().model);
        return Err(Error::Invalid { what: "weights", detail });
    }
    if let (Some(from), Some(to)) = (encoder.facts().latent_space, decoder.facts().latent_space)
        && from != to
    {
        let detail =
            format!("encodes to the space `{}`, the decoder reads `{}`; name one of that space with --encoder", from.name(), to.name());
        return Err(Error::Invalid { what: "encoder", detail });
    }
    let step = encoder.facts().scale;
    let sizes = rounds(own, target, step);
    // All rounds, so that none is refused after others have run.
    let mut short = None;
    for_rounds(own, target, (decoder.facts(), encoder.facts()), |(w, h), latent, size, last| {
        for plan in [encoder.plan(w, h), decoder.plan(latent, size.0, size.1, if last { form } else { Form::Float })] {
            match plan {
                Err(Error::MemoryCeiling { needed, ceiling }) => short = Some((short.map_or(0, |(most, _)| most).max(needed), ceiling)),
                plan => drop(plan?),
            }
        }
        Ok(())
    })?;
    if let Some((needed, ceiling)) = short {
        return Err(Error::MemoryCeiling { needed, ceiling });
    }
    let settings = json!({ "image": args.image.file_name().map(|n| n.to_string_lossy()), "rounds": sizes });
    for (n, &size) in sizes.iter().enumerate() {
        let (w, h) = picture.size();
        run.say(&format!("round {} of {}: {w}x{h} to {}x{}", n + 1, sizes.len(), size.0, size.1));
        // The decoder's positions are relative, so the small stretch to the encoder's step is undone by decoding to `size`.
        picture = sized(picture, w.next_multiple_of(step), h.next_multiple_of(step))?;
        let latent = run.stage("encode", |observer| encoder.encode_rows(&*picture, None, observer))?;
        let writer = Writer {
            decoder: &decoder,
            size,
            region: None,
            metadata: vec![("Software", format!("infgen {}", env!("CARGO_PKG_VERSION"))), ("infgen", settings.to_string())],
        };
        if n + 1 == sizes.len() {
            run.stage("decode", |observer| writer.run(&latent, &args.output, observer))?;
        } else {
            // Between rounds the picture lies on the disk that the result goes to, which has room for it.
            let mut file = RowFile::create_in(args.output.parent().unwrap_or(Path::new("")), size.0, size.1)?;
            let mut sink = |_, rows: Rows| {
                let Rows::Float(mut values) = rows else { unreachable!("rows come in the form asked for") };
                values.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
                file.write(&values)
            };
            run.stage("decode", |observer| decoder.decode_rows(&latent, size.0, size.1, Form::Float, observer, &mut sink))?;
            picture = Box::new(file);
        }
    }
    let summary = json!({ "command": "upscale", "width": target.0, "height": target.1, "rounds": sizes });
    run.finish(&engine, &[&args.output], summary)
}

/// Calls `each` for every round with the size that is encoded, a latent of that size, the size that it is decoded to, and whether it is the last.
fn for_rounds(
    own: (usize, usize),
    target: (usize, usize),
    (decoder, encoder): (&DecoderFacts, &EncoderFacts),
    mut each: impl FnMut((usize, usize), &Latent, (usize, usize), bool) -> Result<()>,
) -> Result<()> {
    let (step, channels) = (encoder.scale, decoder.latent_channels);
    let sizes = rounds(own, target, step);
    let mut from = own;
    for (n, &size) in sizes.iter().enumerate() {
        let (w, h) = (from.0.next_multiple_of(step), from.1.next_multiple_of(step));
        let latent = Latent::new([1, channels, h / step, w / step], vec![0.0; channels * (h / step) * (w / step)])?;
        each((w, h), &latent, size, n + 1 == sizes.len())?;
        from = size;
    }
    Ok(())
}

/// Sizes of the rounds from `own` to `target`, planned backwards: halved, and rounded up to what the encoder takes, until no side
/// grows by more than [`MAX_STEP`].
fn rounds(own: (usize, usize), target: (usize, usize), step: usize) -> Vec<(usize, usize)> {
    let far = |size: (usize, usize)| size.0 as f64 > MAX_STEP * own.0 as f64 || size.1 as f64 > MAX_STEP * own.1 as f64;
    let half = |side: usize, own: usize| side.div_ceil(2).max(own.min(side)).next_multiple_of(step);
    let mut sizes = vec![target];
    while far(sizes[0]) {
        let next = (half(sizes[0].0, own.0), half(sizes[0].1, own.1));
        if next == sizes[0] {
            break;
        }
        sizes.insert(0, next);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_round_grows_a_side_by_more_than_two_and_the_last_is_exact() {
        assert_eq!(rounds((512, 512), (1024, 1024), 8), [(1024, 1024)]);
        assert_eq!(rounds((512, 512), (4096, 4096), 8), [(1024, 1024), (2048, 2048), (4096, 4096)]);
        assert_eq!(rounds((512, 512), (3072, 3072), 8), [(768, 768), (1536, 1536), (3072, 3072)]);
        assert_eq!(rounds((500, 300), (100, 60), 8), [(100, 60)]);
        for (own, target) in [((512, 512), (1025, 700)), ((37, 91), (3000, 100)), ((1, 1), (777, 3)), ((3, 5000), (9000, 5000))] {
            let sizes = rounds(own, target, 8);
            assert_eq!(sizes.last(), Some(&target));
            assert!(sizes[..sizes.len() - 1].iter().all(|size| size.0 % 8 == 0 && size.1 % 8 == 0), "{sizes:?}");
            let mut from = own;
            for size in sizes {
                // A picture below the encoder's step is stretched to it first.
                assert!(size.0 <= (2 * from.0).max(16) && size.1 <= (2 * from.1).max(16), "{from:?} {size:?}");
                from = size;
            }
        }
    }
}
