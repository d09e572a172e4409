//! The state table of PROTOCOL.md without a process or Python: each state × each message, and each
//! ending.
#![expect(clippy::unwrap_used, reason = "outside of the test functions too, what a test did not expect fails it")]

mod fakes;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fakes::{Event, HEAP_LIMIT, Heap, HeapBuffer, Script};
use trio_offload_worker::exit::Ending;
use trio_offload_worker::os::fork::Side;
use trio_offload_worker::protocol::figures::Figures;
use trio_offload_worker::protocol::frame::{self, Header, Kind};
use trio_offload_worker::protocol::hello::{Hello, Welcome};
use trio_offload_worker::protocol::message::{Explanation, Failure, Message, Setup, Template};
use trio_offload_worker::protocol::requests::{Credit, Said};
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::sentinel::activity::{Activity, ActivityCell};
use trio_offload_worker::session;
use trio_offload_worker::session::executor::{Answer, Executor, Raised, Verdict};
use trio_offload_worker::transport::connection::{Connection, Next};
use trio_offload_worker::transport::line::{Line, Received};
use trio_offload_worker::transport::{Allocator, Payload, Segment};

/// An executor with configured answers. It logs its calls, and whether the native thread knew of
/// them.
#[derive(Default)]
struct Fake {
    refuse: bool,
    lacks_pickler: bool,
    refuse_watch: bool,
    watches: bool,
    fail_set_up: bool,
    raise: bool,
    verdict: Option<Verdict>,
    figures: Option<Figures>,
    /// The side of each fork, the last first; further forks are the template's.
    forks: Vec<Side>,
    /// The parent has the content of WELCOME from the template.
    is_forked: bool,
    /// True if each call leaves memory that is kept for the next.
    leaves_memory: bool,
    keeps_memory: bool,
    /// How many answers each job reads.
    reads: usize,
    line: Rc<Line<Script, HeapBuffer>>,
    log: Rc<RefCell<Vec<String>>>,
}

struct Pieces(Vec<Vec<Vec<u8>>>);

impl Payload for Pieces {
    fn segments(&self) -> Vec<Vec<&[u8]>> {
        self.0.iter().map(|pieces| pieces.iter().map(Vec::as_slice).collect()).collect()
    }

    fn types(&self) -> Vec<SegmentType> {
        Vec::new()
    }
}

impl Fake {
    fn note(&self, what: impl Into<String>) {
        self.log.borrow_mut().push(what.into());
    }
}

impl Allocator for Fake {
    type Buffer = HeapBuffer;

    fn allocate(&mut self, length: usize, kind: SegmentType) -> Option<HeapBuffer> {
        if kind != SegmentType::Memory {
            self.note(format!("allocate {length} {kind:?}"));
        }
        Heap.allocate(length, kind)
    }
}

fn failure(stage: &str) -> Failure {
    Failure {
        stage: stage.to_owned(),
        type_name: "ValueError".to_owned(),
        message: "m".to_owned(),
        traceback: "t".to_owned(),
        module: None,
    }
}

impl Executor for Fake {
    type Payload = Pieces;

    fn start(&mut self, hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<Option<Welcome>, Explanation> {
        self.note(format!("start {}", hello.parent_pid));
        if !descriptors.is_empty() {
            self.note(format!("descriptors {}", descriptors.len()));
        }
        if self.refuse {
            return Err(Explanation::new("interpreter", "no"));
        }
        if self.refuse_watch {
            return Err(Explanation::new("environment", "no thread"));
        }
        Ok((!self.is_forked).then(Welcome::default))
    }

    fn init_pickling(&mut self) -> Result<(), Explanation> {
        if self.lacks_pickler { Err(Explanation::new("interpreter", "no pickler")) } else { Ok(()) }
    }

    fn watch(&mut self) {
        if !std::mem::replace(&mut self.watches, true) {
            self.note("watch");
        }
    }

    fn set_up(
        &mut self,
        setup: &Setup,
        segments: Vec<Segment<HeapBuffer>>,
        runs_user_code: bool,
    ) -> Result<(), Box<Raised<Pieces>>> {
        if runs_user_code {
            self.note("user code");
        }
        self.note(format!("set up {:?} {} {}", setup.idle_timeout_ms, setup.eager, lengths(segments)));
        if self.fail_set_up {
            return Err(Box::new(Raised { failure: failure("setup"), exception: Some(Pieces(vec![vec![b"E".to_vec()]])) }));
        }
        Ok(())
    }

    fn replace_settings(&mut self, eager: bool, segments: Vec<Segment<HeapBuffer>>) {
        self.note(format!("settings {eager} {}", lengths(segments)));
    }

    fn call(&mut self, segments: Vec<Segment<HeapBuffer>>) -> Answer<Pieces> {
        self.note(format!("call {}", lengths(segments)));
        for _ in 0..self.reads {
            let line = Rc::clone(&self.line);
            match line.receive(line.call(), self, Instant::now(), true) {
                Ok(Received::Frame(frame)) => {
                    self.note(format!("answer {} {:?} {}", frame.id, frame.message.kind(), lengths(frame.segments)));
                }
                other => self.note(format!("no answer: {other:?}")),
            }
        }
        self.keeps_memory = self.leaves_memory;
        if self.raise {
            Answer::Raised(Raised { failure: failure("call"), exception: None })
        } else {
            Answer::Returned(Pieces(vec![vec![b"re".to_vec(), b"sult".to_vec()], vec![vec![7; 3]]]))
        }
    }

    fn after_answer(&mut self, answer: Option<Pieces>, was_job: bool) -> Verdict {
        self.note(format!("settle {}{}", answer.is_some(), if was_job { "" } else { ", no job" }));
        if was_job { self.verdict.clone().unwrap_or(Verdict::Stay) } else { Verdict::Stay }
    }

    fn interrupted(&mut self) {
        self.note("interrupted");
    }

    fn become_template(&mut self, template: &Template, segments: Vec<Segment<HeapBuffer>>) -> Result<(), Box<Raised<Pieces>>> {
        self.note(format!("template {:?} {} {}", template.modules, template.eager, lengths(segments)));
        if self.fail_set_up {
            return Err(Box::new(Raised { failure: failure("preload"), exception: None }));
        }
        Ok(())
    }

    fn fork(&mut self, descriptors: Vec<OwnedFd>) -> Side {
        self.note(format!("fork {}", descriptors.len()));
        self.forks.pop().unwrap_or(Side::Template)
    }

    fn measure(&mut self, _at_once: bool) -> Option<Figures> {
        self.figures
    }

    fn keeps_memory(&self) -> bool {
        self.keeps_memory
    }

    fn release_memory(&mut self) {
        if self.keeps_memory {
            self.keeps_memory = false;
            self.note("give back");
        }
    }
}

fn lengths(segments: Vec<Segment<HeapBuffer>>) -> String {
    let lengths = segments.into_iter().map(|segment| match segment {
        Segment::Shared(bytes) => bytes.len(),
        Segment::Owned(buffer) => buffer.into_bytes().len(),
    });
    format!("{:?}", lengths.collect::<Vec<_>>())
}

/// The bytes of a frame with segments of these lengths.
fn frame(message: Message, id: u64, segments: &[usize]) -> Vec<u8> {
    let lengths = segments.iter().map(|length| *length as u64).collect();
    let mut bytes = frame::encode(Header { kind: message.kind(), id, lengths, body: message.into_body() }).unwrap();
    bytes.extend(std::iter::repeat_n(b'x', segments.iter().sum()));
    bytes
}

fn hello() -> Vec<u8> {
    frame(Message::Hello(Box::new(Hello { protocol: 2, parent_pid: 42, ..Hello::default() })), 0, &[])
}

fn setup() -> Vec<u8> {
    frame(Message::Setup(Setup { idle_timeout_ms: Some(60_000), ..Setup::default() }), 0, &[1, 0, 2])
}

fn call(id: u64) -> Vec<u8> {
    frame(Message::Call { types: vec![], prepares: false }, id, &[4])
}

fn preparation(id: u64) -> Vec<u8> {
    frame(Message::Call { types: vec![], prepares: true }, id, &[4])
}

fn retire() -> Vec<u8> {
    frame(Message::Retire, 0, &[])
}

fn reply(id: u64, segments: &[usize]) -> Vec<u8> {
    frame(Message::Reply(Box::default()), id, segments)
}

fn credit(id: u64) -> Vec<u8> {
    frame(Message::Credit(Credit { handle: 1, count: 2 }), id, &[])
}

fn settings() -> Vec<u8> {
    frame(Message::Settings { eager: true }, 0, &[3])
}

fn template_hello() -> Vec<u8> {
    frame(Message::Hello(Box::new(Hello { protocol: 2, parent_pid: 42, template: true, ..Hello::default() })), 0, &[])
}

fn template() -> Vec<u8> {
    frame(Message::Template(Template { eager: true, modules: vec!["json".to_owned()], ..Template::default() }), 0, &[3])
}

fn fork() -> Vec<u8> {
    frame(Message::Fork, 0, &[])
}

struct Run {
    ending: Ending,
    /// Kind, id and message of each frame that the worker sent.
    said: Vec<(Kind, u64, Message)>,
    /// The number of writes.
    writes: usize,
    log: Vec<String>,
    timeouts: Vec<Option<Duration>>,
    /// True if the other side's writes fail after the last frame.
    stopped: bool,
}

impl Run {
    fn kinds(&self) -> Vec<Kind> {
        self.said.iter().map(|(kind, _, _)| *kind).collect()
    }

    fn last(&self) -> &Message {
        &self.said.last().unwrap().2
    }

    fn log(&self) -> Vec<&str> {
        self.log.iter().map(String::as_str).collect()
    }
}

fn run(executor: Fake, events: impl IntoIterator<Item = Event>) -> Run {
    run_script(executor, Script::new(events))
}

fn run_script(mut executor: Fake, script: Script) -> Run {
    let log = Rc::clone(&executor.log);
    let activity = ActivityCell::new();
    let mut connection = Connection::new(script);
    let line = Rc::clone(&executor.line);
    let ending = session::run(&mut connection, &mut executor, &activity, &line);
    assert_eq!(activity.get(), if ending == Ending::Forked { Activity::Idle } else { Activity::Exiting });
    let Script { sent, writes, timeouts, stopped, .. } = Connection::new(Script::new([])).reuse_memory_of(connection).unwrap();
    let mut replies = Connection::new(Script::cut(&sent, &[], true));
    let mut said = Vec::new();
    while let Next::Header(header) = replies.next_header().unwrap() {
        let message = Message::from_header(&header).unwrap();
        replies.receive_segments(&header.lengths, &[], &mut Heap).unwrap();
        said.push((header.kind, header.id, message));
    }
    Run { ending, said, writes, log: log.take(), timeouts, stopped }
}

fn bytes(parts: &[Vec<u8>]) -> Event {
    Event::Bytes(parts.concat())
}

#[test]
fn a_whole_life() {
    let run = run(Fake::default(), [bytes(&[hello(), setup()]), bytes(&[call(7)]), bytes(&[settings(), call(8), retire()])]);
    assert_eq!(run.ending, Ending::Retired);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result, Kind::Retired]);
    assert_eq!((run.said[2].1, run.said[3].1), (7, 8));
    assert_eq!(*run.last(), Message::Retired { reason: "asked".to_owned() });
    assert_eq!(
        run.log(),
        [
            "start 42",
            "watch",
            "user code",
            "set up Some(60000) false [1, 0, 2]",
            "call [4]",
            "settle true",
            "settings true [3]",
            "call [4]",
            "settle true"
        ]
    );
}

/// User code may take long or hang: the thread watches the parent before it. Otherwise it begins
/// while the parent handles READY.
#[test]
fn a_start_without_user_code_is_watched_afterwards() {
    let eager = Setup { eager: true, ..Setup::default() };
    let cases = [
        (frame(Message::Setup(Setup::default()), 0, &[1, 0, 0]), false),
        (frame(Message::Setup(Setup::default()), 0, &[1, 1, 0]), true),
        (frame(Message::Setup(Setup::default()), 0, &[1, 0, 1]), true),
        (frame(Message::Setup(eager), 0, &[1, 0, 0]), true),
    ];
    for (setup, is_users) in cases {
        let run_ = run(Fake::default(), [bytes(&[hello(), setup.clone()])]);
        assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready]);
        let place = |what: &str| run_.log.iter().position(|entry| entry.starts_with(what));
        assert_eq!(place("user code").is_some(), is_users);
        assert_eq!(place("watch") < place("set up"), is_users);
        // The parent prepares its first call while the start goes on.
        assert_eq!(run_.writes, 2);
    }
}

#[test]
fn a_template_sends_welcome_and_ready_in_one_write() {
    let run_ = run(Fake::default(), [bytes(&[template_hello(), template()])]);
    // Imports take time.
    assert_eq!((run_.kinds(), run_.writes), (vec![Kind::Welcome, Kind::Ready], 2));
    let run_ = run(Fake::default(), [bytes(&[template_hello(), retire()])]);
    assert_eq!((run_.kinds(), run_.writes), (vec![Kind::Welcome, Kind::Retired], 1));
    // Buffered frames go out before a wait.
    let run_ = run(Fake::default(), [bytes(&[template_hello()]), bytes(&[retire()])]);
    assert_eq!((run_.kinds(), run_.writes), (vec![Kind::Welcome, Kind::Retired], 2));
}

#[test]
fn a_worker_that_lacks_something_of_its_python_says_so() {
    let fake = Fake { lacks_pickler: true, ..Fake::default() };
    let run = run(fake, [bytes(&[hello(), setup(), call(1)])]);
    assert_eq!((run.ending, run.kinds()), (Ending::Refused, vec![Kind::Welcome, Kind::Refused]));
    assert!(!run.log.iter().any(|entry| entry.starts_with("set up") || entry.starts_with("call")), "{:?}", run.log);
}

#[test]
fn a_worker_that_cannot_be_watched_says_so_and_runs_nothing() {
    for setup in [setup(), frame(Message::Setup(Setup::default()), 0, &[1, 0, 0])] {
        let fake = Fake { refuse_watch: true, ..Fake::default() };
        let run = run(fake, [bytes(&[hello(), setup, call(1)])]);
        assert_eq!(run.ending, Ending::Refused);
        assert_eq!(*run.last(), Message::Refused(Explanation::new("environment", "no thread")));
        assert!(!run.kinds().contains(&Kind::Ready));
        assert!(!run.log.iter().any(|entry| entry.starts_with("call") || entry == "user code"), "{:?}", run.log);
    }
}

#[test]
fn each_state_refuses_what_is_not_in_its_row() {
    let worker_says = [
        frame(Message::Welcome(Box::default()), 0, &[]),
        frame(Message::Refused(Explanation::new("a", "b")), 0, &[]),
        frame(Message::Ready(None), 0, &[]),
        frame(Message::SetupFailed(failure("setup")), 0, &[]),
        frame(Message::Result(vec![], None), 1, &[1]),
        frame(Message::Raised(failure("call"), None), 1, &[]),
        frame(Message::Retired { reason: "idle".to_owned() }, 0, &[]),
        frame(Message::Aborted(Explanation::new("a", "b")), 0, &[]),
        frame(Message::Report(Figures::default()), 0, &[]),
        frame(Message::Request(Box::new(Said { request: Some(1), ..Said::default() })), 1, &[]),
        frame(Message::Post(Box::default()), 1, &[]),
        frame(Message::Withdraw { request: 1 }, 1, &[]),
        // No call has run.
        reply(1, &[]),
        credit(1),
    ];
    let before: [&[Vec<u8>]; 5] = [&[], &[hello()], &[hello(), setup()], &[template_hello()], &[template_hello(), template()]];
    let allowed = [
        vec![Kind::Hello],
        vec![Kind::Setup, Kind::Retire],
        vec![Kind::Call, Kind::Settings, Kind::Retire],
        vec![Kind::Template, Kind::Retire],
        vec![Kind::Fork, Kind::Retire],
    ];
    let sent = [
        (Kind::Hello, hello()),
        (Kind::Setup, setup()),
        (Kind::Call, call(1)),
        (Kind::Settings, settings()),
        (Kind::Template, template()),
        (Kind::Fork, fork()),
        (Kind::Retire, retire()),
    ];
    for (before, allowed) in before.iter().zip(allowed) {
        let refused = sent.iter().filter(|(kind, _)| !allowed.contains(kind)).map(|(_, bytes)| bytes);
        for unexpected in refused.chain(&worker_says) {
            let run = run(Fake::default(), [bytes(&[before.concat(), unexpected.clone(), call(99)])]);
            assert_eq!(run.ending, Ending::Aborted);
            let Message::Aborted(explanation) = run.last() else { panic!("said {:?} last", run.last()) };
            assert_eq!(explanation.code, "unexpected_message");
            assert!(!run.log.iter().any(|entry| entry.starts_with("call")), "something ran after the error");
        }
    }
}

#[test]
fn an_idle_worker_ignores_answers_of_ended_calls_only() {
    let crossed = [reply(5, &[3, 100_000]), credit(4), reply(4, &[]), credit(5), reply(0, &[0])];
    let run_ = run(Fake::default(), [bytes(&[hello(), setup(), call(5), crossed.concat(), call(6), retire()])]);
    assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result, Kind::Retired]);
    for later in [reply(6, &[HEAP_LIMIT + 1]), credit(6)] {
        let run_ = run(Fake::default(), [bytes(&[hello(), setup(), call(5), later, call(6)])]);
        let Message::Aborted(explanation) = run_.last() else { panic!("said {:?} last", run_.last()) };
        assert_eq!(explanation.code, "unexpected_message");
        assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Aborted]);
    }
}

#[test]
fn frames_sent_ahead_of_an_answer_are_handled_after_the_job() {
    let ahead = [settings(), call(6), reply(4, &[9]), reply(5, &[3]), call(7), credit(5), retire()];
    let answers = [reply(6, &[1, 70_000]), credit(6), reply(7, &[]), reply(7, &[])];
    let fake = Fake { reads: 2, ..Fake::default() };
    let run_ = run(fake, [bytes(&[hello(), setup(), call(5)]), bytes(&ahead), bytes(&answers), bytes(&[call(8)])]);
    assert_eq!((run_.ending, run_.last().clone()), (Ending::Retired, Message::Retired { reason: "asked".to_owned() }));
    assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result, Kind::Result, Kind::Retired]);
    assert_eq!(run_.said[2..5].iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(
        run_.log()[4..],
        [
            "call [4]",
            "answer 5 Reply [3]",
            "answer 5 Credit []",
            "settle true",
            "settings true [3]",
            "call [4]",
            "answer 6 Reply [1, 70000]",
            "answer 6 Credit []",
            "settle true",
            "call [4]",
            "answer 7 Reply []",
            "answer 7 Reply []",
            "settle true",
        ]
    );
}

#[test]
fn a_worker_that_retires_drops_what_it_has_set_aside() {
    let fake = Fake { reads: 1, verdict: Some(Verdict::Retire), ..Fake::default() };
    let run_ = run(fake, [bytes(&[hello(), setup(), call(5), call(6), reply(5, &[])])]);
    assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Retired]);
    assert_eq!(run_.log()[4..], ["call [4]", "answer 5 Reply []", "settle true"]);
}

/// A script with as many descriptors as requested.
fn with_descriptors(events: impl IntoIterator<Item = Event>) -> Script {
    let mut script = Script::new(events);
    script.has_descriptors = true;
    script
}

#[test]
fn the_life_of_a_template() {
    let events = [bytes(&[template_hello(), template()]), bytes(&[fork(), fork(), retire()])];
    let run = run_script(Fake::default(), with_descriptors(events));
    assert_eq!(run.ending, Ending::Retired);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Retired]);
    assert_eq!(run.log(), ["start 42", "watch", "template [\"json\"] true [3]", "fork 3", "fork 3"]);
    // A template waits for requests without a timeout.
    assert!(run.timeouts.is_empty());
}

#[test]
fn a_forked_worker_leaves_the_templates_session_without_a_word() {
    let events = [bytes(&[template_hello(), template(), fork(), fork()])];
    let fake = Fake { forks: vec![Side::Worker], ..Fake::default() };
    let run = run_script(fake, with_descriptors(events));
    assert_eq!((run.ending, run.kinds()), (Ending::Forked, vec![Kind::Welcome, Kind::Ready]));
    // The second request belongs to the template.
    assert_eq!(run.log(), ["start 42", "watch", "template [\"json\"] true [3]", "fork 3"]);
}

#[test]
fn a_request_without_its_descriptors_ends_the_template() {
    let run = run(Fake::default(), [bytes(&[template_hello(), template(), fork()])]);
    assert_eq!(run.ending, Ending::Aborted);
    let Message::Aborted(explanation) = run.last() else { panic!("said {:?} last", run.last()) };
    assert_eq!(explanation.code, "descriptors_missing");
}

/// The HELLO of a forked worker.
fn forked_hello() -> Vec<u8> {
    let (streams, directory) = (Some(vec![0, 2]), true);
    let hello = Hello { protocol: 2, parent_pid: 42, streams, directory, ..Hello::default() };
    frame(Message::Hello(Box::new(hello)), 0, &[])
}

#[test]
fn a_forked_worker_takes_descriptors_and_omits_welcome() {
    let fake = Fake { is_forked: true, ..Fake::default() };
    let run = run_script(fake, with_descriptors([bytes(&[forked_hello(), setup(), call(1), retire()])]));
    assert_eq!(run.kinds(), [Kind::Ready, Kind::Result, Kind::Retired]);
    assert_eq!(run.log()[..2], ["start 42", "descriptors 3"]);
}

#[test]
fn a_hello_without_its_descriptors_ends_the_worker() {
    let run = run(Fake { is_forked: true, ..Fake::default() }, [bytes(&[forked_hello(), setup()])]);
    assert_eq!(run.ending, Ending::Aborted);
    let Message::Aborted(explanation) = run.last() else { panic!("said {:?} last", run.last()) };
    assert_eq!(explanation.code, "descriptors_missing");
    assert!(run.log.is_empty());
}

#[test]
fn a_module_that_cannot_be_imported_ends_the_template() {
    let run = run(Fake { fail_set_up: true, ..Fake::default() }, [bytes(&[template_hello(), template(), fork()])]);
    assert_eq!((run.ending, run.kinds()), (Ending::SetupFailed, vec![Kind::Welcome, Kind::SetupFailed]));
}

#[test]
fn a_refusal_is_the_last_word() {
    let run = run(Fake { refuse: true, ..Fake::default() }, [bytes(&[hello(), setup()])]);
    assert_eq!((run.ending, run.kinds()), (Ending::Refused, vec![Kind::Refused]));
}

#[test]
fn another_protocol_version_is_refused_before_python_starts() {
    let other = frame(Message::Hello(Box::new(Hello { protocol: 3, ..Hello::default() })), 0, &[]);
    let run = run(Fake::default(), [bytes(&[other])]);
    assert_eq!(run.ending, Ending::Refused);
    let Message::Refused(explanation) = run.last() else { panic!("said {:?}", run.last()) };
    assert_eq!(explanation.code, "protocol_version");
    assert!(run.log.is_empty());
}

#[test]
fn init_that_raises_ends_the_worker() {
    let run = run(Fake { fail_set_up: true, ..Fake::default() }, [bytes(&[hello(), setup(), call(1)])]);
    assert_eq!((run.ending, run.kinds()), (Ending::SetupFailed, vec![Kind::Welcome, Kind::SetupFailed]));
}

#[test]
fn a_job_that_raises_leaves_the_worker_idle() {
    let run = run(Fake { raise: true, ..Fake::default() }, [bytes(&[hello(), setup(), call(3), call(4)]), Event::End]);
    assert_eq!(run.ending, Ending::ParentClosed);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Raised, Kind::Raised]);
    assert_eq!(run.said[3].1, 4);
}

#[test]
fn a_preparation_is_no_job() {
    let figures = Some(Figures { rss: 2_000, peak_rss: 3_000, vms: 1 << 40, cpu_time: 7 });
    let retiring = Fake { verdict: Some(Verdict::Retire), figures, ..Fake::default() };
    let setup = frame(Message::Setup(Setup { memory_limit: Some(1_000), ..Setup::default() }), 0, &[1, 0, 2]);
    let run = run(retiring, [bytes(&[hello(), setup, preparation(1), preparation(2), call(3)])]);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result, Kind::Result, Kind::Retired]);
    assert_eq!(run.log().iter().filter(|line| **line == "settle true, no job").count(), 2);
}

#[test]
fn retire_decides_after_the_answer() {
    let retiring = Fake { verdict: Some(Verdict::Retire), ..Fake::default() };
    let run_ = run(retiring, [bytes(&[hello(), setup(), call(1), call(2)])]);
    assert_eq!(run_.ending, Ending::Retired);
    assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Retired]);
    assert_eq!(*run_.last(), Message::Retired { reason: "retire".to_owned() });

    let raising = Fake { verdict: Some(Verdict::RetireRaised("it raised".to_owned())), ..Fake::default() };
    let run_ = run(raising, [bytes(&[hello(), setup(), call(1), call(2)])]);
    assert_eq!(run_.ending, Ending::Aborted);
    assert_eq!(*run_.last(), Message::Aborted(Explanation::new("retire_raised", "it raised")));
    assert_eq!(run_.kinds()[2], Kind::Result);
}

#[test]
fn figures_travel_with_what_is_said_anyway() {
    let figures = Some(Figures { rss: 9 << 20, peak_rss: 10 << 20, vms: 1 << 40, cpu_time: 7 });
    let run_ = run(Fake { figures, ..Fake::default() }, [bytes(&[hello(), setup(), call(1)]), Event::End]);
    assert_eq!(run_.said[1].2, Message::Ready(figures));
    assert_eq!(run_.said[2].2, Message::Result(vec![], figures));
    let run_ = run(Fake { figures, raise: true, ..Fake::default() }, [bytes(&[hello(), setup(), call(1)]), Event::End]);
    assert_eq!(run_.said[2].2, Message::Raised(failure("call"), figures));
}

#[test]
fn a_worker_that_holds_more_than_a_job_may_takes_no_other() {
    let limited = |memory_limit| frame(Message::Setup(Setup { memory_limit, ..Setup::default() }), 0, &[1, 0, 2]);
    let life = |memory_limit| {
        let figures = Some(Figures { rss: 1000, ..Figures::default() });
        run(Fake { figures, ..Fake::default() }, [bytes(&[hello(), limited(memory_limit), call(1), call(2)]), Event::End])
    };
    let run_ = life(Some(999));
    assert_eq!(run_.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Retired]);
    assert_eq!(*run_.last(), Message::Retired { reason: "memory".to_owned() });
    for enough in [Some(1000), None] {
        assert_eq!(life(enough).kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result]);
    }
}

#[test]
fn an_idle_worker_retires_when_its_time_is_over() {
    let idle = Event::Error(io::ErrorKind::WouldBlock);
    let run = run(Fake::default(), [bytes(&[hello(), setup()]), idle, bytes(&[call(1)])]);
    assert_eq!((run.ending, run.last().clone()), (Ending::Retired, Message::Retired { reason: "idle".to_owned() }));
    assert!(!run.log.iter().any(|entry| entry.starts_with("call")));
    assert!(run.stopped);
}

#[test]
fn a_call_that_was_sent_ahead_comes_before_the_idle_time() {
    let at_once = frame(Message::Setup(Setup { idle_timeout_ms: Some(0), ..Setup::default() }), 0, &[1, 0, 2]);
    let run =
        run(Fake::default(), [bytes(&[hello(), at_once, call(1), settings(), call(2)]), Event::Error(io::ErrorKind::WouldBlock)]);
    assert_eq!(run.ending, Ending::Retired);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result, Kind::Result, Kind::Retired]);
    assert_eq!((run.said[2].1, run.said[3].1), (1, 2));
    assert_eq!(*run.last(), Message::Retired { reason: "idle".to_owned() });
}

#[test]
fn a_short_idle_time_counts_from_the_first_call_on() {
    let set_up = |milliseconds| frame(Message::Setup(Setup { idle_timeout_ms: milliseconds, ..Setup::default() }), 0, &[1, 0, 2]);
    let timeouts =
        |milliseconds| run(Fake::default(), [bytes(&[hello(), set_up(milliseconds), call(1), call(2)]), Event::End]).timeouts;
    assert_eq!(timeouts(Some(0)), [Some(Duration::from_secs(10)), Some(Duration::ZERO)]);
    assert_eq!(timeouts(Some(60_000)), [Some(Duration::from_secs(60))]);
    assert_eq!(timeouts(None), [None]);
}

#[test]
fn neither_a_signal_nor_the_timeout_disturbs_a_frame() {
    let whole = call(5);
    let (front, back) = whole.split_at(9);
    let (middle, rest) = back.split_at(back.len() - 2);
    let disturbance = || [Event::Error(io::ErrorKind::WouldBlock), Event::Error(io::ErrorKind::Interrupted)];
    let mut events = vec![bytes(&[hello(), setup()]), Event::Error(io::ErrorKind::Interrupted)];
    for part in [front, middle, rest] {
        events.push(Event::Bytes(part.to_vec()));
        if part.as_ptr() != rest.as_ptr() {
            events.extend(disturbance());
        }
    }
    events.push(Event::End);
    let run = run(Fake::default(), events);
    assert_eq!((run.ending, run.kinds()), (Ending::ParentClosed, vec![Kind::Welcome, Kind::Ready, Kind::Result]));
    assert_eq!(run.log.iter().filter(|entry| *entry == "interrupted").count(), 1);
}

#[test]
fn the_parents_end_closes_in_every_state() {
    for before in [vec![], vec![hello()], vec![hello(), setup()]] {
        for end in [Event::End, Event::Error(io::ErrorKind::ConnectionReset)] {
            let events = if before.is_empty() { vec![end] } else { vec![bytes(&before), end] };
            assert_eq!(run(Fake::default(), events).ending, Ending::ParentClosed);
        }
    }
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let whole = call(5);
    for length in 1..whole.len() {
        let run = run(Fake::default(), [bytes(&[hello(), setup(), whole[..length].to_vec()]), Event::End]);
        assert_eq!(run.ending, Ending::Aborted);
        let Message::Aborted(explanation) = run.last() else { panic!("said {:?} last", run.last()) };
        assert_eq!(explanation.code, "torn_frame");
    }
}

#[test]
fn memory_that_is_not_there_is_said_and_not_a_crash() {
    let header = frame::encode(Header { kind: Kind::Call, id: 1, lengths: vec![1 << 40], body: vec![] }).unwrap();
    let run = run(Fake::default(), [bytes(&[hello(), setup(), header])]);
    assert_eq!(run.ending, Ending::Aborted);
    let Message::Aborted(explanation) = run.last() else { panic!("said {:?} last", run.last()) };
    assert_eq!(explanation.code, "out_of_memory");
    assert!(explanation.message.contains("1099511627776"), "{}", explanation.message);
}

#[test]
fn large_segments_arrive_whole_in_memory_of_their_own() {
    let lengths = [70_000, 0, 1, 100_000, HEAP_LIMIT];
    let run = run(
        Fake::default(),
        [bytes(&[hello(), setup(), frame(Message::Call { types: vec![], prepares: false }, 1, &lengths), call(2), retire()])],
    );
    assert_eq!(run.ending, Ending::Retired);
    assert_eq!(run.log[4], format!("call {lengths:?}"));
}

#[test]
fn a_segment_is_received_into_what_it_becomes() {
    let types = vec![SegmentType::Memory, SegmentType::Bytes, SegmentType::Memory, SegmentType::ByteArray];
    let lengths = [10, 300_000, 20, 0];
    let run = run(
        Fake::default(),
        [bytes(&[hello(), setup(), frame(Message::Call { types, prepares: false }, 1, &lengths), retire()])],
    );
    assert_eq!(run.ending, Ending::Retired);
    assert_eq!(run.log[4..6], ["allocate 300000 Bytes", "allocate 0 ByteArray"]);
}

#[test]
fn kept_memory_is_released_when_idle_and_before_a_job() {
    let leaving = || Fake { leaves_memory: true, ..Fake::default() };
    let first = bytes(&[hello(), setup(), call(1)]);
    // The next call has arrived; its unused memory is released before it runs.
    let run_ = run(leaving(), [bytes(&[hello(), setup(), call(1), call(2)])]);
    assert_eq!(run_.log[4..], ["call [4]", "settle true", "give back", "call [4]", "settle true"]);
    // The call comes in time.
    let run_ = run(leaving(), [first.clone(), bytes(&[call(2)])]);
    assert_eq!(run_.log[4..], ["call [4]", "settle true", "give back", "call [4]", "settle true"]);
    // The call is late.
    let mut script = Script::new([first, bytes(&[call(2)]), Event::End]);
    script.comes = [false, false].into();
    let run_ = run_script(leaving(), script);
    assert_eq!(run_.log[4..], ["call [4]", "settle true", "give back", "call [4]", "settle true", "give back"]);
}

#[test]
fn a_socket_that_takes_little_at_once_gets_everything() {
    let mut script = Script::new([bytes(&[hello(), setup(), call(1)]), Event::End]);
    script.send_sizes = std::iter::repeat_n(1, 10_000).collect();
    let run = run_script(Fake::default(), script);
    assert_eq!(run.kinds(), [Kind::Welcome, Kind::Ready, Kind::Result]);
}

#[test]
fn a_write_to_a_parent_that_is_gone_ends_the_session() {
    for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset] {
        let mut script = Script::new([bytes(&[hello(), setup()])]);
        script.send_error = Some(kind);
        assert_eq!(run_script(Fake::default(), script).ending, Ending::ParentClosed);
    }
}
