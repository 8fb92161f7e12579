//! The device and its runs: memory as planned, refusals before any work, cancel, loss, repeatability.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::devices::{self, open, options, skipped};
use common::synthetic::fill;
use infgen::Error;
use infgen::gpu::{Elem, Gpu, GpuOptions, Observer, Recorder, Recording, Tensor};
use infgen::kernels::conv2d::{self, ConvWeights, Packing};
use infgen::kernels::group_norm::{self, GroupNormWeights};
use infgen::kernels::{Act, output};

/// Weights that stay on the device.
struct Model {
    conv: ConvWeights,
    norm: GroupNormWeights,
}

const CHANNELS: usize = 12;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Model {
    fn load(gpu: &Gpu) -> infgen::Result<Model> {
        let c = CHANNELS;
        let resident = |name: &str, values: &[f32]| -> infgen::Result<Tensor> {
            pollster::block_on(gpu.resident(name, &bytes(values), 1, 1, values.len(), Elem::F32))
        };
        let amp = (3.0 / (9 * c) as f32).sqrt();
        let packed = conv2d::pack_square(&fill("model.weight", c * c * 9, amp, 0.0, 0), c, c, 3);
        let vector = |name: &str, offset: f32| resident(name, &fill(name, c, 0.3, offset, 0));
        Ok(Model {
            conv: ConvWeights {
                weight: resident("weight", &packed.values)?,
                bias: vector("bias", 0.0)?,
                cin: c,
                cout: c,
                packing: Packing::Taps,
            },
            norm: GroupNormWeights { weight: vector("norm.weight", 1.0)?, bias: vector("norm.bias", 0.0)?, groups: 3, eps: 1e-5 },
        })
    }

    /// `layers` residual blocks on a `side x side` image.
    fn record(&self, gpu: &Gpu, side: usize, layers: usize) -> Recording {
        let mut rec = gpu.recorder();
        let image = fill("image", side * side * CHANNELS, 1.7, 0.0, 0);
        let mut x = rec.upload(&image, side, side, CHANNELS, Elem::F32);
        for layer in 0..layers {
            x = rec.scoped(format!("layers.{layer}"), |rec: &mut Recorder| {
                let affine = group_norm::group_norm(rec, &x, &self.norm);
                let h = group_norm::norm_apply(rec, &x, &affine, true, Elem::F32);
                conv2d::conv2d_3x3(rec, &h, None, &self.conv, Some(&x), Act::None, Elem::F32)
            });
        }
        rec.scoped("check", |rec| output::count_nonfinite(rec, &x));
        rec.output("y", &x);
        rec.finish()
    }
}

/// Runs `body` with a device and a model, or says that `test` was skipped. A body that does not end within two minutes fails.
fn with_device(test: &'static str, options: GpuOptions, body: impl FnOnce(Arc<Gpu>, Model) + Send + 'static) {
    let Some(gpu) = open(&options) else { return skipped(test) };
    let (done, ended) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let model = Model::load(&gpu).unwrap();
        body(Arc::new(gpu), model);
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(120)) {
        // The sender is dropped by a panic as well: joining passes it on.
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{test}: still running after two minutes"),
    }
}

fn bits(gpu: &Gpu, recording: Recording) -> Vec<u32> {
    devices::run(gpu, recording).unwrap().numbers("y").into_iter().map(f32::to_bits).collect()
}

#[test]
fn equal_runs_use_equal_memory_and_give_equal_bits() {
    with_device("equal_runs_use_equal_memory_and_give_equal_bits", options(), |gpu, model| {
        let weights = gpu.memory().current;
        let first = bits(&gpu, model.record(&gpu, 40, 3));
        let after = gpu.memory();
        assert!(after.current > weights, "the pool keeps its buffers");
        for _ in 0..2 {
            assert_eq!(bits(&gpu, model.record(&gpu, 40, 3)), first);
            assert_eq!(gpu.memory(), after, "the pool grew");
        }
        // Another size in between frees what does not fit.
        let other = bits(&gpu, model.record(&gpu, 17, 2));
        assert_eq!(other.len(), 17 * 17 * CHANNELS);
        assert!(gpu.memory().current < after.current);
        assert_eq!(bits(&gpu, model.record(&gpu, 40, 3)), first);
        assert_eq!(gpu.memory(), after, "sizes in turn grow the pool");
        gpu.trim();
        assert_eq!(gpu.memory().current, weights, "trim leaves the weights alone");
        drop(model);
        assert_eq!(gpu.memory().current, 0, "every byte is counted back");
    });
}

#[test]
fn the_predicted_peak_is_the_measured_one() {
    with_device("the_predicted_peak_is_the_measured_one", options(), |gpu, model| {
        for (side, layers) in [(1, 1), (40, 3), (23, 5), (64, 1), (40, 3)] {
            let recording = model.record(&gpu, side, layers);
            let predicted = gpu.peak_bytes(&recording);
            // What the last run left may be more than this one needs: it is given back first.
            gpu.reset_peak();
            let before = gpu.memory().peak;
            devices::run(&gpu, recording).unwrap();
            assert_eq!(gpu.memory().peak, predicted.max(before), "{side} px, {layers} layers");
            assert_eq!(gpu.memory().current, predicted, "{side} px, {layers} layers");
        }
    });
}

#[test]
fn a_ceiling_refuses_before_any_work_and_names_what_suffices() {
    let name = "a_ceiling_refuses_before_any_work_and_names_what_suffices";
    let low = 200_000;
    let capped = |ceiling| GpuOptions { memory_ceiling: Some(ceiling), ..options() };
    let (tell, told) = mpsc::channel();
    with_device(name, capped(low), move |gpu, model| {
        let before = gpu.memory();
        let called = Arc::new(AtomicUsize::new(0));
        let count = called.clone();
        let observer = Observer::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let error = pollster::block_on(gpu.run(model.record(&gpu, 48, 2), &observer)).unwrap_err();
        let Error::MemoryCeiling { needed, ceiling } = error else { panic!("{error}") };
        assert!(ceiling == low && needed > low, "{needed} of {ceiling}");
        assert_eq!(needed, gpu.peak_bytes(&model.record(&gpu, 48, 2)));
        assert_eq!(called.load(Ordering::Relaxed), 0, "something ran");
        assert_eq!(gpu.memory(), before, "something was allocated");
        // What fits still runs.
        assert_eq!(bits(&gpu, model.record(&gpu, 5, 1)).len(), 25 * CHANNELS);
        tell.send(needed).unwrap();
    });
    let Ok(needed) = told.recv() else { return };
    with_device(name, capped(needed), move |gpu, model| {
        bits(&gpu, model.record(&gpu, 48, 2));
        assert_eq!(gpu.memory().peak, needed);
        bits(&gpu, model.record(&gpu, 7, 1));
        bits(&gpu, model.record(&gpu, 48, 2));
        assert_eq!(gpu.memory().peak, needed);
    });
    with_device(name, capped(needed - 1), move |gpu, model| {
        let error = devices::run(&gpu, model.record(&gpu, 48, 2)).unwrap_err();
        assert!(matches!(error, Error::MemoryCeiling { needed: again, .. } if again == needed), "{error}");
    });
}

#[test]
fn a_run_can_be_cancelled_at_any_time_and_the_device_goes_on() {
    with_device("a_run_can_be_cancelled_at_any_time_and_the_device_goes_on", options(), |gpu, model| {
        let want = bits(&gpu, model.record(&gpu, 40, 2));
        let idle = gpu.memory().current;

        // Before it starts.
        let observer = Observer::default();
        observer.cancel();
        let error = pollster::block_on(gpu.run(model.record(&gpu, 40, 2), &observer)).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");

        // From the progress callback: cuts make many submissions on any device.
        gpu.force_cuts(u64::MAX, 1);
        let own: Arc<std::sync::OnceLock<Observer>> = Arc::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let (handle, count) = (own.clone(), calls.clone());
        let observer = Observer::new(move |_| {
            if count.fetch_add(1, Ordering::Relaxed) == 1 {
                handle.get().unwrap().cancel();
            }
        });
        own.set(observer.clone()).unwrap();
        let error = pollster::block_on(gpu.run(model.record(&gpu, 100, 4), &observer)).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(calls.load(Ordering::Relaxed), 2, "it went on after the cancel");

        // From another thread, while it runs.
        let observer = Observer::default();
        let remote = observer.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            remote.cancel();
            Instant::now()
        });
        let result = pollster::block_on(gpu.run(model.record(&gpu, 200, 40), &observer));
        let ended = Instant::now();
        let asked = canceller.join().unwrap();
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        println!("stopped {} ms after the request", ended.saturating_duration_since(asked).as_millis());

        gpu.force_cuts(u64::MAX, u32::MAX);
        assert_eq!(bits(&gpu, model.record(&gpu, 40, 2)), want);
        assert_eq!(gpu.memory().current, idle, "a cancelled run keeps memory");
    });
}

#[test]
fn progress_rises_to_one() {
    with_device("progress_rises_to_one", options(), |gpu, model| {
        gpu.force_cuts(u64::MAX, 1);
        let seen: Arc<std::sync::Mutex<Vec<(f64, String)>>> = Arc::default();
        let list = seen.clone();
        let observer = Observer::new(move |p| list.lock().unwrap().push((p.done, p.layer.to_owned())));
        pollster::block_on(gpu.run(model.record(&gpu, 100, 3), &observer)).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen.len() > 2 && seen.windows(2).all(|w| w[0].0 <= w[1].0), "{seen:?}");
        assert!((seen.last().unwrap().0 - 1.0).abs() < 1e-9 && seen.last().unwrap().1 == "check", "{seen:?}");
        assert!(seen.iter().any(|(_, layer)| layer == "layers.1"), "{seen:?}");
    });
}

#[test]
fn a_device_lost_before_a_run_is_an_error() {
    with_device("a_device_lost_before_a_run_is_an_error", options(), |gpu, model| {
        bits(&gpu, model.record(&gpu, 10, 1));
        let recording = model.record(&gpu, 40, 2);
        gpu.lose();
        for recording in [recording, model.record(&gpu, 10, 1)] {
            let error = devices::run(&gpu, recording).unwrap_err();
            assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
        }
        let error = pollster::block_on(gpu.resident("late", &[0; 16], 1, 1, 4, Elem::F32)).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    });
}

#[test]
fn a_device_lost_during_a_run_is_an_error() {
    with_device("a_device_lost_during_a_run_is_an_error", options(), |gpu, model| {
        gpu.force_cuts(u64::MAX, 2);
        let victim = gpu.clone();
        let observer = Observer::new(move |p| {
            if p.done > 0.2 {
                victim.lose();
            }
        });
        let error = pollster::block_on(gpu.run(model.record(&gpu, 100, 4), &observer)).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    });
    // And from another thread, at whatever point that hits.
    for delay_ms in [0, 2, 5, 20, 60] {
        with_device("a_device_lost_during_a_run_is_an_error", options(), move |gpu, model| {
            let victim = gpu.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(delay_ms));
                victim.lose();
            });
            let result = devices::run(&gpu, model.record(&gpu, 200, 40));
            thread.join().unwrap();
            // A fast device may have finished before.
            assert!(matches!(result, Ok(_) | Err(Error::DeviceLost { .. })), "after {delay_ms} ms: {result:?}");
        });
    }
}

#[test]
fn a_new_device_in_the_same_process_gives_the_same_bits() {
    let (tell, told) = mpsc::channel();
    for lose in [true, false] {
        let tell = tell.clone();
        with_device("a_new_device_in_the_same_process_gives_the_same_bits", options(), move |gpu, model| {
            tell.send(bits(&gpu, model.record(&gpu, 30, 2))).unwrap();
            if lose {
                gpu.lose();
            }
        });
    }
    drop(tell);
    let all: Vec<Vec<u32>> = told.iter().collect();
    assert!(all.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn timed_runs_time_every_dispatch_and_change_no_bit() {
    with_device("timed_runs_time_every_dispatch_and_change_no_bit", options(), |gpu, model| {
        let want = bits(&gpu, model.record(&gpu, 30, 2));
        let recording = model.record(&gpu, 30, 2);
        let dispatches = recording.dispatches();
        let mut outputs = pollster::block_on(gpu.run_timed(recording, &Observer::default())).unwrap();
        let got: Vec<u32> = outputs.numbers("y").into_iter().map(f32::to_bits).collect();
        assert_eq!(got, want);
        if gpu.facts().timestamps {
            assert_eq!(outputs.timings.len(), dispatches);
            assert!(outputs.timings.iter().all(|t| t.seconds >= 0.0 && t.seconds < 60.0));
            assert!(outputs.timings.iter().map(|t| t.seconds).sum::<f64>() > 0.0);
        }
    });
}

#[test]
fn threads_may_share_a_device() {
    with_device("threads_may_share_a_device", options(), |gpu, model| {
        let want = bits(&gpu, model.record(&gpu, 33, 2));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..3).for_each(|_| assert_eq!(bits(&gpu, model.record(&gpu, 33, 2)), want)));
            }
        });
    });
}

/// A tensor that no buffer of the device can hold is refused with the limit's name, before anything is allocated.
#[test]
fn a_tensor_past_the_buffer_limit_is_refused() {
    with_device("a_tensor_past_the_buffer_limit_is_refused", GpuOptions { default_limits: true, ..options() }, |gpu, model| {
        let mut rec = gpu.recorder();
        // A pixel more than one buffer holds; nothing is uploaded.
        let x = rec.tensor(1, (gpu.profile().max_buffer / 48) as usize + 1, CHANNELS, Elem::F32);
        let y = conv2d::conv2d_3x3(&mut rec, &x, None, &model.conv, None, Act::None, Elem::F32);
        rec.output("y", &y);
        let before = gpu.memory();
        let error = devices::run(&gpu, rec.finish()).unwrap_err();
        assert!(matches!(error, Error::BufferTooLarge { .. }), "{error}");
        assert_eq!(gpu.memory(), before);
    });
}

/// `Recorder::picture`: the texture holds the very bytes that `image_to_rgba8` reads back, at widths that need padding
/// and at ones that do not, and its memory is in the plan and in the ledger.
#[test]
fn a_picture_stays_on_the_gpu_with_the_same_bytes_and_is_counted() {
    let test = "a_picture_stays_on_the_gpu_with_the_same_bytes_and_is_counted";
    let Some(gpu) = open(&options()) else { return skipped(test) };
    for (width, height) in [(1, 1), (64, 3), (97, 70), (130, 5)] {
        let image = fill("image", 130 * 70 * 3, 1.2, 0.0, 0);
        let mut rec = gpu.recorder();
        let x = rec.upload(&image, 70, 130, 3, Elem::F32);
        let words = output::image_to_rgba8(&mut rec, &x, width, height, (0, 0));
        rec.output("words", &words);
        let want: Vec<u8> = devices::run(&gpu, rec.finish()).unwrap().words("words").iter().flat_map(|w| w.to_le_bytes()).collect();

        gpu.trim();
        let before = gpu.memory().current;
        gpu.reset_peak();
        let mut rec = gpu.recorder();
        let x = rec.upload(&image, 70, 130, 3, Elem::F32);
        output::image_to_picture(&mut rec, &x, width, height, (0, 0));
        let recording = rec.finish();
        let planned = gpu.peak_bytes(&recording);
        let picture = devices::run(&gpu, recording).unwrap().picture.unwrap();
        assert_eq!(gpu.memory().peak, planned);
        assert_eq!((picture.width(), picture.height(), picture.bytes()), (width, height, 4 * (width * height) as u64));
        let got = pollster::block_on(gpu.read_texture(picture.texture(), [0, 0, width as u32, height as u32])).unwrap();
        assert!(got == want, "{width}x{height}");
        let last = [width as u32 - 1, height as u32 - 1, 1, 1];
        assert_eq!(pollster::block_on(gpu.read_texture(picture.texture(), last)).unwrap(), want[want.len() - 4..]);
        let outside = pollster::block_on(gpu.read_texture(picture.texture(), [1, 0, width as u32, 1]));
        assert!(matches!(outside, Err(Error::Invalid { .. })));
        gpu.trim();
        assert_eq!(gpu.memory().current, before + picture.bytes());
        drop(picture);
        assert_eq!(gpu.memory().current, before);
    }
    assert!(matches!(pollster::block_on(gpu.picture(0, 5)), Err(Error::Invalid { .. })));
    assert!(matches!(pollster::block_on(gpu.picture(1 << 30, 5)), Err(Error::Invalid { .. })));
}

/// Shorter submissions cut the work into more of them and change no bit.
#[test]
fn submission_time_decides_how_work_is_cut_and_nothing_else() {
    with_device("submission_time_decides_how_work_is_cut_and_nothing_else", options(), |gpu, model| {
        let run = |time: Duration| {
            gpu.set_submission_time(time);
            let calls = Arc::new(AtomicUsize::new(0));
            let count = calls.clone();
            let observer = Observer::new(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let values = pollster::block_on(gpu.run(model.record(&gpu, 100, 3), &observer)).unwrap().numbers("y");
            (values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), calls.load(Ordering::Relaxed))
        };
        let (long, few) = run(Duration::from_secs(1000));
        let (short, many) = run(Duration::from_millis(1));
        assert!(long == short);
        assert!(few == 1 && many > few, "{few} and {many} submissions");
    });
}
