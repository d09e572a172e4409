//! The worker's descendants: whatever a job has started, and what that has started in turn. All of them are found, and ended.
//!
//! # How they are found
//!
//! The worker has no process group of its own (a job's programs stay in the terminal's foreground group and get Ctrl+C), a
//! descendant may call `setsid`, and one whose parent ends becomes a child of init. So each worker marks itself at its
//! beginning: the soft limit RLIMIT_LOCKS, which no kernel enforces, becomes a number of its own. Descendants inherit it through
//! forks and execs, whoever their parent is by then, and everybody of the same user can read it with one system call. Those
//! who are still below the worker are found by the lists of children too, for one that has set its limits itself.
//!
//! The mark has bit 62 set, then (from bit 39 on) the worker's number, and in the lowest 39 bits the milliseconds between the
//! system's start and the marking. So the parent knows the mark of a worker by its number and the time of its start, without
//! a word from it. Bit 61 is set for the watcher of a worker in Python.
//!
//! Where the mark cannot be set (a lower hard limit, a system that only resembles Linux) the worker is a child subreaper
//! instead (prctl(2)): orphans fall to it and stay below it. That comes second because orphans would be children of the worker:
//! each stays a zombie, as nobody may reap what could be a job's own child, and a job's `os.wait` would see it. Where that
//! is refused too, orphans are lost, and the parent says so once.
//!
//! # How they are ended
//!
//! With SIGKILL as soon as they are found, parents before their children, round after round until a round finds nobody. No
//! one is stopped first: a process with a pending SIGKILL starts nothing more (`os::marks::Target`), so what it has started is
//! there for the next round; and whoever ends a family may be killed at any moment, and would leave stopped processes that
//! nobody ever resumes.
//!
//! What ends a worker, and who goes on if that is killed in the middle:
//!
//! * The parent stops the worker, ends its descendants, and kills the worker last. Killed in between, it leaves a worker that
//!   the kernel resumes (`os::marks::resume_without_parent`) and that finds itself an orphan.
//! * The worker (its native thread, or the watcher of a worker in Python) ends its family because the parent is gone or a ceiling
//!   was passed. First its own threads are kept from starting anything. Killed in between, it leaves the rest to the parent, which
//!   looks for the marks of every worker that has not left in order.
//! * Somebody else kills the worker, or it crashes: the same.
//! * Only if the parent and the worker are killed in the same moment nobody is left. A worker in Python has its watcher for that.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::str::SplitAsciiWhitespace;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::os::marks::{self, Target};
use crate::os::{self, proc};

/// The mark of this process; 0: it has none.
static MARK: AtomicU64 = AtomicU64::new(0);

/// To be called at the beginning of a process that is to run jobs, before it starts anything.
pub fn begin() {
    marks::resume_without_parent();
    let mark = compose(marks::own_number(), marks::boot_time());
    let is_set = marks::set(mark);
    MARK.store(if is_set { mark } else { 0 }, Ordering::Relaxed);
    if !is_set {
        // If that is refused too (qemu's user mode), the parent sees that there is no mark.
        let _ = os::process::become_subreaper();
    }
}

fn compose(pid: u32, time: u64) -> u64 {
    const TIME_BITS: u32 = 39;
    (1 << 62) | (u64::from(pid & 0x003f_ffff) << TIME_BITS) | (time & ((1 << TIME_BITS) - 1))
}

/// Ends every descendant of this process. Its own threads start nothing any more, for good.
pub fn end_descendants() {
    marks::forbid_forks();
    let own = own_pid();
    let mut known = HashSet::from([own]);
    let mut quiet = 0;
    // The bound is against a process table that lies.
    for _ in 0..MOST_ROUNDS {
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
        // All are looked at before the first is killed, because that changes whose children the others are.
        let targets: Vec<Target> = found.into_iter().filter_map(|pid| Target::new(pid, || is_ours(pid))).collect();
        targets.into_iter().for_each(Target::kill);
    }
}

const MOST_ROUNDS: u32 = 3000;

/// Another thread of this process may have been in the middle of a fork when forks were forbidden.
const QUIET_ROUNDS: u32 = 2;
const BETWEEN_ROUNDS: Duration = Duration::from_micros(500);

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(i32::MAX)
}

fn has_our_mark(pid: i32) -> bool {
    let mark = MARK.load(Ordering::Relaxed);
    mark != 0 && mark_of(pid) == Some(mark)
}

fn mark_of(pid: i32) -> Option<u64> {
    // prlimit compares all of the other's users with the real one of this process, kill is content with less: where the two
    // differ, the limits that everybody may read tell.
    marks::of(pid)
        .or_else(|| if marks::may_signal(pid) { mark_in_limits(&proc::read(&format!("{pid}/limits")).ok()?) } else { None })
}

fn mark_in_limits(table: &[u8]) -> Option<u64> {
    let line = str::from_utf8(table).ok()?.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether a process has begun to end with all its threads, whatever it still has to do for that. Without /proc it has not.
pub fn is_ending(pid: u32) -> bool {
    let Ok(threads) = proc::numbers_in(&format!("{pid}/task")) else { return false };
    let mut lines = threads.iter().filter_map(|thread| proc::read(&format!("{pid}/task/{thread}/stat")).ok());
    lines.all(|line| flags_in_stat(&line).is_some_and(|flags| flags & PF_EXITING != 0))
}

/// From include/linux/sched.h: set at the beginning of a thread's end (kernel/exit.c, do_exit), and for good.
const PF_EXITING: u64 = 4;

/// The process ids of all descendants that are there now, parents before their children.
pub fn descendants() -> Vec<i32> {
    let mut found = below();
    // Who has never had a child has no orphans either. A child that lives is listed, and one that was waited for is counted.
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

/// Adds those with this process's mark that are not in the list.
fn add_marked(found: &mut Vec<i32>) {
    if MARK.load(Ordering::Relaxed) == 0 {
        return;
    }
    let own = own_pid();
    let known: HashSet<i32> = found.iter().copied().collect();
    let is_new = |pid: &i32| *pid != own && !known.contains(pid) && has_our_mark(*pid);
    match proc::numbers_in("") {
        Ok(pids) => found.extend(pids.into_iter().filter(is_new)),
        // Half a second for all numbers that there can be (PID_MAX_LIMIT in include/linux/threads.h).
        Err(_) => found.extend((2..=1 << 22).filter(is_new)),
    }
}

/// The children of this process, theirs, and so on.
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

/// The children that the kernel lists, for each thread its own (proc(5); kernels with CONFIG_PROC_CHILDREN).
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

/// The fields from the third on, the state. The second, the program's name in brackets, may hold blanks and brackets itself:
/// count from its end.
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
        // It has closed what it held, and is about to become a zombie or is one.
        assert_eq!(child.stdout.take().unwrap().read(&mut nothing).unwrap(), 0);
        assert!(is_ending(child.id()));
        child.wait().unwrap();
    }
}
