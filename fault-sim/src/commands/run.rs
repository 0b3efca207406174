//! `fault-sim run`: one workload, on real memory, on one device; checked and told.
//!
//! # Rules
//! 1. What cannot be served is refused before any work: exit status 2 and one sentence.
//! 2. The CPU looks at every byte after the device's last turn; what differs is named with its address, exit
//!    status 1.
//! 3. With `--json`, standard output is one JSON object and nothing else, also when the result is wrong.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use granule::os::TakeWay;
use granule::service::{BuildError, Granularity, Svm, SvmBuilder};
use granule::units::{BLOCK_BYTES, DevAddr, DeviceId, PAGE_BYTES, PAGE_SHIFT, VirtAddr, VirtRange};
use granule_backends::software::{BuildError as DeviceBuildError, SoftwareDevice};
use thiserror::Error;

use crate::accelerator::{Accelerator, WorkError};
use crate::alloc::{Arena, Source};
use crate::memory;
use crate::output;
use crate::progress::Progress;
use crate::report::{Asked, Measured, Report};
use crate::shaders::{OpenError, ShaderDevice};
use crate::size::Size;
use crate::workload::{self, Kind, PrepareError, Setup, Workload};
use crate::{FAILED, REFUSED};

/// The most engines or threads that a run takes.
pub(crate) const MOST_WORKERS: usize = 256;

/// What `run` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What the device computes.
    #[arg(long, value_enum, default_value_t = Kind::Saxpy)]
    pub workload: Kind,
    /// Bytes of data: 64MiB, 1GiB, or a number.
    #[arg(long, default_value = "64MiB")]
    pub size: Size,
    /// Memory of the device, a multiple of 2MiB [default: twice the data].
    #[arg(long)]
    pub device_memory: Option<Size>,
    /// The device.
    #[arg(long, value_enum, default_value_t = Backend::Software)]
    pub backend: Backend,
    /// Which Vulkan device: its number, or a part of its name [default: the first that can be used].
    #[arg(long)]
    pub device: Option<String>,
    /// How shaders of a Vulkan device reach its memory [default: what `fault-sim devices` says].
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Engines of the device; for a Vulkan device, the number of parts that its work has where that matters.
    #[arg(long, default_value_t = 2)]
    pub engines: usize,
    /// Threads of the CPU side.
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Where the data's memory comes from.
    #[arg(long, value_enum, default_value_t = Source::Malloc)]
    pub alloc: Source,
    /// How pages leave the CPU.
    #[arg(long, value_enum, default_value_t = Take::Auto)]
    pub take: Take,
    /// Have only faults of user mode served, as a process without rights has them: of memory from malloc and mmap
    /// nothing moves.
    #[arg(long)]
    pub user_mode_only: bool,
    /// The unit in which pages move.
    #[arg(long, value_enum, default_value_t = Grain::Kib64)]
    pub granularity: Grain,
    /// Every value of the run follows from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// For tests: flips one byte of device memory before the check, which must notice.
    #[arg(long, hide = true)]
    pub flip_byte: bool,
}

/// The devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Backend {
    /// Engines that are threads, with page tables and an IOMMU of their own.
    Software,
    /// A Vulkan device: compute shaders that fault.
    Vulkan,
}

/// The ways in which shaders reach device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// Through a page table that they walk.
    Translation,
    /// Directly, in sparse buffers.
    Sparse,
}

/// The granularities, by the names that the command line gives them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Grain {
    /// A page.
    #[value(name = "4KiB")]
    Kib4,
    /// 16 pages.
    #[value(name = "64KiB")]
    Kib64,
    /// A block.
    #[value(name = "2MiB")]
    Mib2,
}

impl Grain {
    fn bytes(self) -> u64 {
        match self {
            Grain::Kib4 => PAGE_BYTES,
            Grain::Kib64 => 64 << 10,
            Grain::Mib2 => BLOCK_BYTES,
        }
    }
    fn granularity(self) -> Granularity {
        match self {
            Grain::Kib4 => Granularity::Kib4,
            Grain::Kib64 => Granularity::Kib64,
            Grain::Mib2 => Granularity::Mib2,
        }
    }
}

/// The ways in which pages leave the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// What the kernel can do.
    Auto,
    /// Moved by UFFDIO_MOVE (Linux 6.8).
    Move,
    /// Write-protected, copied, dropped: what older kernels can do.
    WriteProtect,
}

impl Take {
    fn way(self) -> Option<TakeWay> {
        match self {
            Take::Auto => None,
            Take::Move => Some(TakeWay::Move),
            Take::WriteProtect => Some(TakeWay::WriteProtect),
        }
    }
}

/// Why a run is not done.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// Nothing to do.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// Too small to give everybody something.
    #[error("--size {0} is less than a page of 4KiB for each engine and thread; {1} is the least")]
    TooSmall(Size, Size),
    /// No device has this much.
    #[error("--device-memory {0} is not a multiple of 2MiB; give one that is")]
    NotBlocks(Size),
    /// More than can be had.
    #[error("{0} {1} is larger than the memory that is available ({2}); give less")]
    LargerThanMemory(&'static str, Size, Size),
    /// More threads than make sense.
    #[error("{0} {1} is more than {MOST_WORKERS}; give less")]
    TooMany(&'static str, usize),
    /// There is one software device only, and one way to reach its memory.
    #[error("{0} is about Vulkan devices; add --backend vulkan")]
    NoChoice(&'static str),
}

/// Why a run ended without a report.
#[derive(Debug, Error)]
pub enum RunError {
    /// Not asked for in a way that can be served.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No device.
    #[error("the device cannot be made: {0}")]
    Device(#[from] DeviceBuildError),
    /// No Vulkan device.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No address space.
    #[error("the address space cannot be served: {0}")]
    Build(#[from] BuildError),
    /// No data.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// An access of the device failed.
    #[error("the device's work failed: {0}")]
    Kernel(#[from] WorkError),
    /// The test-only switch found nothing to flip.
    #[error("no byte of the data is in device memory, so none can be flipped")]
    NothingToFlip,
}

impl RunError {
    fn exit_status(&self) -> u8 {
        match self {
            RunError::Refused(_) | RunError::Device(_) | RunError::Open(_) | RunError::Build(_) => REFUSED,
            RunError::Prepare(_) | RunError::Kernel(_) | RunError::NothingToFlip => FAILED,
        }
    }
}

/// Runs and prints.
pub fn main(options: &Options) -> ExitCode {
    match run(options) {
        Ok(report) => {
            let text = if options.json { format!("{}\n", report.json()) } else { report.table() };
            let unwritten = output::to_stdout(&text).err().map(|error| error.to_string());
            match report.error.or(unwritten) {
                None => ExitCode::SUCCESS,
                Some(sentence) => {
                    eprintln!("{sentence}");
                    ExitCode::from(FAILED)
                }
            }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_status())
        }
    }
}

/// Checks the options and fills in what was left open. `available` is how much memory can be had.
fn check(options: &Options, available: Option<u64>) -> Result<Asked, Refusal> {
    for (name, number) in
        [("--size", options.size.0), ("--device-memory", options.device_memory.map_or(1, |s| s.0))]
    {
        if number == 0 {
            return Err(Refusal::Zero(name));
        }
    }
    for (name, number) in [("--engines", options.engines), ("--threads", options.threads)] {
        match number {
            0 => return Err(Refusal::Zero(name)),
            1..=MOST_WORKERS => {}
            _ => return Err(Refusal::TooMany(name, number)),
        }
    }
    let least = Size(PAGE_BYTES * (options.engines + options.threads) as u64);
    if options.size < least {
        return Err(Refusal::TooSmall(options.size, least));
    }
    for (name, is_given) in [("--device", options.device.is_some()), ("--mode", options.mode.is_some())] {
        if is_given && options.backend != Backend::Vulkan {
            return Err(Refusal::NoChoice(name));
        }
    }
    let refuse_larger = |name, size: Size, needed: u64| match available {
        Some(available) if needed > available => Err(Refusal::LargerThanMemory(name, size, Size(available))),
        _ => Ok(()),
    };
    // What is asked for, and all of device memory: it is filled before the start, as a device's own memory is there.
    refuse_larger("--size", options.size, options.size.0)?;
    let device_memory = match options.device_memory {
        Some(size) if !size.0.is_multiple_of(BLOCK_BYTES) => return Err(Refusal::NotBlocks(size)),
        Some(size) => size,
        None => {
            let twice = options.size.0.saturating_mul(2).checked_next_multiple_of(BLOCK_BYTES);
            Size(twice.unwrap_or(u64::MAX))
        }
    };
    if options.device_memory.is_some() {
        refuse_larger("--device-memory", device_memory, device_memory.0)?;
    }
    let data = options.workload.footprint_bytes(options.alloc, options.size.0);
    refuse_larger("--size", options.size, data.saturating_add(device_memory.0))?;
    Ok(Asked {
        workload: options.workload,
        alloc: options.alloc,
        take: options.take,
        backend: match options.backend {
            Backend::Software => "software",
            Backend::Vulkan => "vulkan",
        },
        size: options.size,
        device_memory,
        granularity_bytes: options.granularity.bytes(),
        engines: options.engines,
        threads: options.threads,
        seed: options.seed,
    })
}

/// Runs a workload and says what happened.
///
/// # Errors
/// [`RunError`] if it could not be run to its end; a wrong result is in the report.
pub fn run(options: &Options) -> Result<Report, RunError> {
    let asked = check(options, memory::available_bytes())?;
    let builder =
        Svm::builder().granularity(options.granularity.granularity()).user_mode_only(options.user_mode_only);
    let (device, mut builder) = open(options, &asked, builder)?;
    if let Some(way) = options.take.way() {
        builder = builder.take_way(way);
    }
    let svm = builder.build()?;
    let arena = Arena::new(asked.alloc, &svm);
    let progress = Progress::new();
    let setup = Setup {
        bytes: asked.size.0,
        seed: asked.seed,
        engines: asked.engines,
        threads: asked.threads,
        progress: &progress,
    };
    workload::with(asked.workload, &arena, setup, |workload| {
        work(options, asked, &device, &svm, workload, &progress)
    })?
}

/// Makes the device and adds it to the space.
fn open(
    options: &Options,
    asked: &Asked,
    builder: SvmBuilder,
) -> Result<(Accelerator, SvmBuilder), RunError> {
    let bytes = asked.device_memory.0;
    Ok(match options.backend {
        Backend::Software => {
            let device = SoftwareDevice::builder()
                .memory_bytes(bytes)
                .engines(asked.engines)
                .seed(asked.seed)
                .populate(true)
                .build()?;
            let builder = builder.device(device.clone());
            (Accelerator::Software(device), builder)
        }
        Backend::Vulkan => {
            let device = ShaderDevice::open(options.device.as_deref(), bytes, options.mode)?;
            let builder = device.add_to(builder);
            (Accelerator::Shaders(device), builder)
        }
    })
}

/// Has the device do its work and the CPU check it.
fn work(
    options: &Options,
    asked: Asked,
    device: &Accelerator,
    svm: &Svm,
    workload: &dyn Workload,
    progress: &Progress,
) -> Result<Report, RunError> {
    if let Accelerator::Shaders(device) = device {
        device.prepare(workload.shader())?;
    }
    progress.begin("device", workload.work_bytes());
    let start = Instant::now();
    let worked = workload.run(device);
    let device_time = start.elapsed();
    progress.clear();
    worked?;
    if options.flip_byte {
        flip_byte(device, svm, workload)?;
    }
    let start = Instant::now();
    let verdict = workload.verify();
    let check_time = start.elapsed();

    let counters = device.tables();
    let measured = Measured {
        device: (workload.work_bytes(), device_time),
        check: (asked.size.0, check_time),
        pages_touched: pages_of(workload),
        user_mode_only: svm.is_user_mode_only(),
        iommu_errors: counters.iommu_errors,
        device_page_table_bytes: counters.table_bytes,
        iommu_page_table_bytes: counters.iommu_table_bytes,
    };
    Ok(Report::new(asked, &svm.stats(), measured, verdict.err().map(|wrong| wrong.to_string())))
}

/// Flips one byte of the data where it lies in device memory; brings some of it there if none does.
fn flip_byte(device: &Accelerator, svm: &Svm, workload: &dyn Workload) -> Result<(), RunError> {
    let flip = |at: u64, bytes: u64| {
        let place = (at..at + bytes).step_by(PAGE_BYTES as usize).find_map(|at| device.place(DevAddr(at)));
        place.inspect(|place| device.flip_byte(*place)).is_some()
    };
    let bring_and_flip = |at: u64, bytes: u64| {
        let bytes = bytes.min(BLOCK_BYTES);
        let range = VirtRange::covering(VirtAddr(at), bytes);
        range.is_ok_and(|range| svm.prefetch(range, DeviceId(0)).is_ok()) && flip(at, bytes)
    };
    if any_span(workload, flip) || any_span(workload, bring_and_flip) {
        Ok(())
    } else {
        Err(RunError::NothingToFlip)
    }
}

fn any_span(workload: &dyn Workload, found: impl Fn(u64, u64) -> bool) -> bool {
    let mut any = false;
    workload.spans(&mut |at, bytes| {
        any = found(at, bytes);
        any
    });
    any
}

/// How many different pages the data lie in.
fn pages_of(workload: &dyn Workload) -> u64 {
    let mut runs = Vec::new();
    workload.spans(&mut |at, bytes| {
        let run = at >> PAGE_SHIFT..(at + bytes).div_ceil(PAGE_BYTES);
        match runs.last_mut() {
            // Nodes come page by page, so that this list stays short.
            Some(last) if *last == run => {}
            _ => runs.push(run),
        }
        false
    });
    runs.sort_unstable_by_key(|run| (run.start, run.end));
    let mut counted_to = 0;
    runs.into_iter()
        .map(|run| {
            let new = run.end.saturating_sub(run.start.max(counted_to));
            counted_to = counted_to.max(run.end);
            new
        })
        .sum()
}
