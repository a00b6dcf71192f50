//! TCP connections to an upstream, outside the tunnel.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::stream::Dial;
use crate::bypass::Bypass;

/// Opens TCP connections to one resolver.
pub(super) struct TcpDial {
    remote: SocketAddr,
    bypass: Bypass,
}

impl TcpDial {
    pub(super) fn new(remote: SocketAddr, bypass: Bypass) -> Self {
        Self { remote, bypass }
    }
}

impl Dial for TcpDial {
    type Stream = TcpStream;

    async fn dial(&self) -> io::Result<TcpStream> {
        self.bypass.tcp(self.remote).await
    }

    fn mark(&self) -> u32 {
        self.bypass.mark()
    }
}
