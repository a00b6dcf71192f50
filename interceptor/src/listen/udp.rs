//! A UDP listener. Replies leave from the address that the query was sent to, also where all addresses are listened at.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage,
    recvmmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{SockRef, Socket};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use super::settings::{SharedSettings, Tally};
use crate::service::{Flow, ReplySink, Responder, Service};

/// Octets of a datagram that are read: one more than the longest query that is looked at, so that what is longer still
/// is seen to be.
const LONGEST: usize = 4097;

/// Datagrams taken by one system call.
const BATCH: usize = 16;

/// Batches that are taken from a socket that closes, at most: more than its queue has room for comes from a flood.
const LAST_BATCHES: usize = 64;

/// What the kernel is asked to queue, in octets.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The longest reply in octets: what every path carries in one piece, 1,280 octets (RFC 8200 §5), without the headers.
const PAYLOAD_MAX: usize = 1_232;

thread_local! {
    /// Where datagrams are read to, by all listeners of a thread in turn.
    static BUFFERS: RefCell<Vec<[u8; LONGEST]>> = RefCell::new(vec![[0; LONGEST]; BATCH]);
}

pub(super) struct UdpListener {
    socket: Arc<ReplySocket>,
    settings: Arc<SharedSettings>,
}

/// Whether tokio is asked first if there is something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    WhenReady,
    Now,
}

/// How many datagrams a system call gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// As many as it could; there may be more.
    Full,
    /// All there were.
    Drained,
}

impl UdpListener {
    /// A listener at `socket`, which is bound to `local` and does not block.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(super) fn new(
        socket: Socket,
        local: SocketAddr,
        settings: Arc<SharedSettings>,
    ) -> io::Result<Self> {
        let enlarged = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(io::Error::from)
            .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER));
        if let Err(error) = enlarged {
            debug!(%error, "the receive buffer stays as it is");
        }
        if local.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self {
            socket: Arc::new(ReplySocket {
                socket,
                local,
                settings: Arc::clone(&settings),
            }),
            settings,
        })
    }

    pub(super) async fn serve(self, service: Arc<dyn Service>, stop: CancellationToken) {
        let sink: Arc<dyn ReplySink> = Arc::clone(&self.socket) as Arc<dyn ReplySink>;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.take_the_rest(&*service, &sink),
                ready = self.socket.socket.readable() => {
                    if let Err(error) = ready {
                        debug!(%error, "a listener's socket failed");
                        return;
                    }
                }
            }
            let received = self.socket.receive(Look::WhenReady, |flow, payload| {
                self.take(&*service, &sink, flow, payload);
            });
            match received {
                Ok(Received::Full) => yield_now().await,
                Ok(Received::Drained) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // What an ICMP error says of an earlier reply, or an interrupted call.
                Err(error) => trace!(%error, "no datagram"),
            }
        }
    }

    /// Takes what is queued already, and has what comes from here on go to another socket that would have it.
    fn take_the_rest(&self, service: &dyn Service, sink: &Arc<dyn ReplySink>) {
        self.socket.turn_away();
        for _ in 0..LAST_BATCHES {
            let received = self.socket.receive(Look::Now, |flow, payload| {
                self.take(service, sink, flow, payload);
            });
            match received {
                Ok(Received::Full) => {}
                Ok(Received::Drained) | Err(_) => return,
            }
        }
    }

    fn take(&self, service: &dyn Service, sink: &Arc<dyn ReplySink>, flow: Flow, payload: &[u8]) {
        let tally = &self.settings.tally;
        Tally::add(&tally.received);
        let responder = Responder::new(flow, Arc::clone(sink));
        let access = &self.settings.load().access;
        if access.admits(flow.client.ip(), flow.server.ip()) {
            return service.datagram(flow, payload, responder);
        }
        Tally::add(&tally.refused);
        trace!(?flow, "a client that is not admitted");
        service.refuse(payload, &responder);
    }
}

/// A bound socket that replies leave by.
struct ReplySocket {
    socket: UdpSocket,
    local: SocketAddr,
    settings: Arc<SharedSettings>,
}

impl ReplySocket {
    /// Takes no more datagrams: replies that are still to be sent keep the socket open, and the kernel prefers it to one
    /// for all addresses.
    fn turn_away(&self) {
        if self.local.ip().is_unspecified() {
            return;
        }
        // Connected to itself, it hears nobody else (udp(7)); replies name their destination as before.
        if let Err(error) = SockRef::from(&self.socket).connect(&self.local.into()) {
            debug!(%error, "a listener's socket takes datagrams until it is closed");
        }
    }

    /// Gives what has arrived, [`BATCH`] datagrams at most, to `take`.
    fn receive(&self, look: Look, mut take: impl FnMut(Flow, &[u8])) -> io::Result<Received> {
        BUFFERS.with_borrow_mut(|buffers| {
            // The kernel overwrites the lengths in these headers and nix does not restore them, so that they serve once.
            let control = cmsg_space!(in_pktinfo, in6_pktinfo);
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(control));
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(buffer)])
                .collect();
            let mut messages = None;
            let polled = self.look(look, || {
                let flags = MsgFlags::MSG_DONTWAIT;
                let socket = self.socket.as_raw_fd();
                let received = recvmmsg(socket, &mut headers, slices.iter_mut(), flags, None)?;
                let received: Vec<_> = received.collect();
                let is_full = received.len() == BATCH;
                messages = Some(received);
                if is_full {
                    return Ok(());
                }
                // Nothing is left, which tokio learns by this error alone; what arrives meanwhile wakes it again.
                Err(io::ErrorKind::WouldBlock.into())
            });
            let Some(messages) = messages else {
                polled?;
                return Ok(Received::Drained);
            };
            for message in &messages {
                if let Some(flow) = self.flow(message) {
                    take(flow, message.iovs().next().unwrap_or_default());
                }
            }
            Ok(match polled {
                Ok(()) => Received::Full,
                Err(_) => Received::Drained,
            })
        })
    }

    fn look(&self, look: Look, receive: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match look {
            Look::WhenReady => self.socket.try_io(Interest::READABLE, receive),
            Look::Now => receive(),
        }
    }

    /// Who sent `message` to which of our addresses.
    fn flow(&self, message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Flow> {
        let client = message.address.as_ref().and_then(socket_address)?;
        let destination = message.cmsgs().ok()?.find_map(|control| match control {
            // The address to reply from, which for a broadcast is not the one that it was sent to.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => None,
        });
        let server = SocketAddr::new(destination.unwrap_or(self.local.ip()), self.local.port());
        Some(Flow { client, server })
    }

    fn transmit(&self, flow: Flow, payload: &[u8]) -> io::Result<()> {
        let client = SockaddrStorage::from(flow.client);
        let parts = [IoSlice::new(payload)];
        let send = |control: &[ControlMessage<'_>]| {
            let socket = self.socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            sendmsg(socket, &parts, control, flags, Some(&client))
        };
        let outcome = match flow.server.ip() {
            _ if !self.local.ip().is_unspecified() => send(&[]),
            IpAddr::V4(server) => send(&[ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from_ne_bytes(server.octets()),
                },
                ipi_addr: in_addr { s_addr: 0 },
            })]),
            // A service manager may have made the socket for both families.
            IpAddr::V6(server) => send(&[ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: server.octets(),
                },
                ipi6_ifindex: 0,
            })]),
        };
        outcome?;
        Ok(())
    }
}

impl ReplySink for ReplySocket {
    fn send(&self, flow: Flow, payload: &[u8]) {
        if let Err(error) = self.transmit(flow, payload) {
            Tally::add(&self.settings.tally.unsent);
            trace!(%error, "a reply was not sent");
        }
    }

    fn max_payload(&self, _: Flow) -> usize {
        PAYLOAD_MAX
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(SocketAddr::V6((*v6).into()))
}
