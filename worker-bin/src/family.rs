//! The worker's descendants: whatever a job has started, and what that has started in turn.
//!
//! The worker has no process group of its own (a job's programs stay in the terminal's foreground group and get Ctrl+C), and
//! a descendant may have called `setsid`; so they are found by walking the process table. The worker is a subreaper
//! (prctl(2)): a descendant whose parent has ended falls to it and stays below it.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;

use crate::os;

/// Ends every descendant of this process.
///
/// Each is stopped when it is found, and the search is repeated until it finds nobody new: one that is stopped can start
/// nothing more, so what was started while the walk was under way is found by the next one. A pid cannot come to mean another
/// process meanwhile: descendants are reaped by their own parents, which are stopped, or by this process, which is ending.
pub fn end_descendants() {
    let mut known = HashSet::new();
    // Each round finds somebody new or is the last; the bound is against a process table that lies.
    for _ in 0..1000 {
        let found: Vec<i32> = descendants().into_iter().filter(|pid| known.insert(*pid)).collect();
        if found.is_empty() {
            break;
        }
        for pid in found {
            os::send_signal(pid, os::STOP);
        }
    }
    for pid in known {
        os::send_signal(pid, os::KILL);
    }
}

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

/// The fourth field. The second, the program's name in brackets, may hold blanks and brackets itself: count from its end.
fn parent_in_stat(line: &[u8]) -> Option<i32> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(line.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parent_in_stat;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in_stat(b"12 (sh) S 7 12 12"), Some(7));
        assert_eq!(parent_in_stat(b"12 (a ) S 9 (b)) R 8 1"), Some(8));
        assert_eq!(parent_in_stat(b"12 (sh"), None);
        assert_eq!(parent_in_stat(b""), None);
    }
}
