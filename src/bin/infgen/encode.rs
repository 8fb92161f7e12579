//! `infgen encode`

use std::path::Path;

use infgen::image::{PngRows, ResizeFilter, RowSource, check_writable};
use infgen::{Image, Latent, Result};
use serde_json::json;

use crate::args::EncodeArgs;
use crate::decode::check_apart;
use crate::run::{Run, for_all, weights};

pub fn encode(run: &Run, args: &EncodeArgs) -> Result<()> {
    Latent::check_ending(&args.output)?;
    check_writable(&args.output)?;
    check_apart(&args.output, &[Some(&args.image), args.weights.as_deref()])?;
    let picture = run.stage("read", |_| open(&args.image))?;
    let engine = run.engine()?;
    let asked = args.size.map_or(picture.size(), |size| (size.width, size.height));
    // diffusers' VaeImageProcessor rounds down to the multiple, too.
    let fitted = |scale| (fit(asked.0, scale), fit(asked.1, scale));
    let least = || {
        let planned = engine.plan_encoder(weights(args.weights.as_deref()))?;
        let (width, height) = fitted(planned.facts().scale);
        planned.least_memory(width, height)
    };
    let encoder = run.load_encoder(&engine, weights(args.weights.as_deref())).map_err(|error| for_all(error, least))?;
    let scale = encoder.facts().scale;
    let (width, height) = fitted(scale);
    if (width, height) != asked {
        run.say(&format!("note: {}x{} becomes {width}x{height}, the encoder works in steps of {scale} pixels", asked.0, asked.1));
    }
    let picture = run.stage("resize", |_| sized(picture, width, height))?;
    let noise = args.sample.then(|| {
        let count = encoder.facts().latent_channels * (width / scale) * (height / scale);
        infgen::noise::torch_cpu_randn(args.seed, count)
    });
    let latent = run.stage("encode", |observer| encoder.encode_rows(&*picture, noise.as_deref(), observer))?;
    run.stage("write", |_| latent.save(&args.output))?;
    let summary =
        json!({ "command": "encode", "width": width, "height": height, "latent": latent.shape(), "model": encoder.facts().model });
    run.finish(&engine, &[&args.output], summary)
}

/// The multiple of `step` at or below `length`, at least one step.
fn fit(length: usize, step: usize) -> usize {
    (length / step * step).max(step)
}

/// A picture to encode, in memory or not.
pub type Picture = Box<dyn RowSource + Sync>;

/// Opens `path`; a PNG is read only when its rows are asked for.
pub fn open(path: &Path) -> Result<Picture> {
    Ok(match PngRows::open(path)? {
        Some(rows) => Box::new(rows),
        None => Box::new(Image::open(path)?),
    })
}

/// `picture` at this size, untouched where it has it already.
pub fn sized(picture: Picture, width: usize, height: usize) -> Result<Picture> {
    let (w, h) = picture.size();
    if (w, h) == (width, height) {
        return Ok(picture);
    }
    Ok(Box::new(Image::new(w, h, picture.rows(0..h)?)?.resize(width, height, ResizeFilter::Lanczos3)?))
}
