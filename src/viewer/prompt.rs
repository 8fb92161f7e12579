//! The prompt panel: what is typed, what is asked of the model, and what of it comes back from a saved picture.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use egui::{ComboBox, DragValue, Key as Press, Modifiers, RichText, TextEdit, Ui};
use serde_json::{Value, json};
use winit::event_loop::EventLoopProxy;

use super::files::Document;
use super::jobs::{Done, Message};
use super::ui::Command;
use crate::error::Result;
use crate::gpu::Observer;
use crate::image::PngFacts;
use crate::nn::RotaryScaling;
use crate::pipeline::{Parts, Pipeline, Request};
use crate::schedulers::Sampler;

/// Longest side that the panel offers for stage one: attention over a latent costs the square of its size.
const MAX_STAGE_ONE: usize = 2048;

/// What is typed.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Whether the panel is shown.
    pub open: bool,
    prompt: String,
    negative: String,
    /// Nothing typed is the empty text, as in the settings taken over, and not none: SDXL tells them apart.
    empty_negative: bool,
    steps: usize,
    cfg: f64,
    seed: u64,
    /// Draw a new seed for each run.
    random: bool,
    /// None: the model's own.
    sampler: Option<Sampler>,
    /// Those that the model takes.
    samplers: Vec<Sampler>,
    width: usize,
    height: usize,
    /// Sides are multiples of it; none: there is one size.
    step: Option<usize>,
    told: Told,
    /// Its guidance may change with the timestep.
    takes_power: bool,
    /// What the model takes, as it came or as a picture's settings said.
    rotary: Option<RotaryScaling>,
    guidance_power: Option<f64>,
    /// Noise of DDIM.
    eta: f64,
}

/// What a model is told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Text,
    Class,
    Nothing,
}

impl Default for Prompt {
    fn default() -> Self {
        Prompt {
            open: false,
            prompt: String::new(),
            negative: String::new(),
            empty_negative: false,
            steps: 30,
            cfg: 7.5,
            seed: 0,
            random: true,
            sampler: None,
            samplers: Sampler::ALL.to_vec(),
            width: 512,
            height: 512,
            step: Some(8),
            told: Told::Text,
            takes_power: false,
            rotary: None,
            guidance_power: None,
            eta: 0.0,
        }
    }
}

impl Prompt {
    /// A model was loaded: its own size, and steps that suit its sampler.
    pub fn fit(&mut self, parts: &Parts) {
        self.open = true;
        self.step = parts.size_step();
        (self.width, self.height) = parts.native_size;
        self.told = match parts {
            _ if parts.is_class_conditional() => Told::Class,
            _ if parts.is_unconditional() => Told::Nothing,
            _ => Told::Text,
        };
        self.takes_power = self.told == Told::Class && !parts.is_edm();
        self.eta = parts.default_eta();
        (self.rotary, self.guidance_power) = (parts.default_rotary(), parts.default_guidance_power());
        self.samplers = Sampler::ALL.into_iter().filter(|&sampler| parts.scheduler(Some(sampler), None).is_ok()).collect();
        self.sampler = self.sampler.filter(|sampler| self.samplers.contains(sampler));
        if let Ok(own) = parts.scheduler(None, None) {
            if own.sampler() == Sampler::Lcm || self.told == Told::Nothing {
                self.steps = parts.default_steps(own.sampler());
            }
            self.cfg = parts.default_guidance(own.sampler());
        }
    }

    /// What to ask of the model; draws the seed first, if it is to be drawn.
    pub fn request(&mut self) -> Request {
        if self.random {
            self.seed = RandomState::new().build_hasher().finish() & 0xffff_ffff;
        }
        Request {
            negative: (self.told == Told::Text && (self.empty_negative || !self.negative.is_empty())).then(|| self.negative.clone()),
            steps: self.steps,
            cfg: self.cfg,
            seed: self.seed,
            sampler: self.sampler,
            rotary: self.rotary,
            guidance_power: self.guidance_power,
            eta: self.eta,
            preview_every: 1,
            ..Request::new(if self.told == Told::Nothing { String::new() } else { self.prompt.clone() }, self.width, self.height)
        }
    }

    /// Takes over what `settings`, of a picture made by `infgen generate` or here, says.
    pub fn recall(&mut self, settings: &Value) {
        let text = |key: &str| settings[key].as_str().map(str::to_owned);
        let Some(prompt) = text("prompt") else { return };
        if self.step.is_none() && text("latent_size") != Some(format!("{}x{}", self.width, self.height)) {
            return; // Of another model: this one makes one size.
        }
        self.prompt = prompt;
        self.negative = text("negative_prompt").unwrap_or_default();
        self.empty_negative = text("negative_prompt").is_some_and(|text| text.is_empty());
        self.steps = settings["steps"].as_u64().map_or(self.steps, |steps| (steps as usize).clamp(1, 1000));
        if self.told != Told::Nothing {
            self.cfg = settings["cfg"].as_f64().filter(|cfg| cfg.is_finite()).map_or(self.cfg, |cfg| cfg.clamp(0.0, 30.0));
        }
        self.eta = settings["eta"].as_f64().filter(|eta| (0.0..=1.0).contains(eta)).unwrap_or(self.eta);
        if let Some(seed) = settings["seed"].as_u64() {
            (self.seed, self.random) = (seed, false);
        }
        if self.rotary.is_some() {
            self.rotary = text("rope").and_then(|name| RotaryScaling::from_name(&name)).or(self.rotary);
        }
        if self.takes_power {
            let power = settings["cfg_power"].as_f64().filter(|power| (0.0..=100.0).contains(power));
            self.guidance_power = power.or(self.guidance_power);
        }
        self.sampler = text("sampler").and_then(|name| Sampler::from_name(&name)).filter(|sampler| self.samplers.contains(sampler));
        let size = text("latent_size").and_then(|size| {
            let (w, h) = size.split_once('x')?;
            Some((w.parse().ok()?, h.parse().ok()?))
        });
        if let Some((w, h)) = size {
            (self.width, self.height) = (self.side(w), self.side(h));
        }
    }

    fn side(&self, side: usize) -> usize {
        self.step.map_or(side, |step| (side / step * step).clamp(step, MAX_STAGE_ONE))
    }

    /// One frame of the panel. `model`: its name and whether it brings a VAE.
    pub fn show(&mut self, ui: &mut Ui, model: Option<(&str, bool)>, busy: bool, commands: &mut Vec<Command>) {
        ui.add_space(4.0);
        ui.horizontal_wrapped(|ui| {
            ui.strong(model.map_or("No model", |(name, _)| name));
            if ui.small_button("Open…").on_hover_text("A folder as diffusers saves it").clicked() {
                commands.push(Command::Pick(super::jobs::Pick::Model));
            }
        });
        if model.is_none() {
            ui.weak(
                "Open or drop a model, Stable Diffusion 1.x, 2.x or XL, DiT, SiT, FiT, MDT, MaskDiT or INFD: a diffusers folder, or a single file in safetensors.",
            );
        }
        ui.separator();
        egui::ScrollArea::vertical().show(ui, |ui| {
            let wide = ui.available_width();
            let prompt = match self.told {
                Told::Nothing => ui.weak("This model is told nothing: each seed is a picture."),
                told => {
                    ui.label(if told == Told::Class { "Class: its number or name" } else { "Prompt" });
                    ui.add(TextEdit::multiline(&mut self.prompt).desired_rows(3).desired_width(wide))
                }
            };
            let negative = (self.told == Told::Text).then(|| {
                ui.label("Not wanted");
                ui.add(TextEdit::multiline(&mut self.negative).desired_rows(1).desired_width(wide))
            });
            egui::Grid::new("request").num_columns(2).spacing([8.0, 4.0]).show(ui, |ui| {
                ui.label("Steps");
                ui.add(DragValue::new(&mut self.steps).range(1..=1000));
                ui.end_row();
                if self.told != Told::Nothing {
                    ui.label("Guidance");
                    ui.add(DragValue::new(&mut self.cfg).range(0.0..=30.0).speed(0.1).max_decimals(2));
                    ui.end_row();
                }
                ui.label("Sampler");
                ComboBox::from_id_salt("sampler").selected_text(self.sampler.map_or("the model's own", Sampler::name)).show_ui(ui, |ui| {
                    ui.selectable_value(&mut self.sampler, None, "the model's own");
                    for &sampler in &self.samplers {
                        ui.selectable_value(&mut self.sampler, Some(sampler), sampler.name());
                    }
                });
                ui.end_row();
                ui.label("Stage one");
                ui.horizontal(|ui| {
                    let least = self.step.unwrap_or(1);
                    // DiT makes one size.
                    ui.add_enabled(self.step.is_some(), DragValue::new(&mut self.width).range(least..=MAX_STAGE_ONE).speed(least as f64));
                    ui.label("×");
                    ui.add_enabled(self.step.is_some(), DragValue::new(&mut self.height).range(least..=MAX_STAGE_ONE).speed(least as f64));
                });
                (self.width, self.height) = (self.side(self.width), self.side(self.height));
                ui.end_row();
                ui.label("Seed");
                ui.horizontal(|ui| {
                    ui.add_enabled(!self.random, DragValue::new(&mut self.seed).range(0..=u32::MAX as u64));
                    ui.checkbox(&mut self.random, "new each time");
                });
                ui.end_row();
            });
            ui.add_space(6.0);
            let typing = prompt.has_focus() || negative.is_some_and(|negative| negative.has_focus()) || self.told == Told::Nothing;
            let keys = typing && ui.input_mut(|i| i.consume_key(Modifiers::COMMAND, Press::Enter));
            let possible = model.is_some() && !busy;
            ui.horizontal_wrapped(|ui| {
                let button = egui::Button::new(RichText::new("Generate").strong()).shortcut_text("Ctrl+Enter");
                if ui.add_enabled(possible, button).clicked() || (keys && possible) {
                    commands.push(Command::Generate);
                }
                if busy && ui.button("Cancel").clicked() {
                    commands.push(Command::CancelTask);
                }
                // A decoder of any size is the one that is shown.
                if model.is_some_and(|(_, vae)| vae) && self.told != Told::Nothing && ui.button("Compare with its VAE").clicked() {
                    commands.push(Command::CompareVae);
                }
            });
        });
    }
}

/// Runs `request`, sending previews as task `id`.
///
/// # Errors
/// As [`Pipeline::generate`].
pub fn generate(pipeline: &Pipeline, request: &Request, id: u64, proxy: &EventLoopProxy<Message>, observer: &Observer) -> Result<Done> {
    let generated = pipeline.generate(request, observer, &|report| {
        if let Some(preview) = report.preview {
            // Fails when the window is gone; then there is no one to show it to.
            let _ = proxy.send_event(Message::Preview(id, preview.clone()));
        }
    })?;
    let settings = json!({
        "model": pipeline.parts().path.display().to_string(), "prompt": request.prompt, "negative_prompt": request.negative,
        "steps": request.steps, "sampler": generated.sampler.name(), "cfg": request.cfg, "seed": request.seed,
        "cfg_power": request.guidance_power, "eta": request.eta, "rope": request.rotary.map(RotaryScaling::name),
        "latent_size": format!("{}x{}", request.width, request.height),
    });
    let mut notes = vec![format!("seed {}, {:.1} s", request.seed, generated.denoise_seconds)];
    notes.extend(generated.notes);
    let name = if request.prompt.trim().is_empty() { "no prompt" } else { request.prompt.trim() };
    let name: String = name.chars().take(60).collect();
    let document = Document { name, latents: generated.latent, original: None, note: Some(notes.join("; ")), settings: Some(settings) };
    Ok(Done::Generated(Box::new(document)))
}

/// The settings that `infgen` wrote into the PNG at `path`, if it did.
pub fn settings_of(path: &Path) -> Option<Value> {
    let facts = PngFacts::open(path).ok()??;
    serde_json::from_str(facts.texts.iter().find_map(|(key, text)| (key == "infgen").then_some(text))?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RowWriter;

    #[test]
    fn settings_return_from_a_picture_and_nonsense_changes_little() {
        let folder = tempfile::tempdir().unwrap();
        for prompt in ["a lighthouse", "ein Haus für 1 €"] {
            let path = folder.path().join("x.png");
            let settings = json!({
                "prompt": prompt, "negative_prompt": "fog", "steps": 12, "cfg": 3.5, "seed": 77, "sampler": "euler-a", "latent_size": "320x200"
            });
            let text = settings.to_string();
            let mut file = RowWriter::create(&path, 1, 1, &[("infgen", text.as_str())]).unwrap();
            file.write_rgb8(&[1, 2, 3]).unwrap();
            file.finish().unwrap();
            let mut panel = Prompt::default();
            panel.recall(&settings_of(&path).unwrap());
            let request = panel.request();
            assert_eq!((request.prompt.as_str(), request.negative.as_deref(), request.seed), (prompt, Some("fog"), 77));
            assert_eq!((request.steps, request.cfg, request.sampler), (12, 3.5, Some(Sampler::EulerAncestral)));
            assert_eq!((request.width, request.height), (320, 200));
            for (recalled, asked) in [(json!(""), Some("")), (Value::Null, None)] {
                panel.recall(&json!({ "prompt": prompt, "negative_prompt": recalled }));
                assert_eq!(panel.request().negative.as_deref(), asked);
            }
            let mut fit =
                Prompt { told: Told::Class, takes_power: true, step: Some(16), rotary: Some(RotaryScaling::Ntk), ..Prompt::default() };
            fit.recall(&json!({ "prompt": "207", "latent_size": "328x200", "rope": "yarn", "cfg_power": 2.5 }));
            let request = fit.request();
            assert_eq!((request.width, request.height, request.negative), (320, 192, None));
            assert_eq!((request.rotary, request.guidance_power), (Some(RotaryScaling::Yarn), Some(2.5)));
            let mut masked = Prompt { takes_power: false, rotary: None, guidance_power: None, ..fit.clone() };
            masked.samplers = vec![Sampler::Euler, Sampler::Heun];
            for (name, kept) in [("heun", Some(Sampler::Heun)), ("ddim", None)] {
                masked.recall(&json!({ "prompt": "207", "rope": "yarn", "cfg_power": 2.5, "sampler": name }));
                assert_eq!(masked.request().sampler, kept);
            }
            assert_eq!((masked.request().rotary, masked.request().guidance_power), (None, None), "of another class-conditional model");
            panel.recall(&json!({ "prompt": prompt, "rope": "yarn", "cfg_power": 2.5 }));
            assert_eq!((panel.request().rotary, panel.request().guidance_power), (None, None), "of another model");
            let mut class_conditional = Prompt { told: Told::Class, step: None, width: 256, height: 256, ..Prompt::default() };
            let before = class_conditional.clone();
            class_conditional.recall(&settings);
            assert_eq!(class_conditional, before, "a size that this model does not make");
        }
        assert_eq!(settings_of(folder.path()), None);
        let mut panel = Prompt::default();
        panel.recall(&json!({ "latent": "not generated", "steps": 3 }));
        assert_eq!(panel, Prompt::default());
        panel.recall(&json!({ "prompt": "x", "steps": 0, "cfg": "7", "seed": -1, "sampler": "magic", "latent_size": "0x99999999" }));
        let request = panel.request();
        assert_eq!((request.steps, request.cfg, request.sampler), (1, 7.5, None));
        assert_eq!((request.width, request.height), (8, MAX_STAGE_ONE));
    }

    #[test]
    fn a_drawn_seed_is_new_and_a_fixed_one_stays() {
        let mut panel = Prompt::default();
        let drawn: std::collections::HashSet<u64> = (0..8).map(|_| panel.request().seed).collect();
        assert!(drawn.len() > 6 && drawn.iter().all(|&seed| seed <= u64::from(u32::MAX)));
        panel.random = false;
        panel.seed = 5;
        assert_eq!((panel.request().seed, panel.request().seed), (5, 5));
    }
}
