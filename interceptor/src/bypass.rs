//! How the daemon's own traffic avoids the tunnel and its own taps: a socket mark, a device, or both.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Makes sockets whose traffic bypasses the tunnel.
#[derive(Clone, Debug)]
pub struct Bypass {
    mark: Arc<AtomicU32>,
    device: Option<Arc<str>>,
    /// The mark of traffic that takes the host's routes and must not be taken by our rules; 0 for none.
    unbypassed: u32,
    /// Leave to have one more UDP socket open, so that descriptors remain for everything else.
    sockets: Arc<Semaphore>,
}

/// A UDP socket that bypasses the tunnel.
#[derive(Debug)]
pub struct BypassSocket {
    socket: UdpSocket,
    _permit: OwnedSemaphorePermit,
}

/// Why upstream traffic cannot bypass the tunnel as it is to.
#[derive(Debug, Error)]
pub enum BypassError {
    /// There are no sockets.
    #[error("cannot open a socket")]
    Socket(#[source] io::Error),
    /// The process may not set marks.
    #[error(
        "bypass.mark: marking upstream traffic with {0:#x} takes CAP_NET_ADMIN; run with it, or leave the mark at \"auto\", \
         which is none where nothing is intercepted"
    )]
    Mark(u32),
    /// The device is not there, or not for this process.
    #[error(
        "bypass.device: upstream traffic cannot be bound to {0}: {1}; name a device that is there"
    )]
    Device(String, #[source] io::Error),
}

impl Bypass {
    /// A bypass by `mark` (`SO_MARK`; 0 sets none) and by `device` (`SO_BINDTODEVICE`), where given.
    pub fn new(mark: u32, device: Option<&str>) -> Self {
        Self {
            mark: Arc::new(AtomicU32::new(mark)),
            device: device.map(Arc::from),
            unbypassed: 0,
            sockets: Arc::new(Semaphore::new(most_sockets())),
        }
    }

    /// The same, and `mark` for what does not bypass anything ([`Bypass::through`]).
    #[must_use]
    pub fn with_unbypassed_mark(mut self, mark: u32) -> Self {
        self.unbypassed = mark;
        self
    }

    /// Makes sockets whose traffic takes the host's routes as any program's does, or `device` where one is given.
    #[must_use]
    pub fn through(&self, device: Option<&str>) -> Self {
        Self {
            mark: Arc::new(AtomicU32::new(self.unbypassed)),
            device: device.map(Arc::from),
            unbypassed: self.unbypassed,
            sockets: Arc::clone(&self.sockets),
        }
    }

    /// Whether this process may give its sockets a mark (`CAP_NET_ADMIN`; before Linux 5.17 nothing else suffices).
    pub fn may_mark() -> bool {
        Socket::new(Domain::IPV4, Type::DGRAM, None)
            .is_ok_and(|socket| socket.set_mark(u32::MAX).is_ok())
    }

    /// The mark that new sockets get; 0 when they get none.
    pub fn mark(&self) -> u32 {
        self.mark.load(Ordering::Relaxed)
    }

    /// The marks of everything that is made here, by the bypass and [`through`](Bypass::through) it; 0 for none.
    pub fn marks(&self) -> [u32; 2] {
        self.marks_with(self.mark())
    }

    /// The same, were `mark` the one that bypasses tunnels.
    pub fn marks_with(&self, mark: u32) -> [u32; 2] {
        [mark, self.unbypassed]
    }

    /// Changes the mark for sockets made from here on, as when a tunnel with an fwmark of its own appears.
    pub fn set_mark(&self, mark: u32) {
        self.mark.store(mark, Ordering::Relaxed);
    }

    /// The device that sockets are bound to.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// A UDP socket connected to `remote` from a fresh random port: only its datagrams arrive (RFC 5452 §9.2).
    ///
    /// Waits while three quarters of the files that the process may open are such sockets.
    pub async fn udp(&self, remote: SocketAddr) -> io::Result<BypassSocket> {
        let permit = Arc::clone(&self.sockets).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let socket = self.socket(remote, Type::DGRAM, Protocol::UDP)?;
        socket.connect(&remote.into())?;
        Ok(BypassSocket {
            socket: UdpSocket::from_std(socket.into())?,
            _permit: permit,
        })
    }

    /// A UDP socket on a random port that is to talk to `remote` alone, and leaves it to its user to see to that.
    pub fn datagrams(&self, remote: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let socket = self.socket(remote, Type::DGRAM, Protocol::UDP)?;
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        Ok(socket.into())
    }

    /// A TCP connection to `remote`.
    pub async fn tcp(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(remote, Type::STREAM, Protocol::TCP)?;
        socket.set_tcp_nodelay(true)?;
        TcpSocket::from_std_stream(socket.into())
            .connect(remote)
            .await
    }

    /// Tries whether sockets can have the mark and the device; fails with what would help.
    pub fn check(&self) -> Result<(), BypassError> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP));
        let socket = socket.map_err(BypassError::Socket)?;
        let mark = self.mark();
        if mark != 0 && socket.set_mark(mark).is_err() {
            return Err(BypassError::Mark(mark));
        }
        match &self.device {
            Some(device) => socket
                .bind_device(Some(device.as_bytes()))
                .map_err(|error| BypassError::Device(device.to_string(), error)),
            None => Ok(()),
        }
    }

    fn socket(&self, remote: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(remote), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        let mark = self.mark();
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        Ok(socket)
    }
}

impl Deref for BypassSocket {
    type Target = UdpSocket;

    fn deref(&self) -> &UdpSocket {
        &self.socket
    }
}

fn most_sockets() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit / 4 * 3)
        .unwrap_or(usize::MAX)
        .clamp(16, Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_beyond_the_limit_waits_for_another_to_close() {
        let mut bypass = Bypass::new(0, None);
        bypass.sockets = Arc::new(Semaphore::new(1));
        let remote = SocketAddr::from(([127, 0, 0, 1], 53));
        let first = bypass.udp(remote).await.unwrap();
        let second = tokio::spawn({
            let bypass = bypass.clone();
            async move { bypass.udp(remote).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
    }
}
