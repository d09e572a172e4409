//! The worker's state machine: the table "The worker's side" of PROTOCOL.md, over a stream and an
//! executor that tests replace.
//!
//! Rules:
//! * A frame that the state does not expect ends the worker before memory is allocated for it.
//! * All objects of a job are dropped before the next frame is read.
//! * RETIRED ends the reading. The parent may assume that a call which crossed with it was not run.
//!   The socket refuses the rest of such a call, so its sender is free before the exit.
//! * The idle time counts from the first call on. Before that it has a lower bound. Otherwise a
//!   worker could retire before the call for which it was started, as would its replacement.
//! * A forked worker leaves the session of its template and begins its own.
//! * The native thread learns when user code runs: the main thread does not notice the parent's
//!   death then.

#![forbid(unsafe_code)]

pub mod executor;
pub mod idle;

use std::collections::VecDeque;
use std::time::Duration;

use crate::error::{ReceiveError, SendError};
use crate::exit::Ending;
use crate::os::fork::Side;
use crate::protocol::frame::Header;
use crate::protocol::hello::Hello;
use crate::protocol::message::{Explanation, FORK_DESCRIPTORS, Message, PROTOCOL_VERSION, Setup, Template};
use crate::protocol::requests::Reply;
use crate::protocol::segments::SegmentType;
use crate::sentinel::activity::{Activity, ActivityCell, SentinelConfig};
use crate::session::executor::{Answer, Executor, Raised, Verdict};
use crate::session::idle::IdleClock;
use crate::transport::buffer_pool;
use crate::transport::connection::{Connection, Next};
use crate::transport::line::{Line, SetAside};
use crate::transport::{Payload, Segment, Stream};

/// Lower bound of the idle timeout before the first call.
const MIN_FIRST_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serve one parent until the end.
pub fn run<S: Stream, E: Executor>(
    connection: &mut Connection<S>,
    executor: &mut E,
    activity: &ActivityCell,
    line: &Line<S, E::Buffer>,
) -> Ending {
    let ending = Session {
        connection,
        executor,
        activity,
        line,
        aside: VecDeque::new(),
        at_hand: None,
        state: State::AwaitHello,
        parent: 0,
        last_call: 0,
        idle: IdleClock::start(None),
        timeout_after_call: None,
        memory_limit: None,
    }
    .run();
    // A forked worker starts over.
    activity.set(if ending == Ending::Forked { Activity::Idle } else { Activity::Exiting });
    ending
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitSetup,
    Idle,
    AwaitTemplate,
    Template,
}

struct Session<'a, S, E: Executor> {
    connection: &'a mut Connection<S>,
    executor: &'a mut E,
    activity: &'a ActivityCell,
    line: &'a Line<S, E::Buffer>,
    /// Frames that came while a job waited for an answer.
    aside: VecDeque<SetAside<E::Buffer>>,
    /// The segments of such a frame. `None` means that they have not been received.
    at_hand: Option<Vec<Segment<E::Buffer>>>,
    state: State,
    /// The process ID in HELLO.
    parent: u32,
    /// The ID of the last CALL. A REPLY or CREDIT up to this one crossed with its answer.
    last_call: u64,
    idle: IdleClock,
    /// The idle timeout from the first call on, where it differs before.
    timeout_after_call: Option<Duration>,
    /// A worker above this after a job retires. Otherwise the next job would be ended for memory
    /// that it did not allocate.
    memory_limit: Option<u64>,
}

/// An error ends the session.
type Step = Result<(), Ending>;

impl<S: Stream, E: Executor> Session<'_, S, E> {
    fn run(mut self) -> Ending {
        loop {
            if let Err(ending) = self.step() {
                return ending;
            }
        }
    }

    fn step(&mut self) -> Step {
        let header = if let Some(SetAside { header, segments }) = self.aside.pop_front() {
            self.at_hand = Some(segments);
            header
        } else {
            if self.executor.keeps_memory() && !self.connection.is_readable_within(buffer_pool::KEEP_TIMEOUT) {
                self.executor.release_memory();
            }
            self.connection.run_handlers_with(self.executor.handlers());
            match self.connection.next_header() {
                Ok(Next::Header(header)) => header,
                Ok(Next::End) => return Err(Ending::ParentClosed),
                Ok(Next::Idle) => return self.retire("idle"),
                Ok(Next::Interrupted) => {
                    self.executor.interrupted();
                    return if self.idle.is_over() { self.retire("idle") } else { Ok(()) };
                }
                Err(error) => return self.abort_receiving(&error),
            }
        };
        let message = match Message::from_header(&header) {
            Ok(message) => message,
            Err(error) => return self.abort_receiving(&error.into()),
        };
        match (self.state, message) {
            (State::AwaitHello, Message::Hello(hello)) => self.start(&hello),
            (State::AwaitSetup, Message::Setup(setup)) => self.set_up(&setup, &header),
            (State::Idle, Message::Call { types, prepares }) => self.call(&header, &types, prepares),
            (State::Idle, Message::Settings { eager }) => self.replace_settings(eager, &header),
            (State::Idle, Message::Reply(reply)) if header.id <= self.last_call => self.skip(&header, &reply),
            (State::Idle, Message::Credit(_)) if header.id <= self.last_call => Ok(()),
            (State::AwaitTemplate, Message::Template(template)) => self.become_template(&template, &header),
            (State::Template, Message::Fork) => self.fork(),
            (State::AwaitSetup | State::Idle | State::AwaitTemplate | State::Template, Message::Retire) => self.retire("asked"),
            (state, message) => {
                let text = format!(
                    "the worker got an unexpected {:?} message in the state {state:?}; this is an error in trio-offload",
                    message.kind(),
                );
                self.abort("unexpected_message", text)
            }
        }
    }

    fn start(&mut self, hello: &Hello) -> Step {
        if hello.protocol != PROTOCOL_VERSION {
            let text = format!(
                "the parent speaks version {} of the protocol, and this worker version {PROTOCOL_VERSION}. Install the same release of trio-offload on both sides",
                hello.protocol,
            );
            return self.refuse(Explanation::new("protocol_version", text));
        }
        let Some(descriptors) = self.connection.take_descriptors(hello.descriptors()) else {
            return self.abort_without_descriptors("a HELLO");
        };
        self.connection.expect_descriptors(None);
        self.parent = u32::try_from(hello.parent_pid).unwrap_or_default();
        self.activity.set(Activity::Busy);
        match self.executor.start(hello, descriptors) {
            Ok(welcome) => {
                // The parent may close its end once it has read WELCOME. Then the worker exits in
                // order.
                self.activity.set(Activity::Idle);
                if let Some(welcome) = welcome {
                    let welcome = Message::Welcome(Box::new(welcome));
                    if hello.template {
                        // The parent has sent TEMPLATE already. One write for both answers wakes it
                        // once.
                        let buffered = self.connection.buffer(welcome);
                        self.check_sent(buffered)?;
                    } else {
                        // The parent checks WELCOME and sends the first call while this side goes
                        // on.
                        self.send(welcome)?;
                    }
                }
                if let Err(explanation) = self.executor.init_pickling() {
                    return self.refuse(explanation);
                }
                self.state = if hello.template { State::AwaitTemplate } else { State::AwaitSetup };
                Ok(())
            }
            Err(explanation) => self.refuse(explanation),
        }
    }

    fn set_up(&mut self, setup: &Setup, header: &Header) -> Step {
        // The segments after the settings are `init` and `retire`. Empty means none.
        let runs_user_code = setup.eager || header.lengths.iter().skip(1).any(|length| *length > 0);
        if runs_user_code {
            self.prepare_for_user_code()?;
        }
        let segments = self.segments(header, &[])?;
        self.memory_limit = setup.memory_limit;
        self.activity.configure(SentinelConfig {
            report_interval: setup.report_interval_ms.map(Duration::from_millis),
            memory_limit: setup.memory_limit,
        });
        self.activity.set(Activity::Busy);
        let outcome = self.executor.set_up(setup, segments, runs_user_code);
        self.activity.set(Activity::Idle);
        if let Err(raised) = outcome {
            let payload = raised.exception.as_ref().map(|payload| payload as &dyn Payload);
            self.send_with(Message::SetupFailed(raised.failure), 0, payload)?;
            return Err(Ending::SetupFailed);
        }
        let figures = self.executor.measure(true);
        self.send(Message::Ready(figures))?;
        // The parent handles READY first; its call comes later.
        self.executor.watch();
        self.state = State::Idle;
        let timeout = setup.idle_timeout_ms.map(Duration::from_millis);
        self.timeout_after_call = timeout.filter(|timeout| *timeout < MIN_FIRST_IDLE_TIMEOUT);
        self.start_idle_time(timeout.map(|timeout| timeout.max(MIN_FIRST_IDLE_TIMEOUT)))
    }

    fn become_template(&mut self, template: &Template, header: &Header) -> Step {
        self.prepare_for_user_code()?;
        let segments = self.segments(header, &[])?;
        if let Err(raised) = self.executor.become_template(template, segments) {
            let payload = raised.exception.as_ref().map(|payload| payload as &dyn Payload);
            self.send_with(Message::SetupFailed(raised.failure), 0, payload)?;
            return Err(Ending::SetupFailed);
        }
        // Before READY: the first FORK may come with the next byte.
        self.connection.expect_descriptors(Some(self.parent));
        let figures = self.executor.measure(true);
        self.send(Message::Ready(figures))?;
        self.state = State::Template;
        Ok(())
    }

    fn fork(&mut self) -> Step {
        let Some(descriptors) = self.connection.take_descriptors(FORK_DESCRIPTORS) else {
            return self.abort_without_descriptors("a request for a worker");
        };
        match self.executor.fork(descriptors) {
            Side::Template => Ok(()),
            Side::Worker => Err(Ending::Forked),
        }
    }

    fn abort_without_descriptors(&mut self, what: &str) -> Step {
        let text = format!("{what} came without the descriptors that belong to it; this is an error in trio-offload");
        self.abort("descriptors_missing", text)
    }

    /// Send pending frames and start the watch: user code may take long, or hang.
    fn prepare_for_user_code(&mut self) -> Step {
        let sent = self.connection.flush();
        self.check_sent(sent)?;
        self.executor.watch();
        Ok(())
    }

    fn start_idle_time(&mut self, timeout: Option<Duration>) -> Step {
        if let Err(error) = self.connection.set_receive_timeout(timeout) {
            return self.abort_receiving(&error);
        }
        self.idle = IdleClock::start(timeout);
        Ok(())
    }

    fn replace_settings(&mut self, eager: bool, header: &Header) -> Step {
        let segments = self.segments(header, &[])?;
        self.executor.replace_settings(eager, segments);
        Ok(())
    }

    /// Read the segments of a frame that crossed with an answer, and drop them.
    fn skip(&mut self, header: &Header, reply: &Reply) -> Step {
        if reply.descriptors > 0 {
            self.connection.drop_carried();
        }
        self.segments(header, &reply.types).map(drop)
    }

    /// The segments of the frame that is being handled.
    fn segments(&mut self, header: &Header, types: &[SegmentType]) -> Result<Vec<Segment<E::Buffer>>, Ending> {
        if let Some(segments) = self.at_hand.take() {
            return Ok(segments);
        }
        match self.connection.receive_segments(&header.lengths, types, self.executor) {
            Ok(segments) => Ok(segments),
            Err(error) => Err(self.abort_receiving(&error).err().unwrap_or(Ending::Aborted)),
        }
    }

    fn call(&mut self, header: &Header, types: &[SegmentType], prepares: bool) -> Step {
        self.last_call = header.id;
        let segments = self.segments(header, types)?;
        self.executor.release_memory();
        self.activity.set(Activity::Busy);
        self.connection.lend(self.line, header.id);
        let answer = self.executor.call(segments);
        self.connection.take_back(self.line, &mut self.aside);
        if !prepares {
            self.line.count_job();
        }
        // Set this before the answer is sent. A parent that closes the socket at once must find an
        // idle worker, which exits in order; the native thread would end a busy one.
        self.activity.set(Activity::Idle);
        // With a memory limit, the memory use must be known before the next job.
        let figures = self.executor.measure(self.memory_limit.is_some());
        let (message, payload) = match answer {
            Answer::Returned(payload) => (Message::Result(payload.types(), figures), Some(payload)),
            Answer::Raised(Raised { failure, exception }) => (Message::Raised(failure, figures), exception),
        };
        self.send_with(message, header.id, payload.as_ref().map(|payload| payload as &dyn Payload))?;
        self.activity.set(Activity::AfterJob);
        let verdict = self.executor.after_answer(payload, !prepares);
        self.activity.set(Activity::Idle);
        if prepares {
            self.idle.restart();
            return Ok(());
        }
        let too_large = self.memory_limit.zip(figures).is_some_and(|(limit, figures)| figures.rss > limit);
        match verdict {
            Verdict::Stay if too_large => self.retire("memory"),
            Verdict::Stay => match self.timeout_after_call.take() {
                Some(timeout) => self.start_idle_time(Some(timeout)),
                None => {
                    self.idle.restart();
                    Ok(())
                }
            },
            Verdict::Retire => self.retire("retire"),
            Verdict::RetireRaised(text) => self.abort("retire_raised", text),
        }
    }

    fn retire(&mut self, reason: &str) -> Step {
        self.activity.set(Activity::Exiting);
        self.send(Message::Retired { reason: reason.to_owned() })?;
        self.connection.stop_receiving();
        Err(Ending::Retired)
    }

    fn refuse(&mut self, explanation: Explanation) -> Step {
        self.send(Message::Refused(explanation))?;
        Err(Ending::Refused)
    }

    fn abort_receiving(&mut self, error: &ReceiveError) -> Step {
        self.abort(error.code(), error.to_string())
    }

    /// Report the error to the parent, if it still reads.
    fn abort(&mut self, code: &str, message: String) -> Step {
        self.activity.set(Activity::Exiting);
        let _ = self.connection.send(Message::Aborted(Explanation::new(code, message)), 0, None);
        self.connection.stop_receiving();
        Err(Ending::Aborted)
    }

    fn send(&mut self, message: Message) -> Step {
        self.send_with(message, 0, None)
    }

    fn send_with(&mut self, message: Message, id: u64, payload: Option<&dyn Payload>) -> Step {
        let sent = self.connection.send(message, id, payload);
        self.check_sent(sent)
    }

    fn check_sent(&mut self, sent: Result<(), SendError>) -> Step {
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Closed) => Err(Ending::ParentClosed),
            Err(error @ (SendError::Wire(_) | SendError::System(_))) => self.abort("socket", error.to_string()),
        }
    }
}
