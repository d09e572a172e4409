//! Replacements of the socket and of Python's memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use trio_offload_worker::os::socket::Carried;
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::{Allocator, Storage, Stream};

/// The next event of a scripted socket.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Bytes(Vec<u8>),
    Error(io::ErrorKind),
    End,
}

/// A socket that replays events, and records what was sent.
#[derive(Debug)]
pub(crate) struct Script {
    events: VecDeque<Event>,
    pub(crate) sent: Vec<u8>,
    /// The number of writes.
    pub(crate) writes: usize,
    /// How many bytes each send takes. Empty means all.
    pub(crate) send_sizes: VecDeque<usize>,
    /// The error of every send, if any.
    pub(crate) send_error: Option<io::ErrorKind>,
    /// The timeouts in force, in their order.
    pub(crate) timeouts: Vec<Option<Duration>>,
    /// The answers to each wait. Empty means that input comes in time.
    pub(crate) comes: VecDeque<bool>,
    pub(crate) stopped: bool,
    /// True if descriptors come with the bytes, as many as requested.
    pub(crate) has_descriptors: bool,
    /// How many descriptors each answer with some came with.
    pub(crate) carried: VecDeque<usize>,
}

impl Script {
    pub(crate) fn new(events: impl IntoIterator<Item = Event>) -> Self {
        Self {
            events: events.into_iter().collect(),
            sent: Vec::new(),
            writes: 0,
            send_sizes: VecDeque::new(),
            send_error: None,
            timeouts: Vec::new(),
            comes: VecDeque::new(),
            stopped: false,
            has_descriptors: false,
            carried: VecDeque::new(),
        }
    }

    /// A stream of bytes, cut at these places, followed by an end or an error.
    pub(crate) fn cut(bytes: &[u8], cuts: &[usize], end: bool) -> Self {
        let mut events = Vec::new();
        let mut begin = 0;
        for place in cuts.iter().copied().chain([bytes.len()]) {
            if begin < place {
                events.push(Event::Bytes(bytes[begin..place].to_vec()));
            }
            begin = place;
        }
        events.push(if end { Event::End } else { Event::Error(io::ErrorKind::Unsupported) });
        Self::new(events)
    }
}

impl Stream for Script {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "a read into nothing looks like an end of the stream");
        assert!(!self.stopped, "a read after the last words");
        match self.events.pop_front() {
            None | Some(Event::End) => Ok(0),
            Some(Event::Error(kind)) => Err(kind.into()),
            Some(Event::Bytes(mut bytes)) => {
                let count = bytes.len().min(into.len());
                into[..count].copy_from_slice(&bytes[..count]);
                bytes.drain(..count);
                if !bytes.is_empty() {
                    self.events.push_front(Event::Bytes(bytes));
                }
                Ok(count)
            }
        }
    }

    fn receive_answer(&mut self, into: &mut [u8], _since: Instant, _spins: bool) -> io::Result<usize> {
        self.receive(into)
    }

    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut bytes = vec![0; into.len()];
        let count = self.receive(&mut bytes)?;
        for (place, byte) in into.iter_mut().zip(&bytes[..count]) {
            place.write(*byte);
        }
        Ok(count)
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Some(kind) = self.send_error {
            return Err(kind.into());
        }
        let most = self.send_sizes.pop_front().unwrap_or(usize::MAX);
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).take(most).collect();
        self.sent.extend(&bytes);
        self.writes += 1;
        Ok(bytes.len())
    }

    fn wait_readable(&mut self, _timeout: Duration) -> bool {
        self.comes.pop_front().unwrap_or(true)
    }

    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeouts.push(timeout);
        Ok(())
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        self.stopped = true;
        Ok(())
    }

    fn take_carried(&mut self) -> Carried {
        let open = |_| File::open("/dev/null").unwrap().into();
        let count = self.carried.pop_front().unwrap_or_default();
        Carried { descriptors: (0..count).map(open).collect(), is_truncated: false }
    }

    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        let open = |_| File::open("/dev/null").ok().map(OwnedFd::from);
        if count == 0 || self.has_descriptors { (0..count).map(open).collect() } else { None }
    }
}

/// Memory without Python.
#[derive(Debug)]
pub(crate) struct Heap;

#[derive(Debug)]
pub(crate) struct HeapBuffer(Vec<MaybeUninit<u8>>);

/// The largest allocation.
pub(crate) const HEAP_LIMIT: usize = 1 << 20;

impl Allocator for Heap {
    type Buffer = HeapBuffer;

    fn allocate(&mut self, length: usize, _kind: SegmentType) -> Option<HeapBuffer> {
        // Initialised, because tests must not read uninitialised memory.
        (length <= HEAP_LIMIT).then(|| HeapBuffer(vec![MaybeUninit::new(0xee); length]))
    }
}

impl Storage for HeapBuffer {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        &mut self.0
    }
}

impl HeapBuffer {
    #[expect(unsafe_code, reason = "a fake has no other way to read what it was given")]
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        // SAFETY: every byte was written in `allocate`.
        self.0.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
    }
}
