//! A UDP listener. Replies leave from the address that the query was sent to, also where all addresses are listened at.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use super::Access;
use crate::service::{Flow, ReplySink, Responder, Service};

/// The longest datagram that is read, in octets; queries are far shorter.
const LONGEST: usize = 4096;

/// Datagrams taken before others have their turn.
const BATCH: usize = 64;

/// What the kernel is asked to queue, in octets; it may give less (net.core.rmem_max).
const RECEIVE_BUFFER: usize = 1 << 20;

/// The longest payload that UDP can carry, in octets.
const PAYLOAD_MAX: usize = 65_507;

pub(super) struct Listener {
    socket: Arc<ListenerSocket>,
    access: Access,
}

struct ListenerSocket {
    socket: UdpSocket,
    local: SocketAddr,
    /// Replies that the kernel did not take.
    unsent: AtomicU64,
}

impl Listener {
    pub(super) fn new(socket: Socket, local: SocketAddr, access: Access) -> io::Result<Self> {
        if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
            debug!(%error, "the receive buffer stays as it is");
        }
        if local.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self {
            socket: Arc::new(ListenerSocket {
                socket,
                local,
                unsent: AtomicU64::new(0),
            }),
            access,
        })
    }

    pub(super) async fn serve(self, service: &dyn Service, stop: &CancellationToken) {
        let sink: Arc<dyn ReplySink> = Arc::clone(&self.socket) as Arc<dyn ReplySink>;
        let mut buffer = vec![0; LONGEST];
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ready = self.socket.socket.readable() => {
                    if let Err(error) = ready {
                        debug!(%error, "a listener's socket failed");
                        return;
                    }
                }
            }
            for _ in 0..BATCH {
                match self.socket.receive(&mut buffer) {
                    Ok((flow, length)) if self.access.admits(flow.client.ip()) => {
                        let payload = buffer.get(..length).unwrap_or_default();
                        service.datagram(flow, payload, Responder::new(flow, Arc::clone(&sink)));
                    }
                    Ok((flow, _)) => trace!(?flow, "a client that is not admitted"),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // What an ICMP error says of an earlier reply, or an interrupted call.
                    Err(error) => trace!(%error, "no datagram"),
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

impl ListenerSocket {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(Flow, usize)> {
        self.socket.try_io(Interest::READABLE, || {
            let mut control = cmsg_space!(in_pktinfo, in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let client = message.address.as_ref().and_then(socket_address);
            let client = client.ok_or_else(|| io::Error::other("a datagram without an address"))?;
            let destination = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(IpAddr::from(info.ipi6_addr.s6_addr))
                }
                _ => None,
            });
            let server = SocketAddr::new(destination.unwrap_or(self.local.ip()), self.local.port());
            Ok((Flow { client, server }, message.bytes))
        })
    }

    fn transmit(&self, flow: Flow, payload: &[u8]) -> io::Result<()> {
        let client = SockaddrStorage::from(flow.client);
        let parts = [IoSlice::new(payload)];
        let send = |control: &[ControlMessage<'_>]| {
            let socket = self.socket.as_raw_fd();
            sendmsg(
                socket,
                &parts,
                control,
                MsgFlags::MSG_DONTWAIT,
                Some(&client),
            )
        };
        let sent = match flow.server.ip() {
            IpAddr::V4(server) => send(&[ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from_ne_bytes(server.octets()),
                },
                ipi_addr: in_addr { s_addr: 0 },
            })]),
            IpAddr::V6(server) => send(&[ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: server.octets(),
                },
                ipi6_ifindex: 0,
            })]),
        };
        sent?;
        Ok(())
    }
}

impl ReplySink for ListenerSocket {
    fn send(&self, flow: Flow, payload: &[u8]) {
        if let Err(error) = self.transmit(flow, payload) {
            self.unsent.fetch_add(1, Ordering::Relaxed);
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
