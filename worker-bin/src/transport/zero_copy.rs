//! Send large segments without a copy on this side.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use crate::os;

/// Segments below this size are copied, which is as fast.
const MIN_ZERO_COPY_SIZE: usize = 1 << 18;

/// Sends pages of memory instead of copies.
///
/// The kernel sends the pages themselves, so they must not be written to until the other side has
/// read them. But a worker drops its result as soon as it is sent. So the last bytes of a frame are
/// copied, and more of them than the socket holds: when the socket has taken the last byte, all
/// pages have been read.
#[derive(Debug, Default)]
pub(super) struct ZeroCopySender {
    pub(super) splice: Option<os::socket::Splice>,
    /// How many bytes at the end of a frame are copied. `None` means all: zero copy is unavailable
    /// (old kernel, sandbox).
    pub(super) copied: Option<usize>,
}

impl ZeroCopySender {
    pub(super) fn of(socket: BorrowedFd<'_>) -> Self {
        // The socket's limit counts kernel memory, which exceeds the bytes in it. One write may go
        // beyond it by a part (net/unix/af_unix.c, unix_stream_sendmsg). Twice the limit is safe.
        Self { splice: None, copied: os::socket::send_buffer_size(socket).and_then(|size| size.checked_mul(2)) }
    }

    /// How many bytes of these parts can go as pages. The parts are a frame's rest, or its front.
    fn count(&self, parts: &[IoSlice<'_>]) -> usize {
        let Some(copied) = self.copied else { return 0 };
        let all: usize = parts.iter().map(|part| part.len()).sum();
        all.checked_sub(copied).filter(|count| *count >= MIN_ZERO_COPY_SIZE).unwrap_or_default()
    }

    /// Send the front of the first part. `None` means that the parts must be written.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let count = self.count(parts);
        let Some(first) = parts.first().filter(|first| first.len() >= MIN_ZERO_COPY_SIZE && count > 0) else {
            self.splice = None;
            return None;
        };
        match self.try_to_send(socket, first.get(..count.min(first.len())).unwrap_or_default()) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                (self.splice, self.copied) = (None, None);
                None
            }
            outcome => Some(outcome),
        }
    }

    fn try_to_send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let mut splice = match self.splice.take() {
            Some(splice) => splice,
            None => os::socket::Splice::new()?,
        };
        let outcome = splice.send(socket, bytes);
        self.splice = Some(splice);
        outcome
    }

    /// The parts to write now, so that the next send starts with a large one.
    pub(super) fn before_next<'a, 'b>(&self, parts: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
        if self.count(parts) == 0 {
            return parts;
        }
        let end = parts.iter().position(|part| part.len() >= MIN_ZERO_COPY_SIZE).filter(|end| *end > 0);
        end.and_then(|end| parts.get(..end)).unwrap_or(parts)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::error::SendError;
    use crate::protocol::message::Message;
    use crate::protocol::segments::SegmentType;
    use crate::transport::Payload;
    use crate::transport::connection::Connection;
    use crate::transport::socket::Socket;

    struct Pieces(Vec<Vec<u8>>);

    impl Payload for Pieces {
        fn segments(&self) -> Vec<Vec<&[u8]>> {
            self.0.iter().map(|piece| vec![piece.as_slice()]).collect()
        }

        fn types(&self) -> Vec<SegmentType> {
            Vec::new()
        }
    }

    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Socket::from(OwnedFd::from(ours)), theirs)
    }

    /// Bytes that differ from page to page.
    fn pattern(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|index| u8::try_from((index * 31 + index / 4096 * 7 + seed) % 251).unwrap()).collect()
    }

    fn sent(payload: &Pieces, mut connection: Connection<Socket>, mut other_end: UnixStream) -> Vec<u8> {
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            other_end.read_to_end(&mut bytes).unwrap();
            bytes
        });
        connection.send(Message::Result(Vec::new(), None), 7, Some(payload)).unwrap();
        drop(connection);
        reader.join().unwrap()
    }

    #[test]
    fn segments_of_all_sizes_arrive_as_pages_and_as_copies() {
        for refused in [false, true] {
            let lengths = [100, 20_000_001, 0, 5, MIN_ZERO_COPY_SIZE, 9_999_999, 1, MIN_ZERO_COPY_SIZE - 1, 3_000_000];
            let payload = Pieces(lengths.iter().enumerate().map(|(seed, length)| pattern(*length, seed)).collect());
            let (mut socket, other_end) = pair();
            assert!(socket.outlet.zero_copy.copied.is_some_and(|copied| copied < 20_000_000));
            if refused {
                socket.outlet.zero_copy.copied = None;
            }
            let bytes = sent(&payload, Connection::new(socket), other_end);
            assert!(bytes.ends_with(&payload.0.concat()), "refused: {refused}");
        }
    }

    #[test]
    fn when_a_frame_has_been_sent_its_memory_may_be_written_to() {
        let payload = Pieces(vec![pattern(30_000_000, 0)]);
        let (socket, mut other_end) = pair();
        let mut connection = Connection::new(socket);
        let expected = payload.0.concat();
        let (written_to, may_go_on) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            // Read as much as the sender needs, and the rest after its memory has changed.
            let unread = 2 * os::socket::send_buffer_size(other_end.as_fd()).unwrap();
            let mut bytes = vec![0; 30_000_000 - unread];
            other_end.read_exact(&mut bytes).unwrap();
            other_end.set_nonblocking(true).unwrap();
            while may_go_on.try_recv().is_err() {
                let mut some = [0; 4096];
                match other_end.read(&mut some) {
                    Ok(count) => bytes.extend(&some[..count]),
                    Err(_) => std::thread::yield_now(),
                }
                // Slow down the reader: the sender must be faster now.
                std::thread::sleep(Duration::from_micros(200));
            }
            other_end.set_nonblocking(false).unwrap();
            other_end.read_to_end(&mut bytes).unwrap();
            bytes
        });
        connection.send(Message::Result(Vec::new(), None), 7, Some(&payload)).unwrap();
        let Pieces(mut pieces) = payload;
        pieces[0].fill(0xff);
        written_to.send(()).unwrap();
        drop(connection);
        assert!(reader.join().unwrap().ends_with(&expected));
    }

    #[test]
    fn another_end_that_goes_away_in_the_middle_is_a_closed_one() {
        let payload = Pieces(vec![pattern(30_000_000, 0)]);
        let (socket, mut other_end) = pair();
        let mut connection = Connection::new(socket);
        let reader = std::thread::spawn(move || {
            let mut some = vec![0; 3_000_000];
            other_end.read_exact(&mut some).unwrap();
        });
        let outcome = connection.send(Message::Result(Vec::new(), None), 7, Some(&payload));
        reader.join().unwrap();
        assert!(matches!(outcome, Err(SendError::Closed)), "{outcome:?}");
    }
}
