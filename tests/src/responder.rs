//! Scripted servers: a UDP socket that answers as a test tells it to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::dns;
use crate::link::wait_until_ready;
use crate::namespace::Namespace;

/// A scripted server; it ends when dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// What [`Responder::far_end`] answers to every question.
    pub const FAR_ANSWER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    /// Answers each datagram at `local` with those that `script` makes of it, in their order.
    pub fn start(
        namespace: &Namespace,
        local: SocketAddr,
        mut script: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket = namespace.udp(local)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                let mut buffer = vec![0; 65_535];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, client)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    seen.fetch_add(1, Ordering::Relaxed);
                    for reply in script(&buffer[..length]) {
                        // A client that is gone is none of the server's business.
                        let _ = socket.send_to(&reply, client);
                    }
                }
            }
        });
        Ok(Self {
            stop,
            seen,
            thread: Some(thread),
        })
    }

    /// A server beyond the tunnel: gives `address` to `namespace` and answers every question there with
    /// [`Self::FAR_ANSWER`], so that a test can tell which queries were let through.
    pub fn far_end(namespace: &Namespace, address: IpAddr) -> Result<Self> {
        namespace.run(&format!("ip address add {address} dev lo"))?;
        wait_until_ready(namespace, "lo", &[&address.to_string()])?;
        Self::start(namespace, SocketAddr::new(address, 53), |query| {
            dns::address_reply(query, Self::FAR_ANSWER)
                .into_iter()
                .collect()
        })
    }

    /// How many datagrams have arrived.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A script that panicked has been reported.
            let _ = thread.join();
        }
    }
}
