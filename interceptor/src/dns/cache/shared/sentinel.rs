//! Redis Sentinel: those who watch a store's servers know which of them is the master, and are asked before every
//! connection.
//!
//! They are asked in turn, and the one who answered last comes first the next time. A sentinel that has not heard of a
//! failover yet names a server that is no master any more, so what is named is asked for its role as well.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, cmd};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::config::Sentinels;
use super::link::{Metered, Stream, Trouble, reach};
use super::words;
use crate::bypass::Bypass;
use crate::dns::upstream::EncryptedUrl;

/// How long one sentinel has for its answer; there are others.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks sentinels for the master.
pub(super) struct Watchers {
    sentinels: Sentinels,
    /// How they are spoken to where they want no password.
    stranger: RedisConnectionInfo,
    /// How they are spoken to where they want one: it is the store's.
    known: Option<RedisConnectionInfo>,
    /// How many have failed so far, from which follows whom to ask first.
    turn: AtomicUsize,
}

impl Watchers {
    pub(super) fn new(
        sentinels: Sentinels,
        stranger: RedisConnectionInfo,
        known: Option<RedisConnectionInfo>,
    ) -> Self {
        Self {
            sentinels,
            stranger,
            known,
            turn: AtomicUsize::new(0),
        }
    }

    /// Where the master is, as the first sentinel says who answers. Can be cancelled.
    pub(super) async fn master(&self, bypass: &Bypass) -> Result<SocketAddr, Trouble> {
        let Sentinels {
            servers, master, ..
        } = &self.sentinels;
        let mut reasons = Vec::new();
        let first = self.turn.load(Ordering::Relaxed) % servers.len().max(1);
        for server in servers.iter().cycle().skip(first).take(servers.len()) {
            let reason = match timeout(PATIENCE, self.ask(server, bypass)).await {
                Ok(Ok(place)) => return Ok(place),
                Ok(Err(trouble)) => words(trouble),
                Err(_) => format!("it does not answer within {PATIENCE:?}"),
            };
            self.turn.fetch_add(1, Ordering::Relaxed);
            let place = server.addresses().next();
            let place = place.map_or_else(String::new, |place| format!("{place}: "));
            reasons.push(format!("{place}{reason}"));
        }
        Err(Trouble::Failed(format!(
            "no sentinel says where the master `{master}` is ({})",
            reasons.join("; ")
        )))
    }

    /// A connection to the master at `place`.
    pub(super) async fn reach(
        &self,
        place: SocketAddr,
        bypass: &Bypass,
    ) -> io::Result<Box<dyn Stream>> {
        let Some(server) = self.sentinels.servers.first() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        reach(server.clone().at(place), self.sentinels.is_tls, bypass).await
    }

    async fn ask(&self, server: &EncryptedUrl, bypass: &Bypass) -> Result<SocketAddr, Trouble> {
        match (
            self.ask_as(&self.stranger, server, bypass).await,
            &self.known,
        ) {
            (Err(Trouble::WantsPassword), Some(known)) => self.ask_as(known, server, bypass).await,
            (answer, _) => answer,
        }
    }

    async fn ask_as(
        &self,
        who: &RedisConnectionInfo,
        server: &EncryptedUrl,
        bypass: &Bypass,
    ) -> Result<SocketAddr, Trouble> {
        let stream = reach(server.clone(), self.sentinels.is_tls, bypass).await;
        let stream = stream.map_err(|error| Trouble::Failed(error.to_string()))?;
        let stream = Metered::new(stream, Arc::default());
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let opening = MultiplexedConnection::new_with_config(who, stream, config);
        let (mut connection, driver) = opening.await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let mut question = cmd("SENTINEL");
        question
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.sentinels.master);
        let answer: Option<(String, String)> = question.query_async(&mut connection).await?;
        let Some((address, port)) = answer else {
            return Err(Trouble::Failed("it knows no such master".to_owned()));
        };
        place(&address, &port)
    }
}

/// The place that a sentinel has named.
fn place(address: &str, port: &str) -> Result<SocketAddr, Trouble> {
    let Ok(ip) = address.parse::<IpAddr>() else {
        return Err(Trouble::Failed(format!(
            "it names the master by `{}`, which is no address (`sentinel announce-hostnames no` would help)",
            address.escape_debug()
        )));
    };
    match port.parse() {
        Ok(port) if port != 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err(Trouble::Failed(
            "it names the master without a port".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_named_by_address_and_port() {
        let named = |address, port| place(address, port).ok().map(|place| place.to_string());
        assert_eq!(
            named("192.0.2.1", "6379").as_deref(),
            Some("192.0.2.1:6379")
        );
        assert_eq!(
            named("2001:db8::1", "1").as_deref(),
            Some("[2001:db8::1]:1")
        );
        for (address, port) in [
            ("redis.example", "6379"),
            ("", "6379"),
            ("192.0.2.1", ""),
            ("192.0.2.1", "0"),
            ("192.0.2.1", "65536"),
            ("192.0.2.1", "-1"),
        ] {
            assert_eq!(named(address, port), None, "{address} {port}");
        }
    }
}
