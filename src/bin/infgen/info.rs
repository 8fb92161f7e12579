//! `infgen devices` and `infgen inspect`

use infgen::Result;
use infgen::error::human_bytes;
use infgen::gpu::{NO_DRIVER, adapters};
use infgen::image::PngFacts;
use infgen::pipeline::Parts;
use infgen::pipeline::parts::Denoiser;
use infgen::schedulers::Prediction;
use infgen::weights::recognise;
use serde_json::json;

use crate::args::InspectArgs;
use crate::run::Run;

pub fn devices(run: &Run) -> Result<()> {
    let all = pollster::block_on(adapters());
    if run.common.json {
        return run.print(json!({ "command": "devices", "devices": all }));
    }
    if all.is_empty() {
        return run.print(NO_DRIVER);
    }
    for device in all {
        run.print(format_args!("{}  {}  ({}, {}, {})", device.index, device.name, device.kind, device.backend, device.driver))?;
        run.print(format_args!(
            "   buffer {}, binding {}, workgroup memory {}",
            human_bytes(device.max_buffer),
            human_bytes(device.max_binding),
            human_bytes(device.workgroup_memory.into())
        ))?;
        let yes = |there: bool| if there { "yes" } else { "no" };
        let subgroups = match device.subgroups {
            (0, _) => "no".into(),
            (low, high) if low == high => low.to_string(),
            (low, high) => format!("{low}-{high}"),
        };
        let matrices = match &device.cooperative_matrices[..] {
            [] => "no".into(),
            shapes => shapes.join(", "),
        };
        run.print(format_args!(
            "   f16 {}, timestamps {}, subgroups {subgroups}, cooperative matrices {matrices}",
            yes(device.f16),
            yes(device.timestamps)
        ))?;
    }
    Ok(())
}

pub fn inspect(run: &Run, args: &InspectArgs) -> Result<()> {
    if args.file.is_file()
        && let Some(picture) = PngFacts::open(&args.file)?
    {
        return inspect_picture(run, &picture);
    }
    if Parts::is_folder_of_parts(&args.file) {
        return inspect_model(run, &Parts::open(&args.file)?);
    }
    let inspection = recognise::inspect(&args.file)?;
    if run.common.json {
        let mut facts = serde_json::to_value(&inspection).expect("an inspection is plain data");
        facts["command"] = json!("inspect");
        return run.print(facts);
    }
    let types: Vec<String> = inspection.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    let mut lines = vec![
        inspection.recognised.to_string(),
        format!(
            "{} tensors ({}), {} values, {}",
            inspection.tensors,
            types.join(", "),
            inspection.parameters,
            human_bytes(inspection.bytes)
        ),
    ];
    lines.extend(inspection.metadata.iter().map(|(key, value)| format!("{key}: {value}")));
    lines.extend(inspection.problem.map(|problem| format!("problem: {problem}")));
    run.print(lines.join("\n"))
}

/// The parts of a folder that makes latents, all there and fitting each other.
fn inspect_model(run: &Run, parts: &Parts) -> Result<()> {
    let values = |tensors: &[(String, Vec<usize>)]| tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
    let denoiser = values(&parts.denoiser_tensors());
    // A folder can name a sampler that is not known here and still be of use with another.
    let (sampler, prediction) = match parts.scheduler(None, None) {
        Ok(scheduler) => {
            let prediction = match scheduler.config().prediction_type {
                Prediction::Epsilon => "the noise",
                Prediction::VPrediction => "v",
                Prediction::Sample => "the sample",
                Prediction::Flow => "the velocity from noise to data",
                Prediction::Edm => "the sample beside a share of the noisy one (EDM)",
            };
            (scheduler.sampler().name().to_owned(), prediction)
        }
        Err(error) => (error.to_string(), "unknown"),
    };
    let facts = match &parts.denoiser {
        Denoiser::Unet { unet, .. } => {
            let kind = if parts.is_unconditional() { "unconditional" } else { "text_to_image" };
            let mut facts = json!({ "kind": kind, "unet": unet.to_string(), "unet_parameters": denoiser });
            for (name, text) in ["text_encoder", "text_encoder_2"].into_iter().zip(parts.texts()) {
                facts[name] = text.config.to_string().into();
                facts[format!("{name}_parameters")] = values(&text.config.tensors()).into();
            }
            facts
        }
        Denoiser::Dit { dit, .. } => {
            json!({ "kind": "class_to_image", "transformer": dit.to_string(), "transformer_parameters": denoiser, "classes": dit.num_classes })
        }
    };
    if run.common.json {
        let mut recognised = json!({
            "family": parts.family, "vae": parts.vae.is_some(), "inpainting": parts.is_inpainting(),
            "sampler": sampler, "predicts": prediction, "native_size": parts.native_size, "notes": parts.notes,
        });
        for (name, fact) in facts.as_object().into_iter().flatten() {
            recognised[name] = fact.clone();
        }
        return run.print(json!({ "command": "inspect", "recognised": recognised }));
    }
    let (width, height) = parts.native_size;
    let decoder = match (&parts.vae, &parts.denoiser) {
        (Some(_), _) => "its own VAE",
        (None, Denoiser::Dit { .. }) => "none of its own: the one that ships, or --decoder with a file",
        (None, Denoiser::Unet { .. }) if parts.is_sdxl() => "none of its own; --decoder with one of SDXL's latents",
        (None, Denoiser::Unet { .. }) => "none of its own; --decoder builtin or a file",
    };
    let mut lines = match &parts.denoiser {
        Denoiser::Unet { unet, .. } => {
            let inpainting = if parts.is_inpainting() { " for inpainting" } else { "" };
            let texts = parts.texts().map(|text| format!("text encoder: {}, {} values", text.config, values(&text.config.tensors())));
            let mut lines = vec![
                format!(
                    "{}-to-image model{inpainting}, {width}x{height}, family {}",
                    if parts.is_unconditional() { "noise" } else { "text" },
                    parts.family
                ),
                format!("denoiser: {unet}, {denoiser} values, predicts {prediction}"),
            ];
            lines.extend(texts);
            lines
        }
        Denoiser::Dit { dit, labels } => vec![
            format!("class-to-image model, {width}x{height}, family {}", parts.family),
            format!("denoiser: {dit}, {denoiser} values, predicts {prediction}"),
            format!("classes: 0 to {}{}", dit.num_classes - 1, if labels.is_empty() { ", without names" } else { ", with names" }),
        ],
    };
    lines.extend([format!("decoder: {decoder}"), format!("sampler: {sampler}")]);
    lines.extend(parts.notes.iter().map(|note| format!("note: {note}")));
    run.print(lines.join("\n"))
}

/// Size and settings of a picture, whichever tool wrote them.
fn inspect_picture(run: &Run, picture: &PngFacts) -> Result<()> {
    let PngFacts { width, height, texts } = picture;
    if run.common.json {
        let texts: serde_json::Map<String, serde_json::Value> = texts
            .iter()
            // What is JSON itself is given as such: this program's settings, ComfyUI's graphs.
            .map(|(key, text)| (key.clone(), serde_json::from_str(text).unwrap_or_else(|_| json!(text))))
            .collect();
        let recognised = json!({ "kind": "picture" });
        return run.print(json!({ "command": "inspect", "recognised": recognised, "width": width, "height": height, "texts": texts }));
    }
    let mut lines = vec![format!("PNG picture, {width}x{height}")];
    if texts.is_empty() {
        lines.push("no settings in it".into());
    }
    lines.extend(texts.iter().map(|(key, text)| match text.contains('\n') {
        true => format!("{key}:\n  {}", text.replace('\n', "\n  ")),
        false => format!("{key}: {text}"),
    }));
    run.print(lines.join("\n"))
}
