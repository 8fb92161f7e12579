//! The window: events in, frames out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use winit::application::ApplicationHandler;
use winit::dpi::{LogicalSize, PhysicalSize};
use winit::event::WindowEvent;
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop, EventLoopProxy};
use winit::window::{Fullscreen, Window, WindowId};

use super::device::{budget, context, open_engine, surface_config};
use super::files::{self, Opened};
use super::jobs::{self, Done, Message, Pick, Worker};
use super::measure::Measure;
use super::paint::Painter;
use super::prompt;
use super::save;
use super::scene::{Ended, Scene};
use super::settings::{self, Settings, Theme};
use super::split::Compare;
use super::ui::{self, Command, Controls};
use super::work::Side;
use crate::engine::{Dtype, Engine};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Handles, Observer};
use crate::pipeline::{Pipeline, Preview};

/// Frames that take longer are logged.
const LONG_FRAME: Duration = Duration::from_millis(60);

/// How to open the viewer.
#[derive(Debug, Clone, Default)]
pub struct ViewerOptions {
    /// Adapter index or a part of its name; none: the best that can present.
    pub device: Option<String>,
    /// Storage type.
    pub dtype: Dtype,
    /// Ceiling on GPU memory in bytes.
    pub memory: Option<u64>,
    /// A latent, picture or decoder to open.
    pub file: Option<PathBuf>,
    /// Decoder instead of the one that ships.
    pub weights: Option<PathBuf>,
    /// Decoder to compare with.
    pub compare: Option<PathBuf>,
    /// Text-to-image model: a diffusers folder or a single-file checkpoint.
    pub model: Option<PathBuf>,
    /// Size of the window in physical pixels.
    pub size: Option<(u32, u32)>,
    /// Start without controls, as the Tab key leaves it.
    pub bare: bool,
    /// For tests: what happens, one JSON object a line.
    pub events: Option<PathBuf>,
}

/// Opens the window and runs until it is closed, or until `interrupt` is cancelled. Gives what was measured: start to first picture, frame times, cancels,
/// memory.
///
/// # Errors
/// [`Error::Display`] without a display, [`Error::NoAdapter`] without a device for it. What goes wrong later is shown in
/// the window.
pub fn run(options: ViewerOptions, interrupt: &Observer) -> Result<Value> {
    let measure = Measure::start(options.events.as_deref())?;
    let display = |detail: String| Error::Display { detail };
    let events = EventLoop::<Message>::with_user_event().build().map_err(|error| display(error.to_string()))?;
    let mut app = App { proxy: events.create_proxy(), options, measure: Some(measure), shell: None, failure: None, report: Value::Null };
    let (proxy, interrupt) = (events.create_proxy(), interrupt.clone());
    let watch = move || {
        while !interrupt.is_cancelled() {
            std::thread::sleep(Duration::from_millis(100));
        }
        // Fails when the window was closed in the meantime.
        let _ = proxy.send_event(Message::Quit);
    };
    std::thread::spawn(watch);
    events.run_app(&mut app).map_err(|error| display(error.to_string()))?;
    if let Some(error) = app.failure {
        return Err(error);
    }
    Ok(app.report)
}

struct App {
    proxy: EventLoopProxy<Message>,
    options: ViewerOptions,
    measure: Option<Measure>,
    shell: Option<Shell>,
    failure: Option<Error>,
    report: Value,
}

impl ApplicationHandler<Message> for App {
    fn resumed(&mut self, events: &ActiveEventLoop) {
        let Some(measure) = self.measure.take() else { return };
        match Shell::open(events, &self.proxy, self.options.clone(), measure) {
            Ok(shell) => self.shell = Some(shell),
            Err(error) => {
                self.failure = Some(error);
                events.exit();
            }
        }
    }

    fn window_event(&mut self, events: &ActiveEventLoop, _: WindowId, event: WindowEvent) {
        if let Some(shell) = &mut self.shell {
            shell.event(events, event);
        }
    }

    fn user_event(&mut self, events: &ActiveEventLoop, message: Message) {
        if matches!(message, Message::Quit) {
            return events.exit();
        }
        if let Some(shell) = &mut self.shell {
            shell.message(message);
        }
    }

    fn about_to_wait(&mut self, events: &ActiveEventLoop) {
        let Some(shell) = &mut self.shell else { return };
        let now = Instant::now();
        let due = [shell.repaint_at, shell.scene.steer(now)].into_iter().flatten().min();
        if shell.repaint_at.is_some_and(|at| at <= now) {
            shell.repaint_at = None;
            shell.window.request_redraw();
        }
        events.set_control_flow(due.map_or(ControlFlow::Wait, ControlFlow::WaitUntil));
    }

    fn exiting(&mut self, _: &ActiveEventLoop) {
        if let Some(shell) = self.shell.take() {
            self.report = shell.close();
        }
    }
}

/// What a finished capture is for.
enum Capture {
    Clipboard,
    File(PathBuf),
}

/// The task that the task worker has.
struct Task {
    id: u64,
    name: String,
    observer: Observer,
    progress: f64,
    capture: Option<Capture>,
    /// A prompt is being followed.
    generating: bool,
    /// A file that is being opened, for the list of recent ones.
    opening: Option<PathBuf>,
}

/// Everything behind an open window.
struct Shell {
    // Fields drop in this order: what uses the device before what owns it, the window last.
    scene: Scene,
    tasks: Worker,
    painter: Painter,
    egui_renderer: egui_wgpu::Renderer,
    surface: wgpu::Surface<'static>,
    config: wgpu::SurfaceConfiguration,
    handles: Handles,
    engine: Arc<Engine>,
    egui_state: egui_winit::State,
    egui: egui::Context,
    controls: Controls,
    settings: Settings,
    settings_path: Option<PathBuf>,
    proxy: EventLoopProxy<Message>,
    options: ViewerOptions,
    measure: Measure,
    task: Option<Task>,
    task_count: u64,
    /// Captures that wait for the picture to be complete.
    waiting: Option<Capture>,
    clipboard: Option<arboard::Clipboard>,
    model: Option<Arc<Pipeline>>,
    repaint_at: Option<Instant>,
    /// What was logged as shown last.
    shown: Value,
    probing: bool,
    /// Whether the surface is configured for the window's size. Before a frame, not in every step of a resize: it waits for
    /// the work in flight.
    fits: bool,
    /// Of the last frame: until it had a texture to draw into, and until its commands were submitted.
    acquired: Duration,
    recorded: Duration,
    lost: bool,
    window: Arc<Window>,
}

impl Shell {
    fn open(events: &ActiveEventLoop, proxy: &EventLoopProxy<Message>, options: ViewerOptions, measure: Measure) -> Result<Shell> {
        let display = |detail: String| Error::Display { detail };
        let settings_path = settings::path();
        let settings = settings_path.as_deref().map(Settings::read).unwrap_or_default();
        let attributes = Window::default_attributes().with_title("infgen").with_min_inner_size(LogicalSize::new(64, 48));
        let attributes = match (options.size, settings.window) {
            (Some((w, h)), _) => attributes.with_inner_size(PhysicalSize::new(w, h)),
            (None, Some((w, h))) => attributes.with_inner_size(LogicalSize::new(w, h)),
            (None, None) => attributes.with_inner_size(LogicalSize::new(1024, 640)),
        };
        let window = Arc::new(events.create_window(attributes).map_err(|error| display(error.to_string()))?);
        let instance = Gpu::instance();
        let surface = instance.create_surface(window.clone()).map_err(|error| display(error.to_string()))?;
        let engine = open_engine(&options, instance, &surface)?;
        let handles = engine.gpu().handles();
        let config = surface_config(&surface, &handles, window.inner_size())?;
        engine.gpu().configure(&surface, &config)?;

        let egui = context();
        let max_texture = handles.device.limits().max_texture_dimension_2d as usize;
        let egui_state = egui_winit::State::new(
            egui.clone(),
            egui::ViewportId::ROOT,
            &window,
            Some(window.scale_factor() as f32),
            window.theme(),
            Some(max_texture),
        );
        let mut shell = Shell {
            scene: Scene::new(engine.clone(), Worker::start("decode", proxy.clone()), budget(&options)),
            tasks: Worker::start("tasks", proxy.clone()),
            painter: Painter::new(&handles, config.format),
            egui_renderer: egui_wgpu::Renderer::new(&handles.device, config.format, Default::default()),
            surface,
            config,
            handles,
            engine,
            egui_state,
            egui,
            controls: Controls::new(!options.bare),
            settings,
            settings_path,
            proxy: proxy.clone(),
            options,
            measure,
            task: None,
            task_count: 0,
            waiting: None,
            clipboard: None,
            model: None,
            repaint_at: None,
            shown: Value::Null,
            probing: false,
            fits: true,
            acquired: Duration::ZERO,
            recorded: Duration::ZERO,
            lost: false,
            window,
        };
        shell.set_theme(shell.settings.theme);
        shell.start();
        shell.window.request_redraw();
        Ok(shell)
    }

    /// Loads the decoders and the file that were asked for.
    fn start(&mut self) {
        let ViewerOptions { weights, compare, model, file, .. } = self.options.clone();
        let main = match &weights {
            Some(path) => files::decoder(&self.engine, path),
            None => files::builtin(&self.engine),
        };
        match main {
            Ok(decoder) => self.scene.load(Side::A, decoder),
            Err(error) => self.controls.fail(&error),
        }
        match compare.map(|path| files::decoder(&self.engine, &path)) {
            Some(Ok(decoder)) => self.scene.load(Side::B, decoder),
            Some(Err(error)) => self.controls.fail(&error),
            None => {}
        }
        match model.map(|path| files::model(&self.engine, &path)) {
            Some(Ok(model)) => self.use_model(*model),
            Some(Err(error)) => self.controls.fail(&error),
            None => {}
        }
        if let Some(file) = file {
            self.open_file(file, Side::A, false);
        }
    }

    fn event(&mut self, events: &ActiveEventLoop, event: WindowEvent) {
        let response = self.egui_state.on_window_event(&self.window, &event);
        if response.repaint && !matches!(event, WindowEvent::RedrawRequested) {
            self.window.request_redraw();
        }
        match event {
            WindowEvent::CloseRequested | WindowEvent::Destroyed => events.exit(),
            WindowEvent::Resized(size) => {
                if size.width > 0 && size.height > 0 {
                    (self.config.width, self.config.height) = (size.width, size.height);
                    self.fits = false;
                }
                self.window.request_redraw();
            }
            WindowEvent::DroppedFile(path) => {
                let right = self.scene.compare() != Compare::Off
                    && self.scene.pointer.is_some_and(|(x, _)| x >= self.scene.split.column(self.controls.canvas[2] as usize) as f64);
                self.open_file(path, if right { Side::B } else { Side::A }, right);
            }
            WindowEvent::RedrawRequested => self.frame(events),
            _ => {}
        }
    }

    /// Fits the surface to the window.
    fn configure(&mut self) {
        self.fits = true;
        if let Err(error) = self.engine.gpu().configure(&self.surface, &self.config)
            && !self.lost
        {
            self.failed(&error);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Progress(true, _, done) => self.scene.progressed(done),
            Message::Progress(false, id, done) => {
                if let Some(task) = self.task.as_mut().filter(|task| task.id == id) {
                    task.progress = done;
                }
            }
            Message::Decoded(id, result, seconds) => match self.scene.ended(id, result, seconds) {
                Ended::Quiet => {}
                Ended::Cancelled(after) => {
                    self.measure.cancels.add(after);
                    self.measure.log(json!({ "event": "cancelled", "after": after.as_secs_f64() }));
                }
                Ended::Decoded => self.measure.decoded += 1,
                Ended::Notice(text) => self.controls.notice(text),
                Ended::Failed(error) => self.failed(&error),
            },
            Message::Done(id, result, seconds) => self.task_done(id, result, seconds),
            Message::Pixel(at, result) => {
                self.probing = false;
                if let Ok(rgba) = result {
                    self.controls.pixel = Some((at, [rgba[0], rgba[1], rgba[2]]));
                }
            }
            Message::Preview(id, preview) => self.previewed(id, &preview),
            Message::Picked(pick, path, after) => self.picked(pick, path, after),
            Message::Quit => {}
        }
        self.window.request_redraw();
    }

    fn failed(&mut self, error: &Error) {
        if self.lost {
            // One dialog is enough: everything fails until the device is opened again.
            return;
        }
        self.measure.log(json!({ "event": "failed", "error": error.to_string() }));
        if matches!(error, Error::DeviceLost { .. }) {
            self.lost = true;
            self.scene.stop();
        }
        self.controls.fail(error);
        self.controls.can_restart = self.lost;
    }

    fn task_done(&mut self, id: u64, result: Result<Done>, seconds: f64) {
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

    fn title(&self) {
        let name = self.scene.document().map(|(name, ..)| format!("{name} - infgen"));
        self.window.set_title(name.as_deref().unwrap_or("infgen"));
    }

    /// Gives `work` to the task worker, in place of what it had.
    fn run_task(&mut self, name: String, work: impl FnOnce(&Observer) -> Result<Done> + Send + 'static) -> &mut Task {
        if let Some(task) = &self.task {
            task.observer.cancel();
        }
        self.task_count += 1;
        let observer = self.tasks.run(false, self.task_count, Message::Done, work);
        self.task.insert(Task { id: self.task_count, name, observer, progress: 0.0, capture: None, opening: None, generating: false })
    }

    fn use_model(&mut self, model: Pipeline) {
        self.controls.prompt.fit(model.parts());
        if let Some(settings) = self.scene.settings() {
            self.controls.prompt.recall(settings);
        }
        self.model = Some(Arc::new(model));
    }

    /// Follows the prompt.
    fn generate(&mut self) {
        let Some(model) = self.model.clone() else { return };
        let request = self.controls.prompt.request();
        let (proxy, id) = (self.proxy.clone(), self.task_count + 1);
        let task = self.run_task("generating".into(), move |observer| prompt::generate(&model, &request, id, &proxy, observer));
        task.generating = true;
    }

    fn previewed(&mut self, id: u64, preview: &Preview) {
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
    fn open_file(&mut self, path: PathBuf, side: Side, as_decoder: bool) {
        let (engine, file) = (self.engine.clone(), path.clone());
        let name = format!("opening {}", files::name_of(&path));
        let task =
            self.run_task(name, move |observer| Ok(Done::Opened(Box::new((files::open(&engine, &file, as_decoder, observer)?, side)))));
        task.opening = Some(path);
    }

    fn pick(&self, pick: Pick) {
        let mut dialog = rfd::FileDialog::new().set_parent(&*self.window);
        dialog = match pick {
            Pick::Open => dialog
                .set_title("Open a latent, a picture or a decoder")
                .add_filter("All that can be opened", &["safetensors", "npy", "png", "jpg", "jpeg", "webp", "json"])
                .add_filter("All files", &["*"]),
            Pick::Model => dialog.set_title("Open a text-to-image model's folder"),
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

    fn picked(&mut self, pick: Pick, path: Option<PathBuf>, after: Duration) {
        let Some(path) = path else {
            if after < Duration::from_millis(150) {
                // No one closes a dialog that fast.
                self.controls.notice(
                    "this desktop shows no file dialogs (xdg-desktop-portal or zenity would): drop a file on the window instead".into(),
                );
            }
            return;
        };
        match pick {
            Pick::Open | Pick::Model => self.open_file(path, Side::A, false),
            Pick::Decoder => self.open_file(path, Side::A, true),
            Pick::Other => self.open_file(path, Side::B, true),
            Pick::Save => self.controls.save_as(&path),
            Pick::SaveView => self.waiting = Some(Capture::File(path)),
        }
    }

    fn save_picture(&mut self, path: PathBuf, w: usize, h: usize) {
        let Some((loaded, latent)) = self.scene.subject() else { return };
        let name = self.scene.document().map_or("", |(name, ..)| name);
        let about = self.scene.settings().cloned().unwrap_or_else(|| json!({ "latent": name, "region": null }));
        self.run_task(format!("saving {}", files::name_of(&path)), move |observer| {
            save::picture(&loaded.decoder, &latent, (w, h), &path, &about, observer).map(Done::Saved)
        });
    }

    /// Draws the canvas without controls into a texture and reads it back.
    fn capture(&mut self, capture: Capture) {
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
        painter.paint(&mut encoder, &texture.create_view(&Default::default()), size, [0.0; 3], &self.scene.quads((0, 0)));
        self.handles.queue.submit([encoder.finish()]);
        let engine = self.engine.clone();
        let name = if matches!(capture, Capture::Clipboard) { "copying" } else { "saving the view" };
        let task = self.run_task(name.into(), move |_| {
            let rgba = pollster::block_on(engine.gpu().read_texture(&texture, [x, y, w, h]))?;
            Ok(Done::Captured(w as usize, h as usize, rgba))
        });
        task.capture = Some(capture);
    }

    /// The part of the canvas that the picture covers, in pixels of the canvas.
    fn visible_canvas(&self) -> [u32; 4] {
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

    fn captured(&mut self, w: usize, h: usize, rgba: Vec<u8>, capture: Option<Capture>) {
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

    fn copy(&mut self, w: usize, h: usize, rgba: Vec<u8>) -> std::result::Result<(), String> {
        let fail = |error: arboard::Error| format!("the clipboard cannot be used: {error}");
        if self.clipboard.is_none() {
            self.clipboard = Some(arboard::Clipboard::new().map_err(fail)?);
        }
        let Some(clipboard) = &mut self.clipboard else { return Ok(()) };
        clipboard.set_image(arboard::ImageData { width: w, height: h, bytes: rgba.into() }).map_err(fail)
    }

    fn set_theme(&mut self, theme: Theme) {
        self.settings.theme = theme;
        self.egui.set_theme(match theme {
            Theme::System => egui::ThemePreference::System,
            Theme::Dark => egui::ThemePreference::Dark,
            Theme::Light => egui::ThemePreference::Light,
        });
    }

    fn remember(&self) {
        if let Some(path) = &self.settings_path
            && let Err(error) = self.settings.write(path)
        {
            log::warn!("settings: {error}");
        }
    }

    fn apply(&mut self, events: &ActiveEventLoop, command: Command) {
        match command {
            Command::Pick(pick) => self.pick(pick),
            Command::Open(path) => self.open_file(path, Side::A, false),
            Command::Generate => self.generate(),
            Command::CompareVae => match self.model.as_ref().map(|model| model.parts().vae_path()) {
                Some(Ok(path)) => self.open_file(path, Side::B, true),
                Some(Err(error)) => self.controls.fail(&error),
                None => {}
            },
            Command::Change(change) => self.scene.change(change),
            Command::Compare(compare) => self.scene.set_compare(compare),
            Command::StepFile(forward) => {
                if let Some(next) = self.options.file.as_deref().and_then(|path| files::neighbour(path, forward)) {
                    self.open_file(next, Side::A, false);
                }
            }
            Command::Reopen => {
                if let Some(path) = self.options.file.clone() {
                    self.open_file(path, Side::A, false);
                }
            }
            Command::StepBatch(by) => self.scene.step_batch(by),
            Command::SavePicture { path, w, h } => self.save_picture(path, w, h),
            Command::Copy => self.waiting = Some(Capture::Clipboard),
            Command::CancelTask => {
                if let Some(task) = &self.task {
                    task.observer.cancel();
                }
                self.waiting = None;
            }
            Command::Theme(theme) => {
                self.set_theme(theme);
                self.remember();
            }
            Command::ClearRecent => {
                self.settings.recent.clear();
                self.remember();
            }
            Command::Fullscreen => {
                let full = self.window.fullscreen().is_some();
                self.window.set_fullscreen((!full).then_some(Fullscreen::Borderless(None)));
            }
            Command::Restart => self.restart(),
            Command::LoseDevice => self.engine.gpu().lose(),
            Command::Quit => events.exit(),
        }
    }

    /// Opens the device anew after it was lost, and what was open with it.
    fn restart(&mut self) {
        let instance = self.handles.instance.clone();
        let engine = match open_engine(&self.options, instance, &self.surface) {
            Ok(engine) => engine,
            Err(error) => {
                self.controls.fail(&error);
                return self.controls.can_restart = true;
            }
        };
        self.lost = false;
        self.handles = engine.gpu().handles();
        match surface_config(&self.surface, &self.handles, self.window.inner_size()) {
            Ok(config) => self.config = config,
            Err(error) => return self.failed(&error),
        }
        self.engine = engine.clone();
        self.configure();
        self.painter = Painter::new(&self.handles, self.config.format);
        self.egui_renderer = egui_wgpu::Renderer::new(&self.handles.device, self.config.format, Default::default());
        self.scene.cancel();
        self.scene = Scene::new(engine.clone(), Worker::start("decode", self.proxy.clone()), budget(&self.options));
        // egui sends its font texture once a context.
        self.egui = context();
        self.egui_state = egui_winit::State::new(
            self.egui.clone(),
            egui::ViewportId::ROOT,
            &self.window,
            Some(self.window.scale_factor() as f32),
            self.window.theme(),
            None,
        );
        self.set_theme(self.settings.theme);
        let prompt = std::mem::take(&mut self.controls.prompt);
        self.controls = Controls::new(self.controls.bars);
        self.controls.prompt = prompt;
        self.model = None;
        self.shown = Value::Null;
        self.start();
    }

    fn frame(&mut self, events: &ActiveEventLoop) {
        let start = Instant::now();
        if let Some(loss) = self.engine.gpu().loss("presenting") {
            self.failed(&loss);
        }
        if !self.fits && !self.lost {
            self.configure();
        }
        let mut input = self.egui_state.take_egui_input(&self.window);
        self.controls.take_tab(&self.egui, &mut input);
        // Of the surface, which the window can be ahead of.
        let points = egui_winit::pixels_per_point(&self.egui, &self.window);
        input.screen_rect = Some(egui::Rect::from_min_size(
            egui::Pos2::ZERO,
            egui::vec2(self.config.width as f32 / points, self.config.height as f32 / points),
        ));
        let model = self.model.as_ref().map(|model| (files::name_of(&model.parts().path), model.parts().vae_path().is_ok()));
        let status = ui::Status {
            scene: &self.scene,
            settings: &self.settings,
            device: self.engine.device(),
            memory: self.engine.memory(),
            task: self.task.as_ref().map(|task| (task.name.as_str(), task.progress)),
            waiting: self.waiting.is_some(),
            model: model.as_ref().map(|(name, vae)| (name.as_str(), *vae)),
            generating: self.task.as_ref().is_some_and(|task| task.generating),
        };
        let mut commands = Vec::new();
        let egui = self.egui.clone();
        let controls = &mut self.controls;
        let output = egui.run_ui(input, |ui| controls.show(ui, &status, &mut commands));
        self.egui_state.handle_platform_output(&self.window, output.platform_output);
        let acted = !commands.is_empty();
        for command in commands {
            self.apply(events, command);
        }
        self.controls.follow(&mut self.scene);
        let [x, y, w, h] = self.controls.canvas;
        let resized = self.scene.set_canvas(w as usize, h as usize);
        self.scene.steer(start);
        let complete = self.scene.is_complete();
        if complete && let Some(capture) = self.waiting.take() {
            self.capture(capture);
        }
        self.probe();

        let delay = output.viewport_output.get(&egui::ViewportId::ROOT).map_or(Duration::MAX, |viewport| viewport.repaint_delay);
        if delay.is_zero() || acted || resized {
            self.window.request_redraw();
        } else if let Some(at) = start.checked_add(delay).filter(|_| delay < Duration::from_secs(3600)) {
            self.repaint_at = Some(at);
        }

        let jobs = egui.tessellate(output.shapes, output.pixels_per_point);
        let mut textures = output.textures_delta;
        let (device, queue) = (self.handles.device.clone(), self.handles.queue.clone());
        for (id, deltas) in std::mem::take(&mut textures.set) {
            for delta in &deltas {
                self.egui_renderer.update_texture(&device, &queue, id, delta);
            }
        }
        let freed = std::mem::take(&mut textures.free);
        let busy = self.scene.is_busy();
        let laid_out = start.elapsed();
        let presented = self.present(&jobs, output.pixels_per_point, (x, y));
        for id in freed {
            self.egui_renderer.free_texture(&id);
        }
        if start.elapsed() > LONG_FRAME {
            let ms = |d: Duration| (d.as_secs_f64() * 1e3) as u32;
            log::debug!(
                "frame of {} ms: controls {}, acquired {}, recorded {} ms, busy {busy}",
                ms(start.elapsed()),
                ms(laid_out),
                ms(self.acquired),
                ms(self.recorded)
            );
        }
        if presented {
            self.measure.presented(start.elapsed(), busy, complete);
            self.log_shown(complete);
        }
    }

    /// Draws and presents one frame. Whether it came onto the screen.
    fn present(&mut self, jobs: &[egui::ClippedPrimitive], pixels_per_point: f32, corner: (u32, u32)) -> bool {
        use wgpu::CurrentSurfaceTexture as Current;
        let asked = Instant::now();
        let frame = match self.surface.get_current_texture() {
            Current::Success(frame) | Current::Suboptimal(frame) => frame,
            Current::Outdated | Current::Lost => {
                if !self.lost {
                    self.configure();
                    self.window.request_redraw();
                }
                return false;
            }
            Current::Timeout => {
                self.window.request_redraw();
                return false;
            }
            Current::Occluded | Current::Validation => return false,
        };
        self.acquired = asked.elapsed();
        let view = frame.texture.create_view(&Default::default());
        let size = (frame.texture.width(), frame.texture.height());
        let screen = egui_wgpu::ScreenDescriptor { size_in_pixels: [size.0, size.1], pixels_per_point };
        let mut encoder = self.handles.device.create_command_encoder(&Default::default());
        let extra = self.egui_renderer.update_buffers(&self.handles.device, &self.handles.queue, &mut encoder, jobs, &screen);
        let background = ui::background(&self.egui);
        self.painter.paint(&mut encoder, &view, size, background, &self.scene.quads(corner));
        let pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("controls"),
            color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                view: &view,
                depth_slice: None,
                resolve_target: None,
                ops: wgpu::Operations { load: wgpu::LoadOp::Load, store: wgpu::StoreOp::Store },
            })],
            ..Default::default()
        });
        self.egui_renderer.render(&mut pass.forget_lifetime(), jobs, &screen);
        self.handles.queue.submit(extra.into_iter().chain([encoder.finish()]));
        self.recorded = asked.elapsed();
        self.window.pre_present_notify();
        self.handles.queue.present(frame);
        true
    }

    /// Asks for the pixel under the pointer.
    fn probe(&mut self) {
        let wanted = self.scene.texel();
        let known = self.controls.pixel.map(|(at, _)| at);
        match wanted {
            None => self.controls.pixel = None,
            Some((picture, texel, at)) if known != Some(at) && !self.probing => {
                self.probing = true;
                jobs::probe(&self.engine, picture, texel, at, &self.proxy);
            }
            Some(_) => {}
        }
    }

    fn log_shown(&mut self, complete: bool) {
        if !complete {
            return;
        }
        let Some(place) = self.scene.place(Side::A) else { return };
        let [x, y, w, h] = self.controls.canvas;
        let shown = json!({
            "event": "shown",
            "document": self.scene.document().map(|(name, index, _)| json!([name, index])),
            "level": [place.level.w, place.level.h],
            "canvas": [x, y, w, h],
            "origin": [f64::from(x) + place.x, f64::from(y) + place.y],
            "size": [place.w, place.h],
            "compare": self.scene.compare().name(),
            "split": self.scene.split.column(w as usize),
            "tiles": self.scene.tiles().is_some(),
        });
        if shown != self.shown {
            self.shown = shown.clone();
            let mut event = shown;
            event["seconds"] = json!(self.scene.seconds());
            event["gpu_bytes"] = json!(self.engine.memory().current);
            self.measure.log(event);
        }
    }

    fn close(mut self) -> Value {
        self.scene.cancel();
        if let Some(task) = &self.task {
            task.observer.cancel();
        }
        let size = self.window.inner_size().to_logical::<u32>(self.window.scale_factor());
        if self.options.size.is_none() && self.window.fullscreen().is_none() {
            self.settings.window = Some((size.width, size.height));
            self.remember();
        }
        let device = self.engine.device();
        let mut report = self.measure.report();
        report["command"] = json!("view");
        report["peak_gpu_bytes"] = json!(self.engine.memory().peak);
        report["device"] = json!({ "name": device.name, "backend": device.backend, "driver": device.driver });
        let mut event = report.clone();
        event["event"] = json!("closed");
        self.measure.log(event);
        report
    }
}

/// A path as people write it in messages and fields.
pub fn shown_path(path: &Path) -> String {
    path.display().to_string()
}
