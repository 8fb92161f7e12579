//! `infgen decode`

use std::ops::Range;
use std::path::{Path, PathBuf};

use infgen::engine::{Form, MAX_SIDE, Rows, check_region, rgb8};
use infgen::error::human_bytes;
use infgen::image::{OutputFormat, RowWriter, batch_path, check_writable};
use infgen::{Decoder, Error, Latent, Observer, Rect, Result};
use serde_json::json;

use crate::args::DecodeArgs;
use crate::run::{Run, for_all, weights};

/// Decodes one latent and writes the picture, or a rectangle of it, in the form that `output` asks for.
pub struct Writer<'a> {
    pub decoder: &'a Decoder,
    pub size: (usize, usize),
    /// A rectangle, or the whole picture.
    pub region: Option<Rect>,
    pub metadata: Vec<(&'a str, String)>,
}

impl Writer<'_> {
    /// Rows are written as they come, so the picture is never whole in memory where the format can be streamed.
    pub fn run(&self, latent: &Latent, output: &Path, observer: &Observer) -> Result<()> {
        let (width, height) = self.size;
        let whole = Rect { x: 0, y: 0, w: width, h: height };
        let metadata: Vec<(&str, &str)> = self.metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let Rect { w, h, .. } = self.region.unwrap_or(whole);
        let mut file = RowWriter::create(output, w, h, &metadata)?;
        let form = form_of(output)?;
        match self.region {
            None => {
                let mut sink = |_: Range<usize>, rows: Rows| match rows {
                    Rows::Float(values) => file.write_f32(&values),
                    Rows::Rgba8(words) => file.write_rgb8(&rgb8(&words).collect::<Vec<_>>()),
                    Rows::Picture(_) => unreachable!("only programs with a window ask for textures"),
                };
                self.decoder.decode_rows(latent, width, height, form, observer, &mut sink)?;
            }
            Some(rect) => pollster::block_on(async {
                let decoding = self.decoder.prepare_async(latent, width, height, &observer.part(0.0, 0.9)).await?;
                let observer = observer.part(0.9, 0.1);
                match form {
                    Form::Float => file.write_f32(decoding.region_async(rect, &observer).await?.data()),
                    _ => file.write_rgb8(&decoding.region_rgb8_async(rect, &observer).await?),
                }
            })?,
        }
        file.finish()
    }
}

/// What of a decode a file with this ending holds.
pub fn form_of(output: &Path) -> Result<Form> {
    Ok(if OutputFormat::from_path(output)?.is_float() { Form::Float } else { Form::Rgba8 })
}

/// Everything about `output` that can be wrong before the work starts.
pub fn check_output(output: &Path, width: usize, height: usize) -> Result<()> {
    OutputFormat::from_path(output)?.check_size(width, height)?;
    check_writable(output)
}

/// Refuses an output that would replace one of the `inputs`, or a part of one: a file of a folder, weights beside their index.
pub fn check_apart(output: &Path, inputs: &[Option<&Path>]) -> Result<()> {
    let Ok(place) = output.canonicalize() else { return Ok(()) };
    let is_one_of = |path: &Path, endings: &[&str]| path.extension().is_some_and(|ending| endings.iter().any(|e| ending == *e));
    let replaced = |input: &Path| match input.canonicalize() {
        Ok(input) if input.is_dir() => is_one_of(&place, &["safetensors", "json", "txt"]) && place.starts_with(input),
        Ok(input) if is_one_of(&input, &["json"]) => {
            place == input || (is_one_of(&place, &["safetensors"]) && place.parent() == input.parent())
        }
        Ok(input) => place == input,
        Err(_) => false,
    };
    match inputs.iter().flatten().any(|input| replaced(input)) {
        true => {
            let detail = format!("{} is what is read: choose another name", output.display());
            Err(Error::Invalid { what: "output", detail })
        }
        false => Ok(()),
    }
}

/// Refuses a picture that no decoder makes.
pub fn check_size(width: usize, height: usize) -> Result<()> {
    if width.max(height) > MAX_SIDE {
        return Err(Error::Invalid { what: "size", detail: format!("{width}x{height}: each side must be at most {MAX_SIDE}") });
    }
    Ok(())
}

pub fn decode(run: &Run, args: &DecodeArgs) -> Result<()> {
    let (width, height) = (args.size.width, args.size.height);
    let region = args.region.unwrap_or(Rect { x: 0, y: 0, w: width, h: height });
    check_size(width, height)?;
    check_region(region, width, height)?;
    let inputs = [Some(&*args.latent), args.weights.as_deref()];
    // Only --explain goes without one: it plans a picture in 8 bits then.
    let output = args.output.as_deref().unwrap_or(Path::new("picture.png"));
    if !args.explain {
        OutputFormat::from_path(output)?.check_size(region.w, region.h)?;
        check_apart(output, &inputs)?;
    }
    let batch = run.stage("read", |_| Latent::open(&args.latent))?;
    let path = |index| if batch.batch() > 1 { batch_path(output, index) } else { output.to_owned() };
    if !args.explain {
        (0..batch.batch()).try_for_each(|index| {
            check_output(&path(index), region.w, region.h)?;
            check_apart(&path(index), &inputs)
        })?;
    }
    let engine = run.engine()?;
    let form = form_of(output)?;
    let least = || {
        let planned = engine.plan_decoder(weights(args.weights.as_deref()))?;
        let first = batch.select(0).unwrap_or_else(|| batch.clone());
        planned.least_memory(&first, width, height, form, args.region.is_some())
    };
    let decoder = run.load_decoder(&engine, weights(args.weights.as_deref())).map_err(|error| for_all(error, least))?;
    let facts = decoder.facts();
    let settings = json!({
        "latent": args.latent.file_name().map(|name| name.to_string_lossy()),
        "decoder": args.weights.as_ref().map_or("builtin".into(), |path| path.display().to_string()),
        "size": format!("{width}x{height}"),
        "region": args.region.map(|r| format!("{},{},{}x{}", r.x, r.y, r.w, r.h)),
        "dtype": format!("{:?}", run.common.dtype).to_lowercase(),
    });
    if let (None, Some(space)) = (&batch.space, facts.latent_space) {
        run.say(&format!("note: the file does not say which space the latent is of; taken for one of `{}`", space.name()));
    }
    let writer = Writer {
        decoder: &decoder,
        size: (width, height),
        region: args.region,
        metadata: vec![("Software", format!("infgen {}", env!("CARGO_PKG_VERSION"))), ("infgen", settings.to_string())],
    };
    let mut outputs: Vec<PathBuf> = Vec::new();
    for (index, latent) in (0..).map_while(|index| batch.select(index)).enumerate() {
        if index == 0 {
            let plan = decoder.plan(&latent, width, height, form)?;
            run.say(&format!(
                "decoding {}x{} latent to {width}x{height} with the {}: {:.1} GFLOP, {} of GPU memory",
                latent.width(),
                latent.height(),
                facts.model,
                plan.flops as f64 * 1e-9,
                human_bytes(plan.peak_bytes)
            ));
            if args.explain {
                return match run.common.json {
                    true => run.print(json!({ "command": "decode", "plan": plan })),
                    false => run.print(plan.to_string().trim_end()),
                };
            }
        }
        let path = path(index);
        run.stage("decode", |observer| writer.run(&latent, &path, observer))?;
        outputs.push(path);
    }
    let outputs: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
    let summary = json!({
        "command": "decode", "width": region.w, "height": region.h, "full_size": [width, height],
        "latent": batch.shape(), "model": facts.model,
    });
    run.finish(&engine, &outputs, summary)
}
