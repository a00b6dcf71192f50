//! Listeners: ordinary sockets at which a service answers, besides the virtual addresses.

mod access;
mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub use self::access::Access;
use crate::rules::Transport;
use crate::service::Service;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address and port; an unspecified address takes those of all interfaces.
    pub address: SocketAddr,
    /// The transports; both unless one was named.
    pub transports: Vec<Transport>,
    /// Who is answered.
    pub access: Access,
}

/// Why a listener cannot be.
#[derive(Debug, Error)]
#[error("cannot listen at {transport} {address}: {source}; {hint}", hint = self.hint())]
pub struct ListenError {
    address: SocketAddr,
    transport: &'static str,
    source: io::Error,
}

/// Sockets that are bound, before anything is answered at them.
#[derive(Debug, Default)]
pub struct Listeners {
    bound: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    socket: Socket,
    address: SocketAddr,
    transport: Transport,
    access: Access,
}

impl Listeners {
    /// Binds all of `listens`, or none.
    pub fn bind(listens: &[Listen]) -> Result<Self, ListenError> {
        let mut bound = Vec::new();
        for Listen {
            address,
            transports,
            access,
        } in listens
        {
            for &transport in transports {
                let socket = socket(*address, transport).map_err(|source| ListenError {
                    address: *address,
                    transport: name(transport),
                    source,
                })?;
                bound.push(Bound {
                    socket,
                    address: *address,
                    transport,
                    access: access.clone(),
                });
            }
        }
        Ok(Self { bound })
    }

    /// Adds the UDP and TCP sockets that a service manager has passed on (sd_listen_fds(3)); who is answered at them
    /// follows from their addresses.
    pub fn inherit(&mut self) -> io::Result<()> {
        let mut passed = ListenFd::from_env();
        for index in 0..passed.len() {
            let socket = match passed.take_udp_socket(index) {
                Ok(Some(socket)) => Socket::from(socket),
                _ => match passed.take_tcp_listener(index)? {
                    Some(listener) => Socket::from(listener),
                    None => continue,
                },
            };
            socket.set_nonblocking(true)?;
            let address = socket
                .local_addr()?
                .as_socket()
                .ok_or_else(|| io::Error::other("a socket that was passed on has no IP address"))?;
            let transport = match getsockopt(&socket, sockopt::SockType)? {
                nix::sys::socket::SockType::Datagram => Transport::Udp,
                _ => Transport::Tcp,
            };
            self.bound.push(Bound {
                access: Access::usual(address.ip()),
                socket,
                address,
                transport,
            });
        }
        Ok(())
    }

    /// Where they are bound, with the port that the kernel chose for port 0.
    pub fn addresses(&self) -> Vec<(Transport, SocketAddr)> {
        let address = |bound: &Bound| {
            let local = bound.socket.local_addr().ok();
            local.and_then(|it| it.as_socket()).unwrap_or(bound.address)
        };
        let bound = self.bound.iter();
        bound.map(|it| (it.transport, address(it))).collect()
    }

    /// Has `service` answer at all of them until `stop`; at most `max_connections` TCP connections at a time.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn serve(
        self,
        service: &Arc<dyn Service>,
        max_connections: usize,
        stop: &CancellationToken,
    ) -> io::Result<TaskTracker> {
        let addresses = self.addresses();
        let tasks = TaskTracker::new();
        let connections = Arc::new(Semaphore::new(max_connections));
        for (bound, (_, address)) in self.bound.into_iter().zip(addresses) {
            let Bound {
                socket,
                transport,
                access,
                ..
            } = bound;
            info!("listening at {} {address}, for {access}", name(transport));
            let (service, stop) = (Arc::clone(service), stop.clone());
            match transport {
                Transport::Udp => {
                    let listener = udp::Listener::new(socket, address, access)?;
                    tasks.spawn(async move { listener.serve(&*service, &stop).await });
                }
                Transport::Tcp => {
                    let connections = Arc::clone(&connections);
                    let listener = tcp::Listener::new(socket, access, connections)?;
                    tasks.spawn(async move { listener.serve(&*service, &stop).await });
                }
            }
        }
        tasks.close();
        Ok(tasks)
    }
}

impl ListenError {
    fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has that port (`ss -lnptu` tells which); stop it, or choose another"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 take root or CAP_NET_BIND_SERVICE; choose a higher one"
            }
            io::ErrorKind::AddrNotAvailable => "no interface has that address",
            _ => "choose another address or port",
        }
    }
}

fn socket(address: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if transport == Transport::Tcp {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can be listened at both.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if transport == Transport::Tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for transport in &self.transports {
            write!(f, "{} ", name(*transport))?;
        }
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::service::{BoxStream, Flow, Responder};

    #[tokio::test]
    async fn a_datagram_is_answered_from_the_address_it_was_sent_to() {
        let (addresses, _stop) = serve("0.0.0.0:0", Access::usual(Ipv4Addr::UNSPECIFIED.into()));
        let port = addresses[0].1.port();
        for server in ["127.0.0.1", "127.0.0.2"] {
            let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let server: SocketAddr = format!("{server}:{port}").parse().unwrap();
            client.send_to(b"ping", server).await.unwrap();
            let mut reply = [0; 64];
            let (length, from) = client.recv_from(&mut reply).await.unwrap();
            assert_eq!(from, server);
            assert_eq!(&reply[..length], b"ping");
        }
    }

    #[tokio::test]
    async fn ipv6_is_answered_from_the_address_it_was_sent_to() {
        let (addresses, _stop) = serve("[::]:0", Access::usual("::".parse().unwrap()));
        let server: SocketAddr = format!("[::1]:{}", addresses[0].1.port()).parse().unwrap();
        let client = tokio::net::UdpSocket::bind("[::1]:0").await.unwrap();
        client.send_to(b"six", server).await.unwrap();
        let mut reply = [0; 64];
        let (length, from) = client.recv_from(&mut reply).await.unwrap();
        assert_eq!((&reply[..length], from), (&b"six"[..], server));
    }

    #[tokio::test]
    async fn a_connection_is_given_to_the_service() {
        let (addresses, _stop) = serve("127.0.0.1:0", Access::usual(Ipv4Addr::LOCALHOST.into()));
        let (_, address) = addresses[1];
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut reply = [0; 5];
        client.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"hello");
    }

    #[tokio::test]
    async fn who_is_not_admitted_is_not_answered() {
        let access = Access::only(vec!["192.0.2.0/24".parse().unwrap()]);
        let (addresses, _stop) = serve("127.0.0.1:0", access);
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"ping", addresses[0].1).await.unwrap();
        let mut reply = [0; 64];
        let waiting = client.recv_from(&mut reply);
        assert!(
            tokio::time::timeout(Duration::from_millis(50), waiting)
                .await
                .is_err()
        );
        let mut stream = TcpStream::connect(addresses[1].1).await.unwrap();
        assert_eq!(stream.read(&mut reply).await.unwrap_or(0), 0);
    }

    #[test]
    fn a_port_in_use_is_told_with_what_would_help() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = listen(&taken.local_addr().unwrap().to_string(), Access::any());
        let error = Listeners::bind(&[listen]).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot listen at udp 127.0.0.1:"),
            "{error}"
        );
        assert!(error.contains("another program has that port"), "{error}");
    }

    fn serve(address: &str, access: Access) -> (Vec<(Transport, SocketAddr)>, impl Drop) {
        let listeners = Listeners::bind(&[listen(address, access)]).unwrap();
        let addresses = listeners.addresses();
        let stop = CancellationToken::new();
        let service: Arc<dyn Service> = Arc::new(Repeat);
        listeners.serve(&service, 10, &stop).unwrap();
        (addresses, stop.drop_guard())
    }

    fn listen(address: &str, access: Access) -> Listen {
        Listen {
            address: address.parse().unwrap(),
            transports: vec![Transport::Udp, Transport::Tcp],
            access,
        }
    }

    /// Says what it hears.
    struct Repeat;

    impl Service for Repeat {
        fn datagram(&self, _: Flow, payload: &[u8], responder: Responder) {
            responder.send(payload);
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
