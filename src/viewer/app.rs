//! The window: events in, frames out.

mod frames;
mod tasks;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use winit::application::ApplicationHandler;
use winit::dpi::{LogicalSize, PhysicalSize};
use winit::error::EventLoopError;
use winit::event::WindowEvent;
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop, EventLoopProxy};
use winit::window::{Fullscreen, Window, WindowId};

use super::cache::give_up;
use super::device::{budget, context, open_engine, surface_config};
use super::files;
use super::jobs::{Decoded, Message, Worker};
use super::measure::Measure;
use super::paint::Painter;
use super::scene::{Ended, Scene};
use super::settings::{self, Settings, Theme};
use super::split::Compare;
use super::ui::{Command, Controls};
use super::work::Side;
use crate::engine::{Dtype, Engine, Tuning};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Handles, Observer};
use crate::pipeline::Pipeline;

/// Rest between two tries to fit the surface to the window, and the first one between two tries to open a lost device.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Tries to open a lost device, each after a rest twice as long.
const REOPEN_TRIES: u32 = 6;

/// A device that lasted for so long does not count as lost again.
const REOPEN_SPELL: Duration = Duration::from_secs(30);

/// How to open the viewer.
#[derive(Debug, Clone, Default)]
pub struct ViewerOptions {
    /// Adapter index, a part of its name, or a backend; none: the best that can present.
    pub device: Option<String>,
    /// Storage type.
    pub dtype: Dtype,
    /// Ceiling on GPU memory in bytes.
    pub memory: Option<u64>,
    /// Host memory in bytes that a decode under a ceiling may keep planes in; none: half of this machine's.
    pub host_memory: Option<u64>,
    /// Whether kernels are chosen by measuring, as [`crate::EngineOptions::tuning`].
    pub tuning: Tuning,
    /// A latent, picture or decoder to open.
    pub file: Option<PathBuf>,
    /// Decoder instead of the one that ships.
    pub weights: Option<PathBuf>,
    /// Decoder to compare with.
    pub compare: Option<PathBuf>,
    /// Text-to-image or class-conditional model: a diffusers folder or a single-file checkpoint.
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
    let no_display = |error: EventLoopError| {
        let text = error.to_string();
        // It begins with the place in its source.
        let reason = text.split_once(".rs:").and_then(|(_, rest)| rest.split_once(": ")).map_or(text.as_str(), |(_, reason)| reason);
        display(format!("{}; `infgen decode` needs no display", reason.trim_end_matches('.')))
    };
    let events = EventLoop::<Message>::with_user_event().build().map_err(no_display)?;
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
        if let Some(mut shell) = self.shell.take() {
            self.failure = shell.fatal.take();
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
    /// While a software device decodes, the next frame comes no earlier: what draws is what decodes.
    rest_until: Option<Instant>,
    /// What was logged as shown last.
    shown: Value,
    probing: bool,
    /// Whether the surface is configured for the window's size. Before a frame, not in every step of a resize: it waits for
    /// the work in flight.
    fits: bool,
    /// Since when that is tried in vain.
    unfit_since: Option<Instant>,
    /// Why the device was lost, until it is back.
    lost: Option<Error>,
    /// When it was opened again, and how many times in vain or for a short time only.
    reopened: (Instant, u32),
    /// What ends the program.
    fatal: Option<Error>,
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
            rest_until: None,
            shown: Value::Null,
            probing: false,
            fits: false,
            unfit_since: None,
            lost: None,
            reopened: (Instant::now(), 0),
            fatal: None,
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
            Some(path) => files::decoder(&self.engine, path, &Observer::default()),
            None => files::builtin(&self.engine),
        };
        match main {
            Ok(decoder) => self.scene.load(Side::A, decoder),
            Err(error) => self.failed(&error),
        }
        match compare.map(|path| files::decoder(&self.engine, &path, &Observer::default())) {
            Some(Ok(decoder)) => self.scene.load(Side::B, decoder),
            Some(Err(error)) => self.failed(&error),
            None => {}
        }
        match model.map(|path| files::model(&self.engine, &path)) {
            Some(Ok(model)) => self.use_model(*model),
            Some(Err(error)) => self.failed(&error),
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
            WindowEvent::RedrawRequested => match self.rest_until.filter(|at| self.scene.is_busy() && Instant::now() < *at) {
                Some(at) => self.repaint_by(at),
                None => self.frame(events),
            },
            _ => {}
        }
    }

    fn repaint_by(&mut self, at: Instant) {
        self.repaint_at = Some(self.repaint_at.map_or(at, |due| due.min(at)));
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Progress(true, _, done) => self.scene.progressed(done),
            Message::Progress(false, id, done) => {
                if let Some(task) = self.task.as_mut().filter(|task| task.id == id) {
                    task.progress = done;
                }
            }
            Message::Decoded(id, result, seconds) => match self.ended(id, result, seconds) {
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

    fn ended(&mut self, id: u64, result: Result<Decoded>, seconds: f64) -> Ended {
        let result = self.make_room(result);
        self.scene.ended(id, result, seconds)
    }

    /// Pictures out of view, then the weights that are kept for the next prompt, give way to a picture that does not fit beside them, where that
    /// is enough: what failed is then wanted again, as if it had been cancelled.
    fn make_room(&mut self, result: Result<Decoded>) -> Result<Decoded> {
        let (spare, kept) = (self.scene.spare_bytes(), self.model.as_ref().map_or(0, |model| model.kept_bytes()));
        let given = match &result {
            Err(Error::MemoryCeiling { needed, ceiling }) => give_up(needed.saturating_sub(*ceiling), spare, kept),
            // How much is free beside it no one knows, so what there is to give may do although it is less.
            Err(Error::OutOfMemory { bytes, .. }) => give_up((*bytes).min(spare + kept), spare, kept),
            _ => None,
        };
        let Some((pictures, weights)) = given else { return result };
        let mut freed = self.scene.free(pictures);
        if weights && let Some(model) = &self.model {
            freed += model.release();
        }
        if freed > 0 { Err(Error::Cancelled) } else { result }
    }

    fn failed(&mut self, error: &Error) {
        if self.lost.is_some() {
            // One message is enough: everything fails until the device is opened again.
            return;
        }
        self.measure.log(json!({ "event": "failed", "error": error.to_string() }));
        if let Error::DeviceLost { during, reason } = error {
            // Nothing can be drawn without it, so there is no one to ask.
            self.lost = Some(Error::DeviceLost { during: during.clone(), reason: reason.clone() });
            self.scene.stop();
            self.window.set_title("the GPU was lost, opening it again - infgen");
            self.window.request_redraw();
            return;
        }
        self.controls.fail(error);
    }

    fn title(&self) {
        let name = self.scene.document().map(|(name, ..)| format!("{name} - infgen"));
        self.window.set_title(name.as_deref().unwrap_or("infgen"));
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
            Command::Picked(pick, path) => self.use_path(pick, path),
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
            Command::LoseDevice => self.engine.gpu().lose(),
            Command::Quit => events.exit(),
        }
    }

    /// Opens the device anew after it was lost, and what was open with it. Where that fails again and again the program ends
    /// with the reason.
    fn restart(&mut self, loss: Error) {
        let (last, count) = self.reopened;
        let count = if last.elapsed() > REOPEN_SPELL { 1 } else { count + 1 };
        self.reopened = (Instant::now(), count);
        if count > REOPEN_TRIES {
            return self.fatal = Some(loss);
        }
        if let Err(error) = self.reopen() {
            log::warn!("opening the device again: {error}");
            self.repaint_by(Instant::now() + TRY_AGAIN * (1 << count));
            return self.lost = Some(loss);
        }
        let reason = if let Error::DeviceLost { reason, .. } = &loss { reason.as_str() } else { "" };
        self.controls
            .fail_text(format!("The GPU was lost: {reason}. It was opened again, and the file with it; what was running has ended."));
    }

    fn reopen(&mut self) -> Result<()> {
        let engine = open_engine(&self.options, self.handles.instance.clone(), &self.surface)?;
        self.handles = engine.gpu().handles();
        self.config = surface_config(&self.surface, &self.handles, self.window.inner_size())?;
        self.engine = engine.clone();
        self.fits = false;
        self.painter = Painter::new(&self.handles, self.config.format);
        self.egui_renderer = egui_wgpu::Renderer::new(&self.handles.device, self.config.format, Default::default());
        self.scene.cancel();
        let mut scene = Scene::new(engine.clone(), Worker::start("decode", self.proxy.clone()), budget(&self.options));
        scene.follow(&self.scene);
        self.scene = scene;
        // Its end would tell of the same loss once more.
        if let Some(task) = self.task.take() {
            task.observer.cancel();
        }
        // egui sends its font texture once a context.
        self.egui = context();
        let max_texture = self.handles.device.limits().max_texture_dimension_2d as usize;
        self.egui_state = egui_winit::State::new(
            self.egui.clone(),
            egui::ViewportId::ROOT,
            &self.window,
            Some(self.window.scale_factor() as f32),
            self.window.theme(),
            Some(max_texture),
        );
        self.set_theme(self.settings.theme);
        let prompt = std::mem::take(&mut self.controls.prompt);
        self.controls = Controls::new(self.controls.bars);
        self.controls.prompt = prompt;
        (self.model, self.waiting, self.probing) = (None, None, false);
        self.shown = Value::Null;
        self.title();
        self.start();
        Ok(())
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
