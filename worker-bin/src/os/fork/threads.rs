//! The threads that may run during a fork.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::os::fork::ForkError;

/// Threads of libraries with their own fork handlers. jemalloc, which pyarrow (and so pandas)
/// brings, holds its locks during a fork and has no background thread in the child.
const KNOWN: [&str; 1] = ["jemalloc_bg_thd"];

/// The system cuts thread names to this many bytes (prctl(2), PR_SET_NAME).
const NAME_SIZE: usize = 15;

/// A joined thread is counted until the kernel has removed it, and an allowed one may be busy.
const THREADS_TIMEOUT: Duration = Duration::from_millis(100);

/// The number of threads in this process.
pub fn thread_count() -> usize {
    // One system call: the kernel counts a link for each thread (fs/proc/base.c,
    // proc_task_getattr).
    let links = fs::metadata("/proc/self/task").map_or(0, |status| status.nlink());
    links.checked_sub(2).and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
}

/// The names of threads that may run during a fork.
#[derive(Debug, Clone, Default)]
pub struct AllowedThreads {
    names: Vec<String>,
}

impl AllowedThreads {
    /// Create a list. A `*` at the end of a name matches anything.
    pub fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    fn has(&self, name: &str) -> bool {
        let fits = |allowed: &str| match allowed.strip_suffix('*') {
            Some(beginning) => name.as_bytes().starts_with(cut(beginning)),
            None => name.as_bytes() == cut(allowed),
        };
        KNOWN.contains(&name) || self.names.iter().any(|allowed| fits(allowed))
    }

    /// The names of running threads that are not allowed.
    pub fn unexpected(&self) -> Vec<String> {
        other_threads().into_iter().map(|thread| thread.name).filter(|name| !self.has(name)).collect()
    }
}

fn cut(name: &str) -> &[u8] {
    name.as_bytes().get(..NAME_SIZE).unwrap_or(name.as_bytes())
}

/// Check that only allowed threads run. They sleep afterwards, if possible.
pub fn refuse_threads(allowed: &AllowedThreads) -> Result<(), ForkError> {
    let deadline = Instant::now() + THREADS_TIMEOUT;
    while thread_count() > 1 {
        let (known, unexpected): (Vec<_>, Vec<_>) = other_threads().into_iter().partition(|thread| allowed.has(&thread.name));
        let is_late = Instant::now() > deadline;
        if unexpected.is_empty() && (is_late || known.iter().all(|thread| thread.sleeps)) {
            return Ok(());
        }
        if is_late {
            return Err(ForkError::Threads(unexpected.into_iter().map(|thread| thread.name).collect()));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

struct OtherThread {
    name: String,
    sleeps: bool,
}

fn other_threads() -> Vec<OtherThread> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let own = std::process::id().to_string();
    let others = threads.flatten().filter(|thread| thread.file_name().to_str() != Some(own.as_str()));
    others
        .map(|thread| {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim_end_matches('\n').to_owned();
            let status = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state follows the name, which may contain anything (proc(5)).
            let sleeps = status.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S'));
            OtherThread { name: if name.is_empty() { "without a name".to_owned() } else { name }, sleeps }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_and_named() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (ready, begun) = std::sync::mpsc::channel::<()>();
        let before = thread_count();
        // The thread sets its own name.
        let work = move || ready.send(()).map(|()| wait.recv().is_err());
        let thread = thread::Builder::new().name("knitter".to_owned()).spawn(work).unwrap();
        begun.recv().unwrap();
        assert!(thread_count() > before.saturating_sub(1) && before >= 1);
        assert!(AllowedThreads::default().unexpected().contains(&"knitter".to_owned()));
        assert!(!AllowedThreads::new(vec!["knit*".to_owned()]).unexpected().contains(&"knitter".to_owned()));
        drop(done);
        assert!(thread.join().unwrap().unwrap());
    }

    #[test]
    fn threads_are_allowed_by_their_names_as_the_system_has_them() {
        let names = ["exact", "begins-*", "longer than fifteen bytes", "*"].map(str::to_owned);
        let allowed = AllowedThreads::new(names[..3].to_vec());
        for name in ["exact", "begins-", "begins-with-it", "longer than fif", "jemalloc_bg_thd"] {
            assert!(allowed.has(name), "{name}");
        }
        for name in ["exactly", "Exact", "begins", "longer than fi", "", "jemalloc_bg_th"] {
            assert!(!allowed.has(name), "{name}");
        }
        assert!(AllowedThreads::new(names.to_vec()).has("whatever"));
    }
}
