//! Dialogs that ask for something: what to save, which path.

use std::path::{Path, PathBuf};

use egui::{Button, Context, Key as Press, RichText, ScrollArea, TextEdit, Ui};

use super::app::shown_path;
use super::jobs::Pick;
use super::ui::Command;
use super::view::Level;
use crate::engine::MAX_SIDE;
use crate::image::OutputFormat;

/// Smaller windows, in points, scroll what is in a dialog.
const ROOM: egui::Vec2 = egui::vec2(300.0, 200.0);

/// Asks for the size and the name of a picture.
pub struct SaveDialog {
    path: String,
    /// Folder and name without size: the path follows the size for as long as it is the one that these make.
    suggested: PathBuf,
    width: String,
    height: String,
    keep_shape: bool,
}

impl SaveDialog {
    /// For a picture of the document `name`, shown at `level`.
    pub fn new(name: &str, level: Level) -> SaveDialog {
        let stem = Path::new(name).file_stem().unwrap_or_default();
        let (width, height) = (level.w.to_string(), level.h.to_string());
        let mut save = SaveDialog { path: String::new(), suggested: folder().join(stem), width, height, keep_shape: true };
        save.path = save.suggestion();
        save
    }

    /// Another name.
    pub fn set_path(&mut self, path: &Path) {
        self.path = shown_path(path);
    }

    fn suggestion(&self) -> String {
        format!("{}-{}x{}.png", shown_path(&self.suggested), self.width.trim(), self.height.trim())
    }

    /// One frame; `native`: the picture's size at 100 %. Whether it is done with.
    pub fn show(&mut self, ctx: &Context, native: Level, commands: &mut Vec<Command>) -> bool {
        let room = ctx.content_rect().size();
        let mut done = false;
        let modal = egui::Modal::new(egui::Id::unique("save")).show(ctx, |ui| {
            ui.set_width(dialog_width(ctx));
            if room.x >= ROOM.x && room.y >= ROOM.y {
                done = self.fields(ui, native, commands);
            } else {
                ScrollArea::both().max_height(room.y - 20.0).show(ui, |ui| done = self.fields(ui, native, commands));
            }
        });
        done || modal.should_close()
    }

    fn fields(&mut self, ui: &mut Ui, native: Level, commands: &mut Vec<Command>) -> bool {
        let follows = self.path == self.suggestion();
        ui.heading("Save picture");
        ui.add_space(6.0);
        ui.horizontal(|ui| {
            ui.label("Size");
            let ratio = native.w as f64 / native.h as f64;
            let follow =
                |text: &str, factor: f64| text.parse::<f64>().map(|v| (v * factor).round().clamp(1.0, MAX_SIDE as f64).to_string());
            if ui.add(TextEdit::singleline(&mut self.width).desired_width(60.0)).changed() && self.keep_shape {
                self.height = follow(&self.width, 1.0 / ratio).unwrap_or_default();
            }
            ui.label("×");
            if ui.add(TextEdit::singleline(&mut self.height).desired_width(60.0)).changed() && self.keep_shape {
                self.width = follow(&self.height, ratio).unwrap_or_default();
            }
            ui.checkbox(&mut self.keep_shape, "keep shape");
        });
        ui.horizontal_wrapped(|ui| {
            for factor in [1, 2, 4, 8] {
                let (w, h) = (native.w * factor, native.h * factor);
                if w.max(h) <= MAX_SIDE && ui.small_button(format!("{w} × {h}")).clicked() {
                    (self.width, self.height) = (w.to_string(), h.to_string());
                }
            }
        });
        if follows {
            self.path = self.suggestion();
        }
        ui.horizontal(|ui| {
            ui.label("File");
            ui.add(TextEdit::singleline(&mut self.path).desired_width((ui.available_width() - 80.0).max(120.0)));
            if ui.button("Browse…").clicked() {
                commands.push(Command::Pick(Pick::Save));
            }
        });
        let side = |text: &str| text.trim().parse::<usize>().ok().filter(|side| (1..=MAX_SIDE).contains(side));
        let path = PathBuf::from(self.path.trim());
        let (w, h) = (side(&self.width), side(&self.height));
        let problem = match (w.zip(h), OutputFormat::from_path(&path)) {
            (None, _) => Some(format!("each side must lie between 1 and {MAX_SIDE}")),
            (_, Err(_)) => Some("the file's ending must be .png, .jpg, .webp, .npy or .safetensors".into()),
            (Some((w, h)), Ok(format)) => format.check_size(w, h).err().map(|error| error.to_string()),
        };
        ui.add_space(2.0);
        ui.label(RichText::new(problem.as_deref().unwrap_or(" ")).color(ui.visuals().error_fg_color));
        let mut done = false;
        ui.horizontal(|ui| {
            let enter = ui.input(|input| input.key_pressed(Press::Enter));
            let save_now = ui.add_enabled(problem.is_none(), Button::new("Save")).clicked() || (enter && problem.is_none());
            if save_now && let Some((w, h)) = w.zip(h) {
                commands.push(Command::SavePicture { path, w, h });
                done = true;
            }
            done |= ui.button("Cancel").clicked();
        });
        done
    }
}

/// Asks for a path where the desktop has no file dialogs.
pub struct PathDialog {
    pick: Pick,
    path: String,
    is_new: bool,
}

impl PathDialog {
    /// For `pick`.
    pub fn new(pick: Pick) -> PathDialog {
        let path = match pick {
            Pick::Save | Pick::SaveView => shown_path(&folder().join("view.png")),
            Pick::Open | Pick::Decoder | Pick::Other | Pick::Model => format!("{}/", shown_path(&folder())),
        };
        PathDialog { pick, path, is_new: true }
    }

    /// One frame. Whether it is done with.
    pub fn show(&mut self, ctx: &Context, commands: &mut Vec<Command>) -> bool {
        let mut done = false;
        let modal = egui::Modal::new(egui::Id::unique("path")).show(ctx, |ui| {
            ui.set_width(dialog_width(ctx));
            let (title, button) = match self.pick {
                Pick::Open => ("Open a latent, a picture or a decoder", "Open"),
                Pick::Decoder => ("Open a decoder", "Open"),
                Pick::Other => ("Open a decoder to compare with", "Open"),
                Pick::Model => ("Open a model's folder", "Open"),
                Pick::Save | Pick::SaveView => ("Save the view", "Save"),
            };
            ui.heading(title);
            ui.add_space(6.0);
            let field = ui.add(TextEdit::singleline(&mut self.path).desired_width(ui.available_width()));
            if std::mem::take(&mut self.is_new) {
                field.request_focus();
                // At the end of what is there already.
                let end = egui::text::CCursor::new(self.path.chars().count());
                let mut state = egui::text_edit::TextEditState::default();
                state.cursor.set_char_range(Some(egui::text::CCursorRange::one(end)));
                state.store(ctx, field.id);
            }
            ui.add_space(2.0);
            ui.label(RichText::new("This desktop shows no file dialogs (xdg-desktop-portal or zenity would).").weak().small());
            ui.add_space(6.0);
            ui.horizontal(|ui| {
                let enter = ui.input(|input| input.key_pressed(Press::Enter));
                if ui.button(button).clicked() || enter {
                    commands.push(Command::Picked(self.pick, PathBuf::from(self.path.trim())));
                    done = true;
                }
                done |= ui.button("Cancel").clicked();
            });
        });
        done || modal.should_close()
    }
}

/// Points across the content of a dialog.
pub fn dialog_width(ctx: &Context) -> f32 {
    (ctx.content_rect().width() - 28.0).clamp(80.0, 420.0)
}

/// Where files are saved unless another folder is named: where the program was started, or, from a desktop's menu, among the user's pictures.
fn folder() -> PathBuf {
    let started = std::env::current_dir().ok().filter(|folder| folder.parent().is_some());
    started.or_else(dirs::picture_dir).or_else(dirs::home_dir).unwrap_or_default()
}
