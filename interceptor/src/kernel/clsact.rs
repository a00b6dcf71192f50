//! The clsact qdisc, which holds filters on kernels without TCX: added where it is missing, removed when nobody uses it.

use std::io;

use anyhow::{Context as _, Result};
use aya::programs::tc::{self, TcError};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use tracing::warn;

/// `TC_H_CLSACT`, where the qdisc hangs.
const CLSACT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// The handle that the kernel gives it.
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// `TC_H_MIN_INGRESS` of it.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff2,
};

/// `TC_H_MIN_EGRESS` of it.
const EGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff3,
};

/// Makes sure that the interface has the qdisc; true when it had none.
pub(super) fn add(name: &str) -> Result<bool> {
    match tc::qdisc_add_clsact(name) {
        Ok(()) => Ok(true),
        Err(TcError::AlreadyAttached) => Ok(false),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            Ok(false)
        }
        Err(error) => Err(error).context("cannot add the clsact qdisc"),
    }
}

/// Removes the qdisc from the interface with index `interface` unless filters hang on it; does nothing where either is
/// gone already.
pub(super) fn tidy(interface: u32) {
    if let Err(error) = remove_unless_used(interface) {
        warn!(interface, %error, "cannot remove the clsact qdisc");
    }
}

/// How many messages the kernel describes the interface's egress filters with; none is no filter.
pub(super) fn egress_filters(interface: u32) -> io::Result<usize> {
    filters(interface, EGRESS)
}

fn remove_unless_used(interface: u32) -> io::Result<()> {
    for hook in [INGRESS, EGRESS] {
        if filters(interface, hook)? > 0 {
            return Ok(());
        }
    }
    let mut message = message(interface);
    message.header.parent = CLSACT;
    message.header.handle = HANDLE;
    request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK).map(|_| ())
}

fn filters(interface: u32, hook: TcHandle) -> io::Result<usize> {
    let mut message = message(interface);
    message.header.parent = hook;
    request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)
}

fn message(interface: u32) -> TcMessage {
    TcMessage::with_index(interface.cast_signed())
}

/// Sends one request and counts the messages it is answered with; an interface or qdisc that does not exist answers
/// with none.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;

    let mut answers = 0;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(invalid)?;
            let length = (answer.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(_) => answers += 1,
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => {
                    let error = error.to_io();
                    return match error.raw_os_error() {
                        None | Some(0 | libc::ENODEV | libc::ENOENT | libc::EINVAL) => Ok(answers),
                        Some(_) => Err(error),
                    };
                }
                _ => {}
            }
        }
    }
}
