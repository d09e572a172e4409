//! The worker's descendants: whatever a job has started, and what that has started in turn.
//!
//! The worker has no process group of its own (a job's programs stay in the terminal's foreground group and get Ctrl+C), and
//! a descendant may have called `setsid`; so they are found by walking the process table. The worker is a subreaper
//! (prctl(2)): a descendant whose parent has ended falls to it and stays below it.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::str::SplitAsciiWhitespace;
use std::thread;
use std::time::{Duration, Instant};

use crate::os;

/// Ends every descendant of this process.
///
/// Each is stopped when it is found, and the search is repeated until it finds nobody new: one that is stopped can start
/// nothing more, so what was started while the walk was under way is found by the next one. A pid cannot come to mean another
/// process meanwhile: descendants are reaped by their own parents, which are stopped, or by this process, which is ending.
///
/// Who is told to stop does so on its way out of the kernel, and may be in the middle of a fork there. So the last walk is one
/// before which all had come to a stop.
pub fn end_descendants() {
    let mut known = HashSet::new();
    let mut moving = Vec::new();
    let begun = Instant::now();
    // The bound is against a process table that lies.
    for _ in 0..MOST_WALKS {
        moving.retain(|pid| moves(*pid, begun.elapsed()));
        let found: Vec<i32> = descendants().into_iter().filter(|pid| known.insert(*pid)).collect();
        if found.is_empty() {
            if moving.is_empty() {
                break;
            }
            thread::sleep(STOP_INTERVAL);
        }
        for pid in found {
            if os::send_signal(pid, os::STOP) {
                moving.push(pid);
            }
        }
    }
    for pid in known {
        os::send_signal(pid, os::KILL);
    }
}

const MOST_WALKS: u32 = 3000;

/// How long one that has been told to stop is waited for; it does so as soon as it runs.
const STOP_PATIENCE: Duration = Duration::from_millis(200);

/// The same for one that sleeps in the kernel. It may do so for ever (a parent of vfork does until its child, which is stopped,
/// has gone on), and has hardly begun to fork.
const SLEEP_PATIENCE: Duration = Duration::from_millis(5);

const STOP_INTERVAL: Duration = Duration::from_micros(100);

/// Whether a thread of a process that was told to stop that long ago may still come out of a fork with a child.
fn moves(pid: i32, since: Duration) -> bool {
    if since > STOP_PATIENCE {
        return false;
    }
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut lines = threads.flatten().filter_map(|thread| fs::read(thread.path().join("stat")).ok());
    lines.any(|line| match fields_of_stat(&line).and_then(|mut fields| fields.next()) {
        // Stopped, traced, a zombie, dead (proc(5)).
        Some("T" | "t" | "Z" | "X" | "x") | None => false,
        Some("D") => since <= SLEEP_PATIENCE,
        Some(_) => true,
    })
}

/// Whether a process has begun to end with all its threads, whatever it still has to do for that. Without /proc it has not.
pub fn is_ending(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut lines = threads.flatten().filter_map(|thread| fs::read(thread.path().join("stat")).ok());
    lines.all(|line| flags_in_stat(&line).is_some_and(|flags| flags & PF_EXITING != 0))
}

/// From include/linux/sched.h: set at the beginning of a thread's end (kernel/exit.c, do_exit), and for good.
const PF_EXITING: u64 = 4;

/// The process ids of all descendants that are there now.
pub fn descendants() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let parents =
        if fs::exists(format!("/proc/self/task/{own}/children")).unwrap_or(false) { None } else { Some(parent_table()) };
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
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Every process with its parent, from `/proc/PID/stat`.
fn parent_table() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, parent_in_stat(&line)?))
    })
    .collect()
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
    use super::{STOP_PATIENCE, is_ending, moves, parent_in_stat};
    use std::io::Read as _;
    use std::process::{Command, Stdio, id};
    use std::time::Duration;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"12 (sh) S 7 12 12"), Some(7));
        assert_eq!(parent_in_stat(b"12 (a ) S 9 (b)) R 8 1"), Some(8));
        assert_eq!(parent_in_stat(b"12 (sh"), None);
        assert_eq!(parent_in_stat(b""), None);
    }

    #[test]
    fn one_that_runs_is_waited_for_but_not_for_ever() {
        let own = i32::try_from(id()).unwrap();
        assert!(moves(own, Duration::ZERO));
        assert!(!moves(own, STOP_PATIENCE * 2));
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

    #[test]
    fn one_that_has_ended_is_not_waited_for() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(!moves(pid, Duration::ZERO));
    }
}
