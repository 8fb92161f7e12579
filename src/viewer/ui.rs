//! The controls: menus, status line, dialogs, keys. Draws with egui and says what was asked for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egui::{Align, Align2, Color32, Event, Key as Press, Layout, Modifiers, MouseWheelUnit, RichText, Sense, Ui, vec2};

use super::app::shown_path;
use super::dialogs::{PathDialog, SaveDialog, dialog_width};
use super::jobs::{Pick, PixelAt};
use super::prompt::Prompt;
use super::scene::Scene;
use super::settings::{Settings, Theme};
use super::split::Compare;
use super::view::{Level, Mode, View};
use super::work::{Key, Side};
use crate::engine::MAX_SIDE;
use crate::error::{Error, human_bytes};
use crate::gpu::{AdapterFacts, MemoryUse};

/// What was asked for.
pub enum Command {
    Pick(Pick),
    Picked(Pick, PathBuf),
    Open(PathBuf),
    Change(Box<dyn FnOnce(&mut View)>),
    Compare(Compare),
    StepBatch(isize),
    /// The next file of the folder, or the one before.
    StepFile(bool),
    /// The same file again.
    Reopen,
    SavePicture {
        path: PathBuf,
        w: usize,
        h: usize,
    },
    Copy,
    Generate,
    CompareVae,
    CancelTask,
    Theme(Theme),
    ClearRecent,
    Fullscreen,
    LoseDevice,
    Quit,
}

/// What the controls show.
pub struct Status<'a> {
    pub scene: &'a Scene,
    pub settings: &'a Settings,
    pub device: &'a AdapterFacts,
    pub memory: MemoryUse,
    pub task: Option<(&'a str, f64)>,
    /// The name of the prompt panel's model, and whether it brings a VAE.
    pub model: Option<(&'a str, bool)>,
    pub generating: bool,
    pub waiting: bool,
}

/// Keys, as the help lists them.
const KEYS: [(&str, &str); 19] = [
    ("wheel, pinch, + -", "zoom at the pointer"),
    ("drag, arrows", "move"),
    ("F, double click", "fit the window"),
    ("W", "fill the window: a decode of exactly its shape"),
    ("1  2  4  8", "100 %, 200 %, 400 %, 800 % of the native size"),
    ("C", "next comparison"),
    ("drag the line", "move the split"),
    ("Page Up, Page Down", "other latents of a batch"),
    ("[  ]", "previous, next file of the folder"),
    ("Ctrl+R", "open the file again"),
    ("P", "prompt: text to image"),
    ("Ctrl+O", "open a latent, a picture, a decoder or a model"),
    ("Ctrl+S", "save the picture at any size"),
    ("Ctrl+Shift+S", "save the view"),
    ("Ctrl+C", "copy the view"),
    ("Tab", "show or hide the controls"),
    ("F11", "full screen"),
    ("?", "this help"),
    ("Ctrl+Q", "quit"),
];

/// How long a notice stays.
const NOTICE: Duration = Duration::from_secs(6);

/// Bars are left out of windows that are smaller, in points.
const MIN_FOR_BARS: egui::Vec2 = vec2(240.0, 150.0);

/// The prompt panel is left out of windows that are narrower, in points.
const MIN_FOR_PANEL: f32 = 360.0;

/// Points between two facts of the status line, with the line there.
const FACT_GAP: f32 = 27.0;

/// Points that the list of keys takes.
const HELP_WIDTH: f32 = 480.0;

/// Points that the readout of a pixel takes.
const READOUT: f32 = 250.0;

/// Screen pixels that an arrow key moves the picture by, as a share of the canvas.
const ARROW: f64 = 0.1;

/// State of the controls.
pub struct Controls {
    /// Whether the bars are shown.
    pub bars: bool,
    /// The canvas in pixels of the window: x, y, w, h.
    pub canvas: [u32; 4],
    /// The pixel read out last.
    pub pixel: Option<(PixelAt, [u8; 3])>,
    /// The prompt panel.
    pub prompt: Prompt,
    error: Option<String>,
    notice: Option<(String, Instant)>,
    help: bool,
    save: Option<SaveDialog>,
    ask: Option<PathDialog>,
    pointer: Option<(f64, f64)>,
    split_to: Option<f64>,
    split_held: bool,
    /// Where the pointer was when the drag was last followed.
    dragged_from: Option<(f64, f64)>,
}

impl Controls {
    /// As they are at the start.
    pub fn new(bars: bool) -> Controls {
        Controls {
            bars,
            canvas: [0, 0, 1, 1],
            pixel: None,
            prompt: Prompt::default(),
            error: None,
            notice: None,
            help: false,
            save: None,
            ask: None,
            pointer: None,
            split_to: None,
            split_held: false,
            dragged_from: None,
        }
    }

    /// Shows an error as a dialog.
    pub fn fail(&mut self, error: &Error) {
        self.fail_text(error.to_string());
    }

    /// See [`Controls::fail`].
    pub fn fail_text(&mut self, text: String) {
        self.error = Some(text);
    }

    /// Whether a dialog has the keyboard.
    fn dialog(&self) -> bool {
        self.error.is_some() || self.save.is_some() || self.ask.is_some()
    }

    /// Shows a line for a few seconds.
    pub fn notice(&mut self, text: String) {
        self.notice = Some((text, Instant::now()));
    }

    /// Asks for a path: there is no file dialog.
    pub fn ask_path(&mut self, pick: Pick) {
        match pick {
            Pick::Save => self.notice("this desktop shows no file dialogs: type the name".into()),
            _ => self.ask = Some(PathDialog::new(pick)),
        }
    }

    /// Puts a name into the save dialog.
    pub fn save_as(&mut self, path: &Path) {
        if let Some(save) = &mut self.save {
            save.set_path(path);
        }
    }

    /// Hands pointer and split on to the scene.
    pub fn follow(&mut self, scene: &mut Scene) {
        scene.pointer = self.pointer;
        if let Some(x) = self.split_to.take() {
            scene.split.drag(x, self.canvas[2] as usize);
        }
    }

    /// Tab shows and hides the bars; to egui it would move the keyboard's focus, which dialogs need.
    pub fn take_tab(&mut self, ctx: &egui::Context, input: &mut egui::RawInput) {
        if self.dialog() || ctx.egui_wants_keyboard_input() {
            return;
        }
        input.events.retain(|event| match event {
            Event::Key { key: Press::Tab, pressed, modifiers, .. } if modifiers.is_none() => {
                self.bars ^= *pressed;
                false
            }
            _ => true,
        });
    }

    /// One frame.
    pub fn show(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        let ctx = ui.ctx().clone();
        let room = ctx.content_rect().size();
        if self.bars && room.x >= MIN_FOR_BARS.x && room.y >= MIN_FOR_BARS.y {
            egui::Panel::top("menus").show(ui, |ui| self.menus(ui, status, commands));
            egui::Panel::bottom("status").show(ui, |ui| self.status(ui, status, commands));
        }
        if self.prompt.open && room.x >= MIN_FOR_PANEL {
            let panel = egui::Panel::left("prompt").resizable(true).default_size(250.0).size_range(180.0..=room.x * 0.6);
            panel.show(ui, |ui| self.prompt.show(ui, status.model, status.generating, commands));
        }
        self.canvas(ui, status, commands);
        self.help(&ctx);
        self.save_dialog(&ctx, status, commands);
        self.path_dialog(&ctx, commands);
        self.error(&ctx);
    }

    fn menus(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        egui::MenuBar::new().ui(ui, |ui| {
            ui.menu_button("File", |ui| self.file_menu(ui, status, commands));
            ui.menu_button("View", |ui| self.view_menu(ui, status, commands));
            ui.menu_button("Compare", |ui| {
                let current = status.scene.compare();
                for compare in [Compare::Off, Compare::Lanczos, Compare::Bicubic, Compare::Original] {
                    let possible = status.scene.can_compare(compare);
                    if ui.add_enabled(possible, egui::Button::selectable(current == compare, compare.name())).clicked() {
                        commands.push(Command::Compare(compare));
                    }
                }
                if let Some(name) = status.scene.decoder_name(Side::B)
                    && ui.selectable_label(current == Compare::Decoder, name).clicked()
                {
                    commands.push(Command::Compare(Compare::Decoder));
                }
                ui.separator();
                if ui.button("Another decoder…").clicked() {
                    commands.push(Command::Pick(Pick::Other));
                }
            });
            if ui.button("?").on_hover_text("Keys").clicked() {
                self.help = true;
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let Some((_, scale, mode)) = status.scene.zoom() else { return };
                let Some(place) = status.scene.place(Side::A) else { return };
                let magnified =
                    if place.magnified() { format!(", each pixel × {:.1}", place.w / place.level.w as f64) } else { String::new() };
                ui.label(RichText::new(format!("{:.0} %{magnified}", scale * 100.0)).monospace())
                    .on_hover_text("Of the native size, the latent's times the decoder's scale");
                for (label, wanted, hint) in
                    [("Fill", Mode::Fill, "The window's own shape (W)"), ("Fit", Mode::Fit, "The picture's shape (F)")]
                {
                    if ui.selectable_label(mode == wanted, label).on_hover_text(hint).clicked() {
                        commands.push(change(move |view| view.set_mode(wanted)));
                    }
                }
            });
        });
    }

    fn file_menu(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        let mut item = |ui: &mut Ui, text: &str, keys: &str, enabled: bool, command: Command| {
            if ui.add_enabled(enabled, egui::Button::new(text).shortcut_text(keys)).clicked() {
                commands.push(command);
            }
        };
        let open = status.scene.document().is_some();
        item(ui, "Open…", "Ctrl+O", true, Command::Pick(Pick::Open));
        item(ui, "Open decoder…", "", true, Command::Pick(Pick::Decoder));
        item(ui, "Open model folder…", "", true, Command::Pick(Pick::Model));
        ui.menu_button("Recent", |ui| {
            for path in &status.settings.recent {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if ui.button(name).on_hover_text(shown_path(path)).clicked() {
                    commands.push(Command::Open(path.clone()));
                }
            }
            ui.separator();
            if ui.add_enabled(!status.settings.recent.is_empty(), egui::Button::new("Forget these")).clicked() {
                commands.push(Command::ClearRecent);
            }
        });
        ui.separator();
        if ui.add_enabled(open, egui::Button::new("Save picture…").shortcut_text("Ctrl+S")).clicked() {
            self.open_save(status);
        }
        let mut item = |ui: &mut Ui, text: &str, keys: &str, enabled: bool, command: Command| {
            if ui.add_enabled(enabled, egui::Button::new(text).shortcut_text(keys)).clicked() {
                commands.push(command);
            }
        };
        item(ui, "Save view…", "Ctrl+Shift+S", open, Command::Pick(Pick::SaveView));
        item(ui, "Copy view", "Ctrl+C", open, Command::Copy);
        ui.separator();
        item(ui, "Quit", "Ctrl+Q", true, Command::Quit);
    }

    fn view_menu(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        let middle = self.middle();
        let mut item = |ui: &mut Ui, text: &str, keys: &str, command: Command| {
            if ui.add(egui::Button::new(text).shortcut_text(keys)).clicked() {
                commands.push(command);
            }
        };
        item(ui, "Fit", "F", change(|view| view.set_mode(Mode::Fit)));
        item(ui, "Fill", "W", change(|view| view.set_mode(Mode::Fill)));
        item(ui, "Zoom in", "+", change(move |view| view.step(2, middle)));
        item(ui, "Zoom out", "-", change(move |view| view.step(-2, middle)));
        for (text, keys, scale) in [("100 %", "1", 1.0), ("200 %", "2", 2.0), ("400 %", "4", 4.0), ("800 %", "8", 8.0)] {
            item(ui, text, keys, change(move |view| view.set_scale(scale)));
        }
        item(
            ui,
            "Largest decode",
            "",
            change(|view| {
                let native = view.native();
                view.set_scale(MAX_SIDE as f64 / native.w.max(native.h) as f64);
            }),
        );
        ui.separator();
        if ui.add(egui::Button::selectable(self.prompt.open, "Prompt").shortcut_text("P")).clicked() {
            self.prompt.open = !self.prompt.open;
        }
        item(ui, "Full screen", "F11", Command::Fullscreen);
        ui.menu_button("Theme", |ui| {
            for (theme, name) in [(Theme::System, "As the desktop"), (Theme::Dark, "Dark"), (Theme::Light, "Light")] {
                if ui.selectable_label(status.settings.theme == theme, name).clicked() {
                    commands.push(Command::Theme(theme));
                }
            }
        });
        if ui.add(egui::Button::new("Hide controls").shortcut_text("Tab")).clicked() {
            self.bars = false;
        }
    }

    fn status(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 10.0;
            if let Some((name, done)) = status.task {
                ui.add(egui::ProgressBar::new(done as f32).desired_width(90.0).show_percentage());
                ui.label(name);
                if ui.small_button("Cancel").clicked() {
                    commands.push(Command::CancelTask);
                }
                ui.separator();
            } else if let Some((key, done)) = status.scene.running() {
                ui.add(egui::ProgressBar::new(done as f32).desired_width(90.0).show_percentage());
                let Level { w, h } = key.level();
                ui.label(match key {
                    Key::Whole(..) => format!("decoding {w} × {h}"),
                    Key::Prepare(..) => format!("preparing {w} × {h}"),
                    Key::Tile(..) => match status.scene.tiles() {
                        Some((done, all)) => format!("tile {} of {all}", (done + 1).min(all)),
                        None => "decoding".into(),
                    },
                });
                ui.separator();
            } else if status.waiting {
                ui.spinner();
                ui.label("waiting for the picture");
                ui.separator();
            }
            let notice = self.notice.as_ref().filter(|(_, at)| at.elapsed() < NOTICE).map(|(text, _)| text.clone());
            if let Some(text) = notice {
                ui.add(egui::Label::new(RichText::new(text).strong()).truncate());
                ui.ctx().request_repaint_after(NOTICE);
            } else if let Some((at, [r, g, b])) = self.pixel.filter(|_| ui.available_width() > READOUT) {
                let (rect, _) = ui.allocate_exact_size(vec2(12.0, 12.0), Sense::hover());
                ui.painter().rect_filled(rect, 2.0, Color32::from_rgb(r, g, b));
                ui.monospace(format!("{}, {}  {r:3} {g:3} {b:3}  #{r:02x}{g:02x}{b:02x}", at.level.0, at.level.1));
            }
            facts(ui, status);
        });
    }

    fn canvas(&mut self, ui: &mut Ui, status: &Status<'_>, commands: &mut Vec<Command>) {
        let ctx = ui.ctx().clone();
        let points = f64::from(ctx.pixels_per_point());
        let rect = ui.available_rect_before_wrap();
        let edge = |value: f32| (f64::from(value) * points).round().max(0.0) as u32;
        let (x, y) = (edge(rect.left()), edge(rect.top()));
        self.canvas = [x, y, edge(rect.right()).saturating_sub(x), edge(rect.bottom()).saturating_sub(y)];
        let response = ui.interact(rect, ui.scope_id().with("canvas"), Sense::click_and_drag());
        let on_canvas = |at: egui::Pos2| (f64::from(at.x) * points - f64::from(x), f64::from(at.y) * points - f64::from(y));
        self.pointer = response.hover_pos().map(on_canvas);
        let scene = status.scene;
        if scene.document().is_none() && !status.generating {
            self.welcome(ui, rect, status);
        }

        // The split, or the picture, under the pointer.
        let width = self.canvas[2] as usize;
        let compared = scene.compare() != Compare::Off && scene.document().is_some();
        let near = compared && self.pointer.is_some_and(|(x, _)| scene.split.is_near(x, width, points));
        if response.drag_started() {
            // From where it was pressed, not from where it was clear that this is no click.
            self.dragged_from = ctx.input(|input| input.pointer.press_origin()).map(on_canvas);
            self.split_held = compared && self.dragged_from.is_some_and(|(x, _)| scene.split.is_near(x, width, points));
        }
        let at = response.interact_pointer_pos().map(on_canvas);
        if let (true, Some((x, y)), Some(from)) = (response.dragged() || response.drag_stopped(), at, self.dragged_from) {
            if self.split_held {
                self.split_to = Some(x);
            } else if (x, y) != from {
                commands.push(change(move |view| view.pan(x - from.0, y - from.1)));
            }
            self.dragged_from = Some((x, y));
        }
        if !response.dragged() {
            self.split_held = false;
        }
        if near || self.split_held {
            ctx.set_cursor_icon(egui::CursorIcon::ResizeHorizontal);
        } else if response.dragged() {
            ctx.set_cursor_icon(egui::CursorIcon::Grabbing);
        }
        if response.double_clicked() {
            commands.push(change(|view| view.set_mode(Mode::Fit)));
        }
        if compared {
            self.split_line(ui, rect, points, status);
        }
        if !self.bars {
            self.bare_notice(ui, rect);
        }
        if response.contains_pointer() {
            self.wheel(&ctx, commands);
        }
        if ctx.input_mut(|input| input.consume_key(Modifiers::COMMAND, Press::Q)) {
            commands.push(Command::Quit);
        }
        if !self.dialog() && !ctx.egui_wants_keyboard_input() {
            self.keys(&ctx, status, commands);
        }
    }

    fn middle(&self) -> (f64, f64) {
        (f64::from(self.canvas[2]) / 2.0, f64::from(self.canvas[3]) / 2.0)
    }

    fn wheel(&mut self, ctx: &egui::Context, commands: &mut Vec<Command>) {
        let at = self.pointer.unwrap_or(self.middle());
        for event in ctx.input(|input| input.raw.events.clone()) {
            match event {
                Event::MouseWheel { unit: MouseWheelUnit::Line, delta, .. } => {
                    let steps = delta.y.round() as i32;
                    if steps != 0 {
                        commands.push(change(move |view| view.step(steps, at)));
                    }
                }
                // Touchpads scroll in points, smoothly.
                Event::MouseWheel { delta, .. } if delta.y != 0.0 => {
                    let factor = (f64::from(delta.y) / 200.0).clamp(-1.0, 1.0).exp2();
                    commands.push(change(move |view| view.zoom(factor, at)));
                }
                Event::Zoom(factor) => commands.push(change(move |view| view.zoom(f64::from(factor), at))),
                _ => {}
            }
        }
    }

    fn keys(&mut self, ctx: &egui::Context, status: &Status<'_>, commands: &mut Vec<Command>) {
        let at = self.pointer.unwrap_or(self.middle());
        let (dx, dy) = (f64::from(self.canvas[2]) * ARROW, f64::from(self.canvas[3]) * ARROW);
        for event in ctx.input(|input| input.raw.events.clone()) {
            let (key, modifiers) = match event {
                Event::Copy => {
                    commands.push(Command::Copy);
                    continue;
                }
                Event::Key { key, pressed: true, modifiers, .. } => (key, modifiers),
                _ => continue,
            };
            let control = modifiers.matches_logically(Modifiers::COMMAND);
            match key {
                Press::O if control => commands.push(Command::Pick(Pick::Open)),
                Press::R if control => commands.push(Command::Reopen),
                Press::S if modifiers.command && modifiers.shift => commands.push(Command::Pick(Pick::SaveView)),
                Press::S if control && status.scene.document().is_some() => self.open_save(status),
                Press::F12 if modifiers.command && modifiers.shift && std::env::var_os("INFGEN_VIEW_TEST").is_some() => {
                    commands.push(Command::LoseDevice);
                }
                _ if modifiers.command || modifiers.alt => {}
                Press::F => commands.push(change(|view| view.set_mode(Mode::Fit))),
                Press::W => commands.push(change(|view| view.set_mode(Mode::Fill))),
                Press::Num1 => commands.push(change(|view| view.set_scale(1.0))),
                Press::Num2 => commands.push(change(|view| view.set_scale(2.0))),
                Press::Num4 => commands.push(change(|view| view.set_scale(4.0))),
                Press::Num8 => commands.push(change(|view| view.set_scale(8.0))),
                Press::Plus | Press::Equals => commands.push(change(move |view| view.step(2, at))),
                Press::Minus => commands.push(change(move |view| view.step(-2, at))),
                Press::ArrowLeft => commands.push(change(move |view| view.pan(dx, 0.0))),
                Press::ArrowRight => commands.push(change(move |view| view.pan(-dx, 0.0))),
                Press::ArrowUp => commands.push(change(move |view| view.pan(0.0, dy))),
                Press::ArrowDown => commands.push(change(move |view| view.pan(0.0, -dy))),
                Press::OpenBracket => commands.push(Command::StepFile(false)),
                Press::CloseBracket => commands.push(Command::StepFile(true)),
                Press::PageUp => commands.push(Command::StepBatch(-1)),
                Press::PageDown => commands.push(Command::StepBatch(1)),
                Press::C => commands.push(Command::Compare(status.scene.compare().next(|compare| status.scene.can_compare(compare)))),
                Press::P => self.prompt.open = !self.prompt.open,
                Press::F11 => commands.push(Command::Fullscreen),
                Press::Questionmark => self.help = !self.help,
                Press::Escape if self.help => self.help = false,
                Press::Escape if status.task.is_some() || status.waiting => commands.push(Command::CancelTask),
                _ => {}
            }
        }
    }

    fn welcome(&self, ui: &Ui, rect: egui::Rect, status: &Status<'_>) {
        let painter = ui.painter_at(rect);
        let visuals = ui.visuals();
        let size = (rect.height() / 12.0).min(rect.width() / 16.0).clamp(9.0, 26.0);
        let text = if status.task.is_some() { "opening …" } else { "Drop a latent or a picture here" };
        painter.text(
            rect.center() - vec2(0.0, size * 0.7),
            Align2::CENTER_CENTER,
            text,
            egui::FontId::proportional(size),
            visuals.text_color(),
        );
        if rect.height() > 80.0 && status.task.is_none() {
            let hint = "Ctrl+O opens a file,  ? shows the keys";
            let font = egui::FontId::proportional(size * 0.6);
            painter.text(rect.center() + vec2(0.0, size * 0.8), Align2::CENTER_CENTER, hint, font, visuals.weak_text_color());
        }
    }

    /// With the bars hidden, what must be said all the same.
    fn bare_notice(&self, ui: &Ui, rect: egui::Rect) {
        if let Some((text, _)) = self.notice.as_ref().filter(|(_, at)| at.elapsed() < NOTICE / 3) {
            tag(ui, rect.left_bottom() + vec2(6.0, -6.0), Align2::LEFT_BOTTOM, text);
            ui.ctx().request_repaint_after(NOTICE / 3);
        }
    }

    fn split_line(&self, ui: &Ui, rect: egui::Rect, points: f64, status: &Status<'_>) {
        let scene = status.scene;
        let column = scene.split.column(self.canvas[2] as usize);
        let x = ((f64::from(self.canvas[0]) + column as f64) / points) as f32;
        let painter = ui.painter_at(rect);
        let line = |width: f32, colour| painter.vline(x, rect.y_range(), egui::Stroke::new(width, colour));
        line(3.0, Color32::from_black_alpha(120));
        line(1.0, Color32::WHITE);
        let knob = egui::pos2(x, rect.center().y);
        painter.circle(knob, 7.0, Color32::WHITE, egui::Stroke::new(1.5, Color32::from_black_alpha(160)));
        let other = match scene.compare() {
            Compare::Decoder => scene.decoder_name(Side::B).unwrap_or_default(),
            compare => compare.name(),
        };
        if rect.height() > 60.0 {
            let top = rect.top() + 6.0;
            tag(ui, egui::pos2(x - 10.0, top), Align2::RIGHT_TOP, scene.decoder_name(Side::A).unwrap_or_default());
            tag(ui, egui::pos2(x + 10.0, top), Align2::LEFT_TOP, other);
        }
    }

    fn help(&mut self, ctx: &egui::Context) {
        let mut open = self.help;
        egui::Window::new("Keys")
            .open(&mut open)
            .collapsible(false)
            .resizable(false)
            .anchor(Align2::CENTER_CENTER, vec2(0.0, 0.0))
            .vscroll(true)
            .hscroll(ctx.content_rect().width() < HELP_WIDTH)
            .max_width((ctx.content_rect().width() - 16.0).max(40.0))
            .max_height((ctx.content_rect().height() - 50.0).max(40.0))
            .default_height(ctx.content_rect().height() - 50.0)
            .show(ctx, |ui| {
                egui::Grid::new("keys").num_columns(2).spacing(vec2(24.0, 4.0)).show(ui, |ui| {
                    for (keys, what) in KEYS {
                        ui.label(RichText::new(keys).strong());
                        ui.label(what);
                        ui.end_row();
                    }
                });
            });
        self.help = open;
    }

    fn open_save(&mut self, status: &Status<'_>) {
        let Some(place) = status.scene.place(Side::A) else { return };
        let name = status.scene.document().map_or("picture", |(name, ..)| name);
        self.save = Some(SaveDialog::new(name, place.level));
    }

    fn save_dialog(&mut self, ctx: &egui::Context, status: &Status<'_>, commands: &mut Vec<Command>) {
        let (Some(save), Some((native, ..))) = (&mut self.save, status.scene.zoom()) else { return };
        if save.show(ctx, native, commands) {
            self.save = None;
        }
    }

    fn path_dialog(&mut self, ctx: &egui::Context, commands: &mut Vec<Command>) {
        if self.ask.as_mut().is_some_and(|ask| ask.show(ctx, commands)) {
            self.ask = None;
        }
    }

    fn error(&mut self, ctx: &egui::Context) {
        let Some(text) = self.error.clone() else { return };
        let mut done = false;
        let modal = egui::Modal::new(egui::Id::unique("error")).show(ctx, |ui| {
            ui.set_width(dialog_width(ctx));
            ui.heading("That did not work");
            ui.add_space(6.0);
            egui::ScrollArea::vertical().max_height((ctx.content_rect().height() - 130.0).max(30.0)).show(ui, |ui| {
                ui.label(&text);
            });
            ui.add_space(8.0);
            ui.horizontal(|ui| {
                // Enter and Escape close it too.
                done |= ui.input(|input| input.key_pressed(Press::Enter));
                done |= ui.button("Close").clicked();
                if ui.button("Copy text").clicked() {
                    ctx.copy_text(text.clone());
                }
            });
        });
        if done || modal.should_close() {
            self.error = None;
        }
    }
}

/// On the right of the status line: as much as there is room for, what matters least left out first.
fn facts(ui: &mut Ui, status: &Status<'_>) {
    let mut facts = Vec::new();
    let device = status.device;
    facts.push((
        device.name.split(" (").next().unwrap_or_default().to_owned(),
        format!("{} ({}), {}", device.name, device.backend, device.driver),
    ));
    let (peak, cached) = (human_bytes(status.memory.peak), human_bytes(status.scene.cached_bytes()));
    facts.push((human_bytes(status.memory.current), format!("GPU memory; at most so far {peak}, decoded pictures {cached}")));
    if let Some(seconds) = status.scene.seconds() {
        let text = if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") };
        facts.push((text, "Time to decode what is shown".into()));
    }
    if let Some((_, index, count)) = status.scene.document().filter(|(_, _, count)| *count > 1) {
        facts.push((format!("{} of {count}", index + 1), "Latents of this file: Page Up, Page Down".into()));
    }
    if let Some(place) = status.scene.place(Side::A) {
        facts.push((format!("{} × {}", place.level.w, place.level.h), "Size of the decode that is shown, in pixels".into()));
    }
    let font = egui::TextStyle::Body.resolve(ui.style());
    let mut room = ui.available_width();
    let fits = facts.iter().rev().take_while(|(text, _)| {
        room -= ui.painter().layout_no_wrap(text.clone(), font.clone(), Color32::WHITE).size().x + FACT_GAP;
        room >= 0.0
    });
    let fitting = fits.count();
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        for (index, (text, hint)) in facts.iter().skip(facts.len() - fitting).enumerate() {
            if index > 0 {
                ui.separator();
            }
            ui.label(text).on_hover_text(hint);
        }
    });
}

fn change(change: impl FnOnce(&mut View) + 'static) -> Command {
    Command::Change(Box::new(change))
}

/// A small label that is legible over any picture.
fn tag(ui: &Ui, at: egui::Pos2, anchor: Align2, text: &str) {
    let painter = ui.painter();
    let galley = painter.layout_no_wrap(text.to_owned(), egui::FontId::proportional(11.0), Color32::WHITE);
    let rect = anchor.anchor_size(at, galley.size() + vec2(8.0, 4.0));
    painter.rect_filled(rect, 3.0, Color32::from_black_alpha(150));
    painter.galley(rect.min + vec2(4.0, 2.0), galley, Color32::WHITE);
}

/// The colour around the picture, sRGB-encoded, 0 to 1.
pub fn background(ctx: &egui::Context) -> [f64; 3] {
    if ctx.theme() == egui::Theme::Dark { [0.078; 3] } else { [0.86; 3] }
}
