//! Properties of all frames and of arbitrary bytes.
#![expect(clippy::unwrap_used, reason = "outside of the test functions too, what a test did not expect fails it")]

mod fakes;

use ciborium::Value;
use fakes::{Heap, Script};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use trio_offload_worker::protocol::figures::Figures;
use trio_offload_worker::protocol::frame::{
    self, Header, Kind, PAYLOAD_LIMIT, Progress, SEGMENT_LIMIT, WORKER_HEADER_LIMIT, WireError,
};
use trio_offload_worker::protocol::hello::{Bundle, Hello, Script as BootScript, Welcome};
use trio_offload_worker::protocol::message::{Explanation, Failure, Message, Setup, TEXT_LIMIT, Template, clip};
use trio_offload_worker::protocol::requests::{Credit, Reply, Said};
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Segment;
use trio_offload_worker::transport::connection::{Connection, Next};

fn byte_strings() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 0..20), 0..6)
}

fn hello() -> impl Strategy<Value = Message> {
    let first = (
        any::<u64>(),
        any::<u64>(),
        ".{0,40}",
        vec(any::<u8>(), 0..40),
        vec((vec(any::<u8>(), 0..9), any::<Option<Vec<u8>>>()), 0..4),
    );
    let second = (byte_strings(), byte_strings(), byte_strings(), byte_strings(), byte_strings());
    let third = (any::<Option<Vec<u8>>>(), btree_map("[a-z_]{1,12}", any::<i32>(), 0..6));
    let fourth = (any::<Option<Vec<u8>>>(), proptest::option::of(byte_strings()), proptest::option::of(bundle()), any::<bool>());
    let fifth = (prop::option::of(proptest::sample::subsequence(vec![0_u64, 1, 2], 0..=3)), any::<bool>(), any::<bool>());
    (first, second, third, fourth, fifth).prop_map(|(first, second, third, fourth, (streams, directory, free_threaded))| {
        let (protocol, parent_pid, version, libpython, environment) = first;
        let (argv, orig_argv, path, warnoptions, xoptions) = second;
        let (pycache_prefix, flags) = third;
        let (home, search_path, bundle, template) = fourth;
        Message::Hello(Box::new(Hello {
            protocol,
            parent_pid,
            version,
            program_name: libpython.clone(),
            libpython,
            environment,
            argv,
            orig_argv,
            path,
            warnoptions,
            xoptions,
            pycache_prefix,
            flags: flags.into_iter().collect(),
            home,
            search_path,
            bundle,
            template,
            streams,
            directory,
            free_threaded,
        }))
    })
}

fn figures() -> impl Strategy<Value = Figures> {
    any::<[u64; 4]>().prop_map(|[rss, peak_rss, vms, cpu_time]| Figures { rss, peak_rss, vms, cpu_time })
}

fn option_figures() -> impl Strategy<Value = Option<Figures>> {
    prop::option::of(figures())
}

fn bundle() -> impl Strategy<Value = Bundle> {
    let code = || vec(any::<u8>(), 0..20);
    let script = (".{0,9}", code(), proptest::option::of("[a-z.]{0,9}"));
    let scripts = vec(script.prop_map(|(name, code, after)| BootScript { name, code, after }), 0..4);
    (code(), any::<Option<Vec<u8>>>(), vec((".{0,9}", code()), 0..4), scripts)
        .prop_map(|(folder, pyz, modules, scripts)| Bundle { folder, pyz, modules, scripts })
}

fn message() -> impl Strategy<Value = Message> {
    let failure = (".{0,9}", ".{0,9}", ".{0,30}", ".{0,30}", proptest::option::of("[a-z.]{0,9}"))
        .prop_map(|(stage, type_name, message, traceback, module)| Failure { stage, type_name, message, traceback, module });
    let template = (any::<bool>(), vec("[a-z.]{0,9}", 0..4), vec("[a-z_*]{1,9}", 0..3))
        .prop_map(|(eager, modules, threads)| Template { eager, modules, threads });
    let explanation = (".{0,9}", ".{0,30}").prop_map(|(code, message)| Explanation { code, message });
    let welcome = (any::<u64>(), any::<u64>(), ".{0,30}", vec(any::<u8>(), 0..30)).prop_map(|(protocol, pid, text, bytes)| {
        let (libpython, prefix, exec_prefix) = (bytes.clone(), bytes.clone(), bytes);
        let (worker, version, free_threaded) = (text.clone(), text, pid % 2 == 0);
        Message::Welcome(Box::new(Welcome { protocol, worker, pid, version, libpython, prefix, exec_prefix, free_threaded }))
    });
    prop_oneof![
        hello(),
        welcome,
        (any::<Option<u64>>(), any::<bool>(), any::<Option<u64>>(), any::<Option<u64>>()).prop_map(
            |(idle_timeout_ms, eager, report_interval_ms, memory_limit)| {
                Message::Setup(Setup { idle_timeout_ms, eager, report_interval_ms, memory_limit })
            }
        ),
        any::<bool>().prop_map(|eager| Message::Settings { eager }),
        template.prop_map(Message::Template),
        Just(Message::Fork),
        explanation.clone().prop_map(Message::Refused),
        explanation.prop_map(Message::Aborted),
        failure.clone().prop_map(Message::SetupFailed),
        (failure, option_figures()).prop_map(|(failure, figures)| Message::Raised(Failure { module: None, ..failure }, figures)),
        ".{0,9}".prop_map(|reason| Message::Retired { reason }),
        (types(), any::<bool>()).prop_map(|(types, prepares)| Message::Call { types, prepares }),
        Just(Message::Retire),
        option_figures().prop_map(Message::Ready),
        (types(), option_figures()).prop_map(|(types, figures)| Message::Result(types, figures)),
        figures().prop_map(Message::Report),
        (any::<u64>(), ".{0,9}", types(), any::<[bool; 3]>(), 0_u8..=16).prop_map(
            |(request, status, types, has, descriptors)| {
                let text = |has: bool| has.then(|| status.clone());
                let (type_name, message, traceback) = (text(has[0]), text(has[1]), text(has[2]));
                Message::Reply(Box::new(Reply { request, types, type_name, message, traceback, status, descriptors }))
            }
        ),
        any::<[u64; 2]>().prop_map(|[handle, count]| Message::Credit(Credit { handle, count })),
        (said(), any::<u64>(), any::<bool>())
            .prop_map(|(said, request, shield)| { Message::Request(Box::new(Said { request: Some(request), shield, ..said })) }),
        said().prop_map(|said| Message::Post(Box::new(said))),
        any::<u64>().prop_map(|request| Message::Withdraw { request }),
    ]
}

/// The body of a POST.
fn said() -> impl Strategy<Value = Said> {
    (".{0,9}", any::<u64>(), any::<[Option<u64>; 3]>(), types()).prop_map(|(op, thread, [handle, count, item], types)| Said {
        request: None,
        op,
        handle,
        thread,
        count,
        item,
        shield: false,
        types,
    })
}

/// No types, or one for each possible segment.
fn types() -> impl Strategy<Value = Vec<SegmentType>> {
    let one = prop_oneof![Just(SegmentType::Memory), Just(SegmentType::Bytes), Just(SegmentType::ByteArray)];
    prop_oneof![Just(Vec::new()), vec(one, 4)]
}

fn fitting(mut types: Vec<SegmentType>, segments: usize) -> Vec<SegmentType> {
    types.truncate(segments);
    types
}

/// A frame with the number of segments of its message.
fn frame() -> impl Strategy<Value = (Message, u64, Vec<Vec<u8>>)> {
    (message(), any::<u64>(), vec(vec(any::<u8>(), 0..50), 4), 1..4_usize).prop_map(|(message, id, mut segments, count)| {
        segments.truncate(match message.kind() {
            Kind::Setup => 3,
            Kind::Settings | Kind::Template => 1,
            Kind::Call | Kind::Result => count,
            Kind::Raised | Kind::SetupFailed | Kind::Reply | Kind::Request | Kind::Post => count - 1,
            _ => 0,
        });
        let message = match message {
            Message::Call { types, prepares } => Message::Call { types: fitting(types, segments.len()), prepares },
            Message::Result(types, figures) => Message::Result(fitting(types, segments.len()), figures),
            Message::Reply(mut reply) => {
                reply.types = fitting(reply.types, segments.len());
                Message::Reply(reply)
            }
            Message::Request(mut said) => {
                said.types = fitting(said.types, segments.len());
                Message::Request(said)
            }
            Message::Post(mut said) => {
                said.types = fitting(said.types, segments.len());
                Message::Post(said)
            }
            other => other,
        };
        (message, id, segments)
    })
}

fn encoded(message: &Message, id: u64, segments: &[Vec<u8>]) -> Vec<u8> {
    let lengths = segments.iter().map(|segment| segment.len() as u64).collect();
    let header = Header { kind: message.kind(), id, lengths, body: message.clone().into_body() };
    let mut bytes = frame::encode(header).unwrap();
    bytes.extend(segments.concat());
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(frames in vec(frame(), 1..5), cuts in vec(any::<prop::sample::Index>(), 0..6)) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(message, id, segments)| encoded(message, *id, segments)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        let mut connection = Connection::new(Script::cut(&bytes, &cuts, true));
        for (message, id, segments) in frames {
            let Next::Header(header) = connection.next_header().unwrap() else { panic!("a frame is missing") };
            prop_assert_eq!(header.id, id);
            prop_assert_eq!(Message::from_header(&header).unwrap(), message);
            let received = connection.receive_segments(&header.lengths, &[], &mut Heap).unwrap();
            let received: Vec<Vec<u8>> = received.into_iter().map(|segment| match segment {
                Segment::Shared(bytes) => bytes.to_vec(),
                Segment::Owned(buffer) => buffer.into_bytes(),
            }).collect();
            prop_assert_eq!(received, segments);
        }
        prop_assert_eq!(connection.next_header().unwrap(), Next::End);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = frame::parse(&bytes);
    }

    #[test]
    fn any_header_is_read_without_a_panic(header in vec(any::<u8>(), 1..200), payload in any::<u64>()) {
        let mut bytes = b"tro\x01".to_vec();
        bytes.extend(u32::try_from(header.len()).unwrap().to_be_bytes());
        bytes.extend(payload.to_be_bytes());
        bytes.extend(header);
        if let Ok(Progress::Ready { header, .. }) = frame::parse(&bytes) {
            let _ = Message::from_header(&header);
        }
    }

    #[test]
    fn a_damaged_frame_is_read_without_a_panic((message, id, segments) in frame(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(&message, id, &segments);
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let mut connection = Connection::new(Script::cut(&bytes, &[], true));
        while let Ok(Next::Header(header)) = connection.next_header() {
            if Message::from_header(&header).is_err() || connection.receive_segments(&header.lengths, &[], &mut Heap).is_err() {
                break;
            }
        }
    }

    #[test]
    fn an_incomplete_header_needs_more_than_there_is((message, id, segments) in frame()) {
        let bytes = encoded(&message, id, &segments);
        let Progress::Ready { consumed, .. } = frame::parse(&bytes).unwrap() else { panic!("the frame is whole") };
        for length in 0..consumed {
            let Progress::Need(wanted) = frame::parse(&bytes[..length]).unwrap() else { panic!("{length} bytes were enough") };
            prop_assert!(wanted > length && wanted <= consumed);
        }
    }

    #[test]
    fn clipped_text_fits_and_stays_text(text in "\\PC{0,50}", times in 0..60_000_usize) {
        let clipped = clip(text.repeat(times));
        prop_assert!(clipped.len() <= TEXT_LIMIT);
    }
}

#[test]
fn the_body_is_left_out_where_there_is_nothing_in_it() {
    let bytes = frame::encode(Header { kind: Kind::Retire, id: 0, lengths: vec![], body: vec![] }).unwrap();
    let value: Value = ciborium::from_reader(&bytes[frame::PREFIX_LENGTH..]).unwrap();
    assert_eq!(value.as_array().map(Vec::len), Some(3));
}

#[test]
fn as_many_segments_as_are_allowed_and_one_more() {
    for (count, accepted) in [(SEGMENT_LIMIT, true), (SEGMENT_LIMIT + 1, false)] {
        let lengths: Vec<u64> = (0..count as u64).collect();
        let header = Header { kind: Kind::Call, id: 1, lengths, body: vec![] };
        let bytes = frame::encode(header.clone()).unwrap();
        let parsed = frame::parse(&bytes);
        if accepted {
            assert_eq!(parsed, Ok(Progress::Ready { header, consumed: bytes.len() }));
        } else {
            assert!(matches!(parsed, Err(WireError::MalformedHeader(_))));
        }
    }
}

#[test]
fn the_largest_header_of_a_worker_fits_its_bound() {
    let text = || clip("x".repeat(TEXT_LIMIT + 1));
    let failure =
        Failure { stage: "preload".to_owned(), type_name: text(), message: text(), traceback: text(), module: Some(text()) };
    let lengths = vec![PAYLOAD_LIMIT / SEGMENT_LIMIT as u64; SEGMENT_LIMIT];
    let header = |message| Header {
        kind: Kind::SetupFailed,
        id: u64::MAX,
        lengths: lengths.clone(),
        body: Message::SetupFailed(Failure { message, ..failure.clone() }).into_body(),
    };
    let bytes = frame::encode(header(text())).unwrap();
    assert!(bytes.len() * 10 > WORKER_HEADER_LIMIT * 9);
    let too_large = "x".repeat(2 * TEXT_LIMIT);
    assert!(matches!(frame::encode(header(too_large)), Err(WireError::HeaderTooLarge(_))));
}
