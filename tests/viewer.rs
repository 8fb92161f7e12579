//! The viewer as its users see it: the real program under a virtual X server, driven by synthetic input, judged by
//! screenshots and by what `infgen decode` writes.
//!
//! Needs Xvfb, xdotool and ImageMagick's `import` (scripts/setup installs them for the tests); without them, or without an
//! adapter, each test says so by name, and fails where `REQUIRE_WINDOW=1`. `INFGEN_SHOTS=folder` keeps the screenshots.
#![cfg(all(target_os = "linux", feature = "viewer"))]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use infgen::Image;
use infgen::image::ResizeFilter;
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sample.safetensors");
const PROGRAM: &str = env!("CARGO_BIN_EXE_infgen");

/// Longest wait for one picture: a loaded machine decodes them slowly.
const PATIENCE: Duration = Duration::from_secs(180);

/// A virtual screen of 800 x 600.
struct Screen {
    server: Child,
    display: String,
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Screen {
    /// Nothing, said loudly, where there is no X server, tool or adapter.
    fn open(test: &str) -> Option<Screen> {
        let missing = |tool: &str| {
            Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status().map_or(true, |s| !s.success())
        };
        let absent: Vec<&str> = ["Xvfb", "xdotool", "import"].into_iter().filter(|tool| missing(tool)).collect();
        let reason = if !absent.is_empty() {
            Some(format!("no {}", absent.join(", no ")))
        } else {
            let listed = Command::new(PROGRAM).args(["devices", "--json"]).output().unwrap();
            let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
            listed["devices"].as_array().is_none_or(|all| all.is_empty()).then(|| "no GPU adapter".to_owned())
        };
        if let Some(reason) = reason {
            assert!(std::env::var_os("REQUIRE_WINDOW").is_none_or(|v| v != "1"), "REQUIRE_WINDOW=1, but: {reason}");
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason} on this machine (REQUIRE_WINDOW=1 makes this a failure)");
            return None;
        }
        // Without -noreset the server starts anew when the last client leaves, and the next one may come in between.
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp", "-noreset"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Screen { server, display: format!(":{}", line.trim()) })
    }

    fn xdotool(&self, arguments: &[&str]) -> String {
        let output = Command::new("xdotool").args(arguments).env("DISPLAY", &self.display).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Presses at the first point, goes through the others as a hand would, and releases at the last.
    fn drag(&self, points: &[(i32, i32)]) {
        for (index, (x, y)) in points.iter().enumerate() {
            self.xdotool(&["mousemove", &x.to_string(), &y.to_string(), "sleep", "0.2"]);
            if index == 0 {
                self.xdotool(&["mousedown", "1", "sleep", "0.2"]);
            }
        }
        self.xdotool(&["mouseup", "1"]);
    }

    fn shot(&self, folder: &Path, name: &str) -> Image {
        let path = folder.join(format!("{name}.png"));
        let status = Command::new("import").args(["-window", "root"]).arg(&path).env("DISPLAY", &self.display).status().unwrap();
        assert!(status.success());
        if let Some(keep) = std::env::var_os("INFGEN_SHOTS") {
            std::fs::create_dir_all(&keep).unwrap();
            std::fs::copy(&path, Path::new(&keep).join(format!("{name}.png"))).unwrap();
        }
        Image::open(path).unwrap()
    }
}

/// The running program.
struct Viewer<'a> {
    screen: &'a Screen,
    child: Child,
    folder: tempfile::TempDir,
    window: String,
    /// Events that were looked at already.
    seen: usize,
}

impl Drop for Viewer<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Viewer<'a> {
    fn start(screen: &'a Screen, arguments: &[&str]) -> Viewer<'a> {
        Viewer::start_scaled(screen, arguments, "1")
    }

    /// With `scale` pixels a point.
    fn start_scaled(screen: &'a Screen, arguments: &[&str], scale: &str) -> Viewer<'a> {
        let folder = tempfile::tempdir().unwrap();
        let stdout = std::fs::File::create(folder.path().join("stdout")).unwrap();
        let stderr = std::fs::File::create(folder.path().join("stderr")).unwrap();
        let child = Command::new(PROGRAM)
            .args(["view", "--json", "--events"])
            .arg(folder.path().join("events"))
            .args(arguments)
            .current_dir(folder.path())
            .env("DISPLAY", &screen.display)
            .env("INFGEN_CONFIG", folder.path().join("viewer.json"))
            .env("INFGEN_VIEW_TEST", "1")
            .env("WINIT_X11_SCALE_FACTOR", scale)
            .env("XDG_RUNTIME_DIR", folder.path())
            // No file dialogs of a desktop: neither its portal nor zenity is found.
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .env("PATH", "")
            .env_remove("WAYLAND_DISPLAY")
            .env_remove("WAYLAND_SOCKET")
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut viewer = Viewer { screen, child, folder, window: String::new(), seen: 0 };
        let start = Instant::now();
        while viewer.window.is_empty() {
            viewer.window = screen.xdotool(&["search", "--onlyvisible", "--pid", &viewer.child.id().to_string(), "--name", "infgen"]);
            viewer.window = viewer.window.lines().next().unwrap_or_default().to_owned();
            let ended = viewer.child.try_wait().unwrap();
            viewer.check(ended.is_none() && start.elapsed() < PATIENCE, "no window");
            std::thread::sleep(Duration::from_millis(50));
        }
        // There is no window manager that would do this.
        screen.xdotool(&["windowfocus", "--sync", &viewer.window]);
        viewer
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    fn check(&self, holds: bool, what: &str) {
        assert!(holds, "{what}\nstderr: {}\nevents: {}", self.text("stderr"), self.text("events"));
    }

    /// The next event that `fits`.
    fn wait(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let text = self.text("events");
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for (index, line) in whole.lines().enumerate().skip(self.seen) {
                let event: Value = serde_json::from_str(line).unwrap();
                self.seen = index + 1;
                if fits(&event) {
                    return event;
                }
                assert!(event["event"] != "failed", "{what}: {event}");
            }
            self.check(start.elapsed() < PATIENCE, what);
            let ended = self.child.try_wait().unwrap().is_some();
            self.check(!ended, "the program ended");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The next complete picture that `fits`.
    fn shown(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait(what, |event| event["event"] == "shown" && fits(event))
    }

    fn key(&self, keys: &str) {
        self.screen.xdotool(&["key", keys]);
    }

    /// Screenshot of what `shown` tells of, compared with `infgen decode` of the same size, byte for byte. Gives the
    /// screenshot and that decode.
    fn verify(&self, name: &str, shown: &Value) -> (Image, Image) {
        self.verify_of(name, shown, SAMPLE)
    }

    /// [`Viewer::verify`] of another latent.
    fn verify_of(&self, name: &str, shown: &Value, latent: &str) -> (Image, Image) {
        let number = |value: &Value| value.as_f64().unwrap();
        let [cx, cy, cw, ch] = [0, 1, 2, 3].map(|i| number(&shown["canvas"][i]) as usize);
        let (ox, oy) = (number(&shown["origin"][0]), number(&shown["origin"][1]));
        let (w, h) = (number(&shown["level"][0]) as usize, number(&shown["level"][1]) as usize);
        assert_eq!((number(&shown["size"][0]), number(&shown["size"][1])), (w as f64, h as f64), "not 1:1");
        assert!(ox.fract() == 0.0 && oy.fract() == 0.0);
        let (left, top) = ((cx as f64 - ox).max(0.0) as usize, (cy as f64 - oy).max(0.0) as usize);
        let (x, y) = (cx.max(ox as i64 as usize * usize::from(ox > 0.0)), cy.max(oy as i64 as usize * usize::from(oy > 0.0)));
        let (rw, rh) = ((cx + cw - x).min(w - left), (cy + ch - y).min(h - top));
        let path = self.folder.path().join(format!("{name}-decode.png"));
        let (size, region) = (format!("{w}x{h}"), format!("{left},{top},{rw}x{rh}"));
        done(&["decode", "--quiet", "--latent", latent, "--size", &size, "--region", &region, "-o", path.to_str().unwrap()]);
        let want = Image::open(&path).unwrap();
        let shot = self.screen.shot(self.folder.path(), name);
        let (got, expected) = (shot.to_rgb8(), want.to_rgb8());
        for row in 0..rh {
            let on_screen = &got[((y + row) * shot.width() + x) * 3..][..rw * 3];
            let decoded = &expected[row * rw * 3..][..rw * 3];
            if on_screen != decoded {
                let at = on_screen.iter().zip(decoded).position(|(a, b)| a != b).unwrap();
                panic!("{name}: {size} region {region}: row {row}, value {at}: {} on the screen, {} decoded", on_screen[at], decoded[at]);
            }
        }
        // The comparison can fail: the picture is no flat grey, and one pixel further it does not fit.
        let shifted = &got[(y * shot.width() + x + 1) * 3..][..(rw - 1) * 3];
        assert_ne!(shifted, &expected[..(rw - 1) * 3], "{name}: the picture is flat");
        (shot, want)
    }

    /// Quits with the keys for it and gives the report.
    fn quit(mut self) -> Value {
        self.key("ctrl+q");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            self.check(start.elapsed() < Duration::from_secs(60), "it does not quit");
            std::thread::sleep(Duration::from_millis(20));
        };
        self.check(status.success(), &format!("{status}"));
        let stderr: String = self.text("stderr").lines().filter(|line| !line.contains("XDG_RUNTIME_DIR")).collect();
        assert_eq!(stderr, "");
        serde_json::from_str(&self.text("stdout")).unwrap()
    }
}

fn done(arguments: &[&str]) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    assert!(output.status.success(), "infgen {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

fn level(shown: &Value) -> (u64, u64) {
    (shown["level"][0].as_u64().unwrap(), shown["level"][1].as_u64().unwrap())
}

#[test]
fn resized_zoomed_and_moved_the_screen_shows_the_bytes_of_the_decode() {
    let Some(screen) = Screen::open("resized_zoomed_and_moved_the_screen_shows_the_bytes_of_the_decode") else { return };
    let mut viewer = Viewer::start(&screen, &[SAMPLE, "--size", "320x230"]);
    let first = viewer.shown("the first picture", |_| true);
    assert!(first["canvas"][3].as_u64().unwrap() < 230, "the bars take their share");
    viewer.verify("start", &first);

    // A window dragged larger and smaller while it decodes: nothing fails (any event that says so ends the test).
    for step in 0..24 {
        let (w, h) = (300 + (step * 37) % 150, 220 + (step * 53) % 120);
        screen.xdotool(&["windowsize", &viewer.window, &w.to_string(), &h.to_string(), "sleep", "0.06"]);
    }

    // Three sizes; the smallest leaves no room for bars. In between, stale ones that must be dropped.
    for (w, h) in [(280, 200), (200, 120), (360, 250)] {
        for (w, h) in [(w + 31, h), (w, h + 17), (w, h)] {
            screen.xdotool(&["windowsize", &viewer.window, &w.to_string(), &h.to_string()]);
        }
        let shown = viewer.shown("a resized picture", |shown| shown["canvas"][2] == w && shown["canvas"][3].as_u64().unwrap() + 60 > h);
        let canvas = shown["canvas"].clone();
        let (cw, ch) = (canvas[2].as_u64().unwrap(), canvas[3].as_u64().unwrap());
        assert_eq!(cw == 200, ch == 120);
        let (lw, lh) = level(&shown);
        assert!(lw == cw || lh == ch, "the picture fits the canvas: {shown}");
        viewer.verify(&format!("resized-{w}x{h}"), &shown);
    }

    // Exactly the shape of the window, without bars.
    viewer.key("Tab");
    viewer.key("w");
    let filled = viewer.shown("a filled window", |shown| level(shown) == (360, 250));
    assert_eq!(filled["canvas"], serde_json::json!([0, 0, 360, 250]));
    viewer.verify("filled", &filled);

    // Deeper, in a small window: tiles.
    screen.xdotool(&["windowsize", &viewer.window, "200", "120"]);
    viewer.shown("a small window", |shown| shown["canvas"][2] == 200);
    screen.xdotool(&["mousemove", "120", "40"]);
    viewer.key("1");
    let native = viewer.shown("100 %", |shown| level(shown) == (512, 288));
    assert_eq!(native["tiles"], true);
    viewer.verify("tiles", &native);

    // Move by dragging, then by keys.
    screen.drag(&[(150, 90), (120, 80), (90, 60)]);
    let at = |shown: &Value, i: usize| shown["origin"][i].as_f64().unwrap();
    let target = (at(&native, 0) - 60.0, at(&native, 1) - 30.0);
    let moved = viewer.shown("a moved picture", |shown| (at(shown, 0), at(shown, 1)) == target);
    viewer.verify("moved", &moved);
    viewer.key("Right");
    let further = viewer.shown("moved by a key", |shown| shown["origin"] != moved["origin"]);
    viewer.verify("moved-by-key", &further);

    // A notch of the wheel: a quarter of a doubling, and the point under the pointer stays. (Some X servers report a
    // synthetic click as two notches.)
    screen.xdotool(&["mousemove", "100", "60", "click", "5"]);
    let zoomed = viewer.shown("zoomed out by the wheel", |shown| level(shown) != (512, 288));
    assert!([(431, 242), (362, 204)].contains(&level(&zoomed)), "{zoomed}");
    let point = |shown: &Value| (100.0 - shown["origin"][0].as_f64().unwrap()) / shown["size"][0].as_f64().unwrap();
    assert!((point(&zoomed) - point(&further)).abs() < 0.01);
    viewer.verify("wheel", &zoomed);

    let report = viewer.quit();
    assert!(report["first_picture_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["frames_while_decoding"]["count"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn the_split_shows_our_decode_beside_lanczos_and_saving_writes_what_is_shown() {
    let Some(screen) = Screen::open("the_split_shows_our_decode_beside_lanczos_and_saving_writes_what_is_shown") else { return };
    let mut viewer = Viewer::start(&screen, &[SAMPLE, "--size", "640x360", "--bare"]);
    let plain = viewer.shown("the first picture", |_| true);
    let (_, ours) = viewer.verify("plain", &plain);
    viewer.key("c");
    let split = viewer.shown("the comparison", |shown| shown["compare"] == "Lanczos");
    let column = split["split"].as_u64().unwrap() as usize;
    assert_eq!(column, 320);
    let shot = screen.shot(viewer.folder.path(), "split");
    let base_path = viewer.folder.path().join("base.png");
    done(&["decode", "--quiet", "--latent", SAMPLE, "--size", "512x288", "-o", base_path.to_str().unwrap()]);
    let base = Image::open(&base_path).unwrap();
    let compare = |shot: &Image, filter, column: usize| {
        let right = base.resize(640, 360, filter).unwrap().to_rgb8();
        let (screen, ours) = (shot.to_rgb8(), ours.to_rgb8());
        let mut differs = 0;
        // Below the labels, beside the line and its knob.
        for y in 40..360 {
            for x in (0..640usize).filter(|x| x.abs_diff(column) > 12) {
                let (on_screen, at) = (&screen[(y * shot.width() + x) * 3..][..3], (y * 640 + x) * 3);
                if x < column {
                    assert_eq!(on_screen, &ours[at..at + 3], "left of the line at {x},{y}");
                } else {
                    let wanted = &right[at..at + 3];
                    assert!(on_screen.iter().zip(wanted).all(|(a, b)| a.abs_diff(*b) <= 1), "{on_screen:?} for {wanted:?} at {x},{y}");
                    differs += usize::from(on_screen != &ours[at..at + 3]);
                }
            }
        }
        assert!(differs > 10_000, "both sides show the same");
    };
    compare(&shot, ResizeFilter::Lanczos3, column);

    // The line is dragged, then the filter changed.
    screen.drag(&[(320, 200), (260, 200), (200, 200)]);
    let dragged = viewer.shown("the dragged line", |shown| shown["split"] == 200);
    assert_eq!(dragged["origin"], split["origin"], "the picture stays");
    viewer.key("c");
    viewer.shown("bicubic", |shown| shown["compare"] == "Bicubic");
    compare(&screen.shot(viewer.folder.path(), "bicubic"), ResizeFilter::Bicubic, 200);
    viewer.key("c");
    viewer.shown("no comparison", |shown| shown["compare"] == "Nothing");

    // Ctrl+S, Enter: the size shown, beside where the program was started.
    viewer.key("ctrl+s");
    std::thread::sleep(Duration::from_millis(500));
    screen.shot(viewer.folder.path(), "save-dialog");
    viewer.key("Return");
    let saved = viewer.wait("the saved picture", |event| event["event"] == "saved");
    let path = PathBuf::from(saved["path"].as_str().unwrap());
    assert_eq!(path.file_name().unwrap(), "sample-640x360.png");
    assert!(Image::open(&path).unwrap() == ours, "the file holds the decode");
    viewer.key("ctrl+c");
    let copied = viewer.wait("the copy", |event| event["event"] == "captured");
    assert_eq!((copied["width"].as_u64(), copied["height"].as_u64()), (Some(640), Some(360)));
    viewer.key("question");
    std::thread::sleep(Duration::from_millis(500));
    screen.shot(viewer.folder.path(), "help");
    viewer.quit();
}

#[test]
fn a_prompt_becomes_the_picture_that_generate_and_decode_make() {
    let Some(screen) = Screen::open("a_prompt_becomes_the_picture_that_generate_and_decode_make") else { return };
    let case = common::text_to_image::Case::open();
    let models = common::text_to_image::models(&case);
    let model = models.folder.to_str().unwrap();
    let mut viewer = Viewer::start(&screen, &["--model", model, "--size", "560x430"]);
    std::thread::sleep(Duration::from_millis(800));
    screen.shot(viewer.folder.path(), "prompt-empty");
    // Into the first field, which lies below the menu, the model's name and a label.
    screen.xdotool(&["mousemove", "100", "115", "click", "1", "sleep", "0.3", "type", "--delay", "40", "a red cat"]);
    std::thread::sleep(Duration::from_millis(500));
    screen.shot(viewer.folder.path(), "prompt-typed");
    viewer.key("ctrl+Return");
    let preview = viewer.wait("a preview", |event| event["event"] == "preview");
    assert_eq!((preview["width"].as_u64(), preview["height"].as_u64()), (Some(8), Some(8)));
    let mut previews = 1;
    let generated = viewer.wait("the latent", |event| {
        assert!(event["event"] != "shown");
        event["event"] == "generated"
    });
    previews += viewer.text("events").lines().filter(|line| line.contains("\"preview\"")).count() - 1;
    let settings = &generated["settings"];
    assert_eq!(settings["prompt"], "a red cat");
    assert!(previews as u64 >= settings["steps"].as_u64().unwrap(), "{previews} previews");
    let shown = viewer.shown("the picture", |_| true);

    let (steps, seed) = (settings["steps"].to_string(), settings["seed"].to_string());
    let (latent, picture) = (models.scratch.path().join("z.safetensors"), models.scratch.path().join("z.png"));
    let (latent, picture) = (latent.to_str().unwrap(), picture.to_str().unwrap());
    let request = ["generate", "-q", "--model", model, "-p", "a red cat", "--steps", &steps, "-s", &seed, "--latent-size", "64x64"];
    done(&[&request[..], &["--decoder", "builtin", "--size", "80x40", "--save-latent", latent, "-o", picture]].concat());
    viewer.verify_of("prompt", &shown, latent);

    // The picture that generate wrote tells the panel what made it.
    viewer.quit();
    let mut viewer = Viewer::start(&screen, &["--model", model, "--size", "560x430", picture]);
    viewer.shown("the encoded picture", |_| true);
    std::thread::sleep(Duration::from_millis(500));
    screen.shot(viewer.folder.path(), "prompt-recalled");
    screen.xdotool(&["mousemove", "100", "115", "click", "1", "sleep", "0.3"]);
    viewer.key("ctrl+Return");
    let again = viewer.wait("the same again", |event| event["event"] == "generated");
    assert_eq!(again["settings"]["prompt"], "a red cat");
    assert_eq!(again["settings"]["seed"].to_string(), seed);
    viewer.shown("its picture", |shown| shown["document"][0] == "a red cat");
    viewer.quit();
}

/// With no file to open in its place, the task ends on the device that is gone: the loss is told, and the device opened, once.
#[test]
fn a_device_lost_during_a_prompt_is_opened_once() {
    let Some(screen) = Screen::open("a_device_lost_during_a_prompt_is_opened_once") else { return };
    let case = common::text_to_image::Case::open();
    let models = common::text_to_image::models(&case);
    let mut viewer = Viewer::start(&screen, &["--model", models.folder.to_str().unwrap(), "--size", "560x430"]);
    std::thread::sleep(Duration::from_millis(800));
    screen.xdotool(&["mousemove", "100", "115", "click", "1", "sleep", "0.3", "type", "--delay", "40", "a red cat"]);
    viewer.key("ctrl+Return");
    viewer.wait("a preview", |event| event["event"] == "preview");
    // Out of the field, so that keys are not typed.
    screen.xdotool(&["mousemove", "450", "300", "click", "1", "sleep", "0.2", "key", "ctrl+shift+F12"]);
    let lost = viewer.wait("the loss", |event| event["event"] == "failed");
    assert!(lost["error"].as_str().unwrap().contains("device was lost"), "{lost}");
    std::thread::sleep(Duration::from_secs(8));
    let told = viewer.text("events").lines().filter(|line| line.contains("\"failed\"")).count();
    assert_eq!(told, 1, "{}", viewer.text("events"));
    viewer.quit();
}

#[test]
fn with_two_pixels_a_point_and_in_a_tiny_window_pixels_are_still_the_decode() {
    let Some(screen) = Screen::open("with_two_pixels_a_point_and_in_a_tiny_window_pixels_are_still_the_decode") else { return };
    let mut viewer = Viewer::start_scaled(&screen, &[SAMPLE, "--size", "620x400"], "2");
    let first = viewer.shown("the first picture", |_| true);
    assert_eq!(first["canvas"][1], 50, "the menu is twice as high");
    viewer.verify("hidpi", &first);

    // A larger decode, cancelled soon after its start: that takes a fraction of the time that it would have run on.
    screen.xdotool(&["windowsize", &viewer.window, "780", "580", "sleep", "1"]);
    screen.xdotool(&["windowsize", &viewer.window, "130", "97"]);
    let cancelled = viewer.wait("the cancel", |event| event["event"] == "cancelled");
    let (after, smaller) = (cancelled["after"].as_f64().unwrap(), first["seconds"].as_f64().unwrap());
    assert!(after < smaller / 3.0, "cancelled after {after} s, where a smaller decode takes {smaller} s");
    let tiny = viewer.shown("a tiny picture", |shown| shown["canvas"][2] == 130);
    assert_eq!(tiny["canvas"], serde_json::json!([0, 0, 130, 97]), "no room for bars");
    viewer.verify("tiny", &tiny);
    viewer.quit();
}

/// Ten minutes of random resizing, zooming, moving, comparing, opening and cancelling (`SOAK_SECONDS` sets another time):
/// `nice -n 10 cargo test --release --test viewer -- --ignored --nocapture soak`.
#[test]
#[ignore = "takes ten minutes"]
fn soak_random_input_leaves_memory_flat_and_no_error() {
    let Some(screen) = Screen::open("soak_random_input_leaves_memory_flat_and_no_error") else { return };
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600.0);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::copy(SAMPLE, at("a.safetensors")).unwrap();
    let sample = infgen::Latent::open(SAMPLE).unwrap();
    let values: Vec<f32> = sample.data().iter().step_by(2).copied().take(3 * 4 * 12 * 9).collect();
    infgen::Latent::new([3, 4, 9, 12], values).unwrap().save(std::path::Path::new(&at("batch.safetensors"))).unwrap();
    done(&["decode", "--quiet", "--latent", SAMPLE, "--size", "96x64", "-o", &at("c.png")]);
    std::fs::write(at("broken.png"), b"\x89PNG\r\n\x1a\n garbage").unwrap();
    let viewer = Viewer::start(&screen, &[&at("a.safetensors"), "--size", "400x300"]);

    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % below
    };
    const KEYS: [&str; 24] = [
        "f",
        "w",
        "1",
        "2",
        "8",
        "plus",
        "minus",
        "Left",
        "Right",
        "Up",
        "Down",
        "c",
        "p",
        "Tab",
        "question",
        "Prior",
        "Next",
        "bracketleft",
        "bracketright",
        "bracketright",
        "ctrl+r",
        "ctrl+c",
        "Escape",
        "Escape",
    ];
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", viewer.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("the program runs") / 1024
    };
    let (start, mut memory, mut acts) = (Instant::now(), Vec::new(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        let (x, y) = (random(500).to_string(), random(380).to_string());
        match random(10) {
            0 | 1 => {
                let (w, h) = ((64 + random(440)).to_string(), (48 + random(330)).to_string());
                screen.xdotool(&["windowsize", &viewer.window, &w, &h]);
            }
            2 | 3 => {
                let button = ["4", "5"][random(2) as usize];
                screen.xdotool(&["mousemove", &x, &y, "click", button]);
            }
            4 => {
                let to = (random(500).to_string(), random(380).to_string());
                screen.xdotool(&[
                    "mousemove",
                    &x,
                    &y,
                    "mousedown",
                    "1",
                    "sleep",
                    "0.05",
                    "mousemove",
                    &to.0,
                    &to.1,
                    "sleep",
                    "0.05",
                    "mouseup",
                    "1",
                ]);
            }
            _ => {
                screen.xdotool(&["key", KEYS[random(KEYS.len() as u64) as usize]]);
            }
        }
        acts += 1;
        // Mostly in the middle of a decode, at times when it is done.
        std::thread::sleep(Duration::from_millis([40, 150, 400, 2000][random(4) as usize]));
        if memory.len() as f64 * 10.0 < start.elapsed().as_secs_f64() {
            memory.push(resident());
        }
    }
    let events: Vec<Value> = viewer.text("events").lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for event in events.iter().filter(|event| event["event"] == "failed") {
        assert!(event["error"].as_str().unwrap().contains("broken.png"), "{event}");
    }
    let count = |what: &str| events.iter().filter(|event| event["event"] == what).count();
    println!("{acts} acts, {} files opened, {} pictures complete, {} refused files", count("opened"), count("shown"), count("failed"));
    println!("resident MiB every 10 s: {memory:?}");
    // What is kept (pipelines, caches) is there after the first third.
    let third = memory.len() / 3;
    let (early, late) = (memory[..2 * third].iter().max().unwrap(), memory[2 * third..].iter().max().unwrap());
    assert!(*late as f64 <= *early as f64 * 1.1 + 20.0, "memory grew from {early} to {late} MiB");
    viewer.key("Escape");
    viewer.key("Escape");
    println!("{}", viewer.quit());
}

#[test]
fn broken_files_and_a_lost_device_are_told_and_survived() {
    let Some(screen) = Screen::open("broken_files_and_a_lost_device_are_told_and_survived") else { return };
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, word) in [
        ("cut.safetensors", &b"\xff\xff\xff\xff\0\0\0\0{"[..], "safetensors"),
        ("broken.png", b"\x89PNG\r\n\x1a\n garbage", "PNG"),
        ("model.ckpt", b"\x80\x02}q\x00.", "pickle"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut viewer = Viewer::start(&screen, &[path.to_str().unwrap(), "--size", "420x260"]);
        let failed = viewer.wait(name, |event| event["event"] == "failed");
        let error = failed["error"].as_str().unwrap();
        assert!(error.contains(name) && error.contains(word), "{error}");
        std::thread::sleep(Duration::from_millis(400));
        screen.shot(folder.path(), &format!("error-{name}"));
        viewer.key("Escape");
        std::thread::sleep(Duration::from_millis(200));
        viewer.quit();
    }

    // Where the desktop has no file dialogs, one in the window asks for the path.
    let mut viewer = Viewer::start(&screen, &["--size", "320x230"]);
    let ask = |viewer: &Viewer<'_>, path: &str| {
        viewer.key("ctrl+o");
        std::thread::sleep(Duration::from_millis(1500));
        screen.shot(folder.path(), "path-dialog");
        screen.xdotool(&["key", "ctrl+a", "type", "--delay", "20", path]);
        viewer.key("Return");
    };
    ask(&viewer, "/nowhere/x.png");
    let failed = viewer.wait("the refused path", |event| event["event"] == "failed");
    assert!(failed["error"].as_str().unwrap().starts_with("/nowhere/x.png: "), "{failed}");
    viewer.key("Escape");
    ask(&viewer, SAMPLE);
    viewer.shown("the first picture", |_| true);

    viewer.key("ctrl+shift+F12");
    std::thread::sleep(Duration::from_millis(300));
    screen.xdotool(&["windowsize", &viewer.window, "300", "220"]);
    let lost = viewer.wait("the loss", |event| event["event"] == "failed");
    assert!(lost["error"].as_str().unwrap().contains("device was lost"), "{lost}");
    // It comes back by itself, with the file, and says what happened.
    let again = viewer.shown("the picture on the new device", |shown| shown["canvas"][2] == 300);
    std::thread::sleep(Duration::from_millis(400));
    screen.shot(folder.path(), "device-lost");
    viewer.key("Return");
    std::thread::sleep(Duration::from_millis(400));
    viewer.verify("after-loss", &again);
    viewer.quit();
}

#[test]
fn without_a_display_the_error_says_so() {
    let output = Command::new(PROGRAM)
        .args(["view", "--quiet"])
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .env_remove("WAYLAND_SOCKET")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no window could be opened") && stderr.lines().count() == 1, "{stderr}");
}
