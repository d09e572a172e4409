//! The worker's descendants: everything that a job has started, directly or not. All of them are
//! found and ended.
//!
//! # How they are found
//!
//! A worker has no process group (a job's programs stay in the terminal's foreground group and get
//! Ctrl+C), a descendant may call `setsid`, and an orphan becomes a child of init. So each worker
//! marks itself at its start: the soft limit RLIMIT_LOCKS, which kernels ignore, is set to a unique
//! number. Descendants inherit it through forks and execs, whatever their parent, and any process
//! of the same user can read it with one system call. The kernel's lists of children cover
//! descendants that have changed that limit.
//!
//! A mark has bit 62 set, then (from bit 39 on) the worker's process ID, and in the lowest 39 bits
//! the milliseconds between boot and the marking. So the parent can compute a worker's mark from
//! its process ID and start time. Bit 61 marks the sentinel process of a worker in Python.
//!
//! If the mark cannot be set (a lower hard limit, a system that only resembles Linux), the worker
//! becomes a child subreaper instead (prctl(2)): orphans become its children. That comes second
//! because such orphans stay zombies (the worker must not reap what may be a job's own child), and
//! a job's `os.wait` sees them. If that fails too, orphans are lost, and the parent reports it
//! once.
//!
//! # How they are ended
//!
//! With SIGKILL as soon as they are found, parents before their children, in rounds until one is
//! empty. They are not stopped first: a process with a pending SIGKILL cannot fork
//! (`os::marks::Target`), so its children are there for the next round. Stopping them would leave
//! stopped processes forever if the sender were killed.
//!
//! Each way to end a worker, and the successor of a sender that is killed:
//!
//! * The parent stops the worker, ends its descendants, and kills the worker last. If it is killed
//!   in between, the kernel resumes the worker (`os::marks::resume_without_parent`), which finds
//!   itself an orphan.
//! * The native thread, or the sentinel process of a worker in Python, ends the family of an
//!   orphan, or of a job above its memory limit. First it forbids forks in the worker. If it is
//!   killed in between, the parent continues: it looks for the marks of every worker that did not
//!   exit in order.
//! * Another process kills the worker, or it crashes: the parent does the same.
//! * If parent and worker are killed in the same moment, the family survives. A worker in Python
//!   still has its sentinel process.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::str::SplitAsciiWhitespace;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::os::marks::{self, Target};
use crate::os::{self, proc};

const MAX_ROUNDS: u32 = 3000;

/// Another thread may have been inside a fork when forks were forbidden.
const QUIET_ROUNDS: u32 = 2;

const BETWEEN_ROUNDS: Duration = Duration::from_micros(500);

/// From include/linux/sched.h. Set at the beginning of a thread's exit (kernel/exit.c, do_exit),
/// and never cleared.
const PF_EXITING: u64 = 4;

/// The mark of this process; 0 means none.
static MARK: AtomicU64 = AtomicU64::new(0);

/// Mark this process. Call this before it starts anything.
pub fn begin() {
    marks::resume_without_parent();
    let mark = compose(marks::own_number(), marks::boot_time());
    let is_set = marks::set(mark);
    MARK.store(if is_set { mark } else { 0 }, Ordering::Relaxed);
    if !is_set {
        // If this fails too (qemu's user mode), the parent notices the missing mark.
        let _ = os::process::become_subreaper();
    }
}

fn compose(pid: u32, time: u64) -> u64 {
    const TIME_BITS: u32 = 39;
    (1 << 62) | (u64::from(pid & 0x003f_ffff) << TIME_BITS) | (time & ((1 << TIME_BITS) - 1))
}

/// End all descendants of this process. Its own threads cannot start anything from now on.
pub fn end_descendants() {
    marks::forbid_forks();
    let own = own_pid();
    let mut known = HashSet::from([own]);
    let mut quiet = 0;
    // A bound, in case the process table is inconsistent.
    for _ in 0..MAX_ROUNDS {
        let found: Vec<i32> = all_descendants().into_iter().filter(|pid| known.insert(*pid)).collect();
        if found.is_empty() {
            quiet += 1;
            if quiet == QUIET_ROUNDS {
                break;
            }
            thread::sleep(BETWEEN_ROUNDS);
            continue;
        }
        quiet = 0;
        let is_ours = |pid| has_our_mark(pid) || parent_of(pid).is_some_and(|parent| known.contains(&parent));
        // Check all before the first kill, which changes the parents of others.
        let targets: Vec<Target> = found.into_iter().filter_map(|pid| Target::new(pid, || is_ours(pid))).collect();
        targets.into_iter().for_each(Target::kill);
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(i32::MAX)
}

fn has_our_mark(pid: i32) -> bool {
    let mark = MARK.load(Ordering::Relaxed);
    mark != 0 && mark_of(pid) == Some(mark)
}

fn mark_of(pid: i32) -> Option<u64> {
    // prlimit requires that all user IDs match, kill only one of them. Where they differ,
    // `/proc/PID/limits` is readable by everyone.
    marks::of(pid)
        .or_else(|| if marks::may_signal(pid) { mark_in_limits(&proc::read(&format!("{pid}/limits")).ok()?) } else { None })
}

fn mark_in_limits(table: &[u8]) -> Option<u64> {
    let line = str::from_utf8(table).ok()?.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// True if all threads of a process have begun to exit. False without `/proc`.
pub fn is_ending(pid: u32) -> bool {
    let Ok(threads) = proc::numbers_in(&format!("{pid}/task")) else { return false };
    let mut lines = threads.iter().filter_map(|thread| proc::read(&format!("{pid}/task/{thread}/stat")).ok());
    lines.all(|line| flags_in_stat(&line).is_some_and(|flags| flags & PF_EXITING != 0))
}

/// Process IDs of all present descendants, parents before their children.
pub fn descendants() -> Vec<i32> {
    let mut found = below();
    // Orphans were children first. Live children are listed, and reaped ones are counted.
    if !found.is_empty() || marks::faults_of_children() != 0 || marks::reaps_children_itself() {
        add_marked(&mut found);
    }
    found
}

fn all_descendants() -> Vec<i32> {
    let mut found = below();
    add_marked(&mut found);
    found
}

/// Add processes with this process's mark that are not in the list.
fn add_marked(found: &mut Vec<i32>) {
    if MARK.load(Ordering::Relaxed) == 0 {
        return;
    }
    let own = own_pid();
    let known: HashSet<i32> = found.iter().copied().collect();
    let is_new = |pid: &i32| *pid != own && !known.contains(pid) && has_our_mark(*pid);
    match proc::numbers_in("") {
        Ok(pids) => found.extend(pids.into_iter().filter(is_new)),
        // Half a second for all possible process IDs (PID_MAX_LIMIT in include/linux/threads.h).
        Err(_) => found.extend((2..=1 << 22).filter(is_new)),
    }
}

/// The children of this process, their children, and so on.
fn below() -> Vec<i32> {
    let own = own_pid();
    let parents = if proc::read(&format!("self/task/{own}/children")).is_ok() { None } else { parent_table().ok() };
    let mut found = vec![own];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        let children = match &parents {
            None => listed_children(pid),
            Some(table) => table.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child).collect(),
        };
        for child in children {
            if !found.contains(&child) {
                found.push(child);
            }
        }
        next += 1;
    }
    found.split_off(1)
}

/// The children that the kernel lists for each thread (proc(5); kernels with CONFIG_PROC_CHILDREN).
fn listed_children(pid: i32) -> Vec<i32> {
    let Ok(threads) = proc::numbers_in(&format!("{pid}/task")) else { return Vec::new() };
    let lists = threads.iter().filter_map(|thread| proc::read(&format!("{pid}/task/{thread}/children")).ok());
    let numbers = lists.filter_map(|list| String::from_utf8(list).ok());
    numbers.flat_map(|list| list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Every process with its parent, from `/proc/PID/stat`.
fn parent_table() -> io::Result<Vec<(i32, i32)>> {
    Ok(proc::numbers_in("")?.into_iter().filter_map(|pid| Some((pid, parent_of(pid)?))).collect())
}

fn parent_of(pid: i32) -> Option<i32> {
    parent_in_stat(&proc::read(&format!("{pid}/stat")).ok()?)
}

fn parent_in_stat(line: &[u8]) -> Option<i32> {
    fields_of_stat(line)?.nth(1)?.parse().ok()
}

fn flags_in_stat(line: &[u8]) -> Option<u64> {
    fields_of_stat(line)?.nth(6)?.parse().ok()
}

/// The fields from the third on, the state. The second is the program's name in parentheses, which
/// may contain blanks and parentheses; so search for its end from the right.
fn fields_of_stat(line: &[u8]) -> Option<SplitAsciiWhitespace<'_>> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(line.get(name_end + 1..)?).ok()?.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::{compose, is_ending, mark_in_limits, parent_in_stat};
    use std::io::Read as _;
    use std::process::{Command, Stdio, id};

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"12 (sh) S 7 12 12"), Some(7));
        assert_eq!(parent_in_stat(b"12 (a ) S 9 (b)) R 8 1"), Some(8));
        assert_eq!(parent_in_stat(b"12 (sh"), None);
        assert_eq!(parent_in_stat(b""), None);
    }

    #[test]
    fn a_mark_has_room_for_every_number_and_seventeen_years() {
        assert_eq!(compose(1, 0), (1 << 62) | (1 << 39));
        let largest = compose((1 << 22) - 1, (1 << 39) - 1);
        assert_eq!(largest, (1 << 62) | ((1 << 61) - 1));
        assert_eq!(compose(u32::MAX, u64::MAX), largest);
    }

    #[test]
    fn a_mark_is_found_in_the_table_of_limits() {
        let table = b"Max pending signals       1  2  signals\nMax file locks            4611686018427387905  unlimited  locks\n";
        assert_eq!(mark_in_limits(table), Some((1 << 62) + 1));
        assert_eq!(mark_in_limits(b"Max file locks            unlimited            unlimited            locks"), None);
        assert_eq!(mark_in_limits(b"Max open files"), None);
    }

    #[test]
    fn one_that_is_on_its_way_out_is_told_from_one_that_lives() {
        assert!(!is_ending(id()));
        let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        let mut nothing = [0];
        // It has closed its descriptors, and is a zombie or about to be.
        assert_eq!(child.stdout.take().unwrap().read(&mut nothing).unwrap(), 0);
        assert!(is_ending(child.id()));
        child.wait().unwrap();
    }
}
