//! Threads that work while the window presents, and what they report.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use winit::event_loop::EventLoopProxy;

use super::files::Opened;
use crate::engine::{Decoding, Rect};
use crate::error::Result;
use crate::gpu::{Observer, Picture};
use crate::pipeline::Preview;

/// What wakes the window's thread.
pub enum Message {
    /// A job of the live worker ended: its number, result and seconds.
    Decoded(u64, Result<Decoded>, f64),
    /// A job of the task worker ended.
    Done(u64, Result<Done>, f64),
    /// How far a worker is, 0 to 1; whether it is the live one.
    Progress(bool, u64, f64),
    /// A pixel that was read back.
    Pixel(PixelAt, Result<[u8; 4]>),
    /// What a running generation looks like, and its task.
    Preview(u64, Preview),
    /// The program was interrupted.
    Quit,
    /// A file dialog ended.
    Picked(Pick, Option<std::path::PathBuf>, Duration),
}

/// What a file dialog asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Anything to show.
    Open,
    /// Weights to decode with.
    Decoder,
    /// Weights to compare with.
    Other,
    /// A folder with a model for the prompt panel.
    Model,
    /// A name to save the picture under.
    Save,
    /// A name to save the view under.
    SaveView,
}

/// A pixel of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelAt {
    /// Column and row in the level.
    pub level: (usize, usize),
    /// Counts what is shown: a pixel of something shown earlier is stale.
    pub epoch: u64,
}

/// A result of the live worker.
pub enum Decoded {
    /// A whole picture or a tile, each picture with the rectangle of the level that it shows.
    Pictures(Vec<(Rect, Picture)>),
    /// What the tiles of a level share.
    Prepared(Decoding),
}

/// A result of the task worker.
pub enum Done {
    /// A file was opened.
    Opened(Box<(Opened, super::work::Side)>),
    /// A picture was written.
    Saved(std::path::PathBuf),
    /// A prompt was followed.
    Generated(Box<super::files::Document>),
    /// Pixels for the clipboard: width, height, RGBA.
    Captured(usize, usize, Vec<u8>),
}

type Job = Box<dyn FnOnce() -> Message + Send>;

/// A thread that does one thing after the other.
pub struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    proxy: EventLoopProxy<Message>,
}

/// Progress is reported no more often: each report is a frame.
const REPORT_EVERY: Duration = Duration::from_millis(100);

impl Worker {
    /// Starts one.
    pub fn start(name: &str, proxy: EventLoopProxy<Message>) -> Worker {
        let (jobs, queue): (Sender<Job>, Receiver<Job>) = channel();
        let reports = proxy.clone();
        let work = move || {
            while let Ok(job) = queue.recv() {
                // Fails when the window is gone; then there is no one to tell.
                let _ = reports.send_event(job());
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started");
        Worker { jobs: Some(jobs), thread: Some(thread), proxy }
    }

    /// Hands over `work`; `message` makes its end a message. Returns what cancels it.
    pub fn run<T: 'static>(
        &self,
        live: bool,
        id: u64,
        message: fn(u64, Result<T>, f64) -> Message,
        work: impl FnOnce(&Observer) -> Result<T> + Send + 'static,
    ) -> Observer {
        let proxy = self.proxy.clone();
        let last = std::sync::Mutex::new(Instant::now());
        let observer = Observer::new(move |progress| {
            let mut last = last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if last.elapsed() >= REPORT_EVERY {
                *last = Instant::now();
                let _ = proxy.send_event(Message::Progress(live, id, progress.done));
            }
        });
        let own = observer.clone();
        let job: Job = Box::new(move || {
            let start = Instant::now();
            let result = work(&own);
            message(id, result, start.elapsed().as_secs_f64())
        });
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        observer
    }
}

/// Waits for the job it has: cancel that first.
impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one pixel of `picture` on a thread of its own and reports it.
pub fn probe(engine: &Arc<crate::Engine>, picture: Arc<Picture>, texel: [u32; 2], at: PixelAt, proxy: &EventLoopProxy<Message>) {
    let (engine, proxy) = (engine.clone(), proxy.clone());
    std::thread::spawn(move || {
        let rect = [texel[0], texel[1], 1, 1];
        let bytes = pollster::block_on(engine.gpu().read_texture(picture.texture(), rect));
        let _ = proxy.send_event(Message::Pixel(at, bytes.map(|b| [b[0], b[1], b[2], b[3]])));
    });
}
