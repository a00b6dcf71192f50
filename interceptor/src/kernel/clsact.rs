//! The clsact qdisc, which holds filters on kernels without TCX: added where it is missing, removed when nobody uses it.

use std::io;

use anyhow::{Context as _, Result};
use aya::programs::tc::{self, TcError};
use netlink_packet_core::{
    Emitable as _, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlaBuffer, NlasIterator, Parseable as _, parse_string,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use tracing::warn;

use super::hooks::Hook;

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

/// `TCA_OPTIONS` of a filter.
const OPTIONS: u16 = 2;

/// `TCA_BPF_NAME` of a filter that runs a program.
const PROGRAM_NAME: u16 = 7;

/// How long the kernel may take to say what it has done; it does it before it takes the next request.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// A filter that runs a BPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramFilter {
    /// The name it was given, which is the program's.
    pub(super) name: String,
    /// The number it was given.
    pub(super) handle: u32,
    /// Its priority in the upper half, its protocol in the lower.
    info: u32,
}

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

/// The names of the programs that the filters of a hook run, the one that runs first before the others, and how many messages
/// the kernel describes the filters with; none is no filter.
pub(super) fn hung(interface: u32, hook: Hook) -> io::Result<(Vec<String>, usize)> {
    let hook = match hook {
        Hook::Ingress => INGRESS,
        Hook::Egress => EGRESS,
    };
    let filters = filters(interface, hook)?;
    let mut programs: Vec<ProgramFilter> =
        filters.iter().filter_map(|it| parse_filter(it)).collect();
    programs.sort_by_key(|filter| filter.info >> 16);
    let names = programs.into_iter().map(|filter| filter.name).collect();
    Ok((names, filters.len()))
}

/// Those of the interface's egress filters that run BPF programs; none where the interface is gone.
pub(super) fn egress_programs(interface: u32) -> io::Result<Vec<ProgramFilter>> {
    let filters = filters(interface, EGRESS)?;
    Ok(filters.iter().filter_map(|it| parse_filter(it)).collect())
}

/// Removes one of the interface's egress filters, which may be gone already.
pub(super) fn remove_egress(interface: u32, filter: &ProgramFilter) -> io::Result<()> {
    let mut message = message(interface);
    message.header.parent = EGRESS;
    message.header.handle = filter.handle.into();
    message.header.info = filter.info;
    request(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK).map(|_| ())
}

fn remove_unless_used(interface: u32) -> io::Result<()> {
    for hook in [INGRESS, EGRESS] {
        if !filters(interface, hook)?.is_empty() {
            return Ok(());
        }
    }
    let mut message = message(interface);
    message.header.parent = CLSACT;
    message.header.handle = HANDLE;
    request(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK).map(|_| ())
}

fn filters(interface: u32, hook: TcHandle) -> io::Result<Vec<Vec<u8>>> {
    let mut message = message(interface);
    message.header.parent = hook;
    request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP)
}

/// Only what is needed is parsed: other people's filters may be laid out in any way.
fn parse_filter(payload: &[u8]) -> Option<ProgramFilter> {
    let header = TcHeader::parse(payload).ok()?;
    let options = attribute(payload.get(header.buffer_len()..)?, OPTIONS)?;
    let name = attribute(options.value(), PROGRAM_NAME)?;
    Some(ProgramFilter {
        name: parse_string(name.value()).ok()?,
        handle: header.handle.into(),
        info: header.info,
    })
}

fn attribute(attributes: &[u8], kind: u16) -> Option<NlaBuffer<&[u8]>> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)
}

fn message(interface: u32) -> TcMessage {
    TcMessage::with_index(interface.cast_signed())
}

/// Sends one request and gives the payloads it is answered with; an interface or qdisc that does not exist answers with
/// none.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let buffer = NetlinkBuffer::new_checked(rest).map_err(invalid)?;
            let header = NetlinkHeader::parse(&buffer).map_err(invalid)?;
            let payload = buffer.payload();
            let length = (header.length as usize).next_multiple_of(NLMSG_ALIGNTO.into());
            rest = rest.get(length..).unwrap_or_default();
            match header.message_type {
                NLMSG_NOOP => {}
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let error = ErrorBuffer::new_checked(payload).map_err(invalid)?;
                    let code = error.code().map_or(0, |code| code.get().saturating_abs());
                    return match code {
                        0 | libc::ENODEV | libc::ENOENT | libc::EINVAL => Ok(answers),
                        _ => Err(io::Error::from_raw_os_error(code)),
                    };
                }
                _ => answers.push(payload.to_vec()),
            }
        }
    }
}
