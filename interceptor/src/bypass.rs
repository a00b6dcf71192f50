//! How the daemon's own traffic avoids the tunnel and its own taps: a socket mark, a device, or both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Makes sockets whose traffic bypasses the tunnel.
#[derive(Clone, Debug)]
pub struct Bypass {
    mark: Arc<AtomicU32>,
    device: Option<Arc<str>>,
}

impl Bypass {
    /// A bypass by `mark` (`SO_MARK`; 0 sets none) and by `device` (`SO_BINDTODEVICE`), where given.
    pub fn new(mark: u32, device: Option<&str>) -> Self {
        Self {
            mark: Arc::new(AtomicU32::new(mark)),
            device: device.map(Arc::from),
        }
    }

    /// The mark that new sockets get; 0 when they get none.
    pub fn mark(&self) -> u32 {
        self.mark.load(Ordering::Relaxed)
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
    pub fn udp(&self, remote: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(remote, Type::DGRAM, Protocol::UDP)?;
        socket.connect(&remote.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// A TCP connection to `remote`.
    pub async fn tcp(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(remote, Type::STREAM, Protocol::TCP)?;
        socket.set_tcp_nodelay(true)?;
        TcpSocket::from_std_stream(socket.into())
            .connect(remote)
            .await
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
