//! An AF_XDP socket: frames of memory that go to the kernel and come back by four rings (Linux,
//! Documentation/networking/af_xdp.rst).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

use interceptor_ebpf::{ETHERNET_HEADER, protocol, reader};
use libc::{c_int, xdp_desc, xdp_mmap_offsets, xdp_ring_offset, xdp_statistics};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use thiserror::Error;

use super::ring::{Consumer, Layout, Mapping, Producer};
use crate::reader::Missed;

/// Octets of a frame. The kernel keeps 256 of those it receives into for itself (`XDP_PACKET_HEADROOM`).
pub(super) const FRAME: u32 = 2048;

/// The longest packet that is received, in octets from the IP header on.
pub(super) const LONGEST: u16 = FRAME as u16 - 256 - ETHERNET_HEADER as u16;

/// Frames that a single queue has to receive into: as many packets can wait for us.
const INBOUND: u32 = 2048;

/// Frames that several queues have to receive into, together. With those to send from they take 7.5 MiB, which is within
/// the 8 MiB that the kernel lets a process without `CAP_IPC_LOCK` pin (`RLIMIT_MEMLOCK` since Linux 5.16).
const INBOUND_IN_SUM: u32 = 2816;

/// Frames that each of several queues has to receive into at least: twice what UDP sockets keep for their readers by
/// default (`net.core.rmem_default`, some 270 small datagrams), because one task empties all queues in turn.
const LEAST_INBOUND: u32 = 512;

/// So many sockets can there be with frames enough.
pub(super) const MOST_SOCKETS: u32 = INBOUND_IN_SUM / LEAST_INBOUND;

/// Frames to send from.
const OUTBOUND: u32 = 1024;

/// How many frames a socket has, of [`FRAME`] octets each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frames {
    /// To receive into; at least one.
    inbound: u32,
    /// To send from.
    outbound: u32,
}

/// A socket that is bound to a queue, with the memory that its frames are in.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    frames: Mapping,
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Inbound {
    socket: Arc<Socket>,
    received: Consumer<xdp_desc>,
    fill: Producer<u64>,
}

/// The sending side.
#[derive(Debug)]
pub(super) struct Outbound {
    socket: Arc<Socket>,
    send: Producer<xdp_desc>,
    completed: Consumer<u64>,
    /// Frames that are ours to write to, by their address.
    free: Vec<u64>,
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The kernel has no such sockets, or not for us.
    #[error(
        "cannot open an AF_XDP socket: {0}; that takes CAP_NET_RAW and a kernel with AF_XDP (CONFIG_XDP_SOCKETS)"
    )]
    Open(#[source] io::Error),
    /// The kernel refused a step of its setting up.
    #[error("cannot set up an AF_XDP socket: {what}: {error}")]
    SetUp {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// Opens a socket in the calling thread's network namespace, without memory or device yet.
pub(super) fn open() -> Result<OwnedFd, SocketError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call that takes numbers.
    let fd = unsafe { libc::socket(libc::AF_XDP, kind, 0) };
    if fd < 0 {
        return Err(SocketError::Open(io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a socket that is bound to a queue of an interface in the calling thread's network namespace.
pub(super) fn bind(
    interface: u32,
    queue: u32,
    frames: Frames,
) -> Result<(Inbound, Outbound), SocketError> {
    let fd = open()?;
    let Frames { inbound, outbound } = frames;
    let sizes = frames.rings();
    let memory = Mapping::anonymous(((inbound + outbound) * FRAME) as usize)
        .map_err(set_up("its memory"))?;
    register(&fd, &memory).map_err(set_up("its memory; is RLIMIT_MEMLOCK too low?"))?;
    for (ring, size) in [
        (libc::XDP_UMEM_FILL_RING, sizes.fill),
        (libc::XDP_RX_RING, sizes.received),
        (libc::XDP_UMEM_COMPLETION_RING, sizes.completed),
        (libc::XDP_TX_RING, sizes.send),
    ] {
        set_option(&fd, ring, &size).map_err(set_up("its rings"))?;
    }
    let Layouts {
        received,
        send,
        fill,
        completed,
    } = layouts(&fd, sizes).map_err(set_up("its rings"))?;
    let map = |at: u64, layout: &Layout, entry: usize| {
        Mapping::shared(
            fd.as_fd(),
            at,
            layout.entries + layout.size as usize * entry,
        )
    };
    let rings = || -> io::Result<_> {
        let descriptor = size_of::<xdp_desc>();
        Ok((
            Consumer::new(map(RECEIVED_AT, &received, descriptor)?, received)?,
            Producer::new(map(FILL_AT, &fill, 8)?, fill)?,
            Producer::new(map(SEND_AT, &send, descriptor)?, send)?,
            Consumer::new(map(COMPLETED_AT, &completed, 8)?, completed)?,
        ))
    };
    let (received, mut fill, send, completed) = rings().map_err(set_up("its rings"))?;
    let address = |frame| u64::from(frame * FRAME);
    for frame in 0..inbound {
        fill.push(address(frame));
    }
    fill.publish();
    bind_to(&fd, interface, queue).map_err(set_up("its queue"))?;
    let socket = Arc::new(Socket { fd, frames: memory });
    let outbound = Outbound {
        socket: Arc::clone(&socket),
        send,
        completed,
        free: (inbound..inbound + outbound).map(address).collect(),
    };
    let inbound = Inbound {
        socket,
        received,
        fill,
    };
    Ok((inbound, outbound))
}

impl SocketError {
    /// Whether more memory was asked for than may be pinned.
    pub(super) fn is_shortage(&self) -> bool {
        let Self::SetUp { error, .. } = self else {
            return false;
        };
        error.raw_os_error() == Some(libc::ENOBUFS)
    }
}

impl Frames {
    /// Those of one socket where there are `sockets`, at most [`MOST_SOCKETS`], of which the first one sends.
    pub(super) fn of(socket: u32, sockets: u32) -> Self {
        Self {
            inbound: match sockets {
                0 | 1 => INBOUND,
                several => (INBOUND_IN_SUM / several).max(1),
            },
            outbound: if socket == 0 { OUTBOUND } else { 0 },
        }
    }

    fn rings(self) -> RingSizes {
        let received = self.inbound.next_power_of_two();
        // The kernel asks for both rings of a direction that is not used as well.
        let send = self.outbound.next_power_of_two();
        RingSizes {
            received,
            fill: 2 * received,
            send,
            completed: send,
        }
    }
}

impl Socket {
    /// Has the kernel send what is in the ring: 32 packets a call (Linux 6.18, `TX_BATCH_SIZE`), then EAGAIN.
    pub(super) fn kick(&self) -> Result<(), Errno> {
        send(self.fd.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT).map(|_| ())
    }
}

impl Socket {
    /// What the kernel could not bring; nothing where it does not tell.
    pub(super) fn missed(&self) -> Missed {
        match statistics(&self.fd) {
            Ok(statistics) => Missed {
                packets: statistics.rx_dropped + statistics.rx_ring_full,
                no_frame: statistics.rx_fill_ring_empty_descs,
                no_place: statistics.rx_ring_full,
            },
            Err(error) => {
                tracing::debug!(%error, "the AF_XDP socket does not tell what it dropped");
                Missed::default()
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Inbound {
    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether nothing waits to be received.
    pub(super) fn is_empty(&mut self) -> bool {
        self.received.is_empty()
    }

    /// Hands at most `budget` packets to `take`, each from its IP header on, and says how many there were.
    pub(super) fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < budget {
            let Some(frame) = self.received.pop() else {
                break;
            };
            count += 1;
            let part = self
                .socket
                .frames
                .part(frame.addr as usize, frame.len as usize);
            if let Some(part) = part {
                // SAFETY: the kernel has filled these octets and leaves the frame alone until it is given back below.
                let octets =
                    unsafe { std::slice::from_raw_parts(part.as_ptr(), frame.len as usize) };
                if let Some(packet) = octets.get(ETHERNET_HEADER..) {
                    take(packet);
                }
            }
            // There is room for as many frames as there are.
            self.fill.push(frame.addr & !u64::from(FRAME - 1));
        }
        if count > 0 {
            self.fill.publish();
            self.received.release();
        }
        count
    }
}

impl Outbound {
    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Puts a packet into the ring, addressed to the near end; false when there is no room for it.
    pub(super) fn push(&mut self, packet: &[u8]) -> bool {
        let ethertype = match packet.first().map(|first| first >> 4) {
            Some(4) => protocol::ETHERTYPE_IPV4,
            Some(6) => protocol::ETHERTYPE_IPV6,
            _ => return false,
        };
        let length = ETHERNET_HEADER + packet.len();
        if length > FRAME as usize {
            return false;
        }
        let Some(addr) = self.frame() else {
            return false;
        };
        let Some(part) = self.socket.frames.part(addr as usize, length) else {
            return false;
        };
        let header = reader::header(reader::NEAR_MAC, reader::FAR_MAC, ethertype);
        // SAFETY: the frame is ours until it is in the ring, and as long as needed.
        let octets = unsafe { std::slice::from_raw_parts_mut(part.as_ptr(), length) };
        octets[..ETHERNET_HEADER].copy_from_slice(&header);
        octets[ETHERNET_HEADER..].copy_from_slice(packet);
        let pushed = self.send.push(xdp_desc {
            addr,
            len: length as u32,
            options: 0,
        });
        if !pushed {
            self.free.push(addr);
            return false;
        }
        self.send.publish();
        true
    }

    /// Whether the kernel has taken all that was put into the ring.
    pub(super) fn is_drained(&self) -> bool {
        self.send.is_drained()
    }

    /// A frame to write to; when there is none, those come back that were sent.
    fn frame(&mut self) -> Option<u64> {
        if let Some(frame) = self.free.pop() {
            return Some(frame);
        }
        while let Some(frame) = self.completed.pop() {
            self.free.push(frame);
        }
        self.completed.release();
        self.free.pop()
    }
}

const RECEIVED_AT: u64 = libc::XDP_PGOFF_RX_RING as u64;
const SEND_AT: u64 = libc::XDP_PGOFF_TX_RING as u64;
const FILL_AT: u64 = libc::XDP_UMEM_PGOFF_FILL_RING;
const COMPLETED_AT: u64 = libc::XDP_UMEM_PGOFF_COMPLETION_RING;

/// Places in the rings; powers of two.
#[derive(Clone, Copy)]
struct RingSizes {
    received: u32,
    /// Twice the frames: the kernel hands a frame over a moment before it gives up its place.
    fill: u32,
    send: u32,
    completed: u32,
}

struct Layouts {
    received: Layout,
    send: Layout,
    fill: Layout,
    completed: Layout,
}

fn set_up(what: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |error| SocketError::SetUp { what, error }
}

fn register(fd: &OwnedFd, frames: &Mapping) -> io::Result<()> {
    let Some(start) = frames.part(0, 0) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let registration = libc::xdp_umem_reg {
        addr: start.as_ptr() as u64,
        len: frames.length() as u64,
        chunk_size: FRAME,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::XDP_UMEM_REG, &registration)
}

fn set_option<T>(fd: &OwnedFd, option: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads as many octets of the value as it has.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            ptr::from_ref(value).cast(),
            length,
        )
    };
    done(status)
}

fn layouts(fd: &OwnedFd, sizes: RingSizes) -> io::Result<Layouts> {
    const NONE: xdp_ring_offset = xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let mut offsets = xdp_mmap_offsets {
        rx: NONE,
        tx: NONE,
        fr: NONE,
        cr: NONE,
    };
    option(fd, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    let layout = |offset: &xdp_ring_offset, size| Layout {
        producer: offset.producer as usize,
        consumer: offset.consumer as usize,
        entries: offset.desc as usize,
        size,
    };
    Ok(Layouts {
        received: layout(&offsets.rx, sizes.received),
        send: layout(&offsets.tx, sizes.send),
        fill: layout(&offsets.fr, sizes.fill),
        completed: layout(&offsets.cr, sizes.completed),
    })
}

/// Counters of the socket since it was opened. Kernels before 5.9 have the first three only, with `rx_ring_full` among
/// `rx_dropped`.
fn statistics(fd: &OwnedFd) -> io::Result<xdp_statistics> {
    let mut statistics = xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    option(fd, libc::XDP_STATISTICS, &mut statistics)?;
    Ok(statistics)
}

/// Reads an option into `value`, which is plain numbers; as much of it as the kernel has.
fn option<T: Copy>(fd: &OwnedFd, option: c_int, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many octets as the value has.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            ptr::from_mut(value).cast(),
            &raw mut length,
        )
    };
    done(status)
}

fn bind_to(fd: &OwnedFd, interface: u32, queue: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the kernel reads the address, which is as long as said.
    done(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })
}

fn done(status: c_int) -> io::Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process without `CAP_IPC_LOCK` may pin, in octets.
    const PINNABLE: u32 = 8 << 20;

    #[test]
    fn however_many_sockets_there_are_their_memory_can_be_pinned() {
        for sockets in 1..=MOST_SOCKETS {
            let frames = (0..sockets).map(|socket| Frames::of(socket, sockets));
            let octets: u32 = frames.map(|it| (it.inbound + it.outbound) * FRAME).sum();
            assert!(octets < PINNABLE, "{sockets}: {octets}");
        }
    }

    #[test]
    fn every_frame_has_a_place_in_its_rings() {
        for sockets in 1..=MOST_SOCKETS {
            for socket in 0..sockets {
                let frames = Frames::of(socket, sockets);
                let rings = frames.rings();
                assert!(frames.inbound >= LEAST_INBOUND);
                assert!(rings.received >= frames.inbound && rings.fill >= 2 * frames.inbound);
                assert!(rings.send >= frames.outbound && rings.completed >= frames.outbound);
            }
        }
    }

    #[test]
    fn only_the_first_socket_sends() {
        assert_eq!(Frames::of(0, 4).outbound, OUTBOUND);
        assert_eq!(Frames::of(1, 4).outbound, 0);
    }
}
