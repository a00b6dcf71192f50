//! A netlink socket: requests with their replies, and what the kernel announces to groups.

use std::io;

use netlink_packet_core::{
    DoneBuffer, Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator, Parseable,
};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// The kernel's own netlink port.
const KERNEL: u32 = 0;

/// A netlink socket of one protocol.
pub(super) struct NetlinkSocket {
    socket: TokioSocket,
    /// Its own netlink port, which replies to its requests carry.
    port: u32,
    sequence: u32,
}

/// One datagram from the kernel: any number of messages.
pub(super) struct Datagram(Vec<u8>);

/// One message of a [`Datagram`].
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) header: NetlinkHeader,
    pub(super) payload: &'a [u8],
}

/// How the kernel ends its replies to a request.
#[derive(Debug)]
pub(super) enum End {
    /// All of it has been sent.
    Complete,
    /// The request was refused, or what it asked for failed half-way.
    Failed(io::Error),
}

impl NetlinkSocket {
    /// Opens a socket that hears `groups`; from here on nothing they are told is missed without [`is_overrun`] saying so.
    pub(super) fn open(protocol: isize, groups: &[MulticastGroup]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        let groups = groups
            .iter()
            .fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        let mut address = SocketAddr::new(0, 0);
        socket.socket_ref().get_address(&mut address)?;
        Ok(Self {
            socket,
            port: address.port_number(),
            sequence: 0,
        })
    }

    /// Whether `message` replies to the request of this socket with that number.
    ///
    /// What another process's request has changed is announced with that request's number (Linux 6.2,
    /// `rtnl_newlink_create()`), which may be the same; only the port tells them apart.
    pub(super) fn is_reply(&self, message: &Message<'_>, sequence: u32) -> bool {
        message.header.sequence_number == sequence && message.header.port_number == self.port
    }

    /// Sends one request and gives the sequence number that its replies carry.
    pub(super) async fn send<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
    ) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send_to(&bytes, &SocketAddr::new(KERNEL, 0))
            .await?;
        Ok(self.sequence)
    }

    /// The next datagram from the kernel; those of other processes are thrown away. Can be cancelled.
    pub(super) async fn receive(&self) -> io::Result<Datagram> {
        loop {
            let (bytes, sender) = self.socket.recv_from_full().await?;
            if sender.port_number() == KERNEL {
                return Ok(Datagram(bytes));
            }
        }
    }

    /// Sends one request and collects the payloads of its replies.
    pub(super) async fn request<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
    ) -> io::Result<Vec<Vec<u8>>> {
        let acknowledge = if flags & NLM_F_DUMP == NLM_F_DUMP {
            0
        } else {
            NLM_F_ACK
        };
        let sequence = self.send(message, flags | acknowledge).await?;
        let mut replies = Vec::new();
        loop {
            let datagram = self.receive().await?;
            for message in datagram.messages() {
                if !self.is_reply(&message, sequence) {
                    continue;
                }
                match message.end() {
                    None => replies.push(message.payload.to_vec()),
                    Some(End::Complete) => return Ok(replies),
                    Some(End::Failed(error)) => return Err(error),
                }
            }
        }
    }

    /// Bounds what the kernel queues for this socket, so that a test can make it overflow.
    #[cfg(test)]
    pub(super) fn shrink_receive_buffer(&self, bytes: u32) {
        self.socket
            .socket_ref()
            .set_rx_buf_sz(bytes)
            .expect("shrinking the receive buffer");
    }
}

impl Datagram {
    /// The messages in it, as far as they are well-formed.
    pub(super) fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            loop {
                let buffer = NetlinkBuffer::new_checked(rest).ok()?;
                let header = NetlinkHeader::parse(&buffer).ok()?;
                let payload = buffer.payload();
                let length = (header.length as usize).next_multiple_of(NLMSG_ALIGNTO.into());
                rest = rest.get(length..).unwrap_or_default();
                if header.message_type != NLMSG_NOOP {
                    return Some(Message { header, payload });
                }
            }
        })
    }
}

impl Message<'_> {
    /// Whether, and how, this message ends the replies to a request.
    pub(super) fn end(&self) -> Option<End> {
        let code = match self.header.message_type {
            NLMSG_ERROR => ErrorBuffer::new_checked(self.payload)
                .map(|error| error.code().map_or(0, i32::from)),
            // Old kernels end a dump without a code.
            NLMSG_DONE => Ok(DoneBuffer::new_checked(self.payload).map_or(0, |done| done.code())),
            _ => return None,
        };
        Some(match code {
            Ok(0) => End::Complete,
            Ok(code) => End::Failed(io::Error::from_raw_os_error(code.saturating_abs())),
            Err(error) => End::Failed(io::Error::new(io::ErrorKind::InvalidData, error)),
        })
    }
}

/// Whether the kernel had to throw announcements away because they were not read fast enough.
pub(super) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The attributes that follow `header` in `payload`, by number; nothing after the first malformed one.
pub(super) fn attributes<'a>(
    payload: &'a [u8],
    header: &impl Emitable,
) -> impl Iterator<Item = netlink_packet_core::NlaBuffer<&'a [u8]>> {
    nested(payload.get(header.buffer_len()..).unwrap_or_default())
}

/// The attributes inside an attribute.
pub(super) fn nested(
    payload: &[u8],
) -> impl Iterator<Item = netlink_packet_core::NlaBuffer<&[u8]>> {
    NlasIterator::new(payload).map_while(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_split_into_its_messages() {
        let mut bytes = message(16, &[1, 2, 3]);
        bytes.extend(message(17, &[4, 5, 6, 7]));
        let datagram = Datagram(bytes);

        let messages: Vec<_> = datagram
            .messages()
            .map(|message| (message.header.message_type, message.payload.to_vec()))
            .collect();

        assert_eq!(
            messages,
            [(16, vec![1, 2, 3]), (17, vec![4, 5, 6, 7])],
            "padding belongs to neither"
        );
    }

    #[test]
    fn a_truncated_message_ends_the_datagram_quietly() {
        let mut bytes = message(16, &[1, 2, 3, 4]);
        bytes.extend(&message(17, &[5, 6, 7, 8])[..10]);

        assert_eq!(Datagram(bytes).messages().count(), 1);
    }

    #[test]
    fn a_message_that_claims_no_length_does_not_loop() {
        assert_eq!(Datagram(vec![0; 64]).messages().count(), 0);
    }

    #[test]
    fn an_error_message_carries_the_errno_and_zero_acknowledges() {
        let refused = message(NLMSG_ERROR, &(-libc::ENODEV).to_ne_bytes());
        let acknowledged = message(NLMSG_ERROR, &0i32.to_ne_bytes());

        assert!(matches!(
            end(refused),
            Some(End::Failed(error)) if error.raw_os_error() == Some(libc::ENODEV)
        ));
        assert!(matches!(end(acknowledged), Some(End::Complete)));
    }

    #[test]
    fn a_dump_ends_with_or_without_a_code() {
        assert!(matches!(end(message(NLMSG_DONE, &[])), Some(End::Complete)));
        assert!(matches!(
            end(message(NLMSG_DONE, &(-libc::EINTR).to_ne_bytes())),
            Some(End::Failed(_))
        ));
    }

    fn end(bytes: Vec<u8>) -> Option<End> {
        let datagram = Datagram(bytes);
        datagram.messages().next()?.end()
    }

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.length = 16 + payload.len() as u32;
        header.message_type = kind;
        let mut bytes = vec![0; 16];
        header.emit(&mut bytes);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
