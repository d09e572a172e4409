//! The native thread: it never touches Python, so it works while a job holds the GIL in an endless loop. It watches the
//! parent, tells it how much memory a running job holds, and ends a job that takes more than it may.
//!
//! * It looks at the socket (the other end is closed when the parent ends, however it ends) and, where there is one, at a
//!   pidfd of the parent (a process that the parent forked may hold a copy of its end and keep it open).
//! * `PR_SET_PDEATHSIG` would be simpler, but it follows the thread that started the worker and not the parent's process
//!   (prctl(2)), and trio's worker threads come and go.
//! * An idle worker sees the end of the stream itself and leaves in order, with Python's own exit handlers; the thread
//!   only makes sure that this takes no longer than [`GRACE`].
//! * In an idle worker the thread sleeps until there is something to see: hundreds of idle workers that woke ten times a
//!   second would be felt. The main thread rings a bell when a job begins, but only if the thread is asleep, which it is
//!   not before a whole tick has passed without a job; so calls in quick succession cost no system call for it.

#![forbid(unsafe_code)]

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::memory::{FamilyMeter, Meter};
use crate::message::Message;
use crate::record::Record;
use crate::transport::Outlet;
use crate::{exit, family, os};

/// How long an idle worker has for leaving after its parent's death.
pub const GRACE: Duration = Duration::from_millis(500);

/// How often the parent's life is looked up where the system cannot tell of its end.
const WITHOUT_PIDFD: Duration = Duration::from_millis(200);

/// How often a running job's memory is compared with its ceiling.
const CEILING_TICK: Duration = Duration::from_millis(100);

/// Enough for a walk through the process table, and far less than the usual 2 MiB.
const STACK_SIZE: usize = 256 * 1024;

/// What the main thread is doing, for the native thread to see, and what the parent wants to know of it.
#[derive(Debug)]
pub struct Activity {
    doing: AtomicU8,
    /// How often it has become busy.
    jobs: AtomicU64,
    asleep: AtomicBool,
    bell: OnceLock<Bell>,
    duty: OnceLock<Duty>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Blocked on the socket, or about to be: it will see the end of the stream itself.
    Waiting,
    /// Starting Python or running the user's code: it sees nothing.
    Busy,
    /// On its way out. The parent may close its end now without that meaning anything.
    Leaving,
}

/// What SETUP asks of the native thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duty {
    /// Between two reports of a running job; `None`: no reports.
    pub report_interval: Option<Duration>,
    /// What a job and its child processes may hold, in bytes.
    pub memory_limit: Option<u64>,
}

impl Activity {
    pub const fn new() -> Self {
        Self {
            doing: AtomicU8::new(0),
            jobs: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            bell: OnceLock::new(),
            duty: OnceLock::new(),
        }
    }

    pub fn set(&self, doing: Doing) {
        // With the thread's own order (first «asleep», then a look at what is done) one of the two always sees the other;
        // both sides are SeqCst for that.
        self.doing.store(doing as u8, Ordering::SeqCst);
        if doing == Doing::Busy {
            self.jobs.fetch_add(1, Ordering::Relaxed);
            if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
                self.ring();
            }
        }
    }

    pub fn get(&self) -> Doing {
        match self.doing.load(Ordering::SeqCst) {
            0 => Doing::Waiting,
            1 => Doing::Busy,
            _ => Doing::Leaving,
        }
    }

    /// Tells the native thread what to do. The first word counts: there is one SETUP.
    pub fn assign(&self, duty: Duty) {
        if self.duty.set(duty).is_ok() {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

/// Wakes the native thread.
#[derive(Debug)]
struct Bell {
    writer: PipeWriter,
    identity: Option<os::Identity>,
}

impl Bell {
    fn ring(&self) {
        // A job may have closed every descriptor and opened files of its own.
        if os::identity_of(self.writer.as_fd()) == self.identity {
            let _ = (&self.writer).write(&[1]);
        }
    }
}

/// A process by its pid, and by a descriptor of it where the system has those.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl Parent {
    /// `None`: this process's parent is another one by now, so the one that was meant has ended.
    pub fn watch(pid: u32) -> Option<Self> {
        let handle = os::open_process(pid);
        // In this order: a parent that ends after the check ends with its descriptor already open, and one whose number
        // was given to another process before it was opened is no longer our parent here.
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid, handle })
    }

    /// The number that it is known by.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// As [`Self::watch`], without a descriptor.
    pub fn watch_by_number(pid: u32) -> Option<Self> {
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid, handle: None })
    }

    /// The handle only wakes whoever waits for it. A job that closes every descriptor closes it too, and its number may be that
    /// of the user's own file afterwards; but an orphan always has another parent.
    pub fn is_dead(&self) -> bool {
        std::os::unix::process::parent_id() != self.pid
    }

    /// Whether it is dead, or on its way there. A process that ends closes its descriptors first, which wakes its workers, and its
    /// children get another parent later; on a busy machine they may have come to their end in between.
    pub fn is_ending(&self) -> bool {
        // The second time: the number may have been another process's by then.
        self.is_dead() || family::is_ending(self.pid) || self.is_dead()
    }
}

/// What the native thread is given.
#[derive(Debug)]
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
}

impl Standby {
    /// Starts it. Signals are held back around that, so that it never gets one.
    pub fn start(activity: &'static Activity) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let identity = os::identity_of(writer.as_fd());
        // There is one native thread; were there a second, the first would keep its bell.
        let _ = activity.bell.set(Bell { writer, identity });
        let (sender, charge) = mpsc::channel();
        let _held = os::SignalsHeld::all()?;
        thread::Builder::new().name("sentinel".to_owned()).stack_size(STACK_SIZE).spawn(move || {
            if let Ok(charge) = charge.recv() {
                Sentinel::new(charge, activity, reader).watch();
            }
        })?;
        Ok(Self { activity, charge: sender })
    }

    /// From now on it watches.
    pub fn watch(self, charge: Charge) {
        if self.activity.duty.get().is_some() {
            // It has been told what to do before there was anybody to hear it.
            self.activity.ring();
        }
        // It ends with the process only, so there is somebody to receive this.
        let _ = self.charge.send(charge);
    }
}

/// Watches over a template as long as it runs other people's code and forks nobody: while it starts, and while it ends.
///
/// A process with a second thread cannot be forked safely, so this one is gone in between. Then the template waits for its
/// parent's next word, and sees the end of the stream itself.
#[derive(Debug)]
pub struct Guard {
    stop: PipeWriter,
    thread: thread::JoinHandle<()>,
}

impl Guard {
    /// From now on the process ends when its parent does, or closes its end of the socket.
    pub fn start(socket: RawFd, parent: &'static Parent) -> io::Result<Self> {
        let (reader, stop) = io::pipe()?;
        let _held = os::SignalsHeld::all()?;
        let thread = thread::Builder::new().name("guard".to_owned()).stack_size(STACK_SIZE).spawn(move || {
            let handle = os::open_process(parent.pid);
            loop {
                let seen =
                    os::wait_for(Some(socket), handle.as_ref().map(AsFd::as_fd), Some(reader.as_fd()), Some(WITHOUT_PIDFD));
                if seen.bell {
                    return;
                }
                if seen.hang_up || parent.is_dead() {
                    end_now(exit::ORPHANED);
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// The process has one thread less when this returns.
    pub fn dismiss(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

/// A template is about to end Python, which may take for ever: with the parent gone it gets no longer than [`GRACE`].
pub fn end_with_parent(parent: &'static Parent) {
    let Ok(_held) = os::SignalsHeld::all() else { return };
    let watch = move || {
        while !parent.is_dead() {
            thread::sleep(WITHOUT_PIDFD);
        }
        thread::sleep(GRACE);
        end_now(exit::ORPHANED);
    };
    // Without it the template ends too, if nothing hangs.
    let _ = thread::Builder::new().name("guard".to_owned()).stack_size(STACK_SIZE).spawn(watch);
}

struct Sentinel {
    parent: &'static Parent,
    activity: &'static Activity,
    /// `None`: there is none, or a job has closed it.
    handle: Option<BorrowedFd<'static>>,
    /// `None`: its hang-up has been seen, and means nothing more.
    socket: Option<RawFd>,
    /// `None`: a job has closed it; from then on the thread never sleeps.
    bell: Option<PipeReader>,
    next_tick: Option<Instant>,
    reporter: Reporter,
}

impl Sentinel {
    fn new(charge: Charge, activity: &'static Activity, bell: PipeReader) -> Self {
        let reporter = Reporter::new(charge.outlet, charge.record);
        let handle = charge.parent.handle.as_ref().map(OwnedFd::as_fd);
        Self { parent: charge.parent, activity, handle, socket: Some(charge.socket), bell: Some(bell), next_tick: None, reporter }
    }

    fn watch(mut self) {
        loop {
            let until_tick = self.next_tick.map(|tick| tick.saturating_duration_since(Instant::now()));
            let until_look = self.handle.is_none().then_some(WITHOUT_PIDFD);
            let timeout = until_tick.into_iter().chain(until_look).min();
            // Without anything to wait for, poll is a plain pause.
            let seen = os::wait_for(self.socket, self.handle, self.bell.as_ref().map(PipeReader::as_fd), timeout);
            if self.parent.is_dead() {
                end_orphan(self.activity);
            }
            if seen.death {
                self.handle = None;
            }
            if seen.hang_up && !self.reporter.outlet.is_there() {
                // Not the parent's doing but a job's; the main thread finds out and says so.
                self.socket = None;
            } else if seen.hang_up {
                match self.activity.get() {
                    // The parent lives but has given this worker up while a job runs.
                    Doing::Busy => end_now(exit::ORPHANED),
                    // It leaves by itself; what is left to watch for is the parent's end.
                    Doing::Waiting | Doing::Leaving => self.socket = None,
                }
            }
            if seen.bell {
                self.answer_bell();
            }
            self.tick();
        }
    }

    fn answer_bell(&mut self) {
        let mut bytes = [0; 64];
        let read = self.bell.as_mut().map(|bell| bell.read(&mut bytes));
        if !matches!(read, Some(Ok(1..))) {
            self.bell = None;
        }
        if self.next_tick.is_none() {
            self.next_tick = self.interval().map(|interval| Instant::now() + interval);
            self.reporter.begin();
        }
    }

    /// `None`: there is nothing to do at any time.
    fn interval(&self) -> Option<Duration> {
        let duty = self.activity.duty.get()?;
        duty.report_interval.into_iter().chain(duty.memory_limit.map(|_| CEILING_TICK)).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.next_tick.is_none_or(|tick| tick > now) {
            return;
        }
        let Some((duty, interval)) = self.activity.duty.get().zip(self.interval()) else {
            self.next_tick = None;
            return;
        };
        self.next_tick = Some(now + interval);
        let worked = self.reporter.look(duty, self.activity, now);
        if !worked && self.bell.is_some() {
            self.activity.asleep.store(true, Ordering::SeqCst);
            // A job that began before the line above has rung no bell. If it has rung one after it, the bell brings us back.
            if self.activity.get() != Doing::Busy || !self.activity.asleep.swap(false, Ordering::SeqCst) {
                self.next_tick = None;
            }
        }
    }
}

/// What the thread does at a tick.
struct Reporter {
    outlet: Outlet,
    record: &'static Record,
    meter: Meter,
    family: FamilyMeter,
    jobs_seen: u64,
    reported: Instant,
}

impl Reporter {
    fn new(outlet: Outlet, record: &'static Record) -> Self {
        Self { outlet, record, meter: Meter::default(), family: FamilyMeter::new(), jobs_seen: 0, reported: Instant::now() }
    }

    /// The thread has woken: the time until the next report counts from now.
    fn begin(&mut self) {
        self.reported = Instant::now();
    }

    /// Whether a job runs, or has run since the last look.
    fn look(&mut self, duty: &Duty, activity: &Activity, now: Instant) -> bool {
        let jobs = activity.jobs.load(Ordering::Relaxed);
        let begun = jobs != std::mem::replace(&mut self.jobs_seen, jobs);
        if activity.get() != Doing::Busy {
            return begun;
        }
        if let Some(limit) = duty.memory_limit
            && let Some(reached) = self.family.above(limit)
            && activity.get() == Doing::Busy
        {
            self.record.memory_limit(limit, reached);
            end_now(exit::MEMORY_LIMIT);
        }
        // A tick early is better than a tick late: the interval is a multiple of the tick or the tick itself.
        if duty.report_interval.is_some_and(|interval| now.duration_since(self.reported) + CEILING_TICK / 2 >= interval) {
            self.reported = now;
            if let Some(figures) = self.meter.read() {
                self.outlet.send_at_once(Message::Report(figures), || activity.get() == Doing::Busy);
            }
        }
        true
    }
}

fn end_orphan(activity: &Activity) -> ! {
    let deadline = Instant::now() + GRACE;
    while activity.get() != Doing::Busy && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    end_now(exit::ORPHANED)
}

fn end_now(code: i32) -> ! {
    family::end_descendants();
    os::exit_now(code)
}
