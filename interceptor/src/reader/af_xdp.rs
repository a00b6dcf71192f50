//! The AF_XDP reader: a pair of veth devices, whose far end user space reads and writes through rings of shared memory.
//!
//! The far end is in a network namespace that only this process holds open. The kernel takes it down with the process,
//! however that ends, and the near end with it.

mod offload;
mod queues;
mod ring;
mod socket;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use interceptor_ebpf::reader::{FAR_MAC, NEAR_MAC};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::{self, coop};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use super::device::{NameError, check_name, silence};
use super::{CountMissed, Reader, Received, Transmitter};
use crate::kernel::SocketProgram;
use crate::net::veth::{self, VethEnd, VethQueues};
use crate::net::{Link, LinkLayer, Namespace, links, namespace};
use queues::Queues;
use socket::{Frames, Inbound, LONGEST, Outbound, Socket, SocketError};

/// The far end's name, in a namespace where nobody else has one.
const FAR_NAME: &str = "far0";

/// Numbers tried for a name that nobody has chosen.
const NAMES: u32 = 1000;

/// How many queues there are at most. Several let the kernel bring the packets of several senders on as many processors at
/// once; the task that takes them is one. With more of them, each would have too few frames for a burst.
const MOST_QUEUES: u32 = socket::MOST_SOCKETS;

/// How long the kernel may take to clear away the device of a daemon that was killed, or sockets that were closed. Network
/// namespaces wait for one another to be taken down.
const LEAVING: Duration = Duration::from_secs(10);

/// How long the kernel is given when it takes no more packets just now.
const RESPITE: Duration = Duration::from_millis(1);

/// How often the kernel is asked again to take packets before others get a turn.
const KICKS: u32 = 64;

/// A veth device without addresses, and an AF_XDP socket at each queue of its far end; all of it goes with the process.
///
/// A flow's packets stay in order, because they keep to a queue. Which one, the kernel chooses when it transmits on the
/// near end: that which the sending socket used last, for as long as anything of a connection's is under way; else by a
/// hash of the flow, or by the queue that a network card received it from, as the card had it by such a hash
/// (`netdev_pick_tx`, Linux 6.18). The far end receives from the same queue (`veth_xmit`). Answers leave by one queue.
///
/// The frames of all sockets together take at most 7.5 MiB of memory, those of one 6 MiB. Each queue has at least 512 of
/// them to receive into. When all wait for us, the kernel drops what else comes, and counts it ([`Self::missed`]). Before
/// that, packets may be dropped at the veth device, whose rings hold 256 a queue (`VETH_RING_SIZE`, Linux 6.18); the device
/// counts those as its dropped ones.
pub struct AfXdpReader {
    queues: Queues,
    sender: Arc<Sender>,
    _flusher: AbortOnDropHandle<()>,
    busy_poll: Duration,
    /// When packets came last.
    active: Instant,
    name: String,
    index: u32,
    _program: SocketProgram,
    _pair: Pair,
}

/// Why there is no AF_XDP reader.
#[derive(Debug, Error)]
pub enum AfXdpError {
    /// The device cannot have its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no place for the far end.
    #[error(
        "cannot make a network namespace for the far end of the reader device: {0}; that takes CAP_SYS_ADMIN"
    )]
    Namespace(#[source] io::Error),
    /// There are no devices.
    #[error(
        "cannot create a pair of veth devices: {0}; that takes CAP_NET_ADMIN and the kernel's veth module"
    )]
    Pair(#[source] io::Error),
    /// The kernel refused a setting of a device.
    #[error("{name}: cannot set {what}: {error}")]
    Configure {
        /// The device.
        name: String,
        /// What was being set.
        what: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The XDP program cannot be loaded or attached.
    #[error("{0:#}")]
    Program(anyhow::Error),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The reactor does not take the socket.
    #[error("cannot wait for an AF_XDP socket: {0}")]
    Register(#[source] io::Error),
}

impl AfXdpReader {
    /// Creates the device `name`, or the first free one of icept0, icept1, …, brings it up with `mtu` bytes, and
    /// registers the sockets at its far end with the tokio runtime that the caller runs on.
    ///
    /// It has as many queues as there are processors, but not more than five, and one where the kernel refuses several.
    ///
    /// While packets come, and for `busy_poll` after the last one, it looks for more without waiting to be told.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn create(
        name: Option<&str>,
        mtu: u16,
        busy_poll: Duration,
    ) -> Result<Self, AfXdpError> {
        let queues = processors().clamp(1, MOST_QUEUES);
        let refused = match Self::open(name, mtu, busy_poll, queues).await {
            Err(error) if queues > 1 && !matches!(error, AfXdpError::Name(_)) => error,
            opened => return opened,
        };
        let since = Instant::now();
        let reader = loop {
            match Self::open(name, mtu, busy_poll, 1).await {
                // What several sockets have pinned is theirs for a moment after they are closed.
                Err(AfXdpError::Socket(error))
                    if error.is_shortage() && since.elapsed() < LEAVING =>
                {
                    sleep(RESPITE).await;
                }
                opened => break opened?,
            }
        };
        info!("the AF_XDP reader has one queue, because {queues} are not to be had: {refused}");
        Ok(reader)
    }

    async fn open(
        name: Option<&str>,
        mtu: u16,
        busy_poll: Duration,
        queues: u32,
    ) -> Result<Self, AfXdpError> {
        let namespace = far_namespace()?;
        let name = create_pair(name, mtu, queues, &namespace).await?;
        let index =
            if_nametoindex(name.as_str()).map_err(|error| AfXdpError::Pair(error.into()))?;
        let pair = Pair { index, namespace };
        silence(&name);
        offload::switch_off(&name).map_err(failed(&name, "its offloads"))?;
        let FarEnd {
            program,
            inbound,
            outbound,
        } = FarEnd::open(&pair.namespace, queues)?;
        links::bring_up(index)
            .await
            .map_err(failed(&name, "it up"))?;
        let sockets = Queues::register(inbound).map_err(AfXdpError::Register)?;
        debug!(device = name, queues, "the AF_XDP reader is open");
        let sender = Arc::new(Sender::new(outbound));
        let flusher = flush_on_demand(Arc::downgrade(&sender), Arc::clone(&sender.flusher));
        Ok(Self {
            queues: sockets,
            sender,
            _flusher: AbortOnDropHandle::new(tokio::spawn(flusher)),
            busy_poll,
            active: Instant::now(),
            name,
            index,
            _program: program,
            _pair: pair,
        })
    }

    /// Tries all of it in a namespace of its own, where nobody is concerned.
    pub fn probe() -> Result<(), AfXdpError> {
        let namespace = far_namespace()?;
        let near = VethEnd {
            name: "near0",
            mac: NEAR_MAC,
            mtu: LONGEST,
            queues: VethQueues::ONE,
        };
        namespace
            .enter_async(veth::create(near, far_end(1), &namespace))
            .map_err(AfXdpError::Pair)?;
        FarEnd::open(&namespace, 1).map(|_| ())
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What has come by each queue.
    pub fn received(&self) -> &Received {
        self.queues.received()
    }

    /// What has not, for want of frames to receive into.
    pub fn missed(&self) -> Arc<dyn CountMissed> {
        self.queues.missed()
    }
}

impl Reader for AfXdpReader {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whoever always finds packets must still let others have their turn.
        let turn = ready!(coop::poll_proceed(cx));
        if self.queues.are_empty() {
            if !self.busy_poll.is_zero() && self.active.elapsed() < self.busy_poll {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.queues.poll_filled(cx))?;
        }
        turn.made_progress();
        Poll::Ready(Ok(()))
    }

    fn receive(&mut self, budget: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        self.sender.collect();
        let received = self.queues.receive(budget, take);
        if received > 0 && !self.busy_poll.is_zero() {
            self.active = Instant::now();
        }
        Ok(received)
    }

    fn transmitter(&self) -> Arc<dyn Transmitter> {
        Arc::new(AfXdpTransmitter {
            sender: Arc::downgrade(&self.sender),
            dropped: Arc::clone(&self.sender.dropped),
        })
    }
}

struct AfXdpTransmitter {
    /// The reader's; it closes with the reader, whoever still has something to say.
    sender: Weak<Sender>,
    /// The sender's, and there still when that is gone.
    dropped: Arc<AtomicU64>,
}

impl Transmitter for AfXdpTransmitter {
    fn transmit(&self, packet: &[u8]) {
        let sent = match self.sender.upgrade() {
            Some(sender) => sender.send(packet),
            None => false,
        };
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::trace!(
                length = packet.len(),
                "the AF_XDP socket did not take a packet"
            );
        }
    }

    fn flush(&self) {
        if let Some(sender) = self.sender.upgrade() {
            sender.flush();
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The sending side, shared by all tasks that answer.
struct Sender {
    queue: Mutex<Queue>,
    socket: Arc<Socket>,
    /// Calls the task that flushes what nobody else does.
    flusher: Arc<Notify>,
    /// Packets that were not sent.
    dropped: Arc<AtomicU64>,
}

struct Queue {
    outbound: Outbound,
    /// Whether packets are being received, so that a flush follows.
    collecting: bool,
}

impl Sender {
    fn new(outbound: Outbound) -> Self {
        Self {
            socket: Arc::clone(outbound.socket()),
            queue: Mutex::new(Queue {
                outbound,
                collecting: false,
            }),
            flusher: Arc::default(),
            dropped: Arc::default(),
        }
    }

    /// Leaves what is sent from here on to the flush that comes.
    fn collect(&self) {
        self.with(|queue| queue.collecting = true);
    }

    /// Puts a packet into the ring and sees to it that it is flushed; false when there was no room.
    fn send(&self, packet: &[u8]) -> bool {
        let push = |queue: &mut Queue| (queue.outbound.push(packet), queue.collecting);
        let (mut pushed, collecting) = self.with(push);
        if !pushed {
            self.kick();
            (pushed, _) = self.with(push);
        }
        if pushed && !collecting {
            self.flusher.notify_one();
        }
        pushed
    }

    fn flush(&self) {
        self.with(|queue| queue.collecting = false);
        if !self.kick() {
            self.flusher.notify_one();
        }
    }

    /// Has the kernel send what is in the ring; false when it did not take all of it.
    fn kick(&self) -> bool {
        for _ in 0..KICKS {
            if self.with(|queue| queue.outbound.is_drained()) {
                return true;
            }
            match self.socket.kick() {
                Ok(()) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {}
                // A packet is out of the ring that was not sent, because the near end is down or has too many before it;
                // the next ones have still to be (`NET_XMIT_DROP` in `__xsk_generic_xmit`, Linux 5.15 to 6.18).
                Err(Errno::EBUSY) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::trace!("the kernel did not send a packet of the AF_XDP socket");
                }
                Err(error) => {
                    tracing::trace!(%error, "the AF_XDP socket sends nothing");
                    return true;
                }
            }
        }
        false
    }

    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        act(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Flushes what other tasks than the reader's own send, after all that are ready have had their turn: replies that come
/// together go together.
async fn flush_on_demand(sender: Weak<Sender>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        task::yield_now().await;
        while sender.upgrade().is_some_and(|sender| !sender.kick()) {
            sleep(RESPITE).await;
        }
    }
}

/// The two devices; deleted when dropped, and by the kernel when the process ends otherwise.
struct Pair {
    index: u32,
    namespace: Namespace,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Err(error) = namespace::complete(veth::delete(self.index)) {
            debug!(%error, "the reader device is left to the kernel to remove");
        }
    }
}

/// The far end of a pair, to be received from by so many queues.
const fn far_end(queues: u32) -> VethEnd<'static> {
    VethEnd {
        name: FAR_NAME,
        mac: FAR_MAC,
        mtu: LONGEST,
        queues: VethQueues {
            receive: queues,
            transmit: 1,
        },
    }
}

/// What is at the far end.
struct FarEnd {
    program: SocketProgram,
    /// By queue.
    inbound: Vec<Inbound>,
    outbound: Outbound,
}

impl FarEnd {
    /// Brings up the far end of a pair, and reads its queues.
    fn open(namespace: &Namespace, queues: u32) -> Result<Self, AfXdpError> {
        let bring_up = async {
            let link = links::find(FAR_NAME).await?;
            let Link { index, .. } = link.ok_or(io::ErrorKind::NotFound)?;
            links::bring_up(index).await?;
            Ok(index)
        };
        let index = namespace
            .enter_async(bring_up)
            .map_err(failed(FAR_NAME, "it up"))?;
        namespace
            .enter(|| Self::listen(index, queues))
            .map_err(AfXdpError::Namespace)?
    }

    fn listen(index: u32, queues: u32) -> Result<Self, AfXdpError> {
        let mut program = SocketProgram::load().map_err(AfXdpError::Program)?;
        let (first, outbound) = socket::bind(index, 0, Frames::of(0, queues))?;
        let mut inbound = vec![first];
        for queue in 1..queues {
            let (further, _) = socket::bind(index, queue, Frames::of(queue, queues))?;
            inbound.push(further);
        }
        for (queue, inbound) in (0..).zip(&inbound) {
            program
                .serve(queue, inbound.socket().as_fd())
                .map_err(AfXdpError::Program)?;
        }
        program.attach(index).map_err(AfXdpError::Program)?;
        Ok(Self {
            program,
            inbound,
            outbound,
        })
    }
}

/// A namespace whose kernel says nothing of its own.
fn far_namespace() -> Result<Namespace, AfXdpError> {
    let namespace = Namespace::new().map_err(AfXdpError::Namespace)?;
    let disabled = namespace
        .enter(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
        .map_err(AfXdpError::Namespace)?;
    if let Err(error) = disabled {
        debug!(%error, "IPv6 noise could not be switched off at the far end");
    }
    Ok(namespace)
}

/// Creates the pair and gives the name of its near end.
async fn create_pair(
    name: Option<&str>,
    mtu: u16,
    queues: u32,
    namespace: &Namespace,
) -> Result<String, AfXdpError> {
    let create = async |name: &str| {
        let near = VethEnd {
            name,
            mac: NEAR_MAC,
            mtu,
            queues: VethQueues {
                receive: 1,
                transmit: queues,
            },
        };
        veth::create(near, far_end(queues), namespace).await
    };
    let Some(name) = name else {
        for number in 0..NAMES {
            let name = format!("icept{number}");
            match create(&name).await {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(AfXdpError::Pair(error)),
            }
        }
        return Err(AfXdpError::Pair(io::ErrorKind::AlreadyExists.into()));
    };
    wait_until_free(name).await?;
    create(name).await.map_err(AfXdpError::Pair)?;
    Ok(name.to_owned())
}

/// Waits for a device of ours whose daemon was killed: the kernel removes it soon, though not at once.
async fn wait_until_free(name: &str) -> Result<(), NameError> {
    let since = Instant::now();
    loop {
        let taken = match check_name(name) {
            Err(NameError::Taken(name)) if since.elapsed() < LEAVING => NameError::Taken(name),
            other => return other,
        };
        let ours = LinkLayer::Ethernet { mac: NEAR_MAC };
        match links::find(name).await {
            Ok(Some(Link { link_layer, .. })) if link_layer == ours => {}
            // It may just have gone.
            Ok(None) => {}
            _ => return Err(taken),
        }
        sleep(RESPITE).await;
    }
}

/// Processors that are online, whether this process may use them or not: those who send use them.
fn processors() -> u32 {
    // SAFETY: a call that takes a number.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(online).unwrap_or(1)
}

fn failed(name: &str, what: &'static str) -> impl FnOnce(io::Error) -> AfXdpError {
    let name = name.to_owned();
    move |error| AfXdpError::Configure { name, what, error }
}

#[cfg(test)]
mod tests {
    use tokio::runtime;

    use super::*;
    use crate::net::testing::run;

    #[test]
    fn packets_that_the_kernel_does_not_send_are_counted_as_dropped_and_later_ones_go_out() {
        let namespace = Namespace::new().expect("this test makes a namespace: run it as root");
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap();
        let scenario = async {
            let reader = AfXdpReader::create(None, 1420, Duration::ZERO).await;
            let reader = reader.unwrap();
            let transmitter = reader.transmitter();
            let dropped_after = |count| {
                for _ in 0..count {
                    transmitter.transmit(&PACKET);
                }
                transmitter.flush();
                transmitter.dropped()
            };

            let sent = dropped_after(5);
            run(&format!("ip link set {} down", reader.name()));
            let down = dropped_after(7);
            run(&format!("ip link set {} up", reader.name()));
            (sent, down, dropped_after(5))
        };

        let dropped = namespace.enter(|| runtime.block_on(scenario)).unwrap();

        assert_eq!(dropped, (0, 7, 7));
    }

    /// An IPv4 header.
    const PACKET: [u8; 20] = [
        0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 30, 30, 30, 10, 8, 0, 2,
    ];
}
