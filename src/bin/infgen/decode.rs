//! `infgen decode`

use std::path::{Path, PathBuf};

use infgen::engine::check_region;
use infgen::error::human_bytes;
use infgen::image::{OutputFormat, RowWriter, batch_path, check_writable};
use infgen::{Decoder, Image, Latent, Observer, Rect, Result};
use serde_json::json;

use crate::args::DecodeArgs;
use crate::run::{Run, weights};

/// Decodes one latent and writes the picture, or a rectangle of it, in the form that `output` asks for.
pub struct Writer<'a> {
    pub decoder: &'a Decoder,
    pub size: (usize, usize),
    pub region: Rect,
    pub metadata: Vec<(&'a str, String)>,
}

/// A picture before it is written.
pub enum Pixels {
    Float(Image),
    Rgb8(Vec<u8>),
}

impl Writer<'_> {
    /// The whole picture in the form that `output` will hold.
    pub fn decode(&self, latent: &Latent, output: &Path, observer: &Observer) -> Result<Pixels> {
        let (width, height) = self.size;
        match OutputFormat::from_path(output)?.is_float() {
            true => pollster::block_on(self.decoder.decode_async(latent, width, height, observer)).map(Pixels::Float),
            false => self.decoder.decode_rgb8(latent, width, height, observer).map(Pixels::Rgb8),
        }
    }

    /// Writes the region of `pixels`, row by row.
    pub fn write(&self, pixels: &Pixels, output: &Path) -> Result<()> {
        let Rect { x, y, w, h } = self.region;
        let metadata: Vec<(&str, &str)> = self.metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut file = RowWriter::create(output, w, h, &metadata)?;
        for row in y..y + h {
            let span = (row * self.size.0 + x) * 3..(row * self.size.0 + x + w) * 3;
            match pixels {
                Pixels::Float(image) => file.write_f32(&image.data()[span])?,
                Pixels::Rgb8(rgb) => file.write_rgb8(&rgb[span])?,
            }
        }
        file.finish()
    }
}

/// Everything about `output` that can be wrong before the work starts.
pub fn check_output(output: &Path, width: usize, height: usize) -> Result<()> {
    OutputFormat::from_path(output)?.check_size(width, height)?;
    check_writable(output)
}

pub fn decode(run: &Run, args: &DecodeArgs) -> Result<()> {
    let (width, height) = (args.size.width, args.size.height);
    let region = args.region.unwrap_or(Rect { x: 0, y: 0, w: width, h: height });
    check_region(region, width, height)?;
    check_output(&args.output, region.w, region.h)?;
    let batch = run.stage("read", |_| Latent::open(&args.latent))?;
    let engine = run.engine()?;
    let decoder = run.stage("load", |_| engine.load_decoder(weights(args.weights.as_deref())))?;
    let facts = decoder.facts();
    let settings = json!({
        "latent": args.latent.file_name().map(|name| name.to_string_lossy()),
        "decoder": args.weights.as_ref().map_or("builtin".into(), |path| path.display().to_string()),
        "size": format!("{width}x{height}"),
        "region": args.region.map(|r| format!("{},{},{}x{}", r.x, r.y, r.w, r.h)),
        "dtype": format!("{:?}", run.common.dtype).to_lowercase(),
    });
    let writer = Writer {
        decoder: &decoder,
        size: (width, height),
        region,
        metadata: vec![("Software", format!("infgen {}", env!("CARGO_PKG_VERSION"))), ("infgen", settings.to_string())],
    };
    let mut outputs: Vec<PathBuf> = Vec::new();
    for (index, latent) in (0..).map_while(|index| batch.select(index)).enumerate() {
        if index == 0 {
            let estimate = decoder.estimate(&latent, width, height)?;
            run.say(&format!(
                "decoding {}x{} latent to {width}x{height} with the {}: {:.1} GFLOP, {} of GPU memory",
                latent.width(),
                latent.height(),
                facts.model,
                estimate.flops as f64 * 1e-9,
                human_bytes(estimate.peak_bytes)
            ));
        }
        let output = if batch.batch() > 1 { batch_path(&args.output, index) } else { args.output.clone() };
        let pixels = run.stage("decode", |observer| writer.decode(&latent, &output, observer))?;
        run.stage("write", |_| writer.write(&pixels, &output))?;
        outputs.push(output);
    }
    let outputs: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
    let summary = json!({
        "command": "decode", "width": region.w, "height": region.h, "full_size": [width, height],
        "latent": batch.shape(), "model": facts.model,
    });
    run.finish(&engine, &outputs, summary);
    Ok(())
}
