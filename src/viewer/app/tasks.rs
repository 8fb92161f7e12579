//! What is asked for beside the live decode: opening, generating, saving, copying. One at a time, each on the task worker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::files::{self, Opened};
use super::super::jobs::{Done, Message, Pick};
use super::super::paint::Painter;
use super::super::work::Side;
use super::super::{prompt, save};
use super::{Capture, Shell, Task};
use crate::error::{Error, Result};
use crate::gpu::Observer;
use crate::image::{OutputFormat, check_writable};
use crate::latent::LatentSpace;
use crate::pipeline::{Pipeline, Preview};

/// A file dialog that is gone after so short a time was never there.
const NO_DIALOG: Duration = Duration::from_millis(700);

impl Shell {
    pub(super) fn task_done(&mut self, id: u64, result: Result<Done>, seconds: f64) {
        let Some(task) = self.task.take_if(|task| task.id == id) else { return };
        self.scene.set_preview(None);
        match result {
            Ok(Done::Opened(opened)) => {
                if let Some(path) = &task.opening {
                    self.settings.opened(path);
                    self.remember();
                    match &*opened {
                        (Opened::Document(_), _) => self.options.file = Some(path.clone()),
                        (Opened::Decoder(_), Side::A) => self.options.weights = Some(path.clone()),
                        (Opened::Decoder(_), Side::B) => self.options.compare = Some(path.clone()),
                        (Opened::Model(_), _) => self.options.model = Some(path.clone()),
                    }
                }
                self.measure.log(json!({ "event": "opened", "seconds": seconds }));
                match *opened {
                    (Opened::Document(document), _) => {
                        if let Some(note) = &document.note {
                            self.controls.notice(note.clone());
                        }
                        if let Some(settings) = &document.settings {
                            self.controls.prompt.recall(settings);
                        }
                        self.scene.show(*document);
                    }
                    (Opened::Model(model), _) => self.use_model(*model),
                    (Opened::Decoder(decoder), side) => self.scene.load(side, decoder),
                }
                self.title();
            }
            Ok(Done::Generated(document)) => {
                self.measure.log(json!({ "event": "generated", "seconds": seconds, "settings": document.settings }));
                self.controls.notice(document.note.clone().unwrap_or_default());
                self.scene.show(*document);
                self.title();
            }
            Ok(Done::Saved(path)) => {
                self.measure.log(json!({ "event": "saved", "path": path }));
                self.controls.notice(format!("saved {}", path.display()));
            }
            Ok(Done::Captured(w, h, rgba)) => self.captured(w, h, rgba, task.capture),
            Err(Error::Cancelled) => self.controls.notice(format!("{}: cancelled", task.name)),
            Err(error) => self.failed(&error),
        }
    }

    /// Gives `work` to the task worker, in place of what it had.
    pub(super) fn run_task(&mut self, name: String, work: impl FnOnce(&Observer) -> Result<Done> + Send + 'static) -> &mut Task {
        if let Some(task) = &self.task {
            task.observer.cancel();
        }
        self.task_count += 1;
        let observer = self.tasks.run(false, self.task_count, Message::Done, work);
        self.task.insert(Task { id: self.task_count, name, observer, progress: 0.0, capture: None, opening: None, generating: false })
    }

    pub(super) fn use_model(&mut self, model: Pipeline) {
        self.controls.prompt.fit(model.parts());
        if let Some(settings) = self.scene.settings() {
            self.controls.prompt.recall(settings);
        }
        self.suit_decoder(&model);
        self.model = Some(Arc::new(model));
    }

    /// Where the decoder that is shown decodes latents of another space than the model makes, or of other channels, one that fits takes its place: the one
    /// that ships, or the model's own.
    fn suit_decoder(&mut self, model: &Pipeline) {
        let parts = model.parts();
        let fits = self.scene.latent_channels(Side::A).is_none_or(|channels| channels == parts.latent_channels());
        if fits && self.other_space(model).is_none() {
            return;
        }
        if parts.latent_space() == Some(LatentSpace::Sd) {
            let engine = self.engine.clone();
            let open = move |_: &Observer| Ok(Done::Opened(Box::new((Opened::Decoder(files::builtin(&engine)?), Side::A))));
            self.run_task("opening the built-in decoder".into(), open);
        } else if let Ok(path) = parts.vae_path() {
            self.open_file(path, Side::A, true);
        }
    }

    /// The space of the model's latents and that of the decoder that is shown, where they are known and differ.
    fn other_space(&self, model: &Pipeline) -> Option<[LatentSpace; 2]> {
        let both = [model.parts().latent_space()?, self.scene.latent_space(Side::A)?];
        (both[0] != both[1]).then_some(both)
    }

    /// Follows the prompt.
    pub(super) fn generate(&mut self) {
        let Some(model) = self.model.clone() else { return };
        if let Some([made, shown]) = self.other_space(&model) {
            let detail = format!(
                "the model makes latents of the space `{}`, the decoder decodes `{}`: open one of the model's space first",
                made.name(),
                shown.name()
            );
            return self.failed(&Error::Invalid { what: "decoder", detail });
        }
        let request = self.controls.prompt.request();
        let (proxy, id) = (self.proxy.clone(), self.task_count + 1);
        let task = self.run_task("generating".into(), move |observer| prompt::generate(&model, &request, id, &proxy, observer));
        task.generating = true;
    }

    pub(super) fn previewed(&mut self, id: u64, preview: &Preview) {
        if self.task.as_ref().is_none_or(|task| task.id != id) {
            return;
        }
        let Preview { width, height, rgb } = preview;
        match pollster::block_on(self.engine.gpu().picture_from_rgb8(*width, *height, rgb)) {
            Ok(picture) => {
                self.measure.log(json!({ "event": "preview", "width": width, "height": height }));
                self.scene.set_preview(Some(picture));
            }
            Err(error) => log::warn!("preview: {error}"),
        }
    }

    /// Opens whatever `path` is; a decoder goes to `side`.
    pub(super) fn open_file(&mut self, path: PathBuf, side: Side, as_decoder: bool) {
        let (engine, file) = (self.engine.clone(), path.clone());
        let name = format!("opening {}", files::name_of(&path));
        let task =
            self.run_task(name, move |observer| Ok(Done::Opened(Box::new((files::open(&engine, &file, as_decoder, observer)?, side)))));
        task.opening = Some(path);
    }

    pub(super) fn pick(&self, pick: Pick) {
        let mut dialog = rfd::FileDialog::new().set_parent(&*self.window);
        dialog = match pick {
            Pick::Open => dialog
                .set_title("Open a latent, a picture or a decoder")
                .add_filter("All that can be opened", &["safetensors", "npy", "png", "jpg", "jpeg", "webp", "json"])
                .add_filter("All files", &["*"]),
            Pick::Model => dialog.set_title("Open a model's folder"),
            Pick::Decoder | Pick::Other => dialog.set_title("Open a decoder").add_filter("Weights", &["safetensors", "json"]),
            Pick::Save | Pick::SaveView => dialog
                .set_title("Save as")
                .set_file_name("picture.png")
                .add_filter("Pictures", &["png", "jpg", "webp", "npy", "safetensors"]),
        };
        let proxy = self.proxy.clone();
        // On macOS dialogs belong to the main thread; elsewhere they must not block it.
        let ask = move || {
            let start = Instant::now();
            let path = match pick {
                Pick::Save | Pick::SaveView => dialog.save_file(),
                Pick::Model => dialog.pick_folder(),
                _ => dialog.pick_file(),
            };
            let _ = proxy.send_event(Message::Picked(pick, path, start.elapsed()));
        };
        if cfg!(target_os = "macos") {
            ask();
        } else {
            std::thread::spawn(ask);
        }
    }

    pub(super) fn picked(&mut self, pick: Pick, path: Option<PathBuf>, after: Duration) {
        match path {
            Some(path) => self.use_path(pick, path),
            // No one closes a dialog that fast: there was none.
            None if after < NO_DIALOG => self.controls.ask_path(pick),
            None => {}
        }
    }

    pub(super) fn use_path(&mut self, pick: Pick, path: PathBuf) {
        match pick {
            Pick::Open | Pick::Model => self.open_file(path, Side::A, false),
            Pick::Decoder => self.open_file(path, Side::A, true),
            Pick::Other => self.open_file(path, Side::B, true),
            Pick::Save => self.controls.save_as(&path),
            Pick::SaveView => match OutputFormat::from_path(&path).and_then(|_| check_writable(&path)) {
                Ok(()) => self.waiting = Some(Capture::File(path)),
                Err(error) => self.failed(&error),
            },
        }
    }

    pub(super) fn save_picture(&mut self, path: PathBuf, w: usize, h: usize) {
        let Some((loaded, latent)) = self.scene.subject() else { return };
        let name = self.scene.document().map_or("", |(name, ..)| name);
        let about = self.scene.settings().cloned().unwrap_or_else(|| json!({ "latent": name, "region": null }));
        self.run_task(format!("saving {}", files::name_of(&path)), move |observer| {
            save::picture(&loaded.decoder, &latent, (w, h), &path, &about, observer).map(Done::Saved)
        });
    }

    /// Draws the canvas without controls into a texture and reads it back.
    pub(super) fn capture(&mut self, capture: Capture) {
        let [x, y, w, h] = self.visible_canvas();
        if w == 0 || h == 0 {
            return;
        }
        let texture = self.handles.device.create_texture(&wgpu::TextureDescriptor {
            label: Some("capture"),
            size: wgpu::Extent3d { width: self.controls.canvas[2], height: self.controls.canvas[3], depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let mut painter = Painter::new(&self.handles, texture.format());
        let mut encoder = self.handles.device.create_command_encoder(&Default::default());
        let size = (texture.width(), texture.height());
        let turn = self.engine.gpu().frame();
        painter.paint(&mut encoder, &texture.create_view(&Default::default()), size, [0.0; 3], &self.scene.quads((0, 0)));
        self.handles.queue.submit([encoder.finish()]);
        drop(turn);
        let engine = self.engine.clone();
        let name = if matches!(capture, Capture::Clipboard) { "copying" } else { "saving the view" };
        let task = self.run_task(name.into(), move |_| {
            let rgba = pollster::block_on(engine.gpu().read_texture(&texture, [x, y, w, h]))?;
            Ok(Done::Captured(w as usize, h as usize, rgba))
        });
        task.capture = Some(capture);
    }

    /// The part of the canvas that the picture covers, in pixels of the canvas.
    pub(super) fn visible_canvas(&self) -> [u32; 4] {
        let Some(place) = self.scene.place(Side::A) else { return [0; 4] };
        let axis = |start: f64, length: f64, canvas: u32| {
            let from = start.clamp(0.0, f64::from(canvas));
            let to = (start + length).round().clamp(from, f64::from(canvas));
            (from as u32, (to - from) as u32)
        };
        let [_, _, cw, ch] = self.controls.canvas;
        let ((x, w), (y, h)) = (axis(place.x, place.w, cw), axis(place.y, place.h, ch));
        [x, y, w, h]
    }

    pub(super) fn captured(&mut self, w: usize, h: usize, rgba: Vec<u8>, capture: Option<Capture>) {
        let outcome = match capture {
            Some(Capture::Clipboard) => self.copy(w, h, rgba).map(|()| format!("copied {w} × {h} pixels")),
            Some(Capture::File(path)) => {
                let about = json!({ "latent": self.scene.document().map(|(name, ..)| name), "view": self.shown });
                save::pixels(&rgba, (w, h), &path, &about.to_string())
                    .map(|()| format!("saved {}", path.display()))
                    .map_err(|error| error.to_string())
            }
            None => return,
        };
        match outcome {
            Ok(text) => {
                self.measure.log(json!({ "event": "captured", "width": w, "height": h }));
                self.controls.notice(text);
            }
            Err(text) => self.controls.fail_text(text),
        }
    }

    pub(super) fn copy(&mut self, w: usize, h: usize, rgba: Vec<u8>) -> std::result::Result<(), String> {
        let fail = |error: arboard::Error| format!("the clipboard cannot be used: {error}");
        if self.clipboard.is_none() {
            self.clipboard = Some(arboard::Clipboard::new().map_err(fail)?);
        }
        let Some(clipboard) = &mut self.clipboard else { return Ok(()) };
        clipboard.set_image(arboard::ImageData { width: w, height: h, bytes: rgba.into() }).map_err(fail)
    }
}
