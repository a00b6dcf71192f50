//! Listeners: ordinary sockets at which a service answers, besides the virtual addresses.
//!
//! A change of what is listened at is made in two steps, so that it happens as a whole or not at all: [`Listeners::prepare`]
//! does all that can fail, and [`Listeners::apply`] the rest. A socket that is wanted before and after stays, with what is
//! queued at it; only who is answered there, and with which certificate, is replaced. Where another address of the same
//! port takes over, as `192.0.2.1` from `0.0.0.0`, both have it for a moment, and what is queued at the one that goes is
//! answered.

mod access;
mod certificates;
mod connections;
mod owner;
mod settings;
mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::access::{Access, Allow, AllowError};
use self::certificates::Certificates;
pub use self::certificates::Identity;
use self::connections::Connections;
use self::settings::{Settings, SharedSettings};
use self::tcp::ConnectionListener;
use self::udp::UdpListener;
use crate::dns::upstream::TlsFileError;
use crate::rules::Transport;
use crate::service::Service;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address and port; an unspecified address takes those of all interfaces.
    pub address: SocketAddr,
    /// What is spoken there.
    pub speaks: Speaks,
    /// Who is answered; empty for those whom [`Access::at`] admits by the address alone.
    pub allow: Vec<Allow>,
    /// Whether other processes of the same user may listen there as well (`SO_REUSEPORT`). Over TCP the kernel remembers
    /// for as long as the port is in use that they once could.
    pub reuse_port: bool,
}

/// What a listener speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// DNS in plain text over these transports, each once.
    Plain(Vec<Transport>),
    /// DNS over TLS (RFC 7858) with this certificate.
    Tls(Identity),
}

/// Why there cannot be a listener.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The system refuses the address.
    #[error("cannot listen at {place}: {source}; {}", hint(place.address, source, owner.as_deref()))]
    Bind {
        /// Where.
        place: Place,
        /// Why.
        source: io::Error,
        /// The program that has the port.
        owner: Option<String>,
    },
    /// A socket of ours is in the way.
    #[error(
        "cannot listen at {place}: this daemon has {own} itself, with a socket that another user made, and the system does \
         not let both be there even for a moment; restart the daemon, or choose another port"
    )]
    Own {
        /// Where.
        place: Place,
        /// What we listen at.
        own: Place,
    },
    /// Another of the places that are wanted is in the way.
    #[error(
        "cannot listen at {place} beside {other}: the system lets one daemon have both only with reuse_port = true for \
         each; say so, or leave out one"
    )]
    Beside {
        /// Where.
        place: Place,
        /// Where else.
        other: Place,
    },
    /// Its certificate cannot be used.
    #[error("cannot listen at tls://{address}: {source}")]
    Certificate {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: TlsFileError,
    },
    /// A service manager has passed on something else.
    #[error(
        "file {number} that the service manager has passed on (LISTEN_FDS) is no UDP socket and no listening TCP socket \
         of IPv4 or IPv6; look at the ListenStream= and ListenDatagram= of the socket unit"
    )]
    Inherited {
        /// Its number.
        number: usize,
    },
}

/// A transport at an address and port: what there can be one socket for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address and port.
    pub address: SocketAddr,
    /// The transport.
    pub transport: Transport,
}

/// Sockets that a service manager has passed on (sd_listen_fds(3)).
#[derive(Debug, Default)]
pub struct Inherited(Vec<(Place, Socket)>);

/// What is listened at.
pub struct Listeners {
    connections: Arc<Connections>,
    /// Where TLS handshakes are made.
    handshakes: Handle,
    running: Vec<Running>,
}

/// A change of what is listened at, which can be made or dropped.
pub struct Change(Vec<Step>);

/// One listener's state at one moment; all counters count from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerState {
    /// Its URL, such as `udp://127.0.0.1:53`.
    pub url: String,
    /// Who is answered, in words.
    pub clients: String,
    /// Whether a service manager has passed the socket on.
    pub is_inherited: bool,
    /// Datagrams or connections that came.
    pub received: u64,
    /// Those of clients that are not admitted.
    pub refused: u64,
    /// Connections that ended in the TLS handshake.
    pub failed_handshakes: u64,
    /// Connections for which another, idle for longest, was closed because there were too many.
    pub evicted: u64,
    /// Replies over UDP that the kernel did not take.
    pub unsent: u64,
}

struct Running {
    place: Place,
    is_inherited: bool,
    /// Another handle of the socket, until it stops.
    socket: Option<Socket>,
    settings: Arc<SharedSettings>,
    stop: CancellationToken,
}

/// What becomes of one place.
enum Step {
    /// Its socket stays; whether other processes may listen there is another question where that is said.
    Keep(Place, Settings, Option<bool>),
    /// It is listened at from here on.
    Start(Start),
}

/// A listener whose socket is bound and known to the runtime, and at which nothing is taken yet.
struct Start {
    place: Place,
    is_inherited: bool,
    socket: Socket,
    settings: Arc<SharedSettings>,
    listener: Listener,
}

enum Listener {
    Datagrams(UdpListener),
    Connections(ConnectionListener),
}

/// The certificates in use, to be read again where their files have changed.
pub struct CertificateFiles(Vec<(String, Arc<Certificates>)>);

impl Listeners {
    /// None yet; of all together, `max_connections` will be open at most. TLS handshakes, which take a thousand times as
    /// long as a query, are made on the runtime of `handshakes`.
    pub fn new(max_connections: usize, handshakes: Handle) -> Self {
        Self {
            connections: Connections::new(max_connections),
            handshakes,
            running: Vec::new(),
        }
    }

    /// Has `max_connections` be open at most from here on, of all listeners together. Those beyond it stay until others
    /// come, which take the place of those that are idle for longest.
    pub fn bound(&self, max_connections: usize) {
        self.connections.bound(max_connections);
    }

    /// Does all that can fail about listening at `listens`, and at the sockets of `inherited`, and nowhere else but at
    /// sockets inherited before. An inherited socket at one of the places of `listens` is used for it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn prepare(&self, listens: &[Listen], inherited: Inherited) -> Result<Change, ListenError> {
        let Inherited(mut inherited) = inherited;
        let wanted = self.wanted(listens, &inherited);
        let mut steps = Vec::new();
        for listen in listens {
            for place in listen.places() {
                let running = self.running.iter().find(|it| it.place == place);
                let settings = listen.settings(running)?;
                if running.is_some() {
                    steps.push(Step::Keep(place, settings, Some(listen.reuse_port)));
                    continue;
                }
                let passed_on = inherited.iter().position(|(at, _)| *at == place);
                let (socket, is_inherited) = match passed_on {
                    Some(index) => (inherited.swap_remove(index).1, true),
                    None => (self.bind(place, listen.reuse_port, &wanted)?, false),
                };
                let start = self.start(place, socket, settings, is_inherited);
                steps.push(Step::Start(start.map_err(|error| place.error(error))?));
            }
        }
        for (place, socket) in inherited {
            let start = self.start(place, socket, place.usual(), true);
            steps.push(Step::Start(start.map_err(|error| place.error(error))?));
        }
        for running in self.running.iter().filter(|it| it.is_inherited) {
            let is_wanted = steps.iter().any(|step| step.place() == running.place);
            if !is_wanted {
                steps.push(Step::Keep(running.place, running.place.usual(), None));
            }
        }
        Ok(Change(steps))
    }

    /// Makes `change`, which was prepared for what runs now; `service` answers at what begins. Connections of a listener that
    /// ends go on until they are done.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn apply(&mut self, change: Change, service: &Arc<dyn Service>) {
        let Change(steps) = change;
        self.running.retain(|running| {
            let stays = steps.iter().any(|step| step.place() == running.place);
            if !stays {
                info!("no longer listening at {}", running.url());
                running.stop.cancel();
            }
            stays
        });
        for step in steps {
            match step {
                Step::Keep(place, settings, reuse_port) => {
                    if let Some(running) = self.running.iter().find(|it| it.place == place) {
                        running.settings.replace(settings);
                        running.share(reuse_port);
                    }
                }
                Step::Start(start) => self.running.push(start.run(service)),
            }
        }
    }

    /// Takes nothing new; connections go on until they are done.
    pub fn stop(&mut self) {
        for running in &mut self.running {
            running.stop.cancel();
            running.socket = None;
        }
    }

    /// How each listener does.
    pub fn states(&self) -> Vec<ListenerState> {
        self.running.iter().map(Running::state).collect()
    }

    /// Connections that are open, all listeners together.
    pub fn open_connections(&self) -> usize {
        self.connections.count()
    }

    /// The certificates in use.
    pub fn certificate_files(&self) -> CertificateFiles {
        let certificates = self.running.iter().filter_map(|running| {
            let settings = running.settings.load();
            Some((running.url(), settings.certificates.clone()?))
        });
        CertificateFiles(certificates.collect())
    }

    /// All places that there will be sockets at, and whether each lets others in beside it.
    fn wanted(&self, listens: &[Listen], inherited: &[(Place, Socket)]) -> Vec<(Place, bool)> {
        let listens = listens.iter();
        let mut wanted: Vec<(Place, bool)> = listens
            .flat_map(|listen| listen.places().map(|place| (place, listen.reuse_port)))
            .collect();
        let kept = self.running.iter().filter(|it| it.is_inherited);
        let kept = kept.filter_map(|it| Some((it.place, it.socket.as_ref()?)));
        for (place, socket) in kept.chain(inherited.iter().map(|(place, it)| (*place, it))) {
            if !wanted.iter().any(|(at, _)| *at == place) {
                wanted.push((place, socket.reuse_port().unwrap_or_default()));
            }
        }
        wanted
    }

    /// A socket at `place`, one of those `wanted`. Where sockets of ours are in the way at another address, they let it in;
    /// it gets what is sent to its address from here on, or they do until they are gone.
    fn bind(
        &self,
        place: Place,
        reuse_port: bool,
        wanted: &[(Place, bool)],
    ) -> Result<Socket, ListenError> {
        let error = match place.bind(reuse_port) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        let mut others = wanted.iter().filter(|(at, _)| *at != place);
        let other = others.find(|(at, lets_in)| at.overlaps(place) && !(*lets_in && reuse_port));
        if let Some((other, _)) = other
            && error.kind() == io::ErrorKind::AddrInUse
        {
            return Err(ListenError::Beside {
                place,
                other: *other,
            });
        }
        let in_the_way = self.running.iter().filter(|it| it.place.overlaps(place));
        let in_the_way: Vec<&Running> = in_the_way.collect();
        let Some(own) = in_the_way.first().map(|it| it.place) else {
            return Err(place.error(error));
        };
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(place.error(error));
        }
        let _doors = in_the_way
            .iter()
            .filter_map(|it| it.socket.as_ref())
            .map(OpenDoor::of)
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| place.error(error))?;
        let bound = place.bind(true).and_then(|socket| {
            socket.set_reuse_port(reuse_port)?;
            Ok(socket)
        });
        bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::Own { place, own },
            _ => place.error(error),
        })
    }

    fn start(
        &self,
        place: Place,
        socket: Socket,
        settings: Settings,
        is_inherited: bool,
    ) -> io::Result<Start> {
        let settings = Arc::new(SharedSettings::new(settings));
        let shared = Arc::clone(&settings);
        let local = local_address(&socket)?;
        let handle = socket.try_clone()?;
        let listener = match place.transport {
            Transport::Udp => Listener::Datagrams(UdpListener::new(socket, local, shared)?),
            Transport::Tcp => {
                let connections = Arc::clone(&self.connections);
                let handshakes = self.handshakes.clone();
                let listener = ConnectionListener::new(socket, shared, connections, handshakes);
                Listener::Connections(listener?)
            }
        };
        Ok(Start {
            place: Place {
                address: local,
                ..place
            },
            is_inherited,
            socket: handle,
            settings,
            listener,
        })
    }
}

impl Step {
    fn place(&self) -> Place {
        match self {
            Self::Keep(place, ..) => *place,
            Self::Start(start) => start.place,
        }
    }
}

impl Start {
    fn run(self, service: &Arc<dyn Service>) -> Running {
        let stop = CancellationToken::new();
        let (service, stopped) = (Arc::clone(service), stop.clone());
        match self.listener {
            Listener::Datagrams(listener) => tokio::spawn(listener.serve(service, stopped)),
            Listener::Connections(listener) => tokio::spawn(listener.serve(service, stopped)),
        };
        let running = Running {
            place: self.place,
            is_inherited: self.is_inherited,
            socket: Some(self.socket),
            settings: self.settings,
            stop,
        };
        let ListenerState { url, clients, .. } = running.state();
        info!("listening at {url}, for {clients}");
        running
    }
}

impl Running {
    /// Lets other processes listen there as well or not, where that is said.
    fn share(&self, reuse_port: Option<bool>) {
        if let Some(reuse_port) = reuse_port
            && let Some(socket) = &self.socket
            && let Err(error) = socket.set_reuse_port(reuse_port)
        {
            warn!(
                "{} is shared with other processes as before: {error}",
                self.url()
            );
        }
    }

    fn url(&self) -> String {
        match self.settings.load().certificates {
            Some(_) => format!("tls://{}", self.place.address),
            None => self.place.to_string(),
        }
    }

    fn state(&self) -> ListenerState {
        let tally = &self.settings.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ListenerState {
            url: self.url(),
            clients: self.settings.load().access.to_string(),
            is_inherited: self.is_inherited,
            received: read(&tally.received),
            refused: read(&tally.refused),
            failed_handshakes: read(&tally.failed_handshakes),
            evicted: read(&tally.evicted),
            unsent: read(&tally.unsent),
        }
    }
}

/// Lets sockets of the same user in beside this one, until it is dropped.
struct OpenDoor<'a> {
    socket: &'a Socket,
    was_open: bool,
}

impl<'a> OpenDoor<'a> {
    fn of(socket: &'a Socket) -> io::Result<Self> {
        let was_open = socket.reuse_port()?;
        socket.set_reuse_port(true)?;
        Ok(Self { socket, was_open })
    }
}

impl Drop for OpenDoor<'_> {
    fn drop(&mut self) {
        // It could be opened, so that it can be closed.
        let _ = self.socket.set_reuse_port(self.was_open);
    }
}

impl CertificateFiles {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads what has changed. What was read before stays in use where a file is not usable, and the log says so. Blocks.
    pub fn read_again(self) {
        for (url, certificates) in self.0 {
            match certificates.refresh() {
                Ok(true) => info!("{url} has a new certificate"),
                Ok(false) => {}
                Err(error) => warn!("{url} keeps its certificate: {error}"),
            }
        }
    }
}

impl Inherited {
    /// Takes the sockets that a service manager has passed on to this process, and the variables that tell of them. To be
    /// called while the process has one thread.
    ///
    /// Fails where one of them is of another kind.
    pub fn take() -> Result<Self, ListenError> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let socket = match passed.take_udp_socket(index) {
                Ok(Some(socket)) => Some((Transport::Udp, Socket::from(socket))),
                Ok(None) | Err(_) => match passed.take_tcp_listener(index) {
                    Ok(Some(listener)) => Some((Transport::Tcp, Socket::from(listener))),
                    Ok(None) | Err(_) => None,
                },
            };
            let found = socket.and_then(|(transport, socket)| passed_on(transport, socket));
            sockets.push(found.ok_or(ListenError::Inherited { number: index + 3 })?);
        }
        Ok(Self(sockets))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Listen {
    /// The sockets that it takes.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let transports = match &self.speaks {
            Speaks::Plain(transports) => transports.as_slice(),
            Speaks::Tls(_) => &[Transport::Tcp],
        };
        transports.iter().map(|&transport| Place {
            address: self.address,
            transport,
        })
    }

    /// What would hinder it here, found by binding for a moment what is bound to nothing else yet.
    pub fn inspect(&self) -> Result<(), ListenError> {
        self.settings(None)?;
        for place in self.places() {
            place
                .claim(self.reuse_port)
                .map_err(|error| place.error(error))?;
        }
        Ok(())
    }

    fn settings(&self, running: Option<&Running>) -> Result<Settings, ListenError> {
        let certificates = match &self.speaks {
            Speaks::Plain(_) => None,
            Speaks::Tls(identity) => Some(certificates(identity, running).map_err(|source| {
                ListenError::Certificate {
                    address: self.address,
                    source,
                }
            })?),
        };
        Ok(Settings {
            access: Access::at(self.address.ip(), &self.allow),
            certificates,
        })
    }
}

impl ListenError {
    /// Whether it is made by the process `pid`, which has the port.
    pub(crate) fn is_made_by(&self, pid: u32) -> bool {
        let Self::Bind { place, source, .. } = self else {
            return false;
        };
        source.kind() == io::ErrorKind::AddrInUse && owner::has(pid, place.address, place.transport)
    }
}

impl Place {
    /// Whether the system has both only where each of them allows it.
    fn overlaps(self, other: Self) -> bool {
        let (ip, another) = (self.address.ip(), other.address.ip());
        let is_same = ip == another
            || ip.is_ipv4() == another.is_ipv4()
                && (ip.is_unspecified() || another.is_unspecified());
        is_same && self.transport == other.transport && self.address.port() == other.address.port()
    }

    fn usual(self) -> Settings {
        Settings {
            access: Access::at(self.address.ip(), &[]),
            certificates: None,
        }
    }

    fn bind(self, reuse_port: bool) -> io::Result<Socket> {
        let socket = self.claim(reuse_port)?;
        if self.transport == Transport::Tcp {
            socket.listen(BACKLOG)?;
        }
        Ok(socket)
    }

    /// A socket that has the address and at which nothing is taken yet.
    fn claim(self, reuse_port: bool) -> io::Result<Socket> {
        let (kind, protocol) = match self.transport {
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
        };
        let socket = Socket::new(Domain::for_address(self.address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if self.transport == Transport::Tcp {
            // Connections of a daemon that has ended linger at the port.
            socket.set_reuse_address(true)?;
        }
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        if self.address.is_ipv6() {
            // So that 0.0.0.0 and [::] can be listened at both.
            socket.set_only_v6(true)?;
        }
        socket.bind(&self.address.into())?;
        Ok(socket)
    }

    fn error(self, source: io::Error) -> ListenError {
        let is_taken = source.kind() == io::ErrorKind::AddrInUse;
        ListenError::Bind {
            place: self,
            source,
            owner: is_taken
                .then(|| owner::of(self.address, self.transport))
                .flatten(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// The certificate that is in use already where it is from the same files.
fn certificates(
    identity: &Identity,
    running: Option<&Running>,
) -> Result<Arc<Certificates>, TlsFileError> {
    let in_use = running.and_then(|running| running.settings.load().certificates.clone());
    match in_use {
        Some(certificates) if certificates.identity() == identity => Ok(certificates),
        _ => Certificates::load(identity).map(Arc::new),
    }
}

fn passed_on(transport: Transport, socket: Socket) -> Option<(Place, Socket)> {
    let address = local_address(&socket).ok()?;
    if transport == Transport::Tcp && !SockRef::from(&socket).is_listener().ok()? {
        return None;
    }
    socket.set_nonblocking(true).ok()?;
    Some((Place { address, transport }, socket))
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?.as_socket();
    address.ok_or_else(|| io::Error::other("the socket has no IP address"))
}

fn hint(address: SocketAddr, error: &io::Error, owner: Option<&str>) -> String {
    match (error.kind(), owner) {
        (io::ErrorKind::AddrInUse, Some(owner)) if owner.starts_with("systemd-resolve") => format!(
            "{owner} has that port; DNSStubListener=no in /etc/systemd/resolved.conf frees it, or choose another address"
        ),
        (io::ErrorKind::AddrInUse, Some(owner)) => {
            format!("{owner} has that port; stop it, or choose another address or port")
        }
        (io::ErrorKind::AddrInUse, None) => {
            "another program has that port (`sudo ss -lnptu` tells which; often it is systemd-resolved or dnsmasq); stop \
             it, or choose another address or port"
                .to_owned()
        }
        (io::ErrorKind::PermissionDenied, _) if address.port() < 1024 => {
            "ports below 1024 take root or CAP_NET_BIND_SERVICE; choose a higher one, or have a service manager pass \
             the socket on"
                .to_owned()
        }
        (io::ErrorKind::AddrNotAvailable, _) => "no interface here has that address".to_owned(),
        _ => "choose another address or port".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::net::testing::{NoProgramStarts, free_port};
    use crate::service::{BoxStream, Flow, Responder};

    #[tokio::test]
    async fn a_datagram_is_answered_from_the_address_it_was_sent_to() {
        let listeners = serve(&[listen("0.0.0.0:0", "")]);
        let port = address(&listeners, Transport::Udp).port();
        for server in ["127.0.0.1", "127.0.0.2"] {
            let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let server: SocketAddr = format!("{server}:{port}").parse().unwrap();
            client.send_to(b"ping", server).await.unwrap();
            let mut reply = [0; 64];
            let (length, from) = client.recv_from(&mut reply).await.unwrap();
            assert_eq!((&reply[..length], from), (&b"ping"[..], server));
        }
    }

    #[tokio::test]
    async fn ipv6_is_answered_from_the_address_it_was_sent_to() {
        let listeners = serve(&[listen("[::]:0", "")]);
        let port = address(&listeners, Transport::Udp).port();
        let server: SocketAddr = format!("[::1]:{port}").parse().unwrap();
        let client = tokio::net::UdpSocket::bind("[::1]:0").await.unwrap();
        client.send_to(b"six", server).await.unwrap();
        let mut reply = [0; 64];
        let (length, from) = client.recv_from(&mut reply).await.unwrap();
        assert_eq!((&reply[..length], from), (&b"six"[..], server));
    }

    #[tokio::test]
    async fn more_datagrams_than_one_call_takes_are_all_answered() {
        let listeners = serve(&[listen("127.0.0.1:0", "")]);
        let server = address(&listeners, Transport::Udp);
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for number in 0..100_u8 {
            client.send_to(&[number], server).await.unwrap();
        }
        for number in 0..100 {
            let mut reply = [0; 64];
            let (length, _) = client.recv_from(&mut reply).await.unwrap();
            assert_eq!(reply[..length], [number]);
        }
        assert_eq!(listeners.states()[0].received, 100);
    }

    #[tokio::test]
    async fn a_connection_is_given_to_the_service() {
        let listeners = serve(&[listen("127.0.0.1:0", "")]);
        let server = address(&listeners, Transport::Tcp);
        assert_eq!(said_back(server).await, b"hello");
    }

    #[tokio::test]
    async fn who_is_not_admitted_is_refused_and_counted() {
        let listeners = serve(&[listen("127.0.0.1:0", "192.0.2.0/24")]);
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = address(&listeners, Transport::Udp);
        client.send_to(b"ping", server).await.unwrap();
        let mut reply = [0; 64];
        let length = client.recv(&mut reply).await.unwrap();
        assert_eq!(&reply[..length], b"no");

        let server = address(&listeners, Transport::Tcp);
        let mut stream = TcpStream::connect(server).await.unwrap();
        assert_eq!(stream.read(&mut reply).await.unwrap_or(0), 0);
        let refused: Vec<u64> = listeners.states().iter().map(|it| it.refused).collect();
        assert_eq!(refused, [1, 1]);
    }

    #[tokio::test]
    async fn a_port_in_use_is_told_with_what_would_help() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listens = [listen(&taken.local_addr().unwrap().to_string(), "")];
        let error = none().prepare(&listens, Inherited::default());
        let error = error.err().unwrap().to_string();
        assert!(
            error.starts_with("cannot listen at udp://127.0.0.1:"),
            "{error}"
        );
        assert!(error.contains("has that port"), "{error}");
    }

    #[tokio::test]
    async fn where_one_cannot_be_bound_none_is() {
        let _closing_frees = NoProgramStarts::wait();
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let free = free_address();
        let listens = [free, taken.local_addr().unwrap()].map(|at| listen(&at.to_string(), ""));
        assert!(none().prepare(&listens, Inherited::default()).is_err());
        UdpSocket::bind(free).unwrap();
    }

    #[tokio::test]
    async fn a_change_keeps_the_sockets_that_are_wanted_still_with_their_new_settings() {
        let _closing_frees = NoProgramStarts::wait();
        let mut listeners = none();
        let [kept, ended, begun] = [free_address(), free_address(), free_address()];
        let plain = |address: SocketAddr, allow| listen(&address.to_string(), allow);
        let change = listeners.prepare(&[plain(kept, ""), plain(ended, "")], Inherited::default());
        listeners.apply(change.unwrap(), &repeat());
        assert_eq!(said_back(kept).await, b"hello");

        let wanted = [plain(kept, "192.0.2.0/24"), plain(begun, "")];
        let change = listeners.prepare(&wanted, Inherited::default());
        listeners.apply(change.unwrap(), &repeat());

        assert_eq!(said_back(begun).await, b"hello");
        assert_eq!(said_back(kept).await, b"");
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(ended).await.is_err());
        let states = listeners.states();
        let kept = states.iter().find(|it| it.url == format!("tcp://{kept}"));
        assert_eq!(kept.map(|it| (it.received, it.refused)), Some((2, 1)));
    }

    #[tokio::test]
    async fn another_address_takes_a_port_over_and_what_was_queued_is_answered() {
        let _closing_frees = NoProgramStarts::wait();
        let port = free_address().port();
        let [any, one] = ["0.0.0.0", "127.0.0.1"].map(|ip| format!("{ip}:{port}"));
        let server: SocketAddr = one.parse().unwrap();
        let mut listeners = none();
        let change = listeners.prepare(&[listen(&any, "")], Inherited::default());
        listeners.apply(change.unwrap(), &repeat());
        for wanted in [&one, &any, &one] {
            let early = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let late = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let waiting = std::net::TcpStream::connect(server).unwrap();
            early.send_to(b"early", server).await.unwrap();

            let change = listeners.prepare(&[listen(wanted, "")], Inherited::default());
            late.send_to(b"late", server).await.unwrap();
            listeners.apply(change.unwrap(), &repeat());

            for (client, said) in [(&early, &b"early"[..]), (&late, b"late")] {
                let mut reply = [0; 64];
                let length = client.recv(&mut reply).await.unwrap();
                assert_eq!(&reply[..length], said);
            }
            waiting.set_nonblocking(true).unwrap();
            let waiting = TcpStream::from_std(waiting).unwrap();
            assert_eq!(said_back_on(waiting).await, b"hello");
            assert_eq!(said_back(server).await, b"hello");
            let urls: Vec<String> = listeners.states().into_iter().map(|it| it.url).collect();
            assert_eq!(urls, [format!("udp://{wanted}"), format!("tcp://{wanted}")]);
        }
    }

    #[tokio::test]
    async fn a_change_takes_no_two_addresses_of_a_port_that_a_start_refuses() {
        let _closing_frees = NoProgramStarts::wait();
        let port = free_address().port();
        let [any, one] = ["0.0.0.0", "127.0.0.1"].map(|ip| format!("{ip}:{port}"));
        let both = |reuse_port| {
            [&any, &one].map(|address| Listen {
                reuse_port,
                ..listen(address, "")
            })
        };
        let mut running = none();
        let change = running.prepare(&[listen(&any, "")], Inherited::default());
        running.apply(change.unwrap(), &repeat());

        let refused = running.prepare(&both(false), Inherited::default());
        let refused = refused.err().unwrap().to_string();
        assert!(
            refused.starts_with(&format!("cannot listen at udp://{one} beside udp://{any}:")),
            "{refused}"
        );
        let change = running.prepare(&both(true), Inherited::default());
        running.apply(change.unwrap(), &repeat());
        assert_eq!(running.states().len(), 4);

        drop(running);
        let at_start = none().prepare(&both(false), Inherited::default());
        assert!(at_start.is_err());
    }

    #[tokio::test]
    async fn a_change_of_addresses_that_is_dropped_leaves_the_port_to_us_alone() {
        let _closing_frees = NoProgramStarts::wait();
        let port = free_address().port();
        let [any, one] = ["0.0.0.0", "127.0.0.1"].map(|ip| format!("{ip}:{port}"));
        let mut listeners = none();
        let change = listeners.prepare(&[listen(&any, "")], Inherited::default());
        listeners.apply(change.unwrap(), &repeat());

        drop(
            listeners
                .prepare(&[listen(&one, "")], Inherited::default())
                .unwrap(),
        );

        assert_eq!(said_back(one.parse().unwrap()).await, b"hello");
        let address = one.parse().unwrap();
        let transport = Transport::Udp;
        assert!(Place { address, transport }.bind(true).is_err());
    }

    #[tokio::test]
    async fn whether_others_may_listen_there_as_well_can_change() {
        let _closing_frees = NoProgramStarts::wait();
        let address = free_address();
        let transport = Transport::Udp;
        let place = Place { address, transport };
        let shared = |reuse_port| Listen {
            reuse_port,
            ..listen(&address.to_string(), "")
        };
        let mut listeners = none();
        for reuse_port in [false, true, false] {
            let change = listeners.prepare(&[shared(reuse_port)], Inherited::default());
            listeners.apply(change.unwrap(), &repeat());
            assert_eq!(place.bind(true).is_ok(), reuse_port);
        }
    }

    #[tokio::test]
    async fn a_change_that_is_dropped_leaves_everything_as_it_was() {
        let _closing_frees = NoProgramStarts::wait();
        let mut listeners = none();
        let [kept, other] = [free_address(), free_address()];
        let wanted = [listen(&kept.to_string(), "")];
        let change = listeners.prepare(&wanted, Inherited::default());
        listeners.apply(change.unwrap(), &repeat());

        let wanted = [listen(&other.to_string(), "")];
        drop(listeners.prepare(&wanted, Inherited::default()).unwrap());

        assert_eq!(said_back(kept).await, b"hello");
        assert!(TcpStream::connect(other).await.is_err());
    }

    #[tokio::test]
    async fn an_inherited_socket_serves_the_listener_at_its_place_and_others_serve_by_themselves() {
        let _closing_frees = NoProgramStarts::wait();
        let [wanted, alone] = [free_address(), free_address()];
        let inherited = [wanted, alone].map(|address| {
            let transport = Transport::Tcp;
            let place = Place { address, transport };
            (place, place.bind(false).unwrap())
        });
        let mut listeners = none();
        let listens = [listen(&wanted.to_string(), "192.0.2.0/24")];
        let change = listeners.prepare(&listens, Inherited(inherited.into()));
        listeners.apply(change.unwrap(), &repeat());

        assert_eq!(said_back(wanted).await, b"");
        assert_eq!(said_back(alone).await, b"hello");
        let change = listeners.prepare(&[], Inherited::default());
        listeners.apply(change.unwrap(), &repeat());
        assert_eq!(said_back(wanted).await, b"hello");
        assert_eq!(said_back(alone).await, b"hello");
    }

    #[tokio::test]
    async fn once_stopped_nothing_new_is_taken() {
        let _closing_frees = NoProgramStarts::wait();
        let mut listeners = serve(&[listen("127.0.0.1:0", "")]);
        let server = address(&listeners, Transport::Tcp);
        listeners.stop();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(TcpStream::connect(server).await.is_err());
    }

    fn serve(listens: &[Listen]) -> Listeners {
        let mut listeners = none();
        let change = listeners.prepare(listens, Inherited::default()).unwrap();
        listeners.apply(change, &repeat());
        listeners
    }

    fn none() -> Listeners {
        Listeners::new(10, Handle::current())
    }

    fn repeat() -> Arc<dyn Service> {
        Arc::new(Repeat)
    }

    fn listen(address: &str, allow: &str) -> Listen {
        Listen {
            address: address.parse().unwrap(),
            speaks: Speaks::Plain(vec![Transport::Udp, Transport::Tcp]),
            allow: allow
                .split_whitespace()
                .map(|word| word.parse().unwrap())
                .collect(),
            reuse_port: false,
        }
    }

    fn address(listeners: &Listeners, transport: Transport) -> SocketAddr {
        let mut running = listeners.running.iter();
        let found = running.find(|it| it.place.transport == transport);
        found.unwrap().place.address
    }

    fn free_address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], free_port()))
    }

    async fn said_back(server: SocketAddr) -> Vec<u8> {
        said_back_on(TcpStream::connect(server).await.unwrap()).await
    }

    async fn said_back_on(mut client: TcpStream) -> Vec<u8> {
        let mut reply = Vec::new();
        if client.write_all(b"hello").await.is_ok() {
            // A reset says as much as an end.
            let _ = client.read_to_end(&mut reply).await;
        }
        reply
    }

    /// Says what it hears.
    struct Repeat;

    impl Service for Repeat {
        fn datagram(&self, _: Flow, payload: &[u8], responder: Responder) {
            responder.send(payload);
        }

        fn refuse(&self, _: &[u8], responder: &Responder) {
            responder.send(b"no");
        }

        fn stream(&self, _: Flow, mut stream: BoxStream) {
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                let length = stream.read(&mut buffer).await.unwrap();
                stream.write_all(&buffer[..length]).await.unwrap();
            });
        }
    }
}
