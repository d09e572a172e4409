//! The line of a running job: answers behind frames that were sent ahead, in all splits; one reader;
//! whole frames from several writers.
#![expect(clippy::unwrap_used, clippy::panic, reason = "outside of the test functions too, what a test did not expect fails it")]

mod fakes;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use fakes::{Event, HEAP_LIMIT, Heap, HeapBuffer, Script};
use trio_offload_worker::error::{ReceiveError, SendError};
use trio_offload_worker::protocol::frame::{self, Header, Kind};
use trio_offload_worker::protocol::message::Message;
use trio_offload_worker::protocol::requests::{Credit, Reply};
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Segment;
use trio_offload_worker::transport::connection::{Connection, Next};
use trio_offload_worker::transport::line::{ForJob, Line, Received, SetAside};
use trio_offload_worker::transport::reports::ReportSender;
use trio_offload_worker::transport::socket::Socket;

const THIS_CALL: u64 = 300;

type FakeLine = Line<Script, HeapBuffer>;

fn frame(message: Message, id: u64, segments: &[&[u8]]) -> Vec<u8> {
    let lengths = segments.iter().map(|segment| segment.len() as u64).collect();
    let mut bytes = frame::encode(Header { kind: message.kind(), id, lengths, body: message.into_body() }).unwrap();
    bytes.extend(segments.concat());
    bytes
}

fn call(id: u64) -> Vec<u8> {
    let types = vec![SegmentType::Memory, SegmentType::Bytes];
    frame(Message::Call { types, prepares: false }, id, &[&id.to_be_bytes(), b"buffer"])
}

fn reply(id: u64, request: u64, segments: &[&[u8]]) -> Vec<u8> {
    frame(Message::Reply(Box::new(Reply { request, status: "value".to_owned(), ..Reply::default() })), id, segments)
}

fn credit(id: u64) -> Vec<u8> {
    frame(Message::Credit(Credit { handle: 1, count: 2 }), id, &[])
}

fn settings() -> Vec<u8> {
    frame(Message::Settings { eager: true }, 0, &[b"settings"])
}

fn contents(segments: Vec<Segment<HeapBuffer>>) -> Vec<Vec<u8>> {
    let bytes = |segment: Segment<HeapBuffer>| match segment {
        Segment::Shared(bytes) => bytes.to_vec(),
        Segment::Owned(buffer) => buffer.into_bytes(),
    };
    segments.into_iter().map(bytes).collect()
}

/// Receive until a frame is there, and count the looks that found nothing.
fn receive(line: &FakeLine, nothing: &mut usize) -> ForJob<HeapBuffer> {
    loop {
        match line.receive(THIS_CALL, &mut Heap, Instant::now(), true).unwrap() {
            Received::Frame(frame) => return *frame,
            Received::Nothing(socket) => {
                assert!(socket.is_none());
                *nothing += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Run a job that has a line with this script. Return the job's outcome, the connection and the
/// frames that were set aside.
fn job<R>(script: Script, work: impl FnOnce(&FakeLine) -> R) -> (R, Connection<Script>, VecDeque<SetAside<HeapBuffer>>) {
    let line = FakeLine::new();
    let mut connection = Connection::new(script);
    let mut aside = VecDeque::new();
    connection.lend(&line, THIS_CALL);
    let outcome = work(&line);
    connection.take_back(&line, &mut aside);
    assert_eq!(line.call(), 0);
    (outcome, connection, aside)
}

fn reply_with_descriptors(id: u64, request: u64, descriptors: u8, segments: &[&[u8]]) -> Vec<u8> {
    let reply = Reply { request, status: "value".to_owned(), descriptors, ..Reply::default() };
    frame(Message::Reply(Box::new(reply)), id, segments)
}

#[test]
fn descriptors_go_with_their_answers() {
    let bytes = [
        reply_with_descriptors(THIS_CALL - 1, 9, 1, &[]),
        reply_with_descriptors(THIS_CALL, 1, 2, &[b"segment"]),
        reply(THIS_CALL, 2, &[]),
        call(THIS_CALL + 1),
        reply_with_descriptors(THIS_CALL, 3, 1, &[]),
    ]
    .concat();
    for place in 1..bytes.len() {
        let mut script = Script::cut(&bytes, &[place], true);
        script.carried = [1, 2, 3].into();
        let (counts, connection, _) = job(script, |line| {
            line.open_carried();
            let mut nothing = 0;
            [(); 3].map(|()| receive(line, &mut nothing).carried.descriptors.len())
        });
        // The first answer was another call's, and its descriptors are closed.
        assert_eq!(counts, [2, 0, 3]);
        drop(connection);
    }
}

#[test]
fn an_answer_without_its_descriptors() {
    let bytes = reply_with_descriptors(THIS_CALL, 1, 1, &[]);
    let (carried, _, _) = job(Script::new([Event::Bytes(bytes)]), |line| receive(line, &mut 0).carried);
    assert!(carried.is_empty());
}

#[test]
fn an_answer_behind_up_to_fifteen_calls_in_all_splits() {
    for ahead in [0, 1, 2, 3, 7, 14, 15] {
        let mut bytes = [reply(THIS_CALL - 1, 9, &[b"late"]), settings()].concat();
        (0..ahead).for_each(|number| bytes.extend(call(THIS_CALL + 1 + number)));
        bytes.extend([credit(7), reply(THIS_CALL, 5, &[b"answer", b"", b"second"]), credit(THIS_CALL), call(900)].concat());
        for place in 1..bytes.len() {
            let pause = Event::Error(io::ErrorKind::WouldBlock);
            let pieces = [Event::Bytes(bytes[..place].to_vec()), pause.clone(), pause, Event::Bytes(bytes[place..].to_vec())];
            let ((answer, credit, nothing), mut connection, aside) = job(Script::new(pieces), |line| {
                let mut nothing = 0;
                (receive(line, &mut nothing), receive(line, &mut nothing), nothing)
            });
            assert!(nothing <= 2, "{ahead} {place}");
            let Message::Reply(reply) = &answer.message else { panic!("{answer:?}") };
            assert_eq!((answer.id, reply.request), (THIS_CALL, 5));
            assert_eq!(contents(answer.segments), [b"answer".to_vec(), vec![], b"second".to_vec()]);
            assert_eq!((credit.id, credit.message), (THIS_CALL, Message::Credit(Credit { handle: 1, count: 2 })));
            let ids: Vec<u64> = aside.iter().map(|frame| frame.header.id).collect();
            let expected: Vec<u64> = [0].into_iter().chain((0..ahead).map(|number| THIS_CALL + 1 + number)).collect();
            assert_eq!(ids, expected, "{place}");
            for frame in aside {
                let expected = match frame.header.kind {
                    Kind::Settings => vec![b"settings".to_vec()],
                    _ => vec![frame.header.id.to_be_bytes().to_vec(), b"buffer".to_vec()],
                };
                assert_eq!(contents(frame.segments), expected);
            }
            // The session goes on where the job has stopped.
            let Next::Header(header) = next(&mut connection) else { panic!("the last call is missing") };
            assert_eq!((header.kind, header.id), (Kind::Call, 900));
            let segments = connection.receive_segments(&header.lengths, &[], &mut Heap).unwrap();
            assert_eq!(contents(segments), [900_u64.to_be_bytes().to_vec(), b"buffer".to_vec()]);
        }
    }
}

/// The next header, after pauses.
fn next(connection: &mut Connection<Script>) -> Next {
    loop {
        match connection.next_header().unwrap() {
            Next::Idle => {}
            next => return next,
        }
    }
}

#[test]
fn large_segments_of_frames_set_aside_own_their_memory() {
    let large = vec![7; 200_000];
    let calls = frame(Message::Call { types: vec![], prepares: true }, 301, &[&large, &large[..40_000]]);
    let bytes = [calls, reply(THIS_CALL, 1, &[&large])].concat();
    let (answer, _, aside) = job(Script::cut(&bytes, &[100, 70_000, 200_100, 300_000], true), |line| receive(line, &mut 0));
    assert_eq!(contents(answer.segments), std::slice::from_ref(&large));
    let frame = aside.into_iter().next().unwrap();
    assert!(frame.segments.iter().all(|segment| matches!(segment, Segment::Owned(_))));
    assert_eq!(contents(frame.segments), [large.clone(), large[..40_000].to_vec()]);
}

#[test]
fn a_segment_keeps_its_bytes_when_more_arrives() {
    let bytes = [reply(THIS_CALL, 1, &[b"first"]), reply(THIS_CALL, 2, &[b"other"])];
    let events = bytes.map(Event::Bytes);
    let (segments, _, _) = job(Script::new(events), |line| {
        let first = receive(line, &mut 0);
        (first.segments, receive(line, &mut 0).segments)
    });
    assert_eq!((contents(segments.0), contents(segments.1)), (vec![b"first".to_vec()], vec![b"other".to_vec()]));
}

#[test]
fn between_two_jobs_and_for_another_call_nothing_is_received() {
    let bytes = reply(THIS_CALL, 1, &[]);
    let line = FakeLine::new();
    for id in [0, THIS_CALL] {
        assert!(matches!(line.receive(id, &mut Heap, Instant::now(), false), Ok(Received::Over)));
    }
    let mut connection = Connection::new(Script::cut(&bytes, &[], true));
    connection.lend(&line, THIS_CALL);
    assert_eq!(line.call(), THIS_CALL);
    assert!(matches!(line.receive(THIS_CALL - 1, &mut Heap, Instant::now(), false), Ok(Received::Over)));
    assert_eq!(receive(&line, &mut 0).id, THIS_CALL);
    connection.take_back(&line, &mut VecDeque::new());
    assert!(matches!(line.receive(THIS_CALL, &mut Heap, Instant::now(), false), Ok(Received::Over)));
}

#[test]
fn one_thread_at_a_time_has_the_turn_to_read() {
    let line = FakeLine::new();
    let left_behind = line.take_turn(1).unwrap();
    assert!(line.take_turn(1).is_none());
    let turn = line.take_turn(2).unwrap();
    drop(left_behind);
    assert!(line.take_turn(2).is_none(), "a thread of an ended job has no turn to give");
    drop(turn);
    assert!(line.take_turn(2).is_some());
}

#[test]
fn an_end_is_told_apart_from_a_torn_frame() {
    let bytes = [call(301), reply(THIS_CALL, 1, &[b"abc"])].concat();
    let first = call(301).len();
    for length in 0..bytes.len() {
        let outcome =
            job(Script::cut(&bytes[..length], &[], true), |line| line.receive(THIS_CALL, &mut Heap, Instant::now(), true));
        match outcome.0 {
            Ok(Received::End) => assert!([0, first].contains(&length), "{length}"),
            Err(error) => assert_eq!((error.code(), [0, first].contains(&length)), ("torn_frame", false), "{length}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn other_frames_are_refused_before_memory_is_allocated() {
    let large = vec![0; HEAP_LIMIT + 1];
    let refused = [
        (reply(THIS_CALL + 1, 1, &[&large]), "unexpected_message"),
        (credit(THIS_CALL + 1), "unexpected_message"),
        (frame(Message::Hello(Box::default()), 0, &[]), "unexpected_message"),
        (frame(Message::Post(Box::default()), THIS_CALL, &[&large]), "unexpected_message"),
        (reply(THIS_CALL, 1, &[&large]), "out_of_memory"),
        (b"HTTP/1.1 400 Bad Request".to_vec(), "bad_magic"),
    ];
    for (bytes, code) in refused {
        let script = Script::cut(&bytes, &[], true);
        let outcome = job(script, |line| line.receive(THIS_CALL, &mut Heap, Instant::now(), true).map(drop));
        assert_eq!(outcome.0.as_ref().map_err(ReceiveError::code), Err(code));
    }
}

/// A line with a real socket, and the other end.
fn connected() -> (Line<Socket, HeapBuffer>, Connection<Socket>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = Socket::from(OwnedFd::from(ours));
    let reports = ReportSender::new(theirs.as_fd());
    let line = Line::new();
    line.connect(socket.line_writer(&reports), -1);
    (line, Connection::with_reports(socket, &reports), theirs)
}

#[test]
fn frames_of_several_threads_are_written_whole() {
    let (line, mut connection, theirs) = connected();
    let reader = thread::spawn(move || {
        let mut replies: Connection<Socket> = Connection::new(Socket::from(OwnedFd::from(theirs)));
        let mut numbers = Vec::new();
        while let Next::Header(header) = replies.next_header().unwrap() {
            let length = header.lengths[0];
            let segments = contents(replies.receive_segments(&header.lengths, &[], &mut Heap).unwrap());
            assert!(segments[0].iter().all(|byte| u64::from(*byte) == length % 251));
            numbers.push(length);
        }
        numbers.sort_unstable();
        numbers
    });
    let lengths: Vec<usize> = (0..8).map(|number| 100_000 * number + 1).collect();
    connection.lend(&line, THIS_CALL);
    thread::scope(|scope| {
        for length in &lengths {
            let line = &line;
            scope.spawn(move || {
                let data = vec![u8::try_from(length % 251).unwrap(); *length];
                let whole = frame(Message::Post(Box::default()), THIS_CALL, &[&data]);
                let (head, data) = whole.split_at(whole.len() - length);
                assert!(line.write(&[head, &data[..length / 2], &[], &data[length / 2..]], THIS_CALL).unwrap());
            });
        }
    });
    connection.take_back(&line, &mut VecDeque::new());
    assert!(!line.write(&[b"behind the answer"], THIS_CALL).unwrap());
    drop((connection, line));
    assert_eq!(reader.join().unwrap(), lengths.iter().map(|length| *length as u64).collect::<Vec<_>>());
}

#[test]
fn a_write_to_a_parent_that_is_gone_is_told() {
    let (line, mut connection, theirs) = connected();
    drop(theirs);
    connection.lend(&line, THIS_CALL);
    assert!(matches!(line.write(&[b"x"], THIS_CALL), Err(SendError::Closed)));
}
