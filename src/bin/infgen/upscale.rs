//! `infgen upscale`: the paper's training-free extrapolation, L_n = E(I_{n-1}), I_n = D(L_n, size_n).

use std::path::Path;

use infgen::engine::{DecoderFacts, EncoderFacts, Form, Rows};
use infgen::image::RowFile;
use infgen::weights::Weights;
use infgen::weights::recognise::{Recognised, recognise};
use infgen::{Error, Latent, Result};
use serde_json::json;

use crate::args::UpscaleArgs;
use crate::decode::{Writer, check_apart, check_output, check_size, form_of};
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
    let form = form_of(&args.output)?;
    let of_encoder = encoder_file(args)?;
    let load = || {
        let decoder = run.load_decoder(&engine, weights(args.weights.as_deref()))?;
        Ok((decoder, run.load_encoder(&engine, weights(of_encoder))?))
    };
    let (decoder, encoder) = load().map_err(|error| {
        engine.forget_decoder();
        for_all(error, || {
            let decoder = engine.plan_decoder(weights(args.weights.as_deref()))?;
            let encoder = engine.plan_encoder(weights(of_encoder))?;
            rounds(own, target, form, decoder.facts(), encoder.facts())?.iter().try_fold(0, |least, round| {
                let (latent, (width, height)) = (&round.latent, round.size);
                let encode = encoder.least_memory(round.encoded.0, round.encoded.1)? + decoder.weights_bytes();
                let decode = decoder.least_memory(latent, width, height, round.form, false)? + encoder.weights_bytes();
                Ok(encode.max(decode).max(least))
            })
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
    let (given, taken) = (encoder.facts().latent_channels, decoder.facts().latent_channels);
    if given != taken {
        let detail = format!("gives latents of {given} channels, the decoder reads {taken}; name another with --encoder");
        return Err(Error::Invalid { what: "encoder", detail });
    }
    let rounds = rounds(own, target, form, decoder.facts(), encoder.facts())?;
    // All rounds, so that none is refused after others have run.
    let mut short = None;
    for Round { encoded, latent, size, form } in &rounds {
        for plan in [encoder.plan(encoded.0, encoded.1), decoder.plan(latent, size.0, size.1, *form)] {
            match plan {
                Err(Error::MemoryCeiling { needed, ceiling }) => short = Some((short.map_or(0, |(most, _)| most).max(needed), ceiling)),
                plan => drop(plan?),
            }
        }
    }
    if let Some((needed, ceiling)) = short {
        return Err(Error::MemoryCeiling { needed, ceiling });
    }
    let sizes: Vec<(usize, usize)> = rounds.iter().map(|round| round.size).collect();
    let settings = json!({ "image": args.image.file_name().map(|n| n.to_string_lossy()), "rounds": sizes });
    for (n, &Round { encoded, size, .. }) in rounds.iter().enumerate() {
        let (w, h) = picture.size();
        run.say(&format!("round {} of {}: {w}x{h} to {}x{}", n + 1, sizes.len(), size.0, size.1));
        // The decoder's positions are relative, so the small stretch to the encoder's step is undone by decoding to `size`.
        picture = sized(picture, encoded.0, encoded.1)?;
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

/// The encoder that was named, or the one that lies beside an any-size decoder.
fn encoder_file(args: &UpscaleArgs) -> Result<Option<&Path>> {
    let (None, Some(decoder)) = (&args.encoder, &args.weights) else { return Ok(args.encoder.as_deref()) };
    match recognise(&Weights::open(decoder)?)? {
        Recognised::Infd { config, .. } if config.encoder => Ok(Some(decoder)),
        _ => Ok(None),
    }
}

/// One encode and the decode of its latent.
struct Round {
    /// Size of the picture that is encoded.
    encoded: (usize, usize),
    /// Zeros, of the size that the encoder gives.
    latent: Latent,
    /// Size that it is decoded to.
    size: (usize, usize),
    /// What the decode gives.
    form: Form,
}

/// The rounds from `own` to `target`, the last of them in `form`.
fn rounds(own: (usize, usize), target: (usize, usize), form: Form, decoder: &DecoderFacts, encoder: &EncoderFacts) -> Result<Vec<Round>> {
    let (step, channels) = (encoder.scale, decoder.latent_channels);
    let sizes = sizes(own, target, step);
    let from = std::iter::once(own).chain(sizes.iter().copied());
    let round = |((w, h), &size): ((usize, usize), &(usize, usize))| {
        let encoded = (w.next_multiple_of(step), h.next_multiple_of(step));
        let (lw, lh) = (encoded.0 / step, encoded.1 / step);
        let latent = Latent::new([1, channels, lh, lw], vec![0.0; channels * lh * lw])?;
        Ok(Round { encoded, latent, size, form: if size == target { form } else { Form::Float } })
    };
    from.zip(&sizes).map(round).collect()
}

/// Sizes of the rounds from `own` to `target`, planned backwards: halved, and rounded up to what the encoder takes, until no side
/// grows by more than [`MAX_STEP`].
fn sizes(own: (usize, usize), target: (usize, usize), step: usize) -> Vec<(usize, usize)> {
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
        assert_eq!(sizes((512, 512), (1024, 1024), 8), [(1024, 1024)]);
        assert_eq!(sizes((512, 512), (4096, 4096), 8), [(1024, 1024), (2048, 2048), (4096, 4096)]);
        assert_eq!(sizes((512, 512), (3072, 3072), 8), [(768, 768), (1536, 1536), (3072, 3072)]);
        assert_eq!(sizes((500, 300), (100, 60), 8), [(100, 60)]);
        for (own, target) in [((512, 512), (1025, 700)), ((37, 91), (3000, 100)), ((1, 1), (777, 3)), ((3, 5000), (9000, 5000))] {
            let sizes = sizes(own, target, 8);
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
