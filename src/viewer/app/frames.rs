//! One frame: controls, decodes that start or stop, drawing, presenting.

use std::time::{Duration, Instant};

use serde_json::json;
use winit::event_loop::ActiveEventLoop;

use super::super::work::Side;
use super::super::{files, jobs, ui};
use super::{Shell, TRY_AGAIN};
use crate::error::Error;
use crate::gpu::Handles;

/// Frames that take longer are logged.
const LONG_FRAME: Duration = Duration::from_millis(100);

/// A software device that decodes rests from frames for so many times what the last one took.
const FRAME_REST: u32 = 2;

/// How long the surface may be impossible to fit to the window before that is an error; until then frames are left out.
const FIT_PATIENCE: Duration = Duration::from_secs(10);

/// Where the time of a frame went.
#[derive(Default)]
struct Phases {
    /// Controls.
    laid_out: Duration,
    /// Waiting for a texture of the surface.
    acquired: Duration,
    /// Waiting for the decode's submission.
    waited: Duration,
    recorded: Duration,
    submitted: Duration,
}

impl Shell {
    /// Fits the surface to the window. Where that is not possible now it stays as it was and is tried again.
    pub(super) fn configure(&mut self) {
        match self.engine.gpu().configure(&self.surface, &self.config) {
            Ok(()) => (self.fits, self.unfit_since) = (true, None),
            Err(error @ Error::DeviceLost { .. }) => self.failed(&error),
            Err(error) => {
                let since = *self.unfit_since.get_or_insert_with(Instant::now);
                log::debug!("fitting the window, for {:.1} s: {error}", since.elapsed().as_secs_f64());
                if since.elapsed() > FIT_PATIENCE {
                    self.fatal = Some(error);
                }
                self.repaint_by(Instant::now() + TRY_AGAIN);
            }
        }
    }

    pub(super) fn frame(&mut self, events: &ActiveEventLoop) {
        let start = Instant::now();
        if let Some(loss) = self.engine.gpu().loss("presenting") {
            self.failed(&loss);
        }
        if let Some(loss) = self.lost.take() {
            self.restart(loss);
        }
        if !self.fits && self.lost.is_none() {
            self.configure();
        }
        if self.fatal.is_some() {
            return events.exit();
        }
        if !self.fits || self.lost.is_some() {
            return;
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
        if self.scene.is_settled()
            && let Some(capture) = self.waiting.take()
        {
            self.capture(capture);
        }
        self.probe();

        let delay = output.viewport_output.get(&egui::ViewportId::ROOT).map_or(Duration::MAX, |viewport| viewport.repaint_delay);
        if delay.is_zero() || acted || resized {
            self.window.request_redraw();
        } else if let Some(at) = start.checked_add(delay).filter(|_| delay < Duration::from_secs(3600)) {
            self.repaint_by(at);
        }

        let jobs = egui.tessellate(output.shapes, output.pixels_per_point);
        let busy = self.scene.is_busy();
        let mut phases = Phases { laid_out: start.elapsed(), ..Phases::default() };
        let presented = self.present(&jobs, output.textures_delta, output.pixels_per_point, (x, y), &mut phases);
        if presented {
            let took = start.elapsed();
            if self.engine.device().kind == "software" {
                self.rest_until = Some(Instant::now() + FRAME_REST * took.saturating_sub(phases.waited + phases.acquired));
            }
            self.measure.presented(took, phases.waited, busy, complete);
            if took > LONG_FRAME {
                let ms = |d: Duration| (d.as_secs_f64() * 1e4).round() / 10.0;
                let Phases { laid_out, acquired, waited, recorded, submitted } = phases;
                let presented = took.saturating_sub(laid_out + acquired + waited + recorded + submitted);
                self.measure.log(json!({
                    "event": "long-frame", "ms": ms(took), "decoding": busy, "laid_out": ms(laid_out), "acquired": ms(acquired),
                    "waited": ms(waited), "recorded": ms(recorded), "submitted": ms(submitted), "presented": ms(presented),
                }));
            }
            self.log_shown(complete);
        }
    }

    /// The texture to draw the next frame into, unless there is none now.
    fn acquire(&mut self) -> Option<wgpu::SurfaceTexture> {
        use wgpu::CurrentSurfaceTexture as Current;
        match self.surface.get_current_texture() {
            Current::Success(frame) | Current::Suboptimal(frame) => return Some(frame),
            Current::Outdated | Current::Lost => {
                self.fits = false;
                self.repaint_by(Instant::now());
            }
            Current::Timeout => self.repaint_by(Instant::now() + TRY_AGAIN),
            Current::Occluded | Current::Validation => {}
        }
        None
    }

    /// Draws and presents one frame. Whether it came onto the screen.
    fn present(
        &mut self,
        jobs: &[egui::ClippedPrimitive],
        mut textures: egui::TexturesDelta,
        pixels_per_point: f32,
        corner: (u32, u32),
        phases: &mut Phases,
    ) -> bool {
        let mut last = Instant::now();
        let mut lap = move || {
            let now = Instant::now();
            now - std::mem::replace(&mut last, now)
        };
        let Handles { device, queue, .. } = self.handles.clone();
        let frame = self.acquire();
        phases.acquired = lap();
        // From here to the end nothing of a decode comes in between.
        let engine = self.engine.clone();
        let turn = engine.gpu().frame();
        phases.waited = lap();
        for (id, deltas) in std::mem::take(&mut textures.set) {
            for delta in &deltas {
                self.egui_renderer.update_texture(&device, &queue, id, delta);
            }
        }
        let shown = frame.is_some();
        if let Some(frame) = frame {
            let view = frame.texture.create_view(&Default::default());
            let size = (frame.texture.width(), frame.texture.height());
            let screen = egui_wgpu::ScreenDescriptor { size_in_pixels: [size.0, size.1], pixels_per_point };
            let mut encoder = device.create_command_encoder(&Default::default());
            let extra = self.egui_renderer.update_buffers(&device, &queue, &mut encoder, jobs, &screen);
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
            let commands = encoder.finish();
            phases.recorded = lap();
            queue.submit(extra.into_iter().chain([commands]));
            phases.submitted = lap();
            self.window.pre_present_notify();
            queue.present(frame);
        }
        drop(turn);
        for id in std::mem::take(&mut textures.free) {
            self.egui_renderer.free_texture(&id);
        }
        shown
    }

    /// Asks for the pixel under the pointer.
    pub(super) fn probe(&mut self) {
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

    pub(super) fn log_shown(&mut self, complete: bool) {
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
}
