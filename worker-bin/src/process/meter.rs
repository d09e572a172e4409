//! Memory use of this process, read without Python.
//!
//! Costs on Linux 6.18, median of 10,000:
//!
//! * `/proc/self/statm`: 1.7 µs, opened each time, as a job could close or reuse its descriptor;
//! * the peak in `/proc/self/status`: 7.5 µs;
//! * processor time: 0.3 µs;
//! * `sysinfo` instead of `statm`: 22 µs, and a descriptor for each process.
//!
//! So a call reads the files directly, and only when it is due ([`Meter::read_if_due`]). The native
//! thread uses `sysinfo` for the whole family.
//!
//! `getrusage(2)` would be cheaper for the peak, but `ru_maxrss` outlives an `execve`: a worker
//! would begin with the peak of the program that started it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read as _;
use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::os;
use crate::os::proc;
use crate::process::family;
use crate::protocol::figures::Figures;

/// Interval between two readings during calls. A page fault takes at least 0.1 µs, which bounds the
/// growth in between.
const INTERVAL: Duration = Duration::from_millis(1);

/// The same for the peak. Readings of the resident memory miss it only if memory was released
/// between two.
const PEAK_INTERVAL: Duration = Duration::from_millis(2);

/// How often a family must be above its limit.
const LOOKS: usize = 3;

/// Reads the figures, at most once in an interval.
#[derive(Debug, Default)]
pub struct Meter {
    read: Option<Instant>,
    peak_read: Option<Instant>,
    peak: u64,
}

impl Meter {
    /// For a freshly forked process, whose peak is its present memory use (kernel/fork.c,
    /// `dup_mm`).
    pub fn of_forked() -> Self {
        Self { peak_read: Some(Instant::now()), ..Self::default() }
    }

    /// The figures. `None` if they were read recently, or are unavailable.
    pub fn read_if_due(&mut self) -> Option<Figures> {
        let now = Instant::now();
        if self.read.is_some_and(|read| now.duration_since(read) < INTERVAL) {
            return None;
        }
        self.read_at(now)
    }

    /// The present figures.
    pub fn read(&mut self) -> Option<Figures> {
        self.read_at(Instant::now())
    }

    fn read_at(&mut self, now: Instant) -> Option<Figures> {
        let (vms, rss) = sizes()?;
        self.read = Some(now);
        if self.peak_read.is_none_or(|read| now.duration_since(read) >= PEAK_INTERVAL) {
            self.peak_read = Some(now);
            self.peak = self.peak.max(peak().unwrap_or_default());
        }
        self.peak = self.peak.max(rss);
        Some(Figures {
            rss,
            peak_rss: self.peak,
            vms,
            cpu_time: os::process::processor_time().as_micros().try_into().unwrap_or(u64::MAX),
        })
    }
}

/// Memory use of this process and its descendants.
#[derive(Debug, Default)]
pub struct FamilyMeter {
    /// Created on first use: it reads the processors' statistics, which would slow down the start.
    system: Option<System>,
}

impl FamilyMeter {
    pub const fn new() -> Self {
        Self { system: None }
    }

    /// Return the family's resident memory if it is above the limit, in bytes.
    ///
    /// Memory that a forked child shares is resident in both processes. So with descendants the sum
    /// only triggers a closer look. Each page then counts for its share (`Pss` in proc(5)), which
    /// takes the kernel milliseconds.
    pub fn above(&mut self, limit: u64) -> Option<u64> {
        let mut pids = vec![Pid::from_u32(std::process::id())];
        pids.extend(family::descendants().into_iter().filter_map(|pid| u32::try_from(pid).ok()).map(Pid::from_u32));
        let refresh = ProcessRefreshKind::nothing().with_memory().without_tasks();
        let system = self.system.get_or_insert_with(|| {
            // A job would find a descriptor for each process.
            sysinfo::set_open_files_limit(0);
            System::new()
        });
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, refresh);
        // `sysinfo` may fail where the held `/proc` works: no free descriptor, another root
        // directory.
        let sum = pids.iter().map(|pid| resident_in(system, *pid).or_else(|| resident(*pid)).unwrap_or_default()).sum::<u64>();
        if sum <= limit {
            return None;
        }
        let mut reached = sum;
        if pids.len() > 1 {
            // The share of a process that ends between two readings moves to the later ones. The
            // sum can only be too large.
            for _ in 0..LOOKS {
                reached = reached.min(pids.iter().map(|pid| share(system, *pid)).sum());
                if reached <= limit {
                    return None;
                }
            }
        }
        Some(reached)
    }
}

fn resident_in(system: &System, pid: Pid) -> Option<u64> {
    system.process(pid).map(sysinfo::Process::memory)
}

fn resident(pid: Pid) -> Option<u64> {
    let text = proc::read(&format!("{pid}/statm")).ok()?;
    Some(sizes_in_statm(str::from_utf8(&text).ok()?, os::memory::page_size())?.1)
}

/// True if memory use is available. The memory limit requires it.
pub fn has_proc() -> bool {
    resident(Pid::from_u32(std::process::id())).is_some()
}

/// Memory use of a process, shared pages counted by share. 0 if it has ended.
fn share(system: &System, pid: Pid) -> u64 {
    match proc::read(&format!("{pid}/smaps_rollup")) {
        // The file of a zombie is empty or unreadable (ESRCH).
        Ok(text) => str::from_utf8(&text).ok().and_then(|text| kilobytes(text, "Pss:")).unwrap_or_default(),
        // A process of another user (set-uid).
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            resident_in(system, pid).or_else(|| resident(pid)).unwrap_or_default()
        }
        Err(_) => 0,
    }
}

/// The address space and the resident memory, in bytes.
#[cfg(target_os = "linux")]
fn sizes() -> Option<(u64, u64)> {
    let mut memory = [0; 256];
    sizes_in_statm(front_of("/proc/self/statm", &mut memory)?, os::memory::page_size())
}

/// Slower, without `/proc`.
#[cfg(not(target_os = "linux"))]
fn sizes() -> Option<(u64, u64)> {
    let pid = Pid::from_u32(std::process::id());
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, ProcessRefreshKind::nothing().with_memory());
    system.process(pid).map(|process| (process.virtual_memory(), process.memory()))
}

/// The peak of the resident memory, in bytes. `None` means unknown.
fn peak() -> Option<u64> {
    const PATH: &str = "/proc/self/status";
    const NAME: &str = "VmHWM:";
    let mut memory = [0; 4096];
    // With very many groups, their list fills the front.
    kilobytes(front_of(PATH, &mut memory)?, NAME).or_else(|| kilobytes(&fs::read_to_string(PATH).ok()?, NAME))
}

/// The result of one read of a file. The kernel composes these files as a whole.
/// `fs::read_to_string` also asks for size and end (2.1 µs instead of 1.7), and allocates memory,
/// which copies pages in a forked process.
fn front_of<'a>(path: &str, memory: &'a mut [u8]) -> Option<&'a str> {
    let count = File::open(path).ok()?.read(memory).ok()?;
    str::from_utf8(memory.get(..count)?).ok()
}

fn sizes_in_statm(text: &str, page: u64) -> Option<(u64, u64)> {
    let mut pages = text.split_ascii_whitespace().map(|field| field.parse::<u64>().ok()?.checked_mul(page));
    Some((pages.next()??, pages.next()??))
}

/// The value of a line like `VmHWM:    1234 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_as_the_kernel_writes_them() {
        assert_eq!(sizes_in_statm("5034 2011 1600 227 0 309 0\n", 4096), Some((5034 * 4096, 2011 * 4096)));
        assert_eq!(kilobytes("VmPeak:\t   20136 kB\nVmHWM:\t    8044 kB\nVmRSS:\t 1 kB\n", "VmHWM:"), Some(8044 * 1024));
    }

    #[test]
    fn nonsense_is_no_figure() {
        for text in ["", "1", "x y", "1 -2", "1 99999999999999999999", "1 18446744073709551615"] {
            assert_eq!(sizes_in_statm(text, 4096), None, "{text:?}");
        }
        for text in ["", "VmHWM:", "VmHWM: 12 MB", "VmHWM: kB", "VmHWM: -1 kB"] {
            assert_eq!(kilobytes(text, "VmHWM:"), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_has_figures_and_they_agree_with_each_other() {
        let mut meter = Meter::default();
        let figures = meter.read().unwrap();
        assert!(figures.rss > 100_000 && figures.rss <= figures.peak_rss && figures.rss <= figures.vms, "{figures:?}");
    }

    #[test]
    fn a_second_reading_is_due_later_and_sees_the_growth() {
        let mut meter = Meter::default();
        let before = meter.read_if_due().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = loop {
            if let Some(figures) = meter.read_if_due() {
                break figures;
            }
            assert!(Instant::now() < deadline);
        };
        assert!(after.rss >= before.rss + (32 << 20), "{before:?} {after:?}");
        drop(block);
        assert!(meter.read().unwrap().peak_rss >= after.rss);
    }

    #[test]
    fn a_family_is_above_a_limit_or_not() {
        let mut meter = FamilyMeter::new();
        assert_eq!(meter.above(u64::MAX), None);
        assert!(meter.above(1000).is_some_and(|reached| reached > 1000));
    }
}
