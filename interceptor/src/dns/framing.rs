//! DNS messages on a byte stream: two octets of length, then the message (RFC 1035 §4.2.2).

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::wire::u16_at;

/// Octets of the length field.
const PREFIX: usize = 2;

/// The most that is made ready for a message before its octets arrive.
const READ_AHEAD: usize = 4096;

/// Takes the first whole message out of `inbound`.
pub(super) fn take(inbound: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16_at(inbound, 0)?);
    if inbound.len() < PREFIX + length {
        return None;
    }
    inbound.advance(PREFIX);
    Some(inbound.split_to(length))
}

/// Makes room in `inbound` for what is announced, no more than a bounded step ahead of what has arrived.
pub(super) fn reserve(inbound: &mut BytesMut) {
    let wanted = match u16_at(inbound, 0) {
        None => 512,
        Some(length) => (PREFIX + usize::from(length)).saturating_sub(inbound.len()),
    };
    inbound.reserve(wanted.clamp(1, READ_AHEAD));
}

/// Appends `message` to `outbound`; nothing where it is longer than a length field can say.
pub(super) fn put(outbound: &mut BytesMut, message: &[u8]) {
    let Ok(length) = u16::try_from(message.len()) else {
        return;
    };
    outbound.reserve(PREFIX + message.len());
    outbound.extend_from_slice(&length.to_be_bytes());
    outbound.extend_from_slice(message);
}

/// What one step of [`push`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Octets went out; they need a flush once they are the last.
    Written,
    /// Everything written before is on its way.
    Flushed,
}

/// Moves `outbound` one step on its way: writes what the writer takes, or flushes when nothing is left to write.
///
/// Loses nothing when it is cancelled.
pub(super) async fn push(
    writer: &mut (impl AsyncWrite + Unpin),
    outbound: &mut BytesMut,
) -> io::Result<Pushed> {
    if outbound.is_empty() {
        writer.flush().await?;
        return Ok(Pushed::Flushed);
    }
    match writer.write_buf(outbound).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(Pushed::Written),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_taken_only_when_it_is_whole() {
        let mut inbound = BytesMut::new();
        put(&mut inbound, b"message");
        let whole = inbound.clone();
        for length in 0..whole.len() {
            assert_eq!(take(&mut BytesMut::from(&whole[..length])), None);
        }
        assert_eq!(take(&mut inbound).as_deref(), Some(b"message".as_slice()));
        assert!(inbound.is_empty());
    }

    #[test]
    fn an_announced_length_costs_no_memory_before_it_arrives() {
        let mut inbound = BytesMut::from(&[0xff, 0xff][..]);
        reserve(&mut inbound);
        assert!(inbound.capacity() < 3 * READ_AHEAD);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..10)) {
            let mut stream = BytesMut::new();
            for message in &messages {
                put(&mut stream, message);
            }
            let taken: Vec<Vec<u8>> = std::iter::from_fn(|| take(&mut stream))
                .map(|message| message.to_vec())
                .collect();
            prop_assert_eq!(taken, messages);
        }
    }
}
