//! The native thread on duty: how it is started, steps aside and comes back.

#![forbid(unsafe_code)]

use std::io::{self};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};

use crate::os;
use crate::process::record::Record;
use crate::sentinel::Sentinel;
use crate::sentinel::activity::Activity;
use crate::sentinel::parent::Parent;
use crate::sentinel::thread::Thread;
use crate::transport::reports::Outlet;

/// What the native thread is given.
#[derive(Debug, Clone)]
pub struct Charge {
    pub socket: RawFd,
    pub outlet: Outlet,
    pub parent: &'static Parent,
    pub record: &'static Record,
}

/// The thread, with nothing to watch yet. To start it takes longer than most jobs, so a worker that was forked ahead has one already.
#[derive(Debug)]
pub struct Standby {
    activity: &'static Activity,
    charge: Sender<Charge>,
    thread: Thread,
}

impl Standby {
    /// Starts it. Signals are held back around that, so that it never gets one.
    pub fn start(activity: &'static Activity) -> io::Result<Self> {
        let (sender, charge) = mpsc::channel();
        let thread = Thread::start("sentinel", move || {
            if let Ok(charge) = charge.recv() {
                Sentinel::begin(charge, activity).watch();
            }
        })?;
        Ok(Self { activity, charge: sender, thread })
    }

    /// From now on it watches.
    pub fn watch(self, charge: Charge) {
        let Self { activity, charge: sender, thread } = self;
        #[cfg(target_os = "linux")]
        os::namespaces::step_aside_by(os::namespaces::Aside { step_aside, come_back });
        *post() = Some(Post { charge: charge.clone(), activity, thread: Some(thread) });
        // It ends when it is told to only, so there is somebody to receive this.
        let _ = sender.send(charge);
    }
}

/// The native thread on duty; without a thread: it has stepped aside.
#[derive(Debug)]
struct Post {
    charge: Charge,
    activity: &'static Activity,
    thread: Option<Thread>,
}

static POST: Mutex<Option<Post>> = Mutex::new(None);

static AWAY: AtomicBool = AtomicBool::new(false);

fn post() -> std::sync::MutexGuard<'static, Option<Post>> {
    POST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the native thread, so that the process has one thread less; whether there was one. To be called by the main thread, and
/// followed by [`come_back`] as soon as can be: nobody watches in between.
pub fn step_aside() -> bool {
    if os::copies::is_forked_copy() || !os::threads::is_main_thread() {
        return false;
    }
    let mut post = post();
    let Some(post) = post.as_mut() else { return false };
    let Some(thread) = post.thread.take() else { return false };
    AWAY.store(true, Ordering::Relaxed);
    post.activity.stop.demand();
    thread.join();
    true
}

/// Has a native thread again, if it has stepped aside.
pub fn come_back() -> io::Result<()> {
    if os::copies::is_forked_copy() {
        return Ok(());
    }
    let mut post = post();
    let Some(post) = post.as_mut().filter(|post| post.thread.is_none()) else { return Ok(()) };
    let (charge, activity) = (post.charge.clone(), post.activity);
    let (ready, is_ready) = mpsc::channel();
    post.thread = Some(Thread::start("sentinel", move || {
        let sentinel = Sentinel::begin(charge, activity);
        let _ = ready.send(());
        sentinel.watch();
    })?);
    // What the job does with its descriptors from now on is nothing to the thread.
    let _ = is_ready.recv();
    AWAY.store(false, Ordering::Relaxed);
    Ok(())
}

/// Whether it has stepped aside, and has not come back.
pub fn is_away() -> bool {
    AWAY.load(Ordering::Relaxed)
}
