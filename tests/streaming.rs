//! Weights whose bytes arrive over time: the same tensors and the same errors as from memory, and no byte before it is needed.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use infgen::weights::{ByteStream, Dtype, Fetched, Weights};
use infgen::{Engine, EngineOptions, Error, Observer};
use safetensors::tensor::TensorView;

/// Pending once, as bytes from a network are.
#[derive(Default)]
struct Later(bool);

impl Future for Later {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Offset and length of every range that was asked for.
type Ranges = Arc<Mutex<Vec<(u64, usize)>>>;

struct Network {
    bytes: Vec<u8>,
    asked: Ranges,
    /// Bytes from here on never come.
    broken_at: usize,
}

impl ByteStream for Network {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn fetch<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> Fetched<'a> {
        Box::pin(async move {
            Later::default().await;
            self.asked.lock().unwrap().push((offset, buffer.len()));
            let range = offset as usize..offset as usize + buffer.len();
            if range.end > self.broken_at {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            buffer.copy_from_slice(self.bytes.get(range).ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }
}

fn stream(bytes: &[u8]) -> (Result<Weights, Error>, Ranges) {
    let asked = Ranges::default();
    let network = Network { bytes: bytes.to_vec(), asked: asked.clone(), broken_at: usize::MAX };
    (pollster::block_on(Weights::stream(network, "w")), asked)
}

/// Three tensors, one of them larger than any portion that is read at a time.
fn file() -> (Vec<u8>, usize) {
    let values = |n: usize, from: f32| -> Vec<u8> { (0..n).flat_map(|i| (from + i as f32).to_le_bytes()).collect() };
    let (a, b, c) = (values(3, 0.5), values(200_000, 7.0), values(4, -2.0));
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let tensors = [("a", view(&[3], &a)), ("b", view(&[100, 2000], &b)), ("c", view(&[2, 2], &c))];
    let bytes = safetensors::serialize(tensors, None).unwrap();
    let data = bytes.len() - a.len() - b.len() - c.len();
    (bytes, data)
}

#[test]
fn tensors_arrive_as_they_are_asked_for() {
    let (bytes, data) = file();
    let (weights, asked) = stream(&bytes);
    let weights = weights.unwrap();
    let before: Vec<(u64, usize)> = std::mem::take(&mut asked.lock().unwrap());
    assert!(before.iter().all(|&(offset, length)| offset as usize + length <= data.max(1024)), "header only: {before:?}");
    assert!(asked.lock().unwrap().is_empty());

    let whole = Weights::from_bytes(bytes, "w").unwrap();
    for (name, shape) in [("c", &[2, 2][..]), ("a", &[3]), ("b", &[100, 2000])] {
        assert!(matches!(weights.get(name, shape), Err(Error::Io { .. })), "a call that cannot wait says so");
        asked.lock().unwrap().clear();
        let values = pollster::block_on(weights.get_async(name, shape)).unwrap();
        assert_eq!(values, whole.get(name, shape).unwrap(), "{name}");
        let ranges = asked.lock().unwrap();
        assert_eq!(ranges.iter().map(|&(_, length)| length).sum::<usize>(), 4 * values.len(), "{name}: its own bytes, once");
        assert!(ranges.iter().all(|&(_, length)| length <= 1 << 18), "{name}: in portions");
    }
}

#[test]
fn broken_streams_give_the_errors_of_broken_files() {
    let (bytes, data) = file();
    let zip = [b"PK\x03\x04".to_vec(), vec![b'x'; 200_000], b"archive/data.pkl".to_vec(), vec![0; 300]].concat();
    let mut cases = vec![vec![], b"{}".to_vec(), zip, b"\x80\x02}q\x00.".to_vec(), vec![0xff; 64], b"\x93NUMPY\x01\x00".to_vec()];
    cases.extend([1, 7, 8, 9, data - 1, data, data + 1, bytes.len() - 1].map(|n| bytes[..n].to_vec()));
    cases.push([&bytes[..], &[0]].concat());
    for case in cases {
        let from_memory = Weights::from_bytes(case.clone(), "w").unwrap_err().to_string();
        let (streamed, _) = stream(&case);
        assert_eq!(streamed.unwrap_err().to_string(), from_memory);
    }
}

#[test]
fn a_connection_that_breaks_is_an_error_where_it_breaks() {
    let (bytes, data) = file();
    let network = |broken_at| Network { bytes: bytes.clone(), asked: Ranges::default(), broken_at };
    let error = pollster::block_on(Weights::stream(network(data - 10), "w")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let weights = pollster::block_on(Weights::stream(network(data + 400_000), "w")).unwrap();
    assert!(pollster::block_on(weights.get_async("a", &[3])).is_ok());
    let error = pollster::block_on(weights.get_async("b", &[100, 2000])).unwrap_err().to_string();
    assert!(error.starts_with("w: ") && error.contains("reset"), "{error}");
}

/// Every tensor of a model is reported, and a cancel ends loading with nothing left on the device.
#[test]
fn loading_tells_how_far_it_is_and_can_be_cancelled() {
    let device = std::env::var("INFGEN_DEVICE").ok();
    let engine = match Engine::new(EngineOptions { device, ..EngineOptions::default() }) {
        Ok(engine) => engine,
        Err(Error::NoAdapter { detail }) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|v| v != "1"), "REQUIRE_GPU=1, but: {detail}");
            return eprintln!("SKIPPED: no GPU adapter on this machine (REQUIRE_GPU=1 makes this a failure)");
        }
        Err(error) => panic!("{error}"),
    };
    // Reports until `stop` of them have come, then the cancel.
    let watched = |stop: usize| {
        let (seen, handle) = (Arc::new(Mutex::new(Vec::new())), Arc::new(std::sync::OnceLock::<Observer>::new()));
        let (inner, cancel) = (seen.clone(), handle.clone());
        let observer = Observer::new(move |at| {
            let mut seen = inner.lock().unwrap();
            seen.push(at.done);
            if seen.len() == stop {
                cancel.get().unwrap().cancel();
            }
        });
        handle.set(observer.clone()).unwrap();
        (observer, seen)
    };
    for (which, stop) in [("decoder", 20), ("encoder", 20)] {
        let load = |observer: &Observer| match which {
            "decoder" => pollster::block_on(engine.load_decoder_async(infgen::Weights::Builtin, observer)).map(drop),
            _ => pollster::block_on(engine.load_encoder_async(infgen::Weights::Builtin, observer)).map(drop),
        };
        // The decoder stays, as the one that `decode` uses.
        let idle = engine.memory().current;
        let (observer, seen) = watched(stop);
        assert!(matches!(load(&observer), Err(Error::Cancelled)), "{which}");
        assert_eq!((seen.lock().unwrap().len(), engine.memory().current), (stop, idle), "{which}: reports, memory");
        let (observer, seen) = watched(usize::MAX);
        load(&observer).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen[0] == 0.0 && seen.is_sorted() && (0.9..=1.0).contains(seen.last().unwrap()), "{which}: {seen:?}");
    }
}
