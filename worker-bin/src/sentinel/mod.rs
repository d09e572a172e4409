//! The native thread: it never touches Python, so it works while a job holds the GIL in an endless loop. It watches the
//! parent, tells it how much memory a running job holds, and ends a job that takes more than it may.
//!
//! * It looks at the socket (the other end is closed when the parent ends, however it ends) and, where there is one, at a
//!   pidfd of the parent (a process that the parent forked may hold a copy of its end and keep it open).
//! * `PR_SET_PDEATHSIG` would be simpler, but it follows the thread that started the worker and not the parent's process
//!   (prctl(2)), and trio's worker threads come and go.
//! * An idle worker sees the end of the stream itself and leaves in order, with Python's own exit handlers; the thread
//!   only makes sure that this takes no longer than [`GRACE`].
//! * It has a table of descriptors of its own, with the socket, the record and what it opens itself. A job may close every
//!   descriptor and open files of its own: none of them is ever the thread's.
//! * To the system a process with it has two threads. Python 3.12 and newer warn of a fork then, and the kernel refuses some
//!   changes of namespaces. So it steps aside for these ([`step_aside`], [`come_back`]).
//! * A job that takes too much is ended, and none after it: the thread and the main thread agree on that by one atomic word
//!   with the number of the job in it ([`Activity::seal`]).
//! * In an idle worker the thread sleeps until there is something to see: hundreds of idle workers that woke ten times a
//!   second would be felt. The main thread rings a bell when a job begins, but only if the thread is asleep, which it is
//!   not before a whole tick has passed without a job; so calls in quick succession cost no system call for it.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::meter::{FamilyMeter, Meter};
use crate::process::record::Record;
use crate::process::{family, meter};
use crate::protocol::message::Message;
use crate::transport::connection::Outlet;
use crate::{exit, os};

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
    /// What is done ([`Doing`]) in the lowest two bits, then [`SEALED`], and above them how often it has become busy.
    state: AtomicU64,
    asleep: AtomicBool,
    stop: Stop,
    duty: OnceLock<Duty>,
}

const DOING: u64 = 0b11;
/// The native thread ends this process for its job.
const SEALED: u64 = 0b100;
const ONE_JOB: u64 = 0b1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Blocked on the socket, or about to be: it will see the end of the stream itself.
    Waiting,
    /// Starting Python or running a job: it sees nothing.
    Busy,
    /// On its way out. The parent may close its end now without that meaning anything.
    Leaving,
    /// Running what the user has for between two jobs: it sees nothing either, but no job runs that could take too much.
    Settling,
}

/// What SETUP asks of the native thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duty {
    /// Between two reports of a running job; `None`: no reports.
    pub report_interval: Option<Duration>,
    /// What a job and its child processes may hold, in bytes.
    pub memory_limit: Option<u64>,
}

/// How a native thread is told to end.
#[derive(Debug)]
struct Stop {
    bell: os::Bell,
    wanted: AtomicBool,
}

impl Stop {
    const fn new() -> Self {
        Self { bell: os::Bell::new(), wanted: AtomicBool::new(false) }
    }

    fn demand(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    /// Whether it was demanded, which is answered by this.
    fn is_demanded(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) && self.wanted.swap(false, Ordering::SeqCst)
    }
}

impl Activity {
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), asleep: AtomicBool::new(false), stop: Stop::new(), duty: OnceLock::new() }
    }

    pub fn set(&self, doing: Doing) {
        let before = self.state.load(Ordering::Relaxed);
        let job = (before & !DOING).wrapping_add(if doing == Doing::Busy { ONE_JOB } else { 0 });
        // With the thread's own order (first "asleep", then a look at what is done) one of the two always sees the other;
        // both sides are SeqCst for that.
        let change = || self.state.compare_exchange(before, job | doing as u64, Ordering::SeqCst, Ordering::SeqCst);
        if before & SEALED != 0 || change().is_err() {
            // The job has come to its end a moment too late.
            loop {
                thread::park();
            }
        }
        if doing == Doing::Busy && self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.stop.bell.ring();
        }
    }

    pub fn get(&self) -> Doing {
        doing_in(self.state.load(Ordering::SeqCst))
    }

    /// Whether the user's code runs, so that nobody sees the end of the stream.
    fn is_blind(&self) -> bool {
        matches!(self.get(), Doing::Busy | Doing::Settling)
    }

    /// Settles that this process is ended for the job that runs in this state. False: that job has come to its end.
    ///
    /// From then on the main thread goes no further than to the end of the job.
    fn seal(&self, state: u64) -> bool {
        self.state.compare_exchange(state, state | SEALED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Tells the native thread what to do. The first word counts: there is one SETUP.
    pub fn assign(&self, duty: Duty) {
        if self.duty.set(duty).is_ok() {
            self.stop.bell.ring();
        }
    }
}

fn doing_in(state: u64) -> Doing {
    match state & DOING {
        0 => Doing::Waiting,
        1 => Doing::Busy,
        2 => Doing::Leaving,
        _ => Doing::Settling,
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

/// A process by its pid.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
}

impl Parent {
    /// `None`: this process's parent is another one by now, so the one that was meant has ended.
    pub fn watch(pid: u32) -> Option<Self> {
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid })
    }

    /// The number that it is known by.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// An orphan always has another parent.
    pub fn is_dead(&self) -> bool {
        std::os::unix::process::parent_id() != self.pid
    }

    /// Whether it is dead, or on its way there. A process that ends closes its descriptors first, which wakes its workers, and its
    /// children get another parent later; on a busy machine they may have come to their end in between.
    pub fn is_ending(&self) -> bool {
        // The second time: the number may have been another process's by then.
        self.is_dead() || family::is_ending(self.pid) || self.is_dead()
    }

    /// A descriptor of it that only wakes whoever waits for it. To be followed by a look at [`Self::is_dead`]: it may be that of
    /// another process, which has got the number since.
    fn open(&self) -> Option<OwnedFd> {
        os::open_process(self.pid)
    }
}

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
        *post() = Some(Post { charge: charge.clone(), activity, thread: Some(thread) });
        // It ends when it is told to only, so there is somebody to receive this.
        let _ = sender.send(charge);
    }
}

#[derive(Debug)]
struct Thread {
    handle: thread::JoinHandle<()>,
    number: Arc<AtomicU64>,
}

impl Thread {
    fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let number = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&number);
        let _held = os::SignalsHeld::all()?;
        let handle = thread::Builder::new().name(name.to_owned()).stack_size(STACK_SIZE).spawn(move || {
            told.store(u64::try_from(os::thread_number()).unwrap_or_default(), Ordering::Relaxed);
            work();
        })?;
        Ok(Self { handle, number })
    }

    /// The process has one thread less when this returns. The thread has been told to end.
    fn join(self) {
        let _ = self.handle.join();
        let number = i32::try_from(self.number.load(Ordering::Relaxed)).unwrap_or_default();
        // One that was waited for is counted until the kernel has taken it apart.
        let deadline = Instant::now() + UNTIL_IT_IS_GONE;
        while number != 0 && os::is_thread(number) && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

const UNTIL_IT_IS_GONE: Duration = Duration::from_millis(100);

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
    if os::is_forked_copy() || !os::is_main_thread() {
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
    if os::is_forked_copy() {
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

/// Watches over a template as long as it runs other people's code and forks nobody: while it starts, and while it ends.
///
/// A process with a second thread cannot be forked safely, so this one is gone in between. Then the template waits for its
/// parent's next word, and sees the end of the stream itself.
#[derive(Debug)]
pub struct Guard {
    stop: Arc<Stop>,
    thread: Thread,
}

impl Guard {
    /// From now on the process ends when its parent does, or closes its end of the socket.
    pub fn start(socket: RawFd, parent: &'static Parent) -> io::Result<Self> {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("guard", move || {
            let is_apart = os::leave_descriptor_table(&[socket]);
            let handle = parent.open().filter(|_| is_apart);
            let bell = told.bell.listen().filter(|_| is_apart);
            while !told.is_demanded() {
                let timeout = (handle.is_none() || bell.is_none()).then_some(WITHOUT_PIDFD);
                let seen = os::wait_for(
                    Some(socket),
                    handle.as_ref().map(AsFd::as_fd),
                    bell.as_ref().map(AsFd::as_fd),
                    // Before the first look at the parent, which may have ended before it could be opened.
                    if parent.is_dead() { Some(Duration::ZERO) } else { timeout },
                );
                if seen.hang_up || parent.is_dead() {
                    end_now(exit::ORPHANED);
                }
            }
            told.bell.stop_listening();
        })?;
        Ok(Self { stop, thread })
    }

    /// The process has one thread less when this returns.
    pub fn dismiss(self) {
        self.stop.demand();
        self.thread.join();
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
    /// `None`: there is none.
    handle: Option<OwnedFd>,
    /// `None`: it is not there, or its hang-up has been seen and means nothing more.
    socket: Option<RawFd>,
    /// `None`: there is none, and the thread never sleeps for long.
    bell: Option<OwnedFd>,
    next_tick: Option<Instant>,
    reporter: Reporter,
}

impl Sentinel {
    /// In the thread itself, when it is told what to watch.
    fn begin(charge: Charge, activity: &'static Activity) -> Self {
        let Charge { socket, outlet, parent, record } = charge;
        // Where there is no table for it alone it opens nothing that a job could close and take the number of.
        let is_apart = os::leave_descriptor_table(&[socket, record.descriptor()]);
        if is_apart {
            // What a job has under these numbers by now is not kept open here.
            outlet.leave_unless_there();
            record.leave_unless_there();
        }
        if is_apart {
            os::proc::hold();
        }
        let handle = if is_apart { parent.open() } else { None };
        let bell = if is_apart { activity.stop.bell.listen() } else { None };
        let socket = Some(socket).filter(|_| outlet.is_there());
        let reporter = Reporter::new(outlet, record, activity.state.load(Ordering::SeqCst));
        let mut sentinel = Self { parent, activity, handle, socket, bell, next_tick: None, reporter };
        // It may have been told what to do before there was anybody to hear it.
        sentinel.next_tick = sentinel.interval().map(|interval| Instant::now() + interval);
        sentinel
    }

    /// Until it is to step aside.
    fn watch(mut self) {
        let mut is_looking = true;
        while !self.activity.stop.is_demanded() {
            let until_tick = self.next_tick.map(|tick| tick.saturating_duration_since(Instant::now()));
            let until_look = (self.handle.is_none() || self.bell.is_none()).then_some(WITHOUT_PIDFD);
            // The parent may have ended before it could be opened.
            let at_once = std::mem::take(&mut is_looking).then_some(Duration::ZERO);
            let timeout = until_tick.into_iter().chain(until_look).chain(at_once).min();
            // Without anything to wait for, poll is a plain pause.
            let seen =
                os::wait_for(self.socket, self.handle.as_ref().map(AsFd::as_fd), self.bell.as_ref().map(AsFd::as_fd), timeout);
            if self.parent.is_dead() {
                end_orphan(self.activity);
            }
            if seen.death {
                self.handle = None;
            }
            if seen.hang_up && !self.reporter.outlet.is_there() {
                // Not the parent's doing but a job's, where the table is not the thread's own; the main thread says so.
                self.socket = None;
            } else if seen.hang_up {
                if self.activity.is_blind() {
                    // The parent lives but has given this worker up while a job runs.
                    end_now(exit::ORPHANED);
                }
                // It leaves by itself; what is left to watch for is the parent's end.
                self.socket = None;
            }
            if seen.bell {
                self.answer_bell();
            }
            self.tick();
        }
        self.activity.stop.bell.stop_listening();
    }

    fn answer_bell(&mut self) {
        if let Some(bell) = &self.bell {
            os::take_ring(bell.as_fd());
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
    /// The state at the last look, of which the number of the job counts.
    seen: u64,
    reported: Instant,
    has_complained: bool,
}

impl Reporter {
    fn new(outlet: Outlet, record: &'static Record, state: u64) -> Self {
        Self {
            outlet,
            record,
            meter: Meter::default(),
            family: FamilyMeter::new(),
            seen: state,
            reported: Instant::now(),
            has_complained: false,
        }
    }

    /// The thread has woken: the time until the next report counts from now.
    fn begin(&mut self) {
        self.reported = Instant::now();
    }

    /// Whether a job runs, or has run since the last look.
    fn look(&mut self, duty: &Duty, activity: &Activity, now: Instant) -> bool {
        let state = activity.state.load(Ordering::SeqCst);
        let begun = state / ONE_JOB != std::mem::replace(&mut self.seen, state) / ONE_JOB;
        if doing_in(state) != Doing::Busy {
            return begun;
        }
        if let Some(limit) = duty.memory_limit
            && let Some(reached) = self.family.above(limit)
            && activity.seal(state)
        {
            self.record.memory_limit(limit, reached);
            end_now(exit::MEMORY_LIMIT);
        }
        if duty.memory_limit.is_some() && !self.has_complained && !meter::is_told() {
            self.has_complained = true;
            let _ =
                writeln!(io::stderr(), "trio-offload-worker: memory_limit is not watched, because /proc cannot be read any more");
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
    while !activity.is_blind() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    end_now(exit::ORPHANED)
}

fn end_now(code: i32) -> ! {
    family::end_descendants();
    os::exit_now(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(activity: &Activity) -> u64 {
        activity.state.load(Ordering::SeqCst)
    }

    #[test]
    fn the_job_that_was_measured_is_ended_or_none() {
        let activity = Activity::new();
        activity.set(Doing::Busy);
        let first = state(&activity);
        activity.set(Doing::Waiting);
        assert!(!activity.seal(first));
        activity.set(Doing::Busy);
        assert!(!activity.seal(first), "it is another job's turn");
        let second = state(&activity);
        activity.set(Doing::Settling);
        assert!(!activity.seal(second));
    }

    #[test]
    fn a_job_that_was_sealed_goes_no_further() {
        static ACTIVITY: Activity = Activity::new();
        ACTIVITY.set(Doing::Busy);
        assert!(ACTIVITY.seal(state(&ACTIVITY)));
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            ACTIVITY.set(Doing::Waiting);
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err());
        assert_eq!(ACTIVITY.get(), Doing::Busy);
    }

    #[test]
    fn a_thread_with_a_table_of_its_own_keeps_what_others_close_and_opens_nothing_of_theirs() {
        let (ours, theirs) = io::pipe().unwrap();
        let (kept, closed) = (theirs.as_fd(), ours.as_fd());
        let kept = std::os::fd::AsRawFd::as_raw_fd(&kept);
        let closed = std::os::fd::AsRawFd::as_raw_fd(&closed);
        let before = os::identity_of_number(kept);
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let is_apart = os::leave_descriptor_table(&[kept]);
            ready.send((is_apart, os::identity_of_number(closed).is_some())).unwrap();
            let _ = may_go_on.recv();
            os::identity_of_number(kept)
        });
        assert_eq!(is_ready.recv().unwrap(), (true, false));
        drop((ours, theirs));
        drop(go_on);
        assert_eq!(thread.join().unwrap(), before);
    }

    #[test]
    fn a_thread_is_woken_by_its_bell_and_gone_when_it_was_joined() {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("tested", move || {
            let bell = told.bell.listen().unwrap();
            while !told.is_demanded() {
                let seen = os::wait_for(None, None, Some(bell.as_fd()), None);
                assert!(seen.bell);
                os::take_ring(bell.as_fd());
            }
        })
        .unwrap();
        let number = Arc::clone(&thread.number);
        stop.demand();
        thread.join();
        assert!(!os::is_thread(i32::try_from(number.load(Ordering::Relaxed)).unwrap()));
    }
}
