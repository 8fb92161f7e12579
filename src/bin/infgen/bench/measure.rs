//! Times. On a GPU by its timestamps; on a software device by the CPU time of this process divided by the cores, since other
//! work on the machine stretches every clock but that one.

use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use infgen::Result;
use infgen::gpu::{Elem, Gpu, Observer, Recorder, Tensor};
use infgen::kernels::peak::{peak_copy, peak_fma};

/// Median time of one thing, with what it did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// What rates are computed from: GPU time, or CPU time over cores.
    pub seconds: f64,
    /// Half the range relative to the median.
    pub spread: f64,
    /// Median wall time.
    pub wall: f64,
    /// Median CPU time of this process.
    pub cpu: f64,
    pub flops: u64,
    pub bytes: u64,
}

impl Measured {
    pub fn gflops(&self) -> f64 {
        self.flops as f64 / self.seconds * 1e-9
    }

    pub fn gbytes(&self) -> f64 {
        self.bytes as f64 / self.seconds * 1e-9
    }
}

/// What a device reached with nothing but multiply-adds, and nothing but a copy.
#[derive(Debug, Clone, Copy)]
pub struct Peaks {
    pub flops: f64,
    pub bytes: f64,
}

impl Peaks {
    /// The roofline: the rate that `m`'s operations and bytes allow, the share of it that was reached, and which roof it is. Of
    /// operations a second, or of bytes where there are no operations to speak of.
    pub fn roof(&self, m: &Measured) -> (f64, f64, &'static str) {
        let least = (m.flops as f64 / self.flops).max(m.bytes as f64 / self.bytes);
        let bound = if m.flops as f64 / self.flops >= m.bytes as f64 / self.bytes { "multiply" } else { "memory" };
        (m.flops as f64 / least * 1e-9, least / m.seconds, bound)
    }
}

/// One round: wall, CPU and GPU seconds.
struct Round {
    wall: f64,
    cpu: f64,
    gpu: f64,
}

/// Median, and half the range relative to it.
pub fn median(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let middle = times[times.len() / 2].max(1e-9);
    (middle, (times[times.len() - 1] - times[0]) / 2.0 / middle)
}

/// Cores that a software device computes on.
fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1, |n| n.get()) as f64
}

/// Measures on one device.
pub struct Bench<'a> {
    pub gpu: &'a Gpu,
    pub software: bool,
    pub repeat: u32,
    /// Ends it, be it between measurements.
    pub observer: Observer,
}

impl Bench<'_> {
    /// What `record` appends, after one warm-up; several times over where it is short.
    pub fn measure(&self, recorder: &dyn Fn() -> Recorder, record: &dyn Fn(&mut Recorder)) -> Result<Measured> {
        // Long submissions: cutting costs time, and nobody is watching.
        let usual = self.gpu.submission_time();
        self.gpu.set_submission_time(Duration::from_secs(2));
        let result = self.rounds(recorder, record);
        self.gpu.set_submission_time(usual);
        result
    }

    fn rounds(&self, recorder: &dyn Fn() -> Recorder, record: &dyn Fn(&mut Recorder)) -> Result<Measured> {
        let mut once = recorder();
        record(&mut once);
        let recording = once.finish();
        let (flops, bytes) = (recording.flops(), recording.layers().iter().map(|layer| layer.3).sum());
        self.round(recording)?;
        let warm = self.round(self.recording(recorder, record, 1))?;
        let inner = (0.02 / warm.gpu.max(warm.cpu / cores()).max(1e-5)).clamp(1.0, 64.0) as usize;
        let rounds: Vec<Round> = (0..self.repeat).map(|_| self.round(self.recording(recorder, record, inner))).collect::<Result<_>>()?;
        let pick = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(|r| of(r) / inner as f64).collect());
        let (wall, cpu) = (pick(&|r| r.wall), pick(&|r| r.cpu));
        let timed = if self.software { pick(&|r| r.cpu / cores()) } else { pick(&|r| if r.gpu > 0.0 { r.gpu } else { r.wall }) };
        Ok(Measured { seconds: timed.0, spread: timed.1, wall: wall.0, cpu: cpu.0, flops, bytes })
    }

    fn recording(&self, recorder: &dyn Fn() -> Recorder, record: &dyn Fn(&mut Recorder), times: usize) -> infgen::gpu::Recording {
        let mut rec = recorder();
        (0..times).for_each(|_| record(&mut rec));
        rec.finish()
    }

    fn round(&self, recording: infgen::gpu::Recording) -> Result<Round> {
        let (cpu, wall) = (ProcessTime::now(), Instant::now());
        let outputs = if self.software {
            pollster::block_on(self.gpu.run(recording, &self.observer))?
        } else {
            pollster::block_on(self.gpu.run_timed(recording, &self.observer))?
        };
        let gpu = outputs.timings.iter().map(|t| t.seconds).sum();
        Ok(Round { wall: wall.elapsed().as_secs_f64(), cpu: cpu.elapsed().as_secs_f64(), gpu })
    }

    /// Host work such as a whole decode: wall time and CPU time, after one warm-up, which is given back too.
    pub fn host(&self, rounds: u32, work: &dyn Fn() -> Result<()>) -> Result<(Measured, Measured)> {
        let mut all = Vec::new();
        for _ in 0..rounds + 1 {
            let (cpu, wall) = (ProcessTime::now(), Instant::now());
            work()?;
            all.push((wall.elapsed().as_secs_f64(), cpu.elapsed().as_secs_f64()));
        }
        let seconds = |wall: f64, cpu: f64| if self.software { cpu / cores() } else { wall };
        let first = all.remove(0);
        let first = Measured { seconds: seconds(first.0, first.1), wall: first.0, cpu: first.1, ..Measured::default() };
        let (timed, spread) = median(all.iter().map(|&(wall, cpu)| seconds(wall, cpu)).collect());
        let wall = median(all.iter().map(|r| r.0).collect()).0;
        let cpu = median(all.iter().map(|r| r.1).collect()).0;
        Ok((first, Measured { seconds: timed, spread, wall, cpu, ..Measured::default() }))
    }

    /// The device's own peaks.
    pub fn peaks(&self) -> Result<(Measured, Measured)> {
        let (groups, rounds) = if self.software { (512, 512) } else { (16384, 4096) };
        // Larger than any cache on the way.
        let size = if self.software { 1 << 23 } else { 1 << 24 };
        let recorder = || self.gpu.recorder();
        let fma = self.measure(&recorder, &|rec| drop(peak_fma(rec, groups, rounds)))?;
        let x = pollster::block_on(self.gpu.reserve("bench", 1, size, 4, Elem::F32))?;
        let copy = self.measure(&recorder, &|rec| drop(peak_copy(rec, &x)))?;
        Ok((fma, copy))
    }

    /// Bytes a second to the device and back, 64 MiB at a time.
    pub fn transfers(&self) -> Result<(Measured, Measured)> {
        let units = 1 << 22;
        let data = vec![0u8; 16 * units];
        let bytes = data.len() as u64;
        let up = || {
            pollster::block_on(async {
                self.gpu.resident("bench", &data, 1, units, 4, Elem::F32).await?;
                self.gpu.flush().await
            })
        };
        let x: Tensor = pollster::block_on(self.gpu.resident("bench", &data, 1, units, 4, Elem::F32))?;
        let down = || {
            let mut rec = self.gpu.recorder();
            rec.output_units("x", &x);
            pollster::block_on(self.gpu.run(rec.finish(), &self.observer)).map(|_| ())
        };
        let (_, up) = self.host(self.repeat, &up)?;
        let (_, down) = self.host(self.repeat, &down)?;
        Ok((Measured { bytes, ..up }, Measured { bytes, ..down }))
    }
}
