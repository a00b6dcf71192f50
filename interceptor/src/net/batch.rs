//! Several datagrams of one connected socket in one system call.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg};

/// Datagrams that are read at a time.
const READ_AT_ONCE: usize = 16;

/// Sends `messages` in their order; tells how many the kernel took, which is fewer than all where the socket's buffer is
/// full or one of them failed.
///
/// Fails as `sendmmsg` does: when the first of them cannot be sent.
pub(crate) fn send(socket: &impl AsRawFd, messages: &[impl AsRef<[u8]>]) -> io::Result<usize> {
    let slices: Vec<_> = messages
        .iter()
        .map(|message| [IoSlice::new(message.as_ref())])
        .collect();
    let mut headers = MultiHeaders::<()>::preallocate(messages.len(), None);
    let addresses = vec![None; messages.len()];
    let no_control: [_; 0] = [];
    let sent = sendmmsg(
        socket.as_raw_fd(),
        &mut headers,
        &slices,
        addresses,
        no_control,
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
    )?;
    Ok(sent.count())
}

/// Room for what is read at once.
pub(crate) struct Buffers {
    octets: Box<[u8]>,
    /// Octets for one datagram; what is longer is cut.
    each: usize,
}

impl Buffers {
    pub(crate) fn new(each: usize) -> Self {
        Self {
            octets: vec![0; READ_AT_ONCE * each].into_boxed_slice(),
            each,
        }
    }

    /// Reads datagrams that have arrived, no more than one beyond those that are `expected`, and hands each to `take`; tells
    /// whether there may be more. Room that is not used costs time as well.
    ///
    /// Fails where there is none (`WouldBlock`), and with what the kernel has to report.
    pub(crate) fn receive(
        &mut self,
        socket: &impl AsRawFd,
        expected: usize,
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        let mut slices: Vec<_> = self
            .octets
            .chunks_exact_mut(self.each)
            .take(expected.saturating_add(1))
            .map(|chunk| [IoSliceMut::new(chunk)])
            .collect();
        let room = slices.len();
        let mut headers = MultiHeaders::<()>::preallocate(room, None);
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &mut slices,
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        let mut count = 0;
        for message in received {
            count += 1;
            take(message.iovs().next().unwrap_or_default());
        }
        Ok(count == room)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_is_sent_at_once_arrives_in_its_order_and_what_is_read_at_once_too() {
        let (near, far) = pair();
        let messages: Vec<Vec<u8>> = (0..20_u8).map(|number| vec![number; 3]).collect();

        assert_eq!(send(&near, &messages).unwrap(), 20);
        let mut buffers = Buffers::new(8);
        let mut read: Vec<Vec<u8>> = Vec::new();
        assert!(
            buffers
                .receive(&far, 20, |it| read.push(it.to_vec()))
                .unwrap()
        );
        assert!(
            !buffers
                .receive(&far, 20, |it| read.push(it.to_vec()))
                .unwrap()
        );

        assert_eq!(read, messages);
        let error = buffers.receive(&far, 0, |_| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_datagram_that_is_too_long_for_its_room_is_cut() {
        let (near, far) = pair();
        send(&near, &[[7; 100]]).unwrap();

        let mut length = 0;
        Buffers::new(64)
            .receive(&far, 1, |it| length = it.len())
            .unwrap();

        assert_eq!(length, 64);
    }

    #[test]
    fn what_is_beyond_the_expected_is_left_for_the_next_time_but_for_one() {
        let (near, far) = pair();
        send(&near, &[[1], [2], [3]]).unwrap();
        let mut buffers = Buffers::new(8);
        let mut read = Vec::new();

        assert!(buffers.receive(&far, 1, |it| read.push(it[0])).unwrap());
        assert_eq!(read, [1, 2]);
        assert!(
            !buffers
                .receive(&far, usize::MAX, |it| read.push(it[0]))
                .unwrap()
        );

        assert_eq!(read, [1, 2, 3]);
    }

    #[test]
    fn messages_before_one_that_cannot_be_sent_are_sent() {
        let (near, _far) = pair();
        let messages = [vec![1; 10], vec![2; 70_000], vec![3; 10]];

        assert_eq!(send(&near, &messages).unwrap(), 1);
        let error = send(&near, &messages[1..]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    fn pair() -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (near, far) = (bind(), bind());
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        (near, far)
    }
}
