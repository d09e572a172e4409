//! Start, suspend and resume the native thread.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};

use crate::os;
use crate::process::record::Record;
use crate::sentinel::activity::ActivityCell;
use crate::sentinel::parent::Parent;
use crate::sentinel::thread::Thread;
use crate::sentinel::{OwnTable, Sentinel};
use crate::transport::reports::ReportSender;

/// The objects that the native thread watches and writes to.
#[derive(Debug, Clone)]
pub struct SentinelTarget {
    pub socket: RawFd,
    pub reports: ReportSender,
    pub parent: &'static Parent,
    pub record: &'static Record,
}

/// A native thread without a target. To start a thread, and to give it a descriptor table, takes
/// longer than most jobs, so a preforked worker has one in advance.
#[derive(Debug)]
pub struct StandbyThread {
    activity: &'static ActivityCell,
    target: Sender<SentinelTarget>,
    thread: Thread,
}

impl StandbyThread {
    /// Start the thread. It inherits a mask that blocks all signals. The descriptors are those of
    /// its future target.
    pub fn start(activity: &'static ActivityCell, socket: RawFd, record: RawFd) -> io::Result<Self> {
        let (sender, target) = mpsc::channel();
        let thread = Thread::start("sentinel", move || {
            let table = OwnTable::begin(socket, record);
            if let Ok(target) = target.recv() {
                Sentinel::begin(table, target, activity).watch();
            }
        })?;
        Ok(Self { activity, target: sender, thread })
    }

    /// Give the thread its target.
    pub fn watch(self, target: SentinelTarget) {
        let Self { activity, target: sender, thread } = self;
        #[cfg(target_os = "linux")]
        os::namespaces::suspend_with(os::namespaces::SingleThread { suspend, resume });
        *control() = Some(Control { target: target.clone(), activity, thread: Some(thread) });
        // The thread ends only on demand, so the receiver exists.
        let _ = sender.send(target);
    }
}

/// The native thread in use. `thread` is `None` while it is suspended.
#[derive(Debug)]
struct Control {
    target: SentinelTarget,
    activity: &'static ActivityCell,
    thread: Option<Thread>,
}

static CONTROL: Mutex<Option<Control>> = Mutex::new(None);
static SUSPENDED: AtomicBool = AtomicBool::new(false);

fn control() -> std::sync::MutexGuard<'static, Option<Control>> {
    CONTROL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// End the native thread, so that the process has one thread less. Return true if there was one.
/// Call this in the main thread, and [`resume`] soon: the parent is not watched in between.
pub fn suspend() -> bool {
    if os::copies::is_forked_copy() || !os::threads::is_main_thread() {
        return false;
    }
    let mut control = control();
    let Some(control) = control.as_mut() else { return false };
    let Some(thread) = control.thread.take() else { return false };
    SUSPENDED.store(true, Ordering::Relaxed);
    control.activity.stop.demand();
    thread.join();
    true
}

/// Start the native thread again if it is suspended.
pub fn resume() -> io::Result<()> {
    if os::copies::is_forked_copy() {
        return Ok(());
    }
    let mut control = control();
    let Some(control) = control.as_mut().filter(|control| control.thread.is_none()) else { return Ok(()) };
    let (target, activity) = (control.target.clone(), control.activity);
    let (ready, is_ready) = mpsc::channel();
    control.thread = Some(Thread::start("sentinel", move || {
        let table = OwnTable::begin(target.socket, target.record.descriptor());
        let sentinel = Sentinel::begin(table, target, activity);
        let _ = ready.send(());
        sentinel.watch();
    })?);
    // From here on the thread has its own descriptor table; the job may close any descriptor.
    let _ = is_ready.recv();
    SUSPENDED.store(false, Ordering::Relaxed);
    Ok(())
}

/// True between [`suspend`] and [`resume`].
pub fn is_suspended() -> bool {
    SUSPENDED.load(Ordering::Relaxed)
}
