//! The time that the codec takes to write and to read the head of a frame, body included, without
//! I/O and Python. `ci/bench --rust` runs it; `benchmarks/README.md` lists the other benchmarks.
#![expect(clippy::unwrap_used, reason = "what a benchmark did not expect ends it")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use trio_offload_worker::protocol::figures::Figures;
use trio_offload_worker::protocol::frame::{self, Header, Progress};
use trio_offload_worker::protocol::hello::Hello;
use trio_offload_worker::protocol::message::{Failure, Message};

/// The two frames of a small call, those with a body, and those with many segments.
fn frames() -> Vec<(&'static str, Message, Vec<u64>)> {
    let figures = Figures { rss: 11_534_336, peak_rss: 12_000_000, vms: 34_603_008, cpu_time: 1_234_567 };
    let failure = Failure {
        stage: "call".to_owned(),
        type_name: "ValueError".to_owned(),
        message: "invalid literal for int() with base 10: 'x'".to_owned(),
        traceback: "Traceback (most recent call last):\n  File \"module.py\", line 12, in function\n".repeat(8),
        module: None,
    };
    let hello = Hello {
        protocol: 2,
        parent_pid: 12_345,
        version: "3.11.7 (main, Jan  1 2026, 00:00:00) [GCC 12.2.0]".to_owned(),
        program_name: b"/usr/bin/python3".to_vec(),
        path: vec![b"/usr/lib/python3.11".to_vec(); 8],
        flags: ["debug", "inspect", "interactive", "optimize"].map(|name| (name.to_owned(), 0)).into(),
        ..Hello::default()
    };
    vec![
        ("CALL", Message::Call { types: vec![], prepares: false }, vec![40]),
        ("CALL, 1,000 segments", Message::Call { types: vec![], prepares: false }, vec![100_000; 1_000]),
        ("RESULT", Message::Result(vec![], None), vec![16]),
        ("RESULT with figures", Message::Result(vec![], Some(figures)), vec![16]),
        ("REPORT", Message::Report(figures), vec![]),
        ("RAISED", Message::Raised(failure, None), vec![500]),
        ("HELLO", Message::Hello(Box::new(hello)), vec![]),
    ]
}

fn encode(message: Message, lengths: Vec<u64>) -> Vec<u8> {
    frame::encode(Header { kind: message.kind(), id: 1_000, lengths, body: message.into_body() }).unwrap()
}

fn parse(bytes: &[u8]) -> Option<Message> {
    match frame::parse(bytes).unwrap() {
        Progress::Ready { header, .. } => Some(Message::from_header(&header).unwrap()),
        Progress::Need(_) => None,
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for (name, message, lengths) in frames() {
        let whole = || (message.clone(), lengths.clone());
        group.bench_function(name, |bencher| {
            bencher.iter_batched(whole, |(message, lengths)| encode(message, lengths), BatchSize::SmallInput);
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("parse");
    for (name, message, lengths) in frames() {
        let bytes = encode(message, lengths);
        group.bench_function(name, |bencher| bencher.iter(|| parse(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
